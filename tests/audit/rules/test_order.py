"""C3: every way in which validation can reach a step too early, and the honest run beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from audit.evidence import Contents, Mismatch, Replay
from audit.rules.once import c4
from audit.rules.order import c3
from audit.verdicts import Ruling, Verdict
from tests.audit import ledgers
from tests.audit.ledgers import LENGTH, TARGETS, Book, Rank, claims, classes, evaluate, honest, quantize, train


def alone(folder: Path, act: Any, **changes: Any) -> Ruling:
    """C3 on one stage in which a rank trains, does something, and scores everything."""
    return c3(ledgers.alone(folder, act, **changes))


def test_an_honest_run_passes(tmp_path: Path) -> None:
    """Training data in steps and Hessians, one pass over validation: a PASS that says how much was looked at."""
    ruling = c3(honest(tmp_path).evidence())
    assert ruling.verdict is Verdict.PASS
    assert not ruling.findings
    assert (ruling.reach["steps"], ruling.reach["calibrations"], ruling.reach["validation_rows"]) == (4, 1, 0)
    said = "4 steps and 1 calibration on 5 draws, none of them on validation"
    assert ruling.summary == f"{said}; no loader was run again"
    for reason in ("", "there was no recipe"):
        replayed = Replay(steps=4, draws=5, mismatches=(), reason=reason)
        summary = c3(honest(tmp_path / f"again{reason}").evidence(replay=replayed)).summary
        assert summary == said + (f"; no loader was run again: {reason}" if reason else "")


def test_nothing_is_no_pass(tmp_path: Path) -> None:
    """No ledger, no draw, no step, no score, no model: each leaves C3 unproven and is named."""
    assert classes(c3(Book(tmp_path).evidence())) == {"no-ledger"}
    book = Book(tmp_path)
    with book.stage():
        pass
    ruling = c3(book.evidence())
    assert ruling.verdict is Verdict.UNPROVEN
    assert classes(ruling) == {"nothing-drawn", "nothing-trained", "nothing-scored", "no-model"}


def test_a_step_before_the_score(tmp_path: Path) -> None:
    """A validation row in a step before its score fails, with step, shard, tokens, and where it is scored."""
    ruling = alone(tmp_path, lambda rank: rank.learn("val", [0, 16]))
    assert ruling.verdict is Verdict.FAIL
    witness = ruling.witness
    assert witness["class"] == "trained-before-scored"
    assert (witness["step"], witness["shard"], witness["tokens"], witness["first_target"]) == (1, 0, [0, LENGTH], 0)
    assert witness["targets"] == 2 * LENGTH
    assert witness["scored_in"]["record"] > witness["record"]
    never = Book(tmp_path / "never")
    with never.stage() as (rank,):
        rank.learn("val", [8])
    assert c3(never.evidence()).witness["scored_in"] == "never"


def test_a_violation_is_told_once(tmp_path: Path) -> None:
    """A step on validation whose very rows are scored afterwards is one record of one class."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        draw = rank.draw("val", [0])
        rank.forward(draw)
        rank.step([draw])
        rank.sneak(rank.sums[draw], grad=False)
        rank.scored([(0, 8, 12.0, 24)], rank.sums[draw])
    (seen,) = c3(book.evidence()).witness["seen"]
    assert (seen["class"], seen["records"], seen["targets"]) == ("trained-before-scored", 1, LENGTH)


def test_score_first_is_legal_to_the_token(tmp_path: Path) -> None:
    """A row is learned after its score: PASS; a row one token further on, whose last target is not scored: FAIL."""
    for shift, verdict in ((0, Verdict.PASS), (1, Verdict.FAIL)):
        book = Book(tmp_path / str(shift))
        with book.stage() as (rank,):
            rank.score([(0, 8)])
            rank.learn("val", [shift])
            rank.score([(8, 16)])
        ruling = c3(book.evidence())
        assert ruling.verdict is verdict
        if shift:
            assert (ruling.witness["targets"], ruling.witness["first_target"]) == (1, 8)


