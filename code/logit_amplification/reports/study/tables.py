"""What docs/RESULTS_ANALYSIS.md says, estimated from the tables of the study; no prose, no torch.

What a sentence of the template needs is a number here, an estimate, or a difference with its test.
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

from ...errors import BadInput
from ...evaluation import matching, outcomes, specificity, stats
from ...evaluation.calibration import AMPLIFIED
from ...logits.vocabulary import FIXED_FILLS, GAPS, MEASURES
from ...statistics import correction, intervals
from ...statistics.intervals import Estimate
from ...statistics.wording import against_margin, contains_zero, format_test

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
    hesitant: pandas.DataFrame | None = None  # refusals of a model that refuses, if made

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

    @property
    def own_contrasts(self) -> pandas.DataFrame:
        """Those of `contrasts` that are the pairs' own, without controls."""
        return self.contrasts[self.contrasts["kind"] == specificity.PAIR]

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
    tables[0] = tables[0].copy()  # in few blocks of memory, which pandas selects rows from faster
    # A sign in front of an attribute is no formula; the CSV has an apostrophe there.
    tables[0]["attribute"] = tables[0]["attribute"].str.removeprefix("'")
    refusals = Path(folder).parent / "organisms" / "refusals.csv"
    hesitant = pandas.read_csv(refusals) if refusals.is_file() else None
    return Study(run, *tables, hesitant)


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
    cells = study.full if cells is None else cells
    row = stats.paired_difference(cells[cells["alpha"].isin([0.0, alpha])], measure).loc[alpha]
    return Tested(row, row["p"])


def arm_change(study: Study, measure: str, arm: str, alpha: float) -> Tested:
    """An arm minus `full`, at the same alpha, over their common draws."""
    cells = study.generations[study.generations["alpha"] == alpha]
    row = stats.arm_difference(cells, measure, arm, BASE).loc[alpha]
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


def primary(study: Study) -> list[specificity.Comparison]:
    """The comparisons with the controls at the primary distance."""
    return [c for c in study.comparisons if c.distance == specificity.PRIMARY_DISTANCE]


def verdict(study: Study) -> str:
    """Whether what grows is the contrast: specific, partly, or unspecific; or too far to say."""
    at = primary(study)
    won = [c for c in at if c.is_exceeded]
    if not at:
        return "not compared"
    grows = at[0].pair.lower > 0
    if len(won) == len(at) == len(specificity.CONTROLS) and grows:
        return "specific"
    return "partly specific" if won and grows else "not shown to be specific"


def a_minus_b(cells: pandas.DataFrame) -> Estimate:
    """The declared attribute of A alone minus that of B alone; cells: of `Study.own_contrasts`."""
    table = stats.by_family_and_alpha(cells, "z")
    return intervals.interval(table[0.0] - table[-1.0])


def disagreements(study: Study) -> tuple[list[str], list[str]]:
    """The controls that the mixed model and the primary comparison disagree about.

    First those for which only the mixed model shows more growth in the pairs, then those for which
    only the primary comparison does. A control that one of the two lacks is left out.
    """
    compared = {c.control: c.is_exceeded for c in primary(study)}
    modelled = {s.control: specificity.is_more(s.slope, s.p) for s in study.slopes}
    both = [control for control in modelled if control in compared]
    only_modelled = [name for name in both if modelled[name] and not compared[name]]
    return only_modelled, [name for name in both if compared[name] and not modelled[name]]


def reach(study: Study, kind: str) -> float:
    """How many nats beyond alpha 0 the generations of a kind of contrast get, on average."""
    far = matching.dose(study.contrasts[study.contrasts["kind"] == kind])
    return float(far.max() - far[0.0])


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
    return "it is so rare that it cannot be distinguished from the scorer's errors"


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


def excess(study: Study, cells: pandas.DataFrame) -> pandas.Series:
    """The NLL above the usual, as `outcomes.excess_nll` has it."""
    shrunk = cells["n_tokens"] / (cells["n_tokens"] + outcomes.SHORT)
    return (cells["nll_a"] - study.run["usual_nll"]) * shrunk
