"""Run a sweep from the command line and write its results.

    python code/logit_diff_mistral.py --model demo
    python code/logit_diff_mistral.py --alphas 0,0.5,1,2 --samples 3
    python code/logit_diff_mistral.py --rerun 1.5
    torchrun --nproc-per-node 2 code/logit_diff_mistral.py --model demo

Settings come from the flags, the environment and .env (see .env.example). Run again, the same
command generates only what is missing. Several processes of `torchrun` or `accelerate launch` share
the work (docs/SCALE.md). Exit code 0: done; 2: bad input; 75: ended by SIGTERM, run it again; 130:
interrupted. Finished work is kept.
"""

from __future__ import annotations

import sys
from typing import Annotated

from logit_amplification.errors import exit_code, not_installed

try:
    from pydantic import Field, field_validator
    from pydantic_settings import NoDecode

    from logit_amplification.progress import only_first_speaks
    from logit_amplification.settings import Settings, load_settings, shown_path
except ModuleNotFoundError as error:
    sys.exit(not_installed(error))


class Command(Settings):
    """Amplify logit differences over prompt pairs: a + alpha * (a - b), at every token."""

    rerun: Annotated[tuple[float, ...], NoDecode] = Field(
        (),
        description="alphas to make again: numbers of --alphas separated by commas",
        json_schema_extra={"allowed": "alphas of this sweep, separated by commas, as in 1.5"},
    )

    @field_validator("rerun", mode="before")
    @classmethod
    def _split_rerun(cls, value):
        return value.split(",") if isinstance(value, str) else value


def main(flags: list[str]) -> int:
    """Run the sweep with these flags and write its artifacts; return the exit code."""
    kept = "Finished work is kept; run the same command to make the rest."
    with only_first_speaks():
        return exit_code(lambda: run(load_settings(Command, flags=flags)), kept, several=True)


def run(command: Command) -> None:
    """Run the sweep, write JSON, CSV, TXT and PNG, and print their paths."""
    from logit_amplification.prompts.files import read_pairs
    from logit_amplification.records.files import refuse_unwritable

    refuse_unwritable(command)
    pairs = read_pairs(command.prompts, command.controls, command.sources)

    from logit_amplification.models import loading
    from logit_amplification.readiness import advice
    from logit_amplification.reports import artifacts, report
    from logit_amplification.sweeps import sweep

    print(*advice.before_loading(command), sep="\n", flush=True)
    model = loading.load_model(command)
    done = sweep.sweep(model, pairs, command, rerun=command.rerun)
    if done is None:  # of several processes only the first writes
        return
    written = artifacts.save_artifacts(done, command)
    print("Wrote", *map(shown_path, written), sep="\n  ")
    print("", *report.recommendations(done.run, done.records), sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
