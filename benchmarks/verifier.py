"""How fast the rules read a ledger of the real shape, and in how much memory, without reading any token again.

    .venv/bin/python -m benchmarks.verifier [--json FILE] [--sequences 1000000] [--targets 40540160]

Two ledgers of one rank are written to a temporary folder. Training: a step is a draw of 48 sequences, its forward, the
step and the updates of two optimizers. Evaluation: the split of pg#1394 in sliding windows of stride 64, 64 of them a
record, and after each chunk of 32,768 targets three steps on it (score-first). Opening checks every block's chain;
then all rules rule. CPU time of one core is what counts: it holds on a machine that does other work as well; medians
over rounds. Memory is the peak of what Python and numpy allocate while the rules run: some MiB for a block and the
draws that are remembered, and one bit a target, two where steps are made between scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audit.evidence import Contents, Evidence, Stage, Stream
from audit.ledger import Writer, check
from audit.records import LISTS
from audit.rules import rulings
from audit.ruleset import read_ruleset
from audit.verdicts import Verdict

BAR = 1e6
"""Sequences a second and core."""
SEQUENCES, LENGTH, STRIDE, WINDOWS, CHUNK, EPOCHS = 48, 2048, 64, 64, 32_768, 3
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sequences", type=int, default=1_000_000, help="training sequences")
    parser.add_argument("--targets", type=int, default=40_540_160, help="validation targets")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    targets = options.targets // CHUNK * CHUNK
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / stage for stage in ("train", "evaluate")]
        drawn = training(folders[0], options.sequences)
        evaluation(folders[1], targets)
        rows = speed("training", folders[0], targets, drawn, "sequences", options.rounds)
        rows += speed("score-first evaluation", folders[1], targets, targets, "targets", options.rounds)
        rows += [one for folder in folders for one in memory(folder, targets)]
        size = (folders[0] / "rank0.ledger").stat().st_size
        rows.append(row("training ledger on disk, a sequence", size / drawn, 16, "bytes"))
    for one in rows:
        print(f"{one['figure']:58} {one['ours']:14,.1f} {one['baseline']:14,.1f} {one['unit']:12} {one['ratio']:7.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


# Ledgers


class Run:
    """A ledger of a model under two optimizers, whose fingerprints add up."""

    def __init__(self, folder: Path, stage: str, targets: int = 0) -> None:
        self.writer = Writer.create(folder / "rank0.ledger", rank=0, ranks=1)
        self.random, self.parts, self.steps = np.random.default_rng(0), [1, 2], 0
        self.writer.note("run", {"stage": stage, "seed": 0, "length": LENGTH, "device": "cuda"})
        self.writer.note("model", {"index": 0, "parameters": 2})
        for index in (0, 1):
            self.writer.note("optimizer", {"index": index, "covers_model": True, "parameters": 1})
        self.writer.note("phase", {"name": "training" if stage == "train" else "score_first"})
        self.writer.state(parameters=self.parameters)

    @property
    def parameters(self) -> int:
        return sum(self.parts) % 2**64

    def word(self) -> int:
        return int(self.random.integers(0, 2**63))

    def step(self, split: str, shard: np.ndarray | int, start: np.ndarray) -> None:
        """A draw, its forward, a step, two updates."""
        rows = np.zeros(len(start), dtype=LISTS["draw"][1])
        rows["shard"], rows["start"] = shard, start
        checksum = self.word()
        self.writer.draw(self.steps, split, rows, digest=self.random.bytes(32), checksum=checksum, length=LENGTH)
        self.writer.forward(checksum=checksum, tokens=len(start) * LENGTH, grad=True)
        self.writer.step(self.steps, [self.steps], lr=1.0, looped=True, collectives=self.steps)
        for index in (0, 1):
            before, self.parts[index] = self.parts[index], self.word()
            self.writer.update(optimizer=index, before=before, after=self.parts[index])
        self.steps += 1

    def score(self, begin: np.ndarray, scored: np.ndarray) -> None:
        """A forward and the score of its windows."""
        windows = np.zeros(len(begin), dtype=LISTS["score"][1])
        windows["begin"], windows["scored"], windows["nats"], windows["octets"] = begin, scored, 1.0, 4 * scored
        checksum = self.word()
        self.writer.forward(checksum=checksum, tokens=len(begin) * LENGTH, grad=False)
        self.writer.score(
            "score_first",
            windows,
            counted=True,
            collectives=self.steps,
            length=LENGTH,
            digest=self.random.bytes(32),
            checksum=checksum,
            parameters=self.parameters,
        )

    def seal(self) -> None:
        self.writer.state(parameters=self.parameters)
        self.writer.seal({"ended": "announced", "artifact": None})


def training(folder: Path, sequences: int) -> int:
    """A ledger of at least so many training sequences; returns how many."""
    run = Run(folder, "train")
    while run.steps * SEQUENCES < sequences:
        run.step("train", run.random.integers(0, 80, SEQUENCES), run.random.integers(0, 10**8, SEQUENCES))
    run.seal()
    return run.steps * SEQUENCES


def evaluation(folder: Path, targets: int) -> None:
    """A ledger of a score-first pass over so many targets."""
    run = Run(folder, "evaluate")
    for first in range(0, targets, CHUNK):
        begins = np.arange(first, first + CHUNK, STRIDE)
        scored = np.full(len(begins), STRIDE)
        if not first:  # the first window scores all that it reads
            begins, scored = np.r_[0, begins[LENGTH // STRIDE :]], np.r_[LENGTH, scored[LENGTH // STRIDE :]]
        for batch in range(0, len(begins), WINDOWS):
            run.score(begins[batch : batch + WINDOWS], scored[batch : batch + WINDOWS])
        for _ in range(EPOCHS):
            run.step("val", 0, np.arange(first, first + CHUNK, LENGTH))
    run.seal()


# Figures


def evidence_of(folder: Path, targets: int) -> Evidence:
    return Evidence(
        ruleset=read_ruleset(),
        stages=(Stage.open(folder),),
        streams={"val": Stream(shards=(targets + 1,))},
        contents=Contents(drawn=1, checked=1, escape=0.0, mismatches=()),
    )


def speed(name: str, folder: Path, targets: int, count: int, unit: str, rounds: int) -> list[Row]:
    """Sequences or targets a second of CPU time: the chain alone, and chain and all rules."""
    seconds: dict[str, list[float]] = {"chain alone": [], "chain and all rules": []}
    for _ in range(rounds):
        seconds["chain alone"].append(timed(lambda: check(folder / "rank0.ledger")))
        seconds["chain and all rules"].append(timed(lambda: ruled(folder, targets)))
    return [
        row(f"{name}, {what}", count / statistics.median(taken), BAR, f"{unit}/s") for what, taken in seconds.items()
    ]


def ruled(folder: Path, targets: int) -> None:
    """All rules on a ledger; none of them may fail it."""
    failed = [ruling.id for ruling in rulings(evidence_of(folder, targets)) if ruling.verdict is Verdict.FAIL]
    if failed:
        raise SystemExit(f"{', '.join(failed)} failed on an honest ledger; this benchmark writes it wrongly")


def timed(job: Callable[[], object]) -> float:
    began = time.process_time()
    job()
    return time.process_time() - began


def memory(folder: Path, targets: int) -> list[Row]:
    """MiB at the peak while the rules run, and how it grows with the split: bits for each further target."""
    small, large = (peak(evidence_of(folder, count)) for count in (targets, 2 * targets))
    return [
        row(f"peak memory of the rules, {folder.name}", small / 2**20, targets / 8 / 2**20, "MiB"),
        row(f"what a further target costs, {folder.name}", (large - small) * 8 / targets, 1, "bits"),
    ]


def peak(evidence: Evidence) -> int:
    """Bytes that Python and numpy hold at most while the rules run."""
    tracemalloc.start()
    rulings(evidence)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def row(figure: str, ours: float, baseline: float, unit: str) -> Row:
    """One figure beside what it is held against."""
    ratio = ours / baseline
    return {"figure": figure, "ours": ours, "baseline": baseline, "ratio": ratio, "unit": unit, "device": "cpu"}


if __name__ == "__main__":
    main()
