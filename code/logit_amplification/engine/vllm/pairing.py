"""Find the rows of vLLM's batch that belong to one cell, and draw one token for all of them.

vLLM knows requests, not cells: each stream of a cell is a request of its own. At every step this
module finds the rows of each cell, draws its token from their logits in the same way as the other
engines, and leaves that token as the only possible one in all of these rows. So they append the
same token and end together. If the rows of a cell are not scheduled together, it raises OutOfStep
and never continues with another token.

This runs in vLLM's process, once for each rank of a tensor-parallel group.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import torch
from torch import Tensor

from ..batch.drawing import ROWS_AT_ONCE, append_row, draw_rows, most_likeliest
from ..interface import Cell, Generation, Request

FOLDER = "LOGIT_AMPLIFICATION_VLLM"  # environment variable: the folder for requests and results
NAME = "logit_amplification"  # key of our part of vLLM's `extra_args`


class OutOfStep(RuntimeError):
    """vLLM has scheduled a cell's rows apart: a token drawn from them would be wrong."""


class Row(NamedTuple):
    """A row of vLLM's batch: its number, our `extra_args`, and how many tokens it has drawn."""

    number: int
    told: dict[str, Any]
    step: int


class Pairing:
    """The cells in progress and their generations."""

    def __init__(self):
        self.folder = Path(os.environ[FOLDER])
        distributed = torch.distributed
        is_first = not distributed.is_initialized() or distributed.get_rank() == 0
        self.results = (self.folder / "finished").open("ab") if is_first else None
        self.made: dict[str, Generation] = {}
        self.numbers: dict[str, list[float]] = {}
        self.ended: set[str] = set()  # vLLM may still run these for one step
        self.request: tuple[int, Request] | None = None  # the current request and its number

    def draw(self, logits: Tensor, rows: Iterable[Row]) -> None:
        """Draw the next token of every cell, and make it the only possible one in the cell's rows.

        logits: (rows, vocab), changed in place. Raises OutOfStep when the rows of a cell do not
        belong to the same step.
        """
        cells = self._together(rows)
        if not cells:
            return
        over = cells.keys() & self.ended
        drawn = [name for name in cells if name not in over]
        at_once = ROWS_AT_ONCE.get(logits.device.type, len(cells))
        for first in range(0, len(drawn), at_once):
            part = drawn[first : first + at_once]
            self._draw(logits, [(name, cells[name]) for name in part])
        for name in over:
            self._force(logits, [row.number for row in cells[name]], 0)

    def _together(self, rows: Iterable[Row]) -> dict[str, list[Row]]:
        """Return the rows of each cell, in the order of its streams. Raises OutOfStep."""
        cells: dict[str, list[Row]] = {}
        for row in rows:
            cells.setdefault(row.told["cell_id"], []).append(row)
        for name, own in cells.items():
            own.sort(key=lambda row: row.told["row"])
            numbers, steps = [row.told["row"] for row in own], {row.step for row in own}
            if numbers != list(range(own[0].told["rows"])) or len(steps) > 1:
                raise OutOfStep(
                    f"cell {name}: rows {numbers} of {own[0].told['rows']} were scheduled "
                    f"together, with {sorted(row.step for row in own)} tokens drawn"
                )
            self._begin_or_check(name, own[0])
        return cells

    def _begin_or_check(self, name: str, row: Row) -> None:
        if name in self.ended:
            return
        if row.step == 0:
            cell = Cell(*row.told["cell"])
            self.made[name] = Generation(cell, slots=row.told["slots"])
            own = self._request(row.told["request"]).of_cell(cell)
            self.numbers[name] = own.uniforms(cell).tolist()
        known = len(self.made[name].token_ids) if name in self.made else None
        if known != row.step:
            raise OutOfStep(f"cell {name}: {row.step} tokens drawn, and {known} are known")

    def _draw(self, logits: Tensor, cells: Sequence[tuple[str, list[Row]]]) -> None:
        device = logits.device
        whole = self._request(cells[0][1][0].told["request"])
        places = [[rows[place] for place in rows[0].told["streams"]] for _, rows in cells]
        streams = [
            logits[torch.tensor([row.number for row in stream], device=device)].float()
            for stream in zip(*places, strict=True)
        ]
        generations = [self.made[name] for name, _ in cells]
        requests = [whole.of_cell(one.cell) for one in generations]
        numbers = [self.numbers[name][rows[0].step] for name, rows in cells]
        tokens, told = draw_rows(
            streams,
            [one.cell.arm for one in generations],
            torch.tensor([[one.cell.alpha] for one in generations], device=device),
            torch.tensor(numbers, dtype=torch.float64, device=device),
            requests,
            whole.rule,
            most_likeliest(requests),
        )
        told = told.tolist()
        for (name, rows), generation, row, request, token in zip(
            cells, generations, told, requests, tokens.tolist(), strict=True
        ):
            append_row(generation, row, request)
            if generation.finish_reason:
                self._end(name)
            self._force(logits, [one.number for one in rows], token)

    @staticmethod
    def _force(logits: Tensor, rows: list[int], token: int) -> None:
        logits[rows] = -torch.inf
        logits[rows, token] = 0.0

    def _end(self, name: str) -> None:
        generation = self.made.pop(name)
        del self.numbers[name]
        self.ended.add(name)
        if self.results:
            pickle.dump((name, generation), self.results)
            self.results.flush()

    def _request(self, number: int) -> Request:
        if self.request is None or self.request[0] != number:
            content = (self.folder / f"request-{number}").read_bytes()
            self.request = number, cloudpickle.loads(content)
            self.ended.clear()
        return self.request[1]


def told_of(params: Any) -> dict[str, Any] | None:
    """Return our part of vLLM's sampling parameters, or None for a request that is not ours."""
    return (params.extra_args or {}).get(NAME)
