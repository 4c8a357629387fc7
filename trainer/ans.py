"""Codes of matrices to bytes and back, with statistics learned from what went before instead of tables in the file.

    data = encode(codes, planes); codes = decode(data, planes)

A plane is a matrix of int8 codes within bounds. Writer and reader go through all planes at once, some rows a round,
and before each round both draw the same conclusions, in integers, from the rounds before:

1. how a column's mean |code| compares with the plane's, shrunk towards it as far as chance explains the differences
   (James and Stein): a class of quarter octaves, which with the class of the row's own mean is an entry's *context*;
2. how often each code came in a context, over all planes of equal bounds: the table of frequencies by which
   `trainer.rans` codes the entry. A context begins as a Student distribution of its scale worth _PRIOR codes.

So columns of unequal scale take fewer bytes than the order-0 entropy of their matrix, and small models carry no tables.
A plane of many more rows than columns, an embedding, is transposed and predicted (`trainer.prediction`) where that
should take fewer bytes. It then is two planes: what prediction leaves, each row with a class of its own since their
spreads are known to differ, and the coefficients.

The bytes, for each plane: its class, 0 to 63; or 128, then, for what prediction leaves, the class of each row, then
the class of the coefficients. Then the words of all codes, 16 bits each, little-endian.

Of two different encodings of one content the reader refuses all but one: classes must be those of the codes read, and
`trainer.rans` has one form for given tables. What remains free is whether to predict, and by which coefficients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from trainer import prediction
from trainer.errors import ArtifactError
from trainer.rans import ESCAPE, PRECISION, Decoder, Encoder, Tables

MAX_LENGTH = 1 << 20
"""Most rows and most columns of a plane."""
MAX_PREDICTED = 1 << 24
"""Most codes of a plane that is predicted, which bounds the time that a hostile file can take."""
MAX_CODES = 1 << 30
"""Most codes of all planes."""
MAX_BOUNDS = 64
"""Most different bounds among planes: each takes 256 KiB of statistics."""

_PREDICTED = 128
_CLASSES = 64
_WORTH = 0.995
"""Prediction is worth its time where it leaves less than this share of a plane's order-0 entropy."""
_ONE = 32
"""Class of a ratio of 1."""
_PRIOR = 256
"""Codes that a context's first distribution counts for: 16 cost .1 % more on a model of 600,000 codes."""
_GROWTH = 2
"""A round has a quarter as many rows as all before it, so knowledge lags by a quarter at most. An eighth saves .007 %
where columns differ and takes 15 % longer."""
_LEAST = 1024
"""Fewest codes of a plane in a round, unless it ends there: each takes a tenth of a millisecond."""
_ROUND = 1 << 22
"""Most codes in a round, unless a row of all planes has more."""


@dataclasses.dataclass(frozen=True)
class Plane:
    """Shape of a matrix of codes, int8 [rows, cols], and the bounds, both included, that they keep."""

    rows: int
    cols: int
    low: int
    high: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """What is coded: codes int8 [rows, cols] within low and high; `classes` int64 of each row's mean, or of all's."""

    codes: np.ndarray
    low: int
    high: int
    classes: np.ndarray


def encode(codes: Sequence[np.ndarray], planes: Sequence[Plane]) -> bytes:
    """Bytes of codes int8 [rows, cols], one array a plane. Raises ArtifactError for codes that are not the planes'."""
    _check(planes)
    for i, (values, plane) in enumerate(zip(codes, planes, strict=True)):
        if values.dtype != np.int8 or values.shape != (plane.rows, plane.cols):
            raise ArtifactError(f"plane {i}: {values.dtype} {list(values.shape)}, expected int8 of {plane}")
        if values.min() < plane.low or values.max() > plane.high:
            raise ArtifactError(f"plane {i}: codes from {values.min()} to {values.max()}, expected those of {plane}")
    split = [_split(values, plane) for values, plane in zip(codes, planes, strict=True)]
    parts = [part for pair in split for part in pair]
    coder = Encoder(sum(part.codes.size for part in parts))
    _run(parts, coder)
    head = b"".join(
        (b"" if len(pair) == 1 else bytes([_PREDICTED])) + b"".join(bytes(part.classes.tolist()) for part in pair)
        for pair in split
    )
    return head + coder.words().astype("<u2").tobytes()


