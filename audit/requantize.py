"""The artifact made again from what training left, against the one that was sealed.

    requantized = requantize(stages, data, recipe, Path("runs/train/42"), artifact)

Between the last step of training and the artifact nothing but training data may have a say. So:

1. The weights that training left must be those of its ledger: the fingerprint of the file is the last state.
2. For a run on a CPU, which repeats them: the calibration draws of the trainer's loader, read from the shards, give
   the Hessians that training left.
3. The trainer's quantizer makes the artifact of both, number by number. Where the recipe asks for a size, the factor
   on the clips is the one that quantize wrote down, and the file may not be larger.
4. What the artifact says of itself is what recipe, seed and training data give, and nothing else: no file has room for
   a message in it.

A fit to validation, or validation among the calibration, that a ledger does not tell shows here. It rests on the
trainer's own code (`audit.replay`), and on nothing where the recipe fits or calibrates otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audit.errors import RunError
from audit.evidence import Mismatch, Part, Stage
from audit.files import sha256_file
from audit.replay import (
    GPT,
    VIRTUAL_RANKS,
    Plan,
    QuantizedModel,
    Recipe,
    Trained,
    hessians_again,
    load_sealed,
    load_trained,
    metadata_again,
    numbers_of,
    quantize_again,
)
from audit.rescore import fingerprint_of, noted_artifact
from audit.splits import Data
from audit.trees import short

FACTS = "data.json"
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
    if len(train) != 1:
        return _nothing(f"there are {len(train)} ledgers of train, expected one")
    noted, found = noted_artifact(stages), sha256_file(artifact, remedy="run the stage quantize again")
    if noted != found:
        return _nothing(f"{artifact} is {found}, the ledger of quantize has {noted}")
    sealed = load_sealed(artifact, recipe)
    wrong = _said(sealed.metadata, data, recipe, int(train[0].facts.get("seed", -1)))
    target, size = recipe.gptq.target_bytes, artifact.stat().st_size
    if target and size > target:
        wrong.append(f"the artifact has {size:,} bytes, gptq.target_bytes is {target:,}")
    mismatches = [_of_artifact(stages, train[0], detail) for detail in wrong]
    if recipe.gptq.calibration != "train" or recipe.ttt.prequant:
        return _nothing("the weights were fitted or calibrated otherwise", mismatches)
    trained = load_trained(folder, recipe)
    apart = _apart(trained, train[0], data, recipe) if recipe.device == "cpu" else None
    differing, numbers = _differing(quantize_again(trained, recipe, sealed), sealed.model)
    mismatches += _weights(trained.gpt, train[0])
    if apart is not None and not apart <= MOST_APART:
        detail = f"the Hessians are {apart:.3g} of their largest entry apart from those of the calibration draws"
        mismatches.append(_mismatch(train[0], 0, "calibration", detail))
    if differing > MOST_DIFFERING * numbers:
        detail = f"{differing:,} of the artifact's {numbers:,} numbers are not what train's weights and Hessians give"
        mismatches.append(_of_artifact(stages, train[0], detail))
    return Requantized(numbers=numbers, differing=differing, apart=apart, mismatches=tuple(mismatches))


def _nothing(reason: str, mismatches: Sequence[Mismatch] = ()) -> Requantized:
    return Requantized(numbers=0, differing=0, apart=None, mismatches=tuple(mismatches), reason=reason)


def _of_artifact(stages: Sequence[Stage], train: Stage, detail: str) -> Mismatch:
    """A mismatch at the record that seals the artifact."""
    quantize = next((stage for stage in stages if stage.name == "quantize"), train)
    return _mismatch(quantize, next((note.at for _, note in quantize.notes("artifact")), 0), "artifact", detail)


def _said(metadata: Mapping[str, Any], data: Data, recipe: Recipe, seed: int) -> list[str]:
    """What is wrong with what the artifact says of itself. Raises RunError if nobody says what the data are."""
    facts = next((path for path in data.others if path.name == FACTS), None)
    if facts is None:
        raise RunError(f"no {FACTS} beside the shards, which an artifact is held against; run the stage data")
    wanted = metadata_again(recipe, facts, seed=seed)
    differing = sorted(key for key in metadata.keys() | wanted.keys() if metadata.get(key) != wanted.get(key))
    if not differing:
        return []
    names = ", ".join(map(short, differing[:4])) + (" and more" if len(differing) > 4 else "")
    return [f"what the artifact says of itself is not what recipe, seed and training data give, in {names}"]


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


def _differing(made: QuantizedModel, sealed: QuantizedModel) -> tuple[int, int]:
    """How many numbers of two models differ, and how many there are."""
    ours, theirs = numbers_of(made), numbers_of(sealed)
    differing = numbers = 0
    for name in ours.keys() | theirs.keys():
        a, b = (side.get(name, torch.empty(0)) for side in (ours, theirs))
        count = max(a.numel(), b.numel())
        numbers += count
        differing += int((a != b).sum()) if a.shape == b.shape else count
    return differing, numbers
