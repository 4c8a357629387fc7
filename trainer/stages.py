"""The stages of one seed, each a function of a run's folder and a recipe.

    train@seed → quantize@seed → evaluate@seed

Each says who it is before it begins and when it is done (`trainer.identity`), reads what the one before wrote, writes
into a temporary folder and renames it at the end, so a killed stage leaves nothing that looks finished. Numbers and
bytes that repeat go to the stage's folder; log and times go to a `clock.*` folder (`trainer.layout`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer import artifact, calibration, checkpoint, contamination, source, submission
from trainer import recipe as recipes
from trainer.data import DataSet
from trainer.distributed import world
from trainer.errors import ArtifactError, DataError, ResourceError, quoted
from trainer.evaluation import Evaluation, score_label
from trainer.files import sha256_file, write_json
from trainer.identity import announced
from trainer.layout import Layout
from trainer.model import GPT
from trainer.preparation import Material, Prepared, prepare
from trainer.quantized import QuantizedModel, dequantize_model
from trainer.quantizer import quantize_model
from trainer.runlog import RunLog, stage_folders
from trainer.scoring import Score, Targets
from trainer.settings import Recipe
from trainer.training import Training


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
        announced(layout, recipe, stage="train", seed=seed, rank=ranks.rank, ranks=ranks.size),
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
    """The submission's model file, from weights and Hessians; a clean recipe opens no token shard."""
    torch.set_num_threads(recipe.dist.threads)
    training = layout.metrics("train", seed, ("recipe_digest", "data_digest", "training_digest", "parameters"))
    with (
        announced(layout, recipe, stage="quantize", seed=seed),
        stage_folders(layout, "quantize", seed, layout.stage("quantize", seed)) as (folder, log),
        memory("lower ttt.sequences or calibration.sequences"),
    ):
        with log.phase("setup"):
            trained, sites = read_trained(layout.stage("train", seed))
        prepared = prepare(layout, recipe, seed, trained, log, data_digest=training["data_digest"])
        weights, hessians = prepared.submitted.weights, prepared.submitted.hessians
        metadata = submission.metadata(
            recipe, seed=seed, trained_by=training["recipe_digest"], training_digest=training["training_digest"]
        )
        with log.phase("quantize"):
            made = submission.make(weights, hessians, sites, recipe, metadata=metadata, log=log.line)
            beside = write_beside(folder, prepared, sites, recipe, factor=made.factor)
        digest, size = seal(folder / "model.golf", made.model, metadata, recipe, log)
        code = source.packed_size()
        metrics = {
            "seed": seed,
            "recipe_digest": metadata["quantize"],
            "artifact_sha256": digest,
            "model_bytes": size,
            "code_bytes": code,
            "limit_bytes": recipe.artifact.limit_bytes,
            "total_bytes": size + code,
            "parameters": training["parameters"],
            "codec": recipe.artifact.codec,
            "k_factor": made.factor,
            "contaminated": metadata["contaminated"],
        }
        write_json(folder / "metrics.json", metrics | prepared.fit | beside)
        tell_size(metrics, log)


def tell_size(metrics: dict[str, Any], log: RunLog) -> None:
    """The last lines of quantize's log: the bytes against the limit, and what is wrong with the artifact."""
    total, limit = metrics["total_bytes"], metrics["limit_bytes"]
    over = "over" if total > limit else "under"
    log.line(
        f"seed {metrics['seed']}: model {metrics['model_bytes']:,} bytes + code {metrics['code_bytes']:,} = {total:,}, "
        f"{abs(limit - total):,} {over} the limit"
    )
    if metrics["contaminated"]:
        log.line(contamination.warning(metrics["contaminated"]))


def read_trained(folder: Path) -> tuple[Material, dict[str, str]]:
    """What training left for the quantizer, and parameter → site of its Hessian."""
    state, _ = checkpoint.load(folder / "model.safetensors")
    hessians, sites = read_hessians(folder / "hessians.safetensors")
    return Material(state, hessians), sites


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