def decode(data: bytes, planes: Sequence[Plane]) -> list[np.ndarray]:
    """The inverse of `encode`. Raises ArtifactError for bytes that it can't give."""
    _check(planes)
    split, at = _parse(data, planes)
    if (len(data) - at) % 2:
        raise ArtifactError(f"codes: {len(data) - at} bytes after the classes, expected whole words of 2")
    parts = [part for pair in split for part in pair]
    coder = Decoder(np.frombuffer(data, "<u2", offset=at), sum(part.codes.size for part in parts))
    _run(parts, coder)
    coder.expect_end()
    for part in parts:
        if (_classes(part.codes, rows=len(part.classes) > 1) != part.classes).any():
            raise ArtifactError("codes: a class is not that of the codes")
    return [_join(pair) for pair in split]


def _check(planes: Sequence[Plane]) -> None:
    total, bounds = sum(p.rows * p.cols for p in planes), {(p.low, p.high) for p in planes}
    if not planes or total > MAX_CODES or len(bounds) > MAX_BOUNDS:
        raise ArtifactError(
            f"codes: {len(planes)} planes of {total} codes within {len(bounds)} bounds, "
            f"expected 1 or more, at most {MAX_CODES} and {MAX_BOUNDS}"
        )
    for i, p in enumerate(planes):
        if not (0 < p.rows <= MAX_LENGTH >= p.cols > 0 and -128 <= p.low <= p.high <= 127 and p.high - p.low < ESCAPE):
            raise ArtifactError(
                f"plane {i}: {p}, expected 1 to {MAX_LENGTH} rows and columns, int8 bounds, at most {ESCAPE} values"
            )


