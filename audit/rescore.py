"""Losses computed again, from the artifact and the shards, against those that the ledger has.

    rescored = rescore(stages, data, recipe, artifact, sample=20, seed=secret)

1. What `evaluate` scores before it moves anything is scored with the artifact, and so is every record that has the
   artifact's fingerprint. The artifact must be the one that `quantize` noted.
2. It is loaded, and its fingerprint must be that of those records.
3. The losses of all of them, or of a sample, are computed in batches of the same shape by the trainer's own model
   (`audit.replay`). On the machine and device of the run they come out bit for bit, elsewhere within what is ALLOWED.

What is scored after a step of test-time training, with other parameters, is not computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit import fingerprint
from audit.contents import VALIDATION, choose
from audit.errors import SplitError
from audit.evidence import Mismatch, Stage
from audit.files import sha256_file
from audit.replay import GPT, Recipe, load_artifact, losses, window_sums
from audit.splits import Data


@dataclass(frozen=True)
class Allowed:
    """How far losses computed here may be from recorded ones, nats per token: in one window, and on the mean."""

    window: float
    mean: float


ALLOWED: Mapping[str, Allowed] = {"cpu": Allowed(1e-4, 1e-5), "cuda": Allowed(1e-2, 1e-3)}
"""By the device of the run: fp32 in another order of sums, bf16 against fp32. With bf16 on a CPU the windows of a toy
are up to 2e-3 off and the mean 2e-4 (3 layers, 64 tokens a window). The contest asks for 0.005 between two records."""


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """What computing losses again gave."""

    eligible: int
    """Score records of `evaluate` that are the artifact's."""
    checked: int
    escape: float
    """The chance that one forged record among them was not computed again: 0 when all were."""
    equal: int
    """Of those checked, how many came out bit for bit."""
    largest: float
    """The largest difference of a window, nats per token."""
    mean: float
    """By how much the recorded losses are lower on the mean, nats per token."""
    mismatches: tuple[Mismatch, ...]
    reason: str = ""
    """Why nothing was computed, empty if something was."""


@dataclass(frozen=True, eq=False)
class _Scored:
    """A score record: its row of `scores`, its windows, and whether nothing had moved the parameters before it."""

    stage: Stage
    rank: int
    row: np.void
    windows: np.ndarray
    unmoved: bool

    def mismatch(self, detail: str) -> Mismatch:
        at = int(self.row["at"])
        return Mismatch(stage=self.stage.title, rank=self.rank, at=at, split=VALIDATION, detail=detail, kind="score")


def rescore(
    stages: Sequence[Stage], data: Data, recipe: Recipe, artifact: Path, *, sample: int | None = None, seed: int = 0
) -> Rescored:
    """Compute again losses that `evaluate` recorded with the model in `artifact`, on the CPU.

    All of them, or a sample chosen with `seed`. Raises RunError if the artifact can't be read, SplitError if there is
    no validation split.
    """
    noted, found = noted_artifact(stages), sha256_file(artifact, remedy="run the stage quantize again")
    if noted != found:
        return _nothing(f"{artifact} is {found}, the ledger of quantize has {noted}")
    gpt = load_artifact(artifact, recipe)
    state = fingerprint_of(gpt)
    scored = _eligible(stages, state)
    if not scored:
        return _nothing("the ledger of evaluate has no score of the artifact")
    foreign = [
        record.mismatch(f"got parameters {record.row['parameters']:016x}, the artifact's are {state:016x}")
        for record in scored
        if record.row["parameters"] != state
    ]
    taken = choose(len(scored), sample, seed)
    pairs = [(record, _nats(gpt, record, data, recipe)) for record, chosen in zip(scored, taken, strict=True) if chosen]
    wrong = [mismatch for record, nats in pairs for mismatch in _wrong(record, nats)]
    return Rescored(
        eligible=len(scored),
        checked=len(pairs),
        escape=1 - len(pairs) / len(scored),
        equal=sum(np.array_equal(nats, record.windows["nats"]) for record, nats in pairs),
        largest=max(_apart(record, nats) for record, nats in pairs),
        mean=_mean(pairs),
        mismatches=(*foreign, *(wrong or _together(pairs))),
    )


