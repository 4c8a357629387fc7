"""C4, one pass: every target enters the total once, and no second score replaces the first.

A target that is counted again is FAIL: `rescored-after-update` if a step lies between the two, whatever they are
called, else `scored-twice` within one total. Two totals with no step between them are told as a note.
"""

from __future__ import annotations

from audit.evidence import Evidence
from audit.rules import whole
from audit.rules.history import history
from audit.rules.judging import Classes, judge
from audit.rules.order import declared, first_score
from audit.rules.sightings import Sightings, many
from audit.verdicts import Ruling

CLASSES = Classes(
    fails=("rescored-after-update", "scored-twice", "forged-score"),
    unproven=(
        *whole.UNPROVEN,
        "nothing-scored",
        "no-data",
        "score-without-forward",
        "rows-counted-again",
        "by-content-alone",
        "too-many-totals",
        "unannounced-step",
        "counter-fell",
        "parameters-changed",
        "declared-contaminated",
    ),
    notes=("scored-again-unchanged",),
)


def c4(evidence: Evidence) -> Ruling:
    """The ruling on C4."""
    found, own = history(evidence), Sightings()
    for one in evidence.contents.mismatches if evidence.contents else ():
        if one.kind == "score":
            own.add("forged-score", one.stage, one.detail, rank=one.rank, at=one.at)
    scored_at_places(evidence, own)
    declared(evidence, "C4", own)
    targets = sum(total.targets for total in found.totals.values())
    ruling = judge(
        "C4",
        CLASSES,
        (found.seen, own, whole.whole(evidence)),
        passed=f"{many(targets, 'target')} in {_totals(list(found.totals))}, each once",
        reach={"totals": {label: total.targets for label, total in found.totals.items()}, "ranks": evidence.ranks},
    )
    if isinstance(ruling.witness, dict) and "first_target" in ruling.witness:
        ruling.witness["scored_in"] = first_score(evidence, ruling.witness["first_target"])
    return ruling


def scored_at_places(evidence: Evidence, own: Sightings) -> None:
    """Only a total of targets at places in a stream that is here can be held against the split."""
    found = history(evidence)
    if not found.totals and found.rows_scored:
        own.add("by-content-alone", "", f"{many(found.rows_scored, 'scored row')} known by content alone, not by place")
    elif not found.totals:
        own.add("nothing-scored", "", "no score enters a total")
    elif evidence.validation is None:
        own.add("no-data", "", "there are no validation shards to place scores in; give the data with --data")


def _totals(labels: list[str]) -> str:
    return f"the total {labels[0]!r}" if len(labels) == 1 else f"{len(labels)} totals"
