"""Asymmetric numeral systems (arXiv:1311.2540) in numpy: symbols and tables of frequencies to words and back.

    encoder = Encoder(total)         indices = encoder.code(symbols, contexts, raw, tables)    words = encoder.words()
    decoder = Decoder(words, total)  indices = decoder.code(symbols, contexts, raw, tables)    decoder.expect_end()

Both take the same contexts and tables, piece after piece; the decoder ignores its symbols. A state x in [2^32, 2^48)
takes a symbol of frequency f and start s, of 2^15, as x' = 2^15·(x // f) + s + x % f, and gives up its low 16 bits
first if x' would reach 2^48; reading undoes that, from the last symbol written to the first. Many states, here
*lanes*, take neighbouring symbols at the same time, so that a numpy call serves thousands of them: one core reads 90
million symbols a second beside constriction 0.5's (Rust, one state) 46 million. All arithmetic is on integers (a
quotient of numbers below 2^48 is exact in fp64 once rounded down), so every machine writes the same words.

A lane costs 48 bits where it ends holding 40 on average, and 32 more where it begins. So the last symbols are written
by few lanes, and the words that these give are what the many begin with. With one of many for 8,192 symbols or more
that leaves .03 % at most.
"""

from __future__ import annotations

import functools

import numpy as np

from trainer.errors import ArtifactError

PRECISION = 15
"""log2 of the sum of a table's frequencies."""
ESCAPE = 255
"""Symbol that stands for all symbols of frequency 0: what it was follows, by the table `raw`."""

_LOW = 1 << 32
_MASK = (1 << PRECISION) - 1
_FEW, _MANY = 8, 2048
_TAIL = 16
"""Symbols written by few lanes for each of the others: they fill it if they hold 2 bits or more."""


class Tables:
    """Frequencies int64 [contexts, 256], each row's sum 2^PRECISION, ready for both directions."""

    def __init__(self, frequencies: np.ndarray) -> None:
        self.frequencies = frequencies
        starts = np.cumsum(frequencies, axis=1) - frequencies
        self.packed = (frequencies << PRECISION | starts).astype(np.int32).ravel()

    @functools.cached_property
    def symbols(self) -> np.ndarray:
        """uint8 [contexts · 2^PRECISION]: the symbol of every value of a state's low bits."""
        every = np.tile(np.arange(256, dtype=np.uint8), len(self.frequencies))
        return np.repeat(every, self.frequencies.ravel())


class _Coder:
    """What both directions know: how many symbols are left, and how many lanes take the next ones."""

    def __init__(self, total: int) -> None:
        self.many = min(_MANY, max(_FEW, 1 << (total >> 14).bit_length()))
        self.ahead = max(0, total - _TAIL * self.many) if self.many > _FEW else 0

    def split(self, count: int) -> int:
        """How many of the next `count` symbols are for many lanes."""
        taken = min(count, self.ahead)
        self.ahead -= taken
        return taken


