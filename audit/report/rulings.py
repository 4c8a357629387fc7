"""A judgement as Markdown: the table of rules, witnesses of what failed, findings, and what is still to be proven."""

from __future__ import annotations

from collections.abc import Mapping

from audit import again
from audit.report.cells import Table, code, nested, plain
from audit.verdicts import SEVERITIES, Judgement, Ruling, Verdict

MOST_FINDINGS = 100


def rule_table(judgement: Judgement) -> Table:
    """A row for each rule, those that the profile requires first."""
    rulings = sorted(judgement.rulings, key=lambda ruling: ruling.id not in judgement.required)
    return Table(["rule", "required", "verdict", "evidence", "summary"], [_row(judgement, each) for each in rulings], 5)


def _row(judgement: Judgement, ruling: Ruling) -> list[str]:
    required = "yes" if ruling.id in judgement.required else "no"
    verdict = str(ruling.verdict) if ruling.verdict is Verdict.PASS else f"**{ruling.verdict}**"
    return [plain(ruling.id), required, verdict, plain(ruling.evidence), plain(ruling.summary)]


def witnesses(judgement: Judgement) -> str:
    """What a reader can check by hand of each failed rule; empty if none failed."""
    failed = [ruling for ruling in judgement.rulings if ruling.verdict is Verdict.FAIL]
    return "\n\n".join(
        f"#### {plain(ruling.id)}\n\n{plain(ruling.summary)}\n\n{nested(ruling.witness) or 'No witness was given.'}"
        for ruling in failed
    )


def findings(judgement: Judgement) -> str:
    """A list of everything seen, the worst first; empty if nothing was."""
    found = sorted(
        (finding for ruling in judgement.rulings for finding in ruling.findings),
        key=lambda finding: SEVERITIES.index(finding.severity),
    )
    lines = [
        f"- **{finding.severity}** {code(finding.kind)}, {plain(finding.where)}: {plain(finding.detail)}"
        for finding in found[:MOST_FINDINGS]
    ]
    if len(found) > MOST_FINDINGS:
        lines.append(f"- … and {len(found) - MOST_FINDINGS:,} more; report.json has them all")
    return "\n".join(lines)


def computed_again(judgement: Judgement) -> str:
    """A list of what was computed again and what was not; empty for a judgement that says nothing of it."""
    return "\n".join(f"- **{plain(what)}**: {plain(text)}" for what, text in again.lines(judgement))


def unproven(judgement: Judgement, proofs: Mapping[str, str]) -> str:
    """A list of what is missing for each unproven rule, required ones first; empty if all are decided.

    `proofs` is, by rule, what would prove it.
    """
    open_rules = [ruling for ruling in judgement.rulings if ruling.verdict is Verdict.UNPROVEN]
    open_rules.sort(key=lambda ruling: ruling.id not in judgement.required)
    lines = []
    for ruling in open_rules:
        required, proof = " (required)" if ruling.id in judgement.required else "", proofs.get(ruling.id, "")
        told = "" if not proof or proof in ruling.summary else f". Proof: {plain(proof)}"
        lines.append(f"- **{plain(ruling.id)}**{required}: {plain(ruling.summary)}{told}")
    return "\n".join(lines)
