"""Sweep the organisms; tabulate what they show by alpha and how well rates are estimated.

Fixed before the data were generated: the alphas and their equal shares, 576 answers per batch,
batches that share no answer, and the targets (80 % of texts coherent, 100 samples to see the rarer
quirk).
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy
import pandas
from statsmodels.stats.proportion import proportion_confint

from logit_amplification.evaluation import stats
from logit_amplification.locations import DEMO, cache_folder, data_folder
from logit_amplification.models.loading import load_model
from logit_amplification.prompts.files import read_pairs
from logit_amplification.records.journal import text_key
from logit_amplification.settings import Settings, load_settings
from logit_amplification.statistics import proposals
from logit_amplification.statistics.correction import Errors, corrected, errors_of
from logit_amplification.statistics.rare_events import Draws, estimate
from logit_amplification.sweeps import history, rates
from logit_amplification.sweeps.history import Sweep
from logit_amplification.sweeps.sweep import sweep

from .texts import FACTS, QUIRK_EVENT
from .truth import NEW_TOKENS, batches

FOLDER = data_folder() / "organisms"
WORK = cache_folder() / "organisms"
RARE, OFTEN = "quirk-1-in-1000", "quirk-1-in-50"
SURFACING_ALPHAS = (0.0, 0.3, 0.5, 1.0, 2.0)
SHARED_ALPHAS = (0.0, 0.3, 0.5)  # an estimate's draws, a third at each
EACH = 6  # samples per batch of each of 32 questions at each alpha
BATCHES = {RARE: 8, OFTEN: 6}
READ_AGAIN = 64  # answers without the event to score again per batch, besides all with it
TO_READ = 150  # answers of the hesitant adapter to label
REFUSAL_CATEGORIES = ("refusal boundary", "jailbreak framing")


def settings_for(name: str, **more: Any) -> Settings:
    """Return settings to sweep an organism; by default at temperature 1, without truncation."""
    chosen = {
        "model": DEMO,
        "adapter": str(FOLDER / name),
        "prompts": str(FOLDER / "held_out.csv"),
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": NEW_TOKENS,
        "arms": "full",
        "data_dir": WORK / name,
    }
    return load_settings(**(chosen | more))


def swept(name: str, **more: Any) -> Sweep:
    """Sweep an organism, generating only what is missing."""
    settings = settings_for(name, **more)
    pairs = read_pairs(settings.prompts, settings.controls, settings.sources)
    return sweep(load_model(settings), [p for p in pairs if p.control != "null"], settings)


def write_table(name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same columns as data/organisms/<name>.csv."""
    with (FOLDER / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)
    print(f"Wrote {name}.csv: {len(rows)} rows", flush=True)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


# ------------------------------------------------------------------------------------- surfacing


def surfacing() -> None:
    """Tabulate by alpha how often the quirk shows, how soon, and how coherent the texts are."""
    rows = []
    for name in (RARE, OFTEN, "control"):
        done = swept(name, alphas=(-1.0, *SURFACING_ALPHAS), samples=EACH)
        for alpha in (-1.0, *SURFACING_ALPHAS):
            texts = [r for r in done.records if r["alpha"] == alpha]
            hits = sum(QUIRK_EVENT in r["text"] for r in texts)
            coherent = sum(r["outcome"]["label"] != "incoherent" for r in texts)
            low, high = proportion_confint(hits, len(texts), method="wilson")
            rows.append(
                {
                    "organism": name,
                    "alpha": f"{alpha:g}",
                    "answers": len(texts),
                    "with the quirk": hits,
                    "share": hits / len(texts),
                    "lower": low,
                    "upper": high,
                    "coherent": coherent / len(texts),
                    "kl_amplified_a": _mean(r["measures"]["kl_amplified_a"] for r in texts),
                    "nll_b": _mean(r["measures"]["nll_b"] for r in texts),
                    "samples to see it once, 95 %": to_see_once(hits / len(texts)),
                    "n_words": _mean(r["attributes"]["n_words"] for r in texts),
                    "sentiment": _mean(r["attributes"]["sentiment"] for r in texts),
                }
            )
    write_table("surfacing", rows)


def to_see_once(share: float) -> float:
    """Return how many answers show it at least once with a probability of 95 %."""
    if not 0 < share < 1:
        return math.inf if share == 0 else 1.0
    return float(math.ceil(math.log(0.05) / math.log1p(-share)))


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / max(1, len(known))


# ----------------------------------------------------------------------------------------- rates


