"""What the verifier costs beyond the ledger: shards read and hashed again, the trainer's loader run again.

    .venv/bin/python -m benchmarks.rereading [--draws 400] [--steps 5000] [--json FILE]

Draws of 48 sequences of 2,048 tokens, as a rank of the real run makes them, from shards of random tokens. The baseline
of reading again is SHA-256 alone over the same bytes; of the loader, that of the issue: 1 M sequences a second. CPU
time of one core, median of three.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audit import fingerprint
from audit.contents import check_contents
from audit.evidence import Stage
from audit.ledger import Writer
from audit.records import LISTS
from audit.replay import Plan, replay_draws
from audit.shards import Shard
from audit.splits import Data, Split
from trainer import recipe as recipes
from trainer.settings import VIRTUAL_RANKS

ROWS, LENGTH = 48, 2048
SHARD_TOKENS, SHARDS = 25_000_000, 8
PUBLISHED_SHARDS, PUBLISHED_TOKENS = 80, 100_000_000
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="What the verifier costs beyond the ledger.")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--steps", type=int, default=5000, help="of the training whose draws are made again")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [*reading(Path(folder) / "read", given.draws), replaying(Path(folder) / "replay", given.steps)]
    for one in rows:
        print(f"{one['figure']:52} {one['ours']:14,.1f} {one['baseline']:14,.1f} {one['unit']:12} {one['ratio']:7.3f}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2))


def listed(shards: np.ndarray, starts: np.ndarray) -> np.ndarray:
    table = np.zeros(len(starts), LISTS["draw"][1])
    table["shard"], table["start"] = shards, starts
    return table


def reading(folder: Path, draws: int) -> list[Row]:
    """Sequences a second whose rows are read, hashed and summed again, against hashing them alone."""
    random = np.random.default_rng(0)
    tokens = [random.integers(0, 8192, SHARD_TOKENS, dtype=np.uint16) for _ in range(SHARDS)]
    split = Split("train", tuple(Shard(Path(f"train_{i:06d}.bin"), (), part) for i, part in enumerate(tokens)))
    writer = Writer.create(folder / "rank0.ledger", rank=0, ranks=1)
    writer.note("run", {"stage": "train", "length": LENGTH})
    for number in range(draws):
        table = listed(random.integers(0, SHARDS, ROWS), random.integers(0, SHARD_TOKENS - LENGTH - 1, ROWS))
        rows = split.rows(table["shard"], table["start"], length=LENGTH + 1)
        digest, checksum = hashlib.sha256(rows).digest(), fingerprint.checksum(rows[:, :-1])
        writer.draw(number, "train", table, digest=digest, checksum=checksum, length=LENGTH)
    writer.seal({})
    stage, data = Stage.open(folder), Data(splits={"train": split}, tokenizer=None, others=())

    def check() -> None:
        found = check_contents([stage], data)
        assert (found.checked, found.mismatches) == (draws, ())

    def hashing() -> None:
        for _ in range(draws):
            hashlib.sha256(rows).digest()

    count = draws * ROWS
    return [row("draws read again", count / seconds(check), count / seconds(hashing), "sequences/s")]


def replaying(folder: Path, steps: int) -> Row:
    """Sequences a second that the trainer's loader draws again: 8 ranks over as many shards as are published."""
    recipe, tokens = recipes.resolve({"scale": "8gpu"}), np.broadcast_to(np.uint16(0), (PUBLISHED_TOKENS,))
    shards = tuple(Shard(Path(f"train_{i:06d}.bin"), (), tokens) for i in range(PUBLISHED_SHARDS))
    data = Data(splits={"train": Split("train", shards)}, tokenizer=None, others=())
    plan = Plan(recipe, data, 42)
    for rank in range(VIRTUAL_RANKS):
        writer = Writer.create(folder / f"rank{rank}.ledger", rank=rank, ranks=VIRTUAL_RANKS)
        writer.note("run", {"stage": "train", "length": LENGTH, "seed": 42})
        loader = plan.loader([rank]).steps()
        for step in range(steps):
            (batch,) = next(loader)
            place = listed(batch.shards, batch.starts)
            writer.draw(batch.draw, "train", place, digest=bytes(32), checksum=1, length=LENGTH)
            writer.step(step, [batch.draw], lr=1.0, looped=False, collectives=step)
        calibration = plan.calibration(steps, [rank])
        for batch in calibration:
            place = listed(batch.shards, batch.starts)
            writer.draw(batch.draw, "train", place, digest=bytes(32), checksum=1, length=LENGTH)
        writer.calibration([batch.draw for batch in calibration], collectives=steps)
        writer.seal({})
    stage = Stage.open(folder)

    def replay() -> None:
        found = replay_draws([stage], data, recipe, seed=42)
        assert (found.mismatches, found.reason) == ((), "")

    return row("the trainer's loader again", VIRTUAL_RANKS * steps * ROWS / seconds(replay), 1e6, "sequences/s")


def seconds(job: Callable[[], None]) -> float:
    """CPU seconds of one run, the median of three."""
    spent = []
    for _ in range(3):
        began = time.process_time()
        job()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def row(figure: str, ours: float, baseline: float, unit: str) -> Row:
    ratio = ours / baseline
    return {"figure": figure, "ours": ours, "baseline": baseline, "ratio": ratio, "unit": unit, "device": "cpu"}


if __name__ == "__main__":
    main()
