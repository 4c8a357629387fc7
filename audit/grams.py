"""Which runs of 50 tokens of one stream also stand in another: winnowed fingerprints first, then the tokens themselves.

A gram is 50 tokens in a row; a run of n ≥ 50 tokens is a chain of n - 49 grams, so two streams share a run of ≥ 50
tokens exactly where they share a gram.

Data flow: the smaller stream (validation, or rows of unknown origin) → `Index`. The larger one, part by part →
`Index.match` → the index's grams that stand in it → `search` → for each gram where it stands first.

    index = Index(tokens)
    places = index.places(search(index, split))     # int64 [n]: where in `split` the gram at each token stands, or -1

1. Winnowing finds where a look is worth it: of the hashes of the 32-grams in each window of 19, that is of 32 + 19 - 1
   = 50 tokens, the least one is the window's fingerprint. Equal grams have equal fingerprints, so a gram whose
   fingerprint the index doesn't have is not in it. Neighbours mostly share theirs: one token in ten has a new one.
   Which ones the index has is kept in a sieve, a table of yes and no under their lower bits.
2. What passes is looked up by the hash of the whole gram in a sorted table.
3. Every entry with that hash is compared token by token.

So nothing is found that is not there (3), and nothing is missed: equal grams pass 1 and meet in 2.

Hashes are polynomials over the tokens modulo 2^64, built by doubling (2, 4, 8, 16, 32 tokens), vectorised; numpy lets
go of the interpreter's lock, so parts are searched by as many threads as there are cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from audit.errors import SplitError
from audit.shards import Tokens
from audit.splits import CORES, Split

RUN = 50
"""Tokens of a gram: the shortest shared run that is found, with certainty."""
SHORT, WINDOW = 32, 19
"""Tokens of a fingerprint, and how many in a row the least is taken of: SHORT + WINDOW - 1 = RUN."""
BLOCK = 1 << 15
"""Grams hashed in one go: the arrays of 8 bytes stay in a core's cache (4.6 ns a token; 10 with 2^18)."""
PART = 1 << 20
"""Grams that a thread takes at a time."""
BASE = 0x9E3779B97F4A7C15
"""The odd multiplier of the polynomial: 2^64 over the golden ratio."""

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Rolled:
    """Hashes of the 2, 16 and 32 tokens from each position on: uint64 [n - 1], [n - 15], [n - 31] for n tokens."""

    two: Hashes
    sixteen: Hashes
    short: Hashes

    @classmethod
    def of(cls, tokens: Tokens) -> _Rolled:
        hashes = tokens.astype(np.uint64)
        kept = []
        for size in (1, 2, 4, 8, 16):
            left = hashes[:-size] * _power(size)
            left += hashes[size:]
            hashes = left
            kept.append(hashes)
        return cls(kept[0], kept[3], kept[4])

    def grams(self, at: npt.NDArray[np.intp]) -> Hashes:
        """Hashes of the grams at these positions: of their 32, 16 and 2 tokens, put together."""
        head = self.short[at] * _power(RUN - SHORT) + self.sixteen[at + SHORT] * _power(2)
        found: Hashes = head + self.two[at + SHORT + 16]
        return found

    def fingerprints(self) -> Hashes:
        """The least mixed 32-gram hash of each gram: uint64 [n - 49]."""
        least = self.short ^ (self.short >> np.uint64(32))
        least *= np.uint64(0xFF51AFD7ED558CCD)  # polynomials order neighbours; mixed, every one is as likely the least
        least ^= least >> np.uint64(32)
        for step in (1, 2, 4, 8, WINDOW - 16):
            least = np.minimum(least[:-step], least[step:])
        return least


