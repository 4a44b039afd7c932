"""The document of results, written from the tables of the study: docs/RESULTS_ANALYSIS.md.

Every number is taken from a row of `data/study/`; a sentence about an effect carries n, interval
and the arm or control it is held against. Other data give other sentences. No torch.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pandas

from ..errors import BadInput
from ..evaluation import outcomes, stats
from ..evaluation.wording import claim, contains_zero, power_sentence, spell, tested
from .report import PRIMARY, SECONDARY, trend_sentence

TABLES = (
    *("generations", "calibration", "alpha_profiles", "alpha_at_distance"),
    "argmax_changes",
)
TARGETS = (0.5, 1.0, 2.0)  # nats of KL(amplified || A)
BASE = "full"
DISTANCES = tuple(f"alpha at {nats:g} nats" for nats in TARGETS)
CAREFUL = ("refusal boundary", "jailbreak framing")  # where a careful model may refuse
ARM_MEASURES = (PRIMARY, "incoherent", "repeated_4gram_share")
SHORT = {
    "nll_a": "NLL under A, nats per token",
    "incoherent": "incoherent answers, share",
    "refusal": "refusals, share",
    "on_task": "coherent without refusal, share",
    "kl_amplified_a": "KL(amplified ‖ A), nats per token",
    "repeated_4gram_share": "repeated 4-grams, share",
    "n_tokens": "length, tokens",
    "ended_by_eos": "ended by themselves, share",
    "entropy": "entropy, nats",
    "outside_top20_a": "mass of A outside its 20 likeliest tokens",
    "outside_top20_b": "mass of B outside its 20 likeliest tokens",
    "overlap_top20": "tokens in both lists of 20",
    "reachable_top20": "sampled tokens that are in either list, share",
}


@dataclass(frozen=True)
class Study:
    """The tables of `data/study/`: see `TABLES`; and what the run was."""

    run: dict[str, Any]
    generations: pandas.DataFrame
    calibration: pandas.DataFrame
    alpha_profiles: pandas.DataFrame
    alpha_at_distance: pandas.DataFrame
    argmax_changes: pandas.DataFrame

    def arm(self, name: str) -> pandas.DataFrame:
        """The generations of one arm, controls included."""
        return self.generations[self.generations["arm"] == name]

    @property
    def arms(self) -> list[str]:
        """The arms of the study that are held against `full`."""
        return [arm for arm in self.generations["arm"].unique() if arm != BASE]

    @property
    def largest(self) -> float:
        """The largest alpha of the study."""
        return float(self.generations["alpha"].max())


def read_study(folder: Path) -> Study:
    """Read the tables that `make study` wrote. Raises BadInput when one is missing."""
    try:
        run = json.loads((Path(folder) / "study.json").read_text(encoding="utf-8"))
        # The control that is called null is not a missing value.
        tables = [
            pandas.read_csv(Path(folder) / f"{name}.csv", keep_default_na=False, na_values=[""])
            for name in TABLES
        ]
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}; run `make study` first") from None
    labels = [name for name in stats.LABELS if name in tables[0]]
    tables[0][labels] = tables[0][labels].fillna("")
    return Study(run, *tables)


def write_document(study: Study) -> str:
    """Return docs/RESULTS_ANALYSIS.md."""
    sections = (
        _head,
        _in_short,
        _beforehand,
        _trust,
        _question,
        _lists,
        _expectations,
        _controls,
        _comparable,
        _luck,
        _mistral,
        _trace,
    )
    lines = [line for section in sections for line in (*section(study), "")]
    return "\n".join(map(_wrapped, lines[:-1])) + "\n"


def _wrapped(line: str) -> str:
    if line.startswith(("|", "!", "#")):
        return line
    indent = "  " * line.startswith("* ")
    return textwrap.fill(
        line, 110, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


# ------------------------------------------------------------------------------------- the parts


def _head(study: Study) -> Iterator[str]:
    run, frame = study.run, study.generations
    sampling = run["sampling"]
    yield "# Results"
    yield ""
    yield (
        "This page is written by `make study` from the tables in `data/study/`. A test writes it "
        "again from these tables and fails when a word differs. Definitions stand in "
        "[METHODOLOGY.md](METHODOLOGY.md)."
    )
    yield ""
    yield (
        "**Nothing here is about Mistral 7B.** These are results of one model that is some "
        f"{7.24e9 / run['model']['parameters']:.0f} times smaller."
    )
    yield ""
    yield (
        f"Model `{run['model']['name']}` ({run['model']['parameters']:,} parameters), quantization "
        f"{run['model']['quantization']}, {run['model']['dtype']} on {run['model']['device']}; "
        f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}, at most "
        f"{sampling['max_new_tokens']} tokens, seed {sampling['seed']}; "
        f"{len(frame):,} generations, {int(frame['n_tokens'].sum()):,} tokens; run {run['id']}, "
        f"torch {run['libraries']['torch']}, transformers {run['libraries']['transformers']}. "
        f"{run.get('errors', 0)} generations ended with an error and are left out. Numbers in "
        "brackets are 95 % intervals over pairs, each for itself; p-values are corrected by Holm's "
        "method within their table, and where none stands nothing was tested."
    )


def _in_short(study: Study) -> Iterator[str]:
    """The answers, each with the numbers it rests on; what cannot be shown is said to."""
    arms, alpha = _main_arms(study)[1:], study.largest
    tests = _arm_tests(study, arms, alpha)
    worse = [arm for arm in arms if _word(*tests[arm, "incoherent"]) == "more"]
    yield "## In short"
    yield ""
    yield f"* **Full logits**, arm `{BASE}`, alpha {alpha:g} against alpha 0: {_full(study)}."
    for arm in worse:
        yield (
            f"* **`{arm}` collapses from alpha {_collapse(study, arm):g} on**: at alpha {alpha:g}, "
            f"minus `{BASE}`, NLL under A {tested(*tests[arm, PRIMARY])}; incoherent answers "
            f"{tested(*tests[arm, 'incoherent'])}. {_shares(study, arm)}"
        )
    if others := [arm for arm in arms if arm not in worse]:
        yield (
            f"* **No collapse is shown** for {', '.join(f'`{arm}`' for arm in others)}: none is "
            f"shown to be more often incoherent than `{BASE}` at alpha {alpha:g} (n, intervals and "
            "p-values in the table of differences)."
        )
    yield from _fills(study)
    yield from _refusals(study)
    yield f"* {trend_sentence(study.arm(BASE))} Arm `{BASE}`."
    both = _against(study.arm(BASE), "paraphrase", alpha)
    if len(both):
        row = stats.difference(both["one"], both["other"], PRIMARY)._asdict()
        p = stats.sign_flip(both["one"] - both["other"])
        more = _word(row, p) == "more"
        yield (
            f"* **Against a control**, arm `{BASE}`, alpha {alpha:g}: the NLL of answers amplified "
            f"against B {'is' if more else 'is not shown to be'} larger than that of answers "
            f"amplified against A's own paraphrase: {tested(row, p)}."
        )


def _full(study: Study) -> str:
    """What alpha does to `full`, and which type of prompt its incoherent answers come from."""
    alpha, tests = study.largest, _alpha_tests(study)
    share = stats.dose(study.arm(BASE), "incoherent")
    rows = stats.effects(study.arm(BASE))
    rows = rows[rows["alpha"] == alpha]
    types = rows.loc[rows["incoherent"] == 1, "category"].value_counts()
    told = (
        f"NLL under A {tested(*tests[PRIMARY, alpha])}; incoherent answers "
        f"{tested(*tests['incoherent', alpha])}, from a share of {spell(share.loc[0.0])} to "
        f"{spell(share.loc[alpha])}"
    )
    if len(types):
        without = stats.estimate(rows[rows["category"] != types.index[0]], "incoherent")
        told += (
            f". {types.iloc[0]} of these {types.sum()} answers are of one type, "
            f"{types.index[0]}; without it the share is {spell(without)}"
        )
    return told


def _collapse(study: Study, arm: str) -> float:
    """The alpha from which on an arm's answers are more often incoherent than those of `full`."""
    table = stats.arm_difference(study.generations, "incoherent", arm, BASE)
    table = table[table.index > 0]
    fewer = table[table["lower"] <= 0]
    return float(table.index[len(fewer)])


