"""All generations of a sweep as a table to sort, search and filter; a click shows the tokens.

    browse(results)

The table is itables' (DataTables, shipped with it: nothing is fetched), which escapes what is in
its cells. Where there are no widgets, the first rows stand still.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import pandas
from IPython.display import HTML

from ..records.files import Record
from ..reports.figures.token_view import tokens_html
from ..sweeps.history import Sweep

try:
    import ipywidgets as widgets
    from itables.widget import ITable
except ImportError:
    widgets = None

FILTERS = ("category", "alpha", "arm", "outcome")
MEASURES = {"kl_amplified_a": "KL", "nll_a": "NLL", "n_tokens": "tokens"}
STILL_ROWS = 12
HINT = "Click on a row: its tokens appear here, shaded by KL(amplified || A)."


def browse(results: Sweep) -> Any:
    """Return the table for a cell to show; without ipywidgets and itables, its first rows."""
    return ResultsView(results) if widgets else HTML(_still(results.records))


def generations_table(records: Sequence[Record]) -> pandas.DataFrame:
    """Return a row per record, in their order."""
    return pandas.DataFrame([_row(record) for record in records])


def _row(record: Record) -> dict[str, Any]:
    numbers = record["measures"] | {"n_tokens": record["n_tokens"]}
    return {
        "pair": record["pair_id"],
        "category": record["category"],
        "alpha": record["alpha"],
        "arm": record["arm"],
        "sample": record["sample"],
        "outcome": record["outcome"]["label"],
        **{short: _short(numbers[name]) for name, short in MEASURES.items()},
        "text": record["text"],
    }


def _short(number: float | None) -> float | None:
    return number if number is None else round(number, 3)


class ResultsView:
    """The table, and below it the tokens of the row that was clicked."""

    def __init__(self, results: Sweep):
        self.results = results
        frame = generations_table(results.records)
        filters = [frame.columns.get_loc(name) for name in FILTERS]
        self.table = ITable(
            frame,
            select="single",
            showIndex=False,
            maxBytes=0,  # every row, however many there are
            lengthMenu=[5, 10, 25, 100],
            style="width:100%",
            classes="display compact wrap",
            layout={"top1": "searchPanes"},
            searchPanes={"layout": "columns-4", "columns": filters, "dtOpts": {"scrollY": "7em"}},
            columnDefs=[
                {"targets": filters, "searchPanes": {"show": True}},
                {"targets": [frame.columns.get_loc("text")], "width": "50%"},
            ],
        )
        self.tokens = widgets.HTML(HINT)
        self.table.observe(self._row_chosen, "selected_rows")
        self.root = widgets.VBox([self.table, self.tokens])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """Widgets where the frontend has them, the first rows where it has not."""
        still = _still(self.results.records)
        return {"text/html": still, **self.root._repr_mimebundle_(**options)}

    def _row_chosen(self, change: Mapping[str, Any]) -> None:
        rows = change["new"]
        self.tokens.value = self._tokens(rows[0]) if rows else HINT

    def _tokens(self, row: int) -> str:
        return tokens_html(self.results.run, self.results.whole_record(row))


def _still(records: Sequence[Record]) -> str:
    table = generations_table(records[:STILL_ROWS])
    told = f"The first {len(table)} of {len(records)} generations."
    return table.to_html(index=False, escape=True, border=0) + html.escape(told)
