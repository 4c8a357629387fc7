"""C4, COVERAGE and BYTES: what is counted, how often, and whether the sums are true."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from audit.evidence import ClaimedScore, Evidence, Identity, Mismatch, Stream
from audit.rules.bytecount import bytecount
from audit.rules.coverage import coverage
from audit.rules.once import c4
from audit.verdicts import Verdict
from tests.audit.ledgers import BYTES, DIGEST, LENGTH, NATS, TARGETS, Book, Rank, claims, classes, honest


def scored(folder: Path, act: Any, **evidence: Any) -> Evidence:
    """One stage of one rank that only scores."""
    book = Book(folder)
    with book.stage() as (rank,):
        act(rank)
    return book.evidence(**evidence)


def test_an_honest_run_passes_all_three(tmp_path: Path) -> None:
    """One pass that counts, beside one that does not, is PASS of C4, COVERAGE and BYTES."""
    evidence = honest(tmp_path).evidence()
    for rule in (c4, coverage, bytecount):
        assert (rule(evidence).verdict, classes(rule(evidence))) == (Verdict.PASS, set())


def test_nothing_scored_is_no_pass(tmp_path: Path) -> None:
    """A run that counts no score, or whose scores can't be placed, is not proven in any of the three."""
    look = scored(tmp_path / "look", lambda rank: rank.score_all(counted=False), claims=None)
    blind = scored(tmp_path / "blind", lambda rank: rank.score_all(), streams={})
    for rule in (c4, coverage, bytecount):
        assert (rule(look).verdict, classes(rule(look))) == (Verdict.UNPROVEN, {"nothing-scored"})
        assert rule(blind).verdict is Verdict.UNPROVEN
        assert "no-data" in classes(rule(blind))


def test_a_target_twice_in_one_total(tmp_path: Path) -> None:
    """An overlap of one target between two windows of a total is enough, and it is named."""

    def act(rank: Rank) -> None:
        rank.score([(0, 8)])
        rank.score([(7, 12)])

    ruling = c4(scored(tmp_path, act))
    assert (ruling.verdict, ruling.witness["class"]) == (Verdict.FAIL, "scored-twice")
    assert (ruling.witness["first_target"], ruling.witness["targets"]) == (7, 1)
    assert ruling.witness["scored_in"]["record"] == 1


def test_twice_within_one_record(tmp_path: Path) -> None:
    """Two windows of one record that overlap count as well."""
    assert classes(c4(scored(tmp_path, lambda rank: rank.score([(0, 8), (4, 12)])))) == {"scored-twice"}


@pytest.mark.parametrize(
    ("second", "counted", "step", "expected"),
    [
        ("rescore", True, True, {"rescored-after-update"}),
        ("sliding", True, True, {"rescored-after-update"}),
        ("rescore", True, False, {"scored-again-unchanged"}),
        ("rescore", False, True, set()),
    ],
)
def test_a_second_pass(tmp_path: Path, second: str, counted: bool, step: bool, expected: set[str]) -> None:
    """After an update a second counted pass fails under any label; with the same weights it is only told."""

    def act(rank: Rank) -> None:
        rank.score_all()
        if step:
            rank.learn("val", [0])
        rank.score_all(second, counted=counted)

    ruling = c4(scored(tmp_path, act))
    assert classes(ruling) == expected
    assert (ruling.verdict is Verdict.FAIL) == ("rescored-after-update" in expected)


def test_the_step_must_lie_between(tmp_path: Path) -> None:
    """Adaptation of what was scored, with what was not yet scored after it, replaces no score."""

    def act(rank: Rank) -> None:
        for first in range(0, TARGETS, LENGTH):
            rank.score([(first, first + LENGTH)])
            rank.learn("val", [first])

    assert c4(scored(tmp_path, act)).verdict is Verdict.PASS


def test_a_step_of_another_rank_lies_between(tmp_path: Path) -> None:
    """Score, a step of any rank at a later count, a score at a still later one: replaced. At one count: unknown."""
    for counts, replaced in (((0, 1, 2), True), ((0, 0, 0), False), ((0, 1, 1), False), ((1, 1, 2), False)):
        book = Book(tmp_path / str(counts))
        with book.stage(ranks=3) as (first, second, third):
            first.collectives, second.collectives, third.collectives = counts
            first.score([(0, 8)])
            second.learn("train", [0])
            third.score([(0, 8)], label="rescore")
        assert ("rescored-after-update" in classes(c4(book.evidence()))) == replaced


