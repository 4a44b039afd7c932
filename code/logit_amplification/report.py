"""From records to sentences: the summary table and the text artifacts.

Every sentence about an effect carries its n and its 95 % interval, and says so when the interval
contains zero. Nothing here is written by hand for one model: change the data and the text changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from . import stats
from .store import Record, write_atomically, write_report

# A convention, set before any data was seen: 0.5 nats per token is a factor of 1.65 in perplexity.
TOLERATED_NLL_RISE = 0.5
DESCRIBED = {
    "kl_amplified_a": "KL(amplified || A), nats per token",
    "nll_a": "negative log-likelihood under A, nats per token",
    "entropy": "entropy of the amplified distribution, nats",
    "rank_a": "rank of the sampled token under A",
    "implausible_share": "share of tokens below a tenth of A's top probability",
    "repeated_4gram_share": "share of repeated 4-grams",
    "distinct_2": "distinct 2-grams per 2-gram",
    "n_tokens": "answer length, tokens",
    "ended_by_eos": "share of answers that end by themselves",
    "logit_range": "range of the amplified logits",
    "logit_std": "standard deviation of the amplified logits",
}


def write_reports(
    data_dir: Path, run: dict[str, Any], records: Sequence[Record]
) -> tuple[Path, Path, Path]:
    """Write `summary_statistics.csv`, `recommendations.txt` and `detailed_report.txt`."""
    frame = stats.to_frame(records)
    summary = stats.summarise(frame).round(6)
    summary["category"] = summary["category"].map(no_formula)
    table = summary.to_csv(index=False, lineterminator="\n")
    return (
        write_atomically(Path(data_dir) / "summary_statistics.csv", table),
        write_report(data_dir, "recommendations.txt", recommendations(run, records)),
        write_report(data_dir, "detailed_report.txt", detailed_report(run, records)),
    )


def no_formula(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula: an apostrophe in front (OWASP)."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def run_in_words(run: dict[str, Any], records: Sequence[Record]) -> str:
    """Return one line: which model, how many generations, how they were drawn."""
    model, sampling = run["model"], run["sampling"]
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({r["alpha"] for r in records}))
    pairs = {r["pair_id"] for r in records}
    errors = len(records) - len(stats.without_errors(records))
    left_out = f"; {errors} ended with an error and are left out" if errors else ""
    return (
        f"model {model['name']}, quantization {model['quantization']}, {model['dtype']} on "
        f"{model['device']}; {len(records)} generations: {len(pairs)} pairs at alpha {alphas}; "
        f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_new_tokens']} tokens, seed {sampling['seed']}; run {run['id']}{left_out}"
    )


def recommendations(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return the lines of `recommendations.txt`: which alphas did what, for the arm swept first."""
    arm = records[0]["arm"]
    records = [record for record in records if record["arm"] == arm]
    frame = stats.to_frame(records)
    lines = ["RECOMMENDATIONS", run_in_words(run, records), ""]
    if frame["is_null"].all():
        return [*lines, "Only null pairs were swept: nothing can be said about alpha."]
    lines += [f"1. Control. {_null_sentence(records)}", ""]
    lines += [f"2. Where amplification shows. {_change_sentence(records)}", ""]
    lines += [f"3. Where the text stays likely under A. {_likely_sentence(frame)}", ""]
    lines += ["4. What else changed at the largest alpha, against alpha 0 within the same pair:"]
    lines += [
        f"   {DESCRIBED[name]}: {_difference_sentence(frame, name)}"
        for name in ("repeated_4gram_share", "n_tokens", "ended_by_eos", "entropy")
    ]
    lines += ["", "These sentences hold for this model, these prompts and this sampling only."]
    return lines