def test_a_score_that_does_not_count_permits_nothing(tmp_path: Path) -> None:
    """Looking at the loss of a row in passing is no score that fixes it."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.score([(0, 8)], label="look", counted=False)
        rank.learn("val", [0])
        rank.score_all()
    assert classes(c3(book.evidence())) == {"trained-before-scored"}


def test_the_place_in_the_second_shard(tmp_path: Path) -> None:
    """Rows of a later shard are found in the stream, and named by their shard in the witness."""
    book = Book(tmp_path, shards=(33, TARGETS + 1 - 33))
    with book.stage() as (rank,):
        rank.score([(first, first + 8) for first in range(0, 40, 8)])
        rank.learn("val", [0], shard=1)
    ruling = c3(book.evidence())
    assert ruling.witness["shard"] == 1
    assert (ruling.witness["tokens"], ruling.witness["first_target"]) == ([0, 8], 40)


def test_hessians_of_validation(tmp_path: Path) -> None:
    """Calibration on validation rows fails by its own class; on rows that are scored already it does not."""
    assert classes(alone(tmp_path / "val", lambda rank: rank.calibrate("val", [0]))) == {"calibrated-on-validation"}

    def late(rank: Rank) -> None:
        rank.score([(0, 8)], label="first")
        rank.calibrate("val", [0])

    assert alone(tmp_path / "late", late).verdict is Verdict.PASS


def test_a_calibration_may_be_announced_first(tmp_path: Path) -> None:
    """Its draws enter the model before or after it is announced, but at some time they must."""
    for enters in (True, False):

        def act(rank: Rank, enters: bool = enters) -> None:
            draw = rank.draw("train", [0])
            rank.write("calibration", [draw], collectives=0)
            if enters:
                rank.forward(draw, grad=False)

        assert classes(alone(tmp_path / str(enters), act)) == (set() if enters else {"draw-not-entered"})


def test_every_violation_shows_by_itself(tmp_path: Path) -> None:
    """A fit before quantization, Hessians of validation and chunks learned too early are three findings of one run."""
    book = Book(tmp_path)
    train(book)
    with book.stage("quantize") as (rank,):
        rank.model()
        rank.phase("fit", 5)
        rank.learn("val", [0, 8])
        rank.learn("val", [16, 24])
        rank.calibrate("val", [32])
    with book.stage("evaluate") as (rank,):
        rank.model()
        rank.score([(0, 8)])
        rank.learn("val", [8])
        rank.score([(first, first + 8) for first in range(8, TARGETS, 8)])
    ruling = c3(book.evidence())
    seen = {(one["class"], one["stage"]): one for one in ruling.witness["seen"]}
    assert set(seen) == {
        ("trained-before-scored", "quantize"),
        ("trained-before-scored", "evaluate"),
        ("calibrated-on-validation", "quantize"),
    }
    assert seen["trained-before-scored", "quantize"]["records"] == 2
    assert seen["trained-before-scored", "quantize"]["targets"] == 4 * LENGTH
    assert (ruling.witness["stage"], ruling.witness["class"]) == ("quantize", "trained-before-scored")


def test_a_list_that_leaves_out_a_draw(tmp_path: Path) -> None:
    """A validation draw that enters under gradients goes into the next step, whatever that lists."""

    def act(grad: bool) -> Any:
        def doing(rank: Rank) -> None:
            rank.forward(rank.draw("val", [0]), grad=grad)
            rank.learn("train", [8])

        return doing

    assert classes(alone(tmp_path / "grad", act(True))) == {"unlisted-validation-tokens"}
    assert alone(tmp_path / "none", act(False)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("reason", "expected"),
    [("prequant", ("C3",)), ("calibration=val", ("C3",)), ("rescore", ("C4",)), ("something new", ("C3",))],
)
def test_what_a_run_says_against_itself(tmp_path: Path, reason: str, expected: tuple[str, ...]) -> None:
    """A run that calls itself contaminated, under a ledger that shows nothing of it, is not proven to be clean."""
    evidence = honest(tmp_path).evidence(claims=claims(contaminated=(reason,)))
    for rule in (c3, c4):
        ruling = rule(evidence)
        assert classes(ruling) == ({"declared-contaminated"} if ruling.id in expected else set())
        assert (ruling.verdict is Verdict.PASS) == (ruling.id not in expected)


def test_records_that_are_not_what_the_data_say(tmp_path: Path) -> None:
    """A draw with validation text under another name, one with other rows, a forged score: each fails by its class."""
    for split, kind, found_in, expected in (
        ("train", "draw", {"split": "val"}, "validation-tokens-labelled-train"),
        ("train", "draw", {}, "forged-draw"),
        ("val", "draw", {"split": "val"}, "forged-draw"),
        ("val", "score", {}, "forged-score"),
    ):
        wrong = Mismatch(stage="0", rank=0, at=2, split=split, detail="other rows", found_in=found_in, kind=kind)
        contents = Contents(drawn=2, checked=2, escape=0.0, mismatches=(wrong,))
        ruling = alone(tmp_path / expected / split, lambda rank: None, contents=contents)
        assert (ruling.verdict, classes(ruling)) == (Verdict.FAIL, {expected})


def test_hessians_of_text_that_is_not_the_models_own(tmp_path: Path) -> None:
    """A draw that calls itself `self` and is validation text counts as calibration on validation."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.learn("train", [0])
        at = rank.records
        rank.calibrate("self", [0])
        rank.score_all()
    wrong = Mismatch(stage="0", rank=0, at=at, split="self", detail="validation text", found_in={"split": "val"})
    contents = Contents(drawn=2, checked=2, escape=0.0, mismatches=(wrong,))
    assert "calibrated-on-validation" in classes(c3(book.evidence(contents=contents)))
    unread = Contents(drawn=2, checked=2, escape=0.0, mismatches=(), unread=("self",))
    ruling = c3(book.evidence(contents=unread))
    assert (ruling.verdict, classes(ruling)) == (Verdict.UNPROVEN, {"unread-tokens"})
    assert c3(book.evidence()).verdict is Verdict.PASS


