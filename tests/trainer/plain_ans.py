"""The coder of codes as docs/artifact.md has it, read by plain Python: one integer after the other, no numpy."""

from __future__ import annotations

import collections
import dataclasses
import struct
from collections.abc import Iterator, Sequence

Bounds = tuple[int, int]


@dataclasses.dataclass
class Part:
    rows: int
    cols: int
    bounds: Bounds
    classes: list[int]
    codes: list[list[int]] = dataclasses.field(default_factory=list)
    sums: list[int] = dataclasses.field(default_factory=list)

    def class_of(self, row: int) -> int:
        return self.classes[row if len(self.classes) > 1 else 0]


def decode(data: bytes, planes: Sequence[tuple[int, int, int, int]]) -> list[list[list[int]]]:
    """Rows of codes of each plane (rows, cols, low, high)."""
    split, at = [], 0
    for rows, cols, low, high in planes:
        if data[at] == 128:
            rest = Part(cols, rows, (low, high), list(data[at + 1 : at + 1 + cols]))
            split.append([rest, Part(cols // 2, cols - 1 | 1, (-126, 126), [data[at + 1 + cols]])])
            at += cols + 2
        else:
            split.append([Part(rows, cols, (low, high), [data[at]])])
            at += 1
    parts = [part for pair in split for part in pair]
    read(parts, States([word for (word,) in struct.iter_unpack("<H", data[at:])], sum(p.rows * p.cols for p in parts)))
    return [restore(*pair) if len(pair) > 1 else pair[0].codes for pair in split]


class States:
    """Lanes of asymmetric numeral systems, and the words that they have not taken yet."""

    def __init__(self, words: list[int], total: int) -> None:
        self.words = collections.deque(words)
        self.lanes = min(2048, max(8, 1 << (total >> 14).bit_length()))
        self.ahead = max(0, total - 16 * self.lanes) if self.lanes > 8 else 0
        self.padded = False
        self.load()

    def load(self) -> None:
        taken = [self.words.popleft() for _ in range(3 * self.lanes)]
        self.states = [
            taken[i] << 32 | taken[self.lanes + i] << 16 | taken[2 * self.lanes + i] for i in range(self.lanes)
        ]

    def symbols(self, tables: list[list[int]]) -> list[int]:
        """A symbol from each of the tables of frequencies, neighbours from neighbouring lanes."""
        first = min(self.ahead, len(tables))
        self.ahead -= first
        found = self.take(tables[:first])
        if not self.ahead and self.lanes > 8:
            assert all(x >> 32 == 1 for x in self.states)
            left = [x >> 16 & 0xFFFF for x in self.states] + [x & 0xFFFF for x in self.states]
            self.padded = not self.words
            self.words.extendleft(reversed(left))
            self.lanes = 8
            self.load()
        return found + self.take(tables[first:])

    def take(self, tables: list[list[int]]) -> list[int]:
        found = []
        for i, table in enumerate(tables):
            x = self.states[i % self.lanes]
            slot, symbol, start = x % 2**15, 0, 0
            while slot >= start + table[symbol]:
                start += table[symbol]
                symbol += 1
            x = table[symbol] * (x >> 15) + slot - start
            self.states[i % self.lanes] = x if x >= 1 << 32 else x << 16 | self.words.popleft()
            found.append(symbol)
        return found

    def expect_end(self) -> None:
        assert self.states == [1 << 32] * 8
        assert not any(self.words)
        assert self.padded or not self.words


def read(parts: list[Part], states: States) -> None:
    """All codes of the parts."""
    groups = sorted({part.bounds for part in parts})
    counts: dict[tuple[Bounds, int], list[int]] = {}
    raw = {bounds: topped([2**15 // (bounds[1] - bounds[0] + 1)] * (bounds[1] - bounds[0] + 1)) for bounds in groups}
    for ranges in rounds(parts):
        tables: dict[tuple[Bounds, int], list[int]] = {}
        seen: list[tuple[tuple[Bounds, int], int]] = []
        for part, start, end in ranges:
            relative, rows = columns(part, start), range(start, end)
            keys = [
                (part.bounds, max(0, min(63, class_(value) + part.class_of(row) - 32)))
                for row in rows
                for value in relative
            ]
            for key in keys:
                if key not in tables:
                    tables[key] = table(*key, counts.get(key))
            symbols = states.symbols([tables[key] for key in keys])
            escaped = [i for i, symbol in enumerate(symbols) if symbol == 255]
            for i, symbol in zip(escaped, states.take([raw[part.bounds]] * len(escaped)), strict=True):
                symbols[i] = symbol
            seen += zip(keys, symbols, strict=True)
            learn(part, start, [symbol + part.bounds[0] for symbol in symbols])
        for key, symbol in seen:
            counts.setdefault(key, [0] * 256)[symbol] += 1
    states.expect_end()


def rounds(parts: list[Part]) -> Iterator[list[tuple[Part, int, int]]]:
    """The parts of each round with their rows."""
    end, last, done = 0, max(part.rows for part in parts), [0] * len(parts)
    while end < last:
        width = sum(part.cols for part in parts if part.rows > end)
        end = min(last, end + max(1, min(end // 4, 2**22 // width)))
        found = []
        for i, part in enumerate(parts):
            if done[i] < part.rows and (end >= part.rows or (end - done[i]) * part.cols >= 1024):
                found.append((part, done[i], min(end, part.rows)))
                done[i] = min(end, part.rows)
        yield found


def class_(value: int) -> int:
    value = max(1, min(65535, value))
    exponent = value.bit_length() - 1
    return 4 * exponent + ((value << 2 >> exponent) & 3)


def middle(c: int) -> int:
    return ((9 + 2 * (c % 4)) << c // 4) >> 3


def columns(part: Part, start: int) -> list[int]:
    """Each column's mean |code| over the part's, in 256ths."""
    if not start:
        return [256] * part.cols
    total = sum(part.sums)
    spread = part.cols * sum(s * s for s in part.sums) - total**2
    chance = 6 * total**2 // (10 * start)
    share = (spread - chance << 16) // spread if spread > chance else 0
    return [(total // (part.cols * start) * (2**16 - share) + s // start * share) >> 16 for s in part.sums]


def learn(part: Part, start: int, codes: list[int]) -> None:
    part.sums = part.sums or [0] * part.cols
    for row in range(start, start + len(codes) // part.cols):
        part.codes.append(codes[(row - start) * part.cols : (row - start + 1) * part.cols])
        for j, code in enumerate(part.codes[-1]):
            part.sums[j] += abs(code) * (2**16 // middle(part.class_of(row)))


def table(bounds: Bounds, c: int, counts: list[int] | None) -> list[int]:
    """Frequencies of a context."""
    low, high = bounds
    weights = [1024 * n + p for n, p in zip(counts or [0] * (high - low + 1), prior(low, high, c), strict=False)]
    total = sum(weights)
    frequencies = [w * 2**15 // total for w in weights]
    rare = [w for w, f in zip(weights, frequencies, strict=True) if not f]
    escape = max(1, sum(rare) * 2**15 // total) if rare else 0
    return topped(frequencies + [0] * (255 - len(frequencies)) + [escape])


def topped(frequencies: list[int]) -> list[int]:
    """With the most frequent symbol, the first of equals, so much more frequent that the sum is 2^15."""
    frequencies[frequencies.index(max(frequencies))] += 2**15 - sum(frequencies)
    return frequencies


def prior(low: int, high: int, c: int) -> list[int]:
    """Student's t of 7 degrees."""
    scale = 9 * middle(c) ** 2 + 1024
    density = []
    for code in range(low, high + 1):
        ratio = scale * 2**20 // (scale + code * code * 2**16)
        density.append(max(1, (ratio * ratio >> 20) ** 2 >> 20))
    return [d * 256 * 1024 // sum(density) for d in density]


def restore(rest: Part, folded: Part) -> list[list[int]]:
    """The plane that prediction left `rest` of."""
    low, high = rest.bounds
    coefficients = iter([k for row in folded.codes for k in row])
    turned: list[list[int]] = []
    for left in rest.codes:
        k = [next(coefficients) for _ in turned]
        row = []
        for column, code in enumerate(left):
            predicted = (sum(a * above[column] for a, above in zip(k, turned, strict=True)) + 16) // 32
            code += max(low, min(high, predicted))
            row.append(code + (high - low + 1) * ((code < low) - (code > high)))
        turned.append(row)
    return [list(column) for column in zip(*turned, strict=True)]
