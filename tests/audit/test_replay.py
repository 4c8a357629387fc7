"""Replay: the loader, run again, gives every draw and step of an honest ledger and contradicts a forged one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit import replay
from audit.errors import RunError, SplitError
from audit.evidence import Replay, Stage
from audit.ledger import Writer
from audit.records import LISTS
from audit.replay import Plan, read_recipe, replay_draws
from audit.shards import Shard
from audit.splits import Data, Split
from tests.audit.forgery import create
from tests.toy import toy_recipe
from trainer import recipe as recipes
from trainer.loader import Batch, Loader
from trainer.settings import VIRTUAL_RANKS

SEED, STEPS = 5, 4
RECIPE = toy_recipe(
    train__sequence_length=16,
    train__sequences_per_rank=2,
    train__micro_sequences=3,
    eval__stride=16,
    ttt__chunk_tokens=16,
)
TOKENS = np.random.default_rng(0).integers(0, 400, 9 * 500).astype(np.uint16)
TRAIN = Split("train", tuple(Shard(Path(f"train_{i}.bin"), (), part) for i, part in enumerate(np.split(TOKENS, 9))))
DATA = Data(splits={"train": TRAIN}, tokenizer=None, others=())

Record = tuple[Any, ...]
"""("draw", id, split, shards, starts), ("step", step, ids) or ("calibration", ids)."""
Edit = Callable[[list[Record]], list[Record]]


def drawn(batch: Batch) -> Record:
    return "draw", batch.draw, batch.split, batch.shards, batch.starts


def training(rank: int, ranks: int, *, first: int = 0, steps: int = STEPS) -> list[Record]:
    """What an honest rank records: by the trainer's own loader, which reads the tokens."""
    mine = tuple(range(rank, VIRTUAL_RANKS, ranks))
    loader = Loader(shards=TRAIN.shards, length=16, sequences=2, micro=3, seed=SEED, virtual_ranks=mine)  # type: ignore[arg-type]
    found: list[Record] = []
    for step, batches in zip(range(first, first + steps), loader.steps(first), strict=False):
        found += [drawn(batch) for batch in batches]
        found.append(("step", step, [batch.draw for batch in batches]))
    calibration = loader.calibration(first + steps, batches=8, sequences=2)
    found += [drawn(batch) for batch in calibration]
    return [*found, ("calibration", [batch.draw for batch in calibration])]


def taken_over(*, times: int = 1) -> list[Record]:
    """What quantize records of the sequences that training left, under ids of its own."""
    batches = Plan(RECIPE, DATA, SEED).calibration(STEPS, range(VIRTUAL_RANKS)) * times
    found = [("draw", number, batch.split, batch.shards, batch.starts) for number, batch in enumerate(batches)]
    return [*found, ("calibration", list(range(len(batches))))]


def write(writer: Writer, record: Record) -> None:
    if record[0] == "step":
        writer.step(record[1], record[2], lr=1.0, looped=False, collectives=0)
    elif record[0] == "calibration":
        writer.calibration(record[1], collectives=0)
    else:
        rows = np.zeros(len(record[4]), dtype=LISTS["draw"][1])
        rows["shard"], rows["start"] = record[3][: len(rows)], record[4]
        writer.draw(record[1], record[2], rows, digest=bytes(32), checksum=0, length=16)


def stage(
    folder: Path, name: str, parts: Sequence[Sequence[Record]], *, seed: int = SEED, sealed: bool = True
) -> Stage:
    """A ledger of these records, rank by rank."""
    for rank, records in enumerate(parts):
        writer = create(folder / f"rank{rank}.ledger", rank=rank, ranks=len(parts))
        writer.note("run", {"stage": name, "seed": seed, "length": 16})
        for record in records:
            write(writer, record)
        if sealed:
            writer.seal({"ended": "announced"})
        else:
            writer.flush()
    return Stage.open(folder)


