"""The sums of what is scored and counted, by label, and what is wrong with the windows themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from audit.evidence import Positions, Stream
from audit.rules.bits import Bits, joined, pieces
from audit.rules.events import Scored
from audit.rules.progress import Progress

MOST_LABELS = 16
"""Totals that are kept apart: each costs one bit for each target of the split."""

Report = Callable[..., object]
"""(class, event, detail, targets, witness)."""


@dataclass(kw_only=True)
class Total:
    """What was counted under one label. Windows outside the split enter the sums and not `covered`."""

    label: str
    stage: str
    bits: Bits | None
    """The targets that are in it; None while they are those of `Progress.scored`."""
    records: int = 0
    length: int = 0
    """Inputs of its longest windows."""
    windows: int = 0
    targets: int = 0
    nats: float = 0.0
    octets: int = 0
    parameters: int = 0
    """Fingerprint of the model at the first record, which is `first_at` of rank `first_rank`."""
    first_at: int = 0
    first_rank: int = 0
    covered: int = 0
    """Different targets of the split."""
    absent: int | None = None
    """The first target of the split that is not among them."""

    def finish(self, scored: Bits) -> None:
        """Count what is covered, and let go of the bits."""
        bits = scored if self.bits is None else self.bits
        self.covered, self.absent, self.bits = bits.total(), bits.first_absent(), Bits(0)


class Totals:
    """Adds up score records in the order in which they precede each other."""

    def __init__(self, stream: Stream | None, progress: Progress, report: Report) -> None:
        self._stream, self._progress, self._report = stream, progress, report
        self.by_label: dict[str, Total] = {}
        self._ranks = 1

    def add(self, rank: int, stage: str, event: Scored) -> None:
        """A record of windows at places in the stream."""
        if (total := self._total(rank, stage, event)) is None:
            return
        windows = event.windows
        begin, scored = windows["begin"].astype(np.int64), windows["scored"].astype(np.int64)
        total.records += 1
        total.length = max(total.length, event.length)
        total.windows += len(windows)
        total.targets += int(scored.sum())
        with np.errstate(invalid="ignore", over="ignore"):  # what is no loss is told by `_losses`
            total.nats += float(windows["nats"].sum())
        total.octets += int(windows["octets"].sum(dtype=np.int64))
        self._losses(event)
        self._model(rank, total, event)
        if self._stream is None:
            return
        inside = self._inside(event, begin, scored)
        self._octets(event, begin[inside], scored[inside], windows["octets"][inside].astype(np.int64))
        taken = inside & (scored > 0)
        for first, stop in joined(begin[taken], begin[taken] + scored[taken]):
            self._once(rank, total, event, first, stop)
            self._progress.add(rank, first, stop)

    def begin(self, ranks: int) -> None:
        """A stage of so many ranks begins."""
        self._ranks = ranks
        if ranks > 1:
            self._part()

    def finish(self) -> None:
        """All stages are over."""
        for total in self.by_label.values():
            total.finish(self._progress.scored)

    def _part(self) -> None:
        """From here on what is scored, as ranks know it, is no longer what is in the only total: that gets its own."""
        for total in self.by_label.values():
            if total.bits is None:
                total.bits = self._progress.scored.copy()

    def _total(self, rank: int, stage: str, event: Scored) -> Total | None:
        total = self.by_label.get(event.label)
        if total is None and len(self.by_label) < MOST_LABELS:
            alone = not self.by_label and self._ranks == 1
            self._part()
            bits = None if alone else Bits(self._progress.scored.size)
            total = Total(label=event.label, stage=stage, bits=bits)
            total.parameters, total.first_at, total.first_rank = event.parameters, event.at, rank
            self.by_label[event.label] = total
        if total is None:
            self._report(
                "too-many-totals", event, f"over {MOST_LABELS} labels are counted, {event.label!r} is one more"
            )
        return total

    def _losses(self, event: Scored) -> None:
        nats = event.windows["nats"]
        wrong = np.flatnonzero(~np.isfinite(nats) | (nats < 0))
        if len(wrong):
            first = event.windows[wrong[0]]
            detail = f"a window has a loss of {float(first['nats'])} nats, expected 0 or more"
            self._report("impossible-loss", event, detail, int(first["scored"]), {"first_target": int(first["begin"])})

    def _model(self, rank: int, total: Total, event: Scored) -> None:
        """The model that scores must be the one of the first record, if it claims to be fixed."""
        if event.parameters != total.parameters:
            detail = f"the parameters are {event.parameters:#018x}, {total.parameters:#018x} at the first score"
            self._report(
                "state-changed",
                event,
                detail,
                0,
                {
                    "label": total.label,
                    "first_record": total.first_at,
                    "first_rank": total.first_rank,
                    "first": f"{total.parameters:#018x}",
                    "found": f"{event.parameters:#018x}",
                },
            )

    def _inside(self, event: Scored, begin: Positions, scored: Positions) -> np.ndarray:
        """Which windows lie in the split and score no more than they read, bool [n]."""
        assert self._stream is not None
        beyond = begin + scored > self._stream.targets
        wide = (scored > event.length) | (begin + scored < event.length)
        for kind, wrong, what in (
            ("beyond-the-split", beyond, f"which has {self._stream.targets} targets"),
            ("impossible-window", wide & ~beyond, f"with windows of {event.length} inputs"),
        ):
            for i in np.flatnonzero(wrong)[:1].tolist():
                last = int(begin[i] + scored[i]) - 1
                detail = f"targets {int(begin[i])} to {last} of the validation split are scored, {what}"
                self._report(kind, event, detail, int(scored[wrong].sum()), {"first_target": int(begin[i])})
        found: np.ndarray = ~(beyond | wide)
        return found

    def _octets(self, event: Scored, begin: Positions, scored: Positions, claimed: Positions) -> None:
        if self._stream is None or self._stream.octets is None or not len(begin):
            return
        counted = self._stream.octets(begin, scored)
        wrong = np.flatnonzero(counted != claimed)
        if len(wrong):
            i = int(wrong[0])
            detail = (
                f"targets {begin[i]} to {begin[i] + scored[i] - 1} are said to stand for {claimed[i]} bytes, counted "
                f"were {counted[i]}"
            )
            about = {"first_target": int(begin[i]), "claimed": int(claimed[i]), "counted": int(counted[i])}
            self._report("bytes-differ", event, detail, int(scored[wrong].sum()), about)

    def _once(self, rank: int, total: Total, event: Scored, first: int, stop: int) -> None:
        """A range of targets enters the total: was it in it before, or in another one?"""
        twice = self._progress.known(rank, first, stop) if total.bits is None else total.bits.add(first, stop)
        others = len(self.by_label) > 1
        for kind, flags, what in (
            ("rescored-after-update", self._progress.stale(rank, first, stop), "though it was scored before an update"),
            ("scored-twice", twice, "again"),
            (
                "scored-again-unchanged",
                self._progress.known(rank, first, stop) if others else twice,
                "after another one",
            ),
        ):
            if count := int(np.count_nonzero(flags)):
                target = first + int(np.argmax(flags))
                detail = f"target {target} enters the total {total.label!r} {what}, and so do {count - 1:,} after it"
                self._report(
                    kind, event, detail, count, {"label": total.label, "first_target": target, "targets": count}
                )
                return


def ranges_of(starts: Positions, length: int, targets: int) -> Iterator[tuple[int, int, int]]:
    """(row's first target, piece of its targets) of rows, as far as they are in the split.

    A row that can't be placed (-1) has none.
    """
    for start in starts.tolist():
        if 0 <= start < targets:
            for first, stop in pieces(start, min(start + length, targets)):
                yield start, first, stop
