"""Where in the validation stream a run scored, trained and calibrated, and when: what the report draws.

    line = timeline(42, stages, shards=[51_457], zoom=16_384)
    line.bands[2].marks["trained"]          rectangles of targets × seconds

Positions are targets: target i is token i + 1 of the concatenated validation shards. Seconds count from the beginning
of the stage's ledger, and the figure lays the stages end to end: between two of them lies what the machine did
otherwise, and a stage that was restored may be days older than the next. The ranks of a stage begin together.

Data flow: blocks → one `Grid` for each kind of use, of at most 200 × 400 cells, filled as the blocks come → `Mark`s,
neighbouring cells merged. What is kept of the stream besides is where the rows of validation draws stand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from audit.errors import RunError
from audit.evidence import Stage
from audit.records import SHARDS, Block

USES = ("scored", "calibrated", "trained", "counted")
"""Scored outside the reported total, seen by the quantizer, seen by an optimizer step, scored inside the total."""
ROWS, COLUMNS = 200, 400
MOST_MARKS = 1500
"""Of one use in one stage; with more of them the cells get longer in time."""
SECOND = 1_000_000_000
MOST_TARGETS = 1 << 40


class Mark(NamedTuple):
    """Targets `first` … `stop - 1` were used between `begin` and `end`, seconds since the stage's ledger began."""

    first: int
    stop: int
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Band:
    """One stage: its marks by use, in the order of `USES`, and the same for the first targets of the stream alone."""

    stage: str
    seconds: float
    marks: Mapping[str, tuple[Mark, ...]]
    zoomed: Mapping[str, tuple[Mark, ...]]
    unplaced: int
    """Rows of validation draws and of scores that can't be placed: known by content alone, or of no such shard."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One seed. `targets` are those of the whole split, `zoom` those that `Band.zoomed` shows."""

    seed: int
    targets: int
    zoom: int
    bands: tuple[Band, ...]

    def total(self, use: str) -> int:
        """How many marks of a use there are in all stages."""
        return sum(len(band.marks[use]) for band in self.bands)


def timeline(seed: int, stages: Sequence[Stage], *, shards: Sequence[int], zoom: int) -> Timeline:
    """The timeline of a seed's stages. `shards` are the tokens of each validation shard.

    Raises RunError for a stream without targets or too long to be one, LedgerError for a ledger that does not hold.
    """
    targets = sum(shards) - 1
    if not 1 <= targets < MOST_TARGETS:
        raise RunError(
            f"the validation shards hold {targets + 1} tokens, expected 2 to {MOST_TARGETS}; run `dvc repro data`"
        )
    zoom = min(max(zoom, 0), targets)
    firsts = np.cumsum([0, *shards[:-1]], dtype=np.int64)
    bands = tuple(
        band(
            [part.blocks() for part in stage.parts],
            stage=stage.name,
            length=stage.length,
            firsts=firsts,
            targets=targets,
            zoom=zoom,
        )
        for stage in stages
    )
    return Timeline(seed=seed, targets=targets, zoom=zoom, bands=bands)


def band(
    parts: Iterable[Iterable[Block]],
    *,
    stage: str,
    length: int,
    firsts: np.ndarray,
    targets: int,
    zoom: int,
) -> Band:
    """What one stage used of the stream, from the blocks of each of its ranks.

    `firsts` int64 [shards]: the first token of each validation shard in the stream. Rows whose draw does not say how
    long they are have `length` inputs; 0 where the run does not say either, then they have no place.
    """
    whole = {use: Grid(targets) for use in USES}
    close = {use: Grid(zoom) for use in USES if zoom}
    last = unplaced = 0
    for blocks in parts:
        rows = Rows(firsts, length)
        for block in blocks:
            last = max(last, int(block.clock.max(initial=0)))
            unplaced += int(block.scores["count"][block.scores["length"] == 0].sum(dtype=np.int64))
            for use, clock, first, stop in (*scores(block), *rows.uses(block)):
                whole[use].add(clock, first, stop)
                if zoom:
                    close[use].add(clock, first, stop)
        unplaced += rows.unplaced
    return Band(
        stage=stage,
        seconds=last / SECOND,
        marks={use: grid.marks() for use, grid in whole.items()},
        zoomed={use: grid.marks() for use, grid in close.items()},
        unplaced=unplaced,
    )


Use = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Which use, and int64 [n] each: nanoseconds, first target, and the one behind the last."""


def _clock(block: Block, table: np.ndarray) -> np.ndarray:
    """int64 [n]: nanoseconds of a table's records."""
    ticks: np.ndarray = block.clock[table["at"] - block.first]
    return ticks


def scores(block: Block) -> Iterator[Use]:
    """The windows of a block's scores, but for those that are known by content alone (length 0)."""
    table, windows = block.scores, block.windows
    clock = np.repeat(_clock(block, table), table["count"])
    counted, placed = (np.repeat(table[name] != 0, table["count"]) for name in ("counted", "length"))
    first = windows["begin"].astype(np.int64)
    stop = first + windows["scored"]
    for use, taken in (("counted", placed & counted), ("scored", placed & ~counted)):
        yield use, clock[taken], first[taken], stop[taken]


