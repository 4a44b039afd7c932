"""Check whether the workbench will run on this machine, and at which precision.

    python code/check_mistral_readiness.py
    python code/check_mistral_readiness.py --model demo
    python code/check_mistral_readiness.py --json
    python code/check_mistral_readiness.py --settings

Needs no installed packages. Exit code 0: the recommended setting will run; 1: it will not, and a
line says why.
"""

import argparse
import sys

# Older Pythons must be able to parse this file, so that they print this line and no SyntaxError.
if sys.version_info < (3, 8):
    sys.exit("[FAIL] Python " + sys.version.split()[0] + "; 3.10 or newer is needed")

from logit_amplification.readiness import advice, checks, precision


def main(flags):
    """Print the checks and the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="`demo`, a Hugging Face id or a folder; default: MODEL")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--settings", action="store_true", help="print the recommended setting alone")
    options = parser.parse_args(flags)
    found = checks.check_machine(options.model)
    if options.settings:
        print(precision.tips(found.recommended) if found.recommended else "")
    else:
        print(advice.as_json(found) if options.json else "\n".join(advice.lines(found)))
    return 0 if found.ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
