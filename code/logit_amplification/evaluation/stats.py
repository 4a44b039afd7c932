"""From records to tables with intervals and tests. The pair is the unit; no tensors, no model.

Draws of one pair are averaged first, for they are not independent evidence about other prompts
(Miller 2024, arXiv:2411.00640). Controls stand in no average but their own category's. Generations
that ended with an error are left out everywhere; the reports say how many. Which interval and
which test, and why: docs/METHODOLOGY.md, "Statistics".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy
import pandas
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from ..logits.vocabulary import MEASURES
from ..records.files import Record

ALL = "all"
LEVEL = 0.95
POWER = 0.8
BOOTSTRAP_FROM = 12  # pairs; below, Student's t covers better (docs/LOG.md)
RESAMPLES = 1999
PERMUTATIONS = 99_999
LABELS = (
    *("pair_id", "category", "control", "alpha", "sample", "arm"),
    *("finish_reason", "outcome", "evidence", "judge", "text"),
)
JUDGE = "judge"  # the column of its labels; the share of each is a measure `judge_<label>`
COLUMNS = ("mean", "lower", "upper", "n")


class Estimate(NamedTuple):
    """A mean over pairs, the bounds of its 95 % interval (NaN where there is none), and n."""

    mean: float
    lower: float
    upper: float
    n: int


# ---------------------------------------------------------------------------------------- tables


def without_errors(records: Iterable[Record]) -> list[Record]:
    """Return the generations that came to an end."""
    return [record for record in records if record["finish_reason"] != "error"]


def to_frame(records: Iterable[Record]) -> pandas.DataFrame:
    """Return a row per finished generation: its labels, outcome, length and measures."""
    kept = (*LABELS[:7], "text", "n_tokens")
    rows = [
        {name: r[name] for name in kept} | _outcome(r) | r["measures"]
        for r in without_errors(records)
    ]
    return complete(pandas.DataFrame(rows)) if rows else pandas.DataFrame(columns=LABELS)


def _outcome(record: Record) -> dict[str, str]:
    found = record["outcome"]
    judged = {JUDGE: record["judge"]["label"]} if "judge" in record else {}
    return {"outcome": found["label"], "evidence": found["evidence"]} | judged


def complete(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Add the columns that follow from others."""
    coherent = frame["outcome"] != "incoherent"
    for label in ("refusal", "on_task", "incoherent"):
        frame[label] = (frame["outcome"] == label).astype(float)
    frame["refusal_if_coherent"] = frame["refusal"].where(coherent)
    if JUDGE in frame:
        for label in sorted(frame[JUDGE].dropna().unique()):
            is_label = (frame[JUDGE] == label).astype(float)
            frame[f"{JUDGE}_{label}"] = is_label.where(frame[JUDGE].notna())
    frame["logit_range"] = frame["logit_max"] - frame["logit_min"]
    frame["ended_by_eos"] = (frame["finish_reason"] == "eos").astype(float)
    return frame


def treatment(frame: pandas.DataFrame, control: str = "") -> pandas.DataFrame:
    """Return the rows of the swept pairs, without controls; or those of one control."""
    return frame[frame["control"] == control]


def measure_names(frame: pandas.DataFrame) -> list[str]:
    """Return the columns that hold measures."""
    return [name for name in frame.columns if name not in LABELS]


