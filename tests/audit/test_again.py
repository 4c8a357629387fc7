"""What was computed again: said for each part, done or not, on the terminal and in the report, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audit import again
from audit.evidence import Contents, Replay
from audit.report.text import verdict_lines
from audit.requantize import Requantized
from audit.rescore import Rescored
from audit.verdicts import Judgement
from tests.audit.reading import headings, rendered

CONTENTS = Contents(drawn=9, checked=7, escape=0.0, mismatches=())


def judgement(**subject: Any) -> Judgement:
    return Judgement(subject=subject, profile="generic", required=("C3",), rulings=())


def rescored(reason: str = "") -> Rescored:
    return Rescored(eligible=4, checked=1, escape=0.75, equal=1, largest=0.0, mean=0.0, mismatches=(), reason=reason)


def test_each_part_says_whether_it_was_done() -> None:
    """Nothing given: each is not done, and why; all given: how much of each; given and not possible: the reason."""
    nothing = again.again(None, None, None, None)
    assert {text.partition(";")[0] for text in nothing.values()} == {"not done"}
    assert "--data" in nothing["rows of the shards"]
    replay = Replay(steps=1, draws=2, mismatches=())
    requantized = Requantized(numbers=30, differing=0, apart=None, mismatches=())
    done = again.again(CONTENTS, replay, requantized, rescored())
    assert list(done.values()) == [
        "read for 7 of 9 draws and scores",
        "1 step, 2 draws",
        "0 of 30 numbers differ",
        "1 of 4 score records, 1 equal to the bit",
    ]
    assert done.keys() == nothing.keys()
    refused = again.again(
        CONTENTS,
        Replay(steps=0, draws=0, mismatches=(), reason="no loader"),
        Requantized(numbers=0, differing=0, apart=None, mismatches=(), reason="no artifact"),
        rescored("no scores"),
    )
    assert list(refused.values())[1:] == ["not done; no loader", "not done; no artifact", "not done; no scores"]


def test_lines_of_one_run_of_several_seeds_and_of_none() -> None:
    """A line for each part; seeds that differ are told apart; a judgement that says nothing of it has none."""
    one, other = again.again(CONTENTS, None, None, "not asked for"), again.again(CONTENTS, None, None, rescored())
    text = verdict_lines(judgement(computed_again=one))
    assert "\n  computed again, losses of the artifact: not asked for" in text
    assert text.count("computed again") == len(one)
    rows = dict(again.lines(judgement(seeds={"1": {again.KEY: one}, "2": {again.KEY: other}})))
    assert rows["rows of the shards"] == "read for 7 of 9 draws and scores"
    assert rows["losses of the artifact"] == ("seed 1: not asked for; seed 2: 1 of 4 score records, 1 equal to the bit")
    strange: list[dict[str, Any]] = [{}, {"seeds": []}, {"seeds": {"1": 7}}, {again.KEY: [1]}]
    assert [again.lines(judgement(**subject)) for subject in strange] == [[], [], [], []]


def test_the_report_says_it(write_runs: Callable[..., Path], tmp_path: Path) -> None:
    """Under the verdict stands what it rests on, escaped; a report of judgements that say nothing has no such part."""
    heading = "What was computed again"
    runs = write_runs(tmp_path)
    assert heading not in headings(rendered(runs))
    for path in (runs / "verify").glob("*/verdict.json"):
        tree = json.loads(path.read_text())
        tree["subject"][again.KEY] = {"artifact": "not done; *it* was\nnot there"}
        path.write_text(json.dumps(tree))
    source = rendered(runs)
    assert heading in headings(source)
    assert "- **artifact**: not done; \\*it\\* was not there" in source