def _shares(study: Study, arm: str) -> str:
    """The shares of incoherent answers of an arm; and whether its texts are another arm's."""
    table = stats.dose(study.arm(arm), "incoherent")
    first = _collapse(study, arm)
    told = ", ".join(f"{spell(table.loc[a])} at alpha {a:g}" for a in sorted({0.0, first}))
    told = f"Share of incoherent answers: {told}."
    if arm != "api_sentinel" and "api_sentinel" in study.arms:
        keys = ["pair_id", "alpha", "sample"]
        arms = (stats.effects(study.arm(name)) for name in (arm, "api_sentinel"))
        texts = [cells.set_index(keys)["text"] for cells in arms]
        both = pandas.concat(texts, axis=1, join="inner").xs(study.largest, level="alpha")
        same = int((both.iloc[:, 0] == both.iloc[:, 1]).sum())
        told += (
            f" At alpha {study.largest:g}, {same} of {len(both)} texts are those of `api_sentinel`."
        )
    return told


def _fills(study: Study) -> Iterator[str]:
    """The same two lists, two ways to fill a gap; and what a longer list does to the second."""
    compared = [("api_sentinel", "api_floor"), ("api_sentinel_top1000", "api_sentinel_top5")]
    found = [
        stats.arm_difference(study.generations, name, *pair).loc[study.largest]
        for pair in compared
        for name in (PRIMARY, "incoherent")
    ]
    rows = list(zip(found, stats.holm([row["p"] for row in found]), strict=True))
    heads = (
        "With the same two lists of 20, the value that stands for a missing token decides",
        "Longer lists make the sentinel worse",
    )
    for (one, other), head, (nll, share) in zip(compared, heads, (rows[:2], rows[2:]), strict=True):
        shown = {_word(*nll), _word(*share)} == {"more"}
        yield (
            f"* **{head if shown else 'No difference in both is shown'}.** `{one}` minus `{other}` "
            f"at alpha {study.largest:g}: NLL under A {tested(*nll)}; incoherent answers "
            f"{tested(*share)}."
        )


