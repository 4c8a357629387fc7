"""The two lines for a loop that announces nothing: what they pass on, what they record, and how a leak shows."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import audit
from audit import fingerprint
from audit.ledger import Ledger
from audit.records import CONTENT
from audit.verdicts import Verdict
from audit.verify import Options, verify_folders
from audit.watching import content
from tests.audit.children import kinds, notes, of_kind, recorded

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_pytorch.py"


def rows_of(folder: Path, table: str, columns: tuple[str, str], rows: str) -> list[list[int]]:
    """The 64-bit row hashes in the list of every record of a table."""
    found = []
    for block in Ledger.open(folder / "rank0.ledger").blocks():
        for record in getattr(block, table):
            part = getattr(block, rows)[record["offset"] : record["offset"] + record["count"]]
            high, low = (part[column].astype(np.uint64) for column in columns)
            found.append((high << np.uint64(32) | low).tolist())
    return found


def drawn(folder: Path) -> list[list[int]]:
    return rows_of(folder, "draws", ("shard", "start"), "sequences")


def scored(folder: Path) -> list[list[int]]:
    return rows_of(folder, "scores", ("begin", "scored"), "windows")


def used(folder: Path) -> list[list[int]]:
    """The draws of every step."""
    return [
        block.used["draw"][row["offset"] : row["offset"] + row["count"]].tolist()
        for block in Ledger.open(folder / "rank0.ledger").blocks()
        for row in block.steps
    ]


def loader(count: int = 12, *, seed: int = 0, **options: Any) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Batches of 4 random vectors and their labels."""
    random = torch.Generator().manual_seed(seed)
    inputs, labels = torch.randn(count, 6, generator=random), torch.randint(3, (count,), generator=random)
    return DataLoader(TensorDataset(inputs, labels), batch_size=4, **options)


