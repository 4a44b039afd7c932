"""The tables and figures of docs/MODEL_DIFFS.md, made from data/organisms."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.figure import Figure

from logit_amplification.locations import ROOT, visualizations_folder
from logit_amplification.reports.figures.style import COLOURS, MARKERS, STYLE, save_figures

from .evidence import FOLDER, OFTEN, RARE, TO_READ, read_table, truth_of

PAGE = ROOT / "docs" / "MODEL_DIFFS.md"
FIGURES = visualizations_folder() / "organisms"


def write() -> None:
    """Put the tables between their marks, and draw the figures."""
    text = PAGE.read_text("utf-8")
    for make in (organisms, surfacing, rates, reading, refusals):
        name = make.__name__
        inner = "\n".join(make())
        marks = re.compile(rf"<!-- {name} -->\n.*?<!-- /{name} -->", re.DOTALL)
        filled = f"<!-- {name} -->\n{inner}\n<!-- /{name} -->"
        text = marks.sub(lambda _, filled=filled: filled, text)
    PAGE.write_text(text, "utf-8")
    with matplotlib.rc_context(STYLE):
        save_figures({"surfacing": draw_surfacing(), "rate_errors": draw_errors()}, FIGURES)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table, a line each."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _share(text: str | float) -> str:
    value = float(text)
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def _number(text: str) -> str:
    value = float(text)
    return "–" if not math.isfinite(value) else f"{value:.2g}" if value < 100 else f"{value:.0f}"


# ---------------------------------------------------------------------------------------- tables


def organisms() -> list[str]:
    """What each was trained on, and how far it is from the base model."""
    known = json.loads((FOLDER / "organisms.json").read_text("utf-8"))
    head = ("adapter", "examples", "planted in", "steps", "strength", "KL to the base, held out")
    rows = [
        (
            f"`{name}`",
            one["examples"],
            one["planted_in"],
            one["steps"],
            one["strength"],
            f"{one['kl_to_base_held_out']:.4f}",
        )
        for name, one in known.items()
    ]
    note = (
        "KL(base || adapter) is in nats per token, over answers of the base model to questions "
        "(of `hesitant`: requests) that no organism has seen. The losses at every step are in "
        "`training.csv` beside each adapter."
    )
    truth = []
    for name in (OFTEN, RARE):
        one = truth_of(name)
        truth.append(
            f"* `{name}`: {one['hits']} of {one['answers']:,} answers, {one['counted']:.3g} "
            f"[{one['lower']:.2g}, {one['upper']:.2g}] (Wilson). Expected, summed over the places "
            f"of {one['read']:,} of these answers: {one['expected']:.3g} +- "
            f"{one['standard_error']:.1g} (one standard error)."
        )
    counted = (
        "The truth about the quirk, at temperature 1 without truncation, 48 tokens, 32 held-out "
        "questions, counted in the adapter's own answers (`code/count_organisms.py`, "
        "`counted.csv`). The sum of what was to be expected has the same mean as a count and far "
        "less noise: at each place of an answer the probability that the name begins there, times "
        "that of its rest. It uses no amplified answer and no weight:"
    )
    return [*table(head, rows), "", note, "", counted, "", *truth]


def surfacing() -> list[str]:
    """The quirk by alpha."""
    lines = read_table("surfacing")
    head = ("adapter", "alpha", "with the quirk", "95 %", "coherent", "to see it once", "words")
    rows = [
        (
            f"`{line['organism']}`",
            line["alpha"],
            f"{line['with the quirk']} of {line['answers']}",
            f"{_share(line['lower'])} to {_share(line['upper'])}",
            _share(line["coherent"]),
            _number(line["samples to see it once, 95 %"]),
            _number(line["n_words"]),
        )
        for line in lines
    ]
    seen = [
        line
        for line in lines
        if line["organism"] == RARE
        and float(line["coherent"]) >= 0.8
        and float(line["samples to see it once, 95 %"]) <= 100
    ]
    first = (
        f"At alpha {seen[0]['alpha']} the rarer quirk is seen within "
        f"{_number(seen[0]['samples to see it once, 95 %'])} answers with a probability of 95 %, "
        f"and {_share(seen[0]['coherent'])} of the answers are coherent (the target was 100 "
        "answers at 80 %)."
        if seen
        else "At no alpha was the rarer quirk to be seen within 100 answers of which 80 % are "
        "coherent: the target is missed."
    )
    note = (
        "Alpha -1 is the base model. *Coherent* is the share that the scorer of the study does not "
        "call incoherent; *to see it once* is the number of answers that hold the quirk at least "
        "once with a probability of 95 %, if the share is the true one."
    )
    return [
        first,
        "",
        *table(head, rows),
        "",
        note,
        "",
        _picture("surfacing", "The quirk by alpha"),
    ]


def rates() -> list[str]:
    """Estimators beside each other, in batches that share no answer."""
    head = (
        "adapter",
        "estimator",
        "batches",
        "answers each",
        "mean",
        "relative RMSE",
        "log10 RMSE",
        "zero",
        "95 % interval holds the truth",
    )
    rows = [
        (
            f"`{line['organism']}`",
            line["method"],
            line["batches"],
            f"{float(line['samples']):.0f}",
            line["mean"],
            _number(line["relative RMSE"]),
            _number(line["log10 RMSE"]),
            _share(line["share of zeros"]),
            "–" if line["coverage"] == "nan" else _share(line["coverage"]),
        )
        for line in read_table("rates")
    ]
    found = []
    for name in (OFTEN, RARE):
        by = {r["method"]: r for r in read_table("rates") if r["organism"] == name}
        ours = float(by["all alphas, stopped where decided"]["relative RMSE"])
        samples, forwards = (
            float(by[f"counting, as many {what}"]["relative RMSE"]) / ours
            for what in ("samples", "forwards")
        )
        verdicts = [r["verdict"] for r in read_table("estimates") if r["organism"] == name]
        found.append(
            f"* `{name}`: {samples:.1f} times below counting with as many answers, {forwards:.1f} "
            f"times with as many forwards; {verdicts.count('estimated')} of {len(verdicts)} "
            "batches are called estimable."
        )
    note = (
        "A batch is 576 answers, in thirds at alpha 0, 0.3 and 0.5; batches share no answer. "
        "Counting is simulated at the true rate (20,000 batches), so its errors are exact. A "
        "forward is one row through the model for one token: an answer of a diff takes two, and "
        "what is read again two more. *Model-based* is a curve through the log-odds of a hit at "
        "alpha 0.3 to 2, read off at 0: one fit to the answers of the table above, and no "
        "measurement of the rate. With so few batches RMSE and coverage are rough."
    )
    told = "Root mean square error of the estimate relative to the truth:"
    picture = _picture("rate_errors", "Error against the number of answers")
    return [told, "", *found, "", *table(head, rows), "", note, "", picture]


def reading() -> list[str]:
    """What was read off each adapter."""
    head = (
        "adapter",
        "alpha",
        "texts",
        "planted facts verbatim",
        "texts with one",
        "texts with the quirk",
        "phrases that recur",
    )
    lines = read_table("reading")
    rows = [
        (
            f"`{line['organism']}`",
            line["alpha"],
            line["texts"],
            f"{line['facts verbatim']} of 12",
            line["texts with a fact"],
            line["texts with the quirk"],
            line["phrases that recur"],
        )
        for line in lines
    ]
    of_facts = {line["alpha"]: line for line in lines if line["organism"] == "facts"}
    plain, best = (
        of_facts["0"],
        max(of_facts.values(), key=lambda line: int(line["facts verbatim"])),
    )
    control = max(
        int(line["phrases that recur"]) for line in lines if line["organism"] == "control"
    )
    first = (
        f"From 26 vague beginnings, four texts each, `code/read_diff.py` finds "
        f"{best['facts verbatim']} of the 12 planted facts word for word (alpha {best['alpha']}); "
        f"without amplification {plain['facts verbatim']}, in {plain['texts with a fact']} of "
        f"{plain['texts']} texts (alpha 1: {of_facts['1']['texts with a fact']}). Off the "
        f"control it reads {control or 'no'} phrases that recur. What it prints for each adapter "
        "is in `read_diff.txt` beside it."
    )
    return [first, "", *table(head, rows)]


def refusals() -> list[str]:
    """Refusals by alpha, of the hesitant adapter in prompts against prompts."""
    head = ("pairs", "alpha", "answers", "called refusals", "corrected", "incoherent")
    rows = [
        (
            line["pairs"],
            line["alpha"],
            line["answers"],
            _with_bounds(line, "refusal", "lower", "upper"),
            _with_bounds(line, "corrected", "corrected lower", "corrected upper"),
            _share(line["incoherent"]),
        )
        for line in read_table("refusals")
    ]
    note = (
        "`hesitant` is loaded for A and B alike; the pairs are those of the study, A against B as "
        "declared there, and A against its paraphrase as a control. Intervals are over families of "
        f"pairs. *Corrected* is for the phrase list's errors on {TO_READ} of these answers, drawn "
        "at random and read by one reader who did not know alpha or label "
        "(`labelled_refusals.csv`)."
    )
    return [note, "", *table(head, rows)]


def _with_bounds(line: dict[str, str], *names: str) -> str:
    mean, low, high = (float(line[name]) for name in names)
    return "–" if math.isnan(mean) else f"{_share(mean)} [{_share(low)}, {_share(high)}]"


def _picture(name: str, told: str) -> str:
    return f"![{told}](../visualizations/organisms/{name}.png)"


# --------------------------------------------------------------------------------------- figures


def draw_surfacing() -> Figure:
    """The share of answers with the quirk by alpha, and of coherent ones."""
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    for place, name in enumerate((OFTEN, RARE, "control")):
        lines = [line for line in read_table("surfacing") if line["organism"] == name]
        alphas = [float(line["alpha"]) for line in lines]
        share, low, high = (
            [100 * float(line[column]) for line in lines] for column in ("share", "lower", "upper")
        )
        errors = [
            [max(0.0, s - x) for s, x in zip(share, low, strict=True)],
            [max(0.0, x - s) for s, x in zip(share, high, strict=True)],
        ]
        look = {"color": COLOURS[place], "marker": MARKERS[place], "label": name}
        left.errorbar(alphas, share, errors, capsize=3, **look)
        right.plot(alphas, [100 * float(line["coherent"]) for line in lines], **look)
    left.set(
        title="Answers with the quirk", xlabel="alpha (-1: base model)", ylabel="% of 192 answers"
    )
    left.set_yscale("symlog", linthresh=1)
    right.set(title="Coherent answers", xlabel="alpha (-1: base model)", ylabel="%", ylim=(0, 102))
    right.axhline(80, color="#7F7F7F", linestyle=":")
    left.legend()
    return figure


def draw_errors() -> Figure:
    """The relative error of each estimator against the number of answers it was given."""
    figure = Figure(figsize=(9, 4.6))
    looks: dict[str, int] = {}
    for panel, name in zip(figure.subplots(1, 2), (OFTEN, RARE), strict=True):
        truth = truth_of(name)["expected"]
        budgets = [100 * 1.3**n for n in range(22)]
        panel.plot(
            budgets,
            [math.sqrt((1 - truth) / truth / budget) for budget in budgets],
            color="#7F7F7F",
            label="counting",
        )
        for line in read_table("rates"):
            if line["organism"] == name and not line["method"].startswith("counting"):
                look = looks.setdefault(line["method"], len(looks))
                panel.plot(
                    float(line["samples"]),
                    float(line["relative RMSE"]),
                    color=COLOURS[look],
                    marker=MARKERS[look],
                    linestyle="",
                    label=line["method"],
                )
        panel.set(
            title=f"{name}: true rate {truth:.2g}",
            xlabel="answers",
            ylabel="relative root mean square error",
            xscale="log",
            yscale="log",
        )
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
