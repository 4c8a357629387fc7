"""COVERAGE, the whole split: the counted targets are all there are, and their sums are what is reported.

The split may be cut to whole windows at its end, by less than one window. Each total must cover it for itself; the sums
of nats and targets over its windows must be those of the `total` note and of the reports.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from audit.evidence import Evidence, Stream
from audit.rules import whole
from audit.rules.history import history
from audit.rules.judging import Classes, judge
from audit.rules.once import scored_at_places
from audit.rules.sightings import Sightings
from audit.rules.totals import Total
from audit.trees import short
from audit.verdicts import Ruling

CLOSE = 1e-9
"""Relative: sums of float64 in another order differ by less."""
MOST_NATS = 2.0**1000
CLASSES = Classes(
    fails=(
        "targets-not-scored",
        "beyond-the-split",
        "impossible-window",
        "impossible-loss",
        "total-differs",
        "reported-score-not-counted",
        "split-differs",
    ),
    unproven=(*whole.UNPROVEN, "nothing-scored", "no-data", "by-content-alone", "too-many-totals", "no-total"),
)


def coverage(evidence: Evidence) -> Ruling:
    """The ruling on COVERAGE."""
    found, own = history(evidence), Sightings()
    scored_at_places(evidence, own)
    stream = evidence.validation
    if stream is not None:
        for total in found.totals.values():
            _covered(total, stream, evidence, own)
    _split(evidence, own)
    _sums(evidence, found.totals, own)
    split = f"all {stream.targets:,} targets of the validation split" if stream else ""
    cut = min((stream.targets - total.covered for total in found.totals.values()), default=0) if stream else 0
    return judge(
        "COVERAGE",
        CLASSES,
        (found.seen, own, whole.whole(evidence)),
        passed=split + (f" but the last {cut:,}, which fill no window" if cut else ""),
        reach={
            "targets": stream.targets if stream else None,
            "covered": {label: total.covered for label, total in found.totals.items()},
        },
    )


def _covered(total: Total, stream: Stream, evidence: Evidence, own: Sightings) -> None:
    """A total covers the split but for a tail that is shorter than a window."""
    missing = stream.targets - total.covered
    tail = stream.targets - total.absent if total.absent is not None else 0
    most = min(total.length - 1, evidence.ruleset.limits.cut_targets)
    if missing and (missing > most or tail != missing):
        detail = f"{missing:,} of {stream.targets:,} targets do not enter the total {total.label!r}"
        about = {"label": total.label, "first_target": total.absent, "covered": total.covered}
        own.add("targets-not-scored", total.stage, detail, targets=missing, witness=about)


def _split(evidence: Evidence, own: Sightings) -> None:
    """A run on the official data must score the official split."""
    identity = evidence.identity
    claimed = {str(stage.facts.get("corpus")) for stage in evidence.stages} & set(evidence.ruleset.official)
    if claimed and identity is not None and not identity.published:
        detail = f"the run is said to be on {', '.join(sorted(claimed))}, whose split this is not: "
        own.add("split-differs", "", detail + "; ".join(identity.published_differences))


def _sums(evidence: Evidence, totals: Mapping[str, Total], own: Sightings) -> None:
    """What is reported is what the windows add up to."""
    claims, reported = evidence.claims, set()
    for stage in evidence.stages:
        for rank, note in stage.notes("total"):
            label = str(note.facts.get("label", ""))
            reported.add(label)
            if (total := totals.get(label)) is None:
                detail = f"the score {label!r} is reported, and none of its windows is counted"
                own.add("reported-score-not-counted", stage.title, detail, rank=rank, at=note.at)
                continue
            got = note.facts.get("nats"), note.facts.get("targets")
            _same(own, total, "the total that is announced", *got)
    for label in (claims.headline,) if claims and claims.headline else ():
        if label not in totals:
            detail = f"the score {label!r} is the result, and none of its windows is counted"
            own.add("reported-score-not-counted", "", detail)
    for label, score in claims.scores.items() if claims else ():
        if label in totals:
            reported.add(label)
            _same(own, totals[label], "the report", score.nats * score.targets, score.targets)
    if totals and not reported:
        own.add("no-total", "", "no total was announced or reported to hold the windows against")


def _same(own: Sightings, total: Total, who: str, nats: object, targets: object) -> None:
    number = nats if isinstance(nats, (int, float)) and abs(nats) < MOST_NATS else math.inf
    close = math.isclose(number, total.nats, rel_tol=CLOSE, abs_tol=CLOSE)
    if not close or targets != total.targets:
        detail = (
            f"{who} says {short(nats)} nats over {short(targets)} targets, the windows of {total.label!r} add up to "
            f"{total.nats} over {total.targets}"
        )
        about = {"label": total.label, "reported": short(nats), "nats": str(total.nats), "targets": total.targets}
        own.add("total-differs", total.stage, detail, witness=about)
