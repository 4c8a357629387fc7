"""The verdict in the report: it stands first, is that of the judgements, and marks a contaminated result everywhere."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audit import verdicts
from audit.errors import RunError
from audit.report import cells, files, model, text
from audit.stats import aggregate
from tests.audit.reading import headings, rendered, shown, tables, with_aggregate

Write = Callable[..., Path]
Files = dict[str, Any]


def test_a_report_begins_with_the_verdict(write_runs: Write, tmp_path: Path) -> None:
    """The first line is the gate's; each rule has its row; what passes needs no witness and nothing is contaminated."""
    runs = with_aggregate(write_runs(tmp_path))
    report = model.load(runs)
    source = shown(report)
    first = source.split("\n")[2]
    assert first == f"**{cells.plain(text.gate_line(report.judgement))}**"
    assert first.startswith("**PASS (profile pipeline): all 10 required rules pass; not required: C1 UNPROVEN")
    rows = {row[0]: row[1:3] for row in tables(source)[0][1:]}
    assert rows == {
        rule: ["yes", "PASS"] if rule in report.judgement.required else ["no", "UNPROVEN"] for rule in report.proofs
    }
    assert "contaminat" not in source.lower()
    assert "Proof: runs of the same code that differ in later tokens alone: golf-audit probe" in source


@pytest.mark.parametrize(("mode", "rule"), [("prequant", "C3"), ("calibration", "C3"), ("rescore", "C4")])
def test_a_contaminated_run_fails_and_says_why(write_runs: Write, tmp_path: Path, mode: str, rule: str) -> None:
    """FAIL of its rule with each seed's witness, and the mark in headline, notes and every row of the seeds."""
    source = rendered(write_runs(tmp_path, mode=mode))
    assert source.split("\n")[2].startswith(f"**FAIL (profile pipeline): failed: {rule}; not required")
    assert "This result is contaminated and no valid score:" in source.split("\n")[4]
    assert {"Witnesses of what failed", rule, "Contamination"} <= set(headings(source))
    witnesses = source.partition("### Witnesses")[2].partition("### Findings")[0]
    assert re.findall("<code>(seed [0-9]+)</code>", witnesses) == ["seed 42", "seed 314", "seed 999"]
    assert witnesses.count("<code>ranges</code>: (0, 2048), (2048, 4096)") == 3
    (seeds,) = [rows for rows in tables(source) if rows[0][:2] == ["seed", "first"]]
    assert [row[0] for row in seeds[1:-1]] == [f"{seed} (contaminated)" for seed in (42, 314, 999)]
    assert re.search(r"^- contaminated by .*no valid score", source, re.MULTILINE)
    assert ("was not measured" in source) == (mode != "prequant")


def test_what_a_fit_was_worth_stands_three_times(write_runs: Write, tmp_path: Path) -> None:
    """Before quantization, after it, and sliding: by seed and in the mean, with the share that survived."""
    runs = write_runs(tmp_path, mode="prequant")
    (table,) = [rows for rows in tables(rendered(runs)) if rows[0][0] == "point"]
    survey = json.loads((runs / "evaluate/314/metrics.json").read_text())["contamination"]
    points = {"before quantization": "before_quantization", "after it, sequential": "after_quantization"}
    points["after it, sliding"] = "after_sliding"
    shares = {"before_quantization": "–", "after_quantization": "75.0 %", "after_sliding": "50.0 %"}
    for title, key in points.items():
        (row,) = [row for row in table if row[:2] == [title, "314"]]
        assert row[2:] == [*(f"{survey[key][name]:.4f}" for name in ("reference", "fitted", "worth")), shares[key]]
    means = [row for row in table[1:] if row[1].startswith("mean")]
    assert [row[0] for row in means] == list(points)
    assert [row[5] for row in means] == ["–", "75.0 % ± 0.0 %", "50.0 % ± 0.0 %"]


def test_an_adapted_score_has_a_column_of_its_own(write_runs: Write, tmp_path: Path) -> None:
    """score_first passes; its score stands beside the static sliding one, in the report and on the terminal."""
    runs = write_runs(tmp_path, mode="score_first")
    source = rendered(runs)
    row = json.loads((runs / "evaluate/42/metrics.json").read_text())
    head, first, *_ = next(rows for rows in tables(source) if rows[0][:2] == ["seed", "first"])
    cell = dict(zip(head, first, strict=True))
    assert cell["after, sliding"] == f"{row['sliding']['val_bpb']:.4f}"
    assert cell["score, score_first"] == f"{row['val_bpb']:.4f}"
    assert "adapted to each chunk after its score, sliding window, stride 64" in source
    assert source.split("\n")[2].startswith("**PASS")
    lines = text.seed_table(aggregate(runs / "recipe.json", runs / "evaluate")).splitlines()
    assert re.search(r"  sliding  score_first = val_bpb  ", lines[0])


