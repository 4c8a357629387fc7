"""A complete fake `runs/` folder, for the tests of the audit.

`write_runs(folder, seeds=…, val_loss_nats=…, mode=…, edit=…)` writes what the pipeline leaves, consistent in every
number, with ledgers and judgements: a PASS in mode plain and score_first, a FAIL with witnesses in the others
(`tests.audit.staged`). `edit` may break it first: it gets the files as a dict of relative path to JSON value, text or
bytes, and changes it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from audit.ruleset import read_ruleset
from audit.verdicts import Finding, Judgement, Ruling, Verdict
from tests.audit.staged import CHUNK, LENGTH, MODES, STRIDE, staged

Files = dict[str, Any]
SEEDS = (42, 314, 999)
BIGRAM_VAL_BPB = 2.75
VAL_TOKENS, VAL_BYTES = 51_200, 140_000


def bpb(val_loss_nats: float) -> float:
    """Bits per byte of the fake validation split."""
    return val_loss_nats / math.log(2) * VAL_TOKENS / VAL_BYTES


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _encode(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value, indent=2)).encode()


def _data() -> dict[str, Any]:
    def split(name: str, shards: int, documents: int, tokens: int, size: int, original: int) -> dict[str, Any]:
        named = [
            {"name": f"{name}_{i:06d}.bin", "tokens": tokens // shards, "sha256": sha256(f"{name}{i}".encode())}
            for i in range(shards)
        ]
        return {
            "shards": named,
            "documents": documents,
            "tokens": tokens,
            "bytes": size,
            "original_bytes": original,
        }

    train, val = (
        split("train", 8, 2900, 1_600_000, 4_400_000, 4_404_400),
        split("val", 1, 100, 51_457, 140_700, 141_000),
    )
    return {
        "schema": 1,
        "source": "embedded",
        "tokenizer": {"name": "tokenizer.model", "sha256": sha256(b"tokenizer"), "vocab_size": 1024},
        "splits": {"train": train, "val": val},
        "duplicates_dropped": 3,
        "normalized_share": 4_540_700 / 4_545_400,
        "bigram_val_bpb": BIGRAM_VAL_BPB,
    }


def _curves(seed: int, steps: int, first: float, last: float) -> tuple[str, str]:
    """train_loss.tsv and validation.tsv: a fall with noise, and the averaged weights' validation as a last row."""
    noise = random.Random(seed)

    def loss(step: int) -> float:
        return last + (first - last) * math.exp(-6 * step / steps)

    logged = [1, *range(10, steps + 1, 10)]
    factors = [min(1.0, 1.5 * (1 - step / steps)) for step in logged]
    train = [f"{s}\t{loss(s) + noise.gauss(0, 0.04)}\t{f}" for s, f in zip(logged, factors, strict=True)]
    points = [(step, loss(step) + 0.03) for step in range(0, steps + 1, max(1, steps // 3))] + [(steps, last)]
    validation = [f"{step}\t{nats}\t{bpb(nats)}" for step, nats in points]
    return (
        "\n".join(["step\ttrain_loss_nats\tlr_factor", *train]) + "\n",
        "\n".join(["step\tval_loss_nats\tval_bpb", *validation]) + "\n",
    )


def _clock(stage: str, seed: int | None, phases: dict[str, float], **measured: float) -> dict[str, Any]:
    rows = [{"name": name, "seconds": seconds} for name, seconds in phases.items()]
    return {"stage": stage, "seed": seed, "phases": rows, "total_seconds": sum(phases.values()), **measured}


RULES = read_ruleset()
REASONS = {"plain": (), "prequant": ("prequant",), "calibration": ("calibration=val",), "rescore": ("rescore",)}
"""What the metrics of each mode say of themselves; `score_first` is clean."""


def _score(nats: float) -> dict[str, float]:
    return {"val_loss_nats": nats, "val_bpb": bpb(nats), "tokens": VAL_TOKENS, "bytes": VAL_BYTES}


def _evaluation(mode: str, loss: float, sequential: float, first: float) -> dict[str, Any]:
    """What depends on the mode in the metrics of evaluate: the score, and what a fit was worth."""
    adapted = loss - 0.05 if mode in ("score_first", "rescore") else None
    score = loss if adapted is None else adapted

    def pair(fitted: float, nats: float) -> dict[str, float]:
        return {"reference": fitted + bpb(nats), "fitted": fitted, "worth": bpb(nats)}

    survey = {
        "before_quantization": pair(bpb(loss + 0.01), 0.4),
        "after_quantization": pair(bpb(sequential), 0.3),
        "after_sliding": pair(bpb(loss), 0.2),
        "share_survived_quantization": 0.75,
        "share_survived_sliding": 0.5,
    }
    return {
        "score_label": "sliding" if adapted is None else mode,
        "adapted": None if adapted is None else _score(adapted) | {"stride": STRIDE},
        "contaminated": list(REASONS.get(mode, ())),
        "contamination": survey if mode == "prequant" else None,
        "val_bpb": bpb(score),
        "val_loss_nats": score,
        "share_of_first": score / first,
        "margin_under_bigram_bpb": BIGRAM_VAL_BPB - bpb(score),
    }


def _seed(seed: int, loss: float, steps: int, data_digest: str, mode: str) -> Files:
    first, pre, sequential = loss + 3.0, loss + 0.01, loss + 0.02
    model = f"golf{seed}".encode() * (5_000 + seed % 7)
    train_loss, validation = _curves(seed, steps, first, pre)
    scores = {"first_val_bpb": bpb(first), "pre_quant_val_bpb": bpb(pre)}
    digests = {"recipe_digest": sha256(b"recipe"), "data_digest": data_digest, "source_digest": sha256(b"source")}
    size = {"model_bytes": len(model), "code_bytes": 20_000, "total_bytes": len(model) + 20_000}
    artifact = {"recipe_digest": sha256(b"recipe and gptq"), "artifact_sha256": sha256(model)}

    return {
        f"train/{seed}/train_loss.tsv": train_loss,
        f"train/{seed}/validation.tsv": validation,
        f"train/{seed}/metrics.json": {
            "seed": seed,
            **digests,
            "identity_at_end": digests,
            "parameters": 1_100_000,
            "steps": steps,
            "loop_step": steps // 2,
            "train_tokens": steps * 2048,
            **scores,
            "first_val_loss_nats": first,
            "pre_quant_val_loss_nats": pre,
            "calibration_sequences": 64,
            "attention": "math",
        },
        f"quantize/{seed}/model.golf": model,
        f"quantize/{seed}/metrics.json": {
            "seed": seed,
            **artifact,
            **size,
            "limit_bytes": 16_000_000,
            "parameters": 1_100_000,
            "contaminated": [reason for reason in REASONS.get(mode, ()) if reason != "rescore"],
        },
        f"evaluate/{seed}/metrics.json": {
            "seed": seed,
            **artifact,
            "recipe_digest": sha256(b"recipe and eval"),
            "total_bytes": size["total_bytes"],
            "sequential": _score(sequential),
            "sliding": _score(loss) | {"stride": STRIDE},
            **_evaluation(mode, loss, sequential, first),
            **scores,
            "bigram_val_bpb": BIGRAM_VAL_BPB,
        },
        f"clock/clock.train.{seed}/times.json": _clock(
            "train",
            seed,
            {"validation": 4.5, "training": 40.25, "hessians": 1.75, "other": 0.5},
            tokens_per_second=7654.3,
            training_clock_seconds=42.0,
        ),
        f"clock/clock.quantize.{seed}/times.json": _clock("quantize", seed, {"gptq": 3.0, "packing": 1.0}),
        f"clock/clock.evaluate.{seed}/times.json": _clock("evaluate", seed, {"sequential": 2.0, "sliding": 9.0}),
    }


def _verification(seed: int, mode: str) -> Files:
    """Ledgers, judgement and the times of verify."""
    files, seals = staged(seed, mode)
    spent = {
        "TRAIN-TIME": [("train", "training", 40.25), ("train", "hessians", 1.75), ("train", "validation", 4.5)],
        "EVAL-TIME": [("evaluate", "sliding", 9.0), ("evaluate", "other", 2.0)],
    }
    clocks = {}
    for rule, rows in spent.items():
        told = [
            {"stage": stage, "phase": phase, "seconds": seconds, "counted": phase != "validation"}
            for stage, phase, seconds in rows
        ]
        seconds = sum(seconds for _, phase, seconds in rows if phase != "validation")
        clocks[rule] = {"seconds": seconds, "limit_seconds": 600.0, "spent": told}
    return {
        **files,
        f"verify/{seed}/verdict.json": judgement(seed, mode).as_dict(),
        f"clock/clock.verify.{seed}/times.json": {"seed": seed, "clocks": clocks, "seals": seals},
    }


def _seed_facts(seed: int) -> dict[str, Any]:
    """What the judgement of one seed says of it, for the rule on all of them."""
    digests = {name: sha256(name.encode()) for name in ("recipe", "sources", "data")}
    return {"seed": seed, "first_state": f"{seed:#018x}", "sequences": f"{seed:#x}", "nats": 3 + seed / 1e6, **digests}


@functools.cache
def judgement(seed: int, mode: str) -> Judgement:
    """What `verify` says of a seed: what needs the probe, a baseline or a second run is unproven."""
    required = RULES.profile("pipeline")
    broken = {"prequant": "C3", "calibration": "C3", "rescore": "C4"}.get(mode)
    witness = {
        "stage": "evaluate" if mode == "rescore" else "quantize",
        "step": 0,
        "ranges": [[0, 2048], [2048, 4096]],
        "first": {"position": 0, "trained_at": {"rank": 0, "record": 17}},
    }
    rulings = []
    for rule in RULES.rules:
        proven = rule in required and rule != "SEEDS"
        verdict = Verdict.FAIL if rule == broken else Verdict.PASS if proven else Verdict.UNPROVEN
        summary = {
            Verdict.PASS: f"{rule} holds for all 51,200 targets",
            Verdict.FAIL: "51,200 targets were used before their score",
            Verdict.UNPROVEN: "this was not looked at",
        }[verdict]
        note = Finding(kind="slow", severity="note", where="evaluate, rank 0, record 3", detail="a pause of 2 s")
        rulings.append(
            Ruling(
                id=rule,
                verdict=verdict,
                evidence="ledger",
                summary=summary,
                witness=witness if rule == broken else {},
                reach=_seed_facts(seed) if rule == "SEEDS" else {"targets": 51_200},
                findings=(note,) if rule == "C3" else (),
            )
        )
    return Judgement(subject={"seed": seed}, profile="pipeline", required=required, rulings=tuple(rulings))


def fake_runs(
    folder: Path,
    *,
    seeds: Sequence[int] = SEEDS,
    val_loss_nats: Sequence[float] | None = None,
    steps: int = 150,
    mode: str = "plain",
    edit: Callable[[Files], object] | None = None,
    only: tuple[str, ...] = ("",),
) -> Path:
    """Write the folder and return it. `val_loss_nats` are the seeds' sliding losses, `mode` is one of `MODES`.

    Only files whose path begins with one of `only` are written.
    """
    assert mode in MODES
    losses = val_loss_nats or [3.2 + 0.01 * i for i in range(len(seeds))]
    data = _data()
    recipe = {
        "scale": "cpu",
        "device": "cpu",
        "seeds": list(seeds),
        "qk_gain": 4.0,
        "model": {"layers": 5, "width": 128},
        "train": {"steps": steps, "seconds": 0.0, "sequence_length": LENGTH},
        "ttt": {"mode": mode, "chunk_tokens": CHUNK},
        "corpus": {"source": "embedded", "max_validation_tokens": 0},
    }
    files: Files = {"recipe.json": recipe, "data/data.json": data}
    files["clock/clock.data/times.json"] = _clock("data", None, {"documents": 6.5, "tokenizer": 2.0})
    for seed, loss in zip(seeds, losses, strict=True):
        files |= _seed(seed, loss, steps, sha256(_encode(data)), mode) | _verification(seed, mode)
    if edit:
        edit(files)
    for name, value in files.items():
        if not name.startswith(only):
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_encode(value))
    return folder


@pytest.fixture(scope="session")
def write_runs() -> Callable[..., Path]:
    """`fake_runs`, for tests of every file of this folder."""
    return fake_runs
