"""From records to tables with intervals. The pair is the unit; no tensors, no model.

Draws of one pair are averaged first, for they are not independent evidence about other prompts
(Miller 2024, arXiv:2411.00640). An interval is then Student's t over pairs. The null pair is a
control and stands in no average but its own category's. Generations that ended with an error are
left out everywhere; the reports say how many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy
import pandas
from scipy import stats as scipy_stats

from .store import Record

ALL = "all"
LEVEL = 0.95
COLUMNS = ["alpha", "mean", "lower", "upper", "n"]
LABELS = ("pair_id", "category", "is_null", "alpha", "sample", "arm", "finish_reason", "text")


def without_errors(records: Iterable[Record]) -> list[Record]:
    """Return the generations that came to an end."""
    return [record for record in records if record["finish_reason"] != "error"]


def to_frame(records: Iterable[Record]) -> pandas.DataFrame:
    """Return one row per generation: its labels, its length and the means of its measures."""
    kept = (*LABELS, "n_tokens")
    rows = [{name: r[name] for name in kept} | r["measures"] for r in without_errors(records)]
    frame = pandas.DataFrame(rows)
    frame["logit_range"] = frame["logit_max"] - frame["logit_min"]
    frame["ended_by_eos"] = (frame["finish_reason"] == "eos").astype(float)
    return frame


def measure_names(frame: pandas.DataFrame) -> list[str]:
    """Return the columns that hold measures."""
    return [name for name in frame.columns if name not in LABELS]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of independent values and the bounds of its 95 % t interval.

    The bounds are NaN for fewer than two values: one pair says nothing about other pairs.
    """
    values = numpy.asarray(values, dtype=float)
    values = values[~numpy.isnan(values)]
    mean = float(values.mean()) if len(values) else numpy.nan
    if len(values) < 2:
        return mean, numpy.nan, numpy.nan
    half = scipy_stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * scipy_stats.sem(values)
    return mean, mean - half, mean + half


def share_interval(hits: int, count: int) -> tuple[float, float, float]:
    """Return a share and the bounds of its 95 % Wilson interval."""
    if count == 0:
        return numpy.nan, numpy.nan, numpy.nan
    bounds = scipy_stats.binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return hits / count, float(bounds.low), float(bounds.high)


def by_pair(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return the mean over samples: a row per pair, a column per alpha, for one arm's rows."""
    # dropna: a measure that no answer is long enough for is a table of NaN, not an empty one.
    return frame.pivot_table(
        index="pair_id", columns="alpha", values=measure, aggfunc="mean", dropna=False
    )


def summarise(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return `summary_statistics.csv`: a row per (arm, category or `all`, alpha).

    n counts generations, n_pairs the pairs that the interval is over; then, per measure, the mean
    over pairs and the bounds of its 95 % interval. `all` leaves the null pairs out.
    """
    rows = []
    for arm, of_arm in frame.groupby("arm", sort=False):
        groups = [(ALL, of_arm[~of_arm["is_null"]])]
        groups += list(of_arm.groupby("category", sort=False))
        for category, group in groups:
            for alpha, cells in group.groupby("alpha"):
                row: dict[str, Any] = {"arm": arm, "category": category, "alpha": alpha}
                row |= {"n": len(cells), "n_pairs": cells["pair_id"].nunique()}
                for name in measure_names(frame):
                    mean, lower, upper = interval(cells.groupby("pair_id")[name].mean())
                    row |= {f"{name}_mean": mean, f"{name}_lower": lower, f"{name}_upper": upper}
                rows.append(row)
    return pandas.DataFrame(rows)


def paired_difference(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return, per alpha, the mean difference to alpha 0 over pairs, its 95 % bounds and n.

    Pairs and uniform draws are the same at every alpha (common random numbers), so the difference
    is taken within the pair. Null pairs are left out. One arm's rows are expected.
    """
    table = by_pair(frame[~frame["is_null"]], measure)
    rows = []
    for alpha in table.columns:
        difference = (table[alpha] - table.get(0.0, numpy.nan)).dropna()
        mean, lower, upper = interval(difference)
        rows.append(
            {"alpha": alpha, "mean": mean, "lower": lower, "upper": upper, "n": len(difference)}
        )
    return pandas.DataFrame(rows, columns=["alpha", "mean", "lower", "upper", "n"]).set_index(
        "alpha"
    )


def changed_share(records: Sequence[Record], *, null: bool = False) -> pandas.DataFrame:
    """Return, per alpha, the share of pairs with an answer other than at alpha 0, token for token.

    null: look at the null pairs instead, where the share must be zero.
    """
    records = without_errors(records)
    baseline = {(r["pair_id"], r["sample"]): r["token_ids"] for r in records if r["alpha"] == 0}
    changed: dict[float, dict[str, bool]] = {}
    for record in records:
        draw = (record["pair_id"], record["sample"])
        if record["is_null"] == null and draw in baseline:
            differs = record["token_ids"] != baseline[draw]
            pairs = changed.setdefault(record["alpha"], {})
            pairs[record["pair_id"]] = pairs.get(record["pair_id"], False) or differs
    rows = []
    for alpha, pairs in sorted(changed.items()):
        share, lower, upper = share_interval(sum(pairs.values()), len(pairs))
        rows.append(
            {"alpha": alpha, "mean": share, "lower": lower, "upper": upper, "n": len(pairs)}
        )
    return pandas.DataFrame(rows, columns=["alpha", "mean", "lower", "upper", "n"]).set_index(
        "alpha"
    )
