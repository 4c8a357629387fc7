"""One process that trains, as it goes: what happens becomes entries of the queue, whose numbers may come later.

    recording = Recording(writer, guard=hook.guard, began=…)
    announced.hear(recording, event, arguments)              a `golf.*` event (`audit.recorder.announced`)
    recording.before_step(optimizer), .after_step(optimizer) from torch's global hooks
    recording.forward(model, arguments, options)             from a hook on each announced model
    recording.content(…), .begin_scoring(…), .end_scoring()  from `audit.watching`

This side knows what needs no checksum: whether a step was announced, whether anything moved since the last forward.
What needs one is `story`'s. Fingerprints of all parameters are recorded at each moment that the program announces, and
at a forward under gradients before which no torch optimizer moved anything: so an optimizer that torch does not know
shows as a change without an update.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audit.ledger import Writer
from audit.recorder.outside import Outside
from audit.recorder.parameters import Models, Optimizers
from audit.recorder.queue import Queue
from audit.recorder.story import Content, Story
from audit.recorder.tensors import Places, Sum, Value, checksum

TICK = 1 << 16
"""Time is told to 66 µs: two bytes of each record's time are zero, 1.3 of 17 bytes for a sequence at the CPU scale."""

Guard = Callable[..., None]


class Recording:
    """The ledger of this process while it grows."""

    def __init__(self, writer: Writer, *, guard: Guard, began: int) -> None:
        self.writer, self.guard = writer, guard
        self.story = Story(writer)
        self.queue = Queue(lambda: writer.now() // TICK * TICK or 1)
        places = Places()
        self.models, self.optimizers = Models(places), Optimizers(places)
        self.artifact: str | None = None
        self.ended = False
        """Whether the program announced that it has done its work."""
        self._opened = time.monotonic_ns() - writer.now()
        self.seconds_before = max(self._opened - began, 0) / 1e9
        """From the beginning of the run to that of the ledger."""
        self._next_content = 0
        self._covered = False
        self._stepped: set[int] = set()
        self._moved = False
        self._blocks = 0
        self._before: dict[int, tuple[int, Sum, Value]] = {}

    # Notes and states

    def note(self, name: str, facts: Mapping[str, Any], clock: Mapping[str, Any] | None = None) -> None:
        """A rare fact, in its place among the records."""
        self.queue.push((), partial(self.story.write, "note", name, facts, clock or {}))

    def outside(self, found: Outside, when: int) -> None:
        """A note of something that the interpreter reported at `when`, by `time.monotonic_ns`."""
        before = max(self._opened - when, 0) / 1e9
        clock = dict(found.clock) | ({"seconds_before": before} if before else {})
        self.note(found.name, found.facts, clock)

    def failure(self, what: str, error: str) -> None:
        """Something that the recorder could not do."""
        self.note("recorder", {"what": what}, {"error": error[:500]})

    def state(self) -> None:
        """The fingerprint of all parameters of the announced models, if there are any."""
        if self.models.announced:
            self.queue.push((self.parameters(),), self._write_state)

    def parameters(self) -> Value:
        """That fingerprint; a model that went since the last one is noted first."""
        for index in self.models.gone():
            self.note("model", {"index": index, "gone": True})
        return self.models.state()

    def _write_state(self, parameters: int, *, now: int) -> None:
        self.story.write("state", parameters=parameters, now=now)

    # What the program announces

    def model(self, module: nn.Module) -> None:
        """Hear a model's forwards and keep its parameters in the states from here on."""
        self.state()  # of the models so far, so that a model's coming explains no change but its own
        facts = self.models.add(module, self._hear)
        if facts is not None:
            self.note("model", facts)
            self.state()

    def announced_step(self) -> None:
        """The next steps of torch's optimizers, until something enters the model, belong to an announced step."""
        self._covered = True
        self._stepped.clear()

    def drawn(self, draw: int) -> None:
        """Ids of `audit.watch` stay above those that the program gives."""
        self._next_content = max(self._next_content, draw + 1)

    # What torch reports

    def _hear(self, model: nn.Module, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self.guard("forward", self.forward, arguments, options)

    def forward(self, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """The first tensor that an announced model is called with, and whether gradients are recorded."""
        ids = next((value for value in (*arguments, *options.values()) if isinstance(value, Tensor)), None)
        if ids is None:
            raise TypeError("an announced model was called without a tensor")
        grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if grad and not self._moved:
            self.state()
        if grad:
            self._covered = self._moved = False
        write = partial(self.story.forward, tokens=ids.numel(), grad=grad, ids=ids if grad else None)
        self.queue.push((checksum(ids),), write)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Right before a torch optimizer moves its parameters."""
        index, parameters, facts = self.optimizers.of(optimizer, self.models)
        if facts is not None:
            self.note("optimizer", facts)
        if not self._covered or index in self._stepped:
            self.queue.push((), partial(self.story.implied_step, models=self.models.announced > 0))
            self.announced_step()
        self._stepped.add(index)
        self._before[id(optimizer)] = index, parameters, parameters.value()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Right after."""
        index, parameters, before = self._before.pop(id(optimizer))
        self._moved = True
        self.queue.push((before, parameters.value()), partial(self._write_update, index))

    def _write_update(self, optimizer: int, before: int, after: int, *, now: int) -> None:
        self.story.write("update", optimizer=optimizer, before=before, after=after, now=now)

    # What `audit.watching` tells

    def content(self, split: str, content: Content) -> None:
        """A batch handed out by a watched loader."""
        draw, self._next_content = self._next_content, self._next_content + 1
        values = (self.parameters() if self._blocks else 0,)
        self.queue.push(values, partial(self.story.content, draw, split, content))

    def begin_scoring(self, model: nn.Module, label: str, counted: bool) -> None:
        """What is handed out or enters the model from here on is scored."""
        self.model(model)
        self._blocks += 1
        self.queue.push((), partial(self.story.begin_scoring, label, counted))

    def end_scoring(self) -> None:
        """The innermost scoring ends."""
        self._blocks -= 1
        self.queue.push((self.parameters(),), self.story.end_scoring)
        self.flush()

    # Ends

    def flush(self) -> None:
        """Write all that happened so far as a block."""
        self.queue.settle(wait=True)
        self.writer.flush()

    def seal(self, ended: str) -> None:
        """The end of a finished program."""
        self.queue.settle(wait=True)
        self.writer.seal({"artifact": self.artifact, "ended": ended})
