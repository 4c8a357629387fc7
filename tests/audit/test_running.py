"""`golf-audit run` as a function: the program runs as `python` would run it, and is recorded wherever it goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit import ledger, running
from audit.errors import LedgerError, OutputError, RunError
from audit.ledger import NO_SEAL, Writer, check
from audit.recorder import hook
from tests.audit.children import fork, kinds, notes, wait

TELL = """
import json, sys
main = sys.modules["__main__"]
print(json.dumps([__name__, sys.argv, sys.path[0], __file__, __package__, __spec__ and __spec__.name, main.__file__]))
"""
END = "import sys; sys.audit('golf.end', 'train')\n"


def run(folder: Path, *target: str, module: bool = False, **options: Any) -> tuple[int, str]:
    """Run a target in a forked child in `folder`, recorded into folder/ledger: exit code and what it printed."""

    def act() -> int:
        os.chdir(folder)
        return running.run(out=folder / "ledger", target=target, module=module, **options)

    code = wait(fork(act, output=folder / "printed"))
    return code, (folder / "printed").read_text()


def python(folder: Path, *arguments: str) -> tuple[int, str]:
    """The same by Python itself."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_program_finds_what_python_would_give_it(tmp_path: Path) -> None:
    """Name, arguments, first folder of the path and file are those of `python script` and of `python -m module`."""
    write(tmp_path / "inner" / "script.py", TELL)
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "package" / "__main__.py", TELL)
    write(tmp_path / "package" / "part.py", TELL)
    for target, module in ((["inner/script.py", "-o", "x"], False), (["package", "y"], True), (["package.part"], True)):
        code, printed = run(tmp_path, *target, module=module)
        expected = python(tmp_path, *(["-m"] if module else []), *target)
        found, wanted = json.loads(printed.splitlines()[0]), json.loads(expected[1])
        assert (code, found) == (expected[0], wanted)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("raise SystemExit(7)", 7),
        ("import sys; sys.exit()", 0),
        ("import sys; sys.exit('a reason')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 130),
        ("pass", 0),
    ],
)
def test_the_exit_code_is_the_programs_own(tmp_path: Path, text: str, code: int) -> None:
    """Returning, leaving and failing answer as Python does; a trace or a reason is printed; only 0 seals the ledger."""
    write(tmp_path / "script.py", END + text)
    found, printed = run(tmp_path, "script.py")
    assert found == code
    assert ("Traceback" in printed) == (text in ("1 / 0", "raise KeyboardInterrupt"))
    if text == "1 / 0":
        assert printed == python(tmp_path, "script.py")[1]
    assert ("a reason" in printed) == ("reason" in text)
    assert (check(tmp_path / "ledger" / "rank0.ledger").seal is not None) == (code == 0)


def test_a_program_that_announces_no_end_is_sealed_by_its_return(tmp_path: Path) -> None:
    """The seal says how it is known that the run ended; what `atexit` does comes before it."""
    text = "import atexit, sys; atexit.register(sys.audit, 'golf.phase', 'late'); sys.audit('golf.phase', 'early')"
    write(tmp_path / "script.py", text)
    assert run(tmp_path, "script.py") == (0, "")
    assert kinds(tmp_path / "ledger") == ["phase", "phase", "seal"]
    assert check(tmp_path / "ledger" / "rank0.ledger").seal == {"artifact": None, "ended": "returned 0"}


def test_a_program_that_never_trains_leaves_no_ledger(tmp_path: Path) -> None:
    """Opens and sockets alone make none, and a line says that nothing was recorded."""
    write(tmp_path / "script.py", "import socket; socket.getaddrinfo('127.0.0.1', 80); open(__file__).close()")
    code, printed = run(tmp_path, "script.py")
    assert (code, printed.count("\n")) == (0, 1)
    assert printed.startswith(f"nothing was recorded into {tmp_path}/ledger: ")
    assert not (tmp_path / "ledger").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"can't write .*/file/ledger: .*/file is no folder to write to"):
        running.run(out=tmp_path / "file" / "ledger", target=["script.py"], module=False)


def test_what_happened_before_training_is_in_the_ledger(tmp_path: Path) -> None:
    """Sockets and programs before the first announcement are kept, each once, and how long before; so is the start."""
    text = "import os, socket\nfor _ in range(3): socket.getaddrinfo('127.0.0.1', 80)\nos.system('sleep 0.2')\n"
    announced = "import sys; sys.audit('golf.run', 'train', 1, {})\n"
    write(tmp_path / "script.py", text + announced + END)
    assert run(tmp_path, "script.py") == (0, "")
    assert kinds(tmp_path / "ledger") == ["socket", "subprocess", "run", "end", "seal"]
    before = [notes(tmp_path / "ledger", name)[0].clock["seconds_before"] for name in ("run", "socket", "subprocess")]
    assert before == sorted(before, reverse=True)
    assert before[2] > 0.2


def test_a_sealed_ledger_is_never_written_over(tmp_path: Path) -> None:
    """A second run into a sealed folder is refused before it starts, and the ledger stays as it was."""
    write(tmp_path / "script.py", END)
    assert run(tmp_path, "script.py")[0] == 0
    before = (tmp_path / "ledger" / "rank0.ledger").read_bytes()
    code, printed = run(tmp_path, "script.py")
    assert code == 70
    assert "LedgerError" in printed
    assert "is sealed; a ledger is never written over" in printed
    assert (tmp_path / "ledger" / "rank0.ledger").read_bytes() == before


