"""From weights and Hessians to the file of a submission: its size, what it says of itself, the reference beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_recipe
from tests.trainer.matrices import SITES, model
from trainer import artifact, checkpoint, contamination, stages, submission
from trainer.errors import ArtifactError
from trainer.preparation import Material, Prepared
from trainer.quantized import QuantizedModel, dequantize_model
from trainer.quantizer import quantize_model
from trainer.runlog import RunLog


def payload(size: int) -> dict[str, Any]:
    """Metadata that brotli can't make small."""
    return {"facts": "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(size // 64))}


@pytest.mark.parametrize("codec", ["brotli", "ans"])
def test_the_target_is_for_the_file_with_its_metadata(tmp_path: Path, codec: str) -> None:
    """The file that is written is at most gptq.target_bytes, whatever it has to say, and with a finer k otherwise."""
    weights, hessians = model(scale=4)
    factors = []
    for metadata in ({}, payload(1024)):
        plain = artifact.pack(quantize_model(weights, hessians, SITES, toy_recipe().gptq), metadata={}, codec=codec)
        recipe = toy_recipe(gptq__target_bytes=len(plain), artifact__codec=codec)
        made = submission.make(weights, hessians, SITES, recipe, metadata=metadata, log=lambda _: None)
        size = artifact.write(tmp_path / "model.golf", made.model, metadata=metadata, **submission.packing(recipe))
        assert 0.97 * len(plain) < size <= len(plain)
        factors.append(made.factor)
    assert factors[1] > 1.02 * factors[0]


def test_without_a_target_every_clip_is_the_recipes() -> None:
    """The factor is 1 and the model the quantizer's."""
    weights, hessians = model()
    made = submission.make(weights, hessians, SITES, toy_recipe(), metadata={}, log=lambda _: None)
    again = dequantize_model(quantize_model(weights, hessians, SITES, toy_recipe().gptq))
    assert made.factor == 1.0
    assert all(torch.equal(value, again[name]) for name, value in dequantize_model(made.model).items())


def test_the_reference_is_quantized_as_coarsely_as_the_submission(tmp_path: Path) -> None:
    """What a contamination was worth is told at equal size: the factor on the clips is that of the submission."""
    weights, hessians = model()
    prepared, recipe = Prepared(submitted=Material({}, {}), reference=Material(weights, hessians)), toy_recipe()
    stages.write_beside(tmp_path, prepared, SITES, recipe, factor=2.0)
    found, _ = checkpoint.load(tmp_path / "reference.safetensors")
    wanted = dequantize_model(quantize_model(weights, hessians, SITES, recipe.gptq, factor=2.0))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_what_is_sealed_is_what_lies_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read back and compared: a writer that writes another model is found out before it is announced."""
    weights, hessians = model()
    made = quantize_model(weights, hessians, SITES, toy_recipe().gptq)
    other = QuantizedModel(made.matrices, {name: vector + 1 for name, vector in made.vectors.items()})
    write = artifact.write
    monkeypatch.setattr(artifact, "write", lambda path, _, **options: write(path, other, **options))
    log = RunLog(None, stage="quantize", seed=1)
    with pytest.raises(ArtifactError, match="reads back differently in "):
        stages.seal(tmp_path / "model.golf", made, {}, toy_recipe(), log)


def test_the_metadata_tell_of_recipe_seed_and_training_data_alone() -> None:
    """Digests of what shaped the artifact, and the mark of a contamination."""
    facts = {"seed": 3, "trained_by": "sha256:a", "training_digest": "sha256:b"}
    clean = submission.metadata(toy_recipe(), **facts)
    fitted = submission.metadata(toy_recipe(ttt__mode="prequant"), **facts)
    assert (clean["seed"], clean["train"], clean["contaminated"]) == (
        3,
        {"recipe_digest": "sha256:a", "training_digest": "sha256:b"},
        [],
    )
    assert fitted["contaminated"] == contamination.of_artifact(toy_recipe(ttt__mode="prequant")) == ["prequant"]
    assert clean["quantize"] != fitted["quantize"]


GOOD: dict[str, Any] = {
    "seed": 1,
    "train": {"recipe_digest": "a", "training_digest": "b"},
    "quantize": "c",
    "contaminated": [],
}


@pytest.mark.parametrize(
    "change",
    [
        {"train": None},
        {"train": []},
        {"train": {"recipe_digest": "a"}},
        {"train": {"recipe_digest": "a", "training_digest": 1}},
        {"quantize": None},
        {"contaminated": None},
        {"contaminated": "prequant"},
        {"contaminated": [1]},
    ],
)
def test_metadata_of_another_form_are_one_line(change: dict[str, Any]) -> None:
    """What an artifact says of itself is refused, before it is used, if quantize does not write such."""
    stages.check_metadata(GOOD, Path("model.golf"))
    with pytest.raises(ArtifactError, match=r"model\.golf: its metadata are not what quantize writes"):
        stages.check_metadata(GOOD | change, Path("model.golf"))