def test_labels_alone_prove_nothing(tmp_path: Path) -> None:
    """Draws whose contents were not read again leave C3 unproven; a sample passes and says what it may miss."""
    book = honest(tmp_path)
    assert classes(c3(book.evidence(contents=None))) == {"contents-unread"}
    sample = Contents(drawn=100, checked=10, escape=0.9, mismatches=())
    ruling = c3(book.evidence(contents=sample))
    assert (ruling.verdict, ruling.reach["contents"]["escape"]) == (Verdict.PASS, 0.9)


def test_the_loader_draws_otherwise(tmp_path: Path) -> None:
    """A ledger that the trainer's loader contradicts fails; a loader that could not be run is told and no more."""
    book = honest(tmp_path)
    wrong = Mismatch(stage="train", rank=0, at=9, split="train", detail="draw 3 has other rows")
    assert classes(c3(book.evidence(replay=Replay(steps=4, draws=4, mismatches=(wrong,))))) == {"replay-differs"}
    ruling = c3(book.evidence(replay=Replay(steps=0, draws=0, mismatches=(), reason="another program")))
    assert (ruling.verdict, ruling.reach["replay"]) == (Verdict.PASS, {"not_done": "another program"})


def test_a_run_with_an_unknown_past(tmp_path: Path) -> None:
    """Resumed from a checkpoint, stages missing before, unsealed, or a recorder that failed: not proven, and said."""
    resumed = Book(tmp_path / "resumed")
    with resumed.stage() as (rank,):
        rank.weights("resumed")
        rank.learn("train", [0])
        rank.score_all()
    assert classes(c3(resumed.evidence())) == {"resumed"}
    later = Book(tmp_path / "later")
    with later.stage(previous=b"p" * 32) as (rank,):
        rank.learn("train", [0])
        rank.score_all()
    assert classes(c3(later.evidence())) == {"history-missing"}
    killed = Book(tmp_path / "killed")
    with killed.stage(sealed=False) as (rank,):
        rank.learn("train", [0])
        rank.score_all()
    assert classes(c3(killed.evidence())) == {"unsealed"}
    blind = alone(tmp_path / "blind", lambda rank: rank.note("recorder", {"what": "forward"}))
    assert (blind.verdict, classes(blind)) == (Verdict.UNPROVEN, {"recorder-failed"})


def test_what_changed_while_it_ran(tmp_path: Path) -> None:
    """Recipe, sources or data that differ between start and end leave C3 unproven, and so do sources of two stages."""
    for name in ("recipe", "sources", "data"):
        book = Book(tmp_path / name)
        train(book, end={name: "sha256:x"})
        quantize(book)
        evaluate(book)
        ruling = c3(book.evidence())
        assert (ruling.verdict, classes(ruling)) == (Verdict.UNPROVEN, {"changed-while-running"})
        assert (ruling.witness["what"], ruling.witness["found"]) == (name, "sha256:x")
    between = Book(tmp_path / "between")
    train(between)
    with between.stage("evaluate", end={"recipe": "sha256:r"}) as (rank,):
        rank.score_all()
    assert c3(between.evidence()).verdict is Verdict.PASS


