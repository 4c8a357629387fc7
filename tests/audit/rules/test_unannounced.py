"""Steps of a torch optimizer that the program did not announce, among what it did."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from audit.rules.once import c4
from audit.rules.order import c3
from audit.verdicts import Verdict
from tests.audit.ledgers import Book, Rank, alone, classes


def unannounced(rank: Rank, split: str, starts: Sequence[int], *, counter: int) -> None:
    """A torch optimizer steps on rows and no golf.step says so; `counter` is what the recorder put there."""
    draw = rank.draw(split, starts)
    rank.forward(draw)
    rank.write("step", -1, [draw], lr=0.0, looped=False, collectives=counter)
    rank.update()


@pytest.mark.parametrize("counter", [0, 5])
def test_a_step_that_nobody_announced_among_announced_ones(tmp_path: Path, counter: int) -> None:
    """It is told as what it is, whatever counter stands in it, and neither C3 nor C4 is proven."""

    def act(rank: Rank) -> None:
        rank.collectives = 5
        rank.score([(0, 8)], counted=False)
        unannounced(rank, "train", [8], counter=counter)

    evidence = alone(tmp_path, act)
    for rule in (c3, c4):
        ruling = rule(evidence)
        assert (ruling.verdict, classes(ruling)) == (Verdict.UNPROVEN, {"unannounced-step"})
    assert "no golf.step announced" in c3(evidence).summary


def test_an_unannounced_step_on_validation_still_fails(tmp_path: Path) -> None:
    """What it learned from is known, and comes before the reason for which it would be unproven."""
    ruling = c3(alone(tmp_path, lambda rank: unannounced(rank, "val", [0], counter=0)))
    assert (ruling.verdict, ruling.witness["class"]) == (Verdict.FAIL, "trained-before-scored")


@pytest.mark.parametrize(("ranks", "verdict"), [(1, Verdict.PASS), (2, Verdict.UNPROVEN)])
def test_steps_before_a_program_announces_anything(tmp_path: Path, ranks: int, verdict: Verdict) -> None:
    """One rank's records are in order without a counter; where ranks are ordered by it, a step without one is none."""
    book = Book(tmp_path)
    with book.stage(ranks=ranks) as found:
        for rank in found:
            rank.model()
            unannounced(rank, "train", [0], counter=0)
        found[0].score_all()
    assert c3(book.evidence()).verdict is verdict
    assert c4(book.evidence()).verdict is verdict
