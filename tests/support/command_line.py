"""The scripts, run as a user runs them, each in a process of its own.

Most of the time of such a process would go into importing torch. `start` forks one that has the
libraries loaded already (multiprocessing's fork server); what must start from nothing, such as
another hash seed or the absence of torch, uses `run_process`.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

from logit_amplification.locations import ROOT
from logit_amplification.records import claims

SWEEP = ROOT / "code" / "logit_diff_mistral.py"
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["loaded_libraries"])


def as_list(options):
    return [f"--{name}={value}" for name, value in options.items()]


def run_process(options, **environment):
    return subprocess.run(
        [sys.executable, str(SWEEP), *as_list(options)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


class Started:
    """A script under way: what it has printed so far, its exit code, signals to it."""

    def __init__(self, process: Any, told: Path):
        self.process, self._told = process, told

    @property
    def told(self) -> str:
        return self._told.read_text("utf-8") if self._told.exists() else ""

    @property
    def returncode(self) -> int | None:
        """None while it runs, minus the signal where one ended it."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


def start(
    options, told: Path, *, largest_file: int = resource.RLIM_INFINITY, lapse=None, **environment
) -> Started:
    """Start a sweep; what it prints goes into the file `told`.

    largest_file: a limit in bytes. lapse: seconds after which claims of the dead are taken over.
    """
    # Before Python 3.13 the fork server finds what it shall load by PYTHONPATH alone.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()
    process = _forks.Process(
        target=_sweep, args=(as_list(options), told, largest_file, lapse, environment)
    )
    process.start()
    return Started(process, told)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(count: int, options, told: Path, **more) -> list[Started]:
    """Start the processes of one launch, as launchers do, but without one that ends them all."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    address["WORLD_SIZE"] = str(count)
    told.mkdir(exist_ok=True)
    return [
        start(options, told / str(n), RANK=str(n), LOCAL_RANK=str(n), **address | more)
        for n in range(count)
    ]


def _sweep(
    flags: list[str], told: Path, largest_file: int, lapse: float | None, environment: dict
) -> None:
    os.environ.update(environment)
    if lapse is not None:
        claims.LAPSE_SECONDS = lapse
    output = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    # A shell that starts the tests in the background has them, and all below, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(ROOT)
    import logit_diff_mistral
    from logit_amplification.reports.figures import gallery

    if "RANK" in environment:  # figures are not what is tested, and take most of the time
        gallery.draw_all = lambda run, records: {}

    sys.exit(logit_diff_mistral.main(flags))


def python_of(version: str) -> str | None:
    """A working Python of that version: on the path, or among those of pyenv."""
    found = [shutil.which(f"python{version}")]
    found += Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python")
    for path in filter(None, found):
        if not subprocess.run([path, "-c", ""], capture_output=True).returncode:
            return str(path)
    return None