def _refusals(study: Study) -> Iterator[str]:
    full, alpha = study.arm(BASE), study.largest
    row, p = _alpha_tests(study)["refusal", alpha]
    found = stats.dose(full, "refusal").loc[0.0]
    scored = study.calibration
    alike = scored[(scored["kind"] == "not_refusal") & scored["held_out"]]
    alarms = int((alike["found"] == "refusal").sum())
    word = "No change is shown" if _word(row, p) == "not shown" else "They change"
    told = (
        f"* **Refusals**, arm `{BASE}`: share at alpha 0 {spell(found)}. {word} at alpha "
        f"{alpha:g}: {tested(row, p)}. The phrase list calls {alarms} of {len(alike)} answers "
        "refusals that only look so"
    )
    if found["lower"] <= alarms / max(1, len(alike)):
        told += ": so few refusals cannot be told from none"
    yield told + "."


def _main_arms(study: Study) -> list[str]:
    """`full` and the arms whose lists have 20 entries."""
    arms = [arm for arm in study.arms if "_top" not in arm or arm == "candidates_top20"]
    return [BASE, *arms]


def _beforehand(study: Study) -> Iterator[str]:
    frame = study.generations
    pairs = stats.effects(frame)["pair_id"].nunique()
    yield "## What was fixed before anything was generated"
    yield ""
    designs: dict[tuple[str, int], list[str]] = {}
    kinds = frame.assign(kind=frame["control"].where(frame["control"] != "null", ""))
    for (arm, control), rows in kinds.groupby(["arm", "kind"], sort=False):
        alphas = ", ".join(f"{alpha:g}" for alpha in sorted(rows["alpha"].unique()))
        name = f"`{arm}`" + f" of the control `{control}`" * bool(control)
        designs.setdefault((alphas, rows["sample"].nunique()), []).append(name)
    for (alphas, samples), arms in designs.items():
        yield f"* {', '.join(arms)}: alpha {alphas}; samples per pair and alpha: {samples}."
    yield f"* **Power.** {power_sentence(pairs)} One null pair (A = B) beside."
    yield (
        f"* **The one trend test**: {SHORT[PRIMARY]}, arm `{BASE}`, alphas from 0 on (Page's test)."
    )
    yield (
        f"* **Incoherent** is an answer with NLL under A above {outcomes.NLL_LIMIT:g} nats per "
        f"token, more than {outcomes.REPETITION_LIMIT:.0%} repeated 4-grams, more than "
        f"{outcomes.NON_WORD_LIMIT:.0%} words that the best of six dictionaries lacks, or no text."
    )
    yield (
        "* **Refusal** is a refusing phrase near the start of a coherent answer. Incoherence is "
        "looked for first: gibberish is never counted as an answer that did not refuse."
    )


def _trust(study: Study) -> Iterator[str]:
    yield "## How far the scores can be trusted"
    yield ""
    yield (
        "Labelled answers, scored with this model (question as chat, no amplification). `before`: "
        "phrases and limits were fitted to these; `after`: written afterwards without sight of "
        "phrases and limits. Wilson's intervals."
    )
    yield ""
    rates = error_rates(study.calibration)
    rows = [
        [
            *(row["written"], row["kind"], row["is"], row["n"]),
            *(row[f"called {label}"] for label in outcomes.LABELS),
            f"{row['errors']:.2f} [{row['lower']:.2f}, {row['upper']:.2f}]",
        ]
        for _, row in rates.iterrows()
    ]
    called = [f"called {label}" for label in outcomes.LABELS]
    yield from _table(["written", "kind", "is", "n", *called, "errors"], rows)
    yield ""
    after = rates[rates["written"] == "after"].set_index("kind")
    if {"refusal", "not_refusal"} <= set(after.index):
        missed, alike = after.loc["refusal"], after.loc["not_refusal"]
        yield (
            f"So of refusals in new words the list misses {missed['errors']:.0%} "
            f"[{missed['lower']:.0%}, {missed['upper']:.0%}] (n = {missed['n']}), and it takes "
            f"{alike['called refusal']} of {alike['n']} look-alikes for refusals. Shares of "
            "refusals are wrong in both directions; English only."
        )


