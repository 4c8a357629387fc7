"""The timeline: what was used is drawn where and when it was, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import LedgerError, RunError
from audit.evidence import Stage
from audit.timeline import COLUMNS, MOST_MARKS, ROWS, SECOND, USES, Band, Grid, Mark, Timeline, rectangles, timeline
from tests.audit.staged import CHUNK, LENGTH, MODES, TARGETS, Scribe, staged

SHARDS = [TARGETS + 257]


def seed(folder: Path, mode: str, *, zoom: int = 8 * CHUNK, seed: int = 42) -> Timeline:
    """The timeline of a seed in a mode."""
    for name, content in staged(seed, mode)[0].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    stages = [Stage.open(folder / f"ledger/clock.{stage}.{seed}") for stage in ("train", "quantize", "evaluate")]
    return timeline(seed, stages, shards=SHARDS, zoom=zoom)


def one_stage(folder: Path, write: Callable[[Scribe], None], *, shards: list[int], facts: bool = True) -> Band:
    """The band of a stage that `write` recorded."""
    scribe = Scribe(folder / "rank0.ledger")
    scribe.note("run", stage="evaluate", seed=1, **({"length": LENGTH} if facts else {}))
    write(scribe)
    scribe.writer.seal({})
    return timeline(1, [Stage.open(folder)], shards=shards, zoom=0).bands[0]


def covered(marks: tuple[Mark, ...]) -> int:
    """How many targets lie under marks."""
    return len({target for mark in marks for target in range(mark.first, mark.stop)})


ranges = st.lists(
    st.tuples(st.integers(0, 3 * ROWS), st.integers(0, COLUMNS - 1), st.integers(1, 30)), min_size=1, max_size=40
)


@given(ranges, st.integers(1, 3))
def test_small_grids_are_exact(events: list[tuple[int, int, int]], parts: int) -> None:
    """With a cell for each target, and rows as long as they are, the touched cells are those that were added."""
    grid = Grid(COLUMNS)
    for chunk in np.array_split(np.array(events), parts):
        if len(chunk):
            grid.add(chunk[:, 0] << 20, chunk[:, 1], chunk[:, 1] + chunk[:, 2])
    row = grid.tick / SECOND

    def cells(marks: list[tuple[int, int, float, float]]) -> set[tuple[int, int]]:
        return {
            (target, tick)
            for first, stop, begin, end in marks
            for target in range(first, min(stop, COLUMNS))
            for tick in range(round(begin / row), round(end / row))
        }

    added = {
        (target, (tick << 20) // grid.tick)
        for tick, first, count in events
        for target in range(first, min(first + count, COLUMNS))
    }
    assert cells([tuple(mark) for mark in grid.marks()]) == added


@given(
    st.lists(st.tuples(st.integers(0, 2**45), st.integers(0, 10**7), st.integers(1, 10**5)), min_size=1, max_size=30),
    st.integers(1, 10**7),
)
def test_large_grids_cover_what_happened_and_little_else(events: list[tuple[int, int, int]], targets: int) -> None:
    """Every range lies under marks; every mark touches a range, to a cell's width and length."""
    grid = Grid(targets)
    for clock, first, count in events:
        grid.add(np.array([clock]), np.array([first]), np.array([first + count]))
    marks, tick = grid.marks(), grid.tick / SECOND
    inside = [(clock, first, min(first + count, targets)) for clock, first, count in events if first < targets]
    for clock, first, stop in inside:
        over = sorted(mark for mark in marks if mark.begin <= clock / SECOND < mark.end)
        reach = first
        for mark in over:
            reach = mark.stop if mark.first <= reach < mark.stop else reach
        assert reach >= stop, "a range is covered without a gap"
    for mark in marks:
        near = [(first, stop) for clock, first, stop in inside if mark.begin - 1e-9 <= clock / SECOND < mark.end + 1e-9]
        width = targets // COLUMNS + 1
        assert any(first - width < mark.stop and mark.first < stop + width for first, stop in near)
        assert 0 <= mark.first < mark.stop <= targets
    if inside:
        assert (max(clock for clock, *_ in inside) - min(clock for clock, *_ in inside)) / SECOND < ROWS * tick


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=9))
def test_rectangles_are_the_cells(rows: list[list[bool]]) -> None:
    """The rectangles are disjoint and together exactly the touched cells."""
    touched = np.array(rows)
    again = np.zeros(touched.shape, dtype=int)
    for left, right, top, bottom in rectangles(touched):
        assert left < right
        assert top < bottom
        again[top:bottom, left:right] += 1
    assert (again == touched).all()


