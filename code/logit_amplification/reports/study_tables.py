"""What docs/RESULTS_ANALYSIS.md says, estimated from the tables of the study; no prose, no torch.

A cell of a table is a text already: one form of numbers for all tables. What a sentence of the
template needs is left as a number, an estimate, or a difference with its test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas
from scipy import stats as scipy_stats

from ..errors import BadInput
from ..evaluation import correction, intervals, matching, outcomes, specificity, stats
from ..evaluation.calibration import AMPLIFIED
from ..evaluation.intervals import Estimate
from ..evaluation.wording import (
    against_margin,
    contains_zero,
    format_change,
    format_interval,
    format_test,
)
from ..logits.vocabulary import FIXED_FILLS, GAPS, MEASURES

TABLES = ("generations", "calibration", "readings", "alpha_profiles", "alpha_at_distance", "lists")
TARGETS = (0.5, 1.0, 2.0)  # nats of KL(amplified || A)
DISTANCES = tuple(f"alpha at {nats:g} nats" for nats in TARGETS)
BASE = "full"
# Declared before the study was made: docs/METHODOLOGY.md, "Declared beforehand".
PRIMARY_ALPHA = 2.0
ARMS_DISTANCE = 0.5  # nats of KL(sampled || A) beyond `full` at alpha 0, where arms are compared
CAREFUL = ("looks harmful", "refusal boundary", "jailbreak framing")
LIMITS = (1.0, 1.5, 2.0, 2.5, 3.0)  # of the excess NLL, had it been another
SHORT = {name: measure.label for name, measure in MEASURES.items()}
Cells = list[list[Any]]


@dataclass(frozen=True)
class Study:
    """The tables of `data/study/`: see `TABLES`; and what the run was."""

    run: dict[str, Any]
    generations: pandas.DataFrame
    calibration: pandas.DataFrame
    readings: pandas.DataFrame
    alpha_profiles: pandas.DataFrame
    alpha_at_distance: pandas.DataFrame
    lists: pandas.DataFrame

    def arm(self, name: str) -> pandas.DataFrame:
        """The generations of one arm, controls included."""
        return self.generations[self.generations["arm"] == name]

    def alphas(self, name: str = BASE, least: float = -math.inf) -> list[float]:
        """The alphas of one arm that are not below `least`."""
        return [alpha for alpha in sorted(self.arm(name)["alpha"].unique()) if alpha >= least]

    @cached_property
    def full(self) -> pandas.DataFrame:
        """The generations that all others are held against, controls included."""
        return self.arm(BASE)

    @property
    def arms(self) -> list[str]:
        """The other arms, as they were swept."""
        return [arm for arm in self.generations["arm"].unique() if arm != BASE]

    @property
    def amplified(self) -> list[float]:
        """The alphas of `full` above 0."""
        return [alpha for alpha in self.alphas() if alpha > 0]

    @cached_property
    def contrasts(self) -> pandas.DataFrame:
        """The generations that `specificity` compares."""
        return specificity.contrasts(self.generations)

    @cached_property
    def comparisons(self) -> list[specificity.Comparison]:
        """The pairs against their controls at equal distances."""
        return specificity.compare(self.contrasts)

    @cached_property
    def robust(self) -> list[specificity.Comparison]:
        """The primary comparison over the attributes that unamplified texts vary enough in."""
        rows = specificity.well_measured(self.contrasts)
        return specificity.compare(rows, [specificity.PRIMARY_DISTANCE])

    @cached_property
    def slopes(self) -> list[specificity.Slope]:
        """The mixed model's slopes."""
        return specificity.mixed_model(self.contrasts)

    @property
    def amplified_labels(self) -> pandas.DataFrame:
        """The labelled generations that took no part in fixing the limits."""
        scored = self.calibration
        return scored[(scored["kind"] == AMPLIFIED) & scored["held_out"].astype(bool)]


def read_study(folder: Path) -> Study:
    """Read the tables that `make study` wrote. Raises BadInput when one is missing."""
    try:
        run = json.loads((Path(folder) / "study.json").read_text(encoding="utf-8"))
        # The control that is called null is not a missing value.
        tables = [
            pandas.read_csv(Path(folder) / f"{name}.csv", keep_default_na=False, na_values=[""])
            for name in TABLES
        ]
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; run `make study` first") from None
    labels = [name for name in stats.LABELS if name in tables[0]]
    tables[0][labels] = tables[0][labels].fillna("")
    # A sign in front of an attribute is no formula; the CSV has an apostrophe there.
    tables[0]["attribute"] = tables[0]["attribute"].str.removeprefix("'")
    return Study(run, *tables)


