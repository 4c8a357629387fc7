"""What entered a rank's model, and whose it is: forwards matched with draws and scores by their checksums.

A forward belongs to a draw before it, or to a score after it. What belongs to neither is told apart by its gradients:
under gradients it goes into the next step, and is a row like any other where it was found in the data (`Located`) or is
scored before that step; without gradients nothing can be learned from it by a step, and yet nobody knows what it was
for. A step uses the draws that it lists and whatever entered the model under gradients since the step before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from audit.evidence import Located
from audit.rules.events import Rows
from audit.rules.handed import Draw, Handed
from audit.rules.places import VALIDATION, Context, located, rows_of, windows_as_rows
from audit.rules.sightings import many

MOST_WAITING = 1 << 14
"""Forwards that wait for a score; of more, the number alone is kept."""

Report = Callable[..., object]
"""(class, record, detail, witness)."""


@dataclass(slots=True)
class _Loose:
    """A forward under gradients that no draw explains."""

    at: int
    checksum: int
    known: bool
    """All of its rows were found."""
    rows: list[Rows]


@dataclass
class Tokens:
    """The draws, forwards and scores of a rank."""

    context: Context
    found: Mapping[int, list[Located]]
    """Tokens of unknown origin that stand in a split, by the number of their forward."""
    report: Report
    taint: Callable[[str, int, str], None]
    """(class, record, detail): the step that comes uses tokens that nobody can place."""
    handed: Handed = field(default_factory=Handed)
    _learned: dict[int, Draw] = field(default_factory=dict)
    """Validation draws that entered under gradients since the last step, by their record."""
    _loose: dict[int, _Loose] = field(default_factory=dict)
    """By checksum."""
    _more: int = -1
    """The first forward that is in neither of them, because they are full."""
    _waiting: dict[int, list[int]] = field(default_factory=dict)
    """Checksum of forwards without gradients that wait for their score → how many, and the first one."""
    _lost: int = 0
    _first_lost: int = -1
    _late: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Checksum of tokens that nobody could place → the step that used them, and its record."""
    _owed: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Record of a draw that has not entered the model → the calibration that names it, and the draw's number."""

    def forward(self, at: int, checksum: int, grad: int) -> None:
        """Token ids entered the model."""
        draw = self.handed.entered(checksum, grad=bool(grad))
        if draw is not None:
            self._owed.pop(draw.at, None)
            if grad and draw.rows is not None:
                self._keep(self._learned, draw.at, draw, at)
        elif grad:
            if checksum not in self._loose:
                self._keep(self._loose, checksum, _Loose(at, checksum, *located(self.found.get(at, []))), at)
        elif self.context.contents is not None and checksum in self.context.contents.written:
            pass  # a prefix of text that the model writes; the whole rows are a draw, which was read again
        elif checksum in self._waiting:
            self._waiting[checksum][0] += 1
        elif len(self._waiting) < MOST_WAITING:
            self._waiting[checksum] = [1, at]
        else:
            self._lose(at, 1)

    def _keep(self, table: dict[int, Any], key: int, value: object, at: int) -> None:
        """Into the table for the next step, if there is room."""
        if len(table) < MOST_WAITING:
            table[key] = value
        elif self._more < 0:
            self._more = at

    def _lose(self, at: int, count: int) -> None:
        self._lost += count
        self._first_lost = at if self._first_lost < 0 else min(at, self._first_lost)

    def step(self, at: int, step: int, used: Sequence[int]) -> list[Rows]:
        """A step that lists these draws: the validation rows that go into it."""
        rows, listed = [], set(used)
        # Equal rows that were handed out twice: whichever of them the forward was counted for, it is this step's.
        spare = Counter(draw.checksum for draw in self._learned.values() if draw.draw not in listed)
        for number in used:
            if (draw := self._use(at, f"step {step}", number)) is None:
                continue
            if not draw.learned and spare[draw.checksum]:
                spare[draw.checksum] -= 1
            elif not draw.learned:
                self.report(
                    "draw-not-entered",
                    at,
                    f"step {step} uses draw {number}, which did not enter the model under gradients before it",
                    {"step": step, "draw": number, "drawn_in": draw.at},
                )
            draw.used = draw.used or (step, at)
            rows.append(self._rows(draw, "trained-before-scored"))
            if self._unread(draw):
                self.taint("unread-tokens", at, f"step {step} uses draw {number} {_UNREAD.format(draw.split)}")
        rows += [self._rows(d, "unlisted-validation-tokens") for d in self._learned.values() if d.draw not in listed]
        for loose in self._loose.values():
            rows += loose.rows
            if not loose.known:
                self.taint("unknown-tokens", at, f"step {step} follows {_UNKNOWN.format(loose.at)}")
                if len(self._late) < MOST_WAITING:
                    self._late[loose.checksum] = (step, at)
        if self._more >= 0:
            self.taint("unknown-tokens", at, f"step {step} follows {_UNKNOWN.format(self._more)}")
            self._more = -1
        self._learned.clear()
        self._loose.clear()
        return [one for one in rows if one is not None]

    def calibration(self, at: int, used: Sequence[int]) -> list[Rows]:
        """Hessians of these draws: the validation rows among them."""
        rows = []
        for number in used:
            if (draw := self._use(at, "the calibration", number)) is None:
                continue
            if not draw.seen and len(self._owed) < MOST_WAITING:
                self._owed[draw.at] = (at, number)
            rows.append(self._rows(draw, "calibrated-on-validation"))
            about = {"draw": number, "drawn_in": draw.at, "split": draw.split}
            if draw.found_in == VALIDATION != draw.split:
                detail = f"the Hessians are of draw {number}, which calls itself {draw.split} and is validation text"
                self.report("calibrated-on-validation", at, detail, about)
            elif self._unread(draw):
                self.report(
                    "unread-tokens", at, f"the Hessians are of draw {number} {_UNREAD.format(draw.split)}", about
                )
        return [one for one in rows if one is not None]

    def _use(self, at: int, who: str, number: int) -> Draw | None:
        draw = self.handed.draws.get(number)
        if draw is None:
            detail = f"{who} uses draw {number}, which was never handed out, or too long ago"
            self.report("unknown-draw", at, detail, {"draw": number})
        return draw

    def _unread(self, draw: Draw) -> bool:
        contents = self.context.contents
        return contents is not None and draw.split in contents.unread and not draw.content and not draw.found_in

    def _rows(self, draw: Draw, kind: str) -> Rows | None:
        rows = rows_of(draw, kind, self.context)
        if rows is not None and not draw.content and (rows.starts < 0).any():
            detail = f"rows of the validation draw {draw.draw} can't be placed without the shards and the rows' length"
            self.report("no-place", draw.at, detail, {"draw": draw.draw})
        return rows

    def score(self, at: int, checksum: int, windows: npt.NDArray[Any], length: int, *, counted: bool) -> None:
        """Windows whose ids have this checksum are scored; their forward came before."""
        if counted and len(windows):
            self._used_before(at, checksum, windows)
        waiting = self._waiting.get(checksum)
        if waiting:
            waiting[0] -= 1
            if not waiting[0]:
                del self._waiting[checksum]
            return
        loose = self._loose.get(checksum)
        if loose is not None:
            if not loose.known:
                loose.known = True
                loose.rows.append(windows_as_rows(windows, length, counted=counted))
        elif counted and not self.handed.knows(checksum) and checksum not in self._late:
            self.report(
                "score-without-forward",
                at,
                f"a score of {many(len(windows), 'window')} whose tokens did not enter the model before it",
                {"windows": len(windows)},
            )

    def _used_before(self, at: int, checksum: int, windows: npt.NDArray[Any]) -> None:
        """Windows that are counted only now, and went into a step under another name, or under none."""
        named = next((draw for draw in self.handed.of(checksum) if draw.used and draw.rows is None), None)
        used = named.used if named else self._late.get(checksum)
        if used is None:
            return
        step, record = used
        what = f"draw {named.draw}, which calls itself {named.split}," if named else "unannounced tokens"
        about = {"step": step, "step_record": record, "draw": named.draw if named else None}
        about |= {"first_target": int(windows["begin"][0]), "targets": int(windows["scored"].sum(dtype="int64"))}
        detail = f"step {step} (record {record}) uses these windows as {what} and they are scored only now"
        self.report("trained-before-scored", at, detail, about)

    def end(self) -> None:
        """What is left when the rank's records end."""
        for count, at in self._waiting.values():
            self._lose(at, count)
        if self._lost:
            detail = "tokens entered the model without gradients that are neither a draw nor scored afterwards"
            self.report("unannounced-tokens", self._first_lost, detail, {"forwards": self._lost})
        for at, number in self._owed.values():
            detail = f"the Hessians are said to be of draw {number}, which never entered the model"
            self.report("draw-not-entered", at, detail, {"draw": number})


_UNREAD = "of split {}, whose tokens can't be read again"
_UNKNOWN = "tokens that entered the model under gradients in record {} and are neither a draw nor found in the data"
