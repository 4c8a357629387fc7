"""What the recorder costs: host time at the real shape, share of a step at the CPU scale, bytes on disk, bare events.

    .venv/bin/python -m benchmarks.recorder [--json FILE]

Where there is no GPU, the host's part of a step at the real shape is measured like this: everything that the host does
itself (SHA-256 and checksum of 48 rows of 2,049 tokens, records, blocks, the walk over all 124 parameters) is done in
full; every operation that would be queued on the GPU is called on tensors of one element, which costs Python and
torch's dispatch and no arithmetic. Not in it: the driver's own time to launch each of these kernels, and the copies to
pinned memory with their events. How many there are is printed, with the time that the bar leaves for each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from audit import fingerprint
from audit.ledger import NO_SEAL, Writer
from audit.recorder import announced, hook, tensors
from audit.recorder.recording import Recording
from trainer import recipe
from trainer.data import DataSet, build
from trainer.distributed import World
from trainer.model import GPT
from trainer.optimizer import Optimizers
from trainer.runlog import RunLog
from trainer.schedule import Decision
from trainer.training import Training

REAL = {"scale": "8gpu", "device": "cpu", "dist.ranks": 1}
ROWS, LENGTH, VOCAB = 48, 2048, 8192
HOST_MS, STEP_SHARE, BYTES = 1.0, 0.03, 16.0
"""The bars: host CPU of a rank-step, share of a step at the CPU scale, bytes a sequence."""


class Host:
    """A rank at the real shape as its host sees it. Sums that a GPU would do are done on one-element tensors."""

    def __init__(self, folder: Path) -> None:
        writer = Writer.create(folder / "rank0.ledger", rank=0, ranks=1)
        self.recording = Recording(writer, guard=lambda _, act, *arguments: act(*arguments), began=0)
        self.path = writer.path
        self.gpt = GPT(recipe.resolve(REAL), seed=0)
        self.optimizers = Optimizers(self.gpt, recipe.resolve(REAL))
        self.tell("model", self.gpt)
        self.random, self.ids, self.steps = np.random.default_rng(0), torch.zeros(1, dtype=torch.int64), 0
        for optimizer in (self.optimizers.adam, self.optimizers.muon):
            _, total, _ = self.recording.optimizers.of(optimizer, self.recording.models)
            total.value()
            shrink(total)

    def tell(self, event: str, *arguments: Any) -> None:
        announced.hear(self.recording, f"golf.{event}", arguments)

    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = self.random.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.uint16)
        starts = self.random.integers(0, 100_000_000, ROWS)
        return self.random.integers(0, 80, ROWS).astype(np.int32), starts, rows

    def step(self, shards: np.ndarray, starts: np.ndarray, rows: np.ndarray) -> None:
        """What is recorded of a step, in its order."""
        recording = self.recording
        self.tell("draw", self.steps, "train", shards, starts, rows)
        number = int(tensors.weighted(self.ids))
        checksum = fingerprint.checksum(rows[:1, :1]) + number  # stands for a number that comes from the GPU
        recording.queue.push((checksum & fingerprint.MASK,), self.forward)
        self.tell("step", self.steps, (self.steps,), 1.0, True, self.steps)
        for optimizer in (self.optimizers.adam, self.optimizers.muon):
            recording.before_step(optimizer)
            recording.after_step(optimizer)
        self.steps += 1

    def forward(self, checksum: int, *, now: int) -> None:
        self.recording.story.forward(checksum, tokens=ROWS * LENGTH, grad=False, ids=None, now=now)


def shrink(total: tensors.Sum) -> None:
    """Give a sum the chunks that a GPU would have, each view cut to one element, and nothing to do on the host."""
    rows = [tensors.words(p) for p in total.parameters]
    none = [np.zeros(len(row), dtype=np.int32) for row in rows]
    found = list(tensors.chunks(rows, none, which=range(len(rows))))
    total._views = [[view[:1] for view in chunk.views(rows)] for chunk in found]
    total._chunks = [tensors.Chunk(chunk.parts, torch.ones(len(chunk.parts), dtype=torch.int64)) for chunk in found]
    total._host = []


class Counter(TorchDispatchMode):
    """Counts the operations of torch that would queue a kernel."""

    VIEWS = ("view", "slice", "detach", "reshape", "_local_scalar_dense", "_unsafe_view", "alias")

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kernels += func.overloadpacket.__name__ not in self.VIEWS
        return func(*args, **(kwargs or {}))


def host(folder: Path, *, steps: int) -> dict[str, float]:
    """Host milliseconds of a rank-step at the real shape, what would be queued, and bytes a sequence."""
    rank = Host(folder)
    rank.step(*rank.batch())
    with Counter() as counter:
        rank.step(*rank.batch())
    before, seconds = rank.path.stat().st_size, []
    for _ in range(steps):
        batch = rank.batch()
        began = time.thread_time()
        rank.step(*batch)
        seconds.append(time.thread_time() - began)
    rank.recording.flush()
    size = rank.path.stat().st_size - before
    found = 1000 * statistics.median(seconds)
    return {
        "host_ms": found,
        "host_ms_mean": 1000 * statistics.mean(seconds),  # with the blocks, one in some 170 steps
        "queued_kernels": counter.kernels,
        "queued_copies": 5,
        "us_left_for_each": 1000 * (HOST_MS - found) / (counter.kernels + 5),
        "bytes_per_sequence_real": size / (steps * ROWS),
    }


def cpu_scale(folder: Path, *, steps: int) -> dict[str, float]:
    """Steps of the CPU scale, recorded and not in turn: the recorder's share of a step's CPU time, and its bytes.

    Two ways: the difference of medians, which a busy machine blurs, and the time spent inside the recorder.
    """
    settings = recipe.resolve({"scale": "cpu"})
    torch.set_num_threads(settings.dist.threads)
    (folder / "data").mkdir()
    build(settings, folder / "data")
    data = DataSet.open(folder / "data", settings)
    heard, inside = hook.attach(out=folder / "ledger", previous=NO_SEAL), [0.0]
    guard = heard.guard

    def timed(*arguments: Any) -> None:
        began = time.thread_time()
        guard(*arguments)
        inside[0] += time.thread_time() - began

    heard.guard = timed  # type: ignore[method-assign]
    world = World(rank=0, size=1, device=torch.device("cpu"))
    training = Training(settings, data, world, seed=1, log=RunLog(None, stage="train", seed=1))
    loader, seconds = training.loader.steps(0), ([], [])
    decision = Decision(lr_factor=1.0, looped=False)
    path = folder / "ledger" / "rank0.ledger"
    for number in range(2 * steps + 4):
        if number == 4:
            heard._flush()
            before, inside[0] = path.stat().st_size, 0.0
        heard.silent = number % 2 == 1
        began = time.process_time()
        training.step(number, next(loader), decision)
        if number >= 4:
            seconds[number % 2].append(time.process_time() - began)
    heard.silent = False
    heard._flush()
    recorded, plain = (statistics.median(each) for each in seconds)
    rows = settings.train.sequences_per_rank * 8
    loader.close()
    return {
        "step_ms": 1000 * plain,
        "recorder_inside_ms": 1000 * inside[0] / steps,
        "recorder_ms": 1000 * (recorded - plain),
        "step_share_inside": inside[0] / steps / plain,
        "step_share": recorded / plain - 1,
        "bytes_per_sequence_cpu": (path.stat().st_size - before) / (steps * rows),
    }


def events() -> dict[str, float]:
    """An audit event that is nothing to record, in a recorded process: CPU time, and how many a second."""

    def nanoseconds(count: int) -> float:
        began = time.thread_time_ns()
        for _ in range(count):
            sys.audit("object.__getattr__", 1)
        return (time.thread_time_ns() - began) / count

    found = statistics.median(nanoseconds(20_000) for _ in range(21))
    return {"bare_event_ns": found, "bare_events_per_second": 1e9 / found}


def in_child(act: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Run in a forked child: a hook can't be removed, and must not slow what is measured after it."""
    reading, writing = os.pipe()
    if not os.fork():
        try:
            os.write(writing, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    os.wait()
    return dict(json.loads(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--steps", type=int, default=40, help="steps of each kind at the CPU scale")
    options = parser.parse_args()
    torch.set_num_threads(1)

    def at_cpu_scale() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return cpu_scale(Path(folder), steps=options.steps) | events()

    with tempfile.TemporaryDirectory() as folder:
        found = in_child(at_cpu_scale) | host(Path(folder), steps=400)
    for name, value in found.items():
        print(f"{name:26} {value:,.4g}")
    if options.json:
        bars = {
            "host_ms": HOST_MS,
            "step_share": STEP_SHARE,
            "bytes_per_sequence_real": BYTES,
            "bytes_per_sequence_cpu": BYTES,
        }
        rows = [
            {"figure": name, "ours": found[name], "baseline": bar, "ratio": found[name] / bar, "device": "cpu"}
            for name, bar in bars.items()
        ]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