# ----------------------------------------------------------------------------------------- tested


class Tested(NamedTuple):
    """A difference, its interval and n, and its p-value; as a text it says all of them."""

    row: Any
    p: float

    def __str__(self) -> str:
        return format_test(self.row, self.p)

    @property
    def word(self) -> str:
        """What a corrected test and an interval allow to say: more, less or not shown."""
        if contains_zero(self.row) or self.p >= 1 - intervals.LEVEL:
            return "not shown"
        return "more" if self.row["mean"] > 0 else "less"

    @property
    def estimate(self) -> Estimate:
        """The difference."""
        return Estimate(*(self.row[part] for part in stats.COLUMNS))


def change(study: Study, measure: str, alpha: float, cells: Any = None) -> Tested:
    """The difference of `full` to alpha 0, with an uncorrected test of its own."""
    row = stats.paired_difference(study.full if cells is None else cells, measure).loc[alpha]
    return Tested(row, row["p"])


def arm_change(study: Study, measure: str, arm: str, alpha: float) -> Tested:
    """An arm minus `full`, at the same alpha, over their common draws."""
    row = stats.arm_difference(study.generations, measure, arm, BASE).loc[alpha]
    return Tested(row, row["p"])


def arm_at_distance(study: Study, measure: str, arm: str) -> Estimate | None:
    """An arm minus `full` where both have moved equally far; None where one does not get there."""
    own, full = stats.treatment(study.arm(arm)), stats.treatment(study.full)
    target = matching.dose(full)[0.0] + ARMS_DISTANCE
    draws = ["pair_id", "sample"]
    shared = full.set_index(draws).index.isin(own.set_index(draws).index)
    sides = [matching.at_distance(cells, measure, target) for cells in (own, full[shared])]
    if any(side.empty for side in sides):
        return None
    return stats.difference(*sides, measure="nll_a")  # a mean, interpolated: no share any more


def shared_draws(study: Study, arms: Sequence[str]) -> pandas.DataFrame:
    """The pairs' generations of some arms, over the pairs and samples that all of them have."""
    frame = stats.treatment(study.generations[study.generations["arm"].isin(arms)])
    draws = frame[["pair_id", "sample", "arm"]].drop_duplicates()
    whole = draws.groupby(["pair_id", "sample"])["arm"].nunique() == len(arms)
    return frame[frame.set_index(["pair_id", "sample"]).index.map(whole).astype(bool)]


# ---------------------------------------------------------------------------- what sentences say


def verdict(study: Study) -> str:
    """Whether what grows is the contrast: specific, partly, or unspecific; or too far to say."""
    at = [c for c in study.comparisons if c.distance == specificity.PRIMARY_DISTANCE]
    won = [c for c in at if c.difference.lower > 0 and c.p < 1 - intervals.LEVEL]
    if not at:
        return "not compared"
    grows = at[0].pair.lower > 0
    if len(won) == len(at) == len(specificity.CONTROLS) and grows:
        return "specific"
    return "partly specific" if won and grows else "not shown to be specific"


def left_out(study: Study) -> list[str]:
    """The declared attributes in which no unamplified text varies."""
    declared = stats.treatment(study.full)["attribute"].str.extract(r"^[+-](\w+)")[0].dropna()
    return sorted(set(declared) - set(study.contrasts["measure"]))


def stays_coherent(study: Study) -> str:
    """What both margins say of every alpha up to the primary one: yes, no or undecided."""
    verdicts = set()
    for alpha in study.amplified:
        if alpha <= PRIMARY_ALPHA:
            for name, margin in (
                ("incoherent", intervals.MARGIN_SHARE),
                ("nll_a", intervals.MARGIN_NLL),
            ):
                verdicts.add(against_margin(change(study, name, alpha).estimate, margin))
    if "worse by more than the margin" in verdicts:
        return "no"
    return "undecided" if verdicts & {"undecided", "no interval"} else "yes"


def errors(study: Study, label: str) -> correction.Errors:
    """How the scorer did on held-out amplified answers that both readings agree on."""
    return correction.errors_of(study.amplified_labels, label)


