"""The judgements of the seeds as one judgement of the run.

    merge({seed: read_judgement(runs, seed) for seed in (42, 314)}, seeds=ruling, required=("C3", …))
    read_verdict(Path("runs/report"))        what was judged, as `gate` reads it

A rule has the worst verdict that it has for any seed, with the witnesses under the name of their seed. What no seed's
judgement speaks of is UNPROVEN: a required rule can't pass by being absent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from audit.errors import RunError
from audit.files import read_json
from audit.verdicts import Finding, Judgement, Ruling, Verdict, parse, worst

MOST_DEPTH = 32
"""Levels of a judgement's JSON."""


def read_verdict(path: Path) -> Judgement:
    """A judgement as `gate` asks for it: a report.json or verdict.json, a folder that holds one, or a pipeline's runs.

    Raises RunError if there is none, or it is damaged.
    """
    places = [path / place for place in ("report.json", "verdict.json", "report/report.json")]
    found = next((place for place in places if place.is_file()), None) if path.is_dir() else path
    folder = path.parent if path.suffix == ".json" else path
    remedy = f"run `dvc repro report`, or `golf-audit verify LEDGER -o {folder}` and give that folder"
    if found is None:
        raise RunError(f"{path} holds no report.json and no verdict.json; {remedy}")
    return _read(found, remedy)


def read_judgement(runs: Path, seed: int) -> Judgement:
    """`runs/verify/<seed>/verdict.json`. Raises RunError that names the stage to run, also for another seed's."""
    remedy = f"run `dvc repro verify@{seed}`"
    path = runs / "verify" / str(seed) / "verdict.json"
    found = _read(path, remedy)
    if found.subject.get("seed") != seed:
        raise RunError(f"{path} is of seed {found.subject.get('seed')!r}, expected {seed} from its folder; {remedy}")
    return found


def _read(path: Path, remedy: str) -> Judgement:
    """One judgement. Raises RunError, also for one that is nested without end."""
    tree = read_json(path, remedy=remedy)
    if problem := _unwritable(tree):
        raise RunError(f"{path} {problem}, expected a judgement; {remedy}")
    return parse(tree, where=str(path), remedy=remedy)


def _unwritable(tree: Any) -> str:
    """Why a JSON value can't be walked by recursion and written again, empty if it can."""
    level = [tree]
    for _ in range(MOST_DEPTH):
        if any(isinstance(value, float) and not math.isfinite(value) for value in level):
            return "holds a number that is not finite"
        nests = [value for value in level if isinstance(value, (dict, list))]
        level = [item for nest in nests for item in (nest.values() if isinstance(nest, dict) else nest)]
    return f"is nested deeper than {MOST_DEPTH} levels" if level else ""


def merge(judgements: Mapping[int, Judgement], *, seeds: Ruling, required: Sequence[str]) -> Judgement:
    """One judgement of one or more seeds under one profile; `seeds` rules on the seeds themselves (rule SEEDS).

    Rules stand in the order of the first judgement. Raises RunError for no seeds, or seeds of different profiles.
    """
    profiles = {judgement.profile for judgement in judgements.values()}
    if len(profiles) != 1:
        raise RunError(
            f"got {len(judgements)} seeds judged under {len(profiles)} profiles, expected one; run `dvc repro verify`"
        )
    by_seed = {seed: {ruling.id: ruling for ruling in found.rulings} for seed, found in judgements.items()}
    ids = dict.fromkeys(rule for rulings in by_seed.values() for rule in rulings)
    rulings = [
        _merged(rule, {seed: found.get(rule) or _absent(rule) for seed, found in by_seed.items()})
        for rule in ids
        if rule != seeds.id
    ]
    judged = {*ids, seeds.id}
    return Judgement(
        subject={"seeds": {str(seed): dict(judgement.subject) for seed, judgement in judgements.items()}},
        profile=profiles.pop(),
        required=tuple(required),
        rulings=(*rulings, seeds, *(_absent(rule) for rule in required if rule not in judged)),
    )


def _absent(rule: str) -> Ruling:
    return Ruling(id=rule, verdict=Verdict.UNPROVEN, evidence="claims", summary="not judged")


def _merged(rule: str, found: Mapping[int, Ruling]) -> Ruling:
    """One rule over seeds: the worst verdict, and what was seen in each seed under its name."""
    verdict = worst(ruling.verdict for ruling in found.values())
    decisive = {seed: ruling for seed, ruling in found.items() if ruling.verdict is verdict}
    return Ruling(
        id=rule,
        verdict=verdict,
        evidence=next(iter(decisive.values())).evidence,
        summary=_summary(decisive, of=len(found)),
        witness=_tagged({seed: ruling.witness for seed, ruling in found.items()}),
        reach=_tagged({seed: ruling.reach for seed, ruling in found.items()}),
        findings=tuple(finding for seed, ruling in found.items() for finding in _findings(seed, ruling.findings)),
    )


def _summary(decisive: Mapping[int, Ruling], *, of: int) -> str:
    """The seeds' common summary, or each with its seed; seeds whose verdict is a better one are left out."""
    summaries = {ruling.summary for ruling in decisive.values()}
    if len(summaries) == 1 and len(decisive) == of:
        return summaries.pop()
    return "; ".join(f"seed {seed}: {ruling.summary}" for seed, ruling in decisive.items())


def _tagged(values: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"seed {seed}": dict(value) for seed, value in values.items() if value}


def _findings(seed: int, findings: Iterable[Finding]) -> list[Finding]:
    return [dataclasses.replace(finding, detail=f"seed {seed}: {finding.detail}") for finding in findings]
