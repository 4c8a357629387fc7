"""The curves of all seeds in one table a quantity, long form, as DVC's plots draw them with a line for each seed.

seed  step  train_loss_nats
42    1     6.93
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from audit.runs import read_series

CURVES = {
    "train_loss.tsv": ("step", "train_loss_nats", "lr_factor"),
    "validation.tsv": ("step", "val_loss_nats", "val_bpb"),
}
"""File below runs/train/<seed>/ and its columns; the second is the curve."""


def long_table(train: Path, name: str, seeds: Sequence[int]) -> str:
    """One row for each seed and step, tab-separated, from `train`/<seed>/`name`. Raises RunError for a bad file."""
    columns = CURVES[name]
    rows = ["\t".join(("seed", *columns[:2]))]
    for seed in seeds:
        series = read_series(train / str(seed) / name, columns, remedy=f"run `dvc repro train@{seed}`")
        rows += [f"{seed}\t{step}\t{value!r}" for step, value in zip(series.steps, series.values, strict=True)]
    return "\n".join(rows) + "\n"
