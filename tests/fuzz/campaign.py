"""Many mutants, in this process (`run`) or in others of bounded memory that are watched (`campaign`).

What the reader does to one mutant is bounded three ways: it gets MEMORY beyond what the process has, so that it fails
if it asks for more, whether it uses it or not; more than SLOW seconds of processor are a finding; a process that gives
no sign of life for HANG seconds is ended, and so is the campaign if one dies. Warnings are errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import queue
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.corpus import seeds
from tests.fuzz.lines import Line, Lines
from tests.fuzz.mutants import Mutant, mutant
from tests.fuzz.oracle import Finding, Reader, judge
from tests.trainer.bombs import peak_bytes
from trainer import artifact
from trainer.errors import ArtifactError
from trainer.quantized import QuantizedModel

MEMORY = 1_000_000_000
SLOW, HANG = 5, 60
POLL = 1
TRACED = 10
"""Lines are counted for two mutants in so many, one of them resealed: a traced mutant takes several times as long."""
FROM_FILE = 200
"""So many go by way of a file, in the same manner."""
_BLOCK = 200


@dataclasses.dataclass
class Tally:
    """What happened to mutants: how often, where they were refused, which lines ran, what was found."""

    outcomes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    refusals: Counter[str] = dataclasses.field(default_factory=Counter)
    hit: set[Line] = dataclasses.field(default_factory=set)
    findings: dict[tuple[str, str], tuple[str, Mutant]] = dataclasses.field(default_factory=dict)
    slowest: tuple[float, int] = 0.0, 0
    peak: int = 0

    def count(self) -> int:
        return self.outcomes.total()

    def found(self, finding: Finding, subject: Mutant) -> None:
        """Keeps the smallest mutant of all that show the same."""
        self._keep((finding.kind, finding.signature), str(finding), subject)

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.refusals += other.refusals
        self.hit |= other.hit
        for key, (text, subject) in other.findings.items():
            self._keep(key, text, subject)
        self.slowest, self.peak = max(self.slowest, other.slowest), max(self.peak, other.peak)

    def _keep(self, key: tuple[str, str], text: str, subject: Mutant) -> None:
        if key not in self.findings or len(subject.data) < len(self.findings[key][1].data):
            self.findings[key] = text, subject


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Asking for `more` bytes beyond what the process has fails, whether they are used or not."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


class Watched:
    """A reader that takes its time, bounds its memory, and notes where it refuses."""

    def __init__(self, reader: Reader, tally: Tally, memory: int = MEMORY) -> None:
        self.reader, self.tally, self.memory, self.seconds = reader, tally, memory, 0.0

    def __call__(self, data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
        began = time.process_time()
        try:
            with bounded_memory(self.memory):
                return self.reader(data)
        except ArtifactError as error:
            self.tally.refusals[_place(error)] += 1
            raise
        finally:
            self.seconds = time.process_time() - began


def _place(error: ArtifactError) -> str:
    """File and line that raised it first: `read` raises it again with the path."""
    trace = (error.__context__ if isinstance(error.__context__, ArtifactError) else error).__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""


def run(seed: int, numbers: Iterable[int], tally: Tally, *, traced: int = TRACED, from_file: int = FROM_FILE) -> None:
    """Judge the mutants of these numbers, and add to the tally."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        lines, path = Lines(), Path(folder) / "mutant.golf"
        for number in numbers:
            subject = mutant(seed, number)
            reader: Reader = artifact.unpack
            if number // 2 % from_file == 0:
                reader = functools.partial(_from_file, path)
            if number // 2 % traced == 0:
                reader = functools.partial(_traced, lines, reader)
            one(subject, tally, reader)
        tally.hit |= lines.hit


def one(subject: Mutant, tally: Tally, reader: Reader) -> None:
    """Judge one mutant."""
    watched = Watched(reader, tally)
    parts = "bytes" if subject.mutation == "bytes" else "parts"
    mutation = subject.mutation if subject.resealed else f"{parts}, not resealed"
    try:
        outcome = judge(subject.data, resealed=subject.resealed, origin=subject.origin.data, reader=watched)
        if watched.seconds > SLOW:
            raise Finding("slow", f"more than {SLOW} s", f"{watched.seconds:.1f} s")
    except Finding as finding:
        outcome = "finding"
        tally.found(finding, subject)
    tally.outcomes[mutation, outcome] += 1
    tally.slowest = max(tally.slowest, (watched.seconds, subject.number))


def _from_file(path: Path, data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
    path.write_bytes(data)
    return artifact.read(path)


def _traced(lines: Lines, reader: Reader, data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
    with lines:
        return reader(data)


def campaign(seed: int, count: int, workers: int, seconds: float, report: Callable[[str], None]) -> Tally:
    """Judge the mutants 0 to count, or as many as the seconds allow, in processes of their own."""
    return watch(_work, seed, count, workers, time.time() + seconds, report)


def watch(
    work: Callable[..., None], seed: int, count: int, workers: int, until: float, report: Callable[[str], None]
) -> Tally:
    """The sum of what `work` puts into its queue in each process. One that dies or hangs is a finding."""
    context = multiprocessing.get_context("spawn")
    taken, current = context.Value("q", 0), context.Array("q", [-1] * workers)
    results: Any = context.Queue()
    processes = []
    for index in range(workers):
        arguments = (seed, count, until, index, taken, current, results)
        processes.append(context.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()
    tally, waiting, seen = Tally(), set(range(workers)), [(time.monotonic(), -1)] * workers
    while waiting:
        try:
            index, part = results.get(timeout=POLL)
            tally.add(part)
            waiting.discard(index)
            continue
        except queue.Empty:
            report(f"{taken.value:,} of {count:,}")
        for index in sorted(waiting):
            if current[index] != seen[index][1]:
                seen[index] = time.monotonic(), current[index]
            elif kind := _lost(processes[index], *seen[index]):
                processes[index].kill()
                waiting.discard(index)
                tally.found(
                    Finding(kind, f"exit code {processes[index].exitcode}"), mutant(seed, max(0, current[index]))
                )
    return tally


def _lost(process: Any, since: float, number: int) -> str:
    """What has become of a process that has been at a mutant since then, or at its imports: number -1."""
    if process.exitcode:
        return "died"
    return "hang" if time.monotonic() - since > HANG * (1 if number >= 0 else 10) else ""


def _work(seed: int, count: int, until: float, index: int, taken: Any, current: Any, results: Any) -> None:
    """A worker: takes the next block of numbers until all are taken or time is up."""
    torch.set_num_threads(1)
    seeds()
    tally = Tally()

    def numbers() -> Iterator[int]:
        parent = multiprocessing.parent_process()
        while time.time() < until and parent and parent.is_alive():
            with taken.get_lock():
                start, taken.value = taken.value, min(count, taken.value + _BLOCK)
            for number in range(start, min(count, start + _BLOCK)):
                current[index] = number
                yield number
            if start + _BLOCK >= count:
                return

    run(seed, numbers(), tally)
    tally.peak = peak_bytes()
    results.put((index, tally))
