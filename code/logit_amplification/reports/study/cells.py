"""The table cells of docs/RESULTS_ANALYSIS.md, with every number formatted as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas

from ...evaluation import outcomes, specificity, stats
from ...statistics import intervals
from ...statistics.wording import against_margin, format_change, format_interval, format_test
from .tables import (
    BASE,
    DISTANCES,
    LIMITS,
    SHORT,
    Study,
    a_minus_b,
    arm_at_distance,
    arm_change,
    change,
    excess,
    law,
    rates,
    shared_draws,
)

Cells = list[list[Any]]


def heads(numbers: Sequence[float], of: str = "alpha") -> list[str]:
    """Return a column header for every number."""
    return [f"{of} {number:g}" for number in numbers]


def dose_cells(study: Study, names: Sequence[str], alphas: Sequence[float]) -> Cells:
    """Return a row per measure of `full`: its mean at every alpha."""
    doses = {name: stats.dose(study.full, name) for name in names}
    return [
        [SHORT[name], *(format_interval(table.loc[alpha]) for alpha in alphas)]
        for name, table in doses.items()
    ]


def attribute_cells(study: Study, alphas: Sequence[float]) -> Cells:
    """Return a row per category: what is declared, A minus B, and the change at each alpha.

    Values are in standard deviations over unamplified texts, intervals over the families of a
    category.
    """
    rows = []
    own = study.own_contrasts
    for category, cells in [("all", own), *own.groupby("category", sort=False)]:
        table = stats.by_family_and_alpha(cells, "z")
        named = (
            ", ".join(sorted(cells["measure"].unique())) if category != "all" else "each pair's own"
        )
        told = [format_interval(a_minus_b(cells), signed=True)]
        told += [_signed(table[alpha] - table[0.0]) for alpha in alphas]
        rows.append([category, named, cells["family"].nunique(), *told])
    return rows


def _signed(values: pandas.Series) -> str:
    return format_interval(intervals.interval(values), signed=True)


def comparison_cells(comparisons: Sequence[specificity.Comparison]) -> Cells:
    """Return a row per distance and control: the effects of pairs and control, their difference."""
    return [
        [
            *(f"{c.distance:g}", f"`{c.control}`"),
            *(format_interval(one, signed=True) for one in (c.pair, c.other)),
            format_test(c.difference, c.p),
        ]
        for c in comparisons
    ]


def slope_cells(study: Study) -> Cells:
    """Return a row per control: the pairs' slope minus the control's in the mixed model."""
    return [[f"`{s.control}`", format_test(s.slope, s.p)] for s in study.slopes]


def reading_cells(study: Study) -> Cells:
    """Return a row per question: how the readings agree, and how our attribute agrees with them."""
    rows = []
    for row in study.readings.to_dict("records"):
        kappa = f"{row['kappa']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]"
        scored = ["", ""]
        if isinstance(row["attribute"], str):
            scored = [row["attribute"], f"{row['right']:.2f} of {int(row['n_agreed'])}"]
        rows.append([row["question"], int(row["n"]), f"{row['agreed']:.2f}", kappa, *scored])
    return rows


def error_cells(found: pandas.DataFrame) -> Cells:
    """Return a row per kind of labelled answer: how it was scored, and the share of errors."""
    counts = ["used for the limits", "kind", "is", "n"]
    counts += [f"called {label}" for label in outcomes.LABELS]
    return [
        [*row[counts], f"{row['errors']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]"]
        for _, row in found.iterrows()
    ]


def rate_cells(study: Study, label: str, cells: pandas.DataFrame) -> Cells:
    """Return a row per alpha: the observed share of an outcome, and the corrected rate."""
    return [
        [f"{alpha:g}", format_interval(observed), format_interval(behind)]
        for alpha, (observed, behind) in rates(study, label, cells).items()
        if alpha >= 0
    ]


def margin_cells(study: Study) -> Cells:
    """Return a row per alpha of `full`: changes from alpha 0, and the verdicts on the margins."""
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
    """Return a row per arm: the share of incoherent answers for other limits on the excess NLL."""
    rows = []
    frame = shared_draws(study, [BASE, *arms])
    for arm in (BASE, *arms):
        cells = frame[(frame["arm"] == arm) & (frame["alpha"] == alpha)]
        # The evidence of an incoherent answer names every limit that it exceeds.
        otherwise = cells["evidence"].str.contains("repeated|non-words|no text")
        otherwise &= cells["outcome"] == "incoherent"
        beyond = [(otherwise | (excess(study, cells) > limit)).astype(float) for limit in LIMITS]
        shares = [stats.estimate(cells.assign(incoherent=b), "incoherent") for b in beyond]
        rows.append([f"`{arm}`", *map(format_interval, shares)])
    return rows


def arm_cells(study: Study, arms: Sequence[str], alpha: float) -> Cells:
    """Return a row per arm minus `full`: at one alpha, and at an equal distance, with verdicts."""
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
                format_change(equal) if equal else "no alphas near this distance",
                against_margin(equal, intervals.MARGIN_NLL) if equal else "",
            ]
        )
    return rows


def law_cells(study: Study) -> Cells:
    """Return a row per fill, list length and alpha, sorted by gap x alpha."""
    return [
        [f"`{r.arm}`", r.k, f"{r.gap:.1f}", f"{r.alpha:g}", f"{r.gap_alpha:.1f}", _of_row(r)]
        for r in law(study).itertuples()
    ]


def _of_row(row: Any) -> str:
    return format_interval({"mean": row.nll_a, "lower": row.lower, "upper": row.upper})


def graded_cells(study: Study) -> Cells:
    """Return a row per pair of the category `graded`: KL(A || B), and how far its text moves."""
    full = stats.treatment(study.full)
    full = full[full["category"] == "graded"]
    apart, moved = stats.by_pair(full, "kl_a_b")[0.0], stats.by_pair(full, "kl_amplified_a")
    return [
        [name, f"{apart[name]:.2f}", *(f"{moved.loc[name, a]:.2f}" for a in study.amplified)]
        for name in apart.index
    ]


def type_cells(study: Study, alpha: float) -> Cells:
    """Return a row per category: changes of `full` from alpha 0 at one alpha."""
    names = ("log_ratio_a_b", "nll_a", "incoherent")
    return [
        [category, *(format_change(change(study, name, alpha, cells).row) for name in names)]
        for category, cells in stats.treatment(study.full).groupby("category", sort=False)
    ]


def distance_cells(study: Study) -> Cells:
    """Return a row per distance: the alphas at which the pairs reach it."""
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
    """Return, by alphas, samples and pairs, the arms that were swept in this way, and on what."""
    swept: dict[tuple[str, int, int], list[float]] = {}
    frame = study.generations
    kinds = frame.assign(kind=frame["control"].where(frame["control"] != "null", ""))
    for (arm, control, alpha), rows in kinds.groupby(["arm", "kind", "alpha"], sort=False):
        name = f"`{arm}`" + f" on `{control}` control pairs" * bool(control)
        pairs = rows.loc[rows["control"] != "null", "pair_id"].nunique()
        swept.setdefault((name, rows["sample"].nunique(), pairs), []).append(alpha)
    found: dict[tuple[str, int, int], list[str]] = {}
    for (name, samples, pairs), alphas in swept.items():
        told = ", ".join(f"{alpha:g}" for alpha in sorted(alphas))
        found.setdefault((told, samples, pairs), []).append(name)
    return found


def hesitant_cells(study: Study) -> Cells:
    """Return a row per kind of pair: the hesitant adapter's refusals, corrected where possible."""
    rows = []
    for kind, lines in study.hesitant.groupby("pairs", sort=False):
        told = []
        for line in lines.to_dict("records"):
            known = not math.isnan(line["corrected"])
            names = ("corrected", "corrected lower", "corrected upper")
            names = names if known else ("refusal", "lower", "upper")
            mean, low, high = (100 * line[name] for name in names)
            told.append(f"{mean:.0f} % [{low:.0f}, {high:.0f}]")
        rows.append([kind, *told])
    return rows
