"""Bits per byte of a split, every target exactly once.

    bits per byte = (Σ loss in nats / ln 2) / Σ bytes

The stream is cut to a multiple of T targets (plus the first input token). Windows of T inputs start at 0, S, 2S, …
while start + (T - S) < N; the first window scores all of its targets, each other only the last S, so every target is
scored once and with at least T - S tokens of context. S = T is the sequential evaluation, S < T the sliding window
(README of the contest; pg#1218 for the condition that keeps the tail from being scored twice). Sums are float64.

`measure` scores some windows, `score` all of them. Each batch is announced as `golf.score` when its losses are known.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable

import numpy as np
import torch

from trainer.data import DataSet
from trainer.device import autocast
from trainer.distributed import World
from trainer.errors import DataError
from trainer.loader import Batch


@dataclasses.dataclass(frozen=True)
class Score:
    """The sums of one pass over a split, or over a part of it: nats, targets, bytes."""

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

    def __add__(self, other: Score) -> Score:
        """Two parts of one pass."""
        return Score(
            self.loss_nats + other.loss_nats, self.tokens + other.tokens, self.bytes + other.bytes, self.stride
        )

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
    """A split as one stream: `tokens` uint16 [N+1]; target i is tokens[i+1] and stands for `bytes[i]` bytes.

    `firsts` int64 [shards]: where in the stream each of the split's shards begins.
    """

    tokens: np.ndarray
    bytes: np.ndarray
    firsts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, dtype=np.int64))

    @classmethod
    def of(cls, data: DataSet, *, length: int) -> Targets:
        """The validation split, cut to a multiple of `length` targets. Raises DataError if none is left."""
        sizes = [len(shard.tokens) for shard in data.val]
        tokens = np.concatenate([shard.tokens for shard in data.val])
        count = (len(tokens) - 1) // length * length
        if count < 1:
            raise DataError(
                f"validation has {len(tokens)} tokens, too few for one window of {length} + 1; use more documents"
            )
        tokens = tokens[: count + 1]
        firsts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        return cls(tokens, data.byte_table.count(tokens[:-1], tokens[1:]), firsts)

    def __len__(self) -> int:
        """The number of targets."""
        return len(self.tokens) - 1

    def rows(self, starts: np.ndarray, *, length: int) -> np.ndarray:
        """The tokens from each of `starts` on, uint16 [n, length+1]: a window's inputs, and its last target."""
        return self.tokens[starts[:, None] + np.arange(length + 1)]

    def batch(self, draw: int, starts: np.ndarray, *, length: int) -> Batch:
        """Sequences to train on, or to calibrate with: rows may run over the end of a shard into the next one."""
        shards = np.searchsorted(self.firsts, starts, side="right") - 1
        rows = self.rows(starts, length=length)
        return Batch(draw, "val", rows, shards.astype(np.int32), starts - self.firsts[shards])


def windows(count: int, *, length: int, stride: int) -> np.ndarray:
    """First target of each window over `count` targets: int64, 0, S, 2S, … while start + (T - S) < N."""
    return np.arange(0, count - (length - stride), stride, dtype=np.int64)


def scored_by(starts: np.ndarray, *, length: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """The targets that each window scores, its last ones: the first of them, and how many, int64 [n] each."""
    scored = np.where(starts == 0, length, stride)
    return starts + length - scored, scored


def measure(
    gpt: Callable[..., torch.Tensor],
    targets: Targets,
    starts: np.ndarray,
    *,
    length: int,
    stride: int,
    batch: int,
    world: World,
    label: str,
    counted: bool,
    looped: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """The score of the windows at `starts`, `batch` of them at a time, spread over ranks and summed over them.

    `gpt` is the model (which has no mode: training and scoring compute the same), plain or compiled. `counted` says
    whether these losses enter the total that the stage reports.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    mine = [starts[i : i + batch] for i in range(0, len(starts), batch)][world.rank :: world.size]
    for number, first in enumerate(mine):
        rows = targets.rows(first, length=length)
        ids = torch.from_numpy(rows.astype(np.int64)).to(world.device)
        with torch.inference_mode(), autocast(world.device):
            losses = gpt(ids[:, :-1], ids[:, 1:], looped).to("cpu", torch.float64)
        begins, scored = scored_by(first, length=length, stride=stride)
        nats = torch.stack([row[length - count :].sum() for row, count in zip(losses, scored.tolist(), strict=True)])
        octets = np.array([targets.bytes[b : b + c].sum() for b, c in zip(begins, scored, strict=True)], dtype=np.int64)
        sys.audit("golf.score", label, counted, begins, scored, nats.numpy(), octets, rows, world.collectives)
        sums += torch.tensor([float(nats.sum()), float(scored.sum()), float(octets.sum())], dtype=torch.float64)
        progress(number + 1, len(mine))
    loss, tokens, octet_count = world.sum_(sums.to(world.device)).tolist()
    return Score(loss, int(tokens), int(octet_count), stride)


def score(
    gpt: Callable[..., torch.Tensor],
    targets: Targets,
    *,
    length: int,
    stride: int,
    batch: int,
    world: World,
    label: str,
    counted: bool = False,
    looped: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Score all targets, each once, with windows of `length` moved by `stride`; the rest is `measure`'s."""
    found = measure(
        gpt,
        targets,
        windows(len(targets), length=length, stride=stride),
        length=length,
        stride=stride,
        batch=batch,
        world=world,
        label=label,
        counted=counted,
        looped=looped,
        progress=progress,
    )
    check_complete(found, targets)
    return found


def check_complete(found: Score, targets: Targets) -> None:
    """A score of a split is one of all its targets."""
    if found.tokens != len(targets):
        raise AssertionError(f"scored {found.tokens} targets of {len(targets)}")


def describe(found: Score) -> str:
    return f"{found.val_loss_nats:.4f} nats per token, {found.val_bpb:.4f} bits per byte over {found.tokens:,} tokens"
