"""One training: it repeats, resumes, replays and warms up to the same bits, and announces what it does."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.listener import heard, listening
from tests.toy import toy_recipe
from trainer import checkpoint
from trainer.data import DataSet
from trainer.device import pair
from trainer.distributed import World, fingerprint
from trainer.errors import ArtifactError, GolfError
from trainer.files import read_json
from trainer.runlog import RunLog, run_log
from trainer.training import Average, Training

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def training(data: DataSet, *, seed: int = 1, **overrides: Any) -> Training:
    log = RunLog(None, stage="train", seed=seed)
    return Training(toy_recipe(**overrides), data, dataclasses.replace(ALONE), seed=seed, log=log)


def run(data: DataSet, folder: Path, *, seed: int = 1, **overrides: Any) -> dict[str, Any]:
    """A whole training into folder/out; its metrics."""
    folder.mkdir(exist_ok=True)
    return training(data, seed=seed, **overrides).run(folder / "out", folder / "resume")


def files_of(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((folder / "out").iterdir())}


class KilledError(Exception):
    """Stands for SIGKILL in the middle of a step."""


def run_until_killed(data: DataSet, folder: Path, at: int, **overrides: Any) -> None:
    """A training that dies before its step `at`."""
    one = training(data, **overrides)
    whole_step = one.step

    def dying(number: int, *rest: Any) -> torch.Tensor:
        if number == at:
            raise KilledError
        return whole_step(number, *rest)

    one.step = dying  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        one.run(folder / "out", folder / "resume")


def test_two_runs_of_a_seed_are_equal_to_the_byte(toy_data: DataSet, tmp_path: Path) -> None:
    """Every file a training leaves is the same bytes the second time."""
    run(toy_data, tmp_path / "a")
    run(toy_data, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(files_of(tmp_path / "a")) == 7


def test_seeds_give_other_weights_losses_and_draws(toy_data: DataSet, tmp_path: Path) -> None:
    """Another seed is another start, another order of batches and another result."""
    found = [run(toy_data, tmp_path / str(seed), seed=seed) for seed in (1, 2, 3)]
    for name in ("weights_digest", "leader_draws_digest", "first_val_bpb", "pre_quant_val_bpb"):
        assert len({metrics[name] for metrics in found}) == 3, name


@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_a_killed_training_goes_on_to_the_same_bits(toy_data: DataSet, tmp_path: Path, at: int) -> None:
    """Killed before its first checkpoint, at one, or between two: run again, the outputs are those of a whole run."""
    run(toy_data, tmp_path / "whole")
    run_until_killed(toy_data, tmp_path / "killed", at)
    assert not (tmp_path / "killed" / "out").exists()
    run(toy_data, tmp_path / "killed")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_checkpoint_of_other_inputs_is_not_used(toy_data: DataSet, tmp_path: Path) -> None:
    """A checkpoint of another recipe is left alone: the training starts anew and equals an undisturbed one."""
    run_until_killed(toy_data, tmp_path / "a", 5)
    run(toy_data, tmp_path / "a", qk_gain=5.0)
    run(toy_data, tmp_path / "b", qk_gain=5.0)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("latest", ["[]", "{}", '{"step": "5"}'])
def test_a_damaged_note_of_the_last_checkpoint_starts_anew(toy_data: DataSet, tmp_path: Path, latest: str) -> None:
    """What does not say of which inputs it is, is not used, and does not stop the run."""
    run_until_killed(toy_data, tmp_path / "a", 5)
    (tmp_path / "a" / "resume" / "latest.json").write_text(latest)
    run(toy_data, tmp_path / "a")
    run(toy_data, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(toy_data: DataSet, fault: str) -> None:
    """A state with a tensor less, or of another shape, never becomes this training's."""
    one = training(toy_data)
    saved = {name: tensor.clone() for name, tensor in one.state().items()}
    if fault == "missing":
        del saved["model.embedding"]
    else:
        saved["model.embedding"] = saved["model.embedding"][:1]
    with pytest.raises(ArtifactError, match="holds other tensors than this model"):
        one.restore(saved, why="test")


def test_a_resumed_training_announces_no_draw_twice(toy_data: DataSet, tmp_path: Path) -> None:
    """What a resumed run hands out begins with the step that it resumes at."""
    run_until_killed(toy_data, tmp_path, 7)
    with listening() as events:
        run(toy_data, tmp_path)
    steps = [event for event in events if event[0] == "golf.step"]
    assert steps[0][1] == 6
    assert next(event[1] for event in events if event[0] == "golf.draw") == steps[0][2][0]


