"""The scripts, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys

from logit_amplification.locations import ROOT


def as_list(options):
    return [f"--{name}={value}" for name, value in options.items()]


def run_process(options, **environment):
    command = [sys.executable, str(ROOT / "code" / "logit_diff_mistral.py"), *as_list(options)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, cwd=ROOT
    )
