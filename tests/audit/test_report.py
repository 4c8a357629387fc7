"""The report: its numbers are those of the files, its tables are tables, its files are whole or absent."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from audit.errors import OutputError, RunError
from audit.report import cells, files, model, text
from audit.stats import aggregate
from tests.audit.reading import headings, rendered, shown, tables, with_aggregate

Write = Callable[..., Path]
Files = dict[str, Any]


@given(st.lists(st.floats(0.5, 9.0), min_size=3, max_size=3, unique=True))
@settings(max_examples=8)
def test_the_seed_table_tells_the_files(write_runs: Write, losses: list[float]) -> None:
    """Each number of each seed is that of its own files, and the last row their mean and sample deviation."""
    with tempfile.TemporaryDirectory() as folder:
        runs = write_runs(Path(folder), val_loss_nats=losses)
        source = rendered(runs)
        stages = ("train", "quantize", "evaluate")
        trees = {
            seed: [json.loads((runs / stage / str(seed) / "metrics.json").read_text()) for stage in stages]
            for seed in (42, 314, 999)
        }
    head, *body = tables(source)[1]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in body}
    for seed, (train, quantize, evaluate) in trees.items():
        assert rows[str(seed)] == {
            "seed": str(seed),
            "first": f"{train['first_val_bpb']:.4f}",
            "before quantization": f"{train['pre_quant_val_bpb']:.4f}",
            "after, sequential": f"{evaluate['sequential']['val_bpb']:.4f}",
            "after, sliding": f"{evaluate['sliding']['val_bpb']:.4f}",
            "loss, nats": f"{evaluate['val_loss_nats']:.4f}",
            "share of first": f"{100 * evaluate['share_of_first']:.1f} %",
            "under bigram": f"{evaluate['margin_under_bigram_bpb']:.4f}",
            "steps": f"{train['steps']:,}",
            "artifact bytes": f"{quantize['total_bytes']:,}",
        }
    mean = f"{statistics.fmean(losses):.4f} ± {statistics.stdev(losses):.4f}"
    assert rows["mean ± sample sd, n = 3"]["loss, nats"] == mean
    assert f"({mean} nats per token; sliding window, stride 64; mean ± sample standard deviation of 3 seeds)" in source


@pytest.mark.parametrize("seeds", [(7,), (1, 2), (5, 4, 3), (1, 2, 3, 4, 5)])
def test_every_table_is_well_formed(write_runs: Write, tmp_path: Path, seeds: tuple[int, ...]) -> None:
    """For 1, 2, 3 and 5 seeds a second reader of Markdown sees all ten tables, full, with a row for each seed."""
    source = rendered(write_runs(tmp_path, seeds=seeds))
    found = tables(source)
    heads = ["rule", "seed", "seed", "split", "split", "what", "key", "stage", "measured", "rule"]
    assert [rows[0][0] for rows in found] == heads
    assert all(len(row) == len(rows[0]) and all(row) for rows in found for row in rows)
    assert [row[0] for row in found[1][1:]] == [*map(str, seeds), text.mean_label(len(seeds))]
    assert found[7][0][2:] == found[9][0][4:] == [f"seed {seed}" for seed in seeds]
    assert ("no deviation" in source) == (len(seeds) == 1)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30))
@settings(max_examples=200)
def test_a_cell_shows_any_text_as_it_is(value: str) -> None:
    """Pipes, backticks, tags and the rest stay text, in one cell, in plain and in code; what has no shape is told."""
    expected = "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in " ".join(value.split()))
    rows = [["a", cells.plain(value), "b"], ["c", cells.code(value), "d"]]
    source = str(cells.Table(["one", "two", "three"], rows))
    (found,) = tables(source)
    assert set(re.findall("<[^>]*>?", source)) == {"<code>", "</code>"}
    assert "$" not in source
    assert found[1:] == [["a", expected, "b"], ["c", expected, "d"]]


def test_a_ragged_table_is_a_bug() -> None:
    """A row of another width than the header raises instead of making a broken table."""
    with pytest.raises(ValueError, match="width"):
        str(cells.Table(["a", "b"], [["1"]]))


SECTIONS = [
    "Report",
    "Verdict",
    "Findings",
    "What would prove the rest",
    "Timeline",
    "Notes",
    "Seeds",
    "Sizes",
    "Data",
    "Recipe",
    "Time",
    "The clocks of the rules",
]


def test_hostile_names_stay_in_their_place(write_runs: Write, tmp_path: Path) -> None:
    """Names from the files can't add columns, headings or HTML to the report, nor leave the recipe's code block."""

    def edit(tree: Files) -> None:
        tree["recipe.json"]["note"] = "````\n# owned | <b>"
        tree["clock/clock.train.42/times.json"]["phases"][0]["name"] = "a | b\n\n# owned <script>"

    source = rendered(write_runs(tmp_path, edit=edit))
    assert headings(source) == SECTIONS
    assert "<script>" not in source
    tokens = MarkdownIt("commonmark").enable("table").parse(source)
    (block,) = [token.content for token in tokens if token.type == "fence"]
    assert json.loads(block) == json.loads((tmp_path / "recipe.json").read_text())


def test_sizes_stand_against_the_limit(write_runs: Write, tmp_path: Path) -> None:
    """Headroom is limit minus total, also where it is none: then the report says so twice."""

    def edit(tree: Files) -> None:
        tree["quantize/314/metrics.json"]["limit_bytes"] = 50_000

    source = rendered(write_runs(tmp_path, edit=edit))
    sizes = tables(source)[2]
    assert sizes[1][1:6] == ["30,000", "20,000", "50,000", "16,000,000", "15,950,000"]
    total = (tmp_path / "quantize/314/model.golf").stat().st_size + 20_000
    assert sizes[2][5] == f"{total - 50_000:,} over"
    assert f"seed 314: code and model are {total - 50_000:,} bytes over the limit" in source


def test_data_facts_and_what_normalization_changes(write_runs: Write, tmp_path: Path) -> None:
    """The splits' counts, their ratio to the original text, and the score per original byte."""
    runs = write_runs(tmp_path, seeds=[42], val_loss_nats=[3.5])
    source = rendered(runs)
    counts = tables(source)[3]
    assert counts[2] == ["val", "100", "51,457", "140,700", "141,000", "0.997872", "2.734", "1"]
    bpb = json.loads((runs / "evaluate/42/metrics.json").read_text())["val_bpb"]
    assert f"the mean score would read {bpb * 140_700 / 141_000:.4f}." in source
    assert [row[1] for row in tables(source)[4][1:]] == [*(f"train_{i:06d}.bin" for i in range(8)), "val_000000.bin"]


