"""What a seed of the pipeline reports of itself, as claims that the rules hold against the ledger."""

from __future__ import annotations

from pathlib import Path

from audit.evidence import Artifact, ClaimedScore, Claims
from audit.facts import Recipe, Score
from audit.files import sha256_file
from audit.runs import read_data, read_seed


def read_claims(runs: Path, seed: int, recipe: Recipe) -> Claims:
    """The claims of one seed under `runs`. Raises RunError for files that are missing or contradict each other."""
    run = read_seed(runs, seed)
    read_data(runs / "data" / "data.json")  # must hold together before anything is said about it
    evaluate = run.evaluate
    scores = {"sequential": _claimed(evaluate.sequential), "sliding": _claimed(evaluate.sliding)}
    if evaluate.adapted is not None:
        scores[evaluate.score_label] = _claimed(evaluate.adapted)
    track = recipe.get("track")
    return Claims(
        seed=seed,
        track=track if track in ("A", "B") else "",
        headline=evaluate.score_label,
        scores=scores,
        artifact_sha256=evaluate.artifact_sha256,
        model_bytes=run.quantize.model_bytes,
        code_bytes=run.quantize.code_bytes,
        data_digest=run.train.data_digest,
        contaminated=tuple(evaluate.contaminated),
    )


def read_artifact(runs: Path, seed: int) -> Artifact:
    """The model file as it lies there. Raises RunError if it can't be read."""
    path = runs / "quantize" / str(seed) / "model.golf"
    return Artifact(sha256=sha256_file(path, remedy=f"run `dvc repro quantize@{seed}`"), bytes=path.stat().st_size)


def _claimed(score: Score) -> ClaimedScore:
    return ClaimedScore(nats=score.val_loss_nats, targets=score.tokens, bytes=score.bytes, bpb=score.val_bpb)
