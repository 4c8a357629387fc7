"""The loader: a pure function of seed, rank and position; no token twice in an epoch; the same in any world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.listener import listening
from trainer.errors import DataError
from trainer.loader import Batch, Loader, Stream
from trainer.settings import VIRTUAL_RANKS
from trainer.shards import Shard


def shards_of(sizes: list[int]) -> list[Shard]:
    """Shards whose tokens are unique over all shards, so that a row says where it is from."""
    first = np.cumsum([0, *sizes])
    return [Shard(f"train_{i:06d}.bin", np.arange(first[i], first[i + 1]).astype(np.uint16)) for i in range(len(sizes))]


# 1, 3, 8 and more files: the ways in which virtual ranks own windows.
splits = st.sampled_from([1, 3, 8, 11]).flatmap(
    lambda files: st.lists(st.integers(200, 900), min_size=files, max_size=files)
)


def loader(
    shards: list[Shard], *, seed: int = 1, world: int = 1, rank: int = 0, threads: int = 0, micro: int = 3
) -> Loader:
    return Loader(
        shards=shards,
        length=16,
        sequences=2,
        micro=micro,
        seed=seed,
        virtual_ranks=tuple(range(rank, VIRTUAL_RANKS, world)),
        threads=threads,
    )


def take(source: Loader, steps: int, first: int = 0) -> list[list[Batch]]:
    stream = source.steps(first)
    found = list(itertools.islice(stream, steps))
    stream.close()
    return found


def windows(batches: list[Batch]) -> list[tuple[int, int]]:
    return [(int(s), int(t)) for b in batches for s, t in zip(b.shards, b.starts, strict=True)]


@given(splits, st.integers(0, 2**32 - 1), st.sampled_from([4, 7, 16]), st.integers(0, 2))
def test_no_token_is_an_input_twice_in_an_epoch(sizes: list[int], seed: int, length: int, epoch: int) -> None:
    """Over all virtual ranks, an epoch's windows lie inside their shards and do not overlap."""
    shards, seen = shards_of(sizes), set()
    for rank in range(VIRTUAL_RANKS):
        stream = Stream(shards, length=length, seed=seed, virtual_rank=rank)
        table = stream.epoch(epoch)
        assert len(table) == stream.windows
        for shard, start in table.tolist():
            assert 0 <= start <= sizes[shard] - length - 1
            inputs = {(shard, position) for position in range(start, start + length)}
            assert not inputs & seen
            seen |= inputs
    # Nearly all of the text is used: each shard loses less than two windows to phase and tail.
    assert len(seen) > sum(sizes) - 2 * length * len(sizes)


@given(splits, st.integers(0, 2**32 - 1), st.integers(0, 500), st.integers(1, 80))
def test_a_sample_does_not_depend_on_how_it_was_reached(sizes: list[int], seed: int, first: int, count: int) -> None:
    """Sample i is the same whether the stream was read from 0 or entered at i, also across epochs."""
    shards = shards_of(sizes)
    whole = Stream(shards, length=16, seed=seed, virtual_rank=5).at(0, first + count)
    entered = Stream(shards, length=16, seed=seed, virtual_rank=5).at(first, count)
    assert np.array_equal(whole[first:], entered)


@given(splits, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 3, 16]))
def test_a_step_has_the_same_sequences_in_every_world(sizes: list[int], world: int, micro: int) -> None:
    """1, 2, 4 and 8 processes, and any size of micro-batch, train on the same set of sequences in each step."""
    shards = shards_of(sizes)
    alone = take(loader(shards), 5)
    together = [take(loader(shards, world=world, rank=rank, micro=micro), 5) for rank in range(world)]
    assert {len(b.rows) for rank in together for s in rank for b in s} == {
        n for rank in range(world) for n in loader(shards, world=world, rank=rank, micro=micro).batch_sizes
    }
    for step in range(5):
        others = [window for rank in together for window in windows(rank[step])]
        assert sorted(windows(alone[step])) == sorted(others)
        draws = [batch.draw for rank in together for batch in rank[step]]
        assert len(set(draws)) == len(draws)


@given(splits, st.integers(1, 4))
def test_rows_are_the_tokens_that_the_batch_says(sizes: list[int], threads: int) -> None:
    """Each row is shard[start : start+T+1], and reading ahead in threads changes nothing."""
    shards = shards_of(sizes)
    plain, ahead = take(loader(shards), 4), take(loader(shards, threads=threads), 4)
    for one, other in zip(itertools.chain(*plain), itertools.chain(*ahead), strict=True):
        assert (one.draw, windows([one])) == (other.draw, windows([other]))
        for batch in (one, other):
            for row, (shard, start) in zip(batch.rows, windows([batch]), strict=True):
                assert np.array_equal(row, shards[shard].tokens[start : start + 17])


def test_seeds_give_different_orders_and_epochs_too() -> None:
    """Another seed, another virtual rank or another epoch is another order."""
    shards = shards_of([900] * 8)
    orders = [
        Stream(shards, length=16, seed=seed, virtual_rank=rank).epoch(epoch)[:, 1].tolist()
        for seed, rank, epoch in itertools.product((1, 2), (0, 1), (0, 1))
    ]
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_an_epoch_is_shuffled_over_its_shards() -> None:
    """Consecutive samples come from different shards about as often as chance has it (here: 8 shards a rank)."""
    stream = Stream(shards_of([800] * 64), length=16, seed=3, virtual_rank=0)
    shards = stream.epoch(0)[:, 0]
    assert 0.75 < np.mean(shards[1:] != shards[:-1]) <= 1


def test_calibration_goes_on_after_the_last_step() -> None:
    """Calibration draws what training would have drawn next, none of what it drew, the same in every world."""
    shards = shards_of([900] * 8)
    trained = {window for step in take(loader(shards), 2) for window in windows(step)}
    alone = loader(shards).calibration(2, batches=16, sequences=2)
    assert [len(batch.rows) for batch in alone] == [2] * 16
    assert not trained & set(windows(alone))
    parts = [loader(shards, world=4, rank=r).calibration(2, batches=16, sequences=2) for r in range(4)]
    assert sorted(windows(alone)) == sorted(window for part in parts for window in windows(part))
    assert {batch.draw for batch in alone} == set(range(-16, 0))


def test_too_little_text_is_said_by_name() -> None:
    """A virtual rank without one window refuses to start, with both numbers."""
    with pytest.raises(DataError, match=r"virtual rank 7 of 8 has no window of 16 \+ 1 tokens in its 16 tokens"):
        Stream(shards_of([900] * 7 + [16]), length=16, seed=1, virtual_rank=7)


def test_batches_are_announced_when_they_are_handed_out() -> None:
    """A listener hears each batch once, with its ranges and rows, and not before the loop asks for it."""
    stream = loader(shards_of([900] * 8), threads=2).steps()
    with listening() as heard:
        first = next(stream)
        assert [event[:2] for event in heard] == [("golf.draw", batch.draw) for batch in first]
        assert all(np.array_equal(event[5], batch.rows) for event, batch in zip(heard, first, strict=True))
        next(stream)
        assert len(heard) == 2 * len(first)
    stream.close()
