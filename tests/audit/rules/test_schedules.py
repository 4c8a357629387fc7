"""Random schedules of several ranks against a model that knows the truth: explicit sets and happens-before."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence import Stream
from audit.rules.coverage import coverage
from audit.rules.once import c4
from audit.rules.order import c3
from audit.verdicts import Ruling, Verdict
from tests.audit.ledgers import Book, Rank, octets

LENGTH, TARGETS = 4, 22
LABELS = ("sliding", "rescore")


@dataclass(frozen=True)
class Act:
    """What a rank does: learn, calibrate, hand (into the model, unlisted), score, or go through the whole split."""

    kind: str
    split: str = "val"
    starts: tuple[int, ...] = ()
    label: str = LABELS[0]
    counted: bool = True


starts = st.lists(st.integers(0, TARGETS - LENGTH), min_size=1, max_size=2).map(tuple)
uses = st.builds(
    Act,
    kind=st.sampled_from(["learn", "learn", "calibrate", "hand"]),
    split=st.sampled_from(["val", "train"]),
    starts=starts,
)
scores = st.builds(
    Act,
    kind=st.sampled_from(["score", "score", "pass"]),
    starts=st.tuples(st.integers(0, TARGETS - LENGTH), st.integers(1, LENGTH)),
    label=st.sampled_from([LABELS[0], *LABELS]),
    counted=st.sampled_from([True, True, True, False]),
)
acts = st.lists(uses | scores, max_size=3).map(tuple)
Schedule = tuple[tuple[tuple[tuple[Act, ...], ...], ...], ...]
"""Stages of counts of collectives of ranks of acts."""


def stages(ranks: int) -> st.SearchStrategy[tuple[tuple[tuple[Act, ...], ...], ...]]:
    return st.lists(st.tuples(*[acts] * ranks), min_size=1, max_size=3).map(tuple)


schedules: st.SearchStrategy[Schedule] = st.lists(st.integers(1, 3).flatmap(stages), min_size=1, max_size=2).map(tuple)


# The model


@dataclass(frozen=True)
class Event:
    """Something that used or scored targets; `place` is stage, rank, count of collectives, order within the rank."""

    kind: str
    place: tuple[int, int, int, int]
    rows: tuple[frozenset[int], ...] = ()
    label: str = ""

    @property
    def targets(self) -> frozenset[int]:
        return frozenset().union(*self.rows)

    def before(self, other: Event) -> bool:
        """Whether this is known to have happened before the other."""
        (stage, rank, count, order), (stage2, rank2, count2, order2) = self.place, other.place
        if stage != stage2:
            return stage < stage2
        return order < order2 if rank == rank2 else count < count2


def rows(starts: Sequence[int]) -> tuple[frozenset[int], ...]:
    return tuple(frozenset(range(start, start + LENGTH)) for start in starts)


def windows(act: Act) -> list[tuple[int, int]]:
    """The windows of a score: (first scored target, one behind the last)."""
    if act.kind == "pass":
        return [(first, first + LENGTH) for first in range(0, TARGETS - LENGTH + 1, LENGTH)]
    start, scored = act.starts
    return [(start + LENGTH - scored, start + LENGTH)]


def truth(schedule: Schedule) -> list[Event]:
    """All that happens, with the targets it concerns."""
    found = []
    for stage, counts in enumerate(schedule):
        handed: dict[int, list[tuple[frozenset[int], ...]]] = {}
        order = itertools.count()
        for count, ranks in enumerate(counts):
            for rank, doing in enumerate(ranks):
                for act in doing:
                    place = stage, rank, count, next(order)
                    val = rows(act.starts) if act.split == "val" else ()
                    if act.kind == "learn":
                        found.append(Event("step", place, val))
                        found += [Event("unlisted", place, late) for late in handed.pop(rank, [])]
                    elif act.kind == "calibrate":
                        found.append(Event("calibration", place, val))
                    elif act.kind == "hand":
                        handed.setdefault(rank, []).append(val)
                    elif act.counted:
                        for first, stop in windows(act):
                            found.append(Event("score", place, (frozenset(range(first, stop)),), act.label))
    return found


def unscored(events: Sequence[Event]) -> dict[str, int]:
    """Class of a C3 violation → targets that were used before their score, each as often as it is in a row."""
    kinds = {"step": "trained-before-scored", "calibration": "calibrated-on-validation"}
    found: dict[str, int] = {}
    for use in events:
        if use.kind == "score":
            continue
        known = {t for score in events if score.kind == "score" and score.before(use) for t in score.targets}
        if absent := sum(len(row - known) for row in use.rows):
            kind = kinds.get(use.kind, "unlisted-validation-tokens")
            found[kind] = found.get(kind, 0) + absent
    return found


def replaced(events: Sequence[Event]) -> tuple[bool, bool]:
    """Whether a target is counted again after a step, and whether one is counted twice in one total."""
    scored = [event for event in events if event.kind == "score"]
    steps = [event for event in events if event.kind == "step"]
    pairs = [(a, b) for a, b in itertools.permutations(scored, 2) if a.targets & b.targets]
    after = any(a.before(step) and step.before(b) for a, b in pairs for step in steps)
    return after, any(a.label == b.label for a, b in pairs)


def covered(events: Sequence[Event]) -> bool:
    """Whether every total has all targets, but for a tail that fills no window."""
    for label in {event.label for event in events if event.kind == "score"}:
        absent = set(range(TARGETS)) - {t for e in events if e.label == label for t in e.targets}
        if len(absent) >= LENGTH or absent != set(range(TARGETS - len(absent), TARGETS)):
            return False
    return True


# The ledgers


def act_out(rank: Rank, act: Act) -> None:
    if act.kind == "learn":
        draw = rank.draw(act.split, act.starts, length=LENGTH)
        rank.forward(draw)
        rank.step([draw])
    elif act.kind == "hand":
        rank.forward(rank.draw(act.split, act.starts, length=LENGTH))
    elif act.kind == "calibrate":
        draw = rank.draw(act.split, act.starts, length=LENGTH)
        rank.forward(draw, grad=False)
        rank.write("calibration", [draw], collectives=rank.collectives)
    else:
        for window in windows(act):
            rank.score([window], label=act.label, counted=act.counted, length=LENGTH)


def rule(schedule: Schedule) -> dict[str, Ruling]:
    """C3, C4 and COVERAGE on ledgers of a schedule. Totals are announced as they are."""
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder), shards=(10, TARGETS - 9))
        events = truth(schedule)
        for number, counts in enumerate(schedule):
            with book.stage(ranks=len(counts[0])) as ranks:
                for count, doing in enumerate(counts):
                    for rank, mine in zip(ranks, doing, strict=True):
                        rank.collectives = count
                        for act in mine:
                            act_out(rank, act)
                if number == len(schedule) - 1:
                    for label in sorted({event.label for event in events if event.kind == "score"}):
                        ranks[0].total(label, targets=sum(len(e.targets) for e in events if e.label == label))
        stream = Stream(shards=book.shards, octets=octets)
        evidence = book.evidence(streams={"val": stream}, claims=None)
        return {"C3": c3(evidence), "C4": c4(evidence), "COVERAGE": coverage(evidence)}


def kinds(ruling: Ruling) -> Iterator[str]:
    return (finding.kind for finding in ruling.findings)


@given(schedules)
@settings(max_examples=100)
def test_the_rules_agree_with_the_truth(schedule: Schedule) -> None:
    """C3, C4 and COVERAGE say of any schedule of draws, steps, calibrations and scores what is true of it."""
    events, found = truth(schedule), rule(schedule)
    scored, learned = (any(event.kind == kind for event in events) for kind in ("score", "step"))
    violations = unscored(events)
    assert found["C3"].verdict is (
        Verdict.FAIL if violations else Verdict.PASS if scored and learned else Verdict.UNPROVEN
    )
    if violations:
        counts: dict[str, int] = {}
        for seen in found["C3"].witness["seen"]:
            counts[seen["class"]] = counts.get(seen["class"], 0) + seen["targets"]
        assert counts == violations
    after, twice = replaced(events)
    empty = Verdict.UNPROVEN
    assert found["C4"].verdict is (Verdict.FAIL if after or twice else Verdict.PASS if scored else empty)
    assert ("rescored-after-update" in kinds(found["C4"])) == after
    assert found["COVERAGE"].verdict is (empty if not scored else Verdict.PASS if covered(events) else Verdict.FAIL)


def reached(schedule: Schedule) -> list[tuple[str, str]]:
    """(rule, verdict or class) pairs of a schedule by the model alone."""
    events = truth(schedule)
    used = any(event.kind in ("step", "calibration") and event.targets for event in events)
    scored = any(event.kind == "score" for event in events)
    wide = any(len(counts[0]) > 1 for counts in schedule)
    found = [("C3", kind) for kind in unscored(events)]
    found += [("C3", "PASS")] if used and scored and not unscored(events) and wide else []
    after, twice = replaced(events)
    found += [("C4", "after")] if after and wide else []
    found += [("C4", "twice")] if twice and not after else []
    by_label = [frozenset().union(*(e.targets for e in events if e.label == label)) for label in LABELS]
    found += [("C4", "PASS")] if by_label[0] & by_label[1] and not (after or twice) else []
    return found + ([("COVERAGE", str(covered(events)))] if scored else [])


@pytest.mark.parametrize(
    "wanted",
    [
        ("C3", "PASS"),
        ("C3", "trained-before-scored"),
        ("C3", "calibrated-on-validation"),
        ("C3", "unlisted-validation-tokens"),
        ("C4", "PASS"),
        ("C4", "after"),
        ("C4", "twice"),
        ("COVERAGE", "True"),
        ("COVERAGE", "False"),
    ],
)
def test_schedules_reach_every_verdict(wanted: tuple[str, str]) -> None:
    """The schedules above hold violations of every class and honest runs that use validation, on several ranks."""
    quick = settings(database=None, max_examples=3000, phases=[hypothesis.Phase.generate])
    hypothesis.find(schedules, lambda schedule: wanted in reached(schedule), settings=quick)