def detailed_report(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return the lines of `detailed_report.txt`: every measure, per arm, category and alpha."""
    lines = ["DETAILED REPORT", run_in_words(run, records), ""]
    lines += ["Mean over pairs [95 % t interval over pairs]; null pairs stand apart.", ""]
    for arm in dict.fromkeys(record["arm"] for record in records):
        of_arm = [record for record in records if record["arm"] == arm]
        frame = stats.to_frame(of_arm)
        lines += [f"ARM {arm}", "", f"Control. {_null_sentence(of_arm)}", ""]
        if frame["is_null"].all():
            continue
        shares = stats.changed_share(of_arm).drop(index=0.0, errors="ignore")
        lines += ["Pairs with an answer other than at alpha 0 (Wilson interval)"]
        lines += [f"  alpha {alpha:<5g} {_spell(row)}" for alpha, row in shares.iterrows()] + [""]
        for name, description in DESCRIBED.items():
            lines += [description[0].upper() + description[1:], *_measure_lines(frame, name), ""]
        lines += ["By category: KL(amplified || A) and negative log-likelihood under A", ""]
        lines += [*_category_lines(frame), ""]
        lines += ["By pair: KL(A || B) at alpha 0, and KL(amplified || A) per alpha", ""]
        lines += [*_pair_lines(frame), ""]
    return lines


# ------------------------------------------------------------------------------------- sentences


def _null_sentence(records: Sequence[Record]) -> str:
    if not any(record["is_null"] for record in records):
        return "No null pair was swept, so nothing holds the numbers to zero."
    shares = stats.changed_share(records, null=True)["mean"]
    if shares.empty:
        return "The null pair ended with an error, so nothing holds the numbers to zero."
    if shares.max() == 0:
        return "The null pair (A = B) gave the same tokens at every alpha, as it must."
    return "WARNING: the null pair (A = B) changed with alpha. The numbers below cannot be trusted."


def _change_sentence(records: Sequence[Record]) -> str:
    shares = stats.changed_share(records).drop(index=0.0, errors="ignore")
    if shares.empty:
        return "Only alpha 0 was swept."
    half = shares[shares["mean"] >= 0.5]
    if half.empty:
        row = shares.iloc[-1]
        return (
            f"At no alpha did half of the pairs answer otherwise; at {row.name:g}: {_spell(row)}."
        )
    row = half.iloc[0]
    return (
        f"From alpha {row.name:g} on, at least half of the pairs answer otherwise than at alpha 0 "
        f"with the same random numbers: {_spell(row)} (Wilson interval)."
    )


def _likely_sentence(frame: pandas.DataFrame) -> str:
    rise = stats.paired_difference(frame, "nll_a").drop(index=0.0, errors="ignore")
    if rise.empty or rise["upper"].isna().all():
        return "One pair gives no interval; sweep more pairs."
    told = f"the NLL under A rises by less than {TOLERATED_NLL_RISE} nats per token"
    bad = rise[~(rise["upper"] < TOLERATED_NLL_RISE)]
    good = rise if bad.empty else rise[rise.index < bad.index[0]]
    sentence = (
        f"Up to alpha {good.index[-1]:g}, {told} (upper bound): {_spell(good.iloc[-1])}."
        if len(good)
        else f"At no alpha can it be shown that {told}."
    )
    if len(bad):
        sentence += f" At alpha {bad.index[0]:g} it no longer can be shown: {_spell(bad.iloc[0])}."
    return sentence


def _difference_sentence(frame: pandas.DataFrame, name: str) -> str:
    row = stats.paired_difference(frame, name).iloc[-1]
    sentence = f"alpha {row.name:g}: {_spell(row, signed=True)}"
    if row["lower"] <= 0 <= row["upper"]:
        sentence += "; the interval contains zero"
    return sentence


def _spell(row: pandas.Series, *, signed: bool = False) -> str:
    number = (lambda value: f"{value:+.3g}") if signed else (lambda value: f"{value:.3g}")
    if row["n"] == 0:
        return "not measured, n = 0 pairs"
    count = f"n = {int(row['n'])} pair" + ("s" if row["n"] != 1 else "")
    if pandas.isna(row["lower"]):
        return f"{number(row['mean'])} (no interval), {count}"
    return f"{number(row['mean'])} [{number(row['lower'])}, {number(row['upper'])}], {count}"


def _measure_lines(frame: pandas.DataFrame, name: str) -> list[str]:
    table = stats.by_pair(frame[~frame["is_null"]], name)
    differences = stats.paired_difference(frame, name)
    lines = []
    for alpha in table.columns:
        mean, lower, upper = stats.interval(table[alpha])
        row = pandas.Series(
            {"mean": mean, "lower": lower, "upper": upper, "n": table[alpha].count()}
        )
        line = f"  alpha {alpha:<5g} {_spell(row)}"
        if alpha != 0:
            line += f"; against alpha 0: {_spell(differences.loc[alpha], signed=True)}"
        lines.append(line)
    return lines


def _category_lines(frame: pandas.DataFrame) -> list[str]:
    summary = stats.summarise(frame)
    lines = []
    for row in summary[summary["category"] != stats.ALL].itertuples():
        cells = [
            _spell(
                pandas.Series(
                    {
                        "mean": getattr(row, f"{name}_mean"),
                        "lower": getattr(row, f"{name}_lower"),
                        "upper": getattr(row, f"{name}_upper"),
                        "n": row.n_pairs,
                    }
                )
            )
            for name in ("kl_amplified_a", "nll_a")
        ]
        lines.append(f"  {row.category:<18} alpha {row.alpha:<5g} KL {cells[0]}; NLL {cells[1]}")
    return lines


def _pair_lines(frame: pandas.DataFrame) -> list[str]:
    apart, moved = stats.by_pair(frame, "kl_a_b"), stats.by_pair(frame, "kl_amplified_a")
    lines = []
    for pair_id in frame["pair_id"].unique():
        path = ", ".join(f"{alpha:g}: {moved.loc[pair_id, alpha]:.3g}" for alpha in moved.columns)
        lines.append(f"  {pair_id:<24} {apart.loc[pair_id, 0.0]:>7.3g}   {path}")
    return lines
