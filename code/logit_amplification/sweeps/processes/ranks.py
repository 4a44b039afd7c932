"""Find the processes of one launch, and let them agree on the work before it starts.

`torchrun` and `accelerate launch` number their processes and give each the address of a key-value
store (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT: torch's `env://`). The first process decides and
the others follow. After that they coordinate only through the data folder, so one may die without
the rest.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from ...errors import BadInput

# One process may still be downloading the model while the others are ready.
PATIENCE = timedelta(minutes=60)
_sweeps = itertools.count()


class Ranks:
    """The processes that share a sweep. Without a launcher there is one, which agrees with itself.

    Values that are exchanged must be what JSON can hold.
    """

    def __init__(self, number: int, size: int, store: Any = None):
        self.number, self.size, self.store = number, size, store
        self.name = f"sweep{next(_sweeps)}"  # all make the same sweeps in the same order

    @classmethod
    def here(cls) -> Ranks:
        """Return the rank that a launcher has given to this process.

        Raises BadInput if the launcher's variables are invalid, or if the store cannot be reached.
        """
        size = _number("WORLD_SIZE", 1)
        if size == 1:
            return cls(0, 1)
        number = _number("RANK", None)
        if not 0 <= number < size:
            raise BadInput(f"RANK = {number}; allowed: 0 to WORLD_SIZE - 1, which is {size - 1}")
        from torch.distributed.rendezvous import rendezvous

        try:
            store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        except (RuntimeError, ValueError) as error:
            raise BadInput(
                f"rank {number} of {size} cannot reach the others at MASTER_ADDR = "
                f"{os.environ.get('MASTER_ADDR', '')!r}, MASTER_PORT = "
                f"{os.environ.get('MASTER_PORT', '')!r}: {str(error).splitlines()[0]}"
            ) from None
        return cls(number, size, store)

    @property
    def is_first(self) -> bool:
        """Whether this process decides, and writes plan, rerun marks and artifacts."""
        return self.number == 0

    def decided(self, name: str, decide: Callable[[], Any]) -> Any:
        """Return what the first process decides; `decide` is called only there.

        name: the key of the value in the store. Raises BadInput if the first process ends, or does
        not answer in time.
        """
        if not self.is_first:
            return self._told(name)
        value = decide()
        if self.store:
            self.store.set(f"{self.name}/{name}", json.dumps(value))
        return value

    def gathered(self, name: str, value: Any) -> list[Any]:
        """Return the values of all processes in the first one, and [value] in the others.

        Raises BadInput, in the first process, if another one ends or does not answer in time.
        """
        if not self.is_first:
            self.store.set(f"{self.name}/{name}/{self.number}", json.dumps(value))
            return [value]
        return [value, *(self._told(f"{name}/{other}") for other in range(1, self.size))]

    def _told(self, name: str) -> Any:
        try:
            return json.loads(self.store.get(f"{self.name}/{name}"))
        except RuntimeError:
            raise BadInput(
                f"rank {self.number} of {self.size} timed out waiting for {name!r}: another rank "
                "has ended, or began more than an hour later"
            ) from None


def _number(variable: str, default: int | None) -> int:
    given = os.environ.get(variable, "" if default is None else str(default))
    try:
        return int(given)
    except ValueError:
        raise BadInput(
            f"{variable} = {given!r} (environment); allowed: what torchrun or accelerate sets"
        ) from None