def rates(study: Study, label: str, cells: pandas.DataFrame) -> dict[float, tuple[Any, Any]]:
    """By alpha: the observed share of an outcome, and the rate behind it."""
    found = {}
    for alpha, row in stats.dose(cells, label).iterrows():
        observed = Estimate(*row[list(stats.COLUMNS[:3])], int(row["n"]))
        found[alpha] = observed, correction.corrected(observed, errors(study, label))
    return found


def is_measurable(study: Study, label: str, cells: pandas.DataFrame | None = None) -> bool:
    """Whether a rate of `full` can be told from the scorer's errors at any alpha from 0 on."""
    found = rates(study, label, study.full if cells is None else cells)
    return correction.is_measurable([behind for a, (_, behind) in found.items() if a >= 0])


def why_not(study: Study, label: str) -> str:
    """Why a rate is not measurable."""
    if not errors(study, label).of:
        return "no held-out answer was labelled so, so that the scorer's errors are not known"
    return "it is so rare that it cannot be told from the scorer's errors"


def power_families(study: Study) -> int:
    """The number of families."""
    return stats.treatment(study.generations)["family"].nunique()


def likelier_at_distance(study: Study, arms: Sequence[str]) -> dict[str, Estimate]:
    """The arms whose text is likelier under A than that of `full`, where equally far from it."""
    found = {arm: arm_at_distance(study, "nll_a", arm) for arm in arms}
    return {arm: one for arm, one in found.items() if one is not None and one.upper < 0}


def law(study: Study) -> pandas.DataFrame:
    """A row per fill, list length and alpha: the gap in nats, gap x alpha, and the mean NLL.

    The gap lies between the smallest entry of B's list and what stands for a missing token; of a
    fixed value it is the mean over the steps of the answers at alpha 0.
    """
    rows = []
    subset = study.arm("api_minus13")["pair_id"].unique()
    lists = study.lists[study.lists["pair_id"].isin(subset)]
    for arm in study.arms:
        kind, _, top = arm.partition("_top")
        floor = lists[f"floor_{top or 20}"] if (top or "20") in ("5", "20") else None
        if kind in GAPS:
            gap = GAPS[kind]
        elif kind in FIXED_FILLS and floor is not None:
            gap = float((floor - FIXED_FILLS[kind]).mean())
        else:
            continue
        cells = stats.treatment(study.arm(arm))
        cells = cells[cells["pair_id"].isin(subset)]
        for alpha, row in stats.dose(cells, "nll_a").iterrows():
            if alpha > 0:
                more = {"gap": gap, "gap_alpha": gap * alpha, "nll_a": row["mean"]}
                more |= {"lower": row["lower"], "upper": row["upper"], "n": int(row["n"])}
                rows.append({"arm": arm, "k": int(top or 20), "alpha": alpha} | more)
    return pandas.DataFrame(rows).sort_values("gap_alpha", ignore_index=True)


def law_correlations(study: Study, k: int = 20) -> dict[str, float]:
    """Spearman's correlation of the NLL with gap x alpha, with the gap and with alpha alone.

    Over the fills at or below the smallest entry of a list of `k`, all their alphas; `n` of them.
    """
    found = law(study)
    found = found[(found["k"] == k) & (found["gap"] >= 0)]
    return {"n": len(found)} | {
        name: float(scipy_stats.spearmanr(found[name], found["nll_a"])[0])
        for name in ("gap_alpha", "gap", "alpha")
    }


def null_texts(study: Study) -> pandas.Series:
    """The number of different texts in each draw of the null pair, over all alphas."""
    null = study.full[study.full["control"] == "null"]
    return null.groupby(["pair_id", "sample"])["text"].nunique()


def gap_correlations(study: Study) -> dict[float, tuple[Estimate, float]]:
    """By alpha: the rank correlation of KL(A || B) with how far answers move; and its p-value."""
    full = stats.treatment(study.full)
    apart, moved = stats.by_pair(full, "kl_a_b")[0.0], stats.by_pair(full, "kl_amplified_a")
    return {a: intervals.rank_correlation(apart, moved[a]) for a in moved.columns if a > 0}


# ----------------------------------------------------------------------------------------- tables


def heads(numbers: Sequence[float], of: str = "alpha") -> list[str]:
    """A column's head for every number."""
    return [f"{of} {number:g}" for number in numbers]


