"""What each option of the quantizer is worth, on a trained model, at equal size.

    .venv/bin/python -m benchmarks.options --runs DIR [--seed 42] [--codec ans] [--json FILE]

DIR is the folder of a run whose stages `data` and `train` are done. The recipe of the run, with every option off, gives
the size; each option then gets the factor on k that brings its own file to that size (`trainer.budget`), so that an
option which takes bytes has to win them back. Reported are the factor, the bytes, the Hessian-weighted squared error
over all matrices, and the loss on validation, both against the plain form.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer import artifact, budget, calibration
from trainer import recipe as recipes
from trainer.data import DataSet
from trainer.distributed import alone
from trainer.files import read_json
from trainer.layout import Layout
from trainer.model import GPT
from trainer.quantized import QuantizedModel, dequantize_model
from trainer.quantizer import quantize_model
from trainer.scoring import Targets, score
from trainer.settings import Gptq, Recipe
from trainer.stages import read_trained

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hessian_clip .175": {"hessian_clip": 0.175},
    "hessian_clip .5": {"hessian_clip": 0.5},
    "attention_k 13, mlp_k 12": {"attention_k": 13.0, "mlp_k": 12.0},
    "attention_k 10": {"attention_k": 10.0},
    "attention int7, mlp int5": {"attention_bits": 7, "mlp_bits": 5, "attention_k": 18.0, "mlp_k": 10.0},
    "embedding int7 k 15": {"embed_bits": 7, "embed_k": 15.0},
    "embed_k 14": {"embed_k": 14.0},
    "embed_k 10": {"embed_k": 10.0},
    "damping .001": {"damping": 0.001},
    "damping .05": {"damping": 0.05},
    "damping_by diagonal": {"damping_by": "diagonal"},
    "mlp_damping .05": {"mlp_damping": 0.05},
    "lqer 1 x rank 4": {"lqer_matrices": 1},
    "lqer 3 x rank 4": {"lqer_matrices": 3},
    "lqer 12 x rank 4": {"lqer_matrices": 12},
    "protect 1 x 64": {"protect_groups": 1},
    "protect 4 x 64": {"protect_groups": 4},
    "lqer 3, embed_k 14, clip .175": {"lqer_matrices": 3, "embed_k": 14.0, "hessian_clip": 0.175},
}
BATCHES = (1, 4, 16)
"""Numbers of calibration batches that are tried beside the run's own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    factor: float
    bytes: int
    error: float
    nats: float
    bpb: float


class Bench:
    """A trained model, its Hessians, and the validation that it is scored on."""

    def __init__(self, runs: Path, seed: int, *, codec: Any, threads: int) -> None:
        torch.set_num_threads(threads)
        layout = Layout(runs)
        self.recipe: Recipe = recipes.from_dict(read_json(layout.root / "recipe.json", remedy="run resolve"))
        self.folder = layout.stage("train", seed)
        self.trained, self.sites = read_trained(self.folder)
        self.hessians = self.trained.hessians
        self.codec, self.world = codec, alone(self.recipe)
        self.gpt = GPT(self.recipe, seed=0)
        length = self.recipe.train.sequence_length
        self.targets = Targets.of(DataSet.open(layout.data, self.recipe, splits=("val",)), length=length)

    def quantized(self, settings: Gptq, factor: float) -> QuantizedModel:
        return quantize_model(self.trained.weights, self.hessians, self.sites, settings, factor=factor)

    def packed(self, model: QuantizedModel) -> int:
        return len(artifact.pack(model, metadata={}, codec=self.codec))

    def calibrate(self, batches: int) -> None:
        """Collect the Hessians anew, on the first of the sequences that training left."""
        self.gpt.load_state_dict(self.trained.weights)
        path = self.folder / "calibration.safetensors"
        kept = calibration.read(path, self.recipe, draws=itertools.count())[:batches]
        self.hessians = calibration.collect(self.gpt, kept, self.world)

    def measure(self, settings: Gptq, *, target: int) -> Found:
        """Quantize, at k as it is or so that the file gets `target` bytes; score."""
        if target:
            fitted = budget.fit(
                lambda factor: self.quantized(settings, factor),
                self.packed,
                target=target,
                lowest=budget.lowest_factor(self.sites, settings),
                log=lambda _: None,
            )
            model, factor, size = fitted.model, fitted.factor, fitted.bytes
        else:
            model, factor = self.quantized(settings, 1.0), 1.0
            size = self.packed(model)
        weights = dequantize_model(model)
        error = sum(self.error(name, weights[name]) for name in self.sites)
        nats, bpb = self.loss(weights)
        return Found(factor=factor, bytes=size, error=error, nats=nats, bpb=bpb)

    def error(self, name: str, decoded: Tensor) -> float:
        """tr((W-Ŵ) H (W-Ŵ)ᵀ) in float64."""
        lost = (self.trained.weights[name] - decoded).double()
        return float(((lost @ self.trained.hessians[self.sites[name]].double()) * lost).sum())

    def loss(self, weights: dict[str, Tensor]) -> tuple[float, float]:
        """Nats per token and bits per byte over validation, sequences side by side."""
        self.gpt.load_state_dict(weights)
        length = self.recipe.train.sequence_length
        with torch.inference_mode():
            found = score(
                self.gpt, self.targets, length=length, stride=length, batch=16, world=self.world, label="option"
            )
        return found.val_loss_nats, found.val_bpb


def tell(name: str, found: Found, plain: Found | None, before: float, rows: list[dict[str, Any]]) -> Found:
    """Print a line and add its figures; `before` are the nats of the weights that were not quantized."""
    base, lost = plain or found, found.nats - before
    print(
        f"{name:30} {found.factor:7.4f} {found.bytes:10,} {found.error / base.error:7.4f} {lost:10.6f} "
        f"{lost / (base.nats - before):8.3f} {found.bpb:8.5f}",
        flush=True,
    )
    for figure, unit, ours, against in (
        (f"error, {name}", "H-weighted square", found.error, base.error),
        (f"nats lost, {name}", "nats", lost, base.nats - before),
    ):
        ratio = ours / against
        rows.append(
            {"figure": figure, "ours": ours, "baseline": against, "ratio": ratio, "unit": unit, "device": "cpu"}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--codec", choices=("brotli", "ans"), default="ans")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    bench = Bench(options.runs, options.seed, codec=options.codec, threads=options.threads)
    before, _ = bench.loss(bench.trained.weights)
    print(f"{'option':30} {'factor':>7} {'bytes':>10} {'error':>7} {'nats lost':>10} {'of plain':>8} {'bpb':>8}")
    rows: list[dict[str, Any]] = []
    base = dataclasses.replace(bench.recipe.gptq, target_bytes=0)
    plain = tell("plain", bench.measure(base, target=0), None, before, rows)
    for name, changed in list(OPTIONS.items())[1:]:
        found = bench.measure(dataclasses.replace(base, **changed), target=plain.bytes + 1)
        tell(name, found, plain, before, rows)
    for count in BATCHES:
        bench.calibrate(count)
        tell(f"calibration.batches {count}", bench.measure(base, target=plain.bytes + 1), plain, before, rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
