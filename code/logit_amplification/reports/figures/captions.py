"""What is written below each figure of a sweep: what it shows, with n and 95 % intervals.

Every function takes the rows of all arms and the name of the arm that was swept first.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas

from ...evaluation import stats
from ...logits.vocabulary import MEASURES
from ...statistics.wording import format_change, format_estimate
from .. import report


def texts(frame: pandas.DataFrame, arm: str) -> str:
    """Name the pair whose answers are shown, and how it was found."""
    pair = stats.typical_pair(frame[frame["arm"] == arm])
    return (
        f"Answers to one question, from B over A to larger alpha; arm {arm}, pair {pair}, whose "
        "log p_A - log p_B grows most like the median."
    )


def attribute(frame: pandas.DataFrame, arm: str) -> str:
    """Tell in how many families the declared attribute rises, and by how much beside controls."""
    points = report.attribute_points(frame, arm)
    return "What each pair declares A to have more of than B, or less. " + " ".join(points)


def arms(frame: pandas.DataFrame, arm: str) -> str:
    """Tell the incoherent answers of the first arm, and how the others differ from it."""
    cells = stats.without_b(frame[frame["arm"] == arm])
    shares = stats.dose(cells, "incoherent")["mean"]
    return (
        "Coherence against alpha, a line per arm: likelihood under A, incoherent answers, "
        f"repetition. Incoherent answers of arm {arm} go from {shares.iloc[0]:.0%} at alpha "
        f"{shares.index[0]:g} to {shares.iloc[-1]:.0%} at alpha {shares.index[-1]:g}. "
        f"{' '.join(report.arm_points(frame, arm))}"
    )


def path(frame: pandas.DataFrame, arm: str) -> str:
    """Say what is drawn against what."""
    alphas = stats.treatment(stats.without_b(frame[frame["arm"] == arm]))["alpha"]
    return (
        "What amplification costs (likelihood under A) and what it brings (the contrast of A with "
        "B) against the distance from A: a line per arm, a point per alpha, from "
        f"{alphas.min():g} to {alphas.max():g}."
    )


def outcomes(frame: pandas.DataFrame, arm: str) -> str:
    """Tell every arm's shares at its largest alpha."""
    shares = [
        f"{name}: {'; '.join(_shares(rows))}" for name, rows in frame.groupby("arm", sort=False)
    ]
    return (
        "Incoherent answers, refusals and all others against alpha. At alpha "
        f"{_largest(frame, arm):g}. {'. '.join(shares)}."
    )


def dose_response(frame: pandas.DataFrame, arm: str) -> str:
    """Tell distance, likelihood and contrast at the largest alpha."""
    told = "Distance from A, likelihood and contrast against alpha, with a line per pair."
    return f"{told} {_told(frame, arm, ('kl_amplified_a', 'nll_a', 'log_ratio_a_b'))}"


def lengths(frame: pandas.DataFrame, arm: str) -> str:
    """Tell the length at the largest alpha, and how many answers end by themselves."""
    told = (
        "How long answers are: curves of the answers still going on, the share that ends, and the "
        "change by category."
    )
    return f"{told} {_told(frame, arm, ('n_tokens', 'ended_by_eos'))}"


def logits(frame: pandas.DataFrame, arm: str) -> str:
    """Tell the range, spread and entropy at the largest alpha."""
    told = (
        "Range, spread and entropy of the amplified logits against alpha, and the change of the "
        "spread by category."
    )
    return f"{told} {_told(frame, arm, ('logit_range', 'logit_std', 'entropy'))}"


def _largest(frame: pandas.DataFrame, arm: str) -> float:
    return stats.treatment(frame[frame["arm"] == arm])["alpha"].max()


def _told(frame: pandas.DataFrame, arm: str, names: Sequence[str]) -> str:
    """What measures are at the largest alpha, and how that differs from alpha 0."""
    first, alpha = frame[frame["arm"] == arm], _largest(frame, arm)
    parts = []
    for name in names:
        told = f"{MEASURES[name].described}: {format_estimate(stats.dose(first, name).loc[alpha])}"
        changes = stats.paired_difference(first, name)
        parts.append(f"{told}, against alpha 0 {format_change(changes.loc[alpha])}")
    return f"Arm {arm}, alpha {alpha:g}: {'; '.join(parts)}."


def _shares(rows: pandas.DataFrame) -> list[str]:
    alpha = stats.treatment(rows)["alpha"].max()
    return [
        f"{MEASURES[name].described} {format_estimate(stats.dose(rows, name).loc[alpha])}"
        for name in ("other", "refusal", "incoherent")
        if alpha in stats.dose(rows, name).index
    ]
