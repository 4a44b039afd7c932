"""Turn records into tables with intervals and tests, with the family of pairs as the unit.

No tensors, no model. Draws of one pair, and then pairs of one family, are averaged first, because
they are not independent evidence about other prompts (Miller 2024, arXiv:2411.00640). A pair
without a family is a family by itself. Controls enter no average except that of their own category.
Generations that ended with an error are left out everywhere; the reports say how many. The
intervals themselves are in `intervals.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy
import pandas
from scipy import stats as scipy_stats

from ..logits.vocabulary import MEASURES
from ..records.files import Record
from ..statistics.intervals import Estimate, interval, share, share_difference, sign_flip
from . import outcomes

ALL = "all"
LABELS = (
    *("pair_id", "category", "control", "alpha", "sample", "arm", "finish_reason"),
    *("family", "attribute", "outcome", "evidence", "judge", "text"),
)
JUDGE = "judge"  # the column of its labels; the share of each is the measure `judge_<label>`
COLUMNS = ("mean", "lower", "upper", "n")


# ---------------------------------------------------------------------------------------- tables


def without_errors(records: Iterable[Record]) -> list[Record]:
    """Return the generations that did not end with an error."""
    return [record for record in records if record["finish_reason"] != "error"]


def to_frame(records: Iterable[Record]) -> pandas.DataFrame:
    """Return one row per generation without an error: its labels, outcome, length and measures."""
    kept = (*LABELS[:7], "text", "n_tokens")
    rows = [
        {name: r[name] for name in kept}
        | {"family": r.get("family") or r["pair_id"], "attribute": r.get("attribute", "")}
        | _outcome(r)
        | r["measures"]
        | r.get("attributes", {})
        for r in without_errors(records)
    ]
    return complete(pandas.DataFrame(rows)) if rows else pandas.DataFrame(columns=LABELS)


def _outcome(record: Record) -> dict[str, str]:
    found = record["outcome"]
    judged = {JUDGE: record["judge"]["label"]} if "judge" in record else {}
    return {"outcome": found["label"], "evidence": found["evidence"]} | judged


def complete(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Add the columns that follow from others, in place, and return the frame."""
    for label in outcomes.LABELS:
        frame[label] = (frame["outcome"] == label).astype(float)
    # An answer that is too short for a 4-gram repeats none. Leaving it out would drop it from the
    # average at just those alphas that make answers short.
    frame["repeated_4gram_share"] = frame["repeated_4gram_share"].astype(float).fillna(0.0)
    if JUDGE in frame:
        for label in sorted(frame[JUDGE].dropna().unique()):
            is_label = (frame[JUDGE] == label).astype(float)
            frame[f"{JUDGE}_{label}"] = is_label.where(frame[JUDGE].notna())
    frame["logit_range"] = frame["logit_max"] - frame["logit_min"]
    frame["ended_by_eos"] = (frame["finish_reason"] == "eos").astype(float)
    return frame


def treatment(frame: pandas.DataFrame, control: str = "") -> pandas.DataFrame:
    """Return the rows of the swept pairs without controls, or those of one control."""
    return frame[frame["control"] == control]


def typical_pair(frame: pandas.DataFrame) -> str | None:
    """Return the pair whose change in log p_A - log p_B is closest to the median change.

    The change is that from alpha 0 to the largest alpha. Of equally close pairs, the first in the
    frame. None if no pair has both values.
    """
    table = by_pair(treatment(frame), "log_ratio_a_b")
    if 0.0 not in table:
        return None
    grown = (table.iloc[:, -1] - table[0.0]).dropna().reindex(frame["pair_id"].unique()).dropna()
    return (grown - grown.median()).abs().idxmin() if len(grown) else None


