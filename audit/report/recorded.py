"""What the ledgers of one seed and their verification tell the report: `read(runs, seed, data, zoom=…)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from audit.blocks import text
from audit.errors import RunError
from audit.evidence import Stage
from audit.facts import STAGES, Data, Verified
from audit.ledger import seal_of
from audit.runs import read_verified
from audit.timeline import Timeline, timeline


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One seed: when which part of the validation stream was used, and what `verify` measured."""

    verified: Verified
    timeline: Timeline
    recipes: Mapping[str, Mapping[str, str]]
    """Stage → when (start, end) → the digest of the recipe as the stage read it then; empty where none was noted."""


def read(runs: Path, seed: int, data: Data, *, zoom: int) -> Recorded:
    """Read the ledgers of the seed's stages; `zoom` targets are shown large (`audit.timeline`).

    Raises RunError for ledgers that are missing, of another stage or other than those that `verify` read, LedgerError
    for one that does not hold.
    """
    verified = read_verified(runs, seed)
    stages = [_stage(runs, stage, seed, verified) for stage in STAGES]
    shards = [shard.tokens for shard in data.splits.val.shards]
    return Recorded(
        verified=verified,
        timeline=timeline(seed, stages, shards=shards, zoom=zoom),
        recipes={stage.name: _recipes(stage) for stage in stages},
    )


def _stage(runs: Path, name: str, seed: int, verified: Verified) -> Stage:
    """The ledgers of one stage, if they are those that were verified."""
    folder = runs / "ledger" / f"clock.{name}.{seed}"
    if not folder.is_dir():
        raise RunError(f"{folder} is missing, expected the ledger of that stage; run `dvc repro {name}@{seed}`")
    stage = Stage.open(folder)
    if (stage.name, stage.facts.get("seed")) != (name, seed):
        raise RunError(
            f"{folder} is the ledger of {stage.name or 'no stage'} of seed {stage.facts.get('seed')}, expected {name} "
            f"of {seed}; run `dvc repro {name}@{seed}`"
        )
    if stage.sealed and (seal := text(seal_of(folder))) != verified.seals.get(name):
        raise RunError(
            f"{folder} is sealed {seal}, `verify` read {verified.seals.get(name)}; run `dvc repro verify@{seed}`"
        )
    return stage


def _recipes(stage: Stage) -> dict[str, str]:
    """Of the first rank; the rules hold the others against it."""
    found = (note.facts for rank, note in stage.notes("identity") if rank == 0)
    return {str(facts.get("when")): str(facts.get("recipe")) for facts in found}
