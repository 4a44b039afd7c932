"""The plan of the house: what may import what, and what the README says stands where."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import python_of
from logit_amplification.locations import ROOT
from logit_amplification.records.files import read_results

DOCS = (ROOT / "docs").glob("*.md")
EXAMPLE = ROOT / "data" / "example"
PACKAGE = ROOT / "code" / "logit_amplification"
# A room may import those in front of it, never one behind it; "" holds the files beside the rooms.
ROOMS = ["", "logits", "prompts", "machine", "models", "readiness", "records", "engine"]
ROOMS += ["statistics", "evaluation", "sweeps", "reports", "notebook", "integrations"]
AT_BASE = ["errors", "locations", "progress", "settings"]  # in this order
WITHOUT_TORCH = [
    *("settings", "prompts.pairs", "readiness.checks", "models.hub", "records.files"),
    *("records.journal", "evaluation.outcomes", "evaluation.stats", "sweeps.history"),
    *("evaluation.calibration", "reports.report", "reports.study.tables", "reports.study.document"),
    *("reports.artifacts", "reports.contact_sheet", "reports.tables"),
    *("reports.figures.gallery", "reports.figures.token_view", "reports.figures.tree_view"),
    *("notebook.next_token_view", "notebook.results_view"),
]


def modules():
    """Every module below the package as its dotted name and file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, path


def room_of(name):
    return name.split(".")[0] if "." in name else ""


def imports_of(name, path):
    """The modules of ours that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = name.split(".")[: -node.level]
            inside = [*above, *(node.module or "").split(".")]
            found = ".".join(part for part in inside if part)
            for alias in node.names:
                whole = f"{found}.{alias.name}".lstrip(".")
                yield whole if (PACKAGE / f"{whole.replace('.', '/')}.py").exists() else found


def test_code_is_not_a_package():
    """With code/__init__.py the folder would shadow the stdlib module `code` (pdb, IPython)."""
    assert not (ROOT / "code" / "__init__.py").exists()


def test_every_module_is_in_a_room_that_the_plan_has():
    names = [name for name, _ in modules()]
    assert {room_of(name) for name in names} == set(ROOMS)
    assert [name for name in names if room_of(name) == ""] == AT_BASE


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=str)
def test_arrows_point_one_way(name, path):
    before = ROOMS[: ROOMS.index(room_of(name)) + 1]
    for other in imports_of(name, path):
        if (name, other) == ("settings", "logits.vocabulary"):
            continue  # the names of arms: plain text, and no torch
        assert room_of(other) in before, other
        if room_of(name) == "":
            assert AT_BASE.index(other) < AT_BASE.index(name), other


def test_the_room_of_logits_imports_nothing_of_ours():
    for name, path in modules():
        if room_of(name) == "logits":
            assert {room_of(other) for other in imports_of(name, path)} <= {"logits"}, name


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_rooms_that_need_no_model_import_without_torch(module):
    program = (
        f"import sys; sys.path.insert(0, 'code'); import logit_amplification.{module}; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_plan_lists_every_file():
    plan = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    for path in listed.stdout.split():
        if path.startswith("code/") and path.endswith(".py") and "__init__" not in path:
            assert path.rsplit("/", 1)[-1] in plan or "amplified_generate" in path, path
    for room in ROOMS[1:]:
        assert f"{room} |" in plan or f"| {room}" in plan, room


def test_the_committed_artifacts_are_those_of_the_current_code(tmp_path):
    """Texts and tables written again from the committed results are the committed ones."""
    from logit_amplification.reports import report

    run, records = read_results(EXAMPLE)
    for path in report.write_reports(tmp_path, run, records):
        assert path.read_text("utf-8") == (EXAMPLE / path.name).read_text("utf-8"), path.name


@pytest.mark.parametrize("path", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS)])
def test_links_in_the_documents_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert ((ROOT / path).parent / target).exists(), target


# -------------------------------------------------------------------------------- other Pythons

COMPILING = """
import sys, warnings
warnings.simplefilter("error")
for path in sys.argv[1:]:
    compile(open(path, encoding="utf-8").read(), path, "exec", dont_inherit=True)
"""


def test_the_code_needs_no_newer_python_than_it_says():
    vermin = str(Path(sys.executable).with_name("vermin"))
    command = [vermin, "-t=3.10-", "--no-tips", str(ROOT / "code")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_other_pythons_compile_every_file_without_a_warning(version):
    """The tests themselves run on one Python alone: torch for each is several gigabytes."""
    python = python_of(version)
    if not python:
        pytest.skip(f"no Python {version} on this machine")
    files = [str(path) for folder in ("code", "tests") for path in (ROOT / folder).rglob("*.py")]
    ended = subprocess.run([python, "-c", COMPILING, *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
