"""What a rank was handed out, and which of it entered the model: the draws of the last while.

A forward belongs to the oldest draw of its checksum that has not entered yet. Only the last `MOST_DRAWS` are kept, and
of their rows only those that a rule has to place: memory does not grow with the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_DRAWS = 1 << 13
"""Draws that are remembered (4.5 MB); a step that uses an older one uses an unknown one."""


@dataclass(slots=True, eq=False)
class Draw:
    """One draw. `rows` [n] (columns shard and start) is None for rows that no rule has to place."""

    at: int
    draw: int
    split: str
    content: bool
    """Rows are known by the hash of their content."""
    length: int
    """T of rows [n, T+1], 0 if nobody says it."""
    checksum: int
    rows: npt.NDArray[Any] | None
    learned: bool = False
    """Entered the model under gradients."""
    seen: bool = False
    """Entered the model."""
    used: tuple[int, int] | None = None
    """The first step that used it, and its record."""
    found_in: str = ""
    """The split that its tokens are really of, if that is not what it says."""


@dataclass(slots=True)
class _Same:
    """Draws of one checksum, the oldest first: so many of them entered the model under gradients, so many at all."""

    draws: list[Draw] = field(default_factory=list)
    learned: int = 0
    seen: int = 0


@dataclass
class Handed:
    """The draws of a rank by number and by checksum."""

    draws: dict[int, Draw] = field(default_factory=dict)
    _sums: dict[int, _Same] = field(default_factory=dict)

    def add(self, draw: Draw) -> None:
        """A draw is handed out; one of the same number is forgotten."""
        if draw.draw in self.draws:
            self._forget(self.draws.pop(draw.draw))
        self.draws[draw.draw] = draw
        if draw.checksum not in self._sums:
            self._sums[draw.checksum] = _Same()
        self._sums[draw.checksum].draws.append(draw)
        if len(self.draws) > MOST_DRAWS:
            self._forget(self.draws.pop(next(iter(self.draws))))

    def _forget(self, draw: Draw) -> None:
        same = self._sums[draw.checksum]
        same.draws.remove(draw)
        same.learned -= draw.learned
        same.seen -= draw.seen
        if not same.draws:
            del self._sums[draw.checksum]

    def entered(self, checksum: int, *, grad: bool) -> Draw | None:
        """The draw whose inputs have just entered the model, None if there is none: the oldest that has not yet."""
        same = self._sums.get(checksum)
        if same is None:
            return None
        last = len(same.draws) - 1
        draw = same.draws[min(same.learned if grad else same.seen, last)]
        same.learned += grad and not draw.learned
        same.seen += not draw.seen
        draw.learned |= grad
        draw.seen = True
        return draw

    def of(self, checksum: int) -> Iterable[Draw]:
        """The draws whose inputs have this checksum."""
        return self._sums[checksum].draws if checksum in self._sums else ()

    def knows(self, checksum: int) -> bool:
        """Whether inputs of this checksum entered the model as a draw."""
        return checksum in self._sums and self._sums[checksum].seen > 0


def hashes(rows: np.ndarray) -> npt.NDArray[np.uint64]:
    """64-bit hashes of rows known by content, uint64 [n], from their two halves."""
    high, low = (rows[name] for name in (rows.dtype.names or ())[:2])
    return (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64)
