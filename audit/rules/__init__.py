"""The rules: pure functions of `Evidence`, and the only place where a verdict is made.

    for ruling in rulings(evidence): print(ruling.id, ruling.verdict, ruling.summary)

| file | |
| --- | --- |
| `order.py` C3, `once.py` C4, `coverage.py`, `bytecount.py` BYTES, `track.py` | rest on one walk through the ledgers |
| `history.py` ← `rank.py` ← `tokens.py`, `weights.py`; `progress.py`, `totals.py` | that walk |
| `identity.py` DATA, `size.py`, `clocks.py`, `selfcontained.py` SELF, `seeds.py` | rest on notes, times and reports |
| `sightings.py` → `judging.py` | what is seen, by class, becomes a ruling |

A rule without a function here is UNPROVEN, with what would prove it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from audit.evidence import Evidence
from audit.rules.bytecount import bytecount
from audit.rules.clocks import EVAL_TIME, TRAIN_TIME
from audit.rules.coverage import coverage
from audit.rules.identity import data
from audit.rules.once import c4
from audit.rules.order import c3
from audit.rules.seeds import seeds
from audit.rules.selfcontained import selfcontained
from audit.rules.size import size
from audit.rules.track import track
from audit.verdicts import Ruling, Verdict

RULES: Mapping[str, Callable[[Evidence], Ruling]] = {
    "C3": c3,
    "C4": c4,
    "COVERAGE": coverage,
    "BYTES": bytecount,
    "DATA": data,
    "SIZE": size,
    "TRAIN-TIME": TRAIN_TIME,
    "EVAL-TIME": EVAL_TIME,
    "SELF": selfcontained,
    "SEEDS": seeds,
    "TRACK": track,
}
ELSEWHERE = {"C1": "probe", "C2": "probe", "STAT": "claims", "REPRO": "claims"}
"""The evidence of rules that a ledger says nothing about."""


def rulings(evidence: Evidence) -> tuple[Ruling, ...]:
    """A ruling on every rule of the rule set, in its order."""
    return tuple(
        RULES[rule](evidence) if rule in RULES else unproven(rule, evidence) for rule in evidence.ruleset.rules
    )


def unproven(rule: str, evidence: Evidence) -> Ruling:
    """A rule that nothing here looks at."""
    return Ruling(
        id=rule,
        verdict=Verdict.UNPROVEN,
        evidence=ELSEWHERE.get(rule, "claims"),
        summary=f"not looked at; it would be proven by {evidence.ruleset.rules[rule].proof}",
    )
