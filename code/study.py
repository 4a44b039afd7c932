"""Run the study on the demo model and write docs/RESULTS_ANALYSIS.md.

    python code/study.py        # make study: about half an hour on two cores, resumable

The study varies alpha, the arms and the controls. Started again, it generates only what is missing
in `data/study/`, and rewrites tables, figures and the document. Exit code 0: done; 2: bad input;
130: interrupted, finished work kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from logit_amplification.errors import exit_code
from logit_amplification.locations import DEMO, ROOT, shipped_file
from logit_amplification.logits.vocabulary import FIXED_FILLS, GAPS, SENTINEL
from logit_amplification.settings import load_settings, shown_path

COMMON = {
    "model": "demo",
    "prompts": shipped_file("prompt_pairs.csv"),
    "max_new_tokens": 64,
    "data_dir": ROOT / "data" / "study",
    "visualizations_dir": ROOT / "visualizations" / "study",
}
# MAIN_ARMS are compared with `full` on all pairs; the others below only on the demo subset.
MAIN_ARMS = ("plausible", "candidates_top20", "api_floor")
RULES = ("nucleus_first", "a_list", "api_intersection", "api_overlap", "api_mixture", "api_rounded")
FILLS = tuple(name for name in (*GAPS, *FIXED_FILLS, *SENTINEL) if name not in MAIN_ARMS)
SHORT_LISTS = tuple(f"{name}_top5" for name in ("api_floor", "api_below3", "api_minus13"))
# The design. It was committed before any of the data were generated, with the margins and primary
# tests of docs/METHODOLOGY.md.
BLOCKS = (
    {"arms": ("full",), "alphas": (-1, 0, 0.5, 1, 2, 4), "samples": 2},
    {"arms": ("full",), "alphas": (0, 1, 2, 4, 8), "controls": ("shuffled", "paraphrase")},
    {"arms": ("random_direction", "temperature"), "alphas": (0, 0.25, 0.5, 1, 2)},
    {"arms": MAIN_ARMS, "alphas": (0, 1, 2, 4)},
    {"arms": (*RULES, *FILLS, "api_spread"), "alphas": (0, 0.5, 1, 2, 4), "prompts": Path(DEMO)},
    {"arms": SHORT_LISTS, "alphas": (0, 0.5, 1, 2, 4), "prompts": Path(DEMO)},
)
DOCUMENT = ROOT / "docs" / "RESULTS_ANALYSIS.md"


def main() -> int:
    """Run the study; return the exit code."""

    def work() -> None:
        for path in study(COMMON, BLOCKS, DOCUMENT):
            print("Wrote", shown_path(path), flush=True)

    return exit_code(work, "Finished work is kept; run the same command to make the rest.")


def study(
    common: dict[str, Any],
    blocks: Sequence[dict[str, Any]],
    document: Path,
    labelled: Sequence[dict[str, Any]] | None = None,
) -> Iterator[Path]:
    """Run every block, then write tables, figures and the document, yielding their paths.

    labelled: the answers that the scoring is calibrated on; by default all that are shipped.
    """
    from logit_amplification.evaluation import calibration, outcomes, stats
    from logit_amplification.models import loading
    from logit_amplification.prompts.files import read_pairs
    from logit_amplification.records.files import refuse_unwritable, write_atomically
    from logit_amplification.reports import report
    from logit_amplification.reports.study import document as study_document
    from logit_amplification.reports.study import tables as study_tables
    from logit_amplification.sweeps import sweep

    settings = load_settings(**common)
    refuse_unwritable(settings)
    model = loading.load_model(settings)
    found: dict[tuple, dict] = {}
    for number, block in enumerate(blocks, start=1):
        print(f"Block {number} of {len(blocks)}: {block}", flush=True)
        asked = load_settings(**common | block)
        done = sweep.sweep(model, read_pairs(asked.prompts, asked.controls), asked)
        for record in done.whole_records():
            cell = ("pair_id", "alpha", "sample", "arm")
            found[tuple(record[name] for name in cell)] = record
    # The usual NLL is one number for the whole study, not one per block: score all answers again.
    usual = outcomes.usual_nll(list(found.values()))
    records = [r | {"outcome": outcomes.score(r, usual)._asdict()} for r in found.values()]
    run = {name: value for name, value in done.run.items() if name != "pairs"}
    run |= {"errors": len(records) - len(stats.without_errors(records)), "usual_nll": usual}
    folder = settings.data_dir
    described = json.dumps(run, ensure_ascii=False, indent=1) + "\n"
    yield write_atomically(folder / "study.json", described)
    labelled = labelled or calibration.read_labelled() + calibration.read_generated()
    tables = {"generations": stats.to_frame(records)}
    tables["calibration"] = calibration.calibrate(model, labelled, usual)
    tables["readings"] = calibration.readings(calibration.read_generated())
    by_id = {pair.id: pair for pair in read_pairs(settings.prompts)}
    tables |= tables_of_texts(model, by_id, records)
    for name, table in tables.items():
        yield report.write_table(folder, f"{name}.csv", table, decimals=4)
    made = study_tables.read_study(folder)
    yield write_atomically(document, study_document.write_document(made))
    yield from draw(made, run, records, settings)


def tables_of_texts(model: Any, by_id: dict[str, Any], records: Any) -> dict[str, Any]:
    """Return tables that take two more forwards over each pair's first answer at alpha 0.

    They hold the alpha profiles, the alphas that reach given distances from A, and what an API's
    top-k lists would look like along the text.
    """
    import pandas

    from logit_amplification.engine.forward import text_logits
    from logit_amplification.logits import alpha_profile
    from logit_amplification.prompts.chat import encode_pairs
    from logit_amplification.reports.study import tables as study_tables

    curves, distances, lists = [], [], []
    for record in records:
        first = record["alpha"] == 0 and record["sample"] == 0 and record["arm"] == "full"
        if first and not record["control"] and record["token_ids"]:
            ids, name = record["token_ids"], {"pair_id": record["pair_id"]}
            (encoded,) = encode_pairs(
                [by_id[record["pair_id"]]],
                model.tokenizer,
                max_new_tokens=len(ids),
                max_positions=model.max_positions,
            )
            sides = [text_logits(model.model, c, ids) for c in (encoded.ids_a, encoded.ids_b)]
            curve = name | alpha_profile.profile(*sides, ids).means()
            curves.append(pandas.DataFrame(curve))
            reached = [
                alpha_profile.alpha_at(curve["alpha"], curve["kl_amplified_a"], nats)
                for nats in study_tables.TARGETS
            ]
            distances.append(name | dict(zip(study_tables.DISTANCES, reached, strict=True)))
            lists.append(name | lists_of_text(model.tokenizer, sides[1], ids))
    return {
        "alpha_profiles": pandas.concat(curves),
        "alpha_at_distance": pandas.DataFrame(distances),
        "lists": pandas.DataFrame(lists),
    }


def lists_of_text(tokenizer: Any, logits_b: Any, ids: Sequence[int]) -> dict[str, float]:
    """Return the floors of B's top-k lists, and how often retokenising the text changes tokens.

    `floor_<k>`: the k-th largest log-probability, mean over the steps, in nats.
    `retokenised_share`: the share of steps at which the text so far is tokenised into other tokens
    than were sampled. A client of an API, which sends text, tokenises it again for every call.
    """
    logprobs = logits_b.log_softmax(-1)
    floors = {
        f"floor_{k}": float(logprobs.topk(min(k, logprobs.shape[-1])).values[:, -1].mean())
        for k in (5, 20)
    }
    other = [
        tokenizer(tokenizer.decode(ids[:end]), add_special_tokens=False)["input_ids"] != ids[:end]
        for end in range(1, len(ids))
    ]
    return floors | {"retokenised_share": sum(other) / max(1, len(other))}


def draw(made: Any, run: dict[str, Any], records: list[dict], settings: Any) -> Iterator[Path]:
    """Draw the study's figures, yielding their paths."""
    from logit_amplification.records.files import write_atomically
    from logit_amplification.reports.figures import token_view
    from logit_amplification.reports.figures.style import save_figures
    from logit_amplification.reports.study import figures as study_figures

    strongest = next(r for r in records if r["alpha"] == made.amplified[-1] and not r["control"])
    yield from save_figures(
        {
            "specificity": study_figures.draw_specificity(made),
            "sensitivity": study_figures.draw_sensitivity(made, MAIN_ARMS[::2], 4.0),
            "gap_law": study_figures.draw_law(made),
            "tokens": token_view.draw_tokens(run, strongest),
        },
        settings.visualizations_dir,
        run["id"],
    )
    page = token_view.tokens_html(run, strongest)
    yield write_atomically(settings.visualizations_dir / "tokens.html", page)


if __name__ == "__main__":
    sys.exit(main())
