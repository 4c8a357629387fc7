"""Verify a run: its ledgers against the data, the trainer's loader, its own claims, and the rules.

1. Every rank's ledger of every stage is walked once (the chain of its blocks); stages must follow from each other's
   seals.
2. The data are opened and hashed, and what overlaps between the splits is read or measured (`audit.identity`).
3. The contents of draws and scores are read again from the shards (`audit.contents`), the draws of the trainer's loader
   are made again (`audit.replay`), and losses of the artifact computed again (`audit.rescore`).
4. All of it is `Evidence`; the rules (`audit.rules`) make rulings of it, and those are the judgement.

    verify_seed(Path("runs"), 42, options)        all of it, in the pipeline's own layout
    verify_folders([Path("ledger")], options)     any program: without claims, artifact, and what of 3 needs them
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from audit import again, identity, ledger, rules
from audit.claims import read_artifact, read_claims
from audit.contents import check_contents
from audit.errors import RunError
from audit.evidence import Contents, Evidence, Positions, Stage, Stream, check_chain
from audit.facts import STAGES
from audit.files import to_json, write_text
from audit.kept import read_kept
from audit.octets import Octets
from audit.ruleset import PARAMETER_GOLF, read_ruleset
from audit.runs import read_recipe
from audit.splits import Data, Split, open_data
from audit.verdicts import Judgement

RESCORED_ON_CPU = 8
"""Score records of a run on a CPU whose losses are computed again; one of a GPU's takes a CPU minutes."""
FULL = "pipeline"
GENERIC = "generic"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to verify. `profile` None is `pipeline` for the trainer's stages and `generic` for any other program."""

    data: Path | None = None
    identity: Path | None = None
    ruleset: Path = PARAMETER_GOLF
    profile: str | None = None
    sample: int | None = None
    """Records whose contents are read again, None for all."""
    rescore: int | None = None
    """Score records whose losses are computed again; None for 8 of a CPU run and none of a GPU's."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The judgement, the seconds behind it by rule, and the seals of the ledgers by stage."""

    judgement: Judgement
    clocks: Mapping[str, Mapping[str, Any]]
    seals: Mapping[str, str]


def verify_seed(runs: Path, seed: int, options: Options) -> Verification:
    """Verify one seed of the pipeline's folder. Raises AuditError for what can't be read."""
    recipe = read_recipe(runs / "recipe.json")
    folders = {name: runs / "ledger" / f"clock.{name}.{seed}" for name in STAGES}
    for name, place in folders.items():
        if not place.is_dir():
            raise RunError(f"{place} is missing, expected the ledger of that stage; run `dvc repro {name}@{seed}`")
    stages = open_stages(list(folders.values()))
    for stage, name in zip(stages, STAGES, strict=True):
        if (stage.name, stage.facts.get("seed")) != (name, seed):
            raise RunError(
                f"{stage.folder} is of stage {stage.name!r}, seed {stage.facts.get('seed')}, expected {name} of seed "
                f"{seed}; run `dvc repro {name}@{seed}`"
            )
    folder = options.data or runs / "data"
    data, ruleset = open_data([folder]), read_ruleset(options.ruleset)
    of_run = identity.read(options.identity or runs / "identity", [folder], ruleset, facts=folder / "data.json")
    evidence = Evidence(
        ruleset=ruleset,
        stages=stages,
        streams=streams(data),
        contents=_contents(stages, data, options, kept=runs / "quantize" / str(seed) / "calibration.safetensors"),
        identity=of_run,
        claims=read_claims(runs, seed, recipe),
        artifact=read_artifact(runs, seed),
    )
    evidence, rescored = _replayed(evidence, data, recipe.tree, seed, runs, options)
    return _judged(evidence, options, profile=FULL, subject={"seed": seed} | rescored)


def verify_folders(folders: Sequence[Path], options: Options) -> Verification:
    """Verify recorded programs, in the order in which they ran. Raises AuditError for what can't be read."""
    stages, ruleset = open_stages(folders), read_ruleset(options.ruleset)
    folder = options.data or _announced_data(stages)
    if options.identity and not folder:
        raise RunError(f"got the identity {options.identity} of no data; give the data folder with --data")
    data = open_data([folder]) if folder else None
    of_run = None
    if folder and data and options.identity:
        of_run = identity.read(options.identity, [folder], ruleset, facts=folder / "data.json")
    evidence = Evidence(
        ruleset=ruleset,
        stages=stages,
        streams=streams(data) if data else {},
        contents=_contents(stages, data, options) if data else None,
        identity=of_run,
    )
    ours = any(stage.name in STAGES for stage in stages)
    told = {again.KEY: again.again(evidence.contents, None, None, None)}
    return _judged(evidence, options, profile=FULL if ours else GENERIC, subject=told)


def open_stages(folders: Sequence[Path]) -> tuple[Stage, ...]:
    """The stages in their order, chained. Raises LedgerError, RunError for none."""
    if not folders:
        raise RunError("got no ledger to verify; name the folder that `golf-audit run -o` wrote")
    stages = tuple(Stage.open(folder) for folder in folders)
    check_chain(stages)
    return stages


def streams(data: Data) -> dict[str, Stream]:
    """The splits as the rules see them; bytes can be counted where there is a tokenizer."""
    octets = Octets.read(data.tokenizer) if data.tokenizer else None
    return {
        name: Stream(
            shards=tuple(len(shard.tokens) for shard in split.shards),
            octets=octet_counter(split, octets) if octets else None,
        )
        for name, split in data.splits.items()
    }


