"""Bits per byte: every target once, with the context it should have, in float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.listener import heard, listening
from trainer.distributed import World
from trainer.scoring import Score, Targets, score, windows

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
T = 16


class Bigram(nn.Module):
    """A model that looks at the last token only, so that every way of windowing must give the same sum."""

    def forward(self, ids: Tensor, targets: Tensor, looped: bool) -> Tensor:
        return ((ids * 31 + targets * 17) % 97).float() / 97


class Position(nn.Module):
    """A model whose loss is the number of tokens of context that the window gave it."""

    def forward(self, ids: Tensor, targets: Tensor, looped: bool) -> Tensor:
        return torch.arange(1, ids.shape[1] + 1).float().expand(ids.shape)


def stream(count: int, seed: int = 0) -> Targets:
    random = np.random.default_rng(seed)
    return Targets(random.integers(0, 300, count + 1).astype(np.uint16), random.integers(0, 9, count).astype(np.int64))


def run(model: Any, targets: Targets, *, stride: int, batch: int = 5, world: World | None = None) -> Score:
    world = world or dataclasses.replace(ALONE)
    return score(model, targets, length=T, stride=stride, batch=batch, world=world, label="test")


strides = st.sampled_from([1, 2, 4, 8, 16])


@given(st.integers(1, 40), strides)
def test_windows_score_every_target_once(chunks: int, stride: int) -> None:
    """The first window scores all of its targets, each other its last S; together they are the whole stream, once."""
    starts = windows(chunks * T, length=T, stride=stride)
    seen = [t for w in starts.tolist() for t in range(w if w == 0 else w + T - stride, w + T)]
    assert sorted(seen) == list(range(chunks * T))


@given(st.integers(1, 12), strides, st.integers(1, 9), st.integers(0, 99))
def test_a_model_without_context_scores_the_same_by_every_window(
    chunks: int, stride: int, batch: int, seed: int
) -> None:
    """Stride and batch size change nothing for a bigram model; the sum is that of a plain loop over the stream."""
    targets = stream(chunks * T, seed)
    found = run(Bigram(), targets, stride=stride, batch=batch)
    pairs = zip(targets.tokens[:-1].tolist(), targets.tokens[1:].tolist(), strict=True)
    expected = math.fsum(float(np.float32((x * 31 + y * 17) % 97) / np.float32(97)) for x, y in pairs)
    assert (found.tokens, found.bytes) == (chunks * T, int(targets.bytes.sum()))
    assert found.loss_nats == pytest.approx(expected, rel=1e-12)
    assert found.val_bpb == pytest.approx(expected / math.log(2) / found.bytes, rel=1e-12)


@given(st.integers(1, 12), strides)
def test_a_sliding_window_gives_at_least_t_minus_s_tokens_of_context(chunks: int, stride: int) -> None:
    """After the first window every target has T - S + 1 … T tokens before it."""
    found = run(Position(), stream(chunks * T), stride=stride)
    later = sum(range(T - stride + 1, T + 1)) * (chunks * T - T) // stride
    assert found.loss_nats == sum(range(1, T + 1)) + later


@given(st.integers(1, 12), strides, st.sampled_from([2, 3, 8]))
def test_ranks_share_the_windows_and_together_score_all(chunks: int, stride: int, size: int) -> None:
    """Each rank scores its part; the parts add up to the whole and do not overlap."""
    targets = stream(chunks * T)
    parts: list[tuple[float, ...]] = []
    for rank in range(size):
        world = World(rank=rank, size=size, device=torch.device("cpu"))
        # Without the other processes the sum is this rank's part, and so is refused as not the whole stream.
        world.sum_ = lambda part: parts.append(tuple(part.tolist())) or torch.tensor([0.0, chunks * T, 1.0])  # type: ignore[method-assign,func-returns-value]
        run(Bigram(), targets, stride=stride, batch=2, world=world)
    whole = run(Bigram(), targets, stride=stride)
    assert [sum(column) for column in zip(*parts, strict=True)] == pytest.approx(
        [whole.loss_nats, whole.tokens, whole.bytes]
    )


@given(st.integers(1, 12), strides)
def test_scores_are_announced_with_their_ranges(chunks: int, stride: int) -> None:
    """What a listener hears adds up to the score: ranges that cover the stream once, nats and bytes."""
    targets = stream(chunks * T)
    with listening() as events:
        found = run(Bigram(), targets, stride=stride)
    scores = heard(events, "score")
    ranges = [(int(b), int(c)) for e in scores for b, c in zip(e[3], e[4], strict=True)]
    assert sorted(t for begin, count in ranges for t in range(begin, begin + count)) == list(range(chunks * T))
    assert sum(float(nats) for e in scores for nats in e[5]) == pytest.approx(found.loss_nats)
    assert sum(int(octets) for e in scores for octets in e[6]) == found.bytes
    for _, label, counted, begins, scored, _, _, rows, collectives in scores:
        assert (label, counted, collectives) == ("test", False, 0), "the sum over ranks comes after the scores"
        for begin, count, row in zip(begins, scored, rows, strict=True):
            last = begin + count
            assert row.dtype == np.uint16
            assert row.tolist() == targets.tokens[last - T : last + 1].tolist(), (
                "a window is its inputs and last target"
            )


def test_the_units_are_nats_per_token_and_bits_per_byte() -> None:
    """One bit a byte is ln 2 nats a byte: 8 tokens of 2 bytes at 2 ln 2 nats each are 1 bit per byte."""
    found = Score(loss_nats=8 * 2 * math.log(2), tokens=8, bytes=16, stride=4)
    assert found.val_bpb == pytest.approx(1.0)
    assert found.val_loss_nats == pytest.approx(2 * math.log(2))
