"""The coder of codes: identity, bytes against entropies, one form for one content, and what is not read or written."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from tests.trainer import plain_ans
from trainer import ans, prediction
from trainer.ans import Plane
from trainer.errors import ArtifactError
from trainer.rans import Encoder

BOUNDS = [(-31, 31), (-127, 127), (-2, 1), (-8, 7), (-128, 126), (0, 0), (5, 9), (-9, -5)]
SHAPES = [(1, 1), (1, 700), (700, 1), (40, 30), (300, 20), (9, 513)]
KINDS = ["constant", "uniform", "rare", "columns", "rows", "alike"]


def drawn(plane: Plane, kind: str, seed: int) -> np.ndarray:
    """Codes of a plane: all equal, without structure, with rare extremes, unequal columns, rows, rows nearly alike."""
    random = np.random.default_rng(seed)
    shape = plane.rows, plane.cols
    values: np.ndarray = random.normal(size=shape)
    if kind == "constant":
        values = np.full(shape, random.integers(plane.low, plane.high + 1))
    elif kind == "uniform":
        values = random.integers(plane.low, plane.high + 1, shape)
    elif kind == "rare":
        values = np.where(random.random(shape) < 0.01, plane.high, plane.low)
    elif kind == "columns":
        values = values * np.exp(2 * random.normal(size=plane.cols))
    elif kind == "rows":
        values = values * np.exp(2 * random.normal(size=(plane.rows, 1)))
    else:
        values = values + 20 * random.normal(size=plane.cols)
    return values.round().clip(plane.low, plane.high).astype(np.int8)


@st.composite
def contents(draw: st.DrawFn) -> tuple[list[np.ndarray], list[Plane]]:
    """One to four planes with their codes."""
    sizes = [(*draw(st.sampled_from(SHAPES)), *draw(st.sampled_from(BOUNDS))) for _ in range(draw(st.integers(1, 4)))]
    planes = [Plane(rows, cols, low, high) for rows, cols, low, high in sizes]
    return [drawn(p, draw(st.sampled_from(KINDS)), draw(st.integers(0, 99))) for p in planes], planes


def plane_of(codes: np.ndarray, high: int) -> Plane:
    return Plane(len(codes), codes.shape[1], -high, high)


def entropy_bytes(codes: np.ndarray) -> float:
    """n·H₀ in bytes, from the definition."""
    _, counts = np.unique(codes, return_counts=True)
    return -math.fsum(n * math.log2(n / codes.size) for n in counts.tolist()) / 8


def gaussian(rows: int, cols: int, *, seed: int, spread: float = 0.0, high: int = 31, k: float = 12.85) -> np.ndarray:
    """Codes of Gaussian weights whose columns' scales are log-normal, at SDClip's row scales."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(rows, cols)) * np.exp(spread * random.normal(size=cols))
    steps: np.ndarray = weight / weight.std(axis=1, keepdims=True) * high / k
    return steps.round().clip(-high, high).astype(np.int8)


