"""What the rules see in the ledgers, by class and stage: how often, and the first of it in full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from audit.verdicts import Finding


def many(count: int, noun: str) -> str:
    """`1 seed`, `4,096 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(kw_only=True)
class Sighting:
    """One class of things seen in one stage; `rank`, `at`, `detail` and `witness` are of the first."""

    kind: str
    stage: str
    rank: int
    at: int
    detail: str
    witness: dict[str, Any]
    records: int = 0
    """How many records show it."""
    targets: int = 0
    """How many targets (or rows) they concern, each as often as it was used."""

    @property
    def where(self) -> str:
        """A place that a reader finds: stage, rank, record."""
        return f"{self.stage}, rank {self.rank}, record {self.at}" if self.at >= 0 else self.stage or "the run"

    def finding(self, severity: str) -> Finding:
        more = f"; {self.records} such records" if self.records > 1 else ""
        return Finding(kind=self.kind, severity=severity, where=self.where, detail=self.detail + more)

    def summary(self) -> dict[str, Any]:
        """A line of the list of kinds in a witness."""
        return {"class": self.kind, "stage": self.stage, "records": self.records, "targets": self.targets}


@dataclass
class Sightings:
    """Sightings by class and stage, in the order of their first."""

    found: dict[tuple[str, str], Sighting] = field(default_factory=dict)

    def add(
        self,
        kind: str,
        stage: str,
        detail: str,
        *,
        rank: int = 0,
        at: int = -1,
        targets: int = 0,
        records: int = 1,
        witness: Mapping[str, Any] | None = None,
    ) -> Sighting:
        """One more of a class."""
        sighting = self.found.get((kind, stage))
        if sighting is None:
            place = {"stage": stage, "rank": rank, "record": at} if at >= 0 else {"stage": stage}
            sighting = Sighting(
                kind=kind, stage=stage, rank=rank, at=at, detail=detail, witness=place | dict(witness or {})
            )
            self.found[kind, stage] = sighting
        sighting.records += records
        sighting.targets += targets
        return sighting

    def of(self, *kinds: str) -> Iterator[Sighting]:
        """Those of these classes, in the order in which the classes are given; `name-*` is all that begin so."""
        for kind in kinds:
            for sighting in self.found.values():
                if sighting.kind == kind or (kind.endswith("*") and sighting.kind.startswith(kind[:-1])):
                    yield sighting
