"""Measure the workbench and its alternatives, and fill the tables of docs/PERFORMANCE.md.

    python code/benchmark.py                     # all of it (two hours on two cores)
    python code/benchmark.py peers limit         # some of it: the names are those of --help
    python code/benchmark.py gpu                 # on a machine with a GPU, under 9 minutes
    python code/benchmark.py shape --shape mistral-7b --random-weights --quantization 4bit

Alternatives run in interleaved rounds; tables show the median, the minimum and the maximum. Results
are kept in docs/performance.json, and the tables are written from it. Run nothing else on the
machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable

from benchmarks.adapters import adapters
from benchmarks.exactness import coupling, neighbours, precision
from benchmarks.gpu import gpu
from benchmarks.growth import alphas, large, length, one_size, start, width
from benchmarks.inspect_peers import inspect
from benchmarks.mistral_shape import machines, shape, true_size
from benchmarks.results import Row, keep, table
from benchmarks.scale import claims, merge, merging, plans, ranks
from benchmarks.speed import limit, peers, profile, vllm
from logit_amplification.errors import BadInput

MEASUREMENTS: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    measure.__name__: measure
    for measure in (
        peers,
        vllm,
        limit,
        width,
        alphas,
        length,
        start,
        adapters,
        inspect,
        ranks,
        claims,
        merging,
        neighbours,
        large,
        coupling,
        precision,
        shape,
        gpu,
        profile,
        machines,
        plans,
    )
}
IN_A_PROCESS = {
    "one-size": one_size,
    "true-size": true_size,
    "merge": merge,
}  # parts of the measurements above that need a fresh process


def main(flags: list[str]) -> int:
    """Run the named measurements; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=3, help="number of rounds")
    parser.add_argument("--cells", type=int, default=6, help="cells of the slow peers per round")
    parser.add_argument("--llama-python", help="python of an environment with llama-cpp-python")
    parser.add_argument("--shape", default="mistral-7b", help="architecture for `shape`")
    parser.add_argument("--random-weights", action="store_true", help="for `shape`: no download")
    parser.add_argument("--quantization", nargs="*", help="for `shape` and `gpu`")
    parser.add_argument("--widths", type=int, nargs="*", help="slots, for `shape`")
    parser.add_argument("--steps", type=int, default=30, help="for `shape`")
    parser.add_argument("--prompt", type=int, default=60, help="context tokens, for `shape`")
    for name in ("--slots", "--tokens", "--pairs"):
        parser.add_argument(name, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--alone-in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(flags)
    if options.alone_in_process:
        print(json.dumps(IN_A_PROCESS[options.names[0]](options)))
        return 0
    chosen = options.names or [name for name in MEASUREMENTS if name not in ("shape", "gpu")]
    if unknown := [name for name in chosen if name not in MEASUREMENTS]:
        print(f"error: no measurement {unknown[0]!r}; allowed: {', '.join(MEASUREMENTS)}")
        return 2
    for name in chosen:
        print(name, flush=True)
        try:
            rows = MEASUREMENTS[name](options)
            if options.shape == "tiny":  # a smoke test: its figures mean nothing
                print(table(rows))
            else:
                keep(name, rows)
        except BadInput as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
