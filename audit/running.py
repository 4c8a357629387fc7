"""Run a program under the recorder, in this process, as `python` would run it.

    run(out=folder, target=["trainer", "train", "--seed", "1"], module=True)      golf-audit run -o DIR -m trainer …
    run(out=folder, target=["train.py", "--lr", "0.1"], module=False)             golf-audit run -o DIR train.py …

1. The ledger of the stage before must be sealed: its seal goes into this one.
2. The folder must hold no sealed ledger; what a killed run left there is moved to a folder beside it.
3. The environment makes every Python process that this one starts, or becomes, record itself (`audit.attach`).
4. The recorder is attached to this process.
5. The program runs with the arguments and the path that it would have without us.
6. Its exit code is the answer; with 0 the ledger is sealed at the very end of this process.
"""

from __future__ import annotations

import builtins
import importlib.util
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

from audit import ledger
from audit.errors import LedgerError, OutputError, RunError
from audit.recorder import hook

ATTACH = Path(__file__).parent / "attach"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def run(
    *,
    out: Path,
    target: Sequence[str],
    module: bool,
    after: Path | None = None,
    say: Callable[[str], None] = _to_stderr,
) -> int:
    """Run `target`, a module or a script with its arguments, and record it into `out`. Returns its exit code.

    `after` is the folder of the stage before, `say` is told what a person wants to know. Raises LedgerError,
    OutputError or RunError before the program starts.
    The process belongs to the program from then on: arguments, path and environment stay as they were set for it.
    """
    if not target:
        raise RunError("got no program to run; give -m MODULE or a script, then its arguments")
    if hook.current() is not None:
        raise RunError("this process is recorded already; run golf-audit outside of a recorded program")
    previous = ledger.seal_of(after) if after else ledger.NO_SEAL  # 1
    out = out.absolute()
    make_room(out)  # 2
    place = next(path for path in (out, *out.parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise OutputError(f"can't write {out}: {place} is no folder to write to; record into another one with -o")
    began = time.monotonic_ns()
    os.environ |= environment(out, previous, began)  # 3
    here = hook.attach(out=out, previous=previous, began=began)  # 4
    try:
        program = found(target, module=module)  # 5
    except RunError:
        here.silent = True
        raise
    here.returned = outcome(program)  # 6
    if not any(out.glob("rank*.ledger")):
        say(f"nothing was recorded into {out}: the program announced nothing and stepped no optimizer")
    return here.returned


def make_room(out: Path) -> None:
    """Move an unsealed ledger out of the way. Raises LedgerError for one that is sealed, and so a proof, or damaged."""
    parts = sorted(out.glob("rank*.ledger"))
    for path in parts:
        # Whoever is killed between making the file and writing its header leaves it empty.
        if path.stat().st_size and ledger.check(path).seal is not None:
            raise LedgerError(f"{path} is sealed; a ledger is never written over, record into another folder")
    if not parts:
        return
    names = (out.with_name(f".{out.name}.unsealed.{number}") for number in itertools.count())
    aside = next(path for path in names if not path.exists())
    try:
        aside.mkdir()
        for path in parts:
            path.rename(aside / path.name)
    except OSError as cause:
        raise OutputError(f"can't move {out}/rank*.ledger to {aside}: {cause.strerror}; move them by hand") from None


def environment(out: Path, previous: bytes, began: int) -> dict[str, str]:
    """The variables by which other processes of the run find the recorder."""
    path = os.environ.get("PYTHONPATH")
    return {
        "GOLF_AUDIT_OUT": str(out),
        "GOLF_AUDIT_PREVIOUS": previous.hex(),
        "GOLF_AUDIT_BEGAN": str(began),
        "PYTHONPATH": os.pathsep.join([str(ATTACH), *([path] if path else [])]),
    }


def found(target: Sequence[str], *, module: bool) -> ModuleSpec:
    """Where the program is, with arguments and path set as it finds them. Raises RunError if it is nowhere."""
    name, *arguments = target
    if not sys.flags.safe_path:
        sys.path[0] = str(Path.cwd()) if module else str(Path(name).resolve().parent)
    spec = module_spec(name) if module else script_spec(Path(name).absolute())
    if spec is None or spec.origin is None or not isinstance(spec.loader, InspectLoader):
        kind = "module" if module else "script"
        raise RunError(f"there is no {kind} {name} that can be run; name one that `python` would run in {Path.cwd()}")
    sys.argv = [spec.origin if module else name, *arguments]
    return spec


def module_spec(name: str) -> ModuleSpec | None:
    """The spec of a module, of `name.__main__` for a package."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except (ImportError, ValueError):
        return None
    return spec


def script_spec(path: Path) -> ModuleSpec | None:
    """The spec of a file of source text."""
    if not path.is_file():
        return None
    return importlib.util.spec_from_loader("__main__", SourceFileLoader("__main__", str(path)))


def outcome(spec: ModuleSpec) -> int:
    """Run the program to its end; the exit code that `python` would answer with."""
    try:
        execute(spec)
    except SystemExit as leaving:
        return exit_code(leaving.code)
    except BaseException as cause:
        trace = cause.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next  # our own frames are not the program's
        sys.excepthook(type(cause), cause.with_traceback(trace), trace)
        return 130 if isinstance(cause, KeyboardInterrupt) else 1
    return 0


def execute(spec: ModuleSpec) -> None:
    """Run a module's code as `__main__`, which stays when it returns: threads and pickles look for it there."""
    main, loader = ModuleType("__main__"), spec.loader
    assert isinstance(loader, InspectLoader)
    script = spec.name == "__main__"
    main.__dict__.update(
        __builtins__=builtins,
        __file__=spec.origin,
        __cached__=None if script else spec.cached,
        __loader__=loader,
        __package__=None if script else spec.parent,
        __spec__=None if script else spec,
    )
    sys.modules["__main__"] = main
    # `get_code` would leave a compiled file beside a script, which Python does not.
    origin = spec.origin or ""
    code = loader.source_to_code(Path(origin).read_bytes(), origin) if script else loader.get_code(spec.name)
    if code is None:
        raise ImportError(f"{spec.name} has no code to run")
    exec(code, main.__dict__)


def exit_code(code: object) -> int:
    """What `sys.exit(code)` makes of it: None is 0, a number itself, anything else is printed and 1."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1
