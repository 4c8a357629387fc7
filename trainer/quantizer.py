"""A whole model quantized: which matrix has which bits, scales and Hessian.

Data flow: averaged weights and the Hessians of their inputs (`trainer.hessians`) go in; each matrix gets one fp16
scale a row (`trainer.clipping`) and int8 codes (`trainer.gptq`); everything else becomes fp16. What comes out is a
`trainer.quantized.QuantizedModel`, which `trainer.artifact` writes.

    quantized = quantize_model(state, collect(gpt, batches, looped=True), gpt.sites, recipe.gptq)
    gpt.load_state_dict(dequantize_model(quantized))
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.clipping import refuse_non_finite, row_scales
from trainer.errors import ArtifactError
from trainer.gptq import quantize
from trainer.quantized import QuantizedMatrix, QuantizedModel
from trainer.settings import Gptq

EMBEDDING = "embedding"
"""Name of the matrix that has bits and a clip of its own."""


def quantize_model(
    state: Mapping[str, Tensor], hessians: Mapping[str, Tensor], sites: Mapping[str, str], settings: Gptq
) -> QuantizedModel:
    """Every matrix that `sites` names (parameter → input site) by GPTQ with its site's Hessian, all else as fp16.

    `state` is name → weights, `hessians` site → [n, n]. The embedding has its own bits and clip. Raises
    ArtifactError, by name, for a matrix or Hessian that is missing, NaN, infinity, and vectors that fp16 can't hold.
    """
    if not sites:
        raise ArtifactError("nothing to quantize: the model names no matrices")
    if missing := sorted(set(sites) - set(state)) + sorted(set(sites.values()) - set(hessians)):
        raise ArtifactError(f"nothing to quantize with: no weights or Hessian of {', '.join(missing)}")
    matrices = {}
    for name in sorted(sites):
        bits = settings.embed_bits if name == EMBEDDING else settings.matrix_bits
        k = settings.embed_k if name == EMBEDDING else settings.matrix_k
        weight, hessian = state[name].detach(), hessians[sites[name]].to(state[name].device)
        scales = row_scales(weight, bits=bits, k=k, name=name)
        codes = quantize(weight, hessian, scales, bits=bits, damping=settings.damping, block=settings.block, name=name)
        matrices[name] = QuantizedMatrix(codes, scales, bits)
    vectors = {name: state[name].detach().half() for name in sorted(set(state) - set(sites))}
    for name, vector in vectors.items():
        refuse_non_finite(vector, f"fp16 values of {name}")
    return QuantizedModel(matrices, vectors)
