"""C3: what enters the model and is not what it is called, or is called nothing."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from audit.evidence import Contents, Located
from audit.rules import handed, tokens
from audit.rules.once import c4
from audit.rules.order import c3
from audit.verdicts import Ruling, Verdict
from tests.audit import ledgers
from tests.audit.ledgers import LENGTH, Book, Rank, classes

STRANGE = (10**12, 10**12 + 1, 10**12 + 2)
"""Checksums of nothing that is drawn or scored."""


def alone(folder: Path, act: Any, **changes: Any) -> Ruling:
    """C3 on one stage in which a rank trains, does something, and scores everything."""
    return c3(ledgers.alone(folder, act, **changes))


def test_draws_that_are_not_there(tmp_path: Path) -> None:
    """A step on a draw that nobody handed out, or that never entered the model, is not proven."""
    assert classes(alone(tmp_path / "1", lambda rank: rank.step([999]))) == {"unknown-draw"}
    assert classes(alone(tmp_path / "2", lambda rank: rank.step([rank.draw("train", [0])]))) == {"draw-not-entered"}


def test_a_forward_belongs_to_one_draw(tmp_path: Path) -> None:
    """Rows that are drawn twice must enter twice: one forward does not stand for two draws."""

    def act(times: int) -> Any:
        def doing(rank: Rank) -> None:
            first = rank.draw("train", [0])
            rank.checksums = itertools.repeat(rank.sums[first])
            second = rank.draw("train", [0])
            rank.checksums = itertools.count(10**6)
            for _ in range(times):
                rank.forward(first)
            rank.step([first, second])

        return doing

    assert classes(alone(tmp_path / "once", act(1))) == {"draw-not-entered"}
    assert alone(tmp_path / "twice", act(2)).verdict is Verdict.PASS


def located(*starts: int, split: str = "val", at: int = 8) -> Contents:
    found = Located(stage="0", rank=0, at=at, split=split, starts=starts, length=LENGTH)
    return Contents(drawn=1, checked=1, escape=0.0, mismatches=(), located=(found,))


def uneven() -> Contents:
    """Two places of one forward that do not have as many rows."""
    one, two = located(0, 8, split="train"), located(0, split="train")
    return dataclasses.replace(one, located=one.located + two.located)


def sneaks(rank: Rank) -> None:
    """Tokens that nobody announced go into a step on training rows."""
    assert rank.records == 7
    draw = rank.draw("train", [0])
    rank.sneak(12345, grad=True)
    rank.forward(draw)
    rank.step([draw])


def test_tokens_of_unknown_origin(tmp_path: Path) -> None:
    """Under gradients: found in validation FAIL, found in training known, found nowhere or in part not proven."""
    for name, contents, expected in (
        ("val", located(0), {"unannounced-validation-tokens"}),
        ("train", located(0, split="train"), set()),
        ("part", located(0, -1, split="train"), {"unknown-tokens"}),
        ("uneven", uneven(), {"unknown-tokens"}),
        ("nowhere", None, {"unknown-tokens"}),
    ):
        changes = {"contents": contents} if contents else {}
        ruling = alone(tmp_path / name, sneaks, **changes)
        assert classes(ruling) == expected
    assert ruling.verdict is Verdict.UNPROVEN


def test_a_scored_row_that_nobody_announced_is_known(tmp_path: Path) -> None:
    """Unannounced tokens that stand in validation and are scored already may be learned from."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.learn("train", [0])
        rank.score_all()
        at = rank.sneak(12345, grad=True)
        rank.step([])
    assert c3(book.evidence(contents=located(8, at=at))).verdict is Verdict.PASS


def test_one_forward_scored_and_learned(tmp_path: Path) -> None:
    """The loss of the forward that is back-propagated may be the score, if it is recorded before the step."""
    for late, verdict in ((False, Verdict.PASS), (True, Verdict.FAIL)):
        book = Book(tmp_path / str(late))
        with book.stage() as (rank,):
            rank.learn("train", [0])
            rank.sneak(777, grad=True)
            if late:
                rank.step([])
            rank.scored([(0, 8, 12.0, 24)], 777)
            rank.step([])
        ruling = c3(book.evidence())
        assert ruling.verdict is verdict
        assert ("trained-before-scored" in classes(ruling)) == late
        assert not classes(c4(book.evidence()))  # it is the score of that forward all the same


