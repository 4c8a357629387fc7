"""A rank's ledger in short: its notes, and the stretches that its phases cut it into.

Data flow: blocks, one after the other → `Outline.add` → spans and moments, from which the rules about time, data and
sealing judge without a walk of their own. What is kept grows with the number of notes and phases, never with that of
steps or sequences.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from audit.errors import LedgerError
from audit.records import KINDS, SHARDS, Block, Note

MOST_NOTES = 1 << 16
"""A run writes some hundreds; a ledger with more than this is refused, so that notes can be kept in memory."""
BULKY = "unknown"
"""The note that carries token ids; it is read again where it is needed."""


@dataclass(frozen=True)
class Moment:
    """A note and when it was written, nanoseconds since the ledger began."""

    note: Note
    clock: int


@dataclass(kw_only=True)
class Span:
    """Consecutive records in one phase, the first of them numbered `first`."""

    phase: str
    """Empty before the first phase was announced."""
    first: int
    began: int
    """Nanoseconds since the ledger began; `ended` too, where the next span begins or the ledger ends."""
    ended: int
    records: dict[str, int] = field(default_factory=dict)
    """Kind → how many."""
    drawn: dict[str, int] = field(default_factory=dict)
    """Split → how many sequences were handed out."""
    entry: int | None = None
    """Fingerprint of the parameters with which the phase began, None if none was taken before its first step."""

    @property
    def seconds(self) -> float:
        return (self.ended - self.began) / 1e9

    @property
    def moved(self) -> int:
        """Steps and updates in it."""
        return self.records.get("step", 0) + self.records.get("update", 0)


class Outline:
    """What the blocks of a rank add up to."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.spans = [Span(phase="", first=0, began=0, ended=0)]
        self.records = dict.fromkeys(KINDS, 0)
        self.counted = 0
        """Score records that enter the total."""
        self.placed = 0
        """Draws whose rows stand at a place in a split."""
        self.by_content = 0
        """Draws and scores that are known by content alone."""
        self.first_state: int | None = None
        self.last = 0
        """Nanoseconds of the last record."""
        self.backwards: int | None = None
        """The first record that is older than the one before it."""
        self._sequences = hashlib.sha256()

    @property
    def sequences(self) -> str:
        """`sha256:…` over where all drawn rows stand, in order."""
        return "sha256:" + self._sequences.hexdigest()

    def named(self, *names: str) -> list[Moment]:
        """The notes of these names, in order."""
        return [moment for moment in self.moments if moment.note.name in names]

    def add(self, block: Block) -> None:
        """Take in the next block. Raises LedgerError for a ledger of more notes than a run can have."""
        self._time(block)
        for note in block.notes:
            if note.name != BULKY:
                self.moments.append(Moment(note, int(block.clock[note.at - block.first])))
        if len(self.moments) > MOST_NOTES:
            raise LedgerError(f"block {block.index}: over {MOST_NOTES} notes, expected some hundreds; record it again")
        self.counted += int(np.count_nonzero(block.scores["counted"]))
        self.placed += int(np.count_nonzero(block.draws["origin"] == SHARDS))
        self.by_content += int(np.count_nonzero(block.draws["origin"] != SHARDS))
        self.by_content += int(np.count_nonzero(block.scores["length"] == 0))
        self._sequences.update(block.sequences.tobytes())
        edges = [note.at for note in block.notes if note.name == "phase"]
        starts = edges if edges[:1] == [block.first] else [block.first, *edges]
        for start, stop in zip(starts, [*starts[1:], block.first + len(block)], strict=True):
            if start in edges:
                note = next(note for note in block.notes if note.at == start)
                began = int(block.clock[start - block.first])
                self.spans[-1].ended = began
                phase = str(note.facts.get("name", ""))
                self.spans.append(Span(phase=phase, first=start, began=began, ended=began))
            self._count(block, start, stop)
        self.spans[-1].ended = self.last

    def _time(self, block: Block) -> None:
        clock = np.concatenate([[self.last], block.clock])
        fell = np.flatnonzero(np.diff(clock) < 0)
        if len(fell) and self.backwards is None:
            self.backwards = block.first + int(fell[0])
        self.last = max(self.last, int(block.clock.max(initial=0)))

    def _count(self, block: Block, start: int, stop: int) -> None:
        """Add records `start` … `stop` - 1 to the last span."""
        span = self.spans[-1]
        found = _first_fingerprint(block, start, stop)
        if found is not None:
            at, parameters = found
            if self.first_state is None:
                self.first_state = parameters
            before = block.kinds[start - block.first : at - block.first]
            if span.entry is None and not span.moved and not np.isin(before, _MOVES).any():
                span.entry = parameters
        counts = np.bincount(block.kinds[start - block.first : stop - block.first], minlength=len(KINDS)).tolist()
        for kind, count in zip(KINDS, counts, strict=True):
            if count:
                span.records[kind] = span.records.get(kind, 0) + count
                self.records[kind] += count
        draws = block.draws[(block.draws["at"] >= start) & (block.draws["at"] < stop)]
        for split in np.unique(draws["split"]).tolist():
            name = split.decode(errors="replace")
            count = int(draws["count"][draws["split"] == split].sum(dtype=np.int64))
            span.drawn[name] = span.drawn.get(name, 0) + count


_MOVES = (KINDS.index("step"), KINDS.index("update"))


def _first_fingerprint(block: Block, start: int, stop: int) -> tuple[int, int] | None:
    """Number and parameters of the first state or score among records `start` … `stop` - 1."""
    first: list[tuple[int, int]] = []
    for table in (block.states, block.scores):
        rows = table[(table["at"] >= start) & (table["at"] < stop)][:1]
        first += [(int(row["at"]), int(row["parameters"])) for row in rows]
    return min(first, default=None)