def run(*stages: Stage, seed: int = SEED) -> Replay:
    return replay_draws(stages, DATA, RECIPE, seed=seed)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_an_honest_training_is_drawn_again(tmp_path: Path, ranks: int) -> None:
    """Every draw of every rank comes out of the loader, in its order, with the steps and the calibration."""
    found = run(stage(tmp_path, "train", [training(rank, ranks) for rank in range(ranks)]))
    batches = -(-2 * VIRTUAL_RANKS // ranks // 3) * ranks
    assert found == Replay(steps=STEPS, draws=STEPS * batches + 8, mismatches=(), reason="")


def test_the_replay_reads_no_token() -> None:
    """Places come out as the trainer's loader gives them, without a row and without an announcement."""
    mine = (0, 2, 4, 6)
    real = Loader(shards=TRAIN.shards, length=16, sequences=2, micro=3, seed=SEED, virtual_ranks=mine)  # type: ignore[arg-type]
    for batch, place in zip(next(real.steps(3)), next(Plan(RECIPE, DATA, SEED).loader(mine).steps(3)), strict=True):
        assert (place.draw, place.split, place.rows.shape) == (batch.draw, batch.split, (len(batch.starts), 0))
        assert np.array_equal(place.shards, batch.shards)
        assert np.array_equal(place.starts, batch.starts)


def changed(index: int, place: int, change: Callable[[Any], Any]) -> Edit:
    """One value of one record replaced."""

    def edit(records: list[Record]) -> list[Record]:
        record = list(records[index])
        record[place] = change(record[place])
        return [*records[:index], tuple(record), *records[index + 1 :]]

    return edit


def moved(starts: np.ndarray) -> np.ndarray:
    return starts + np.eye(1, len(starts), dtype=np.int64)[0]


def without(*gone: int) -> Edit:
    return lambda records: [record for i, record in enumerate(records) if i not in [g % len(records) for g in gone]]


# With one rank a step is 6 draws and the step itself; records 0 to 6 are step 0, the last 9 the calibration.
FORGERIES: dict[str, tuple[Edit, str]] = {
    "a start": (changed(2, 4, moved), "row 0 of draw 2 at shard"),
    "a shard": (changed(2, 3, lambda shards: shards[::-1]), "of draw 2 at shard"),
    "an id": (changed(2, 1, lambda draw: draw + 100), "got draw 102 of 3 rows of train, the loader hands out draw 2"),
    "a split": (changed(2, 2, lambda split: "val"), "rows of val, the loader hands out draw 2"),
    "a row left out": (changed(2, 4, lambda starts: starts[:2]), "got draw 2 of 2 rows"),
    "two draws swapped": (lambda r: [r[1], r[0], *r[2:]], "got draw 1 of 3 rows of train, the loader hands out draw 0"),
    "a draw left out": (without(3), "draw 5 is missing before this record"),
    "a draw again": (lambda r: [*r[:3], *r[2:]], "the loader hands out"),
    "a draw of the step not used": (changed(6, 2, lambda ids: ids[:-1]), "uses draws 0, 1, 2, 3, 4, expected 0, 1, 2"),
    "a draw of another step used": (changed(13, 2, lambda ids: [0, *ids[1:]]), "uses draws 0, 7, 8"),
    "a step with its draws left out": (without(*range(7, 14)), "got step 2, expected 1"),
    "the last step left out": (without(*range(21, 28)), "it at shard"),
    "a step again": (lambda r: [*r[:14], *r[7:]], "got step 1, expected 2"),
    "a step more": (lambda r: [*r[:28], ("step", 4, [0]), *r[28:]], "uses draws 0, expected 24"),
    "an unannounced step on draws": (lambda r: [*r[:6], ("step", -1, [3]), *r[6:]], "an unannounced step uses draws 3"),
    "a calibration draw left out": (without(30), "is missing before this record"),
    "a calibration start": (changed(30, 4, moved), "row 0 of draw -3"),
    "a calibration draw not used": (changed(-1, 1, lambda ids: ids[1:]), "uses draws -2, -3"),
    "no calibration": (without(*range(28, 37)), "ends without its calibration"),
    "draws at the end": (lambda r: [*r, r[0]], "got draw 0 of train, the loader hands out none here"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_training_differs(tmp_path: Path, name: str) -> None:
    """Whatever is changed in draws, steps and calibration of a consistent ledger, the loader gives something else."""
    edit, says = FORGERIES[name]
    found = run(stage(tmp_path, "train", [edit(training(0, 1))]))
    assert found.mismatches
    assert any(says in one.detail for one in found.mismatches), [one.detail for one in found.mismatches]
    assert all(one.stage == "train" and 0 < one.at < 60 for one in found.mismatches)


def test_a_mismatch_names_its_record(tmp_path: Path) -> None:
    """The number is that of the record: the note `run` is record 0, so the third draw is record 3."""
    (one,) = run(stage(tmp_path, "train", [training(0, 2), changed(2, 4, moved)(training(1, 2))])).mismatches
    assert (one.rank, one.at, one.kind, one.split) == (1, 3, "draw", "train")


def test_unannounced_steps_without_draws_are_none_of_the_loaders(tmp_path: Path) -> None:
    """The compile warm-up steps on random ids: the ledger has these steps, and the loader knows nothing of them."""
    warm_up: list[Record] = [("step", -1, []), ("step", -2, [])]
    assert not run(stage(tmp_path, "train", [[*warm_up, *training(0, 1)]])).mismatches


@pytest.mark.parametrize("seed", [SEED + 1, 5.0, True, "5", None])
def test_a_ledger_of_another_seed_is_refused(tmp_path: Path, seed: Any) -> None:
    """The seed that the run noted must be the one that was asked for."""
    (one,) = run(stage(tmp_path, "train", [training(0, 1)], seed=seed)).mismatches
    assert one.kind == "note"
    assert f"got seed {seed!r}" in one.detail


def test_three_ranks_are_no_training(tmp_path: Path) -> None:
    """Virtual ranks can't be dealt to 3 processes."""
    found = run(stage(tmp_path, "train", [training(0, 4)] * 3))
    assert "on 3 ranks, expected" in found.mismatches[0].detail


def test_few_mismatches_are_listed(tmp_path: Path) -> None:
    """A ledger whose every draw is shifted says so sixteen times."""
    shifted = [(*r[:4], moved(r[4])) if r[0] == "draw" else r for r in training(0, 1)]
    assert len(run(stage(tmp_path, "train", [shifted])).mismatches) == replay.MOST_MISMATCHES


# Less than a whole training


def test_a_resumed_training_is_replayed_from_there(tmp_path: Path) -> None:
    """The draws from the first recorded step on agree, and the reason says that earlier ones are in another ledger."""
    found = run(stage(tmp_path, "train", [training(0, 1, first=3)]))
    assert (found.steps, found.mismatches) == (STEPS, ())
    assert "begins at step 3" in found.reason


@pytest.mark.parametrize("length", [9, 14, 16, 28, 31])
def test_a_killed_training_agrees_as_far_as_it_goes(tmp_path: Path, length: int) -> None:
    """An unsealed ledger may end between draws, steps or calibration draws; what is in it must still be right."""
    records = training(0, 1)[:length]
    found = run(stage(tmp_path / "honest", "train", [records], sealed=False))
    assert found.mismatches == ()
    assert found.draws == sum(record[0] == "draw" for record in records)
    last = max(i for i, record in enumerate(records) if record[0] == "draw")
    forged = changed(last, 4, moved)(records)
    assert run(stage(tmp_path / "forged", "train", [forged], sealed=False)).mismatches
    assert run(stage(tmp_path / "sealed", "train", [records])).mismatches


def test_without_a_training_there_is_no_replay(tmp_path: Path) -> None:
    """No ledger of train, two of them, none with a step, ranks that went different ways: the reason says so."""
    train = stage(tmp_path / "a", "train", [training(0, 1)])
    assert "0 ledgers of the stage train" in run().reason
    assert "2 ledgers of the stage train" in run(train, train).reason
    empty = run(stage(tmp_path / "b", "train", [[]]))
    assert empty.reason == "the ledger of train holds no step"
    uneven = run(stage(tmp_path / "c", "train", [training(0, 2), training(1, 2, steps=3)]))
    assert "different numbers of steps: 4, 3" in uneven.reason


def test_data_that_the_loader_refuses_are_a_reason(tmp_path: Path) -> None:
    """Too few tokens for a window of every virtual rank; a data set without a training split is an error."""
    train = stage(tmp_path, "train", [training(0, 1)])
    short = Data(splits={"train": Split("train", (Shard(Path("t"), (), TOKENS[:40]),))}, tokenizer=None, others=())
    assert "the loader refuses recipe or data" in replay_draws([train], short, RECIPE, seed=SEED).reason
    with pytest.raises(SplitError, match="no tokens of split train"):
        replay_draws([train], Data(splits={}, tokenizer=None, others=()), RECIPE, seed=SEED)


# What quantize takes over


def test_quantize_takes_over_the_calibration(tmp_path: Path) -> None:
    """The sequences that train left are those that quantize draws, once or twice, with the reference."""
    train = stage(tmp_path / "train", "train", [training(0, 1)])
    for times in (1, 2):
        quantize = stage(tmp_path / f"quantize{times}", "quantize", [taken_over(times=times)])
        assert run(train, quantize).mismatches == ()
        assert run(train, quantize).draws == 6 * STEPS + 8 + 8 * times
    other = [("draw", 9, "val", np.zeros(2, np.int32), np.zeros(2, np.int64))]
    assert run(train, stage(tmp_path / "val", "quantize", [other])).mismatches == ()


@pytest.mark.parametrize("edit", [changed(3, 4, moved), without(3), without(7), lambda r: [*r[:8], r[0], *r[8:]]])
def test_other_sequences_in_quantize_differ(tmp_path: Path, edit: Edit) -> None:
    """A sequence that train did not leave, one too few, one too many."""
    train = stage(tmp_path / "train", "train", [training(0, 1)])
    found = run(train, stage(tmp_path / "quantize", "quantize", [edit(taken_over())]))
    assert found.mismatches
    assert {one.stage for one in found.mismatches} == {"quantize"}


def test_a_recipe_that_is_none_is_refused() -> None:
    """A recipe.json with an unknown key, or a value out of range, is one line; an honest one comes back."""
    tree = recipes.as_dict(RECIPE)
    assert read_recipe(tree) == RECIPE
    with pytest.raises(RunError, match="the recipe can't be read"):
        read_recipe(tree | {"colour": "red"})
    with pytest.raises(RunError, match=r"train\.sequence_length"):
        read_recipe(tree | {"train": tree["train"] | {"sequence_length": -1}})