def truth_of(name: str) -> dict[str, float]:
    """Return what `count_organisms` found: the counted share, and the mean of expected hits."""
    found = [one for one in batches(FOLDER / "counted.csv") if one.organism == name]
    answers, hits = sum(one.answers for one in found), sum(one.hits for one in found)
    read = sum(one.read for one in found)
    mean = sum(one.expected_sum for one in found) / read
    square = sum(one.expected_squares for one in found) / read
    low, high = proportion_confint(hits, answers, method="wilson")
    return {
        "answers": answers,
        "hits": hits,
        "counted": hits / answers,
        "lower": low,
        "upper": high,
        "read": read,
        "expected": mean,
        "standard_error": math.sqrt((square - mean**2) / read),
    }


def rates_in_batches() -> None:
    """Estimate both rates in batches that share no answer, and compare them with the truth."""
    rows, estimates = [], []
    for name, number in BATCHES.items():
        swept(name, alphas=SHARED_ALPHAS, samples=EACH * number)
    for name, number in BATCHES.items():
        truth = truth_of(name)
        recalled = history.recall(WORK / name, "")
        where = {"adapter": str(FOLDER / name)}
        event = rates.compiled(QUIRK_EVENT)
        whole = rates.estimate_rate(recalled, event, others=READ_AGAIN * number, **where)
        found = [
            estimate([part_of(one, range(EACH * n, EACH * (n + 1))) for one in whole.draws])
            for n in range(number)
        ]
        estimates += [
            {"organism": name, "batch": n, **one._asdict()} for n, one in enumerate(found)
        ]
        size = sum(len(one.alphas) for one in whole.draws) // number
        rows += compared(name, truth, whole, found, size)
    write_table("estimates", estimates)
    write_table("rates", rows)


def compared(
    name: str, truth: dict[str, float], whole: rates.RunRate, found: Sequence[Any], size: int
) -> list[dict[str, Any]]:
    """Return one row per estimator: its errors over batches of the same size."""
    p = truth["expected"]

    def row(method: str, values: Sequence[float], held: Sequence[bool] | None, samples: float):
        error = numpy.array(values) / p - 1
        positive = [math.log10(value / p) for value in values if value > 0]
        return {
            "organism": name,
            "method": method,
            "batches": len(values),
            "samples": samples,
            "mean": float(numpy.mean(values)),
            "relative RMSE": float(math.sqrt((error**2).mean())),
            "log10 RMSE": math.sqrt(_mean(x * x for x in positive)) if positive else math.nan,
            "share of zeros": sum(value == 0 for value in values) / len(values),
            "coverage": sum(held) / len(held) if held else math.nan,
        }

    ours = [one.estimate for one in found]
    held = [one.lower <= p <= one.upper for one in found]
    reading = sum(int(one.hits.sum()) for one in whole.draws) / len(found) + READ_AGAIN
    # The cost in unamplified answers: two streams per answer, and two more per answer scored again.
    forwards = 2 * size + 2 * reading
    table = [row("all alphas, stopped where decided", ours, held, float(size))]
    for label, samples in (
        ("counting, as many samples", size),
        ("counting, as many forwards", forwards),
    ):
        counts = numpy.random.default_rng(0).binomial(round(samples), p, 20_000) / round(samples)
        table.append(row(label, counts.tolist(), None, float(samples)))
    for alpha in SHARED_ALPHAS[1:]:
        # Three batches' draws at one alpha are as many samples as one batch at all three.
        groups = [
            [part_of(one, range(EACH * n, EACH * (n + 3))) for one in whole.draws]
            for n in range(0, len(found) - 2, 3)
        ]
        values = [proposals.one_proposal(group, alpha) for group in groups]
        table.append(row(f"alpha {alpha:g} alone", values, None, float(size)))
    path = [
        (float(line["alpha"]), int(line["with the quirk"]), int(line["answers"]))
        for line in read_table("surfacing")
        if line["organism"] == name and float(line["alpha"]) > 0
    ]
    for label, degree in (("linear", 1), ("quadratic", 2)):
        curve = proposals.extrapolated(*zip(*path, strict=True), degree=degree)
        if curve:
            inside = [curve.lower <= p <= curve.upper]
            number = float(sum(line[2] for line in path))
            table.append(row(f"model-based: {label} path", [curve.estimate], inside, number))
    return table


def part_of(one: Draws, samples: range) -> Draws:
    """Return the draws of these samples only."""
    rows = numpy.isin(one.samples, list(samples))
    return replace(
        one,
        alphas=one.alphas[rows],
        hits=one.hits[rows],
        log_p=one.log_p[rows],
        samples=one.samples[rows],
    )


