"""What a figure shows, in one plain sentence: its title. Other data give other sentences."""

from __future__ import annotations

import pandas

from ...evaluation import calibration, specificity, stats
from ...logits.vocabulary import MEASURES
from ...statistics import correction, intervals
from ...statistics.wording import against_margin, contains_zero, format_interval

NOT_MEASURABLE = (
    "Not measurable on this model:\nno share here can be told from\nthe phrase list's own errors"
)


def changed(frame: pandas.DataFrame, name: str) -> str:
    """Say whether a measure rises or falls at the largest alpha, against alpha 0."""
    largest, measure = stats.treatment(frame)["alpha"].max(), MEASURES[name]
    row = _difference(frame, name)
    if row is None:
        return f"{measure.short[0].upper()}{measure.short[1:]} by alpha"
    by = f"{format_interval(row, signed=True)} {measure.unit}".rstrip()
    if contains_zero(row):
        return f"No change of {_called(name)} is shown at alpha {largest:g} ({by})"
    direction = "rises" if row["mean"] > 0 else "falls"
    called = _called(name)
    return f"{called[0].upper()}{called[1:]} {direction} at alpha {largest:g} ({by})"


def _called(name: str) -> str:
    """A measure as the subject of a sentence."""
    names = {
        "log_ratio_a_b": "the contrast log p_A - log p_B",
        "n_tokens": "the length of answers",
        "logit_std": "the spread of the amplified logits",
    }
    return names.get(name, f"the {MEASURES[name].short}")


def attribute(frame: pandas.DataFrame, arm: str = "full") -> str:
    """Say under which controls the declared attribute grows less, or how often it rises.

    frame: of all arms.
    """
    rows = specificity.by_kind(frame, arm)
    own = rows[rows["kind"] == specificity.PAIR]
    largest = own["alpha"].max()
    found = specificity.directions(own, largest)
    if found.empty or largest <= 0:
        return "The declared attribute"
    if len(found) < intervals.FEWEST_UNITS:
        return "The declared attribute: too few pairs to conclude anything"
    compared = specificity.compare(
        specificity.contrasts(frame, arm), [specificity.PRIMARY_DISTANCE]
    )
    if not compared:
        up, down = (found > 0).sum(), (found < 0).sum()
        told = f"The declared attribute rises in {up} families and falls in {down}"
        shown = intervals.sign_flip(found) < 1 - intervals.LEVEL
        return f"{told} at alpha {largest:g}" + ": no change is shown" * (not shown)
    won = [c.control for c in compared if c.is_exceeded]
    lost = [c.control for c in compared if not c.is_exceeded]
    if not won:
        return f"The declared attribute is not shown to grow more than under {_listed(lost)}"
    told = f"The declared attribute grows more than under {_listed(won)}"
    return f"{told}; not shown for {_listed(lost)}" if lost else told


def _listed(controls: list[str]) -> str:
    """Controls as a list in a sentence."""
    names = {"paraphrase": "A's paraphrase", "shuffled": "other pairs' B"}
    names |= {"random_direction": "a random direction"}
    *others, last = (names[control] for control in controls)
    return f"{', '.join(others)} and {last}" if others else last


def likelihood(frame: pandas.DataFrame) -> str:
    """Say up to which alpha the text stays as likely under A as the margin asks for."""
    table = stats.paired_difference(frame, "nll_a")
    table = table[table.index > 0]
    if table.empty or table["upper"].isna().all():
        return "Distance, likelihood and contrast by alpha"
    if table["n"].max() < intervals.FEWEST_UNITS:
        return "Distance, likelihood and contrast by alpha: too few pairs to conclude anything"
    margin = intervals.MARGIN_NLL
    kept = []
    for alpha, row in table.iterrows():
        found = intervals.Estimate(*(row[part] for part in stats.COLUMNS))
        if against_margin(found, margin) not in ("equivalent", "not worse", "better"):
            break
        kept.append(alpha)
    if kept:
        return (
            f"Up to alpha {kept[-1]:g} text stays as likely under A as at alpha 0, within "
            f"{margin:g} nats per token"
        )
    return (
        f"No alpha is shown to keep text as likely under A as at alpha 0, within {margin:g} nats "
        "per token"
    )


def incoherence(frame: pandas.DataFrame) -> str:
    """Say how many answers are incoherent at the largest alpha, arm by arm, and at alpha 0."""
    cells = stats.treatment(frame)
    largest = cells["alpha"].max()
    shares = {
        arm: stats.dose(rows, "incoherent")["mean"]
        for arm, rows in cells.groupby("arm", sort=False)
    }
    told = [f"{row[largest]:.0%} ({arm})" for arm, row in shares.items() if largest in row]
    if not told:
        return f"Incoherent answers at alpha {largest:g}: none came to an end"
    start = next((row[0.0] for row in shares.values() if 0.0 in row and largest > 0), None)
    before = f", {start:.0%} at alpha 0" if start is not None else ""
    row = _difference(frame[frame["arm"] == cells["arm"].iloc[0]], "incoherent")
    if row is not None and contains_zero(row):
        before += "; no change is shown" + (f" ({cells['arm'].iloc[0]})" if len(told) > 1 else "")
    return f"Incoherent answers at alpha {largest:g}: {', '.join(told)}{before}"


def refusals_not_measurable(frame: pandas.DataFrame) -> str | None:
    """Say that no arm's share of refusals can be told from the scorer's errors; None if one can.

    The errors are those of the phrase list on held-out labelled answers (`calibration`).
    """
    errors = calibration.refusal_errors()
    rates = []
    for _, cells in stats.treatment(frame).groupby("arm", sort=False):
        for _, row in stats.dose(cells, "refusal").iterrows():
            share = intervals.Estimate(*row[list(stats.COLUMNS[:3])], int(row["n"]))
            rates.append(correction.corrected(share, errors))
    return None if correction.is_measurable(rates) else NOT_MEASURABLE


def _difference(frame: pandas.DataFrame, name: str) -> pandas.Series | None:
    table = stats.paired_difference(frame, name)
    largest = stats.treatment(frame)["alpha"].max()
    if largest <= 0 or largest not in table.index or pandas.isna(table.loc[largest, "lower"]):
        return None
    return table.loc[largest]