def _nothing(reason: str) -> Rescored:
    return Rescored(eligible=0, checked=0, escape=1.0, equal=0, largest=0.0, mean=0.0, mismatches=(), reason=reason)


def _eligible(stages: Sequence[Stage], state: int) -> list[_Scored]:
    """The scores of the artifact, whose fingerprint is `state`: by what they say, or because nothing had moved."""
    found = (record for stage in stages if stage.name == "evaluate" for record in _scored(stage))
    return [record for record in found if record.unmoved or record.row["parameters"] == state]


def _scored(stage: Stage) -> Iterator[_Scored]:
    """The score records of each rank. The first note `weights` is the artifact's; whatever follows it moves."""
    for part in stage.parts:
        loaded, moved = False, False
        for block in part.blocks():
            moves = [int(table["at"][0]) for table in (block.steps, block.updates) if len(table)]
            for note in (note for note in block.notes if note.name == "weights"):
                moves += [note.at] if loaded else []
                loaded = True
            end = block.first if moved else min(moves, default=block.first + len(block))
            moved = moved or bool(moves)
            for row in block.scores[block.scores["length"] > 0]:
                windows = block.windows[row["offset"] : row["offset"] + row["count"]]
                yield _Scored(stage, part.ending.rank, row, windows, bool(row["at"] < end))


def noted_artifact(stages: Sequence[Stage]) -> str:
    """The digest that the ledger of quantize has of its artifact."""
    noted = [
        note.facts.get("sha256") for stage in stages if stage.name == "quantize" for _, note in stage.notes("artifact")
    ]
    return str(noted[-1]) if noted else "nothing of an artifact"


def fingerprint_of(gpt: GPT) -> int:
    """The fingerprint of all parameters, in the places that the recorder gives to the first model of a program."""
    total, first = 0, 0
    for parameter in gpt.parameters():
        total += fingerprint.fingerprint(parameter.detach().numpy(), first=first)
        first += parameter.numel()
    return total & fingerprint.MASK


def _nats(gpt: GPT, record: _Scored, data: Data, recipe: Recipe) -> np.ndarray:
    """Σ nats of each window's scored targets, float64 [n]; NaN where the windows are not in the split."""
    length, windows = int(record.row["length"]), record.windows
    try:
        rows = data.split(VALIDATION).at(
            windows["begin"].astype(np.int64) + windows["scored"] - length, length=length + 1
        )
    except SplitError:
        return np.full(len(windows), np.nan)
    return window_sums(losses(gpt, rows, recipe), windows["scored"])


def _allowed(record: _Scored) -> Allowed:
    return ALLOWED.get(str(record.stage.facts.get("device")), Allowed(0.0, 0.0))


def _wrong(record: _Scored, nats: np.ndarray) -> Iterator[Mismatch]:
    """A record with a window that is further off than the machine explains."""
    apart, limit = _apart(record, nats), _allowed(record).window
    if apart > limit:
        yield record.mismatch(
            f"got {record.windows['nats'].sum():.6f} nats, the artifact gives {nats.sum():.6f}: up to {apart:.3g} nats "
            f"per token apart, at most {limit:g} are due to the machine"
        )


def _together(pairs: Sequence[tuple[_Scored, np.ndarray]]) -> Iterator[Mismatch]:
    """All records together: each a little better than it can be."""
    record, mean = pairs[0][0], _mean(pairs)
    if abs(mean) > _allowed(record).mean:
        yield record.mismatch(
            f"the losses of {len(pairs)} records from this one on are {mean:.3g} nats per token lower than the "
            f"artifact gives, at most {_allowed(record).mean:g} are due to the machine"
        )


def _mean(pairs: Sequence[tuple[_Scored, np.ndarray]]) -> float:
    """Σ of what is computed minus what is recorded, over all targets."""
    targets = sum(int(record.windows["scored"].sum()) for record, _ in pairs)
    return sum(float((nats - record.windows["nats"]).sum()) for record, nats in pairs) / max(targets, 1)


def _apart(record: _Scored, nats: np.ndarray) -> float:
    """The largest difference of a window, nats per token; infinite where a number is none."""
    apart = np.abs(nats - record.windows["nats"]) / np.maximum(record.windows["scored"], 1)
    return float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))
