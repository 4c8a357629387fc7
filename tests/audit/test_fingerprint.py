"""Checksums and fingerprints: numpy and torch agree, every element counts and its place does, parts add up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit import fingerprint
from audit.fingerprint import MASK
from audit.recorder import tensors
from audit.recorder.tensors import Places, Sum

SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=9)
IDS = st.sampled_from([np.int64, np.int32, np.uint16, np.uint8]).flatmap(lambda dtype: arrays.arrays(dtype, SHAPES))
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.bool]


def parameter(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """Random bits as a tensor of a type."""
    size = torch.empty((), dtype=dtype).element_size() * int(np.prod(shape))
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == torch.bool else 256, size).astype(np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's raw words, by way of its bytes."""
    width = min(tensor.element_size(), 4)
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).view(f"<i{width}")


def placed(parameters: list[torch.Tensor]) -> Places:
    """The places of an announced model's parameters."""
    places = Places()
    places.announce(parameters)
    return places


def as_on_a_gpu(parameters: list[torch.Tensor], places: Places, *, size: int) -> tensors.Value:
    """The fingerprint by the chunks that a GPU sums."""
    rows = [tensors.words(p) for p in parameters]
    weights = [fingerprint.word_weights(places.first(p), len(row)) for p, row in zip(parameters, rows, strict=True)]
    found = tensors.chunks(rows, weights, which=range(len(rows)), size=size)
    return tensors.total([chunk.sum(chunk.views(rows)) for chunk in found], 0)


def slow_checksum(ids: np.ndarray) -> int:
    """The formula in Python's integers."""
    return sum((int(each) + 1) * splitmix64(place) for place, each in enumerate(ids.reshape(-1))) & MASK


def splitmix64(place: int) -> int:
    z = (place + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return (z ^ z >> 31) | 1


def test_a_checksum_stays_what_it_is() -> None:
    """The numbers in yesterday's ledgers are those of today: splitmix64's published first output, and two sums."""
    assert int(fingerprint.weights(0, 1)[0]) & MASK == 0xE220A8397B1DCDAF  # of seed 0; odd already
    assert fingerprint.checksum(np.arange(6, dtype=np.uint16).reshape(2, 3)) == 0x347348585B2089C3
    assert fingerprint.fingerprint(np.array([1.0, -2.5, 0.0], dtype=np.float32)) == 0x360FC23467200000


@given(IDS)
def test_a_checksum_is_the_formula_in_numpy_and_in_torch(ids: np.ndarray) -> None:
    """Python's integers, numpy, torch on a CPU and the sum that a GPU is given agree for every id, however large."""
    expected = slow_checksum(ids)
    tensor = torch.from_numpy(ids)
    assert fingerprint.checksum(ids) == expected
    assert tensors.checksum(tensor) == expected
    ones = fingerprint.id_weights(ids.size)[1]
    assert tensors.total([tensors.weighted(tensor.reshape(-1))], ones) == expected


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_checksum_of_what_is_no_integer_is_that_of_its_bits(dtype: torch.dtype) -> None:
    """Images and the like: torch's checksum of a tensor is numpy's of the same bits, seen through a view as well."""
    tensor = parameter(dtype, 5, 6)
    assert tensors.checksum(tensor) == fingerprint.checksum(bits(tensor))
    assert tensors.checksum(tensor[:, 1:]) == fingerprint.checksum(bits(tensor[:, 1:].contiguous()))


@given(IDS, st.data())
def test_every_id_counts_and_so_does_its_place(ids: np.ndarray, data: st.DataObject) -> None:
    """One changed id, or two different ones exchanged, give another checksum."""
    flat = ids.reshape(-1)
    before = fingerprint.checksum(ids)
    place = data.draw(st.integers(0, flat.size - 1))
    other = flat.copy()
    other[place] ^= 1 << data.draw(st.integers(0, 7))
    assert fingerprint.checksum(other) != before
    second = data.draw(st.integers(0, flat.size - 1))
    swapped = flat.copy()
    swapped[[place, second]] = flat[[second, place]]
    assert (fingerprint.checksum(swapped) == before) == bool(flat[place] == flat[second])


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=1, max_dims=2, max_side=40)), st.data())
def test_every_bit_of_a_parameter_counts(values: np.ndarray, data: st.DataObject) -> None:
    """A flip of any bit of any element changes the fingerprint; so do two flipped signs, which sums mod 2^32 miss."""
    before = fingerprint.fingerprint(values)
    words = values.reshape(-1).view(np.int32)
    place, bit = data.draw(st.integers(0, words.size - 1)), data.draw(st.integers(0, 31))
    words[place] ^= np.int32(-(2**31)) if bit == 31 else np.int32(1 << bit)
    assert fingerprint.fingerprint(values) != before
    if words.size > 1:
        first = fingerprint.fingerprint(values)
        words[:2] ^= np.int32(-(2**31))
        assert fingerprint.fingerprint(values) != first


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(1, 40))
def test_fingerprints_of_parts_add_up(shapes: list[tuple[int, int]], size: int) -> None:
    """Over parameters, over subsets of them, and over the chunks that a GPU sums: always the same number."""
    parameters = [torch.randn(shape) for shape in shapes]
    places = placed(parameters)
    whole = Sum(parameters, places).value()
    assert whole == fingerprint.fingerprint(np.concatenate([p.numpy().reshape(-1) for p in parameters]))
    assert whole == (Sum(parameters[::2], places).value() + Sum(parameters[1::2], places).value()) & MASK
    assert as_on_a_gpu(parameters, places, size=size) == whole


