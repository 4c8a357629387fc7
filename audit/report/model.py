"""One model of the report; every view is a function of it.

    report = load(Path("runs"))

Data flow: the files of the run, each held against the others (`audit.runs`) → the judgements that `verify` wrote for
the recipe's seeds, as one (`audit.merging`) → the ledgers' timelines (`audit.report.recorded`) → `Report`. Verdicts
come from the judgements alone; what the report adds are notes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from audit import merging
from audit.errors import RunError
from audit.facts import Data, Recipe, Run, SeedRun
from audit.report import recorded
from audit.report.recorded import Recorded
from audit.rules.seeds import over
from audit.ruleset import Ruleset, read_ruleset
from audit.runs import read_run
from audit.stats import Aggregate, aggregate, read_aggregate
from audit.verdicts import Judgement

CONTEST_CORPUS = "fineweb"
PROFILE = "pipeline"
"""What a report of the pipeline is judged under."""
CHUNKS_SHOWN = 8
"""Of a run that adapts chunk by chunk, large."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A checked run, the mean over its seeds, the judgement, and what a reader must know beside the numbers."""

    run: Run
    aggregate: Aggregate
    judgement: Judgement
    recorded: tuple[Recorded, ...]
    """In the order of the seeds."""
    proofs: Mapping[str, str]
    """Rule → what would prove it."""
    notes: tuple[str, ...]

    @property
    def contaminated(self) -> tuple[str, ...]:
        """Why the score is none; empty for a clean one."""
        return self.aggregate.contaminated


def load(runs: Path) -> Report:
    """The report of the run under `runs`.

    Raises RunError for files that are missing, damaged or contradict each other, and for an aggregate that is not what
    the evaluations of the recipe's seeds give now; LedgerError for a ledger that does not hold.
    """
    run, fresh, ruleset = read_run(runs), read_fresh(runs), read_ruleset()
    judgement = judge(runs, run, ruleset)
    zoom = CHUNKS_SHOWN * int(run.recipe.number("ttt.chunk_tokens"))
    notes = [
        *_contamination_notes(fresh),
        *_corpus_notes(run.recipe, run.data),
        *(note for seed in run.seeds for note in _seed_notes(run.recipe, seed)),
    ]
    return Report(
        run=run,
        aggregate=fresh,
        judgement=judgement,
        recorded=tuple(recorded.read(runs, seed, run.data, zoom=zoom) for seed in run.recipe.seeds),
        proofs={rule: about.proof for rule, about in ruleset.rules.items()},
        notes=(*fresh.notes, *notes),
    )


def read_fresh(runs: Path) -> Aggregate:
    """What the evaluations give, if it is what the stage `aggregate` wrote. Raises RunError if it isn't."""
    path = runs / "aggregate" / "metrics.json"
    stored, fresh = read_aggregate(path), aggregate(runs / "recipe.json", runs / "evaluate")
    # The notes speak of stray folders too, which come and go without making the aggregate stale.
    if dataclasses.replace(stored, notes=()) != dataclasses.replace(fresh, notes=()):
        raise RunError(f"{path} is not what {runs}/evaluate gives for the recipe's seeds; run `dvc repro aggregate`")
    return fresh


def judge(runs: Path, run: Run, ruleset: Ruleset) -> Judgement:
    """The judgement of the whole run: those of its seeds as one, and the rule on the seeds themselves."""
    judgements = {seed: merging.read_judgement(runs, seed) for seed in run.recipe.seeds}
    for seed, found in judgements.items():
        if found.profile != PROFILE:
            raise RunError(
                f"{runs}/verify/{seed}/verdict.json is judged under profile {found.profile!r}, expected {PROFILE!r}; "
                f"run `dvc repro --force verify@{seed}`"
            )
    return merging.merge(judgements, seeds=over(judgements, ruleset), required=ruleset.profile(PROFILE))


def _contamination_notes(found: Aggregate) -> list[str]:
    if not found.contaminated:
        return []
    return [f"contaminated by {', '.join(found.contaminated)}: no valid score, and not to be compared with any"]


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