def embedding(tokens: int, width: int, *, seed: int) -> np.ndarray:
    """Codes of vectors that share a mean and a few directions, a fifth of them never seen and so almost equal."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(tokens, 8)) @ random.normal(size=(8, width)) / 4 + random.normal(size=(tokens, width))
    vectors += random.normal(size=width)
    vectors[: tokens // 5] = vectors[0] + 0.02 * random.normal(size=(tokens // 5, width))
    steps: np.ndarray = vectors / vectors.std(axis=1, keepdims=True) * 6.35
    return steps.round().clip(-127, 127).astype(np.int8)


def over_entropy(codes: Sequence[np.ndarray], high: int) -> float:
    """Share of bytes over Σ n·H₀, everything included."""
    data = ans.encode(codes, [plane_of(c, high) for c in codes])
    return len(data) / sum(map(entropy_bytes, codes)) - 1


@given(contents())
def test_decoding_gives_what_was_encoded(content: tuple[list[np.ndarray], list[Plane]]) -> None:
    """decode is the inverse of encode for all shapes, bounds and distributions, and equal codes give equal bytes."""
    codes, planes = content
    for c in codes:
        c.setflags(write=False)
    data = ans.encode(codes, planes)
    found = ans.decode(data, planes)
    assert [(c.dtype, c.shape, c.tobytes()) for c in found] == [(c.dtype, c.shape, c.tobytes()) for c in codes]
    assert ans.encode([np.asfortranarray(c) for c in found], planes) == data


@pytest.mark.parametrize("share", [0.0, 0.001])
def test_planes_of_almost_nothing_come_back(share: float) -> None:
    """Where the last symbols hold too little to start the other lanes with, a megabyte comes back from a kilobyte."""
    codes = (np.random.default_rng(0).random((1000, 1000)) < share).astype(np.int8)
    data = ans.encode([codes], [plane_of(codes, 31)])
    assert len(data) < 1000 + 15 * share * codes.size / 8
    assert (ans.decode(data, [plane_of(codes, 31)])[0] == codes).all()


def test_gaussian_codes_take_their_entropy() -> None:
    """A million Gaussian codes of four matrices take at most .1 % more than their order-0 entropies, all included."""
    codes = [gaussian(*shape, seed=i) for i, shape in enumerate([(512, 512), (256, 512), (512, 1024), (512, 512)])]
    assert -0.0005 < over_entropy(codes, 31) < 0.001


def test_unequal_columns_take_less_than_their_entropy() -> None:
    """Log-normal spread of .3 among columns: at least 1.7 % below the matrices' order-0 entropies."""
    codes = [gaussian(*shape, seed=i, spread=0.3) for i, shape in enumerate([(512, 512), (1024, 256), (256, 1024)])]
    assert over_entropy(codes, 31) < -0.017


def test_correlated_embeddings_are_predicted() -> None:
    """Rows with shared directions, some nearly equal, take a sixth less than their entropy; noise gains nothing."""
    assert over_entropy([embedding(2000, 64, seed=0)], 127) < -0.16
    assert abs(over_entropy([gaussian(2000, 64, seed=0, high=127, k=20)], 127)) < 0.003


def test_small_planes_carry_no_tables() -> None:
    """Further planes of a hundred codes each cost 5 % over their entropy and a byte, once others have been learned."""
    big = gaussian(512, 256, seed=0)
    small = [gaussian(1, 100, seed=i) for i in range(1, 31)]
    alone = len(ans.encode([big], [plane_of(big, 31)]))
    both = len(ans.encode([big, *small], [plane_of(c, 31) for c in [big, *small]]))
    # Under the distribution of the big one: a hundred codes' own entropy is too low by what they deviate.
    shares = np.bincount(big.ravel() + 31, minlength=63) / big.size
    ideal = -sum(np.log2(shares[c.ravel() + 31]).sum() for c in small) / 8
    assert both - alone < 1.05 * ideal + len(small)


@pytest.mark.parametrize(
    ("planes", "message"),
    [
        ([], "0 planes"),
        ([Plane(0, 5, -1, 1)], "plane 0"),
        ([Plane(1, 1, -1, 1), Plane(5, 0, -1, 1)], "plane 1"),
        ([Plane(5, 5, 1, -1)], "plane 0"),
        ([Plane(5, 5, -128, 127)], "at most 255 values"),
        ([Plane(5, 5, -129, 0)], "int8 bounds"),
        ([Plane(5, ans.MAX_LENGTH + 1, -1, 1)], "rows and columns"),
        ([Plane(ans.MAX_LENGTH, ans.MAX_LENGTH, -1, 1)], "planes of 1099511627776 codes"),
        ([Plane(1, 1, -i, 1) for i in range(ans.MAX_BOUNDS + 1)], "65 bounds"),
    ],
)
def test_planes_out_of_range_are_refused_both_ways(planes: list[Plane], message: str) -> None:
    """No planes, empty ones, bounds outside int8 and sizes over the limits are refused before anything is allocated."""
    with pytest.raises(ArtifactError, match=message):
        ans.encode([np.zeros((1, 1), np.int8)] * len(planes), planes)
    with pytest.raises(ArtifactError, match=message):
        ans.decode(bytes(1000), planes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((2, 3), np.int16), "int16"),
        (np.zeros((3, 2), np.int8), r"\[3, 2\]"),
        (np.zeros(6, np.int8), r"\[6\]"),
        (np.full((2, 3), -4, np.int8), "from -4 to -4"),
        (np.array([[0, 0, 4], [0, 0, 0]], np.int8), "from 0 to 4"),
    ],
)
def test_codes_that_are_not_the_planes_are_refused(codes: np.ndarray, message: str) -> None:
    """Another type or shape and codes out of bounds are refused, with the plane's number."""
    with pytest.raises(ArtifactError, match=f"plane 1: .*{message}"):
        ans.encode([np.zeros((1, 1), np.int8), codes], [Plane(1, 1, 0, 0), Plane(2, 3, -3, 3)])


