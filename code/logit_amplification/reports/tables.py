"""A run as a table: pandas, Arrow, Parquet, or a Hugging Face `Dataset`. Without torch.

pyarrow and datasets are extras: each function that needs one says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..evaluation import stats
from ..logits.vocabulary import MEASURES, PER_TOKEN
from ..records import files
from ..records.files import Record
from ..sweeps.history import recall

if TYPE_CHECKING:
    import datasets
    import pandas
    import pyarrow

AT_ONCE = 1000  # records of a row group: a run's lists per token need not fit into memory
# The columns that are not measures, with Arrow's type and what they hold.
LABELS = {
    "pair_id": ("string", "the prompt pair"),
    "category": ("string", "the pair's category"),
    "control": ("string", "which control the pair is; empty where its effect is what is asked for"),
    "family": ("string", "the pairs that share a text: the unit of all intervals"),
    "attribute": ("string", "what A was declared to have more of, or less"),
    "alpha": ("float64", "strength; 0 is plain A, -1 plain B"),
    "sample": ("int32", "the index of the draw"),
    "arm": ("string", "the variant of the rule"),
    "text": ("string", "the answer"),
    "n_tokens": ("int32", "answer length, tokens"),
    "finish_reason": ("string", "eos or length"),
    "outcome": ("string", "incoherent, refusal or other"),
    "evidence": ("string", "what the outcome was decided by"),
    "judge": ("string", "the label of the model that JUDGE names"),
}
LISTS = {
    "token_ids": ("int32", "the answer's tokens"),
    "token": ("string", "the text that each token adds"),
}


@dataclass(frozen=True)
class Run:
    """A run, read from a data folder: its configuration, and its generations as tables."""

    run: dict[str, Any]
    records: list[Record] = field(repr=False)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row per finished generation: the columns of `generations.csv`."""
        return stats.to_frame(self.records)

    def to_arrow(self) -> pyarrow.Table:
        """Return a row per finished generation, and behind its measures the lists per token."""
        arrow, frame = _extra("pyarrow"), self.to_pandas()
        return arrow.Table.from_batches(_batches(frame, self.records), schema(frame))

    def to_dataset(self) -> datasets.Dataset:
        """Return the rows of `to_arrow` as a Hugging Face `Dataset`; its info tells the columns."""
        hub = _extra("datasets")
        columns = meanings(self.to_pandas())
        told = "\n".join(f"{name}: {meaning}" for name, meaning in columns.items())
        return hub.Dataset(self.to_arrow(), info=hub.DatasetInfo(description=told))

    def to_parquet(self, path: str | Path) -> Path:
        """Write the rows of `to_arrow` as one Parquet file."""
        return _write(Path(path), self.to_pandas(), self.records)


def load_run(folder: str | Path = "data", run: str = "") -> Run:
    """Read the run whose results stand in a data folder, or one of its journals' by its name.

    run: the beginning of a name that `code/runs.py` shows; an unfinished one has what is
    finished of it. Raises BadInput where there is none.
    """
    if not run:
        return Run(*files.read_results(Path(folder)))
    found = recall(Path(folder), run)
    return Run(found.run, list(found.whole_records()))


def write_parquet(
    data_dir: Path, records: list[Record], whole_records: Iterable[Record]
) -> list[Path]:
    """Write `generations.parquet` where pyarrow is installed: a list of the file, or of none.

    whole_records: the same records with their lists per token, which are read one by one.
    """
    if importlib.util.find_spec("pyarrow") is None:
        return []
    return [_write(Path(data_dir) / "generations.parquet", stats.to_frame(records), whole_records)]


def meanings(frame: pandas.DataFrame) -> dict[str, str]:
    """Return what each column of a run's table holds, those per token last."""
    labels = {name: meaning for name, (_, meaning) in LABELS.items() if name in frame}
    measures = {name: _meaning(name) for name in frame if name not in LABELS}
    lists = {name: meaning for name, (_, meaning) in LISTS.items()}
    each = {f"{name}_per_token": f"{MEASURES[name].described}, of each token" for name in PER_TOKEN}
    return labels | measures | lists | each


def schema(frame: pandas.DataFrame) -> pyarrow.Schema:
    """Return the typed columns of a run; each field's metadata tells what it holds."""
    arrow = _extra("pyarrow")
    fields = []
    for name, meaning in meanings(frame).items():
        if name in LISTS:
            kind = arrow.list_(getattr(arrow, LISTS[name][0])())
        elif name.endswith("_per_token"):
            kind = arrow.list_(arrow.float32())
        else:
            kind = getattr(arrow, LABELS.get(name, ("float64",))[0])()
        fields.append(arrow.field(name, kind, metadata={"meaning": meaning}))
    return arrow.schema(fields)


def _meaning(name: str) -> str:
    if name in MEASURES:
        return MEASURES[name].described
    return f"1 where the judge says {name.removeprefix('judge_')}, 0 where something else"


def _batches(
    frame: pandas.DataFrame, whole_records: Iterable[Record]
) -> Iterator[pyarrow.RecordBatch]:
    """Yield the rows of a frame with their lists per token, some at a time."""
    arrow, kinds = _extra("pyarrow"), schema(frame)
    rest = (record for record in whole_records if record["finish_reason"] != "error")
    for first in range(0, len(frame), AT_ONCE):
        some = list(islice(rest, AT_ONCE))
        columns = dict(frame[first : first + AT_ONCE].items())
        columns["token_ids"] = [record["token_ids"] for record in some]
        columns["token"] = [record["per_token"]["token"] for record in some]
        for name in PER_TOKEN:  # runs of earlier versions lack some
            columns[f"{name}_per_token"] = [r["per_token"].get(name) for r in some]
        arrays = [arrow.array(columns[name], kinds.field(name).type) for name in kinds.names]
        yield arrow.RecordBatch.from_arrays(arrays, schema=kinds)


def _write(path: Path, frame: pandas.DataFrame, whole_records: Iterable[Record]) -> Path:
    """Write rows so that a reader sees the old file or the new one, never half of it."""
    parquet = _extra("pyarrow.parquet")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with parquet.ParquetWriter(scratch, schema(frame)) as file:
            for batch in _batches(frame, whole_records):
                file.write_batch(batch)
        os.replace(scratch, path)
    except OSError as error:
        raise BadInput(f"cannot write {path.name} in {path.parent}: {error.strerror}") from None
    return path


def _extra(name: str) -> Any:
    """Import a package that is not among the requirements."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise BadInput(f"{package} is not installed; install it: pip install {package}") from None
