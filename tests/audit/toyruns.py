"""A real toy run of the trainer under the recorder, stage after stage, and forged versions of its ledgers.

run = record(folder, ttt__mode="prequant")            folder lies as the pipeline leaves it
forged = forge(run, out, quantize=edit)               the ledgers again, consistent, some records changed by `edit`
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audit import blocks, fingerprint, ledger
from audit.evidence import Stage, check_chain
from audit.recorder import hook
from audit.records import KINDS, LISTS, STORED, Record
from audit.records import record as record_of
from tests.audit import forgery
from tests.audit.children import fork, wait
from tests.toy import toy_recipe
from trainer import data, stages
from trainer import recipe as recipes
from trainer.layout import Layout
from trainer.settings import Recipe

SEED = 1
STAGES = ("train", "quantize", "evaluate")

Edit = Callable[[list[Record]], list[Record]]


def ledger_of(run: Path, stage: str) -> Path:
    return run / "ledger" / f"clock.{stage}.{SEED}"


def record(run: Path, *names: str, **settings: Any) -> Path:
    """Make data and run stages (all, or those named) of a toy recipe, each recorded in a forked child."""
    recipe, layout = toy_recipe(**settings), Layout(run)
    run.mkdir()
    (run / "recipe.json").write_text(json.dumps(recipes.as_dict(recipe)))
    data.build(recipe, layout.data)
    previous = ledger.NO_SEAL
    for stage in names or STAGES:
        record_stage(run, stage, recipe, previous)
        previous = ledger.seal_of(ledger_of(run, stage))
    return run


def record_stage(run: Path, stage: str, recipe: Recipe, previous: bytes) -> None:
    """Run one stage in a forked child that is recorded."""

    def act() -> int:
        here = hook.attach(out=ledger_of(run, stage), previous=previous)
        getattr(stages, stage)(Layout(run), recipe, SEED)
        here.returned = 0
        here.finish()
        return 0

    printed = run / f"{stage}.txt"
    assert wait(fork(act, output=printed)) == 0, printed.read_text()


def open_stages(run: Path) -> tuple[Stage, ...]:
    return tuple(Stage.open(ledger_of(run, stage)) for stage in STAGES if ledger_of(run, stage).is_dir())


def forge(run: Path, out: Path, **edits: Edit) -> tuple[Stage, ...]:
    """The ledgers of a run with the records of some stages edited, all chained and sealed anew."""
    previous = ledger.NO_SEAL
    for stage in (stage for stage in STAGES if ledger_of(run, stage).is_dir()):
        records = records_of(run, stage)
        if stage in edits:
            before, records = list(records), edits[stage](records)
            assert records != before, "the edit changed nothing"
        folder = ledger_of(out, stage)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        header = blocks.header(rank=0, ranks=1, previous=previous)
        forgery.forge(folder / "rank0.ledger", header, [records])
        previous = ledger.seal_of(folder)
    found = open_stages(out)
    check_chain(found)
    assert all(stage.sealed for stage in found)
    return found


# What to edit


def records_of(run: Path, stage: str) -> list[Record]:
    """All records of a stage's only rank."""
    return [record for part in forgery.take_apart(ledger_of(run, stage) / "rank0.ledger").records for record in part]


def sums(tokens: np.ndarray) -> dict[str, Any]:
    """Digest and checksum of rows [n, T+1], as the recorder takes them."""
    digest = np.frombuffer(hashlib.sha256(tokens.tobytes()).digest(), np.uint8)
    return {"digest": digest, "checksum": fingerprint.checksum(tokens[:, :-1])}


def update(optimizer: int, before: int, after: int) -> Record:
    """A record of a torch optimizer's step."""
    return record_of("update", 1, (optimizer, before, after))


def indices(records: list[Record], kind: str, **values: Any) -> list[int]:
    """The records of a kind whose columns have these values."""
    return [
        i
        for i, record in enumerate(records)
        if KINDS[record.kind] == kind and all(row(record)[name] == value for name, value in values.items())
    ]


def named(records: list[Record], name: str) -> list[int]:
    """The notes of a name."""
    return [i for i, record in enumerate(records) if record.kind == 0 and json.loads(record.note[0])[0] == name]


def row(record: Record) -> np.ndarray:
    """The columns of a record; a copy."""
    return np.frombuffer(bytearray(record.row), STORED[KINDS[record.kind]])[0]


def rows(record: Record) -> np.ndarray:
    """The list of a record; a copy."""
    return np.frombuffer(bytearray(record.listed), LISTS[KINDS[record.kind]][1])


def with_row(record: Record, **values: Any) -> Record:
    """A record with other values in some columns."""
    changed = np.frombuffer(bytearray(record.row), STORED[KINDS[record.kind]])
    for name, value in values.items():
        changed[name] = value
    return record._replace(row=changed.tobytes())


def with_rows(record: Record, listed: np.ndarray) -> Record:
    """A record with another list."""
    return with_row(record, count=len(listed))._replace(listed=listed.tobytes())


def with_facts(record: Record, **facts: Any) -> Record:
    """A note with other facts."""
    name, before = json.loads(record.note[0])
    text = json.dumps([name, before | facts], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return record._replace(note=(text.encode(), record.note[1]))


def at(index: int, change: Callable[[Record], Record]) -> Edit:
    """One record changed."""
    return lambda records: [change(record) if i == index % len(records) else record for i, record in enumerate(records)]


def every(kind: str, change: Callable[[Record], Record]) -> Edit:
    """All records of a kind changed."""
    return lambda records: [change(record) if KINDS[record.kind] == kind else record for record in records]
