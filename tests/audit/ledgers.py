"""Ledgers written by hand, as short as the story they tell.

    book = Book(tmp_path)                          a run on a validation split of 64 targets, rows of 8
    with book.stage("train") as (rank,):           one stage, here of one rank; sealed at the end
        rank.learn("train", [0, 8])                draw, forward, step, update
        rank.score([(0, 8)])                       forward, score
    c3(book.evidence())

What a rank does is consistent by itself: forwards have the checksums of their draws, fingerprints add up. `silently`,
`sneak` and `writer` are there to break that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from audit.evidence import (
    Artifact,
    ClaimedScore,
    Claims,
    Contents,
    Evidence,
    Identity,
    Overlap,
    Positions,
    Stage,
    Stream,
    check_chain,
)
from audit.ledger import NO_SEAL, Writer, seal_of
from audit.records import CONTENT, LISTS, SHARDS
from audit.ruleset import read_ruleset
from audit.verdicts import Ruling

LENGTH, TARGETS = 8, 64
BYTES = 3
"""Bytes of text behind every target."""
NATS = 1.5
"""Loss of every target."""
SECOND = 1_000_000_000
DIGEST = "sha256:" + "d" * 64
RULESET = read_ruleset()


class Rank:
    """One rank of a stage. Times are moved by hand: `seconds` pass before the next record."""

    def __init__(self, writer: Writer, number: int) -> None:
        self.writer, self.number = writer, number
        self.now, self.records, self.collectives, self.steps = 1, 0, 0, 0
        self.parameters = 1 << 40
        self.sums: dict[int, int] = {}
        self._ids = itertools.count(number * 1_000_000)
        self.checksums: Iterator[int] = itertools.count(1 + number * 1_000_000_007)

    def write(self, kind: str, *arguments: Any, **options: Any) -> int:
        """A record by the writer's method of that name; returns its number."""
        getattr(self.writer, kind)(*arguments, now=self.now, **options)
        self.records += 1
        return self.records - 1

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    # Notes

    def note(self, name: str, facts: dict[str, Any] | None = None, clock: dict[str, Any] | None = None) -> int:
        return self.write("note", name, facts or {}, clock or {})

    def phase(self, name: str, seconds: float = 0.0) -> None:
        """A phase, with its state, that lasts so long before what follows."""
        self.note("phase", {"name": name})
        self.state()
        self.wait(seconds)

    def model(self) -> None:
        """A model is announced; every optimizer belongs to it."""
        self.note("model", {"index": 0})
        self.state()
        self.note("optimizer", {"index": 0, "covers_model": True})

    def state(self) -> int:
        return self.write("state", parameters=self.parameters)

    def weights(self, why: str, parameters: int | None = None) -> None:
        """The program declares other weights."""
        self.note("weights", {"why": why})
        self.parameters = self.parameters + 77 if parameters is None else parameters
        self.state()

    def silently(self) -> None:
        """The weights change, and nobody says so."""
        self.parameters += 99

    # Tokens

    def draw(
        self,
        split: str,
        starts: Sequence[int],
        *,
        shard: int = 0,
        length: int = LENGTH,
        draw: int | None = None,
        content: bool = False,
    ) -> int:
        """Rows of a split are handed out; returns the number of the draw. With `content`, starts are hashes."""
        number = next(self._ids) if draw is None else draw
        pairs = [(start >> 32, start & 0xFFFFFFFF) if content else (shard, start) for start in starts]
        rows = np.array(pairs, dtype=LISTS["draw"][1])
        self.sums[number] = next(self.checksums)
        origin = CONTENT if content else SHARDS
        self.write(
            "draw",
            number,
            split,
            rows,
            digest=bytes(32),
            checksum=self.sums[number],
            origin=origin,
            length=length,
        )
        return number

    def forward(self, draw: int, *, grad: bool = True) -> int:
        """A draw enters the model."""
        return self.sneak(self.sums[draw], grad=grad)

    def sneak(self, checksum: int, *, grad: bool) -> int:
        """Something of this checksum enters the model."""
        return self.write("forward", checksum=checksum, tokens=LENGTH, grad=grad)

    def step(self, draws: Sequence[int], *, update: bool = True) -> int:
        """A step that uses these draws."""
        at = self.write("step", self.steps, draws, lr=1.0, looped=False, collectives=self.collectives)
        self.steps += 1
        if update:
            self.update()
        return at

    def update(self, optimizer: int = 0) -> None:
        before, self.parameters = self.parameters, self.parameters + 1_000_003
        self.write("update", optimizer=optimizer, before=before, after=self.parameters)

    def learn(self, split: str, starts: Sequence[int], *, shard: int = 0) -> int:
        """A whole step on rows of a split; returns the record of the step."""
        draw = self.draw(split, starts, shard=shard)
        self.forward(draw)
        return self.step([draw])

    def calibrate(self, split: str, starts: Sequence[int]) -> int:
        """Hessians of rows of a split."""
        draw = self.draw(split, starts)
        self.forward(draw, grad=False)
        return self.write("calibration", [draw], collectives=self.collectives)

    def score(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        label: str = "sliding",
        counted: bool = True,
        length: int = LENGTH,
        entered: bool = True,
        nats: float = NATS,
        octets: int = BYTES,
    ) -> int:
        """Windows that score targets first … stop - 1, after their forward."""
        rows = [(first, stop - first, nats * (stop - first), octets * (stop - first)) for first, stop in ranges]
        checksum = next(self.checksums)
        if entered:
            self.sneak(checksum, grad=False)
        return self.scored(rows, checksum, label=label, counted=counted, length=length)

    def scored(
        self,
        rows: Sequence[tuple[int, int, float, int]],
        checksum: int,
        *,
        label: str = "sliding",
        counted: bool = True,
        length: int = LENGTH,
    ) -> int:
        """A score record of windows (begin, scored, nats, octets)."""
        windows = np.array(list(rows), dtype=LISTS["score"][1])
        return self.write(
            "score",
            label,
            windows,
            counted=counted,
            collectives=self.collectives if length else 0,
            length=length,
            digest=bytes(32),
            checksum=checksum,
            parameters=self.parameters,
        )

    def total(self, label: str = "sliding", *, targets: int = TARGETS, **facts: Any) -> None:
        """The sums that the stage reports."""
        told = {"label": label, "nats": NATS * targets, "targets": targets, "bytes": BYTES * targets}
        self.note("total", told | facts)

    def score_all(self, label: str = "sliding", *, counted: bool = True) -> None:
        """All targets, window by window."""
        for first in range(0, TARGETS, LENGTH):
            self.score([(first, first + LENGTH)], label=label, counted=counted)

    def identity(self, when: str, **digests: str) -> None:
        told = {"recipe": "sha256:r", "sources": "sha256:s", "data": DIGEST}
        self.note("identity", {"when": when} | told | digests)


