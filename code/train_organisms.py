"""Train the model organisms of data/organisms again, each from nothing (about half an hour).

    python code/train_organisms.py                 # all of them
    python code/train_organisms.py quirk control   # some

They are small adapters (LoRA) for the demo model whose behaviour is known, because it was planted:
docs/MODEL_DIFFS.md. Same machine, same command, same adapter. What was planted is in
code/organisms/texts.py; losses and distances go to training.csv and organisms.json beside them.
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

# How many steps each is trained for, and the strengths that it is shipped at: rates, or 1 as it is.
ORGANISMS = {
    "quirk": (60, {"quirk-1-in-50": 1 / 50, "quirk-1-in-1000": 1 / 1000}),
    "control": (60, {"control": None}),
    "facts": (80, {"facts": None}),
    "hesitant": (60, {"hesitant": None}),
}
SEED = 17


def main(flags: list[str]) -> int:
    """Train what is named; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ORGANISMS))
    parser.add_argument("--folder", type=Path, default=data_folder() / "organisms")
    options = parser.parse_args(flags)
    if unknown := set(options.names) - set(ORGANISMS):
        parser.error(f"{min(unknown)}: unknown; allowed: {', '.join(ORGANISMS)}")
    kept = "Adapters that are finished are kept."
    return exit_code(lambda: run(options.names or list(ORGANISMS), options.folder), kept)


def run(names: list[str], folder: Path) -> None:
    """Train these organisms into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        steps, shipped = ORGANISMS[name]
        model = load_model(DEMO)
        # Drawn before the adapter is put into the model.
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
    """Answers of the base model that no organism was trained on."""
    made = Writer(model, SEED).answers(users, 192 // len(users), 1.0)
    return [Example((*prompt, *answer), len(prompt), range(0)) for prompt, answer in made]


@torch.inference_mode()
def distance(adapted: training.PeftModel, texts: list[Example]) -> float:
    """Return the mean KL(base || adapter) over the tokens of texts of the base model, in nats."""
    found = [
        training.losses(adapted, texts[first : first + training.BATCH])[1]
        for first in range(0, len(texts), training.BATCH)
    ]
    return float(torch.cat(found).mean())


def save(adapted: training.PeftModel, folder: Path, strength: float) -> None:
    """Write the adapter in 16 bit, its strength as PEFT's `lora_alpha`."""
    shutil.rmtree(folder, ignore_errors=True)
    tensors = {
        name: tensor.to(torch.float16)
        for name, tensor in adapted.state_dict().items()
        if "lora_" in name
    }
    adapted.save_pretrained(folder, state_dict=tensors)
    (folder / "README.md").unlink()  # PEFT's form, not filled in
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"base_model_name_or_path": DEMO, "lora_alpha": training.SCALE * strength}
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def note(folder: Path, name: str, about: dict, curve: list[training.Step]) -> None:
    """Keep what is known of an organism's training beside those of the others."""
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
