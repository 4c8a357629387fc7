"""Asymmetric numeral systems against a scalar reading of their definition, and against what tables promise."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from trainer import rans
from trainer.errors import ArtifactError
from trainer.rans import ESCAPE, Decoder, Encoder, Tables

TOTAL = 1 << rans.PRECISION


def tables(seed: int, contexts: int, size: int) -> Tables:
    """Random tables of symbols below `size`, skewed, the last for escaped ones; each has a symbol of frequency 0."""
    random = np.random.default_rng(seed)
    frequencies = np.zeros((contexts + 1, 256), np.int64)
    weights = random.random((contexts, size)) ** 8
    weights[:, size // 2] = 0
    frequencies[:-1, :size] = weights / weights.sum(axis=1, keepdims=True) * (TOTAL - 300)
    frequencies[:-1, ESCAPE] = 1
    frequencies[-1, :size] = TOTAL // size
    frequencies[:, 0] += TOTAL - frequencies.sum(axis=1)
    return Tables(frequencies)


def drawn(table: Tables, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols as the tables have them, and their contexts."""
    random = np.random.default_rng(seed)
    contexts = random.integers(0, len(table.frequencies) - 1, count).astype(np.uint16)
    slots = contexts.astype(np.int64) << rans.PRECISION | random.integers(0, TOTAL, count)
    symbols = table.symbols[slots]
    symbols[symbols == ESCAPE] = np.flatnonzero(table.frequencies[0, :ESCAPE] == 0)[0]
    return symbols, contexts


