"""Programs run under the recorder in forked children, and what they left.

An audit hook can't be removed, so the test's own process must never have one; and a fork that has torch already starts
in milliseconds.

    folder = recorded(tmp_path, PLANTED / "data_write.py", "honest")      folder holds rank0.ledger
    folder = recorded(tmp_path, some_function)                            the function runs as a program of its own
    for kind, record in records(folder): …
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  (a first optimizer step imports it: 1.5 s, once here and not in every child)

from audit import running
from audit.ledger import NO_SEAL, Ledger
from audit.recorder import hook
from audit.records import KINDS, TABLES, Note

PLANTED = Path(__file__).parent / "planted"
Program = Path | Callable[[], Any]


def fork(act: Callable[[], int], *, output: Path) -> int:
    """Start a child that runs `act`, with what it prints in a file; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        atexit._clear()  # what the test's process would do at its end is none of the child's business
        vars(sys).pop("last_value", None)  # nor is a test that failed before
        with output.open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = act()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a child, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def start(folder: Path, program: Program, *arguments: str, name: str = "ledger") -> int:
    """Start a program under the recorder, in `folder`; it writes folder/name. Returns the child's process id."""
    folder.mkdir(exist_ok=True)

    def act() -> int:
        os.chdir(folder)
        if isinstance(program, Path):
            code = running.run(out=folder / name, target=[str(program), *arguments], module=False)
        else:
            here = hook.attach(out=folder / name, previous=NO_SEAL)
            program()
            code = here.returned = 0
        return code

    return fork(act, output=folder / f"{name}.txt")


def recorded(folder: Path, program: Program, *arguments: str, name: str = "ledger") -> Path:
    """Run a program to its end. Raises AssertionError with what it printed if it failed."""
    code = wait(start(folder, program, *arguments, name=name))
    printed = (folder / f"{name}.txt").read_text()
    assert code == 0, f"exit code {code}\n{printed}"
    assert "golf-audit: " not in printed, printed
    return folder / name


def records(folder: Path, *, rank: int = 0) -> Iterator[tuple[str, Any]]:
    """Every record of a rank in order: its kind, and its row, or its `Note`."""
    for block in Ledger.open(folder / f"rank{rank}.ledger").blocks():
        rows = {kind: iter(getattr(block, table)) for kind, table in TABLES.items()}
        notes = iter(block.notes)
        for code in block.kinds:
            kind = KINDS[code]
            yield kind, next(notes) if kind == "note" else next(rows[kind])


def of_kind(folder: Path, kind: str, *, rank: int = 0) -> list[Any]:
    """The rows of a kind, in order."""
    return [row for found, row in records(folder, rank=rank) if found == kind]


def notes(folder: Path, name: str, *, rank: int = 0) -> list[Note]:
    """The notes of a name, in order."""
    return [note for note in of_kind(folder, "note", rank=rank) if note.name == name]


def kinds(folder: Path) -> list[str]:
    """The kinds of all records, notes by their names."""
    return [row.name if kind == "note" else kind for kind, row in records(folder)]
