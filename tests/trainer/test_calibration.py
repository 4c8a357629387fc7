"""Calibration sequences: those of training give its Hessians again, and the others are what they say they are."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.listener import heard, listening
from tests.toy import toy_recipe
from tests.trainer.ranks import off_start
from trainer import calibration, checkpoint
from trainer.data import DataSet
from trainer.distributed import World
from trainer.errors import ArtifactError
from trainer.loader import Batch
from trainer.model import GPT
from trainer.runlog import RunLog
from trainer.scoring import Targets
from trainer.tokenizer import BOS
from trainer.training import Training

T = 64
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class Successor(nn.Module):
    """Logits that leave no doubt: after id comes id + 1."""

    def forward(self, ids: Tensor, targets: Tensor | None, looped: bool) -> Tensor:
        assert targets is None
        assert looped
        logits = torch.zeros(*ids.shape, 400)
        return logits.scatter(-1, ((ids + 1) % 400)[..., None], 1000.0)


def test_the_sequences_that_training_left_give_its_hessians_again(toy_data: DataSet, tmp_path: Path) -> None:
    """Read from the file and collected with the same weights: equal bit for bit to what training wrote."""
    log = RunLog(None, stage="train", seed=1)
    training = Training(toy_recipe(), toy_data, dataclasses.replace(ALONE), seed=1, log=log)
    training.run(tmp_path / "out", tmp_path / "resume")
    batches = calibration.read(tmp_path / "out" / "calibration.safetensors", toy_recipe(), draws=itertools.count())
    gpt = GPT(toy_recipe(), seed=0)
    checkpoint.put(
        gpt, checkpoint.load(tmp_path / "out" / "model.safetensors")[0], where=tmp_path, why="checkpoint loaded"
    )
    found = calibration.collect(gpt, batches, dataclasses.replace(ALONE))
    wanted, _ = checkpoint.load(tmp_path / "out" / "hessians.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[site], wanted[site]) for site in wanted)


def test_collecting_announces_draws_and_then_what_they_went_into() -> None:
    """Each batch is announced as it is handed out, with its ids; at the end all draws are named once."""
    rows = np.arange(2 * 2 * (T + 1), dtype=np.uint16).reshape(2, 2, T + 1) % 400
    batches = [Batch(7 + i, "train", rows[i], np.zeros(2, np.int32), np.arange(2)) for i in range(2)]
    world = dataclasses.replace(ALONE, collectives=5)
    with listening() as events:
        calibration.collect(off_start(), batches, world)
    assert [event[:3] for event in heard(events, "draw")] == [("golf.draw", 7, "train"), ("golf.draw", 8, "train")]
    assert heard(events, "calibrate") == [("golf.calibrate", (7, 8), 6)]
    assert events[-1][0] == "golf.calibrate"


@pytest.mark.parametrize("fault", ["length", "count", "missing", "vocabulary", "negative"])
def test_a_file_that_holds_other_sequences_is_refused(tmp_path: Path, fault: str) -> None:
    """What is not the recipe's calibration never becomes Hessians."""
    tensors = {"rows": torch.zeros(16, T + 1).int(), "shards": torch.zeros(16).int(), "starts": torch.zeros(16).long()}
    path = tmp_path / "calibration.safetensors"
    checkpoint.save(path, tensors, {})
    assert len(calibration.read(path, toy_recipe(), draws=itertools.count())) == 8
    if fault == "length":
        tensors["rows"] = tensors["rows"][:, 1:]
    elif fault == "count":
        tensors = {name: tensor[1:] for name, tensor in tensors.items()}
    elif fault == "missing":
        del tensors["starts"]
    else:
        tensors["rows"][3, 3] = 400 if fault == "vocabulary" else -1
    checkpoint.save(path, tensors, {})
    with pytest.raises(ArtifactError, match="does not hold the recipe's calibration sequences; run the stage train"):
        calibration.read(path, toy_recipe(), draws=itertools.count())