@dataclass
class Rows:
    """The rows of a rank's validation draws, and what steps and calibrations made of them."""

    firsts: np.ndarray
    length: int
    """Targets of a row whose draw does not say, 0 where the run does not say either: then it has no place."""
    unplaced: int = 0
    targets: dict[int, np.ndarray] = field(default_factory=dict)
    """Draw → the first target of each row and the one behind its last, int64 [n, 2]; -1 where a row has no place."""

    def uses(self, block: Block) -> Iterator[Use]:
        """What the block's steps and calibrations used of the validation draws up to here."""
        self._keep(block)
        for use, table, used in (
            ("trained", block.steps, block.used),
            ("calibrated", block.calibrations, block.calibrated),
        ):
            if not self.targets or not len(used):
                continue
            pairs = zip(np.repeat(_clock(block, table), table["count"]).tolist(), used["draw"].tolist(), strict=True)
            found = [(tick, self.targets[draw]) for tick, draw in pairs if draw in self.targets]
            if found:
                rows = np.concatenate([rows for _, rows in found])
                clock = np.repeat([tick for tick, _ in found], [len(rows) for _, rows in found])
                placed = rows[:, 0] >= 0
                self.unplaced += int((~placed).sum())
                yield use, clock[placed], rows[placed, 0], rows[placed, 1]

    def _keep(self, block: Block) -> None:
        for draw in block.draws[block.draws["split"] == b"val"]:
            rows = block.sequences[draw["offset"] : draw["offset"] + draw["count"]]
            length = int(draw["length"]) or self.length
            known = (rows["shard"] < len(self.firsts)) & (draw["origin"] == SHARDS) & (length > 0)
            first = self.firsts[np.where(known, rows["shard"], 0)] + rows["start"]
            self.targets[int(draw["draw"])] = np.where(known, [first, first + length], -1).T


class Grid:
    """Cells of time × stream that something touched: `ROWS` × at most `COLUMNS`.

    A row is `tick` nanoseconds, a power of two that grows until all that was added fits into the rows.
    """

    def __init__(self, targets: int) -> None:
        self.targets, self.columns = targets, min(COLUMNS, targets)
        self.tick, self.low, self.high = 1 << 20, -1, -1
        # A range adds 1 where it begins and -1 behind its end, so a cell is touched where the running sum is not 0.
        self.edges = np.zeros((ROWS, self.columns + 1), dtype=np.int64)

    def add(self, clock: np.ndarray, first: np.ndarray, stop: np.ndarray) -> None:
        """Ranges of targets [n] at nanoseconds [n]; what lies outside the stream is cut off."""
        kept = (first < np.minimum(stop, self.targets)) & (first >= 0)
        if not kept.any():
            return
        clock, first, stop = np.maximum(clock[kept], 0), first[kept], np.minimum(stop[kept], self.targets)
        self._fit(int(clock.min()), int(clock.max()))
        rows = clock // self.tick - self.low // self.tick
        np.add.at(self.edges, (rows, first * self.columns // self.targets), 1)
        np.add.at(self.edges, (rows, (stop - 1) * self.columns // self.targets + 1), -1)

    def _fit(self, low: int, high: int) -> None:
        """Make room for what happened from `low` to `high` nanoseconds: fewer, longer rows."""
        if self.low < 0:
            self.low = self.high = low
        low, tick = min(low, self.low), self.tick
        self.high = max(high, self.high)
        while self.high // tick - low // tick >= ROWS:
            tick *= 2
        self._regroup(low, tick)

    def _regroup(self, low: int, tick: int) -> None:
        """The same ranges in rows of `tick` nanoseconds, the first of which holds `low`."""
        rows = (self.low // self.tick + np.arange(ROWS)) * self.tick // tick - low // tick
        self.low, self.tick = low, tick
        if rows[0] or rows[-1] != ROWS - 1:
            used = rows < ROWS
            edges = np.zeros_like(self.edges)
            np.add.at(edges, rows[used], self.edges[used])
            self.edges = edges

    def marks(self) -> tuple[Mark, ...]:
        """The touched cells as rectangles, at most `MOST_MARKS`: where there are more, rows are put together."""
        while len(found := list(rectangles(np.cumsum(self.edges[:, :-1], axis=1) > 0))) > MOST_MARKS:
            self._regroup(self.low, self.tick * 2)
        row = self.low // self.tick
        return tuple(
            Mark(
                -(-left * self.targets // self.columns),
                -(-right * self.targets // self.columns),
                (row + top) * self.tick / SECOND,
                (row + bottom) * self.tick / SECOND,
            )
            for left, right, top, bottom in found
        )


def rectangles(touched: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Runs of touched cells of bool [rows, columns], merged over rows that have the same one: left, right, top, bottom.

    Right and bottom lie behind the last cell.
    """
    growing: dict[tuple[int, int], int] = {}
    for number, row in enumerate([*touched, np.zeros(touched.shape[1], dtype=bool)]):
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).tolist()
        runs = set(zip(edges[::2], edges[1::2], strict=True))
        for run in sorted(growing.keys() - runs):
            yield run[0], run[1], growing.pop(run), number
        for run in sorted(runs):
            growing.setdefault(run, number)
