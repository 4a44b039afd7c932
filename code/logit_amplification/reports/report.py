"""From records to sentences: the summary table and the text artifacts.

Every sentence about an effect carries its n and its 95 % interval, and says so when the interval
contains zero. Nothing here is written by hand for one model: change the data and the text changes.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pandas

from ..evaluation import specificity, stats
from ..locations import DEMO
from ..logits.vocabulary import ALPHA_ALONE, MEASURES
from ..records.files import Record, write_atomically, write_report
from ..statistics import intervals
from ..statistics.wording import (
    against_margin,
    counted,
    format_change,
    format_estimate,
    format_p_value,
    format_test,
    power_sentence,
)

# The one measure that is tested for a trend over alpha, declared before any data was seen.
PRIMARY = "nll_a"
REPORTED = (
    *("kl_amplified_a", "kl_sampled_a", PRIMARY, "nll_b", "nll_p", "log_ratio_a_b", "posterior_a"),
    *("log_ratio_a_p", "incoherent", "refusal", "other"),
    *("sentiment", "formality", "readability", "agreement", "hedging", "n_words"),
    *("entropy", "rank_a", "implausible_share", "repeated_4gram_share", "distinct_2", "n_tokens"),
    *("ended_by_eos", "logit_range", "logit_std", "outside_top20_a", "outside_top20_b"),
    *("overlap_top20", "reachable_top20"),
)
ENOUGH = 12  # families of pairs: with fewer, only very large effects can be seen
BRACKETS = "Brackets: 95 % intervals over families of pairs that share a text."
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


def write_table(data_dir: Path, name: str, table: pandas.DataFrame, decimals: int = 6) -> Path:
    """Write a CSV file, with no text that a spreadsheet takes for a formula."""
    table = table.round(decimals)
    for column in table.select_dtypes(["object", "string"]):
        table[column] = table[column].map(no_formula, na_action="ignore")
    return write_atomically(Path(data_dir) / name, table.to_csv(index=False, lineterminator="\n"))


def no_formula(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula: an apostrophe in front (OWASP)."""
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def run_in_words(run: dict[str, Any], records: Sequence[Record]) -> str:
    """Return one line: which model, how many generations, how they were drawn."""
    sampling = run["sampling"]
    alphas = ", ".join(f"{alpha:g}" for alpha in sorted({r["alpha"] for r in records}))
    controls = len({r["pair_id"] for r in records if r["control"]})
    pairs = counted(len({r["pair_id"] for r in records}) - controls, "pair")
    pairs += f" and {counted(controls, 'control')}"
    errors = len(records) - len(stats.without_errors(records))
    left_out = f"; {errors} ended with an error and are left out" if errors else ""
    return (
        f"{model_in_words(run)}; {len(records)} generations: {pairs} at alpha {alphas}; "
        f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_new_tokens']} tokens, seed {sampling['seed']}{left_out}"
    )


def model_in_words(run: dict[str, Any]) -> str:
    """Return a run's model, the precision of its weights, and what it computes in."""
    model = run["model"]
    if model["name"] == DEMO:
        named = "SmolLM2-135M-Instruct (the demo model, 4-bit weights from a GGUF file)"
    else:
        named = f"{model['name']}, quantization {model['quantization']}"
    return f"{named}, computed in {model['dtype']} on {model['device']}"


