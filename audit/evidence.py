"""What the rules judge: the stages of a run, each the ledgers of its ranks, and what was found out beside them.

    stages = [Stage.open(folder) for folder in folders]      in the order of the run: train, quantize, evaluate
    check_chain(stages)                                      each starts from the seal of the one before
    rulings(Evidence(ruleset=…, stages=tuple(stages), …))    `audit.rules`

A rule reads `Evidence` and nothing else: no file names in it, no clock, so it can be tested with ledgers written by
hand. What is None was not looked at, and no rule passes on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from audit import ledger
from audit.errors import LedgerError
from audit.outline import Outline
from audit.records import Block, Note
from audit.ruleset import Ruleset

Positions = npt.NDArray[np.int64]
"""Places in a stream: token or target indices, int64 [n]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """A split's token ids as one stream, as far as the rules need it. Target i is token i + 1."""

    shards: tuple[int, ...]
    """Tokens of each shard, in order."""
    octets: Callable[[Positions, Positions], Positions] | None = None
    """(first targets [n], how many [n]) → bytes of text behind them, int64 [n], counted without the trainer."""

    @cached_property
    def offsets(self) -> Positions:
        """Where each shard starts in the stream, and where it ends: int64 [shards + 1]."""
        return np.cumsum([0, *self.shards], dtype=np.int64)

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def targets(self) -> int:
        return max(self.tokens - 1, 0)


@dataclass(frozen=True)
class Part:
    """The ledger of one rank, walked once already: `ending` says whether it is sealed, `outline` what is in it."""

    book: ledger.Ledger
    ending: ledger.Ending
    outline: Outline

    def blocks(self) -> Iterator[Block]:
        """The records again, block by block."""
        return self.book.blocks()

    @classmethod
    def open(cls, path: Path) -> Part:
        """Read a ledger once. Raises LedgerError for one that is damaged."""
        book, outline = ledger.Ledger.open(path), Outline()
        for block in book.blocks():
            outline.add(block)
        assert book.ending is not None
        return cls(book, book.ending, outline)


@dataclass(frozen=True)
class Stage:
    """One stage of a run. `name` and `facts` are those of its `run` note, empty for a program that announced none."""

    folder: Path
    parts: tuple[Part, ...]
    name: str
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Stage:
        """Read every rank's ledger once. Raises LedgerError for one that is missing, damaged, or of another run."""
        parts = tuple(Part.open(path) for path in ledger.parts_of(folder))
        ranks = parts[0].ending.ranks
        if [part.ending.rank for part in parts] != list(range(ranks)):
            have = ", ".join(str(part.ending.rank) for part in parts)
            raise LedgerError(f"{folder} holds the ledgers of ranks {have} of {ranks}; every rank's is needed")
        runs = parts[0].outline.named("run")
        facts = runs[0].note.facts if runs else {}
        return cls(folder, parts, str(facts.get("stage", "")), facts)

    @property
    def title(self) -> str:
        """What findings call it: the name that it announced, else that of its folder."""
        return self.name or self.folder.name

    @property
    def sealed(self) -> bool:
        """Whether every rank ended."""
        return all(part.ending.seal is not None for part in self.parts)

    @property
    def length(self) -> int:
        """T of the rows that don't say it themselves, 0 if the run doesn't either."""
        found = self.facts.get("length")
        return found if isinstance(found, int) and 0 < found < 1 << 32 else 0

    def notes(self, *names: str) -> Iterator[tuple[int, Note]]:
        """(rank, note) of all notes of these names."""
        for part in self.parts:
            for moment in part.outline.named(*names):
                yield part.ending.rank, moment.note

    def count(self, kind: str) -> int:
        """Records of a kind on all ranks."""
        return sum(part.outline.records[kind] for part in self.parts)


def notes(blocks: Iterable[Block]) -> Iterator[Note]:
    """The notes of a walk, in order."""
    for block in blocks:
        yield from block.notes


