"""A ledger in short: notes, phases, what was counted, and the clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audit import outline
from audit.errors import LedgerError
from audit.evidence import Part, Stage, Stream, check_chain
from audit.ledger import Writer
from tests.audit.ledgers import Book, honest


def test_an_honest_stage_in_short(tmp_path: Path) -> None:
    """Phases tile the stage with their seconds and counts; each remembers the weights with which it began."""
    train = Stage.open(honest(tmp_path).folders[0])
    (part,) = train.parts
    spans = part.outline.spans
    assert [span.phase for span in spans] == ["", "setup", "training", "validation", "training", "hessians", "writing"]
    assert [round(span.seconds) for span in spans] == [0, 5, 100, 7, 50, 10, 3]
    assert [after.began for after in spans[1:]] == [span.ended for span in spans[:-1]]
    assert spans[2].records["step"] == 4
    assert spans[2].drawn == {"train": 8}
    assert spans[2].moved == 8
    assert spans[3].entry == spans[4].entry != spans[2].entry
    assert sum(sum(span.records.values()) for span in spans) == part.ending.records
    assert part.outline.records["draw"] == train.count("draw") == 5
    assert (part.outline.counted, part.outline.placed, part.outline.by_content) == (0, 5, 0)


def test_an_outline_does_not_depend_on_the_blocks(tmp_path: Path) -> None:
    """The same records in one block and in many give the same phases, counts and digest of sequences."""
    found = []
    for often in (False, True):
        book = Book(tmp_path / str(often))
        with book.stage() as (rank,):
            for phase in ("a", "b"):
                rank.phase(phase, 1)
                for start in range(5):
                    rank.learn("train", [start])
                    if often:
                        rank.writer.flush()
            rank.score_all()
        (part,) = book.stages()[0].parts
        told = part.outline
        found.append((told.spans, told.sequences, told.records, told.counted, told.first_state, told.last))
    assert found[0] == found[1]


def test_the_clock_is_read_across_blocks(tmp_path: Path) -> None:
    """The first record that is older than the one before it is found, also where a block begins."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.wait(5)
        rank.state()
        rank.writer.flush()
        rank.wait(-4)
        rank.state()
    assert book.stages()[0].parts[0].outline.backwards == 1


def test_a_phase_that_moves_before_it_is_looked_at(tmp_path: Path) -> None:
    """The weights with which a phase began are not known if its first fingerprint comes after a step."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        for early in (True, False):
            rank.note("phase", {"name": "warm-up"})
            if early:
                rank.state()
            rank.learn("train", [0])
            rank.state()
    spans = book.stages()[0].parts[0].outline.spans
    assert [span.entry is None for span in spans] == [True, False, True]


def test_token_ids_are_not_kept(tmp_path: Path) -> None:
    """Notes that carry token ids are left in the ledger; others can be had by name."""
    book = Book(tmp_path)
    with book.stage() as (rank,):
        rank.note("unknown", {"at": 0, "rows": "x" * 1000})
        rank.note("open", {"name": "a"})
    (stage,) = book.stages()
    assert [note.facts["name"] for _, note in stage.notes("open", "unknown")] == ["a"]


def test_notes_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of more notes than a run can have is an error in one line, not a process out of memory."""
    monkeypatch.setattr(outline, "MOST_NOTES", 10)
    book = Book(tmp_path)
    with book.stage() as (rank,):
        for _ in range(11):
            rank.note("fork")
    with pytest.raises(LedgerError, match="over 10 notes"):
        book.stages()


def test_a_stage_has_all_its_ranks(tmp_path: Path) -> None:
    """A rank that is missing is an error that names those there are; so is a stage of another run in between."""
    book = Book(tmp_path / "run")
    with book.stage("train", ranks=3):
        pass
    (book.folders[0] / "rank1.ledger").unlink()
    with pytest.raises(LedgerError, match="ranks 0, 2 of 3"):
        Stage.open(book.folders[0])
    first, second = honest(tmp_path / "one").folders, honest(tmp_path / "two").folders
    check_chain([Stage.open(folder) for folder in first])
    with pytest.raises(LedgerError, match="the seal of"):
        check_chain([Stage.open(first[0]), Stage.open(second[2])])


def test_a_stage_without_a_name(tmp_path: Path) -> None:
    """A program that announces no stage has the name of its folder in findings, and no length of rows."""
    writer = Writer.create(tmp_path / "mine" / "rank0.ledger", rank=0, ranks=1)
    writer.seal({"ended": "returned 0", "artifact": None})
    stage = Stage.open(tmp_path / "mine")
    assert (stage.name, stage.title, stage.length, stage.sealed) == ("", "mine", 0, True)
    assert isinstance(stage.parts[0], Part)


@pytest.mark.parametrize(("length", "expected"), [(16, 16), (0, 0), (-1, 0), (2**32, 0), ("16", 0), (None, 0)])
def test_the_length_of_rows(tmp_path: Path, length: object, expected: int) -> None:
    """What a stage says of its rows is believed if it can be a length."""
    book = Book(tmp_path)
    with book.stage("train", length=length):
        pass
    assert book.stages()[0].length == expected


def test_a_stream_of_shards() -> None:
    """Shards lie one behind the other; a stream of n tokens has n - 1 targets, one of none has none."""
    stream = Stream(shards=(5, 0, 7))
    assert np.array_equal(stream.offsets, [0, 5, 5, 12])
    assert (stream.tokens, stream.targets, Stream(shards=()).targets) == (12, 11, 0)
