"""An entry of the catalogue: a planted violation and its honest neighbour, both written as edits of the honest base.

    base.py ── common edits ──┬── mutant edits ────→ the mutant, a whole program
                              └── neighbour edits ─→ its neighbour, a whole program

An edit is (old, new); old must stand in the text exactly once, so an edit that no longer fits the base is an error and
never a program without its violation. What differs between the two is what `mutant` and `neighbour` say and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit.verdicts import Verdict

BASE = Path(__file__).with_name("base.py").read_text(encoding="utf-8")

Edits = tuple[tuple[str, str], ...]
Plant = Callable[[Path], None]
"""Changes the data of a run, given the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One violation, the verdict that it must get, and its neighbour, which must get a PASS of the same rule."""

    name: str
    kind: str = ""
    """The class of the contest's violations that it belongs to, as reviewers name it; empty where there is none."""
    plants: str
    """What the mutant does and its neighbour doesn't, in one sentence."""
    rule: str
    finding: str = ""
    """The class of the finding that the rule must give; empty for what a ledger can't see."""
    verdict: Verdict = Verdict.FAIL
    evidence: str = "ledger"
    """What can see it: `ledger` and `identity` do so here, `probe` and `claims` elsewhere."""
    common: Edits = ()
    mutant: Edits = ()
    neighbour: Edits = ()
    mutant_data: Plant | None = None
    neighbour_data: Plant | None = None
    names: Mapping[str, Any] = field(default_factory=dict)
    """What the witness must name: known from the edits, not from a run."""

    @property
    def visible(self) -> bool:
        """Whether a recorded run and its data show it."""
        return self.evidence in ("ledger", "identity")

    def programs(self) -> tuple[str, str]:
        """The texts of the mutant and of its neighbour."""
        common = edited(BASE, self.common)
        return edited(common, self.mutant), edited(common, self.neighbour)


def edited(text: str, edits: Edits) -> str:
    """A text after some edits, one after the other. Raises ValueError if one has no place, or more than one."""
    for old, new in edits:
        if (found := text.count(old)) != 1:
            raise ValueError(f"got {found} places for the edit of {old!r}, expected 1; write it anew for this base")
        text = text.replace(old, new)
    return text
