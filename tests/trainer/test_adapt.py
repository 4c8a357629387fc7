"""Test-time training: the legal kind scores before it learns, on every rank; the other kind does what it says."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.listener import Events, heard, listening
from tests.toy import toy_recipe
from tests.trainer.ranks import off_start
from trainer import adapt
from trainer.data import DataSet
from trainer.distributed import World
from trainer.errors import GolfError
from trainer.model import GPT
from trainer.runlog import RunLog
from trainer.scoring import Score, Targets, windows
from trainer.settings import Recipe

T = 64
VOCAB = 400
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class Bigram(nn.Module):
    """A table of logits: cheap, learns, and shows every update in every later score."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(8, 8))

    def forward(self, ids: Tensor, targets: Tensor, looped: bool) -> Tensor:
        assert looped, "the loops are on"
        return F.cross_entropy(self.table[ids].flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)


def stream(count: int, *, vocab: int = 8, seed: int = 0, firsts: tuple[int, ...] = (0,)) -> Targets:
    random = np.random.default_rng(seed)
    tokens = random.integers(0, vocab, count + 1).astype(np.uint16)
    return Targets(tokens, random.integers(1, 9, count), np.array(firsts, dtype=np.int64))


def bigram_recipe(**overrides: Any) -> Recipe:
    return toy_recipe(train__sequence_length=8, ttt__mode="score_first", ttt__chunk_tokens=16, **overrides)


def scored(events: Events) -> dict[tuple[int, int], float]:
    """(first target, how many) → nats of every window that was scored."""
    return {
        (int(begin), int(count)): float(nats)
        for event in heard(events, "score")
        for begin, count, nats in zip(event[3], event[4], event[5], strict=True)
    }


def places(draw: tuple[Any, ...], firsts: np.ndarray) -> list[int]:
    """The targets that the sequences of a `golf.draw` event are trained on."""
    begins = firsts[draw[3]] + draw[4]
    return [target for begin in begins.tolist() for target in range(begin, begin + draw[5].shape[1] - 1)]


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.integers(1, 5))
def test_chunks_share_out_windows_and_targets(length_count: int, stride: int, lengths: int) -> None:
    """Every window is in one chunk, every target is scored by its own chunk and trained on in it, exactly once."""
    count, size = 8 * length_count, 8 * lengths
    parts = adapt.chunks(count, length=8, stride=stride, size=size)
    assert np.concatenate([part.windows for part in parts]).tolist() == windows(count, length=8, stride=stride).tolist()
    for number, part in enumerate(parts):
        own = list(range(number * size, min((number + 1) * size, count)))
        by_window = [t for w in part.windows.tolist() for t in range(w if w == 0 else w + 8 - stride, w + 8)]
        assert by_window == own
        assert [t for s in part.sequences.tolist() for t in range(s, s + 8)] == own


