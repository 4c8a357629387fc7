"""The recorder in one process: what happens becomes records in its order, and the program computes what it would."""

from __future__ import annotations

import base64
import contextlib
import copy
import gc
import io
import pickle
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from audit import fingerprint
from audit.ledger import Ledger, Writer
from audit.recorder import announced
from audit.recorder.recording import Recording
from tests.audit.children import kinds, notes, of_kind, records

LENGTH = 4


class Bench:
    """A recording in this process, without the audit hook: events are given to it, torch's hooks are called here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        writer = Writer.create(folder / "rank0.ledger", rank=0, ranks=1)
        self.recording = Recording(writer, guard=lambda _, act, *arguments: act(*arguments), began=0)
        self.model = nn.Sequential(nn.Embedding(50, 6), nn.Linear(6, 50))
        self.drawn = 0

    def tell(self, event: str, *arguments: Any) -> None:
        announced.hear(self.recording, f"golf.{event}", arguments)

    def draw(self, split: str = "train") -> tuple[int, torch.Tensor]:
        """An announced draw: its number and its ids as the model takes them."""
        self.drawn += 1
        rows = np.random.default_rng(self.drawn).integers(0, 50, (3, LENGTH + 1)).astype(np.uint16)
        self.tell("draw", self.drawn, split, np.zeros(3, np.int32), np.arange(3), rows)
        return self.drawn, torch.from_numpy(rows.astype(np.int64))[:, :-1]

    def backward(self, ids: torch.Tensor) -> None:
        self.model(ids).square().mean().backward()

    def step(self, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in optimizers:
            self.recording.before_step(optimizer)
            optimizer.step()
            self.recording.after_step(optimizer)

    def kinds(self) -> list[str]:
        self.recording.flush()
        return kinds(self.folder)

    def of_kind(self, kind: str) -> list[Any]:
        self.recording.flush()
        return of_kind(self.folder, kind)

    def used(self) -> list[tuple[int, list[int]]]:
        """Number and draws of every step."""
        self.recording.flush()
        found = []
        for block in Ledger.open(self.folder / "rank0.ledger").blocks():
            for row in block.steps:
                used = block.used["draw"][row["offset"] : row["offset"] + row["count"]]
                found.append((int(row["step"]), used.tolist()))
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


# What is recorded


def test_a_step_is_draw_forward_step_update_and_the_updates_chain(bench: Bench) -> None:
    """Forward and draw have one checksum, an update begins where the one before ended, and the state is where it is."""
    bench.tell("model", bench.model)
    optimizer = sgd(bench.model)
    for number in range(3):
        draw, ids = bench.draw()
        bench.backward(ids)
        bench.tell("step", number, (draw,), 0.5, True, number)
        bench.step(optimizer)
    bench.tell("phase", "later")
    assert bench.kinds()[:7] == ["model", "state", "draw", "state", "forward", "step", "optimizer"]
    assert bench.kinds()[7:] == ["update", *["draw", "forward", "step", "update"] * 2, "phase", "state"]
    draws, forwards, updates = (bench.of_kind(kind) for kind in ("draw", "forward", "update"))
    assert [row["checksum"] for row in draws] == [row["checksum"] for row in forwards]
    assert all(row["grad"] == 1 and row["tokens"] == 3 * LENGTH for row in forwards)
    assert [row["before"] for row in updates[1:]] == [row["after"] for row in updates[:-1]]
    assert bench.of_kind("state")[-1]["parameters"] == updates[-1]["after"]
    flat = np.concatenate([p.detach().numpy().reshape(-1) for p in bench.model.parameters()])
    assert updates[-1]["after"] == fingerprint.fingerprint(flat)


def test_every_moment_has_its_state(bench: Bench) -> None:
    """A state follows each announcement that others are compared with, and is on the disk when a phase begins."""
    bench.tell("phase", "before there is a model")
    bench.tell("model", bench.model)
    for event, *arguments in (
        ("weights", "averaged"),
        ("phase", "later"),
        ("artifact", "path", "sha256:0", 5),
        ("end", "train"),
    ):
        bench.tell(event, *arguments)
    assert kinds(bench.folder) == [
        *("phase", "model", "state", "weights", "state", "phase", "state", "artifact", "state", "end", "state")
    ]
    assert bench.recording.artifact == "sha256:0"


def test_optimizers_of_parts_add_up_to_the_state(bench: Bench) -> None:
    """Two optimizers that share the model's parameters out: their last fingerprints add up to the model's."""
    bench.tell("model", bench.model)
    optimizers = sgd(bench.model[0]), torch.optim.AdamW(bench.model[1].parameters())
    _, ids = bench.draw()
    bench.backward(ids)
    bench.step(*optimizers)
    bench.tell("end", "train")
    after = [int(row["after"]) for row in bench.of_kind("update")]
    assert bench.of_kind("state")[-1]["parameters"] == sum(after) & fingerprint.MASK
    assert [note.facts["covers_model"] for note in notes(bench.folder, "optimizer")] == [True, True]
    assert bench.used() == [(-1, [1])]


def test_a_score_carries_the_state_that_made_it(bench: Bench) -> None:
    """A score's fingerprint is that of the parameters at its announcement, its sums are those of its rows."""
    rows = np.random.default_rng(0).integers(0, 50, (2, LENGTH + 1)).astype(np.uint16)
    bench.tell("model", bench.model)
    column = np.array([0, 4])
    bench.tell("score", "sequential", True, column, column + 4, np.array([1.5, np.nan]), column, rows, 7)
    score, state = bench.of_kind("score")[0], bench.of_kind("state")[0]
    assert score["parameters"] == state["parameters"]
    assert score["checksum"] == fingerprint.checksum(rows[:, :-1])
    assert (score["label"], score["counted"], score["collectives"], score["length"]) == (b"sequential", 1, 7, LENGTH)


