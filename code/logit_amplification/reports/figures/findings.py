"""What a figure shows, in one plain sentence: its title. Other data give other sentences."""

from __future__ import annotations

import pandas

from ...evaluation import stats
from ...logits.vocabulary import MEASURES
from ...statistics import intervals
from ...statistics.wording import against_margin, contains_zero, format_interval


def changed(frame: pandas.DataFrame, name: str) -> str:
    """Whether a measure rises or falls at the largest alpha, against alpha 0."""
    largest, label = stats.treatment(frame)["alpha"].max(), MEASURES[name].label
    label = label[0].upper() + label[1:]
    row = _difference(frame, name)
    if row is None:
        return f"{label}, by alpha"
    told = f"{format_interval(row, signed=True)} at alpha {largest:g}"
    if contains_zero(row):
        return f"{label}: no change is shown ({told})"
    return f"{label}: {'more' if row['mean'] > 0 else 'less'} with amplification ({told})"


def likelihood(frame: pandas.DataFrame) -> str:
    """Up to which alpha the text stays as likely under A as the margin asks for."""
    table = stats.paired_difference(frame, "nll_a")
    table = table[table.index > 0]
    if table.empty or table["upper"].isna().all():
        return "Distance, likelihood and repetition, by alpha"
    margin = intervals.MARGIN_NLL
    kept = []
    for alpha, row in table.iterrows():
        found = intervals.Estimate(*(row[part] for part in stats.COLUMNS))
        if against_margin(found, margin) not in ("equivalent", "not worse", "better"):
            break
        kept.append(alpha)
    if kept:
        return f"Up to alpha {kept[-1]:g} the text stays within {margin:g} nats of A's likelihood"
    return f"At no alpha is it shown that the text stays within {margin:g} nats of A's likelihood"


def incoherence(frame: pandas.DataFrame) -> str:
    """How many answers are incoherent at the largest alpha, arm by arm."""
    largest = stats.treatment(frame)["alpha"].max()
    shares = {
        arm: stats.dose(cells, "incoherent")["mean"].get(largest)
        for arm, cells in stats.treatment(frame).groupby("arm", sort=False)
    }
    told = ", ".join(f"{share:.0%} ({arm})" for arm, share in shares.items() if share is not None)
    return f"Incoherent answers at alpha {largest:g}: {told or 'none came to an end'}"


def _difference(frame: pandas.DataFrame, name: str) -> pandas.Series | None:
    table = stats.paired_difference(frame, name)
    largest = stats.treatment(frame)["alpha"].max()
    if largest <= 0 or largest not in table.index or pandas.isna(table.loc[largest, "lower"]):
        return None
    return table.loc[largest]
