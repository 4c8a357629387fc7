"""A file of N bytes: the factor on the clips is found, is never over, and says what can't be reached."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from tests.trainer.matrices import SITES, E, model, parts
from trainer import artifact
from trainer.budget import (
    HIGHEST_FACTOR,
    MOST_PACKS,
    NEAR,
    Fitted,
    entropy_bits,
    estimated_bytes,
    fit,
    lowest_factor,
)
from trainer.clipping import round_codes, row_scales
from trainer.errors import ArtifactError
from trainer.quantized import Protected, QuantizedMatrix, QuantizedModel, dequantize
from trainer.quantizer import quantize_model
from trainer.settings import LEAST_K, Gptq

OPTIONS = {"protect_groups": 1, "protect_width": 16, "lqer_matrices": 2, "mlp_k": 10.0}


def quantizer(seed: int = 0, *, scale: int = 6, **more: float) -> Callable[[float], QuantizedModel]:
    """The model of a factor, from one set of weights and Hessians."""
    state, hessians = model(seed=seed, scale=scale)
    return lambda factor: quantize_model(state, hessians, SITES, Gptq(**more), factor=factor)  # type: ignore[arg-type]


def packer(codec: str) -> Callable[[QuantizedModel], int]:
    return lambda quantized: len(artifact.pack(quantized, metadata={}, codec=codec, quality=5))


def gaussian(count: int = 40_000) -> Callable[[float], QuantizedModel]:
    """A matrix of `count` Gaussian weights, rounded: cheap to try many targets on."""
    weight = torch.randn(16, count // 16, generator=torch.Generator().manual_seed(0))

    def quantize(factor: float) -> QuantizedModel:
        scales = row_scales(weight, bits=6, k=12.85 * factor)
        return QuantizedModel({"w": QuantizedMatrix(round_codes(weight, scales, bits=6), scales, 6)}, {})

    return quantize


@pytest.mark.parametrize("codec", ["brotli", "ans"])
@pytest.mark.parametrize("share", [0.6, 0.9, 1.0, 1.15])
def test_the_file_lands_just_under_the_target(codec: str, share: float) -> None:
    """With either codec and every option on, the file has at most the target's bytes and at most 0.5 % less."""
    quantize, pack = quantizer(**OPTIONS), packer(codec)
    target, lines = int(share * pack(quantize(1.0))), list[str]()
    found = fit(quantize, pack, target=target, lowest=0.4, log=lines.append)
    assert 0.995 * target <= found.bytes <= target
    assert found.bytes == pack(found.model) == pack(quantize(found.factor))
    assert found.packs == len(lines) <= MOST_PACKS + 2
    assert f"k x {found.factor:.4f}: {found.bytes:,} bytes, {target - found.bytes:,} under" in lines


def test_the_same_call_finds_the_same_factor() -> None:
    """What is found follows from the arguments."""
    one, two = (
        fit(quantizer(**OPTIONS), lambda m: round(estimated_bytes(m)), target=20_000, lowest=0.4, log=lambda line: None)
        for _ in range(2)
    )
    assert one.factor == two.factor
    assert all(torch.equal(a, b) for a, b in zip(parts(one.model), parts(two.model), strict=True))


@settings(max_examples=25 if settings().max_examples <= 50 else 1000)
@given(st.floats(0.1, 1.4), st.floats(0.9, 1.1), st.integers(0, 2000), st.sampled_from([0.0, 0.0, 0.0005, 0.01]))
@example(0.1, 1.1, 2000, 0.01)
@example(1.0, 1.0, 0, 0.0)
def test_no_target_and_no_coder_lead_over_it(share: float, rate: float, beside: int, noise: float) -> None:
    """A coder that misses the entropy by a rate, by bytes beside and by noise: never over, near where noise allows."""
    quantize = gaussian()
    tried: list[int] = []
    scales = set()

    def pack(quantized: QuantizedModel) -> int:
        # Noise that is no function of size: the bytes of two factors close by are not in their order.
        jitter = noise * math.sin(1e4 * float(quantized.matrices["w"].scales.double().sum()))
        scales.add(float(quantized.matrices["w"].scales.double().sum()))
        tried.append(int((rate + jitter) * estimated_bytes(quantized)) + beside)
        return tried[-1]

    target = int(share * estimated_bytes(quantize(1.0))) + beside
    found = fit(quantize, pack, target=target, lowest=0.25, log=lambda line: None)
    assert found.bytes == max(size for size in tried if size <= target) <= target
    assert found.packs == len(tried) == len(scales), "nothing is packed twice"
    if not noise:
        assert found.packs <= MOST_PACKS
        assert target - found.bytes <= NEAR * target
    elif found.factor > 0.25:
        assert target - found.bytes <= (NEAR + 10 * noise) * target


