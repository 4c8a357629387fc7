"""Whether the ledgers are whole: sealed, recorded without a gap, and from the beginning of the run."""

from __future__ import annotations

from audit.evidence import Evidence
from audit.ledger import NO_SEAL
from audit.rules.sightings import Sightings
from audit.trees import short

UNPROVEN = ("no-ledger", "unsealed", "recorder-failed", "history-missing")
"""What is missing; no rule passes on it that rests on a ledger."""


def whole(evidence: Evidence) -> Sightings:
    """What keeps the ledgers from telling the whole story."""
    seen = Sightings()
    if not evidence.stages:
        seen.add("no-ledger", "", "there is no ledger; record the run with `golf-audit run`")
    for stage in evidence.stages:
        for part in stage.parts:
            ending = part.ending
            if ending.seal is None:
                torn = f", with {ending.torn_bytes} bytes of an unfinished block" if ending.torn_bytes else ""
                detail = f"the ledger ends unsealed after record {ending.records - 1}{torn}: the run did not end"
                seen.add("unsealed", stage.title, detail, rank=ending.rank, at=max(ending.records - 1, 0))
        for rank, note in stage.notes("recorder"):
            detail = f"the recorder could not do its work: {short(note.facts.get('what'))}"
            seen.add("recorder-failed", stage.title, detail, rank=rank, at=note.at)
    for part in evidence.stages[0].parts if evidence.stages else ():
        if part.ending.previous != NO_SEAL:
            detail = "the ledger starts from the seal of a stage that is not here; give all stages from the first on"
            seen.add("history-missing", evidence.stages[0].title, detail, rank=part.ending.rank)
    return seen
