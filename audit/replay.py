"""The trainer's own code, run again: its loader for every draw of a training, its model, its quantizer.

    recipe = read_recipe(tree)                                  runs/recipe.json
    replayed = replay_draws(stages, data, recipe, seed=42)      every draw and step of the training
    losses(load_artifact(path, recipe), rows, recipe)           for `audit.rescore`
    quantize_again(load_trained(folder, recipe), recipe, load_sealed(path, recipe))          for `audit.requantize`

The only place beside packaging where the audit imports the trainer, so what it finds rests on that code: a ledger that
agrees with it tells of the run that this recipe and seed lead to, whether the code is right or not.

The ledger of `train` holds, rank by rank, draws and the steps that use them. The loader gives the same ones from
recipe, seed, rank and the lengths of the shards; ids, shards, first tokens and the ids in each step must be equal, then
the draws that went into the Hessians, and those that `quantize` took over from there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audit.errors import RunError
from audit.evidence import Mismatch, Part, Replay, Stage
from audit.records import KINDS, Block
from audit.splits import Data
from trainer import artifact as artifacts
from trainer import checkpoint, hessians, submission
from trainer import recipe as recipes
from trainer.budget import HIGHEST_FACTOR
from trainer.data import training_digest
from trainer.errors import ArtifactError, DataError, GolfError
from trainer.files import read_json
from trainer.loader import Batch, Loader
from trainer.model import GPT as GPT
from trainer.quantized import QuantizedModel as QuantizedModel
from trainer.quantized import dequantize_matrix, dequantize_model
from trainer.quantizer import corrected, quantize_model
from trainer.settings import VIRTUAL_RANKS as VIRTUAL_RANKS
from trainer.settings import Recipe as Recipe
from trainer.shards import Shard

TRAIN = "train"
MOST_MISMATCHES = 16
"""Of one rank; after the first, a shifted ledger differs everywhere."""


def read_recipe(tree: Mapping[str, Any]) -> Recipe:
    """The recipe of a run, from the values of its recipe.json. Raises RunError if it is none."""
    try:
        return recipes.from_dict(tree)
    except GolfError as cause:
        raise RunError(f"the recipe can't be read: {cause}; run the stage resolve again") from None


# The loader


class _Place(Batch):
    """A batch that says where its rows stand, and has none of them."""

    def announce(self) -> Batch:
        """Nobody is handed this batch, so nobody hears of it."""
        return self


class _Places(Loader):
    """The trainer's loader, with its order and its ids, that reads no token."""

    def _batch(self, draw: int, windows: np.ndarray) -> Batch:
        rows = np.empty((len(windows), 0), dtype=np.uint16)
        return _Place(draw, TRAIN, rows, windows[:, 0].astype(np.int32), windows[:, 1].copy())


@dataclass(frozen=True, eq=False)
class Plan:
    """What a training of this recipe, seed and data draws."""

    recipe: Recipe
    data: Data
    seed: int

    def loader(self, virtual_ranks: Sequence[int]) -> Loader:
        """The loader of a process with these virtual ranks."""
        return _Places(
            shards=[Shard(shard.name, shard.tokens) for shard in self.data.split(TRAIN).shards],
            length=self.recipe.train.sequence_length,
            sequences=self.recipe.train.sequences_per_rank,
            micro=self.recipe.train.micro_sequences,
            seed=self.seed,
            virtual_ranks=tuple(virtual_ranks),
        )

    def calibration(self, after: int, virtual_ranks: Sequence[int]) -> list[Batch]:
        """The draws behind the Hessians, after so many steps."""
        wanted = self.recipe.calibration
        return self.loader(virtual_ranks).calibration(after, batches=wanted.batches, sequences=wanted.sequences)


def replay_draws(stages: Sequence[Stage], data: Data, recipe: Recipe, *, seed: int) -> Replay:
    """Draw again what the training of this seed drew. Raises SplitError if there is no training split.

    A ledger that begins in the middle of a training (it was resumed) is replayed from there on; `reason` says so.
    """
    train = [stage for stage in stages if stage.name == "train"]
    if len(train) != 1:
        return Replay(steps=0, draws=0, mismatches=(), reason=f"{len(train)} ledgers of the stage train, one is needed")
    plan = Plan(recipe, data, seed)
    try:
        found = [_Walk(train[0], part).train(plan) for part in train[0].parts]
        done = found[0].first + found[0].steps
        for stage in stages:
            if stage.name == "quantize":
                found += [_Walk(stage, part).quantize(plan, done) for part in stage.parts]
    except GolfError as cause:
        return Replay(steps=0, draws=0, mismatches=(), reason=f"the loader refuses recipe or data: {cause}")
    return Replay(
        steps=max(walk.steps for walk in found),
        draws=sum(walk.draws for walk in found),
        mismatches=tuple(mismatch for walk in found for mismatch in walk.mismatches),
        reason=_reason(found[: len(train[0].parts)]),
    )