def test_a_run_by_the_clock_is_replayed_from_its_schedule(toy_data: DataSet, tmp_path: Path) -> None:
    """Learning rates, loop switch and last step that the clock decided come again from schedule.json, to the bit."""
    by_clock = {"train__steps": 0, "train__seconds": 0.6, "train__reserve_seconds": 0.1, "train__checkpoint_every": 0}
    first = run(toy_data, tmp_path / "clock", **by_clock)
    schedule = tmp_path / "clock" / "out" / "schedule.json"
    again = run(toy_data, tmp_path / "replay", **by_clock, train__replay=str(schedule))
    assert (again["steps"], again["loop_step"]) == (first["steps"], first["loop_step"])
    assert again["weights_digest"] == first["weights_digest"]
    assert (tmp_path / "replay" / "out" / "schedule.json").read_bytes() == schedule.read_bytes()


def test_warm_up_leaves_no_trace_in_any_state(toy_data: DataSet) -> None:
    """After warm-up steps of both forms, every tensor of the state and torch's own generator are as before."""

    def states(one: Training) -> dict[str, bytes]:
        found = {name: tensor.clone().numpy().tobytes() for name, tensor in one.state().items()}
        return found | {"generator": torch.get_rng_state().numpy().tobytes()}

    one = training(toy_data, train__warmup_steps=2, train__micro_sequences=3)
    before = states(one)
    steps = []
    one.optimizers.step, step = lambda *a: steps.append(a) or step(*a), one.optimizers.step  # type: ignore[method-assign,func-returns-value]
    one.warm_up()
    assert len(steps) == 2 * 2 * 2, "two steps of two forms for batches of three and of two sequences"
    assert states(one) == before
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in one.gpt.parameters())


def test_warm_up_changes_nothing_in_the_result(toy_data: DataSet, tmp_path: Path) -> None:
    """A training with compile warm-up ends with the weights of one without."""
    plain, warmed = run(toy_data, tmp_path / "a"), run(toy_data, tmp_path / "b", train__warmup_steps=1)
    assert warmed["weights_digest"] == plain["weights_digest"]


def test_micro_batches_add_up_to_the_whole_batch(toy_data: DataSet, tmp_path: Path) -> None:
    """Accumulating over micro-batches of any size trains the same model, up to the order of sums."""
    losses = [run(toy_data, tmp_path / str(m), train__micro_sequences=m)["pre_quant_val_loss_nats"] for m in (1, 3, 8)]
    assert max(losses) - min(losses) < 1e-4 * losses[0]


def test_a_training_announces_draws_steps_scores_and_changes_of_weights(toy_data: DataSet, tmp_path: Path) -> None:
    """Every step names draws that were handed out before it, each used once; swaps of weights are declared."""
    with listening() as events:
        metrics = run(toy_data, tmp_path / "run")
    steps = [event for event in events if event[0] == "golf.step"]
    assert [event[1] for event in steps] == list(range(metrics["steps"]))
    handed_out: set[int] = set()
    used: list[int] = []
    for event in events:
        if event[0] == "golf.draw":
            handed_out.add(event[1])
        elif event[0] == "golf.step":
            assert set(event[2]) <= handed_out
            used.extend(event[2])
    assert len(used) == len(set(used))
    # What was drawn and not used by a step are the calibration batches, below zero, and what was read ahead: nothing.
    assert {draw for draw in handed_out if draw >= 0} == set(used)
    assert {draw for draw in handed_out if draw < 0} == set(range(-8, 0))
    labels = [event[1] for event in events if event[0] == "golf.score"]
    assert list(dict.fromkeys(labels)) == [
        "train@0, current weights",
        "train@4, current weights",
        "train@8, current weights",
        "train@8, averaged weights",
    ]
    assert ("golf.weights", "average swapped in") in events
    assert not any(event[2] for event in heard(events, "score")), "nothing that training scores is counted"
    calibrated = heard(events, "calibrate")
    assert [sorted(event[1]) for event in calibrated] == [list(range(-8, 0))]
    assert calibrated[0][2] > steps[-1][5]
    looped = [event[4] for event in steps]
    assert looped == [step >= metrics["loop_step"] for step in range(metrics["steps"])]


