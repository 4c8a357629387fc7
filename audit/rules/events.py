"""What the records of a rank mean for the validation stream: rows that were used, windows that were scored.

Events are few: of the records of a training they are its steps alone. `counter` is the number of collectives by which
events of different ranks are ordered, never falling within a rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.evidence import Positions


@dataclass(slots=True, kw_only=True)
class Rows:
    """Rows of validation tokens that something used."""

    kind: str
    """The class of the violation if one of their targets was not scored before."""
    draw: int | None
    split: str
    """What the draw calls itself."""
    starts: Positions
    """The first target of each row, int64 [n], -1 where nobody can tell; of rows known by content the place of their
    hash among those that are ever scored, -1 for one that is not.
    """
    length: int
    """Targets of a row."""
    hashes: npt.NDArray[np.uint64] | None = None
    """Of rows known by content."""


@dataclass(slots=True, kw_only=True)
class Used:
    """An optimizer step, or with `step` None a calibration, and the validation rows it used."""

    at: int
    counter: int
    step: int | None
    rows: list[Rows] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Scored:
    """A score record that enters the total. `windows` has the columns of the list."""

    at: int
    counter: int
    label: str
    length: int
    """0 for rows known by content."""
    parameters: int
    windows: npt.NDArray[Any]


Event = Used | Scored
