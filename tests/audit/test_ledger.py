"""The ledger: what is written comes back, also of every version before; what is no ledger is refused."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import blocks, ledger, records
from audit.errors import LedgerError
from audit.ledger import Ledger, Writer, check
from audit.records import DIGEST_BYTES, FLAGS, KINDS, LISTS, STORED, TABLES
from tests.audit.forgery import Plain, blocks_of, create, digest, forge, plain, sequences, take_apart, write_small
from tests.audit.goldens import make

SIZES = {"split": 16, "label": 64}


# What is written comes back


def write(writer: Writer, record: Plain) -> None:
    """Record plain values by the method for their kind."""
    kind, now, values, rows = record
    if kind == "note":
        writer.note(values["name"], values["facts"], values["clock"], now=now)
        return
    settings = values | {"now": now} | ({"digest": bytes(values["digest"])} if "digest" in values else {})
    settings |= {name: settings[name].decode() for name in SIZES if name in settings}
    if kind in ("draw", "score"):
        settings["sequences" if kind == "draw" else "windows"] = np.array(rows, dtype=LISTS[kind][1])
    elif kind in LISTS:
        settings["draws"] = [row[0] for row in rows]
    getattr(writer, kind)(**settings)


def column(name: str, dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    """Any value that a column can hold."""
    if name == "digest":
        return st.lists(st.integers(0, 255), min_size=DIGEST_BYTES, max_size=DIGEST_BYTES)
    if name in SIZES:
        text = st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=SIZES[name]
        )
        return text.map(str.encode).filter(lambda raw: len(raw) <= SIZES[name])
    if name in FLAGS.values():
        return st.integers(0, 1)
    if dtype.kind == "f":
        return st.floats()
    limits = np.iinfo(dtype)
    return st.integers(int(limits.min), int(limits.max)) | st.sampled_from([int(limits.min), int(limits.max)])


def plain_records() -> st.SearchStrategy[Plain]:
    """A record of any kind with any values."""
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    tree = st.recursive(leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=4)
    facts = st.dictionaries(st.text(), tree, max_size=3)
    note = st.fixed_dictionaries(
        {"name": st.text().filter(lambda name: name != "seal"), "facts": facts, "clock": facts}
    )
    times = st.integers(1, 2**63 - 1)
    kinds: list[st.SearchStrategy[Any]] = [st.tuples(st.just("note"), times, note, st.just([]))]
    for kind, dtype in STORED.items():
        columns = {name: column(name, dtype[name]) for name in dtype.names or () if name != "count"}
        listed = LISTS[kind][1] if kind in LISTS else None
        rows = (
            st.lists(st.tuples(*(column(n, listed[n]) for n in listed.names or ())), max_size=3)
            if listed
            else st.just([])
        )
        kinds.append(st.tuples(st.just(kind), times, st.fixed_dictionaries(columns), rows))
    return st.one_of(kinds)


@given(st.lists(st.tuples(plain_records(), st.booleans()), max_size=12))
def test_random_records_come_back(tmp_path_factory: pytest.TempPathFactory, written: list[tuple[Plain, bool]]) -> None:
    """Any records, however they fall into blocks, are read back with every value, number and time."""
    path = tmp_path_factory.mktemp("ledger") / "rank0.ledger"
    writer = create(path)
    for record, full in written:
        write(writer, record)
        if full:
            writer.flush()
    writer.seal({"ended": "announced"})
    *found, seal = plain(path)
    np.testing.assert_equal(found, [record for record, _ in written])
    assert (seal[0], seal[2]["name"], seal[2]["facts"]) == ("note", "seal", {"ended": "announced"})
    assert check(path).records == len(written) + 1


def test_a_small_ledger_reads_as_it_was_written(tmp_path: Path) -> None:
    """Names, flags, lists and notes come back under the columns that the rules read."""
    path = write_small(tmp_path / "rank0.ledger", rank=1, ranks=2, previous=digest("before"))
    book = Ledger.open(path)
    assert (book.rank, book.ranks, book.previous) == (1, 2, digest("before"))
    first, second, third, last = book.blocks()
    assert [len(block) for block in (first, second, third, last)] == [3, 3, 3, 2]
    assert first.notes[0].facts == {"stage": "train", "seed": 7, "length": 4}
    assert first.notes[0].clock["host"] == "here"
    assert first.draws[["at", "draw", "split", "count", "offset", "length"]].tolist() == [(1, 0, b"train", 2, 0, 4)]
    assert first.sequences.tolist() == [(0, 3), (2, 9)]
    assert first.forwards["grad"].tolist() == [1]
    assert second.steps[["at", "lr", "looped"]].tolist() == [(3, 0.5, 0)]
    assert second.used["draw"].tolist() == [0]
    assert second.updates["before"].tolist() == [2**64 - 1]
    assert third.scores["label"].tolist() == [b"after the step"]
    assert third.windows["nats"].tolist() == [2.5, -0.0]
    assert last.calibrated["draw"].tolist() == [-1]
    assert last.notes[0].name == "seal"
    ending = book.ending
    assert ending is not None
    assert (ending.records, ending.torn_bytes, ending.seal) == (11, 0, {"artifact": None, "ended": "announced"})
    assert all(not getattr(block, name).flags.writeable for block in (first, last) for name in TABLES.values())


def test_blocks_are_written_at_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is written once it has enough records, enough rows in its lists, or enough text in its notes."""
    monkeypatch.setattr(ledger, "MOST_RECORDS", 4)
    monkeypatch.setattr(ledger, "MOST_LISTED", 5)
    writer = create(tmp_path / "rank0.ledger")
    for _ in range(4):
        writer.state(parameters=1)
    for count in (2, 3):
        writer.draw(0, "train", sequences(*[(0, 0)] * count), digest=digest(""), checksum=0)
    for _ in range(2):
        writer.note("long", {"text": "x" * (records.MOST_NOTE_BYTES // 2)})
    writer.seal({})
    assert [len(block) for block in blocks_of(tmp_path / "rank0.ledger")] == [4, 2, 2, 1]


def test_equal_runs_have_equal_facts(tmp_path: Path) -> None:
    """`clockless` leaves out times, and the clock's part of notes, and nothing else."""
    endings = []
    for name, host, lr in (("a", "here", 0.5), ("b", "there", 0.5), ("c", "here", 0.25)):
        writer = create(tmp_path / name / "rank0.ledger")
        writer.note("run", {"stage": "train"}, {"host": host})
        writer.step(0, (), lr=lr, looped=False, collectives=1)
        writer.seal({})
        endings.append(check(writer.path))
    assert endings[0].head != endings[1].head
    assert endings[0].clockless == endings[1].clockless != endings[2].clockless


# Reading


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    """Missing, empty, cut, foreign, a folder, a pipe, of a newer version: one line that says which."""
    write_small(tmp_path / "honest")
    header = (tmp_path / "honest").read_bytes()[: blocks.HEADER.size]
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes(header[:50])
    (tmp_path / "foreign").write_bytes(b"PK\3\4" + bytes(100))
    (tmp_path / "newer").write_bytes(header[:8] + struct.pack("<I", 2) + header[12:])
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "missing": "No such file",
        "empty": "ends inside its header, at byte 0",
        "cut": "at byte 50 of 84",
        "foreign": "no ledger",
        "newer": "version 2, this reads 1; use a newer",
        "pipe": "no file",
        ".": "no file",
    }
    for name, says in cases.items():
        with pytest.raises(LedgerError, match=says) as caught:
            check(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_header_alone_is_an_unsealed_ledger_without_records(tmp_path: Path) -> None:
    """A run that was killed before its first block."""
    create(tmp_path / "rank0.ledger").close()
    ending = check(tmp_path / "rank0.ledger")
    assert (ending.records, ending.seal, ending.torn_bytes) == (0, None, 0)


def test_a_walk_holds_one_block(tmp_path: Path) -> None:
    """Memory is that of a block, whatever the number of blocks."""
    writer = create(tmp_path / "rank0.ledger")
    rows = sequences(*[(0, i) for i in range(1024)])
    for i in range(640):
        writer.draw(i, "train", rows, digest=digest(""), checksum=i)
    writer.seal({})
    tracemalloc.start()
    assert check(writer.path).records == 641
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2**20 < 641 * 1024 * 8


def test_a_ledger_that_changes_between_walks_is_refused(tmp_path: Path) -> None:
    """What was judged must be what was checked: a second walk must end as the first."""
    path = write_small(tmp_path / "rank0.ledger")
    book = Ledger.open(path)
    before = list(book.blocks())
    assert len(list(book.blocks())) == len(before)
    taken = take_apart(path)
    seal = records.note("seal", {"ended": "exit 1"}, {}, 1)
    forge(path, taken.header, [*taken.records[:-1], [*taken.records[-1][:-1], seal]])
    with pytest.raises(LedgerError, match="changed while it was read"):
        list(book.blocks())
    forge(path, blocks.header(rank=0, ranks=2, previous=ledger.NO_SEAL), taken.records)
    with pytest.raises(LedgerError, match="header changed"):
        list(book.blocks())


# Folders of ranks


def stage(folder: Path, ranks: int = 2) -> Path:
    for rank in range(ranks):
        write_small(folder / f"rank{rank}.ledger", rank=rank, ranks=ranks)
    return folder


def test_the_parts_of_a_run_are_in_the_order_of_ranks(tmp_path: Path) -> None:
    """Ranks count as numbers, and other files are no parts."""
    for name in ("rank10.ledger", "rank2.ledger", "rank0.ledger", "rankX.ledger", "rank1.ledger.old"):
        (tmp_path / name).touch()
    assert [path.name for path in ledger.parts_of(tmp_path)] == ["rank0.ledger", "rank2.ledger", "rank10.ledger"]
    with pytest.raises(LedgerError, match=r"holds no rank\*\.ledger"):
        ledger.parts_of(tmp_path / "nowhere")


def test_a_seal_stands_for_all_ranks(tmp_path: Path) -> None:
    """It depends on every rank's head, and there is none with a rank missing, foreign, unsealed or damaged."""
    seal = ledger.seal_of(stage(tmp_path / "a"))
    assert len(seal) == 32
    assert seal == ledger.seal_of(tmp_path / "a") != ledger.seal_of(stage(tmp_path / "b"))

    def rewrite(folder: Path, name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder

    whole = (tmp_path / "a" / "rank1.ledger").read_bytes()
    cut, damaged = whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1])
    cases = [
        (rewrite(stage(tmp_path / "c"), "rank1.ledger", cut), "not sealed"),
        (rewrite(stage(tmp_path / "d"), "rank1.ledger", damaged), "changed"),
        (rewrite(stage(tmp_path / "e"), "rank0.ledger", whole), "ranks 1 of 2, 1 of 2"),
        (rewrite(stage(tmp_path / "f"), "rank2.ledger", whole), "ranks 0 of 2, 1 of 2, 1 of 2"),
    ]
    (stage(tmp_path / "g") / "rank1.ledger").unlink()
    for folder, says in [*cases, (tmp_path / "g", "ranks 0 of 2;")]:
        with pytest.raises(LedgerError, match=says):
            ledger.seal_of(folder)


# Versions


@pytest.mark.parametrize("path", sorted(make.FOLDER.glob("*.ledger")), ids=lambda path: path.stem)
def test_ledgers_of_every_version_stay_readable(path: Path) -> None:
    """A ledger of each version that was ever released reads as the values that were written down beside it."""
    assert make.readable(path) == json.loads(path.with_suffix(".json").read_text())


def test_there_is_a_golden_ledger_of_this_version() -> None:
    """Whoever raises the version keeps the old golden and adds one."""
    stems = [path.stem for path in sorted(make.FOLDER.glob("*.ledger"))]
    assert stems == [f"v{version}" for version in range(1, ledger.VERSION + 1)]


def test_the_format_has_not_moved_under_its_version(tmp_path: Path) -> None:
    """The plain bytes of every block, and so all that a version fixes, are those of the golden of this version."""
    golden = make.FOLDER / f"v{ledger.VERSION}.ledger"
    make.write(tmp_path / golden.name)
    for path in (golden, tmp_path / golden.name):
        assert make.plain_parts(path) == make.plain_parts(golden) != []


def test_every_kind_stands_in_the_golden() -> None:
    """The golden ledger has every kind of record, so that no table goes unread."""
    kinds = np.concatenate([block.kinds for block in Ledger.open(make.FOLDER / "v1.ledger").blocks()])
    assert set(kinds.tolist()) == set(range(len(KINDS)))
