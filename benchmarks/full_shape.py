"""The full shape through the whole chain on a CPU: train, quantize, pack, read back, score; and its bytes.

    .venv/bin/python -m benchmarks.full_shape [--codec ans] [--json FILE]

35,943,512 parameters, the real recipe in every key that shapes the model and the artifact, on random tokens. A few
tiny steps move every matrix away from its start. The bytes do not depend on what was learned: SDClip's step is a
fixed share of each row's spread, so the entropy of the codes is too (docs: techniques of compression).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import artifact, checkpoint, recipe, source, submission
from trainer.budget import entropy_bits
from trainer.data import DataSet
from trainer.distributed import World
from trainer.quantized import QuantizedModel
from trainer.quantizer import quantize_model
from trainer.runlog import RunLog
from trainer.scoring import Targets, score
from trainer.shards import Shard
from trainer.stages import check_same, submitted
from trainer.tokenizer import ByteTable
from trainer.training import Training

LENGTH = 64
"""Tokens a sequence: the chain is what is tried here, not the context."""

TINY = {
    "scale": "8gpu",
    "device": "cpu",
    "dist.ranks": 1,
    "train.seconds": 0,
    "train.reserve_seconds": 0,
    "train.sequence_length": LENGTH,
    "train.sequences_per_rank": 1,
    "train.micro_sequences": 8,
    "train.eval_every": 0,
    "train.warmup_steps": 0,
    "train.ema": 0.5,
    "train.log_every": 1,
    "loop.start": 0.0,
    "calibration.batches": 8,
    "calibration.sequences": 8,
    "eval.stride": 32,
}


def random_data(vocab_size: int) -> DataSet:
    """Random tokens, each standing for one byte: 8 training shards and one validation shard of four windows."""
    random = np.random.default_rng(0)

    def shard(name: str, count: int) -> Shard:
        return Shard(name, random.integers(0, vocab_size, count).astype(np.uint16))

    facts = {"bigram_val_bpb": 0.0, "tokenizer": {"sha256": "sha256:none"}, "splits": {"train": {"shards": []}}}
    flags = np.zeros(vocab_size, dtype=bool)
    table = ByteTable(np.ones(vocab_size, dtype=np.int16), flags, flags)
    train = tuple(shard(f"train_{i:06d}.bin", 40 * LENGTH) for i in range(8))
    return DataSet(train, (shard("val_000000.bin", 4 * LENGTH + 1),), table, facts, "sha256:none")


def run(folder: Path, *, steps: int, codec: str, threads: int) -> dict[str, Any]:
    """The chain in `folder`: sizes, seconds and the two scores."""
    settings = recipe.resolve(TINY | {"train.steps": steps, "dist.threads": threads, "artifact.codec": codec})
    torch.set_num_threads(threads)
    world, data, seconds = World(rank=0, size=1, device=torch.device("cpu")), random_data(8192), {}

    def timed(name: str, began: float) -> float:
        seconds[name] = round(time.perf_counter() - began, 2)
        return time.perf_counter()

    now = time.perf_counter()
    training = Training(settings, data, world, seed=1, log=RunLog(None, stage="train", seed=1))
    metrics = training.run(folder / "train", folder / "resume")
    now = timed("train", now)
    state, _ = checkpoint.load(folder / "train" / "model.safetensors")
    hessians, about = checkpoint.load(folder / "train" / "hessians.safetensors")
    now = timed("read", now)
    model = quantize_model(state, hessians, json.loads(about["sites"]), settings.gptq)
    now = timed("quantize", now)
    path = folder / "model.golf"
    about = submission.metadata(settings, seed=1, trained_by="sha256:none", training_digest=data.training_digest)
    model_bytes = artifact.write(path, model, metadata=about, **submission.packing(settings))
    now = timed("pack", now)
    check_same(model, artifact.read(path)[0])
    now = timed("read back", now)
    gpt, _, digest = submitted(path, settings)
    found = score(
        gpt, Targets.of(data, length=LENGTH), length=LENGTH, stride=32, batch=8, world=world, label="full shape"
    )
    timed("score", now)
    return {
        "parameters": metrics["parameters"],
        "matrices": len(model.matrices),
        "model_bytes": model_bytes,
        "code_bytes": source.packed_size(),
        "limit_bytes": settings.artifact.limit_bytes,
        "order0_bytes": order0_bytes(model),
        "pre_quant_val_loss_nats": metrics["pre_quant_val_loss_nats"],
        "val_loss_nats": found.val_loss_nats,
        "artifact_sha256": digest,
        "seconds": seconds,
    }


def order0_bytes(model: QuantizedModel) -> int:
    """Σ over matrices of n·H₀ of the matrix's codes, in bytes: what no coder with one table a matrix can go under."""
    return round(sum(entropy_bits(matrix.codes) for matrix in model.matrices.values()) / 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codec", choices=("brotli", "ans"), default="brotli")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), steps=options.steps, codec=options.codec, threads=options.threads)
    total = found["model_bytes"] + found["code_bytes"]
    for name, value in (found | {"total_bytes": total, "headroom_bytes": found["limit_bytes"] - total}).items():
        print(f"{name:26}", value)
    if options.json:
        rows = [row("artifact_bytes", total, found["limit_bytes"], "bytes")]
        rows += [row("model_bytes", found["model_bytes"], found["order0_bytes"], "bytes")]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def row(figure: str, ours: float, baseline: float, unit: str) -> dict[str, Any]:
    """One figure beside what it is held against."""
    return {
        "figure": figure,
        "ours": ours,
        "baseline": baseline,
        "ratio": ours / baseline,
        "unit": unit,
        "device": "cpu",
    }


if __name__ == "__main__":
    main()
