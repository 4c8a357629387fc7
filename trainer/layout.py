"""Where a run's files lie. One place, so that stages find each other's outputs.

Whatever depends on clock, host or path lies below `clock/` in folders named `clock.*`; everything else is the same
bytes on every run of the same inputs on the same machine.
"""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import DataError, ResourceError
from trainer.files import read_json


@dataclasses.dataclass(frozen=True)
class Layout:
    """The folder of a run (`runs/` in the pipeline) and the paths below it."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.json"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def stage(self, stage: str, seed: int) -> Path:
        """The output folder of one seed of a stage: `train`, `quantize` or `evaluate`."""
        return self.root / stage / str(seed)

    def metrics(self, stage: str, seed: int, names: tuple[str, ...]) -> dict[str, Any]:
        """The metrics.json of a stage. Raises DataError if it is missing, damaged, or lacks one of `names`."""
        path, remedy = self.stage(stage, seed) / "metrics.json", f"run `dvc repro {stage}@{seed}`"
        found = read_json(path, remedy=remedy)
        missing = [name for name in names if not isinstance(found, dict) or name not in found]
        if missing:
            raise DataError(f"{path} lacks {', '.join(missing)}; {remedy}")
        return dict(found)

    def resume(self, seed: int) -> Path:
        """Checkpoints of a training that has not finished; removed when it has."""
        return self.root / "train" / f".{seed}.resume"

    def clock(self, stage: str, seed: int | None = None) -> Path:
        """What a stage leaves that depends on the clock: log and times."""
        return self.root / "clock" / ("clock." + stage + ("" if seed is None else f".{seed}"))


@contextmanager
def whole_folder(path: Path, *, leader: bool = True) -> Iterator[Path]:
    """A temporary folder beside `path` to fill; renamed to `path` at the end, so `path` is whole or absent.

    What an interrupted run left under the temporary name is removed first. If the body raises, the temporary folder
    stays for a look (its name begins with a dot) and `path` does not appear. Ranks other than the leader only get the
    temporary path. Raises DataError if `path` exists and is not empty: results are never overwritten.
    """
    if not leader:
        yield path.with_name(f".{path.name}.partial")
        return
    with sole_writer(path):
        temporary = path.with_name(f".{path.name}.partial")
        if path.exists() and any(path.iterdir()):
            raise DataError(f"{path} is not empty; remove it or choose another --runs folder")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold a lock beside `path`; the system drops it when the process ends, however it ends.

    Raises ResourceError if another process holds it: a stage whose `dvc repro` was killed may still be running.
    """
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ResourceError(f"another process is writing {path}; wait for it, or end it, and run again") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
