"""The schedule: factor and loop switch by fraction, decided once, recorded, and replayed exactly."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from trainer import recipe as recipes
from trainer.distributed import World
from trainer.errors import DataError
from trainer.schedule import Clock, Decision, Record, Schedule, lr_factor
from trainer.settings import Recipe

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def decide_all(recipe: Recipe, times: list[float], replay: Record | None = None) -> tuple[list[Decision], Record]:
    """Decide steps at the given seconds of training until the schedule ends."""
    schedule, found = Schedule(recipe, ALONE, replay=replay), []
    for step, elapsed in enumerate(times):
        decision = schedule.decide(step, elapsed)
        if decision is None:
            break
        found.append(decision)
    return found, schedule.record


def by_clock(seconds: float = 10.0, reserve: float = 1.0, start: float = 0.5) -> Recipe:
    flat = {"scale": "cpu", "train.seconds": seconds, "train.reserve_seconds": reserve, "train.steps": 0}
    return recipes.resolve(flat | {"loop.start": start})


clocks = st.lists(st.floats(0, 3), min_size=1, max_size=50).map(lambda gaps: [sum(gaps[:i]) for i in range(len(gaps))])
EVERY_SECOND = [float(second) for second in range(20)]


@given(clocks, st.floats(0.1, 1))
@example(EVERY_SECOND, 0.5)
def test_a_recorded_run_is_replayed_exactly_whatever_the_clock_says(times: list[float], start: float) -> None:
    """The record, through JSON and back, gives the same decisions and the same last step on any machine."""
    decided, record = decide_all(by_clock(start=start), times)
    assume(decided)
    text = json.dumps(record.as_dict())
    again, second = decide_all(by_clock(), [1e9] * 500, replay=Record.from_dict(json.loads(text), where="test"))
    assert again == decided
    assert second == record


@given(clocks)
@example(EVERY_SECOND)
def test_the_clock_ends_training_before_the_reserve(times: list[float]) -> None:
    """No step begins at or after seconds - reserve_seconds; the loops once on stay on; the factor never rises."""
    decided, _ = decide_all(by_clock(), times)
    assert all(elapsed < 9 for elapsed in times[: len(decided)])
    assert len(decided) == len(times) or times[len(decided)] >= 9
    factors, looped = [d.lr_factor for d in decided], [d.looped for d in decided]
    assert factors == sorted(factors, reverse=True)
    assert looped == sorted(looped)
    assert all(loop == (elapsed / 9 >= 0.5) for loop, elapsed in zip(looped, times, strict=False))


def test_steps_decide_where_there_is_no_clock() -> None:
    """A run of N steps takes exactly N, switches the loops on at its half, and does not look at the clock."""
    recipe = recipes.resolve({"scale": "cpu", "train.steps": "10"})
    decided, record = decide_all(recipe, [1e6] * 20)
    assert len(decided) == 10
    assert record.loop_step == 5
    assert [d.looped for d in decided] == [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, 1.0), (0.33, 1.0), (0.4, 0.6 / 0.667), (0.9999, 0.0001 / 0.667), (1.5, 0.0)]
)
def test_the_factor_falls_linearly_over_the_warmdown(fraction: float, expected: float) -> None:
    """1 before 1 - warmdown, then (1 - f) / warmdown, never below zero."""
    assert lr_factor(fraction, warmdown=0.667, floor=0.0) == pytest.approx(expected, abs=1e-12)


def test_the_floor_holds_and_no_warmdown_is_constant() -> None:
    """The factor stays at the floor at the end; a warmdown of 0 keeps it at 1."""
    assert lr_factor(0.99, warmdown=0.5, floor=0.1) == 0.1
    assert lr_factor(0.99, warmdown=0.0, floor=0.0) == 1.0


def test_no_recurrence_switches_nothing_on() -> None:
    """With loop.extra_passes=0 no step is looped and the record says so."""
    recipe = recipes.resolve({"scale": "cpu", "train.steps": "10", "loop.extra_passes": "0"})
    decided, record = decide_all(recipe, [0.0] * 20)
    assert not any(d.looped for d in decided)
    assert record.loop_step is None


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [],
        {"schema": 2, "steps": 1, "loop_step": None, "lr_factors": [1.0]},
        {"schema": 1, "steps": 2, "loop_step": None, "lr_factors": [1.0]},
        {"schema": 1, "steps": 0, "loop_step": None, "lr_factors": []},
        {"schema": 1, "steps": 1, "loop_step": 1, "lr_factors": [1.0]},
        {"schema": 1, "steps": 1, "loop_step": None, "lr_factors": [float("nan")]},
        {"schema": 1, "steps": 1, "loop_step": None, "lr_factors": [True]},
        {"schema": 1, "steps": 1, "loop_step": None, "lr_factors": [1.5]},
        {"schema": 1, "steps": 1, "loop_step": "0", "lr_factors": [1.0]},
    ],
)
def test_what_is_no_schedule_is_refused(tree: object) -> None:
    """A damaged or foreign record never becomes a run."""
    with pytest.raises(DataError, match="here"):
        Record.from_dict(tree, where="here")


def test_the_clock_stands_still_in_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds inside a pause do not count; seconds from before a resumption do."""
    now = [100.0]
    monkeypatch.setattr("trainer.schedule.time.perf_counter", lambda: now[0])
    clock = Clock(spent=5.0)
    now[0] += 2
    with clock.paused():
        assert clock.elapsed() == pytest.approx(7.0)
        now[0] += 50
        assert clock.elapsed() == pytest.approx(7.0), "a checkpoint is written inside a pause"
    now[0] += 1
    assert clock.elapsed() == pytest.approx(8.0)