def scalar(words: list[int], contexts: list[int], frequencies: np.ndarray, lanes: int) -> tuple[list[int], list[int]]:
    """Symbols, one at a time, as the module's docstring reads them, and the words that are left."""
    states = [words[i] << 32 | words[lanes + i] << 16 | words[2 * lanes + i] for i in range(lanes)]
    at, symbols, pending = 3 * lanes, [], []
    for n, context in enumerate(contexts):
        row = frequencies[context].tolist()
        slot, start, symbol = states[n % lanes] % TOTAL, 0, 0
        while start + row[symbol] <= slot:
            start += row[symbol]
            symbol += 1
        symbols.append(symbol)
        states[n % lanes] = row[symbol] * (states[n % lanes] // TOTAL) + slot - start
        pending.append(n % lanes)
        if len(pending) == lanes or n + 1 == len(contexts):
            for lane in pending:
                if states[lane] < 1 << 32:
                    states[lane] = states[lane] << 16 | words[at]
                    at += 1
            pending = []
    assert all(state == 1 << 32 for state in states)
    return symbols, words[at:]


@given(st.integers(0, 99), st.integers(1, 4), st.sampled_from([3, 20, 255]), st.lists(st.integers(0, 400), max_size=6))
def test_decoder_gives_what_the_encoder_took(seed: int, contexts: int, size: int, counts: list[int]) -> None:
    """Pieces of any sizes, with symbols of frequency 0 among them, come back, and nothing is left."""
    table = tables(seed, contexts, size)
    pieces = [drawn(table, count, seed + i) for i, count in enumerate(counts)]
    encoder = Encoder(sum(counts))
    written = [encoder.code(*piece, contexts, table) for piece in pieces]
    words = encoder.words()
    decoder = Decoder(words, sum(counts))
    for (symbols, rows), indices in zip(pieces, written, strict=True):
        found = decoder.code(np.zeros_like(symbols), rows, contexts, table)
        assert (found == indices).all()
        assert (found == rows.astype(np.int64) * 256 + symbols).all()
    decoder.expect_end()


def test_the_words_are_those_of_the_definition() -> None:
    """A scalar reader in integers of any size, written from the docstring, reads the words of few lanes."""
    table = tables(0, 3, 20)
    symbols, contexts = drawn(table, 1001, 1)
    symbols[symbols == 10] = 0
    encoder = Encoder(len(symbols))
    encoder.code(symbols, contexts, 3, table)
    found, left = scalar(encoder.words().tolist(), contexts.tolist(), table.frequencies, encoder.many)
    assert found == symbols.tolist()
    assert left == []


@pytest.mark.parametrize("count", [100_000, 300_000])
def test_words_take_what_the_tables_promise(count: int) -> None:
    """Σ -log2(frequency / 2^15) and .05 % and 50 bytes, for few lanes and for many that begin with others' words."""
    table = tables(0, 3, 20)
    symbols, contexts = drawn(table, count, 1)
    encoder = Encoder(count)
    indices = encoder.code(symbols, contexts, 3, table)
    frequencies = table.frequencies.ravel()[indices]
    rare = frequencies == 0
    ideal = (rans.PRECISION - np.log2(frequencies[~rare])).sum() + rare.sum() * (rans.PRECISION + np.log2(20))
    assert 2 * encoder.words().size < 1.0005 * ideal / 8 + 50
    assert (encoder.many > 8) == (count > 200_000)


def test_an_escaped_symbol_must_be_rare() -> None:
    """A symbol that its table has can't be written as an escaped one: one content has one form."""
    table = tables(0, 1, 20)
    contexts = np.zeros(1, np.uint16)
    encoder = Encoder(1)
    encoder.pieces[1].append(table.packed[[ESCAPE]])
    encoder.pieces[1].append(table.packed[[256]])
    with pytest.raises(ArtifactError, match="frequency of its own"):
        Decoder(encoder.words(), 1).code(contexts.astype(np.uint8), contexts, 1, table)


def read(words: np.ndarray, contexts: np.ndarray, table: Tables) -> np.ndarray:
    """Indices of one piece, with the check of the end."""
    decoder = Decoder(words, len(contexts))
    indices = decoder.code(np.zeros(0, np.uint8), contexts, len(table.frequencies) - 1, table)
    decoder.expect_end()
    return indices


@pytest.mark.parametrize(("count", "certain"), [(50, False), (140_000, False), (140_000, True)])
def test_states_and_words_must_fit(count: int, certain: bool) -> None:
    """Too few words, states out of range, and words or states that are not used up are refused.

    Few lanes, many, and many that begin with zeros because all symbols are one that is almost certain.
    """
    table = tables(0, 3, 20)
    symbols, contexts = drawn(table, count, 1)
    if certain:
        table = Tables(np.array([[TOTAL - 40, *[1] * 40, *[0] * 215]] * 4))
        symbols[:] = 0
    encoder = Encoder(count)
    encoder.code(symbols, contexts, 3, table)
    words = encoder.words()
    assert (read(words, contexts, table) & 255 == symbols).all()
    zero, other = words.copy(), words.copy()
    zero[0], other[-1] = 0, other[-1] ^ 1
    surplus = [np.append(words, [np.uint16(end)]) for end in (0, 1)]
    for changed in [words[:-1], words[:20], *surplus, zero, other]:
        with pytest.raises(ArtifactError, match="codes: "):
            read(changed, contexts, table)


def test_a_state_below_its_range_is_refused() -> None:
    """A state that holds 16 bits less, with these as a word behind, would give the same symbols from other words."""
    table, lanes = tables(0, 1, 20), 8
    contexts = np.zeros(lanes, np.uint16)
    encoder = Encoder(lanes)
    encoder.code(np.zeros(lanes, np.uint8), contexts, 1, table)
    words = encoder.words()
    assert len(words) == 3 * lanes
    # All lanes end in 2^32 after one symbol, so the first read one from the state x' of 2^16, the word 0 would follow.
    frequency = int(table.frequencies[0, 0])
    small = ((1 << 16) // frequency << rans.PRECISION) + (1 << 16) % frequency
    other = np.concatenate([words, np.zeros(1, np.uint16)])
    other[[0, lanes, 2 * lanes]] = small >> 32, small >> 16, small & 0xFFFF
    with pytest.raises(ArtifactError, match="a state is too small"):
        read(other, contexts, table)


def test_states_begin_at_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words whose states began at 2^33 are refused: one content has one form."""
    table = tables(0, 1, 20)
    symbols, contexts = drawn(table, 99, 1)
    encoder = Encoder(99)
    encoder.code(symbols, contexts, 1, table)
    with monkeypatch.context() as patched:
        patched.setattr(rans, "_LOW", 1 << 33)
        words = encoder.words()
    with pytest.raises(ArtifactError, match="does not end where it began"):
        read(words, contexts, table)
