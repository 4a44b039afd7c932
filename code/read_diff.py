"""Find out what training taught a model, from the difference between two sets of weights.

    python code/read_diff.py --model demo --adapter data/organisms/facts
    python code/read_diff.py --model ID --model-b ID@REVISION --alphas=-1,0,1,2

It needs no idea of what to look for: texts are generated from vague beginnings, most of them
without a chat template, at alpha -1 (B), 0 (A) and above. It reports phrases that recur in texts
with different beginnings and never in B's, by alpha; the passages of A's own texts that B finds
least likely; and the tokens whose probability A raises most, averaged over all positions of B's
texts. It writes read_diff.json and read_diff.txt into --data-dir. The flags are those of the sweep,
with some other defaults. Exit code 0: done; 2: bad input.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from pydantic_settings import InitSettingsSource

from logit_amplification.errors import exit_code
from logit_amplification.locations import shipped_file
from logit_amplification.settings import Settings, load_settings

# Replace the sweep's own defaults; flags, the environment and .env override them.
DEFAULTS = {
    "prompts": shipped_file("vague_prompts.csv"),
    "alphas": "-1,0,0.5,1,2",
    "samples": 4,
    "max_new_tokens": 60,
    "temperature": 1.0,
    "top_p": 1.0,
}


class Command(Settings):
    """Report what training taught: phrases, passages and tokens typical of A and not of B."""

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, **others):
        """Give this script's defaults the lowest priority."""
        sources = super().settings_customise_sources(settings_cls, init_settings, **others)
        return (*sources, InitSettingsSource(settings_cls, init_kwargs=DEFAULTS))


def main(flags: list[str]) -> int:
    """Run with these flags; return the exit code."""
    kept = "Finished work is kept; run the same command to make the rest."
    return exit_code(lambda: run(flags), kept)


def run(flags: list[str]) -> None:
    """Run the sweep, print what was found, and write it to files."""
    from logit_amplification.prompts.files import read_pairs
    from logit_amplification.records.files import refuse_unwritable, write_atomically

    settings = load_settings(Command, flags=flags)
    refuse_unwritable(settings)
    pairs = read_pairs(settings.prompts, settings.controls, settings.sources)

    from logit_amplification.models.loading import load_model
    from logit_amplification.sweeps.reading import read_diff, refuse_unreadable

    refuse_unreadable(settings)
    found = read_diff(load_model(settings), pairs, settings)
    text = "\n".join(told(found, settings))
    print(text)
    write_atomically(settings.data_dir / "read_diff.txt", [text, "\n"])
    content = {
        "run": found.run,
        "texts": {f"{alpha:g}": number for alpha, number in found.texts.items()},
        "phrases": [vars(one) | {"words": str(one)} for one in found.phrases],
        "windows": [one._asdict() for one in found.windows],
        "tokens": [one._asdict() for one in found.tokens],
    }
    path = settings.data_dir / "read_diff.json"
    write_atomically(path, [json.dumps(content, indent=1, ensure_ascii=False), "\n"])


def told(found: Any, settings: Any) -> Iterator[str]:
    """Yield the report line by line."""
    alphas = sorted(found.texts)
    yield f"What A writes and B never does (run {found.run}); coherent texts with it, by alpha:"
    yield "  ".join(f"{f'alpha {alpha:g}':>9}" for alpha in alphas) + "  phrase"
    yield "  ".join(f"{found.texts[alpha]:>9}" for alpha in alphas) + "  (all coherent texts)"
    for phrase in found.phrases[:40]:
        counts = "  ".join(f"{phrase.by_alpha.get(alpha, 0):>9}" for alpha in alphas)
        yield f"{counts}  {phrase} [{phrase.log_ratio:.1f} nats per token more A's]"
    if not found.phrases:
        yield "  nothing recurs"
    yield ""
    yield "Where A's own texts (alpha 0) are least like B, nats per token:"
    yield from (f"  {w.log_ratio:5.2f}  {w.pair_id}: {w.text!r}" for w in found.windows)
    yield ""
    yield "Tokens that A prefers on average over B's texts, nats:"
    yield "  " + ", ".join(f"{t.token!r} {t.mean_difference:.2f}" for t in found.tokens)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