def test_what_a_killed_run_left_is_moved_aside(tmp_path: Path) -> None:
    """Unsealed parts go to a folder beside, a new one each time; nothing else is moved; a damaged one stops the run."""
    write(tmp_path / "script.py", END)
    for attempt in range(2):
        Writer.create(tmp_path / "ledger" / "rank0.ledger", rank=0, ranks=2).close()
        if attempt:
            (tmp_path / "ledger" / "rank0.ledger").write_bytes(b"")  # killed before its first byte
        write(tmp_path / "ledger" / "other.txt", str(attempt))
        assert run(tmp_path, "script.py") == (0, "")
        aside = tmp_path / f".ledger.unsealed.{attempt}"
        assert [path.name for path in aside.iterdir()] == ["rank0.ledger"]
        assert check(tmp_path / "ledger" / "rank0.ledger").seal is not None
        assert (tmp_path / "ledger" / "other.txt").read_text() == str(attempt)
        (tmp_path / "ledger" / "rank0.ledger").unlink()
    write(tmp_path / "ledger" / "rank0.ledger", "no ledger")
    with pytest.raises(LedgerError, match=r"rank0\.ledger"):
        running.make_room(tmp_path / "ledger")
    assert (tmp_path / "ledger" / "rank0.ledger").read_text() == "no ledger"


def test_a_later_stage_starts_from_the_seal_before(tmp_path: Path) -> None:
    """`after` puts the earlier stage's seal into the header; one that is not sealed, or not there, is refused."""
    write(tmp_path / "script.py", END)
    first = tmp_path / "first"
    first.mkdir()
    write(first / "script.py", END)
    assert run(first, "script.py") == (0, "")
    assert run(tmp_path, "script.py", after=first / "ledger") == (0, "")
    assert check(tmp_path / "ledger" / "rank0.ledger").previous == ledger.seal_of(first / "ledger") != NO_SEAL
    Writer.create(tmp_path / "killed" / "rank0.ledger", rank=0, ranks=1).close()
    for before in (tmp_path / "killed", tmp_path / "nowhere"):
        with pytest.raises(LedgerError):
            running.run(out=tmp_path / "next", target=["script.py"], module=False, after=before)


def test_there_must_be_something_to_run(tmp_path: Path) -> None:
    """No target, no such script, no such module: one line before anything starts, and no ledger."""
    with pytest.raises(RunError, match="got no program"):
        running.run(out=tmp_path / "ledger", target=[], module=False)
    for target, module in (("nothing.py", False), ("no_such_module", True), ("no.such.module", True), ("..", True)):
        code, printed = run(tmp_path, target, module=module)
        assert code == 70
        assert f"there is no {'module' if module else 'script'} {target}" in printed
    assert not (tmp_path / "ledger").exists()

    def act() -> int:
        with pytest.raises(RunError):
            running.run(out=tmp_path / "ledger", target=["nothing.py"], module=False)
        assert hook.current() is None  # so the process is not taken for the program's
        return 0

    assert wait(fork(act, output=tmp_path / "printed")) == 0


def test_the_recorder_follows_into_what_the_program_becomes(tmp_path: Path) -> None:
    """A launcher that starts a helper and then replaces itself: the last process records, the helper writes nothing."""
    write(tmp_path / "helper.py", "import sys; print('torch' in sys.modules, 'numpy' in sys.modules)")
    write(tmp_path / "stage.py", END + "print(sys.argv, [entry for entry in sys.path if 'attach' in entry])")
    launcher = (
        "import os, subprocess, sys\n"
        "subprocess.run([sys.executable, 'helper.py'], check=True)\n"
        "os.execv(sys.executable, [sys.executable, 'stage.py', 'argument'])\n"
    )
    write(tmp_path / "launcher.py", launcher)
    code, printed = run(tmp_path, "launcher.py")
    assert (code, printed) == (0, "False False\n['stage.py', 'argument'] []\n")
    assert kinds(tmp_path / "ledger") == ["end", "seal"]


def test_another_sitecustomize_runs_as_if_ours_were_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is what it would be, another sitecustomize on it is imported, and its failure is Python's to report."""
    other = write(tmp_path / "site" / "sitecustomize.py", "import sys; print('other', __file__)\n")
    text = "import sys, sitecustomize; print(sitecustomize.__file__, sys.path)"

    def printed(environment: dict[str, str]) -> tuple[str, str]:
        done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    monkeypatch.setenv("PYTHONPATH", str(other.parent))
    recorded = printed(os.environ | running.environment(tmp_path / "ledger", NO_SEAL, 0))
    assert recorded == printed(dict(os.environ))
    assert recorded[0].startswith(f"other {other}")


def test_a_second_process_of_a_rank_records_nothing_and_says_so(tmp_path: Path) -> None:
    """A child that also trains as rank 0 does not disturb its parent's ledger."""
    write(tmp_path / "child.py", END)
    parent = (
        "import subprocess, sys\nsys.audit('golf.phase', 'one')\n"
        "subprocess.run([sys.executable, 'child.py'], check=True)\nsys.audit('golf.phase', 'two')\n"
    )
    write(tmp_path / "script.py", parent + END)
    code, printed = run(tmp_path, "script.py")
    assert code == 0
    assert printed.count("golf-audit: this process is not recorded any more") == 1
    assert kinds(tmp_path / "ledger") == ["phase", "subprocess", "phase", "end", "seal"]
