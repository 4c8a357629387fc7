"""The kill table, docs/kill-table.md: what each planted violation got, and what its honest neighbour got.

`row` is one line of it, made from two judgements; `document` puts rows into the page. So one entry can be compared with
its line, and the page with its entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from audit.verdicts import Judgement, Ruling, Verdict
from tests.mutants.program import Entry

PATH = Path(__file__).parents[2] / "docs" / "kill-table.md"
COMMAND = "python -m tests.mutants"

INTRODUCTION = f"""# The kill table

Every check ships with violations that it must catch, and for each an honest neighbour that it must let pass. Both are
small, complete programs: edits of one honest base (`tests/mutants/base.py`), which trains, averages, calibrates,
quantizes and scores a model of 12,304 parameters on 5,350 validation tokens. Mutant and neighbour differ in what the
second column says and in nothing else. Each program really ran under the recorder, in three stages, and the verifier
judged what it left. `{COMMAND}` writes this page; the tests fail if a run says anything else than the page.

"Class" is the name that the contest's reviewers have for it, where they have one. A FAIL or UNPROVEN is given with the
class of what was found and, in brackets, what the witness names. UNPROVEN is what a ledger can do where it sees that
something was not told, but not what: it withholds the PASS.
"""

SEEN = """## What a recorded run shows

| name | what the mutant does and its neighbour doesn't | class | rule | evidence | mutant | neighbour |
| --- | --- | --- | --- | --- | --- | --- |
"""

UNSEEN = """## What it does not show

A ledger proves one run under an honest interpreter: which tokens went where, and in which order. These violations leave
the records that honest work leaves, and the ledger's verdict on them is printed as it is: a PASS here is the limit of
what a PASS from a ledger means. They are the business of the probe, which runs the code again on changed data, or of
comparing claims with files.

| name | what the mutant does and its neighbour doesn't | class | rule | to be seen by | mutant | neighbour |
| --- | --- | --- | --- | --- | --- | --- |
"""


def row(entry: Entry, mutant: Judgement, neighbour: Judgement) -> str:
    """One entry's line."""
    kind = f"`{entry.kind}`" if entry.kind else "–"
    verdicts = (said(mutant.ruling(entry.rule), entry), str(neighbour.ruling(entry.rule).verdict))
    return f"| `{entry.name}` | {entry.plants} | {kind} | {entry.rule} | {entry.evidence} | {' | '.join(verdicts)} |\n"


def said(ruling: Ruling, entry: Entry) -> str:
    """A verdict with the class that it rests on and what the witness names, or that a ledger doesn't see it."""
    if not entry.visible:
        return f"{ruling.verdict}, not visible to a ledger"
    if entry.finding not in classes(ruling):
        return str(ruling.verdict)
    place = ", ".join(f"{name} {ruling.witness.get(name)}" for name in entry.names)
    return f"{ruling.verdict} `{entry.finding}`" + (f" ({place})" if place else "")


def classes(ruling: Ruling) -> set[str]:
    """The classes of what a rule found, notes left out."""
    return {finding.kind for finding in ruling.findings if finding.severity != "note"}


def document(entries: tuple[Entry, ...], rows: Mapping[str, str]) -> str:
    """The page, from the line of every entry by its name."""
    seen = "".join(rows[entry.name] for entry in entries if entry.visible)
    unseen = "".join(rows[entry.name] for entry in entries if not entry.visible)
    visible = [entry for entry in entries if entry.visible]
    failed = sum(entry.verdict is Verdict.FAIL for entry in visible)
    count = (
        f"{len(entries)} violations: a recorded run shows {len(visible)}, {failed} as FAIL and "
        f"{len(visible) - failed} as UNPROVEN; {len(entries) - len(visible)} are not visible to a ledger.\n"
    )
    return "\n".join([INTRODUCTION, count, SEEN + seen, UNSEEN + unseen])


def rows_of(page: str) -> list[str]:
    """The lines of a page that stand for entries."""
    return [line for line in page.splitlines(keepends=True) if line.startswith("| `")]
