"""Test model diffs and rate estimates on organisms whose true behaviour is known.

    python code/study_organisms.py             # all of it (an hour on two cores)
    python code/study_organisms.py surfacing   # some: surfacing, rates, refusals, reading, page

It writes the tables in data/organisms, their figures and the tables of docs/MODEL_DIFFS.md. Sweeps
are kept in .cache/organisms, so the same command resumes where it stopped. The true rate of the
quirk comes from code/count_organisms.py. Limits and batch sizes are in code/organisms/evidence.py;
they were committed before the data were generated.
"""

from __future__ import annotations

import argparse
import sys

from logit_amplification.errors import exit_code
from organisms import evidence, page

PARTS = {
    "surfacing": evidence.surfacing,
    "rates": evidence.rates_in_batches,
    "refusals": evidence.refusals,
    "reading": evidence.reading,
    "page": page.write,
}


def main(flags: list[str]) -> int:
    """Run the named parts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARTS))
    options = parser.parse_args(flags)
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"{min(unknown)}: unknown; allowed: {', '.join(PARTS)}")
    return exit_code(lambda: run(options.names or list(PARTS)), "Finished sweeps are kept.")


def run(names: list[str]) -> None:
    """Run the parts in this order."""
    for name in names:
        PARTS[name]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
