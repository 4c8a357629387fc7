"""The run as the validation stream saw it: all stages, all ranks, in the order that can be proven.

Data flow: the ranks of a stage → events (`rank`), merged count by count of their collectives → every use of validation
rows is held against what was scored before it (C3), every score against those before it (C4), and added up (COVERAGE,
BYTES, TRACK) → `History`, from which the rules rule. One walk serves them all.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from audit.evidence import Evidence, Stage
from audit.rules.events import Event, Rows, Scored, Used
from audit.rules.handed import hashes
from audit.rules.places import Context, index_of
from audit.rules.progress import Contents, Progress
from audit.rules.rank import Counts, Rank
from audit.rules.sightings import Sightings, many
from audit.rules.totals import Total, Totals, ranges_of

MOST_APART = 1 << 12
"""Score records whose row hashes are gathered before those that repeat are dropped."""


@dataclass(frozen=True, eq=False, kw_only=True)
class History:
    """What a walk through all ledgers gave."""

    seen: Sightings
    counts: Counts
    totals: Mapping[str, Total]
    """By label, of what is counted and stands at places in the stream."""
    rows_scored: int
    """Different rows known by content that are scored and counted."""


@functools.lru_cache(maxsize=2)
def history(evidence: Evidence) -> History:
    """Walk through the ledgers once. Raises LedgerError for one that does not hold any more."""
    walk = _Walk(evidence)
    for stage in evidence.stages:
        walk.stage(stage)
    walk.totals.finish()
    return History(
        seen=walk.seen, counts=walk.counts, totals=walk.totals.by_label, rows_scored=len(walk.contents.hashes)
    )


class _Walk:
    """Where a walk stands."""

    def __init__(self, evidence: Evidence) -> None:
        self.seen, self.counts = Sightings(), Counts()
        stream = evidence.validation
        self._targets, self._offsets = (stream.targets, stream.offsets) if stream else (0, np.zeros(1, dtype=np.int64))
        scored = scored_hashes(evidence.stages)
        self._context = Context(stream, evidence.contents, scored)
        self.progress, self.contents = Progress(self._targets), Contents(scored)
        self.totals = Totals(stream, self.progress, self._report_score)
        self._stage, self._rank = "", 0

    def stage(self, stage: Stage) -> None:
        """All records of a stage; they follow on those of the stages before."""
        ranks = [Rank(stage, part, self._context, self.seen) for part in stage.parts]
        self._stage = stage.title
        self.progress.begin(len(ranks))
        self.totals.begin(len(ranks))
        self.contents.begin(len(ranks))
        for rank, event in in_order([rank.events() for rank in ranks]):
            if event is None:
                self.progress.settle()
                continue
            self._rank = rank
            if isinstance(event, Used):
                self._used(rank, event)
            elif event.length:
                self.totals.add(rank, stage.title, event)
            else:
                self._rows_scored(rank, event)
        for one in ranks:
            self.counts.add(one.counts)

    def _used(self, rank: int, event: Used) -> None:
        """A step or a calibration: whatever validation it uses must be scored before."""
        for rows in event.rows:
            places = self._absent_rows(rank, rows) if rows.hashes is not None else self._absent(rank, rows)
            if places:
                self._unscored(rank, event, rows, *places)
            elif rows.hashes is not None and event.step is not None:
                self.contents.train(rows.starts)
        if event.step is not None:
            self.progress.step(rank)

    def _absent(self, rank: int, rows: Rows) -> tuple[int, dict[str, Any]] | None:
        """How many targets of rows are not scored yet, and the first of them."""
        count, first = 0, {}
        for row, begin, end in ranges_of(rows.starts, rows.length, self._targets):
            known = self.progress.known(rank, begin, end)
            absent = len(known) - int(np.count_nonzero(known))
            if absent and not count:
                shard = int(np.searchsorted(self._offsets, row, side="right")) - 1
                start = row - int(self._offsets[shard])
                target = begin + int(np.argmin(known))
                first = {"shard": shard, "tokens": [start, start + rows.length], "first_target": target}
            count += absent
        return (count, first) if count else None

    def _absent_rows(self, rank: int, rows: Rows) -> tuple[int, dict[str, Any]] | None:
        """The same for rows known by content."""
        assert rows.hashes is not None
        absent = np.flatnonzero(~self.contents.known(rank, rows.starts))
        return (len(absent), {"row_hash": f"{int(rows.hashes[absent[0]]):#018x}"}) if len(absent) else None

    def _unscored(self, rank: int, event: Used, rows: Rows, count: int, first: dict[str, Any]) -> None:
        what = "rows" if rows.hashes is not None else "targets"
        who = "the quantizer's Hessians see" if event.step is None else f"step {event.step} uses"
        place = (
            f"shard {first['shard']}, tokens {first['tokens'][0]} to {first['tokens'][1]}"
            if "shard" in first
            else f"row {first['row_hash']}"
        )
        self.seen.add(
            rows.kind,
            self._stage,
            f"{who} {count:,} validation {what} that are not scored before, the first of them in {place}",
            rank=rank,
            at=event.at,
            targets=count,
            witness={"step": event.step, "draw": rows.draw, "split": rows.split or "val", what: count} | first,
        )

    def _rows_scored(self, rank: int, event: Scored) -> None:
        places = index_of(hashes(event.windows), self.contents.hashes)
        if stale := self.contents.trained(places):
            detail = f"{many(stale, 'row')} of {event.label!r} scored again, after a step that used them"
            self._report_score("rescored-after-update", event, detail, stale)
        if again := self.contents.add(rank, places):
            detail = f"{many(again, 'row')} known by content counted in {event.label!r} again; equal rows may repeat"
            self._report_score("rows-counted-again", event, detail, again)

    def _report_score(
        self, kind: str, event: Scored, detail: str, targets: int = 0, witness: Mapping[str, Any] | None = None
    ) -> None:
        self.seen.add(kind, self._stage, detail, rank=self._rank, at=event.at, targets=targets, witness=witness)


def in_order(ranks: Sequence[Iterator[Event]]) -> Iterator[tuple[int, Event | None]]:
    """(rank, event) of all ranks by their counters, ranks one after the other at equal ones; (0, None) ends a count.

    The only rank of a stage knows all that it did, so there a count ends with every event.
    """
    if len(ranks) == 1:
        for event in ranks[0]:
            yield 0, event
            yield 0, None
        return
    heads = [next(rank, None) for rank in ranks]
    while any(head is not None for head in heads):
        count = min(head.counter for head in heads if head is not None)
        for number, rank in enumerate(ranks):
            while (head := heads[number]) is not None and head.counter == count:
                yield number, head
                heads[number] = next(rank, None)
        yield 0, None


def scored_hashes(stages: Sequence[Stage]) -> np.ndarray:
    """The hashes of all rows that are scored by content and counted: uint64 [n], ascending, each once."""
    found = [np.zeros(0, dtype=np.uint64)]
    for part in (part for stage in stages for part in stage.parts if part.outline.by_content):
        for block in part.blocks():
            scores = block.scores
            counted = scores[(scores["length"] == 0) & (scores["counted"] != 0)]
            found += [hashes(block.windows[row["offset"] : row["offset"] + row["count"]]) for row in counted]
            if len(found) > MOST_APART:
                found = [np.unique(np.concatenate(found))]
    return np.unique(np.concatenate(found))
