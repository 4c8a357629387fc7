"""A whole model quantized: which matrix has which bits, scales, Hessian, protected columns and correction.

Data flow: averaged weights and the Hessians of their inputs (`trainer.hessians`) go in; each matrix gets bits, clip and
damping by its role (`coding`), one fp16 scale a row (`trainer.clipping`), columns with finer codes where they matter
most (`trainer.protection`), int8 codes (`trainer.gptq`) and a low-rank correction where most was lost
(`trainer.lqer`); everything else becomes fp16. What comes out is a `trainer.quantized.QuantizedModel`, which
`trainer.artifact` writes. Nothing is drawn: equal arguments give equal codes.

    quantized = quantize_model(state, collect(gpt, batches, looped=True), gpt.sites, recipe.gptq)
    gpt.load_state_dict(dequantize_model(quantized))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from trainer import lqer
from trainer.clipping import refuse_non_finite, row_clips, row_scales
from trainer.errors import ArtifactError
from trainer.gptq import Problem, solve
from trainer.protection import most_salient, protect
from trainer.quantized import QuantizedMatrix, QuantizedModel
from trainer.settings import Gptq


class Coding(NamedTuple):
    """What the recipe says about a matrix; `k` is its clip in standard deviations of a row."""

    bits: int
    k: float
    damping: float


def coding(name: str, settings: Gptq) -> Coding:
    """The role of a matrix, told by its parameter's name: the embedding, attention (q, k, v, o) or MLP (up, down)."""
    bits, k, damping = 0, 0.0, 0.0
    if name == "embedding":
        bits, k = settings.embed_bits, settings.embed_k
    elif ".attention." in name:
        bits, k, damping = settings.attention_bits, settings.attention_k, settings.attention_damping
    elif ".mlp." in name:
        bits, k, damping = settings.mlp_bits, settings.mlp_k, settings.mlp_damping
    return Coding(bits or settings.matrix_bits, k or settings.matrix_k, damping or settings.damping)


def quantize_model(
    state: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    sites: Mapping[str, str],
    settings: Gptq,
    *,
    factor: float = 1.0,
) -> QuantizedModel:
    """Every matrix that `sites` names (parameter → input site) by GPTQ with its site's Hessian, all else as fp16.

    `state` is name → weights, `hessians` site → [n, n]; `factor` multiplies every clip (`trainer.budget`). Raises
    ArtifactError, by name, for a matrix or Hessian that is missing, NaN, infinity, and vectors that fp16 can't hold.
    """
    if not sites:
        raise ArtifactError("nothing to quantize: the model names no matrices")
    if missing := sorted(set(sites) - set(state)) + sorted(set(sites.values()) - set(hessians)):
        raise ArtifactError(f"nothing to quantize with: no weights or Hessian of {', '.join(missing)}")
    weights = {name: state[name].detach() for name in sorted(sites)}
    # One object for all matrices of a site, by which `solve` knows that they share their Hessian.
    moved = {sites[name]: hessians[sites[name]].to(weight.device) for name, weight in weights.items()}
    own = {name: moved[sites[name]] for name in weights}
    chosen = _protected(weights, own, settings)
    problems = [_problem(name, weights[name], own[name], chosen.get(name), settings, factor) for name in weights]
    solved = solve(problems, block=settings.block, damping_by=settings.damping_by)
    matrices = {
        problem.name: QuantizedMatrix(codes, problem.scales, problem.bits, problem.protected)
        for problem, codes in zip(problems, solved, strict=True)
    }
    matrices = corrected(weights, hessians, sites, matrices, settings)
    vectors = {name: state[name].detach().half() for name in sorted(set(state) - set(sites))}
    for name, vector in vectors.items():
        refuse_non_finite(vector, f"fp16 values of {name}")
    return QuantizedModel(matrices, vectors)


def corrected(
    weights: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    sites: Mapping[str, str],
    matrices: Mapping[str, QuantizedMatrix],
    settings: Gptq,
) -> dict[str, QuantizedMatrix]:
    """The matrices, those that lost most with the low-rank correction that the settings ask for."""
    if not settings.lqer_matrices:
        return dict(matrices)
    own = {name: hessians[sites[name]].to(weights[name].device) for name in matrices}
    return dict(matrices) | lqer.corrected(
        weights, own, matrices, count=settings.lqer_matrices, rank=settings.lqer_rank, group=settings.lqer_group
    )


def _protected(weights: Mapping[str, Tensor], hessians: Mapping[str, Tensor], settings: Gptq) -> dict[str, range]:
    """The matrices with protected columns, and which: none whose codes are as fine as that anyway."""
    if not settings.protect_groups:
        return {}
    coarse = {n: weight for n, weight in weights.items() if coding(n, settings).bits < settings.protect_bits}
    return most_salient(coarse, hessians, width=settings.protect_width, count=settings.protect_groups)


def _problem(
    name: str, weight: Tensor, hessian: Tensor, columns: range | None, settings: Gptq, factor: float
) -> Problem:
    """What GPTQ is to solve for one matrix, with `columns` protected if there are any."""
    bits, k, damping = coding(name, settings)
    k *= factor
    clips: float | Tensor = k
    if settings.hessian_clip:
        clips = row_clips(weight, hessian, k=k, share=settings.hessian_clip, name=name)
    scales = row_scales(weight, bits=bits, k=clips, name=name)
    protected = None
    if columns is not None:
        protected = protect(weight, columns, bits=settings.protect_bits, k=clips, name=name)
    return Problem(
        weight=weight, hessian=hessian, scales=scales, bits=bits, damping=damping, name=name, protected=protected
    )
