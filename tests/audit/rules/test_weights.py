"""Weights that change without a word, and all the ways in which honest weights change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.rules.order import c3
from audit.rules.weights import WORD, Weights
from audit.verdicts import Verdict
from tests.audit.ledgers import Book, Rank


class Machine:
    """Parameters in three parts, two optimizers on the first two, and `Weights` that hears of them.

    Optimizer 0 has parts 0 and 1 (or 0 alone, if they are disjoint), optimizer 1 has part 1; nobody has part 2.
    """

    def __init__(self, *, disjoint: bool) -> None:
        self.parts = [3, 5, 7]
        self.own = {0: (0,) if disjoint else (0, 1), 1: (1,)}
        self.told: list[str] = []
        self.at = 0
        self.weights = Weights(lambda kind, at, detail, witness: self.told.append(kind))
        sizes = {0: 1 if disjoint else 2, 1: 1}
        self.weights.note("model", {"index": 0, "parameters": 2})
        for index, size in sizes.items():
            self.weights.note("optimizer", {"index": index, "covers_model": True, "parameters": size})
        self.state()

    def _next(self) -> int:
        self.at += 1
        return self.at

    def step(self, optimizer: int, change: int, *, between: Callable[[], None] = lambda: None) -> None:
        self.weights.step()
        between()
        before = sum(self.parts[part] for part in self.own[optimizer]) % WORD
        for number, part in enumerate(self.own[optimizer]):
            self.parts[part] = (self.parts[part] + change + number) % WORD
        after = sum(self.parts[part] for part in self.own[optimizer]) % WORD
        self.weights.update(self._next(), optimizer, before, after)

    def by_hand(self, change: int) -> None:
        """A step that is announced and that torch knows nothing of; it moves whatever it likes."""
        self.weights.step()
        self.parts = [(part + change) % WORD for part in self.parts]

    def declare(self, change: int) -> None:
        self.parts[0] = (self.parts[0] + change) % WORD
        self.weights.note("weights", {"why": "average swapped in"})
        self.state()

    def silently(self, part: int, change: int) -> None:
        self.parts[part] = (self.parts[part] + change) % WORD

    def state(self) -> None:
        self.weights.state(self._next(), sum(self.parts) % WORD)


words = st.integers(1, WORD - 1)
honest_acts = st.lists(
    st.tuples(st.just("step"), st.integers(0, 1), words)
    | st.tuples(st.just("by_hand"), words)
    | st.tuples(st.just("declare"), words)
    | st.tuples(st.just("state")),
    max_size=12,
)


@given(honest_acts, st.booleans())
def test_honest_weights_are_never_suspected(acts: list[tuple], disjoint: bool) -> None:
    """Whatever order of torch's steps, others' steps and declared changes: all of it adds up."""
    machine = Machine(disjoint=disjoint)
    for name, *arguments in acts:
        getattr(machine, name)(*arguments)
    machine.state()
    assert machine.told == []


@given(honest_acts, st.integers(0, 2), st.integers(0, 2**40), st.booleans())
def test_a_silent_change_shows_at_the_next_state(acts: list[tuple], part: int, change: int, disjoint: bool) -> None:
    """After any honest past, parameters that change on their own are seen at the next fingerprint of the model."""
    machine = Machine(disjoint=disjoint)
    for name, *arguments in acts:
        getattr(machine, name)(*arguments)
    machine.state()
    machine.silently(part, change + 1)
    machine.state()
    assert machine.told == ["parameters-changed"]


def test_a_silent_change_between_two_steps_of_an_optimizer() -> None:
    """It shows without any state: the second step does not begin where the first one ended."""
    machine = Machine(disjoint=True)
    machine.step(0, 10)
    machine.silently(0, 1)
    machine.step(1, 20)
    machine.step(0, 10)
    assert machine.told == ["parameters-changed"]


def test_two_optimizers_may_share_parameters() -> None:
    """What one finds changed may be what the other added; what happened besides shows in the next state."""
    machine = Machine(disjoint=False)
    for step in range(4):
        machine.step(step % 2, 10)
    machine.state()
    assert machine.told == []
    machine.silently(1, 1)
    machine.step(0, 10)
    machine.state()
    assert machine.told == ["parameters-changed"]


def test_a_model_that_is_dropped_explains_the_next_state() -> None:
    """When a model comes or goes the sum is another one, once; silent changes show again afterwards."""
    machine = Machine(disjoint=True)
    machine.step(0, 10)
    machine.weights.note("model", {"index": 0, "gone": True})
    machine.parts[2] += 1
    machine.state()
    machine.step(1, 10)
    machine.state()
    assert machine.told == []
    machine.silently(2, 1)
    machine.state()
    assert machine.told == ["parameters-changed"]


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda rank: rank.silently(), {"parameters-changed"}),
        (lambda rank: rank.weights("average swapped in"), set()),
        (lambda rank: rank.step([], update=False) and rank.silently(), set()),
    ],
)
def test_in_a_ledger(tmp_path: Path, act: Callable[[Rank], object], expected: set[str]) -> None:
    """C3 is not proven by weights that changed silently, and is by declared changes and announced foreign steps."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.model()
        rank.learn("train", [0])
        rank.state()
        act(rank)
        rank.state()
        rank.score_all()
    ruling = c3(book.evidence())
    assert {finding.kind for finding in ruling.findings} == expected
    assert ruling.verdict is (Verdict.UNPROVEN if expected else Verdict.PASS)
    if expected:
        assert int(ruling.witness["found"], 16) - int(ruling.witness["expected"], 16) == 99
