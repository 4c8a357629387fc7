"""The one way from trained weights to the model of a submission: quantized as the recipe says, and brought to its size.

    about = metadata(recipe, seed=42, trained_by=digest_of_the_recipe, training_digest=digest_of_the_data)
    made = make(weights, hessians, sites, recipe, metadata=about, log=log.line)
    artifact.write(path, made.model, metadata=about, **packing(recipe))

The stage quantize goes it; the audit makes metadata and numbers again from recipe, data and what training left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from trainer import artifact, budget, contamination
from trainer import recipe as recipes
from trainer.quantized import QuantizedModel
from trainer.quantizer import quantize_model
from trainer.settings import Recipe


class Made(NamedTuple):
    """A quantized model, and the factor on its clips k: 1 unless `gptq.target_bytes` asks for another."""

    model: QuantizedModel
    factor: float


def metadata(recipe: Recipe, *, seed: int, trained_by: str, training_digest: str) -> dict[str, Any]:
    """All that an artifact says of itself: digests of what shaped it, and whether validation had a part in it.

    `trained_by` is the digest of the recipe's keys that training read, `training_digest` that of its data. Nothing is
    derived from validation data; what else is known of a run stands in its ledger.
    """
    return {
        "seed": seed,
        "train": {"recipe_digest": trained_by, "training_digest": training_digest},
        "quantize": recipes.digest(recipe, stage="quantize"),
        "contaminated": contamination.of_artifact(recipe),
    }


def make(
    weights: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    sites: Mapping[str, str],
    recipe: Recipe,
    *,
    metadata: Mapping[str, Any],
    log: Callable[[str], None],
) -> Made:
    """Weights by name, Hessians by site, and name → site, quantized. `metadata` counts toward `gptq.target_bytes`.

    Raises ArtifactError for what can't be quantized, and for a target that can't be reached.
    """

    def quantize(factor: float) -> QuantizedModel:
        return quantize_model(weights, hessians, sites, recipe.gptq, factor=factor)

    if not recipe.gptq.target_bytes:
        return Made(quantize(1.0), 1.0)
    fitted = budget.fit(
        quantize,
        lambda model: len(artifact.pack(model, metadata=metadata, **packing(recipe))),
        target=recipe.gptq.target_bytes,
        lowest=budget.lowest_factor(sites, recipe.gptq),
        log=log,
    )
    return Made(fitted.model, fitted.factor)


def packing(recipe: Recipe) -> dict[str, Any]:
    """How a model's file is compressed: arguments of `artifact.pack` and `artifact.write`."""
    chosen = recipe.artifact
    return {"codec": chosen.codec, "quality": chosen.quality, "threads": recipe.dist.threads}
