"""The library: what is built from the checkout works where nothing of the checkout is."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import logit_amplification
from logit_amplification import locations
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.models.spec import ModelSpec, model_spec
from logit_amplification.settings import load_settings

PUBLIC = {
    *("BadInput", "amplify", "browse", "explore", "generate", "load_model", "load_run"),
    *("load_settings", "read_pairs", "save_artifacts", "sweep", "__version__"),
}


def run(*command, cwd, **environment):
    ended = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and source distribution, built from a copy so that the checkout stays as it is."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if listed.returncode:
        pytest.skip("no git here to say which files are ours")
    for name in listed.stdout.splitlines():
        if name.startswith(("code/", "data/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    # The wheel is built from the source distribution, so both must be whole.
    run("-m", "build", "--no-isolation", "--outdir", made, source, cwd=made)
    return made


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder with the installed wheel and nothing else; dependencies come from this Python."""
    target = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    options = ("--quiet", "--no-deps", "--no-index", "--target", target)
    run("-m", "pip", "install", *options, wheel, cwd=built)
    return target


def library(installed, empty, program):
    """Run a program that has the installed library and an empty working folder."""
    return run("-c", program, cwd=empty, PYTHONPATH=str(installed))


def test_wheel_and_source_hold_what_they_need_and_no_more(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT / "code"))
        for path in (ROOT / "code" / "logit_amplification").rglob("*.py")
    }
    shipped = ("prompt_pairs.csv", "labelled_answers.jsonl", "labelled_generations.jsonl")
    data = {f"logit_amplification/data/{name}" for name in shipped}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == modules | data | {
        "logit_amplification/py.typed",
        "logit_amplification/reports/study/document.md.j2",
    }
    (metadata,) = [name for name in names if name.endswith("METADATA")]
    needs = re.findall(
        r"^Requires-Dist: (.+)$", zipfile.ZipFile(wheel).read(metadata).decode(), re.M
    )
    needs = [need for need in needs if "extra ==" not in need]
    wanted = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert len(needs) == len([line for line in wanted if line and not line.startswith("#")])
    with tarfile.open(source) as packed:
        files = {name.split("/", 1)[-1] for name in packed.getnames()}
    assert {"setup.py", "pyproject.toml", "requirements.txt", "data/prompt_pairs.csv"} <= files


LIBRARY = """
import sys, pathlib
# Without the checkout, which `make` has put at the end of this environment's path.
sys.path[:] = [p for p in sys.path if not (pathlib.Path(p) / "logit_diff_mistral.py").exists()]
import logit_amplification as library
assert "torch" not in sys.modules and "pydantic" not in sys.modules
assert pathlib.Path(library.__file__).parent.parent == pathlib.Path({installed!r})
assert set(library.__all__) <= set(dir(library))
from logit_amplification import *
print(library.__version__, len(read_pairs()))
model = load_model({tiny!r}, quantization="none", dtype="float32", device="cpu")
answers = generate(model, "Yes?", "No?", alphas=[0, 2], samples=2, max_new_tokens=5)
print([(one.alpha, one.sample, len(one.token_ids) <= 5) for one in answers])
from logit_amplification.evaluation.calibration import read_labelled
print(len(read_labelled()) > 100, load_settings().data_dir, load_settings().visualizations_dir)
results = sweep(model, read_pairs({prompts!r}), load_settings(
    model={tiny!r}, alphas=[1], arms="full", max_new_tokens=3, slots=2))
print(save_artifacts(results, load_settings())[0])
"""


def test_the_installed_library_works_in_an_empty_folder(installed, tiny_folder, tmp_path):
    prompts, empty = tmp_path / "prompts.csv", tmp_path / "empty"
    prompts.write_text("id,category,a_user,b_user\np,c,Hello?,Bye?\nq,c,Tea?,Milk?\n")
    empty.mkdir()
    paths = {"installed": str(installed), "tiny": str(tiny_folder), "prompts": str(prompts)}
    told = library(installed, empty, LIBRARY.format(**paths)).splitlines()
    count = len(logit_amplification.read_pairs())
    assert told[0] == f"{logit_amplification.__version__} {count}"
    assert told[1] == str([(alpha, sample, True) for alpha in (0.0, 2.0) for sample in (0, 1)])
    assert told[2] == "True data visualizations"
    assert told[-1] == str(Path("data", "amplification_results.json"))
    assert {path.name for path in empty.iterdir()} == {"data", "visualizations"}


def test_public_names_are_what_the_page_says():
    assert set(logit_amplification.__all__) == PUBLIC
    page = (ROOT / "docs" / "PYTHON.md").read_text("utf-8")
    for name in PUBLIC - {"__version__"}:
        assert callable(getattr(logit_amplification, name)), name
        assert f"`{name}" in page, name
    with pytest.raises(AttributeError, match="no attribute 'amplifier'"):
        _ = logit_amplification.amplifier


def test_the_lines_of_the_page_run(capsys):
    page = (ROOT / "docs" / "PYTHON.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(block, "docs/PYTHON.md", "exec"), {})
    told = capsys.readouterr().out
    assert re.findall(r"^alpha (\d), \d+\.\d\d nats", told, re.M) == ["0", "1", "2"]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert block in readme


def test_where_the_unpacked_demo_model_is_kept(tmp_path):
    def where(platform, **environ):
        return locations.cache_folder(False, environ, platform)

    home = Path("~").expanduser()
    assert locations.cache_folder() == ROOT / ".cache"
    assert where("linux") == home / ".cache" / "logit-amplification"
    assert where("linux", XDG_CACHE_HOME="/x") == Path("/x/logit-amplification")
    assert where("darwin") == home / "Library" / "Caches" / "logit-amplification"
    assert where("win32", LOCALAPPDATA=str(tmp_path)) == tmp_path / "logit-amplification"


# ----------------------------------------------------------------------------------- model specs


def test_a_name_is_enough_for_a_spec_and_settings_make_the_same():
    assert ModelSpec("demo").quantization == "none" == load_settings(model="demo").quantization
    assert ModelSpec("x/y").quantization == "8bit" == load_settings(model="x/y").quantization
    assert ModelSpec("x/y", quantization="full").quantization == "none"
    asked = load_settings(model="x/y", quantization="4bit", dtype="float16")
    assert model_spec(asked) == ModelSpec("x/y", quantization="4bit", dtype="float16")
    assert model_spec(asked, dtype="float32").dtype == "float32"
    assert model_spec(model_spec(asked)) == model_spec(asked)
    assert model_spec(Path("folder")).model == "folder"


@pytest.mark.parametrize(
    ("model", "choices", "told"),
    [
        ("", {}, r"MODEL = ''; allowed: `demo`"),
        (None, {}, r"MODEL = None; allowed: a name, a folder, or settings"),
        ("demo", {"dtype": "int8"}, r"DTYPE = 'int8'; allowed: auto, float32, bfloat16 or float16"),
        ("demo", {"quantization": "2bit"}, r"QUANTIZATION = '2bit'; allowed: none, 8bit"),
        ("demo", {"device": 3}, r"DEVICE = 3; allowed: auto, cpu"),
        ("demo", {"revision": ""}, r"REVISION = ''; allowed: a branch"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(model, choices, told):
    with pytest.raises(BadInput, match=told):
        logit_amplification.load_model(model, **choices)
