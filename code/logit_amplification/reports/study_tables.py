"""What docs/RESULTS_ANALYSIS.md says, estimated from the tables of the study; no prose, no torch.

A cell of a table is a text already: one form of numbers for all tables. What a sentence of the
template needs is left as a number, a row of an estimate, or a difference with its test.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas

from ..errors import BadInput
from ..evaluation import outcomes, stats
from ..evaluation.wording import contains_zero, format_change, format_estimate, format_test
from ..logits.vocabulary import MEASURES
from .report import PRIMARY, SECONDARY

TABLES = ("generations", "calibration", "alpha_profiles", "alpha_at_distance", "argmax_changes")
TARGETS = (0.5, 1.0, 2.0)  # nats of KL(amplified || A)
BASE = "full"
DISTANCES = tuple(f"alpha at {nats:g} nats" for nats in TARGETS)
CAREFUL = ("refusal boundary", "jailbreak framing")  # where a careful model may refuse
ARM_MEASURES = (PRIMARY, "incoherent", "repeated_4gram_share")
LIMITS = (4.0, 4.3, outcomes.NLL_LIMIT, 5.0, 5.3)  # of NLL, had it been another
KINDS = ("candidates", "api_intersection", "api_floor", "api_spread", "api_sentinel")
LENGTHS = (5, 20, 100, 1000)  # of the lists of these kinds of arms
SHORT = {name: measure.label for name, measure in MEASURES.items()}
Cells = list[list[Any]]
ArmTests = dict[tuple[str, str], "Tested"]  # by arm and measure
AlphaTests = dict[tuple[str, float], "Tested"]  # by measure and alpha


@dataclass(frozen=True)
class Study:
    """The tables of `data/study/`: see `TABLES`; and what the run was."""

    run: dict[str, Any]
    generations: pandas.DataFrame
    calibration: pandas.DataFrame
    alpha_profiles: pandas.DataFrame
    alpha_at_distance: pandas.DataFrame
    argmax_changes: pandas.DataFrame

    def arm(self, name: str) -> pandas.DataFrame:
        """The generations of one arm, controls included."""
        return self.generations[self.generations["arm"] == name]

    def alphas(self, name: str = BASE, least: float = -math.inf) -> list[float]:
        """The alphas of one arm that are not below `least`."""
        return [alpha for alpha in sorted(self.arm(name)["alpha"].unique()) if alpha >= least]

    @property
    def full(self) -> pandas.DataFrame:
        """The generations that all others are held against, controls included."""
        return self.arm(BASE)

    @property
    def arms(self) -> list[str]:
        """The arms of the study that are held against `full`."""
        return [arm for arm in self.generations["arm"].unique() if arm != BASE]

    @property
    def main_arms(self) -> list[str]:
        """Those of them whose lists, if they have any, have 20 entries."""
        return [arm for arm in self.arms if "_top" not in arm or arm == "candidates_top20"]

    @property
    def controls(self) -> list[str]:
        """The controls of `full`, but for the null pair."""
        return [name for name in self.full["control"].unique() if name not in ("", "null")]

    @property
    def amplified(self) -> list[float]:
        """The alphas of `full` above 0."""
        return [alpha for alpha in self.alphas() if alpha > 0]

    @property
    def largest(self) -> float:
        """The largest alpha of the study."""
        return float(self.generations["alpha"].max())

    @property
    def grid(self) -> list[float]:
        """The alphas of the profiles."""
        return sorted(self.alpha_profiles["alpha"].unique())


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
        if contains_zero(self.row) or self.p >= 1 - stats.LEVEL:
            return "not shown"
        return "more" if self.row["mean"] > 0 else "less"


def _corrected(rows: dict[Any, Any]) -> dict[Any, Tested]:
    """The rows with their p-values after Holm's correction over all of them."""
    p_values = stats.holm([row["p"] for row in rows.values()])
    return dict(zip(rows, map(Tested, rows.values(), p_values), strict=True))


def arm_tests(study: Study) -> ArmTests:
    """Each main arm's difference to `full` at the largest alpha."""
    return _corrected(
        {
            (arm, name): _arm_difference(study, name, arm)
            for arm in study.main_arms
            for name in ARM_MEASURES
        }
    )


