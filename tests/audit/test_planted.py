"""What the records show of each planted program, and of its honest neighbour. Verdicts are the rules'."""

from __future__ import annotations

import itertools
from pathlib import Path

from audit.ledger import check
from tests.audit.children import PLANTED, kinds, notes, of_kind, recorded, records


def test_hidden_writes_break_the_chain_of_updates(tmp_path: Path) -> None:
    """A write through `.data` or numpy shows as an update that does not begin where the last one ended."""
    for program in ("data_write", "numpy_write"):
        for honest in (False, True):
            arguments = ("honest",) if honest else ()
            folder = recorded(tmp_path / f"{program}{honest}", PLANTED / f"{program}.py", *arguments)
            updates = of_kind(folder, "update")
            chained = [a["after"] == b["before"] for a, b in itertools.pairwise(updates)]
            assert chained == [True, honest]


def test_an_optimizer_of_no_kind_shows_as_states(tmp_path: Path) -> None:
    """Weights that move without an update differ from state to state; announced, a step stands between."""
    for honest in (False, True):
        folder = recorded(tmp_path / str(honest), PLANTED / "foreign_optimizer.py", *(("honest",) if honest else ()))
        found = [(kind, row) for kind, row in records(folder) if kind in ("state", "step", "update")]
        changes = [
            (before[1]["parameters"] != after[1]["parameters"])
            for before, after in itertools.pairwise(found)
            if before[0] == after[0] == "state"
        ]
        assert any(changes) == (not honest)
        assert len(of_kind(folder, "step")) == (3 if honest else 0)
        assert not of_kind(folder, "update")


def test_tokens_read_behind_pythons_back_are_caught_at_the_model(tmp_path: Path) -> None:
    """A shard read by `torch.from_file` raises no event; its tokens match no draw and are kept, unless announced."""
    folder = recorded(tmp_path / "mutant", PLANTED / "from_file.py")
    opened = [note.facts["name"] for note in notes(folder, "open")]
    assert opened == ["train_000000.bin"]
    (unknown,) = notes(folder, "unknown")
    assert unknown.facts["shape"] == [4, 16]
    assert [int(row["step"]) for row in of_kind(folder, "step")] == [0, -1]
    honest = recorded(tmp_path / "honest", PLANTED / "from_file.py", "honest")
    assert not notes(honest, "unknown")
    assert [int(row["step"]) for row in of_kind(honest, "step")] == [0, 1]


def test_worker_processes_write_nothing(tmp_path: Path) -> None:
    """What a DataLoader's workers announce is not heard; the loop's draws are, and the ledger is one file."""
    folder = recorded(tmp_path / "run", PLANTED / "workers.py")
    assert [path.name for path in folder.iterdir()] == ["rank0.ledger"]
    assert [int(row["draw"]) for row in of_kind(folder, "draw")] == [0, 1, 2, 3]
    assert notes(folder, "fork")
    assert len(of_kind(folder, "update")) == 4


def test_the_forward_that_is_scored_is_told_from_a_second_one(tmp_path: Path) -> None:
    """One forward scored and back-propagated: score before step. Scored from a second forward: after the step."""
    legal = kinds(recorded(tmp_path / "one", PLANTED / "one_forward.py"))
    start = legal.index("draw")
    assert [kind for kind in legal[start:] if kind not in ("state", "optimizer")][:5] == [
        "draw",
        "forward",
        "score",
        "step",
        "update",
    ]
    folder = recorded(tmp_path / "second", PLANTED / "second_forward.py")
    found = [kind for kind in kinds(folder)[start:] if kind not in ("state", "optimizer")]
    assert found[:6] == ["draw", "forward", "step", "update", "forward", "score"]
    assert [int(row["grad"]) for row in of_kind(folder, "forward")] == [1, 0] * 5


def test_equal_programs_leave_equal_facts(tmp_path: Path) -> None:
    """Two runs of one program have one clockless digest, and another program has another."""
    runs = [recorded(tmp_path / name, PLANTED / "one_forward.py") for name in ("first", "second")]
    endings = [check(folder / "rank0.ledger") for folder in runs]
    assert endings[0].clockless == endings[1].clockless
    assert endings[0].head != endings[1].head
    other = check(recorded(tmp_path / "third", PLANTED / "second_forward.py") / "rank0.ledger")
    assert other.clockless != endings[0].clockless
