"""Format estimates, differences and p-values in the same way in tables, texts and captions."""

from __future__ import annotations

import math
from typing import Any

import pandas

from . import intervals


def counted(number: int, noun: str) -> str:
    """Return a number and its noun, in the plural where needed."""
    return f"{number} {noun}" + "s" * (number != 1)


def power_sentence(families: int, tests: int = 1) -> str:
    """Say what a sweep over this many families of pairs can show, in one of this many tests."""
    can = intervals.power(families, tests)
    if pandas.isna(can.deviations):
        return f"{_families(families)}: too few for an interval or a test; sweep more pairs."
    missed = "Smaller effects would probably be missed."
    which = (
        "one test alone" if tests == 1 else f"each of {tests} tests, corrected for their number,"
    )
    told = (
        f"With {_families(families)}, {which} can detect, with 80 % power at the 5 % level, a mean "
        f"change of {can.deviations:.2g} standard deviations of the families' differences"
    )
    if pandas.isna(can.share):
        return f"{told}; a change in the share of an outcome can never be shown. {missed}"
    return (
        f"{told}, or an outcome that changes in {can.share:.0%} of the families, in all of them in "
        f"the same direction. {missed}"
    )


def format_estimate(row: Any, *, signed: bool = False) -> str:
    """Format a mean with its interval and n; row: an Estimate, or a row with the same columns."""
    row = row._asdict() if isinstance(row, intervals.Estimate) else row
    if row["n"] == 0:
        return "not measured, n = 0"
    return f"{format_interval(row, signed=signed)}, n = {_families(int(row['n']))}"


def format_interval(row: Any, *, signed: bool = False) -> str:
    """Format a mean with its interval, to two significant digits of the interval's half-width."""
    row = row._asdict() if isinstance(row, intervals.Estimate) else row
    sign = "+" if signed else ""
    if pandas.isna(row["lower"]):
        return f"{row['mean']:{sign}.3g} (no interval)"
    half = (row["upper"] - row["lower"]) / 2
    digits = min(6, max(0, 1 - math.floor(math.log10(half)))) if half > 0 else 2
    # Adding zero turns -0.0 into 0.
    mean, low, high = (round(row[part], digits) + 0.0 for part in ("mean", "lower", "upper"))
    form = f"{sign}.{digits}f"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def _families(number: int) -> str:
    return f"{number} family" if number == 1 else f"{number} families"


def format_change(row: Any) -> str:
    """Format a difference with its interval and n, and say so if the interval contains zero."""
    return format_estimate(row, signed=True) + "; the interval contains zero" * contains_zero(row)


def format_test(row: Any, p: float) -> str:
    """Format a difference with interval, n and corrected p-value; say where these disagree."""
    told = f"{format_change(row)}, {format_p_value(p)}"
    if p >= 1 - intervals.LEVEL and not contains_zero(row):
        told += ", not significant after correction"
    return told


def against_margin(found: intervals.Estimate, margin: float) -> str:
    """Say what an interval means for a margin, in words."""
    if math.isnan(found.lower):
        return "no interval"
    if intervals.within(found, margin):
        return "equivalent"
    if intervals.not_above(found, margin):
        return "not worse" if found.upper >= 0 else "better"
    if found.lower > margin:
        return "worse by more than the margin"
    return "undecided"


def format_p_value(p: float) -> str:
    """Format a p-value."""
    if pandas.isna(p):
        return "no test"
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def contains_zero(row: Any) -> bool:
    """Whether the interval of an Estimate, or of a row with its columns, contains zero."""
    row = row._asdict() if isinstance(row, intervals.Estimate) else row
    return bool(row["lower"] <= 0 <= row["upper"])
