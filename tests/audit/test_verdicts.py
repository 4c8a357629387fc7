"""Verdicts: how many become one, and JSON that comes back as what it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RunError
from audit.verdicts import EVIDENCE, SEVERITIES, Finding, Judgement, Ruling, Verdict, overall, parse, worst

verdicts = st.sampled_from(list(Verdict))
texts = st.text(max_size=8)
facts = st.dictionaries(texts, st.integers() | texts | st.none(), max_size=3)
findings = st.builds(Finding, kind=texts, severity=st.sampled_from(SEVERITIES), where=texts, detail=texts)


@st.composite
def rulings(draw: st.DrawFn) -> tuple[Ruling, ...]:
    """Rulings of different rules."""
    ids = draw(st.lists(st.sampled_from(["C1", "C3", "C4", "DATA", "SIZE"]), unique=True, max_size=5))
    return tuple(
        Ruling(
            id=rule,
            verdict=draw(verdicts),
            evidence=draw(st.sampled_from(EVIDENCE)),
            summary=draw(texts),
            witness=draw(facts),
            reach=draw(facts),
            findings=tuple(draw(st.lists(findings, max_size=2))),
            clock={"seconds": 1.0},
        )
        for rule in ids
    )


@given(rulings(), st.lists(st.sampled_from(["C1", "C3", "C9"]), unique=True))
def test_one_verdict_of_many(found: tuple[Ruling, ...], required: list[str]) -> None:
    """FAIL if any fails, PASS if all that are required pass and there is one, else UNPROVEN: absence is no pass."""
    by_id = {ruling.id: ruling.verdict for ruling in found}
    verdict = overall(found, required)
    assert (verdict is Verdict.FAIL) == (Verdict.FAIL in by_id.values())
    if verdict is Verdict.PASS:
        assert required
        assert all(by_id[rule] is Verdict.PASS for rule in required)
    if verdict is Verdict.UNPROVEN:
        assert not required or any(by_id.get(rule) is not Verdict.PASS for rule in required)


@given(rulings(), facts)
def test_a_judgement_comes_back(found: tuple[Ruling, ...], subject: dict[str, Any]) -> None:
    """as_dict → JSON → parse → as_dict is the same, and no seconds are in it."""
    required = tuple(ruling.id for ruling in found[:2])
    judgement = Judgement(subject=subject, profile="pipeline", required=required, rulings=found)
    tree = json.loads(json.dumps(judgement.as_dict()))
    again = parse(tree, where="verdict.json")
    assert again.as_dict() == tree
    assert again.verdict is judgement.verdict
    assert "seconds" not in json.dumps([ruling.as_dict(required=True) for ruling in found if not ruling.reach])


def tree(**changes: Any) -> dict[str, Any]:
    ruling = Ruling(id="C3", verdict=Verdict.FAIL, evidence="ledger", summary="late", witness={"step": 4})
    judgement = Judgement(subject={}, profile="pipeline", required=("C3",), rulings=(ruling,))
    return judgement.as_dict() | changes


@pytest.mark.parametrize(
    "damaged",
    [
        tree(verdict="PASS"),
        tree(schema=2),
        tree(rules=[{"id": "C3"}]),
        tree(rules=7),
        tree(findings=[{"class": "x", "severity": "fatal", "where": "", "detail": "", "rule": "C3"}]),
        tree(findings=[{"class": "x", "severity": "error", "where": "", "detail": "", "rule": "C4"}]),
        tree(rules=2 * tree()["rules"]),
        {},
        [],
        None,
    ],
)
def test_a_judgement_that_contradicts_itself(damaged: Any) -> None:
    """A verdict that its rules do not give, another schema or a missing part is refused in one line."""
    with pytest.raises(RunError, match=r"verdict\.json.*; verify the run again"):
        parse(damaged, where="verdict.json")


def test_a_finding_stays_with_its_rule() -> None:
    """What a rule found is told under its id, and read back as that rule's."""
    found = Finding(kind="late", severity="error", where="step 4", detail="too late")
    rulings = [
        Ruling(id=rule, verdict=Verdict.FAIL, evidence="ledger", summary="", findings=(found,) if rule == "C4" else ())
        for rule in ("C3", "C4")
    ]
    judgement = Judgement(subject={}, profile="pipeline", required=("C3",), rulings=tuple(rulings))
    assert judgement.as_dict()["findings"] == [found.as_dict() | {"rule": "C4"}]
    assert parse(judgement.as_dict(), where="here").rulings == tuple(rulings)


def test_exit_codes_and_the_worst() -> None:
    """0 PASS, 1 FAIL, 2 UNPROVEN; FAIL is worse than UNPROVEN, and nothing is UNPROVEN."""
    assert [verdict.exit_code for verdict in (Verdict.PASS, Verdict.FAIL, Verdict.UNPROVEN)] == [0, 1, 2]
    assert worst([Verdict.PASS, Verdict.UNPROVEN, Verdict.FAIL]) is Verdict.FAIL
    assert worst([Verdict.PASS, Verdict.UNPROVEN]) is Verdict.UNPROVEN
    assert worst([Verdict.PASS]) is Verdict.PASS
    assert worst([]) is Verdict.UNPROVEN