def damaged(kind: str) -> tuple[list[np.ndarray], list[Plane], bytes]:
    """Small contents whose bytes are damaged below."""
    codes, planes = {
        "mixed": ([gaussian(6, 12, seed=1), np.ones((1, 3), np.int8)], [Plane(6, 12, -31, 31), Plane(1, 3, -2, 1)]),
        "predicted": ([gaussian(1, 60, seed=1).T.repeat(3, axis=1)], [Plane(60, 3, -31, 31)]),
    }[kind]
    data = ans.encode(codes, planes)
    assert (data[0] == 128) == (kind == "predicted")
    return codes, planes, data


@pytest.mark.parametrize("kind", ["mixed", "predicted"])
def test_every_flipped_bit_is_refused_or_gives_other_codes(kind: str) -> None:
    """No flipped bit crashes the reader, gives codes out of bounds, or gives the same codes from other bytes."""
    codes, planes, data = damaged(kind)
    refused = 0
    for i in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        try:
            found = ans.decode(bytes(flipped), planes)
        except ArtifactError:
            refused += 1
            continue
        assert any((a != b).any() for a, b in zip(found, codes, strict=True))
        for c, p in zip(found, planes, strict=True):
            assert c.shape == (p.rows, p.cols)
            assert p.low <= c.min() <= c.max() <= p.high
    assert refused > 7.9 * len(data)


@pytest.mark.parametrize("kind", ["mixed", "predicted"])
def test_no_cut_and_no_surplus_is_read(kind: str) -> None:
    """All truncations are refused, and so are bytes, zeros or not, behind the end."""
    _, planes, data = damaged(kind)
    cut = [data[:size] for size in range(len(data))]
    for wrong in [*cut, data + b"\0", data + b"\0\0", data + b"\1\0", data + data]:
        with pytest.raises(ArtifactError):
            ans.decode(wrong, planes)


@given(st.binary(max_size=200), st.sampled_from([Plane(4, 5, -31, 31), Plane(1, 1, 0, 0), Plane(24, 3, -8, 7)]))
@example(b"\x80" + bytes(199), Plane(24, 3, -8, 7))
@example(b"\x3f" + b"\xff" * 198, Plane(4, 5, -31, 31))
def test_random_bytes_are_refused_or_are_codes(data: bytes, plane: Plane) -> None:
    """Any bytes raise ArtifactError or give codes within bounds, which encode to those bytes."""
    try:
        (found,) = ans.decode(data, [plane])
    except ArtifactError:
        return
    assert ans.encode([found], [plane]) == data


def test_classes_must_be_those_of_the_codes() -> None:
    """Bytes that are consistent but for a class that the codes do not have are refused: one content has one form."""
    codes = gaussian(8, 8, seed=3)
    part = ans._Part(codes.copy(), -31, 31, ans._classes(codes) + 1)
    coder = Encoder(codes.size)
    ans._run([part], coder)
    data = bytes(part.classes.tolist()) + coder.words().astype("<u2").tobytes()
    with pytest.raises(ArtifactError, match="a class is not that of the codes"):
        ans.decode(data, [plane_of(codes, 31)])


