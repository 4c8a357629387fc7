"""Whole programs under the recorder: what they compute, what they survive, and what they leave when they are killed."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from audit.errors import LedgerError
from audit.ledger import NO_SEAL, Writer, check, parts_of, seal_of
from audit.recorder import hook
from tests.audit.children import fork, kinds, notes, of_kind, recorded, start, wait
from tests.toy import toy_recipe
from trainer import stages
from trainer.data import build
from trainer.layout import Layout


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_stays_one_graph_and_is_heard_once(tmp_path: Path, backend: str) -> None:
    """The hook leaves no trace in a whole graph; each call of the compiled or the plain form is one forward."""

    def program() -> None:
        model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 50))
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        sys.audit("golf.model", model)
        sys.audit("golf.model", compiled)
        ids = torch.arange(12).reshape(2, 6)
        for form in (compiled, model, compiled):
            assert torch.equal(form(ids), nn.Sequential.forward(model, ids))
        sys.audit("golf.end", "train")

    assert len(of_kind(recorded(tmp_path / "run", program), "forward")) == 3


def test_nothing_of_ours_reaches_the_program(tmp_path: Path) -> None:
    """Malformed events and failing sums raise nothing; each kind of failure is one note, what is sound is recorded."""

    def program() -> None:
        model = nn.Linear(3, 3)
        sys.audit("golf.run", "train")
        sys.audit("golf.model", "no module")
        sys.audit("golf.model", model)
        for _ in range(3):
            sys.audit("golf.draw", 1, "train", None, None, None)
        model(torch.ones(2, 3))
        torch.func.vmap(model)(torch.ones(2, 3))
        model.register_parameter("odd", nn.Parameter(torch.eye(2).to_sparse()))
        sys.audit("golf.phase", "x" * 10)
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    failed = [note.facts["what"] for note in notes(folder, "recorder")]
    assert failed.count("golf.draw") == 1
    assert {"golf.run", "golf.model", "golf.draw", "golf.phase"} <= set(failed)
    assert notes(folder, "phase")
    assert len(of_kind(folder, "forward")) >= 1


def test_a_ledger_that_cant_be_written_does_not_stop_the_program(tmp_path: Path) -> None:
    """A folder that can't be made, a rank that is recorded already: one line on stderr, and the program goes on."""
    (tmp_path / "file").write_text("in the way")
    Writer.create(tmp_path / "taken" / "rank0.ledger", rank=0, ranks=1).close()
    for out in (tmp_path / "file" / "ledger", tmp_path / "taken"):

        def program(out: Path = out) -> int:
            hook.attach(out=out, previous=NO_SEAL)
            for _ in range(3):
                sys.audit("golf.phase", "going on")
            return 9

        assert wait(fork(program, output=tmp_path / "printed")) == 9
        printed = (tmp_path / "printed").read_text()
        assert printed.count("golf-audit: this process is not recorded any more: LedgerError") == 1
        assert len(printed.splitlines()) == 1