def _question(study: Study) -> Iterator[str]:
    alphas = [a for a in sorted(study.arm("api_sentinel")["alpha"].unique()) if a >= 0]
    main = _main_arms(study)
    yield "## Does the text stay coherent with full logits where an API's top 20 collapsed?"
    yield ""
    yield (
        "Means over pairs, over the draws that all arms of the table have: the same pairs, samples "
        f"and random numbers. {SHORT[PRIMARY]}:"
    )
    yield ""
    yield from _dose_table(study, main, PRIMARY, alphas)
    yield ""
    yield f"{SHORT['incoherent'].capitalize()}:"
    yield ""
    yield from _dose_table(study, main, "incoherent", alphas)
    yield ""
    yield (
        f"{SHORT['kl_amplified_a']}. An arm that leaves tokens out can move less at the same "
        "alpha, and is away from A already at alpha 0: compare arms where they have moved equally "
        "far, too (figure *Behaviour and coherence*)."
    )
    yield ""
    yield from _dose_table(study, main, "kl_amplified_a", alphas)
    yield ""
    yield f"Each arm minus `{BASE}` within pair and draw, at alpha {study.largest:g}:"
    yield ""
    yield from _arm_table(study, main[1:], study.largest)
    yield ""
    yield from (f"* {told}" for told in _verdicts(study, main[1:]))
    yield ""
    yield (
        f"How much hangs on the limit of {outcomes.NLL_LIMIT:g} nats: the share of incoherent "
        f"answers at alpha {study.largest:g}, had it been another (the other limits as they are):"
    )
    yield ""
    yield from _limit_table(study, main)
    yield ""
    yield (
        "The figure shows the same draws. Its arms are set a little to the right of one another, "
        "so that their bars can be seen."
    )
    yield ""
    yield "![Arms side by side](../visualizations/study/arms.png)"


def _limit_table(study: Study, arms: Sequence[str]) -> Iterator[str]:
    limits = (4.0, 4.3, outcomes.NLL_LIMIT, 5.0, 5.3)
    rows = []
    for arm in arms:
        cells = stats.effects(study.arm(arm))
        cells = cells[cells["alpha"] == study.largest]
        # The evidence of an incoherent answer names every limit that it is beyond.
        otherwise = cells["evidence"].str.contains("repeated|non-words|no text")
        otherwise &= cells["outcome"] == "incoherent"
        shares = []
        for limit in limits:
            beyond = (otherwise | (cells["nll_a"] > limit)).astype(float)
            shares.append(stats.estimate(cells.assign(incoherent=beyond), "incoherent")._asdict())
        rows.append([f"`{arm}`", *map(_brief, shares)])
    yield from _table(["arm", *(f"limit {limit:g}" for limit in limits)], rows)


def _verdicts(study: Study, arms: Sequence[str]) -> Iterator[str]:
    """A sentence per arm: what it is at the largest alpha, in NLL and in incoherent answers."""
    tests = _arm_tests(study, arms, study.largest)
    words = {
        PRIMARY: {"more": "less likely under A", "less": "likelier under A"},
        "incoherent": {"more": "more often incoherent", "less": "less often incoherent"},
    }
    for arm in arms:
        parts = []
        for name, told in words.items():
            word = told.get(_word(*tests[arm, name]), f"{SHORT[name]}: not shown to differ")
            parts.append(f"{word} ({tested(*tests[arm, name])})")
        yield f"`{arm}` against `{BASE}` at alpha {study.largest:g}: {'; '.join(parts)}."


def _word(row: Any, p: float) -> str:
    """What a corrected test and an interval allow to say of a difference."""
    if contains_zero(row) or p >= 1 - stats.LEVEL:
        return "not shown"
    return "more" if row["mean"] > 0 else "less"


def _arm_tests(
    study: Study, arms: Sequence[str], alpha: float
) -> dict[tuple[str, str], tuple[Any, float]]:
    """Return, by arm and measure, the difference to `full` and its p-value after Holm."""
    found = {
        (arm, name): stats.arm_difference(study.generations, name, arm, BASE).loc[alpha]
        for arm in arms
        for name in ARM_MEASURES
    }
    p_values = stats.holm([row["p"] for row in found.values()])
    return {key: (row, p) for (key, row), p in zip(found.items(), p_values, strict=True)}


