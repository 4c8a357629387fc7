"""All optimizers together: who updates what, clipping, schedules, state, and several ranks against one."""

from __future__ import annotations

import itertools
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.toy import toy_recipe
from tests.trainer import ranks
from tests.trainer.ranks import backward, off_start, train
from trainer.errors import ArtifactError
from trainer.model import GPT
from trainer.optimizer import Optimizers, momentum_at
from trainer.settings import Muon

ALL = slice(None)


def _weights(gpt: GPT) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in gpt.named_parameters()}


def _gradients(gpt: GPT) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in gpt.named_parameters() if value.grad is not None}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestMomentum:
    def test_rises_linearly(self) -> None:
        """From momentum_start at step 0 to momentum at the end of the warm-up, and no further."""
        muon = Muon(momentum_start=0.92, momentum=0.99, momentum_warmup_steps=1400)
        assert [momentum_at(step, muon) for step in (0, 200, 700, 1400, 9999)] == pytest.approx(
            [0.92, 0.93, 0.955, 0.99, 0.99]
        )

    def test_no_warmup(self) -> None:
        """Without a warm-up it is there at once."""
        assert momentum_at(0, Muon(momentum_start=0.5, momentum=0.9, momentum_warmup_steps=0)) == pytest.approx(0.9)


class TestStep:
    def test_every_parameter_has_one_optimizer(self) -> None:
        """Muon holds the block matrices; AdamW the embedding in its own group, and all else in the other."""
        gpt = GPT(toy_recipe(), seed=1)
        optimizers = Optimizers(gpt, toy_recipe())
        names = {value: name for name, value in gpt.named_parameters()}
        groups = [
            [names[p] for p in g["params"]] for g in (*optimizers.muon.param_groups, *optimizers.adam.param_groups)
        ]
        assert groups[0] == list(gpt.matrices())
        assert groups[1] == ["embedding"]
        assert sorted(itertools.chain(*groups)) == sorted(names.values())

    def test_adam_is_torchs(self) -> None:
        """Embedding and vectors move as under plain torch.optim.AdamW with the recipe's settings and clip."""
        recipe = toy_recipe(adam__beta2=0.9, adam__eps=1e-6, train__clip=0.2)
        gpt, plain = off_start(), off_start()
        optimizers = Optimizers(gpt, recipe)
        vectors = [value for name, value in plain.named_parameters() if name in optimizers.replicated]
        adam = torch.optim.AdamW(
            [
                {"params": [plain.embedding], "lr": 0.03, "weight_decay": 0.085},
                {"params": [value for value in vectors if value is not plain.embedding]},
            ],
            lr=0.02,
            weight_decay=0.02,
            betas=(0.9, 0.9),
            eps=1e-6,
            foreach=False,
            fused=False,
        )
        for step, factor in enumerate((1.0, 0.5, 0.8)):
            with torch.no_grad():
                for name, value in plain.named_parameters():
                    value.copy_(value if name in optimizers.replicated else gpt.get_parameter(name))
            backward(gpt, step, ALL)
            backward(plain, step, ALL)
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.2)
            adam.param_groups[0]["lr"], adam.param_groups[1]["lr"] = 0.03 * factor, 0.02 * factor
            optimizers.step(step, factor)
            adam.step()
            plain.zero_grad()
        for name in optimizers.replicated:
            torch.testing.assert_close(gpt.get_parameter(name), plain.get_parameter(name), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
    def test_clip_is_torchs(self, clip: float) -> None:
        """The returned norm, and what reaches both optimizers, are those of torch.nn.utils.clip_grad_norm_."""
        recipe = toy_recipe(train__clip=clip)
        gpt = off_start()
        optimizers = Optimizers(gpt, recipe)
        backward(gpt, 0, ALL)
        expected = off_start()
        backward(expected, 0, ALL)
        norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), clip or float("inf"))
        assert norm > 0.05
        torch.testing.assert_close(optimizers.step(0, 1.0), norm, rtol=1e-5, atol=0)
        state, grads = optimizers.state_dict(), _gradients(expected)
        for name in optimizers.replicated:
            torch.testing.assert_close(state[f"adam.{name}.exp_avg"], 0.1 * grads[name], rtol=1e-4, atol=1e-9)
        names = {value: name for name, value in gpt.named_parameters()}
        for bank in optimizers.muon.banks:
            stacked = torch.stack([grads[names[value]] for value in bank.parameters])
            torch.testing.assert_close(state[f"muon.{bank.name}.momentum"], stacked, rtol=1e-4, atol=1e-9)

    def test_settings_reach_muon(self) -> None:
        """Rate, decay, momentum and factor of the recipe are what a step uses: seen in ‖ΔW‖ and in the buffer."""
        recipe = toy_recipe(muon__lr=0.5, muon__weight_decay=0.4, muon__momentum_start=0.5, muon__momentum=0.7)
        gpt = off_start()
        optimizers = Optimizers(gpt, recipe)
        before = _weights(gpt)
        backward(gpt, 0, ALL)
        optimizers.step(25, 0.1)
        group = optimizers.muon.param_groups[0]
        assert group["lr"] == pytest.approx(0.05)
        assert group["momentum"] == pytest.approx(0.6)
        name = "blocks.0.mlp.up.weight"
        update = (gpt.get_parameter(name) - (1 - 0.05 * 0.4) * before[name]) / (-0.05 * 2)
        assert torch.linalg.svdvals(update.detach()).median().item() == pytest.approx(1.0, abs=0.35)

    def test_rate_zero_moves_nothing(self) -> None:
        """With factor 0 neither updates nor weight decay change a weight, yet the state goes on."""
        gpt = off_start()
        optimizers = Optimizers(gpt, toy_recipe())
        before, state = _weights(gpt), optimizers.state_dict()
        backward(gpt, 0, ALL)
        optimizers.step(0, 0.0)
        assert _equal(before, _weights(gpt))
        assert not any(torch.equal(value, state[name]) for name, value in optimizers.state_dict().items())

    def test_gradients_are_freed(self) -> None:
        """After a step no parameter holds a gradient, and a step without gradients is an error."""
        gpt = off_start()
        optimizers = Optimizers(gpt, toy_recipe())
        train(gpt, optimizers, range(1), ALL)
        assert all(value.grad is None for value in gpt.parameters())
        with pytest.raises(ValueError, match="no gradient for embedding"):
            optimizers.step(1, 1.0)

    def test_hooks_fire_for_both(self) -> None:
        """torch's global step hooks see Muon and AdamW, so an outside observer misses no update."""
        gpt = off_start()
        optimizers = Optimizers(gpt, toy_recipe())
        seen: list[object] = []
        handle = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer))
        try:
            train(gpt, optimizers, range(2), ALL)
        finally:
            handle.remove()
        assert seen.count(optimizers.muon) == seen.count(optimizers.adam) == 2
        assert len(seen) == 4

    def test_training_repeats(self) -> None:
        """Two runs from one seed end with bit-equal weights, state and norms."""
        ends = []
        for _ in range(2):
            gpt = off_start()
            optimizers = Optimizers(gpt, toy_recipe())
            norms = train(gpt, optimizers, range(3), ALL)
            ends.append(_weights(gpt) | optimizers.state_dict() | dict(enumerate(norms)))
        assert _equal(*ends)

    def test_loss_falls(self) -> None:
        """From the real start, thirty steps on one batch learn it."""
        gpt = GPT(toy_recipe(), seed=1)
        optimizers = Optimizers(gpt, toy_recipe())
        tokens = torch.randint(0, 400, (2, 65), generator=torch.Generator().manual_seed(0))
        losses = []
        for step in range(30):
            loss = gpt(tokens[:, :-1], tokens[:, 1:], step >= 15).mean()
            loss.backward()
            optimizers.step(step, 1.0)
            losses.append(loss.item())
        assert losses[0] > 5.8
        assert losses[-1] < 0.5 * losses[0]


