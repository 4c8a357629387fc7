"""Runs a program under the recorder, stage by stage, and judges what it left.

    bench = Bench(folder)                         makes the data
    mutant, neighbour = bench.pair(entry)         two judgements
    run = bench.run(text, plant)                  RUN/program.py, data/, out/, ledger/{train,quantize,evaluate}/

An audit hook can't be taken out of a process again, so each stage has a process of its own, forked from one that has
imported torch already (the standard library's fork server): a program of three stages takes a quarter of a second.
`time.sleep` moves the stage's clock and does not wait, so programs can take ten minutes.
"""

from __future__ import annotations

import functools
import multiprocessing
import shutil
from pathlib import Path

from audit.verdicts import Judgement
from tests.mutants import world
from tests.mutants.judging import STAGES, judge
from tests.mutants.program import Entry, Plant
from tests.mutants.recorded import PROGRAM, recorded

PRELOADED = [
    "torch._dynamo",  # torch imports it at the first step of an optimizer: a second
    "sentencepiece",
    "safetensors.torch",
    "audit.running",
    "audit.recorder.recording",
    "audit.recorder.announced",
]


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Bench:
    """A folder for runs, and the data that they begin with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self._judged: dict[tuple[str, Plant | None], Judgement] = {}
        world.build(folder)

    def pair(self, entry: Entry) -> tuple[Judgement, Judgement]:
        """What the mutant got, and what its neighbour got."""
        mutant, neighbour = entry.programs()
        return self.judged(mutant, entry.mutant_data), self.judged(neighbour, entry.neighbour_data)

    def judged(self, text: str, plant: Plant | None = None) -> Judgement:
        """Run a program and judge it; many neighbours are the base itself, which runs once."""
        if (text, plant) not in self._judged:
            folder = self.run(text, plant)
            self._judged[text, plant] = judge(folder)
            shutil.rmtree(folder)
        return self._judged[text, plant]

    def run(self, text: str, plant: Plant | None = None) -> Path:
        """The folder of a program after its stages. Raises RuntimeError with what it printed if one fails."""
        self.runs += 1
        folder = self.folder / f"run.{self.runs:03}"
        folder.mkdir()
        world.copied(self.folder, folder)
        if plant:
            plant(folder)
        (folder / PROGRAM).write_text(text, encoding="utf-8")
        for number, stage in enumerate(STAGES):
            process = _server().Process(target=recorded, args=(folder, stage, STAGES[number - 1] if number else None))
            process.start()
            process.join()
            if process.exitcode:
                raise RuntimeError(f"{stage} ended with {process.exitcode}:\n{(folder / f'{stage}.log').read_text()}")
        return folder
