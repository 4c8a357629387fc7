"""The artifact, made again: an honest one comes out bit for bit, one that saw validation does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audit import ledger
from audit.errors import RunError
from audit.evidence import Stage
from audit.files import sha256_file
from audit.requantize import Requantized, requantize
from audit.splits import open_data
from tests.audit import toyruns
from tests.audit.toyruns import Edit, at, indices, named, row, with_facts, with_row
from tests.toy import toy_recipe
from trainer import artifact, checkpoint

SETTINGS = {
    "corpus__documents": 90,
    "corpus__validation_documents": 2,
    "tokens__sample_documents": 50,
    "train__steps": 4,
    "train__warmup_steps": 1,
}
TRAINED, ARTIFACT = "train/1", "quantize/1/model.golf"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toyruns.record(tmp_path_factory.mktemp("toy") / "run", "train", "quantize", **SETTINGS)


def check(run: Path, stages: tuple[Stage, ...] | None = None, **settings: Any) -> Requantized:
    recipe, data = toy_recipe(**(SETTINGS | settings)), open_data([run / "data"])
    return requantize(stages or toyruns.open_stages(run), data, recipe, run / TRAINED, run / ARTIFACT)


def kinds(found: Requantized) -> list[tuple[str, str]]:
    return [(one.stage, one.kind) for one in found.mismatches]


def test_an_honest_artifact_comes_out_bit_for_bit(honest: Path) -> None:
    """Weights, Hessians and every number of the artifact are those of the ledger, the draws and the file."""
    found = check(honest)
    assert (found.differing, found.apart, found.mismatches, found.reason) == (0, 0.0, (), "")
    assert found.numbers > 40_000


OPTIONS = {
    "artifact__codec": "ans",
    "gptq__target_bytes": 19_000,
    "gptq__hessian_clip": 0.175,
    "gptq__damping_by": "diagonal",
    "gptq__mlp_k": 11.0,
    "gptq__protect_groups": 1,
    "gptq__protect_width": 8,
    "gptq__lqer_matrices": 2,
}


def test_an_artifact_with_every_option_comes_out_bit_for_bit(honest: Path, tmp_path: Path) -> None:
    """What the options and the search for the size decide follows from weights, Hessians and recipe alone."""
    run = without_quantize(honest, tmp_path)
    toyruns.record_stage(
        run, "quantize", toy_recipe(**(SETTINGS | OPTIONS)), ledger.seal_of(toyruns.ledger_of(run, "train"))
    )
    assert 18_000 < (run / ARTIFACT).stat().st_size <= 19_000
    found = check(run, **OPTIONS)
    assert (found.differing, found.mismatches, found.reason) == (0, (), "")
    larger = check(run, **(OPTIONS | {"gptq__target_bytes": 17_000}))
    assert any("gptq.target_bytes is 17,000" in one.detail for one in larger.mismatches)
    # On another machine sums come out otherwise in their last digits: that moves a few codes, and must move no more.
    tensors, about = checkpoint.load(run / TRAINED / "hessians.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = {site: torch.randn(h.shape, generator=generator) for site, h in tensors.items()}
    moved = {site: h * (1 + 1e-5 * (noise[site] + noise[site].T)) for site, h in tensors.items()}
    checkpoint.save(run / TRAINED / "hessians.safetensors", moved, about)
    assert 0 < check(run, **OPTIONS).differing < 0.005 * found.numbers
    # Another factor than the one that quantize wrote down gives other codes.
    metrics = run / "quantize/1/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"k_factor": 1.5}))
    assert check(run, **OPTIONS).differing > 0.1 * found.numbers
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"k_factor": "1"}))
    with pytest.raises(RunError, match="k_factor '1', expected a number up to 64"):
        check(run, **OPTIONS)


def without_quantize(honest: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    for made in (run / "quantize", toyruns.ledger_of(run, "quantize"), run / "clock/clock.quantize.1"):
        shutil.rmtree(made)
    return run


@pytest.mark.parametrize("settings", [{"gptq__calibration": "val"}, {"ttt__mode": "prequant"}])
def test_what_the_quantizer_saw_besides_shows(honest: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A ledger that tells of an honest quantization, around an artifact that saw validation: the numbers differ."""
    run = without_quantize(honest, tmp_path)
    seal = ledger.seal_of(toyruns.ledger_of(run, "train"))
    toyruns.record_stage(run, "quantize", toy_recipe(**(SETTINGS | settings)), seal)
    digest = sha256_file(run / ARTIFACT, remedy="")

    def noted(records: list[Any]) -> list[Any]:
        return at(named(records, "artifact")[0], lambda record: with_facts(record, sha256=digest))(records)

    found = check(run, toyruns.forge(honest, tmp_path / "forged", quantize=noted))
    # What it says of itself, and its numbers.
    assert kinds(found) == [("quantize", "artifact")] * 2
    assert found.differing > 0.1 * found.numbers