def test_only_tall_planes_are_read_as_predicted() -> None:
    """The mark of prediction on a plane that can't be predicted is refused, as are classes beyond 63."""
    with pytest.raises(ArtifactError, match="plane 0: predicted"):
        ans.decode(bytes([128]) + bytes(99), [Plane(15, 2, -31, 31)])
    with pytest.raises(ArtifactError, match="plane 0: predicted"):
        ans.decode(bytes([128]) + bytes(99), [Plane(99, 2, 1, 31)])
    with pytest.raises(ArtifactError, match="expected 1 from 0 to 63"):
        ans.decode(bytes([64]) + bytes(99), [Plane(15, 2, -31, 31)])


def test_prediction_is_bounded() -> None:
    """Products stay exact in fp32 at the limits, and what would take long to restore can't be marked as predicted."""
    assert prediction.MAX_ROWS * prediction.MAX_COEFFICIENT * 128 < 1 << 24
    wide, many = prediction.MAX_ROWS + 1, ans.MAX_PREDICTED // 512 + 1
    for plane in [Plane(8 * wide, wide, -1, 1), Plane(many, 512, -1, 1)]:
        with pytest.raises(ArtifactError, match="predicted"):
            ans.decode(bytes([128]) + bytes(99), [plane])


def hashed(rows: int, cols: int) -> np.ndarray:
    """Integers of about Gaussian shape and deviation 148, from integers alone: no generator's version matters."""
    with np.errstate(over="ignore"):
        mixed = (np.arange(rows * cols, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ mixed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
    sums: np.ndarray = mixed.view(np.uint8).reshape(rows, cols, 8)[:, :, 4:].sum(axis=2, dtype=np.int64)
    return sums - 510


GOLDEN = (
    "2324de142d0601000e03530041001c00ce0e2262e32c123ce1ff137d4695d59a0929e18812096587d20c6394be2ac723d7fc"
    "b3e119b8d1d425e6ecc5751f0d838306c66e"
)
DIGEST = "a7c520581747eba24e8fc7ab8918ee9856ba66b9d7d39b5759c5094092cff773"


def test_the_bytes_stay_as_they_are() -> None:
    """Golden bytes, small ones and a digest of many lanes and a prediction: what changed them would show here."""
    small = [(hashed(6, 10) // 60).astype(np.int8), np.full((1, 4), -2, np.int8)]
    assert ans.encode(small, [Plane(6, 10, -31, 31), Plane(1, 4, -2, 1)]).hex() == GOLDEN
    tall = hashed(1, 40) // 8 + hashed(900, 40) // 50
    many = [(hashed(700, 300) * (np.arange(300) % 7 + 1) // 200).astype(np.int8), tall.astype(np.int8)]
    data = ans.encode(many, [plane_of(many[0], 31), plane_of(many[1], 127)])
    assert data[1] == 128
    assert hashlib.sha256(data).hexdigest() == DIGEST


def columns_of(sums: list[int], rows: int) -> tuple[list[int], list[int]]:
    """Each column's mean |code| over the part's after that many rows, by the coder and by plain Python."""
    part = ans._Part(np.broadcast_to(np.int8(0), (rows, len(sums))), -127, 127, np.zeros(1, np.int64))
    known = ans._Contexts([part])
    known.sums[0] = np.array(sums, np.int64)
    plain = plain_ans.Part(rows, len(sums), (-127, 127), [0], sums=sums)
    return known._relative(0, rows).tolist(), plain_ans.columns(plain, rows)


@given(st.lists(st.integers(0, 128 << 36), min_size=1, max_size=40), st.integers(1, ans.MAX_LENGTH))
@example([0, 127 * 400 * 65536, *[0] * 16_398], 400)
@example([0, 127 * 560 * 21845, *[0] * 16_398], 560)
@example([128 << 36] * 1023 + [0], ans.MAX_LENGTH)
@example([128 << 26] * (ans.MAX_LENGTH - 1) + [0], 1 << 10)
def test_columns_are_compared_in_integers_without_bounds(sums: list[int], rows: int) -> None:
    """The largest sums that planes can give, whose squares pass 2^63, say of columns what docs/artifact.md says."""
    found, expected = columns_of(sums, rows)
    assert found == expected
