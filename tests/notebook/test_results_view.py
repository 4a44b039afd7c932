"""The table of generations: every row, escaped, and the tokens of the row that is chosen."""

import json

import pytest
from conftest import PROMPTS

from logit_amplification.notebook import results_view
from logit_amplification.notebook.results_view import HINT, STILL_ROWS, browse, generations_table
from logit_amplification.prompts.files import read_pairs
from logit_amplification.sweeps.sweep import sweep

ATTACK = "<script>alert(1)</script>"


@pytest.fixture
def results(tiny, settings, tmp_path):
    prompts = PROMPTS.replace("greet,x", f"greet,{ATTACK}")
    (tmp_path / "prompts.csv").write_text(prompts)
    return sweep(tiny, read_pairs(tmp_path / "prompts.csv"), settings)


def test_every_generation_is_a_row(results):
    frame = generations_table(results.records)
    assert len(frame) == len(results.records) > STILL_ROWS
    assert list(frame["text"]) == [record["text"] for record in results.records]
    assert {"category", "alpha", "arm", "outcome", "KL"} <= set(frame.columns)
    rows = json.loads(browse(results).table._dt_args["data_json"])
    assert len(rows) == len(frame)


def test_filters_are_there(results):
    arguments = browse(results).table._dt_args
    names = list(generations_table(results.records).columns)
    filters = [names[column] for column in arguments["searchPanes"]["columns"]]
    assert filters == ["category", "alpha", "arm", "outcome"]


def test_a_click_shows_the_tokens_of_that_row(results):
    view = browse(results)
    assert view.tokens.value == HINT
    view.table.selected_rows = [7]
    record = results.records[7]
    assert f"{record['pair_id']}, alpha {record['alpha']:g}" in view.tokens.value
    assert view.tokens.value.count("nll_a:") == record["n_tokens"]
    view.table.selected_rows = []
    assert view.tokens.value == HINT


def test_what_a_model_writes_is_text(results, monkeypatch):
    results.records[0]["text"] = ATTACK
    view = browse(results)
    assert ATTACK not in view._repr_mimebundle_()["text/html"]
    assert "&lt;script&gt;" in view._repr_mimebundle_()["text/html"]
    assert ATTACK not in view.table._dt_args["data_json"]
    view.table.selected_rows = [0]
    assert "<script" not in view.tokens.value


def test_without_widgets_the_first_rows_stand_still(results, monkeypatch):
    monkeypatch.setattr(results_view, "widgets", None)
    page = browse(results).data
    assert f"first {STILL_ROWS} of {len(results.records)}" in page and ATTACK not in page