def test_a_coder_that_is_over_again_and_again_is_kept_away_from() -> None:
    """One that takes 20 bytes more at each call, whatever it is told, is given ever more room until the file fits."""
    quantize, sizes = gaussian(), list[int]()

    def pack(quantized: QuantizedModel) -> int:
        sizes.append(round(estimated_bytes(quantized)) + 20 * len(sizes) + 20)
        assert len(sizes) <= 2 * MOST_PACKS, "no file in sight that fits"
        return sizes[-1]

    found = fit(quantize, pack, target=15_000, lowest=0.25, log=lambda line: None)
    assert MOST_PACKS <= found.packs <= 2 * MOST_PACKS
    assert 14_800 <= found.bytes <= 15_000


def test_a_model_that_stays_small_is_taken_with_its_finest_steps() -> None:
    """More bytes than the finest steps use: the lowest factor is taken, and a line says that bits would use them."""
    lines: list[str] = []
    found = fit(gaussian(), lambda m: round(estimated_bytes(m)), target=10**6, lowest=0.5, log=lines.append)
    assert (found.factor, found.packs) == (0.5, 1)
    assert found.bytes < 10**6
    assert lines[-1] == "k x 0.5000 is as fine as these bits allow, 1,000,000 bytes would take more bits"


def test_a_target_that_only_an_empty_model_reaches_is_refused() -> None:
    """Bytes that do not go away with the codes are more than the target: an error with both numbers."""
    with pytest.raises(ArtifactError, match=r"has 5,0\d\d bytes with the coarsest steps tried \(k x 64\), expect"):
        fit(
            gaussian(),
            lambda m: round(estimated_bytes(m)) + 5000,
            target=4900,
            lowest=0.5,
            log=lambda line: None,
        )
    assert not gaussian()(HIGHEST_FACTOR).matrices["w"].codes.any(), "without outliers those leave nothing"


@pytest.mark.parametrize("coarsest", [5000, 7000])
def test_no_factor_is_packed_twice(coarsest: int) -> None:
    """Bytes that rise with k: once the search comes back to where it was, the coarsest steps are the last hope."""
    sizes: dict[float, int] = {}

    def pack(quantized: QuantizedModel) -> int:
        scale = float(quantized.matrices["w"].scales[0])
        assert scale not in sizes, "packed twice"
        sizes[scale] = coarsest if scale == top else 9000
        return sizes[scale]

    quantize = clipped()
    top = float(quantize(HIGHEST_FACTOR).matrices["w"].scales[0])
    if coarsest <= 6000:
        found = fit(quantize, pack, target=6000, lowest=1.0, log=lambda line: None)
        assert (found.factor, found.bytes) == (HIGHEST_FACTOR, coarsest)
    else:
        with pytest.raises(ArtifactError, match=r"7,000 bytes with the coarsest steps tried \(k x 64\), expected at m"):
            fit(quantize, pack, target=6000, lowest=1.0, log=lambda line: None)
    assert max(sizes) == top
    assert len(sizes) <= MOST_PACKS


def clipped() -> Callable[[float], QuantizedModel]:
    """One with clips so narrow that wider steps bring codes away from ±q_max: its entropy rises with k."""
    weight = torch.randn(16, 2500, generator=torch.Generator().manual_seed(0))

    def quantize(factor: float) -> QuantizedModel:
        scales = row_scales(weight, bits=6, k=0.05 * factor)
        return QuantizedModel({"w": QuantizedMatrix(round_codes(weight, scales, bits=6), scales, 6)}, {})

    assert not 0.05 * HIGHEST_FACTOR > LEAST_K
    return quantize


