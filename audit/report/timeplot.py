"""The timeline of the validation stream as SVG bytes: `timeline(lines)`.

Position in the stream from left to right, time from top to bottom, one column for each seed, one row of panels for
each stage. A stage's panel is as high as its time asks for, but never flat: the scale of seconds is each panel's own.
Where a stage adapts while it scores, a panel of its own shows the first chunks of the stream large.

Below the place where a target was first trained or calibrated on, its column is tinted: what is counted there was
scored by weights that had seen it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from audit.errors import RunError
from audit.report.style import INK, image
from audit.timeline import COLUMNS, USES, Band, Mark, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.path import Path


class Look(NamedTuple):
    """How the marks of a use are drawn: the hatches tell them apart without colour too."""

    label: str
    face: str
    edge: str
    hatch: str
    width: float


LOOKS: Mapping[str, Look] = {
    "scored": Look("scored, not counted", "#c3cad1", "#c3cad1", "", 0.7),
    "counted": Look("scored and counted", "#0072B2", "#0072B2", "", 1.2),
    "trained": Look("trained on", "#E69F00", "#D55E00", "////", 1.4),
    "calibrated": Look("calibrated on", "#009E73", "#009E73", "", 1.4),
}
TINT, TINTED = "#fdf1da", "seen by the weights"
LEAST_HEIGHT = 0.44
"""Of a stage's panel, in that of the longest stage."""
WIDTH, TALLEST, LEFT, RIGHT, TOP, BOTTOM, WIDE, NARROW = 9.6, 1.8, 0.95, 0.15, 0.3, 0.5, 0.32, 0.14
"""Inches: of the figure and its longest stage, the margins, and the space below panels with numbers and without."""


class Panel(NamedTuple):
    """A row of the figure: the seconds at which each stage up to its own begins, what is seen of it, zoomed or not."""

    origins: tuple[float, ...]
    begin: float
    end: float
    zoomed: bool

    @property
    def stage(self) -> int:
        """The number of its stage."""
        return len(self.origins) - 1

    @property
    def origin(self) -> float:
        return self.origins[-1]

    @property
    def seconds(self) -> float:
        return self.end - self.begin


def timeline(lines: Sequence[Timeline], *, form: str = "svg") -> bytes:
    """The timelines of one or more seeds beside each other. `form` is svg or png.

    Raises RunError if they are not of one stream and the same stages.
    """
    kinds = {(line.targets, line.zoom, tuple(band.stage for band in line.bands)) for line in lines}
    if len(kinds) != 1:
        raise RunError(f"the ledgers of {len(lines)} seeds are of {len(kinds)} kinds of run; run `dvc repro verify`")
    return image(lambda: _figure(lines), form=form)


def _figure(lines: Sequence[Timeline]) -> Figure:
    from matplotlib.figure import Figure

    columns = [list(_panels(line, lines)) for line in lines]
    places = _places(columns[0], len(lines))
    figure = Figure(figsize=(WIDTH, places.height))
    for column, line in enumerate(lines):
        for row, panel in enumerate(columns[column]):
            axes = figure.add_axes(places.box(row, column))
            _draw(axes, line, panel)
            _scales(axes, line, panel, ticks=2 + round(3 * places.heights[row] / TALLEST))
            axes.tick_params(labelleft=panel.zoomed or column == 0)
            if column == 0:
                axes.set_ylabel(_title(line.bands[panel.stage], panel))
                axes.yaxis.set_label_coords(-0.55 / places.width, 0.5)
            if row == 0:
                axes.set_title(f"seed {line.seed}", loc="left")
    figure.text(0.5, 0.38 / places.height, "target in the validation stream", ha="center", color=INK)
    _legend(figure, lines)
    return figure


class Places(NamedTuple):
    """Where the panels lie, in inches: the figure's height, a panel's width, and each row's height and lower edge.

    They are computed here because the solver behind matplotlib's layouts gives another last digit now and then, and
    with it other bytes.
    """

    height: float
    width: float
    heights: tuple[float, ...]
    bottoms: tuple[float, ...]
    pitch: float
    """From a panel's left edge to the next one's."""

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, bottom, width and height in shares of the figure."""
        left = (LEFT + column * self.pitch) / WIDTH
        return left, self.bottoms[row] / self.height, self.width / WIDTH, self.heights[row] / self.height


def _places(panels: Sequence[Panel], columns: int) -> Places:
    longest = max(panel.seconds for panel in panels if not panel.zoomed)
    heights = [TALLEST * (1 if panel.zoomed else max(LEAST_HEIGHT, panel.seconds / longest)) for panel in panels]
    gaps = [WIDE if panel.zoomed or _last(panel, panels) else NARROW for panel in panels]
    height = TOP + sum(heights) + sum(gaps) + BOTTOM
    tops = [height - TOP - sum(heights[:row]) - sum(gaps[:row]) for row in range(len(panels))]
    between = 0.55 if any(panel.zoomed for panel in panels) else 0.15
    width = (WIDTH - LEFT - RIGHT - between * (columns - 1)) / columns
    bottoms = tuple(top - own for top, own in zip(tops, heights, strict=True))
    return Places(height, width, tuple(heights), bottoms, width + between)


def _last(panel: Panel, panels: Sequence[Panel]) -> bool:
    """Whether it is the last stage's panel: the one with numbers below."""
    return panel.stage == panels[-1].stage