def without_b(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Leave out alpha -1, which is B, for figures that start at A."""
    return frame[frame["alpha"] != -1]


def measure_names(frame: pandas.DataFrame) -> list[str]:
    """Return the names of the columns that hold measures."""
    return [name for name in frame.columns if name not in LABELS]


def by_pair(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return means over samples: a row per pair, a column per alpha. Expects one arm's rows."""
    # dropna=False: a measure that no answer is long enough for gives a table of NaN, not an empty
    # one.
    return frame.pivot_table(
        index="pair_id", columns="alpha", values=measure, aggfunc="mean", dropna=False
    )


def by_family(cells: pandas.DataFrame, measures: Any) -> Any:
    """Return means over draws, then over the pairs of a family: a row per family."""
    return cells.groupby(["family", "pair_id"])[measures].mean().groupby("family").mean()


def by_family_and_alpha(cells: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return means as `by_family` does: a row per family, a column per alpha."""
    found = cells.groupby(["alpha", "family", "pair_id"])[measure].mean()
    return found.groupby(["alpha", "family"]).mean().unstack("alpha")


def summarise(frame: pandas.DataFrame, measures: Sequence[str] = ()) -> pandas.DataFrame:
    """Return `summary_statistics.csv`: a row per (arm, category or `all`, alpha).

    n counts generations, n_pairs pairs, and n_families the units of the interval. Then follow, for
    each measure (by default all of them), the mean over families and the bounds of its 95 %
    interval. `all` excludes the controls.
    """
    measures = measures or measure_names(frame)
    means = [name for name in measures if not is_share(name)]
    rows = []
    for arm, of_arm in frame.groupby("arm", sort=False):
        groups = [(ALL, treatment(of_arm)), *of_arm.groupby("category", sort=False)]
        for category, group in groups:
            for alpha, cells in group.groupby("alpha"):
                row: dict[str, Any] = {"arm": arm, "category": category, "alpha": alpha}
                row |= {"n": len(cells), "n_pairs": cells["pair_id"].nunique()}
                row |= {"n_families": cells["family"].nunique()}
                of_family = by_family(cells, means)
                for name in measures:
                    found = estimate(cells, name) if is_share(name) else interval(of_family[name])
                    row |= {f"{name}_{part}": getattr(found, part) for part in COLUMNS[:3]}
                rows.append(row)
    return pandas.DataFrame(rows)


def dose(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return, per alpha, the mean over families with its interval. Expects one arm's rows.

    Controls are left out.
    """
    groups = treatment(frame).groupby("alpha")
    return _table({alpha: estimate(cells, measure) for alpha, cells in groups})


def _table(estimates: dict[float, Estimate]) -> pandas.DataFrame:
    table = pandas.DataFrame.from_dict(estimates, orient="index", columns=COLUMNS)
    return table.rename_axis("alpha")


def estimate(cells: pandas.DataFrame, measure: str) -> Estimate:
    """Return the mean over families of a measure of these generations, with its 95 % interval."""
    cells = cells[["family", "pair_id", measure]].dropna()
    found = by_family(cells, measure)
    return share(found, len(cells)) if is_share(measure) else interval(found)


def is_share(measure: str) -> bool:
    """Whether a measure is 0 or 1 for each generation, so that its mean is a share."""
    return measure.startswith(f"{JUDGE}_") or (measure in MEASURES and MEASURES[measure].is_share)


# ----------------------------------------------------------------------------------- differences


def difference(one: pandas.Series, other: pandas.Series, measure: str) -> Estimate:
    """Return the mean of `one` - `other` within families, and its 95 % interval.

    Both are indexed by family and come from generations with the same random numbers.
    """
    values = (one - other).dropna().to_numpy(dtype=float)
    return share_difference(values) if is_share(measure) else interval(values)


def paired_difference(frame: pandas.DataFrame, measure: str, control: str = "") -> pandas.DataFrame:
    """Return, per alpha, the mean difference from alpha 0 within families, with interval and p.

    Uses the draws present at both alphas. Expects one arm's rows. Controls are left out, or
    `control` selects one of them.
    """
    cells = treatment(frame, control)
    base = cells[cells["alpha"] == 0]
    return _differences({alpha: (rows, base) for alpha, rows in cells.groupby("alpha")}, measure)


def arm_difference(frame: pandas.DataFrame, measure: str, arm: str, base: str) -> pandas.DataFrame:
    """Return, per alpha, the mean of `arm` - `base` within families, over common draws."""
    cells = treatment(frame)
    one, other = (cells[cells["arm"] == name] for name in (arm, base))
    alphas = sorted(set(one["alpha"]) & set(other["alpha"]))
    return _differences(
        {a: (one[one["alpha"] == a], other[other["alpha"] == a]) for a in alphas}, measure
    )


def common_draws(one: pandas.DataFrame, other: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return family means over the draws (pair and sample) that both frames have.

    A row per family; columns `one` and `other`. A draw that lacks the measure in either frame is
    left out of both.
    """
    draws = ["family", "pair_id", "sample"]
    sides = {"one": one, "other": other}
    # The columns first: an index made of a whole frame copies all of them.
    sides = {
        name: side[[*draws, measure]].set_index(draws)[measure] for name, side in sides.items()
    }
    return by_family(pandas.concat(sides, axis=1).dropna(), ["one", "other"])


def _differences(
    sides: dict[float, tuple[pandas.DataFrame, pandas.DataFrame]], measure: str
) -> pandas.DataFrame:
    estimates, chances = {}, []
    for alpha, (one, other) in sides.items():
        both = common_draws(one, other, measure)
        estimates[alpha] = difference(both["one"], both["other"], measure)
        chances.append(sign_flip(both["one"] - both["other"]))
    return _table(estimates).assign(p=chances)


# ---------------------------------------------------------------------- trend, changed answers


class Trend(NamedTuple):
    """How a measure changes with alpha, and the p-value of Page's test that it rises."""

    slope: Estimate  # per unit of alpha; of a straight line, so it depends on the swept alphas
    p: float


def trend(frame: pandas.DataFrame, measure: str) -> Trend | None:
    """Return the trend from alpha 0 on; None for fewer than three alphas or two families.

    The slope is the mean over families of their least-squares slopes. The test is Page's (1963),
    with families as blocks; its alternative hypothesis is that the measure rises with alpha.
    Expects one arm's rows.
    """
    cells = treatment(frame)
    table = cells[cells["alpha"] >= 0].pivot_table(
        index=["family", "pair_id", "sample"], columns="alpha", values=measure
    )
    table = table.dropna().groupby(level=["family", "pair_id"]).mean().groupby("family").mean()
    if table.shape[1] < 3 or len(table) < 2:
        return None
    alphas = numpy.array(table.columns, dtype=float)
    away = alphas - alphas.mean()
    slopes = table.to_numpy() @ away / (away @ away)
    return Trend(interval(slopes), float(scipy_stats.page_trend_test(table.to_numpy()).pvalue))


def changed_share(records: Sequence[Record], *, null: bool = False) -> pandas.DataFrame:
    """Return, per alpha, the share of draws whose tokens differ from those at alpha 0.

    null: use the null pairs instead, where the share must be zero.
    """
    records = without_errors(records)
    baseline = {(r["pair_id"], r["sample"]): r["token_ids"] for r in records if r["alpha"] == 0}
    rows = [
        {name: r[name] for name in ("pair_id", "alpha")}
        | {"family": r.get("family") or r["pair_id"], "changed": float(r["token_ids"] != base)}
        for r in records
        if r["control"] == ("null" if null else "")
        and (base := baseline.get((r["pair_id"], r["sample"]))) is not None
    ]
    if not rows:
        return _table({})
    frame = pandas.DataFrame(rows)
    return _table(
        {a: share(by_family(cells, "changed"), len(cells)) for a, cells in frame.groupby("alpha")}
    )