def dose_cells(study: Study, names: Sequence[str], alphas: Sequence[float]) -> Cells:
    """A row per measure of `full`: its mean at every alpha."""
    doses = {name: stats.dose(study.full, name) for name in names}
    return [
        [SHORT[name], *(format_interval(table.loc[alpha]) for alpha in alphas)]
        for name, table in doses.items()
    ]


def attribute_cells(study: Study, alphas: Sequence[float]) -> Cells:
    """A row per category: what is declared, A minus B, and the change from alpha 0 at each alpha.

    In standard deviations of unamplified texts; intervals over the families of a category.
    """
    rows = []
    own = study.contrasts[study.contrasts["kind"] == specificity.PAIR]
    for category, cells in [("all", own), *own.groupby("category", sort=False)]:
        table = stats.by_family_and_alpha(cells, "z")
        named = (
            ", ".join(sorted(cells["measure"].unique())) if category != "all" else "each its own"
        )
        told = [_signed(table[0.0] - table[-1.0])]
        told += [_signed(table[alpha] - table[0.0]) for alpha in alphas]
        rows.append([category, named, cells["family"].nunique(), *told])
    return rows


def _signed(values: pandas.Series) -> str:
    return format_interval(intervals.interval(values), signed=True)


def comparison_cells(comparisons: Sequence[specificity.Comparison]) -> Cells:
    """A row per distance and control: the pairs' effect, the control's and their difference."""
    return [
        [
            *(f"{c.distance:g}", f"`{c.control}`"),
            *(format_interval(one, signed=True) for one in (c.pair, c.other)),
            format_test(c.difference, c.p),
        ]
        for c in comparisons
    ]


def slope_cells(study: Study) -> Cells:
    """A row per control: the pairs' slope minus the control's in the mixed model."""
    return [[f"`{s.control}`", format_test(s.slope, s.p)] for s in study.slopes]


def reading_cells(study: Study) -> Cells:
    """A row per question of the readings: agreement, kappa, and how our score agrees with both."""
    rows = []
    for row in study.readings.to_dict("records"):
        kappa = f"{row['kappa']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]"
        scored = ["", ""]
        if isinstance(row["attribute"], str):
            scored = [row["attribute"], f"{row['right']:.2f} of {int(row['n_agreed'])}"]
        rows.append([row["question"], int(row["n"]), f"{row['agreed']:.2f}", kappa, *scored])
    return rows


def error_cells(found: pandas.DataFrame) -> Cells:
    """A row per kind of labelled answer: what it was called, and the share of errors."""
    counts = ["used for the limits", "kind", "is", "n"]
    counts += [f"called {label}" for label in outcomes.LABELS]
    return [
        [*row[counts], f"{row['errors']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]"]
        for _, row in found.iterrows()
    ]


def rate_cells(study: Study, label: str, cells: pandas.DataFrame) -> Cells:
    """A row per alpha: the observed share of an outcome, and the corrected rate."""
    return [
        [f"{alpha:g}", format_interval(observed), format_interval(behind)]
        for alpha, (observed, behind) in rates(study, label, cells).items()
        if alpha >= 0
    ]


def margin_cells(study: Study) -> Cells:
    """A row per alpha of `full`: changes from alpha 0, and what they say about the margins."""
    rows = []
    for alpha in study.amplified:
        worse, unlikely = change(study, "incoherent", alpha), change(study, "nll_a", alpha)
        told = [format_change(worse.row), against_margin(worse.estimate, intervals.MARGIN_SHARE)]
        told += [
            format_change(unlikely.row),
            against_margin(unlikely.estimate, intervals.MARGIN_NLL),
        ]
        rows.append([f"{alpha:g}", *told])
    return rows


def limit_cells(study: Study, arms: Sequence[str], alpha: float) -> Cells:
    """A row per arm: the share of incoherent answers, were the limit of the excess NLL another."""
    rows = []
    frame = shared_draws(study, [BASE, *arms])
    for arm in (BASE, *arms):
        cells = frame[(frame["arm"] == arm) & (frame["alpha"] == alpha)]
        # The evidence of an incoherent answer names every limit that it is beyond.
        otherwise = cells["evidence"].str.contains("repeated|non-words|no text")
        otherwise &= cells["outcome"] == "incoherent"
        beyond = [(otherwise | (excess(study, cells) > limit)).astype(float) for limit in LIMITS]
        shares = [stats.estimate(cells.assign(incoherent=b), "incoherent") for b in beyond]
        rows.append([f"`{arm}`", *map(format_interval, shares)])
    return rows