def with_metadata(run: Path, metadata: dict[str, Any]) -> None:
    """Seal the same model again, saying something else, with a ledger that tells of that file."""
    model, _ = artifact.read(run / ARTIFACT)
    artifact.write(run / ARTIFACT, model, metadata=metadata, quality=1)


@pytest.mark.parametrize("change", [{"payload": "x" * 3000}, {"contaminated": ["none"]}, {"seed": 2}, {"train": {}}])
def test_an_artifact_says_nothing_but_what_recipe_and_data_give(
    honest: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """Metadata are made again too, so nothing can be told in them: not a mark that is gone, not a payload."""
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    with_metadata(run, artifact.read(run / ARTIFACT)[1] | change)
    digest = sha256_file(run / ARTIFACT, remedy="")
    noted = lambda rs: at(named(rs, "artifact")[0], lambda r: with_facts(r, sha256=digest))(rs)  # noqa: E731
    found = check(run, toyruns.forge(honest, tmp_path / "forged", quantize=noted))
    assert (kinds(found), found.differing) == ([("quantize", "artifact")], 0)
    assert next(iter(change)) in found.mismatches[0].detail
    assert "xxx" not in found.mismatches[0].detail


def other_state(records: list[Any]) -> list[Any]:
    return at(indices(records, "state")[-1], lambda record: with_row(record, parameters=1))(records)


def no_state(records: list[Any]) -> list[Any]:
    return [record for i, record in enumerate(records) if i not in indices(records, "state")]


@pytest.mark.parametrize("edit", [other_state, no_state])
def test_weights_that_the_ledger_does_not_end_with(honest: Path, tmp_path: Path, edit: Edit) -> None:
    """The file that training left is tied to the last state of its ledger."""
    assert kinds(check(honest, toyruns.forge(honest, tmp_path, train=edit))) == [("train", "state")]


def replaced(honest: Path, tmp_path: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """A run with every tensor of a file of training changed."""
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    tensors, about = checkpoint.load(run / TRAINED / name)
    checkpoint.save(run / TRAINED / name, {key: change(tensor) for key, tensor in tensors.items()}, about)
    return run


def test_other_hessians_show(honest: Path, tmp_path: Path) -> None:
    """Hessians that are not those of the calibration draws are told, and so is what comes of them."""
    run = replaced(honest, tmp_path, "hessians.safetensors", lambda h: h + h.diagonal().mean() * torch.eye(len(h)))
    assert ("train", "calibration") in kinds(check(run))
    assert kinds(check(replaced(honest, tmp_path / "b", "hessians.safetensors", lambda h: h * (1 + 1e-5)))) == []


def test_other_weights_show(honest: Path, tmp_path: Path) -> None:
    """Weights that were moved after training are not those of the last state."""
    found = check(replaced(honest, tmp_path, "model.safetensors", lambda w: w + 0.01))
    assert ("train", "state") in kinds(found)
    assert ("quantize", "artifact") in kinds(found)


def test_what_was_made_otherwise_is_not_made_again(honest: Path, tmp_path: Path) -> None:
    """Recipes that fit or calibrate otherwise, and an artifact that was not noted, are reasons, not verdicts."""
    for settings in ({"gptq__calibration": "self"}, {"ttt__mode": "prequant"}):
        assert "fitted or calibrated otherwise" in check(honest, **settings).reason
    edit = lambda rs: at(named(rs, "artifact")[0], lambda r: with_facts(r, sha256="sha256:00"))(rs)  # noqa: E731
    assert (
        "the ledger of quantize has sha256:00" in check(honest, toyruns.forge(honest, tmp_path, quantize=edit)).reason
    )
    assert row(toyruns.records_of(honest, "train")[indices(toyruns.records_of(honest, "train"), "step")[0]])["step"] < 0


def test_files_that_can_not_be_read_are_one_line(honest: Path, tmp_path: Path) -> None:
    """Missing or damaged weights, and weights of another recipe."""
    run = tmp_path / "run"
    shutil.copytree(honest, run)
    with pytest.raises(RunError, match=r"can't be loaded: .*run the stage"):
        check(run, model__width=64)
    (run / TRAINED / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="run the stage train again"):
        check(run)