def recommendations(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return the lines of `recommendations.txt`: what the run says, what it does not, what is next.

    About the arm swept first; a finding in one plain sentence, then its numbers.
    """
    lines = [
        "WHAT THIS RUN SAYS",
        *textwrap.wrap(f"{run_in_words(run, records)}; run {run['id']}", 100),
    ]
    lines += [BRACKETS, ""]
    for number, text in enumerate(findings(run, records), start=1):
        indent = " " * len(f"{number}. ")
        lines += textwrap.wrap(f"{number}. {text}", 100, subsequent_indent=indent)
    return lines


def findings(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return what a run says, point by point, about the arm swept first."""
    frame = stats.to_frame(records)
    arm = records[0]["arm"]
    first = frame[frame["arm"] == arm]
    if stats.treatment(first).empty:
        return ["Only controls finished, so nothing can be said about alpha."]
    of_arm = [record for record in records if record["arm"] == arm]
    return [
        *_too_few(stats.treatment(frame)["family"].nunique()),
        *coherence_points(first),
        *contrast_points(first),
        *attribute_points(frame, arm),
        *arm_points(frame, arm),
        "NOT measured: whether an answer is right or useful; anything about other models, prompts "
        "and sampling than these.",
        f"A different text alone is not an effect. {_change_sentence(of_arm)} In 16-bit "
        "arithmetic, rounding alone changes most sampled texts.",
        f"Check: {_null_sentence(of_arm)}",
        f"Power: {power_sentence(stats.treatment(frame)['family'].nunique())}",
        f"Next: {_next_sentence(frame)}",
    ]


def coherence_points(frame: pandas.DataFrame) -> list[str]:
    """Tell what each alpha above 0 does to the likelihood and coherence of the text."""
    rise = _amplified(stats.paired_difference(frame, PRIMARY))
    if rise.empty:
        return ["No alpha above 0 was swept."]
    if rise["n"].max() == 0:
        return ["No finished answer can be compared with alpha 0."]
    if rise["upper"].isna().all():
        return ["A single family gives no interval; sweep more pairs."]
    rise = rise[rise["n"] > 0]
    margin = intervals.MARGIN_NLL
    words = {
        "equivalent": "the text is about as likely under A as without amplification",
        "not worse": "the text is not less likely under A by more than the margin",
        "better": "the text is likelier under A",
        "undecided": "undecided; a rise beyond the margin is neither shown nor ruled out",
        "worse by more than the margin": "the text is less likely under A by more than the margin",
        "no interval": "only one family finished, so there is no interval",
    }
    told = []
    for verdict, alphas in _runs(rise, margin):
        last = rise.loc[alphas[-1]]
        at = f"Alpha {', '.join(f'{alpha:g}' for alpha in alphas)}"
        told.append(
            f"{at}: {words[verdict]} (margin: {margin:g} nats per token). "
            f"NLL {format_change(last)} at alpha {alphas[-1]:g}."
        )
    largest = rise.index[-1]
    worse = stats.paired_difference(frame, "incoherent").loc[largest]
    verdict = against_margin(_estimate(worse), intervals.MARGIN_SHARE)
    told.append(
        f"Incoherent answers at alpha {largest:g}, against alpha 0: {format_change(worse)}; margin "
        f"{intervals.MARGIN_SHARE:.0%}: {verdict}."
    )
    told.append(trend_sentence(frame))
    return told


def _runs(rise: pandas.DataFrame, margin: float) -> Iterator[tuple[str, list[float]]]:
    """Yield verdicts and the neighbouring alphas that share them."""
    verdicts = [(against_margin(_estimate(row), margin), alpha) for alpha, row in rise.iterrows()]
    for verdict, group in itertools.groupby(verdicts, key=lambda one: one[0]):
        yield verdict, [alpha for _, alpha in group]


def _estimate(row: pandas.Series) -> intervals.Estimate:
    return intervals.Estimate(*(row[part] for part in stats.COLUMNS))


def contrast_points(frame: pandas.DataFrame) -> list[str]:
    """Tell how far the text moves from A, and whether what sets A apart from B grows."""
    swept = sorted(stats.treatment(frame)["alpha"].unique())
    alphas = [alpha for alpha in swept if alpha > 0]
    if not alphas or 0.0 not in swept:
        return []
    largest, far = alphas[-1], stats.dose(frame, "kl_amplified_a")["mean"]
    told = [
        "Distance from A, KL in nats per token: "
        + ", ".join(f"{far[alpha]:.2g} at alpha {alpha:g}" for alpha in alphas)
        + "."
    ]
    sentences = {
        "log_ratio_a_b": "The text becomes more like A's than B's, as it must",
        "log_ratio_a_p": "Against A's own paraphrase (if this rises too, A's wording grows, not "
        "only its meaning)",
        "refusal": "Refusals (by a phrase list that makes mistakes; its errors are in "
        "docs/RESULTS_ANALYSIS.md)",
    }
    for name, sentence in sentences.items():
        if name in frame and frame[name].notna().any():
            row = stats.paired_difference(frame, name).loc[largest]
            lines = [format_change(row), *control_lines(frame, name, largest)]
            what = f"{MEASURES[name].label} at alpha {largest:g}"
            told.append(f"{sentence}: {what}, {'; '.join(lines)}.")
    return told


def attribute_points(frame: pandas.DataFrame, arm: str) -> list[str]:
    """Tell in how many families the declared attribute rises, and whether beyond the controls."""
    cells = stats.treatment(frame[frame["arm"] == arm])
    alpha = cells["alpha"].max()
    if "declared" not in cells or alpha <= 0:
        return []
    change = specificity.directions(cells, alpha)
    if change.empty:
        return []
    up, down = int((change > 0).sum()), int((change < 0).sum())
    told = [
        f"The attribute that each pair declares rises in {up} families, falls in {down} and stays "
        f"in {len(change) - up - down}, at alpha {alpha:g}; sign-flip test of the signs: "
        f"{format_p_value(intervals.sign_flip(change))}."
    ]
    compared = specificity.compare(
        specificity.contrasts(frame, arm), [specificity.PRIMARY_DISTANCE]
    )
    told += [
        f"Its change {c.distance:g} nats beyond alpha 0, in standard deviations, minus that of the "
        f"control {c.control} at the same distance: {format_test(c.difference, c.p)}."
        for c in compared
    ]
    return told


def arm_points(frame: pandas.DataFrame, base: str) -> list[str]:
    """Tell how far every other arm is from one at the largest alpha they share."""
    names = (PRIMARY, "incoherent", "log_ratio_a_b")
    points = []
    for arm in [name for name in stats.treatment(frame)["arm"].unique() if name != base]:
        tables = {name: stats.arm_difference(frame, name, arm, base) for name in names}
        if tables[PRIMARY].empty:
            continue
        rows = {name: table.iloc[-1] for name, table in tables.items()}
        told = [f"{MEASURES[name].label} {format_change(row)}" for name, row in rows.items()]
        points.append(f"Arm {arm} minus {base} at alpha {rows[PRIMARY].name:g}: {'; '.join(told)}.")
    return points


def _too_few(families: int) -> list[str]:
    """Warn where there are so few families of pairs that no interval is worth much."""
    if families >= intervals.FEWEST_UNITS:
        return []
    return [
        f"TOO FEW PAIRS for conclusions (families that share no text: {families}). "
        f"Use at least {ENOUGH} pairs with different texts; more samples cannot replace them."
    ]


def _next_sentence(frame: pandas.DataFrame) -> str:
    """What to do after this run."""
    missing = []
    if stats.treatment(frame)["family"].nunique() < ENOUGH:
        missing.append(f"at least {ENOUGH} pairs with different texts")
    elif frame["sample"].nunique() < 4:
        missing.append("--samples 4 for narrower intervals")
    if not {"paraphrase", "shuffled"} & set(frame["control"].unique()):
        missing.append(
            "--controls paraphrase,shuffled to see whether it is the contrast that grows"
        )
    if "random_direction" not in set(frame["arm"]):
        missing.append("--arms full,random_direction for the same question")
    return f"read ten answers at one alpha; then {'; '.join(missing) or 'another model'}."


def detailed_report(run: dict[str, Any], records: Sequence[Record]) -> list[str]:
    """Return the lines of `detailed_report.txt`: every measure, per arm, category and alpha."""
    lines = ["DETAILED REPORT", f"{run_in_words(run, records)}; run {run['id']}", ""]
    lines += ["Mean over families of pairs [95 % interval, not corrected for multiplicity];"]
    lines += ["controls are listed separately.", ""]
    for arm in dict.fromkeys(record["arm"] for record in records):
        of_arm = [record for record in records if record["arm"] == arm]
        frame = stats.to_frame(of_arm)
        lines += [f"ARM {arm}", "", f"Control. {_null_sentence(of_arm)}", ""]
        if stats.treatment(frame).empty:
            lines += ["Only controls finished in this arm.", ""]
            continue
        shares = stats.changed_share(of_arm).drop(index=0.0, errors="ignore")
        lines += ["Share of answers that differ from alpha 0 (Wilson interval)"]
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
        return "Trend: not tested; the test needs at least two pairs and three alphas from 0 up."
    return (
        f"Trend (the only test declared in advance): the NLL under A changes by "
        f"{format_change(found.slope)}, per unit of alpha. "
        f"Page's test that it rises: {format_p_value(found.p)}."
    )


def _amplified(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of the alphas above 0."""
    return table[table.index > 0]


def control_lines(frame: pandas.DataFrame, name: str, alpha: float) -> list[str]:
    """Tell what a difference to alpha 0 is in each derived control that was swept."""
    lines = []
    for control in frame["control"].unique():
        if control not in ("", "null"):
            table = stats.paired_difference(frame, name, control)
            if alpha in table.index:
                lines.append(f"control {control}: {format_change(table.loc[alpha])}")
    return lines


def _null_sentence(records: Sequence[Record]) -> str:
    if records[0]["arm"].partition("_top")[0] in ALPHA_ALONE:
        return "In this arm alpha changes A on its own, so the null pair is no check."
    if not any(record["control"] == "null" for record in records):
        return "No null pair was swept, so there is no check that alpha alone changes nothing."
    shares = stats.changed_share(records, null=True)["mean"]
    if shares.empty:
        return "The null pair failed, so there is no check that alpha alone changes nothing."
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
        few = f"At alpha {row.name:g} fewer than half of the answers differ from alpha 0"
        return f"{few}: {format_estimate(row)}."
    row = half.iloc[0]
    return (
        f"From alpha {row.name:g} on, at least half of the answers differ from alpha 0 with the "
        f"same random numbers: {format_estimate(row)} (Wilson interval)."
    )


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
                        "n": row.n_families,
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
        at_zero = apart.loc[pair_id].get(0.0, numpy.nan)
        lines.append(f"  {pair_id:<24} {at_zero:>7.3g}   {path}")
    return lines