def _title(band: Band, panel: Panel) -> str:
    return f"{band.stage}, first\nchunks, s" if panel.zoomed else f"{band.stage}, s"


def _panels(line: Timeline, lines: Sequence[Timeline]) -> Iterator[Panel]:
    """The panels of one of the seeds, from top to bottom.

    A stage is as long as the slowest seed was in it. One that trained between its scores, has a second
    panel from its first such score to the end of the training on the first targets.
    """
    origins = [0.0]
    for stage, band in enumerate(line.bands):
        origin, end = origins[-1], origins[-1] + max(0.001, *(other.bands[stage].seconds for other in lines))
        yield Panel(tuple(origins), origin, end, zoomed=False)
        if all(other.bands[stage].zoomed.get(use) for other in lines for use in ("trained", "counted")):
            marks, trained = (*band.zoomed["trained"], *band.zoomed["counted"]), band.zoomed["trained"]
            begin, last = min(mark.begin for mark in marks), max(mark.end for mark in trained)
            yield Panel(tuple(origins), origin + begin, origin + last, zoomed=True)
        origins.append(end)


def _draw(axes: Axes, line: Timeline, panel: Panel) -> None:
    """The marks of one stage of one seed, over the tint of what the weights had seen."""
    from matplotlib.patches import PathPatch

    if seen := list(_seen(line, panel)):
        axes.add_patch(PathPatch(_path(seen, 0.0), fc=TINT, lw=0, zorder=0.5))
    band = line.bands[panel.stage]
    for use in USES:
        if marks := (band.zoomed if panel.zoomed else band.marks).get(use, ()):
            look, path = LOOKS[use], _path(marks, panel.origin)
            axes.add_patch(PathPatch(path, fc=look.face, ec=look.edge, hatch=look.hatch, lw=look.width))


def _seen(line: Timeline, panel: Panel) -> Iterator[Mark]:
    """What weights had trained or calibrated on, from the second on at which they first had, to the panel's end."""
    targets, end = line.zoom if panel.zoomed else line.targets, panel.end + panel.seconds
    edges = np.linspace(0, targets, min(COLUMNS, targets) + 1)
    since = np.full(len(edges) - 1, end)
    for origin, band in zip(panel.origins, line.bands, strict=False):
        marks = band.zoomed if panel.zoomed else band.marks
        for mark in (*marks.get("trained", ()), *marks.get("calibrated", ())):
            left, right = np.searchsorted(edges, (mark.first, mark.stop))
            since[left:right] = np.minimum(since[left:right], origin + mark.end)
    turns = [0, *(np.flatnonzero(np.diff(since)) + 1).tolist(), len(since)]
    for left, right in itertools.pairwise(turns):
        if since[left] < end:
            yield Mark(round(edges[left]), round(edges[right]), float(since[left]), end)


def _scales(axes: Axes, line: Timeline, panel: Panel, *, ticks: int) -> None:
    """Targets to the right, seconds downwards."""
    from matplotlib.ticker import MaxNLocator

    air = 0.02 * panel.seconds
    axes.set_xlim(0, line.zoom if panel.zoomed else line.targets)
    axes.set_ylim(panel.end + air, panel.begin - air)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda place, _: _short(place))
    axes.yaxis.set_major_locator(MaxNLocator(ticks))
    axes.tick_params(labelbottom=panel.zoomed or panel.stage == len(line.bands) - 1)


def _path(marks: Sequence[Mark], origin: float) -> Path:
    """All rectangles as one path."""
    from matplotlib.path import Path

    corners = [
        (x, origin + y)
        for first, stop, begin, end in marks
        for x, y in ((first, begin), (stop, begin), (stop, end), (first, end), (first, begin))
    ]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(marks)
    return Path(corners, codes)


def _short(tokens: float) -> str:
    """A number of tokens as 20 k or 1.5 M."""
    for size, unit in ((1_000_000, " M"), (1_000, " k")):
        if tokens >= size:
            return f"{tokens / size:g}{unit}"
    return f"{tokens:g}"


def _legend(figure: Figure, lines: Sequence[Timeline]) -> None:
    """What the marks mean, also those that do not occur: that is said."""
    from matplotlib.patches import Patch

    shapes = [
        Patch(fc=look.face, ec=look.edge, hatch=look.hatch, label=look.label + _never(use, lines))
        for use, look in LOOKS.items()
    ]
    shapes.append(Patch(fc=TINT, ec=TINT, label=TINTED))
    figure.legend(handles=shapes, loc="lower center", ncols=len(shapes), frameon=False, borderaxespad=0.2)


def _never(use: str, lines: Sequence[Timeline]) -> str:
    return "" if any(line.total(use) for line in lines) else " (never)"