def test_saving_and_reading_are_inverse(tmp_path: Path) -> None:
    """Rows, shards and starts come back as they were, batch by batch."""
    random = np.random.default_rng(0)
    batches = [
        Batch(
            i, "train", random.integers(0, 400, (2, T + 1)).astype(np.uint16), np.full(2, i, np.int32), np.arange(2) + i
        )
        for i in range(8)
    ]
    calibration.save(tmp_path / "x", batches)
    for before, after in zip(
        batches, calibration.read(tmp_path / "x", toy_recipe(), draws=itertools.count()), strict=True
    ):
        assert (before.draw, before.split) == (after.draw, after.split)
        for name in ("rows", "shards", "starts"):
            assert np.array_equal(getattr(before, name), getattr(after, name))
            assert getattr(before, name).dtype == getattr(after, name).dtype


def test_validation_sequences_are_the_first_ones_or_what_there_is(toy_data: DataSet) -> None:
    """As many as the recipe calibrates with, from the beginning of the stream, and no more than it has."""
    targets = Targets.of(toy_data, length=T)
    found = calibration.of_validation(targets, toy_recipe(), draws=itertools.count(3))
    assert [batch.draw for batch in found] == list(range(3, 11))
    assert np.concatenate([batch.starts for batch in found]).tolist() == list(range(0, 16 * T, T))
    assert all(batch.split == "val" for batch in found)
    few = calibration.of_validation(targets, toy_recipe(calibration__sequences=1000), draws=itertools.count())
    assert sum(len(batch.rows) for batch in few) == len(targets) // T


def test_a_draw_from_validation_says_where_it_stands() -> None:
    """Shard and start find the row's first token, also behind an empty shard; a row runs on into the next shard."""
    parts = [np.arange(70), np.arange(0), np.arange(200, 230), np.arange(300, 400)]
    tokens = np.concatenate(parts).astype(np.uint16)
    targets = Targets(tokens, np.ones(len(tokens) - 1, np.int64), np.array([0, 70, 70, 100]))
    batch = targets.batch(5, np.array([0, 64, 70, 128]), length=T)
    assert batch.shards.tolist() == [0, 0, 2, 3]
    assert batch.starts.tolist() == [0, 64, 0, 28]
    for row, shard, start in zip(batch.rows, batch.shards, batch.starts, strict=True):
        follows = np.concatenate(parts[shard:])[start : start + T + 1]
        assert row.tolist() == follows.tolist()


def test_the_model_writes_from_bos_on_what_its_logits_say() -> None:
    """Row by row BOS, then each token drawn from the logits at the one before."""
    generator = torch.Generator().manual_seed(1)
    rows = calibration.write(Successor(), 3, length=T, generator=generator)
    assert rows.dtype == np.uint16
    assert rows.tolist() == [[(BOS + i) % 400 for i in range(T + 1)]] * 3


def written(seed: int) -> list[Batch]:
    return calibration.of_the_model(
        off_start(), toy_recipe(), seed=seed, shard=1, draws=itertools.count(), device=torch.device("cpu")
    )


def test_written_text_repeats_by_its_seed_and_is_not_one_sequence_over_and_over() -> None:
    """The same seed writes the same text, another seed another; sequences differ, each in a place of its own."""
    rows = {seed: np.concatenate([batch.rows for batch in written(seed)]) for seed in (1, 2)}
    assert np.array_equal(rows[1], np.concatenate([batch.rows for batch in written(1)]))
    assert not np.array_equal(rows[1], rows[2])
    assert len(np.unique(rows[1], axis=0)) == len(rows[1]) == 16
    assert (rows[1][:, 0] == BOS).all()
    batches = written(1)
    assert np.concatenate([batch.starts for batch in batches]).tolist() == list(range(0, 16 * (T + 1), T + 1))
    assert {(batch.split, *batch.shards.tolist()) for batch in batches} == {("self", 1, 1)}


def test_text_is_drawn_at_the_temperature() -> None:
    """Frequencies of the first token are softmax(logits/0.8), within 5 standard deviations."""

    class Two(nn.Module):
        def forward(self, ids: Tensor, targets: Tensor | None, looped: bool) -> Tensor:
            return torch.tensor([0.0, 1.0]).expand(*ids.shape, 2)

    rows = calibration.write(Two(), 10_000, length=1, generator=torch.Generator().manual_seed(0))
    share = 1 / (1 + np.exp(-1 / 0.8))
    assert rows[:, 1].mean() == pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / 10_000))