def test_unknown_original_bytes_are_said_to_be_unknown(write_runs: Write, tmp_path: Path) -> None:
    """Where only tokens were published there is no ratio, and the report says so instead of leaving it out."""
    runs = write_runs(tmp_path)
    report = model.load(with_aggregate(runs))
    split = dataclasses.replace(report.run.data.splits.val, original_bytes=None, documents=None)
    splits = dataclasses.replace(report.run.data.splits, val=split)
    data = dataclasses.replace(report.run.data, splits=splits, duplicates_dropped=None)
    source = shown(dataclasses.replace(report, run=dataclasses.replace(report.run, data=data)))
    assert tables(source)[3][2][1:6] == ["not known", "51,457", "140,700", "not known", "not known"]
    assert "the bytes of the original text are not known here." in source


def test_times_add_up(write_runs: Write, tmp_path: Path) -> None:
    """A seed's phases add up to its stages and these to its whole, in seconds and in shares."""
    rows = next(rows for rows in tables(rendered(write_runs(tmp_path))) if rows[0][0] == "stage")[1:]

    def read(cell: str) -> tuple[float, float]:
        seconds, share = re.fullmatch(r"([\d.]+) s \(([\d.]+) %\)", cell).groups()  # type: ignore[union-attr]
        return float(seconds), float(share)

    assert rows[-1] == ["all", "total", *["62.0 s (100.0 %)"] * 3]
    for column in (2, 3, 4):
        for take, near in ((0, 0.2), (1, 0.3)):
            phases = sum(read(row[column])[take] for row in rows if row[1] != "total")
            stages = sum(read(row[column])[take] for row in rows[:-1] if row[1] == "total")
            assert phases == pytest.approx(stages, abs=near)
            assert stages == pytest.approx(read(rows[-1][column])[take], abs=near)


def test_a_phase_that_one_seed_lacks_is_a_dash(write_runs: Write, tmp_path: Path) -> None:
    """Phases are the union over the seeds; where a seed has none of it, nothing is invented."""

    def edit(tree: Files) -> None:
        tree["clock/clock.train.314/times.json"]["phases"].append({"name": "resume", "seconds": 1.0})

    rows = next(rows for rows in tables(rendered(write_runs(tmp_path, edit=edit))) if rows[0][0] == "stage")
    (resume,) = [row for row in rows if row[1] == "resume"]
    assert (resume[2], resume[4]) == ("–", "–")
    assert resume[3].startswith("1.0 s")


