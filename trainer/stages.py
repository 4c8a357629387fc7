"""The stages of one seed, each a function of a run's folder and a recipe.

    train@seed → quantize@seed → evaluate@seed

A stage reads what the one before wrote, writes into a temporary folder and renames it at the end, so a killed stage
leaves nothing that looks finished. Numbers and bytes that repeat go to the stage's folder; log and times go to a
`clock.*` folder (`trainer.layout`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer import artifact, checkpoint, gptq, source
from trainer import recipe as recipes
from trainer.data import DataSet
from trainer.distributed import world
from trainer.errors import ArtifactError, DataError, ResourceError
from trainer.files import read_json, sha256_file, write_json
from trainer.layout import Layout
from trainer.model import GPT
from trainer.runlog import stage_folders
from trainer.scoring import Score, Targets, score
from trainer.settings import Recipe
from trainer.training import Training, describe


@contextmanager
def memory(remedy: str) -> Iterator[None]:
    """Turn a GPU out of memory into one line that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"GPU out of memory ({str(error).split('.')[0]}); {remedy}") from None


def train(layout: Layout, recipe: Recipe, seed: int) -> None:
    """Weights, Hessians, calibration sequences, schedule and curves of one seed."""
    torch.use_deterministic_algorithms(recipe.device == "cpu")
    with (
        world(recipe) as ranks,
        stage_folders(layout, "train", seed, layout.stage("train", seed), leader=ranks.leader) as (folder, log),
        memory("lower train.micro_sequences"),
    ):
        ranks.barrier()  # the leader has made the folders
        with log.phase("setup"):
            dataset = DataSet.open(layout.data, recipe, ids=ranks.leader, verify=ranks.leader)
            training = Training(recipe, dataset, ranks, seed=seed, log=log)
        log.line(
            f"seed {seed}: {sum(p.numel() for p in training.gpt.parameters()):,} parameters on {ranks.size} x "
            f"{ranks.device.type}, {training.tokens_per_step:,} tokens a step"
        )
        training.run(folder, layout.resume(seed))
    if ranks.leader:
        # The outputs are in place, so the checkpoints have done their work.
        shutil.rmtree(layout.resume(seed), ignore_errors=True)


def quantize(layout: Layout, recipe: Recipe, seed: int) -> None:
    """The submission's model file, from weights and Hessians; opens no token shard."""
    torch.set_num_threads(recipe.dist.threads)
    trained = layout.stage("train", seed)
    training = read_metrics(layout, "train", seed, ("recipe_digest", "data_digest", "parameters"))
    with stage_folders(layout, "quantize", seed, layout.stage("quantize", seed)) as (folder, log):
        with log.phase("setup"):
            state, _ = checkpoint.load(trained / "model.safetensors")
            hessians, sites = read_hessians(trained / "hessians.safetensors")
        with log.phase("quantize"):
            model = gptq.quantize_model(state, hessians, sites, recipe.gptq)
        lineage = {name: training[name] for name in ("recipe_digest", "data_digest")}
        metadata = {"seed": seed, "train": lineage, "quantize": recipes.digest(recipe, stage="quantize")}
        path = folder / "model.golf"
        with log.phase("compress"):
            artifact.write(path, model, metadata=metadata, quality=recipe.artifact.quality, threads=recipe.dist.threads)
        with log.phase("read back"):
            check_same(model, artifact.read(path)[0])
        digest = sha256_file(path)
        sys.audit("golf.artifact", str(path), digest, path.stat().st_size)
        sizes = {
            "model_bytes": path.stat().st_size,
            "code_bytes": source.packed_size(),
            "limit_bytes": recipe.artifact.limit_bytes,
        }
        total = sizes["model_bytes"] + sizes["code_bytes"]
        metrics = {
            "seed": seed,
            "recipe_digest": recipes.digest(recipe, stage="quantize"),
            "artifact_sha256": digest,
            **sizes,
            "total_bytes": total,
            "parameters": training["parameters"],
        }
        write_json(folder / "metrics.json", metrics)
        over = "over" if total > recipe.artifact.limit_bytes else "under"
        log.line(
            f"seed {seed}: model {sizes['model_bytes']:,} bytes + code {sizes['code_bytes']:,} = {total:,}, "
            f"{abs(recipe.artifact.limit_bytes - total):,} {over} the limit"
        )


