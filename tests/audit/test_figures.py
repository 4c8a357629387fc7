"""The report's figures: they depend on the numbers alone, and show every seed and every use of the stream."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from audit.errors import RunError
from audit.report import plots, timeplot
from audit.report.recorded import read
from audit.report.style import image
from audit.runs import read_data, read_run
from audit.timeline import Band, Mark, Timeline
from tests.audit.staged import CHUNK, MODES

Write = Callable[..., Path]
Files = dict[str, Any]


def test_the_figure_depends_on_the_numbers_alone(write_runs: Write, tmp_path: Path) -> None:
    """Equal runs give equal bytes, also under a user's own matplotlib settings; another loss gives others."""
    run = read_run(write_runs(tmp_path))
    first = plots.loss_curves(run)
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "svg.hashsalt": None}):
        assert plots.loss_curves(run) == first
        assert mpl.rcParams["font.size"] == 20
    assert b"<dc:date>" not in first
    assert plots.loss_curves(read_run(write_runs(tmp_path / "other", val_loss_nats=[3.0, 3.1, 3.2]))) != first


@pytest.mark.parametrize(("seeds", "steps"), [((1,), 1), ((1, 2), 20), ((1, 2, 3, 4, 5), 2000), (range(7), 30)])
def test_the_figure_shows_every_seed(write_runs: Write, tmp_path: Path, seeds: tuple[int, ...], steps: int) -> None:
    """Well-formed SVG on white, in which each seed's colour is drawn, for short and long runs."""
    image = plots.loss_curves(read_run(write_runs(tmp_path, seeds=seeds, steps=steps))).decode()
    assert ElementTree.fromstring(image).tag.endswith("svg")
    assert "#ffffff" in image
    used = [colour for colour in plots.COLOURS if colour.lower() in image]
    assert len(used) == min(len(seeds), len(plots.COLOURS))


def test_the_loop_switch_is_drawn_once(write_runs: Write, tmp_path: Path) -> None:
    """The line of the loop switch is there if all seeds switched at one step, and not if they differ."""

    def differ(tree: Files) -> None:
        tree["train/42/metrics.json"]["loop_step"] = 60

    run = read_run(write_runs(tmp_path / "same"))
    assert plots._loop_step(run.seeds, 150) == 75
    assert plots._loop_step(run.seeds, 75) is None
    assert plots._loop_step(read_run(write_runs(tmp_path / "differ", edit=differ)).seeds, 150) is None


def test_smoothing_keeps_short_series_and_the_mean_of_long_ones() -> None:
    """A short curve is drawn as it is; of a line the smoothed curve is the line."""
    short = plots.Series(steps=tuple(range(79)), values=tuple(float(i) for i in range(79)))
    assert plots._smooth(short) == short
    long = plots.Series(steps=tuple(range(1000)), values=tuple(float(i) for i in range(1000)))
    found = plots._smooth(long)
    assert 100 < len(found.steps) < 1000
    assert all(abs(step - value) <= 0.5 for step, value in zip(found.steps, found.values, strict=True))


def lines(runs: Path, seeds: tuple[int, ...] = (42,)) -> list[Timeline]:
    """The timelines of a run's seeds."""
    data = read_data(runs / "data" / "data.json")
    return [read(runs, seed, data, zoom=8 * CHUNK).timeline for seed in seeds]


@pytest.mark.parametrize("mode", MODES)
def test_the_timeline_shows_each_use(write_runs: Write, tmp_path: Path, mode: str) -> None:
    """Well-formed SVG in which the colours are those of the uses that occurred, and no other's marks are drawn."""
    found = lines(write_runs(tmp_path, seeds=(42,), mode=mode))
    figure = timeplot._figure(found)
    drawn = {mpl.colors.to_hex(patch.get_facecolor()).upper() for axes in figure.axes for patch in axes.patches}
    uses = {use for use in timeplot.LOOKS if found[0].total(use)}
    tint = {timeplot.TINT.upper()} if uses & {"trained", "calibrated"} else set()
    assert drawn == {timeplot.LOOKS[use].face.upper() for use in uses} | tint
    labels = [label.get_text() for label in figure.legends[0].get_texts()]
    assert [label.endswith("(never)") for label in labels[:-1]] == [use not in uses for use in timeplot.LOOKS]
    assert ElementTree.fromstring(timeplot.timeline(found)).tag.endswith("svg")
    assert len(figure.axes) == 3 + (mode in ("score_first", "rescore"))


@pytest.mark.parametrize("seeds", [(1,), (1, 2), (5, 4, 3), (1, 2, 3, 4, 5)])
def test_the_timeline_has_a_column_for_each_seed(write_runs: Write, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """For 1, 2, 3 and 5 seeds: their names above, the stages beside, targets to the right and time downwards."""
    figure = timeplot._figure(lines(write_runs(tmp_path, seeds=seeds), seeds))
    assert [axes.get_title(loc="left") for axes in figure.axes[::3]] == [f"seed {seed}" for seed in seeds]
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["train, s", "quantize, s", "evaluate, s"]
    assert {axes.get_xlim() for axes in figure.axes} == {(0, 51_456)}
    assert all(bottom > top for bottom, top in (axes.get_ylim() for axes in figure.axes))


def test_equal_ledgers_give_an_equal_timeline(write_runs: Write, tmp_path: Path) -> None:
    """The bytes depend on the ledgers alone; other ledgers give others."""
    first = timeplot.timeline(lines(write_runs(tmp_path / "one", seeds=(42,))))
    assert timeplot.timeline(lines(write_runs(tmp_path / "two", seeds=(42,)))) == first
    assert timeplot.timeline(lines(write_runs(tmp_path / "other", seeds=(42,), mode="prequant"))) != first


def band(seconds: float, **marks: tuple[Mark, ...]) -> Band:
    return Band(stage="s", seconds=seconds, marks=marks, zoomed={}, unplaced=0)


def test_the_tint_begins_after_the_first_use() -> None:
    """What weights have seen is tinted from the end of its first use on, in later stages from their beginning on."""
    bands = (
        band(10.0, trained=(Mark(0, 50, 2.0, 3.0), Mark(0, 100, 6.0, 7.0))),
        band(5.0, calibrated=(Mark(50, 75, 0, 1),)),
    )
    line = Timeline(seed=1, targets=100, zoom=0, bands=bands)
    first, second = timeplot._panels(line, [line])
    assert [mark[:3] for mark in timeplot._seen(line, first)] == [(0, 50, 3.0), (50, 100, 7.0)]
    assert [mark[:3] for mark in timeplot._seen(line, second)] == [(0, 50, 3.0), (50, 100, 7.0)]
    assert list(timeplot._seen(dataclasses.replace(line, bands=(band(10.0),)), first)) == []


def test_seeds_of_other_streams_are_not_drawn_together(write_runs: Write, tmp_path: Path) -> None:
    """One scale of targets and one list of stages for all, or the figure is refused."""
    (line,) = lines(write_runs(tmp_path, seeds=(42,)))
    with pytest.raises(RunError, match=r"2 seeds are of 2 kinds of run; run `dvc repro verify`"):
        timeplot.timeline([line, dataclasses.replace(line, targets=7)])


def test_a_figure_is_a_png_too(write_runs: Write, tmp_path: Path) -> None:
    """The same figure as pixels, for eyes without a browser."""
    found = lines(write_runs(tmp_path, seeds=(42,)))
    assert image(lambda: timeplot._figure(found), form="png").startswith(b"\x89PNG")