def write_beside(
    folder: Path, prepared: Prepared, sites: dict[str, str], recipe: Recipe, *, factor: float
) -> dict[str, Any]:
    """What is no part of the submission, where there is any; returns what the metrics say about it.

    That are calibration sequences that are not train's own, and the reference as quantization with the submission's
    `factor` leaves it: fp32, never packed.
    """
    if prepared.sequences:
        calibration.save(folder / "calibration.safetensors", prepared.sequences)
    if prepared.reference is None:
        return {}
    weights, hessians = prepared.reference.weights, prepared.reference.hessians
    quantized = dequantize_model(quantize_model(weights, hessians, sites, recipe.gptq, factor=factor))
    path = folder / "reference.safetensors"
    checkpoint.save(path, quantized, {})
    return {"reference_sha256": sha256_file(path)}


def seal(path: Path, model: QuantizedModel, metadata: dict[str, Any], recipe: Recipe, log: RunLog) -> tuple[str, int]:
    """Write the artifact, read it back, announce it: its digest and its bytes."""
    with log.phase("compress"):
        artifact.write(path, model, metadata=metadata, **submission.packing(recipe))
    with log.phase("read back"):
        check_same(model, artifact.read(path)[0])
    digest, size = sha256_file(path), path.stat().st_size
    sys.audit("golf.artifact", str(path), digest, size)
    return digest, size


def check_same(written: QuantizedModel, read: QuantizedModel) -> None:
    """What was read back from disk must be what was written, tensor by tensor."""
    before, after = dequantize_model(written), dequantize_model(read)
    equal = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    if differing := sorted((before.keys() | after.keys()) - equal):
        names = ", ".join(map(quoted, differing[:4]))
        raise ArtifactError(f"the artifact reads back differently in {names}; don't use it")


def evaluate(layout: Layout, recipe: Recipe, seed: int) -> None:
    """Bits per byte of the artifact as it lies on disk, by every pass that the recipe asks for."""
    torch.use_deterministic_algorithms(recipe.device == "cpu")
    with (
        world(recipe) as ranks,
        announced(layout, recipe, stage="evaluate", seed=seed, rank=ranks.rank, ranks=ranks.size),
        stage_folders(layout, "evaluate", seed, layout.stage("evaluate", seed), leader=ranks.leader) as (folder, log),
        memory("lower eval.batch_windows or ttt.sequences"),
    ):
        ranks.barrier()  # the leader has made the folders
        with log.phase("setup"):
            dataset = DataSet.open(layout.data, recipe, splits=("val",), ids=ranks.leader, verify=ranks.leader)
            gpt, metadata, digest = submitted(layout.stage("quantize", seed) / "model.golf", recipe)
            check_lineage(layout, seed, metadata, digest, dataset)
            reference = check_reference(layout, recipe, seed, metadata)
            targets = Targets.of(dataset, length=recipe.train.sequence_length)
            evaluation = Evaluation(gpt.to(ranks.device), targets, recipe, ranks, log, seed=seed)
        found = evaluation.run(reference)
        if ranks.leader:
            metrics = measured(layout, recipe, seed, found, metadata, digest, dataset)
            write_json(folder / "metrics.json", metrics)
            report(metrics, log)


def report(metrics: dict[str, Any], log: RunLog) -> None:
    """The last lines of the log: the score, and what is wrong with it."""
    margin = metrics["margin_under_bigram_bpb"]
    log.line(
        f"seed {metrics['seed']}: {metrics['val_bpb']:.4f} bits per byte, {metrics['share_of_first']:.1%} of the first "
        f"evaluation's, {abs(margin):.4f} {'under' if margin > 0 else 'OVER'} what a bigram model reaches"
    )
    if metrics["contamination"]:
        log.line(contamination.describe(metrics["contamination"]))
    if metrics["contaminated"]:
        log.line(contamination.warning(metrics["contaminated"]))


def submitted(path: Path, recipe: Recipe) -> tuple[GPT, dict[str, Any], str]:
    """The model in an artifact, its metadata and digest. Raises ArtifactError if it does not fit the recipe."""
    model, metadata = artifact.read(path)
    check_metadata(metadata, path)
    gpt = GPT(recipe, seed=0)
    checkpoint.put(gpt, dequantize_model(model), where=path, why="artifact loaded")
    return gpt, metadata, sha256_file(path)