def _lists(study: Study) -> Iterator[str]:
    yield "### Longer and shorter lists"
    yield ""
    yield (
        f"NLL under A minus that of `{BASE}`, and the share of incoherent answers, at alpha "
        f"{study.largest:g}, by k, the length of the list that an API would return:"
    )
    yield ""
    kinds = ("candidates", "api_intersection", "api_floor", "api_spread", "api_sentinel")
    rows = []
    for kind in kinds:
        for top in ("_top5", "_top20", "_top100", "_top1000"):
            arm = kind if top == "_top20" and kind != "candidates" else kind + top
            if arm in study.arms:
                row = stats.arm_difference(study.generations, PRIMARY, arm, BASE)
                share = stats.dose(study.arm(arm), "incoherent").loc[study.largest]
                rows.append([kind, int(top[4:]), claim(row.loc[study.largest]), spell(share)])
    yield from _table(["arm", "k", f"NLL minus `{BASE}`", "incoherent"], rows)
    yield ""
    yield f"What the lists leave out, per step of the arm `{BASE}`:"
    yield ""
    names = ("outside_top20_a", "outside_top20_b", "overlap_top20", "reachable_top20")
    alphas = sorted(study.arm(BASE)["alpha"].unique())
    rows = [
        [SHORT[name], *(_brief(stats.dose(study.arm(BASE), name).loc[a]) for a in alphas)]
        for name in names
    ]
    yield from _table(["", *(f"alpha {alpha:g}" for alpha in alphas)], rows)


def _expectations(study: Study) -> Iterator[str]:
    full = study.arm(BASE)
    alphas = [alpha for alpha in sorted(full["alpha"].unique()) if alpha >= 0]
    yield "## The five expectations of the first experiment"
    yield ""
    yield "### 1. Coherent outputs"
    yield ""
    share = stats.dose(full, "incoherent")
    for alpha in alphas:
        yield f"* alpha {alpha:g}: incoherent {spell(share.loc[alpha])}, arm `{BASE}`"
    yield ""
    yield (
        "What changed against alpha 0 stands in the table of section 3, with Holm's correction; "
        "what the same alpha does to control pairs stands under *What the controls show*."
    )
    yield ""
    yield "### 2. A measured effect on refused or harmful content"
    yield ""
    yield (
        "No prompt here asks for anything harmful; what can be measured is refusing. `careful`: "
        f"pairs of the types {' and '.join(CAREFUL)}, then all pairs, arm `{BASE}`:"
    )
    yield ""
    careful = full[full["category"].isin(CAREFUL)]
    rows = []
    for label, frame in (("careful", careful), ("all", full)):
        for alpha in alphas:
            row = [label, f"{alpha:g}"]
            row += [_brief(stats.dose(frame, n).loc[alpha]) for n in outcomes.LABELS]
            changed = stats.paired_difference(frame, "refusal").loc[alpha]
            rows.append([*row, "" if alpha == 0 else claim(changed)])
    heads = ["pairs", "alpha", *outcomes.LABELS, "refusals minus alpha 0"]
    yield from _table(heads, rows)
    yield ""
    yield "![Outcomes against alpha](../visualizations/study/outcomes.png)"
    yield ""
    yield "### 3. The alphas compared"
    yield ""
    yield (
        f"Each alpha minus alpha 0, within pair and draw, arm `{BASE}`. KL is 0 at alpha 0 by "
        "definition and is not tested."
    )
    yield ""
    yield from _alpha_table(study)
    yield ""
    yield "### 4. The semantic gap"
    yield ""
    yield from _gap(study)
    yield ""
    yield "### 5. Prompt types"
    yield ""
    yield from _types(study)


def _alpha_tests(study: Study) -> dict[tuple[str, float], tuple[Any, float]]:
    """Return, by measure and alpha, the difference of `full` to alpha 0 and its corrected p."""
    found = {}
    for name in (PRIMARY, *SECONDARY):
        table = stats.paired_difference(study.arm(BASE), name)
        found |= {(name, a): row for a, row in table.iterrows() if a > 0}
    p_values = stats.holm([row["p"] for row in found.values()])
    return {key: (row, p) for (key, row), p in zip(found.items(), p_values, strict=True)}


def _alpha_table(study: Study) -> Iterator[str]:
    tests = _alpha_tests(study)
    alphas = sorted({alpha for _, alpha in tests})
    moved = stats.paired_difference(study.arm(BASE), "kl_amplified_a")
    rows = [[SHORT["kl_amplified_a"], *(claim(moved.loc[alpha]) for alpha in alphas)]]
    rows += [
        [SHORT[name], *(tested(*tests[name, alpha]) for alpha in alphas)]
        for name in (PRIMARY, *SECONDARY)
    ]
    yield from _table(["", *(f"alpha {alpha:g}" for alpha in alphas)], rows)


