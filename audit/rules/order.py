"""C3, score before update: no validation token reaches a step or a calibration before its score is fixed.

For every step and every validation row that it uses, all targets of the row must have an earlier score record that
enters the total; calibration likewise. What a step uses are the draws that it lists, and whatever entered the model
under gradients since the step before. The rule passes only on a whole ledger (`whole`) of known tokens (`Contents`) and
weights that nothing else moved (`weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from audit.evidence import Evidence
from audit.rules import identity, whole
from audit.rules.history import History, history
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings, many
from audit.trees import short
from audit.verdicts import Ruling

CLASSES = Classes(
    fails=(
        "trained-before-scored",
        "calibrated-on-validation",
        "validation-tokens-labelled-*",
        "unlisted-validation-tokens",
        "unannounced-validation-tokens",
        "forged-*",
        "replay-differs",
    ),
    unproven=(
        *whole.UNPROVEN,
        "resumed",
        *identity.UNPROVEN,
        "unknown-tokens",
        "unread-tokens",
        "unknown-draw",
        "draw-not-entered",
        "parameters-changed",
        "update-without-step",
        "unannounced-tokens",
        "unannounced-step",
        "counter-fell",
        "no-place",
        "no-data",
        "contents-unread",
        "nothing-drawn",
        "nothing-trained",
        "nothing-scored",
        "no-model",
        "declared-contaminated",
    ),
)


def c3(evidence: Evidence) -> Ruling:
    """The ruling on C3."""
    found = history(evidence)
    own = Sightings()
    _contents(evidence, own)
    _amount(evidence, found, own)
    declared(evidence, "C3", own)
    for stage in evidence.stages:
        for rank, note in stage.notes("weights"):
            if note.facts.get("why") in evidence.ruleset.resumed:
                detail = "the run went on from a checkpoint whose history is not in this ledger"
                own.add("resumed", stage.title, detail, rank=rank, at=note.at)
    ruling = judge(
        "C3",
        CLASSES,
        (found.seen, own, whole.whole(evidence), identity.changed(evidence)),
        passed=_passed(evidence, found),
        reach=_reach(evidence, found),
    )
    _say_when_scored(evidence, ruling.witness)
    return ruling


def _contents(evidence: Evidence, own: Sightings) -> None:
    """What re-reading the shards and running the loader again contradict."""
    contents, placed = evidence.contents, sum(p.outline.placed for stage in evidence.stages for p in stage.parts)
    if placed and (contents is None or not contents.checked):
        own.add(
            "contents-unread",
            "",
            f"the contents of {many(placed, 'draw')} were not read again; give the data with --data",
        )
    for one in contents.mismatches if contents else ():
        kind = f"forged-{one.kind}"
        if one.found_in.get("split") == "val" != one.split:
            kind = f"validation-tokens-labelled-{one.split}"
        about = {"split": one.split, "found_in": dict(one.found_in)}
        own.add(kind, one.stage, one.detail, rank=one.rank, at=one.at, witness=about)
    for one in evidence.replay.mismatches if evidence.replay else ():
        detail = f"the trainer's loader draws otherwise: {one.detail}"
        own.add("replay-differs", one.stage, detail, rank=one.rank, at=one.at)


def declared(evidence: Evidence, rule: str, own: Sightings) -> None:
    """What the run itself says against its score: a ledger that shows nothing of it is of something else."""
    reasons = evidence.claims.contaminated if evidence.claims else ()
    mine = [reason for reason in reasons if evidence.ruleset.contaminations.get(reason, "C3") == rule]
    if mine:
        said = ", ".join(map(short, mine))
        own.add("declared-contaminated", "", f"the run itself says that it is contaminated by {said}")


def _amount(evidence: Evidence, found: History, own: Sightings) -> None:
    """An empty ledger shows nothing."""
    counted = any(part.outline.counted for stage in evidence.stages for part in stage.parts)
    for kind, missing, what in (
        ("nothing-drawn", not found.counts.draws, "no batch was handed out"),
        ("nothing-trained", not found.counts.steps, "no optimizer step was made"),
        ("nothing-scored", not counted, "no score enters a total"),
        ("no-model", not found.counts.forwards, "nothing entered a model that the program announced"),
        (
            "no-data",
            bool(found.totals) and evidence.validation is None,
            "there are no validation shards to place scores in",
        ),
    ):
        if missing and evidence.stages:
            own.add(kind, "", f"{what}, so the ledger shows nothing about order")


def _passed(evidence: Evidence, found: History) -> str:
    counts, used = found.counts, found.counts.validation_rows
    rows = f"{many(used, 'validation row')} among them, each scored before" if used else "none of them on validation"
    done = f"{many(counts.steps, 'step')} and {many(counts.calibrations, 'calibration')}"
    return f"{done} on {many(counts.draws, 'draw')}, {rows}{_unreplayed(evidence)}"


def _unreplayed(evidence: Evidence) -> str:
    """What a PASS does not rest on."""
    if evidence.replay is None:
        return "; no loader was run again"
    return f"; no loader was run again: {evidence.replay.reason}" if evidence.replay.reason else ""


def _reach(evidence: Evidence, found: History) -> dict[str, Any]:
    """How much was looked at, and on what it rests."""
    reach: dict[str, Any] = vars(found.counts) | {"ranks": evidence.ranks}
    if (contents := evidence.contents) is not None:
        reach["contents"] = {"checked": contents.checked, "of": contents.drawn, "escape": contents.escape}
    if (replay := evidence.replay) is not None:
        done = {"steps": replay.steps, "draws": replay.draws}
        reach["replay"] = {"not_done": replay.reason} if replay.reason else done
    return reach


def _say_when_scored(evidence: Evidence, witness: Mapping[str, Any]) -> None:
    """Into a witness that names a target: the record that scores it, which is not one before."""
    if isinstance(witness, dict) and isinstance(witness.get("first_target"), int):
        witness["scored_in"] = first_score(evidence, witness["first_target"]) or "never"


def first_score(evidence: Evidence, target: int) -> dict[str, Any] | None:
    """The first counted record of a target: stage, rank, record and label; None if there is none."""
    for stage in evidence.stages:
        best: tuple[int, dict[str, Any]] | None = None
        for part in stage.parts if any(part.outline.counted for part in stage.parts) else ():
            for block in part.blocks():
                begin = block.windows["begin"].astype(np.int64)
                holds = (begin <= target) & (target < begin + block.windows["scored"])
                owners = np.repeat(np.arange(len(block.scores)), block.scores["count"])
                rows = block.scores[np.unique(owners[holds])]
                rows = rows[(rows["counted"] != 0) & (rows["length"] > 0)]
                if len(rows) and (best is None or int(rows[0]["collectives"]) < best[0]):
                    place = {"stage": stage.title, "rank": part.ending.rank, "record": int(rows[0]["at"])}
                    best = int(rows[0]["collectives"]), place | {"label": rows[0]["label"].decode(errors="replace")}
        if best is not None:
            return best[1]
    return None
