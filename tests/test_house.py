"""The plan of the house: what may import what, and what the README says stands where."""

import ast
import re
import subprocess
import sys

import pytest

from logit_amplification.settings import ROOT
from logit_amplification.store import read_results

DOCS = (ROOT / "docs").glob("*.md")
PACKAGE = ROOT / "code" / "logit_amplification"
# Each room may use the rooms of the lines above its own, never one below.
FLOORS = [
    {"sizes", "machine", "local_models", "progress"},
    {"settings", "amplification", "sampling", "measures", "outcomes", "next_token_view"},
    {"pairs", "hub", "store", "arms"},
    {"models", "readiness", "stats", "journal", "next_token"},
    {"slots", "runs", "judge", "alpha_profile", "report"},
    {"engine", "alpha_tree", "calibration", "figure_style", "analysis"},
    {"reference", "comparison_figures", "token_view", "tree_view", "exploration"},
    {"sweep", "figures", "contact_sheet", "explorer", "results_view"},
    {"artifacts"},
]


def imports_of(path):
    """The rooms of ours that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]


def test_code_is_not_a_package():
    """With code/__init__.py the folder would shadow the stdlib module `code` (pdb, IPython)."""
    assert not (ROOT / "code" / "__init__.py").exists()


def test_every_room_stands_on_a_floor():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize("height", range(len(FLOORS)))
def test_arrows_point_down_only(height):
    below = set().union(*FLOORS[:height])
    for room in FLOORS[height]:
        assert set(imports_of(PACKAGE / f"{room}.py")) <= below, room


@pytest.mark.parametrize("room", ["amplification", "sampling", "measures"])
def test_the_pure_rooms_import_nothing_of_ours(room):
    assert not list(imports_of(PACKAGE / f"{room}.py"))


@pytest.mark.parametrize(
    "room",
    [
        "settings",
        "pairs",
        "store",
        "stats",
        "report",
        "figures",
        "readiness",
        "hub",
        "runs",
        "artifacts",
        "outcomes",
        "analysis",
        "token_view",
        "tree_view",
        "next_token_view",
        "results_view",
    ],
)
def test_rooms_that_need_no_model_import_without_torch(room):
    program = (
        f"import sys; sys.path.insert(0, 'code'); import logit_amplification.{room}; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_readme_lists_every_file():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT)
    for path in listed.stdout.split():
        if path.startswith("code/") and not path.endswith("__init__.py"):
            assert path.rsplit("/", 1)[-1] in readme, path


def test_the_readmes_help_is_the_programs():
    """Words and flags of the real --help, whatever the line breaks."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- help -->\n```\n(.*?)```", readme, flags=re.DOTALL)[1]
    import logit_diff_mistral

    flags = set(re.findall(r"--[a-z-]+", block))
    assert flags == {f"--{n.replace('_', '-')}" for n in logit_diff_mistral.Command.model_fields}


def test_the_readme_quotes_texts_that_were_generated():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.findall(
        r"^> \*\*alpha ([\d.]+)\*\* \(KL ([\d.]+)\): (.+?)(?: …)?$", readme, flags=re.M
    )
    run, records = read_results(ROOT / "data")
    first = run["pairs"][0]["id"]
    shown = {r["alpha"]: r for r in records if (r["pair_id"], r["arm"]) == (first, "full")}
    assert len(quoted) >= 3
    for alpha, divergence, text in quoted:
        record = shown[float(alpha)]
        assert " ".join(record["text"].split()).startswith(text)
        assert f"{record['measures']['kl_amplified_a']:.2f}" == divergence


def test_the_committed_artifacts_are_those_of_the_current_code(tmp_path):
    """Texts and tables written again from the committed results are the committed ones."""
    from logit_amplification import report

    run, records = read_results(ROOT / "data")
    for path in report.write_reports(tmp_path, run, records):
        assert path.read_text("utf-8") == (ROOT / "data" / path.name).read_text("utf-8"), path.name


@pytest.mark.parametrize("path", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS)])
def test_links_in_the_documents_lead_somewhere(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert ((ROOT / path).parent / target).exists(), target
