"""A run as pandas, Arrow, Parquet and a Hugging Face `Dataset`."""

import sys

import datasets
import pandas
import pyarrow.parquet
import pytest

from decoding import chat
from logit_amplification import load_run
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits.vocabulary import PER_TOKEN
from logit_amplification.prompts.pairs import PromptPair
from logit_amplification.reports import tables
from logit_amplification.reports.artifacts import save_artifacts
from logit_amplification.reports.figures import gallery
from logit_amplification.sweeps.sweep import sweep

EXAMPLE = ROOT / "data" / "example"


@pytest.fixture(scope="module")
def example():
    return load_run(EXAMPLE)


def test_it_is_the_table_that_is_written_as_csv(example):
    written = pandas.read_csv(EXAMPLE / "generations.csv", keep_default_na=False, na_values=[""])
    frame = example.to_pandas()
    assert list(frame) == list(written)
    assert frame["kl_amplified_a"].to_numpy() == pytest.approx(written["kl_amplified_a"], abs=1e-6)


def test_a_dataset_has_the_same_rows_typed_and_described(example):
    made, frame = example.to_dataset(), example.to_pandas()
    assert isinstance(made, datasets.Dataset) and made.num_rows == len(frame)
    assert made.to_pandas()["text"].tolist() == frame["text"].tolist()
    assert made.features["alpha"] == datasets.Value("float64")
    assert made.features["sample"] == datasets.Value("int32")
    assert made.features["token_ids"] == datasets.List(datasets.Value("int32"))
    told = dict(line.split(": ", 1) for line in made.info.description.splitlines())
    assert list(told) == list(made.features) and all(told.values())
    lengths = {name: len(made[0][name]) for name in made.features if name.endswith("_per_token")}
    assert lengths == {f"{name}_per_token": made[0]["n_tokens"] for name in PER_TOKEN}
    strong = made.filter(lambda row: row["alpha"] == 2)
    assert set(strong["alpha"]) == {2.0}


def test_a_run_of_before_a_measure_was_added_has_it_empty():
    example = load_run(EXAMPLE)
    for record in example.records:
        record["measures"].pop("reachable_top20")
        record["per_token"].pop("reachable_top20")
    table = example.to_arrow()
    assert table["reachable_top20_per_token"].null_count == len(table)
    assert "reachable_top20" not in table.column_names and "nll_a" in table.column_names
    assert gallery.draw_all(example.run, example.records)


def test_a_sweep_writes_parquet_beside_csv(tiny, settings, monkeypatch):
    pairs = [PromptPair(name, "x", chat(name), chat("Ho")) for name in ("Hi", "Ho ho")]
    monkeypatch.setattr(tables, "AT_ONCE", 5)  # several row groups
    done = sweep(tiny, pairs, settings)
    (path,) = [path for path in save_artifacts(done, settings) if path.suffix == ".parquet"]
    first = path.read_bytes()
    assert pyarrow.parquet.ParquetFile(path).num_row_groups > 1
    read = pyarrow.parquet.read_table(path)
    assert read["token_ids"].to_pylist() == [record["token_ids"] for record in done.records]
    assert read.schema.field("entropy").metadata[b"meaning"].endswith(b"nats")
    save_artifacts(done, settings)
    assert path.read_bytes() == first
    journal = load_run(settings.data_dir, done.run["id"][:6])
    assert journal.to_arrow().equals(read)


def test_a_judges_labels_are_columns_whichever_comes_first(example):
    records = [dict(record) for record in example.records[:3]]
    for record, label in zip(records, ("x", "y", "x"), strict=True):
        record["judge"] = {"label": label, "score": 0.9}
    made = tables.Run(example.run, records).to_dataset()
    assert made["judge_y"][:] == [0.0, 1.0, 0.0] and made["judge"][:] == ["x", "y", "x"]
    assert "judge_y: 1 where the judge says y" in made.info.description


def test_without_the_extras_it_says_what_to_install(example, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match="datasets is not installed; install it: pip install"):
        example.to_dataset()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tables.write_parquet(tmp_path, example.records, example.records) == []


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(BadInput, match="run a sweep first"):
        load_run(tmp_path)
    with pytest.raises(BadInput, match="no runs in it"):
        load_run(tmp_path, "abc")