def test_the_gradient_mode_is_a_fact(bench: Bench) -> None:
    """A forward says whether gradients were recorded; in no_grad and inference mode, whatever is in these, none are."""
    bench.tell("model", bench.model)
    _, ids = bench.draw()
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            bench.model(ids)
    with torch.inference_mode(), torch.enable_grad():
        bench.model(ids)
    assert [int(row["grad"]) for row in bench.of_kind("forward")] == [1, 0, 0, 0]


def test_what_nobody_announced_is_kept(bench: Bench) -> None:
    """Ids under gradients that match no draw are noted with their bytes; a step after them uses all that is open."""
    bench.tell("model", bench.model)
    draw, _ = bench.draw()
    ids = torch.tensor([[1, 2, 3], [40_000, 5, 6]])
    with torch.no_grad():
        bench.recording.forward((ids,), {})
    bench.recording.forward((ids,), {})
    bench.step(sgd(bench.model))
    note = bench.of_kind("note")[1]
    assert bench.kinds()[-6:] == ["state", "forward", "unknown", "optimizer", "step", "update"]
    assert (note.name, note.facts["shape"], note.facts["dtype"]) == ("unknown", [2, 3], "<u2")
    kept = np.frombuffer(zlib.decompress(base64.b64decode(note.facts["rows"])), "<u2")
    assert kept.tolist() == ids.reshape(-1).tolist()
    at = note.facts["at"]
    assert list(records(bench.folder))[at][0] == "forward"
    assert bench.used() == [(-1, [draw])]  # nobody can say that the draw was not in it


def test_large_unknown_tokens_are_cut_and_many_are_only_hashed(bench: Bench) -> None:
    """A note keeps 64 KiB, and after 16 notes no more tokens: a ledger stays small whatever a program does."""
    bench.tell("model", bench.model)
    for number in range(18):
        bench.recording.forward((torch.full((2, 40_000), number % 50),), {})
    bench.recording.flush()
    found = notes(bench.folder, "unknown")
    assert len(found) == 18
    assert ["rows" in note.facts for note in found] == [True] * 16 + [False] * 2
    assert all(note.facts["sha256"].startswith("sha256:") for note in found)


