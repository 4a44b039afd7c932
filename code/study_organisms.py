"""Hold model diffs and rates to what is known of the organisms: data/organisms and its figures.

    python code/study_organisms.py             # all of it (an hour on two cores)
    python code/study_organisms.py surfacing   # some: surfacing, rates, refusals, reading, page

What the sweeps make is kept in .cache/organisms, so that the same command goes on where it stopped.
The truth about the quirk is counted apart: code/count_organisms.py. Limits and batches stand in
code/organisms/evidence.py; they were committed before the data.
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
    """Make what is named; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PARTS))
    options = parser.parse_args(flags)
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"{min(unknown)}: unknown; allowed: {', '.join(PARTS)}")
    return exit_code(lambda: run(options.names or list(PARTS)), "Finished sweeps are kept.")


def run(names: list[str]) -> None:
    """Make them."""
    for name in names:
        PARTS[name]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