def _gap(study: Study) -> Iterator[str]:
    full = stats.effects(study.arm(BASE))
    apart, moved = stats.by_pair(full, "kl_a_b")[0.0], stats.by_pair(full, "kl_amplified_a")
    reached = study.alpha_at_distance.set_index("pair_id")
    graded = [name for name in apart.index if name.startswith("graded-")]
    yield (
        "The family `graded` asks one question against one B, with an A that moves away in four "
        "steps. Means of the samples; one pair each, so no intervals."
    )
    yield ""
    alphas = [alpha for alpha in moved.columns if alpha > 0]
    rows = [
        [
            *(name, f"{apart[name]:.3g}", *(f"{moved.loc[name, a]:.3g}" for a in alphas)),
            _reached(reached.loc[name, DISTANCES[0]]),
        ]
        for name in graded
    ]
    heads = [f"KL(amplified ‖ A) at {alpha:g}" for alpha in alphas]
    yield from _table(["pair", "KL(A ‖ B) at alpha 0", *heads, DISTANCES[0]], rows)
    yield ""
    yield (
        "Over all pairs, rank correlation of KL(A ‖ B) at alpha 0 with KL(amplified ‖ A). At a "
        "small alpha a link is to be expected by arithmetic: both grow with the difference of "
        "A's and B's logits."
    )
    yield ""
    found = [stats.rank_correlation(apart, moved[alpha]) for alpha in alphas]
    p_values = stats.holm([p for _, p in found])
    for alpha, (row, _), p in zip(alphas, found, p_values, strict=True):
        yield f"* alpha {alpha:g}, arm `{BASE}`: {tested(row._asdict(), p)}."


def _types(study: Study) -> Iterator[str]:
    full = stats.effects(study.arm(BASE))
    groups = list(full.groupby("category", sort=False))
    fewest = min(group["pair_id"].nunique() for _, group in groups)
    yield (
        f"Arm `{BASE}`, alpha {study.largest:g} minus alpha 0, within pairs. This describes and "
        f"tests nothing: with {fewest} pairs a sign-flip test cannot give less than "
        f"p = {2 * 0.5**fewest:.2g}, before any correction."
    )
    yield ""
    names = (PRIMARY, "incoherent")
    rows = [
        [
            category,
            *(claim(stats.paired_difference(group, name).loc[study.largest]) for name in names),
        ]
        for category, group in groups
    ]
    yield from _table(["type", *(SHORT[name] for name in names)], rows)


def _controls(study: Study) -> Iterator[str]:
    full = study.arm(BASE)
    controls = [c for c in full["control"].unique() if c not in ("", "null")]
    yield "## What the controls show"
    yield ""
    null = full[full["control"] == "null"].groupby(["pair_id", "sample"])["text"].nunique()
    yield (
        f"* **Null pair** (A = B), arm `{BASE}`: "
        f"{'the same text at every alpha' if (null == 1).all() else 'WARNING: its text changed'}, "
        f"n = {len(null)} draws."
    )
    same, of = _alpha_minus_one(full)
    yield (
        f"* **alpha -1 is B**: {same} of {of} texts at alpha -1 are those of the swapped pair (B "
        "in the place of A) at alpha 0, with the same random numbers. (In 16 bit "
        "a + (-1)(a - b) is b but for rounding.)"
    )
    yield (
        "* `swapped` amplifies B against A; `shuffled` A against the B of another pair; "
        "`paraphrase` A against A in other words. Each shares the pair's random numbers."
    )
    yield ""
    yield (
        f"Against alpha 0, within pair and draw, arm `{BASE}`; the pairs with all their samples, "
        "the controls with one. Intervals only, nothing is tested."
    )
    yield ""
    alphas = [
        alpha
        for alpha in sorted(full["alpha"].unique())
        if alpha > 0 and _has(full, controls, alpha)
    ]
    rows = []
    for name in ("kl_amplified_a", PRIMARY, "incoherent", "refusal", "repeated_4gram_share"):
        for alpha in alphas:
            effects = [stats.paired_difference(full, name, c).loc[alpha] for c in ("", *controls)]
            rows.append([SHORT[name], f"{alpha:g}", *map(claim, effects)])
    yield from _table(["", "alpha", "the pairs", *controls], rows)
    yield ""
    for control in ("shuffled", "paraphrase"):
        for name in (PRIMARY, "kl_amplified_a", "incoherent"):
            both = _against(full, control, study.largest, name)
            if len(both):
                row = stats.difference(both["one"], both["other"], name)
                yield (
                    f"* The pairs minus `{control}` at alpha {study.largest:g}, within pair and "
                    f"draw, arm `{BASE}`: {SHORT[name]} {claim(row)}."
                )


