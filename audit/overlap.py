"""Which validation tokens and documents also stand in the training data.

File hashes can't see it: the shards of issue 2127 were the right ones, and 40,000 of 50,000 validation documents stood
in the training shards beside them, because the data script's default was another split.

Data flow of `measure`: the validation stream → `Index` → `search` through the training stream (`audit.grams`,
certain for runs of ≥ 50 tokens, wherever shards or documents end) → which tokens are shared; and, apart from it, the
SHA-256 of every document of both splits → which documents are equal; both → `Pattern`, how the overlapping documents
lie in the validation stream → `Overlap`. `locate` finds rows of unknown origin in a split.

These are measurements. Whether they are a fault is for the rules: natural text repeats itself, here and there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.errors import SplitError
from audit.grams import RUN, Index, Positions, search
from audit.shards import BOS, Tokens
from audit.splits import Split

PART = 1 << 22
"""Tokens looked through for document starts at a time."""
OVERLAPPING = 0.5
"""A document overlaps if this share of its tokens is in shared runs. One that is shorter than a run and equal to a
training document does not: a document of two tokens is soon met again.
"""
STRETCH, CHANCE, LONG_STRETCH = 8, 1e-6, 32
"""Overlapping documents in a row that are called contiguous: 8 if that is less likely than 1e-6, or 32 at any rate.

If 30 % of 50,000 documents overlapped at random, the longest stretch would be about 9; 32 would need more than 70 %.
"""
EXAMPLES = 10


@dataclass(frozen=True, kw_only=True)
class Place:
    """`length` tokens that stand at `row_start` of row (or document) `row` and at `offset` of a shard of the split."""

    row: int
    row_start: int
    shard: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """How overlapping documents lie in the validation stream. Documents are counted from 0."""

    overlapping: int
    first: int | None
    """The longest stretch of neighbouring documents that all overlap: the first of them, null if there is none."""
    length: int
    chance: float
    """An upper bound of the probability of such a stretch if as many documents overlapped at random places."""

    @property
    def contiguous(self) -> bool:
        """Whether documents overlap because of where they stand: the pattern of issue 2127."""
        return self.length >= LONG_STRETCH or (self.length >= STRETCH and self.chance <= CHANCE)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What two splits share."""

    run: int
    """Tokens of the shortest shared run that was looked for, and is found with certainty."""
    train_tokens: int
    val_tokens: int
    shared_tokens: int
    """Validation tokens in runs of ≥ `run` tokens that also stand in training."""
    train_documents: int
    val_documents: int
    equal_documents: int
    """Validation documents that are also training documents, token by token."""
    pattern: Pattern
    examples: tuple[Place, ...]
    """Where the longest shared runs stand: `row` is the validation document (-1 before the first), `row_start` the
    token in it, `shard` and `offset` the place in training, where `length` tokens are equal.
    """

    @property
    def share(self) -> float:
        """The share of the validation tokens that also stand in training."""
        return self.shared_tokens / self.val_tokens

    def as_dict(self) -> dict[str, Any]:
        """Nested JSON values."""
        pattern = dataclasses.asdict(self.pattern) | {"contiguous": self.pattern.contiguous}
        examples = [dataclasses.asdict(example) for example in self.examples]
        return dataclasses.asdict(self) | {"share": self.share, "pattern": pattern, "examples": examples}


def measure(
    train: Split, val: Split, *, threads: int | None = None, progress: Callable[[int], None] | None = None
) -> Overlap:
    """What stands in both splits. Raises SplitError if one of them is empty.

    Memory: about 50 bytes a validation token at the peak, and what the system keeps of the files; training is streamed.
    """
    for split in (train, val):
        if not split.tokens:
            raise SplitError(f"split {split.name} has no tokens, expected some to compare; name its folder")
    index = Index(val.slice(0, val.tokens))
    places = index.places(search(index, train, threads=threads, progress=progress))
    documents = np.concatenate(list(_documents(val)))
    equal, train_documents = _equal(train, val, documents)
    shared = _covered(places >= 0)
    before = np.concatenate([[0], np.cumsum(shared, dtype=np.int64)])
    inside = before[documents[:, 1]] - before[documents[:, 0]]
    overlapping = inside >= OVERLAPPING * np.diff(documents)[:, 0]
    return Overlap(
        run=RUN,
        train_tokens=train.tokens,
        val_tokens=val.tokens,
        shared_tokens=int(before[-1]),
        train_documents=train_documents,
        val_documents=len(documents),
        equal_documents=int(equal.sum()),
        pattern=pattern(overlapping),
        examples=_examples(shared, places, index.tokens, train, documents),
    )


