"""The notebooks: they quote the library, their committed state is clean, and they run."""

import copy
import inspect
import json
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import run_notebook
from logit_amplification.engine.reference import sample_amplified
from logit_amplification.locations import MISTRAL, ROOT
from logit_amplification.logits.amplification import amplify
from logit_amplification.settings import load_settings
from quick_notebook import shorten

SECTIONS = [
    "Setup & Imports",
    "Configuration",
    "Model Loading",
    "Utility Functions",
    "Test Model",
    "Run Experiments",
    "Visualize & Analyze",
    "Save Results",
    "Model Diffs",
]


NOTEBOOKS = ROOT / "docs" / "notebooks"


@pytest.fixture(scope="module")
def notebook(notebook_path):
    return nbformat.read(notebook_path, as_version=4)


@pytest.fixture(scope="module")
def deep_dive():
    return nbformat.read(NOTEBOOKS / "deep_dive.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("function", [amplify, sample_amplified], ids=lambda f: f.__name__)
def test_the_notebook_quotes_the_library(notebook, function):
    """The rule and the loop that a reader sees are the ones that the tests test."""
    assert inspect.getsource(function).strip() in [cell.source for cell in code_cells(notebook)]


def test_the_sections_are_there_in_order(notebook):
    headings = re.findall(
        r"^## \d\. (.+)$",
        "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"),
        flags=re.MULTILINE,
    )
    assert headings == SECTIONS


def test_it_says_what_it_will_load_before_it_loads(notebook):
    sources = [cell.source for cell in code_cells(notebook)]
    (place,) = [n for n, source in enumerate(sources) if source.startswith("model = load_model(")]
    assert "advice.before_loading(settings)" in sources[place - 1]
    about, other = told_by(code_cells(notebook)[place - 1]).splitlines()
    assert about.startswith("About to load demo: ") and "its weights take" in about
    parameters = other.split("PARAMETERS = ")[1]
    assert load_settings(**json.loads(parameters)).model == MISTRAL


def test_the_sweep_runs_the_rule_of_the_cell(notebook):
    calls = [cell.source for cell in code_cells(notebook) if "sweep(model" in cell.source]
    assert calls and all("rule=amplify" in source for source in calls)
    assert not any("import amplify" in cell.source for cell in code_cells(notebook))


