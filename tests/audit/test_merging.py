"""The judgements of the seeds as one: the worst verdict wins, and nothing passes by being absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RunError
from audit.merging import MOST_DEPTH, merge, read_judgement, read_verdict
from audit.verdicts import Finding, Judgement, Ruling, Verdict, parse

Write = Callable[..., Path]
REQUIRED = ("C3", "DATA", "SEEDS")
ORDER = (Verdict.FAIL, Verdict.UNPROVEN, Verdict.PASS)


def ruling(rule: str, verdict: Verdict = Verdict.PASS, **fields: Any) -> Ruling:
    return Ruling(id=rule, verdict=verdict, evidence="ledger", **({"summary": f"{rule} {verdict}"} | fields))


def judged(*rulings: Ruling, profile: str = "pipeline") -> Judgement:
    return Judgement(subject={"seed": 1}, profile=profile, required=("C3", "DATA"), rulings=rulings)


SEEDS = ruling("SEEDS", summary="3 seeds")
verdicts = st.sampled_from(list(Verdict))


@given(
    st.lists(
        st.fixed_dictionaries({}, optional={"C3": verdicts, "DATA": verdicts, "C1": verdicts, "SEEDS": verdicts}),
        min_size=1,
        max_size=5,
    ),
    verdicts,
)
def test_a_rule_has_its_worst_verdict(seeds: list[dict[str, Verdict]], on_seeds: Verdict) -> None:
    """Each rule has the worst verdict of any seed, unproven where a seed lacks it; SEEDS is the one that was given."""
    judgements = {i: judged(*(ruling(rule, found) for rule, found in seed.items())) for i, seed in enumerate(seeds)}
    merged = merge(judgements, seeds=ruling("SEEDS", on_seeds), required=REQUIRED)
    found = {one.id: one.verdict for one in merged.rulings}
    assert len(found) == len(merged.rulings)
    assert found.keys() == {*REQUIRED, *(rule for seed in seeds for rule in seed)}
    for rule, verdict in found.items():
        of_seeds = [seed.get(rule, Verdict.UNPROVEN) for seed in seeds]
        assert verdict is (on_seeds if rule == "SEEDS" else min(of_seeds, key=ORDER.index))
    passed = all(found[rule] is Verdict.PASS for rule in REQUIRED)
    expected = Verdict.FAIL if Verdict.FAIL in found.values() else Verdict.PASS if passed else Verdict.UNPROVEN
    assert merged.verdict is expected
    assert parse(json.loads(json.dumps(merged.as_dict())), where="x").verdict is expected


def test_witnesses_findings_and_reach_carry_their_seed() -> None:
    """What was seen in a seed stands under its name, also of seeds that pass where another fails."""
    note = Finding(kind="slow", severity="note", where="train", detail="a pause")
    bad = ruling("C3", Verdict.FAIL, summary="trained before scored", witness={"step": 7}, reach={"targets": 10})
    merged = merge(
        {42: judged(ruling("C3", findings=(note,), reach={"targets": 9})), 314: judged(bad)},
        seeds=SEEDS,
        required=["C3"],
    )
    found = merged.ruling("C3")
    assert (found.verdict, found.summary) == (Verdict.FAIL, "seed 314: trained before scored")
    assert found.witness == {"seed 314": {"step": 7}}
    assert found.reach == {"seed 42": {"targets": 9}, "seed 314": {"targets": 10}}
    assert [finding.detail for finding in found.findings] == ["seed 42: a pause"]
    assert merged.subject == {"seeds": {"42": {"seed": 1}, "314": {"seed": 1}}}


def test_a_summary_that_all_seeds_share_is_told_once() -> None:
    """Equal summaries are one; different ones each name their seed."""
    same = merge({1: judged(ruling("C3")), 2: judged(ruling("C3"))}, seeds=SEEDS, required=["C3"])
    assert same.ruling("C3").summary == "C3 PASS"
    other = merge({1: judged(ruling("C3")), 2: judged(ruling("C3", summary="b"))}, seeds=SEEDS, required=["C3"])
    assert other.ruling("C3").summary == "seed 1: C3 PASS; seed 2: b"


def test_no_seeds_and_other_profiles_are_refused() -> None:
    """A judgement of nothing, or of seeds that were asked different things, is none."""
    with pytest.raises(RunError, match="got 0 seeds"):
        merge({}, seeds=SEEDS, required=REQUIRED)
    with pytest.raises(RunError, match="2 seeds judged under 2 profiles"):
        merge({1: judged(), 2: judged(profile="probe")}, seeds=SEEDS, required=REQUIRED)


def test_a_judgement_is_read_back(write_runs: Write, tmp_path: Path) -> None:
    """What verify wrote for a seed is read as it was judged."""
    found = read_judgement(write_runs(tmp_path, mode="prequant"), 314)
    assert (found.verdict, found.ruling("C3").witness["ranges"]) == (Verdict.FAIL, [[0, 2048], [2048, 4096]])


@pytest.mark.parametrize("place", ["report/report.json", "report", ".", "verify/42/verdict.json", "verify/42"])
def test_the_gate_finds_the_judgement(write_runs: Write, tmp_path: Path, place: str) -> None:
    """A file, its folder, or the folder of the pipeline: the judgement of the run stands before those of its seeds."""
    runs = write_runs(tmp_path)
    merged = merge({42: read_judgement(runs, 42)}, seeds=SEEDS, required=["C3"])
    (runs / "report").mkdir()
    (runs / "report/report.json").write_text(json.dumps(merged.as_dict()))
    found = read_verdict(runs / place)
    assert found.subject == ({"seed": 42} if "verify" in place else {"seeds": {"42": {"seed": 42}}})


def test_a_gate_without_a_judgement_is_an_error(tmp_path: Path) -> None:
    """Where nothing was judged there is no verdict, not even UNPROVEN: it says what to run."""
    for place in (tmp_path, tmp_path / "report.json"):
        with pytest.raises(RunError) as caught:
            read_verdict(place)
        assert str(caught.value).endswith(
            f"; run `dvc repro report`, or `golf-audit verify LEDGER -o {tmp_path}` and give that folder"
        )


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "can't read"),
        (lambda tree: tree["subject"].update(seed=42), "is of seed 42, expected 314"),
        (lambda tree: tree["rules"].append(tree["rules"][0]), "ruled on twice"),
        (lambda tree: tree["rules"][0]["witness"].update(x=deep(MOST_DEPTH)), f"deeper than {MOST_DEPTH} levels"),
        (lambda tree: tree["rules"][0]["witness"].update(x=deep(700)), f"deeper than {MOST_DEPTH} levels"),
        (lambda tree: tree["rules"][0]["reach"].update(x=float("nan")), "a number that is not finite"),
        (lambda tree: tree.update(rules=7), "is no judgement"),
        (lambda tree: tree.update(verdict="FAIL"), "verdict FAIL, expected 1 and UNPROVEN"),
    ],
)
def test_a_damaged_judgement_is_named(
    write_runs: Write, tmp_path: Path, change: Callable[[Any], object] | None, words: str
) -> None:
    """A judgement that is missing, another seed's, ambiguous or bottomless is refused in one line."""
    path = write_runs(tmp_path) / "verify/314/verdict.json"
    tree = json.loads(path.read_text())
    if change:
        change(tree)
        path.write_text(json.dumps(tree))
    else:
        path.unlink()
    with pytest.raises(RunError) as caught:
        read_judgement(tmp_path, 314)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("; run `dvc repro verify@314`")
