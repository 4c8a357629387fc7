"""DATA, SIZE, SELF and TRACK: what notes, times and reports say, and the honest run beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from audit.evidence import Artifact, Identity, Overlap
from audit.rules import rulings
from audit.rules.identity import data
from audit.rules.selfcontained import selfcontained
from audit.rules.size import size
from audit.rules.track import track
from audit.verdicts import Verdict
from tests.audit.ledgers import DIGEST, RULESET, Book, claims, classes, evaluate, honest, quantize, train

NO_OVERLAP = Overlap(share=0.0, documents=0, contiguous=False)


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
