"""Every artifact of a sweep in one call: JSON, CSV and TXT into `data/`, figures besides."""

from __future__ import annotations

from pathlib import Path

from ..errors import BadInput
from ..evaluation import stats
from ..records import files
from ..settings import Settings
from ..sweeps.history import Sweep
from . import contact_sheet, report, tables
from .figures import gallery
from .figures.style import save_figures


def save_artifacts(done: Sweep, settings: Settings) -> list[Path]:
    """Write all artifacts of a sweep, replacing the last ones, and return their paths.

    Raises BadInput when there is nothing to draw: then the results and metadata are written alone.
    """
    written = [
        files.write_results(settings.data_dir, done.run, done.whole_records()),
        files.write_metadata(settings.data_dir, done.metadata),
    ]
    if not stats.without_errors(done.records):
        reason = done.records[0]["error"]
        raise BadInput(f"every generation ended with an error, the first because {reason}")
    written += report.write_reports(settings.data_dir, done.run, done.records)
    written += tables.write_parquet(settings.data_dir, done.records, done.whole_records())
    return written + save_all_figures(done, settings)


def save_all_figures(done: Sweep, settings: Settings) -> list[Path]:
    """Draw all figures of a sweep again, as PNG and SVG, and a page that shows them."""
    folder = settings.visualizations_dir
    drawn = gallery.draw_all(done.run, done.records)
    page = contact_sheet.write_page(done.run, done.records, list(drawn))
    return [
        *save_figures(drawn, folder, done.run["id"]),
        files.write_atomically(folder / "index.html", page),
    ]