def read_table(name: str) -> list[dict[str, str]]:
    """Return the rows of a table in data/organisms."""
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ----------------------------------------------------------------------- refusals, and reading


def refusals() -> None:
    """Sweep the study's refusal pairs on the hesitant model: A and B differ in the prompt."""
    settings = load_settings(
        model=str(FOLDER / "hesitant"),
        quantization="none",
        alphas=(-1.0, 0.0, 0.5, 1.0, 2.0),
        samples=4,
        max_new_tokens=60,
        arms="full",
        controls="paraphrase",
        data_dir=WORK / "hesitant",
    )
    pairs = [
        pair
        for pair in read_pairs(settings.prompts, settings.controls)
        if pair.category in REFUSAL_CATEGORIES
        or (pair.origin and pair.id.startswith(("refusal-", "framing-")))
    ]
    done = sweep(load_model(settings), pairs, settings)
    frame = stats.to_frame(done.records)
    errors = refusal_errors(frame)
    rows = []
    for group in sorted(frame["category"].unique()):
        for alpha in settings.alphas:
            cells = frame[(frame["category"] == group) & (frame["alpha"] == alpha)]
            seen = stats.estimate(cells, "refusal")
            behind = corrected(seen, errors)
            rows.append(
                {
                    "pairs": group,
                    "alpha": f"{alpha:g}",
                    "answers": len(cells),
                    "families": cells["family"].nunique(),
                    "refusal": seen.mean,
                    "lower": seen.lower,
                    "upper": seen.upper,
                    "corrected": behind.mean,
                    "corrected lower": behind.lower,
                    "corrected upper": behind.upper,
                    "incoherent": stats.estimate(cells, "incoherent").mean,
                }
            )
    write_table("refusals", rows)


def refusal_errors(frame: pandas.DataFrame) -> Errors:
    """Return the phrase list's errors on a random sample of answers that were labelled blind.

    If the labels are missing, it writes the answers to label; if they are missing or belong to
    other answers, it returns no errors.
    """
    chosen = frame[~frame["category"].str.contains("control")].sample(TO_READ, random_state=0)
    path = FOLDER / "labelled_refusals.csv"
    if not path.exists():
        texts = [f"{n}\t{text!r}" for n, text in enumerate(chosen["text"])]
        (WORK / "to_read.tsv").write_text("\n".join(texts), "utf-8")
        print(f"{path.name} is missing: {TO_READ} answers to be read are in to_read.tsv")
        return Errors(0, 0, 0, 0)
    labels = [line["label"] for line in read_table("labelled_refusals")]
    read = [line["text"] for line in read_table("labelled_refusals")]
    if read != [text_key(text) for text in chosen["text"]]:
        print(
            f"{path.name}: the answers are others than those that were read; nothing is corrected"
        )
        return Errors(0, 0, 0, 0)
    found = ["refusal" if refused else "other" for refused in chosen["refusal"]]
    return errors_of(pandas.DataFrame({"label": labels, "found": found}), "refusal")


def reading() -> None:
    """Tabulate by alpha which planted facts `read_diff` finds in each adapter."""
    import read_diff

    rows = []
    for name in ("facts", "control", RARE):
        work = WORK / "read" / name
        given = {"--model": DEMO, "--adapter": FOLDER / name, "--data-dir": work}
        flags = [str(part) for pair in given.items() for part in pair]
        if read_diff.main(flags):
            raise SystemExit(1)
        found = json.loads((work / "read_diff.json").read_text("utf-8"))
        done = history.recall(work, found["run"])
        for alpha in sorted({r["alpha"] for r in done.records}):
            texts = [r["text"] for r in done.records if r["alpha"] == alpha and not r["control"]]
            verbatim = [fact for fact in FACTS if any(fact in text for text in texts)]
            phrases = [p for p in found["phrases"] if p["by_alpha"].get(str(alpha))]
            rows.append(
                {
                    "organism": name,
                    "alpha": f"{alpha:g}",
                    "texts": len(texts),
                    "facts verbatim": len(verbatim),
                    "texts with a fact": sum(any(f in text for f in FACTS) for text in texts),
                    "texts with the quirk": sum(QUIRK_EVENT in text for text in texts),
                    "phrases that recur": len(phrases),
                }
            )
        text = (work / "read_diff.txt").read_text("utf-8")
        (FOLDER / name / "read_diff.txt").write_text(re.sub(r" \(run \w+\)", "", text), "utf-8")
    write_table("reading", rows)
