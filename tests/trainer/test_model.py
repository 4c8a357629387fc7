"""The model against its formulas: size, start, order of layers, causality, and an oracle written with loops."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.listener import listening
from tests.toy import toy_recipe
from trainer.attention import rotary_tables
from trainer.model import GPT, Block, called, execution, skip_pairs
from trainer.recipe import resolve
from trainer.settings import Loop, Recipe


def _toy(*, seed: int = 1, spread: float = 0.3, **overrides: object) -> GPT:
    """A toy GPT away from its start (where W_o = W_2 = 0 would hide most of it)."""
    gpt = GPT(toy_recipe(**overrides), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return gpt


def _batch(rows: int = 2, length: int = 64, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 400, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


class TestExecution:
    @pytest.mark.parametrize(
        ("first", "last", "encoder", "decoder"),
        [(4, 5, [0, 1, 2, 3, 4, 5, 4], [5, 4, 5, 6, 7, 8, 9, 10]), (3, 5, [0, 1, 2, 3, 4, 5, 3, 4], None)],
    )
    def test_published_lists(self, first: int, last: int, encoder: list[int], decoder: list[int] | None) -> None:
        """pg#1394's and pg#1493's lists, and where they split into encoder and decoder."""
        order = execution(11, Loop(first=first, last=last, extra_passes=2), True)
        split = skip_pairs(len(order))
        assert list(order[:split]) == encoder
        assert list(order[split:]) == (decoder or [5, 3, 4, 5, 6, 7, 8, 9, 10])

    @given(st.integers(1, 12), st.data())
    def test_any_loop(self, layers: int, data: st.DataObject) -> None:
        """Un-looped every layer comes once in order; looped the segment comes 1 + k times and the rest once."""
        first = data.draw(st.integers(0, layers - 1))
        last = data.draw(st.integers(first, layers - 1))
        loop = Loop(first=first, last=last, extra_passes=data.draw(st.integers(0, 4)))
        assert execution(layers, loop, False) == tuple(range(layers))
        order = execution(layers, loop, True)
        for layer in range(layers):
            assert order.count(layer) == (1 + loop.extra_passes if first <= layer <= last else 1)
        assert all(after in (before + 1, first) for before, after in itertools.pairwise(order))


class TestStart:
    def test_size_of_the_real_recipe(self) -> None:
        """The 8-GPU model has exactly the parameters of pg#1394: 35,943,512."""
        gpt = GPT(resolve({"scale": "8gpu"}), seed=42)
        assert sum(parameter.numel() for parameter in gpt.parameters()) == 35_943_512
        assert sum(matrix.numel() for matrix in gpt.matrices().values()) == 11 * 2_883_584
        assert gpt.skip_weights.shape == gpt.skip_gates.shape == (7, 512)

    def test_families(self) -> None:
        """Every parameter starts as the table of `initialize` says."""
        recipe = toy_recipe(qk_gain=5.25, model__embed_std=0.01, tokens__vocab_size=4000)
        state = dict(GPT(recipe, seed=3).named_parameters())
        assert state["embedding"].std().item() == pytest.approx(0.01, rel=0.02)
        assert state["embedding"].mean().item() == pytest.approx(0.0, abs=1e-4)
        assert torch.equal(state["skip_weights"], torch.ones(2, 32))
        assert torch.equal(state["skip_gates"], torch.zeros(2, 32))
        for layer in range(3):
            block = f"blocks.{layer}"
            for name in ("attention.q", "attention.k", "attention.v", "mlp.up"):
                W = state[f"{block}.{name}.weight"].double()
                gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
                torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-6)
            for name in ("attention.o.weight", "mlp.down.weight", "mix_embedding"):
                assert not state[f"{block}.{name}"].any()
            for name in ("mix_stream", "attention_scale", "mlp_scale"):
                assert torch.equal(state[f"{block}.{name}"], torch.ones(32))
            assert torch.equal(state[f"{block}.attention.gain"], torch.full((2,), 5.25))

    def test_seed_decides(self) -> None:
        """Equal seeds give equal bits, other seeds others, and torch's global generator is neither read nor moved."""
        before = torch.random.get_rng_state()
        first = GPT(toy_recipe(), seed=7).state_dict()
        assert torch.equal(before, torch.random.get_rng_state())
        torch.manual_seed(123)
        again, other = GPT(toy_recipe(), seed=7).state_dict(), GPT(toy_recipe(), seed=8).state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["embedding"], other["embedding"])
        q = "blocks.{}.attention.q.weight"
        assert not torch.equal(first[q.format(0)], other[q.format(0)])
        assert not torch.equal(first[q.format(0)], first[q.format(1)])

    def test_tables_are_not_saved(self) -> None:
        """The state dict holds parameters only: rotary tables can always be computed."""
        gpt = GPT(toy_recipe(), seed=1)
        assert set(gpt.state_dict()) == set(dict(gpt.named_parameters()))

    @pytest.mark.parametrize("looped", [False, True])
    def test_first_loss(self, looped: bool) -> None:
        """A fresh model is nearly uniform: its loss is ln V within 2 %."""
        losses = GPT(toy_recipe(), seed=1)(*_batch(4), looped)
        assert losses.dtype == torch.float32
        assert losses.mean().item() == pytest.approx(math.log(400), rel=0.02)


