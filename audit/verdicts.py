"""What a judgement is made of: verdicts, findings, one ruling a rule, and all of them with an overall verdict.

PASS, FAIL or UNPROVEN; what was not looked at is UNPROVEN, never PASS. `judge` is the only place where rulings become
one verdict, `Judgement.as_dict` the JSON that every command that judges prints with `--json`, `from_dict` its inverse.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from audit.errors import RunError

SCHEMA = 1
EVIDENCE = ("identity", "ledger", "claims", "static", "probe")
SEVERITIES = ("error", "warning", "note")


class Verdict(enum.StrEnum):
    """What is known of a rule."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNPROVEN = "UNPROVEN"

    @property
    def exit_code(self) -> int:
        """0, 1, 2: what a command that judges answers."""
        return list(Verdict).index(self)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing seen: its class (a stable name), how bad, where a reader finds it, and what it is, in one line."""

    kind: str
    severity: str
    where: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"class": self.kind, "severity": self.severity, "where": self.where, "detail": self.detail}


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """The verdict on one rule. `witness` is what a reader can check by hand, `reach` how much was looked at."""

    id: str
    verdict: Verdict
    evidence: str
    summary: str
    witness: Mapping[str, Any] = field(default_factory=dict)
    reach: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    clock: Mapping[str, Any] = field(default_factory=dict)
    """Seconds behind the verdict. They differ from run to run, so they are no part of `as_dict`."""

    def as_dict(self, *, required: bool) -> dict[str, Any]:
        return {
            "id": self.id,
            "required": required,
            "verdict": str(self.verdict),
            "evidence": self.evidence,
            "summary": self.summary,
            "witness": dict(self.witness),
            "reach": dict(self.reach),
        }


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All rulings on a subject under a profile. `required` are the ids that the profile asks for."""

    subject: Mapping[str, Any]
    profile: str
    required: tuple[str, ...]
    rulings: tuple[Ruling, ...]

    @property
    def verdict(self) -> Verdict:
        """FAIL if any rule fails, PASS if every required one passes and there is one, else UNPROVEN."""
        return overall(self.rulings, self.required)

    def ruling(self, rule: str) -> Ruling:
        return next(ruling for ruling in self.rulings if ruling.id == rule)

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "subject": dict(self.subject),
            "profile": self.profile,
            "verdict": str(self.verdict),
            "rules": [ruling.as_dict(required=ruling.id in self.required) for ruling in self.rulings],
            "findings": [
                finding.as_dict() | {"rule": ruling.id} for ruling in self.rulings for finding in ruling.findings
            ],
        }


def overall(rulings: Iterable[Ruling], required: Sequence[str]) -> Verdict:
    """The one verdict of many. A required rule without a ruling is not proven."""
    verdicts = {ruling.id: ruling.verdict for ruling in rulings}
    if Verdict.FAIL in verdicts.values():
        return Verdict.FAIL
    passed = required and all(verdicts.get(rule) is Verdict.PASS for rule in required)
    return Verdict.PASS if passed else Verdict.UNPROVEN


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """FAIL before UNPROVEN before PASS; of none UNPROVEN."""
    found = set(verdicts)
    order = (Verdict.FAIL, Verdict.UNPROVEN, Verdict.PASS)
    return next((verdict for verdict in order if verdict in found), Verdict.UNPROVEN)


def parse(tree: Any, *, where: str, remedy: str = "verify the run again") -> Judgement:
    """The inverse of `Judgement.as_dict`. Raises RunError for anything else, or a verdict that its rules don't give."""
    try:
        rules, findings = tree["rules"], [(str(row["rule"]), _finding(row)) for row in tree["findings"]]
        ids = [str(row["id"]) for row in rules]
        if len(set(ids)) != len(ids) or {rule for rule, _ in findings} - set(ids):
            raise ValueError("a rule is ruled on twice, or a finding is of a rule that is not there")
        rulings = tuple(_ruling(row, [one for rule, one in findings if rule == row["id"]]) for row in rules)
        found = Judgement(
            subject=dict(tree["subject"]),
            profile=str(tree["profile"]),
            required=tuple(row["id"] for row in rules if row["required"]),
            rulings=rulings,
        )
        same = tree["schema"] == SCHEMA and tree["verdict"] == str(found.verdict)
    except (KeyError, TypeError, ValueError, IndexError) as cause:
        raise RunError(f"{where} is no judgement ({type(cause).__name__} {cause}); {remedy}") from None
    if not same:
        raise RunError(
            f"{where}: got schema {tree['schema']}, verdict {tree['verdict']}, expected {SCHEMA} and "
            f"{found.verdict} from its rules; {remedy}"
        )
    return found


def _finding(row: Mapping[str, Any]) -> Finding:
    if row["severity"] not in SEVERITIES:
        raise ValueError(f"severity {row['severity']!r}")
    return Finding(kind=str(row["class"]), severity=row["severity"], where=str(row["where"]), detail=str(row["detail"]))


def _ruling(row: Mapping[str, Any], findings: Sequence[Finding]) -> Ruling:
    if row["evidence"] not in EVIDENCE:
        raise ValueError(f"evidence {row['evidence']!r}")
    return Ruling(
        id=str(row["id"]),
        verdict=Verdict(row["verdict"]),
        evidence=row["evidence"],
        summary=str(row["summary"]),
        witness=dict(row["witness"]),
        reach=dict(row["reach"]),
        findings=tuple(findings),
    )