def alpha_tests(study: Study) -> AlphaTests:
    """The differences of `full` to alpha 0."""
    tables = {name: stats.paired_difference(study.full, name) for name in (PRIMARY, *SECONDARY)}
    return _corrected(
        {(name, a): row for name, table in tables.items() for a, row in table.iterrows() if a > 0}
    )


def list_tests(study: Study) -> dict[tuple[str, str], list[Tested]]:
    """By two arms, NLL and incoherent answers: two ways to fill a gap, two lengths of a list."""
    compared = [("api_sentinel", "api_floor"), ("api_sentinel_top1000", "api_sentinel_top5")]
    names = (PRIMARY, "incoherent")
    found = _corrected(
        {(both, name): _arm_difference(study, name, *both) for both in compared for name in names}
    )
    return {both: [found[both, name] for name in names] for both in compared}


def gap_tests(study: Study) -> dict[float, Tested]:
    """By alpha: the rank correlation of KL(A || B) at alpha 0 with how far the answers moved."""
    apart, moved = _distances(study)
    found = {a: stats.rank_correlation(apart, moved[a]) for a in moved.columns if a > 0}
    return _corrected({a: row._asdict() | {"p": p} for a, (row, p) in found.items()})


def against(study: Study, control: str, measure: str = PRIMARY) -> Tested | None:
    """The pairs minus a control that shares their A and random numbers, at the largest alpha."""
    own, other = (stats.treatment(study.full, name) for name in ("", control))
    other = other.assign(pair_id=other["pair_id"].str.removesuffix(f"~{control}"))
    sides = (side[side["alpha"] == study.largest] for side in (own, other))
    both = stats.common_draws(*sides, measure)
    if not len(both):
        return None
    row = stats.difference(both["one"], both["other"], measure)
    return Tested(row._asdict(), stats.sign_flip(both["one"] - both["other"]))


def _arm_difference(study: Study, measure: str, arm: str, base: str = BASE) -> pandas.Series:
    return stats.arm_difference(study.generations, measure, arm, base).loc[study.largest]


def _distances(study: Study) -> tuple[pandas.Series, pandas.DataFrame]:
    """By pair: KL(A || B) at alpha 0, and KL(amplified || A) at every alpha."""
    full = stats.treatment(study.full)
    return stats.by_pair(full, "kl_a_b")[0.0], stats.by_pair(full, "kl_amplified_a")


# ------------------------------------------------------------------------------- what sentences say


def commonest_type(study: Study) -> dict[str, Any] | None:
    """The type that most incoherent answers of `full` are of, and the share without that type."""
    rows = stats.treatment(study.full)
    rows = rows[rows["alpha"] == study.largest]
    types = rows.loc[rows["incoherent"] == 1, "category"].value_counts()
    if not len(types):
        return None
    without = stats.estimate(rows[rows["category"] != types.index[0]], "incoherent")
    return {"name": types.index[0], "n": types.iloc[0], "of": types.sum(), "without": without}


def more_incoherent(tests: ArmTests) -> list[str]:
    """The arms that are shown to be more often incoherent than `full`."""
    return [arm for arm, name in tests if name == "incoherent" and tests[arm, name].word == "more"]


def collapse(study: Study, arm: str) -> float:
    """The alpha from which on an arm's answers are more often incoherent than those of `full`."""
    table = stats.arm_difference(study.generations, "incoherent", arm, BASE)
    table = table[table.index > 0]
    fewer = table[table["lower"] <= 0]
    return float(table.index[len(fewer)])


def same_texts(study: Study, arm: str, other: str) -> tuple[int, int]:
    """How many texts of two arms are the same at the largest alpha, and of how many."""
    cells = (stats.treatment(study.arm(name)) for name in (arm, other))
    return _same(*(side[side["alpha"] == study.largest] for side in cells))


def alpha_minus_one(study: Study) -> tuple[int, int]:
    """How many texts at alpha -1 equal those of the swapped pair at alpha 0, and of how many."""
    own, other = (stats.treatment(study.full, name) for name in ("", "swapped"))
    other = other.assign(pair_id=other["pair_id"].str.removesuffix("~swapped"))
    return _same(own[own["alpha"] == -1], other[other["alpha"] == 0])


def _same(one: pandas.DataFrame, other: pandas.DataFrame) -> tuple[int, int]:
    texts = [side.set_index(["pair_id", "sample"])["text"] for side in (one, other)]
    both = pandas.concat(texts, axis=1, join="inner")
    return int((both.iloc[:, 0] == both.iloc[:, 1]).sum()), len(both)