def _reason(ranks: Sequence[_Walk]) -> str:
    """Why a replay that agrees is not one of the whole training, empty if it is."""
    if not all(walk.steps for walk in ranks):
        return "the ledger of train holds no step"
    if first := max(walk.first for walk in ranks):
        return f"the ledger of train begins at step {first}: the training was resumed, what came before is in another"
    if len({walk.steps for walk in ranks}) > 1:
        return f"the ranks took different numbers of steps: {', '.join(str(walk.steps) for walk in ranks)}"
    return ""


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A draw as the ledger has it, record `at`; `shards` and `starts` [n] say where its rows stand."""

    at: int
    draw: int
    split: str
    shards: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class _Used:
    """A step or calibration as the ledger has it, record `at`, and the ids of the draws that it uses."""

    at: int
    kind: str
    step: int
    draws: tuple[int, ...]


class _Walk:
    """The draws of one rank of a stage, against the loader's."""

    def __init__(self, stage: Stage, part: Part) -> None:
        self.stage, self.part, self.rank = stage, part, part.ending.rank
        self.first, self.steps, self.draws = 0, 0, 0
        self.mismatches: list[Mismatch] = []
        self._pending: list[_Drawn] = []
        self._calibrated = False

    def wrong(self, at: int, detail: str, *, kind: str = "draw") -> None:
        if detail and len(self.mismatches) < MOST_MISMATCHES:
            self.mismatches.append(
                Mismatch(stage=self.stage.title, rank=self.rank, at=at, split=TRAIN, detail=detail, kind=kind)
            )

    def train(self, plan: Plan) -> _Walk:
        """Walk a training: the draws of each step and the step, then the calibration."""
        ranks, recorded = self.part.ending.ranks, self.stage.facts.get("seed")
        if type(recorded) is not int or recorded != plan.seed or VIRTUAL_RANKS % ranks:
            self.wrong(
                0, f"got seed {recorded!r:.40} on {ranks} ranks, expected {plan.seed} on 1, 2, 4, 8", kind="note"
            )
            return self
        mine = range(self.rank, VIRTUAL_RANKS, ranks)
        expected: Iterator[list[Batch]] = plan.loader(mine).steps()
        for record in _records(self.part.blocks()):
            if isinstance(record, _Drawn):
                self._pending.append(record)
            elif record.kind == "calibration":
                self._use(record, plan.calibration(self.first + self.steps, mine))
                self._calibrated = True
            elif record.step < 0:
                self._unannounced(record)
            else:
                if not self.steps and record.step:
                    self.first, expected = record.step, plan.loader(mine).steps(record.step)
                self._step(record, next(expected))
        self._end(lambda: next(expected), lambda: plan.calibration(self.first + self.steps, mine))
        return self

    def _end(self, following: Callable[[], list[Batch]], calibration: Callable[[], list[Batch]]) -> None:
        """What is left when the ledger ends. A killed run may have handed out draws that nothing used any more."""
        if self.part.ending.seal is not None:
            self._compare([])
            if not self._calibrated:
                self.wrong(self.part.ending.records - 1, "the training ends without its calibration")
        elif self._pending:
            begun = following() if self._pending[0].draw >= 0 else calibration()
            self._compare(begun[: len(self._pending)])

    def _unannounced(self, step: _Used) -> None:
        """A step that the trainer did not announce, as in its warm-up on random ids: it may use no draw."""
        if step.draws:
            self.wrong(step.at, f"an unannounced step uses draws {_short(step.draws)}, expected none", kind="step")

    def quantize(self, plan: Plan, steps: int) -> _Walk:
        """Walk a quantization: training draws in it are those that the training left, whatever their ids."""
        drawn = [r for r in _records(self.part.blocks()) if isinstance(r, _Drawn) and r.split == TRAIN]
        left = plan.calibration(steps, range(VIRTUAL_RANKS)) if drawn else []
        # The reference is calibrated on the same sequences as the submission, so they may come again.
        if left and len(drawn) % len(left):
            self.wrong(drawn[-1].at, f"got {len(drawn)} training draws, expected a multiple of {len(left)}")
        for index, record in enumerate(drawn):
            self.wrong(record.at, _differs(record, left[index % len(left)] if left else None, ids=False))
        self.draws = len(drawn)
        return self

    def _step(self, step: _Used, batches: list[Batch]) -> None:
        if step.step != self.first + self.steps:
            self.wrong(step.at, f"got step {step.step}, expected {self.first + self.steps}", kind="step")
        self._use(step, batches)
        self.steps += 1

    def _use(self, used: _Used, batches: list[Batch]) -> None:
        """What was drawn since the last time, and the ids that are used, must be those of these batches."""
        self._compare(batches, at=used.at)
        wanted = tuple(batch.draw for batch in batches)
        if used.draws != wanted:
            self.wrong(used.at, f"uses draws {_short(used.draws)}, expected {_short(wanted)}", kind=used.kind)

    def _compare(self, batches: Sequence[Batch], *, at: int = 0) -> None:
        """The pending draws, in order, against as many batches."""
        for index, drawn in enumerate(self._pending):
            self.wrong(drawn.at, _differs(drawn, batches[index] if index < len(batches) else None))
        for batch in batches[len(self._pending) :]:
            self.wrong(at, f"draw {batch.draw} is missing before this record")
        self.draws += len(self._pending)
        self._pending.clear()


