"""One training: from a seed, a recipe and token shards to averaged weights, Hessians and a recorded schedule.

    draw → forward, backward over the step's micro-batches → one optimizer step → average → (now and then) validate

At the end, still inside the training clock, the Hessians of the averaged weights are collected on training sequences;
so whatever comes later needs no training data. Validation, compile warm-up and writing stand outside the clock.

Announced (PEP 578), whoever listens: `golf.draw` (loader), `golf.step` with the draws it uses, `golf.score` (scoring),
`golf.calibrate` (calibration), `golf.weights` whenever weights change by anything else than a step (warm-up restored,
average swapped in, resumed).

A killed training goes on from its last checkpoint, to the same bits on a CPU, if recipe, sources, data and number of
ranks are the same; else it starts anew and says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import calibration, checkpoint
from trainer.attention import attention_backend
from trainer.data import DataSet
from trainer.device import Queue, autocast, pair
from trainer.distributed import World, check_replicas, fingerprint
from trainer.errors import ArtifactError, GolfError
from trainer.files import read_json, write_json, write_text
from trainer.identity import Identity
from trainer.loader import Batch, Loader
from trainer.model import GPT, called
from trainer.optimizer import Optimizers
from trainer.runlog import RunLog
from trainer.schedule import Clock, Decision, Record, Schedule
from trainer.scoring import Score, Targets, describe, score
from trainer.settings import VIRTUAL_RANKS, Recipe


class Average:
    """Exponential moving average of all parameters, fp32, from step 0: e ← d·e + (1 - d)·w."""

    def __init__(self, gpt: GPT, *, decay: float) -> None:
        self.decay = decay
        self.parameters: list[torch.Tensor] = list(gpt.parameters())
        self.shadow = [parameter.detach().clone().float() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - self.decay)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Make the average the model's weights."""
        torch._foreach_copy_(self.parameters, self.shadow)
        sys.audit("golf.weights", "average swapped in")


