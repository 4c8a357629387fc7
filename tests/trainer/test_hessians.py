"""Hessians against float64 sums over what the modules really received."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import hessians
from trainer.errors import DataError
from trainer.model import GPT
from trainer.recipe import resolve

VOCAB, WIDTH = 11, 6


class Matrix(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return F.linear(x, self.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        self.seen.append(h.detach())
        return F.linear(h, embedding)


class Toy(nn.Module):
    """Two matrices of one input in a layer that may be applied three times, one behind it, and a tied head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Parameter(torch.randn(VOCAB, WIDTH))
        self.q, self.k, self.down = Matrix(WIDTH, WIDTH), Matrix(WIDTH, WIDTH), Matrix(2 * WIDTH, WIDTH)
        self.head = Tied()
        self.sites = {"q.weight": "q", "k.weight": "q", "down.weight": "down", "embedding": "head"}

    def forward(self, ids: Tensor, targets: Tensor | None, looped: bool) -> Tensor:
        assert targets is None
        x = self.embedding[ids]
        for _ in range(3 if looped else 1):
            x = torch.tanh(self.q(x) + self.k(x))
        return self.head(x + self.down(torch.cat([x, x * x], dim=-1)), self.embedding)


def batches(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (2, 5), generator=generator) for _ in range(count)]


def expected(seen: list[Tensor], count: int) -> Tensor:
    """(1/b) Σ XᵀX in float64."""
    X = torch.cat([x.flatten(0, -2) for x in seen]).double()
    return X.T @ X / count


@pytest.mark.parametrize("looped", [False, True])
def test_hessians_are_the_mean_over_batches_of_the_inputs_moments(looped: bool) -> None:
    """Each site's H is (1/b) Σ XᵀX over its inputs, all passes of a shared layer included, and exactly one per site."""
    toy = Toy()
    found = hessians.collect(toy, batches(), looped=looped)
    assert list(found) == ["down", "head", "q"]
    for site, H in found.items():
        seen = toy.get_submodule(site).seen
        assert len(seen) == 4 * (3 if looped and site == "q" else 1)
        assert H.dtype == torch.float32
        assert torch.allclose(H.double(), expected(seen, 4), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_reach_the_sum() -> None:
    """Under bf16 autocast the inputs are bf16 but their products are added in fp32: 1e-5, where bf16 leaves 1e-3."""
    toy = Toy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hessians.collect(toy, batches(), looped=True)
        X = torch.cat([x.flatten(0, -2) for x in toy.down.seen])
        rounded = (X.T @ X).float() / 4
    exact = expected(toy.down.seen, 4)
    assert toy.down.seen[0].dtype == torch.bfloat16
    assert float((found["down"] - exact).abs().max() / exact.abs().max()) < 1e-5
    assert float((rounded - exact).abs().max() / exact.abs().max()) > 1e-3, "the control: bf16 must be visible here"


def hooks(module: nn.Module) -> int:
    return sum(len(inner._forward_pre_hooks) for inner in module.modules())


def test_nothing_stays_behind() -> None:
    """Hooks are removed, no gradient is made, and parameters keep their bits."""
    toy = Toy()
    before = [parameter.detach().clone() for parameter in toy.parameters()]
    during: list[tuple[int, bool]] = []

    def watched() -> Iterator[Tensor]:
        for ids in batches():
            during.append((hooks(toy), torch.is_grad_enabled()))
            yield ids

    found = hessians.collect(toy, watched(), looped=True)
    assert during == [(3, False)] * 4
    assert hooks(toy) == 0
    assert not any(H.requires_grad for H in found.values())
    assert all(parameter.grad is None for parameter in toy.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, toy.parameters(), strict=True))


def test_hooks_are_removed_when_a_batch_fails() -> None:
    """An error from the data or the model passes through and leaves no hook."""
    toy = Toy()
    with pytest.raises(IndexError):
        hessians.collect(toy, [*batches(1), torch.full((1, 1), VOCAB)], looped=False)
    assert hooks(toy) == 0


def test_no_batches_and_unreached_sites_are_errors() -> None:
    """Empty calibration never gives Hessians, nor does a site that the forward leaves out."""
    with pytest.raises(DataError, match="no calibration batches"):
        hessians.collect(Toy(), [], looped=True)
    toy = Toy()
    toy.unused = Matrix(2, 2)
    toy.sites["unused.weight"] = "unused"
    with pytest.raises(DataError, match="no calibration batch reached unused"):
        hessians.collect(toy, batches(1), looped=True)


def test_the_models_sites_and_passes() -> None:
    """On the real model every matrix has a Hessian of its width, and a looped layer's holds all its passes.

    The inputs of q and of the head are RMS-normalised, so their traces count tokens: T·D/(l + 1) for every pass.
    """
    recipe = resolve({"scale": "cpu", "tokens.vocab_size": "300", "model.width": "32", "model.layers": "4"})
    gpt = GPT(recipe, seed=1)
    ids = [torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(s)) for s in range(3)]
    for looped in (False, True):
        found = hessians.collect(gpt, ids, looped=looped)
        assert set(found) == set(gpt.sites.values())
        for name, site in gpt.sites.items():
            assert found[site].shape == (gpt.get_parameter(name).shape[1],) * 2
        assert float(found["head"].trace()) == pytest.approx(32 * 32, rel=1e-4)
        for layer in range(4):
            passes = 1 + recipe.loop.extra_passes * (looped and recipe.loop.first <= layer <= recipe.loop.last)
            trace = float(found[gpt.sites[f"blocks.{layer}.attention.v.weight"]].trace())
            assert trace == pytest.approx(passes * 32 * 32 / (layer + 1), rel=1e-4)


def test_one_process_has_nothing_to_reduce() -> None:
    """Without a group the Hessians come back as they are."""
    H = torch.eye(3)
    assert torch.equal(hessians.reduce({"q": H}, None)["q"], H)


RANK = """
import sys, torch, torch.distributed as dist
from trainer import hessians
rank = int(sys.argv[2])
dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
sites = {"q": torch.full((2, 2), 1.0 + rank), "head": torch.eye(3) * 10 ** rank}
found = hessians.reduce(dict(reversed(sites.items())) if rank else sites, dist.group.WORLD)
print(found["q"].tolist(), found["head"].diagonal().tolist())
dist.destroy_process_group()
"""


def test_ranks_get_the_mean(tmp_path: Path) -> None:
    """Two processes end with the same mean of each site, whatever the order of their dicts."""
    command = [sys.executable, "-c", RANK, str(tmp_path / "store")]
    root = Path(hessians.__file__).parents[1]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, cwd=root) for rank in range(2)]
    try:
        outputs = [rank.communicate(timeout=60)[0].strip() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert outputs == ["[[1.5, 1.5], [1.5, 1.5]] [5.5, 5.5, 5.5]"] * 2
