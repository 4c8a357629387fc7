"""The curves of all seeds in one table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit.curves import CURVES, long_table
from audit.errors import RunError

Write = Callable[..., Path]


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("seeds", [(42,), (999, 42, 314)])
def test_every_row_of_every_seed_is_there(write_runs: Write, tmp_path: Path, name: str, seeds: tuple[int, ...]) -> None:
    """The table is the seeds' own rows, step and curve, behind their seed, in the order of the seeds."""
    runs = write_runs(tmp_path)
    head, *rows = [line.split("\t") for line in long_table(runs / "train", name, seeds).splitlines()]
    expected = [
        (str(seed), int(step), float(value))
        for seed in seeds
        for step, value, _ in (
            line.split("\t") for line in (runs / f"train/{seed}/{name}").read_text().splitlines()[1:]
        )
    ]
    assert head == ["seed", *CURVES[name][:2]]
    assert [(seed, int(step), float(value)) for seed, step, value in rows] == expected


def test_a_missing_curve_is_an_error(write_runs: Write, tmp_path: Path) -> None:
    """A seed without a curve ends the stage."""
    (write_runs(tmp_path) / "train/314/validation.tsv").unlink()
    with pytest.raises(RunError, match=r"train/314/validation\.tsv.*dvc repro train@314"):
        long_table(tmp_path / "train", "validation.tsv", (42, 314))