def by_pair(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return the mean over samples: a row per pair, a column per alpha, for one arm's rows."""
    # dropna: a measure that no answer is long enough for is a table of NaN, not an empty one.
    return frame.pivot_table(
        index="pair_id", columns="alpha", values=measure, aggfunc="mean", dropna=False
    )


def summarise(frame: pandas.DataFrame, measures: Sequence[str] = ()) -> pandas.DataFrame:
    """Return `summary_statistics.csv`: a row per (arm, category or `all`, alpha).

    n counts generations, n_pairs the pairs that the interval is over; then, per measure (all of
    them unless some are named), the mean over pairs and the bounds of its 95 % interval. `all`
    leaves the controls out.
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
                of_pair = cells.groupby("pair_id")[means].mean()
                for name in measures:
                    found = estimate(cells, name) if is_share(name) else interval(of_pair[name])
                    row |= {f"{name}_{part}": getattr(found, part) for part in COLUMNS[:3]}
                rows.append(row)
    return pandas.DataFrame(rows)


def dose(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return, per alpha, the mean over pairs with its interval: one arm, controls left out."""
    groups = treatment(frame).groupby("alpha")
    return _table({alpha: estimate(cells, measure) for alpha, cells in groups})


def _table(estimates: dict[float, Estimate]) -> pandas.DataFrame:
    table = pandas.DataFrame.from_dict(estimates, orient="index", columns=COLUMNS)
    return table.rename_axis("alpha")


# ------------------------------------------------------------------------------------- intervals


def estimate(cells: pandas.DataFrame, measure: str) -> Estimate:
    """Return the mean over pairs of the generations in `cells`, with its 95 % interval."""
    if is_share(measure):
        return share(cells[["pair_id", measure]].dropna().groupby("pair_id")[measure])
    return interval(cells.groupby("pair_id")[measure].mean())


def is_share(measure: str) -> bool:
    """Whether a measure is 0 or 1 for a generation, so that its mean is a share."""
    return measure.startswith(f"{JUDGE}_") or (measure in MEASURES and MEASURES[measure].is_share)


def interval(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values (one per pair) and its 95 % interval.

    From `BOOTSTRAP_FROM` values on it is the studentised bootstrap, which resamples whole pairs
    (Efron and Tibshirani 1993, chapter 12), below that Student's t. One value has no interval.
    """
    values = numpy.asarray(values, dtype=float)
    values = values[~numpy.isnan(values)]
    mean = float(values.mean()) if len(values) else numpy.nan
    if len(values) < 2:
        return Estimate(mean, numpy.nan, numpy.nan, len(values))
    error = float(values.std(ddof=1) / numpy.sqrt(len(values)))
    if len(values) < BOOTSTRAP_FROM or error == 0:
        reach = _students(len(values)) * error
        return Estimate(mean, mean - reach, mean + reach, len(values))
    low, high = _studentised(values, mean)
    return Estimate(mean, mean - high * error, mean - low * error, len(values))


@lru_cache
def _students(count: int) -> float:
    """The 97.5 % point of Student's t for the mean of so many values."""
    return float(scipy_stats.t.ppf((1 + LEVEL) / 2, count - 1))


def _studentised(values: NDArray, mean: float) -> tuple[float, float]:
    """The 2.5 and 97.5 % points of (resampled mean - mean) / its standard error.

    Student's where the values are nearly all alike: then some resamples have no spread at all.
    """
    resampled = values[_resamples(len(values))]
    errors = resampled.std(1, ddof=1) / numpy.sqrt(len(values))
    if (errors == 0).any():
        return -_students(len(values)), _students(len(values))
    ratios = (resampled.mean(1) - mean) / errors
    low, high = numpy.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache
def _resamples(count: int) -> NDArray:
    """Which values each resample takes; always the same, so that reports can be repeated."""
    return numpy.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the bounds of Wilson's 95 % interval; `count` may be an effective one."""
    low, high = proportion_confint(share * count, count, 1 - LEVEL, method="wilson")
    return float(low), float(high)


def share(of_pair: Any) -> Estimate:
    """Return a share of generations, grouped by pair, and its 95 % interval.

    Wilson's interval with an effective number of draws (after Korn and Graubard 1998): draws of one
    pair are alike, so n is between the number of pairs and that of generations, and the former
    where too few pairs differ to tell. Where there is no hit, or nothing but hits, the rule of
    three bounds it, one-sided: 3 / number of pairs. One pair has no interval.
    """
    rates = of_pair.mean().to_numpy(dtype=float)
    pairs, draws = len(rates), int(of_pair.size().sum())
    mean = float(rates.mean()) if pairs else numpy.nan
    if pairs < 2:
        return Estimate(mean, numpy.nan, numpy.nan, pairs)
    if mean in (0.0, 1.0):
        reach = min(1.0, 3 / pairs)
        return Estimate(mean, mean and 1 - reach, mean or reach, pairs)
    effective = float(pairs)
    if (rates > 0).sum() > 1 and (rates < 1).sum() > 1 and rates.var():
        effective = mean * (1 - mean) / (rates.var(ddof=1) / pairs)
    return Estimate(mean, *wilson(mean, numpy.clip(effective, pairs, draws)), pairs)


# ----------------------------------------------------------------------------------- differences


def difference(one: pandas.Series, other: pandas.Series, measure: str) -> Estimate:
    """Return the mean of `one` - `other` within pairs (indexed by pair), and its 95 % interval.

    Both were made with the same random numbers. For shares it is the interval of Bonett and Price
    2012, which adds a pair that changed each way: with few changes Student's t covers too little.
    """
    values = (one - other).dropna().to_numpy(dtype=float)
    if not is_share(measure) or len(values) < 2:
        return interval(values)
    padded = numpy.append(values, [1.0, -1.0])
    half = scipy_stats.norm.ppf((1 + LEVEL) / 2) * padded.std() / numpy.sqrt(len(padded))
    low, high = padded.mean() - half, padded.mean() + half
    return Estimate(float(values.mean()), max(-1.0, low), min(1.0, high), len(values))


def paired_difference(frame: pandas.DataFrame, measure: str, control: str = "") -> pandas.DataFrame:
    """Return, per alpha, the mean difference to alpha 0 within pairs, with interval and p-value.

    Over the draws that both have. One arm's rows are expected. Controls are left out, or one of
    them is looked at alone.
    """
    cells = treatment(frame, control)
    base = cells[cells["alpha"] == 0]
    return _differences({alpha: (rows, base) for alpha, rows in cells.groupby("alpha")}, measure)


def arm_difference(frame: pandas.DataFrame, measure: str, arm: str, base: str) -> pandas.DataFrame:
    """Return, per alpha, the mean difference of two arms within pairs, over their common draws."""
    cells = treatment(frame)
    one, other = (cells[cells["arm"] == name] for name in (arm, base))
    alphas = sorted(set(one["alpha"]) & set(other["alpha"]))
    return _differences(
        {a: (one[one["alpha"] == a], other[other["alpha"] == a]) for a in alphas}, measure
    )


def common_draws(one: pandas.DataFrame, other: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return the means over the draws (pair and sample) that both have: a row per pair.

    Columns `one` and `other`. A draw without the measure on either side is left out of both.
    """
    draws = ["pair_id", "sample"]
    sides = {"one": one.set_index(draws)[measure], "other": other.set_index(draws)[measure]}
    return pandas.concat(sides, axis=1).dropna().groupby(level="pair_id").mean()


def _differences(
    sides: dict[float, tuple[pandas.DataFrame, pandas.DataFrame]], measure: str
) -> pandas.DataFrame:
    estimates, chances = {}, []
    for alpha, (one, other) in sides.items():
        both = common_draws(one, other, measure)
        estimates[alpha] = difference(both["one"], both["other"], measure)
        chances.append(sign_flip(both["one"] - both["other"]))
    return _table(estimates).assign(p=chances)


def sign_flip(differences: pandas.Series) -> float:
    """Return the two-sided p-value of the hypothesis that a pair's difference has either sign.

    A permutation test: the mean against those of `PERMUTATIONS` sets of signs, always the same.
    NaN where there is no difference to look at.
    """
    values = differences.dropna().to_numpy(dtype=float)
    if not len(values):
        return numpy.nan
    values = values[values != 0]
    if not len(values):
        return 1.0
    flipped = _signs(len(values)) @ values
    as_far = numpy.abs(flipped) >= abs(values.sum()) * (1 - 1e-12)
    return float((1 + as_far.sum()) / (1 + PERMUTATIONS))


@lru_cache(maxsize=32)  # at most as many sizes of groups as a study has
def _signs(count: int) -> NDArray:
    return numpy.random.default_rng(0).choice([-1.0, 1.0], (PERMUTATIONS, count))


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm 1979); NaN is no test and stays NaN."""
    corrected = numpy.array(chances, dtype=float)
    tested = ~numpy.isnan(corrected)
    if tested.any():
        corrected[tested] = multipletests(corrected[tested], method="holm")[1]
    return corrected.tolist()


# ----------------------------------------------------------------------------- trend, power, luck


class Trend(NamedTuple):
    """How a measure goes with alpha within pairs, and the p-value of Page's test that it rises."""

    slope: Estimate  # per unit of alpha
    p: float


def trend(frame: pandas.DataFrame, measure: str) -> Trend | None:
    """Return the trend over the alphas from 0 on, or None for fewer than three of them.

    The slope is the mean over pairs of each pair's least-squares slope. The test is Page's (1963):
    pairs are blocks, and the hypothesis is that the measure rises with alpha. One arm's rows.
    """
    cells = treatment(frame)
    table = cells[cells["alpha"] >= 0].pivot_table(
        index=["pair_id", "sample"], columns="alpha", values=measure
    )
    table = table.dropna().groupby(level="pair_id").mean()
    if table.shape[1] < 3 or len(table) < 2:
        return None
    alphas = numpy.array(table.columns, dtype=float)
    away = alphas - alphas.mean()
    slopes = table.to_numpy() @ away / (away @ away)
    return Trend(interval(slopes), float(scipy_stats.page_trend_test(table.to_numpy()).pvalue))


class Power(NamedTuple):
    """What a design of so many pairs shows with 80 % power, two-sided at 5 %."""

    pairs: int
    deviations: float  # a mean difference, in standard deviations of the pairs' differences
    share: float  # pairs whose outcome changes, all of them the same way


def power(pairs: int) -> Power:
    """Return the smallest effects that a sweep over so many pairs can be expected to show.

    Of a mean: the paired t-test. Of an outcome: the exact sign test of McNemar. NaN where even the
    largest effect would not show.
    """
    if pairs < 2:
        return Power(pairs, numpy.nan, numpy.nan)
    solved = TTestPower().solve_power(nobs=pairs, alpha=1 - LEVEL, power=POWER)
    needed = next((k for k in range(1, pairs + 1) if 2 * 0.5**k <= 1 - LEVEL), None)
    if needed is None:
        return Power(pairs, float(solved), numpy.nan)
    shares = numpy.linspace(0, 1, 1001)
    seen = scipy_stats.binom.sf(needed - 1, pairs, shares)
    return Power(pairs, float(solved), float(shares[(seen >= POWER).argmax()]))


def crn_variance(frame: pandas.DataFrame, measure: str) -> pandas.DataFrame:
    """Return, per alpha, the variance of a draw's difference to alpha 0, with two kinds of draws.

    `common`: both with the same random numbers, as swept; `independent`: with numbers of their own,
    where the variances of both draws add. Each is a variance over the samples of a pair, averaged
    over n pairs with at least two. One arm's rows.
    """
    table = treatment(frame).pivot_table(
        index=["pair_id", "sample"], columns="alpha", values=measure
    )
    rows = {}
    for alpha in table.columns.difference([0.0]) if 0.0 in table else []:
        both = table[[alpha, 0.0]].dropna()
        both = both[both.groupby(level="pair_id")[0.0].transform("size") > 1]
        if len(both):
            parts = both.assign(difference=both[alpha] - both[0.0])
            within = parts.groupby(level="pair_id").var(ddof=1).mean()
            independent = within[alpha] + within[0.0]
            pairs = both.index.get_level_values("pair_id").nunique()
            rows[alpha] = {"common": within["difference"], "independent": independent, "n": pairs}
    return pandas.DataFrame.from_dict(rows, orient="index").rename_axis("alpha")


def rank_correlation(one: pandas.Series, other: pandas.Series) -> tuple[Estimate, float]:
    """Return Spearman's rank correlation of values indexed by pair, and its p-value.

    The interval is Fisher's with the variance of Bonett and Wright 2000; NaN below four pairs.
    """
    both = pandas.concat([one, other], axis=1).dropna()
    n = len(both)
    if n < 4:
        return Estimate(numpy.nan, numpy.nan, numpy.nan, n), numpy.nan
    r, p = scipy_stats.spearmanr(both.iloc[:, 0], both.iloc[:, 1])
    middle = numpy.arctanh(numpy.clip(r, -1 + 1e-9, 1 - 1e-9))
    reach = scipy_stats.norm.ppf((1 + LEVEL) / 2) * numpy.sqrt((1 + r * r / 2) / (n - 3))
    low, high = numpy.tanh([middle - reach, middle + reach])
    return Estimate(float(r), float(low), float(high), n), float(p)


def changed_share(records: Sequence[Record], *, null: bool = False) -> pandas.DataFrame:
    """Return, per alpha, the share of pairs with an answer other than at alpha 0, token for token.

    null: look at the null pairs instead, where the share must be zero.
    """
    records = without_errors(records)
    baseline = {(r["pair_id"], r["sample"]): r["token_ids"] for r in records if r["alpha"] == 0}
    rows = [
        {"pair_id": r["pair_id"], "alpha": r["alpha"], "changed": r["token_ids"] != base}
        for r in records
        if r["control"] == ("null" if null else "")
        and (base := baseline.get((r["pair_id"], r["sample"]))) is not None
    ]
    if not rows:
        return _table({})
    pairs = pandas.DataFrame(rows).groupby(["alpha", "pair_id"])["changed"].max().astype(float)
    return _table(
        {alpha: share(of_pair.groupby("pair_id")) for alpha, of_pair in pairs.groupby("alpha")}
    )
