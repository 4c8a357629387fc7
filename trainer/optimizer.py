"""All optimizers of a GPT as one: Muon for the block matrices, AdamW for the embedding and every vector, gain and gate.

Data flow of a step: local gradients → mean over ranks (matrices reduce-scattered by bank, the embedding all-reduced,
all small ones packed in one all-reduce) → global norm of what was reduced → clip → Muon and AdamW → gradients freed.
Nothing on the way waits for the device.

    optimizers = Optimizers(gpt, recipe)
    gpt(ids, targets, looped).mean().backward()
    norm = optimizers.step(step, lr_factor)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.errors import ArtifactError
from trainer.model import GPT
from trainer.muon import Muon
from trainer.settings import Muon as MuonRecipe
from trainer.settings import Recipe

PACKED_ELEMENTS = 32_768
"""Replicated gradients up to this size share one all-reduce."""


def momentum_at(step: int, recipe: MuonRecipe) -> float:
    """Muon's momentum: linear from momentum_start at step 0 to momentum at momentum_warmup_steps, then constant."""
    risen = min(step / recipe.momentum_warmup_steps, 1.0) if recipe.momentum_warmup_steps else 1.0
    return recipe.momentum_start + risen * (recipe.momentum - recipe.momentum_start)


class Optimizers:
    """Muon and AdamW over a GPT. With a process group the gradients are its ranks' mean; None is one process alone."""

    def __init__(self, gpt: GPT, recipe: Recipe, *, group: dist.ProcessGroup | None = None) -> None:
        self.recipe = recipe
        self.group = group
        matrices = gpt.matrices()
        self.replicated = {name: value for name, value in gpt.named_parameters() if name not in matrices}
        muon = recipe.muon
        self.muon = Muon(
            matrices.values(),
            lr=muon.lr,
            momentum=muon.momentum_start,
            weight_decay=muon.weight_decay,
            newton_schulz_steps=muon.newton_schulz_steps,
            coefficients=muon.coefficients,
            equilibrate_rows=muon.equilibrate_rows,
            group=group,
        )
        self.adam = _adam(self.replicated, recipe)
        self.rates = [(each, each["lr"]) for optimizer in (self.muon, self.adam) for each in optimizer.param_groups]

    @torch.no_grad()
    def step(self, step: int, lr_factor: float) -> Tensor:
        """Update all parameters from their gradients and free these; returns the gradient's norm before clipping.

        `step` counts from 0 and sets Muon's momentum; `lr_factor` multiplies every learning rate, and with it the
        decoupled weight decay. The norm is an fp32 scalar on the device, equal on all ranks.
        """
        for each, rate in self.rates:
            each["lr"] = rate * lr_factor
        self.muon.param_groups[0]["momentum"] = momentum_at(step, self.recipe.muon)
        replicated = self._replicated_gradients()
        finish = _start_mean(replicated, self.group)
        shards = self.muon.reduce()
        finish()
        norm = self._norm(shards, replicated)
        if self.recipe.train.clip:
            factor = (self.recipe.train.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([*shards, *replicated], factor)
        self.adam.step()
        self.muon.step()
        self.adam.zero_grad()
        self.muon.zero_grad()
        return norm

    def _replicated_gradients(self) -> list[Tensor]:
        found = {name: value.grad for name, value in self.replicated.items()}
        if missing := [name for name, grad in found.items() if grad is None]:
            raise ValueError(f"no gradient for {', '.join(missing)}; run backward before the optimizers' step")
        return [grad for grad in found.values() if grad is not None]

    def _norm(self, shards: list[Tensor], replicated: list[Tensor]) -> Tensor:
        """Norm of the reduced gradient: every rank holds its own shards and all of what is replicated."""
        matrices = _square_sum(shards)
        if self.group is not None:
            dist.all_reduce(matrices, group=self.group)
        return (matrices + _square_sum(replicated)).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of all state as flat names: `muon.ROWSxCOLS.momentum`, `adam.PARAMETER.{step,exp_avg,exp_avg_sq}`.

        Complete for this rank: Muon's momentum is the rank's own slice, so each rank keeps its own state.
        """
        return {name: value.detach().clone() for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on as after `state_dict` was taken, to the bit. Raises ArtifactError, changing nothing, if it misfits."""
        own = self._state()
        if wrong := sorted(set(own) ^ set(state)):
            raise ArtifactError(
                f"optimizer state: expected {len(own)} tensors, got {len(state)}, {wrong[0]} is in one only; "
                "resume with the recipe of the checkpoint"
            )
        for name, value in own.items():
            if value.shape != state[name].shape or value.dtype != state[name].dtype:
                raise ArtifactError(
                    f"optimizer state {name}: got {state[name].dtype} {list(state[name].shape)}, "
                    f"expected {value.dtype} {list(value.shape)}; "
                    "resume with the recipe and the number of ranks of the checkpoint"
                )
        for name, value in own.items():
            value.copy_(state[name])

    def _state(self) -> dict[str, Tensor]:
        state = {f"muon.{bank.name}.momentum": self.muon.momentum(bank) for bank in self.muon.banks}
        for name, parameter in self.replicated.items():
            state |= {f"adam.{name}.{key}": value for key, value in self.adam.state[parameter].items()}
        return state


def _adam(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """Fused AdamW with the embedding in one group and all else in another; state made now, so it is never absent."""
    settings = recipe.adam
    rest = [value for name, value in parameters.items() if name != "embedding"]
    adam = torch.optim.AdamW(
        [
            {
                "params": [parameters["embedding"]],
                "lr": settings.embed_lr,
                "weight_decay": settings.embed_weight_decay,
            },
            {"params": rest, "lr": settings.scalar_lr, "weight_decay": settings.scalar_weight_decay},
        ],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
    for value in parameters.values():
        adam.state[value] = {
            "step": torch.zeros((), dtype=torch.float32, device=value.device),
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": torch.zeros_like(value),
        }
    return adam


def _start_mean(grads: list[Tensor], group: dist.ProcessGroup | None) -> Callable[[], None]:
    """Begin to average gradients over ranks, small ones packed in one all-reduce; the result ends it, in place."""
    if group is None:
        return lambda: None
    small = [grad for grad in grads if grad.numel() <= PACKED_ELEMENTS]
    large = [grad for grad in grads if grad.numel() > PACKED_ELEMENTS]
    packed = torch.cat([grad.flatten() for grad in small])
    works = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in (*large, packed)]

    def finish() -> None:
        for work in works:
            work.wait()
        pieces = torch.split(packed, [grad.numel() for grad in small])
        torch._foreach_copy_(small, [piece.view_as(grad) for piece, grad in zip(pieces, small, strict=True)])
        torch._foreach_div_(grads, dist.get_world_size(group))

    return finish


def _square_sum(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors)).square().sum()
