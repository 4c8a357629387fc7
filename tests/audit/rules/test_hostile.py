"""Ledgers that chain and make no sense: whatever stands in them, the rules rule, and in plain JSON."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.evidence import Located, Mismatch
from audit.rules import rulings
from audit.verdicts import Judgement, Verdict, parse
from tests.audit.ledgers import RULESET, Book, Rank

NAMES = (
    *("run", "identity", "phase", "weights", "artifact", "total", "model", "optimizer", "open", "socket", "subprocess"),
    *("unknown", "fork", "recorder", "end", "anything"),
)
KEYS = (
    *("stage", "seed", "length", "corpus", "device", "when", "recipe", "sources", "data", "name", "why", "sha256"),
    *("bytes", "label", "nats", "targets", "index", "covers_model", "parameters", "gone", "loopback", "what", "at"),
)
words = st.sampled_from(["train", "evaluate", "quantize", "training", "start", "end", "sliding", "fineweb", ""])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.integers(-2, 9) | words | st.floats(-1e9, 1e9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
facts = st.dictionaries(st.sampled_from(KEYS), values, max_size=5)
words64 = st.sampled_from([0, 1, 2**63, 2**64 - 1])
numbers = st.sampled_from([0, 1, 7, 8, 64, 2**32 - 1])
losses = st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308])


@st.composite
def acts(draw: st.DrawFn) -> tuple[Any, ...]:
    """One record of any kind, with any numbers in it."""
    kind = draw(st.sampled_from(["note", "note", "draw", "forward", "step", "update", "score", "state", "calibration"]))
    ids = st.lists(st.integers(-2, 2), max_size=2)
    return kind, *{
        "note": lambda: (draw(st.sampled_from(NAMES)), draw(facts)),
        "draw": lambda: (
            draw(st.sampled_from(["train", "val", "self", "ü"])),
            draw(st.lists(numbers, max_size=2)),
            draw(st.integers(-2, 2)),
            draw(numbers),
            draw(st.booleans()),
        ),
        "forward": lambda: (draw(words64), draw(st.booleans())),
        "step": lambda: (draw(ids),),
        "update": lambda: (draw(st.integers(0, 2)), draw(words64), draw(words64)),
        "score": lambda: (
            draw(st.lists(st.tuples(numbers, numbers, losses, numbers), max_size=3)),
            draw(words64),
            draw(st.sampled_from(["sliding", "other"])),
            draw(st.booleans()),
            draw(numbers),
        ),
        "state": lambda: (draw(words64),),
        "calibration": lambda: (draw(ids),),
    }[kind]()


def perform(rank: Rank, kind: str, *arguments: Any) -> None:
    """Write it, with whatever counter of collectives and clock."""
    if kind == "note":
        rank.note(*arguments)
    elif kind == "draw":
        split, starts, number, length, content = arguments
        rank.checksums = itertools.repeat(1)
        rank.draw(split, starts, draw=number, length=length, content=content, shard=len(starts))
    elif kind == "forward":
        rank.sneak(arguments[0], grad=arguments[1])
    elif kind == "step":
        rank.step(arguments[0], update=False)
    elif kind == "update":
        rank.write("update", optimizer=arguments[0], before=arguments[1], after=arguments[2])
    elif kind == "score":
        rows, checksum, label, counted, length = arguments
        rank.scored(rows, checksum, label=label, counted=counted, length=length)
    elif kind == "state":
        rank.write("state", parameters=arguments[0])
    else:
        rank.write("calibration", arguments[0], collectives=rank.collectives)


@pytest.mark.parametrize("corpus", [["fineweb"], {"a": 1}, None, 5])
def test_a_corpus_of_no_name(tmp_path: Path, corpus: Any) -> None:
    """What should be text and is not is no official corpus, and no error."""
    book = Book(tmp_path)
    with book.stage("evaluate", corpus=corpus) as (rank,):
        rank.score_all()
        rank.total()
    assert {ruling.id for ruling in rulings(book.evidence()) if ruling.verdict is Verdict.FAIL} == set()


moments = st.lists(st.tuples(acts(), st.integers(0, 3), st.integers(0, 1)), max_size=14)


@given(moments, st.sampled_from(["", "train", "quantize", "evaluate"]), st.booleans())
@settings(max_examples=120)
def test_the_rules_rule_on_anything(story: list[tuple[Any, int, int]], name: str, sealed: bool) -> None:
    """No record of any content makes a rule raise, and every ruling is JSON that is read back."""
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder), shards=(33, 32))
        with book.stage(name, ranks=2, sealed=sealed) as ranks:
            for (kind, *arguments), collectives, number in story:
                ranks[number].collectives = collectives
                ranks[number].wait(collectives - 1 if ranks[number].now > 10**10 else 1)
                perform(ranks[number], kind, *arguments)
        evidence = book.evidence()
        assert evidence.contents is not None
        title = evidence.stages[0].title
        located = Located(stage=title, rank=0, at=3, split="val", starts=(-1, 2**40, 5), length=2**31)
        wrong = Mismatch(stage=title, rank=0, at=2, split="self", detail="x", found_in={"split": "val", "token": 3})
        contents = type(evidence.contents)(
            drawn=3, checked=3, escape=0.0, mismatches=(wrong,), unread=("ü",), located=(located,)
        )
        for known in (evidence, book.evidence(contents=contents)):
            found = rulings(known)
            judgement = Judgement(subject={}, profile="pipeline", required=("C3",), rulings=found)
            text = json.dumps(judgement.as_dict(), allow_nan=False)
            assert parse(json.loads(text), where="verdict.json").verdict is judgement.verdict
            assert [ruling.id for ruling in found] == list(RULESET.rules)
            assert sealed or judgement.ruling("C3").verdict is not Verdict.PASS
