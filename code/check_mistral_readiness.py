"""Check whether the workbench will run on this machine, and at which precision.

    python code/check_mistral_readiness.py
    python code/check_mistral_readiness.py --model demo
    python code/check_mistral_readiness.py --json
    python code/check_mistral_readiness.py --settings
    python code/check_mistral_readiness.py --save

Needs no installed packages. Exit code 0: the recommended setting will run; 1: it will not, and a
line says why; 2: with --save, nothing was chosen, and a line says why.
"""

import argparse
import sys

# Older Pythons must be able to parse this file, so that they print this line and no SyntaxError.
if sys.version_info < (3, 8):
    sys.exit("[FAIL] Python " + sys.version.split()[0] + "; 3.10 or newer is needed")

from pathlib import Path

from logit_amplification.errors import BadInput
from logit_amplification.readiness import advice, checks, choice, precision


def main(flags):
    """Print the checks and the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="`demo`, a Hugging Face id or a folder; default: MODEL")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--settings", action="store_true", help="print the recommended setting alone")
    form.add_argument(
        "--save",
        action="store_true",
        help="write the recommended setting into .env, unless QUANTIZATION is set already",
    )
    options = parser.parse_args(flags)
    found = checks.check_machine(options.model)
    if options.settings:
        print(precision.tips(found.recommended) if found.recommended else "")
    else:
        print(advice.as_json(found) if options.json else "\n".join(advice.lines(found)))
    if options.save and found.ready:
        try:
            print(choice.save(found, Path(".env")))
        except BadInput as error:
            sys.stderr.write("error: %s\n" % error)
            return 2
    return 0 if found.ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
