"""DATA, SIZE, the clocks, SELF and TRACK: what notes, times and reports say, and the honest run beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from audit.evidence import Artifact, Identity, Overlap
from audit.rules import rulings
from audit.rules.clocks import EVAL_TIME, TRAIN_TIME
from audit.rules.identity import data
from audit.rules.selfcontained import selfcontained
from audit.rules.size import size
from audit.rules.track import track
from audit.verdicts import Ruling, Verdict
from tests.audit.ledgers import DIGEST, RULESET, Book, Rank, claims, evaluate, honest, quantize, train

NO_OVERLAP = Overlap(share=0.0, documents=0, contiguous=False)


def classes(ruling: Ruling) -> set[str]:
    return {finding.kind for finding in ruling.findings}


def test_every_rule_of_the_rule_set_is_ruled_on(tmp_path: Path) -> None:
    """An honest run passes what a ledger can prove, fails nothing, and says what would prove the rest."""
    found = rulings(honest(tmp_path).evidence())
    assert [ruling.id for ruling in found] == list(RULESET.rules)
    verdicts = {ruling.id: ruling.verdict for ruling in found}
    unproven = {"C1", "C2", "SEEDS", "STAT", "REPRO", "TRACK"}
    assert verdicts == {rule: Verdict.UNPROVEN if rule in unproven else Verdict.PASS for rule in verdicts}
    assert RULESET.rules["C1"].proof in found[0].summary


def test_no_second_is_in_a_ruling(tmp_path: Path) -> None:
    """Two runs that differ in their times alone have equal rulings as JSON; the seconds are in `clock`."""
    ruled = []
    for name, seconds in (("quick", 1.0), ("slow", 77.25)):
        book = Book(tmp_path / name)
        train(book)
        quantize(book)
        with book.stage("evaluate") as (rank,):
            rank.phase("sliding", seconds)
            rank.score_all()
            rank.total()
        ruled.append(rulings(book.evidence()))
    quick, slow = ([ruling.as_dict(required=True) for ruling in found] for found in ruled)
    assert quick == slow
    clocks = [next(ruling.clock for ruling in found if ruling.id == "EVAL-TIME") for found in ruled]
    assert [clock["stages"]["evaluate"]["on"]["sliding"] for clock in clocks] == [1.0, 77.25]


# DATA


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"overlap": NO_OVERLAP}, set()),
        ({"overlap": Overlap(share=0.05, documents=3, contiguous=False)}, set()),
        ({"overlap": Overlap(share=0.05, documents=3, contiguous=True, first=10, stretch=40)}, {"train-val-overlap"}),
        ({"overlap": Overlap(share=0.5, documents=3, contiguous=False)}, {"overlap-high"}),
        ({"overlap": None}, {"overlap-unknown"}),
        ({"overlap": NO_OVERLAP, "differences": ("changed: val_000000.bin",)}, {"manifest-differs"}),
        ({"overlap": NO_OVERLAP, "digest": "sha256:other"}, {"data-digest-differs"}),
    ],
)
def test_data(tmp_path: Path, changes: dict[str, Any], expected: set[str]) -> None:
    """The manifest holds, every digest is that of these data, and no stretch of validation stands in training."""
    ruling = data(honest(tmp_path).evidence(identity=Identity(**{"digest": DIGEST} | changes)))
    assert classes(ruling) == expected
    unproven = expected & {"overlap-high", "overlap-unknown"}
    assert ruling.verdict is (Verdict.PASS if not expected else Verdict.UNPROVEN if unproven else Verdict.FAIL)


def test_published_data(tmp_path: Path) -> None:
    """The official corpus must have its published counts, and no more overlap than is known of it."""
    book = Book(tmp_path)
    with book.stage("train", corpus="fineweb") as (rank,):
        rank.learn("train", [0])
    some = Overlap(share=0.05, documents=3, contiguous=False)
    for changes, expected in (
        ({"published": "sp8192", "published_overlap": 0.06}, set()),
        ({"published": "sp8192", "published_overlap": 0.01}, {"overlap-above-known"}),
        ({"published": "sp8192", "published_overlap": None}, set()),
        ({"published_differences": ("tokens is 5, published 40,540,802",)}, {"published-counts-differ"}),
    ):
        identity = Identity(digest=DIGEST, overlap=some, **changes)
        assert classes(data(book.evidence(identity=identity, claims=None))) == expected


def test_data_that_nobody_looked_at(tmp_path: Path) -> None:
    """Without a manifest DATA is not proven; a run that changed its data while it ran is not either."""
    book = Book(tmp_path)
    train(book, end={"data": "sha256:x"})
    assert "manifest-unchecked" in classes(data(book.evidence(identity=None)))
    assert "changed-while-running" in classes(data(book.evidence()))


# SIZE


@pytest.mark.parametrize(
    ("changes", "verdict", "expected"),
    [
        ({}, Verdict.PASS, set()),
        ({"claims": claims(code_bytes=15_999_000)}, Verdict.PASS, set()),
        ({"claims": claims(code_bytes=15_999_001)}, Verdict.FAIL, {"artifact-over-cap"}),
        ({"claims": claims(code_bytes=None)}, Verdict.UNPROVEN, {"code-uncounted"}),
        ({"claims": claims(model_bytes=999)}, Verdict.FAIL, {"artifact-differs"}),
        ({"artifact": None}, Verdict.UNPROVEN, {"no-artifact"}),
        ({"artifact": Artifact(sha256="sha256:b", bytes=1_000)}, Verdict.FAIL, {"artifact-differs"}),
        ({"artifact": Artifact(sha256="sha256:a", bytes=1_001)}, Verdict.FAIL, {"artifact-differs"}),
    ],
)
def test_size(tmp_path: Path, changes: dict[str, Any], verdict: Verdict, expected: set[str]) -> None:
    """Counted model and claimed code stay under the limit, to the byte, and all name the same artifact."""
    ruling = size(honest(tmp_path).evidence(**changes))
    assert (ruling.verdict, classes(ruling)) == (verdict, expected)


def test_an_artifact_that_no_ledger_names(tmp_path: Path) -> None:
    """A file that no stage announced, or that another one sealed, is not the run's."""
    book = Book(tmp_path / "none")
    train(book)
    assert classes(size(book.evidence())) == {"artifact-unannounced"}
    other = Book(tmp_path / "other")
    with other.stage("quantize", artifact="sha256:other") as (rank,):
        rank.note("artifact", {"sha256": "sha256:a", "bytes": 1_000})
    assert classes(size(other.evidence())) == {"artifact-differs"}