def fit(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()
    optimizer.step()


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(6, 3)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def test_without_a_recorder_a_loader_is_passed_on() -> None:
    """The same batches, length and attributes, again and again; a scoring block does nothing; nothing is hashed."""
    plain = loader()
    watched = audit.watch(plain, split="train")
    for _ in range(2):
        assert all(torch.equal(a[0], b[0]) for a, b in zip(watched, plain, strict=True))
    assert (len(watched), watched.batch_size, watched.dataset) == (3, 4, plain.dataset)
    assert list(audit.watch(iter(["no", "tensors"]))) == ["no", "tensors"]
    with pytest.raises(AttributeError):
        _ = watched.nothing
    assert len(copy.copy(watched)) == 3
    with audit.scoring(nn.Linear(2, 2)):
        assert len(list(watched)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_watched_loop_is_draws_and_steps(tmp_path: Path, workers: int) -> None:
    """Each batch is one draw by content, whoever read it; each step uses the batch that was handed out before it."""

    def program() -> None:
        model, optimizer = model_and_optimizer()
        for inputs, labels in audit.watch(loader(num_workers=workers), split="train"):
            fit(model, inputs, labels, optimizer)
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    batches = list(loader())
    assert drawn(folder) == [fingerprint.row_hashes(inputs.numpy()).tolist() for inputs, _ in batches]
    found = of_kind(folder, "draw")
    assert [row["split"] for row in found] == [b"train"] * 3
    assert all(row["origin"] == CONTENT and row["length"] == 6 for row in found)
    assert [row["digest"].tobytes() for row in found] == [content(batch).digest for batch in batches]
    assert used(folder) == [[0], [1], [2]]
    assert len(of_kind(folder, "update")) == 3
    assert not notes(folder, "recorder")


def test_a_known_model_says_which_batches_were_used(tmp_path: Path) -> None:
    """Once a model is announced, a batch that was handed out and not trained on is in no step."""

    def program() -> None:
        model, optimizer = model_and_optimizer()
        with audit.scoring(model):
            pass
        for number, (inputs, labels) in enumerate(audit.watch(loader())):
            if number != 1:
                fit(model, inputs, labels, optimizer)
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    assert used(folder) == [[0], [2]]
    drawn_sums = [int(row["checksum"]) for row in of_kind(folder, "draw")]
    assert [int(row["checksum"]) for row in of_kind(folder, "forward")] == [drawn_sums[0], drawn_sums[2]]
    assert not notes(folder, "unknown")


def test_a_changed_input_counts_for_all_that_is_open(tmp_path: Path) -> None:
    """Inputs that were changed on the way to the model match no draw: every batch handed out since counts as used."""

    def program() -> None:
        model, optimizer = model_and_optimizer()
        with audit.scoring(model):
            pass
        batches = list(audit.watch(loader()))
        fit(model, batches[0][0] * 2, batches[0][1], optimizer)
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    assert used(folder) == [[0, 1, 2]]
    assert len(notes(folder, "unknown")) == 1


def test_a_score_is_fixed_when_its_block_moves_on(tmp_path: Path) -> None:
    """In a block a batch is settled at the next one or at the end: a step in between stands before the score."""

    def program() -> None:
        model, optimizer = model_and_optimizer()
        with audit.scoring(model, label="legal"), torch.no_grad():
            for inputs, _ in audit.watch(loader(8), split="val"):
                model(inputs)
        with audit.scoring(model, label="too late", counted=False):
            for inputs, labels in audit.watch(loader(4, seed=1), split="val"):
                fit(model, inputs, labels, optimizer)
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    wanted = ("draw", "score", "step")
    assert [kind for kind in kinds(folder) if kind in wanted] == [
        *("draw", "score") * 2,
        *("draw", "step", "score"),
    ]
    scores = of_kind(folder, "score")
    assert [(row["label"], int(row["counted"])) for row in scores] == [(b"legal", 1)] * 2 + [(b"too late", 0)]
    assert [int(row["length"]) for row in scores] == [0, 0, 0]
    assert scored(folder) == drawn(folder)
    assert [int(row["checksum"]) for row in scores] == [int(row["checksum"]) for row in of_kind(folder, "draw")]
    states = [int(row["parameters"]) for row in of_kind(folder, "state")]
    assert int(scores[0]["parameters"]) == int(scores[1]["parameters"]) == states[0]
    assert int(scores[2]["parameters"]) == int(of_kind(folder, "update")[-1]["after"])


def test_a_batch_that_enters_the_model_in_a_block_is_scored_there(tmp_path: Path) -> None:
    """Score first, then train, chunk by chunk, with the batch drawn outside of the block: score before step."""

    def program() -> None:
        model, optimizer = model_and_optimizer()
        for inputs, labels in audit.watch(loader(), split="val"):
            with audit.scoring(model):
                loss = nn.functional.cross_entropy(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    assert [kind for kind in kinds(folder) if kind in ("draw", "score", "step")] == ["draw", "score", "step"] * 3
    assert scored(folder) == drawn(folder)
    assert used(folder) == [[0], [1], [2]]


@pytest.mark.parametrize(
    "batch",
    [
        lambda: (torch.arange(8).reshape(4, 2), torch.zeros(4)),
        lambda: {"ids": torch.arange(8).reshape(4, 2), "more": [np.zeros(4), "text"]},
        lambda: [np.arange(8).reshape(4, 2)],
        lambda: torch.ones(2, 4, dtype=torch.bfloat16).T,
        lambda: torch.ones(4, 2).to(torch.float8_e4m3fn),
        lambda: torch.ones(4, 2, requires_grad=True),
        lambda: torch.arange(8).reshape(2, 4).T,
    ],
)
def test_a_batch_is_its_arrays_in_order(batch: Callable[[], Any]) -> None:
    """Tuples, mappings, lists and bare arrays of any type: four rows, equal for equal content; every array counts."""
    found = content(batch())
    assert (len(found.hashes), found.length) == (4, 2)
    again = content(batch())
    assert found.hashes.tolist() == again.hashes.tolist()
    assert found.digest == again.digest
    other = content((batch(), torch.ones(1)))
    assert found.digest != other.digest
    assert found.checksum == other.checksum


def test_a_batch_without_arrays_is_noted_as_a_failure(tmp_path: Path) -> None:
    """The loop gets its batch all the same; a ledger that lacks a draw says so, and no rule can pass on it."""

    def program() -> None:
        assert list(audit.watch(["text"])) == ["text"]
        sys.audit("golf.end", "train")

    folder = recorded(tmp_path / "run", program)
    assert [note.facts for note in notes(folder, "recorder")] == [{"what": "watch"}]
    assert not of_kind(folder, "draw")


def test_the_example_shows_its_leak(tmp_path: Path) -> None:
    """The plain loop with `--leak` trained on rows that it scored afterwards; without it on none of them."""
    for arguments in ((), ("--leak",)):
        folder = recorded(tmp_path / "".join(arguments), EXAMPLE, "--epochs", "2", *arguments)
        draws = dict(zip((int(row["draw"]) for row in of_kind(folder, "draw")), drawn(folder), strict=True))
        trained = {row for step in used(folder) for draw in step for row in draws[draw]}
        held_out = [row for score in scored(folder) for row in score]
        assert len(held_out) == len(set(held_out)) == 300
        assert len(trained & set(held_out)) == (300 if arguments else 0)
        assert len(trained) == (1300 if arguments else 1000)
        assert not notes(folder, "recorder")
        sealed = list(Ledger.open(folder / "rank0.ledger").blocks())[-1].notes[-1]
        assert sealed.facts == {"artifact": None, "ended": "returned 0"}
        judgement = verify_folders([folder], Options()).judgement
        assert judgement.profile == "generic"
        assert judgement.verdict is (Verdict.FAIL if arguments else Verdict.PASS)
        assert judgement.ruling("C3").verdict is judgement.verdict


LOOP = """
import torch
import audit
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
train, held = torch.randn(3, 8, 4), torch.randn(2, 8, 4)

def learn(batches):
    for batch in audit.watch(batches, model=model):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()

def score(label):
    with audit.scoring(model, label=label), torch.no_grad():
        for batch in audit.watch(held, split="val"):
            model(batch)

def copied(batches):
    copy = torch.nn.Linear(4, 2)
    copy.load_state_dict(model.state_dict())
    other = torch.optim.SGD(copy.parameters(), lr=0.1)
    for batch in batches:
        other.zero_grad()
        copy(batch).square().mean().backward()
        other.step()
    model.load_state_dict(copy.state_dict())

"""


@pytest.mark.parametrize(
    ("acts", "rule", "verdict", "kind"),
    [
        ("learn(train); score('each'); learn(train); score('each')", "C3", Verdict.PASS, ""),
        ("learn(train); score('first'); learn(held); learn(train)", "C3", Verdict.PASS, ""),
        ("score('first'); learn(train); learn(held); score('final')", "C4", Verdict.FAIL, "rescored-after-update"),
        ("learn(train); copied(held); score('final')", "C3", Verdict.UNPROVEN, "parameters-changed"),
        ("learn(train); torch.nn.Linear(4, 2); score('final')", "C3", Verdict.PASS, ""),
    ],
    ids=["every epoch", "score first", "score, train, score", "a copy that learned", "nothing copied"],
)
def test_what_a_plain_loop_may_do(tmp_path: Path, acts: str, rule: str, verdict: Verdict, kind: str) -> None:
    """Scores of every epoch pass; a score replaced after training on its rows, and weights copied in, do not."""
    program = tmp_path / "loop.py"
    program.write_text(LOOP + acts + "\n")
    judgement = verify_folders([recorded(tmp_path / "out", program)], Options()).judgement
    assert judgement.ruling(rule).verdict is verdict
    assert judgement.verdict is verdict
    assert not kind or kind in {finding.kind for finding in judgement.ruling(rule).findings}
