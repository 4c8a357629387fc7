"""The mean over seeds: exactly the recipe's seeds, right numbers, and nothing silently left out."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RunError
from audit.files import to_json, write_text
from audit.stats import aggregate, mean_and_std, read_aggregate, summarize

Write = Callable[..., Path]
finite = st.floats(-1e6, 1e6, allow_nan=False)


def collect(runs: Path) -> Any:
    return aggregate(runs / "recipe.json", runs / "evaluate")


@given(st.lists(finite, min_size=2, max_size=20))
def test_mean_and_std_are_numpys(values: list[float]) -> None:
    """Mean and sample deviation are those of numpy in extended precision, up to its rounding."""
    mean, std = mean_and_std(values)
    wide = np.array(values, dtype=np.longdouble)
    assert math.isclose(mean, float(wide.mean()), rel_tol=1e-12, abs_tol=1e-9)
    assert std is not None
    assert math.isclose(std, float(wide.std(ddof=1)), rel_tol=1e-9, abs_tol=1e-9)


@given(finite, st.integers(2, 9))
def test_equal_values_have_no_deviation(value: float, count: int) -> None:
    """Equal seeds have their own value as mean and exactly 0 as deviation, whatever rounding would do."""
    assert mean_and_std([value] * count) == (value, 0.0)


def test_one_value_has_a_mean_and_no_deviation() -> None:
    """One seed measures no spread: null, not 0."""
    assert mean_and_std([1.5]) == (1.5, None)


def test_no_values_are_an_error() -> None:
    """A mean over nothing is refused."""
    with pytest.raises(ValueError, match="no values"):
        mean_and_std([])
    with pytest.raises(ValueError, match="rows"):
        summarize({}, recipe_digest="sha256:0", score_label="sliding", contaminated=[], notes=[])


@given(
    st.sampled_from([1, 2, 3, 5]).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n, unique=True),
            st.lists(st.floats(0.5, 9.0), min_size=n, max_size=n, unique=True),
        )
    )
)
def test_lists_of_seeds(write_runs: Write, lists: tuple[list[int], list[float]]) -> None:
    """For 1, 2, 3 and 5 seeds: the recipe's seeds in its order, each with its own loss, under the right mean."""
    seeds, losses = lists
    with tempfile.TemporaryDirectory() as folder:
        found = collect(write_runs(Path(folder), seeds=seeds, val_loss_nats=losses, only=("recipe.json", "evaluate/")))
    assert found.seeds == tuple(seeds)
    assert [found.seed[str(seed)]["val_loss_nats"] for seed in seeds] == losses
    assert math.isclose(found.mean["val_loss_nats"], float(np.mean(losses)), rel_tol=1e-12)
    if len(seeds) == 1:
        assert set(found.std.values()) == {None}
    else:
        assert math.isclose(found.std["val_loss_nats"], float(np.std(losses, ddof=1)), rel_tol=1e-9)
    assert found.notes == ()


def test_every_number_of_the_evaluation_is_averaged(write_runs: Write, tmp_path: Path) -> None:
    """Each column of the aggregate is the number of that name in the seed's file."""
    runs = write_runs(tmp_path)
    found = collect(runs)
    for seed in found.seeds:
        row = json.loads((runs / f"evaluate/{seed}/metrics.json").read_text())
        row["sequential_val_bpb"] = row["sequential"]["val_bpb"]
        row["sequential_val_loss_nats"] = row["sequential"]["val_loss_nats"]
        row["sliding_val_bpb"] = row["sliding"]["val_bpb"]
        row["sliding_val_loss_nats"] = row["sliding"]["val_loss_nats"]
        assert found.seed[str(seed)] == {name: row[name] for name in found.mean}
    assert list(found.mean) == list(found.std)
    assert {"val_bpb", "val_loss_nats", "total_bytes"} <= set(found.mean)


def test_the_score_is_that_of_the_pass_that_is_the_score(write_runs: Write, tmp_path: Path) -> None:
    """Adapted while it scored: `val_bpb` is the adapted pass, the sliding column stays the static one."""
    found = collect(write_runs(tmp_path, mode="score_first"))
    row = json.loads((tmp_path / "evaluate/42/metrics.json").read_text())
    assert (found.score_label, found.contaminated) == ("score_first", ())
    assert found.seed["42"]["val_bpb"] == row["adapted"]["val_bpb"] < row["sliding"]["val_bpb"]
    assert found.seed["42"]["sliding_val_bpb"] == row["sliding"]["val_bpb"]


def test_what_a_fit_was_worth_is_averaged(write_runs: Write, tmp_path: Path) -> None:
    """A contaminated aggregate says so, and has the worth at each point and what survived; a clean one has none."""
    clean, found = collect(write_runs(tmp_path / "plain")), collect(write_runs(tmp_path / "fit", mode="prequant"))
    extra = found.mean.keys() - clean.mean.keys()
    assert (clean.contaminated, found.contaminated) == ((), ("prequant",))
    assert extra == {
        "worth_before_quantization_bpb",
        "worth_after_quantization_bpb",
        "worth_after_sliding_bpb",
        "share_survived_quantization",
        "share_survived_sliding",
    }
    assert found.mean["share_survived_quantization"] == 0.75
    assert found.mean["worth_after_sliding_bpb"] * 2 == pytest.approx(found.mean["worth_before_quantization_bpb"])


