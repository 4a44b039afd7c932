"""The workbench's side of the vLLM engine: it starts a worker process and talks to it.

vLLM pins other versions of torch and transformers than the workbench, so nothing here imports it.
The worker receives the contexts and the request once, then cells as it has room for them, and sends
generations back as they finish. The rule is sent with cloudpickle.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import cloudpickle

from ...errors import BadInput
from ...machine import sizes
from ...models.adapters import adapter_config
from ...models.local import read_json
from ..batch.batched import Pending
from ..interface import Cell, Contrast, Generation, Request
from .pairing import FOLDER

# Raise this with every change in this folder that can alter a token or a measure.
VERSION = 1
PACKAGE = Path(__file__).parents[2]
BLOCK = 128  # positions; the largest block size of vLLM's cache on a CPU
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
HOW = "make vllm installs it (docs/SCALE.md)"
# Variables that a launcher sets for the sweep's own process; vLLM would act on them as well.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # requests must not arrive during a step
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",  # the model is already on this machine
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # V1 is what was tested with vLLM itself
}
ASKED = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": list(sys.version_info[:2])}
for name in ("vllm", "vllm-cpu", "torch", "transformers"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@lru_cache
def environment_of(python: Path) -> dict[str, Any]:
    """Return the versions in vLLM's environment; `python` is its interpreter.

    The keys are python, torch, transformers, and vllm or vllm-cpu. Raises BadInput if Python or
    vLLM is missing there, or if its Python is of another version than this one: the pickled code of
    a rule could not be read there.
    """
    try:
        asked = subprocess.run(
            [str(python), "-c", ASKED], capture_output=True, text=True, check=True, timeout=60
        )
        found = json.loads(asked.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise BadInput(f"VLLM_PYTHON = {str(python)!r}: no Python runs there; {HOW}") from None
    if not {"vllm", "vllm-cpu"} & set(found):
        raise BadInput(f"VLLM_PYTHON = {str(python)!r}: vLLM is not installed there; {HOW}")
    if found["python"] != list(sys.version_info[:2]):
        theirs, ours = (".".join(map(str, two[:2])) for two in (found["python"], sys.version_info))
        raise BadInput(
            f"VLLM_PYTHON = {str(python)!r} is Python {theirs}, and this is {ours}; allowed: the "
            "same, for the rule's code goes from one to the other"
        )
    return found


def device_of(python: Path) -> str:
    """Return where vLLM runs, "cpu" or "cuda": its build for CPUs is a separate package."""
    return "cpu" if "vllm-cpu" in environment_of(python) else "cuda"


def described(python: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `VllmEngine.describe` would return, without building an engine."""
    found = environment_of(python)
    versions = {
        "vllm": found.get("vllm") or found["vllm-cpu"],
        **{name: found[name] for name in ("torch", "transformers")},
    }
    return {"name": "vllm", "version": VERSION, "versions": versions, "options": dict(options)}


