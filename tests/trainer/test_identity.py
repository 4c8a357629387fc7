"""Stages say who they are: first, with what, and at the end again."""

from __future__ import annotations

import pytest

from tests.listener import heard, listening
from tests.toy import toy_recipe
from trainer import recipe as recipes
from trainer import source
from trainer.errors import DataError
from trainer.files import sha256_file
from trainer.identity import announced
from trainer.layout import Layout


def test_the_facts_and_digests_of_a_stage_frame_its_work(toy_layout: Layout) -> None:
    """golf.run and the digests come first, the digests again and golf.end last; they are the stage's own."""
    with listening() as events, announced(toy_layout, toy_recipe(), stage="evaluate", seed=7, rank=1, ranks=2):
        events.append(("work",))
    assert [event[:2] for event in events] == [
        ("golf.run", "evaluate"),
        ("golf.identity", "start"),
        ("work",),
        ("golf.identity", "end"),
        ("golf.end", "evaluate"),
    ]
    _, _, seed, facts = events[0]
    assert (seed, facts["rank"], facts["ranks"]) == (7, 1, 2)
    assert (facts["device"], facts["length"], facts["vocab_size"]) == ("cpu", 64, 400)
    assert (facts["corpus"], facts["data"]) == ("embedded", str(toy_layout.data))
    digests = {
        "recipe": recipes.digest(toy_recipe(), stage="evaluate"),
        "sources": source.digest(),
        "data": sha256_file(toy_layout.data / "data.json"),
    }
    assert [event[2] for event in heard(events, "identity")] == [digests, digests]


def test_what_changes_while_a_stage_works_shows_at_its_end(toy_layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digests at the end are taken anew."""
    with listening() as events, announced(toy_layout, toy_recipe(), stage="train", seed=7):
        monkeypatch.setattr(source, "digest", lambda: "sha256:other")
    start, end = (event[2] for event in heard(events, "identity"))
    assert start["sources"] != end["sources"] == "sha256:other"
    assert {name: start[name] for name in ("recipe", "data")} == {name: end[name] for name in ("recipe", "data")}


def test_a_stage_that_fails_does_not_say_that_it_is_done(toy_layout: Layout) -> None:
    """After an error there is neither a second identity nor an end."""
    with listening() as events, pytest.raises(ZeroDivisionError):  # noqa: SIM117
        with announced(toy_layout, toy_recipe(), stage="train", seed=7):
            raise ZeroDivisionError
    assert [event[0] for event in events] == ["golf.run", "golf.identity"]


def test_without_data_there_is_nobody_to_be(fresh_layout: Layout) -> None:
    """A missing data set is one line that says which stage makes it."""
    fresh_layout.data.unlink()
    with pytest.raises(DataError, match=r"can't read .*data\.json: No such file.*; run the data stage"):  # noqa: SIM117
        with announced(fresh_layout, toy_recipe(), stage="train", seed=7):
            pass
