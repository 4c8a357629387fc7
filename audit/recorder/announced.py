"""The protocol by which a program says what it does: `sys.audit("golf.…", …)`, each event with its record.

An event is a statement of fact, and is written as it was made; what contradicts what torch reports is for the rules.
Arrays are checked for what a record can hold, because a number that wraps would be another statement. Whatever is
raised here becomes a note `recorder`.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from audit import fingerprint
from audit.recorder.recording import Recording
from audit.records import LISTS


def run(recording: Recording, stage: str, seed: int, facts: Mapping[str, Any]) -> None:
    """`golf.run`: which stage this is, and of what."""
    own = {str(name): plain(value) for name, value in facts.items()}
    machine = {
        "data": own.pop("data", ""),
        "host": platform.node(),
        "pid": os.getpid(),
        "command": sys.orig_argv,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds_before": recording.seconds_before,
    }
    recording.note("run", {"stage": stage, "seed": seed} | own, machine)
    moment(recording)


def identity(recording: Recording, when: str, digests: Mapping[str, str]) -> None:
    """`golf.identity`: what recipe, sources and data are, at the start and at the end."""
    recording.note("identity", {"when": when} | {str(name): plain(value) for name, value in digests.items()})


def phase(recording: Recording, name: str) -> None:
    """`golf.phase`: from here on the stage is in this phase."""
    recording.note("phase", {"name": name})
    moment(recording)


def model(recording: Recording, module: nn.Module) -> None:
    """`golf.model`: token ids enter through the calls of this module."""
    recording.model(module)


def draw(recording: Recording, draw: int, split: str, shards: Any, starts: Any, rows: Any) -> None:
    """`golf.draw`: rows uint16 [n, T+1] are handed to the loop; each begins at (shard, start) of the split."""
    tokens = token_rows(rows)
    sequences = columns("draw", len(tokens), shard=shards, start=starts)
    recording.drawn(draw)
    write = partial(recording.story.draw, draw, split, sequences, length=tokens.shape[1] - 1, **sums(tokens))
    recording.queue.push((), write)


def step(recording: Recording, step: int, draws: Sequence[int], lr: float, looped: bool, collectives: int) -> None:
    """`golf.step`: the optimizers are about to step from the gradients of these draws."""
    used = tuple(draws)
    write = partial(recording.story.step, step, used, lr=float(lr), looped=bool(looped), collectives=collectives)
    recording.queue.push((), write)
    recording.announced_step()


def calibrate(recording: Recording, draws: Sequence[int], collectives: int) -> None:
    """`golf.calibrate`: these draws went into the quantizer's Hessians."""
    write = partial(recording.story.write, "calibration", tuple(draws), collectives=collectives)
    recording.queue.push((), write)


def score(
    recording: Recording,
    label: str,
    counted: bool,
    begins: Any,
    scored: Any,
    nats: Any,
    octets: Any,
    rows: Any,
    collectives: int,
) -> None:
    """`golf.score`: losses of windows whose tokens are rows uint16 [n, L+1]; target i is token i+1 of the stream."""
    tokens = token_rows(rows)
    windows = columns("score", len(tokens), begin=begins, scored=scored, nats=nats, octets=octets)
    about = {"counted": bool(counted), "collectives": collectives, "length": tokens.shape[1] - 1, **sums(tokens)}

    def write(parameters: int, *, now: int) -> None:
        recording.story.write("score", label, windows, parameters=parameters, now=now, **about)

    recording.queue.push((recording.parameters(),), write)


def total(recording: Recording, label: str, nats: float, targets: int, octets: int) -> None:
    """`golf.total`: the sums that the stage reports."""
    recording.note("total", {"label": label, "nats": plain(nats), "targets": int(targets), "bytes": int(octets)})


def weights(recording: Recording, why: str) -> None:
    """`golf.weights`: parameters changed by something that is no optimizer step."""
    recording.note("weights", {"why": why})
    recording.state()


def artifact(recording: Recording, path: str, digest: str, size: int) -> None:
    """`golf.artifact`: the submission's bytes are what they will be."""
    recording.artifact = digest
    recording.note("artifact", {"sha256": digest, "bytes": int(size)}, {"path": str(path)})
    moment(recording)


def end(recording: Recording, stage: str) -> None:
    """`golf.end`: the stage has done its work."""
    recording.note("end", {"stage": stage})
    moment(recording)
    recording.ended = True


ANNOUNCED: Mapping[str, Callable[..., None]] = {
    f"golf.{act.__name__}": act
    for act in (run, identity, phase, model, draw, step, calibrate, score, total, weights, artifact, end)
}


def hear(recording: Recording, event: str, arguments: tuple[Any, ...]) -> None:
    """Write what a `golf.*` event says; one that is not of the protocol is no record."""
    if event in ANNOUNCED:
        ANNOUNCED[event](recording, *arguments)


def moment(recording: Recording) -> None:
    """The state here, and all of it on the disk: a program that is killed later keeps what it had."""
    recording.state()
    recording.flush()


def token_rows(rows: Any) -> np.ndarray:
    """Token ids as little-endian uint16 [n, T+1]. Raises ValueError for what is not that."""
    found = np.asarray(rows)
    if found.ndim != 2 or found.shape[1] < 2 or found.dtype != np.uint16:
        raise ValueError(f"got {found.dtype} tokens of shape {found.shape}, expected uint16 [n, T+1]")
    return np.ascontiguousarray(found, dtype="<u2")


def sums(tokens: np.ndarray) -> dict[str, Any]:
    """SHA-256 of rows, and the checksum of their inputs as they enter the model."""
    return {"digest": hashlib.sha256(tokens.data).digest(), "checksum": fingerprint.checksum(tokens[:, :-1])}


def columns(kind: str, count: int, **values: Any) -> np.ndarray:
    """The list of a record [count]. Raises ValueError for a column of another length, or a number that won't fit."""
    found = np.zeros(count, dtype=LISTS[kind][1])
    for name, value in values.items():
        column = np.asarray(value)
        if column.shape != (count,):
            raise ValueError(f"got {name} of shape {column.shape}, expected ({count},)")
        limit = np.iinfo(found.dtype[name]).max if found.dtype[name].kind == "u" else None
        if limit is not None and count and not 0 <= int(column.min()) <= int(column.max()) <= limit:
            raise ValueError(f"got {name} from {column.min()} to {column.max()}, a record holds 0 to {limit}")
        found[name] = column
    return found


def plain(value: Any) -> Any:
    """JSON of a value: numpy's numbers as Python's, numbers that JSON lacks and all else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
