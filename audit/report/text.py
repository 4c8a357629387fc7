"""Numbers as text, and the terminal's view of an aggregate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from audit.stats import Aggregate

Format = Callable[[float], str]


def decimals(value: float) -> str:
    """Bits per byte and nats, to the 1e-4 that the contest quotes."""
    return f"{value:.4f}"


def share(value: float) -> str:
    """A share of one as per cent."""
    return f"{value:.1%}".replace("%", " %")


def count(value: float) -> str:
    """Bytes, tokens, steps; a mean of them is rounded to whole ones."""
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """Seconds to a tenth."""
    return f"{value:,.1f}"


def mean_and_std(mean: float, std: float | None, form: Format) -> str:
    """`mean ± sd`; the mean alone where one seed has no deviation."""
    return form(mean) if std is None else f"{form(mean)} ± {form(std)}"


COLUMNS: tuple[tuple[str, str, Format], ...] = (
    ("first bpb", "first_val_bpb", decimals),
    ("before quant.", "pre_quant_val_bpb", decimals),
    ("sequential", "sequential_val_bpb", decimals),
    ("sliding = val_bpb", "val_bpb", decimals),
    ("loss, nats", "val_loss_nats", decimals),
    ("share of first", "share_of_first", share),
    ("artifact bytes", "total_bytes", count),
)
"""Of the terminal's table: title, key of the aggregate, format."""


def seed_table(aggregate: Aggregate) -> str:
    """The seeds and their mean ± sample standard deviation as an aligned table, without colour."""
    head = ["seed", *(title for title, _, _ in COLUMNS)]
    rows = [[seed, *(form(row[key]) for _, key, form in COLUMNS)] for seed, row in aggregate.seed.items()]
    last = [mean_and_std(aggregate.mean[key], aggregate.std[key], form) for _, key, form in COLUMNS]
    return align([head, *rows, [mean_label(len(aggregate.seeds)), *last]])


def mean_label(seeds: int) -> str:
    """What the last row of a table of seeds is called."""
    return "mean (one seed, no sd)" if seeds == 1 else f"mean ± sample sd, n = {seeds}"


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines: the first column to the left, the others to the right, two spaces between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
