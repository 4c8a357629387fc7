"""The audit over a run that it never saw: honest modes pass, each violation fails its rule, and the gate answers."""

from __future__ import annotations

import json
from typing import Any

from tests.pipeline.conftest import BIN, Project
from tests.pipeline.test_dvc import ran, skipped

PYTHON = str(BIN / "python")


def gate(project: Project, path: str = "runs/report") -> tuple[int, str]:
    """Exit code and line of `golf-audit gate`."""
    asked = f"{PYTHON} -m audit gate {path}; echo exit $?"
    line, code = project.sh(["sh", "-c", asked]).strip().rsplit("\nexit ", 1)
    return int(code), line


def verdict(project: Project, seed: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project.folder / "runs" / "verify" / str(seed) / "verdict.json").read_text())
    return found


def rules(document: dict[str, Any]) -> dict[str, str]:
    """Rule → verdict."""
    return {row["id"]: row["verdict"] for row in document["rules"]}


def witness(document: dict[str, Any], rule: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row["witness"] for row in document["rules"] if row["id"] == rule)
    return found


def classes(document: dict[str, Any]) -> set[str]:
    """Classes of the findings that fail a rule."""
    return {row["class"] for row in document["findings"] if row["severity"] == "error"}


def test_three_honest_seeds_pass_and_the_gate_says_so(project: Project) -> None:
    """With the three seeds that the rules ask for, the run passes the profile `pipeline`; the rest is named."""
    assert gate(project)[0] == 2
    assert "SEEDS" in gate(project)[1]
    output = project.dvc("exp", "run", "-S", "seeds=[1,2,3]")
    assert {"verify@1", "verify@2"} <= skipped(output) | ran(output)
    code, line = gate(project)
    assert (code, line.split(":")[0]) == (0, "PASS (profile pipeline)")
    assert all(f"{rule} UNPROVEN" in line for rule in ("C1", "C2", "STAT", "REPRO"))
    found = verdict(project)
    assert witness(found, "C3") == {}
    document = json.loads((project.folder / "runs" / "report" / "report.json").read_text())
    assert document["verdict"] == "PASS"
    assert rules(document)["SEEDS"] == "PASS"


def test_an_experiment_with_the_disputed_recipe_fails_c3_and_says_what_it_was_worth(project: Project) -> None:
    """`dvc exp run -S ttt.mode=prequant` trains nothing again; the report shows steps, ranges, worth."""
    output = project.dvc("exp", "run", "-n", "disputed", "-S", "ttt.mode=prequant")
    assert {"train@1", "train@2"} <= skipped(output)
    assert {"quantize@1", "evaluate@1", "verify@1", "report"} <= ran(output)
    assert "disputed" in project.dvc("exp", "show", "--csv", "--no-pager")
    code, line = gate(project)
    assert (code, "failed: C3" in line) == (1, True)
    found = verdict(project)
    assert classes(found) == {"trained-before-scored"}
    seen = witness(found, "C3")
    assert (seen["stage"], seen["split"]) == ("quantize", "val")
    report = (project.folder / "runs" / "report" / "report.md").read_text()
    for words in ("FAIL", "Contamination", "before quantization", "survived", "contaminated"):
        assert words in report, words
    metrics = json.loads((project.folder / "runs" / "evaluate" / "1" / "metrics.json").read_text())
    assert metrics["contaminated"] == ["prequant"]
    assert metrics["contamination"]["before_quantization"]["worth"] > 0
