"""TRAIN-TIME and EVAL-TIME: what is on the clock, what is not, and who trains in a pause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit.rules.clocks import EVAL_TIME, TRAIN_TIME
from audit.verdicts import Ruling, Verdict
from tests.audit.ledgers import Book, Rank, classes, train


def timed(folder: Path, act: Any, *, stage: str = "train", **options: Any) -> Ruling:
    book = Book(folder)
    with book.stage(stage, **options) as ranks:
        for rank in ranks:
            rank.phase("setup", 1)
            act(rank)
    return (EVAL_TIME if stage == "evaluate" else TRAIN_TIME)(book.evidence())


def trains(seconds: float) -> Any:
    def act(rank: Rank) -> None:
        rank.phase("training", seconds)
        rank.learn("train", [0])

    return act


@pytest.mark.parametrize(
    ("seconds", "ranks", "verdict"),
    [(4799, 1, Verdict.PASS), (4801, 1, Verdict.FAIL), (599, 8, Verdict.PASS), (601, 8, Verdict.FAIL)],
)
def test_training_time(tmp_path: Path, seconds: float, ranks: int, verdict: Verdict) -> None:
    """600 s on 8 devices are 4,800 device-seconds on any number of them."""
    ruling = timed(tmp_path, trains(seconds), ranks=ranks)
    assert ruling.verdict is verdict
    assert classes(ruling) == ({"train-overrun"} if verdict is Verdict.FAIL else set())
    assert ruling.clock["device_seconds"] == seconds * ranks


def test_the_slowest_rank_counts(tmp_path: Path) -> None:
    """The devices are held until the last rank is done, and also while a later stage uses one of them alone."""
    book = Book(tmp_path)
    with book.stage("train", ranks=2) as ranks:
        for rank in ranks:
            trains(100 + 50 * rank.number)(rank)
    with book.stage("quantize") as (rank,):
        rank.phase("hessians", 10)
    assert TRAIN_TIME(book.evidence()).clock["device_seconds"] == 2 * (150 + 10)


def test_what_lies_outside_is_named(tmp_path: Path) -> None:
    """Seconds of neutral phases, and before the first phase, are told and not counted."""
    book = Book(tmp_path)
    with book.stage("train") as (rank,):
        rank.wait(3)
        rank.phase("validation", 50)
        trains(10)(rank)
    told = TRAIN_TIME(book.evidence()).clock["stages"]["train"]
    assert told["on"] == {"training": 10.0}
    assert told["off"] == {"before the first phase": 3.000000001, "validation": 50.0}


def test_phases_that_nobody_knows(tmp_path: Path) -> None:
    """A phase that the rule set does not name, a stage without phases, or no stage is never passed in silence."""

    def tunes(rank: Rank) -> None:
        rank.phase("tuning", 900)

    assert classes(timed(tmp_path / "unknown", tunes)) == {"unknown-phase"}
    book = Book(tmp_path / "none")
    with book.stage("train") as (rank,):
        rank.note("start")
    assert classes(TRAIN_TIME(book.evidence())) == {"no-phases"}
    assert classes(EVAL_TIME(book.evidence())) == {"no-stage"}


@pytest.mark.parametrize(("comes_back", "expected"), [(True, set()), (False, {"steps-outside-the-clock"})])
def test_steps_outside_the_clock(tmp_path: Path, comes_back: bool, expected: set[str]) -> None:
    """A warm-up may make steps outside the clock if the weights come back, to the bit."""

    def act(rank: Rank) -> None:
        before = rank.parameters
        rank.phase("warm-up", 30)
        rank.learn("random", [0])
        if comes_back:
            rank.weights("warm-up restored", before)
        trains(10)(rank)

    assert classes(timed(tmp_path, act)) == expected


def test_hessians_after_the_clock(tmp_path: Path) -> None:
    """Training data for the quantizer after the clock fails, by Hessians or by an opened shard; own text does not."""

    def late(split: str) -> Any:
        def act(rank: Rank) -> None:
            trains(10)(rank)
            rank.phase("writing", 4)
            rank.calibrate(split, [0])

        return act

    assert classes(timed(tmp_path / "train", late("train"))) == {"gptq-after-cap"}
    assert classes(timed(tmp_path / "self", late("self"))) == set()
    for phase, name, expected in (
        ("setup", "train_000001.bin", {"gptq-after-cap"}),
        ("setup", "fineweb_val_000000.bin", set()),
        ("hessians", "train_000001.bin", set()),
    ):
        book = Book(tmp_path / phase / name)
        train(book)
        with book.stage("quantize") as (rank,):
            rank.phase(phase, 1)
            rank.note("open", {"kind": "shard", "name": name})
        assert classes(TRAIN_TIME(book.evidence())) == expected


@pytest.mark.parametrize(("seconds", "verdict"), [(4799, Verdict.PASS), (4801, Verdict.FAIL)])
def test_evaluation_time(tmp_path: Path, seconds: float, verdict: Verdict) -> None:
    """All of the evaluation is on the clock, with what lies before its first phase and in any of them."""
    book = Book(tmp_path)
    with book.stage("evaluate") as (rank,):
        rank.wait(seconds - 100)
        rank.phase("hints are computed", 100)
        rank.score_all()
    ruling = EVAL_TIME(book.evidence())
    assert (ruling.verdict, classes(ruling)) == (verdict, {"eval-overrun"} if verdict is Verdict.FAIL else set())


def test_a_clock_that_runs_backwards(tmp_path: Path) -> None:
    """Records that are older than the one before them prove no time."""

    def act(rank: Rank) -> None:
        trains(10)(rank)
        rank.wait(-5)
        rank.state()

    assert classes(timed(tmp_path, act)) == {"clock-fell"}