def _records(blocks: Iterator[Block]) -> Iterator[_Drawn | _Used]:
    """The draws, steps and calibrations of a ledger, in their order."""
    for block in blocks:
        iterators: dict[int, Iterator[_Drawn | _Used]] = {
            KINDS.index("draw"): _draws(block),
            KINDS.index("step"): _uses("step", block.steps, block.used),
            KINDS.index("calibration"): _uses("calibration", block.calibrations, block.calibrated),
        }
        for code in block.kinds.tolist():
            if code in iterators:
                yield next(iterators[code])


def _draws(block: Block) -> Iterator[_Drawn]:
    shards, starts = block.sequences["shard"], block.sequences["start"]
    # Columns as lists: a row of a structured array costs a microsecond a field.
    columns = [block.draws[name].tolist() for name in ("at", "draw", "split", "offset", "count")]
    for at, draw, split, offset, count in zip(*columns, strict=True):
        yield _Drawn(at, draw, split.decode(), shards[offset : offset + count], starts[offset : offset + count])


def _uses(kind: str, table: np.ndarray, listed: np.ndarray) -> Iterator[_Used]:
    numbers = table["step"].tolist() if kind == "step" else [-1] * len(table)
    columns = [table[name].tolist() for name in ("at", "offset", "count")]
    for number, at, offset, count in zip(numbers, *columns, strict=True):
        yield _Used(at, kind, number, tuple(listed["draw"][offset : offset + count].tolist()))


def _differs(drawn: _Drawn, batch: Batch | None, *, ids: bool = True) -> str:
    """In what a draw is another than the loader's, empty if in nothing."""
    if batch is None:
        return f"got draw {drawn.draw} of {drawn.split}, the loader hands out none here"
    if (ids and drawn.draw != batch.draw) or drawn.split != batch.split or len(drawn.starts) != len(batch.starts):
        return (
            f"got draw {drawn.draw} of {len(drawn.starts)} rows of {drawn.split}, the loader hands out draw "
            f"{batch.draw} of {len(batch.starts)} rows of {batch.split}"
        )
    other = (drawn.shards != batch.shards) | (drawn.starts != batch.starts)
    if not other.any():
        return ""
    row = int(np.argmax(other))
    return (
        f"got row {row} of draw {drawn.draw} at shard {drawn.shards[row]}, token {drawn.starts[row]}, the loader has "
        f"it at shard {batch.shards[row]}, token {batch.starts[row]}"
    )


def _short(ids: Sequence[int]) -> str:
    return ", ".join(str(draw) for draw in ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "") or "none"


# The model and the quantizer


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training left for the quantizer: the model with its weights, and the Hessian of every input site."""

    gpt: GPT
    hessians: Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Sealed:
    """What an artifact holds, what it says of itself, and the factor on its clips as quantize wrote it down."""

    model: QuantizedModel
    metadata: Mapping[str, Any]
    factor: float


def load_artifact(path: Path, recipe: Recipe) -> GPT:
    """The model in an artifact. Raises RunError if it can't be read or is not of this recipe."""
    with _readable(path, "quantize"):
        return _model(dequantize_model(artifacts.read(path)[0]), recipe)


def load_sealed(path: Path, recipe: Recipe) -> Sealed:
    """An artifact as it lies beside the metrics of quantize. Raises RunError if it can't be read, or is of another."""
    with _readable(path, "quantize"):
        model, metadata = artifacts.read(path)
        _model(dequantize_model(model), recipe)
        factor = 1.0
        if recipe.gptq.target_bytes:
            factor = read_json(path.parent / "metrics.json", remedy="run the stage quantize").get("k_factor")
            if not isinstance(factor, float) or not 0 < factor <= HIGHEST_FACTOR:
                raise ArtifactError(f"metrics.json has k_factor {factor!r}, expected a number up to {HIGHEST_FACTOR}")
        return Sealed(model, metadata, factor)