# Clocks


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


# SELF


@pytest.mark.parametrize(
    ("note", "facts", "clock", "verdict", "expected"),
    [
        ("open", {"kind": "shard", "name": "val_000000.bin"}, {}, Verdict.PASS, set()),
        (
            "open",
            {"kind": "shard", "name": "fineweb_train_000003.bin"},
            {},
            Verdict.FAIL,
            {"training-data-at-evaluation"},
        ),
        ("open", {"kind": "shard", "name": "mystery.bin"}, {}, Verdict.UNPROVEN, {"unknown-shard"}),
        ("socket", {"event": "connect", "loopback": True}, {}, Verdict.PASS, set()),
        ("socket", {"event": "connect", "loopback": False}, {}, Verdict.FAIL, {"network-at-evaluation"}),
        ("subprocess", {"executable": "lrzip"}, {}, Verdict.PASS, {"accepted-program"}),
        ("subprocess", {"executable": "curl"}, {}, Verdict.UNPROVEN, {"program-at-evaluation"}),
        (
            "subprocess",
            {"executable": "python3"},
            {"arguments": "['python3', 'x/torch/_inductor/compile_worker/__main__.py']"},
            Verdict.PASS,
            {"accepted-program"},
        ),
        ("subprocess", {"executable": "python3"}, {}, Verdict.UNPROVEN, {"program-at-evaluation"}),
        ("fork", {"event": "os.fork"}, {}, Verdict.UNPROVEN, {"fork-at-evaluation"}),
    ],
)
def test_what_evaluation_reaches(
    tmp_path: Path, note: str, facts: dict[str, Any], clock: dict[str, Any], verdict: Verdict, expected: set[str]
) -> None:
    """No training shard and no network in evaluation; programs only where the rule set knows them."""
    for stage in ("evaluate", "quantize"):
        book = Book(tmp_path / stage)
        train(book)
        if stage == "quantize":  # after the artifact is sealed, this stage counts as well
            with book.stage("quantize") as (rank,):
                rank.note("artifact", {"sha256": "sha256:a", "bytes": 1_000})
                rank.note(note, facts, clock)
            evaluate(book)
        else:
            quantize(book)
            with book.stage("evaluate") as (rank,):
                rank.note(note, facts, clock)
        ruling = selfcontained(book.evidence())
        assert (ruling.verdict, classes(ruling)) == (verdict, expected)


