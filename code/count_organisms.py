"""Count how often an organism shows its quirk: the truth to test rate estimates against.

    python code/count_organisms.py quirk-1-in-50 --batches 4       # 4 x 1,024 answers
    python code/count_organisms.py quirk-1-in-1000 --batches 100   # an hour and a half on two cores

Counts are kept in data/organisms/counted.csv; only batches missing there are generated.
"""

from __future__ import annotations

import argparse
import sys

from logit_amplification.errors import exit_code
from logit_amplification.locations import DEMO, data_folder
from logit_amplification.models.loading import load_model
from organisms import truth

READ = 1024  # answers of a batch that the model scores again, for the expected number of hits


def main(flags: list[str]) -> int:
    """Count the requested batches; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("organism", help="a folder of data/organisms")
    parser.add_argument("--batches", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="1/2 or 2/2: split between two processes")
    options = parser.parse_args(flags)
    return exit_code(lambda: run(options), "Batches that are finished are kept.")


def run(options: argparse.Namespace) -> None:
    """Count the batches that are still missing."""
    folder = data_folder() / "organisms"
    path = folder / "counted.csv"
    model = load_model(DEMO, adapter=folder / options.organism)
    known = {one.seed for one in truth.batches(path) if one.organism == options.organism}
    part, parts = map(int, options.part.split("/"))
    seeds = range(truth.SEED, truth.SEED + options.batches)
    for seed in seeds:
        if seed not in known and seed % parts == part % parts:
            truth.keep(path, found := truth.count(model, options.organism, seed, READ))
            print(f"seed {seed}: {found.hits} of {found.answers}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