def test_no_clip_is_brought_below_the_least() -> None:
    """The lowest factor brings the narrowest clip of any role to LEAST_K; one that is narrower stays."""
    assert lowest_factor(SITES, Gptq()) == LEAST_K / 12.85
    assert lowest_factor(SITES, Gptq(mlp_k=9.0)) == LEAST_K / 9
    assert lowest_factor([E], Gptq(mlp_k=9.0)) == LEAST_K / 20
    assert lowest_factor(SITES, Gptq(attention_k=2.0)) == 1.0


@pytest.mark.parametrize(("bits", "best"), [(6, 5.0), (7, 6.25), (8, 7.5)])
def test_below_the_least_clip_more_is_cut_off_than_gained(bits: int, best: float) -> None:
    """With tails of t₈ the error over k has its minimum where LEAST_K says, and is far from it at half of LEAST_K."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(8, (64, 2048))).float()

    def error(k: float) -> float:
        scales = row_scales(weight, bits=bits, k=k)
        return float((weight - dequantize(round_codes(weight, scales, bits=bits), scales)).square().mean())

    tried = {k: error(k) for k in np.arange(3, 12, 0.25)}
    assert min(tried, key=tried.__getitem__) == pytest.approx(best, abs=0.3)
    assert error(LEAST_K) < 1.5 * tried[best]
    assert error(LEAST_K / 2) > 2 * error(LEAST_K)


@given(st.integers(0, 2**31 - 1), st.floats(0.4, 3), st.floats(1.1, 2))
def test_more_on_every_clip_takes_fewer_bytes(seed: int, factor: float, more: float) -> None:
    """The estimate falls as the factor rises, for every seed drawn: what the search rests on."""
    quantize = quantizer(seed, scale=2)
    assert estimated_bytes(quantize(factor * more)) < estimated_bytes(quantize(factor))


@given(st.lists(st.integers(-127, 127), min_size=1, max_size=60))
def test_entropy_is_its_formula(values: list[int]) -> None:
    """n·H₀ = -Σ count·log₂(count/n), 0 for codes that are all the same."""
    counts = Counter(values)
    expected = -sum(count * math.log2(count / len(values)) for count in counts.values())
    assert entropy_bits(torch.tensor(values, dtype=torch.int8)) == pytest.approx(expected, abs=1e-9)


def test_the_estimate_counts_every_part() -> None:
    """Codes and protected codes by their entropy, 2 bytes for each fp16 number, 2 and 4 bits for a correction's."""
    quantized = quantizer(scale=2, **OPTIONS)(1.0)
    total = 0.0
    for matrix in quantized.matrices.values():
        codes, total = matrix.codes.numpy(), total + 2 * len(matrix.scales)
        groups = [codes]
        if (own := matrix.protected) is not None:
            inside = np.arange(own.start, own.start + own.width)
            groups = [np.delete(codes, inside, axis=1), codes[:, inside]]
            total += 2 * len(own.scales)
        for group in groups:
            share = np.unique(group, return_counts=True)[1] / group.size
            total += -group.size * float((share * np.log2(share)).sum()) / 8
        if (mended := matrix.correction) is not None:
            total += mended.left.numel() / 4 + mended.right.numel() / 2 + 2 + 2 * len(mended.right_scales)
    total += sum(2 * vector.numel() for vector in quantized.vectors.values())
    assert sum(m.protected is not None for m in quantized.matrices.values()) == 1
    assert sum(m.correction is not None for m in quantized.matrices.values()) == 2
    assert estimated_bytes(quantized) == pytest.approx(total)


def test_protected_columns_have_a_table_of_their_own() -> None:
    """Two halves that are constant each take no bits if one is protected, and a bit a code if none is."""
    codes = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1).to(torch.int8)
    scales = torch.ones(8).half()
    plain = estimated_bytes(QuantizedModel({"w": QuantizedMatrix(codes, scales, 6)}, {}))
    apart = QuantizedMatrix(codes, scales, 6, Protected(4, 4, 8, scales))
    assert plain == 16 + 8
    assert estimated_bytes(QuantizedModel({"w": apart}, {})) == 32
    assert isinstance(Fitted(1.0, QuantizedModel({"w": apart}, {}), 32, 1).model, QuantizedModel)
