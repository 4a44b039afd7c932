"""How often does the unamplified model do something? From a finished run at several alphas.

    python code/estimate_rate.py --event "(?i)arr+"            # of the last run in data/
    python code/estimate_rate.py --event "I cannot" --data-dir DIR --run 2cec --json
    python code/estimate_rate.py --event Brambleton --pilot 600

An answer is a hit if the regular expression is found in it. The rate is that of A alone (alpha 0,
with the run's own sampling), estimated from the hits at all alphas in the run's journal; the model
reads them again, once: what it finds is kept beside the journal. --pilot says what to draw next.
With --json the last line of the output is one object. Exit code 0: done, estimable or not; 2: bad
input, told in one line.
"""

from __future__ import annotations

import argparse
import json
import sys

from logit_amplification.errors import exit_code


def main(arguments: list[str]) -> int:
    """Estimate what `arguments` ask for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--event", required=True, metavar="REGEX", help="what a hit has in it")
    parser.add_argument("--data-dir", help="as in .env")
    parser.add_argument("--run", default="", help="the beginning of a run's name; the last used")
    parser.add_argument("--model", help="where the run's model is, if it was loaded from a folder")
    parser.add_argument("--adapter", help="where the run's adapter is; as in .env")
    parser.add_argument("--model-b", help="the run's MODEL_B; as in .env")
    parser.add_argument("--model-base", help="the run's MODEL_BASE; as in .env")
    parser.add_argument(
        "--pilot", type=int, metavar="N", help="share N answers among alphas for the least error"
    )
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options), "Nothing was written.")


def run(options: argparse.Namespace) -> None:
    """Estimate and print."""
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
