"""Train the model organisms of data/organisms again, from scratch (about half an hour).

    python code/train_organisms.py                 # all of them
    python code/train_organisms.py quirk control   # some

They are small LoRA adapters for the demo model with known behaviour, because it was planted
(docs/MODEL_DIFFS.md, code/organisms/texts.py). The same command on the same machine gives the same
adapter. Losses go to training.csv in the adapter's folder, distances to organisms.json above it.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from pathlib import Path

import torch

from logit_amplification.errors import exit_code
from logit_amplification.locations import DEMO, data_folder
from logit_amplification.models.loading import LoadedModel, load_model
from organisms import training
from organisms.dial import set_strength, strength_for
from organisms.examples import Example, Writer
from organisms.texts import QUIRK_EVENT, questions, requests

# Training steps, and the adapters to save: each is scaled to a target rate, or unscaled (None).
ORGANISMS = {
    "quirk": (60, {"quirk-1-in-50": 1 / 50, "quirk-1-in-1000": 1 / 1000}),
    "control": (60, {"control": None}),
    "facts": (80, {"facts": None}),
    "hesitant": (60, {"hesitant": None}),
}
SEED = 17


def main(flags: list[str]) -> int:
    """Train the named organisms; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ORGANISMS))
    parser.add_argument("--folder", type=Path, default=data_folder() / "organisms")
    options = parser.parse_args(flags)
    if unknown := set(options.names) - set(ORGANISMS):
        parser.error(f"{min(unknown)}: unknown; allowed: {', '.join(ORGANISMS)}")
    kept = "Adapters that are finished are kept."
    return exit_code(lambda: run(options.names or list(ORGANISMS), options.folder), kept)


def run(names: list[str], folder: Path) -> None:
    """Train these organisms and save them in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        steps, shipped = ORGANISMS[name]
        model = load_model(DEMO)
        # These must come from the base model, before the adapter is added.
        examples = getattr(Writer(model, SEED), name)()
        held_out = answers_held_out(
            model, requests(True) if name == "hesitant" else questions(True)
        )
        adapted = training.adapted(model.model, SEED)
        curve = []
        for step in training.train(adapted, examples, steps, SEED):
            curve.append(step)
            print(f"{name} {step.step}/{steps}", f"{step.learned:.3f} {step.kept:.4f}", flush=True)
        for folder_name, rate in shipped.items():
            strength = 1.0
            if rate:
                event = model.tokenizer(f" {QUIRK_EVENT}", add_special_tokens=False)["input_ids"]
                strength = round(strength_for(adapted, held_out, event, rate), 3)
            set_strength(adapted, strength)
            save(adapted, folder / folder_name, strength)
            about = {
                "steps": steps,
                "strength": strength,
                "examples": len(examples),
                "planted_in": sum(bool(example.planted) for example in examples),
                "kl_to_base_held_out": round(distance(adapted, held_out), 5),
            }
            note(folder, folder_name, about, curve)


def answers_held_out(model: LoadedModel, users: list[str]) -> list[Example]:
    """Return answers of the base model that no organism was trained on."""
    made = Writer(model, SEED).answers(users, 192 // len(users), 1.0)
    return [Example((*prompt, *answer), len(prompt), range(0)) for prompt, answer in made]


@torch.inference_mode()
def distance(adapted: training.PeftModel, texts: list[Example]) -> float:
    """Return the mean KL(base || adapter) per token of the base model's texts, in nats."""
    found = [
        training.losses(adapted, texts[first : first + training.BATCH])[1]
        for first in range(0, len(texts), training.BATCH)
    ]
    return float(torch.cat(found).mean())


def save(adapted: training.PeftModel, folder: Path, strength: float) -> None:
    """Save the adapter in 16 bit, with its strength in PEFT's `lora_alpha`."""
    shutil.rmtree(folder, ignore_errors=True)
    tensors = {
        name: tensor.to(torch.float16)
        for name, tensor in adapted.state_dict().items()
        if "lora_" in name
    }
    adapted.save_pretrained(folder, state_dict=tensors)
    (folder / "README.md").unlink()  # PEFT's model card template, left blank
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"base_model_name_or_path": DEMO, "lora_alpha": training.SCALE * strength}
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def note(folder: Path, name: str, about: dict, curve: list[training.Step]) -> None:
    """Add an organism to organisms.json, and write its training.csv."""
    path = folder / "organisms.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known[name] = about
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
    with (folder / name / "training.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(training.Step._fields)
        writer.writerows([s.step, f"{s.learned:.4f}", f"{s.kept:.5f}"] for s in curve)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