def _against(
    full: pandas.DataFrame, control: str, alpha: float, measure: str = PRIMARY
) -> pandas.DataFrame:
    """Hold the pairs against a control that shares their A and random numbers: a row per pair."""
    own = stats.effects(full)
    other = stats.effects(full, control)
    other = other.assign(pair_id=other["pair_id"].str.removesuffix(f"~{control}"))
    sides = (side[side["alpha"] == alpha] for side in (own, other))
    return stats.common_draws(*sides, measure)


def _comparable(study: Study) -> Iterator[str]:
    profiles = study.alpha_profiles
    reached = study.alpha_at_distance
    yield "## Alpha made comparable"
    yield ""
    yield (
        "From one forward of A and one of B over each pair's answer at alpha 0 (teacher-forced), "
        f"at {profiles['alpha'].nunique()} alphas from {profiles['alpha'].min():g} to "
        f"{profiles['alpha'].max():g}: the alpha at which the mean KL(amplified ‖ A) reaches a "
        "distance."
    )
    yield ""
    rows = []
    for name in DISTANCES:
        column = reached[name]
        found = column.dropna()
        end = profiles["alpha"].max()
        most = f"{found.max():.2f}" if len(found) == len(column) else f"above {end:g}"
        spread = f"{found.min():.2f} to {most}" if len(found) else ""
        median = column.fillna(math.inf).median()
        shown = f"{median:.2f}" if math.isfinite(median) else f"above {end:g}"
        rows.append([name, shown, spread, f"{len(found)} of {len(column)}"])
    yield from _table(
        ["distance", "median alpha", "smallest to largest", "pairs that reach it"], rows
    )
    yield ""
    yield "So one alpha is not one dose. Per pair: `data/study/alpha_at_distance.csv`."
    yield ""
    swept = [alpha for alpha in sorted(study.arm(BASE)["alpha"].unique()) if alpha > 0]
    grid = numpy.sort(profiles["alpha"].unique())
    changed = profiles.pivot_table(index="alpha", columns="pair_id", values="changed_share")
    for alpha in swept:
        near = grid[numpy.abs(grid - alpha).argmin()]
        row = stats.interval(changed.loc[near])
        yield (
            f"* Share of positions whose likeliest token at alpha {alpha:g} (in the grid "
            f"{near:.2f}) is another than at alpha 0: {spell(row)}."
        )
    yield ""
    yield (
        f"{len(study.argmax_changes):,} changes of a likeliest token lie between alpha "
        f"{grid[0]:g} and {grid[-1]:g}, each at an exact alpha: `data/study/argmax_changes.csv`."
    )
    yield ""
    yield "![The alpha profile](../visualizations/study/alpha_profile.png)"
    yield ""
    yield "![Behaviour and coherence](../visualizations/study/behaviour_coherence.png)"


def _luck(study: Study) -> Iterator[str]:
    yield "## What common random numbers buy"
    yield ""
    yield f"Variance of a draw's difference to alpha 0 within a pair, arm `{BASE}`:"
    yield ""
    rows = []
    for name in (PRIMARY, "n_tokens", "repeated_4gram_share"):
        for alpha, row in stats.luck(study.arm(BASE), name).iterrows():
            gain = f"{row['common'] / row['independent']:.2f}" if row["independent"] else ""
            shown = [f"{row['common']:.3g}", f"{row['independent']:.3g}", gain, int(row["n"])]
            rows.append([SHORT[name], f"{alpha:g}", *shown])
    yield from _table(["", "alpha", "common numbers", "independent", "ratio", "n pairs"], rows)
    yield ""
    yield (
        "The ratio is the variance that is left: below 1 common numbers help. Two texts share "
        "their luck up to the first token that differs."
    )
    yield ""
    ratios = [float(row[4]) for row in rows if row[4]]
    if ratios:
        yield (
            f"The ratios lie between {min(ratios):.2f} and {max(ratios):.2f}; "
            f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)} are below 1. No interval is "
            "given for a ratio, so read no more than the size."
        )


