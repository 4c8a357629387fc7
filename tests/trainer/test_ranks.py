"""Several processes do what one does: the same sequences in every step, the same model and score up to rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toy import toy_recipe
from trainer import distributed, stages
from trainer import recipe as recipes
from trainer.distributed import World
from trainer.errors import ResourceError
from trainer.files import read_json
from trainer.layout import Layout

ROOT = Path(__file__).parents[2]
WORLDS = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def trained(toy_layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """World size → the folder of a toy training by that many processes."""
    found = {}
    for size in WORLDS:
        runs = tmp_path_factory.mktemp(f"world{size}")
        (runs / "data").symlink_to(toy_layout.data)
        run(runs, size, "train")
        found[size] = runs
    return found


def run(runs: Path, size: int, stage: str, *overrides: str) -> None:
    command = [sys.executable, "-m", "tests.trainer.ranks_program", str(runs), str(size), stage, *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def heard(runs: Path, size: int, stage: str = "train") -> list[list[dict[str, Any]]]:
    return [json.loads((runs / f"heard.{stage}.{rank}.json").read_text()) for rank in range(size)]


def losses(runs: Path) -> list[float]:
    rows = (runs / "train" / "5" / "train_loss.tsv").read_text().splitlines()[1:]
    return [float(row.split("\t")[1]) for row in rows]


def test_a_step_trains_on_the_same_sequences_in_every_world(trained: dict[int, Path]) -> None:
    """The set of sequences of step n is equal for 1, 2, 4 and 8 processes, exactly."""
    by_world = {}
    for size, runs in trained.items():
        ranks = heard(runs, size)
        assert len({len(steps) for steps in ranks}) == 1
        by_world[size] = [sorted(tuple(s) for steps in ranks for s in steps[n]["sequences"]) for n in range(8)]
        assert all(len(set(step)) == 8 for step in by_world[size])
    assert all(steps == by_world[1] for steps in by_world.values())


def test_the_loss_curves_agree_within_rounding(trained: dict[int, Path]) -> None:
    """The only difference is the order of sums in fp32: losses agree to 1e-3 nats after 8 steps."""
    curves = {size: losses(runs) for size, runs in trained.items()}
    for size in WORLDS[1:]:
        assert curves[size] == pytest.approx(curves[1], abs=1e-3), size
    finals = {size: read_json(runs / "train" / "5" / "metrics.json") for size, runs in trained.items()}
    scores = [metrics["pre_quant_val_bpb"] for metrics in finals.values()]
    assert max(scores) - min(scores) < 1e-3


def test_ranks_take_every_decision_together(trained: dict[int, Path]) -> None:
    """Every rank takes the same steps, with the loops on at the same ones, in the same order of collectives."""
    for size, runs in trained.items():
        told = [[(row["step"], row["looped"], row["order"]) for row in steps] for steps in heard(runs, size)]
        assert all(steps == told[0] for steps in told), size
        orders = [order for *_, order in told[0]]
        assert orders == sorted(set(orders))


CHUNK = 192
"""Tokens of a chunk: 3 sequences and, at 4 a batch, 2 batches of windows, so 2 ranks share unequally and 4 idle."""


@pytest.fixture(scope="module")
def adapted(trained: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """World size → the folder of a score-first evaluation of one artifact."""
    found = {}
    overrides = {"ttt.mode": "score_first", "ttt.chunk_tokens": CHUNK, "ttt.chunk_lr": 0.05, "eval.batch_windows": 4}
    recipe = toy_recipe(**{name.replace(".", "__"): value for name, value in overrides.items()})
    for size in (1, 2, 4):
        runs = tmp_path_factory.mktemp(f"adapted{size}") / "runs"
        runs.mkdir()
        for name in ("data", "train"):
            (runs / name).symlink_to((trained[1] / name).resolve())
        stages.quantize(Layout(runs), recipe, 5)
        run(runs, size, "evaluate", *(f"{name}={value}" for name, value in overrides.items()))
        found[size] = runs
    return found


def test_ranks_adapt_to_the_same_score(adapted: dict[int, Path]) -> None:
    """1, 2 and 4 processes score every target once and reach the same total up to rounding (weights are compared)."""
    found = {size: read_json(runs / "evaluate" / "5" / "metrics.json") for size, runs in adapted.items()}
    for size, runs in adapted.items():
        told = [w for rank in heard(runs, size, "evaluate") for event in rank for w in event.get("windows", ())]
        targets = sorted(target for begin, count in told for target in range(begin, begin + count))
        assert targets == list(range(found[size]["adapted"]["tokens"])), size
        assert found[size]["val_loss_nats"] == pytest.approx(found[1]["val_loss_nats"], rel=1e-5), size
    assert abs(found[1]["val_bpb"] - found[1]["sliding"]["val_bpb"]) > 1e-3, "the control: it adapted"


def test_every_rank_scores_before_any_rank_trains(adapted: dict[int, Path]) -> None:
    """A target's score lies at least one collective before each step, of any rank, on a sequence that holds it."""
    for size, runs in adapted.items():
        ranks = heard(runs, size, "evaluate")
        scored = {
            target: event["order"]
            for rank in ranks
            for event in rank
            for begin, count in event.get("windows", ())
            for target in range(begin, begin + count)
        }
        steps = [event for rank in ranks for event in rank if "step" in event]
        assert steps
        for step in steps:
            for _, start in step["sequences"]:
                assert max(scored[target] for target in range(start, start + 64)) < step["order"]


