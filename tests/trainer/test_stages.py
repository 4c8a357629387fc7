"""The stages after training: what they open, what they refuse, and that the score is that of the bytes on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.listener import heard, listening, opened
from tests.toy import toy_recipe
from trainer import artifact, checkpoint, stages
from trainer.errors import ArtifactError, DataError, ResourceError
from trainer.files import read_json, sha256_file
from trainer.layout import Layout
from trainer.quantized import QuantizedModel

SEED = 1


@pytest.fixture(scope="module")
def whole(toy_layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A run's folder after train, quantize and evaluate of one seed."""
    layout = Layout(tmp_path_factory.mktemp("whole") / "runs")
    layout.root.mkdir()
    layout.data.symlink_to(toy_layout.data)
    stages.train(layout, toy_recipe(), SEED)
    stages.quantize(layout, toy_recipe(), SEED)
    stages.evaluate(layout, toy_recipe(), SEED)
    return layout


@pytest.fixture
def layout(whole: Layout, tmp_path: Path) -> Layout:
    """A copy of that folder for one test to change."""
    shutil.copytree(whole.root, tmp_path / "runs", symlinks=True)
    return Layout(tmp_path / "runs")


def again(layout: Layout, stage: str) -> None:
    shutil.rmtree(layout.stage(stage, SEED))
    shutil.rmtree(layout.clock(stage, SEED))
    getattr(stages, stage)(layout, toy_recipe(), SEED)


def metrics(layout: Layout, stage: str) -> dict[str, Any]:
    return read_json(layout.stage(stage, SEED) / "metrics.json")


def test_quantize_opens_no_token_shard_and_evaluate_none_of_training(layout: Layout) -> None:
    """After training, training tokens are never read again, and validation tokens only to be scored."""
    with opened() as paths:
        again(layout, "quantize")
    assert not [path for path in paths if path.endswith(".bin")]
    with opened() as paths:
        again(layout, "evaluate")
    shards = {Path(path).name for path in paths if path.endswith(".bin")}
    assert shards == {"val_000000.bin"}


def test_the_size_is_that_of_the_file_and_the_code(layout: Layout) -> None:
    """model_bytes is counted from the file, the digest is the file's, the total is the sum, decimal."""
    found, path = metrics(layout, "quantize"), layout.stage("quantize", SEED) / "model.golf"
    assert found["model_bytes"] == path.stat().st_size
    assert found["artifact_sha256"] == sha256_file(path)
    assert found["total_bytes"] == found["model_bytes"] + found["code_bytes"]
    assert found["limit_bytes"] == 16_000_000


def test_the_score_is_that_of_the_bytes_on_disk(layout: Layout) -> None:
    """Another artifact under the same name, declared as such, gets another score: nothing is kept in memory."""
    before = metrics(layout, "evaluate")
    path = layout.stage("quantize", SEED) / "model.golf"
    model, facts = artifact.read(path)
    model.matrices["embedding"].codes.zero_()
    artifact.write(path, model, metadata=facts, quality=1)
    declared = metrics(layout, "quantize") | {"artifact_sha256": sha256_file(path)}
    (layout.stage("quantize", SEED) / "metrics.json").write_text(json.dumps(declared))
    again(layout, "evaluate")
    after = metrics(layout, "evaluate")
    assert after["val_bpb"] != before["val_bpb"]
    # All logits are zero now: the loss is that of a uniform guess over the 400 pieces.
    assert after["val_loss_nats"] == pytest.approx(5.9915, abs=1e-3)


def test_an_artifact_that_is_not_the_declared_one_is_refused(layout: Layout) -> None:
    """Bytes that differ from what quantize wrote down, or another seed's, are no result."""
    path = layout.stage("quantize", SEED) / "model.golf"
    model, facts = artifact.read(path)
    artifact.write(path, model, metadata=facts | {"note": "swapped"}, quality=1)
    with pytest.raises(ArtifactError, match="run `dvc repro quantize@1`"):
        again(layout, "evaluate")
    assert not layout.stage("evaluate", SEED).exists()


def test_an_artifact_of_another_recipe_is_refused(layout: Layout) -> None:
    """A model of another shape is one line that names the artifact."""
    shutil.rmtree(layout.stage("evaluate", SEED))
    shutil.rmtree(layout.clock("evaluate", SEED))
    with pytest.raises(ArtifactError, match=r"model\.golf does not fit the recipe"):
        stages.evaluate(layout, toy_recipe(model__layers=4), SEED)