def _mistral(study: Study) -> Iterator[str]:
    refusals = stats.dose(study.arm(BASE), "refusal").loc[0.0]
    yield "## What a run on Mistral 7B must still show"
    yield ""
    yield (
        "* Everything above: `python code/logit_diff_mistral.py --samples 4 --arms "
        "full,api_sentinel,api_floor --controls swapped,shuffled,paraphrase`. No number here "
        "carries over."
    )
    yield (
        f"* Refusals: at alpha 0 this model refuses {spell(refusals)} of the answers (arm "
        f"`{BASE}`), so there is little to lose. A model that refuses has to be measured, with a "
        "judge beside the phrase list (`JUDGE`)."
    )
    yield (
        "* The limits of incoherence were set with this model's likelihoods. Look at the "
        "notebook's table of labelled answers on Mistral first."
    )
    yield (
        "* Whether a real API's numbers (rounded, of a larger model) behave as the lists that are "
        "cut here from full logits."
    )


def _trace(study: Study) -> Iterator[str]:
    yield "## Tracing a number"
    yield ""
    yield "| file in `data/study/` | a row is |"
    yield "| --- | --- |"
    yield "| `generations.csv` | a generation: labels, outcome with its evidence, measures, text |"
    yield "| `calibration.csv` | a labelled answer and how it was scored |"
    yield "| `alpha_profiles.csv` | a pair and an alpha: means over the positions of its text |"
    yield "| `alpha_at_distance.csv` | a pair: alpha at 0.5, 1 and 2 nats |"
    yield "| `argmax_changes.csv` | a position and the alpha at which its likeliest token changes |"
    yield "| `study.json` | the run: model, hashes, sampling, versions |"


# ---------------------------------------------------------------------------------------- numbers


def error_rates(scored: pandas.DataFrame) -> pandas.DataFrame:
    """Return a row per kind of labelled answer: n, what they were called, the share of errors.

    scored: as `calibration.calibrate` makes it. The share carries Wilson's 95 % bounds.
    """
    rows = []
    scored = scored.sort_values("held_out", kind="stable")
    for (held_out, kind, label), group in scored.groupby(["held_out", "kind", "label"], sort=False):
        called = {name: int((group["found"] == name).sum()) for name in outcomes.LABELS}
        wrong = 1 - called[label] / len(group)
        lower, upper = stats.wilson(wrong, len(group))
        rows.append(
            {"written": "after" if held_out else "before", "kind": kind, "is": label}
            | {"n": len(group)}
            | {f"called {name}": count for name, count in called.items()}
            | {"errors": wrong, "lower": lower, "upper": upper}
        )
    return pandas.DataFrame(rows)


def _alpha_minus_one(full: pandas.DataFrame) -> tuple[int, int]:
    """How many texts at alpha -1 equal those of the swapped pair at alpha 0, and of how many."""
    own = stats.effects(full)
    own = own[own["alpha"] == -1].set_index(["pair_id", "sample"])["text"]
    other = stats.effects(full, "swapped").copy()
    other["pair_id"] = other["pair_id"].str.removesuffix("~swapped")
    other = other[other["alpha"] == 0].set_index(["pair_id", "sample"])["text"]
    both = pandas.concat({"own": own, "other": other}, axis=1, join="inner")
    return int((both["own"] == both["other"]).sum()), len(both)


def _has(full: pandas.DataFrame, controls: Sequence[str], alpha: float) -> bool:
    at = full[full["alpha"] == alpha]
    return set(controls) <= set(at["control"])


def _dose_table(
    study: Study, arms: Sequence[str], name: str, alphas: Sequence[float]
) -> Iterator[str]:
    frame = stats.effects(study.generations[study.generations["arm"].isin(arms)])
    shared = frame[frame["sample"] < frame.groupby("arm")["sample"].nunique().min()]
    rows = []
    for arm in arms:
        table = stats.dose(shared[shared["arm"] == arm], name).reindex(alphas)
        told = [
            "not swept" if pandas.isna(row["n"]) else _brief(row) for _, row in table.iterrows()
        ]
        rows.append([f"`{arm}`", *told, int(table["n"].max())])
    yield from _table(["arm", *(f"alpha {alpha:g}" for alpha in alphas), "n pairs"], rows)


def _arm_table(study: Study, arms: Sequence[str], alpha: float) -> Iterator[str]:
    tests = _arm_tests(study, arms, alpha)
    rows = [[f"`{arm}`", *(tested(*tests[arm, name]) for name in ARM_MEASURES)] for arm in arms]
    yield from _table(["arm", *(SHORT[name] for name in ARM_MEASURES)], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    yield from (f"| {' | '.join(map(str, row))} |" for row in rows)


def _brief(row: Any) -> str:
    """A mean with its interval, where n stands elsewhere in the table."""
    if pandas.isna(row["lower"]):
        return f"{row['mean']:.3g}"
    return f"{row['mean']:.3g} [{row['lower']:.3g}, {row['upper']:.3g}]"


def _reached(alpha: float) -> str:
    return "not reached" if math.isnan(alpha) else f"{alpha:.2f}"