def unseen(rates: pandas.DataFrame) -> dict[str, pandas.Series]:
    """By kind of labelled answer: the error rates of those written after the limits were fixed."""
    return {row["kind"]: row for _, row in rates.iterrows() if row["written"] == "after"}


def designs(study: Study) -> dict[tuple[str, int], list[str]]:
    """By alphas and samples: the arms, and those of controls, that were swept so."""
    found: dict[tuple[str, int], list[str]] = {}
    frame = study.generations
    kinds = frame.assign(kind=frame["control"].where(frame["control"] != "null", ""))
    for (arm, control), rows in kinds.groupby(["arm", "kind"], sort=False):
        alphas = ", ".join(f"{alpha:g}" for alpha in sorted(rows["alpha"].unique()))
        name = f"`{arm}`" + f" of the control `{control}`" * bool(control)
        found.setdefault((alphas, rows["sample"].nunique()), []).append(name)
    return found


def null_texts(study: Study) -> pandas.Series:
    """The number of different texts in each draw of the null pair, over all alphas."""
    null = study.full[study.full["control"] == "null"]
    return null.groupby(["pair_id", "sample"])["text"].nunique()


def changed_positions(study: Study) -> list[tuple[float, float, stats.Estimate]]:
    """By alpha: the grid's nearest, and the share of positions with another likeliest token."""
    profiles = study.alpha_profiles
    changed = profiles.pivot_table(index="alpha", columns="pair_id", values="changed_share")
    nearest = {a: min(study.grid, key=lambda near: abs(near - a)) for a in study.amplified}
    return [(a, near, stats.interval(changed.loc[near])) for a, near in nearest.items()]


# ----------------------------------------------------------------------------------------- tables


def heads(numbers: Sequence[float], of: str = "alpha") -> list[str]:
    """A column's head for every number."""
    return [f"{of} {number:g}" for number in numbers]


def error_cells(rates: pandas.DataFrame) -> Cells:
    """A row per kind of labelled answer: what it was called, and the share of errors."""
    counts = ["written", "kind", "is", "n", *(f"called {label}" for label in outcomes.LABELS)]
    return [
        [*row[counts], f"{row['errors']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]"]
        for _, row in rates.iterrows()
    ]


def dose_cells(study: Study, name: str, alphas: Sequence[float]) -> Cells:
    """A row per main arm: a measure at every alpha, over the draws that all arms have."""
    arms = [BASE, *study.main_arms]
    frame = stats.treatment(study.generations[study.generations["arm"].isin(arms)])
    shared = frame[frame["sample"] < frame.groupby("arm")["sample"].nunique().min()]
    rows = []
    for arm in arms:
        table = stats.dose(shared[shared["arm"] == arm], name).reindex(alphas)
        told = [
            "not swept" if pandas.isna(row["n"]) else _brief(row) for _, row in table.iterrows()
        ]
        rows.append([f"`{arm}`", *told, int(table["n"].max())])
    return rows


def arm_cells(tests: ArmTests) -> Cells:
    """A row per main arm: its differences to `full`."""
    arms = dict.fromkeys(arm for arm, _ in tests)
    return [[f"`{arm}`", *(tests[arm, name] for name in ARM_MEASURES)] for arm in arms]


def limit_cells(study: Study) -> Cells:
    """A row per main arm: the share of incoherent answers, were the limit of NLL another."""
    rows = []
    for arm in (BASE, *study.main_arms):
        cells = stats.treatment(study.arm(arm))
        cells = cells[cells["alpha"] == study.largest]
        # The evidence of an incoherent answer names every limit that it is beyond.
        otherwise = cells["evidence"].str.contains("repeated|non-words|no text")
        otherwise &= cells["outcome"] == "incoherent"
        beyond = [(otherwise | (cells["nll_a"] > limit)).astype(float) for limit in LIMITS]
        shares = [stats.estimate(cells.assign(incoherent=b), "incoherent") for b in beyond]
        rows.append([f"`{arm}`", *map(_brief, shares)])
    return rows