def test_ranks_adapt_in_step(adapted: dict[int, Path]) -> None:
    """All ranks step equally often at the same collectives, share out each chunk's sequences, and no draw twice."""
    for size, runs in adapted.items():
        ranks = [[event for event in rank if "step" in event] for rank in heard(runs, size, "evaluate")]
        orders = [[(event["step"], event["order"]) for event in rank] for rank in ranks]
        assert all(told == orders[0] for told in orders), size
        draws = [draw for rank in ranks for event in rank for draw in event["draws"]]
        assert len(draws) == len(set(draws)), size
        for number, together in enumerate(zip(*ranks, strict=True)):
            starts = sorted(start for event in together for _, start in event["sequences"])
            first = number // 2 * CHUNK  # two epochs a chunk
            assert starts == list(range(first, first + CHUNK, 64)), size


def test_one_log_and_one_set_of_files_is_left(trained: dict[int, Path]) -> None:
    """Whatever the number of processes, the leader alone writes, and no checkpoint or partial folder stays."""
    for runs in trained.values():
        assert sorted(p.name for p in (runs / "train").iterdir()) == ["5"]
        assert [p.name for p in (runs / "clock").iterdir()] == ["clock.train.5"]
        assert sorted(p.name for p in (runs / "clock" / "clock.train.5").iterdir()) == [
            "log.jsonl",
            "log.txt",
            "times.json",
        ]


def test_a_rank_that_fails_ends_all_of_them_with_its_own_words(toy_layout: Layout, tmp_path: Path) -> None:
    """Trouble that one rank alone sees is said once, the others only say that they lost it, and nothing hangs."""
    layout = Layout(tmp_path / "runs")
    (layout.stage("train", 5) / "old").mkdir(parents=True)
    layout.data.symlink_to(toy_layout.data)
    layout.recipe.write_text(json.dumps(recipes.as_dict(toy_recipe(dist__ranks=2))))
    command = [sys.executable, "-m", "trainer", "launch", "train", "--seed", "5", "--runs", str(layout.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("train/5 is not empty; remove it") == 1
    assert "internal error" not in done.stderr


@pytest.mark.parametrize("size", WORLDS)
def test_virtual_ranks_are_dealt_in_turn(size: int) -> None:
    """Rank r of R trains for the virtual ranks r, r + R, …, and together the ranks have each of the 8 once."""
    dealt = [World(rank=rank, size=size, device=torch.device("cpu")).virtual_ranks for rank in range(size)]
    assert dealt == [tuple(range(rank, 8, size)) for rank in range(size)]
    assert sorted(virtual for ranks in dealt for virtual in ranks) == list(range(8))


def test_a_wrong_number_of_processes_is_refused() -> None:
    """A recipe for 2 ranks does not start as 1 process, and the message says how to start it."""
    with pytest.raises(ResourceError, match=r"1 processes run but dist\.ranks is 2, start with `golf-train launch`"):  # noqa: SIM117
        with distributed.world(toy_recipe(dist__ranks=2)):
            pass


def test_a_missing_gpu_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """device=cuda on a machine without one is one line, not a trace from torch."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ResourceError, match="device is cuda but rank 0 finds 0 GPUs"):  # noqa: SIM117
        with distributed.world(toy_recipe(device="cuda")):
            pass
