"""Records in the order of the program, written when the numbers in them are there.

    queue.push((value, …), write)      write(number, …, now) is called as soon as all before it were written
    queue.settle(wait=True)            everything, now: at a phase, at the end

On a CPU every number is there at once, so the queue is always empty. On a GPU a record waits for its checksums, and
those behind it wait with it; once `MOST_WAITING` do, the oldest is waited for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from audit.recorder.tensors import Deferred, Value

MOST_WAITING = 256
"""A trainer keeps its host a few steps of some ten records ahead of the GPU, so this many are never waited for."""


class Queue:
    """Entries (when, values, write). `now` gives the time of a record, nanoseconds since the ledger began."""

    def __init__(self, now: Callable[[], int]) -> None:
        self._now = now
        self._waiting: deque[tuple[int, Sequence[Value], Callable[..., Any]]] = deque()

    def push(self, values: Sequence[Value], write: Callable[..., Any]) -> None:
        """Call `write(*numbers, now=…)` when the values are numbers and all pushed before was written."""
        self._waiting.append((self._now(), values, write))
        self.settle()

    def settle(self, *, wait: bool = False) -> None:
        """Write what can be written without waiting, or everything. What a `write` raises passes; it is not retried."""
        while self._waiting:
            now, values, write = self._waiting[0]
            if not (wait or len(self._waiting) > MOST_WAITING or all(_ready(value) for value in values)):
                return
            self._waiting.popleft()
            write(*(_number(value) for value in values), now=now)


def _ready(value: Value) -> bool:
    return not isinstance(value, Deferred) or value.ready()


def _number(value: Value) -> int:
    return value.settle() if isinstance(value, Deferred) else value
