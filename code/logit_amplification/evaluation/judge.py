"""An optional judge: any text-classification model of transformers labels the answers.

It sees the text of an answer and nothing else, so it cannot know alpha, arm or pair. Its labels are
stored beside the journal; reports count them beside the outcomes of `outcomes.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput
from ..machine import devices
from ..models import loading, weights
from ..models.local import read_json
from ..models.spec import ModelSpec
from ..progress import Bar
from ..records.journal import Journal, text_key
from ..settings import Settings

AT_ONCE = 16  # texts per forward pass


@dataclass(frozen=True)
class Judge:
    """A text-classification model that was found on disk, its device, and its description."""

    folder: Path
    device: torch.device
    info: dict[str, Any]


def find_judge(settings: Settings) -> Judge | None:
    """Return the judge that `settings` name, or None. Raises BadInput if it is not a classifier."""
    if not settings.judge:
        return None
    try:
        folder, origin = loading.find_model(ModelSpec(settings.judge))
    except BadInput as error:
        raise BadInput(str(error).replace("MODEL =", "JUDGE =", 1)) from None
    kinds = read_json(folder / "config.json").get("architectures") or ["unknown"]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise BadInput(
            f"JUDGE = {settings.judge!r}: its architecture is {kinds[0]}; allowed: a model for "
            "text classification (...ForSequenceClassification)"
        )
    device = devices.choose_device(settings.device)
    return Judge(folder, device, {"model": settings.judge, **origin})


def label_answers(judge: Judge, journal: Journal, texts: Iterable[str]) -> None:
    """Label the texts that this judge has not labelled yet in this run, and store all labels."""
    kept = journal.judgements()
    labels = kept["labels"] if kept.get("judge") == judge.info else {}
    missing = [text for text in dict.fromkeys(texts) if text_key(text) not in labels]
    if missing:
        labels |= _labelled(judge, missing)
    journal.write("judge.json", {"judge": judge.info, "labels": labels})


def _labelled(judge: Judge, texts: list[str]) -> dict[str, Any]:
    from transformers import pipeline

    with weights.quiet_transformers():
        try:
            classify = pipeline(
                "text-classification",
                model=str(judge.folder),
                device=judge.device,
                dtype=torch.float32,
            )
        except Exception as error:  # a damaged folder may raise anything
            told = f"cannot be loaded: {type(error).__name__}: {error}"
            raise BadInput(f"JUDGE = {judge.info['model']!r} {told}") from error
        bar = Bar(texts, desc="judge", unit=" texts")
        found = classify((text for text in bar), batch_size=AT_ONCE, truncation=True)
        pairs = zip(texts, found, strict=True)
        return {text_key(t): [one["label"], round(one["score"], 6)] for t, one in pairs}
