"""TRACK: who claims a fixed predictor (Track A) scores all targets with one state and makes no step while scoring."""

from __future__ import annotations

from collections.abc import Sequence

from audit.evidence import Evidence, Stage
from audit.rules import whole
from audit.rules.history import history
from audit.rules.judging import Classes, judge
from audit.rules.sightings import Sightings
from audit.verdicts import Ruling

ADAPTIVE = Classes(fails=("unknown-track",), unproven=(*whole.UNPROVEN, "no-claim", "nothing-scored"))
FIXED = Classes(
    fails=("state-changed", "stepped-while-scoring"),
    unproven=(*whole.UNPROVEN, "nothing-scored", "parameters-changed"),
)


def track(evidence: Evidence) -> Ruling:
    """The ruling on TRACK."""
    found, own = history(evidence), Sightings()
    claim = evidence.claims.track if evidence.claims else ""
    if not any(part.outline.counted for stage in evidence.stages for part in stage.parts):
        own.add("nothing-scored", "", "no score enters a total")
    if not claim:
        own.add("no-claim", "", "the run claims no track")
    elif claim not in ("A", "B"):
        own.add("unknown-track", "", f"the run claims track {claim!r}, there are A and B")
    fixed = claim == "A"
    if fixed:
        _steps(scoring(evidence), own)
        _models(evidence, own)
    return judge(
        "TRACK",
        FIXED if fixed else ADAPTIVE,
        (found.seen, own, whole.whole(evidence)),
        passed="one state scores every target" if fixed else "an adaptive predictor is claimed (Track B)",
        reach={"claim": claim},
    )


def scoring(evidence: Evidence) -> Sequence[Stage]:
    """The stages that score: the rule set's, or those that count something in a program that names no stages."""
    return evidence.evaluation or [
        stage for stage in evidence.stages if any(part.outline.counted for part in stage.parts)
    ]


def _steps(stages: Sequence[Stage], own: Sightings) -> None:
    """Steps in the stage that scores; in a program of one stage those before the first score don't matter."""
    for stage in stages if all(stage.name for stage in stages) else ():
        for part in stage.parts:
            for span in part.outline.spans:
                if span.moved:
                    detail = f"the phase {span.phase!r} of the stage that scores makes optimizer steps"
                    own.add(
                        "stepped-while-scoring",
                        stage.title,
                        detail,
                        rank=part.ending.rank,
                        at=span.first,
                        records=span.moved,
                        witness={"phase": span.phase},
                    )


def _models(evidence: Evidence, own: Sightings) -> None:
    """Different totals of a fixed predictor are of one model too."""
    totals = list(history(evidence).totals.values())
    for total in totals[1:]:
        if total.parameters != totals[0].parameters:
            detail = (
                f"the total {total.label!r} is of the parameters {total.parameters:#018x}, {totals[0].label!r} of "
                f"{totals[0].parameters:#018x}"
            )
            own.add("state-changed", total.stage, detail, rank=total.first_rank, at=total.first_at)