class TestSites:
    def test_every_matrix_has_one(self) -> None:
        """q, k and v share a site, all others have their own, and E's is the head."""
        gpt = GPT(toy_recipe(), seed=1)
        assert set(gpt.sites) == {*gpt.matrices(), "embedding"}
        assert gpt.sites["embedding"] == "head"
        attention = "blocks.2.attention"
        assert {gpt.sites[f"{attention}.{name}.weight"] for name in "qkv"} == {f"{attention}.q"}
        assert len(set(gpt.sites.values())) == 3 * 4 + 1

    def test_hooks_see_what_is_multiplied(self) -> None:
        """At each site a forward pre-hook sees X with X Wᵀ the output; a looped layer is seen once per pass."""
        gpt = _toy()
        seen: dict[str, list[Tensor]] = {site: [] for site in gpt.sites.values()}
        made: dict[str, list[Tensor]] = {name: [] for name in gpt.sites}
        for site, calls in seen.items():
            gpt.get_submodule(site).register_forward_pre_hook(lambda _, inputs, calls=calls: calls.append(inputs[0]))
        for name, calls in made.items():
            module = gpt.head if name == "embedding" else gpt.get_submodule(name.removesuffix(".weight"))
            module.register_forward_hook(lambda _, __, output, calls=calls: calls.append(output))
        gpt(_batch()[0], None, True)
        parameters = dict(gpt.named_parameters())
        for name, site in gpt.sites.items():
            assert len(seen[site]) == (2 if ".1." in name else 1)
            for X, output in zip(seen[site], made[name], strict=True):
                torch.testing.assert_close(X @ parameters[name].T, output)


class TestCausality:
    @settings(max_examples=12)
    @given(st.integers(1, 63), st.integers(0, 399), st.booleans(), st.integers(0, 99))
    def test_the_past_does_not_see_the_future(self, position: int, token: int, looped: bool, seed: int) -> None:
        """Changing input token t changes no loss before t by a bit, and the loss at t."""
        gpt = _toy()
        ids, targets = _batch(seed=seed)
        changed = ids.clone()
        changed[0, position] = token if token != ids[0, position] else (token + 1) % 400
        with torch.no_grad():
            before, after = gpt(ids, targets, looped), gpt(changed, targets, looped)
        assert torch.equal(before[0, :position], after[0, :position])
        assert before[0, position] != after[0, position]

    def test_rows_are_apart(self) -> None:
        """Changing one row of a batch changes no bit of another."""
        gpt = _toy()
        ids, targets = _batch(3)
        changed = ids.clone()
        changed[1] = (ids[1] + 1) % 400
        with torch.no_grad():
            before, after = gpt(ids, targets, True), gpt(changed, targets, True)
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.equal(before[1], after[1])


