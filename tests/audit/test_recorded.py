"""What the report takes from the ledgers: those that were verified, of this seed and stage, or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.errors import LedgerError, RunError
from audit.report.recorded import Recorded, read
from audit.runs import read_data
from tests.audit.staged import staged

Write = Callable[..., Path]


def recorded(runs: Path, seed: int = 42) -> Recorded:
    return read(runs, seed, read_data(runs / "data" / "data.json"), zoom=0)


def test_the_ledgers_of_a_seed_are_read(write_runs: Write, tmp_path: Path) -> None:
    """Timeline, digests of the recipe at start and end, and what verify measured, each of its own seed."""
    found = recorded(write_runs(tmp_path), 314)
    assert (found.timeline.seed, found.verified.seed) == (314, 314)
    assert found.timeline.targets == 51_456
    assert found.recipes["quantize"] == {"start": "sha256:quantize", "end": "sha256:quantize"}


def test_ledgers_that_were_not_verified_are_refused(write_runs: Write, tmp_path: Path) -> None:
    """A ledger that was exchanged after verify is found by its seal, though it holds in itself."""
    runs = write_runs(tmp_path)
    for name, content in staged(42, "prequant")[0].items():
        (runs / name).write_bytes(content)
    with pytest.raises(RunError, match=r"clock\.train\.42 is sealed sha256:\w+, `verify` read .*dvc repro verify@42"):
        recorded(runs)


def test_a_ledger_of_another_seed_or_stage_is_refused(write_runs: Write, tmp_path: Path) -> None:
    """A copied ledger names the seed and stage that it is of."""
    runs = write_runs(tmp_path)
    folder = runs / "ledger/clock.train.42"
    for other in ("clock.train.314", "clock.quantize.42"):
        shutil.rmtree(folder)
        shutil.copytree(runs / "ledger" / other, folder)
        with pytest.raises(RunError, match=r"is the ledger of .* expected train of 42; run `dvc repro train@42`"):
            recorded(runs)


def test_a_missing_ledger_names_its_stage(write_runs: Write, tmp_path: Path) -> None:
    """No folder: the stage to run. An empty one: that it holds no ledger."""
    runs = write_runs(tmp_path)
    folder = runs / "ledger/clock.evaluate.42"
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="run `dvc repro evaluate@42`"):
        recorded(runs)
    folder.mkdir()
    with pytest.raises(LedgerError, match=r"holds no rank\*\.ledger"):
        recorded(runs)


def test_a_damaged_ledger_is_refused(write_runs: Write, tmp_path: Path) -> None:
    """One changed byte, and the report is not written."""
    path = write_runs(tmp_path) / "ledger/clock.quantize.42/rank0.ledger"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"rank0\.ledger"):
        recorded(tmp_path)


def test_a_ledger_without_a_seal_is_drawn(write_runs: Write, tmp_path: Path) -> None:
    """A run that was killed has no seal to compare; verify has said so, and what it did up to then is still shown."""
    runs = write_runs(tmp_path)
    path = runs / "ledger/clock.evaluate.42/rank0.ledger"
    path.write_bytes(path.read_bytes()[:-1])
    times = runs / "clock/clock.verify.42/times.json"
    tree = json.loads(times.read_text())
    del tree["seals"]["evaluate"]
    times.write_text(json.dumps(tree))
    assert recorded(runs).timeline.bands[2].stage == "evaluate"
