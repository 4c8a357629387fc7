"""One rank's records in their order, as events for the validation stream.

Data flow: blocks → `Rank.events` hands every record to `tokens` (what entered the model) and `weights` (what moved it)
→ steps and calibrations with the validation rows they used, scores that are counted; what is not as it must be within
the rank goes to the sightings. How ranks follow each other is the business of `history`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from audit.evidence import Located, Mismatch, Part, Stage
from audit.records import CONTENT, KINDS, Block
from audit.rules.events import Event, Scored, Used
from audit.rules.handed import Draw
from audit.rules.places import VALIDATION, Context
from audit.rules.sightings import Sightings
from audit.rules.tokens import Tokens
from audit.rules.weights import Weights

NOTE, DRAW, FORWARD, STEP, UPDATE, SCORE, STATE, CALIBRATION = range(len(KINDS))


@dataclass
class Counts:
    """How much a rank, or all of them, did."""

    draws: int = 0
    sequences: int = 0
    forwards: int = 0
    steps: int = 0
    calibrations: int = 0
    scores: int = 0
    """Score records, counted or not."""
    validation_rows: int = 0
    """Rows of validation that steps and calibrations used."""

    def add(self, other: Counts) -> None:
        for column in fields(self):
            setattr(self, column.name, getattr(self, column.name) + getattr(other, column.name))


class Rank:
    """Reads one ledger. `counts` grows while `events` is walked."""

    def __init__(self, stage: Stage, part: Part, context: Context, seen: Sightings) -> None:
        self.stage, self.part, self.context, self._seen = stage, part, context, seen
        self.rank = part.ending.rank
        self.counts = Counts()
        self._counter = 0
        self._announces = False
        """The program counts its collectives: it announced a step, a calibration or a score at places."""
        self._unannounced, self._first_unannounced = 0, -1
        """Steps that it should have announced, and the first one's record."""
        self._taints: dict[str, tuple[int, int, str]] = {}
        self._forged, found = self._contents()
        self._tokens = Tokens(context, found, self._report, self._taint)
        self._weights = Weights(self._report)

    def _contents(self) -> tuple[dict[int, Mismatch], dict[int, list[Located]]]:
        """What re-reading found in this rank: draws that are not what they say, and tokens of unknown origin."""
        contents, mine = self.context.contents, (self.stage.title, self.rank)
        if contents is None:
            return {}, {}
        forged = {one.at: one for one in contents.mismatches if (one.stage, one.rank) == mine and one.kind == "draw"}
        found: dict[int, list[Located]] = {}
        for one in contents.located:
            if (one.stage, one.rank) == mine:
                found.setdefault(one.at, []).append(one)
        return forged, found

    def events(self) -> Iterator[Event]:
        """All events of the rank, in order."""
        for block in self.part.blocks():
            yield from self._block(block)
        self._tokens.end()
        if self._unannounced and self._announces:
            detail = "a torch optimizer stepped that no golf.step announced, in a program that announces what it does"
            self._taints["unannounced-step"] = self._unannounced, self._first_unannounced, detail
        for kind, (count, at, detail) in self._taints.items():
            self._seen.add(kind, self.stage.title, detail, rank=self.rank, at=at, records=count)

    def _report(self, kind: str, at: int, detail: str, witness: dict[str, Any] | None = None) -> None:
        self._seen.add(kind, self.stage.title, detail, rank=self.rank, at=at, witness=witness)

    def _taint(self, kind: str, at: int, detail: str) -> None:
        self._weights.taint()
        count, first, said = self._taints.get(kind, (0, at, detail))
        self._taints[kind] = (count + 1, first, said)

    def _state(self, at: int, parameters: int) -> None:
        if self._weights.state(at, parameters):
            self._taints.clear()

    def _block(self, block: Block) -> Iterator[Event]:
        """A block, record by record. Columns become lists once: reading them row by row costs ten times as much."""
        notes, states = iter(block.notes), iter(block.states["parameters"].tolist())
        forwards = zip(*(block.forwards[name].tolist() for name in ("checksum", "grad")), strict=True)
        updates = zip(*(block.updates[name].tolist() for name in ("optimizer", "before", "after")), strict=True)
        steps, draws, scores = _rows(block, "step"), _rows(block, "draw"), _rows(block, "score")
        calibrations = _rows(block, "calibration")
        for at, kind in enumerate(block.kinds.tolist(), block.first):
            if kind == FORWARD:
                self.counts.forwards += 1
                self._tokens.forward(at, *next(forwards))
            elif kind == UPDATE:
                self._weights.update(at, *next(updates))
            elif kind == STEP:
                yield self._step(at, block, *next(steps))
            elif kind == DRAW:
                self._draw(at, block, *next(draws))
            elif kind == STATE:
                self._state(at, next(states))
            elif kind == SCORE:
                yield from self._score(at, block, *next(scores))
            elif kind == CALIBRATION:
                yield self._calibration(at, block, *next(calibrations))
            else:
                note = next(notes)
                self._weights.note(note.name, note.facts)

    def _draw(
        self, at: int, block: Block, offset: int, count: int, draw: int, split: bytes, origin: int, size: int, sum_: int
    ) -> None:
        name, content, forged = _text(split), origin == CONTENT, self._forged.get(at)
        placed = content or name == VALIDATION
        self._tokens.handed.add(
            Draw(
                at=at,
                draw=draw,
                split=name,
                content=content,
                length=size or self.stage.length,
                checksum=sum_,
                rows=block.sequences[offset : offset + count].copy() if placed else None,
                found_in=str(forged.found_in.get("split", "")) if forged else "",
            )
        )
        self.counts.draws += 1
        self.counts.sequences += count

    def _step(self, at: int, block: Block, offset: int, count: int, step: int, collectives: int) -> Used:
        used = block.used["draw"][offset : offset + count].tolist()
        rows = self._tokens.step(at, step, used)
        self._weights.step()
        self.counts.steps += 1
        self.counts.validation_rows += sum(len(one.starts) for one in rows)
        if step < 0:
            self._step_unannounced(at)
            collectives = max(collectives, self._counter)  # the recorder's guess, and no word of the program's
        else:
            self._announces = True
        return Used(at=at, counter=self._count(at, collectives), step=step, rows=rows)

    def _step_unannounced(self, at: int) -> None:
        """A step of a torch optimizer that the program did not announce.

        On one rank all that came before it is known to be so; among several only a counter tells, so there it matters
        also where the program begins to announce only later.
        """
        if self._announces or len(self.stage.parts) > 1:
            self._unannounced += 1
            self._first_unannounced = at if self._first_unannounced < 0 else self._first_unannounced

    def _calibration(self, at: int, block: Block, offset: int, count: int, collectives: int) -> Used:
        rows = self._tokens.calibration(at, block.calibrated["draw"][offset : offset + count].tolist())
        self.counts.calibrations += 1
        self._announces = True
        self.counts.validation_rows += sum(len(one.starts) for one in rows)
        return Used(at=at, counter=self._count(at, collectives), step=None, rows=rows)

    def _score(
        self,
        at: int,
        block: Block,
        offset: int,
        count: int,
        label: bytes,
        counted: int,
        collectives: int,
        length: int,
        sum_: int,
        parameters: int,
    ) -> Iterator[Scored]:
        windows = block.windows[offset : offset + count]
        self._state(at, parameters)
        self.counts.scores += 1
        if length:
            self._tokens.score(at, sum_, windows, length, counted=bool(counted))
            counter, self._announces = self._count(at, collectives), True
        else:  # known by content: recorded outside of the program's own count of collectives
            counter = self._counter
        if counted:
            yield Scored(
                at=at, counter=counter, label=_text(label), length=length, parameters=parameters, windows=windows.copy()
            )

    def _count(self, at: int, collectives: int) -> int:
        """The counter of a record. One that falls counts as the highest so far."""
        if collectives < self._counter:
            detail = f"the counter of collectives is {collectives} after {self._counter}; ranks can't be ordered by it"
            self._report("counter-fell", at, detail)
        self._counter = max(self._counter, collectives)
        return self._counter


@functools.lru_cache(maxsize=64)
def _text(name: bytes) -> str:
    """A split or label; there are few of them and many records."""
    return name.decode(errors="replace")


_COLUMNS = {
    "draw": ("draw", "split", "origin", "length", "checksum"),
    "step": ("step", "collectives"),
    "score": ("label", "counted", "collectives", "length", "checksum", "parameters"),
    "calibration": ("collectives",),
}


def _rows(block: Block, kind: str) -> Iterator[tuple[Any, ...]]:
    """(offset and count of the list, the columns that matter) of each record of a kind."""
    table = {"draw": block.draws, "step": block.steps, "score": block.scores, "calibration": block.calibrations}[kind]
    return zip(*(table[name].tolist() for name in ("offset", "count", *_COLUMNS[kind])), strict=True)
