"""Every artifact of a sweep in one call: JSON, CSV and TXT into `data/`, PNG besides."""

from __future__ import annotations

from pathlib import Path

from . import figures, report, store
from .settings import Settings
from .sweep import Sweep


def save_artifacts(done: Sweep, settings: Settings) -> list[Path]:
    """Write all artifacts of a finished sweep, replacing the last ones, and return their paths."""
    drawn = figures.draw_all(done.run, done.records)
    return [
        store.write_results(settings.data_dir, done.run, done.whole_records()),
        store.write_metadata(settings.data_dir, done.metadata),
        *report.write_reports(settings.data_dir, done.run, done.records),
        *figures.save_figures(drawn, settings.visualizations_dir),
    ]
