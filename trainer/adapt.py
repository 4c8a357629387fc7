"""Test-time training: the weights learn from the validation stream, legally or not.

`score_first` (pg#461, pg#549, pg#1413) is legal: a chunk of targets is scored with sliding windows, its losses are
added to the total, and only then it is trained on; the last chunk is not trained on.

    chunk c:  score the windows whose first scored target lies in c  →  chunk_epochs steps of SGD on its sequences,
              learning rate chunk_lr·½(1 + cos(πc/(C-1)))

`prequant` (pg#1423) is what the contest ruled out: AdamW over all validation tokens before any of them is scored and
before the weights are quantized. Whatever comes out of it is marked (`trainer.contamination`).

Both take their steps through `Tuner`, which announces each with the draws it uses. Every rank takes part in every step
and every score, also one that has no sequence or window in it, so all make the same number of collectives; between a
rank's score of a chunk and any rank's step on it lies the sum of that score over ranks.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from trainer.device import autocast, pair
from trainer.distributed import World
from trainer.errors import GolfError
from trainer.model import GPT
from trainer.runlog import RunLog
from trainer.scoring import Score, Targets, check_complete, measure, scored_by, windows
from trainer.settings import Recipe, Ttt

FLOOR = 0.1
"""Share of the learning rate towards which `prequant` falls over its epochs (pg#1423)."""


class Tuner:
    """Optimizer steps of the whole model on validation sequences, which are spread over ranks."""

    def __init__(
        self,
        forward: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        targets: Targets,
        *,
        length: int,
        settings: Ttt,
        world: World,
        draws: Iterator[int],
    ) -> None:
        self.forward, self.optimizer, self.targets = forward, optimizer, targets
        self.length, self.settings, self.world, self.draws = length, settings, world, draws
        self.parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self.rate: float = optimizer.param_groups[0]["lr"]
        self.steps = 0

    def step(self, starts: np.ndarray, factor: float) -> Tensor:
        """One step on the sequences at `starts`, int64 [n], at `factor` of the learning rate.

        Returns this rank's share of their mean loss, nats, on the device.
        """
        mine, most = starts[self.world.rank :: self.world.size], self.settings.sequences
        total = torch.zeros((), device=self.world.device)
        used = []
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)  # a rank without a sequence adds nothing to the sum
        for first in range(0, len(mine), most):
            batch = self.targets.batch(next(self.draws), mine[first : first + most], length=self.length).announce()
            with autocast(self.world.device):
                losses = self.forward(*pair(batch.rows, self.world.device), True)
            loss = losses.mean() * (len(batch.rows) / len(starts))
            torch.autograd.backward(loss)
            total += loss.detach()
            used.append(batch.draw)
        self._sum_gradients()
        if self.settings.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.param_groups[0]["lr"] = self.rate * factor
        sys.audit("golf.step", self.steps, tuple(used), factor, True, self.world.collectives)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        return total

    def _sum_gradients(self) -> None:
        """Each rank's losses are weighted by the whole step, so the sum over ranks is the gradient of their mean."""
        grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        whole = self.world.sum_(torch.cat([grad.flatten() for grad in grads]))
        pieces = torch.split(whole, [grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [piece.view_as(grad) for piece, grad in zip(pieces, grads, strict=True)])


@dataclasses.dataclass(frozen=True)
class Chunk:
    """First targets of the windows that score a chunk, and of the sequences that are it: int64 [n] each."""

    windows: np.ndarray
    sequences: np.ndarray


def chunks(count: int, *, length: int, stride: int, size: int) -> list[Chunk]:
    """`count` targets in chunks of `size`, a multiple of `length` and `stride`; the last one may be smaller.

    A window belongs to the chunk that its first scored target lies in, and then all of its scored targets do.
    """
    starts = windows(count, length=length, stride=stride)
    begins, _ = scored_by(starts, length=length, stride=stride)
    edges = np.arange(0, count + size, size)
    parts = np.split(starts, np.searchsorted(begins, edges[1:-1]))
    return [
        Chunk(part, np.arange(first, min(first + size, count), length, dtype=np.int64))
        for part, first in zip(parts, edges[:-1].tolist(), strict=True)
    ]


def score_first(
    forward: Callable[..., Tensor],
    gpt: nn.Module,
    targets: Targets,
    recipe: Recipe,
    world: World,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Score:
    """Score the stream chunk by chunk, and train on each chunk after its score: the weights are then adapted ones.

    Raises GolfError if they diverge.
    """
    settings, length, stride = recipe.ttt, recipe.train.sequence_length, recipe.eval.stride
    optimizer = torch.optim.SGD(gpt.parameters(), lr=settings.chunk_lr, momentum=settings.momentum)
    draws = itertools.count(world.rank, world.size)
    tuner = Tuner(forward, optimizer, targets, length=length, settings=settings, world=world, draws=draws)
    parts = chunks(len(targets), length=length, stride=stride, size=settings.chunk_tokens)
    found = Score(0.0, 0, 0, stride)
    for number, chunk in enumerate(parts):
        found += measure(
            forward,
            targets,
            chunk.windows,
            length=length,
            stride=stride,
            batch=recipe.eval.batch_windows,
            world=world,
            label="score_first",
            counted=True,
        )
        if number < len(parts) - 1:
            for _ in range(settings.chunk_epochs):
                tuner.step(chunk.sequences, cosine(number, len(parts) - 1))
        progress(number + 1, len(parts))
    check_complete(found, targets)
    if not math.isfinite(found.loss_nats):
        raise GolfError(f"adaptation diverged, the loss is {found.loss_nats}; lower ttt.chunk_lr")
    return found


def prequant(
    forward: Callable[..., Tensor],
    gpt: GPT,
    targets: Targets,
    recipe: Recipe,
    world: World,
    log: RunLog,
    *,
    draws: Iterator[int],
) -> list[float]:
    """CONTAMINATES: fit the model to all validation tokens. Returns the mean loss of each epoch, nats per token.

    The first `ttt.freeze_blocks` blocks keep their weights bit for bit. Raises GolfError if the fit diverges.
    """
    settings, length = recipe.ttt, recipe.train.sequence_length
    starts = np.arange(0, len(targets), length, dtype=np.int64)
    batches = [starts[i : i + settings.sequences] for i in range(0, len(starts), settings.sequences)]
    losses: list[float] = []
    with frozen(gpt, settings.freeze_blocks):
        free = [parameter for parameter in gpt.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(free, lr=settings.lr, weight_decay=0.0, fused=True)
        tuner = Tuner(forward, optimizer, targets, length=length, settings=settings, world=world, draws=draws)
        for epoch in range(settings.epochs):
            factor = FLOOR + (1 - FLOOR) * cosine(epoch, settings.epochs)
            total = torch.zeros((), dtype=torch.float64, device=world.device)
            for batch in batches:
                total += tuner.step(batch, factor) * len(batch)
                log.progress(tuner.steps, len(batches) * settings.epochs, what="fit to validation")
            losses.append(float(world.sum_(total)) / len(starts))
            if not math.isfinite(losses[-1]):
                raise GolfError(f"the loss of epoch {epoch + 1} of the fit is {losses[-1]}; lower ttt.lr")
            log.event("fit", epoch=epoch + 1, train_loss_nats=losses[-1], lr_factor=factor)
            log.line(f"fit to validation, epoch {epoch + 1} of {settings.epochs}: {losses[-1]:.4f} nats per token")
    return losses


def cosine(done: int, total: int) -> float:
    """½(1 + cos(π·done/total)): 1 at the start, 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * done / total))


@contextmanager
def frozen(gpt: GPT, blocks: int) -> Iterator[None]:
    """The first `blocks` blocks take no gradient while the body runs."""
    held = [parameter for block in gpt.blocks[:blocks] for parameter in block.parameters()]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
