"""The artifact made again from what training left, against the one that was sealed.

    requantized = requantize(stages, data, recipe, Path("runs/train/42"), artifact)

Between the last step of training and the artifact nothing but training data may have a say. So:

1. The weights that training left must be those of its ledger: the fingerprint of the file is the last state.
2. For a run on a CPU, which repeats them: the calibration draws of the trainer's loader, read from the shards, give
   the Hessians that training left.
3. The trainer's quantizer makes the artifact of both, number by number.

A fit to validation, or validation among the calibration, that a ledger does not tell shows here. It rests on the
trainer's own code (`audit.replay`), and on nothing where the recipe fits or calibrates otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audit.evidence import Mismatch, Part, Stage
from audit.files import sha256_file
from audit.replay import (
    GPT,
    VIRTUAL_RANKS,
    Plan,
    Recipe,
    Trained,
    hessians_again,
    load_artifact,
    load_trained,
    quantize_again,
)
from audit.rescore import fingerprint_of, noted_artifact
from audit.splits import Data

MOST_DIFFERING = 0.01
"""Share of the numbers of an artifact that may differ: other sums on another machine round some codes otherwise."""
MOST_APART = 1e-3
"""How far a Hessian may be from the one that training left, in shares of its largest entry."""


@dataclass(frozen=True, kw_only=True)
class Requantized:
    """What quantizing again gave."""

    numbers: int
    """Of the artifact's tensors together."""
    differing: int
    """Of them, how many came out otherwise."""
    apart: float | None
    """The largest difference of a Hessian, in shares of its largest entry; None if they were not made again."""
    mismatches: tuple[Mismatch, ...]
    reason: str = ""
    """Why nothing was made again, empty if something was."""


def requantize(stages: Sequence[Stage], data: Data, recipe: Recipe, folder: Path, artifact: Path) -> Requantized:
    """Make the artifact of `folder`, what training left, again. Raises RunError if either can't be read."""
    train = [stage for stage in stages if stage.name == "train"]
    if len(train) != 1 or recipe.gptq.calibration != "train" or recipe.ttt.prequant:
        return _nothing("the weights were fitted or calibrated otherwise, or there is no one ledger of train")
    noted, found = noted_artifact(stages), sha256_file(artifact, remedy="run the stage quantize again")
    if noted != found:
        return _nothing(f"{artifact} is {found}, the ledger of quantize has {noted}")
    trained, sealed = load_trained(folder, recipe), load_artifact(artifact, recipe)
    apart = _apart(trained, train[0], data, recipe) if recipe.device == "cpu" else None
    differing, numbers = _differing(quantize_again(trained, recipe, artifact), sealed)
    mismatches = _weights(trained.gpt, train[0])
    if apart is not None and not apart <= MOST_APART:
        detail = f"the Hessians are {apart:.3g} of their largest entry apart from those of the calibration draws"
        mismatches.append(_mismatch(train[0], 0, "calibration", detail))
    if differing > MOST_DIFFERING * numbers:
        detail = f"{differing:,} of the artifact's {numbers:,} numbers are not what train's weights and Hessians give"
        quantize = next((stage for stage in stages if stage.name == "quantize"), train[0])
        at = next((note.at for _, note in quantize.notes("artifact")), 0)
        mismatches.append(_mismatch(quantize, at, "artifact", detail))
    return Requantized(numbers=numbers, differing=differing, apart=apart, mismatches=tuple(mismatches))


def _nothing(reason: str) -> Requantized:
    return Requantized(numbers=0, differing=0, apart=None, mismatches=(), reason=reason)


def _mismatch(stage: Stage, at: int, kind: str, detail: str, *, rank: int = 0) -> Mismatch:
    return Mismatch(stage=stage.title, rank=rank, at=at, split="", kind=kind, detail=detail)


def _ended(part: Part) -> tuple[int, np.void | None]:
    """How many steps the ledger of a rank ends with, and its last state."""
    steps, state = 0, None
    for block in part.blocks():
        announced = block.steps["step"][block.steps["step"] >= 0]
        steps = int(announced[-1]) + 1 if len(announced) else steps
        state = block.states[-1] if len(block.states) else state
    return steps, state


def _weights(gpt: GPT, train: Stage) -> list[Mismatch]:
    """Every rank's last state must be the fingerprint of the weights that training left."""
    found, wrong = fingerprint_of(gpt), []
    for part in train.parts:
        _, last = _ended(part)
        if last is None or last["parameters"] != found:
            said, at = ("no state", 0) if last is None else (f"the state {last['parameters']:016x}", int(last["at"]))
            detail = f"training ends with {said}, the weights that it left are {found:016x}"
            wrong.append(_mismatch(train, at, "state", detail, rank=part.ending.rank))
    return wrong


def _apart(trained: Trained, train: Stage, data: Data, recipe: Recipe) -> float:
    """The largest difference between the Hessians that training left and those of the loader's calibration draws."""
    (steps, _), ranks = _ended(train.parts[0]), len(train.parts)
    plan, split = Plan(recipe, data, int(train.facts.get("seed", -1))), data.split("train")
    batches = [plan.calibration(steps, range(rank, VIRTUAL_RANKS, ranks)) for rank in range(ranks)]
    length = recipe.train.sequence_length + 1
    again = hessians_again(
        trained, [[split.rows(b.shards, b.starts, length=length) for b in own] for own in batches], recipe
    )
    if again.keys() != trained.hessians.keys() or any(again[s].shape != h.shape for s, h in trained.hessians.items()):
        return float("inf")
    differences = (float(np.abs(again[site] - left.numpy()).max()) for site, left in trained.hessians.items())
    largest = (max(float(np.abs(again[site]).max()), 1e-30) for site in trained.hessians)
    return max(difference / scale for difference, scale in zip(differences, largest, strict=True))


def _differing(made: GPT, sealed: GPT) -> tuple[int, int]:
    """How many numbers of two models differ, and how many there are."""
    pairs = list(zip(made.parameters(), sealed.parameters(), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)