class Index:
    """The grams of a stream of tokens, uint16 [n], or of rows of `row` tokens each, one after the other.

    Equal grams make a group (sometimes a few groups: every look-up visits all of them), `groups` in number. Takes
    about 24 bytes a token, for a while 40.
    """

    def __init__(self, tokens: Tokens, *, row: int | None = None) -> None:
        if len(tokens) >= 1 << 32:
            raise SplitError(f"got {len(tokens)} tokens to look for, at most {(1 << 32) - 1} are indexed; take fewer")
        self.tokens = np.ascontiguousarray(tokens)
        self._low = np.uint64((1 << len(tokens).bit_length()) - 1)
        self._grams, marks = self._sorted(row or max(len(tokens), 1))
        self._leads = self._led()
        self._table = self._grams[self._leads]
        bits = min(max(len(self._table).bit_length() - 1, 8), 24)
        self._shift = np.uint64(64 - bits)
        filled = np.bincount((self._table >> self._shift).astype(np.intp), minlength=1 << bits)
        self._buckets = (np.cumsum(filled) - filled).astype(np.uint32)
        # Up to 8 million fingerprints fill at most 3 % of the holes, so few grams pass without cause; to look up their
        # fingerprints for certain first would cost more than looking up them.
        self._sieve = np.zeros(1 << min(max(len(marks).bit_length() + 5, 10), 28), dtype=np.bool_)
        self._sieve[self._holes(marks)] = True

    @property
    def groups(self) -> int:
        return len(self._table)

    def _sorted(self, row: int) -> tuple[Hashes, Hashes]:
        """All grams, ascending: the upper bits of the hash and, in the lower bits, the position; all fingerprints."""
        none = np.zeros(0, dtype=np.uint64)
        quarters, marks = [[none], [none], [none], [none]], [none]
        for part in range(0, len(self.tokens) - RUN + 1, BLOCK):
            rolled = _Rolled.of(self.tokens[part : part + BLOCK + RUN - 1])
            at = np.arange(len(rolled.short) - RUN + SHORT)
            at = at[(at + part) % row <= row - RUN]
            grams = rolled.grams(at) & ~self._low | (at + part).astype(np.uint64)
            for number, quarter in enumerate(quarters):
                quarter.append(grams[grams >> np.uint64(62) == number])
            marks.append(_distinct(rolled.fingerprints()))
        ends = np.cumsum([sum(map(len, quarter)) for quarter in quarters])
        joined = np.concatenate([part for quarter in quarters for part in quarter])
        quarters.clear()
        # By their two upper bits apart, so that as many threads can sort them in place.
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(np.ndarray.sort, np.split(joined, ends[:-1])))
        return joined, np.concatenate(marks)

    def _led(self) -> npt.NDArray[np.bool_]:
        """Which of the sorted grams are other ones than those before them."""
        leads = np.ones(len(self._grams), dtype=np.bool_)
        leads[1:] = (self._grams[1:] ^ self._grams[:-1]) > self._low
        for some in _blocks(np.flatnonzero(~leads)):
            here, before = (_grams(self.tokens, self._position(self._grams[i])) for i in (some, some - 1))
            leads[some] = (here != before).any(axis=1)
        return leads

    def match(self, tokens: Tokens, found: Positions) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """(group, position) of all grams of `tokens`, uint16 [m], that are in the index; positions of a group ascend.

        Groups whose `found` [groups] is not negative may be left out.
        """
        groups, positions = [np.zeros(0, dtype=np.intp)], [np.zeros(0, dtype=np.intp)]
        for part in range(0, len(tokens) - RUN + 1, BLOCK):
            block = tokens[part : part + BLOCK + RUN - 1]
            rolled = _Rolled.of(block)
            at = self._candidates(rolled.fingerprints())
            if len(at):
                group, at = self._look_up(rolled.grams(at), at)
                new = found[group] < 0
                group, at = group[new], at[new]
                own = self._position(self._table[group])
                equal = (_grams(block, at) == _grams(self.tokens, own)).all(axis=1)
                groups.append(group[equal])
                positions.append(at[equal] + part)
        return np.concatenate(groups), np.concatenate(positions)

    def _candidates(self, least: Hashes) -> npt.NDArray[np.intp]:
        """The grams whose fingerprint may be in the index, ascending."""
        changes = np.concatenate([[0], np.flatnonzero(least[1:] != least[:-1]) + 1])
        known = self._sieve[self._holes(least[changes])]
        return np.flatnonzero(np.repeat(known, np.diff(changes, append=len(least)))) if known.any() else changes[:0]

    def _look_up(self, hashes: Hashes, at: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """(group, element of `at`) of every pair whose hashes agree in the bits that the table keeps."""
        hashes = hashes & ~self._low
        index = self._buckets[(hashes >> self._shift).astype(np.intp)].astype(np.intp)
        # In a bucket there are two on average, so a few steps do; a binary search misses the cache at every level.
        ahead = np.arange(len(index))
        groups, places = [index[:0]], [at[:0]]
        while len(ahead):
            ahead = ahead[index[ahead] < self.groups]
            here = self._table[index[ahead]] & ~self._low
            equal = ahead[here == hashes[ahead]]
            groups.append(index[equal])
            places.append(at[equal])
            ahead = ahead[here <= hashes[ahead]]
            index[ahead] += 1
        return np.concatenate(groups), np.concatenate(places)

    def places(self, found: Positions) -> Positions:
        """For each token, int64 [n], what `found` [groups] says of the gram that starts there; -1 where none does."""
        places = np.full(len(self.tokens), -1, dtype=np.int64)
        group = np.cumsum(self._leads, dtype=np.uint32) - np.uint32(1)
        for start in range(0, len(group), BLOCK):
            place = found[group[start : start + BLOCK]]
            some = np.flatnonzero(place >= 0)
            places[self._position(self._grams[start + some])] = place[some]
        return places

    def _holes(self, marks: Hashes) -> npt.NDArray[np.intp]:
        # The lower bits: of least values the upper ones are mostly zero.
        return (marks & np.uint64(len(self._sieve) - 1)).astype(np.intp)

    def _position(self, grams: Hashes) -> npt.NDArray[np.intp]:
        return (grams & self._low).astype(np.intp)


def search(
    index: Index, split: Split, *, threads: int | None = None, progress: Callable[[int], None] | None = None
) -> Positions:
    """Where each group of the index stands first in the stream of a split: int64 [groups], -1 where it doesn't.

    The answer does not depend on the number of threads (default: all cores).
    """
    found = np.full(index.groups, -1, dtype=np.int64)
    parts = range(0, max(split.tokens - RUN + 1, 0), PART)

    def look(start: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        groups, positions = index.match(split.slice(start, start + PART + RUN - 1), found)
        return groups, start + positions

    # Parts come back in order, so the first place of a group is the one that is kept. What other threads have found in
    # the meantime only saves work: a group that `look` leaves out has been found further ahead.
    with ThreadPoolExecutor(threads or CORES, thread_name_prefix="overlap") as pool:
        try:
            for start, (groups, positions) in zip(parts, pool.map(look, parts), strict=True):
                new = np.flatnonzero(found[groups] < 0)[::-1]
                found[groups[new]] = positions[new]  # backwards: of several places of a group the first comes last
                if progress:
                    progress(min(PART, split.tokens - start))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _grams(tokens: Tokens, at: npt.NDArray[np.integer]) -> Tokens:
    """The tokens of the grams at these positions [n]: uint16 [n, 50]."""
    grams: Tokens = np.lib.stride_tricks.sliding_window_view(tokens, RUN)[at]
    return grams


def _distinct(values: Hashes) -> Hashes:
    """Values without those that equal the one before; of sorted ones, each once."""
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _blocks(indexes: npt.NDArray[np.intp]) -> list[npt.NDArray[np.intp]]:
    return [indexes[start : start + BLOCK] for start in range(0, len(indexes), BLOCK)]


def _power(exponent: int) -> np.uint64:
    return np.uint64(pow(BASE, exponent, 1 << 64))
