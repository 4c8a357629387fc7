"""From what was seen to a ruling: which classes fail a rule, which leave it unproven, and which are told in passing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from audit.rules.sightings import Sighting, Sightings
from audit.verdicts import Ruling, Verdict


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Classes of sightings, the gravest first; `name-*` stands for all that begin so."""

    fails: tuple[str, ...]
    unproven: tuple[str, ...]
    notes: tuple[str, ...] = ()


def judge(
    rule: str,
    classes: Classes,
    seen: Iterable[Sightings],
    *,
    passed: str,
    evidence: str = "ledger",
    reach: Mapping[str, Any] | None = None,
    clock: Mapping[str, Any] | None = None,
) -> Ruling:
    """FAIL with the gravest that fails, else UNPROVEN with the first that is missing, else PASS with `passed`.

    Every class that was seen is a finding of its own.
    """
    seen = list(seen)
    fails, unproven, notes = (
        [sighting for kind in kinds for one in seen for sighting in one.of(kind)]
        for kinds in (classes.fails, classes.unproven, classes.notes)
    )
    verdict = Verdict.FAIL if fails else Verdict.UNPROVEN if unproven else Verdict.PASS
    decisive = fails or unproven
    findings = [one.finding("error") for one in fails]
    findings += [one.finding("warning") for one in unproven]
    findings += [one.finding("note") for one in notes]
    return Ruling(
        id=rule,
        verdict=verdict,
        evidence=evidence,
        summary=_summary(decisive) if decisive else passed,
        witness=_witness(decisive),
        reach=reach or {},
        findings=tuple(findings),
        clock=clock or {},
    )


def _summary(decisive: list[Sighting]) -> str:
    """The gravest in words, and the classes of the others."""
    first = decisive[0]
    others = dict.fromkeys(one.kind for one in decisive if one.kind != first.kind)
    place = f" ({first.where})" if first.stage else ""
    return first.detail + place + (f"; also {', '.join(others)}" if others else "")


def _witness(decisive: list[Sighting]) -> dict[str, Any]:
    """The gravest in full, and all with their counts."""
    if not decisive:
        return {}
    return {"class": decisive[0].kind} | decisive[0].witness | {"seen": [one.summary() for one in decisive]}
