"""What the program did, written record by record in its order: which draw entered the model, which step used it.

Everything here happens when its numbers are known (`audit.recorder.queue`), which on a GPU is later than the program
did it, in the same order. Three things are worked out on the way:

- token ids under gradients that match no draw so far are kept in a note `unknown`;
- the draws of a step that the program did not announce: those that entered the model under gradients since the last
  step; all that were handed out since then if no model is known, or something unknown entered it;
- the score records of `audit.scoring`: rows are scored when their block ends or is handed its next batch.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audit import fingerprint
from audit.ledger import Writer
from audit.records import CONTENT, LISTS

MOST_DRAWS = 1 << 18
"""Checksums of draws that are remembered; a forward of an older draw counts as unknown."""
MOST_CONTENTS = 4096
"""Draws whose row hashes are remembered, to be scored in a block that they enter later."""
MOST_KEPT_BYTES = 1 << 16
MOST_KEPT = 16
"""Unknown tokens are kept up to so many bytes each, for so many forwards; of more, their SHA-256."""


@dataclass(frozen=True)
class Content:
    """A batch known by its content: row hashes uint64 [n], elements of a row, SHA-256 and checksum."""

    hashes: np.ndarray
    length: int
    digest: bytes
    checksum: int


@dataclass
class _Scoring:
    """An open block of `audit.scoring` and the draws that wait in it to be settled."""

    label: str
    counted: bool
    rows: dict[int, Content] = field(default_factory=dict)


class Story:
    """Writes records and knows what of the past they need."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._records = 0
        self._draws: OrderedDict[int, int] = OrderedDict()
        self._contents: OrderedDict[int, Content] = OrderedDict()
        self._handed_out: dict[int, None] = {}
        self._entered: dict[int, None] = {}
        self._strangers = False
        self._last_used: tuple[int, ...] = ()
        self._implied = 0
        self._collectives = 0
        """The highest count that the program said; what nobody announces was done at it, or later."""
        self._unknown = 0
        self._scoring: list[_Scoring] = []

    def write(self, kind: str, *arguments: Any, now: int, **options: Any) -> None:
        """One record by the writer's method of that name. What the program says of its collectives is kept."""
        getattr(self.writer, kind)(*arguments, now=now, **options)
        self._records += 1
        self._collectives = max(self._collectives, options.get("collectives", 0))

    # Draws and forwards

    def draw(self, draw: int, split: str, sequences: np.ndarray, *, now: int, **about: Any) -> None:
        """A batch handed out, with the keyword arguments of `Writer.draw`."""
        self.write("draw", draw, split, sequences, now=now, **about)
        _remember(self._draws, about["checksum"], draw, MOST_DRAWS)
        self._handed_out[draw] = None

    def content(self, draw: int, split: str, content: Content, parameters: int, *, now: int) -> None:
        """A batch of `audit.watch`; in a scoring block it settles the block's batches before it."""
        if self._scoring:
            self._settle(self._scoring[-1], parameters, now=now)
        self.write(
            "draw",
            draw,
            split,
            _halves(content.hashes, LISTS["draw"][1], ("shard", "start")),
            digest=content.digest,
            checksum=content.checksum,
            origin=CONTENT,
            length=content.length,
            now=now,
        )
        _remember(self._draws, content.checksum, draw, MOST_DRAWS)
        _remember(self._contents, draw, content, MOST_CONTENTS)
        if self._scoring:
            self._scoring[-1].rows[draw] = content
        else:
            self._handed_out[draw] = None

    def forward(self, checksum: int, *, tokens: int, grad: bool, ids: Tensor | None, now: int) -> None:
        """Ids entered the model; `ids` are they, for a forward under gradients."""
        at = self._records
        self.write("forward", checksum=checksum, tokens=tokens, grad=grad, now=now)
        draw = self._draws.get(checksum)
        if draw is not None and self._scoring and draw in self._contents:
            self._scoring[-1].rows.setdefault(draw, self._contents[draw])
        if not grad:
            return
        if draw is not None:
            self._entered[draw] = None
        elif ids is not None:
            self._strangers = True
            if self._scoring:  # perhaps it is the block's batch, changed on its way
                self._entered |= dict.fromkeys(self._scoring[-1].rows)
            self.write("note", "unknown", {"at": at, **self._kept(ids, checksum)}, now=now)

    def _kept(self, ids: Tensor, checksum: int) -> Mapping[str, Any]:
        """What is noted of ids [n, …] that nobody announced."""
        array = ids.detach().cpu().to(torch.float32 if ids.is_floating_point() else torch.int64).numpy()
        facts: dict[str, Any] = {"shape": list(array.shape)}
        if array.dtype == np.int64 and fingerprint.checksum(array) != checksum:
            facts["overwritten"] = True  # on a GPU, before its checksum came
        if array.dtype == np.int64 and array.size and array.min() >= 0 and array.max() < 1 << 16:
            array = array.astype("<u2")
        raw = array.tobytes()
        self._unknown += 1
        if self._unknown <= MOST_KEPT:
            facts["rows"] = base64.b64encode(zlib.compress(raw[:MOST_KEPT_BYTES])).decode()
        return facts | {"dtype": array.dtype.str, "sha256": "sha256:" + hashlib.sha256(raw).hexdigest()}

    # Steps

    def step(self, step: int, draws: Sequence[int], *, lr: float, looped: bool, collectives: int, now: int) -> None:
        """A step that the program announced."""
        self.write("step", step, draws, lr=lr, looped=looped, collectives=collectives, now=now)
        self._stepped(tuple(draws))

    def implied_step(self, *, models: bool, now: int) -> None:
        """A step of a torch optimizer that the program did not announce; `models` if one was announced."""
        used = dict(self._entered)
        if self._strangers or not models:
            used |= self._handed_out
        draws = tuple(used) or (() if self._strangers else self._last_used)  # gradients of before, once more
        self._implied += 1
        self.write("step", -self._implied, draws, lr=0.0, looped=False, collectives=self._collectives, now=now)
        self._stepped(draws)

    def _stepped(self, draws: tuple[int, ...]) -> None:
        self._last_used, self._strangers = draws, False
        self._entered.clear()
        self._handed_out.clear()

    # Scoring blocks

    def begin_scoring(self, label: str, counted: bool, *, now: int) -> None:
        """From here on, what is handed out or enters the model is being scored."""
        self._scoring.append(_Scoring(label, counted))

    def end_scoring(self, parameters: int, *, now: int) -> None:
        """The innermost block is left."""
        self._settle(self._scoring.pop(), parameters, now=now)

    def _settle(self, block: _Scoring, parameters: int, *, now: int) -> None:
        for content in block.rows.values():
            self.write(
                "score",
                block.label,
                _halves(content.hashes, LISTS["score"][1], ("begin", "scored")),
                counted=block.counted,
                collectives=self._collectives,
                length=0,
                digest=content.digest,
                checksum=content.checksum,
                parameters=parameters,
                now=now,
            )
        block.rows.clear()


def _remember(table: OrderedDict[int, Any], key: int, value: Any, limit: int) -> None:
    """The newest stands last, the oldest goes."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > limit:
        table.popitem(last=False)


def _halves(hashes: np.ndarray, dtype: np.dtype[Any], names: tuple[str, str]) -> np.ndarray:
    """64-bit hashes [n] in two 32-bit columns, high and low; the other columns are zero."""
    found = np.zeros(len(hashes), dtype=dtype)
    found[names[0]], found[names[1]] = hashes >> np.uint64(32), hashes & np.uint64(0xFFFFFFFF)
    return found