def _predictable(plane: Plane) -> bool:
    shape = 1 < plane.cols <= min(prediction.MAX_ROWS, plane.rows // 8) and plane.rows * plane.cols <= MAX_PREDICTED
    return shape and plane.low <= 0 <= plane.high


def _split(codes: np.ndarray, plane: Plane) -> list[_Part]:
    """A plane as it is, or as what prediction leaves of it, transposed, and the coefficients."""
    bounds = plane.low, plane.high
    plain = [_Part(codes.copy(), *bounds, _classes(codes))]
    if not _predictable(plane):
        return plain
    turned = np.ascontiguousarray(codes.T)
    # A first fit tells whether prediction pays, and how much each column should count.
    coefficients = prediction.fit(turned)
    rest = prediction.residual(turned, coefficients, *bounds)
    if _entropy(rest) + _entropy(_fold(coefficients)) + 8 * plane.cols >= _WORTH * _entropy(codes):
        return plain
    coefficients = prediction.fit(turned, prediction.column_weights(rest))
    rest, folded = prediction.residual(turned, coefficients, *bounds), _fold(coefficients)
    limit = prediction.MAX_COEFFICIENT
    return [_Part(rest, *bounds, _classes(rest, rows=True)), _Part(folded, -limit, limit, _classes(folded))]


def _fold(coefficients: np.ndarray) -> np.ndarray:
    """A matrix [n, n] below its diagonal, row after row, as int8 [n // 2, n - 1], or [n // 2, n] for odd n."""
    return coefficients[np.tril_indices(len(coefficients), -1)].reshape(len(coefficients) // 2, -1)


def _parse(data: bytes, planes: Sequence[Plane]) -> tuple[list[list[_Part]], int]:
    """The parts of each plane with their classes and room for their codes, and where the words begin."""
    split, at = [], 0
    for i, plane in enumerate(planes):
        predicted = data[at : at + 1] == bytes([_PREDICTED])
        if predicted and not _predictable(plane):
            raise ArtifactError(f"plane {i}: predicted, which {plane} can't be")
        count = plane.cols + 1 if predicted else 1
        at += predicted
        classes = np.frombuffer(data[at : at + count], np.uint8).astype(np.int64)
        if len(classes) < count or (classes >= _CLASSES).any():
            raise ArtifactError(f"plane {i}: {len(classes)} classes, expected {count} from 0 to {_CLASSES - 1}")
        at += count
        shape, bounds = (plane.rows, plane.cols), (plane.low, plane.high)
        if predicted:
            limit, folded = prediction.MAX_COEFFICIENT, (plane.cols // 2, (plane.cols - 1) | 1)
            split.append([_Part(np.zeros(shape[::-1], np.int8), *bounds, classes[:-1])])
            split[-1].append(_Part(np.zeros(folded, np.int8), -limit, limit, classes[-1:]))
        else:
            split.append([_Part(np.zeros(shape, np.int8), *bounds, classes)])
    return split, at


def _join(parts: Sequence[_Part]) -> np.ndarray:
    """The inverse of `_split`."""
    rest = parts[0]
    if len(parts) == 1:
        return rest.codes
    coefficients = np.zeros((len(rest.codes),) * 2, np.int8)
    coefficients[np.tril_indices(len(rest.codes), -1)] = parts[1].codes.ravel()
    return np.ascontiguousarray(prediction.restore(rest.codes, coefficients, rest.low, rest.high).T)


def _entropy(codes: np.ndarray) -> float:
    """n·H₀ in bits."""
    counts = np.bincount(codes.view(np.uint8).ravel(), minlength=256)
    shares = counts[counts > 0] / codes.size
    return float(-codes.size * (shares * np.log2(shares)).sum())


def _classes(codes: np.ndarray, *, rows: bool = False) -> np.ndarray:
    """int64: the class of the mean |code| of each row, or of all, in 256ths."""
    means = _sizes(codes).sum(axis=1, dtype=np.int64) * 256
    return _class(means // codes.shape[1] if rows else means.sum(keepdims=True) // codes.size)


def _sizes(codes: np.ndarray) -> np.ndarray:
    """|code| as uint8, which holds 128 too."""
    sizes: np.ndarray = np.abs(codes)
    return sizes.view(np.uint8)


def _class(values: np.ndarray) -> np.ndarray:
    """int64: quarter octaves, by exponent and two bits of mantissa, of values from 1 to 2^16: 0 to 63."""
    exponents: np.ndarray = values.clip(1, 65535).astype(np.float32).view(np.int32) >> 21
    return exponents.astype(np.int64) - (127 << 2)


def _middle(classes: np.ndarray) -> np.ndarray:
    """A value of the class, about its middle."""
    middle: np.ndarray = (9 + 2 * (classes & 3) << (classes >> 2)) >> 3
    return middle


class _Contexts:
    """What is known after the rounds so far: sums of |code| by column, counts of codes by context."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        bounds = sorted({(part.low, part.high) for part in parts})
        self.parts, self.group = parts, [bounds.index((part.low, part.high)) for part in parts]
        self.sizes = np.array([high - low + 1 for low, high in bounds])
        self.sums: dict[int, np.ndarray] = {}
        self.counts = np.zeros((len(bounds) * _CLASSES, 256), np.int64)
        self.prior = np.concatenate([_student(low, high) for low, high in bounds])

    def keys(self, i: int, start: int, end: int) -> np.ndarray:
        """Group · 64 + class of entries of part i, uint16 [end - start, cols], or [1, cols] if rows do not differ."""
        classes = self.parts[i].classes
        rows = classes[start:end] if len(classes) > 1 else classes
        keys: np.ndarray = _class(self._relative(i, start)) + rows[:, None] - _ONE
        return (keys.clip(0, _CLASSES - 1) + self.group[i] * _CLASSES).astype(np.uint16)

    def _relative(self, i: int, rows: int) -> np.ndarray:
        """Each column's mean |code| over the row's, in 256ths, from `rows` rows: James and Stein's estimate."""
        cols = self.parts[i].codes.shape[1]
        if not rows:
            return np.full(cols, 256)
        sums = self.sums[i]
        total = int(sums.sum())
        spread = cols * _squares(sums) - total**2
        # |code| of a Gaussian has a variance of .57 squared means, with heavier tails more.
        chance = 6 * total**2 // (10 * rows)
        share = (spread - chance << 16) // spread if spread > chance else 0
        estimate: np.ndarray = (total // (cols * rows) * ((1 << 16) - share) + sums // rows * share) >> 16
        return estimate

    def learn(self, i: int, start: int, end: int) -> None:
        """Add rows to the sums by column, each over its row's mean."""
        weights, sizes = (1 << 16) // _middle(self.parts[i].classes), _sizes(self.parts[i].codes[start:end])
        if len(weights) == 1:
            added = weights * sizes.sum(axis=0, dtype=np.int32)
        else:
            added = weights[start:end] @ sizes.astype(np.int64)
        self.sums[i] = self.sums.get(i, 0) + added

    def tables(self, keys: np.ndarray) -> Tables:
        """Tables of the contexts `keys`, then for each group one of equal frequencies, for escaped symbols."""
        weights = (self.counts[keys] << 10) + self.prior[keys]
        totals = weights.sum(axis=1)
        frequencies = (weights << PRECISION) // totals[:, None]
        rare = (frequencies == 0) & (np.arange(256) < self.sizes[keys // _CLASSES, None])
        escape = ((weights * rare).sum(axis=1) << PRECISION) // totals
        frequencies[:, ESCAPE] = np.where(rare.any(axis=1), np.maximum(1, escape), 0)
        equal = np.where(np.arange(256) < self.sizes[:, None], (1 << PRECISION) // self.sizes[:, None], 0)
        every = np.concatenate([frequencies, equal])
        every[np.arange(len(every)), every.argmax(axis=1)] += (1 << PRECISION) - every.sum(axis=1)
        return Tables(every)


def _squares(sums: np.ndarray) -> int:
    """Σ s² of int64 [n] below 2^43, exactly: as one product it passes 2^63 from some 6 million codes of a plane on."""
    high, low = sums >> 20, sums & (1 << 20) - 1
    return (int(high @ high) << 40) + (int(high @ low) << 21) + int(low @ low)


def _student(low: int, high: int) -> np.ndarray:
    """int64 [64, 256]: weights in 1024ths of symbols code - low in each class, as Student's t of 7 degrees has them.

    Its density is ∝ (1 + x²/7s²)⁻⁴, and its mean |x| .9 s, so 7 s² is 9 squared means.
    """
    squares = np.arange(low, high + 1) ** 2 << 16
    scale = 9 * _middle(np.arange(_CLASSES))[:, None] ** 2 + (1 << 10)
    ratio = (scale << 20) // (scale + squares)
    density = np.maximum(1, (ratio * ratio >> 20) ** 2 >> 20)
    weights = (density * _PRIOR << 10) // density.sum(axis=1, keepdims=True)
    return np.pad(weights, ((0, 0), (0, 255 - high + low)))


def _rounds(parts: Sequence[_Part]) -> Iterator[dict[int, tuple[int, int]]]:
    """For each round the parts that take part in it, with their ranges of rows."""
    end, last, done = 0, max(len(part.codes) for part in parts), [0] * len(parts)
    while end < last:
        width = sum(part.codes.shape[1] for part in parts if len(part.codes) > end)
        end = min(last, end + max(1, min(end >> _GROWTH, _ROUND // width)))
        ranges = {}
        for i, part in enumerate(parts):
            rows, cols = part.codes.shape
            if done[i] < rows and (end >= rows or (end - done[i]) * cols >= _LEAST):
                ranges[i] = done[i], min(end, rows)
                done[i] = min(end, rows)
        if ranges:
            yield ranges


def _run(parts: Sequence[_Part], coder: Encoder | Decoder) -> None:
    """Take all codes of the parts to an Encoder, or get them from a Decoder."""
    known = _Contexts(parts)
    for ranges in _rounds(parts):
        keys = {i: known.keys(i, *rows) for i, rows in ranges.items()}
        present = np.zeros(len(known.counts), bool)
        for entries in keys.values():
            present[entries] = True
        tables = known.tables(np.flatnonzero(present))
        number = (np.cumsum(present) - 1).astype(np.uint16)
        counts = np.zeros(len(tables.packed), np.int64)
        for i, (start, end) in ranges.items():
            codes, low = parts[i].codes[start:end].view(np.uint8), np.uint8(parts[i].low & 255)
            contexts = np.broadcast_to(number[keys[i]], codes.shape).ravel()
            indices = coder.code((codes - low).ravel(), contexts, present.sum() + known.group[i], tables)
            codes[:] = indices.astype(np.uint8).reshape(codes.shape) + low
            counts += np.bincount(indices, minlength=len(counts))
            if end < len(parts[i].codes):
                known.learn(i, start, end)
        known.counts[present] += counts.reshape(-1, 256)[: present.sum()]
