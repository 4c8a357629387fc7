"""Mean and spread over the seeds of the recipe: the `aggregate` stage.

Data flow: the recipe names the seeds; exactly those folders of `evaluate` are read (`audit.runs.read_evaluation`),
in the recipe's order; `summarize` makes mean and sample standard deviation. Folders of other seeds stay unread and
are named in a note.

    aggregate(Path("runs/recipe.json"), Path("runs/evaluate")).as_dict()
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.errors import RunError
from audit.facts import Contamination, Evaluate
from audit.files import read_json
from audit.runs import check_shared, read_evaluation, read_recipe
from audit.trees import parse


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """`runs/aggregate/metrics.json`. The three tables have the same keys, those of `numbers`."""

    seeds: tuple[int, ...]
    recipe_digest: str
    score_label: str
    """The pass that is the score, `val_*`."""
    contaminated: tuple[str, ...]
    """Why the score is none; empty for a clean one."""
    seed: dict[str, dict[str, float]]
    """The numbers of each seed, by the seed as text."""
    mean: dict[str, float]
    std: dict[str, float | None]
    """Sample standard deviation (n - 1), null for one seed."""
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Nested JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("seeds", "contaminated", "notes")}
        return dataclasses.asdict(self) | lists


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation (n - 1; None for one value) of one or more finite numbers.

    Both are computed in exact fractions and rounded once, so equal values have a deviation of exactly 0. Raises
    ValueError for no values.
    """
    if not values:
        raise ValueError("mean_and_std of no values")
    return float(statistics.mean(values)), float(statistics.stdev(values)) if len(values) > 1 else None


def numbers(evaluate: Evaluate) -> dict[str, float]:
    """What is averaged of one seed's evaluation: `val_*` are those of the pass that is the score of the run."""
    return {
        "val_bpb": evaluate.val_bpb,
        "val_loss_nats": evaluate.val_loss_nats,
        "sequential_val_bpb": evaluate.sequential.val_bpb,
        "sequential_val_loss_nats": evaluate.sequential.val_loss_nats,
        "sliding_val_bpb": evaluate.sliding.val_bpb,
        "sliding_val_loss_nats": evaluate.sliding.val_loss_nats,
        "pre_quant_val_bpb": evaluate.pre_quant_val_bpb,
        "first_val_bpb": evaluate.first_val_bpb,
        "bigram_val_bpb": evaluate.bigram_val_bpb,
        "share_of_first": evaluate.share_of_first,
        "margin_under_bigram_bpb": evaluate.margin_under_bigram_bpb,
        "total_bytes": evaluate.total_bytes,
    } | (_worth(evaluate.contamination) if evaluate.contamination else {})


def _worth(found: Contamination) -> dict[str, float]:
    """What a fit to validation was worth in bits per byte at three points; the shares only where there are any."""
    shares = {
        "share_survived_quantization": found.share_survived_quantization,
        "share_survived_sliding": found.share_survived_sliding,
    }
    return {
        "worth_before_quantization_bpb": found.before_quantization.worth,
        "worth_after_quantization_bpb": found.after_quantization.worth,
        "worth_after_sliding_bpb": found.after_sliding.worth,
    } | {name: share for name, share in shares.items() if share is not None}


def summarize(
    rows: Mapping[int, Mapping[str, float]],
    *,
    recipe_digest: str,
    score_label: str,
    contaminated: Sequence[str],
    notes: Sequence[str],
) -> Aggregate:
    """Mean and deviation of rows of numbers by seed. Raises ValueError for no rows or rows with different keys."""
    names = list(next(iter(rows.values()), {}))
    if not names or any(list(row) != names for row in rows.values()):
        raise ValueError(f"rows of different numbers: {[list(row) for row in rows.values()]}")
    columns = {name: mean_and_std([row[name] for row in rows.values()]) for name in names}
    return Aggregate(
        seeds=tuple(rows),
        recipe_digest=recipe_digest,
        score_label=score_label,
        contaminated=tuple(contaminated),
        seed={str(seed): dict(row) for seed, row in rows.items()},
        mean={name: mean for name, (mean, _) in columns.items()},
        std={name: std for name, (_, std) in columns.items()},
        notes=tuple(notes),
    )


def aggregate(recipe_path: Path, evaluate_dir: Path) -> Aggregate:
    """Mean and deviation over exactly the recipe's seeds, in its order.

    Raises RunError for a declared seed that is missing or whose file names another seed, and for seeds that were
    evaluated under different recipes (`recipe_digest` is taken as it is and only compared between the seeds), have
    another pass as their score, or are not contaminated alike.
    """
    seeds = read_recipe(recipe_path).seeds
    found = {seed: read_evaluation(evaluate_dir, seed) for seed in seeds}
    shared: dict[str, Callable[[Evaluate], object]] = {
        "recipe_digest": lambda evaluate: evaluate.recipe_digest,
        "score_label": lambda evaluate: evaluate.score_label,
        "contaminated": lambda evaluate: evaluate.contaminated,
        "contamination": lambda evaluate: sorted(numbers(evaluate)),
    }
    for name, value in shared.items():
        check_shared(evaluate_dir, name, {seed: value(evaluate) for seed, evaluate in found.items()})
    first = found[seeds[0]]
    return summarize(
        {seed: numbers(evaluate) for seed, evaluate in found.items()},
        recipe_digest=first.recipe_digest,
        score_label=first.score_label,
        contaminated=first.contaminated,
        notes=[*_undeclared(evaluate_dir, seeds), *_identical(found)],
    )


def _undeclared(evaluate_dir: Path, seeds: Sequence[int]) -> list[str]:
    declared = {str(seed) for seed in seeds}
    folders = (entry.name for entry in evaluate_dir.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    others = sorted(name for name in folders if name not in declared)
    if not others:
        return []
    others.sort(key=lambda name: int(name) if name.isdecimal() else math.inf)
    return [f"not read, for the recipe does not declare these seeds: {evaluate_dir.name}/{', '.join(others)}"]


def _identical(found: Mapping[int, Evaluate]) -> list[str]:
    pairs = itertools.combinations(found.values(), 2)
    return [
        f"seeds {one.seed} and {other.seed} have the same loss, {one.val_loss_nats} nats: a seed that changes nothing "
        "is no second measurement"
        for one, other in pairs
        if one.val_loss_nats == other.val_loss_nats
    ]


def read_aggregate(path: Path) -> Aggregate:
    """What the `aggregate` stage wrote. Raises RunError if it is damaged or its means are not those of its seeds."""
    remedy = "run `dvc repro aggregate`"
    found = parse(Aggregate, read_json(path, remedy=remedy), where=str(path), remedy=remedy)
    try:
        rows = {int(seed): row for seed, row in found.seed.items()}
        again = summarize(
            rows,
            recipe_digest=found.recipe_digest,
            score_label=found.score_label,
            contaminated=found.contaminated,
            notes=found.notes,
        )
    except (ValueError, KeyError):
        raise RunError(f"{path}: expected the same numbers for every seed; {remedy}") from None
    if again != found:
        raise RunError(f"{path}: mean and std are not those of its seeds; {remedy}")
    return found