def read_metrics(layout: Layout, stage: str, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The metrics.json of a stage. Raises DataError if it is missing, damaged, or lacks one of `names`."""
    path, remedy = layout.stage(stage, seed) / "metrics.json", f"run `dvc repro {stage}@{seed}`"
    found = read_json(path, remedy=remedy)
    missing = [name for name in names if not isinstance(found, dict) or name not in found]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; {remedy}")
    return dict(found)


def read_hessians(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Site → Hessian, and parameter → site. Raises ArtifactError if the file does not say which is whose."""
    hessians, about = checkpoint.load(path)
    try:
        sites = json.loads(about["sites"])
        if not isinstance(sites, dict):
            raise TypeError
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(f"{path} does not say which matrix has which Hessian; run the stage train again") from None
    return hessians, sites


def check_same(written: gptq.QuantizedModel, read: gptq.QuantizedModel) -> None:
    """What was read back from disk must be what was written, tensor by tensor."""
    before, after = gptq.dequantize_model(written), gptq.dequantize_model(read)
    equal = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    differing = sorted((before.keys() | after.keys()) - equal)
    if differing:
        raise ArtifactError(f"the artifact reads back differently in {', '.join(differing)}; don't use it")


def evaluate(layout: Layout, recipe: Recipe, seed: int) -> None:
    """Bits per byte of the artifact as it lies on disk: sequential and sliding windows."""
    torch.use_deterministic_algorithms(recipe.device == "cpu")
    with (
        world(recipe) as ranks,
        stage_folders(layout, "evaluate", seed, layout.stage("evaluate", seed), leader=ranks.leader) as (folder, log),
        memory("lower eval.batch_windows"),
    ):
        ranks.barrier()  # the leader has made the folders
        with log.phase("setup"):
            dataset = DataSet.open(layout.data, recipe, splits=("val",), ids=ranks.leader, verify=ranks.leader)
            gpt, metadata, digest = submitted(layout.stage("quantize", seed) / "model.golf", recipe)
            check_lineage(layout, seed, metadata, digest, dataset)
            gpt.to(ranks.device)
            model = torch.compile(gpt) if recipe.train.compile and ranks.device.type == "cuda" else gpt
            targets = Targets.of(dataset, length=recipe.train.sequence_length)
        found = {}
        for label, stride in (("sequential", recipe.train.sequence_length), ("sliding", recipe.eval.stride)):
            with log.phase(label):
                found[label] = score(
                    model,
                    targets,
                    length=recipe.train.sequence_length,
                    stride=stride,
                    batch=recipe.eval.batch_windows,
                    world=ranks,
                    label=label,
                    progress=functools.partial(log.progress, what=f"{label}, seed {seed}"),
                )
            log.line(f"{label}: {describe(found[label])}")
        if ranks.leader:
            metrics = evaluation(layout, recipe, seed, found, metadata, digest, dataset)
            write_json(folder / "metrics.json", metrics)
            margin = metrics["margin_under_bigram_bpb"]
            log.line(
                f"seed {seed}: {metrics['val_bpb']:.4f} bits per byte, {metrics['share_of_first']:.1%} of the first "
                f"evaluation's, {abs(margin):.4f} {'under' if margin > 0 else 'OVER'} what a bigram model reaches"
            )


def submitted(path: Path, recipe: Recipe) -> tuple[GPT, dict[str, Any], str]:
    """The model in an artifact, its metadata and digest. Raises ArtifactError if it does not fit the recipe."""
    model, metadata = artifact.read(path)
    gpt = GPT(recipe, seed=0)
    state = gptq.dequantize_model(model)
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    wanted = {name: list(tensor.shape) for name, tensor in gpt.state_dict().items()}
    if differing := sorted(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n)):
        name = differing[0]
        raise ArtifactError(
            f"{path} does not fit the recipe: {name} is {shapes.get(name, 'missing')}, expected "
            f"{wanted.get(name, 'none')}, and {len(differing) - 1} more; evaluate with the recipe it was trained with"
        )
    gpt.load_state_dict(state)
    sys.audit("golf.weights", "artifact loaded")
    return gpt, metadata, sha256_file(path)


def check_lineage(layout: Layout, seed: int, metadata: dict[str, Any], digest: str, dataset: DataSet) -> None:
    """The artifact must be the one that quantize wrote for this seed, trained with this data. Before any scoring."""
    quantized = read_metrics(layout, "quantize", seed, ("artifact_sha256", "total_bytes"))
    if metadata.get("seed") != seed or quantized["artifact_sha256"] != digest:
        raise ArtifactError(
            f"the artifact is of seed {metadata.get('seed')} with {digest}, expected seed {seed} with "
            f"{quantized['artifact_sha256']}; run `dvc repro quantize@{seed}`"
        )
    if dataset.digest != metadata["train"]["data_digest"]:
        raise DataError(
            f"data.json is {dataset.digest}, the artifact was trained with {metadata['train']['data_digest']}; "
            f"run `dvc repro train@{seed}`"
        )


def evaluation(
    layout: Layout,
    recipe: Recipe,
    seed: int,
    found: dict[str, Score],
    metadata: dict[str, Any],
    digest: str,
    dataset: DataSet,
) -> dict[str, Any]:
    """The metrics of the stage, with what they are compared to. `recipe_digest` covers the stages before as well."""
    training = read_metrics(layout, "train", seed, ("first_val_bpb", "pre_quant_val_bpb"))
    quantized = read_metrics(layout, "quantize", seed, ("total_bytes",))
    lineage = [metadata["train"], metadata["quantize"], recipes.digest(recipe, stage="evaluate")]
    sliding, bigram = found["sliding"], dataset.facts["bigram_val_bpb"]
    return {
        "seed": seed,
        "recipe_digest": "sha256:" + hashlib.sha256(json.dumps(lineage, sort_keys=True).encode()).hexdigest(),
        "data_digest": dataset.digest,
        "artifact_sha256": digest,
        "total_bytes": quantized["total_bytes"],
        "val_bpb": sliding.val_bpb,
        "val_loss_nats": sliding.val_loss_nats,
        "sequential": found["sequential"].as_dict(),
        "sliding": sliding.as_dict(),
        "pre_quant_val_bpb": training["pre_quant_val_bpb"],
        "first_val_bpb": training["first_val_bpb"],
        "bigram_val_bpb": bigram,
        "share_of_first": sliding.val_bpb / training["first_val_bpb"],
        "margin_under_bigram_bpb": bigram - sliding.val_bpb,
    }
