"""The report as files: `write(runs, out)`."""

from __future__ import annotations

from pathlib import Path

from audit.files import to_json, write_bytes, write_text
from audit.report import markdown, model, plots, timeplot

PLOT, TIMELINE = "loss_curves.svg", "timeline.svg"


def write(runs: Path, out: Path) -> Path:
    """Read and check the run, then write `report.md`, its figures and `report.json` (the judgement) into `out`.

    Returns the path of report.md. Raises RunError or LedgerError before anything is written, OutputError if `out`
    can't be written.
    """
    report = model.load(runs)
    text = markdown.render(report, plot=PLOT, timeline=TIMELINE)
    figures = {
        PLOT: plots.loss_curves(report.run),
        TIMELINE: timeplot.timeline([found.timeline for found in report.recorded]),
    }
    for name, content in figures.items():
        write_bytes(out / name, content)
    # A witness may hold half of a surrogate pair, which JSON can say and UTF-8 can't: it stays the escape that it was.
    write_bytes(out / "report.json", to_json(report.judgement.as_dict()).encode("utf-8", "backslashreplace"))
    write_text(out / "report.md", text)
    return out / "report.md"
