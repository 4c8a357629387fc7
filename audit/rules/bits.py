"""A set of places in a stream, one bit each: which targets were scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.evidence import Positions

PART = 1 << 20
"""Bits unpacked at a time: a window of any length costs at most 1 MiB."""

Flags = npt.NDArray[np.uint8]


class Bits:
    """Places 0 … `size` - 1. Ranges are half open, and must lie inside."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._packed = np.zeros(-(-size // 8), dtype=np.uint8)

    def add(self, first: int, stop: int) -> Flags:
        """Put a range in; returns 1 for each place of it that was in already, uint8 [stop - first]."""
        before = self.flags(first, stop)
        for begin, end, flags in self._parts(first, stop):
            flags[begin % 8 : begin % 8 + end - begin] = 1
            self._packed[begin // 8 : -(-end // 8)] = np.packbits(flags, bitorder="little")
        return before

    def count(self, first: int, stop: int) -> int:
        """How many of a range are in."""
        return sum(
            int(np.count_nonzero(flags[begin % 8 : begin % 8 + end - begin]))
            for begin, end, flags in self._parts(first, stop)
        )

    def total(self) -> int:
        """How many are in."""
        return self.count(0, self.size)

    def flags(self, first: int, stop: int) -> Flags:
        """1 for each place of a range that is in, uint8 [stop - first]."""
        parts = [flags[begin % 8 : begin % 8 + end - begin] for begin, end, flags in self._parts(first, stop)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint8)

    def copy(self) -> Bits:
        """A set of the same places."""
        found = Bits(0)
        found.size, found._packed = self.size, self._packed.copy()
        return found

    def unite(self, other: Bits) -> None:
        """Put everything in that is in `other`, a set of the same size."""
        np.bitwise_or(self._packed, other._packed, out=self._packed)

    def first_absent(self) -> int | None:
        """The first place that is not in."""
        for begin, end, flags in self._parts(0, self.size):
            least = int(np.argmin(flags[: end - begin]))
            if not flags[least]:
                return begin + least
        return None

    def _parts(self, first: int, stop: int) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
        """(begin, end, unpacked flags from the byte of `begin` on) of the pieces of a range."""
        while first < stop:
            end = min(stop, (first // PART + 1) * PART)
            yield first, end, np.unpackbits(self._packed[first // 8 : -(-end // 8)], bitorder="little")
            first = end


def joined(first: Positions, stop: Positions) -> Iterator[tuple[int, int]]:
    """Ranges [n], those that follow on each other made one, in pieces of at most `PART`."""
    if len(first):
        cut = np.flatnonzero(first[1:] != stop[:-1])
        for begin, end in zip(first[np.r_[0, cut + 1]].tolist(), stop[np.r_[cut, len(stop) - 1]].tolist(), strict=True):
            yield from pieces(begin, end)


def pieces(first: int, stop: int) -> Iterator[tuple[int, int]]:
    """A range in pieces of at most `PART`."""
    for begin in range(first, stop, PART):
        yield begin, min(begin + PART, stop)