class Training:
    """The state of one training and the steps that move it. `run` is the whole story; the rest are its sentences."""

    def __init__(self, recipe: Recipe, data: DataSet, world: World, *, seed: int, log: RunLog) -> None:
        self.recipe, self.data, self.world, self.seed, self.log = recipe, data, world, seed, log
        self.identity = Identity.of(recipe, stage="train", data_digest=data.digest)
        self.gpt = GPT(recipe, seed=seed).to(world.device)
        self.optimizers = Optimizers(self.gpt, recipe, group=world.group)
        self.average = Average(self.gpt, decay=recipe.train.ema)
        self.forward = called(self.gpt, compiled=recipe.train.compile and world.device.type == "cuda")
        self.loader = Loader(
            shards=data.train,
            length=recipe.train.sequence_length,
            sequences=recipe.train.sequences_per_rank,
            micro=recipe.train.micro_sequences,
            seed=seed,
            virtual_ranks=world.virtual_ranks,
            threads=recipe.train.prefetch,
        )
        replay = Record.read(Path(recipe.train.replay)) if recipe.train.replay else None
        self.schedule = Schedule(recipe, world, replay=replay)
        self.targets = Targets.of(data, length=recipe.train.sequence_length)
        self.losses: list[tuple[int, float, float]] = []
        self.unread: list[tuple[int, torch.Tensor, float]] = []
        self.validations: list[tuple[int, float, float]] = []
        self.draws = "none"
        self.tokens_per_step = VIRTUAL_RANKS * recipe.train.sequences_per_rank * recipe.train.sequence_length

    # One step

    def step(self, number: int, batches: list[Batch], decision: Decision) -> torch.Tensor:
        """Forward and backward over the micro-batches, then one optimizer step. Returns the mean loss, nats."""
        rows = sum(len(batch.rows) for batch in batches)
        total = torch.zeros((), device=self.world.device)
        for batch in batches:
            with autocast(self.world.device):
                losses = self.forward(*pair(batch.rows, self.world.device), decision.looped)
            loss = losses.mean() * (len(batch.rows) / rows)
            torch.autograd.backward(loss)
            total += loss.detach()
        drawn = b"".join(batch.shards.tobytes() + batch.starts.tobytes() for batch in batches)
        self.draws = "sha256:" + hashlib.sha256(self.draws.encode() + drawn).hexdigest()
        draws = tuple(batch.draw for batch in batches)
        self.world.collectives += 1
        sys.audit("golf.step", number, draws, decision.lr_factor, decision.looped, self.world.collectives)
        self.optimizers.step(number, decision.lr_factor)
        self.average.update()
        return total

    # State: what a checkpoint keeps and the warm-up gives back

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor that a step changes, by name; the tensors themselves, not copies."""
        names = [name for name, _ in self.gpt.named_parameters()]
        found = {f"model.{name}": parameter.detach() for name, parameter in self.gpt.named_parameters()}
        found |= {f"average.{name}": tensor for name, tensor in zip(names, self.average.shadow, strict=True)}
        return found | {f"optimizer.{name}": tensor for name, tensor in self.optimizers.state_dict().items()}

    @torch.no_grad()
    def restore(self, saved: dict[str, torch.Tensor], *, why: str) -> None:
        """Put a copy of `state` back. Raises ArtifactError if it is not one of this model."""
        shapes = {name: tensor.shape for name, tensor in self.state().items()}
        if {name: tensor.shape for name, tensor in saved.items()} != shapes:
            raise ArtifactError("the checkpoint holds other tensors than this model; remove it and run again")
        for name, parameter in self.gpt.named_parameters():
            parameter.copy_(saved[f"model.{name}"])
        for (name, _), shadow in zip(self.gpt.named_parameters(), self.average.shadow, strict=True):
            shadow.copy_(saved[f"average.{name}"])
        prefix = "optimizer."
        self.optimizers.load_state_dict({n.removeprefix(prefix): t for n, t in saved.items() if n.startswith(prefix)})
        sys.audit("golf.weights", why)

    def warm_up(self) -> None:
        """Compile every form and batch size by real steps on random ids, then put everything back.

        No trace is left in any state, and nothing remains to be compiled inside the clock.
        """
        count = self.recipe.train.warmup_steps
        if not count:
            return
        saved = {name: tensor.clone() for name, tensor in self.state().items()}
        random = np.random.default_rng(0)
        forms = (False, True) if self.recipe.loop.extra_passes else (False,)
        for looped, sequences in itertools.product(forms, self.loader.batch_sizes):
            shape = (sequences, self.recipe.train.sequence_length + 1)
            for _ in range(count):
                rows = random.integers(0, self.recipe.tokens.vocab_size, shape, dtype=np.uint16)
                with autocast(self.world.device):
                    loss = self.forward(*pair(rows, self.world.device), looped).mean()
                torch.autograd.backward(loss)
                self.optimizers.step(0, 1.0)
        self.restore(saved, why="warm-up restored")

    # Checkpoints

    def save(self, folder: Path, step: int, elapsed: float) -> None:
        """A checkpoint to resume from before `step`: every rank's state, then one file that makes it valid."""
        self.read_losses()
        here = folder / f"step_{step:06d}"
        progress = {
            "losses": self.losses,
            "validations": self.validations,
            "record": self.schedule.record.as_dict() if step else None,
            "elapsed": elapsed,
            "draws": self.draws,
        }
        tensors = {name: tensor.cpu() for name, tensor in self.state().items()}
        checkpoint.save(here / f"rank{self.world.rank}.safetensors", tensors, {"progress": json.dumps(progress)})
        self.world.barrier()
        if self.world.leader:
            latest = {"step": step, "ranks": self.world.size, "seed": self.seed} | dataclasses.asdict(self.identity)
            write_json(folder / "latest.json", latest)
            for other in folder.glob("step_*"):
                if other != here:
                    shutil.rmtree(other)
        self.world.barrier()

    def resume(self, folder: Path) -> tuple[int, float]:
        """Go on from the last checkpoint in `folder`, if it is of these inputs: (next step, elapsed seconds)."""
        if not (folder / "latest.json").exists():
            return 0, 0.0
        latest = read_json(folder / "latest.json", remedy=f"remove {folder}")
        wanted = {"ranks": self.world.size, "seed": self.seed} | dataclasses.asdict(self.identity)
        same = isinstance(latest, dict) and type(latest.get("step")) is int
        differing = [name for name, value in wanted.items() if not same or latest.get(name) != value]
        if differing:
            self.log.line(f"the checkpoint in {folder} is of another {', '.join(differing)}: starting anew")
            self.world.barrier()  # all ranks have read it
            if self.world.leader:
                shutil.rmtree(folder)
            self.world.barrier()
            return 0, 0.0
        step = int(latest["step"])
        path = folder / f"step_{step:06d}" / f"rank{self.world.rank}.safetensors"
        try:
            tensors, metadata = checkpoint.load(path)
        except ArtifactError as error:
            raise ArtifactError(f"remove the folder {folder} to start anew: {error}") from None
        self.restore({name: tensor.to(self.world.device) for name, tensor in tensors.items()}, why="resumed")
        progress = json.loads(metadata["progress"])
        self.losses = [tuple(row) for row in progress["losses"]]
        self.validations = [tuple(row) for row in progress["validations"]]
        if progress["record"]:
            self.schedule.record = Record.from_dict(progress["record"], where=str(folder))
        self.draws = progress["draws"]
        self.log.line(f"resumed at step {step}")
        return step, float(progress["elapsed"])

    # The whole

    def run(self, out: Path, resume: Path) -> dict[str, Any]:
        """Train, collect Hessians, validate, write the outputs into `out`. Returns the metrics it wrote."""
        with self.log.phase("warm-up"):
            self.warm_up()
        first, spent = self.resume(resume)
        with self.log.phase("training"):
            steps, elapsed = self.train(first, spent, resume)
            self.average.swap_in()
        with self.log.phase("hessians"):
            hessian = self.collect(steps)
        elapsed += self.log.phases["hessians"]
        check_replicas(self.gpt, self.world)
        # The curve ends with the averaged weights, which is what goes on from here.
        self.validations = [row for row in self.validations if row[0] != steps]
        final = self.validate(steps, looped=True, weights="averaged")
        self.log.line(f"{steps} steps in {elapsed:.1f} s of the training clock")
        self.log.measured["training_clock_seconds"] = round(elapsed, 4)
        if self.world.device.type == "cuda":
            self.log.measured["peak_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        with self.log.phase("writing"):
            return self.write(out, steps, final, hessian)

    def train(self, step: int, spent: float, folder: Path) -> tuple[int, float]:
        """The loop, from `step` to the end that the schedule decides: (steps done, seconds on the training clock)."""
        every = self.recipe.train
        clock, queue, first = Clock(spent=spent), Queue(self.world.device), step
        loader = self.loader.steps(step)
        while True:
            queue.wait()
            due = step == 0 or any(n and step % n == 0 for n in (every.eval_every, every.checkpoint_every))
            if due:
                queue.drain()  # steps that the GPU has not finished belong to the clock
            if step == 0 or (every.eval_every and step % every.eval_every == 0 and step > first):
                with clock.paused():
                    self.validate(step, looped=self.schedule.record.loop_step is not None)
            if every.checkpoint_every and step % every.checkpoint_every == 0 and step > first:
                with clock.paused(), self.log.phase("checkpoints"):
                    self.save(folder, step, clock.elapsed())
            decision = self.schedule.decide(step, clock.elapsed())
            if decision is None:
                break
            loss = self.step(step, next(loader), decision)
            queue.push()
            step += 1
            self.unread.append((step, loss, decision.lr_factor))
            if step % every.log_every == 0 or step == 1:
                now = clock.elapsed()
                self.report(step, decision, self.schedule.progress(step, now), speed=(step - first) / (now - spent))
        loader.close()
        queue.drain()
        elapsed = clock.elapsed()
        self.read_losses()
        return step, elapsed

    def read_losses(self) -> None:
        """Read the losses of all steps since the last time, mean over ranks, with one wait for the device."""
        if not self.unread:
            return
        means = self.world.sum_(torch.stack([loss for _, loss, _ in self.unread])) / self.world.size
        for (step, _, factor), nats in zip(self.unread, means.tolist(), strict=True):
            if not math.isfinite(nats):
                raise GolfError(
                    f"the loss at step {step} is {nats}; lower muon.lr or adam.embed_lr, or look at the data"
                )
            self.losses.append((step, nats, factor))
            self.log.event("step", step=step, train_loss_nats=nats, lr_factor=factor)
        self.unread.clear()

    def report(self, step: int, decision: Decision, done: float, *, speed: float) -> None:
        """Log where training stands, a fraction `done`; `speed` is in steps a second of the training clock."""
        self.read_losses()
        nats = self.losses[-1][1]
        tokens = speed * self.tokens_per_step
        self.log.measured["tokens_per_second"] = round(tokens, 1)
        done = min(done, 1.0)
        left = (1 - done) / done * step / speed
        loops = "on" if decision.looped else "off"
        note = f"loss {nats:.4f} nats, lr factor {decision.lr_factor:.3f}, loops {loops}"
        self.log.line(f"step {step}, {done:.0%} done: {note}, {tokens:,.0f} tokens/s, {left:.0f} s left")
        self.log.progress(done, 1.0, what=f"training, seed {self.seed}", note=f"step {step}, {note}")

    def validate(self, step: int, *, looped: bool, weights: str = "current") -> Score:
        """Score the validation split in sequential windows, outside the training clock."""
        with self.log.phase("validation"):
            length = self.recipe.train.sequence_length
            found = score(
                self.gpt,
                self.targets,
                length=length,
                stride=length,
                batch=self.recipe.train.micro_sequences,
                world=self.world,
                label=f"train@{step}, {weights} weights",
                looped=looped,
            )
        self.validations.append((step, found.val_loss_nats, found.val_bpb))
        self.log.event("validation", step=step, weights=weights, **found.as_dict())
        self.log.line(f"step {step}: validation of the {weights} weights: {describe(found)}")
        return found

    def collect(self, steps: int) -> dict[str, torch.Tensor]:
        """Hessians of the averaged weights with the loops on, averaged over ranks."""
        return calibration.collect(self.gpt, self.calibration(steps, self.world.virtual_ranks), self.world)

    def calibration(self, steps: int, virtual_ranks: Sequence[int]) -> list[Batch]:
        """The training sequences behind the Hessians: what the virtual ranks would have drawn next."""
        wanted = self.recipe.calibration
        loader = dataclasses.replace(self.loader, virtual_ranks=virtual_ranks)
        return loader.calibration(steps, batches=wanted.batches, sequences=wanted.sequences)

    def write(self, out: Path, steps: int, final: Score, hessian: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The outputs of the stage; only the leader writes, also the calibration sequences of all ranks."""
        first = self.validations[0]
        end = Identity.of(self.recipe, stage="train", data_digest=self.data.digest)
        metrics = {
            "seed": self.seed,
            **dataclasses.asdict(self.identity),
            "identity_at_end": dataclasses.asdict(end),
            "training_digest": self.data.training_digest,
            "parameters": sum(parameter.numel() for parameter in self.gpt.parameters()),
            "steps": steps,
            "loop_step": self.schedule.record.loop_step,
            "train_tokens": steps * self.tokens_per_step,
            "first_val_bpb": first[2],
            "first_val_loss_nats": first[1],
            "pre_quant_val_bpb": final.val_bpb,
            "pre_quant_val_loss_nats": final.val_loss_nats,
            "calibration_sequences": self.recipe.calibration.batches * self.recipe.calibration.sequences,
            "attention": attention_backend(self.world.device.type),
            "weights_digest": fingerprint(self.gpt),
            "leader_draws_digest": self.draws,
        }
        if end != self.identity:
            self.log.line("warning: sources, recipe or data changed while this training ran")
        if self.world.leader:
            checkpoint.save(
                out / "model.safetensors", {n: p.detach().cpu() for n, p in self.gpt.named_parameters()}, {}
            )
            sites = {"sites": json.dumps(self.gpt.sites)}
            checkpoint.save(out / "hessians.safetensors", {name: h.cpu() for name, h in hessian.items()}, sites)
            calibration.save(out / "calibration.safetensors", self.calibration(steps, range(VIRTUAL_RANKS)))
            write_json(out / "schedule.json", self.schedule.record.as_dict())
            write_table(out / "train_loss.tsv", ("step", "train_loss_nats", "lr_factor"), self.losses)
            write_table(out / "validation.tsv", ("step", "val_loss_nats", "val_bpb"), self.validations)
            write_json(out / "metrics.json", metrics)
        return metrics


def write_table(path: Path, columns: tuple[str, ...], rows: list[tuple[int, float, float]]) -> None:
    """Tab-separated values with a header, as DVC's plots read them."""
    write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in [columns, *rows]))
