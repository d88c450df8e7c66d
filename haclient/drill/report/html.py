"""The page."""

from __future__ import annotations

from pathlib import Path

from haclient.drill.report.results import Results


def write_html(path: Path, results: Results) -> None:
    """Write one self-contained page."""
    path.write_text("<!doctype html><title>haclient drill</title>" + "".join(v.sentences for v in results.verdicts()))