def octet_counter(split: Split, octets: Octets) -> Callable[[Positions, Positions], Positions]:
    """(first targets [n], how many [n]) → bytes of text behind them; target i of the split is its token i + 1."""

    def count(first: Positions, many: Positions) -> Positions:
        if not len(first):
            return np.zeros(0, dtype=np.int64)
        low, high = int(first.min()), int((first + many).max())
        if len(first) > 1 and high - low > 4 * int(many.sum()):  # far apart: one by one
            return np.concatenate([count(first[i : i + 1], many[i : i + 1]) for i in range(len(first))])
        tokens = split.slice(low, high + 1)
        sums = np.concatenate([[0], np.cumsum(octets.count(tokens[:-1], tokens[1:]))])
        found: Positions = sums[first + many - low] - sums[first - low]
        return found

    return count


def _contents(stages: Sequence[Stage], data: Data, options: Options, *, kept: Path | None = None) -> Contents:
    """What re-reading the shards gives, with what the quantizer kept of text that no shard holds."""
    own = {"self": read_kept(kept, "self")} if kept and kept.exists() and _draws(stages, "self") else {}
    return check_contents(stages, data, sample=options.sample, seed=chance(), kept=own)


def _draws(stages: Sequence[Stage], split: str) -> bool:
    """Whether any draw is of a split."""
    return any(split in span.drawn for stage in stages for part in stage.parts for span in part.outline.spans)


def _replayed(
    evidence: Evidence, data: Data, tree: Mapping[str, Any], seed: int, runs: Path, options: Options
) -> tuple[Evidence, dict[str, Any]]:
    """The evidence with what the trainer's own code gives again, and what to say of it in the subject."""
    from audit import replay
    from audit.requantize import requantize
    from audit.rescore import Rescored, rescore

    recipe, stages = replay.read_recipe(tree), evidence.stages
    model = runs / "quantize" / str(seed) / "model.golf"
    drawn = replay.replay_draws(stages, data, recipe, seed=seed)
    made = requantize(stages, data, recipe, runs / "train" / str(seed), model)
    mismatches = list(made.mismatches)
    told: dict[str, Any] = {"requantized": made.reason or {"numbers": made.numbers, "differing": made.differing}}
    wanted = options.rescore if options.rescore is not None else RESCORED_ON_CPU * (recipe.device == "cpu")
    scored: Rescored | str = "not done; ask for it with --rescore N"
    if wanted:
        scored = rescore(stages, data, recipe, model, sample=wanted, seed=chance())
        mismatches += scored.mismatches
        counts = {"score_records": scored.checked, "of": scored.eligible, "equal_to_the_bit": scored.equal}
        told["rescored"] = scored.reason or counts
    else:
        told["rescored"] = scored
    contents = evidence.contents
    assert contents is not None
    told[again.KEY] = again.again(contents, drawn, made, scored)
    contents = dataclasses.replace(contents, mismatches=(*contents.mismatches, *mismatches))
    return dataclasses.replace(evidence, replay=drawn, contents=contents), told


def chance() -> int:
    """The seed of a sample: nobody may know it before the ledger is sealed, or he can forge around it."""
    return secrets.randbits(64)


def _announced_data(stages: Sequence[Stage]) -> Path | None:
    """The data folder that the run names, if it is there."""
    for stage in stages:
        for _, note in stage.notes("run"):
            named = note.facts.get("data") or note.clock.get("data")
            if isinstance(named, str) and Path(named).is_dir():
                return Path(named)
    return None


def _judged(evidence: Evidence, options: Options, *, profile: str, subject: Mapping[str, Any]) -> Verification:
    """The rules' rulings as a judgement. The subject holds digests that repeat; seals do not."""
    name = options.profile or profile
    required = evidence.ruleset.profile(name)
    rulings = rules.rulings(evidence)
    known: dict[str, Any] = {
        **subject,
        "ruleset": f"{evidence.ruleset.name} {evidence.ruleset.edition}",
        "ledgers": {
            stage.title: [ledger.text(part.ending.clockless) for part in stage.parts] for stage in evidence.stages
        },
    }
    if evidence.identity:
        known |= {"data": evidence.identity.digest, "data_root": evidence.identity.root}
    if evidence.artifact:
        known["artifact"] = evidence.artifact.sha256
    seals = {stage.title: ledger.text(ledger.seal_of(stage.folder)) for stage in evidence.stages if stage.sealed}
    return Verification(
        judgement=Judgement(subject=known, profile=name, required=required, rulings=rulings),
        clocks={ruling.id: ruling.clock for ruling in rulings if ruling.clock},
        seals=seals,
    )


def write_verdict(folder: Path, found: Verification) -> None:
    """verdict.json: what repeats on every verification of equal runs. Raises OutputError."""
    write_text(folder / "verdict.json", to_json(found.judgement.as_dict()))


def write_clock(path: Path, seed: int, found: Verification) -> None:
    """The seconds behind the verdict, and the seals: `audit.facts.Verified`. Raises OutputError."""
    clocks = {rule: rule_clock(clock) for rule, clock in found.clocks.items()}
    write_text(path, to_json({"seed": seed, "clocks": clocks, "seals": dict(found.seals)}))


def rule_clock(clock: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule about time measured, as `audit.facts.RuleClock`: a row a phase, counted or not."""
    spent = [
        {"stage": stage, "phase": phase, "seconds": seconds, "counted": side == "on"}
        for stage, sides in clock["stages"].items()
        for side in ("on", "off")
        for phase, seconds in sides[side].items()
    ]
    devices = clock["device_seconds"] / clock["seconds"] if clock["seconds"] else 1.0
    return {"seconds": clock["seconds"], "limit_seconds": clock["limit_device_seconds"] / devices, "spent": spent}
