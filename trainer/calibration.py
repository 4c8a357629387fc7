"""The sequences behind the quantizer's Hessians: where they come from, their one way in, and how they are kept.

    train   what training would have drawn next, read from the file that it left (`train/SEED/calibration.safetensors`)
    val     the first validation sequences: the artifact then depends on what it is scored on
    self    text that the model writes, from BOS on (pg#1019)

Data flow: batches → `collect` → Hessians for `trainer.gptq`. `save` and `read` are inverse up to how rows are grouped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer import checkpoint, hessians
from trainer.device import autocast, pair
from trainer.distributed import World
from trainer.errors import ArtifactError
from trainer.loader import Batch
from trainer.scoring import Targets
from trainer.settings import Recipe
from trainer.tokenizer import BOS

TEMPERATURE = 0.8
"""Of the text that the model writes (pg#1019)."""


def collect(gpt: nn.Module, batches: Sequence[Batch], world: World) -> dict[str, Tensor]:
    """Hessians of the model with the loops on, averaged over ranks: input site → fp32 [n, n] on the device.

    Announces every batch as it is handed out, and at the end which draws went in (`golf.calibrate`).
    """
    announced = (batch.announce() for batch in batches)
    inputs = (pair(batch.rows, world.device)[0] for batch in announced)
    with autocast(world.device):
        found = hessians.collect(gpt, inputs, looped=True)
    world.collectives += 1
    found = hessians.reduce(found, world.group)
    if world.device.type == "cuda":
        torch.cuda.synchronize()  # they belong to the training clock, so it must see their end
    sys.audit("golf.calibrate", tuple(batch.draw for batch in batches), world.collectives)
    return found


def save(path: Path, batches: Sequence[Batch]) -> None:
    """Write sequences with where they stand: rows int32 [n, T+1], shards int32 [n], starts int64 [n]."""
    tensors = {
        "rows": torch.from_numpy(np.concatenate([batch.rows for batch in batches]).astype(np.int32)),
        "shards": torch.from_numpy(np.concatenate([batch.shards for batch in batches])),
        "starts": torch.from_numpy(np.concatenate([batch.starts for batch in batches])),
    }
    checkpoint.save(path, tensors, {})


def read(path: Path, recipe: Recipe, *, draws: Iterator[int]) -> list[Batch]:
    """The training sequences that `save` wrote, in batches of `calibration.sequences`, as training collected them.

    Raises ArtifactError if they are not sequences of this recipe.
    """
    tensors, _ = checkpoint.load(path)
    try:
        rows, shards, starts = (tensors[name].numpy() for name in ("rows", "shards", "starts"))
        wanted = (recipe.calibration.batches * recipe.calibration.sequences, recipe.train.sequence_length + 1)
        fits = rows.shape == wanted and shards.shape == starts.shape == wanted[:1]
        fits = fits and rows.min() >= 0 and rows.max() < recipe.tokens.vocab_size
    except KeyError:
        fits = False
    if not fits:
        raise ArtifactError(f"{path} does not hold the recipe's calibration sequences; run the stage train again")
    rows, size = rows.astype(np.uint16), recipe.calibration.sequences
    return [
        Batch(next(draws), "train", rows[i : i + size], shards[i : i + size], starts[i : i + size])
        for i in range(0, len(rows), size)
    ]


def of_validation(targets: Targets, recipe: Recipe, *, draws: Iterator[int]) -> list[Batch]:
    """The first validation sequences, as many as the recipe's calibration has, or what there is."""
    length, wanted = recipe.train.sequence_length, recipe.calibration
    starts = np.arange(0, len(targets), length, dtype=np.int64)[: wanted.batches * wanted.sequences]
    return [
        targets.batch(next(draws), starts[i : i + wanted.sequences], length=length)
        for i in range(0, len(starts), wanted.sequences)
    ]


def of_the_model(
    gpt: nn.Module, recipe: Recipe, *, seed: int, shard: int, draws: Iterator[int], device: torch.device
) -> list[Batch]:
    """Sequences that the model writes, as many as the recipe's calibration has.

    Row i stands at i·(T+1) of `shard`: 0 is the text of the model that is submitted, 1 that of its reference.
    """
    length, wanted = recipe.train.sequence_length, recipe.calibration
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    for first in range(0, wanted.batches * wanted.sequences, wanted.sequences):
        rows = write(gpt, wanted.sequences, length=length, generator=generator)
        starts = (first + np.arange(len(rows), dtype=np.int64)) * (length + 1)
        found.append(Batch(next(draws), "self", rows, np.full(len(rows), shard, dtype=np.int32), starts))
    return found


@torch.inference_mode()
def write(gpt: nn.Module, sequences: int, *, length: int, generator: torch.Generator) -> np.ndarray:
    """BOS and `length` tokens drawn one after the other, each from softmax(logits/TEMPERATURE): uint16 [n, T+1].

    The whole prefix goes through the model for every token: slow (see docs/trainer.md), and the forward that is scored.
    """
    ids = torch.full((sequences, 1), BOS, device=generator.device)
    for _ in range(length):
        with autocast(generator.device):
            logits = gpt(ids, None, True)[:, -1]
        drawn = torch.multinomial(torch.softmax(logits / TEMPERATURE, dim=-1), 1, generator=generator)
        ids = torch.cat([ids, drawn], dim=1)
    return ids.cpu().numpy().astype(np.uint16)