def test_names_of_an_artifact_from_anywhere_stay_on_one_short_line(layout: Layout) -> None:
    """Neither a line break, nor a terminal's escape, nor 255 bytes get into a message."""
    path = layout.stage("quantize", SEED) / "model.golf"
    written, facts = artifact.read(path)
    vectors = {**written.vectors, "A\nb\x1b[31m" + "x" * 240: written.vectors["skip_gates"]}
    artifact.write(path, QuantizedModel(written.matrices, vectors), metadata=facts, quality=1)
    with pytest.raises(ArtifactError, match="does not fit the recipe") as caught:
        stages.submitted(path, toy_recipe())
    assert str(caught.value).isprintable()
    assert "xxxxxxxxxxxxxxxxxxxxx" not in str(caught.value)


def test_data_that_the_model_was_not_trained_with_is_refused(layout: Layout) -> None:
    """Another data.json under the same name, say one whose validation is easier, gives no score."""
    data = layout.data.resolve()
    layout.data.unlink()
    shutil.copytree(data, layout.data)
    facts = json.loads((layout.data / "data.json").read_text())
    facts["splits"]["val"]["shards"] = facts["splits"]["train"]["shards"][:1]
    (layout.data / "data.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="the artifact was trained with sha256:"):
        again(layout, "evaluate")


def test_a_changed_shard_is_seen_by_its_hash(layout: Layout) -> None:
    """A token changed for another valid one, in a shard of the same length, is not scored."""
    data = layout.data.resolve()
    layout.data.unlink()
    shutil.copytree(data, layout.data)
    shard = layout.data / "val_000000.bin"
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"val_000000\.bin"):
        again(layout, "evaluate")


@pytest.mark.parametrize("text", ["{}", "[]", "3"])
def test_metrics_that_lack_something_are_named(layout: Layout, text: str) -> None:
    """A damaged metrics.json is one line with the path and the stage to run."""
    (layout.stage("train", SEED) / "metrics.json").write_text(text)
    with pytest.raises(
        DataError, match="lacks recipe_digest, data_digest, training_digest, parameters; run `dvc repro train@1`"
    ):
        again(layout, "quantize")


@pytest.mark.parametrize("about", [{}, {"sites": "{"}, {"sites": "[]"}])
def test_hessians_without_their_sites_are_refused(layout: Layout, about: dict[str, str]) -> None:
    """A Hessian file that does not say whose they are is no Hessian file."""
    path = layout.stage("train", SEED) / "hessians.safetensors"
    checkpoint.save(path, checkpoint.load(path)[0], about)
    with pytest.raises(ArtifactError, match="does not say which matrix has which Hessian"):
        again(layout, "quantize")


def test_what_is_read_back_must_be_what_was_written(layout: Layout) -> None:
    """A missing, an extra and a changed tensor are each named."""
    written, _ = artifact.read(layout.stage("quantize", SEED) / "model.golf")
    stages.check_same(written, written)
    missing = QuantizedModel(written.matrices, {k: v for k, v in written.vectors.items() if k != "skip_gates"})
    for one, other in ((written, missing), (missing, written)):
        with pytest.raises(ArtifactError, match="reads back differently in 'skip_gates'"):
            stages.check_same(one, other)
    changed = {name: vector.clone() for name, vector in written.vectors.items()}
    changed["skip_weights"][0, 0] += 1
    with pytest.raises(ArtifactError, match="reads back differently in 'skip_weights'"):
        stages.check_same(written, QuantizedModel(written.matrices, changed))


def test_the_digest_of_an_evaluation_covers_the_stages_before(whole: Layout) -> None:
    """recipe_digest moves with keys of training, quantization and evaluation: scores of other recipes don't mix."""
    found = metrics(whole, "evaluate")
    _, facts = artifact.read(whole.stage("quantize", SEED) / "model.golf")
    assert facts["train"]["recipe_digest"] == metrics(whole, "train")["recipe_digest"]
    assert facts["quantize"] == metrics(whole, "quantize")["recipe_digest"]
    assert len({found["recipe_digest"], facts["train"]["recipe_digest"], facts["quantize"]}) == 3


def test_the_artifact_and_its_load_are_announced(layout: Layout) -> None:
    """A listener hears the file's digest and size, and that weights came from the artifact before any score."""
    with listening() as events:
        again(layout, "quantize")
        again(layout, "evaluate")
    path = layout.stage("quantize", SEED) / "model.golf"
    written = next(event for event in events if event[0] == "golf.artifact")
    assert written[2:] == (sha256_file(path), path.stat().st_size)
    names = [event[:3] for event in heard(events, "weights", "score")]
    assert names[0] == ("golf.weights", "artifact loaded")
    assert list(dict.fromkeys(names[1:])) == [("golf.score", "sequential", False), ("golf.score", "sliding", True)]


def test_a_gpu_out_of_memory_is_one_line_that_says_what_to_lower() -> None:
    """torch's page of text becomes the cause and the key to change."""
    with pytest.raises(ResourceError) as refused, stages.memory("lower train.micro_sequences"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has ...")
    assert str(refused.value) == "GPU out of memory (CUDA out of memory); lower train.micro_sequences"
