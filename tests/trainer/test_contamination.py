"""The modes that use validation: what they open and announce, and that none leaves a result which looks clean."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.listener import Events, heard, listening, opened
from tests.toy import toy_recipe
from trainer import artifact, checkpoint, contamination, stages
from trainer.errors import ArtifactError, DataError
from trainer.files import read_json, sha256_file
from trainer.layout import Layout
from trainer.quantized import dequantize_model
from trainer.scoring import Score
from trainer.shards import read_shard, write_shard

SEED = 1
CLEAN: dict[str, str] = {}
PREQUANT = {"ttt__mode": "prequant"}


@dataclasses.dataclass(frozen=True)
class Made:
    """A run's folder after quantize and evaluate in some mode, with what each announced and opened."""

    layout: Layout
    events: dict[str, Events]
    shards: dict[str, set[str]]

    def metrics(self, stage: str) -> dict[str, Any]:
        found = read_json(self.layout.stage(stage, SEED) / "metrics.json")
        assert isinstance(found, dict)
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        return dequantize_model(artifact.read(self.layout.stage("quantize", SEED) / "model.golf")[0])

    def log(self, stage: str) -> str:
        return (self.layout.clock(stage, SEED) / "log.txt").read_text()


@pytest.fixture(scope="module")
def trained(toy_layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("trained") / "runs")
    layout.root.mkdir()
    layout.data.symlink_to(toy_layout.data)
    stages.train(layout, toy_recipe(), SEED)
    return layout


def make(trained: Layout, root: Path, overrides: dict[str, str]) -> Made:
    """Quantize and evaluate in a folder of their own, from the trained weights."""
    layout = Layout(root / "runs")
    layout.root.mkdir(parents=True)
    for name in ("data", "train"):
        (layout.root / name).symlink_to((trained.root / name).resolve())
    events, shards = {}, {}
    for stage in ("quantize", "evaluate"):
        with listening() as heard_here, opened() as paths:
            getattr(stages, stage)(layout, toy_recipe(**overrides), SEED)
        events[stage] = heard_here
        shards[stage] = {Path(path).name for path in paths if path.endswith(".bin")}
    return Made(layout, events, shards)