@given(
    st.integers(1, 12), st.sampled_from([2, 4, 8]), st.sampled_from([8, 16, 24]), st.integers(1, 3), st.integers(1, 3)
)
def test_every_target_is_scored_once_and_before_it_is_trained_on(
    lengths: int, stride: int, size: int, epochs: int, sequences: int
) -> None:
    """Whatever chunk, stride, epochs and batch: at each step the targets of its draws have been scored, all once."""
    targets = stream(8 * lengths, firsts=(0, 8 * lengths // 3))
    recipe = toy_recipe(
        train__sequence_length=8,
        eval__stride=stride,
        eval__batch_windows=3,
        ttt__mode="score_first",
        ttt__chunk_tokens=size,
        ttt__chunk_epochs=epochs,
        ttt__sequences=sequences,
    )
    model = Bigram()
    with listening() as events:
        found = adapt.score_first(model, model, targets, recipe, dataclasses.replace(ALONE))
    told: list[int] = []
    drawn: dict[int, list[int]] = {}
    fixed: dict[int, int] = {}
    trained: list[int] = []
    for event in events:
        if event[0] == "golf.score":
            assert event[1:3] == ("score_first", True)
            for begin, count in zip(event[3].tolist(), event[4].tolist(), strict=True):
                told += range(begin, begin + count)
                fixed |= dict.fromkeys(range(begin, begin + count), event[8])
        elif event[0] == "golf.draw":
            assert event[2] == "val"
            assert event[1] not in drawn
            drawn[event[1]] = places(event, targets.firsts)
        elif event[0] == "golf.step":
            used = [target for draw in event[2] for target in drawn[draw]]
            assert all(fixed.get(target, math.inf) < event[5] for target in used), "scored before, by the collectives"
            trained += used
    assert sorted(told) == list(range(len(targets)))
    assert (found.tokens, found.bytes) == (len(targets), int(targets.bytes.sum()))
    last = (len(targets) - 1) // size * size
    assert sorted(trained) == sorted(list(range(last)) * epochs), "all but the last chunk, once an epoch"
    assert len(heard(events, "step")) == last // size * epochs


def plain_score_first(targets: Targets, recipe: Recipe) -> float:
    """The same, written out for a bigram model, where windows don't matter: nats of the whole stream."""
    ttt, model = recipe.ttt, Bigram()
    momentum = torch.zeros(8, 8)
    ids = torch.from_numpy(targets.tokens.astype(np.int64))
    edges = list(range(0, len(targets), ttt.chunk_tokens))
    total = 0.0
    for number, begin in enumerate(edges):
        inputs, wanted = ids[:-1][begin:][: ttt.chunk_tokens], ids[1:][begin:][: ttt.chunk_tokens]
        total += float(model(inputs[None], wanted[None], True).detach().double().sum())
        if begin == edges[-1]:
            break
        rate = ttt.chunk_lr * 0.5 * (1 + math.cos(math.pi * number / (len(edges) - 1)))
        for _ in range(ttt.chunk_epochs):
            (grad,) = torch.autograd.grad(model(inputs[None], wanted[None], True).mean(), model.table)
            grad = grad * min(1.0, ttt.clip / (grad.norm().item() + 1e-6))
            momentum = ttt.momentum * momentum + grad
            with torch.no_grad():
                model.table -= rate * momentum
    return total


@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_score_first_is_sgd_on_chunks_with_momentum_clip_and_cosine(clip: float) -> None:
    """Against a loop without optimizer, loader and windows: the same total."""
    targets = stream(8 * 13)
    recipe = bigram_recipe(ttt__chunk_lr=3.0, ttt__clip=clip, eval__stride=4)
    model = Bigram()
    found = adapt.score_first(model, model, targets, recipe, dataclasses.replace(ALONE))
    assert found.loss_nats == pytest.approx(plain_score_first(targets, recipe), rel=1e-5)
    assert abs(found.loss_nats - len(targets) * math.log(8)) > 0.01, "the control: something was learned"


def test_the_number_of_forwards_in_a_step_changes_nothing_but_rounding() -> None:
    """A chunk's epoch is one step, whether its sequences go through the model together or one by one."""
    targets, found = stream(8 * 12), []
    for sequences in (1, 2, 32):
        model = Bigram()
        recipe = bigram_recipe(ttt__sequences=sequences, ttt__chunk_lr=3.0, eval__stride=8)
        found.append(adapt.score_first(model, model, targets, recipe, dataclasses.replace(ALONE)).loss_nats)
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def on_toy(tokens: np.ndarray, recipe: Recipe) -> dict[tuple[int, int], float]:
    """The windows of a score-first pass of a toy GPT over these tokens."""
    gpt = off_start()
    targets = Targets(tokens, np.ones(len(tokens) - 1, dtype=np.int64))
    with listening() as events:
        adapt.score_first(gpt, gpt, targets, recipe, dataclasses.replace(ALONE))
    return scored(events)


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_changed_tokens_leave_every_earlier_score_alone(chunk: int) -> None:
    """Other tokens in chunk k: bit for bit the same losses before them; later chunks, far from them, have others."""
    recipe = toy_recipe(ttt__mode="score_first", ttt__chunk_tokens=128, ttt__chunk_lr=0.1)
    tokens = stream(128 * 5, vocab=VOCAB).tokens
    changed = tokens.copy()
    first = 128 * chunk + 100
    changed[first : 128 * (chunk + 1)] = (changed[first : 128 * (chunk + 1)] + 7) % VOCAB
    base, twin = on_toy(tokens, recipe), on_toy(changed, recipe)
    assert base.keys() == twin.keys()
    before = [window for window in base if sum(window) < first]
    assert before
    assert all(base[window] == twin[window] for window in before)
    far = [window for window in base if window[0] >= 128 * (chunk + 1) + T]
    assert all(base[window] != twin[window] for window in far), "the control: the adaptation saw the change"


def test_an_adaptation_that_diverges_says_which_rate_to_lower() -> None:
    """NaN is no score."""
    model = Bigram()
    with torch.no_grad():
        model.table.fill_(math.nan)
    with pytest.raises(GolfError, match=r"adaptation diverged, the loss is nan; lower ttt\.chunk_lr"):
        adapt.score_first(model, model, stream(32), bigram_recipe(eval__stride=8), dataclasses.replace(ALONE))


def fit(gpt: GPT, data: DataSet, **overrides: Any) -> tuple[list[float], Events]:
    """A fit to the toy validation; the mean loss of each epoch, and what was announced."""
    recipe = toy_recipe(ttt__mode="prequant", ttt__lr=0.002, ttt__epochs=3, **overrides)
    targets = Targets.of(data, length=T)
    log = RunLog(None, stage="quantize", seed=1)
    with listening() as events:
        losses = adapt.prequant(gpt, gpt, targets, recipe, dataclasses.replace(ALONE), log, draws=itertools.count())
    return losses, events


def test_a_fit_trains_on_all_of_validation_in_every_epoch(toy_data: DataSet) -> None:
    """Each epoch uses each sequence once, the loss falls, the rate falls towards a tenth, and nothing is scored."""
    losses, events = fit(off_start(), toy_data)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1
    steps, draws = heard(events, "step"), {event[1]: event for event in heard(events, "draw")}
    per_epoch = len(steps) // 3
    count = len(Targets.of(toy_data, length=T))
    for epoch in range(3):
        own = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        used = [target for step in own for draw in step[2] for target in places(draws[draw], np.zeros(1, np.int64))]
        assert sorted(used) == list(range(count))
        assert {step[3] for step in own} == {0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * epoch / 3))}
    assert {event[2] for event in draws.values()} == {"val"}
    assert not heard(events, "score")


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_frozen_blocks_keep_their_bits(toy_data: DataSet, blocks: int) -> None:
    """Not one bit of the first N blocks changes, every other parameter does, and afterwards all take gradients."""
    gpt = off_start()
    before = {name: parameter.detach().clone() for name, parameter in gpt.named_parameters()}
    fit(gpt, toy_data, ttt__freeze_blocks=blocks)
    kept = {name for name, parameter in gpt.named_parameters() if torch.equal(parameter, before[name])}
    assert kept == {name for name in before if name.startswith(tuple(f"blocks.{i}." for i in range(blocks)))}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in gpt.parameters())


def test_a_fit_that_diverges_says_which_rate_to_lower(toy_data: DataSet) -> None:
    """A loss that is no number ends the fit at its epoch."""
    gpt = off_start()
    with torch.no_grad():
        gpt.embedding.fill_(math.nan)
    with pytest.raises(GolfError, match=r"the loss of epoch 1 of the fit is nan; lower ttt\.lr"):
        fit(gpt, toy_data)


def test_two_parts_of_a_pass_add_up() -> None:
    """A score is its sums, so parts add."""
    assert Score(1.5, 3, 4, 8) + Score(2.0, 1, 1, 8) == Score(3.5, 4, 5, 8)