def locate(rows: Tokens, split: Split, *, threads: int | None = None) -> tuple[Place, ...]:
    """Where rows of tokens, uint16 [n, L], stand in a split: every token of a row that lies in a run of ≥ 50 tokens
    which the split has too is in at least one of the places. By row, then by token in the row.
    """
    if rows.ndim != 2 or rows.dtype != np.uint16:
        raise SplitError(f"got rows of {rows.dtype} and shape {rows.shape}, expected uint16 of shape [n, L]")
    index = Index(rows.reshape(-1), row=rows.shape[1] or 1)
    places = index.places(search(index, split, threads=threads)).reshape(rows.shape)
    found = []
    for row in np.flatnonzero((places >= 0).any(axis=1)):
        grams = np.flatnonzero(places[row] >= 0)
        while len(grams):
            start = int(grams[0])
            position = int(places[row, start])
            length = _run(rows[row, start:], split, position)
            found.append(_place(split, position, row=int(row), row_start=start, length=length))
            grams = grams[np.searchsorted(grams, start + length - RUN + 1) :]
    return tuple(found)


def pattern(overlapping: npt.NDArray[np.bool_]) -> Pattern:
    """The pattern of documents, bool [n], in the order of the stream."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], overlapping.astype(np.int8), [0]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    if not len(starts):
        return Pattern(overlapping=0, first=None, length=0, chance=1.0)
    longest = int(np.argmax(lengths))
    count, length, total = int(overlapping.sum()), int(lengths[longest]), len(overlapping)
    # Places of a stretch, times the probability that its documents all overlap: drawn without putting back.
    logs = np.log(np.arange(count, count - length, -1) / np.arange(total, total - length, -1))
    chance = math.exp(min(0.0, math.log(total - length + 1) + float(logs.sum())))
    return Pattern(overlapping=count, first=int(starts[longest]), length=length, chance=chance)


def _documents(split: Split) -> Iterator[Positions]:
    """(first token, token after the last) of each document, int64 [n, 2], in parts; what comes before the first BOS is
    no document.
    """
    begun = np.zeros(0, dtype=np.int64)
    for part in range(0, split.tokens, PART):
        found = part + np.flatnonzero(split.slice(part, part + PART) == BOS)
        edges = np.concatenate([begun, found])
        yield np.stack([edges[:-1], edges[1:]], axis=1)
        begun = edges[-1:]
    yield np.stack([begun, np.full_like(begun, split.tokens)], axis=1)


def _equal(train: Split, val: Split, documents: Positions) -> tuple[npt.NDArray[np.bool_], int]:
    """Which validation documents, bool [n], are training documents too, and how many documents training has."""
    digests = [_digest(val, start, stop) for start, stop in documents]
    wanted, lengths, found, count = set(digests), np.unique(np.diff(documents)), set(), 0
    for part in _documents(train):
        count += len(part)
        for start, stop in part[np.isin(np.diff(part)[:, 0], lengths)]:
            digest = _digest(train, start, stop)
            if digest in wanted:
                found.add(digest)
    return np.array([digest in found for digest in digests], dtype=np.bool_), count


def _digest(split: Split, start: int, stop: int) -> bytes:
    return hashlib.sha256(split.slice(start, stop).data).digest()


def _covered(starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The tokens, bool [n], in one of the grams that start at these, bool [n]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], starts.astype(np.int8), [0]])))
    steps = np.zeros(len(starts) + RUN, dtype=np.int32)
    np.add.at(steps, edges[::2], 1)
    np.add.at(steps, edges[1::2] + RUN - 1, -1)
    covered: npt.NDArray[np.bool_] = np.cumsum(steps[: len(starts)], out=steps[: len(starts)]) > 0
    return covered


def _examples(
    shared: npt.NDArray[np.bool_], places: Positions, tokens: Tokens, train: Split, documents: Positions
) -> tuple[Place, ...]:
    """The longest stretches of shared tokens, each with a place of its beginning in training."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], shared.astype(np.int8), [0]])))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    found = []
    for i in np.argsort(-lengths, kind="stable")[:EXAMPLES]:
        start, position = int(starts[i]), int(places[starts[i]])
        length = _run(tokens[start : start + int(lengths[i])], train, position)
        document = int(np.searchsorted(documents[:, 0], start, side="right")) - 1
        first = int(documents[document, 0]) if document >= 0 else 0
        found.append(_place(train, position, row=document, row_start=start - first, length=length))
    return tuple(found)


def _run(tokens: Tokens, split: Split, position: int) -> int:
    """How many of these tokens, one after the other, stand at this position of the split."""
    other = split.slice(position, position + len(tokens))
    different = np.flatnonzero(tokens[: len(other)] != other)
    return int(different[0]) if len(different) else len(other)


def _place(split: Split, position: int, *, row: int, row_start: int, length: int) -> Place:
    shard, offset = split.place(position)
    return Place(row=row, row_start=row_start, shard=split.shards[shard].name, offset=offset, length=length)
