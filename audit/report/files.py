"""The report as files: `write(runs, out)`."""

from __future__ import annotations

from pathlib import Path

from audit.files import write_bytes, write_text
from audit.report import markdown, model, plots

PLOT = "loss_curves.svg"


def write(runs: Path, out: Path) -> Path:
    """Read and check the run, then write `report.md` and its figure into `out`. Returns the path of the report.

    Raises RunError before anything is written, OutputError if `out` can't be written.
    """
    report = model.load(runs)
    text = markdown.render(report, plot=PLOT)
    write_bytes(out / PLOT, plots.loss_curves(report.run))
    write_text(out / "report.md", text)
    return out / "report.md"
