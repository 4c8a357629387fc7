"""What each process of `test_optimizer`'s distributed test runs; apart, so that a spawned child imports little."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from tests.toy import toy_recipe
from trainer.model import GPT
from trainer.optimizer import Optimizers

STEPS = 3
ROWS = 4


def off_start(*, seed: int = 1, **overrides: object) -> GPT:
    """A toy GPT away from its start, where W_o = W_2 = 0 makes most gradients zero."""
    gpt = GPT(toy_recipe(**overrides), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return gpt


def backward(gpt: GPT, step: int, rows: slice) -> None:
    """Gradients of the mean loss over some of the ROWS sequences of a step."""
    tokens = torch.randint(0, 400, (ROWS, 33), generator=torch.Generator().manual_seed(step))[rows]
    gpt(tokens[:, :-1], tokens[:, 1:], True).mean().backward()


def train(gpt: GPT, optimizers: Optimizers, steps: range, rows: slice) -> list[Tensor]:
    """Some steps at full rate; the norms."""
    norms = []
    for step in steps:
        backward(gpt, step, rows)
        norms.append(optimizers.step(step, 1.0))
    return norms


def run(rank: int, folder: str, sizes: tuple[int, ...]) -> None:
    """For each group size R: the first R ranks train together, a second time from a restored state, and save."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(f"{folder}/store", max(sizes)), rank=rank, world_size=max(sizes)
    )
    for size in sizes:
        group = dist.new_group(list(range(size)))
        if rank < size:
            _train_and_save(rank, size, group, Path(folder))
        dist.barrier()
    dist.destroy_process_group()


def _train_and_save(rank: int, size: int, group: dist.ProcessGroup, folder: Path) -> None:
    gpt, rows = off_start(), slice(rank, None, size)
    optimizers = Optimizers(gpt, toy_recipe(), group=group)
    norms = train(gpt, optimizers, range(STEPS - 1), rows)
    weights, state = {name: value.clone() for name, value in gpt.state_dict().items()}, optimizers.state_dict()
    norms += train(gpt, optimizers, range(STEPS - 1, STEPS), rows)
    final = {name: value.clone() for name, value in gpt.state_dict().items()}
    save_file(final | {"norms": torch.stack(norms)}, folder / f"{size}.{rank}.safetensors")
    gpt.load_state_dict(weights)
    optimizers = Optimizers(gpt, toy_recipe(), group=group)
    optimizers.load_state_dict(state)
    train(gpt, optimizers, range(STEPS - 1, STEPS), rows)
    save_file(dict(gpt.state_dict()), folder / f"{size}.{rank}.resumed.safetensors")
    save_file(state, folder / f"{size}.{rank}.state.safetensors")