def test_a_look_under_gradients_before_a_step(tmp_path: Path) -> None:
    """Validation windows that enter under gradients, are scored without counting, and are followed by a step: FAIL."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.sneak(777, grad=True)
        rank.scored([(0, 8, 12.0, 24)], 777, label="look", counted=False)
        rank.learn("train", [0])
        rank.score_all()
    assert classes(c3(book.evidence())) == {"unannounced-validation-tokens"}


def warm_up(rank: Rank, *, split: str, comes_back: bool) -> None:
    before = rank.parameters
    rank.phase("warm-up", 1)
    draw = rank.draw(split, [0])
    rank.forward(draw)
    rank.step([draw])
    rank.weights("warm-up restored", before if comes_back else before + 5)
    rank.learn("train", [8])


@pytest.mark.parametrize(
    ("split", "comes_back", "expected"),
    [("random", True, set()), ("random", False, {"unread-tokens"}), ("val", True, {"trained-before-scored"})],
)
def test_a_warm_up(tmp_path: Path, split: str, comes_back: bool, expected: set[str]) -> None:
    """On random ids it must leave no trace, to the bit; on validation tokens it is a violation whatever comes back."""
    contents = Contents(drawn=1, checked=1, escape=0.0, mismatches=(), unread=("random",))
    ruling = alone(tmp_path, lambda rank: warm_up(rank, split=split, comes_back=comes_back), contents=contents)
    assert classes(ruling) == expected


@pytest.mark.parametrize("split", ["random", "train"])
def test_validation_windows_under_another_name(tmp_path: Path, split: str) -> None:
    """Rows that a step used as something else are known again when their very windows are scored afterwards."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        before = rank.parameters
        draw = rank.draw(split, [0, 8])
        rank.forward(draw)
        at = rank.step([draw])
        rank.weights("warm-up restored", before)
        rank.sneak(rank.sums[draw], grad=False)
        rank.scored([(0, 8, 12.0, 24), (8, 8, 12.0, 24)], rank.sums[draw])
    ruling = c3(book.evidence())
    assert (ruling.verdict, classes(ruling)) == (Verdict.FAIL, {"trained-before-scored"})
    assert (ruling.witness["step_record"], ruling.witness["first_target"], ruling.witness["targets"]) == (at, 0, 16)


def test_a_step_that_moves_nothing_is_no_warm_up(tmp_path: Path) -> None:
    """Weights that are the same after a step on unknown tokens excuse it only if they are declared to be restored."""
    for declared in (False, True):

        def act(rank: Rank, declared: bool = declared) -> None:
            rank.state()
            rank.sneak(4711, grad=True)
            rank.step([], update=False)
            rank.write("update", optimizer=0, before=rank.parameters, after=rank.parameters)
            if declared:
                rank.weights("warm-up restored", rank.parameters)
            rank.state()

        assert classes(alone(tmp_path / str(declared), act)) == (set() if declared else {"unknown-tokens"})


def test_a_later_step_keeps_what_was_undone_undone(tmp_path: Path) -> None:
    """Unknown tokens before the warm-up stay: weights that come back to what came after them excuse nothing."""

    def act(rank: Rank) -> None:
        rank.sneak(4711, grad=True)
        rank.step([])
        warm_up(rank, split="random", comes_back=True)

    contents = Contents(drawn=1, checked=1, escape=0.0, mismatches=(), unread=("random",))
    assert classes(alone(tmp_path, act, contents=contents)) == {"unknown-tokens", "unread-tokens"}


def test_forwards_without_gradients(tmp_path: Path) -> None:
    """They must be a draw's or be scored afterwards; else nobody knows what they were for."""
    assert classes(alone(tmp_path / "1", lambda rank: rank.sneak(5, grad=False))) == {"unannounced-tokens"}
    looks = alone(tmp_path / "2", lambda rank: rank.score([(0, 8)], label="look", counted=False))
    assert looks.verdict is Verdict.PASS


def test_text_that_the_model_writes(tmp_path: Path) -> None:
    """What enters the model while it writes is explained by the rows that it kept, and by nothing else."""
    contents = Contents(drawn=1, checked=1, escape=0.0, mismatches=(), written=frozenset({41, 42}))

    def act(*checksums: int) -> Any:
        def doing(rank: Rank) -> None:
            for checksum in checksums:
                rank.sneak(checksum, grad=False)

        return doing

    assert alone(tmp_path / "own", act(41, 42), contents=contents).verdict is Verdict.PASS
    assert classes(alone(tmp_path / "other", act(41, 43), contents=contents)) == {"unannounced-tokens"}


def test_an_update_without_a_step(tmp_path: Path) -> None:
    """An optimizer that moves twice on one step moves once on nobody knows what; two optimizers may share a step."""
    assert classes(alone(tmp_path / "twice", lambda rank: rank.update())) == {"update-without-step"}
    assert alone(tmp_path / "other", lambda rank: rank.update(1)).verdict is Verdict.PASS


def test_more_than_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unannounced tokens, draws and forwards beyond what is kept in memory leave C3 unproven, and never pass."""
    monkeypatch.setattr(tokens, "MOST_WAITING", 2)
    monkeypatch.setattr(handed, "MOST_DRAWS", 2)

    def strangers(rank: Rank) -> None:
        for checksum in STRANGE:
            rank.sneak(checksum, grad=False)

    def unplaced(rank: Rank) -> None:
        for checksum in STRANGE:
            rank.sneak(checksum, grad=True)
        rank.step([])

    def old(rank: Rank) -> None:
        first = rank.draw("train", [0])
        rank.forward(first)
        for start in (8, 16):
            rank.draw("train", [start])
        rank.step([first])

    found = {name: alone(tmp_path / name, act) for name, act in vars().items() if callable(act)}
    assert {name: classes(ruling) for name, ruling in found.items()} == {
        "strangers": {"unannounced-tokens"},
        "unplaced": {"unknown-tokens"},
        "old": {"unknown-draw"},
    }
    assert found["strangers"].witness["forwards"] >= len(STRANGE)
    located_two = Contents(
        drawn=1,
        checked=1,
        escape=0.0,
        mismatches=(),
        located=tuple(Located(stage="0", rank=0, at=at, split="train", starts=(0,), length=8) for at in (7, 8, 9)),
    )
    assert classes(alone(tmp_path / "located", unplaced, contents=located_two)) == {"unknown-tokens"}