def test_steps_that_nobody_announced_are_counted_down(bench: Bench) -> None:
    """One step for optimizers in a row, with the draws that entered under gradients since the last one, in order."""
    bench.tell("model", bench.model)
    optimizers = sgd(bench.model[0]), sgd(bench.model[1])
    first, ids = bench.draw()
    with torch.no_grad():
        bench.model(bench.draw("val")[1])  # looked at, not learned from
    third, more = bench.draw()
    for each in (ids, more, ids):
        bench.backward(each)
    bench.step(*optimizers)
    bench.step(*optimizers)  # the same gradients once more
    fourth, ids = bench.draw()
    bench.backward(ids)
    bench.tell("step", 9, (fourth,), 1.0, False, 3)
    bench.step(*optimizers)
    fifth, ids = bench.draw()
    bench.backward(ids)
    bench.step(sgd(bench.model))
    assert bench.used() == [(-1, [first, third]), (-2, [first, third]), (9, [fourth]), (-3, [fifth])]


def test_an_unannounced_step_carries_the_last_counter_that_was_heard(bench: Bench) -> None:
    """A step, a score or a calibration says the counter; a step that nobody announces was made at it, or later."""
    bench.tell("model", bench.model)
    optimizer = sgd(bench.model)
    column, rows = np.array([0]), np.zeros((1, LENGTH + 1), np.uint16)
    says: list[Callable[[int, int], object]] = [
        lambda draw, count: bench.tell("step", 0, (draw,), 1.0, False, count),
        lambda draw, count: bench.tell("score", "x", True, column, column + 4, column * 1.0, column, rows, count),
        lambda draw, count: bench.tell("calibrate", (draw,), count),
    ]
    for count, say in enumerate(says, 3):
        say(bench.draw()[0], count)
        bench.backward(bench.draw()[1])
        bench.step(optimizer)
        assert int(bench.of_kind("step")[-1]["collectives"]) == count
    assert [int(row["step"]) for row in bench.of_kind("step")] == [0, -1, -2, -3]


def test_without_a_model_every_draw_since_the_last_step_counts(bench: Bench) -> None:
    """Where no forward can be seen, a step is taken to use all that was handed out."""
    optimizer = sgd(bench.model)
    for _ in range(2):
        draws = [bench.draw(), bench.draw("val")]
        for _, ids in draws:
            bench.backward(ids)
        bench.step(optimizer)
    assert bench.used() == [(-1, [1, 2]), (-2, [3, 4])]


def test_what_moves_without_a_torch_optimizer_shows_as_states(bench: Bench) -> None:
    """Forwards with no update since the last one have a state before them; those after an update have none."""
    bench.tell("model", bench.model)
    _, ids = bench.draw()
    for _ in range(3):
        bench.backward(ids)
        with torch.no_grad():
            for parameter in bench.model.parameters():
                parameter -= 0.1 * parameter.grad
    states = [row["parameters"] for row in bench.of_kind("state")]
    assert len(states) == 4
    assert len(set(states)) == 3


def test_a_model_that_the_program_drops_is_said_to_be_gone(bench: Bench) -> None:
    """States cover the models that are alive; the recorder keeps none alive, and notes which went before a state."""
    bench.tell("model", bench.model)
    other = nn.Linear(3, 3)
    bench.tell("model", other)
    bench.tell("phase", "both")
    del other
    gc.collect()
    bench.tell("phase", "one")
    found = notes(bench.folder, "model")
    assert [note.facts.get("gone", False) for note in found] == [False, False, True]
    states = [row["parameters"] for row in bench.of_kind("state")]
    assert states[0] == states[1] == states[-1] != states[2] == states[3]