def test_threads_and_forks_leave_a_whole_ledger(tmp_path: Path) -> None:
    """Events of eight threads are all there; a forked child that goes on announcing adds nothing."""

    def program() -> None:
        sys.audit("golf.phase", "start")

        def announce(number: int) -> None:
            for index in range(100):
                sys.audit("golf.weights", f"{number}.{index}")
                if index == 50 and number == 0 and not os.fork():
                    sys.audit("golf.weights", "from a child")
                    sys.audit("golf.end", "from a child")
                    (Path.cwd() / "child").write_text(str(hook.current()))
                    os._exit(0)

        threads = [threading.Thread(target=announce, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    reasons = [note.facts["why"] for note in notes(folder, "weights")]
    assert sorted(reasons) == sorted(f"{number}.{index}" for number in range(8) for index in range(100))
    assert len(notes(folder, "fork")) == 1
    assert (tmp_path / "run" / "child").read_text() == "None"


# The trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a toy run."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    folder.mkdir()
    build(toy_recipe(), folder)
    return folder


def toy_training(data: Path, folder: Path, *, ranks: int = 1) -> Callable[[], None]:
    """A program that trains the toy recipe in `folder`."""
    layout = Layout(folder / "runs")
    layout.root.mkdir(parents=True, exist_ok=True)
    if not layout.data.exists():
        layout.data.symlink_to(data)
    return lambda: stages.train(layout, toy_recipe(dist__ranks=ranks), 5)


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file that a toy training leaves and that must repeat."""
    found = {path.name: path.read_bytes() for path in (folder / "runs" / "train" / "5").iterdir()}
    assert {"model.safetensors", "train_loss.tsv", "validation.tsv", "metrics.json"} <= set(found)
    return found


def test_a_training_computes_the_same_bits_under_the_recorder(data: Path, tmp_path: Path) -> None:
    """Weights, losses, Hessians and metrics are equal byte for byte with and without; the ledger tells all of it."""
    program = toy_training(data, tmp_path / "plain")
    assert wait(fork(lambda: program() or 0, output=tmp_path / "printed")) == 0
    folder = recorded(tmp_path / "recorded", toy_training(data, tmp_path / "recorded"))
    assert outputs(tmp_path / "plain") == outputs(tmp_path / "recorded")
    assert not notes(folder, "recorder")
    assert not notes(folder, "unknown")
    steps, updates = of_kind(folder, "step"), of_kind(folder, "update")
    assert [int(row["step"]) for row in steps] == list(range(8))
    assert len(updates) == 16  # AdamW and Muon
    for optimizer in (0, 1):
        own = [row for row in updates if row["optimizer"] == optimizer]
        assert all(a["after"] == b["before"] for a, b in itertools.pairwise(own))
    drawn = [int(row["checksum"]) for row in of_kind(folder, "draw")]
    entered = [int(row["checksum"]) for row in of_kind(folder, "forward") if row["grad"]]
    assert entered == drawn[: len(entered)]
    assert check(folder / "rank0.ledger").seal == {"artifact": None, "ended": "announced"}


def test_two_ranks_write_two_parts(data: Path, tmp_path: Path) -> None:
    """Each rank of a run has its own ledger, which says which of how many it is; together they have a seal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, children = toy_training(data, tmp_path, ranks=2), []
    for rank in range(2):

        def act(rank: int = rank) -> int:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            hook.attach(out=tmp_path / "ledger", previous=NO_SEAL)
            program()
            return 0

        children.append(fork(act, output=tmp_path / f"{rank}.txt"))
    assert [wait(child) for child in children] == [0, 0], (tmp_path / "0.txt").read_text()
    parts = [check(path) for path in parts_of(tmp_path / "ledger")]
    assert [(part.rank, part.ranks) for part in parts] == [(0, 2), (1, 2)]
    assert seal_of(tmp_path / "ledger")
    for rank in range(2):
        assert not notes(tmp_path / "ledger", "recorder", rank=rank)
        assert [int(row["step"]) for row in of_kind(tmp_path / "ledger", "step", rank=rank)] == list(range(8))
    ends = [of_kind(tmp_path / "ledger", "state", rank=rank)[-1]["parameters"] for rank in range(2)]
    assert ends[0] == ends[1]


def test_a_killed_program_leaves_what_it_had(tmp_path: Path) -> None:
    """SIGKILL at any moment: the ledger verifies to its last whole block, is not sealed, and tells a true beginning."""

    def program() -> None:
        for number in itertools.count():
            sys.audit("golf.weights", str(number))
            if number % 7 == 0:
                sys.audit("golf.phase", str(number))

    random, lengths = np.random.default_rng(0), []
    for attempt in range(8):
        child = start(tmp_path / str(attempt), program)
        path = tmp_path / str(attempt) / "ledger" / "rank0.ledger"
        while not path.exists() or not path.stat().st_size:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert wait(child) == -signal.SIGKILL
        ending = check(path)
        assert ending.seal is None
        found = [note.facts["why"] for note in notes(path.parent, "weights")] if ending.records else []
        assert found == [str(number) for number in range(len(found))]
        lengths.append(len(found))
    assert max(lengths) > 7
    with pytest.raises(LedgerError, match="not sealed"):
        seal_of(tmp_path / "0" / "ledger")


@pytest.mark.parametrize("way", ["code", "exception", "well"])
def test_a_program_that_fails_after_its_end_stays_unsealed(tmp_path: Path, way: str) -> None:
    """`golf.end` seals nothing by itself: the process must also end well, without an exit code or an exception."""

    def program() -> int:
        heard = hook.attach(out=tmp_path / "ledger", previous=NO_SEAL)
        sys.audit("golf.end", "train")
        if way == "code":
            heard.returned = 3
        if way == "exception":
            sys.last_value = ValueError()  # as the interpreter keeps what it printed
        heard.finish()
        sys.audit("golf.phase", "too late")
        return 0

    assert wait(fork(program, output=tmp_path / "printed")) == 0
    sealed = check(tmp_path / "ledger" / "rank0.ledger").seal is not None
    assert sealed == (way == "well")
    assert [note.name for note in of_kind(tmp_path / "ledger", "note")] == ["end"] + ["seal"] * sealed


def test_an_open_is_noted_again_in_another_phase(tmp_path: Path) -> None:
    """Each shard once between two announced moments: when it was opened is what matters, not how often."""

    def program() -> None:
        tiny = Path("shard")
        tiny.write_bytes(np.array([20240520, 1] + [0] * 254, dtype="<i4").tobytes())
        for phase in ("one", "two"):
            sys.audit("golf.phase", phase)
            for _ in range(3):
                tiny.read_bytes()
        sys.audit("golf.end", "train")

    assert kinds(recorded(tmp_path / "run", program)) == ["phase", "open", "phase", "open", "end", "seal"]
