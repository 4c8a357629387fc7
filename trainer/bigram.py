"""The bar that a language model has to clear: bits per byte of an interpolated bigram model.

Counts are those of the training tokens, kept sparse; the model is Witten–Bell's (Chen and Goodman,
arXiv:cmp-lg/9606011, section 2.6), from bigram over unigram to uniform:

    P₁(y) = (c(y) + T·1/V) / (N + T)                 N tokens, T different ones
    P(y|x) = (c(x,y) + T(x)·P₁(y)) / (c(x) + T(x))   T(x) different tokens after x; P₁(y) where x was never seen

Pairs are those within a shard. Every token of the validation stream but the first of each shard is predicted from the
one before it, BOS included, and bytes are counted as for the real score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.errors import DataError
from trainer.tokenizer import ByteTable

MAX_TRAIN_TOKENS = 100_000_000
"""Only so many training tokens are counted, from the first shard on, which bounds memory at about 2 GB."""


def bits_per_byte(
    train: Sequence[np.ndarray], val: Sequence[np.ndarray], *, table: ByteTable, max_tokens: int = MAX_TRAIN_TOKENS
) -> float:
    """Bits per byte of validation streams (uint16 [n] each) under the bigram model of training streams.

    Raises DataError if either holds no pair of tokens, or validation stands for no bytes.
    """
    vocab_size = len(table.base)
    pairs, counts = _pair_counts(train, vocab_size, max_tokens)
    total_bytes = sum(table.total(tokens[1:], previous=int(tokens[0])) for tokens in val if len(tokens))
    if not len(pairs) or not total_bytes:
        raise DataError(f"bigram: got {len(pairs)} training pairs and {total_bytes} validation bytes; give more text")
    previous, targets = pairs // vocab_size, pairs % vocab_size
    seen = np.bincount(previous, weights=counts, minlength=vocab_size)
    kinds = np.bincount(previous, minlength=vocab_size).astype(np.float64)
    once = np.bincount(targets, weights=counts, minlength=vocab_size)
    different = np.count_nonzero(once)
    unigram = (once + different / vocab_size) / (once.sum() + different)
    share = np.divide(kinds, seen + kinds, out=np.ones(vocab_size), where=kinds > 0)
    weight = np.divide(1.0, seen + kinds, out=np.zeros(vocab_size), where=kinds > 0)

    asked, times = _pair_counts(val, vocab_size, sum(map(len, val)))
    x, y = asked // vocab_size, asked % vocab_size
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    found = np.where(pairs[place] == asked, counts[place], 0)
    bits = -(times * np.log2(found * weight[x] + share[x] * unigram[y])).sum()
    return float(bits / total_bytes)


def _codes(previous: np.ndarray, targets: np.ndarray, vocab_size: int) -> np.ndarray:
    """One uint32 per pair of ids, x·V + y; V ≤ 2^16."""
    codes: np.ndarray = previous.astype(np.uint32) * np.uint32(vocab_size) + targets
    return codes


def _pair_counts(streams: Sequence[np.ndarray], vocab_size: int, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The different pair codes of the first `max_tokens` tokens, sorted (uint32), and how often each occurs (int64)."""
    parts, left = [np.zeros(0, dtype=np.uint32)], max_tokens
    for tokens in streams:
        part = tokens[: max(left, 0)]
        left -= len(part)
        parts.append(_codes(part[:-1], part[1:], vocab_size))
    codes = np.concatenate(parts)
    codes.sort()
    first = np.flatnonzero(np.diff(codes, prepend=~codes[:1])) if len(codes) else np.zeros(0, dtype=np.int64)
    return codes[first], np.diff(first, append=len(codes))