def metadata_again(recipe: Recipe, facts: Path, *, seed: int) -> dict[str, Any]:
    """What the artifact of a recipe, a seed and the data that `facts` (data.json) describes says of itself."""
    with _readable(facts, "data"):
        try:
            digest = training_digest(read_json(facts, remedy="run the stage data"))
        except (KeyError, TypeError) as cause:
            raise DataError(f"{facts} is damaged: {type(cause).__name__} {cause}") from None
        return submission.metadata(
            recipe, seed=seed, trained_by=recipes.digest(recipe, stage=TRAIN), training_digest=digest
        )


def load_trained(folder: Path, recipe: Recipe) -> Trained:
    """The weights and Hessians in the folder of a training. Raises RunError if they can't be read."""
    with _readable(folder, "train"):
        weights, _ = checkpoint.load(folder / "model.safetensors")
        hessians, _ = checkpoint.load(folder / "hessians.safetensors")
        return Trained(_model(weights, recipe), hessians)


def _model(weights: Mapping[str, torch.Tensor], recipe: Recipe) -> GPT:
    gpt = GPT(recipe, seed=0)
    gpt.load_state_dict(weights)
    return gpt


@contextmanager
def _readable(path: Path, stage: str) -> Iterator[None]:
    try:
        yield
    except (GolfError, RuntimeError) as cause:
        said = str(cause).strip().splitlines()[0]
        raise RunError(f"the model in {path} can't be loaded: {said}; run the stage {stage} again") from None


@contextmanager
def _threads(recipe: Recipe) -> Iterator[None]:
    """As many threads of torch as the recipe says: it is part of what makes sums come out bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(recipe.dist.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def losses(gpt: GPT, rows: np.ndarray, recipe: Recipe) -> torch.Tensor:
    """Nats of every target of rows [n, L+1]: float64 [n, L], as `trainer.scoring.measure` has them on a CPU."""
    ids = torch.from_numpy(rows.astype(np.int64))
    with _threads(recipe), torch.inference_mode():
        return gpt(ids[:, :-1], ids[:, 1:], True).to(torch.float64)  # type: ignore[no-any-return]


def window_sums(nats: torch.Tensor, scored: np.ndarray) -> np.ndarray:
    """The sum of the last `scored` [n] targets of each row of `nats` [n, L]: float64 [n], added up as there."""
    sums = [row[len(row) - count :].sum() for row, count in zip(nats, scored.tolist(), strict=True)]
    return torch.stack(sums).numpy() if sums else np.zeros(0)


def hessians_again(trained: Trained, ranks: Sequence[Sequence[np.ndarray]], recipe: Recipe) -> dict[str, np.ndarray]:
    """The Hessian of every site, from the rows [n, T+1] of each rank's calibration batches: the mean over ranks."""
    with _threads(recipe):
        found = [
            hessians.collect(
                trained.gpt, (torch.from_numpy(rows[:, :-1].astype(np.int64)) for rows in batches), looped=True
            )
            for batches in ranks
        ]
    return {site: torch.stack([one[site] for one in found]).mean(dim=0).numpy() for site in found[0]}


def quantize_again(trained: Trained, recipe: Recipe, sealed: Sealed) -> QuantizedModel:
    """What the quantizer makes of these weights and Hessians, its corrections of the codes that were sealed.

    A sum that comes out otherwise in its last bit, on another machine, moves a code here and there, and with it the
    whole correction of its matrix, and the factor that a search for a size ends with. So the factor is the one that was
    written down, and a correction is fitted to the sealed codes: whoever made up either has other codes.
    """
    weights = {name: parameter.detach() for name, parameter in trained.gpt.named_parameters()}
    sites, settings = trained.gpt.sites, recipe.gptq
    with _readable(Path("train"), "train"), _threads(recipe):
        plain = dataclasses.replace(settings, lqer_matrices=0)
        made = quantize_model(weights, trained.hessians, sites, plain, factor=sealed.factor)
        bare = {name: dataclasses.replace(matrix, correction=None) for name, matrix in sealed.model.matrices.items()}
        mended = corrected(weights, trained.hessians, sites, bare, settings)
        matrices = {
            name: dataclasses.replace(matrix, correction=mended[name].correction)
            for name, matrix in made.matrices.items()
        }
        return QuantizedModel(matrices, made.vectors)


def numbers_of(model: QuantizedModel) -> dict[str, torch.Tensor]:
    """What a model's weights come from, for comparing: vectors, matrices as their codes decode, and corrections."""
    found = dict(model.vectors)
    for name, matrix in model.matrices.items():
        found[name] = dequantize_matrix(dataclasses.replace(matrix, correction=None))
        if matrix.correction is not None:
            found[f"{name}, corrected by"] = matrix.correction.product()
    return found