@pytest.mark.parametrize(
    ("mode", "other", "name"),
    [
        ("plain", "score_first", "score_label"),
        ("plain", "calibration", "contaminated"),
        ("prequant", None, "contamination"),
    ],
)
def test_seeds_of_different_kinds_are_an_error(
    write_runs: Write, tmp_path: Path, mode: str, other: str | None, name: str
) -> None:
    """Seeds with other passes as their score, or not contaminated alike, are not averaged."""
    runs = write_runs(tmp_path / "runs", mode=mode)
    path = runs / "evaluate/999/metrics.json"
    if other:
        path.write_bytes((write_runs(tmp_path / "other", mode=other) / "evaluate/999/metrics.json").read_bytes())
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"contamination": None}))
    with pytest.raises(RunError, match=rf"evaluate/999/metrics\.json: {name} is .*dvc repro evaluate"):
        collect(runs)


def test_a_missing_seed_is_an_error(write_runs: Write, tmp_path: Path) -> None:
    """A seed that the recipe declares and nobody evaluated ends the stage, with the command that makes it."""
    runs = write_runs(tmp_path, edit=lambda files: files.pop("evaluate/314/metrics.json"))
    with pytest.raises(RunError, match=r"evaluate/314/metrics\.json.*dvc repro evaluate@314"):
        collect(runs)


def test_a_file_of_another_seed_is_an_error(write_runs: Write, tmp_path: Path) -> None:
    """A copied folder is no second seed: the file names the seed it is of."""
    runs = write_runs(tmp_path)
    copied = (runs / "evaluate/42/metrics.json").read_text()
    (runs / "evaluate/999/metrics.json").write_text(copied)
    with pytest.raises(RunError, match=r"999/metrics\.json: seed is 42, expected 999"):
        collect(runs)


def test_seeds_of_different_recipes_are_an_error(write_runs: Write, tmp_path: Path) -> None:
    """Seeds that were evaluated under different recipes are not averaged."""

    def edit(files: dict[str, Any]) -> None:
        files["evaluate/999/metrics.json"]["recipe_digest"] = "sha256:other"

    with pytest.raises(RunError, match=r"evaluate/999/metrics\.json: recipe_digest is 'sha256:other'.*seed 42"):
        collect(write_runs(tmp_path, edit=edit))


def test_the_digest_is_not_that_of_the_recipe_file(write_runs: Write, tmp_path: Path) -> None:
    """Other seeds in the recipe leave the runs of these seeds valid: the digest is compared between seeds only."""
    runs = write_runs(tmp_path)
    recipe = json.loads((runs / "recipe.json").read_text())
    (runs / "recipe.json").write_text(json.dumps(recipe | {"seeds": [999, 42]}))
    assert collect(runs).seeds == (999, 42)


def test_other_folders_are_named_and_not_read(write_runs: Write, tmp_path: Path) -> None:
    """Folders of seeds that the recipe does not declare are in the notes, numbers in order, and not in the mean."""
    expected = collect(write_runs(tmp_path))
    for name in ("1000", "7", "old", ".42.partial"):
        (tmp_path / "evaluate" / name).mkdir()
    (tmp_path / "evaluate" / ".gitignore").write_text("/42\n")
    found = collect(tmp_path)
    assert found.mean == expected.mean
    assert [note.rpartition(": ")[2] for note in found.notes] == ["evaluate/7, 1000, old"]


def test_seeds_that_do_not_matter_are_noted(write_runs: Write, tmp_path: Path) -> None:
    """Two seeds with the same loss are named; different ones are not."""
    found = collect(write_runs(tmp_path, val_loss_nats=[3.25, 3.5, 3.25]))
    assert [note for note in found.notes if "same loss" in note] == [
        "seeds 42 and 999 have the same loss, 3.25 nats: a seed that changes nothing is no second measurement"
    ]


def test_reading_is_the_inverse_of_writing(write_runs: Write, tmp_path: Path) -> None:
    """What the stage writes is read back equal."""
    (write_runs(tmp_path) / "evaluate" / "7").mkdir()
    found = collect(tmp_path)
    write_text(tmp_path / "metrics.json", to_json(found.as_dict()))
    assert read_aggregate(tmp_path / "metrics.json") == found


@pytest.mark.parametrize(
    "edit",
    [
        lambda tree: tree["mean"].update(val_bpb=1.0),
        lambda tree: tree["std"].update(val_bpb=0.0),
        lambda tree: tree["seed"]["42"].update(val_bpb=1.0),
        lambda tree: tree["seed"].pop("42"),
        lambda tree: tree["seed"]["42"].pop("val_bpb"),
        lambda tree: tree.pop("contaminated"),
        lambda tree: tree["seed"].update(x=tree["seed"].pop("999")),
        lambda tree: tree.update(seeds=[42, 314]),
        lambda tree: tree.update(seed={}, mean={}, std={}, seeds=[]),
    ],
)
def test_an_edited_aggregate_is_refused(write_runs: Write, tmp_path: Path, edit: Callable[[Any], object]) -> None:
    """An aggregate whose means are not those of its own seeds is damaged."""
    tree = json.loads(to_json(collect(write_runs(tmp_path)).as_dict()))
    edit(tree)
    (tmp_path / "metrics.json").write_text(json.dumps(tree))
    with pytest.raises(RunError, match="dvc repro aggregate"):
        read_aggregate(tmp_path / "metrics.json")
