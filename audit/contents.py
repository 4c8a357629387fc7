"""Whether draws and scores are of the tokens that stand where they say: read again and hashed again.

    contents = check_contents(stages, open_data([folder]))                   every record
    contents = check_contents(stages, data, sample=2000, seed=secret)        some, and the chance that one escapes

1. A `Claim` is a record whose rows have places: a draw names shard and first token, a score its window's targets.
   Records known by content alone, and splits that nobody has, are listed as unread.
2. All claims are taken, or as many as the sample says. Whoever knows the seed before the run can forge around it.
3. Rows are read from the shards, a few MiB at a time, and hashed: SHA-256 of the rows, checksum of their inputs.
4. What differs from the record is a mismatch, and where its rows stand instead is tried at the places that a forger
   or a bug would have them from: the same places of another split, a token further, consecutive rows of validation.
5. Rows that only the run has (`self`) are read from what it kept (`audit.kept`), and must not stand in validation.
   The prefixes of such rows are what entered the model while it wrote them.
6. Token ids of unknown origin are looked for in validation (`audit.whereabouts`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from audit import fingerprint
from audit.errors import LedgerError, SplitError
from audit.evidence import Contents, Located, Mismatch, Part, Stage
from audit.kept import Unknown
from audit.ledger import text
from audit.records import SHARDS, Block
from audit.shards import Tokens
from audit.splits import Data, Split
from audit.whereabouts import places

VALIDATION = "val"
"""The split that scores are of."""
CHUNK_BYTES = 1 << 22
"""Bytes of rows that are read and hashed in one go: a core's cache holds the half of it."""
MOST_LENGTH = 1 << 20
"""Tokens of the longest row that is read; the contest's rows have 2,049."""
MOST_TRACED = 32
"""Mismatches whose rows are looked for elsewhere."""
MOST_TRACED_BYTES = 1 << 30
"""Bytes of validation rows that are hashed in the search for a batch of consecutive ones."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Claim:
    """A record that says which rows of a split it is of: rows of `length` + 1 tokens from `starts` [n] on."""

    stage: str
    rank: int
    at: int
    kind: str
    split: str
    length: int
    shards: npt.NDArray[np.integer] | None
    """int [n]: the shard of each start, None where starts are places in the stream."""
    starts: npt.NDArray[np.int64]
    digest: bytes
    checksum: int

    def positions(self, split: Split, shift: int = 0) -> npt.NDArray[np.int64]:
        """The places of its rows in the stream of a split, int64 [n]. Raises SplitError if one is outside of it."""
        begin = self.starts if self.shards is None else split.positions(self.shards, self.starts)
        begin = begin + shift
        if len(begin) and (begin.min() < 0 or begin.max() + self.length + 1 > split.tokens):
            raise SplitError(
                f"rows of {self.length} + 1 tokens from token {begin.min()} to {begin.max()} of split {split.name} on, "
                f"which has {split.tokens}; the rows are of other data"
            )
        if self.length > MOST_LENGTH:
            raise SplitError(f"rows of {self.length} tokens, at most {MOST_LENGTH} are read; it is no training row")
        return begin


def check_contents(
    stages: Sequence[Stage],
    data: Data,
    *,
    sample: int | None = None,
    seed: int = 0,
    kept: Mapping[str, Split] | None = None,
) -> Contents:
    """Read again what the draws and scores of a run claim. Raises LedgerError for a ledger that is damaged.

    `kept` are rows that only the run has, by split. With `sample`, so many records are chosen with `seed`.
    """
    splits = data.splits | dict(kept or {})
    surveys = [_survey(stage, splits) for stage in stages]
    readable = sum(count for count, _ in surveys)
    chosen = choose(readable, sample, seed)
    mismatches: list[Mismatch] = []
    tracer = Tracer(splits)
    taken = iter(chosen.tolist())
    for stage in stages:
        for part in stage.parts:
            claims = (claim for claim in _claims(stage, part, splits) if next(taken))
            for claim, wrong in _wrong(claims, splits):
                found = tracer.trace(claim) if len(mismatches) < MOST_TRACED else {}
                mismatches.append(_mismatch(claim, wrong, found))
    mismatches += _kept_in_validation(stages, splits, set(kept or {}))
    return Contents(
        drawn=sum(stage.count("draw") + stage.count("score") for stage in stages),
        checked=int(chosen.sum()),
        escape=1 - int(chosen.sum()) / readable if readable else 1.0,
        mismatches=tuple(mismatches),
        unread=tuple(sorted({name for _, unread in surveys for name in unread})),
        located=tuple(_located(stages, data)),
        written=frozenset(_prefixes(stages, splits, set(kept or {}))),
    )


def choose(count: int, sample: int | None, seed: int) -> npt.NDArray[np.bool_]:
    """Which of `count` claims are looked at: bool [count]. Raises LedgerError for a sample of none."""
    if sample is not None and sample < 1:
        raise LedgerError(f"got a sample of {sample} records, expected at least 1; leave it out to check all of them")
    chosen = np.ones(count, dtype=np.bool_)
    if sample is not None and sample < count:
        chosen[:] = False
        chosen[np.random.default_rng(seed).choice(count, sample, replace=False)] = True
    return chosen


# Claims


def _placed(stage: Stage, block: Block, splits: Mapping[str, Split]) -> tuple[Any, Any]:
    """Which draws and which scores of a block are claims: bool [draws], bool [scores]."""
    draws, scores = block.draws, block.scores
    known = np.isin(draws["split"], [name.encode() for name, split in splits.items() if split.tokens])
    known &= (draws["origin"] == SHARDS) & ((draws["length"] > 0) | (stage.length > 0))
    return known, (scores["length"] > 0) & (VALIDATION in splits)


def _survey(stage: Stage, splits: Mapping[str, Split]) -> tuple[int, set[str]]:
    """How many claims a stage makes, and the splits of draws that are none."""
    count, unread = 0, set()
    for part in stage.parts:
        for block in part.blocks():
            draws, scores = _placed(stage, block, splits)
            count += int(draws.sum()) + int(scores.sum())
            unread |= {name.decode() for name in np.unique(block.draws["split"][~draws]).tolist()}
    return count, unread


def _claims(stage: Stage, part: Part, splits: Mapping[str, Split]) -> Iterator[Claim]:
    """The claims of a rank, block by block, draws before scores."""
    rank, name = part.ending.rank, stage.title
    for block in part.blocks():
        draws, scores = _placed(stage, block, splits)
        for row in block.draws[draws]:
            rows = block.sequences[row["offset"] : row["offset"] + row["count"]]
            yield Claim(
                stage=name,
                rank=rank,
                at=int(row["at"]),
                kind="draw",
                split=row["split"].decode(),
                length=int(row["length"]) or stage.length,
                shards=rows["shard"],
                starts=rows["start"].astype(np.int64),
                digest=row["digest"].tobytes(),
                checksum=int(row["checksum"]),
            )
        for row in block.scores[scores]:
            rows = block.windows[row["offset"] : row["offset"] + row["count"]]
            # A window's last targets are scored: its first input is as many tokens before them as it is longer.
            starts = rows["begin"].astype(np.int64) + rows["scored"] - int(row["length"])
            yield Claim(
                stage=name,
                rank=rank,
                at=int(row["at"]),
                kind="score",
                split=VALIDATION,
                length=int(row["length"]),
                shards=None,
                starts=starts,
                digest=row["digest"].tobytes(),
                checksum=int(row["checksum"]),
            )


# Reading again


def _wrong(claims: Iterator[Claim], splits: Mapping[str, Split]) -> Iterator[tuple[Claim, str]]:
    """The claims that do not hold, each with what was got and expected."""
    for claim in claims:
        try:
            digest, checksum = read_sums(splits[claim.split], claim.positions(splits[claim.split]), claim.length)
        except SplitError as cause:
            yield claim, str(cause)
            continue
        if digest != claim.digest:
            yield claim, f"the ledger has rows of {text(claim.digest)}, at their places stand {text(digest)}"
        elif checksum != claim.checksum:
            yield claim, f"the ledger has inputs of checksum {claim.checksum:016x}, their rows have {checksum:016x}"


def read_sums(split: Split, positions: npt.NDArray[np.int64], length: int) -> tuple[bytes, int]:
    """SHA-256 of the rows of `length` + 1 tokens at these positions [n], and the checksum of their inputs."""
    digest, checksum = hashlib.sha256(), 0
    for first, rows in _read(split, positions, length):
        digest.update(rows.astype("<u2", copy=False).data)
        checksum += _checksum(rows[:, :-1], first * length)
    return digest.digest(), checksum & fingerprint.MASK


def _read(split: Split, positions: npt.NDArray[np.int64], length: int) -> Iterator[tuple[int, Tokens]]:
    """(number of the first row, rows of `length` + 1 tokens) at these positions, in chunks of a few MiB."""
    per_chunk = max(CHUNK_BYTES // (2 * (length + 1)), 1)
    for first in range(0, len(positions), per_chunk):
        yield first, split.at(positions[first : first + per_chunk], length=length + 1)


def _checksum(inputs: npt.NDArray[np.uint16], first: int) -> int:
    """What ids that stand from flat position `first` on add to the checksum of all inputs of a batch."""
    if not first:
        return fingerprint.checksum(inputs)
    factors = fingerprint.weights(first, inputs.size)
    return int(np.dot(inputs.reshape(-1).astype(np.int64), factors)) + int(factors.sum())


# Where else


class Tracer:
    """Looks for the rows of a claim that does not hold, by its digest, where they may be from."""

    def __init__(self, splits: Mapping[str, Split]) -> None:
        self.splits = splits
        self._batches: dict[tuple[int, int], dict[bytes, int]] = {}

    def trace(self, claim: Claim) -> dict[str, Any]:
        """Split and first token of its first row, empty if they were not found."""
        for split in self.splits.values():
            for shift in (0, 1, -1):
                try:
                    positions = claim.positions(split, shift)
                except SplitError:
                    continue
                if len(positions) and read_sums(split, positions, claim.length)[0] == claim.digest:
                    return _place(split, int(positions[0]))
        if VALIDATION in self.splits and len(claim.starts):
            found = self._consecutive(self.splits[VALIDATION], len(claim.starts), claim.length).get(claim.digest, -1)
            return _place(self.splits[VALIDATION], found) if found >= 0 else {}
        return {}

    def _consecutive(self, split: Split, rows: int, length: int) -> dict[bytes, int]:
        """Digest → first token, of every batch of `rows` rows that follow each other, batch after batch."""
        key = rows, length
        if key not in self._batches:
            last = split.tokens - rows * length
            size = 2 * rows * (length + 1)
            begins = range(0, last, rows * length)[: MOST_TRACED_BYTES // max(size, 1)]
            offsets = np.arange(rows, dtype=np.int64) * length
            self._batches[key] = {read_sums(split, begin + offsets, length)[0]: begin for begin in begins}
        return self._batches[key]


def _place(split: Split, position: int) -> dict[str, Any]:
    shard, start = split.place(position)
    return {"split": split.name, "token": position, "shard": shard, "start": start}


def _mismatch(claim: Claim, detail: str, found: Mapping[str, Any]) -> Mismatch:
    if found:
        detail += f"; its rows stand in split {found['split']} from token {found['token']} on"
    return Mismatch(
        stage=claim.stage,
        rank=claim.rank,
        at=claim.at,
        split=claim.split,
        kind=claim.kind,
        detail=detail,
        found_in=found,
    )


def _kept_in_validation(stages: Sequence[Stage], splits: Mapping[str, Split], kept: set[str]) -> Iterator[Mismatch]:
    """Draws of rows that only the run has, and that stand in validation all the same."""
    if VALIDATION not in splits:
        return
    for stage in stages:
        for part in stage.parts:
            for claim in _claims(stage, part, {name: splits[name] for name in kept}):
                try:
                    positions = claim.positions(splits[claim.split])
                except SplitError:
                    continue  # a mismatch already
                for first, rows in _read(splits[claim.split], positions, claim.length):
                    at = places(rows, splits[VALIDATION])
                    if (at >= 0).any():
                        row = int(np.argmax(at >= 0))
                        found = _place(splits[VALIDATION], int(at[row]))
                        yield _mismatch(claim, f"row {first + row} is validation text", found)
                        break


def _prefixes(stages: Sequence[Stage], splits: Mapping[str, Split], kept: set[str]) -> Iterator[int]:
    """Checksums of rows[:, :t] for every t, of each draw of kept rows: a model that writes reads its text so far."""
    for stage in stages:
        for part in stage.parts:
            for claim in _claims(stage, part, {name: splits[name] for name in kept}):
                try:
                    rows = splits[claim.split].at(claim.positions(splits[claim.split]), length=claim.length)
                except SplitError:
                    continue  # a mismatch already
                yield from (fingerprint.checksum(rows[:, :count]) for count in range(1, claim.length + 1))


# Tokens of unknown origin


def _located(stages: Sequence[Stage], data: Data) -> Iterator[Located]:
    """The notes `unknown` of whose ids some stand in validation."""
    if VALIDATION not in data.splits:
        return
    for stage in stages:
        for part in stage.parts:
            for note in (note for block in part.blocks() for note in block.notes if note.name == "unknown"):
                unknown = Unknown.of(note)
                starts = tuple(places(unknown.rows, data.splits[VALIDATION]).tolist())
                if any(start >= 0 for start in starts):
                    # Rows that were not kept stand nowhere: one -1 says that there are some.
                    yield Located(
                        stage=stage.title,
                        rank=part.ending.rank,
                        at=unknown.forward,
                        split=VALIDATION,
                        starts=starts if unknown.whole else (*starts, -1),
                        length=unknown.rows.shape[1],
                    )
