"""Estimates, differences and p-values in words: one form for every table, text and caption."""

from __future__ import annotations

from typing import Any

import pandas

from . import stats


def counted(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it must be."""
    return f"{number} {noun}" + "s" * (number != 1)


def power_sentence(pairs: int) -> str:
    """Say what a sweep over so many pairs can show."""
    can = stats.power(pairs)
    if pandas.isna(can.deviations):
        return f"{counted(pairs, 'pair')}: no interval and no test; sweep more pairs."
    told = (
        f"{pairs} pairs: one test alone can see, with 80 % power at 5 %, a change of "
        f"{can.deviations:.2g} "
        "standard deviations of the pairs' differences in a mean"
    )
    if pandas.isna(can.share):
        return f"{told}, and no change of an outcome's share. Less is not seen."
    return (
        f"{told}, and of {can.share:.0%} of the pairs in an outcome when all change the same way. "
        "Less is not seen."
    )


def format_estimate(row: Any, *, signed: bool = False) -> str:
    """A mean with its interval and n; row: a stats.Estimate or a row of such columns."""
    row = row._asdict() if isinstance(row, stats.Estimate) else row
    number = (lambda value: f"{value:+.3g}") if signed else (lambda value: f"{value:.3g}")
    if row["n"] == 0:
        return "not measured, n = 0 pairs"
    count = f"n = {counted(int(row['n']), 'pair')}"
    if pandas.isna(row["lower"]):
        return f"{number(row['mean'])} (no interval), {count}"
    return f"{number(row['mean'])} [{number(row['lower'])}, {number(row['upper'])}], {count}"


def format_change(row: Any) -> str:
    """A difference with its interval and n; and that it contains zero, where it does."""
    return format_estimate(row, signed=True) + "; the interval contains zero" * contains_zero(row)


def format_test(row: Any, p: float) -> str:
    """A difference with its interval, n and corrected p-value, and what that does not show."""
    told = f"{format_change(row)}, {format_p_value(p)}"
    if p >= 1 - stats.LEVEL and not contains_zero(row):
        told += ", not shown after correction"
    return told


def format_p_value(p: float) -> str:
    """A p-value in words."""
    if pandas.isna(p):
        return "no test"
    return f"p = {p:.2g}" if p >= 0.001 else "p < 0.001"


def contains_zero(row: Any) -> bool:
    """Whether the interval of a stats.Estimate, or of a row of such columns, contains zero."""
    row = row._asdict() if isinstance(row, stats.Estimate) else row
    return bool(row["lower"] <= 0 <= row["upper"])
