"""The ledger's writer: what it refuses, and what threads, forks, full disks and kills leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from audit import blocks, ledger, records
from audit.errors import LedgerError
from audit.ledger import Writer, check
from audit.records import Record
from tests.audit.forgery import blocks_of, create, digest, plain, sequences, windows

MOST, PLACE = records.MOST_ROWS, records.LISTS["draw"][1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w: w.note("seal", {}), "use `seal`"),
        (lambda w: w.note("n", {"a": float("nan")}), "can't be JSON"),
        (lambda w: w.note("n", {"a": b"bytes"}), "can't be JSON"),
        (lambda w: w.note("n", {1: "a", "1": "b"}), "can't be JSON"),
        (lambda w: w.note("n", {2: "a", 10: "b"}), "no text"),
        (lambda w: w.note("n", {"a": "\ud800"}), "can't be JSON"),
        (lambda w: w.note("n", {"a": "x" * records.MOST_NOTE_BYTES}), "note a digest instead"),
        (lambda w: w.state(parameters=-1), "kind state"),
        (lambda w: w.state(parameters=2**64), "kind state"),
        (lambda w: w.state(parameters=1, now=2**63), "nanoseconds"),
        (lambda w: w.state(parameters=1, now=-1), "nanoseconds"),
        (lambda w: w.draw(0, "", sequences(), digest=digest(""), checksum=0), "1 to 16 bytes"),
        (lambda w: w.draw(0, "tr\0in", sequences(), digest=digest(""), checksum=0), "without NUL"),
        (lambda w: w.draw(0, "t" * 17, sequences(), digest=digest(""), checksum=0), "1 to 16 bytes"),
        (lambda w: w.draw(0, "train", sequences(), digest=b"short", checksum=0), "digest of 5 bytes"),
        (lambda w: w.draw(0, "train", sequences(), digest=digest(""), checksum=2**64), "kind draw"),
        (lambda w: w.draw(0, "train", np.zeros(2), digest=digest(""), checksum=0), "as sequences"),
        (lambda w: w.draw(0, "train", windows(), digest=digest(""), checksum=0), "as sequences"),
        (lambda w: w.draw(0, "train", np.zeros(MOST + 1, PLACE), digest=digest(""), checksum=0), "in several records"),
        (lambda w: w.step(0, (2**63,), lr=1.0, looped=False, collectives=0), "64 bits"),
        (lambda w: w.calibration(range(MOST + 1), collectives=0), "at most"),
    ],
)
def test_a_writer_refuses_what_it_could_not_read(tmp_path: Path, call: Callable[[Writer], None], says: str) -> None:
    """A value that a record can't hold is refused at once, by name, and the ledger stays whole without it."""
    writer = create(tmp_path / "rank0.ledger")
    writer.state(parameters=1)
    with pytest.raises(LedgerError, match=says):
        call(writer)
    writer.state(parameters=2)
    writer.seal({})
    assert [record[0] for record in plain(writer.path)] == ["state", "state", "note"]