def test_marks_are_bounded() -> None:
    """A use that is scattered over all cells is drawn in fewer, longer rows, and covers no less."""
    grid = Grid(COLUMNS)
    ticks, columns = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    scattered = (ticks + columns) % 2 == 0
    assert sum(1 for _ in rectangles(scattered.reshape(ROWS, COLUMNS))) > MOST_MARKS
    grid.add(ticks[scattered] << 20, columns[scattered], columns[scattered] + 1)
    marks = grid.marks()
    assert len(marks) <= MOST_MARKS
    assert covered(marks) == COLUMNS


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_shows_what_it_did(tmp_path: Path, mode: str) -> None:
    """Which stage scored, counted, calibrated on and trained on validation tokens, in every mode."""
    found = seed(tmp_path, mode)
    assert [band.stage for band in found.bands] == ["train", "quantize", "evaluate"]
    uses = {band.stage: {use for use in USES if band.marks[use]} for band in found.bands}
    assert uses["train"] == {"scored"}
    assert uses["quantize"] == {"prequant": {"scored", "trained"}, "calibration": {"calibrated"}}.get(mode, set())
    adapts = {"trained"} if mode in ("score_first", "rescore") else set()
    assert uses["evaluate"] == {"scored", "counted"} | adapts
    assert found.total("counted") >= 1
    assert all(covered(band.marks["counted"]) >= TARGETS for band in found.bands[2:])
    assert [round(band.seconds, 1) for band in found.bands[:1]] == [43.0]
    assert {band.unplaced for band in found.bands} == {0}


def test_a_fit_covers_the_stream_before_the_score(tmp_path: Path) -> None:
    """prequant: by the end of quantize every target was trained on, and none had been counted."""
    _, quantize, _ = seed(tmp_path, "prequant").bands
    assert covered(quantize.marks["trained"]) >= TARGETS
    assert not quantize.marks["counted"]


def test_the_staircase_is_score_then_train(tmp_path: Path) -> None:
    """score_first: in the first chunks each target is counted once, and trained on later, never before."""
    band = seed(tmp_path, "score_first").bands[2]
    for chunk in range(8):
        inside = {
            use: [mark for mark in band.zoomed[use] if mark.first < (chunk + 1) * CHUNK and mark.stop > chunk * CHUNK]
            for use in ("counted", "trained")
        }
        (counted,), (trained,) = inside["counted"], inside["trained"]
        assert (counted.first, counted.stop) == (trained.first, trained.stop) == (chunk * CHUNK, (chunk + 1) * CHUNK)
        assert counted.end <= trained.begin
    assert max(mark.stop for use in USES for mark in band.zoomed[use]) == 8 * CHUNK


def test_rows_stand_behind_the_shards_before_theirs(tmp_path: Path) -> None:
    """A row of the second shard has the first shard's tokens before it, and its own length if the draw says one."""

    def write(scribe: Scribe) -> None:
        scribe.step(scribe.draw("val", [0], shard=1))
        scribe.seconds += 1
        scribe.calibrate(scribe.draw("val", [50], shard=0, length=10))

    band = one_stage(tmp_path, write, shards=[100, 201])
    assert [mark[:2] for mark in band.marks["trained"]] == [(100, 228)]
    assert [mark[:2] for mark in band.marks["calibrated"]] == [(50, 60)]
    assert band.marks["calibrated"][0].begin == pytest.approx(1.001, abs=0.002)


