"""Side doors of a recorded program, planted one by one: what C3 says of each beside its honest neighbour."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.contents import check_contents
from audit.evidence import Evidence, Stage
from audit.rules.order import c3
from audit.splits import open_data
from audit.verdicts import Verdict
from audit.verify import streams
from tests.audit.children import PLANTED, recorded
from tests.audit.ledgers import RULESET

BARE = {"no-identity", "nothing-scored", "nothing-trained"}
"""These programs are no whole runs: they don't say what they are made from, and some train or score nothing."""


def classes(folder: Path, program: str, *arguments: str) -> tuple[Verdict, set[str]]:
    """Verdict and classes of C3 on a recorded program, beside what all of them lack."""
    ledger = recorded(folder, PLANTED / f"{program}.py", *arguments)
    data, stages = open_data([folder]), (Stage.open(ledger),)
    contents = check_contents(stages, data)
    ruling = c3(Evidence(ruleset=RULESET, stages=stages, streams=streams(data), contents=contents))
    return ruling.verdict, {finding.kind for finding in ruling.findings} - BARE


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("data_write", {"parameters-changed"}),
        ("numpy_write", {"parameters-changed"}),
        ("foreign_optimizer", {"parameters-changed"}),
        ("mixed_optimizer", {"parameters-changed"}),
        ("from_file", {"unannounced-validation-tokens", "unannounced-step"}),
        ("second_forward", {"trained-before-scored"}),
    ],
)
def test_side_doors(tmp_path: Path, program: str, expected: set[str]) -> None:
    """A hidden write, a foreign or a mixed optimizer, tokens read past Python, the second forward scored: all named."""
    verdict, found = classes(tmp_path / "mutant", program)
    assert found == expected
    assert verdict is (Verdict.UNPROVEN if expected == {"parameters-changed"} else Verdict.FAIL)
    assert classes(tmp_path / "honest", program, "honest")[1] == set()


@pytest.mark.parametrize("program", ["one_forward", "workers"])
def test_what_only_looks_like_one(tmp_path: Path, program: str) -> None:
    """A loss that is scored and back-propagated from one forward is legal; a loader's workers are no strangers."""
    assert classes(tmp_path / "run", program)[1] == set()


def test_a_model_that_is_announced_late(tmp_path: Path) -> None:
    """Nobody saw what entered it before; its weights are not said to have changed, for they only did so in steps."""
    assert classes(tmp_path, "late_model") == (Verdict.UNPROVEN, {"draw-not-entered"})