NOTES: list[tuple[str, Callable[[Files], Any]]] = [
    (
        "seed 314: recipe, sources or data changed while it trained",
        lambda tree: tree["train/314/metrics.json"].update(
            identity_at_end=tree["train/314/metrics.json"]["identity_at_end"] | {"source_digest": "sha256:0"}
        ),
    ),
    (
        "validation was cut to 5,000 tokens",
        lambda tree: tree["recipe.json"]["corpus"].update(max_validation_tokens=5000),
    ),
    (
        "seed 42: the training clock shows 42.0 s, the recipe allows 40.0 s",
        lambda tree: tree["recipe.json"]["train"].update(seconds=40.0),
    ),
    ("seeds 42 and 314 have the same loss", lambda tree: _same_loss(tree)),
    ("contaminated by calibration=val: no valid score", lambda tree: _contaminate(tree)),
]


def _same_loss(tree: Files) -> None:
    names = ("sliding", "val_bpb", "val_loss_nats", "margin_under_bigram_bpb")
    one, other = tree["evaluate/42/metrics.json"], tree["evaluate/314/metrics.json"]
    other.update({name: one[name] for name in names}, share_of_first=one["val_bpb"] / other["first_val_bpb"])


def _contaminate(tree: Files) -> None:
    for name, value in tree.items():
        if name.startswith(("evaluate/", "quantize/")) and name.endswith("metrics.json"):
            value["contaminated"] = ["calibration=val"]


@pytest.mark.parametrize(("note", "edit"), NOTES)
def test_notes(write_runs: Write, tmp_path: Path, note: str, edit: Callable[[Files], Any]) -> None:
    """What a reader must know is noted when it is so, and not when it isn't."""
    honest = model.load(with_aggregate(write_runs(tmp_path / "honest")))
    planted = model.load(with_aggregate(write_runs(tmp_path / "planted", edit=edit)))
    assert [line for line in honest.notes if line.startswith(note)] == []
    assert len([line for line in planted.notes if line.startswith(note)]) == 1


def test_other_text_than_the_contests_is_noted(write_runs: Write, tmp_path: Path) -> None:
    """A score on generated text is not to be compared with the contest's."""
    assert any("embedded, not fineweb" in note for note in model.load(with_aggregate(write_runs(tmp_path))).notes)


def test_a_stale_aggregate_is_refused(write_runs: Write, tmp_path: Path) -> None:
    """An aggregate of other seeds or other evaluations than those on disk stops the report; a stray folder doesn't."""
    runs = with_aggregate(write_runs(tmp_path))
    (runs / "evaluate" / "7").mkdir()
    assert any("evaluate/7" in note for note in model.load(runs).notes)
    recipe = json.loads((runs / "recipe.json").read_text())
    (runs / "recipe.json").write_text(json.dumps(recipe | {"seeds": [42, 314]}))
    with pytest.raises(RunError, match=r"aggregate/metrics\.json is not what .*dvc repro aggregate"):
        model.load(runs)


def test_files_are_whole_or_absent(write_runs: Write, tmp_path: Path) -> None:
    """A report is written twice alike; a broken run or an impossible place leaves nothing behind."""
    runs = with_aggregate(write_runs(tmp_path / "runs", seeds=[42]))
    path = files.write(runs, tmp_path / "report")
    first = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    assert set(first) == {"report.md", "report.json", "loss_curves.svg", "timeline.svg"}
    files.write(runs, tmp_path / "report")
    assert {entry.name: entry.read_bytes() for entry in path.parent.iterdir()} == first

    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't write"):
        files.write(runs, tmp_path / "file")
    (tmp_path / "taken" / "report.md").mkdir(parents=True)
    with pytest.raises(OutputError, match="can't write"):
        files.write(runs, tmp_path / "taken")
    assert {entry.name for entry in (tmp_path / "taken").iterdir()} == set(first)
    (runs / "evaluate/42/metrics.json").unlink()
    with pytest.raises(RunError):
        files.write(runs, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_the_terminals_table_is_aligned(write_runs: Write, tmp_path: Path) -> None:
    """Rows of one width, the numbers of the aggregate, no control characters."""
    runs = write_runs(tmp_path, val_loss_nats=[3.25, 3.5, 3.75])
    found = aggregate(runs / "recipe.json", runs / "evaluate")
    lines = text.seed_table(found).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert "3.5000 ± 0.2500" in lines[-1]
    assert all(line.isprintable() for line in lines)
    assert [line.split()[0] for line in lines[1:-1]] == ["42", "314", "999"]