def test_before_the_artifact_all_is_allowed(tmp_path: Path) -> None:
    """Training reads training shards and the network as it likes; a run without an evaluation is not proven."""
    book = Book(tmp_path)
    with book.stage("train") as (rank,):
        rank.note("open", {"kind": "shard", "name": "train_000000.bin"})
        rank.note("socket", {"event": "connect", "loopback": False})
    assert classes(selfcontained(book.evidence())) == {"no-evaluation"}
    evaluate(book)
    assert selfcontained(book.evidence()).verdict is Verdict.PASS


def test_before_the_seal_of_its_stage_all_is_allowed(tmp_path: Path) -> None:
    """What the quantizer opens before it seals the artifact is no evaluation."""
    book = Book(tmp_path)
    with book.stage("quantize") as (rank,):
        rank.note("open", {"kind": "shard", "name": "train_000000.bin"})
        rank.note("artifact", {"sha256": "sha256:a", "bytes": 1_000})
    evaluate(book)
    assert selfcontained(book.evidence()).verdict is Verdict.PASS


def test_training_rows_in_evaluation(tmp_path: Path) -> None:
    """Training sequences that are handed out in evaluation fail, wherever they were read from."""
    book = Book(tmp_path)
    with book.stage("evaluate") as (rank,):
        rank.phase("sliding", 1)
        rank.draw("train", [0])
    assert classes(selfcontained(book.evidence())) == {"training-data-at-evaluation"}


# TRACK


def test_track(tmp_path: Path) -> None:
    """Claim A with a step while scoring fails; without one it passes; B may adapt; no claim is not proven."""
    fixed, adaptive = honest(tmp_path / "fixed"), Book(tmp_path / "adaptive")
    train(adaptive)
    with adaptive.stage("evaluate") as (rank,):
        rank.score([(0, 8)])
        rank.learn("val", [0])
        rank.score([(first, first + 8) for first in range(8, 64, 8)])
    verdicts = {
        (name, claim): track(book.evidence(claims=claims(track=claim)))
        for name, book in (("fixed", fixed), ("adaptive", adaptive))
        for claim in ("A", "B", "", "C")
    }
    assert {key: ruling.verdict for key, ruling in verdicts.items()} == {
        ("fixed", "A"): Verdict.PASS,
        ("fixed", "B"): Verdict.PASS,
        ("fixed", ""): Verdict.UNPROVEN,
        ("fixed", "C"): Verdict.FAIL,
        ("adaptive", "A"): Verdict.FAIL,
        ("adaptive", "B"): Verdict.PASS,
        ("adaptive", ""): Verdict.UNPROVEN,
        ("adaptive", "C"): Verdict.FAIL,
    }
    assert classes(verdicts["adaptive", "A"]) == {"state-changed", "stepped-while-scoring"}


def test_other_weights_for_other_targets(tmp_path: Path) -> None:
    """A fixed predictor has one state for all targets and totals, also where weights are only swapped."""
    for label in ("sliding", "other"):
        book = Book(tmp_path / label)
        with book.stage("evaluate") as (rank,):
            rank.score([(0, 8)])
            rank.weights("average swapped in")
            rank.score([(8, 16)], label=label)
        ruling = track(book.evidence(claims=claims(track="A")))
        assert (ruling.verdict, classes(ruling)) == (Verdict.FAIL, {"state-changed"})


def test_a_score_that_does_not_count_may_have_other_weights(tmp_path: Path) -> None:
    """The unfitted reference may be scored beside a fixed predictor."""
    book = Book(tmp_path)
    with book.stage("evaluate") as (rank,):
        rank.score_all()
        rank.weights("reference loaded")
        rank.score_all("reference sliding", counted=False)
    assert track(book.evidence(claims=claims(track="A"))).verdict is Verdict.PASS
    silent = dataclasses.replace(claims(track="A"), track="")
    assert classes(track(book.evidence(claims=silent))) == {"no-claim"}