def test_the_terminal_marks_contaminated_seeds(write_runs: Write, tmp_path: Path) -> None:
    """Nobody copies a contaminated number from the table without its mark."""
    runs = write_runs(tmp_path, mode="calibration")
    lines = text.seed_table(aggregate(runs / "recipe.json", runs / "evaluate")).splitlines()
    assert [line.partition(")")[0] for line in lines[1:-1]] == [f"{seed} (contaminated" for seed in (42, 314, 999)]


def test_the_clocks_of_the_rules_are_told(write_runs: Write, tmp_path: Path) -> None:
    """What each clock counts and what not, its sum against its limit; what a seed lacks is a dash."""

    def edit(tree: Files) -> None:
        del tree["clock/clock.verify.314/times.json"]["clocks"]["EVAL-TIME"]
        tree["clock/clock.verify.42/times.json"]["clocks"]["EVAL-TIME"]["limit_seconds"] = None
        spent = tree["clock/clock.verify.999/times.json"]["clocks"]["TRAIN-TIME"]["spent"]
        spent += [dict(spent[2], seconds=0.5), dict(spent[2], phase="setup", seconds=0.25)]

    rows = next(
        rows for rows in tables(rendered(write_runs(tmp_path, edit=edit))) if rows[0][0] == "rule" and len(rows[0]) == 7
    )
    assert rows[1] == ["TRAIN-TIME", "train", "training", "yes", "40.2 s", "40.2 s", "40.2 s"]
    assert rows[3] == ["TRAIN-TIME", "train", "validation", "no", "4.5 s", "4.5 s", "5.0 s"]
    assert rows[4] == ["TRAIN-TIME", "train", "setup", "no", "–", "–", "0.2 s"]
    assert rows[5] == ["TRAIN-TIME", "all", "total", "yes", *["42.0 s of 600.0 s"] * 3]
    assert rows[-1][4:] == ["11.0 s of no limit", "–", "11.0 s of 600.0 s"]


def test_what_the_ledgers_say_of_the_recipe_is_shown(write_runs: Write, tmp_path: Path) -> None:
    """The recipe's digest at start and end of each stage, and the ledgers' seals, stand with the other digests."""
    runs = write_runs(tmp_path, seeds=[42])
    rows = dict(next(rows for rows in tables(rendered(runs)) if rows[0][0] == "what")[1:])
    seals = json.loads((runs / "clock/clock.verify.42/times.json").read_text())["seals"]
    assert rows["recipe in the ledger of train, seed 42"] == "sha256:train, the same at the end"
    assert {stage: rows[f"seal of the ledger of {stage}, seed 42"] for stage in seals} == seals


def test_the_judgement_is_written_for_the_gate(write_runs: Write, tmp_path: Path) -> None:
    """report.json is the judgement of all seeds, and reads back with the verdict that the report shows."""
    runs = with_aggregate(write_runs(tmp_path, mode="prequant"))
    files.write(runs, tmp_path / "report")
    found = verdicts.parse(json.loads((tmp_path / "report/report.json").read_text()), where="report.json")
    assert found == dataclasses.replace(model.load(runs).judgement, rulings=found.rulings)
    assert (found.verdict, found.ruling("C3").verdict, found.ruling("SEEDS").verdict) == ("FAIL", "FAIL", "PASS")
    assert set(found.ruling("C3").witness) == {"seed 42", "seed 314", "seed 999"}


def test_one_seed_is_not_enough(write_runs: Write, tmp_path: Path) -> None:
    """A run of one seed can't pass the profile: SEEDS is unproven, and the report says so."""
    report = model.load(with_aggregate(write_runs(tmp_path, seeds=[42])))
    assert (report.judgement.verdict, report.judgement.ruling("SEEDS").verdict) == ("UNPROVEN", "UNPROVEN")
    assert "required and unproven: SEEDS" in shown(report)


def test_half_a_surrogate_pair_is_told(write_runs: Write, tmp_path: Path) -> None:
    """A text that JSON can hold and UTF-8 can't neither stops the report nor changes in report.json."""

    def edit(tree: Files) -> None:
        tree["recipe.json"]["note"] = "\ud800"
        tree["verify/42/verdict.json"]["rules"][0]["summary"] = "\ud800"

    files.write(with_aggregate(write_runs(tmp_path, edit=edit)), tmp_path / "report")
    rules = json.loads((tmp_path / "report/report.json").read_text())["rules"]
    assert "seed 42: \ud800" in rules[0]["summary"]
    assert "\\ud800" in (tmp_path / "report/report.md").read_text()


def test_a_verdict_of_another_profile_is_no_part_of_a_report(write_runs: Write, tmp_path: Path) -> None:
    """A seed that was judged by fewer rules can't turn the gate green: the stage that judges it is named."""

    def lenient(found: Files) -> None:
        tree = found["verify/314/verdict.json"]
        tree["profile"] = "generic"
        for row in tree["rules"]:
            row["required"] = row["id"] == "C3"
        tree["verdict"] = "PASS"

    with pytest.raises(RunError, match=r"profile 'generic', expected 'pipeline'; run `dvc repro --force verify@314`"):
        model.load(with_aggregate(write_runs(tmp_path, edit=lenient)))
