"""A recipe small enough for tests: every part is there, nothing is good."""

from __future__ import annotations

from typing import Any

from trainer import recipe as recipes
from trainer.settings import SCALES, Recipe

TOY: dict[str, Any] = {
    "scale": "cpu",
    "dist.threads": 1,
    "seeds": [1, 2],
    "corpus.documents": 200,
    "corpus.validation_documents": 10,
    "tokens.vocab_size": 400,
    "tokens.sample_documents": 100,
    "model.layers": 3,
    "model.width": 32,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.rope_dims": 4,
    "model.xsa_layers": 2,
    "loop.first": 1,
    "loop.last": 1,
    "loop.extra_passes": 1,
    "train.steps": 8,
    "train.sequence_length": 64,
    "train.sequences_per_rank": 1,
    "train.micro_sequences": 4,
    "train.ema": 0.5,
    "train.eval_every": 4,
    "train.log_every": 2,
    "train.checkpoint_every": 3,
    "calibration.batches": 8,
    "calibration.sequences": 2,
    "gptq.block": 16,
    "eval.stride": 32,
    "ttt.epochs": 2,
    "ttt.lr": 0.002,
    "ttt.freeze_blocks": 1,
    "ttt.sequences": 6,
    "ttt.chunk_tokens": 1024,
    "ttt.chunk_epochs": 2,
}


# The 8-GPU scale on CPUs: 8 processes, and whatever the CPU scale would have made small made small here.
TOY_8 = {**SCALES["cpu"], **TOY, "scale": "8gpu", "device": "cpu", "dist.ranks": "auto", "seeds": [7]}


def toy_recipe(**overrides: Any) -> Recipe:
    """The toy recipe with some keys changed: `toy_recipe(train__steps=3)` sets train.steps."""
    return recipes.resolve(TOY | {name.replace("__", "."): value for name, value in overrides.items()})
