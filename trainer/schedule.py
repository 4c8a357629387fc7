"""What each step does: learning-rate factor, whether the loops are on, and when training ends.

The fraction f of training done comes from a clock that stops during validation, or from the count of steps, or from
whichever is further. The leader decides and broadcasts, so that all ranks take the same step. Every decision is
recorded; a run that was limited by the clock can be repeated exactly by replaying its record.

    factor(f) = 1 for f < 1 - warmdown, else max((1 - f) / warmdown, lr_floor)            (pg#1394, pg#1787)
    looped    from the first step with f ≥ loop.start on                                   (pg#1394)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.distributed import World
from trainer.errors import DataError
from trainer.files import read_json
from trainer.settings import Recipe


@dataclasses.dataclass(frozen=True)
class Decision:
    """One step: the factor on all learning rates, and whether the repeated passes are on."""

    lr_factor: float
    looped: bool


@dataclasses.dataclass
class Record:
    """The decisions of a run, in order: a factor for each step, and the step at which the loops came on (or none)."""

    lr_factors: list[float] = dataclasses.field(default_factory=list)
    loop_step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"schema": 1, "steps": len(self.lr_factors), "loop_step": self.loop_step, "lr_factors": self.lr_factors}

    @classmethod
    def from_dict(cls, tree: Any, *, where: str) -> Record:
        """Inverse of `as_dict`. Raises DataError for anything that is no schedule."""
        if not isinstance(tree, Mapping) or tree.get("schema") != 1:
            raise DataError(f"{where} is no recorded schedule of schema 1; give the schedule.json of a training")
        factors, steps, loop_step = (tree.get(name) for name in ("lr_factors", "steps", "loop_step"))
        if not isinstance(factors, list) or len(factors) != steps or not factors:
            raise DataError(f"{where}: got {steps!r} steps, expected as many as it has lr_factors, and at least one")
        if not all(type(f) in (int, float) and math.isfinite(f) and 0 <= f <= 1 for f in factors):
            raise DataError(f"{where}: expected lr_factors to be numbers from 0 to 1")
        if loop_step is not None and not (type(loop_step) is int and 0 <= loop_step < len(factors)):
            raise DataError(f"{where}: got loop_step {loop_step!r}, expected null or a step below {steps}")
        return cls([float(factor) for factor in factors], loop_step)

    @classmethod
    def read(cls, path: Path) -> Record:
        return cls.from_dict(read_json(path, remedy="give the schedule.json of a training"), where=str(path))


class Clock:
    """Seconds of training: runs from `start`, stands still inside `paused`. `spent` seconds come from before."""

    def __init__(self, *, spent: float = 0.0) -> None:
        self._spent = spent
        self._since: float | None = time.perf_counter()

    def elapsed(self) -> float:
        return self._spent if self._since is None else self._spent + time.perf_counter() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._spent, self._since = self.elapsed(), None
        try:
            yield
        finally:
            self._since = time.perf_counter()


def lr_factor(fraction: float, *, warmdown: float, floor: float) -> float:
    """The factor on the learning rates at a fraction of training."""
    if fraction < 1 - warmdown or warmdown == 0:
        return 1.0
    return max((1 - fraction) / warmdown, floor, 0.0)


class Schedule:
    """Decides step by step, or repeats a record. `record` holds what was decided so far, `fraction` how far it is."""

    def __init__(self, recipe: Recipe, world: World, *, replay: Record | None = None) -> None:
        self.recipe, self.world, self.replay = recipe, world, replay
        self.record = Record()
        self.fraction = 0.0

    def decide(self, step: int, elapsed: float) -> Decision | None:
        """The decision for `step` (they are asked for in order), or None when training has ended."""
        if self.replay is not None:
            self.fraction = self.progress(step, elapsed)
            factor = self.replay.lr_factors[step] if self.fraction < 1 else 0.0
            looped = self.replay.loop_step is not None and step >= self.replay.loop_step
        else:
            (self.fraction,) = self.world.broadcast([self.progress(step, elapsed)])
            train, loop = self.recipe.train, self.recipe.loop
            factor = lr_factor(self.fraction, warmdown=train.warmdown, floor=train.lr_floor)
            looped = loop.extra_passes > 0 and (self.record.loop_step is not None or self.fraction >= loop.start)
        if self.fraction >= 1:
            return None
        if looped and self.record.loop_step is None:
            self.record.loop_step = step
        self.record.lr_factors.append(factor)
        return Decision(factor, looped)

    def progress(self, step: int, elapsed: float) -> float:
        """The fraction of training that `step` steps and `elapsed` seconds of its clock are."""
        if self.replay is not None:
            return step / len(self.replay.lr_factors)
        train = self.recipe.train
        by_steps = step / train.steps if train.steps else 0.0
        by_clock = elapsed / (train.seconds - train.reserve_seconds) if train.seconds else 0.0
        return max(by_steps, by_clock)
