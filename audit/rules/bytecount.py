"""BYTES: the byte count behind bits per byte is true.

The bytes of every counted window are counted again from its tokens; their sum must be that of the `total` note and of
the reports, and bits per byte must be nats / (ln 2 · bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from audit.evidence import ClaimedScore, Evidence
from audit.rules import whole
from audit.rules.coverage import CLOSE
from audit.rules.history import history
from audit.rules.judging import Classes, judge
from audit.rules.once import scored_at_places
from audit.rules.sightings import Sightings, many
from audit.rules.totals import Total
from audit.trees import short
from audit.verdicts import Ruling

CLASSES = Classes(
    fails=("bytes-differ", "bpb-differs"),
    unproven=(*whole.UNPROVEN, "nothing-scored", "no-data", "by-content-alone", "no-tokenizer", "no-total"),
)


def bytecount(evidence: Evidence) -> Ruling:
    """The ruling on BYTES."""
    found, own = history(evidence), Sightings()
    scored_at_places(evidence, own)
    stream = evidence.validation
    if stream is not None and stream.octets is None:
        own.add("no-tokenizer", "", "there is no tokenizer to count the bytes of the scored tokens with")
    _totals(evidence, found.totals, own)
    octets = sum(total.octets for total in found.totals.values())
    windows = sum(total.windows for total in found.totals.values())
    return judge(
        "BYTES",
        CLASSES,
        (found.seen, own, whole.whole(evidence)),
        passed=f"the bytes of {many(windows, 'window')}, counted again, are {octets:,}, as reported",
        reach={"bytes": {label: total.octets for label, total in found.totals.items()}},
    )


def _totals(evidence: Evidence, totals: Mapping[str, Total], own: Sightings) -> None:
    """What is reported is what the windows add up to."""
    reported = 0
    for stage in evidence.stages:
        for rank, note in stage.notes("total"):
            total = totals.get(str(note.facts.get("label", "")))
            if total is None:
                continue
            reported += 1
            if note.facts.get("bytes") != total.octets:
                claimed = short(note.facts.get("bytes"))
                detail = f"the total that is announced says {claimed} bytes, its windows {total.octets}"
                about = {"label": total.label, "claimed": claimed, "counted": total.octets}
                own.add("bytes-differ", stage.title, detail, rank=rank, at=note.at, witness=about)
    for label, score in evidence.claims.scores.items() if evidence.claims else ():
        if label in totals:
            reported += 1
            _claim(own, totals[label], score)
    if totals and not reported:
        own.add("no-total", "", "no total was announced or reported to hold the bytes of the windows against")


def _claim(own: Sightings, total: Total, score: ClaimedScore) -> None:
    if score.bytes != total.octets:
        detail = f"the report says {score.bytes} bytes, the windows of {total.label!r} {total.octets}"
        about = {"label": total.label, "claimed": score.bytes, "counted": total.octets}
        own.add("bytes-differ", total.stage, detail, witness=about)
    bpb = score.nats * score.targets / math.log(2) / score.bytes if score.bytes else math.nan
    if not math.isclose(score.bpb, bpb, rel_tol=CLOSE):
        detail = f"{score.bpb} bits per byte are reported for {total.label!r}, the reported sums give {bpb}"
        own.add(
            "bpb-differs", total.stage, detail, witness={"label": total.label, "claimed": score.bpb, "computed": bpb}
        )
