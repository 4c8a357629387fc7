"""The models that a program announced and the optimizers that step: what of them is noted, and their fingerprints.

    models.add(module, hear)      a hook before its forward; facts for a note `model`
    models.state()                fingerprint of all parameters of the announced models that are alive
    optimizers.of(optimizer)      its number, and whether the facts for a note `optimizer` changed

Nothing is kept alive: a model that the program drops goes, and its going is a fact.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from audit.recorder.tensors import Places, Sum, Value, same

Hear = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], None]
"""Told before an announced model's forward: the model, its arguments, its keyword arguments."""


class _Ear:
    """A hook on a module that is nothing inside a compiled graph, and nothing in a copy of the module."""

    def __init__(self, act: Callable[..., None]) -> None:
        self._act = act

    def __call__(self, *arguments: Any) -> None:
        # What is compiled or traced leaves this out of its graph. A compiled wrapper is announced too, heard outside.
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return
        self._act(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled or deep-copied with its module: a bound method that does nothing, found wherever Python is.
        return getattr, (contextlib.nullcontext(), "__exit__")


class Models:
    """The announced models. Of nested ones (a compiled wrapper and what it wraps) the outermost call counts."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._alive: list[tuple[int, weakref.ref[nn.Module]]] = []
        self._wrappers: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._depth = 0
        self._sum: Sum | None = None
        self.announced = 0

    def add(self, model: nn.Module, hear: Hear) -> Mapping[str, Any] | None:
        """Register a model; returns the facts of its note, None if it is known."""
        if any(known() is model for _, known in self._alive):
            return None
        facts = {"index": self.announced, "class": type(model).__name__, **_described(model.named_parameters())}
        self._alive.append((self.announced, weakref.ref(model, self._dropped)))
        self.announced += 1
        model.register_forward_pre_hook(_Ear(functools.partial(self._before, hear)), with_kwargs=True)
        self._watch_wrappers()
        self._places.announce(model.parameters())
        self._sum = None
        return facts

    def gone(self) -> list[int]:
        """The models that the program has dropped since the last call."""
        found = [index for index, model in self._alive if model() is None]
        self._alive = [(index, model) for index, model in self._alive if model() is not None]
        return found

    def parameters(self) -> list[Tensor]:
        """Every parameter of the models that are alive, once, in the order of announcement."""
        found: dict[int, Tensor] = {}
        for _, reference in self._alive:
            if (model := reference()) is not None:
                found |= {id(parameter): parameter for parameter in model.parameters()}
        return list(found.values())

    def state(self) -> Value:
        """The fingerprint of `parameters`; 0 if there are none."""
        parameters = self.parameters()
        if self._sum is None or not same(self._sum.parameters, parameters):
            self._sum = Sum(parameters, self._places)
        return self._sum.value()

    def _watch_wrappers(self) -> None:
        """Models that contain another announced one must also be seen to end."""
        alive = [model for _, reference in self._alive if (model := reference()) is not None]
        for outer in alive:
            inside = {id(module) for module in outer.modules() if module is not outer}
            if outer not in self._wrappers and any(id(inner) in inside for inner in alive):
                self._wrappers.add(outer)
                outer.register_forward_hook(_Ear(self._after), always_call=True)

    def _before(self, hear: Hear, model: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        if not self._depth:
            hear(model, arguments, options)
        self._depth += model in self._wrappers

    def _after(self, model: nn.Module, arguments: Any, result: Any) -> None:
        self._depth = max(self._depth - 1, 0)

    def _dropped(self, _: Any) -> None:
        self._sum = None  # its views would keep the memory of the parameters


@dataclass
class _Known:
    """An optimizer that stepped: the fingerprint of what it moves, and what was noted of it."""

    parameters: list[Tensor]
    """All that it moves."""
    sum: Sum
    facts: Mapping[str, Any]
    announced: int
    """How many models were, when it was last looked at."""


class Optimizers:
    """The optimizers that stepped, by the order of their first step.

    Of an optimizer that moves parameters of announced models, these alone have its fingerprint: so whatever else it
    moves, what it added to the model is known. Of any other one, all of its parameters have.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._known = WeakIdKeyDictionary()
        self._count = 0

    def of(self, optimizer: torch.optim.Optimizer, models: Models) -> tuple[int, Sum, Mapping[str, Any] | None]:
        """The optimizer's number, its sum, and the facts of a note if it, its parameters or their places are new."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        known: _Known | None = self._known.get(optimizer)  # type: ignore[no-untyped-call]
        if known is not None and known.announced == models.announced and same(known.parameters, parameters):
            return known.facts["index"], known.sum, None
        index = self._count if known is None else known.facts["index"]
        found = self._look(index, type(optimizer).__name__, parameters, models)
        if known is not None and found.facts == known.facts and found.sum.same(known.sum):
            known.parameters, known.announced = parameters, models.announced
            return index, known.sum, None
        self._count += known is None
        self._known[optimizer] = found
        return index, found.sum, found.facts

    def _look(self, index: int, name: str, parameters: list[Tensor], models: Models) -> _Known:
        owned = {id(parameter) for parameter in models.parameters()}
        inside = [parameter for parameter in parameters if id(parameter) in owned]
        taken = inside or parameters
        facts = {
            "index": index,
            "class": name,
            "parameters": sum(parameter.numel() for parameter in taken),
            "covers_model": bool(inside),
            "apart": not inside,
        }
        return _Known(parameters, Sum(taken, self._places), facts, models.announced)


def _described(named: Iterable[tuple[str, Tensor]]) -> Mapping[str, Any]:
    """Elements and tensors, and a digest over names, shapes and types."""
    rows = [(name, tuple(tensor.shape), str(tensor.dtype), tensor.numel()) for name, tensor in named]
    digest = hashlib.sha256("".join(f"{name} {shape} {dtype}\n" for name, shape, dtype, _ in rows).encode())
    return {
        "parameters": sum(row[3] for row in rows),
        "tensors": len(rows),
        "shapes": "sha256:" + digest.hexdigest(),
    }