@pytest.mark.parametrize("name", ["notebook", "deep_dive"])
def test_the_committed_outputs_are_of_one_clean_run(name, request):
    cells = code_cells(request.getfixturevalue(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [o for o in outputs if any("widget" in mime for mime in o.get("data", {}))]
    text = json.dumps(outputs)
    assert not re.search(r"/(home|root|Users|work|tmp)/", text)
    assert "hf_" not in text.replace("hf_hub", "")
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4


def test_the_committed_identities_hold(notebook):
    """Seven promises, each shown to be true on the model of the committed run."""
    (cell,) = [cell for cell in code_cells(notebook) if cell.source.startswith("identities(")]
    shown = cell.outputs[0].data["text/plain"]
    assert shown.count("True") == 7 and "False" not in shown


def test_it_is_an_essay_more_than_a_program(notebook):
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert len(notebook.cells) <= 32
    assert len(prose) >= 0.75 * len(code_cells(notebook))
    assert len(" ".join(prose).split()) >= 900


# --------------------------------------------------------------------------------------- running


def small(notebook, tmp_path, which="main", **parameters):
    """A notebook with a small sweep on the demo model put in behind the parameters cell."""
    values = {
        "model": "demo",
        "alphas": [0.0, 1.5],
        "max_new_tokens": 8,
        "arms": "full",
        "slots": 4,
        "prompts": str(tmp_path / "prompts.csv"),
        "data_dir": str(tmp_path / "data"),
        "visualizations_dir": str(tmp_path / "visualizations"),
    }
    rows = (ROOT / "data" / "prompt_pairs.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "prompts.csv").write_text("\n".join(rows[:3]) + "\n", encoding="utf-8")
    changed = copy.deepcopy(notebook)
    shorten(changed, which)
    (place,) = [
        index
        for index, cell in enumerate(changed.cells)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    source = f"PARAMETERS = {values | parameters!r}"
    changed.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
    return changed


def execute(notebook, folder=ROOT):
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    return notebook


def told_by(cell):
    """What a cell prints; a slow kernel sends it in several parts."""
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_runs_from_top_to_bottom(notebook, tmp_path):
    executed = execute(small(notebook, tmp_path, arms="full,api_sentinel", controls="swapped"))
    names = {
        path.name for folder in ("data", "visualizations") for path in (tmp_path / folder).iterdir()
    }
    assert {
        "amplification_results.json",
        "experiment_metadata.json",
        "summary_statistics.csv",
        "recommendations.txt",
        "detailed_report.txt",
        "dose_response.png",
        "text_by_alpha.png",
        "logits_analysis.png",
        "response_length_analysis.png",
        "generations.csv",
        "arms.png",
        "outcomes.png",
        "behaviour_coherence.png",
    } <= names
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    results = json.loads((tmp_path / "data" / "amplification_results.json").read_text("utf-8"))
    assert len(results["generations"]) == (3 + 2) * 2 * 2  # pairs and swapped, alphas, arms


def test_the_closer_look_runs_from_top_to_bottom(deep_dive, tmp_path):
    executed = execute(small(deep_dive, tmp_path, which="deep_dive"), NOTEBOOKS)
    outputs = [output for cell in code_cells(executed) for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 5


def test_editing_the_rule_cell_changes_what_the_sweep_runs_and_one_alpha_can_be_run_again(
    notebook, tmp_path
):
    """In one kernel: the rule's cell is edited and run, the sweep's cell, a rerun, a constant."""
    changed = small(notebook, tmp_path, alphas=[0.0, 2.0], max_new_tokens=4)
    cells = changed.cells
    (rule,) = [cell for cell in cells if cell.source.startswith("def amplify")]
    keep = cells[: cells.index(rule) + 1]
    setup = [cell for cell in keep if cell.cell_type == "code"]
    edited = (
        "def amplify(logits_a, logits_b, alpha):\n"
        "    # never anything but one token, which a cell of its own names\n"
        "    forced = logits_a.clone()\n"
        "    forced[..., FAVOURITE] += 1000.0\n"
        "    return forced"
    )
    run_sweep = "results = sweep(model, pairs, settings, rule=amplify)"
    tell = "print(sorted({t for r in results.records for t in r['token_ids']}), results.run['id'])"
    (again,) = [cell.source for cell in cells if cell.source.startswith("RERUN = []")]
    again = again.replace("RERUN = []", "RERUN = [2.0]")
    sources = [run_sweep, tell, "FAVOURITE = 17", edited, run_sweep, tell, again, tell]
    sources += ["FAVOURITE = 18", run_sweep, tell]
    changed.cells = setup + [nbformat.v4.new_code_cell(source) for source in sources]
    execute(changed)
    told = [told_by(cell) for cell in changed.cells if cell.source == tell]
    assert told[0] != told[1] and told[1] == told[2]
    assert told[1].startswith("[17] ")
    assert told[3].startswith("[18] ")  # the rule's cell was not run again, nor another journal
    assert len({line.split()[-1] for line in told}) == 3
    (reran,) = [told_by(cell) for cell in changed.cells if cell.source == again]
    assert "3 generations to make, 3 found" in reran


def test_make_demos_runner_shows_the_cells_output_and_fails_with_the_cell(tmp_path, capsys):
    def write(*sources):
        book = nbformat.v4.new_notebook(
            cells=[
                nbformat.v4.new_markdown_cell("## A heading"),
                *map(nbformat.v4.new_code_cell, sources),
            ]
        )
        nbformat.write(book, tmp_path / "in.ipynb")
        return [str(tmp_path / "in.ipynb"), str(tmp_path / "out.ipynb")]

    progress = "print('5 %', end='\\r'); print('99 %')"
    assert run_notebook.main(write(progress)) == 0
    told = capsys.readouterr().out
    assert "## A heading" in told and "\n99 %\n" in told
    assert "5 %" not in told and "\r" not in told  # not a terminal: a bar is told as it ended
    (cell,) = code_cells(nbformat.read(tmp_path / "out.ipynb", as_version=4))
    assert cell.outputs[0].text == "99 %\n"

    widget = "import ipywidgets; print('half a line', end=''); ipywidgets.IntSlider()"
    assert run_notebook.main(write(widget)) == 0
    assert "half a line\n" in capsys.readouterr().out
    written = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (shown,) = [o for o in code_cells(written)[0].outputs if o.output_type == "execute_result"]
    assert list(shown.data) == ["text/plain"] and "widgets" not in written.metadata

    assert run_notebook.main(write("1 / 0", "print('never')")) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert run_notebook.main([]) == 2
    assert sys.exc_info() == (None, None, None)