class VllmEngine:
    """Makes generations in a vLLM process that lives from the first cell until `close`.

    folder: holds the model's weights. longest: the maximum number of positions of a context with
    its answer. adapter: a folder with a PEFT adapter, for streams whose source is `model`; the
    others are read without it. paraphrases: by pair id, token ids under which answers are scored as
    well (`Generation.nll_p`). options: additional arguments of vLLM's class `LLM`. on_start: called
    before the process starts, which takes a while.
    """

    def __init__(
        self,
        folder: Path,
        *,
        python: Path,
        dtype: str,
        slots: int,
        longest: int,
        adapter: str = "",
        paraphrases: Mapping[str, tuple[int, ...]] | None = None,
        options: Mapping[str, Any] | None = None,
        on_start: Callable[[], None] = lambda: None,
    ):
        self.slots, self.python, self.options = slots, python, dict(options or {})
        self.paraphrases = dict(paraphrases or {})
        on_cpu = device_of(python) == "cpu"
        usual = {
            "model": str(Path(folder).resolve()),
            "dtype": dtype,
            "max_model_len": longest,
            # Two streams per slot, and texts that are scored.
            "max_num_seqs": 2 * slots + 8,
            "max_num_batched_tokens": max(8192, 2 * longest),
            "enforce_eager": on_cpu,
            "generation_config": "vllm",
            "disable_log_stats": True,
            "async_scheduling": False,  # a step must know what the last one drew
            "seed": 0,
        }
        if on_cpu:  # otherwise vLLM takes nearly all memory
            cache = sizes.cache_shape(read_json(Path(folder) / "config.json"))
            of_slot = sizes.slot_bytes(cache, 0, longest + 2 * BLOCK, ITEMSIZE[dtype])
            usual["kv_cache_memory_bytes"] = (slots + 8) * of_slot["keys_and_values"]
        if adapter:
            usual |= {
                "enable_lora": True,
                # One more than needed: on a CPU, vLLM 0.32 reads rows without an adapter with the
                # last adapter slot, which must therefore be empty (docs/LOG.md).
                "max_loras": 2,
                "max_lora_rank": _rank(Path(adapter).expanduser()),
            }
        second = (ENVIRONMENT | os.environ)["VLLM_USE_V2_MODEL_RUNNER"] == "1"
        usual["logits_processors"] = [processor_of("V2" if second else "V1")]
        adapter = str(Path(adapter).expanduser().resolve()) if adapter else None
        self.setup = {"options": usual | self.options, "adapter": adapter, "slots": slots}
        self.on_start = on_start
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start vLLM's process if it is not running, and wait until it has loaded the model.

        Raises BadInput when that fails.
        """
        if self.process:
            return
        self.on_start()
        self.scratch = tempfile.TemporaryDirectory(prefix="logit-amplification-vllm-")
        self.log = Path(self.scratch.name) / "log"
        self.connection, self.process = self._spawn()
        atexit.register(self.close)
        self._send(self.setup)
        self.limits = self._received("ready")

    def describe(self) -> dict[str, Any]:
        """Return what can change a token in this engine."""
        return described(self.python, self.options)

    def capacity(self) -> int:
        """Return how many cells are decoded side by side."""
        return self.slots

    def generate(
        self, cells: Iterable[Cell | None], contexts: Mapping[str, Contrast], request: Request
    ) -> Iterator[Generation]:
        """Yield each cell's generation as soon as it is finished.

        Raises BadInput when a pair does not fit into vLLM's limits, and when vLLM fails.
        """
        pending, inside = Pending(cells), 0
        if not pending:
            return
        self.start()
        # on_step, and the objects of this process that it holds, stay here.
        self._send((replace(request, on_step=_nobody), dict(contexts), self.paraphrases))
        kind, ending = "", False
        while kind != "ended":
            while not ending and inside < self.slots and pending:
                self.connection.send(("cell", pending.take()))
                inside += 1
            if not inside and not ending:
                self.connection.send(("end", None))
                ending = True
            kind, told = self._message()
            if kind == "stepped":
                request.on_step(told)
            elif kind == "finished":
                inside -= 1
                yield told

    def close(self) -> None:
        """Stop vLLM's process if it was started."""
        if not self.process:
            return
        atexit.unregister(self.close)
        self.connection.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.scratch.cleanup()

    def _spawn(self) -> tuple[Connection, subprocess.Popen]:
        scratch = Path(self.scratch.name)
        # The other Python sees only our package, not what is installed beside it.
        (scratch / "code").mkdir()
        (scratch / "code" / PACKAGE.name).symlink_to(PACKAGE)
        ours, theirs = Pipe()
        environment = {n: v for n, v in os.environ.items() if n not in LAUNCHER}
        environment = ENVIRONMENT | environment | {"PYTHONPATH": str(scratch / "code")}
        environment[FOLDER] = str(scratch)
        if "LOCAL_RANK" in os.environ and "CUDA_VISIBLE_DEVICES" not in os.environ:
            environment["CUDA_VISIBLE_DEVICES"] = os.environ["LOCAL_RANK"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [self.python, "-m", f"{__package__}.worker", str(theirs.fileno())],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                start_new_session=True,  # Ctrl-C goes to the sweep, which stops this process
            )
        theirs.close()
        return ours, process

    def _send(self, message: Any) -> None:
        try:
            self.connection.send_bytes(cloudpickle.dumps(message))
        except OSError:
            self._fail()

    def _received(self, kind: str) -> Any:
        found, told = self._message()
        assert found == kind, found
        return told

    def _message(self) -> tuple[str, Any]:
        try:
            kind, told = self.connection.recv()
        except (EOFError, OSError):
            self._fail()
        if kind == "failed":
            kind, message = told
            said = message if kind == "bad input" else f"{kind}: {message}"
            raise BadInput(f"ENGINE = vllm: {said}")
        return kind, told

    def _fail(self) -> None:
        self.process.wait(timeout=10)
        lines = self.log.read_text("utf-8", errors="replace").strip().splitlines()
        raise BadInput(
            f"ENGINE = vllm: its process has ended ({self.process.returncode}): "
            f"{lines[-1] if lines else 'no message'}"
        ) from None


def processor_of(runner: str) -> str:
    """Return the logits processor for vLLM's model runner "V1" or "V2", as `module:Class`."""
    return f"{__package__}.processor_{runner.lower()}:Amplify{runner}"


def _nobody(tokens: int) -> None:
    """Do nothing: this replaces on_step in the worker."""


def _rank(adapter: Path) -> int:
    """Return the smallest LoRA rank that vLLM supports and that this adapter fits into."""
    rank = adapter_config(adapter).get("r", 8)
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