class TestState:
    @pytest.mark.parametrize("taken", [0, 2])
    def test_going_on_is_bit_equal(self, taken: int) -> None:
        """Weights and state restored, in new objects or in the old ones, continue to the bit; also from step 0."""
        gpt = off_start()
        optimizers = Optimizers(gpt, toy_recipe())
        train(gpt, optimizers, range(taken), ALL)
        weights, state = _weights(gpt), optimizers.state_dict()
        kept = {name: value.clone() for name, value in state.items()}
        train(gpt, optimizers, range(taken, taken + 2), ALL)
        expected = _weights(gpt) | optimizers.state_dict()
        assert _equal(state, kept)
        fresh = off_start(seed=2)
        for model, composed in ((gpt, optimizers), (fresh, Optimizers(fresh, toy_recipe()))):
            model.load_state_dict(weights)
            composed.load_state_dict(state)
            train(model, composed, range(taken, taken + 2), ALL)
            assert _equal(expected, _weights(model) | composed.state_dict())

    def test_names(self) -> None:
        """State is flat: one momentum per bank, three tensors per AdamW parameter, all finite tensors."""
        optimizers = Optimizers(GPT(toy_recipe(), seed=1), toy_recipe())
        state = optimizers.state_dict()
        assert {name for name in state if name.startswith("muon.")} == {
            f"muon.{shape}.momentum" for shape in ("128x32", "32x128", "32x32", "16x32")
        }
        assert len(state) == 4 + 3 * len(optimizers.replicated)
        assert {f"adam.embedding.{key}" for key in ("step", "exp_avg", "exp_avg_sq")} <= set(state)

    def test_misfits_are_refused(self) -> None:
        """A missing, an unknown or a misshapen tensor is an ArtifactError, and nothing is changed by it."""
        optimizers = Optimizers(GPT(toy_recipe(), seed=1), toy_recipe())
        state = optimizers.state_dict()
        moved = {name: value + 1 for name, value in state.items()}
        name = "muon.32x32.momentum"
        for bad in (
            {key: value for key, value in moved.items() if key != name},
            moved | {"muon.1x1.momentum": torch.zeros(1)},
            moved | {name: torch.zeros(7, 32, 32)},
            moved | {name: moved[name].double()},
        ):
            with pytest.raises(ArtifactError, match="optimizer state"):
                optimizers.load_state_dict(bad)
            assert _equal(state, optimizers.state_dict())


