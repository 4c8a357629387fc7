"""Checksums of token ids and fingerprints of parameters: 64-bit sums that tell where every element stands.

    checksum(ids)  = Σ (id_i + 1)·w_i  mod 2^64       what entered the model, what was handed out
    fingerprint(x) = Σ word_i·v_i      mod 2^64       parameters, as the raw words that they are stored in

with w_i = s_i | 1, s_i the outputs of splitmix64 from seed 0, and v_i the low 32 bits of w_i as a signed number.
Weights are odd, so a change of any single element changes the sum; they differ, so an exchange does too. Integers wrap
and no rounding happens: a CPU, a GPU, numpy and torch get the same number, in whatever order they add
(`audit.recorder.tensors` is the same in torch). Parameters have places in one row of words, so fingerprints of parts
add up to that of the whole.

These sums bind what an honest program did; whoever may choose the elements can also choose two with equal sums. What
must withstand that has a SHA-256.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

MASK = (1 << 64) - 1
CHUNK = 1 << 14
"""Words multiplied in one go: 128 KiB of products stay in a core's cache and need no new pages. 1.1 ns a word."""


def weights(first: int, count: int) -> np.ndarray:
    """w_first … w_(first+count-1): int64 [count], of which 64 bits are meant, not the sign."""
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) | np.uint64(1)).view(np.int64)


@functools.lru_cache(maxsize=8)
def id_weights(count: int) -> tuple[np.ndarray, int]:
    """The first `count` weights, int64 [count], and their sum modulo 2^64. Programs use few sizes, so both are kept."""
    found = weights(0, count)
    found.flags.writeable = False
    return found, int(found.sum()) & MASK


def checksum(ids: np.ndarray) -> int:
    """The checksum of ids of any shape, in C order; numbers that are no integers count as their bits do."""
    flat = as_words(ids) if ids.dtype.kind not in "iu" else ids.reshape(-1)
    factors, ones = id_weights(flat.size)
    return (int(np.dot(flat.astype(np.int64), factors)) + ones) & MASK


def as_words(array: np.ndarray) -> np.ndarray:
    """The bits of an array as signed integers [n], C order: of as many bytes as an element, of 4 for longer ones."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"<i{min(flat.dtype.itemsize, 4)}")


def fingerprint(array: np.ndarray, *, first: int = 0) -> int:
    """The fingerprint of an array whose first word stands at place `first` in the row of all words."""
    words = as_words(array)
    return fingerprint_words(words, word_weights(first, words.size))


def word_weights(first: int, count: int) -> np.ndarray:
    """v_first … v_(first+count-1): int32 [count], odd."""
    return weights(first, count).astype(np.int32)


def fingerprint_words(words: np.ndarray, factors: np.ndarray) -> int:
    """Σ words·factors modulo 2^64 of two arrays [n] of integers up to 32 bits."""
    total = 0
    for start in range(0, words.size, CHUNK):
        part = slice(start, start + CHUNK)
        total += int(np.multiply(words[part], factors[part], dtype=np.int64).sum())
    return total & MASK


def row_hashes(array: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each row's dtype, shape and bytes: uint64 [n], equal for equal rows of whatever batch."""
    rows = np.ascontiguousarray(array).reshape(array.shape or (1,))
    about = f"golf-audit row {rows.dtype.str} {rows.shape[1:]}\n".encode()
    size = rows.nbytes // max(len(rows), 1)
    content = rows.tobytes()
    parts = (content[i * size : (i + 1) * size] for i in range(len(rows)))
    return np.array(
        [int.from_bytes(hashlib.sha256(about + part).digest()[:8], "big") for part in parts], dtype=np.uint64
    )