def test_the_largest_records_fit_into_a_block(tmp_path: Path) -> None:
    """The longest list on top of the most rows that may wait, and the longest note: written, and read again."""
    writer = create(tmp_path / "rank0.ledger")
    note = {"text": "x" * (records.MOST_NOTE_BYTES - 100)}
    writer.note("long", {"text": "x" * (records.MOST_NOTE_BYTES // 2)})
    for count in (ledger.MOST_LISTED - 1, MOST):
        writer.score(
            "all",
            np.zeros(count, records.LISTS["score"][1]),
            counted=True,
            collectives=0,
            length=1,
            digest=digest(""),
            checksum=0,
            parameters=0,
        )
    writer.note("long", note)
    writer.seal({})
    first, second = blocks_of(writer.path)[:2]
    assert len(first.windows) == ledger.MOST_LISTED - 1 + MOST
    assert second.notes[0].facts == note


def test_a_flag_that_is_neither_0_nor_1_is_refused(tmp_path: Path) -> None:
    """`origin` is the one flag that is given as a number."""
    with pytest.raises(LedgerError, match="origin"):
        create(tmp_path / "rank0.ledger").draw(0, "train", sequences(), digest=digest(""), checksum=0, origin=2)


def test_a_ledger_is_never_written_over(tmp_path: Path) -> None:
    """Neither an existing file, nor a closed one, nor one under a file takes records."""
    writer = create(tmp_path / "rank0.ledger")
    with pytest.raises(LedgerError, match="never written over"):
        create(tmp_path / "rank0.ledger")
    with pytest.raises(LedgerError, match="can't write"):
        create(tmp_path / "rank0.ledger" / "deeper" / "rank1.ledger")
    writer.seal({})
    for late in (lambda: writer.state(parameters=1), lambda: writer.seal({})):
        with pytest.raises(LedgerError, match="closed"):
            late()
    for rank, ranks in ((1, 1), (-1, 1), (0, 0)):
        with pytest.raises(LedgerError, match="rank"):
            create(tmp_path / "other.ledger", rank=rank, ranks=ranks)


def test_a_full_disk_ends_the_ledger_at_its_last_whole_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half-way leaves a torn block, is reported, and nothing is written behind it."""
    writer = create(tmp_path / "rank0.ledger")
    writer.state(parameters=1)
    writer.flush()
    real = os.write
    answers = iter([lambda d, c: real(d, c[:20]), OSError(28, "No space left on device")])

    def full(descriptor: int, content: bytes) -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer(descriptor, content)

    writer.state(parameters=2)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LedgerError, match="No space left"):
        writer.flush()
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="closed"):
        writer.state(parameters=3)
    ending = check(writer.path)
    assert (ending.records, ending.torn_bytes, ending.seal) == (1, 20, None)


def test_threads_lose_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of several threads all arrive, each thread's in its order, whoever writes the blocks."""
    monkeypatch.setattr(ledger, "MOST_RECORDS", 7)
    writer = create(tmp_path / "rank0.ledger")
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [
            threading.Thread(target=lambda t=t: [writer.state(parameters=1000 * t + i) for i in range(500)])
            for t in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(switch)
    writer.seal({})
    found = np.concatenate([block.states["parameters"] for block in blocks_of(writer.path)])
    assert all(found[found // 1000 == t].tolist() == list(range(1000 * t, 1000 * t + 500)) for t in range(4))


def test_a_thread_that_is_interrupted_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """A thread that holds the list of pending records while another one writes a block appends to the right one."""
    writer = create(tmp_path / "rank0.ledger")
    writer.state(parameters=1)
    pending = writer._pending
    writer.flush()
    pending.append(records.record("state", 1, (2,)))
    writer.seal({})
    assert [record[2].get("parameters") for record in plain(writer.path)] == [1, 2, None]


def test_a_record_made_while_a_block_is_written_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer that runs inside the writer (it may open a file, which is recorded) breaks nothing."""
    writer = create(tmp_path / "rank0.ledger")
    honest = blocks.encode

    def interrupted(pending: Sequence[Record]) -> tuple[bytes, bytes]:
        if len(pending) == 2:
            writer.state(parameters=3)
            writer.flush()
        return honest(pending)

    monkeypatch.setattr(blocks, "encode", interrupted)
    writer.state(parameters=1)
    writer.state(parameters=2)
    writer.flush()
    writer.seal({})
    assert [block.states["parameters"].tolist() for block in blocks_of(writer.path)] == [[1, 2], [3]]


def test_a_forked_child_does_not_extend_the_chain(tmp_path: Path) -> None:
    """The child's block is refused; the parent's ledger holds and has the parent's records alone."""
    program = (
        "import os, sys; from pathlib import Path\n"
        "from audit.ledger import Writer; from audit.errors import LedgerError\n"
        "writer = Writer.create(Path(sys.argv[1]), rank=0, ranks=1); writer.state(parameters=1)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try: writer.state(parameters=2); writer.flush()\n"
        "    except LedgerError as cause: os._exit(9 if 'forked child' in str(cause) else 1)\n"
        "    os._exit(1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9\n"
        "writer.seal({})\n"
    )
    path = tmp_path / "rank0.ledger"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=60)
    assert [record[2].get("parameters") for record in plain(path)] == [1, None]


def test_a_killed_run_leaves_a_ledger_up_to_its_last_whole_block(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: the file verifies, is unsealed, and holds every block that was finished."""
    program = (
        "import sys; from pathlib import Path; from audit import ledger\n"
        "ledger.MOST_RECORDS = 16\n"
        "writer = ledger.Writer.create(Path(sys.argv[1]), rank=0, ranks=1)\n"
        "for i in range(10**9):\n"
        "    writer.state(parameters=i)\n"
        "    if i == 999: print('on its way', flush=True)\n"
    )
    path = tmp_path / "rank0.ledger"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on its way\n"
        os.kill(process.pid, signal.SIGKILL)
    ending = check(path)
    assert ending.seal is None
    assert ending.records >= 992
    assert ending.records % 16 == 0
    numbers = np.concatenate([block.states["parameters"] for block in blocks_of(path)])
    assert numbers.tolist() == list(range(ending.records))