def test_the_files_hold_what_later_stages_need(toy_data: DataSet, tmp_path: Path) -> None:
    """Weights by name, a Hessian for each input site, calibration rows that are the tokens at the ranges they name."""
    metrics = run(toy_data, tmp_path)
    weights, _ = checkpoint.load(tmp_path / "out" / "model.safetensors")
    hessians, about = checkpoint.load(tmp_path / "out" / "hessians.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == metrics["parameters"]
    assert set(__import__("json").loads(about["sites"]).values()) == set(hessians)
    calibration, _ = checkpoint.load(tmp_path / "out" / "calibration.safetensors")
    assert len(calibration["rows"]) == metrics["calibration_sequences"]
    for row, shard, start in zip(*(calibration[name].numpy() for name in ("rows", "shards", "starts")), strict=True):
        assert (toy_data.train[shard].tokens[start : start + len(row)] == row).all()
    assert metrics["identity_at_end"] == {name: metrics[name] for name in metrics["identity_at_end"]}


def test_a_row_becomes_inputs_and_the_targets_after_them() -> None:
    """Targets are the inputs moved by one, and ids above 32,767 keep their value on the way through 16 bits."""
    rows = np.array([[0, 1, 40_000, 65_535], [32_767, 32_768, 5, 6]], dtype=np.uint16)
    inputs, targets = pair(rows, torch.device("cpu"))
    assert inputs.tolist() == [[0, 1, 40_000], [32_767, 32_768, 5]]
    assert targets.tolist() == [[1, 40_000, 65_535], [32_768, 5, 6]]


def test_the_average_is_the_formula(toy_data: DataSet) -> None:
    """e ← d·e + (1 - d)·w from step 0, against a plain float64 loop."""
    one = training(toy_data)
    average = Average(one.gpt, decay=0.9)
    weight = one.gpt.embedding
    expected = weight.detach().double().clone()
    for step in range(5):
        with torch.no_grad():
            weight.add_(0.01 * (step + 1))
        average.update()
        expected = 0.9 * expected + 0.1 * weight.detach().double()
    average.swap_in()
    assert torch.allclose(weight.detach().double(), expected, atol=1e-6)


def test_a_loss_that_is_no_number_stops_the_run_by_name(toy_data: DataSet, tmp_path: Path) -> None:
    """A training that diverges says so, at which step, and writes nothing."""
    one = training(toy_data)
    with torch.no_grad():
        one.gpt.embedding.fill_(math.nan)
    with pytest.raises(GolfError, match="the loss at step 1 is nan"):
        one.run(tmp_path / "out", tmp_path / "resume")
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_sees_one_bit(toy_data: DataSet) -> None:
    """Any change of any parameter changes the fingerprint; none leaves it."""
    one = training(toy_data)
    before = fingerprint(one.gpt)
    assert fingerprint(one.gpt) == before
    for parameter in itertools.islice(one.gpt.parameters(), 3):
        flat = parameter.data.view(-1)
        kept = flat[-1].clone()
        flat[-1] = torch.nextafter(kept, torch.tensor(math.inf))
        assert fingerprint(one.gpt) != before
        flat[-1] = kept
    assert fingerprint(one.gpt) == before


def test_the_log_tiles_the_time_of_the_stage(toy_data: DataSet, tmp_path: Path) -> None:
    """Phases, `other` included, add up to the stage's seconds; a phase inside another is not counted twice."""
    (tmp_path / "log").mkdir()
    with run_log(tmp_path / "log", stage="train", seed=1) as log, listening() as events:
        Training(toy_recipe(), toy_data, ALONE, seed=1, log=log).run(tmp_path / "out", tmp_path / "resume")
    times = read_json(tmp_path / "log" / "times.json")
    phases = {phase["name"]: phase["seconds"] for phase in times["phases"]}
    assert {"training", "validation", "hessians", "checkpoints", "other"} <= set(phases)
    assert sum(phases.values()) == pytest.approx(times["total_seconds"], abs=0.01)
    assert all(seconds >= 0 for seconds in phases.values())
    announced = [event[1] for event in heard(events, "phase")]
    assert set(announced) == set(phases)
    assert all(before != after for before, after in itertools.pairwise(announced)), "only switches are announced"
    assert announced[-1] == "other"
    events = (tmp_path / "log" / "log.jsonl").read_text().splitlines()
    assert sum('"event": "validation"' in event for event in events) == 4