class Book:
    """The ledgers of a run below a folder."""

    def __init__(self, folder: Path, *, shards: Sequence[int] = (TARGETS + 1,)) -> None:
        self.folder, self.shards = folder, tuple(shards)
        self.folders: list[Path] = []

    @contextmanager
    def stage(
        self,
        name: str = "",
        *,
        ranks: int = 1,
        sealed: bool = True,
        artifact: str | None = None,
        previous: bytes | None = None,
        end: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> Iterator[list[Rank]]:
        """The next stage. With a name it says who it is, at its start and, changed by `end`, at its end."""
        folder = self.folder / f"{len(self.folders)}{name}"
        before = seal_of(self.folders[-1]) if self.folders and previous is None else previous or NO_SEAL
        self.folders.append(folder)
        paths = [folder / f"rank{number}.ledger" for number in range(ranks)]
        found = [
            Rank(Writer.create(path, rank=number, ranks=ranks, previous=before), number)
            for number, path in enumerate(paths)
        ]
        told = {"stage": name, "seed": 42, "length": LENGTH, "device": "cpu", "corpus": "embedded"} | facts
        for rank in found if name else ():
            rank.note("run", told | {"rank": rank.number, "ranks": ranks})
            rank.identity("start")
        yield found
        for rank in found:
            if name and sealed:
                rank.identity("end", **end or {})
                rank.note("end", {"stage": name})
            if sealed:
                setattr(rank.writer, "now", lambda now=rank.now: now)  # noqa: B010 - the seal takes no time of its own
                rank.writer.seal({"ended": "announced", "artifact": artifact})
            else:
                rank.writer.flush()
                rank.writer.close()

    def stages(self) -> tuple[Stage, ...]:
        found = tuple(Stage.open(folder) for folder in self.folders)
        if all(stage.sealed for stage in found):
            check_chain(found)
        return found

    def evidence(self, **changes: Any) -> Evidence:
        """All that is known of an honest run with these ledgers, changed here and there."""
        known: dict[str, Any] = {
            "ruleset": RULESET,
            "stages": self.stages(),
            "streams": {"val": Stream(shards=self.shards, octets=octets)},
            "contents": Contents(drawn=1, checked=1, escape=0.0, mismatches=()),
            "identity": Identity(
                digest=DIGEST, root="sha256:root", overlap=Overlap(share=0.0, documents=0, contiguous=False)
            ),
            "claims": claims(),
            "artifact": Artifact(sha256="sha256:a", bytes=1_000),
        }
        return Evidence(**known | changes)


def classes(ruling: Ruling) -> set[str]:
    """The classes of what a ruling found."""
    return {finding.kind for finding in ruling.findings}


def alone(folder: Path, act: Callable[[Rank], object], **changes: Any) -> Evidence:
    """One stage without a name, in which a rank trains, does something, and scores everything."""
    book = Book(folder)
    with book.stage() as (rank,):
        rank.model()
        rank.learn("train", [0])
        act(rank)
        rank.score_all()
    return book.evidence(**changes)


def octets(first: Positions, many: Positions) -> Positions:
    """Bytes behind targets: every one has as many."""
    return many * BYTES


def claims(**changes: Any) -> Claims:
    """What an honest run reports."""
    bpb = NATS * TARGETS / np.log(2) / (BYTES * TARGETS)
    score = ClaimedScore(nats=NATS, targets=TARGETS, bytes=BYTES * TARGETS, bpb=float(bpb))
    told: dict[str, Any] = {
        "seed": 42,
        "headline": "sliding",
        "scores": {"sliding": score},
        "artifact_sha256": "sha256:a",
        "model_bytes": 1_000,
        "code_bytes": 500,
        "data_digest": DIGEST,
    }
    return Claims(**told | changes)


def train(book: Book, steps: int = 4, **options: Any) -> None:
    """An honest stage of training, with validations that do not count and Hessians of training data."""
    with book.stage("train", **options) as ranks:
        for rank in ranks:
            rank.model()
            rank.phase("setup", 5)
            rank.phase("training", 100)
            for step in range(steps):
                rank.learn("train", [8 * step, 8 * step + 100])
            rank.phase("validation", 7)
            rank.score_all("train@4, current weights", counted=False)
            rank.phase("training", 50)
            rank.weights("average swapped in")
            rank.phase("hessians", 10)
            rank.calibrate("train", [1000, 1008])
            rank.phase("writing", 3)


def quantize(book: Book, **options: Any) -> None:
    """An honest stage of quantization: no token in it."""
    with book.stage("quantize", artifact="sha256:a", **options) as (rank,):
        rank.phase("setup", 1)
        rank.phase("quantize", 20)
        rank.phase("compress", 30)
        rank.note("artifact", {"sha256": "sha256:a", "bytes": 1_000})


def evaluate(book: Book, **options: Any) -> None:
    """An honest stage of evaluation: one pass that counts."""
    with book.stage("evaluate", **options) as (rank,):
        rank.model()
        rank.phase("setup", 2)
        rank.weights("artifact loaded")
        rank.phase("sequential", 9)
        rank.score_all("sequential", counted=False)
        rank.phase("sliding", 90)
        rank.score_all("sliding")
        rank.total("sliding")


def honest(folder: Path) -> Book:
    """The three stages of an honest run."""
    book = Book(folder)
    train(book)
    quantize(book)
    evaluate(book)
    return book