def _oracle(gpt: GPT, recipe: Recipe, ids: Tensor, looped: bool) -> Tensor:
    """Logits from the formulas of the techniques' §4, with the layers' own sublayers."""

    def unit(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    order = execution(recipe.model.layers, recipe.loop, looped)
    half = len(order) // 2
    tables = tuple(table.double() for table in rotary_tables(ids.shape[1], dims=4, base=10_000.0))
    x = x0 = unit(gpt.embedding[ids])
    stack = []
    for place, layer in enumerate(order):
        block = gpt.blocks[layer]
        assert isinstance(block, Block)
        if place >= half and stack:
            w, gate = gpt.skip_weights[place - half], 1 / (1 + torch.exp(-gpt.skip_gates[place - half]))
            x = gate * x + (1 - gate) * (w * stack.pop())
        u = block.mix_stream * x + block.mix_embedding * x0
        u = u + block.attention_scale * block.attention(unit(u) / math.sqrt(layer + 1), *tables)
        z = (unit(u) / math.sqrt(layer + 1)) @ block.mlp.up.weight.T
        hidden = torch.where(z > 0, z, recipe.model.negative_slope * z) ** 2
        x = u + block.mlp_scale * (hidden @ block.mlp.down.weight.T)
        if place < half:
            stack.append(x)
    z = unit(x) @ gpt.embedding.T
    return recipe.model.softcap * torch.tanh(z / recipe.model.softcap)


class TestForward:
    @pytest.mark.parametrize("looped", [False, True])
    def test_logits_and_losses(self, looped: bool) -> None:
        """Logits are the formulas' and losses -ln softmax at the target, in float64; the softcap is at work."""
        overrides = {"model__layers": 4, "loop__first": 1, "loop__last": 2, "model__softcap": 5.0}
        recipe, gpt = toy_recipe(**overrides), _toy(**overrides).double()
        ids, targets = _batch(2, 16)
        logits = gpt(ids, None, looped)
        torch.testing.assert_close(logits, _oracle(gpt, recipe, ids, looped), rtol=1e-6, atol=1e-6)
        assert 4.0 < logits.abs().max().item() < 5.0
        p = logits.exp() / logits.exp().sum(-1, keepdim=True)
        torch.testing.assert_close(gpt(ids, targets, looped), -p.gather(-1, targets[..., None])[..., 0].log())

    def test_only_the_last_layers_are_exclusive(self) -> None:
        """`xsa_layers` counts from the end."""
        gpt = GPT(toy_recipe(model__xsa_layers=2), seed=1)
        flags = [block.attention.exclusive for block in gpt.blocks if isinstance(block, Block)]
        assert flags == [False, True, True]

    def test_fp32_is_close_to_float64(self) -> None:
        """fp32 losses of an off-start model are within 1e-4 nats of float64's."""
        gpt, exact = _toy(), _toy().double()
        torch.testing.assert_close(gpt(*_batch(), True).double(), exact(*_batch(), True), rtol=0, atol=1e-4)

    def test_longer_than_the_tables(self) -> None:
        """A sequence beyond the cached tables gives the same losses as a model with longer tables."""
        short, long = _toy(), _toy(train__sequence_length=128)
        ids, targets = _batch(1, 128)
        assert torch.equal(short(ids, targets, True), long(ids, targets, True))

    def test_autocast(self) -> None:
        """Under bf16 autocast losses stay fp32 and near, and parameters and their gradients stay fp32."""
        gpt = _toy(spread=0.1)
        exact = gpt(*_batch(), True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = gpt(*_batch(), True)
        losses.mean().backward()
        assert losses.dtype == torch.float32
        assert not torch.equal(losses, exact)
        torch.testing.assert_close(losses, exact, rtol=0, atol=0.2)
        assert all(p.grad is not None and p.grad.dtype == p.dtype == torch.float32 for p in gpt.parameters())


class TestGradient:
    @pytest.mark.parametrize("looped", [False, True])
    def test_directional_derivatives(self, looped: bool) -> None:
        """Along a random direction of each parameter the loss changes as its gradient says (float64)."""
        gpt = _toy().double()
        ids, targets = _batch(1, 12)
        gpt(ids, targets, looped).mean().backward()
        for seed, (name, parameter) in enumerate(gpt.named_parameters()):
            assert parameter.grad is not None
            generator = torch.Generator().manual_seed(seed)
            direction = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            slope, h = (parameter.grad * direction).sum().item(), 1e-5
            with torch.no_grad():
                parameter.add_(h * direction)
                above = gpt(ids, targets, looped).mean()
                parameter.sub_(2 * h * direction)
                below = gpt(ids, targets, looped).mean()
                parameter.add_(h * direction)
            assert (above - below).item() / (2 * h) == pytest.approx(slope, rel=1e-4, abs=1e-7), name

    def test_training_repeats(self) -> None:
        """Two models from one seed have bit-equal losses and gradients."""
        runs = []
        for _ in range(2):
            gpt = _toy()
            losses = gpt(*_batch(), True)
            losses.mean().backward()
            runs.append([losses, *(p.grad for p in gpt.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_model_and_its_compiled_form_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every module that token ids enter by a call is named, before the first call."""
    monkeypatch.setattr(torch, "compile", torch.nn.Sequential)
    gpt = _toy()
    with listening() as events:
        assert called(gpt, compiled=False) is gpt
        form = called(gpt, compiled=True)
    assert [event[0] for event in events] == ["golf.model"] * 3
    assert [event[1] for event in events] == [gpt, gpt, form]
    assert isinstance(form, torch.nn.Module)
