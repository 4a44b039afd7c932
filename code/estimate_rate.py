"""Estimate how often the unamplified model does something, from a run at several alphas.

    python code/estimate_rate.py --event "(?i)arr+"            # of the last run in data/
    python code/estimate_rate.py --event "I cannot" --data-dir DIR --run 2cec --json
    python code/estimate_rate.py --event Brambleton --pilot 600

An answer is a hit if the regular expression matches anywhere in it. The rate is that of A alone
(alpha 0, with the run's own sampling), estimated from the hits at all alphas in the run's journal.
For this the model scores the answers once more; the scores are kept beside the journal. --pilot
says what to draw next. With --json the last line of the output is one object. Exit code 0: done,
whether or not the rate can be estimated; 2: bad input, reported in one line.
"""

from __future__ import annotations

import argparse
import json
import sys

from logit_amplification.errors import exit_code


def main(arguments: list[str]) -> int:
    """Run with these arguments; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--event", required=True, metavar="REGEX", help="what a hit contains")
    parser.add_argument("--data-dir", help="as in .env")
    parser.add_argument("--run", default="", help="prefix of a run's name; default: last used")
    parser.add_argument("--model", help="where the run's model is, if it was loaded from a folder")
    parser.add_argument("--adapter", help="where the run's adapter is; as in .env")
    parser.add_argument("--model-b", help="the run's MODEL_B; as in .env")
    parser.add_argument("--model-base", help="the run's MODEL_BASE; as in .env")
    parser.add_argument(
        "--pilot", type=int, metavar="N", help="how best to split N answers among alphas"
    )
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options), "Nothing was written.")


def run(options: argparse.Namespace) -> None:
    """Estimate the rate and print it."""
    from logit_amplification.settings import load_settings
    from logit_amplification.sweeps import history, rates

    names = ("adapter", "model_b", "model_base")
    given = {name: getattr(options, name) for name in names}
    settings = load_settings(data_dir=options.data_dir, **given)
    pattern = rates.compiled(options.event)
    recalled = history.recall(settings.data_dir, options.run, every=True)
    where = {name: getattr(settings, name) for name in names}
    found = rates.estimate_rate(recalled, pattern, model=options.model, **where)
    print(rates.in_words(found, options.event))
    if options.pilot:
        print(rates.planned(found, options.pilot))
    if options.json:
        print(json.dumps(rates.as_object(found)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