def check_metadata(metadata: dict[str, Any], path: Path) -> None:
    """What an artifact says of itself must have the form of `submission.metadata`: the file may come from anywhere."""
    train, marks = metadata.get("train"), metadata.get("contaminated")
    digests = [train.get("recipe_digest"), train.get("training_digest")] if isinstance(train, dict) else [None]
    texts = [metadata.get("quantize"), *digests, *(marks if isinstance(marks, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise ArtifactError(
            f"{path}: its metadata are not what quantize writes (seed, train, quantize, contaminated); run the stage "
            "quantize again"
        )


def check_lineage(layout: Layout, seed: int, metadata: dict[str, Any], digest: str, dataset: DataSet) -> None:
    """The artifact must be the one that quantize wrote for this seed, trained with this data. Before any scoring."""
    quantized = layout.metrics("quantize", seed, ("artifact_sha256", "total_bytes", "contaminated"))
    if metadata.get("seed") != seed or quantized["artifact_sha256"] != digest:
        raise ArtifactError(
            f"the artifact is of seed {metadata.get('seed')} with {digest}, expected seed {seed} with "
            f"{quantized['artifact_sha256']}; run `dvc repro quantize@{seed}`"
        )
    if quantized["contaminated"] != metadata.get("contaminated"):
        raise ArtifactError(
            f"the artifact is marked contaminated by {metadata.get('contaminated')}, quantize wrote "
            f"{quantized['contaminated']}; run `dvc repro quantize@{seed}`"
        )
    trained = layout.metrics("train", seed, ("data_digest",))["data_digest"]
    found = {"training data": dataset.training_digest, "data.json": dataset.digest}
    wanted = {"training data": metadata["train"]["training_digest"], "data.json": trained}
    for what, digest in found.items():
        if digest != wanted[what]:
            raise DataError(
                f"{what}: got {digest}, the artifact was trained with {wanted[what]}; run `dvc repro train@{seed}`"
            )


def check_reference(layout: Layout, recipe: Recipe, seed: int, metadata: dict[str, Any]) -> Path | None:
    """The unfitted reference beside an artifact that was fitted to validation, None beside another.

    Raises ArtifactError if recipe and artifact disagree about the fit, or the file is not the one that quantize wrote.
    """
    fitted = "prequant" in metadata["contaminated"]
    if fitted != recipe.ttt.prequant:
        raise ArtifactError(
            f"the artifact was {'' if fitted else 'not '}fitted to validation, ttt.mode is {recipe.ttt.mode}; "
            f"run `dvc repro quantize@{seed}`"
        )
    if not fitted:
        return None
    path = layout.stage("quantize", seed) / "reference.safetensors"
    wanted = layout.metrics("quantize", seed, ("reference_sha256", "before_quantization"))["reference_sha256"]
    found = sha256_file(path) if path.exists() else "missing"
    if found != wanted:
        raise ArtifactError(f"{path} is {found}, expected {wanted}; run `dvc repro quantize@{seed}`")
    return path


def measured(
    layout: Layout,
    recipe: Recipe,
    seed: int,
    found: dict[str, Score],
    metadata: dict[str, Any],
    digest: str,
    dataset: DataSet,
) -> dict[str, Any]:
    """The metrics of the stage, with what they are compared to. `recipe_digest` covers the stages before as well."""
    training = layout.metrics("train", seed, ("first_val_bpb", "pre_quant_val_bpb"))
    quantized = layout.metrics("quantize", seed, ("total_bytes",))
    lineage = [metadata["train"], metadata["quantize"], recipes.digest(recipe, stage="evaluate")]
    total, bigram = found[score_label(recipe.ttt)], dataset.facts["bigram_val_bpb"]
    return {
        "seed": seed,
        "recipe_digest": "sha256:" + hashlib.sha256(json.dumps(lineage, sort_keys=True).encode()).hexdigest(),
        "data_digest": dataset.digest,
        "artifact_sha256": digest,
        "total_bytes": quantized["total_bytes"],
        "val_bpb": total.val_bpb,
        "val_loss_nats": total.val_loss_nats,
        "score_label": score_label(recipe.ttt),
        "sequential": found["sequential"].as_dict(),
        "sliding": found["sliding"].as_dict(),
        "adapted": total.as_dict() if recipe.ttt.score_first else None,
        "contaminated": contamination.of_score(recipe, metadata),
        "contamination": contamination.survey(quantized["before_quantization"], found) if recipe.ttt.prequant else None,
        "pre_quant_val_bpb": training["pre_quant_val_bpb"],
        "first_val_bpb": training["first_val_bpb"],
        "bigram_val_bpb": bigram,
        "share_of_first": total.val_bpb / training["first_val_bpb"],
        "margin_under_bigram_bpb": bigram - total.val_bpb,
    }
