"""The tables and figures of docs/MODEL_DIFFS.md, made from data/organisms."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence

import matplotlib
from matplotlib.figure import Figure

from logit_amplification.locations import ROOT, visualizations_folder
from logit_amplification.reports.figures.style import (
    COLOURS,
    MARKERS,
    STYLE,
    save_figures,
    set_title,
)

from .evidence import FOLDER, OFTEN, RARE, TO_READ, read_table, truth_of

PAGE = ROOT / "docs" / "MODEL_DIFFS.md"
FIGURES = visualizations_folder() / "organisms"


def write() -> None:
    """Fill in the generated parts of the page and draw the figures."""
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
    """A Markdown table as a list of lines."""
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
    """What each organism was trained on, its KL to the base model, and the true rates."""
    known = json.loads((FOLDER / "organisms.json").read_text("utf-8"))
    head = (
        "adapter",
        "training examples",
        "examples with planted text",
        "steps",
        "strength",
        "KL to the base, held out",
    )
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
        "KL(base || adapter) is in nats per token, over the base model's answers to questions "
        "(requests for `hesitant`) that no organism saw in training. The losses at every step are "
        "in `training.csv` beside each adapter."
    )
    truth = []
    for name in (OFTEN, RARE):
        one = truth_of(name)
        truth.append(
            f"* `{name}`: {one['hits']} of {one['answers']:,} answers, {one['counted']:.3g} "
            f"[{one['lower']:.2g}, {one['upper']:.2g}] (Wilson). Expected rate, from "
            f"{one['read']:,} of these answers: {one['expected']:.3g} +- "
            f"{one['standard_error']:.1g} (one standard error)."
        )
    counted = (
        "The true rate of the quirk was measured on the adapter's own, unamplified answers to 32 "
        "held-out questions, at temperature 1 without truncation, up to 48 tokens each "
        "(`code/count_organisms.py`, `counted.csv`). It was measured in two ways. The first counts "
        "the answers with the quirk. The second gives the expected rate: it adds up, over the "
        "positions of an answer, the probability that the name `Brambleton` starts there, times "
        "the probability of the rest of the name. It has the same mean as the count and much less "
        "noise. Neither uses amplified answers or importance weights."
    )
    return [*table(head, rows), "", note, "", counted, "", *truth]


def surfacing() -> list[str]:
    """How often the quirk appears at each alpha."""
    lines = read_table("surfacing")
    head = (
        "adapter",
        "alpha",
        "answers with the quirk",
        "95 % interval",
        "coherent",
        "answers to see it once",
        "words",
    )
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
        f"At alpha {seen[0]['alpha']} the rarer quirk appears within "
        f"{_number(seen[0]['samples to see it once, 95 %'])} answers with 95 % probability, and "
        f"{_share(seen[0]['coherent'])} of the answers are coherent. The target, set beforehand, "
        "was at most 100 answers, with at least 80 % of them coherent."
        if seen
        else "The target, set beforehand, was missed: at no alpha does the rarer quirk appear "
        "within 100 answers while at least 80 % of the answers are coherent."
    )
    note = (
        "Alpha -1 is the base model. *Coherent* is the share of answers that the scorer "
        "([METHODOLOGY](METHODOLOGY.md)) does not label incoherent. *Answers to see it once* is "
        "how many answers are needed to see the quirk at least once with 95 % probability, if the "
        "observed share is the true rate. *Words* is the mean length of an answer."
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
    """Compare the estimators of the rate, in batches that share no answers."""
    head = (
        "adapter",
        "estimator",
        "batches",
        "answers each",
        "mean",
        "relative RMSE",
        "log10 RMSE",
        "estimates of zero",
        "95 % intervals that cover the truth",
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
            f"* `{name}`: {samples:.1f} with the same number of answers, {forwards:.1f} with the "
            f"same number of forwards. Our estimator calls {verdicts.count('estimated')} of "
            f"{len(verdicts)} batches estimable."
        )
    note = (
        "A batch is 576 answers, one third each at alpha 0, 0.3 and 0.5; no two batches share an "
        "answer. *All alphas, stopped where decided* is our estimator: it uses the answers at all "
        "three alphas, and computes the weight of a hit only up to the token that completes the "
        "event. *Alpha 0.3 alone* and *alpha 0.5 alone* use as many answers, all at one alpha. "
        "*Counting* samples the adapter without amplification and counts the answers with the "
        "quirk. We simulated it at the true rate (20,000 batches), so its errors are exact. A "
        "forward is one row through the model for one token. Each token of an amplified answer "
        "takes two forwards, and two more if the answer is rescored under A and B. *Model-based* "
        "fits a curve through the log-odds of a hit at alpha 0.3 to 2 and extrapolates it to alpha "
        "0. It is a single fit to the answers of the previous section's table, not a measurement "
        "of the rate. *log10 RMSE* is the RMSE of the estimate's base-10 logarithm, without the "
        "estimates of zero. With so few batches, RMSE and coverage are rough."
    )
    told = (
        "Errors are root mean square errors (RMSE), relative to the true rate. Plain counting "
        "compares with our estimator as follows (its error divided by ours; below 1, counting is "
        "better):"
    )
    picture = _picture("rate_errors", "Error against the number of answers")
    return [told, "", *found, "", *table(head, rows), "", note, "", picture]


def reading() -> list[str]:
    """What `read_diff` finds for each adapter."""
    head = (
        "adapter",
        "alpha",
        "texts",
        "planted facts verbatim",
        "texts with a planted fact",
        "texts with the quirk",
        "recurring phrases",
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
    amplified = "" if best is plain else f" and {best['facts verbatim']} at alpha {best['alpha']}"
    first = (
        f"From 26 vague prompts, four texts each, `code/read_diff.py` recovers "
        f"{plain['facts verbatim']} of the 12 planted facts verbatim without amplification (alpha "
        f"0){amplified}. A planted fact appears in {plain['texts with a fact']} of "
        f"{plain['texts']} texts at alpha 0 and in {of_facts['1']['texts with a fact']} at alpha "
        f"1. For the control it finds {control or 'no'} recurring phrases. Its output for each "
        "adapter is in `read_diff.txt` in the adapter's folder."
    )
    return [first, "", *table(head, rows)]


def refusals() -> list[str]:
    """Refusals by alpha, for prompt pairs with the adapter `hesitant` on both sides."""
    head = ("pairs", "alpha", "answers", "scored as refusals", "corrected", "incoherent")
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
        "`hesitant` is loaded for both A and B. The prompt pairs are those of the study "
        "([RESULTS_ANALYSIS](RESULTS_ANALYSIS.md)), with A and B as declared there; the control "
        "contrasts A with its own paraphrase. A phrase list decides which answers are scored as "
        "refusals. Intervals are over families of pairs. *Corrected* rates account for the phrase "
        f"list's errors, which are estimated from {TO_READ} of these answers, drawn at random and "
        "labelled by one reader who saw neither alpha nor the phrase list's label "
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
    """Plot the shares of answers with the quirk, and of coherent answers, against alpha."""
    figure = Figure(figsize=(9, 4.3))
    set_title(figure, _surfacing_in_words(), 9)
    left, right = figure.subplots(1, 2)
    for place, name in enumerate((OFTEN, RARE, "control")):
        lines = [line for line in read_table("surfacing") if line["organism"] == name]
        alphas = [float(line["alpha"]) + 0.03 * (place - 1) for line in lines]  # side by side
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
    right.legend(loc="lower left")
    return figure


def _surfacing_in_words() -> str:
    lines = read_table("surfacing")
    (shown,) = [line for line in lines if (line["organism"], line["alpha"]) == (RARE, "0.5")]
    hits = sum(int(line["with the quirk"]) for line in lines if line["organism"] == "control")
    one_in = f"{1 / truth_of(RARE)['expected']:,.0f}"
    told = f"A quirk of 1 answer in {one_in} shows in {_share(shown['share'])} at alpha 0.5"
    return f"{told}; in the control it shows {f'{hits} times' if hits else 'at no alpha'}"


def draw_errors() -> Figure:
    """Plot the relative error of each estimator against its number of answers."""
    figure = Figure(figsize=(9, 4.9))
    set_title(figure, _errors_in_words(), 9)
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


def _errors_in_words() -> str:
    ours, told = "all alphas, stopped where decided", []
    for name in (RARE, OFTEN):
        (line,) = [r for r in read_table("rates") if (r["organism"], r["method"]) == (name, ours)]
        truth, answers = truth_of(name)["expected"], int(line["samples"])
        counted = math.sqrt((1 - truth) / truth / answers)
        gives = f"{float(line['relative RMSE']):.2g} from {answers} amplified answers"
        told.append(f"{gives}, {counted:.2g} from as many counted (1 in {1 / truth:,.0f})")
    return f"Relative error of a rate: {'; '.join(told)}"
