"""The processes of a run: `torchrun`'s ranks, or the one process there is.

`World` wraps the few collectives that the trainer needs. On one process they do nothing, so the code above is the same
at every scale. Every collective made here moves `collectives` by one on all ranks alike: that counter, never a clock,
orders events of different ranks (two events are ordered only if a collective of both lies between them).

These are the only environment variables the trainer reads: torchrun's RANK, WORLD_SIZE, LOCAL_RANK.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from trainer.errors import GolfError, ResourceError
from trainer.settings import VIRTUAL_RANKS, Recipe


@dataclasses.dataclass
class World:
    """This process among the others. `group` carries tensors on `device`, `control` carries decisions on the CPU."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    control: dist.ProcessGroup | None = None
    collectives: int = 0

    @property
    def leader(self) -> bool:
        return self.rank == 0

    @property
    def virtual_ranks(self) -> tuple[int, ...]:
        """The virtual ranks whose sequences this process trains on: r, r + R, …"""
        return tuple(range(self.rank, VIRTUAL_RANKS, self.size))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor of `device` over all ranks, in place."""
        self.collectives += 1
        if self.group is not None:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def broadcast(self, values: list[float]) -> list[float]:
        """The leader's float64 values on every rank. Goes over the CPU, so it never waits for a GPU's queue."""
        self.collectives += 1
        if self.control is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, src=0, group=self.control)
        return [float(value) for value in tensor]

    def gather(self, text: str) -> list[str]:
        """One short ASCII text (up to 128 characters) of every rank, in rank order, on every rank."""
        self.collectives += 1
        if self.control is None:
            return [text]
        mine = torch.frombuffer(bytearray(text.ljust(128, "\0"), "ascii"), dtype=torch.uint8)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.control)
        return [bytes(row.tolist()).rstrip(b"\0").decode("ascii") for row in rows]

    def barrier(self) -> None:
        """Return when all ranks are here."""
        self.gather("")


@contextmanager
def world(recipe: Recipe) -> Iterator[World]:
    """Join the other ranks, set threads and device, leave at the end.

    Raises ResourceError if the number of processes is not the recipe's, or the device is missing.
    """
    size, rank, local = (int(os.environ.get(name, value)) for name, value in _TORCHRUN)
    if size != recipe.dist.ranks:
        raise ResourceError(
            f"{size} processes run but dist.ranks is {recipe.dist.ranks}, start with `golf-train launch`, "
            f"or torchrun --nproc_per_node={recipe.dist.ranks}"
        )
    device = own_device(recipe, rank=rank, local=local)
    if size == 1:
        yield World(rank=0, size=1, device=device)
        return
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    control = dist.new_group(backend="gloo")
    try:
        yield World(rank=rank, size=size, device=device, group=dist.group.WORLD, control=control)
    except RuntimeError as error:
        if any(word in str(error) for word in _PEER_LOST):
            said = str(error).strip().splitlines()[0][:120]
            raise ResourceError(f"rank {rank} lost the others, see what another rank says ({said})") from error
        raise
    # Only after success: tearing a group down while other ranks wait in a collective can hang. A rank that fails
    # leaves its process at once (`__main__.leave`), and torchrun ends the others.
    dist.destroy_process_group()


def alone(recipe: Recipe) -> World:
    """This process by itself, whatever `dist.ranks` says: for a stage that is one process. Sets threads and device."""
    return World(rank=0, size=1, device=own_device(recipe, rank=0, local=0))


def own_device(recipe: Recipe, *, rank: int, local: int) -> torch.device:
    """The device of a rank, made torch's current one, and the threads set. Raises ResourceError if it is missing."""
    torch.set_num_threads(recipe.dist.threads)
    if recipe.device == "cpu":
        return torch.device("cpu")
    if local >= torch.cuda.device_count():
        raise ResourceError(
            f"device is cuda but rank {rank} finds {torch.cuda.device_count()} GPUs; set device=cpu or scale=cpu"
        )
    torch.cuda.set_device(local)
    return torch.device(recipe.device, local)


def fingerprint(model: torch.nn.Module) -> str:
    """`sha256:…` over names and bytes of all parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return "sha256:" + digest.hexdigest()


def check_replicas(model: torch.nn.Module, ranks: World) -> None:
    """All ranks must hold the same weights, bit for bit."""
    digests = ranks.gather(fingerprint(model))
    if len(set(digests)) != 1:
        raise GolfError(f"the ranks ended with different weights: {digests}; this is a bug of the trainer")


_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "NCCL", "Gloo", "gloo")
_TORCHRUN = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))
