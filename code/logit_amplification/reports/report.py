"""From records to sentences: the summary table and the text artifacts.

Every sentence about an effect carries its n and its 95 % interval, and says so when the interval
contains zero. Nothing here is written by hand for one model: change the data and the text changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from ..evaluation import stats
from ..evaluation.wording import (
    counted,
    format_change,
    format_estimate,
    format_p_value,
    format_test,
    power_sentence,
)
from ..logits.vocabulary import MEASURES
from ..records.files import Record, write_atomically, write_report

# A convention, set before any data was seen: 0.5 nats per token is a factor of 1.65 in perplexity.
TOLERATED_NLL_RISE = 0.5
# The one measure that is tested for a trend over alpha, declared before any data was seen.
PRIMARY = "nll_a"
SECONDARY = (
    *("incoherent", "refusal", "on_task", "repeated_4gram_share"),
    *("n_tokens", "ended_by_eos", "entropy"),
)
REPORTED = (
    *("kl_amplified_a", PRIMARY, "nll_b", "log_ratio_a_b"),
    *("incoherent", "refusal", "on_task", "refusal_if_coherent"),
    *("entropy", "rank_a", "implausible_share", "repeated_4gram_share", "distinct_2", "n_tokens"),
    *("ended_by_eos", "logit_range", "logit_std", "outside_top20_a", "outside_top20_b"),
    *("overlap_top20", "reachable_top20"),
)
BY_CATEGORY = ("kl_amplified_a", PRIMARY)


def write_reports(data_dir: Path, run: dict[str, Any], records: Sequence[Record]) -> list[Path]:
    """Write the tables `summary_statistics.csv` and `generations.csv`, and both texts."""
    frame = stats.to_frame(records)
    return [
        write_table(data_dir, "summary_statistics.csv", stats.summarise(frame)),
        write_table(data_dir, "generations.csv", frame),
        write_report(data_dir, "recommendations.txt", recommendations(run, records)),
        write_report(data_dir, "detailed_report.txt", detailed_report(run, records)),
    ]


def write_table(data_dir: Path, name: str, table: pandas.DataFrame) -> Path:
    """Write a CSV file: six digits, and no text that a spreadsheet takes for a formula."""
    table = table.round(6)
    for column in table.select_dtypes(["object", "string"]):
        table[column] = table[column].map(no_formula, na_action="ignore")
    return write_atomically(Path(data_dir) / name, table.to_csv(index=False, lineterminator="\n"))


def no_formula(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula: an apostrophe in front (OWASP)."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def run_in_words(run: dict[str, Any], records: Sequence[Record]) -> str:
    """Return one line: which model, how many generations, how they were drawn."""
    model, sampling = run["model"], run["sampling"]
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({r["alpha"] for r in records}))
    controls = len({r["pair_id"] for r in records if r["control"]})
    pairs = counted(len({r["pair_id"] for r in records}) - controls, "pair")
    pairs += f" and {counted(controls, 'control')}"
    errors = len(records) - len(stats.without_errors(records))
    left_out = f"; {errors} ended with an error and are left out" if errors else ""
    return (
        f"model {model['name']}, quantization {model['quantization']}, {model['dtype']} on "
        f"{model['device']}; {len(records)} generations: {pairs} at alpha {alphas}; "
        f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_new_tokens']} tokens, seed {sampling['seed']}; run {run['id']}{left_out}"
    )


def recommendations(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return the lines of `recommendations.txt`: which alphas did what, for the arm swept first."""
    frame = stats.to_frame(records)
    arm = records[0]["arm"]
    first = frame[frame["arm"] == arm]
    lines = ["RECOMMENDATIONS", run_in_words(run, records), ""]
    if stats.treatment(first).empty:
        return [*lines, "No pair but controls came to an end: nothing can be said about alpha."]
    of_arm = [record for record in records if record["arm"] == arm]
    lines += [f"1. Design. {power_sentence(stats.treatment(frame)['pair_id'].nunique())}", ""]
    lines += [f"2. Control. {_null_sentence(of_arm)}", ""]
    lines += [f"3. Where amplification shows, arm {arm}. {_change_sentence(of_arm)}", ""]
    lines += [f"4. Where the text stays likely under A, arm {arm}. {_likely_sentence(first)}"]
    lines += [f"   {trend_sentence(first)}", ""]
    lines += [f"5. What else changed at the largest alpha, arm {arm}, against alpha 0 within the"]
    lines += ["   same pair (p-values: sign-flip test, Holm's correction over these lines):"]
    lines += [*(f"   {line}" for line in difference_lines(first, SECONDARY)), ""]
    others = [name for name in frame["arm"].unique() if name != arm]
    if others:
        lines += [f"6. The other arms, against {arm} within the same pair and draw:"]
        lines += [f"   {line}" for name in others for line in arm_lines(frame, name, arm)]
        lines += [""]
    return [*lines, "These sentences hold for this model, these prompts and this sampling only."]