class Encoder(_Coder):
    """Collects frequencies and starts in order, then writes them from the last to the first."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.pieces: tuple[list[np.ndarray], list[np.ndarray]] = [], []

    def code(self, symbols: np.ndarray, contexts: np.ndarray, raw: int, tables: Tables) -> np.ndarray:
        """Take symbols uint8 [n] with their rows of the tables uint16 [n]; returns row · 256 + symbol, int64 [n]."""
        indices: np.ndarray = contexts.astype(np.int64) << 8 | symbols
        packed = tables.packed.take(indices)
        escaped = np.flatnonzero(packed <= _MASK)
        packed[escaped] = tables.packed.take(indices[escaped] | ESCAPE)
        at = self.split(len(packed))
        self.pieces[0].append(packed[:at])
        self.pieces[1].append(packed[at:])
        if escaped.size:
            self.pieces[0 if self.ahead else 1].append(tables.packed.take(raw << 8 | symbols[escaped].astype(np.int64)))
        return indices

    def words(self) -> np.ndarray:
        """Everything taken, uint16."""
        words = _write(self.pieces[1], np.zeros(2 * _FEW, np.uint16), _FEW)
        if self.many > _FEW:
            words = np.pad(words, (0, max(0, 2 * self.many - len(words))))
            words = _write(self.pieces[0], words, self.many)
        return words


def _write(pieces: list[np.ndarray], words: np.ndarray, lanes: int) -> np.ndarray:
    """The words of `pieces` in front of `words`, of which 2·lanes go into the lanes' first states."""
    high, low = words[: 2 * lanes].astype(np.int64).reshape(2, lanes)
    states, written = _LOW | high << 16 | low, [words[2 * lanes :]]
    for piece in reversed(pieces):
        for start in range((len(piece) - 1) // lanes * lanes, -1, -lanes):
            packed = piece[start : start + lanes].astype(np.int64)
            x = states[: len(packed)]
            frequency = packed >> PRECISION
            full = np.flatnonzero(x >= frequency << 48 - PRECISION)
            values = x[full]
            written.append(values.astype(np.uint16))
            x[full] = values >> 16
            x += (x / frequency).astype(np.int64) * ((1 << PRECISION) - frequency)
            x += packed & _MASK
    written.append(np.concatenate([states >> 32, states >> 16, states]).astype(np.uint16))
    return np.concatenate(written[::-1])


class Decoder(_Coder):
    """Gives back, unit after unit, what an Encoder of as many symbols was given."""

    def __init__(self, words: np.ndarray, total: int) -> None:
        super().__init__(total)
        self.lanes, self.words, self.at, self.padded = self.many, words, 0, False
        self._load()

    def code(self, _: np.ndarray, contexts: np.ndarray, raw: int, tables: Tables) -> np.ndarray:
        """Row · 256 + symbol, int64 [n], for rows of the tables uint16 [n]. Raises ArtifactError."""
        lookup, packed = tables.symbols, tables.packed.astype(np.int64)
        indices = contexts.astype(np.int64)
        at = self.split(len(indices))
        self._read(indices[:at], lookup, packed)
        if not self.ahead and self.lanes > _FEW:
            self._narrow()
        self._read(indices[at:], lookup, packed)
        escaped = np.flatnonzero(indices.astype(np.uint8) == ESCAPE)
        if escaped.size:
            symbols = np.full(len(escaped), raw, np.int64)
            self._read(symbols, lookup, packed)
            indices[escaped] += (symbols & 255) - ESCAPE
            if (packed[indices[escaped]] > _MASK).any():
                raise ArtifactError("codes: a symbol is escaped that has a frequency of its own")
        return indices

    def expect_end(self) -> None:
        """Raise ArtifactError unless every state and word has been used up."""
        rest = self.words[self.at :]
        if self._left().any() or rest.any() or (len(rest) and not self.padded):
            raise ArtifactError("codes: the words do not end with the last symbol")

    def _load(self) -> None:
        end = self.at + 3 * self.lanes
        if end > len(self.words):
            raise ArtifactError(f"codes: {len(self.words)} words, expected {end} or more")
        high, middle, low = self.words[self.at : end].astype(np.int64).reshape(3, self.lanes)
        if not high.all():
            raise ArtifactError("codes: a state is too small")
        self.states, self.at = high << 32 | middle << 16 | low, end

    def _left(self) -> np.ndarray:
        """What the states of lanes began with. Raises ArtifactError where that can't be."""
        if (self.states >> 32 != 1).any():
            raise ArtifactError("codes: a state does not end where it began")
        return np.concatenate([self.states >> 16, self.states]).astype(np.uint16)

    def _narrow(self) -> None:
        rest = self.words[self.at :]
        self.lanes, self.at, self.words, self.padded = _FEW, 0, np.concatenate([self._left(), rest]), not len(rest)
        self._load()

    def _read(self, indices: np.ndarray, lookup: np.ndarray, packed: np.ndarray) -> None:
        """Turn rows of the tables, int64 [n], into row · 256 + symbol, in place."""
        # Arrays that hold intermediate results are made once: memory is what this loop waits for.
        lanes, words, at = self.lanes, self.words, self.at
        slots, entries = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
        symbols, empties = np.empty(lanes, np.uint8), np.empty(lanes, np.bool_)
        for start in range(0, len(indices), lanes):
            index = indices[start : start + lanes]
            n = len(index)
            x, slot, entry, symbol, empty = self.states[:n], slots[:n], entries[:n], symbols[:n], empties[:n]
            np.bitwise_and(x, _MASK, out=slot)
            np.left_shift(index, PRECISION, out=entry)
            entry |= slot
            lookup.take(entry, out=symbol, mode="wrap")
            index <<= 8
            index |= symbol
            packed.take(index, out=entry, mode="wrap")
            x >>= PRECISION
            x *= entry >> PRECISION
            x += slot
            entry &= _MASK
            x -= entry
            np.less(x, _LOW, out=empty)
            needy = empty.nonzero()[0]
            end = at + len(needy)
            if end > len(words):
                raise ArtifactError(f"codes: {len(words)} words, expected more")
            x[needy] = x.take(needy) << 16 | words[at:end]
            at = end
        self.at = at