def test_ranks_that_share_a_total(tmp_path: Path) -> None:
    """Two ranks that score the same window for one total are found, though neither knows of the other."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.score([(0, 8)])
    with book.stage(ranks=2) as ranks:
        for rank in ranks:
            rank.score([(8, 16)])
    assert classes(c4(book.evidence())) == {"scored-twice"}


def test_a_score_of_rows_that_entered_no_model(tmp_path: Path) -> None:
    """A counted score whose tokens did not enter the model before it is not proven to be one."""
    evidence = scored(tmp_path, lambda rank: rank.score([(0, 8)], entered=False))
    assert (c4(evidence).verdict, classes(c4(evidence))) == (Verdict.UNPROVEN, {"score-without-forward"})


def test_forged_scores(tmp_path: Path) -> None:
    """A score record whose content is not what the data say fails C4."""
    wrong = Mismatch(stage="evaluate", rank=0, at=3, split="val", detail="other rows", kind="score")
    book = honest(tmp_path)
    contents = book.evidence().contents
    assert contents is not None
    forged = type(contents)(drawn=1, checked=1, escape=0.0, mismatches=(wrong,))
    assert classes(c4(book.evidence(contents=forged))) == {"forged-score"}


def test_more_totals_than_are_kept(tmp_path: Path) -> None:
    """Labels without end cost no memory: what is beyond the limit is not proven."""

    def act(rank: Rank) -> None:
        for number in range(20):
            rank.score([(0, 8)], label=f"total {number}")

    assert "too-many-totals" in classes(c4(scored(tmp_path, act)))


@pytest.mark.parametrize(
    ("last", "verdict"),
    [(TARGETS, Verdict.PASS), (TARGETS - LENGTH + 1, Verdict.PASS), (TARGETS - LENGTH, Verdict.FAIL)],
)
def test_the_whole_split(tmp_path: Path, last: int, verdict: Verdict) -> None:
    """A tail that is shorter than a window may stay out, one as long as a window may not."""

    def act(rank: Rank) -> None:
        for first in range(0, last, LENGTH):
            stop = min(first + LENGTH, last)
            rank.score([(first, stop)])
        rank.total(targets=last)

    ruling = coverage(scored(tmp_path, act, claims=None))
    assert ruling.verdict is verdict
    if verdict is Verdict.FAIL:
        assert (ruling.witness["class"], ruling.witness["first_target"]) == ("targets-not-scored", last)


def test_a_hole_is_no_tail(tmp_path: Path) -> None:
    """One target missing in the middle fails, though a longer tail may be missing."""

    def act(rank: Rank) -> None:
        rank.score([(0, 8), (9, 17)] + [(first, min(first + 8, TARGETS)) for first in range(17, TARGETS, 8)])
        rank.total(targets=TARGETS - 1)

    ruling = coverage(scored(tmp_path, act, claims=None))
    assert (ruling.witness["class"], ruling.witness["first_target"]) == ("targets-not-scored", 8)


def test_two_totals_of_the_same_weights(tmp_path: Path) -> None:
    """Each covers the split for itself, and COVERAGE passes; C4 tells of the second one."""

    def act(rank: Rank) -> None:
        for label in ("sequential", "sliding"):
            rank.score_all(label)
            rank.total(label)

    evidence = scored(tmp_path, act)
    assert (coverage(evidence).verdict, classes(coverage(evidence))) == (Verdict.PASS, set())
    assert (c4(evidence).verdict, classes(c4(evidence))) == (Verdict.PASS, {"scored-again-unchanged"})


def test_every_total_covers_the_split(tmp_path: Path) -> None:
    """A total of a part beside one of the whole is a total of a part."""

    def act(rank: Rank) -> None:
        rank.score_all()
        rank.total()
        rank.score([(0, 8)], label="quick")

    assert classes(coverage(scored(tmp_path, act))) == {"targets-not-scored"}


@pytest.mark.parametrize(
    ("window", "expected"),
    [((60, 8), "beyond-the-split"), ((0, 9), "impossible-window"), ((0, 4), "impossible-window")],
)
def test_windows_that_can_not_be(tmp_path: Path, window: tuple[int, int], expected: str) -> None:
    """Windows beyond the end, that score more than they read, or that begin before the stream, fail."""

    def act(rank: Rank) -> None:
        rank.sneak(5, grad=False)
        begin, count = window
        rank.scored([(begin, count, 1.0, BYTES * count)], 5)

    assert expected in classes(coverage(scored(tmp_path, act)))


@pytest.mark.parametrize("nats", [-1.0, math.nan, math.inf])
def test_losses_that_can_not_be(tmp_path: Path, nats: float) -> None:
    """A negative or no finite loss fails."""
    assert "impossible-loss" in classes(coverage(scored(tmp_path, lambda rank: rank.score([(0, 8)], nats=nats))))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, set()),
        ({"nats": NATS * TARGETS * 0.97}, {"total-differs"}),
        ({"nats": "few"}, {"total-differs"}),
        ({"nats": 10**400}, {"total-differs"}),
        ({"label": "other"}, {"reported-score-not-counted"}),
    ],
)
def test_what_is_announced(tmp_path: Path, told: dict[str, Any], expected: set[str]) -> None:
    """The total that a stage announces is that of the windows that it counted, or COVERAGE fails."""

    def act(rank: Rank) -> None:
        rank.score_all()
        rank.total(**told)

    assert classes(coverage(scored(tmp_path, act))) == expected


def test_what_is_reported(tmp_path: Path) -> None:
    """Sums in the reports must be those of the windows; a headline that is not counted fails; no sum is not proven."""
    book = honest(tmp_path)
    good = claims().scores["sliding"]
    better = ClaimedScore(nats=good.nats * 0.9, targets=good.targets, bytes=good.bytes, bpb=good.bpb * 0.9)
    assert classes(coverage(book.evidence(claims=claims(scores={"sliding": better})))) == {"total-differs"}
    headline = claims(headline="sequential")
    assert classes(coverage(book.evidence(claims=headline))) == {"reported-score-not-counted"}
    silent = scored(tmp_path / "silent", lambda rank: rank.score_all(), claims=None)
    for rule in (coverage, bytecount):
        assert (rule(silent).verdict, classes(rule(silent))) == (Verdict.UNPROVEN, {"no-total"})


def test_the_official_split(tmp_path: Path) -> None:
    """A run that names the official corpus must score a split with its published counts."""
    book = Book(tmp_path)
    with book.stage("evaluate", corpus="fineweb") as (rank,):
        rank.score_all()
        rank.total()
    known = Identity(digest=DIGEST, published="sp8192")
    other = Identity(digest=DIGEST, published_differences=("tokens is 65, published 40,540,802",))
    assert coverage(book.evidence(identity=known)).verdict is Verdict.PASS
    assert classes(coverage(book.evidence(identity=other))) == {"split-differs"}
    assert coverage(honest(tmp_path / "own").evidence(identity=other)).verdict is Verdict.PASS


def test_bytes_are_counted_again(tmp_path: Path) -> None:
    """A window that claims one byte more than its tokens have fails, and window and counts are named."""

    def act(rank: Rank) -> None:
        rank.sneak(5, grad=False)
        rank.scored([(0, 8, 1.0, 24), (8, 8, 1.0, 25)], 5)

    witness = bytecount(scored(tmp_path, act)).witness
    assert (witness["class"], witness["first_target"]) == ("bytes-differ", 8)
    assert (witness["claimed"], witness["counted"]) == (25, 24)


def test_bytes_in_the_reports(tmp_path: Path) -> None:
    """Another sum of bytes, or bits per byte that do not follow from the sums, fail; no tokenizer is not proven."""
    book = honest(tmp_path)
    good = claims().scores["sliding"]
    for score, expected in (
        (ClaimedScore(nats=good.nats, targets=good.targets, bytes=good.bytes + 1, bpb=good.bpb), "bytes-differ"),
        (ClaimedScore(nats=good.nats, targets=good.targets, bytes=good.bytes, bpb=good.bpb * 0.999), "bpb-differs"),
    ):
        assert expected in classes(bytecount(book.evidence(claims=claims(scores={"sliding": score}))))
    blind = book.evidence(streams={"val": Stream(shards=(TARGETS + 1,))})
    assert (bytecount(blind).verdict, classes(bytecount(blind))) == (Verdict.UNPROVEN, {"no-tokenizer"})


def test_announced_bytes(tmp_path: Path) -> None:
    """The bytes of the total that a stage announces are those of its windows."""

    def act(rank: Rank) -> None:
        rank.score_all()
        rank.total(bytes=BYTES * TARGETS - 1)

    assert classes(bytecount(scored(tmp_path, act))) == {"bytes-differ"}


def test_rows_known_by_content_are_never_covered(tmp_path: Path) -> None:
    """Rows without a place in a stream leave the three rules unproven, also when equal rows are counted again."""

    def act(rank: Rank) -> None:
        draw = rank.draw("val", [1, 2], content=True)
        rank.forward(draw)
        for _ in range(2):
            rank.scored([(0, 1, 0.0, 0), (0, 2, 0.0, 0)], rank.sums[draw], length=0)

    evidence = scored(tmp_path, act, claims=None)
    assert classes(c4(evidence)) == {"by-content-alone", "rows-counted-again"}
    for rule in (c4, coverage, bytecount):
        assert rule(evidence).verdict is Verdict.UNPROVEN
