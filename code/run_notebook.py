"""Execute a notebook from top to bottom, showing the output of its cells as they run.

    python code/run_notebook.py experiment_logit_amplification.ipynb OUTPUT.ipynb

Exit code 1: a cell failed, and OUTPUT holds everything up to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

WIDGET = "application/vnd.jupyter.widget-view+json"


class EchoingClient(NotebookClient):
    """Copies the text output of the cells to the terminal, progress bars included.

    In a log file a progress bar appears once, in its final state.
    """

    pending = ""

    def process_message(self, msg, cell, cell_index):
        """Echo a cell's text, then let nbclient store it."""
        if msg["msg_type"] == "stream":
            self._echo(msg["content"]["text"])
        return super().process_message(msg, cell, cell_index)

    def _echo(self, text: str) -> None:
        if sys.stdout.isatty():
            print(text, end="", flush=True)
            return
        *lines, self.pending = (self.pending + text).split("\n")
        for line in lines:
            print(line.rstrip().split("\r")[-1], flush=True)

    def end_line(self) -> None:
        """Print a last line that has no line break."""
        if self.pending:
            self._echo("\n")


def execute(source: Path, output: Path) -> None:
    """Run `source` in a fresh kernel in its own folder and write the result to `output`."""
    notebook = nbformat.read(source, as_version=4)
    folder = str(Path(source).resolve().parent)
    client = EchoingClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        store_widget_state=False,
        coalesce_streams=True,  # keep only the last state of a progress bar
        extra_arguments=["--log-level=ERROR"],  # no warning of TCP: it is loopback only
        resources={"metadata": {"path": folder}},
        on_cell_execute=lambda cell, cell_index: _announce(notebook, cell_index),
        on_cell_executed=lambda cell, cell_index, execute_reply: client.end_line(),
    )
    try:
        client.execute()
    finally:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # timestamps would make every run differ
            for result in cell.get("outputs", []):
                # A widget is dead without its kernel; its static fallback stays.
                result.get("data", {}).pop(WIDGET, None)
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, output)


def _announce(notebook: nbformat.NotebookNode, cell_index: int) -> None:
    """Print the heading directly above the cell about to run."""
    before = notebook.cells[cell_index - 1] if cell_index else None
    if before is not None and before.cell_type == "markdown" and before.source.startswith("#"):
        print(f"\n{before.source.splitlines()[0]}", flush=True)


def main(arguments: list[str]) -> int:
    """Execute the first file, write the second; return the exit code."""
    if len(arguments) != 2:
        print("usage: python code/run_notebook.py NOTEBOOK OUTPUT", file=sys.stderr)
        return 2
    try:
        execute(Path(arguments[0]), Path(arguments[1]))
    except CellExecutionError as error:
        print(f"\na cell failed: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    print(f"\nThe executed notebook is {arguments[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