@pytest.fixture(scope="module")
def made(trained: Layout, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """A run in a mode, made once for all tests: `made(ttt__mode="prequant")`."""
    kept: dict[str, Made] = {}

    def find(**overrides: str) -> Made:
        name = json.dumps(overrides, sort_keys=True)
        if name not in kept:
            kept[name] = make(trained, tmp_path_factory.mktemp("mode"), overrides)
        return kept[name]

    return find


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def phases(events: Events) -> list[tuple[str, str]]:
    """(phase, event) of all events but golf.phase."""
    found, phase = [], ""
    for event in events:
        if event[0] == "golf.phase":
            phase = event[1]
        else:
            found.append((phase, event[0].removeprefix("golf.")))
    return found


@pytest.mark.parametrize(
    ("overrides", "of_artifact", "of_score"),
    [
        (CLEAN, [], []),
        ({"ttt__mode": "score_first"}, [], []),
        ({"gptq__calibration": "self"}, [], []),
        (PREQUANT, ["prequant"], ["prequant"]),
        ({"gptq__calibration": "val"}, ["calibration=val"], ["calibration=val"]),
        ({"ttt__mode": "rescore"}, [], ["rescore"]),
        (
            {"ttt__mode": "rescore+score_first+prequant", "gptq__calibration": "val"},
            ["prequant", "calibration=val"],
            ["prequant", "calibration=val", "rescore"],
        ),
    ],
    ids=["clean", "score_first", "self", "prequant", "val", "rescore", "all"],
)
def test_every_violation_is_marked_by_itself_and_nothing_else_is(
    made: Callable[..., Made], overrides: dict[str, str], of_artifact: list[str], of_score: list[str]
) -> None:
    """Artifact metadata, metrics of both stages and logs name each reason; what is legal carries none."""
    run = made(**overrides)
    _, metadata = artifact.read(run.layout.stage("quantize", SEED) / "model.golf")
    assert metadata["contaminated"] == run.metrics("quantize")["contaminated"] == of_artifact
    assert run.metrics("evaluate")["contaminated"] == of_score
    for stage, reasons in (("quantize", of_artifact), ("evaluate", of_score)):
        marked = [line for line in run.log(stage).splitlines() if line.startswith("CONTAMINATED by ")]
        assert marked == ([contamination.warning(reasons)] if reasons else [])


def test_a_fit_reads_validation_alone_and_comes_first(made: Callable[..., Made]) -> None:
    """Quantize opens no training shard; steps happen in the phase fit alone, before any Hessian, and none is scored."""
    run = made(**PREQUANT)
    assert run.shards == {"quantize": {"val_000000.bin"}, "evaluate": {"val_000000.bin"}}
    events = run.events["quantize"]
    assert {phase for phase, event in phases(events) if event == "step"} == {"fit"}
    labels = [event[1] for event in heard(events, "score")]
    assert list(dict.fromkeys(labels)) == ["after averaging", "after the fit"]
    assert not any(event[2] for event in heard(events, "score"))
    names = [event[0].removeprefix("golf.") for event in events]
    assert names.index("calibrate") > max(i for i, name in enumerate(names) if name == "step")
    assert names.count("calibrate") == 1, "the reference has the Hessians that training left"
    assert names[-2:] == ["identity", "end"]
    draws = {event[1]: event for event in heard(events, "draw")}
    assert {draws[draw][2] for step in heard(events, "step") for draw in step[2]} == {"val"}
    (calibrated,) = heard(events, "calibrate")
    kept, _ = checkpoint.load(run.layout.stage("train", SEED) / "calibration.safetensors")
    rows = np.concatenate([draws[draw][5] for draw in calibrated[1]])
    assert {draws[draw][2] for draw in calibrated[1]} == {"train"}
    assert np.array_equal(rows, kept["rows"].numpy())


def test_a_clean_quantize_builds_no_model(made: Callable[..., Made]) -> None:
    """Without fit and with train's calibration nothing is drawn, scored or loaded, and no shard is opened."""
    run = made(**CLEAN)
    assert run.shards["quantize"] == set()
    assert {event[0] for event in run.events["quantize"]} == {
        f"golf.{name}" for name in ("run", "identity", "phase", "artifact", "end")
    }
    assert sorted(path.name for path in run.layout.stage("quantize", SEED).iterdir()) == ["metrics.json", "model.golf"]


def test_the_reference_is_the_clean_run(made: Callable[..., Made]) -> None:
    """The unfitted checkpoint goes through the very steps of a clean run: same weights, same scores, to the bit."""
    clean, run = made(**CLEAN), made(**PREQUANT)
    reference, _ = checkpoint.load(run.layout.stage("quantize", SEED) / "reference.safetensors")
    assert same(reference, clean.tensors())
    assert not same(reference, run.tensors())
    found, wanted = run.metrics("evaluate")["contamination"], clean.metrics("evaluate")
    assert found["after_quantization"]["reference"] == wanted["sequential"]["val_bpb"]
    assert found["after_sliding"]["reference"] == wanted["sliding"]["val_bpb"]
    trained = read_json(run.layout.stage("train", SEED) / "metrics.json")
    assert found["before_quantization"]["reference"] == pytest.approx(trained["pre_quant_val_bpb"], rel=1e-6)
    scores = heard(run.events["evaluate"], "score", "weights", "total")
    labels = list(dict.fromkeys((event[0], event[1]) for event in scores))
    assert labels == [
        ("golf.weights", "artifact loaded"),
        ("golf.score", "sequential"),
        ("golf.score", "sliding"),
        ("golf.total", "sliding"),
        ("golf.weights", "reference loaded"),
        ("golf.score", "reference sequential"),
        ("golf.score", "reference sliding"),
    ]
    assert {event[1] for event in scores if event[0] == "golf.score" and event[2]} == {"sliding"}


def test_what_the_fit_was_worth_adds_up(made: Callable[..., Made]) -> None:
    """Three pairs of scores with their differences, and the shares of the first that are left in the others."""
    run = made(**PREQUANT)
    found, scores = run.metrics("evaluate")["contamination"], run.metrics("evaluate")
    quantized = run.metrics("quantize")
    assert found["before_quantization"] == quantized["before_quantization"]
    assert len(quantized["fit_losses_nats"]) == 2
    assert found["after_quantization"]["fitted"] == scores["sequential"]["val_bpb"]
    assert found["after_sliding"]["fitted"] == scores["sliding"]["val_bpb"] == scores["val_bpb"]
    worth = [found[name] for name in ("before_quantization", "after_quantization", "after_sliding")]
    assert all(pair["worth"] == pair["reference"] - pair["fitted"] > 0 for pair in worth)
    assert found["share_survived_quantization"] == worth[1]["worth"] / worth[0]["worth"]
    assert found["share_survived_sliding"] == worth[2]["worth"] / worth[0]["worth"]
    assert "survived quantization" in run.log("evaluate")
    for told in ("after averaging:", "epoch 1 of 2:", "epoch 2 of 2:", "after the fit:"):
        assert told in run.log("quantize")


def test_a_fit_that_was_worth_nothing_has_no_share() -> None:
    """No division by zero: null."""
    score = Score(1.0, 1, 1, 1)
    found = dict.fromkeys(("sequential", "sliding", "reference sequential", "reference sliding"), score)
    survey = contamination.survey(contamination.pair(1.0, 1.0), found)
    assert survey["share_survived_quantization"] is survey["share_survived_sliding"] is None
    assert "survived" not in contamination.describe(survey)


def test_a_fit_repeats_to_the_byte(made: Callable[..., Made], trained: Layout, tmp_path: Path) -> None:
    """The contaminated run is as repeatable as a clean one."""
    once, again = made(**PREQUANT), make(trained, tmp_path, PREQUANT)
    for stage in ("quantize", "evaluate"):
        folders = [run.layout.stage(stage, SEED) for run in (once, again)]
        files = [{path.name: sha256_file(path) for path in folder.iterdir()} for folder in folders]
        assert files[0] == files[1]
        assert files[0]


@pytest.mark.parametrize("kind", ["val", "self"])
def test_another_calibration_is_written_down_and_makes_another_artifact(made: Callable[..., Made], kind: str) -> None:
    """The file holds what the Hessians were collected on, as announced; val opens validation, self nothing."""
    run = made(gptq__calibration=kind)
    assert run.shards["quantize"] == ({"val_000000.bin"} if kind == "val" else set())
    kept, _ = checkpoint.load(run.layout.stage("quantize", SEED) / "calibration.safetensors")
    events = run.events["quantize"]
    draws = {event[1]: event for event in heard(events, "draw")}
    (calibrated,) = heard(events, "calibrate")
    told = [draws[draw] for draw in calibrated[1]]
    assert {event[2] for event in told} == {kind}
    for name, column in (("shards", 3), ("starts", 4), ("rows", 5)):
        assert np.array_equal(np.concatenate([event[column] for event in told]), kept[name].numpy())
    assert not same(run.tensors(), made(**CLEAN).tensors())
    assert not heard(events, "step", "score")


def test_the_reference_of_a_self_calibrated_fit_writes_its_own_text(made: Callable[..., Made]) -> None:
    """Two texts, that of the fitted model and that of its reference, each in a place of its own in one file."""
    run = made(**PREQUANT, gptq__calibration="self")
    kept, _ = checkpoint.load(run.layout.stage("quantize", SEED) / "calibration.safetensors")
    assert kept["shards"].tolist() == [0] * 16 + [1] * 16
    assert not torch.equal(kept["rows"][:16], kept["rows"][16:])
    reference, _ = checkpoint.load(run.layout.stage("quantize", SEED) / "reference.safetensors")
    assert same(reference, made(gptq__calibration="self").tensors())


def test_score_first_replaces_the_score_and_leaves_the_others(made: Callable[..., Made]) -> None:
    """val_bpb is the adapting pass's, which alone is counted; the fixed passes are those of a clean run."""
    run, clean = made(ttt__mode="score_first").metrics("evaluate"), made(**CLEAN).metrics("evaluate")
    assert (run["score_label"], clean["score_label"], clean["adapted"]) == ("score_first", "sliding", None)
    assert run["val_bpb"] == run["adapted"]["val_bpb"] != run["sliding"]["val_bpb"]
    assert run["sequential"] == clean["sequential"]
    assert run["sliding"] == clean["sliding"]
    assert run["adapted"]["tokens"] == clean["sliding"]["tokens"]
    assert run["share_of_first"] == run["val_bpb"] / run["first_val_bpb"]
    events = made(ttt__mode="score_first").events["evaluate"]
    assert {event[1] for event in heard(events, "score") if event[2]} == {"score_first"}
    (total,) = heard(events, "total")
    assert total[1] == "score_first"
    assert total[2] == pytest.approx(sum(e[5].sum() for e in heard(events, "score") if e[2]))
    assert total[3:] == (run["adapted"]["tokens"], run["adapted"]["bytes"])


def test_rescore_scores_everything_again_and_reports_that(made: Callable[..., Made]) -> None:
    """Two counted passes over the same targets; the second, after all adaptation, is the score."""
    run, legal = made(ttt__mode="rescore"), made(ttt__mode="score_first")
    found = run.metrics("evaluate")
    assert found["score_label"] == "rescore"
    assert found["val_bpb"] == found["adapted"]["val_bpb"] != legal.metrics("evaluate")["val_bpb"]
    counted = [event for event in heard(run.events["evaluate"], "score") if event[2]]
    assert list(dict.fromkeys(event[1] for event in counted)) == ["score_first", "rescore"]
    first = sum(event[5].sum() for event in counted if event[1] == "score_first")
    assert first == pytest.approx(legal.metrics("evaluate")["val_loss_nats"] * found["adapted"]["tokens"])
    assert [event[1] for event in heard(run.events["evaluate"], "total")] == ["rescore"]


def with_other_validation(trained: Layout, root: Path) -> Layout:
    """The trained run over data that differ in validation tokens, and says so nowhere but in their hashes."""
    layout = Layout(root / "runs")
    shutil.copytree(trained.root, layout.root, symlinks=True)
    data = layout.data.resolve()
    layout.data.unlink()
    shutil.copytree(data, layout.data)
    shard = layout.data / "val_000000.bin"
    tokens = read_shard(shard).copy()
    tokens[1000:3000] = np.roll(tokens[1000:3000], 500)
    write_shard(shard, tokens)
    facts = read_json(layout.data / "data.json")
    facts["splits"]["val"]["shards"][0]["sha256"] = sha256_file(shard)
    (layout.data / "data.json").write_text(json.dumps(facts))
    path = layout.stage("train", SEED) / "metrics.json"
    path.write_text(json.dumps(read_json(path) | {"data_digest": sha256_file(layout.data / "data.json")}))
    return layout


@pytest.mark.parametrize("overrides", [CLEAN, PREQUANT, {"gptq__calibration": "val"}], ids=["clean", "fit", "val"])
def test_the_artifact_depends_on_validation_where_it_is_marked(
    made: Callable[..., Made], trained: Layout, tmp_path: Path, overrides: dict[str, str]
) -> None:
    """Other validation tokens, everything else equal: another artifact, to the byte, just where it is contaminated."""
    layout = with_other_validation(trained, tmp_path)
    stages.quantize(layout, toy_recipe(**overrides), SEED)
    twin = Made(layout, {}, {})
    clean = not twin.metrics("quantize")["contaminated"]
    assert same(twin.tensors(), made(**overrides).tensors()) == clean
    artifacts = [run.stage("quantize", SEED) / "model.golf" for run in (layout, made(**overrides).layout)]
    assert (sha256_file(artifacts[0]) == sha256_file(artifacts[1])) == clean


def test_a_fit_to_other_data_than_the_trainings_is_refused(trained: Layout, tmp_path: Path) -> None:
    """The validation that a fit reads is that of the data which the weights were trained with."""
    layout = with_other_validation(trained, tmp_path)
    path = layout.stage("train", SEED) / "metrics.json"
    path.write_text(json.dumps(read_json(path) | {"data_digest": "sha256:other"}))
    with pytest.raises(DataError, match="the weights were trained with sha256:other; run `dvc repro train@1`"):
        stages.quantize(layout, toy_recipe(**PREQUANT), SEED)
    assert not layout.stage("quantize", SEED).exists()


def copy(run: Made, root: Path) -> Layout:
    """A copy without its evaluation."""
    shutil.copytree(run.layout.root, root / "runs", symlinks=True)
    layout = Layout(root / "runs")
    for folder in (layout.stage("evaluate", SEED), layout.clock("evaluate", SEED)):
        shutil.rmtree(folder)
    return layout


@pytest.mark.parametrize(("of", "evaluated"), [(PREQUANT, CLEAN), (CLEAN, PREQUANT)], ids=["fitted", "clean"])
def test_recipe_and_artifact_must_agree_about_the_fit(
    made: Callable[..., Made], tmp_path: Path, of: dict[str, str], evaluated: dict[str, str]
) -> None:
    """A fitted artifact can't be evaluated as a clean one, nor a clean one as if it had been fitted."""
    layout = copy(made(**of), tmp_path)
    with pytest.raises(ArtifactError, match=r"fitted to validation, ttt\.mode is .*; run `dvc repro quantize@1`"):
        stages.evaluate(layout, toy_recipe(**evaluated), SEED)


def test_a_mark_that_was_taken_off_is_seen(made: Callable[..., Made], tmp_path: Path) -> None:
    """An artifact without its mark, declared by its new digest, contradicts what quantize wrote."""
    layout = copy(made(**PREQUANT), tmp_path)
    path = layout.stage("quantize", SEED) / "model.golf"
    model, facts = artifact.read(path)
    artifact.write(path, model, metadata=facts | {"contaminated": []}, quality=1)
    told = layout.stage("quantize", SEED) / "metrics.json"
    told.write_text(json.dumps(read_json(told) | {"artifact_sha256": sha256_file(path)}))
    with pytest.raises(ArtifactError, match=r"marked contaminated by \[\], quantize wrote \['prequant'\]"):
        stages.evaluate(layout, toy_recipe(), SEED)


@pytest.mark.parametrize("fault", ["missing", "changed"])
def test_another_reference_is_refused(made: Callable[..., Made], tmp_path: Path, fault: str) -> None:
    """The worth is measured against the reference that quantize wrote, or not at all."""
    layout = copy(made(**PREQUANT), tmp_path)
    path = layout.stage("quantize", SEED) / "reference.safetensors"
    if fault == "missing":
        path.unlink()
    else:
        weights, _ = checkpoint.load(path)
        checkpoint.save(path, {name: 2 * value for name, value in weights.items()}, {})
    with pytest.raises(ArtifactError, match=r"reference\.safetensors is .*, expected sha256:.*; run `dvc repro quant"):
        stages.evaluate(layout, toy_recipe(**PREQUANT), SEED)
