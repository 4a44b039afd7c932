"""docs/INTEGRATIONS.md: its blocks are files, commands and programs that run as they stand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from logit_amplification.integrations.amplifier import ARGUMENTS
from logit_amplification.locations import NAME, ROOT, cache_folder

PAGE = (ROOT / "docs" / "INTEGRATIONS.md").read_text(encoding="utf-8")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
CLONE = f"CLONE = {str(ROOT)!r}\n"


def blocks(kind, part):
    """The blocks of one kind below a heading of the page that are no files."""
    section = PAGE.split(f"\n## {part}\n")[1].split("\n## ")[0]
    return [text for name, title, text in BLOCK.findall(section) if name == kind and not title]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment variables under which commands find the installed package, and no hub."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    shutil.copytree(ROOT / "code", source / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "data").mkdir()
    for path in [*ROOT.glob("*.txt"), *ROOT.glob("*.toml"), *ROOT.glob("*.md"), ROOT / "setup.py"]:
        shutil.copy(path, source)
    for path in (ROOT / "data").iterdir():
        if path.suffix in (".csv", ".jsonl"):
            shutil.copy(path, source / "data")
    shutil.copy(ROOT / "LICENSE", source)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    install += ["--quiet", "--target", str(folder / "site"), str(source)]
    subprocess.run(install, check=True)
    (folder / "cache").mkdir()
    (folder / "cache" / NAME).symlink_to(cache_folder())  # the unpacked demo model
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "site"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "INSPECT_DISPLAY": "plain",
    }


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that the page names."""
    for _, title, text in BLOCK.findall(PAGE):
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
    return tmp_path


def run(command, folder, environment):
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_inspects_command_leaves_an_amplified_log(folder, installed):
    (command,) = blocks("bash", "inspect_ai")
    run(["bash", "-c", command], folder, installed | {"INSPECT_LOG_FORMAT": "json"})
    (log,) = (folder / "logs").glob("*.json")
    told = json.loads(log.read_text())
    assert told["status"] == "success" and len(told["samples"]) == 4
    for sample in told["samples"]:
        assert sample["output"]["metadata"]["alpha"] == 1
        assert sample["output"]["metadata"]["a_system"] == "You are very excited."
        assert sample["output"]["metadata"]["generations"][0]["measures"]["kl_amplified_a"] > 0


def test_inspects_command_tells_a_mistake_in_one_line(folder, installed):
    bad = subprocess.run(
        ["bash", "-c", "inspect eval tea.py --model amplified/demo -M alpha=1"],
        **{"cwd": folder, "env": installed, "capture_output": True, "text": True},
    )
    told = bad.stdout + bad.stderr
    assert "amplified/demo: alpha = 1 changes nothing where B is A" in told
    assert "Traceback" not in told


def test_the_harness_commands_run(folder, installed):
    (command,) = blocks("bash", "lm-evaluation-harness")
    assert "capitals" in run(["bash", "-c", command], folder, installed)
    (program,) = blocks("python", "lm-evaluation-harness")
    assert "acc" in run([sys.executable, "-c", program], folder, installed)


def test_the_programs_for_transformers_run(folder, installed):
    program = CLONE + "\n".join(blocks("python", "transformers"))
    assert len(run([sys.executable, "-c", program], folder, installed).split()) > 20


def test_a_run_is_read_as_the_page_says(folder, installed):
    (program,) = blocks("python", "datasets and pandas")
    told = run([sys.executable, "-c", CLONE + program], folder, installed)
    assert "kl_amplified_a" in told and "Value('float64') pair_id: the prompt pair" in told
    assert (folder / "generations.parquet").stat().st_size > 0


def test_every_argument_is_on_the_page():
    table = PAGE.split("| argument (`-M`) |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.+?) \|", table, flags=re.M))))
    same = {"model_b", "model_base"}  # other names of b_model and base_model
    assert named == set(ARGUMENTS) - same
