"""The study behind docs/RESULTS_ANALYSIS.md: arms, controls and strengths on the demo model.

    python code/study.py        # make study: about half an hour on two cores, resumable

Started again it makes only what is missing in `data/study/`, and writes tables, figures and the
document anew. Exit code 0: done; 2: bad input; 130: interrupted, finished work kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from logit_amplification.errors import exit_code
from logit_amplification.locations import ROOT
from logit_amplification.logits.vocabulary import ARM_NAMES
from logit_amplification.settings import CONTROL_NAMES, load_settings, shown_path

COMMON = {
    "model": "demo",
    "max_new_tokens": 70,
    "data_dir": ROOT / "data" / "study",
    "visualizations_dir": ROOT / "visualizations" / "study",
}
API_ARMS = ("api_intersection", "api_floor", "api_spread", "api_sentinel")
MAIN_ARMS = ("plausible", "nucleus_first", "candidates_top20", *API_ARMS)
LIST_ARMS = tuple(arm for arm in ARM_NAMES if arm not in ("full", *MAIN_ARMS))
# What is compared. It was written down here before any of it was made.
BLOCKS = (
    {"arms": ("full",), "alphas": (-1, 0, 0.5, 1, 2, 4), "samples": 4},
    {"arms": ("full",), "alphas": (-1, 0, 1, 2, 4), "controls": CONTROL_NAMES},
    {"arms": MAIN_ARMS, "alphas": (0, 0.5, 1, 2, 4), "samples": 2},
    {"arms": LIST_ARMS, "alphas": (0, 1, 4)},
)
DRAWN = ("full", *MAIN_ARMS)
DOCUMENT = ROOT / "docs" / "RESULTS_ANALYSIS.md"


def main() -> int:
    """Make the study; return the exit code."""

    def work() -> None:
        for path in study(COMMON, BLOCKS, DOCUMENT):
            print("Wrote", shown_path(path), flush=True)

    return exit_code(work, "What is finished is kept; the same command makes the rest.")


def study(
    common: dict[str, Any],
    blocks: Sequence[dict[str, Any]],
    document: Path,
    labelled: Sequence[dict[str, Any]] | None = None,
) -> Iterator[Path]:
    """Run every block, then write tables, figures and the document, yielding their paths.

    labelled: what the scoring of answers is tried on; by default all of `calibration.LABELLED`.
    """
    from logit_amplification.evaluation import calibration, stats
    from logit_amplification.models import loading
    from logit_amplification.prompts import pairs
    from logit_amplification.records.files import refuse_unwritable, write_atomically
    from logit_amplification.reports import report, study_document, study_tables
    from logit_amplification.sweeps import sweep

    settings = load_settings(**common)
    refuse_unwritable(settings)
    model = loading.load_model(settings)
    records: dict[tuple, dict] = {}
    for number, block in enumerate(blocks, start=1):
        print(f"Block {number} of {len(blocks)}: {block}", flush=True)
        asked = load_settings(**common, **block)
        done = sweep.sweep(model, pairs.read_pairs(asked.prompts, asked.controls), asked)
        for record in done.whole_records():
            cell = ("pair_id", "alpha", "sample", "arm")
            records[tuple(record[name] for name in cell)] = record
    run = {name: value for name, value in done.run.items() if name != "pairs"}
    run["errors"] = len(records) - len(stats.without_errors(records.values()))
    folder = settings.data_dir
    described = json.dumps(run, ensure_ascii=False, indent=1) + "\n"
    yield write_atomically(folder / "study.json", described)
    tables = {"generations": stats.to_frame(records.values())}
    tables["calibration"] = calibration.calibrate(model, labelled or calibration.read_labelled())
    by_id = {pair.id: pair for pair in pairs.read_pairs(settings.prompts)}
    tables |= profile_tables(model, by_id, records.values())
    for name, table in tables.items():
        yield report.write_table(folder, f"{name}.csv", table)
    made = study_tables.read_study(folder)
    yield write_atomically(document, study_document.write_document(made))
    yield from draw(made, run, list(records.values()), settings)


def profile_tables(model: Any, by_id: dict[str, Any], records: Any) -> dict[str, Any]:
    """Return the alpha profiles of each pair's first answer at alpha 0, as tables."""
    import pandas

    from logit_amplification.engine.forward import profile_text
    from logit_amplification.logits import alpha_profile
    from logit_amplification.prompts import pairs
    from logit_amplification.reports import study_tables

    curves, changes, distances = [], [], []
    for record in records:
        first = record["alpha"] == 0 and record["sample"] == 0 and record["arm"] == "full"
        if first and not record["control"]:
            limit = {"max_new_tokens": len(record["token_ids"])}
            (encoded,) = pairs.encode_pairs(
                [by_id[record["pair_id"]]],
                model.tokenizer,
                max_positions=model.max_positions,
                **limit,
            )
            contexts = encoded.ids_a, encoded.ids_b
            found = profile_text(model.model, *contexts, record["token_ids"])
            curve = {"pair_id": record["pair_id"], **found.means()}
            curves.append(pandas.DataFrame(curve))
            changes += [
                {
                    "pair_id": record["pair_id"],
                    "position": change.position,
                    "alpha": change.alpha,
                    "before": model.tokenizer.decode([change.before]),
                    "after": model.tokenizer.decode([change.after]),
                }
                for change in found.changes
            ]
            reached = [
                alpha_profile.alpha_at(curve["alpha"], curve["kl_amplified_a"], nats)
                for nats in study_tables.TARGETS
            ]
            distances.append(
                {"pair_id": record["pair_id"]}
                | dict(zip(study_tables.DISTANCES, reached, strict=True))
            )
    return {
        "alpha_profiles": pandas.concat(curves),
        "alpha_at_distance": pandas.DataFrame(distances),
        "argmax_changes": pandas.DataFrame(changes),
    }


def draw(made: Any, run: dict[str, Any], records: list[dict], settings: Any) -> Iterator[Path]:
    """Draw the figures of the study, yielding their paths."""
    from logit_amplification.records.files import write_atomically
    from logit_amplification.reports.figures import gallery, token_view
    from logit_amplification.reports.figures.style import save_figures

    drawn = [record for record in records if record["arm"] in DRAWN and record["alpha"] >= 0]
    four = [record for record in drawn if record["arm"] in ("full", "plausible", *API_ARMS[1::2])]
    # As in the tables: arms are compared over the draws that all of them have.
    samples = [{r["sample"] for r in drawn if r["arm"] == arm} for arm in DRAWN]
    shared = [record for record in drawn if record["sample"] in set.intersection(*samples)]
    title = f"Every alpha on the same texts: {run['model']['name']}, run {run['id']}"
    alphas = sorted({record["alpha"] for record in records})
    strongest = next(r for r in records if r["alpha"] == made.largest and r["arm"] == "full")
    yield from save_figures(
        {
            "arms": gallery.draw_arms(run, shared),
            "outcomes": gallery.draw_outcomes(run, four),
            "behaviour_coherence": gallery.draw_path(run, shared),
            "alpha_profile": gallery.draw_profile(
                made.alpha_profiles, made.argmax_changes, alphas, title
            ),
            "tokens": token_view.draw_tokens(run, strongest),
        },
        settings.visualizations_dir,
    )
    page = token_view.tokens_html(run, strongest)
    yield write_atomically(settings.visualizations_dir / "tokens.html", page)


if __name__ == "__main__":
    sys.exit(main())
