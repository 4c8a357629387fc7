"""The queue of records whose numbers come later: the order of the program, and no waiting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.recorder import tensors
from audit.recorder.queue import MOST_WAITING, Queue
from audit.recorder.tensors import Deferred


class Later(Deferred):
    """A number that comes when the test says so."""

    def __init__(self, number: int) -> None:
        self.number, self.there, self.waited = number, False, False

    def ready(self) -> bool:
        return self.there

    def settle(self) -> int:
        self.waited = not self.there
        return self.number


@given(st.lists(st.booleans(), max_size=40), st.randoms())
def test_the_queue_keeps_the_order_of_the_program(late: list[bool], random: Any) -> None:
    """Whenever numbers come, records are written in order, none before its number, and nothing is waited for."""
    queue, written, pending = Queue(lambda: 1), [], []
    for number, is_late in enumerate(late):
        value = Later(number) if is_late else number
        pending += [value] if isinstance(value, Later) else []
        queue.push((value,), lambda number, now: written.append(number))
        for each in random.sample(pending, random.randint(0, len(pending))):
            each.there = True
        assert written == list(range(len(written)))
    queue.settle(wait=True)
    assert written == list(range(len(late)))


def test_a_record_waits_only_so_long() -> None:
    """The oldest number is waited for when more than MOST_WAITING records stand behind it, and not before."""
    queue, written, first = Queue(lambda: 1), [], Later(0)
    queue.push((first,), lambda number, now: written.append(number))
    for number in range(1, MOST_WAITING):
        queue.push((number,), lambda number, now: written.append(number))
    assert written == []
    queue.push((MOST_WAITING,), lambda number, now: written.append(number))
    assert first.waited
    assert written == list(range(MOST_WAITING + 1))


class Event:
    """Stands for CUDA's: says whether its copy is done, and lets itself be waited for."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = True


def test_a_deferred_number_is_a_sum_modulo_2_to_the_64(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ready when all its parts are, waits for those that are not, and wraps as the sums of a CPU do."""
    events = [Event(), Event()]
    hosts = iter([(torch.tensor(2**63 - 1), events[0]), (torch.tensor(-5), events[1])])
    monkeypatch.setattr(tensors, "_copied", lambda scalar: next(hosts))
    number = Deferred([torch.zeros(()), torch.zeros(())], known=2**63 + 10)
    assert not number.ready()
    events[0].done = True
    assert not number.ready()
    assert number.settle() == (2**63 - 1 - 5 + 2**63 + 10) % 2**64 == 4
    assert number.ready()
