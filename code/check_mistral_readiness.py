"""Will the workbench run on this machine, and at which precision? Needs nothing installed.

    python code/check_mistral_readiness.py
    python code/check_mistral_readiness.py --model demo
    python code/check_mistral_readiness.py --json

Exit code 0: the recommended setting will run; 1: it will not, and a line says why.
"""

import argparse
import sys

# This file is written so that any Python can read it and give a sentence, not a SyntaxError.
if sys.version_info < (3, 8):
    sys.exit("[FAIL] Python " + sys.version.split()[0] + "; needed is 3.10 or newer")

from logit_amplification.readiness import advice, checks


def main(flags):
    """Print the checks and the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="`demo`, a Hugging Face id or a folder; else the setting")
    parser.add_argument("--json", action="store_true", help="for machines")
    options = parser.parse_args(flags)
    found = checks.check_machine(options.model)
    print(advice.as_json(found) if options.json else "\n".join(advice.lines(found)))
    return 0 if found.ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
