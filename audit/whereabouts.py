"""Where rows of tokens stand in a split, whoever drew them.

    places(rows, split)      int64 [n]: for each row of uint16 [n, L] its first token's place in the stream, or -1

Rows of 50 tokens or more are found by the runs of 50 that they share with the stream (`audit.grams`): a row
stands where most of its runs do, so one that was padded, cut or changed here and there is found too, and a short run
that both have by chance is not. Shorter rows must stand there token by token; below 8 tokens a place means nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from audit.grams import RUN, Index, search
from audit.shards import Tokens
from audit.splits import Split

Positions = npt.NDArray[np.int64]

SHORTEST = 8
"""Tokens of the shortest row that is looked for."""
MOST_SHORT = 256
"""Rows below 50 tokens that are looked for: each is a walk of its own, 20 ms for 40 million tokens."""
SHARE = 0.5
"""Of a row's runs that must stand at one place."""


def places(rows: Tokens, split: Split) -> Positions:
    """Where each row, uint16 [n, L], stands in the stream of a split: the place of its first token, or -1."""
    count, length = rows.shape
    found = np.full(count, -1, dtype=np.int64)
    if not count or split.tokens < length or length < SHORTEST:
        return found
    if length < RUN:
        for row in range(min(count, MOST_SHORT)):
            found[row] = _first(rows[row], split.slice(0, split.tokens))
        return found
    index = Index(rows.reshape(-1), row=length)
    runs = index.places(search(index, split)).reshape(count, length)[:, : length - RUN + 1]
    for row in range(count):
        found[row] = _most(runs[row])
    return found


def _most(runs: Positions) -> int:
    """The start that most of a row's runs agree on, if at least SHARE of them do; `runs` [m] is where each stands."""
    offsets = (runs - np.arange(len(runs)))[runs >= 0]
    starts, votes = np.unique(offsets[offsets >= 0], return_counts=True)
    if not len(starts) or votes.max() < SHARE * len(runs):
        return -1
    return int(starts[np.argmax(votes)])


def _first(row: Tokens, tokens: Tokens) -> int:
    """The first place where a row stands token by token, or -1."""
    at = np.flatnonzero(tokens[: len(tokens) - len(row) + 1] == row[0])
    for ahead in range(1, len(row)):
        at = at[tokens[at + ahead] == row[ahead]]
    return int(at[0]) if len(at) else -1
