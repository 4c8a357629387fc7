"""Optimizers and models that do not come in the usual order, or share not all: fingerprints still add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from audit import fingerprint
from tests.audit.children import notes
from tests.audit.test_recorder import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_stepped_before_its_model_was_announced_is_looked_at_anew(bench: Bench) -> None:
    """The model's parameters stand where those of its checkpoint do; the optimizer is noted again, and adds up."""
    optimizer = torch.optim.SGD(reversed(list(bench.model.parameters())), lr=0.1)
    for announced_now in (False, True, False):
        if announced_now:
            bench.tell("model", bench.model)
        bench.backward(bench.draw()[1])
        bench.step(optimizer)
    bench.tell("end", "train")
    flat = np.concatenate([p.detach().numpy().reshape(-1) for p in bench.model.parameters()])
    assert bench.of_kind("state")[-1]["parameters"] == fingerprint.fingerprint(flat)
    found = notes(bench.folder, "optimizer")
    assert [(note.facts["index"], note.facts["covers_model"]) for note in found] == [(0, False), (0, True)]
    updates = bench.of_kind("update")
    assert updates[1]["before"] == bench.of_kind("state")[0]["parameters"]
    assert updates[2]["before"] == updates[1]["after"]


def test_of_an_optimizer_the_models_parameters_are_recorded(bench: Bench) -> None:
    """Whatever else it moves, and however it changes, what it added to the model is what the states show."""
    more = [nn.Parameter(torch.randn(3)) for _ in range(2)]
    bench.tell("model", bench.model)
    optimizer = torch.optim.SGD([*bench.model.parameters(), more[0]], lr=0.1)
    for _ in range(2):
        bench.backward(bench.draw()[1])
        more[0].grad = torch.ones(3)
        bench.step(optimizer)
        bench.tell("phase", "next")
        optimizer.add_param_group({"params": [more.pop()]} if len(more) > 1 else {"params": []})
    states, updates = bench.of_kind("state"), bench.of_kind("update")
    assert [row["after"] for row in updates] == [row["parameters"] for row in states[-2:]]
    assert len(notes(bench.folder, "optimizer")) == 1