def detailed_report(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return the lines of `detailed_report.txt`: every measure, per arm, category and alpha."""
    lines = ["DETAILED REPORT", run_in_words(run, records), ""]
    lines += ["Mean over pairs [95 % interval over pairs, uncorrected]; controls stand apart.", ""]
    for arm in dict.fromkeys(record["arm"] for record in records):
        of_arm = [record for record in records if record["arm"] == arm]
        frame = stats.to_frame(of_arm)
        lines += [f"ARM {arm}", "", f"Control. {_null_sentence(of_arm)}", ""]
        if stats.treatment(frame).empty:
            lines += ["No pair but controls came to an end in this arm.", ""]
            continue
        shares = stats.changed_share(of_arm).drop(index=0.0, errors="ignore")
        lines += ["Pairs with an answer other than at alpha 0 (Wilson interval)"]
        lines += [
            f"  alpha {alpha:<5g} {format_estimate(row)}" for alpha, row in shares.iterrows()
        ] + [""]
        judged = {
            n: f"share that the {n.replace('_', ' calls ', 1)}"
            for n in frame
            if n.startswith("judge_")
        }
        # Runs of earlier versions have fewer measures.
        told = {name: MEASURES[name].described for name in REPORTED if name in frame} | judged
        for name, description in told.items():
            lines += [description[0].upper() + description[1:], *_measure_lines(frame, name), ""]
        lines += ["By category: KL(amplified || A) and negative log-likelihood under A", ""]
        lines += [*_category_lines(frame), ""]
        lines += ["By pair: KL(A || B) at alpha 0, and KL(amplified || A) per alpha", ""]
        lines += [*_pair_lines(frame), ""]
    return lines


# ------------------------------------------------------------------------------------- sentences


def trend_sentence(frame: pandas.DataFrame) -> str:
    """Tell the pre-declared trend of one arm's rows, with its test."""
    found = stats.trend(frame, PRIMARY)
    if found is None:
        return "Trend: not tested, for it takes two pairs and three alphas from 0 on."
    return (
        f"Trend (the one test declared beforehand): the NLL under A changes by "
        f"{format_change(found.slope)}, per unit of alpha. "
        f"Page's test that it rises: {format_p_value(found.p)}."
    )


def _amplified(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of the alphas above 0."""
    return table[table.index > 0]


def difference_lines(frame: pandas.DataFrame, names: Sequence[str]) -> list[str]:
    """Tell what changed at the largest alpha against alpha 0, and the same in each control."""
    largest = frame["alpha"].max()
    if not largest > 0:
        return ["No alpha above 0 was swept."]
    rows = [stats.paired_difference(frame, name).loc[largest] for name in names]
    lines = []
    for name, row, p in zip(names, rows, stats.holm([row["p"] for row in rows]), strict=True):
        lines.append(f"{MEASURES[name].described}: alpha {largest:g}: {format_test(row, p)}")
        lines += [f"  {line}" for line in control_lines(frame, name, largest)]
    return lines


def control_lines(frame: pandas.DataFrame, name: str, alpha: float) -> list[str]:
    """Tell what a difference to alpha 0 is in each derived control that was swept."""
    lines = []
    for control in frame["control"].unique():
        if control not in ("", "null"):
            table = stats.paired_difference(frame, name, control)
            if alpha in table.index:
                lines.append(f"control {control}: {format_change(table.loc[alpha])}")
    return lines


def arm_lines(frame: pandas.DataFrame, arm: str, base: str) -> list[str]:
    """Tell how far an arm is from another at alpha 0 and at the largest alpha they share."""
    lines = []
    for name in ("kl_amplified_a", PRIMARY, "incoherent"):
        table = stats.arm_difference(frame, name, arm, base)
        for alpha, row in table.iloc[[0, -1][: len(table)]].iterrows():
            lines.append(f"{arm}, alpha {alpha:g}: {MEASURES[name].described} {format_change(row)}")
    return lines


def _null_sentence(records: Sequence[Record]) -> str:
    if not any(record["control"] == "null" for record in records):
        return "No null pair was swept, so nothing holds the numbers to zero."
    shares = stats.changed_share(records, null=True)["mean"]
    if shares.empty:
        return "The null pair ended with an error, so nothing holds the numbers to zero."
    if shares.max() == 0:
        return "The null pair (A = B) gave the same tokens at every alpha, as it must."
    return "WARNING: the null pair (A = B) changed with alpha. The numbers below cannot be trusted."


def _change_sentence(records: Sequence[Record]) -> str:
    shares = _amplified(stats.changed_share(records))
    if shares.empty:
        return "No alpha above 0 was swept."
    fewer = shares[shares["mean"] < 0.5]
    half = shares if fewer.empty else shares[shares.index > fewer.index[-1]]
    if half.empty:
        row = shares.iloc[-1]
        few = f"At alpha {row.name:g} fewer than half of the pairs answer otherwise"
        return f"{few}: {format_estimate(row)}."
    row = half.iloc[0]
    return (
        f"From alpha {row.name:g} on, at least half of the pairs answer otherwise than at alpha 0 "
        f"with the same random numbers: {format_estimate(row)} (Wilson interval)."
    )


def _likely_sentence(frame: pandas.DataFrame) -> str:
    rise = _amplified(stats.paired_difference(frame, PRIMARY))
    if rise.empty:
        return "No alpha above 0 was swept."
    if rise["upper"].isna().all():
        return "One pair gives no interval; sweep more pairs."
    told = f"the NLL under A rises by less than {TOLERATED_NLL_RISE} nats per token"
    bad = rise[~(rise["upper"] < TOLERATED_NLL_RISE)]
    good = rise if bad.empty else rise[rise.index < bad.index[0]]
    sentence = (
        f"Up to alpha {good.index[-1]:g}, {told} (upper bound): {format_estimate(good.iloc[-1])}."
        if len(good)
        else f"At no alpha can it be shown that {told}."
    )
    if len(bad):
        sentence += (
            f" At alpha {bad.index[0]:g} it no longer can be shown: {format_estimate(bad.iloc[0])}."
        )
    return sentence


def _measure_lines(frame: pandas.DataFrame, name: str) -> list[str]:
    differences = stats.paired_difference(frame, name)
    lines = []
    for alpha, row in stats.dose(frame, name).iterrows():
        line = f"  alpha {alpha:<5g} {format_estimate(row)}"
        if alpha != 0:
            line += f"; against alpha 0: {format_change(differences.loc[alpha])}"
        lines += [
            line,
            *(f"    {told}" for told in control_lines(frame, name, alpha) if alpha != 0),
        ]
    return lines


def _category_lines(frame: pandas.DataFrame) -> list[str]:
    summary = stats.summarise(frame, BY_CATEGORY)
    lines = []
    for row in summary[summary["category"] != stats.ALL].itertuples():
        cells = [
            format_estimate(
                pandas.Series(
                    {
                        "mean": getattr(row, f"{name}_mean"),
                        "lower": getattr(row, f"{name}_lower"),
                        "upper": getattr(row, f"{name}_upper"),
                        "n": row.n_pairs,
                    }
                )
            )
            for name in BY_CATEGORY
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
