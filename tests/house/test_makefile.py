"""What `make` would run: its recipes are printed, not executed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from conftest import PROMPTS

from local_hub import serving
from logit_amplification.locations import ROOT
from mistral_files import save_mistral


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
    assert re.search(r"-m jupyter lab (--allow-root )?experiment_logit_\w+.ipynb$", line)


def test_explore_serves_the_page_with_the_demo_model():
    (line,) = recipe("explore")
    assert line.startswith("MODEL=demo QUANTIZATION=none ")
    assert "-m voila docs/notebooks/explorer.ipynb " in line


def test_mistral_from_an_interrupted_download_to_the_figures_and_again(tmp_path):
    """All its steps, against a local hub with a tiny Mistral; a third time it makes nothing."""
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    project = tmp_path / "project"  # with a .env of its own
    project.mkdir()
    for name in ("Makefile", "code"):
        (project / name).symlink_to(ROOT / name)
    (tmp_path / "prompts.csv").write_text(PROMPTS)
    folder = save_mistral(tmp_path / "model")
    asked = {"DTYPE": "float32", "ALPHAS": "0,1", "MAX_NEW_TOKENS": 4}
    asked |= {"PROMPTS": tmp_path / "prompts.csv", "DATA_DIR": tmp_path / "data"}
    asked |= {"VISUALIZATIONS_DIR": tmp_path / "visualizations", "HF_HOME": tmp_path / "home"}
    with serving(folder) as hub:
        (project / ".env").write_text(f"MODEL={hub.model}\n")
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        asked = kept | {"HF_ENDPOINT": hub.url} | {n: str(value) for n, value in asked.items()}
        command = ["make", "--old-file=.venv/installed", f"RUN={sys.executable}", "mistral"]
        run = {"env": asked, "cwd": project, "text": True}
        hub.delay = 0.05
        begun = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, **run)
        arrived = threading.Event()
        hub.at_byte = (200_000, arrived.set)
        assert arrived.wait(120)
        os.killpg(begun.pid, signal.SIGINT)
        begun.communicate(timeout=30)
        hub.behave()
        for number in range(2):
            ended = subprocess.run(command, capture_output=True, **run)
            assert ended.returncode == 0, ended.stderr
            assert "Recommended: QUANTIZATION=none DEVICE=cpu" in ended.stdout
            made = "0 generations to make, 6 found" if number else "6 generations to make, 0 found"
            assert made in ended.stdout
    chosen = (project / ".env").read_text()
    assert chosen.count("QUANTIZATION=none\nDEVICE=cpu\n") == 1
    assert (tmp_path / "visualizations" / "index.html").exists()
    assert (tmp_path / "data" / "recommendations.txt").exists()


def test_demo_ends_with_what_to_do_next():
    _, *told = recipe("demo")
    assert all(line.startswith("echo") for line in told)
    named = ("visualizations/index.html", "make explore", "make lab", "check_mistral_readiness.py")
    assert [any(one in line for line in told[-4:]) for one in named] == [True] * 4


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
    assert "--index-url https://download.pytorch.org/whl/cu130" in readme
    assert "CPU_INDEX := https://download.pytorch.org/whl/cpu\n" in (ROOT / "Makefile").read_text()
