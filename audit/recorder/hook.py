"""The ear of the recorder: one audit hook for the process, which can't be removed and never raises into the program.

    attach(out=folder, previous=seal)     at the start of the process
    current()                             the hook of this process, None if it isn't recorded

Events that the interpreter reports wait in a list. The ledger `rankN.ledger` (N = RANK or 0) is made when the process
first does something of training: a `golf.*` event, a step of a torch optimizer, `audit.watch` or `audit.scoring`. So
launchers and the workers of a DataLoader write nothing. A forked child neither writes nor extends its parent's ledger.

A failure of our own becomes a note `recorder`, with which no rule can pass; if even that can't be written, one line on
stderr says so and the ledger stays unsealed. Only the standard library is imported before training begins.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audit.recorder import outside

if TYPE_CHECKING:
    from audit.recorder.recording import Recording

MOST_EARLY = 10_000
"""Events of the interpreter that are kept until they can be written; more than these are counted."""
MOST_KNOWN = 4096
"""Events of the interpreter that are remembered, so that each is noted once between two announced moments."""
MOMENTS = frozenset({"golf.run", "golf.phase", "golf.artifact", "golf.end"})
"""After these, what was noted before is noted again: when a shard was opened, or a socket, is what matters."""
TORCH_OPTIMIZER = "torch.optim.optimizer"


class Hook:
    """What a process is heard by. `guard` is the way in for everything that may write."""

    def __init__(self, out: Path, previous: bytes, began: int) -> None:
        self.out, self.previous, self.began = out, previous, began
        self.silent = False
        """Nothing is recorded any more: a forked child, a sealed ledger, or one that can't be written."""
        self.returned: int | None = None
        """The exit code of a program that `audit.running` runs in this process."""
        self._recording: Recording | None = None
        self._lock = threading.RLock()
        self._inside: set[int] = set()
        self._early: deque[tuple[int, outside.Outside]] = deque()
        self._lost = 0
        self._known: set[object] = set()
        self._failures: set[tuple[str, str]] = set()
        self._awaits_torch = True

    def install(self) -> None:
        """Begin to hear. Registered first of all, our last word comes after that of every `atexit` of the program."""
        atexit.register(self.finish)
        os.register_at_fork(after_in_child=self._forked)
        self._find_torch()
        sys.addaudithook(self._ear())

    def _ear(self) -> Callable[[str, tuple[Any, ...]], None]:
        """The audit hook. A plain function, because the interpreter calls it at every import, open and compilation."""
        noted = outside.HEARD

        def ear(event: str, arguments: tuple[Any, ...]) -> None:
            if event in noted:
                self._hear(event, arguments)
            elif event[:5] == "golf.":
                self.guard(event, self._announced, event, arguments)
            elif event == "import" and self._awaits_torch:
                self._find_torch()

        return ear

    def guard(self, what: str, act: Callable[..., Any], *arguments: Any) -> None:
        """Do something of ours: one thread at a time, not inside ourselves, and whatever goes wrong is noted."""
        thread = threading.get_ident()
        if self.silent or thread in self._inside:
            return
        with self._lock:
            self._inside.add(thread)
            try:
                act(*arguments)
            except Exception as cause:
                self._failed(what, cause)
            finally:
                self._inside.discard(thread)

    def recording(self) -> Recording:
        """What turns events into records, made at its first use. For callers inside `guard`."""
        if self._recording is None:
            from audit.ledger import Writer

            # First of all, and before torch is imported: another process may record this rank already.
            rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
            path = self.out / f"rank{rank}.ledger"
            writer = Writer.create(path, rank=rank, ranks=ranks, previous=self.previous)
            from audit.recorder.recording import Recording

            self._recording = Recording(writer, guard=self.guard, began=self.began)
        self._write_early(self._recording)
        return self._recording

    # What is heard

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Keep an event of the interpreter. Takes no lock: it may come from a thread that holds one of the importer."""
        thread = threading.get_ident()
        if self.silent or thread in self._inside:
            return
        self._inside.add(thread)
        try:
            self._keep(outside.heard(event, arguments))
            if event == "os.exec" and self._recording is not None:
                self._inside.discard(thread)
                self.guard(event, self._flush)
        except Exception as cause:
            # No lock, so no note here; the list is read with the next record.
            self._early.append((time.monotonic_ns(), _failure(event, cause)))
        finally:
            self._inside.discard(thread)

    def _keep(self, found: outside.Outside | None) -> None:
        if found is None:
            return
        key = (found.name, *map(str, found.facts.values()), *map(str, found.clock.values()))
        if key in self._known:
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known.add(key)
        if len(self._early) < MOST_EARLY:
            self._early.append((time.monotonic_ns(), found))
        else:
            self._lost += 1

    def _write_early(self, recording: Recording) -> None:
        while self._early:
            when, found = self._early.popleft()
            recording.outside(found, when)
        if self._lost:
            lost, self._lost = self._lost, 0
            recording.failure("outside", f"{lost} events of the interpreter were not kept")

    def _announced(self, event: str, arguments: tuple[Any, ...]) -> None:
        recording = self.recording()
        if event in MOMENTS:
            self._known.clear()
        from audit.recorder import announced

        announced.hear(recording, event, arguments)

    # torch's optimizers

    def _find_torch(self) -> None:
        """Register for the steps of all optimizers once the program has imported torch's functions for that."""
        module = sys.modules.get(TORCH_OPTIMIZER)
        before = getattr(module, "register_optimizer_step_pre_hook", None)
        after = getattr(module, "register_optimizer_step_post_hook", None)
        if before and after:
            self._awaits_torch = False
            before(self._before_step)
            after(self._after_step)

    def _before_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if not _compiling():
            self.guard("optimizer step", lambda: self.recording().before_step(optimizer))

    def _after_step(self, optimizer: Any, arguments: Any, options: Any) -> None:
        if not _compiling():
            self.guard("optimizer step", lambda: self.recording().after_step(optimizer))

    # Ends

    def _failed(self, what: str, cause: Exception) -> None:
        """Note a failure of ours, each kind once; if that fails too, say so and stop."""
        kind = (what, type(cause).__name__)
        try:
            if self._recording is None:
                raise cause
            if kind not in self._failures:
                self._failures.add(kind)
                self._recording.failure(what, f"{type(cause).__name__}: {cause}")
        except Exception as second:
            self.silent = True
            line = " ".join(f"{type(second).__name__}: {second}".split())
            print(f"golf-audit: this process is not recorded any more: {line}", file=sys.stderr, flush=True)

    def _flush(self) -> None:
        if self._recording is not None:
            self._write_early(self._recording)
            self._recording.flush()

    def finish(self) -> None:
        """The end of the process: seal the ledger if the program did its work, else keep what there is of it."""
        self.guard("end", self._finish)
        self.silent = True

    def _finish(self) -> None:
        if self._recording is None:
            return
        self._flush()
        if ended := self._ended(self._recording):
            self._recording.seal(ended)

    def _ended(self, recording: Recording) -> str:
        """How the program ended, as the seal says it; empty if it failed or nobody knows."""
        failed = self.returned not in (None, 0) or getattr(sys, "last_value", None) is not None
        if failed:
            return ""
        return "announced" if recording.ended else "returned 0" if self.returned == 0 else ""

    def _forked(self) -> None:
        self.silent, self._recording = True, None


def _compiling() -> bool:
    """Whether torch traces this into a graph, in which it must be nothing."""
    import torch

    return torch.compiler.is_compiling()


def _failure(what: str, cause: Exception) -> outside.Outside:
    return outside.Outside("recorder", {"what": what}, {"error": f"{type(cause).__name__}: {cause}"})


_hook: Hook | None = None


def attach(*, out: Path, previous: bytes, began: int | None = None) -> Hook:
    """Record this process into `out`, after the stage whose seal is `previous` (32 bytes, zeros for none).

    `began` is when the run did, by `time.monotonic_ns`, if that was in another process of this machine.
    """
    global _hook
    if current() is not None:
        raise RuntimeError("this process is recorded already")
    _hook = Hook(out, previous, time.monotonic_ns() if began is None else began)
    _hook.install()
    return _hook


def current() -> Hook | None:
    """The hook of this process, None where nothing is recorded."""
    return None if _hook is None or _hook.silent else _hook