class TestRanks:
    def test_several_ranks_are_one(self, tmp_path: Path) -> None:
        """On 2 and on 4 ranks all end with the same bits; these are one process's within 1e-4, resumed or not."""
        sizes = (2, 4)
        multiprocessing.set_forkserver_preload(["torch", "safetensors.torch"])  # imported once, not by every child
        torch.multiprocessing.start_processes(
            ranks.run, args=(str(tmp_path), sizes), nprocs=max(sizes), start_method="forkserver"
        )
        gpt = off_start()
        norms = train(gpt, Optimizers(gpt, toy_recipe()), range(ranks.STEPS), ALL)
        for size in sizes:
            ends = [load_file(tmp_path / f"{size}.{rank}.safetensors") for rank in range(size)]
            assert all(_equal(ends[0], end) for end in ends[1:])
            torch.testing.assert_close(ends[0].pop("norms"), torch.stack(norms), rtol=1e-5, atol=0)
            for name, value in _weights(gpt).items():
                torch.testing.assert_close(
                    ends[0][name], value, rtol=0, atol=1e-4, msg=lambda text, n=name: f"{n} {text}"
                )
            for rank in range(size):
                resumed = load_file(tmp_path / f"{size}.{rank}.resumed.safetensors")
                assert _equal(ends[0], resumed)
            slices = [load_file(tmp_path / f"{size}.{rank}.state.safetensors") for rank in range(size)]
            assert {len(each["muon.32x32.momentum"]) for each in slices} == {-(-6 // size)}
            assert not torch.equal(slices[0]["muon.32x32.momentum"], slices[1]["muon.32x32.momentum"])
