"""What a sweep imports, for the fork server of command_line.py: imported once, before any fork."""

import logit_amplification.reports.artifacts
import logit_amplification.sweeps.sweep  # noqa: F401
