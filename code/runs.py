"""List runs, compare two, or write a run's artifacts again without loading the model.

    python code/runs.py                         # every run: name, size, model, settings
    python code/runs.py compare 2cec 81f0       # which settings differ, which cells differ
    python code/runs.py artifacts 2cec          # bring a run back: JSON, CSV, TXT, figures
    python code/runs.py artifacts               # of the last used run (make artifacts)
    python code/runs.py figures                 # figures only, and a page of them (make figures)

Any unique prefix of its name identifies a run. Exit code 0: done; 2: bad input, reported in one
line.
"""

from __future__ import annotations

import argparse
import sys

from logit_amplification.errors import BadInput, exit_code
from logit_amplification.settings import Settings, load_settings, shown_path
from logit_amplification.sweeps import history


def main(arguments: list[str]) -> int:
    """Run with these arguments; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["list", "compare", "artifacts", "figures"])
    parser.add_argument("run", nargs="*", help="prefix of a run's name")
    parser.add_argument("--data-dir", help="as in .env")
    parser.add_argument("--visualizations-dir", help="as in .env")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options), "Artifacts are replaced in one piece each.")


def run(options: argparse.Namespace) -> None:
    """List, compare, or write artifacts."""
    folders = {"data_dir": options.data_dir, "visualizations_dir": options.visualizations_dir}
    settings = load_settings(**folders)
    if options.command == "compare":
        compare(settings, options.run)
    elif options.command in ("artifacts", "figures"):
        write_again(settings, options.command, options.run)
    else:
        for journal in history.list_runs(settings.data_dir):
            print(history.describe(journal))


def compare(settings: Settings, names: list[str]) -> None:
    """Print how two runs differ."""
    if len(names) != 2:
        raise BadInput(f"compare: {len(names)} runs named; two are needed")
    one, two = (history.find_run(settings.data_dir, name) for name in names)
    print(f"{one.id} | {two.id}", *history.compare(one, two), sep="\n")


def write_again(settings: Settings, what: str, names: list[str]) -> None:
    """Write the artifacts of a run, or its figures only, from its journal."""
    from logit_amplification.records.files import OUTPUT_FOLDERS, refuse_unwritable
    from logit_amplification.reports.artifacts import save_all_figures, save_artifacts

    if len(names) > 1:
        raise BadInput(f"{what}: {len(names)} runs named; at most one is needed")
    # Figures alone need no write access to the data folder.
    refuse_unwritable(settings, OUTPUT_FOLDERS if what == "artifacts" else OUTPUT_FOLDERS[1:])
    name = names[0] if names else ""
    print(history.describe(history.find_run(settings.data_dir, name)))
    recalled = history.recall(settings.data_dir, name)
    save = save_artifacts if what == "artifacts" else save_all_figures
    print("Wrote", *map(shown_path, save(recalled, settings)), sep="\n  ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