def test_nested_models_are_heard_once(bench: Bench) -> None:
    """A wrapper that is announced beside what it wraps counts as one call, also after a call that raised."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.inner(ids)

    wrapper = Wrapper(bench.model)
    for order in ((bench.model, wrapper),):
        for module in order:
            bench.tell("model", module)
    _, ids = bench.draw()
    wrapper(ids)
    with contextlib.suppress(IndexError):
        wrapper(ids + 1000)
    bench.model(ids)
    wrapper(ids)
    assert len(bench.of_kind("forward")) == 4


def test_a_copied_or_pickled_model_carries_no_hook(bench: Bench) -> None:
    """An announced model can be deep-copied and pickled, and neither copy is heard."""
    bench.tell("model", bench.model)
    _, ids = bench.draw()
    stream = io.BytesIO()
    torch.save(bench.model, stream)
    stream.seek(0)
    copies = [
        copy.deepcopy(bench.model),
        pickle.loads(pickle.dumps(bench.model)),
        torch.load(stream, weights_only=False),
    ]
    expected = bench.model(ids)
    assert all(torch.equal(each(ids), expected) for each in copies)
    assert len(bench.of_kind("forward")) == 1


def test_a_trace_of_a_model_holds_nothing_of_ours(bench: Bench) -> None:
    """While torch traces an announced model nothing is heard, and the traced form is of the model alone."""
    bench.tell("model", bench.model)
    _, ids = bench.draw()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(bench.model, ids, check_trace=False)  # which would call it once more
    assert "mul" not in str(traced.graph)
    assert torch.equal(traced(ids), nn.Sequential.forward(bench.model, ids))
    assert not bench.of_kind("forward")


def test_an_event_that_fits_no_record_is_refused_whole(bench: Bench) -> None:
    """Numbers that a record would wrap, rows that are no tokens, columns of other length: each raises, none is kept."""
    rows, three = np.zeros((3, 5), np.uint16), np.arange(3)
    wrong: list[tuple[Any, ...]] = [
        ("draw", 1, "train", three, three + 2**32, rows),
        ("draw", 1, "train", three, three - 1, rows),
        ("draw", 1, "train", three, three[:2], rows),
        ("draw", 1, "train", three, three, rows.astype(np.int64)),
        ("draw", 1, "train", three, three, rows[0]),
        ("score", "x", True, three, three, three * 1.0, three - 5, rows, 0),
    ]
    for event in wrong:
        with pytest.raises(ValueError, match="got"):
            bench.tell(*event)
    assert bench.kinds() == []
    bench.tell("unheard", 1)
    assert bench.kinds() == []


def test_modes_and_random_numbers_stay(bench: Bench) -> None:
    """After every kind of event: the same random states, gradient mode, default type, inputs, weights, gradients."""

    def surroundings() -> tuple[Any, ...]:
        kept = [parameter.detach().clone() for parameter in bench.model.parameters()]
        return (
            torch.random.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            [each.tolist() for each in kept],
            [each.grad if each.grad is None else each.grad.tolist() for each in bench.model.parameters()],
        )

    events: list[Callable[[], Any]] = [
        lambda: bench.tell("run", "train", 1, {}),
        lambda: bench.tell("model", bench.model),
        lambda: bench.draw(),
        lambda: bench.recording.forward((ids,), {}),
        lambda: bench.recording.before_step(optimizer),
        lambda: bench.recording.after_step(optimizer),
        lambda: bench.tell("weights", "why"),
        lambda: bench.recording.begin_scoring(bench.model, "x", True),
        lambda: bench.recording.end_scoring(),
    ]
    ids, optimizer = torch.arange(8).reshape(2, 4), sgd(bench.model)
    bench.backward(ids)
    before = surroundings()
    for event in events:
        event()
        assert surroundings() == before
    assert ids.tolist() == torch.arange(8).reshape(2, 4).tolist()