def test_parameters_of_any_type_and_odd_size_have_fingerprints() -> None:
    """Types of 1, 2, 4 and 8 bytes and odd sizes, joined: torch's sum is that of their words one after the other."""
    parameters = [parameter(dtype, 3, 7, seed=i) for i, dtype in enumerate(FLOATS)]
    places, place, expected = placed(parameters), 0, 0
    for each in parameters:
        words = bits(each)
        expected += fingerprint.fingerprint(words, first=place)
        place += words.size
    assert Sum(parameters, places).value() == expected & MASK
    assert as_on_a_gpu(parameters, places, size=50) == expected & MASK


def test_places_are_in_the_order_of_the_models() -> None:
    """Whoever was seen before, an announced model's parameters stand where those of its checkpoint do; none shares."""
    one, other, loose = ([torch.randn(3, 2), torch.randn(5)] for _ in range(3))
    places = Places()
    early = Sum([*loose, *reversed(one)], places)
    before = early.value()
    places.announce(one)
    places.announce([*other, one[0]])
    assert Sum(one, places).value() == Sum(one, placed(one)).value()
    assert Sum([*one, *other], places).value() == Sum([*one, *other], placed([*one, *other])).value()
    assert early.value() == before  # what was begun at old places goes on there
    rows = [range(places.first(p), places.first(p) + p.numel()) for p in (*one, *other, *loose)]
    assert len({place for row in rows for place in row}) == sum(map(len, rows))


def test_a_sum_follows_its_parameters() -> None:
    """Changes in place, replaced storage, another layout, type or size, and what is not contiguous: all are seen."""
    parameter, seen = torch.nn.Parameter(torch.randn(4, 4)), []
    total = Sum([parameter], placed([parameter]))
    changes: list[Callable[[], Any]] = [
        lambda: None,
        lambda: parameter.data[1, 2].add_(1),
        lambda: setattr(parameter, "data", torch.randn(4, 4)),
        lambda: setattr(parameter, "data", parameter.data.T),
        lambda: parameter.detach().numpy().__setitem__((0, 1), 7),
        lambda: setattr(parameter, "data", torch.randn(4, 4)),
        lambda: setattr(parameter, "data", parameter.data[:2]),
        lambda: setattr(parameter, "data", parameter.data.half()),
    ]
    for change in changes:
        change()
        seen.append(total.value())
        assert seen[-1] == fingerprint.fingerprint(parameter.detach().contiguous().numpy())
    assert len(set(seen)) == len(changes)


def test_a_tensor_that_is_spread_over_ranks_is_refused() -> None:
    """A part of it is not it, and to gather it would be a collective that the program did not make."""

    class Spread(torch.Tensor):
        def to_local(self) -> torch.Tensor:
            return self

    spread = torch.ones(2).as_subclass(Spread)
    with pytest.raises(TypeError, match="Spread is spread over ranks"):
        Sum([spread], Places()).value()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_checksum_does_not_depend_on_the_mode(mode: type[torch.no_grad]) -> None:
    """The same number under inference mode and before and after it, of a leaf that requires gradients too."""
    leaf = torch.nn.Parameter(torch.randn(3, 3))
    expected = fingerprint.checksum(leaf.detach().numpy())
    for context in itertools.repeat(mode, 2):
        with context():
            assert tensors.checksum(leaf) == expected
        assert tensors.checksum(leaf) == expected


def test_a_row_is_known_by_its_content() -> None:
    """Rows hash alike in another batch and order, and differ by one element, by type and by shape."""
    rows = np.arange(12, dtype=np.int64).reshape(4, 3)
    hashes = fingerprint.row_hashes(rows)
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == 4
    assert fingerprint.row_hashes(rows[[2, 0]]).tolist() == hashes[[2, 0]].tolist()
    others = [rows.astype(np.int32), rows.reshape(4, 3, 1), rows.astype(np.float64)]
    assert not any(set(fingerprint.row_hashes(other).tolist()) & set(hashes.tolist()) for other in others)
    assert len(fingerprint.row_hashes(np.array(5))) == 1
    assert len(fingerprint.row_hashes(rows[:0])) == 0
