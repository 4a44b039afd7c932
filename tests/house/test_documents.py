"""README and docs: what they say of files, flags and figures is what code and data say."""

import csv
import json
import re
import subprocess
import sys

import pytest

from logit_amplification.locations import ROOT
from made_records import FIGURES

EXAMPLE = ROOT / "data" / "example"
OUTPUTS = (ROOT / "docs" / "OUTPUTS.md").read_text(encoding="utf-8")


def test_generated_parts_are_current(capsys):
    """They come from code and data: `python code/write_docs.py` writes them again."""
    import write_docs

    assert write_docs.main(["--check"]) == 0, capsys.readouterr().out


def test_every_column_of_the_answers_has_a_row_and_no_row_is_about_nothing():
    with (EXAMPLE / "generations.csv").open(encoding="utf-8") as file:
        header = next(csv.reader(file))
    block = re.search(r"<!-- columns -->(.*?)<!-- end -->", OUTPUTS, flags=re.DOTALL)[1]
    rows = re.findall(r"^\| `(\w+)` \|", block, flags=re.MULTILINE)
    assert sorted(rows) == sorted(header)


def test_every_column_of_the_summary_is_explained():
    with (EXAMPLE / "summary_statistics.csv").open(encoding="utf-8") as file:
        header = next(csv.reader(file))
    for column in header:
        measure = re.fullmatch(r"(.+)_(?:mean|lower|upper)", column)
        assert f"`{measure[1] if measure else column}`" in OUTPUTS, column


@pytest.mark.parametrize("name", ["amplification_results.json", "experiment_metadata.json"])
def test_every_field_is_explained(name):
    whole = json.loads((EXAMPLE / name).read_text("utf-8"))
    if "generations" in whole and isinstance(whole["generations"], list):
        whole["generations"] = whole["generations"][:1]
    section = re.search(rf"^## {name}\n(.*?)(?=^## )", OUTPUTS, flags=re.DOTALL | re.MULTILINE)[1]
    known = set(re.findall(r"`(\w+)`", section + OUTPUTS.split("<!-- columns -->")[1]))

    def missing(value, above):
        if isinstance(value, list):
            return [one for part in value for one in missing(part, above)]
        if not isinstance(value, dict) or above in ("files_sha256", "settings"):
            return []
        return [
            one
            for key, part in value.items()
            for one in ([key] if key not in known else []) + missing(part, key)
        ]

    assert missing(whole, "") == []


def test_every_figure_has_a_row():
    section = OUTPUTS.split("## Figures")[1]
    assert {f"{name}.png" for name in re.findall(r"^\| `(\w+)` \|", section, re.M)} == {
        name for name in FIGURES if name.endswith(".png")
    }


def test_a_shared_result_is_drawn_as_the_page_says(tmp_path):
    page = (ROOT / "docs" / "MISTRAL.md").read_text("utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("amplification_results.json", "experiment_metadata.json"):
        (shared / name).write_bytes((EXAMPLE / name).read_bytes())
    lines = lines.replace("data/example", shared.as_posix())
    exec(lines.replace('"figures"', f'"{(tmp_path / "figures").as_posix()}"'), {})
    assert {path.name for path in (tmp_path / "figures").iterdir()} == FIGURES


def test_the_lines_of_pandas_run(monkeypatch):
    (lines,) = re.findall(r"```python\n(.*?)```", OUTPUTS, flags=re.DOTALL)
    *setup, last = lines.replace('"data/', f'"{EXAMPLE.as_posix()}/').strip().splitlines()
    names = {}
    exec("\n".join(setup), names)
    means = eval(last, names)
    summary = names["pd"].read_csv(EXAMPLE / "summary_statistics.csv")
    pairs = summary.loc[summary["category"] == "all", "n_pairs"].unique()
    assert names["answers"]["pair_id"].nunique() == pairs  # without the null pair
    assert list(means.index) == sorted(set(means.index)) and means.notna().all()


def test_the_readme_is_short_and_its_pandas_lines_are_those_of_the_page():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 220
    (lines,) = re.findall(r"```python\n(.*?)```", OUTPUTS, flags=re.DOTALL)
    assert lines in readme


def test_the_page_of_settings_has_every_flag_but_rerun():
    import logit_diff_mistral

    page = (ROOT / "docs" / "SETTINGS.md").read_text("utf-8")
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", page, flags=re.MULTILINE))
    flags = {name.upper() for name in logit_diff_mistral.Command.model_fields}
    assert named == flags - {"RERUN"} and "`RERUN` is a flag only" in page


def test_the_site_builds_without_a_warning(tmp_path):
    """Links between pages, headings that they lead to, pictures, and the API from docstrings."""
    pytest.importorskip("sphinx", reason="no Sphinx in this environment (Python 3.11 or newer)")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"]
    built = subprocess.run(
        [*command, "-b", "html", str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    front = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "explorer.gif" in front and "OUTPUTS.html" in front
    api = (tmp_path / "site" / "api" / "logit_amplification.logits.html").read_text("utf-8")
    assert "amplify" in api


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_every_page_is_on_the_site(path):
    """Named in a table of contents of docs/index.md, which is the front page itself."""
    contents = (ROOT / "docs" / "index.md").read_text("utf-8").split("{toctree}")[1:]
    listed = [line.strip() for part in contents for line in part.splitlines()]
    assert path.stem in [*listed, "index"]


def test_the_citation_has_the_packages_version():
    import logit_amplification

    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {logit_amplification.__version__}\n" in citation
    assert "cff-version: 1.2.0" in citation and "\nauthors:\n" in citation