def check_chain(stages: Sequence[Stage]) -> None:
    """Each stage's ledger must start from the seal of the one before. Raises LedgerError that names the two."""
    for before, after in itertools.pairwise(stages):
        seal = ledger.seal_of(before.folder)
        for part in after.parts:
            if part.ending.previous != seal:
                raise LedgerError(
                    f"{part.ending.path} starts from {ledger.text(part.ending.previous)}, expected "
                    f"{ledger.text(seal)}, the seal of {before.folder}; run the later stage again"
                )


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A record whose content is not what the data say: where it stands and what was got and expected."""

    stage: str
    """`Stage.title`."""
    rank: int
    at: int
    split: str
    detail: str
    found_in: Mapping[str, Any] = field(default_factory=dict)
    """Where the tokens really stand, if that could be told: split, document, first token."""
    kind: str = "draw"
    """Kind of the record: `draw` or `score`."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """Tokens of unknown origin (note `unknown`) that stand in a split: what `Contents.located` holds of them."""

    stage: str
    rank: int
    at: int
    """Number of the forward."""
    split: str
    starts: tuple[int, ...]
    """For each row where its first token stands in the split's stream, -1 for a row that stands nowhere in it."""
    length: int
    """Tokens of a row that entered the model."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What re-reading the shards gave (`audit.contents`): records looked at of those there are."""

    drawn: int
    checked: int
    escape: float
    """The chance that one forged record among them was not looked at: 0 when all were."""
    mismatches: tuple[Mismatch, ...]
    unread: tuple[str, ...] = ()
    """Splits of draws whose tokens can't be read again (`self`, `random`), unless they were kept."""
    located: tuple[Located, ...] = ()
    """Tokens of unknown origin that were found in a split; those that are not here were found nowhere."""
    written: frozenset[int] = frozenset()
    """Checksums of prefixes of rows that the run kept: what enters the model while it writes text, token by token."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What running the trainer's loader again gave (`audit.replay`)."""

    steps: int
    draws: int
    mismatches: tuple[Mismatch, ...]
    reason: str = ""
    """Why there was no replay, empty if there was one."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Validation text that also stands in training data."""

    share: float
    """Of validation tokens, in runs of 50 or more that also stand in training."""
    documents: int
    """Validation documents that stand in training whole."""
    contiguous: bool
    """They overlap because of where they stand in validation, not here and there (`audit.overlap.Pattern`)."""
    first: int | None = None
    """The first document of the longest stretch of them, and how many it has."""
    stretch: int = 0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the data are (`audit.manifest`, `audit.published`)."""

    digest: str
    """`sha256:…` of what the run calls its data: data.json."""
    differences: tuple[str, ...] = ()
    """How the files differ from their manifest."""
    root: str = ""
    """The manifest's root."""
    published: str = ""
    """The published export whose counts these are, empty if it is none."""
    published_differences: tuple[str, ...] = ()
    """Counts that differ from those of the export that the run names or that is nearest."""
    published_overlap: float | None = None
    """The overlap that is known of that export."""
    overlap: Overlap | None = None


@dataclass(frozen=True, kw_only=True)
class ClaimedScore:
    """A score as reported. `nats` is the mean loss of a target."""

    nats: float
    targets: int
    bytes: int
    bpb: float


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What the run's own reports say of it."""

    seed: int | None = None
    track: str = ""
    """`A`, `B`, or empty for no claim."""
    headline: str = ""
    """The label of the score that is the result."""
    scores: Mapping[str, ClaimedScore] = field(default_factory=dict)
    """By label."""
    artifact_sha256: str = ""
    model_bytes: int | None = None
    code_bytes: int | None = None
    data_digest: str = ""
    contaminated: tuple[str, ...] = ()
    """Why the run itself says that its score is worth nothing."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """The submission's model file as it lies there: its bytes were counted and digested by the verifier."""

    sha256: str
    bytes: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """All that is known of one run."""

    ruleset: Ruleset
    stages: tuple[Stage, ...]
    streams: Mapping[str, Stream] = field(default_factory=dict)
    """By split: `train`, `val`."""
    contents: Contents | None = None
    replay: Replay | None = None
    identity: Identity | None = None
    claims: Claims | None = None
    artifact: Artifact | None = None

    @property
    def validation(self) -> Stream | None:
        return self.streams.get("val")

    @property
    def evaluation(self) -> tuple[Stage, ...]:
        """The stages that score."""
        return tuple(stage for stage in self.stages if stage.name == self.ruleset.evaluation)

    @property
    def ranks(self) -> int:
        """Processes of the widest stage: the devices that the run holds."""
        return max((len(stage.parts) for stage in self.stages), default=0)
