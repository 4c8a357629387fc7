"""Where rows stand: draws and windows as targets of the validation stream, or as rows known by their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audit.evidence import Contents, Located, Positions, Stream
from audit.rules.events import Rows
from audit.rules.handed import Draw, hashes

VALIDATION = "val"


@dataclass(frozen=True, eq=False)
class Context:
    """What it takes to place rows."""

    validation: Stream | None
    contents: Contents | None
    hashes: npt.NDArray[np.uint64]
    """Of all rows that are scored by content and counted: uint64 [n], ascending, each once."""


def rows_of(draw: Draw, kind: str, context: Context) -> Rows | None:
    """The rows of a draw that concern validation, None if there are none.

    `kind` is the class of the violation if one of their targets was not scored before.
    """
    if draw.rows is None:
        return None
    if not draw.content:
        starts = targets(draw, context.validation)
        return Rows(kind=kind, draw=draw.draw, split=draw.split, starts=starts, length=draw.length)
    wanted = hashes(draw.rows)
    index = index_of(wanted, context.hashes)
    chosen = (index >= 0) | (draw.split == VALIDATION)
    if not chosen.any():
        return None
    return Rows(kind=kind, draw=draw.draw, split=draw.split, starts=index[chosen], length=0, hashes=wanted[chosen])


def targets(draw: Draw, stream: Stream | None) -> Positions:
    """The first target of each row of a validation draw, int64 [n]; -1 where nobody can tell."""
    assert draw.rows is not None
    if stream is None or not draw.length:
        return np.full(len(draw.rows), -1, dtype=np.int64)
    shard, start = (draw.rows[name].astype(np.int64) for name in ("shard", "start"))
    known = shard < len(stream.shards)
    return np.where(known, stream.offsets[np.where(known, shard, 0)] + start, -1)


def index_of(wanted: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]) -> Positions:
    """The place of each hash among the known ones (ascending), int64 [n]; -1 for one that is not among them."""
    index = np.searchsorted(known, wanted)
    inside = index < len(known)
    inside[inside] = known[index[inside]] == wanted[inside]
    return np.where(inside, index, -1).astype(np.int64)


def located(found: list[Located]) -> tuple[bool, list[Rows]]:
    """Tokens that nobody announced: whether all their rows were found in the data, and those of them in validation."""
    if not found:
        return False, []
    starts = [np.array(one.starts, dtype=np.int64) for one in found]
    rows = [
        Rows(kind="unannounced-validation-tokens", draw=None, split="", starts=places[places >= 0], length=one.length)
        for one, places in zip(found, starts, strict=True)
        if one.split == VALIDATION and (places >= 0).any()
    ]
    whole = len({len(places) for places in starts}) == 1
    return whole and bool(np.any([places >= 0 for places in starts], axis=0).all()), rows


def windows_as_rows(windows: npt.NDArray[Any], length: int, *, counted: bool) -> Rows:
    """The windows of a score as rows of `length` targets: what a step learns from that uses their forward."""
    starts = windows["begin"].astype(np.int64) + windows["scored"] - length
    kind = "trained-before-scored" if counted else "unannounced-validation-tokens"
    return Rows(kind=kind, draw=None, split=VALIDATION, starts=np.maximum(starts, 0), length=length)
