"""Tell the processes of one launch what to make, and divide a sweep's cells into pieces."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy

from ...engine.interface import Cell
from ...errors import BadInput
from ...records.claims import Alone, Claims, claims_folder, delete_claims
from ...records.journal import Journal, Kept
from ..history import differences, in_words
from .ranks import Ranks

# Cells of one pair that are claimed together: as many as share a context in a batch, and few enough
# that no process is left with much when the others are done.
CELLS_OF_A_PIECE = 16


def prepared(
    journal: Journal,
    configuration: Mapping[str, Any],
    plan: Mapping[str, Any],
    missing: Sequence[bool],
    slots: dict[str, Any] | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Return what all processes have to know; the first one calls it before any begins.

    missing: for every cell of the plan, whether it is to be made. slots: from `choose_slots`, or
    None. With several processes, claims left by sweeps that were killed are deleted.
    """
    name = uuid.uuid4().hex[:8]
    if ranks.size > 1:
        delete_claims(journal.folder)  # left by sweeps that were killed
        claims_folder(journal.folder, name).mkdir()
    return {
        "configuration": configuration,
        "plan": digest(plan),
        "missing": numpy.packbits(numpy.array(missing, dtype=bool)).tobytes().hex(),
        "slots": slots,
        "claims": name,
    }


def unpacked(missing: str, count: int) -> list[bool]:
    """Return `missing` as it was given to `prepared`; count: the number of cells in the plan."""
    bits = numpy.frombuffer(bytes.fromhex(missing), dtype=numpy.uint8)
    return numpy.unpackbits(bits, count=count).astype(bool).tolist()


def refuse_other_work(
    work: Mapping[str, Any],
    configuration: Mapping[str, Any],
    plan: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """Raise BadInput if this process would make something else than the first one.

    Otherwise, for example, another version of a library on one node would make tokens that nobody
    asked for.
    """
    for name, first, own in differences(
        work["configuration"], json.loads(json.dumps(configuration))
    ):
        raise BadInput(
            f"rank {ranks.number} of {ranks.size}: {name} is {in_words(own)}, and on rank 0 it is "
            f"{in_words(first)}; allowed: the same on all"
        )
    if work["plan"] != digest(plan):
        raise BadInput(
            f"rank {ranks.number} of {ranks.size} has other pairs, alphas, samples or arms than "
            "rank 0; allowed: the same on all"
        )


def share_of(
    work: Mapping[str, Any], cells: Sequence[Cell], journal: Journal, ranks: Ranks
) -> Alone | Claims:
    """Return the object that gives this process its cells."""
    if ranks.size == 1:
        return Alone(cells)
    pieces = list(cut_up(cells))
    folder = claims_folder(journal.folder, work["claims"])
    start = ranks.number * len(pieces) // ranks.size
    return Claims(folder, str(ranks.number), pieces, start=start)


def cut_up(cells: Iterable[Cell]) -> Iterable[list[Cell]]:
    """Yield pieces of the cells: consecutive cells of one pair, at most `CELLS_OF_A_PIECE`."""
    for _, group in groupby(cells, key=lambda cell: cell.pair_id):
        of_pair = list(group)
        for first in range(0, len(of_pair), CELLS_OF_A_PIECE):
            yield of_pair[first : first + CELLS_OF_A_PIECE]


def described(ranks: Ranks, made: Iterable[Kept]) -> dict[str, Any]:
    """Return the metadata entry `ranks`: what each process has made. Empty for a single process."""
    if ranks.size == 1:
        return {}
    counts = Counter(Path(kept.file).stem for kept in made)
    return {"ranks": [{"rank": n, "generations": counts[str(n)]} for n in range(ranks.size)]}


def digest(plan: Mapping[str, Any]) -> str:
    """Return a hash that distinguishes plans."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