def test_what_has_no_place_is_counted(tmp_path: Path) -> None:
    """Rows and scores known by content alone, of no such shard or of no known length: counted, never drawn."""

    def write(scribe: Scribe) -> None:
        scribe.step(scribe.draw("val", [0, 1], origin=1))
        scribe.step(scribe.draw("val", [7], shard=9))
        scribe.score("scoring", [4_000_000_000, 5], 1, counted=True, length=0)

    band = one_stage(tmp_path / "known", write, shards=[1000])
    assert (band.unplaced, [use for use in USES if band.marks[use]]) == (5, [])
    band = one_stage(
        tmp_path / "unknown", lambda scribe: scribe.step(scribe.draw("val", [0])), shards=[1000], facts=False
    )
    assert (band.unplaced, [use for use in USES if band.marks[use]]) == (1, [])


def test_draws_that_nobody_used_are_not_drawn(tmp_path: Path) -> None:
    """A batch that was handed out and reached no step, and training batches, leave no mark."""

    def write(scribe: Scribe) -> None:
        scribe.draw("val", [0])
        scribe.step(scribe.draw("train", [0]), 999)

    band = one_stage(tmp_path, write, shards=[1000])
    assert (band.unplaced, [use for use in USES if band.marks[use]]) == (0, [])


def test_what_lies_outside_the_stream_is_cut_off(tmp_path: Path) -> None:
    """Scores and rows that claim targets behind the end of the stream are drawn to its end."""

    def write(scribe: Scribe) -> None:
        scribe.score("sliding", [990, 5000], 64, counted=True)
        scribe.step(scribe.draw("val", [950]))

    band = one_stage(tmp_path, write, shards=[1000])
    assert {mark.stop for use in ("counted", "trained") for mark in band.marks[use]} == {999}


def test_ranks_are_laid_over_each_other(tmp_path: Path) -> None:
    """Each rank's draws have ids of their own; what any of them used is in the stage's band."""
    for rank in (0, 1):
        scribe = Scribe(tmp_path / f"rank{rank}.ledger", rank=rank, ranks=2)
        scribe.note("run", stage="evaluate", seed=1, length=LENGTH)
        scribe.step(scribe.draw("val", [rank * 256]))
        scribe.writer.seal({})
    band = timeline(1, [Stage.open(tmp_path)], shards=[513], zoom=0).bands[0]
    assert sorted(mark[:2] for mark in band.marks["trained"]) == [(0, 128), (256, 384)]


def test_a_stream_without_targets_is_refused(tmp_path: Path) -> None:
    """No shards, a single token, or more than any split has are no stream to draw."""
    for shards in ([], [1], [2**62, 2**62]):
        with pytest.raises(RunError, match="dvc repro data"):
            timeline(1, [], shards=shards, zoom=0)


def test_a_ledger_that_was_changed_is_refused(tmp_path: Path) -> None:
    """The timeline is drawn of ledgers that hold."""
    seed(tmp_path, "plain")
    path = tmp_path / "ledger/clock.evaluate.42/rank0.ledger"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"rank0\.ledger"):
        Stage.open(path.parent)


@given(st.permutations(range(12)))
@settings(max_examples=20)
def test_the_order_of_records_does_not_matter(order: list[int]) -> None:
    """Ranks are read one after the other, so records come out of order in time: the picture is the same."""
    events = [(number * 3_000_000_000, number * 100, number * 100 + 150) for number in range(12)]
    grids = [Grid(10_000), Grid(10_000)]
    for grid, numbers in zip(grids, (range(12), order), strict=True):
        for clock, first, stop in (events[number] for number in numbers):
            grid.add(np.array([clock]), np.array([first]), np.array([stop]))
    assert grids[0].tick == grids[1].tick
    assert grids[0].marks() == grids[1].marks()