def list_cells(study: Study) -> Cells:
    """A row per kind of list and its length: NLL minus that of `full`, incoherent answers."""
    rows = []
    for kind in KINDS:
        for length in LENGTHS:
            arm = kind if length == 20 and kind != "candidates" else f"{kind}_top{length}"
            if arm in study.arms:
                share = stats.dose(study.arm(arm), "incoherent").loc[study.largest]
                row = _arm_difference(study, PRIMARY, arm)
                rows.append([kind, length, format_change(row), format_estimate(share)])
    return rows


def left_out_cells(study: Study) -> Cells:
    """A row per measure of what lists of 20 leave out, at every alpha of `full`."""
    names = ("outside_top20_a", "outside_top20_b", "overlap_top20", "reachable_top20")
    doses = {name: stats.dose(study.full, name) for name in names}
    return [[SHORT[n], *(_brief(row) for _, row in dose.iterrows())] for n, dose in doses.items()]


def refusal_cells(study: Study) -> Cells:
    """A row per alpha: outcomes, and refusals minus alpha 0; careful pairs first, then all."""
    rows = []
    careful = study.full[study.full["category"].isin(CAREFUL)]
    for label, frame in (("careful", careful), ("all", study.full)):
        doses = [stats.dose(frame, name) for name in outcomes.LABELS]
        changed = stats.paired_difference(frame, "refusal")
        for alpha in study.alphas(least=0):
            told = "" if alpha == 0 else format_change(changed.loc[alpha])
            rows.append([label, f"{alpha:g}", *(_brief(dose.loc[alpha]) for dose in doses), told])
    return rows


def alpha_cells(study: Study, tests: AlphaTests) -> Cells:
    """A row per measure: its differences to alpha 0; of KL, which is 0 there, without a test."""
    alphas = study.amplified
    moved = stats.paired_difference(study.full, "kl_amplified_a")
    return [
        [SHORT["kl_amplified_a"], *(format_change(moved.loc[a]) for a in alphas)],
        *([SHORT[n], *(tests[n, a] for a in alphas)] for n in (PRIMARY, *SECONDARY)),
    ]


def gap_cells(study: Study) -> Cells:
    """A row per pair of the family `graded`: how far A and B are apart, how far it moves."""
    apart, moved = _distances(study)
    reached = study.alpha_at_distance.set_index("pair_id")[DISTANCES[0]]
    return [
        [
            *(name, f"{apart[name]:.3g}"),
            *(f"{moved.loc[name, alpha]:.3g}" for alpha in study.amplified),
            "not reached" if math.isnan(reached[name]) else f"{reached[name]:.2f}",
        ]
        for name in apart.index
        if name.startswith("graded-")
    ]


def type_cells(study: Study) -> Cells:
    """A row per type of prompt: NLL and incoherent answers at the largest alpha minus alpha 0."""
    names = (PRIMARY, "incoherent")
    return [
        [
            category,
            *(format_change(stats.paired_difference(g, n).loc[study.largest]) for n in names),
        ]
        for category, g in stats.treatment(study.full).groupby("category", sort=False)
    ]


def control_cells(study: Study) -> Cells:
    """A row per measure and alpha that all controls have: pairs and controls, minus alpha 0."""
    full, controls = study.full, study.controls
    rows = []
    for name in ("kl_amplified_a", PRIMARY, "incoherent", "refusal", "repeated_4gram_share"):
        tables = [stats.paired_difference(full, name, control) for control in ("", *controls)]
        for alpha in study.amplified:
            if set(controls) <= set(full.loc[full["alpha"] == alpha, "control"]):
                told = [format_change(table.loc[alpha]) for table in tables]
                rows.append([SHORT[name], f"{alpha:g}", *told])
    return rows


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


def crn_variance_cells(study: Study) -> Cells:
    """A row per measure and alpha: variances with common and independent numbers, their ratio."""
    rows = []
    for name in (PRIMARY, "n_tokens", "repeated_4gram_share"):
        for alpha, row in stats.crn_variance(study.full, name).iterrows():
            gain = f"{row['common'] / row['independent']:.2f}" if row["independent"] else ""
            shown = [f"{row['common']:.3g}", f"{row['independent']:.3g}", gain, int(row["n"])]
            rows.append([SHORT[name], f"{alpha:g}", *shown])
    return rows


def _brief(row: Any) -> str:
    """A mean with its interval, where n stands elsewhere in the table."""
    mean, lower, upper, _ = row
    if pandas.isna(lower):
        return f"{mean:.3g}"
    return f"{mean:.3g} [{lower:.3g}, {upper:.3g}]"
