"""One model of the report; every view is a function of it.

    report = load(Path("runs"))

The model holds facts and notes. It claims no verdict: a run without a ledger has nothing to judge by.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from audit.errors import RunError
from audit.runs import Data, Recipe, Run, SeedRun, read_run
from audit.stats import Aggregate, aggregate, read_aggregate

CONTEST_CORPUS = "fineweb"
NOT_SHOWN = (
    "No ledger was recorded, so nothing here is proof yet of which validation data reached the weights, the "
    "calibration or the choice of settings before they were scored."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """A checked run, the mean over its seeds, and what a reader must know beside the numbers."""

    run: Run
    aggregate: Aggregate
    notes: tuple[str, ...]
    not_shown: str = NOT_SHOWN


def load(runs: Path) -> Report:
    """The report of the run under `runs`.

    Raises RunError for files that are missing, damaged or contradict each other, and for an aggregate that is not what
    the evaluations of the recipe's seeds give now.
    """
    run = read_run(runs)
    path = runs / "aggregate" / "metrics.json"
    stored = read_aggregate(path)
    fresh = aggregate(runs / "recipe.json", runs / "evaluate")
    # The notes speak of stray folders too, which come and go without making the aggregate stale.
    if dataclasses.replace(stored, notes=()) != dataclasses.replace(fresh, notes=()):
        raise RunError(f"{path} is not what {runs}/evaluate gives for the recipe's seeds; run `dvc repro aggregate`")
    notes = [
        *_corpus_notes(run.recipe, run.data),
        *(note for seed in run.seeds for note in _seed_notes(run.recipe, seed)),
    ]
    return Report(run=run, aggregate=fresh, notes=(*fresh.notes, *notes))


def _corpus_notes(recipe: Recipe, data: Data) -> list[str]:
    notes = []
    if data.source != CONTEST_CORPUS:
        notes.append(
            f"the corpus is {data.source}, not {CONTEST_CORPUS}: bits per byte of other text do not compare with the "
            "contest's"
        )
    kept = recipe.number("corpus.max_validation_tokens")
    if kept:
        notes.append(f"validation was cut to {kept:,.0f} tokens, so the score is not that of the whole split")
    return notes


def _seed_notes(recipe: Recipe, run: SeedRun) -> list[str]:
    notes = []
    end, train = run.train.identity_at_end, run.train
    if end and (end.recipe_digest, end.source_digest, end.data_digest) != (
        train.recipe_digest,
        train.source_digest,
        train.data_digest,
    ):
        notes.append(f"seed {run.seed}: recipe, sources or data changed while it trained")
    if run.quantize.total_bytes > run.quantize.limit_bytes:
        over = run.quantize.total_bytes - run.quantize.limit_bytes
        notes.append(f"seed {run.seed}: code and model are {over:,} bytes over the limit")
    limit, spent = recipe.number("train.seconds"), run.clocks["train"].training_clock_seconds
    if limit and spent and spent > limit:
        notes.append(f"seed {run.seed}: the training clock shows {spent:,.1f} s, the recipe allows {limit:,.1f} s")
    return notes
