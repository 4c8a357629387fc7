"""What the planted programs are made of: shards in the working directory, a model, and the announcements of a stage.

A program is run with its own folder first on the path, so `import tiny` finds this. Each says in its docstring what it
plants; with the argument `honest` it is its own honest neighbour.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, VOCAB, ROWS = 16, 64, 4
HONEST = "honest" in sys.argv[1:]
STAGE = {"seed": 1, "rank": 0, "ranks": 1, "device": "cpu", "length": LENGTH, "vocab_size": VOCAB, "corpus": "tiny"}
_drawn = 0


def shard(split: str) -> Path:
    """The shard of a split; made at the first use, 8,001 random tokens of train and 321 of val: 20 windows."""
    path = Path(f"{split}_000000.bin")
    if not path.exists():
        count = {"train": 8001, "val": 321}[split]
        tokens = np.random.default_rng(len(split)).integers(0, VOCAB, count).astype("<u2")
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, count
        path.write_bytes(header.tobytes() + tokens.tobytes())
    return path


def rows(split: str, starts: np.ndarray) -> np.ndarray:
    """uint16 [n, T+1] from the tokens at `starts`."""
    tokens = np.fromfile(shard(split), dtype="<u2", offset=1024)
    return tokens[starts[:, None] + np.arange(LENGTH + 1)]


def windows(first: int) -> np.ndarray:
    """Starts of ROWS windows from window `first` on."""
    return LENGTH * np.arange(first, first + ROWS, dtype=np.int64)


def begin(stage: str = "train") -> nn.Module:
    """The stage's announcements, and an announced model."""
    torch.manual_seed(1)
    shard("train"), shard("val")
    facts = {name: value for name, value in STAGE.items() if name != "seed"} | {"data": str(Path.cwd())}
    sys.audit("golf.run", stage, STAGE["seed"], facts)
    sys.audit("golf.phase", "setup")
    model = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB))
    sys.audit("golf.model", model)
    sys.audit("golf.phase", "work")
    return model


def end(stage: str = "train") -> None:
    """The announcement that the stage is done."""
    sys.audit("golf.end", stage)


def draw(split: str, starts: np.ndarray) -> tuple[int, np.ndarray]:
    """Hand out rows, announced."""
    global _drawn
    found = rows(split, starts)
    _drawn += 1
    sys.audit("golf.draw", _drawn, split, np.zeros(len(starts), dtype=np.int32), starts, found)
    return _drawn, found


def losses(model: nn.Module, found: np.ndarray) -> Tensor:
    """Nats of every target, [n, T]."""
    ids = torch.from_numpy(found.astype(np.int64))
    return F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none")


def score(found: np.ndarray, starts: np.ndarray, nats: Tensor, *, label: str = "sequential") -> None:
    """Announce the losses [n, T] of validation windows as a counted score."""
    scored = np.full(len(starts), LENGTH, dtype=np.int64)
    sums = nats.detach().double().sum(1).numpy()
    sys.audit("golf.score", label, True, starts, scored, sums, scored, found, 0)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One honest step."""
    number, found = draw("train", windows(ROWS * step))
    optimizer.zero_grad()
    losses(model, found).mean().backward()
    sys.audit("golf.step", step, (number,), 1.0, False, 0)
    optimizer.step()
