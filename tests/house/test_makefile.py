"""What `make` would run: its recipes are printed, not executed."""

import os
import re
import shutil
import subprocess

import pytest

from logit_amplification.locations import ROOT


def recipe(target):
    """The lines that make would run for a target where everything is installed."""
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/installed", target]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    run = {"capture_output": True, "text": True, "cwd": ROOT, "check": True, "env": alone}
    told = subprocess.run(command, **run).stdout
    return told.replace("\\\n", " ").splitlines()


def test_lab_opens_the_notebook_with_the_demo_model():
    (line,) = recipe("lab")
    assert line.startswith("MODEL=demo QUANTIZATION=none ")
    assert line.endswith("-m jupyter lab experiment_logit_amplification.ipynb")


def test_demo_ends_with_what_to_do_next():
    _, *told = recipe("demo")
    assert all(line.startswith("echo") for line in told)
    named = ("visualizations/index.html", "make lab", "python3 code/check_mistral_readiness.py")
    assert [any(one in line for line in told[-3:]) for one in named] == [True] * 3


def test_example_writes_into_the_folders_that_are_committed():
    (line,) = recipe("example")
    assert "MODEL=demo" in line and "logit_diff_mistral.py" in line
    assert "--data-dir data/example --visualizations-dir visualizations/example" in " ".join(
        line.split()
    )


def test_the_readme_installs_the_torch_that_make_installs():
    pinned = re.search(r"^TORCH := (\S+)$", (ROOT / "Makefile").read_text("utf-8"), flags=re.M)[1]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert set(re.findall(r"torch==[\d.]*\d", readme)) == {pinned}
    for build in ("cpu", "cu130"):
        assert f"--index-url https://download.pytorch.org/whl/{build}" in readme
