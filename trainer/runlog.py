"""What a stage tells people and programs while it runs: lines, events, progress, and where the time went.

`log.txt` holds the lines as printed, `log.jsonl` one JSON object an event, `times.json` the seconds of each phase. All
three depend on the clock, so they lie in a `clock.*` folder. Only the leader writes and prints. On a terminal, long
work shows a bar (tqdm, where it is installed); in a pipe there are plain lines. Every rank announces the phase that it
enters (PEP 578, `golf.phase`).
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from trainer.files import write_json
from trainer.layout import Layout, whole_folder

BAR = "{desc}: {percentage:3.0f} % |{bar}| {elapsed}, {remaining} left {postfix}"


class RunLog:
    """The log of one stage of one seed. Use `run_log` to open and close it."""

    def __init__(self, folder: Path | None, *, stage: str, seed: int | None) -> None:
        self.folder, self.stage, self.seed = folder, stage, seed
        self.began = self._switched = time.perf_counter()
        self.phases: dict[str, float] = {}
        self._open = ["other"]
        sys.audit("golf.phase", "other")
        self.measured: dict[str, float] = {}
        self._bar: Any = None
        self._text: IO[str] | None = (folder / "log.txt").open("w", encoding="utf-8") if folder else None
        self._events: IO[str] | None = (folder / "log.jsonl").open("w", encoding="utf-8") if folder else None

    def line(self, text: str) -> None:
        """One line for people, on standard output and in log.txt."""
        if self._text:
            self._text.write(text + "\n")
            self._text.flush()
            if self._bar is not None:
                self._bar.write(text, file=sys.stdout)
            else:
                print(text, flush=True)

    def event(self, kind: str, **fields: Any) -> None:
        """One event for programs: a JSON line with the seconds since the stage began."""
        if self._events:
            row = {"event": kind, "seconds": round(time.perf_counter() - self.began, 4)} | fields
            self._events.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._events.flush()

    def progress(self, done: float, total: float, *, what: str, note: str = "") -> None:
        """Move the bar on a terminal; in a pipe nothing happens (the caller writes lines now and then)."""
        if self._text is None or not sys.stderr.isatty():
            return
        if self._bar is None or self._bar.desc != f"{what}: ":
            self.close_bar()
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, desc=what, leave=False, dynamic_ncols=True, bar_format=BAR)
        self._bar.total = total
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close_bar()

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the seconds of the body to a named phase. A phase inside another interrupts it, so phases tile."""
        self._count()
        self._open.append(name)
        sys.audit("golf.phase", name)
        try:
            yield
        finally:
            self._count()
            self._open.pop()
            sys.audit("golf.phase", self._open[-1])
            self.event("phase", name=name, phase_seconds=round(self.phases[name], 4))

    def _count(self) -> None:
        """Give the seconds since the last call to the phase that is open."""
        now = time.perf_counter()
        self.phases[self._open[-1]] = self.phases.get(self._open[-1], 0.0) + now - self._switched
        self._switched = now

    def write_times(self) -> None:
        """Write times.json: the phases (`other` is what lies in none of them), which add up to the stage's time."""
        self._count()
        if self.folder is None:
            return
        total = self._switched - self.began
        self.phases["other"] = self.phases.pop("other")  # the last row, whatever came first
        phases = [{"name": name, "seconds": round(seconds, 4)} for name, seconds in self.phases.items()]
        times = {"stage": self.stage, "seed": self.seed, "host": platform.node(), "phases": phases}
        write_json(self.folder / "times.json", times | {"total_seconds": round(total, 4)} | self.measured)

    def close(self) -> None:
        """End the bar and close the files."""
        self.close_bar()
        for stream in (self._text, self._events):
            if stream:
                stream.close()


@contextmanager
def run_log(folder: Path | None, *, stage: str, seed: int | None) -> Iterator[RunLog]:
    """A RunLog over `folder` (None: a rank that keeps quiet). If the body raises, the log stays, without times.json."""
    log = RunLog(folder, stage=stage, seed=seed)
    try:
        yield log
    except BaseException as error:
        log.event("failed", error=f"{type(error).__name__}: {error}")
        raise
    else:
        log.write_times()
    finally:
        log.close()


@contextmanager
def stage_folders(
    layout: Layout, stage: str, seed: int | None, out: Path, *, leader: bool = True
) -> Iterator[tuple[Path, RunLog]]:
    """The folder to write a stage's outputs into, and its log; both appear under their names when the body is done.

    Ranks other than the leader write neither.
    """
    logs = whole_folder(layout.clock(stage, seed)) if leader else nullcontext(None)
    with (
        logs as log_folder,
        run_log(log_folder, stage=stage, seed=seed) as log,
        whole_folder(out, leader=leader) as folder,
    ):
        yield folder, log
