"""Which targets are scored so far, as each rank can know it, and which of them lie before an update.

Ranks are ordered by the counter of collectives: what a rank did at a smaller count precedes what another does at a
larger one, and at equal counts nothing is known. So the scores of one count are visible to their own rank at once, and
to the others when that count is over (`settle`). One bit for each target of the split, another one from the first step
after a score on, and the ranges that were scored since the last count.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from audit.evidence import Positions
from audit.rules.bits import Bits, Flags

Range = tuple[int, int]


class Progress:
    """Targets 0 … `size` - 1, scored by `ranks` ranks."""

    def __init__(self, size: int) -> None:
        self.scored = Bits(size)
        """By counts that are over."""
        self._stale: Bits | None = None
        """Scored before a step of a count that is over."""
        self._unseen = False
        """`scored` holds something that is not in `_stale`."""
        self._fresh: list[list[Range]] = []
        self._before_step: list[int] = []
        """How much of a rank's `_fresh` was scored before its last step, -1 if it made none at this count."""
        self._stepped = False

    def begin(self, ranks: int) -> None:
        """A stage of so many ranks begins; all of the stage before precedes it."""
        self._fresh = [[] for _ in range(ranks)]
        self._before_step = [-1] * ranks

    def add(self, rank: int, first: int, stop: int) -> None:
        """A rank scored a range."""
        self._fresh[rank].append((first, stop))

    def step(self, rank: int) -> None:
        """A rank's weights move."""
        if self._unseen or self._fresh[rank]:  # else nothing becomes stale that is not
            self._before_step[rank] = len(self._fresh[rank])
            self._stepped = True

    def settle(self) -> None:
        """The count is over: every rank knows what was done at it."""
        if self._stepped:
            self._fold()
        for fresh in self._fresh:
            for first, stop in fresh:
                self.scored.add(first, stop)
                self._unseen = True
            fresh.clear()

    def _fold(self) -> None:
        """What was scored before the steps of this count becomes stale."""
        if self._unseen:
            self._stale = self._stale or Bits(self.scored.size)
            self._stale.unite(self.scored)
            self._unseen = False
        for rank, count in enumerate(self._before_step):
            for first, stop in self._fresh[rank][: max(count, 0)]:
                self._stale = self._stale or Bits(self.scored.size)
                self._stale.add(first, stop)
            self._before_step[rank] = -1
        self._stepped = False

    def known(self, rank: int, first: int, stop: int) -> Flags:
        """1 for each target of a range that the rank knows to be scored, uint8 [stop - first]."""
        return _over(self.scored.flags(first, stop), first, self._fresh[rank])

    def stale(self, rank: int, first: int, stop: int) -> Flags:
        """1 for each target of a range that was scored before a step which precedes what the rank does now."""
        if self._before_step[rank] >= 0:
            return _over(self.scored.flags(first, stop), first, self._fresh[rank][: self._before_step[rank]])
        if self._stale is None:
            return np.zeros(stop - first, dtype=np.uint8)
        return self._stale.flags(first, stop)


def _over(flags: Flags, first: int, ranges: list[Range]) -> Flags:
    """The flags of the places from `first` on, with these ranges set."""
    for begin, end in ranges:
        if begin < first + len(flags) and end > first:
            flags[max(begin - first, 0) : end - first] = 1
    return flags


class Contents:
    """The same for rows known by content: places in the sorted hashes of all rows that are ever scored.

    Their scores carry no counter, so another rank knows of them only when the stage is over.
    """

    def __init__(self, hashes: npt.NDArray[np.uint64]) -> None:
        self.hashes = hashes
        self._scored, self._trained = np.zeros(len(hashes), dtype=np.bool_), np.zeros(len(hashes), dtype=np.bool_)
        self._own: list[npt.NDArray[np.bool_]] = []

    def begin(self, ranks: int) -> None:
        for own in self._own:
            self._scored |= own
        self._own = [np.zeros_like(self._scored) for _ in range(ranks)]

    def add(self, rank: int, places: Positions) -> int:
        """A rank scored these; returns how many of them were scored before, as far as it knows."""
        before = int(np.count_nonzero(self.known(rank, places)))
        self._own[rank][places] = True
        return before + len(places) - len(np.unique(places))

    def train(self, places: Positions) -> None:
        """A step, of whatever rank, uses these; -1 is a row that is never scored."""
        self._trained[places[places >= 0]] = True

    def trained(self, places: Positions) -> int:
        """How many of these were scored and then trained on."""
        return int(np.count_nonzero(self._trained[places]))

    def known(self, rank: int, places: Positions) -> npt.NDArray[np.bool_]:
        """Whether the rank knows each of these places, -1 for a row that is never scored, to be scored: bool [n]."""
        if not len(self._scored):
            return np.zeros(len(places), dtype=np.bool_)
        return (self._scored[places] | self._own[rank][places]) & (places >= 0)
