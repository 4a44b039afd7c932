"""Where the project's folders are, and the two models that it knows by name.

Standard library only, and Python 3.8 reads it: the readiness check uses it before anything is
installed.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
DEMO = "demo"  # SmolLM2-135M-Instruct, out of a PyPI package
