"""Bits per byte of a split, every target exactly once.

    bits per byte = (Σ loss in nats / ln 2) / Σ bytes

The stream is cut to a multiple of T targets (plus the first input token). Windows of T inputs start at 0, S, 2S, …
while start + (T - S) < N; the first window scores all of its targets, each other only the last S, so every target is
scored once and with at least T - S tokens of context. S = T is the sequential evaluation, S < T the sliding window
(README of the contest; pg#1218 for the condition that keeps the tail from being scored twice). Sums are float64.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable

import numpy as np
import torch

from trainer.data import DataSet
from trainer.distributed import World
from trainer.errors import DataError


@dataclasses.dataclass(frozen=True)
class Score:
    """The sums of one pass over a split: nats, targets, bytes."""

    loss_nats: float
    tokens: int
    bytes: int
    stride: int

    @property
    def val_loss_nats(self) -> float:
        """Mean loss, nats per token of this tokenizer."""
        return self.loss_nats / self.tokens

    @property
    def val_bpb(self) -> float:
        """Bits per byte."""
        return self.loss_nats / math.log(2) / self.bytes

    def as_dict(self) -> dict[str, float | int]:
        return {
            "val_loss_nats": self.val_loss_nats,
            "val_bpb": self.val_bpb,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "stride": self.stride,
        }


@dataclasses.dataclass(frozen=True)
class Targets:
    """A split as one stream: `tokens` uint16 [N+1]; target i is tokens[i+1] and stands for `bytes[i]` bytes."""

    tokens: np.ndarray
    bytes: np.ndarray

    @classmethod
    def of(cls, data: DataSet, *, length: int) -> Targets:
        """The validation split, cut to a multiple of `length` targets. Raises DataError if none is left."""
        tokens = np.concatenate([shard.tokens for shard in data.val])
        count = (len(tokens) - 1) // length * length
        if count < 1:
            raise DataError(
                f"validation has {len(tokens)} tokens, too few for one window of {length} + 1; use more documents"
            )
        tokens = tokens[: count + 1]
        return cls(tokens, data.byte_table.count(tokens[:-1], tokens[1:]))


def windows(count: int, *, length: int, stride: int) -> np.ndarray:
    """First target of each window over `count` targets: int64, 0, S, 2S, … while start + (T - S) < N."""
    return np.arange(0, count - (length - stride), stride, dtype=np.int64)


def score(
    gpt: Callable[..., torch.Tensor],
    targets: Targets,
    *,
    length: int,
    stride: int,
    batch: int,
    world: World,
    label: str,
    looped: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Score all targets with windows of `length` moved by `stride`, `batch` windows at a time, spread over ranks.

    `gpt` is the model (which has no mode: training and scoring compute the same), plain or compiled.
    Announces every batch as `golf.score` (label, first scored target of each window, how many, Σ nats, Σ bytes).
    """
    starts = windows(len(targets.tokens) - 1, length=length, stride=stride)
    offsets = np.arange(length + 1)
    sums = torch.zeros(3, dtype=torch.float64)
    mine = [starts[i : i + batch] for i in range(0, len(starts), batch)][world.rank :: world.size]
    for number, first in enumerate(mine):
        rows = torch.from_numpy(targets.tokens[first[:, None] + offsets].astype(np.int64)).to(world.device)
        with torch.inference_mode(), autocast(world.device):
            losses = gpt(rows[:, :-1], rows[:, 1:], looped).to("cpu", torch.float64)
        scored = np.where(first == 0, length, stride)
        begins = first + length - scored
        nats = torch.stack([row[length - count :].sum() for row, count in zip(losses, scored.tolist(), strict=True)])
        octets = np.array([targets.bytes[b : b + c].sum() for b, c in zip(begins, scored, strict=True)], dtype=np.int64)
        sys.audit("golf.score", label, begins, scored, nats.numpy(), octets)
        sums += torch.tensor([float(nats.sum()), float(scored.sum()), float(octets.sum())], dtype=torch.float64)
        progress(number + 1, len(mine))
    loss, tokens, octet_count = world.sum_(sums.to(world.device)).tolist()
    if int(tokens) != len(targets.tokens) - 1:
        raise AssertionError(f"scored {int(tokens)} targets of {len(targets.tokens) - 1}")
    return Score(loss, int(tokens), int(octet_count), stride)


def autocast(device: torch.device) -> torch.autocast:
    """bf16 matrix products on GPUs, fp32 on CPUs."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
