"""What a process of the harness does: one stage of a program, under the recorder, from which it never returns.

Imported by every such process anew, so nothing is imported here that the server has not imported already.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from pathlib import Path

PROGRAM = "program.py"


def recorded(folder: Path, stage: str, before: str | None) -> None:
    """One stage in a process of its own, under the recorder."""
    gc.freeze()  # a collection would touch every object of the server, and so copy its memory
    os.chdir(folder)
    log = os.open(f"{stage}.log", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    code = 1
    try:
        code = _program(stage, Path("ledger") / stage, Path("ledger") / before if before else None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _program(stage: str, out: Path, after: Path | None) -> int:
    import torch

    from audit import running
    from audit.recorder import hook

    torch.set_num_threads(1)
    _make_sleep_free()
    code = running.run(out=out, target=[PROGRAM, stage], module=False, after=after)
    here = hook.current()
    assert here is not None, "the recorder fell silent"
    here.finish()
    return code


def _make_sleep_free() -> None:
    """From here on `time.sleep` moves `time.monotonic_ns`, by which the ledger tells the time, and returns at once."""
    slept, real = 0, time.monotonic_ns

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += round(seconds * 1e9)

    time.sleep, time.monotonic_ns = sleep, lambda: real() + slept
