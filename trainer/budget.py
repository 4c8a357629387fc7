"""`gptq.target_bytes`: one factor on every clip k, so that the model's file lands just under a number of bytes.

Quantizing anew is cheap and packing may not be (brotli), so the factor is sought by what the codes' order-0 entropy
says about the bytes, and a few real packs correct what that misses. The Hessians stay as they are.

    fitted = fit(
        lambda factor: quantize_model(weights, hessians, sites, recipe.gptq, factor=factor),
        lambda model: len(pack(model, …)),
        target=15_900_000, lowest=lowest_factor(sites, recipe.gptq), log=log.line,
    )

Steps that are twice as wide save one bit a code, or less where most codes are 0 (techniques of compression: h = 2.05 +
log₂(q_max/k) bits), which is the slope that the search starts with. Nothing is drawn; but the factor follows from the
bytes of real files, so from the version of the codec's library and the length of the metadata too, not from weights,
Hessians and recipe alone. An audit therefore takes the factor that quantize wrote down and holds the codes against it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from trainer.errors import ArtifactError
from trainer.quantized import LEFT_BITS, RIGHT_BITS, QuantizedMatrix, QuantizedModel
from trainer.quantizer import coding
from trainer.settings import LEAST_K, Gptq

HIGHEST_FACTOR = 64.0
"""At int6 and k 12.85 a step is then 27 standard deviations of its row: all but outliers have code 0."""
NEAR = 1e-3
"""A file that is under the target by less than this share is near enough; aimed at is `_MARGIN` below."""
MOST_PACKS = 4
"""After so many real packs the nearest one that fits is taken; only while none fits are there more."""
_MARGIN, _CLOSE, _PROBES = 3e-4, 1e-4, 8


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """The model whose file has `bytes` at most the target, the factor on its clips, and how many packs it took."""

    factor: float
    model: QuantizedModel
    bytes: int
    packs: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Probe:
    factor: float
    model: QuantizedModel
    estimate: float


Packed = dict[float, tuple[float, int]]
"""Factor → estimate and bytes of a model that was packed, in the order of the packs."""


def lowest_factor(names: Iterable[str], settings: Gptq) -> float:
    """The least factor on the clips of these matrices: it brings the narrowest to LEAST_K, or leaves it as it is."""
    return min(1.0, LEAST_K / min(coding(name, settings).k for name in names))


def fit(
    quantize: Callable[[float], QuantizedModel],
    pack: Callable[[QuantizedModel], int],
    *,
    target: int,
    lowest: float,
    log: Callable[[str], None],
) -> Fitted:
    """The model with the factor, at least `lowest`, that makes its file at most `target` bytes and near them.

    `quantize` gives the model of a factor, `pack` the bytes of its file; no factor is packed twice. With the finest
    steps that `lowest` allows the file may stay far below the target; that is said and taken. Raises ArtifactError for
    a target that not even the coarsest steps reach.
    """
    best, packed = _search(quantize, pack, target=target, lowest=lowest, log=log)
    if best is None:
        raise ArtifactError(
            f"gptq.target_bytes: the file has {packed[HIGHEST_FACTOR][1]:,} bytes with the coarsest steps tried "
            f"(k x {HIGHEST_FACTOR:g}), expected at most {target:,}; raise the target or make the model smaller"
        )
    if best.factor == lowest and target - best.bytes > NEAR * target:
        log(f"k x {lowest:.4f} is as fine as these bits allow, {target:,} bytes would take more bits")
    return dataclasses.replace(best, packs=len(packed))


def _search(
    quantize: Callable[[float], QuantizedModel],
    pack: Callable[[QuantizedModel], int],
    *,
    target: int,
    lowest: float,
    log: Callable[[str], None],
) -> tuple[Fitted | None, Packed]:
    """The largest file that is at most `target`, if there is one, and all that were packed."""
    best: Fitted | None = None
    packed: Packed = {}
    probe = _probe(quantize, 1.0)
    while not _enough(best, packed, target=target):
        probe = _seek(quantize, probe, _wanted(packed.values(), target), lowest)
        if probe.factor in packed:
            if best is not None:
                break
            probe = _probe(quantize, HIGHEST_FACTOR)
        size = pack(probe.model)
        packed[probe.factor] = probe.estimate, size
        log(f"k x {probe.factor:.4f}: {size:,} bytes, {abs(target - size):,} {'over' if size > target else 'under'}")
        if size <= target and (best is None or size > best.bytes):
            best = Fitted(probe.factor, probe.model, size, len(packed))
    return best, packed


def _enough(best: Fitted | None, packed: Packed, *, target: int) -> bool:
    """Whether no more is packed: near enough, often enough, or with the coarsest steps still too large."""
    if best is None:
        return HIGHEST_FACTOR in packed
    return target - best.bytes <= NEAR * target or len(packed) >= MOST_PACKS


def _wanted(packed: Iterable[tuple[float, int]], target: int) -> float:
    """The estimate of a model whose file is a little under the target, by the estimates and bytes of the packs."""
    slack, rate, estimate, size = _MARGIN * target, 1.0, 0.0, 0
    for count, (found, taken) in enumerate(packed, start=1):
        if count > 1 and abs(found - estimate) > 10 * NEAR * target:
            rate = max(0.5, min((taken - size) / (found - estimate), 2.0))
        if taken > target and count >= MOST_PACKS - 1:
            slack = 2 * slack + taken - target  # to be over so late is noise, from which to keep away
        estimate, size = found, taken
    return estimate + (target - slack - size) / rate


def _seek(quantize: Callable[[float], QuantizedModel], start: _Probe, wanted: float, lowest: float) -> _Probe:
    """The probe whose estimate is nearest to `wanted` bytes, by the secant on bytes over log₂ of the factor."""
    here = nearest = start
    per_bit = sum(matrix.codes.numel() for matrix in start.model.matrices.values()) / 8
    slope = per_bit
    for _ in range(_PROBES):
        factor = here.factor * 2 ** max(-9.0, min((here.estimate - wanted) / slope, 9.0))
        factor = max(lowest, min(factor, HIGHEST_FACTOR))
        if abs(here.estimate - wanted) <= _CLOSE * abs(wanted) or factor == here.factor:
            break
        last, here = here, _probe(quantize, factor)
        rise = (last.estimate - here.estimate) / math.log2(here.factor / last.factor)
        slope = max(per_bit / 8, min(rise, per_bit))
        nearest = min(here, nearest, key=lambda probe: abs(probe.estimate - wanted))
    return nearest


def _probe(quantize: Callable[[float], QuantizedModel], factor: float) -> _Probe:
    model = quantize(factor)
    return _Probe(factor, model, estimated_bytes(model))


def estimated_bytes(quantized: QuantizedModel) -> float:
    """n·H₀ over the codes of each matrix, its protected columns apart, and all else as it is: without headers."""
    halves = sum(vector.numel() for vector in quantized.vectors.values())
    bits = 0.0
    for matrix in quantized.matrices.values():
        halves += matrix.scales.numel() * (1 if matrix.protected is None else 2)
        bits += sum(entropy_bits(codes) for codes in _planes(matrix))
        if (mended := matrix.correction) is not None:
            halves += 1 + mended.right_scales.numel()
            bits += LEFT_BITS * mended.left.numel() + RIGHT_BITS * mended.right.numel()
    return bits / 8 + 2 * halves


def entropy_bits(codes: Tensor) -> float:
    """n·H₀ of int8 codes, in bits: what no coder with one table for all of them can go under."""
    counts = torch.bincount(codes.flatten().long() + 128).double()
    counts = counts[counts > 0]
    return float((counts * (counts.sum() / counts).log2()).sum())


def _planes(matrix: QuantizedMatrix) -> Iterator[Tensor]:
    """The codes that share a table."""
    if (own := matrix.protected) is None:
        yield matrix.codes
    else:
        before, inside, after = matrix.codes.tensor_split([own.start, own.start + own.width], dim=1)
        yield torch.cat([before, after], dim=1)
        yield inside
