"""Small ledgers of the three stages of a seed, as the recorder would write them, in each mode of the recipe.

    files, seals = staged(42, "prequant")        path below runs/ → bytes; stage → seal

Modes: plain, prequant (the validation stream is fitted in quantize), calibration (the quantizer sees some of it),
score_first (each chunk is trained on after its score), rescore (and then all is scored again, counted).
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from audit.blocks import text
from audit.ledger import NO_SEAL, Writer, seal_of
from audit.records import LISTS

MODES = ("plain", "prequant", "calibration", "score_first", "rescore")
LENGTH, STRIDE, TARGETS, CHUNK = 128, 64, 51_200, 2_048
SECOND = 1_000_000_000


def sequences(starts: Iterable[int], shard: int = 0) -> np.ndarray:
    """The list of a draw: rows of one shard."""
    return np.array([(shard, start) for start in starts], dtype=LISTS["draw"][1])


def windows(begins: Iterable[int], scored: int) -> np.ndarray:
    """The list of a score: windows that score equally many targets."""
    return np.array([(begin, scored, 0.0, 0) for begin in begins], dtype=LISTS["score"][1])


class Scribe:
    """A ledger with a clock that is moved by hand, in seconds."""

    def __init__(self, path: Path, previous: bytes = NO_SEAL, *, rank: int = 0, ranks: int = 1) -> None:
        self.writer = Writer.create(path, rank=rank, ranks=ranks, previous=previous)
        self.seconds, self.draws = 0.001, 0

    @property
    def now(self) -> int:
        return int(self.seconds * SECOND)

    def note(self, name: str, **facts: object) -> None:
        self.writer.note(name, facts, now=self.now)

    def score(self, label: str, begins: Iterable[int], scored: int, *, counted: bool, length: int = LENGTH) -> None:
        self.writer.score(
            label,
            windows(begins, scored),
            counted=counted,
            collectives=0,
            length=length,
            digest=bytes(32),
            checksum=0,
            parameters=0,
            now=self.now,
        )

    def passes(self, label: str, stride: int, *, counted: bool = False, seconds: float) -> None:
        """The whole stream, in ten records."""
        for part in np.array_split(np.arange(0, TARGETS, stride), 10):
            self.seconds += seconds / 10
            self.score(label, part.tolist(), stride, counted=counted)

    def draw(self, split: str, starts: Iterable[int], shard: int = 0, *, origin: int = 0, length: int = 0) -> int:
        self.draws += 1
        rows = sequences(starts, shard)
        self.writer.draw(
            self.draws, split, rows, digest=bytes(32), checksum=0, origin=origin, length=length, now=self.now
        )
        return self.draws

    def step(self, *draws: int) -> None:
        self.writer.step(self.draws, draws, lr=1.0, looped=True, collectives=0, now=self.now)

    def calibrate(self, *draws: int) -> None:
        self.writer.calibration(draws, collectives=0, now=self.now)


def _train(scribe: Scribe, mode: str) -> None:
    scribe.passes("train@0, current weights", LENGTH, seconds=1.5)
    for step in range(20):
        scribe.seconds += 2.0
        scribe.step(scribe.draw("train", range(step, step + 8), step % 8))
    scribe.passes("train@20, current weights", LENGTH, seconds=1.5)
    scribe.calibrate(scribe.draw("train", range(64)))


def _quantize(scribe: Scribe, mode: str) -> None:
    if mode == "prequant":
        scribe.passes("after averaging", LENGTH, seconds=0.5)
        for epoch in range(3):
            for part in np.array_split(np.arange(0, TARGETS, LENGTH), 25):
                scribe.seconds += 0.1
                scribe.step(scribe.draw("val", part.tolist()))
            scribe.passes(f"fit epoch {epoch + 1}", LENGTH, seconds=0.5)
    if mode == "calibration":
        scribe.seconds += 1.0
        scribe.calibrate(scribe.draw("val", range(0, TARGETS, 16 * LENGTH)))
    scribe.seconds += 4.0


def _evaluate(scribe: Scribe, mode: str) -> None:
    adapts = mode in ("score_first", "rescore")
    scribe.passes("sequential", LENGTH, seconds=2.0)
    scribe.passes("sliding", STRIDE, counted=not adapts, seconds=9.0)
    if adapts:
        for first in range(0, TARGETS, CHUNK):
            scribe.seconds += 0.4
            scribe.score("score_first", range(first, first + CHUNK, STRIDE), STRIDE, counted=True)
            if first + CHUNK < TARGETS:
                scribe.seconds += 0.6
                scribe.step(scribe.draw("val", range(first, first + CHUNK, LENGTH)))
    if mode == "rescore":
        scribe.passes("rescore", STRIDE, counted=True, seconds=9.0)


WORK = {"train": _train, "quantize": _quantize, "evaluate": _evaluate}


@functools.cache
def staged(seed: int, mode: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """The ledgers of a seed by their path below runs/, and their seals by stage."""
    files, seals, previous = {}, {}, NO_SEAL
    with tempfile.TemporaryDirectory() as folder:
        for stage, work in WORK.items():
            name = f"ledger/clock.{stage}.{seed}/rank0.ledger"
            path = Path(folder) / name
            scribe = Scribe(path, previous)
            scribe.note("run", stage=stage, seed=seed, rank=0, ranks=1, length=LENGTH, vocab_size=1024)
            for when in ("start", "end"):
                scribe.note("identity", when=when, recipe=f"sha256:{stage}", sources="sha256:0", data="sha256:1")
                if when == "start":
                    work(scribe, mode)
                    scribe.writer.flush()
            scribe.note("end", stage=stage)
            scribe.writer.seal({"ended": "announced"})
            files[name], previous = path.read_bytes(), seal_of(path.parent)
            seals[stage] = text(previous)
    return files, seals
