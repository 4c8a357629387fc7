"""What the quantizer works on: weights and Hessians, as training left them or, where the recipe says so, made anew.

    train@seed's weights ─ prequant? → weights ─ calibration sequences → Hessians
                         └──────────── reference weights ─ the same sort of sequences → reference Hessians

With `ttt.mode=none` and `gptq.calibration=train` nothing happens here: no model is built and no data are opened. A fit
comes first of all, and with it the unfitted checkpoint goes along as the reference. Weights that were fitted need new
Hessians; the training sequences for them come from the file that training left, so no training shard is opened.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import torch
from torch import Tensor

from trainer import adapt, calibration, checkpoint
from trainer.contamination import pair
from trainer.data import DataSet
from trainer.distributed import World, alone
from trainer.errors import DataError
from trainer.layout import Layout
from trainer.loader import Batch
from trainer.model import GPT, called
from trainer.runlog import RunLog
from trainer.scoring import Score, Targets, describe, score
from trainer.settings import Recipe


@dataclasses.dataclass(frozen=True)
class Material:
    """Weights by name and the Hessian of every input site, fp32 on the CPU."""

    weights: dict[str, Tensor]
    hessians: dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """What becomes the artifact; the unfitted reference, if there was a fit; the sequences, if they are not train's.

    `fit` holds what the metrics say about a fit: its pair of scores before quantization, and the loss of each epoch.
    """

    submitted: Material
    reference: Material | None = None
    sequences: tuple[Batch, ...] = ()
    fit: dict[str, object] = dataclasses.field(default_factory=dict)


def prepare(layout: Layout, recipe: Recipe, seed: int, trained: Material, log: RunLog, *, data_digest: str) -> Prepared:
    """Fit and calibrate as the recipe says. `data_digest` is that of the data which the weights were trained with.

    Raises DataError for other data.
    """
    if not recipe.ttt.prequant and recipe.gptq.calibration == "train":
        return Prepared(submitted=trained)
    torch.use_deterministic_algorithms(recipe.device == "cpu")
    with log.phase("setup"):
        bench = Bench(layout, recipe, seed, trained, log, data_digest=data_digest)
    if not recipe.ttt.prequant:
        return Prepared(submitted=bench.material(), sequences=tuple(bench.sequences))
    fit = bench.fit()
    submitted = bench.material()
    bench.load(trained.weights, why="reference loaded")
    reference = trained if recipe.gptq.calibration == "train" else bench.material(shard=1)
    return Prepared(submitted=submitted, reference=reference, sequences=tuple(bench.sequences), fit=fit)


class Bench:
    """A model on the device with what it is fitted to and calibrated on."""

    def __init__(
        self, layout: Layout, recipe: Recipe, seed: int, trained: Material, log: RunLog, *, data_digest: str
    ) -> None:
        self.recipe, self.seed, self.log = recipe, seed, log
        self.trained = layout.stage("train", seed)
        self.world: World = alone(recipe)
        self.targets = self._validation(layout.data, data_digest)
        self.gpt = GPT(recipe, seed=0).to(self.world.device)
        self.load(trained.weights, why="checkpoint loaded")
        self.forward = called(self.gpt, compiled=recipe.train.compile and self.world.device.type == "cuda")
        self.draws = itertools.count()
        self.sequences: list[Batch] = []

    def _validation(self, folder: Path, wanted: str) -> Targets | None:
        """The validation stream, if anything needs it: what does not read it does not open it."""
        if not self.recipe.ttt.prequant and self.recipe.gptq.calibration != "val":
            return None
        dataset = DataSet.open(folder, self.recipe, splits=("val",), verify=True)
        if dataset.digest != wanted:
            raise DataError(
                f"data.json is {dataset.digest}, the weights were trained with {wanted}; "
                f"run `dvc repro train@{self.seed}`"
            )
        return Targets.of(dataset, length=self.recipe.train.sequence_length)

    def load(self, weights: dict[str, Tensor], *, why: str) -> None:
        checkpoint.put(self.gpt, weights, where=self.trained / "model.safetensors", why=why)

    def fit(self) -> dict[str, object]:
        """CONTAMINATES: the first act of the stage. The scores before and after it, and the loss of each epoch."""
        before = self._score("after averaging")
        with self.log.phase("fit"):
            losses = adapt.prequant(
                self.forward, self.gpt, self._targets(), self.recipe, self.world, self.log, draws=self.draws
            )
        after = self._score("after the fit")
        return {"before_quantization": pair(before.val_bpb, after.val_bpb), "fit_losses_nats": losses}

    def _score(self, label: str) -> Score:
        length = self.recipe.train.sequence_length
        with self.log.phase("validation"):
            found = score(
                self.forward,
                self._targets(),
                length=length,
                stride=length,
                batch=self.recipe.ttt.sequences,
                world=self.world,
                label=label,
            )
        self.log.event("validation", label=label, **found.as_dict())
        self.log.line(f"{label}: {describe(found)}")
        return found

    def material(self, *, shard: int = 0) -> Material:
        """The model's weights, and the Hessians that they have on the recipe's sort of sequences.

        `shard` numbers the texts that the model writes: 0 for the one that is submitted, 1 for the reference.
        """
        batches = self._sequences(shard)
        with self.log.phase("hessians"):
            hessians = calibration.collect(self.gpt, batches, self.world)
        weights = {name: value.detach().cpu().clone() for name, value in self.gpt.named_parameters()}
        return Material(weights, {site: hessian.cpu() for site, hessian in hessians.items()})

    def _sequences(self, shard: int) -> list[Batch]:
        """For the Hessians; what is not in a file yet is kept in `sequences`."""
        kind = self.recipe.gptq.calibration
        if kind == "train":
            return calibration.read(self.trained / "calibration.safetensors", self.recipe, draws=self.draws)
        if kind == "val":
            found = calibration.of_validation(self._targets(), self.recipe, draws=self.draws)
        else:
            device = self.world.device
            with self.log.phase("writing text"):
                found = calibration.of_the_model(
                    self.gpt, self.recipe, seed=self.seed, shard=shard, draws=self.draws, device=device
                )
        self.sequences += found
        return found

    def _targets(self) -> Targets:
        if self.targets is None:
            raise AssertionError("validation is needed but was not opened")
        return self.targets