def excess(study: Study, cells: pandas.DataFrame) -> pandas.Series:
    """The NLL above the usual, as `outcomes.excess_nll` has it."""
    shrunk = cells["n_tokens"] / (cells["n_tokens"] + outcomes.SHORT)
    return (cells["nll_a"] - study.run["usual_nll"]) * shrunk


def arm_cells(study: Study, arms: Sequence[str], alpha: float) -> Cells:
    """A row per arm: minus `full` at one alpha, with margins, and where both are equally far."""
    rows = []
    for arm in arms:
        worse = arm_change(study, "incoherent", arm, alpha)
        equal = arm_at_distance(study, "nll_a", arm)
        rows.append(
            [
                f"`{arm}`",
                format_change(worse.row),
                against_margin(worse.estimate, intervals.MARGIN_SHARE),
                format_change(arm_change(study, "nll_a", arm, alpha).row),
                format_change(equal) if equal else "no alphas near it",
                against_margin(equal, intervals.MARGIN_NLL) if equal else "",
            ]
        )
    return rows


def law_cells(study: Study) -> Cells:
    """A row per fill, list length and alpha, by gap x alpha."""
    return [
        [f"`{r.arm}`", r.k, f"{r.gap:.1f}", f"{r.alpha:g}", f"{r.gap_alpha:.1f}", _of_row(r)]
        for r in law(study).itertuples()
    ]


def _of_row(row: Any) -> str:
    return format_interval({"mean": row.nll_a, "lower": row.lower, "upper": row.upper})


def graded_cells(study: Study) -> Cells:
    """A row per pair of the category `graded`: how far A and B are apart, how far it moves."""
    full = stats.treatment(study.full)
    full = full[full["category"] == "graded"]
    apart, moved = stats.by_pair(full, "kl_a_b")[0.0], stats.by_pair(full, "kl_amplified_a")
    return [
        [name, f"{apart[name]:.2f}", *(f"{moved.loc[name, a]:.2f}" for a in study.amplified)]
        for name in apart.index
    ]


def type_cells(study: Study, alpha: float) -> Cells:
    """A row per category: changes of `full` from alpha 0 at one alpha."""
    names = ("log_ratio_a_b", "nll_a", "incoherent")
    return [
        [category, *(format_change(change(study, name, alpha, cells).row) for name in names)]
        for category, cells in stats.treatment(study.full).groupby("category", sort=False)
    ]


def distance_cells(study: Study) -> Cells:
    """A row per distance: the alpha that reaches it, over the pairs."""
    end = f"above {study.alpha_profiles['alpha'].max():g}"
    rows = []
    for name in DISTANCES:
        column = study.alpha_at_distance[name]
        found = column.dropna()
        most = f"{found.max():.2f}" if len(found) == len(column) else end
        spread = f"{found.min():.2f} to {most}" if len(found) else ""
        median = column.fillna(math.inf).median()
        shown = f"{median:.2f}" if math.isfinite(median) else end
        rows.append([name, shown, spread, f"{len(found)} of {len(column)}"])
    return rows


def designs(study: Study) -> dict[tuple[str, int, int], list[str]]:
    """By alphas, samples and pairs: the arms, and those of controls, that were swept so."""
    swept: dict[tuple[str, int, int], list[float]] = {}
    frame = study.generations
    kinds = frame.assign(kind=frame["control"].where(frame["control"] != "null", ""))
    for (arm, control, alpha), rows in kinds.groupby(["arm", "kind", "alpha"], sort=False):
        name = f"`{arm}`" + f" of the control `{control}`" * bool(control)
        pairs = rows.loc[rows["control"] != "null", "pair_id"].nunique()
        swept.setdefault((name, rows["sample"].nunique(), pairs), []).append(alpha)
    found: dict[tuple[str, int, int], list[str]] = {}
    for (name, samples, pairs), alphas in swept.items():
        told = ", ".join(f"{alpha:g}" for alpha in sorted(alphas))
        found.setdefault((told, samples, pairs), []).append(name)
    return found