def test_a_stage_that_does_not_say_what_it_is_made_from(tmp_path: Path) -> None:
    """A named stage must say its digests at its start and its end; a program without stages need not."""
    book = honest(tmp_path)
    with book.stage("evaluate", sealed=False):
        pass
    assert classes(c3(book.evidence())) == {"no-identity", "unsealed"}


def test_validation_without_shards(tmp_path: Path) -> None:
    """Without the validation shards nothing can be placed, and nothing is proven."""
    ruling = c3(honest(tmp_path).evidence(streams={}))
    assert (ruling.verdict, classes(ruling)) == (Verdict.UNPROVEN, {"no-data"})
    assert "no-place" in classes(alone(tmp_path / "val", lambda rank: rank.learn("val", [0]), streams={}))


def test_ranks_follow_each_other_by_collectives(tmp_path: Path) -> None:
    """Another rank's score precedes a step only if a collective lies between; a clock that says so proves nothing."""
    for between, verdict in ((True, Verdict.PASS), (False, Verdict.FAIL)):
        book = Book(tmp_path / str(between))
        with book.stage(ranks=2) as (first, second):
            first.score_all()
            second.collectives = int(between)
            second.wait(100)
            second.learn("val", [0])
        assert c3(book.evidence()).verdict is verdict


def test_the_witness_names_the_first_of_two_scores(tmp_path: Path) -> None:
    """Of a target that two ranks score too late, the score of the smaller count is the first."""
    book = Book(tmp_path)
    with book.stage(ranks=2) as (first, second):
        first.learn("val", [0])
        for rank, count in ((first, 5), (second, 2)):
            rank.collectives = count
            rank.score([(0, 8)])
    assert c3(book.evidence()).witness["scored_in"]["rank"] == 1


def test_scores_by_content_end_no_count(tmp_path: Path) -> None:
    """A score that carries no counter leaves the order of ranks as it is."""
    book = Book(tmp_path)
    with book.stage(ranks=2) as (first, second):
        first.collectives = second.collectives = 3
        first.score([(0, 8)])
        second.learn("train", [0])
        second.scored([(0, 7, 0.0, 0)], 5, length=0)
        second.learn("val", [0])
    assert "trained-before-scored" in classes(c3(book.evidence()))


def test_a_counter_that_falls(tmp_path: Path) -> None:
    """A rank whose counter of collectives goes back can't be ordered."""

    def act(rank: Rank) -> None:
        rank.collectives = 5
        rank.learn("train", [0])
        rank.collectives = 4
        rank.learn("train", [0])

    assert "counter-fell" in classes(alone(tmp_path, act))


def test_stages_follow_each_other(tmp_path: Path) -> None:
    """What a stage scored is scored for every rank of the next one."""
    book = Book(tmp_path)
    with book.stage(ranks=2) as (first, second):
        first.learn("train", [0])
        second.score_all()
    with book.stage() as (rank,):
        rank.learn("val", [0, 8])
    assert c3(book.evidence()).verdict is Verdict.PASS
    quantize(book)


@pytest.mark.parametrize(("split", "scored"), [("val", False), ("val", True), ("train", False), ("train", True)])
def test_rows_known_by_their_content(tmp_path: Path, split: str, scored: bool) -> None:
    """The hash of a row decides, not its label: a row that is ever scored must be scored before it is learned."""
    book, hashes = Book(tmp_path), [2**63 + 5, 77]
    with book.stage() as (rank,):
        test = rank.draw("val", hashes, content=True)
        if scored:
            rank.scored([(one >> 32, one & 0xFFFFFFFF, 0.0, 0) for one in hashes], rank.sums[test], length=0)
        draw = rank.draw(split, [hashes[1], 12], content=True)
        rank.forward(draw)
        rank.step([draw])
        other = rank.draw("train", [99], content=True)
        rank.forward(other)
        rank.step([other])
        if not scored:
            rank.scored([(one >> 32, one & 0xFFFFFFFF, 0.0, 0) for one in hashes], rank.sums[test], length=0)
    ruling = c3(book.evidence(contents=None, streams={}))
    if scored and split == "train":
        assert ruling.verdict is Verdict.PASS
        return
    assert classes(ruling) == {"trained-before-scored"}
    assert ruling.witness["rows"] == {("val", False): 2, ("val", True): 1, ("train", False): 1}[split, scored]
