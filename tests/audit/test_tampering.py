"""Tampering with a sealed ledger: every bit, record, block and cut shows, and the message says where.

This attacker changes the file and can't chain it anew. Who can is looked at in `test_forged_runs.py`.
"""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import blocks, ledger
from audit.errors import LedgerError
from audit.ledger import check
from audit.records import KINDS, Record
from tests.audit.forgery import Taken, blocks_of, digest, forge, records_of, replace_block, take_apart, write_small


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Taken:
    """An honest ledger with every kind of record in four blocks."""
    return take_apart(write_small(tmp_path_factory.mktemp("honest") / "rank0.ledger", previous=digest("before")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank0.ledger"


def whole(taken: Taken) -> bytes:
    return taken.header + b"".join(taken.raw)


def refusal(path: Path) -> str:
    """What the reader says of this file; it must refuse it, in one line."""
    with pytest.raises(LedgerError) as caught:
        check(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names_records(message: str, taken: Taken, block: int) -> bool:
    """Whether a message names a block and the number of its first record."""
    return (
        re.search(rf"block {block}, (records {taken.first(block)} to|from record {taken.first(block)} on)", message)
        is not None
    )


def test_every_bit_matters(small: Taken, path: Path) -> None:
    """Every single-bit flip of the file is refused, and the message names the header or the block's records."""
    content = bytearray(whole(small))
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as stream:
        for offset, bit in itertools.product(range(len(content)), range(8)):
            stream.seek(offset)
            stream.write(bytes([content[offset] ^ 1 << bit]))
            message = refusal(path)
            block = small.block_at(offset)
            if block is None:
                assert "header" in message or "no ledger" in message or "version" in message, (offset, bit, message)
            else:
                assert names_records(message, small, block), (offset, bit, message)
            stream.seek(offset)
            stream.write(content[offset : offset + 1])
    assert check(path).seal is not None


def test_every_cut_shows(small: Taken, path: Path) -> None:
    """A file cut anywhere is refused, or unsealed with exactly the records of the blocks that are whole."""
    content, ends = whole(small), [len(small.header)]
    for raw in small.raw:
        ends.append(ends[-1] + len(raw))
    for length in range(len(content)):
        path.write_bytes(content[:length])
        if length < len(small.header):
            assert f"byte {length} of {len(small.header)}" in refusal(path)
            continue
        ending = check(path)
        kept = sum(end <= length for end in ends) - 1
        assert (ending.seal, ending.records) == (None, small.first(kept))
        assert ending.torn_bytes == length - ends[kept]


def test_nothing_can_be_added_behind_the_seal(small: Taken, path: Path) -> None:
    """One byte, a whole block that chains on the seal, or all blocks again."""
    content = whole(small)
    chained = forge(path, small.header, [*small.records, small.records[0]]).read_bytes()[len(content) :]
    for added in (b"\0", b"B", chained, b"".join(small.raw), content):
        path.write_bytes(content + added)
        assert "block 4, from record 11 on: something follows the seal, record 10" in refusal(path)


def test_bytes_behind_an_unsealed_ledger_are_only_those_of_a_torn_block(small: Taken, path: Path) -> None:
    """A killed run's last block may be torn; anything else behind it is refused, down to its ninth byte."""
    unsealed = small.header + b"".join(small.raw[:2])
    for added in (b"\0", b"BLCX", b"BLCK\3\0\0\0", small.raw[1], bytes(200)):
        path.write_bytes(unsealed + added)
        assert names_records(refusal(path), small, 2), added
    head = bytearray(small.raw[2][: blocks.BLOCK.size + 5])
    path.write_bytes(unsealed + head)
    assert check(path).torn_bytes == len(head)
    head[10] ^= 1
    path.write_bytes(unsealed + head)
    assert names_records(refusal(path), small, 2)


def test_every_deletion_duplication_and_swap_of_a_block_shows(small: Taken, path: Path) -> None:
    """Blocks can't leave, come twice or change places; the message names the first one that is out of order."""
    order = range(len(small.raw))
    cases: list[tuple[int, list[int]]] = []
    for block in order:
        cases.append((block, [i for i in order if i != block]))
        cases += [(at, [*order[:at], block, *order[at:]]) for at in range(len(small.raw)) if at != block]
        cases += [(block, [{block: b, b: block}.get(i, i) for i in order]) for b in order if b > block]
    for block, places in cases:
        if places == list(order[:-1]):
            continue  # a cut, see above
        path.write_bytes(small.header + b"".join(small.raw[i] for i in places))
        message = refusal(path)
        assert any(names_records(message, small, b) for b in (block, block + 1)), (places, message)


def test_blocks_of_another_run_show(small: Taken, path: Path, tmp_path: Path) -> None:
    """Another run's block in the place of one's own, and one's own blocks under another header."""
    other = take_apart(write_small(tmp_path / "other.ledger"))
    for block in range(len(small.raw)):
        mixed = [*small.raw[:block], other.raw[block], *small.raw[block + 1 :]]
        path.write_bytes(small.header + b"".join(mixed))
        assert names_records(refusal(path), small, block)
    for settings in ({"rank": 1, "ranks": 2}, {"rank": 0, "ranks": 2}, {"rank": 0, "ranks": 1}):
        header = blocks.header(previous=ledger.NO_SEAL, **settings)
        path.write_bytes(header + b"".join(small.raw))
        assert names_records(refusal(path), small, 0)


def edits(records: list[Record]) -> Iterator[tuple[str, list[Record]]]:
    """Everything that can be done to the records of a block, named, except changing none."""
    for i, record in enumerate(records):
        yield f"delete {i}", [*records[:i], *records[i + 1 :]]
        yield f"repeat {i}", [*records[:i], record, *records[i:]]
        for j in range(i):
            swapped = list(records)
            swapped[i], swapped[j] = records[j], record
            yield f"swap {j} and {i}", swapped
        for name, changed in changes(record):
            yield f"{name} of {i}", [*records[:i], changed, *records[i + 1 :]]


def changes(record: Record) -> Iterator[tuple[str, Record]]:
    """Every byte of a record's row and list, its time, its note's texts, and its kind."""
    yield "time", record._replace(now=record.now ^ 1)
    for field in ("row", "listed"):
        content = getattr(record, field)
        for at in range(len(content)):
            yield (
                f"{field} byte {at}",
                record._replace(**{field: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]}),
            )
    if record.kind == 0:
        facts, clock = record.note
        yield (
            "facts",
            record._replace(note=(facts[:-2] + (b',"x":1' if facts[-3:-2] != b"{" else b'"x":1') + b"}]", clock)),
        )
        yield "clock", record._replace(note=(facts, b'{"x":1}'))
    elif len(record.row) == 8:
        yield "kind", Record(0, record.now, note=(b'["x",{}]', b"{}"))


def test_every_edit_of_a_record_shows(small: Taken, path: Path) -> None:
    """Every record edited, deleted, repeated or swapped in its block, with the old digest or with a fitting one.

    With a fitting digest the block after it is the one that no longer follows; behind the last block there is none,
    so that edit needs the head that was published, as does chaining everything anew.
    """
    tried = 0
    for block, records in enumerate(small.records):
        last = block == len(small.records) - 1
        for (name, edited), digested in itertools.product(edits(records), (False, True)):
            if last and digested:
                continue
            path.write_bytes(replace_block(small, block, edited, digested=digested))
            message = refusal(path)
            # An edit that no encoding allows (a flag of 3, say) is refused in its own block even with its digest.
            assert names_records(message, small, block) or (digested and follows(message, block + 1)), (name, message)
            tried += 1
    assert tried > 900


def follows(message: str, block: int) -> bool:
    return f"block {block}, from record" in message and "does not follow" in message


def test_records_that_change_blocks_show(small: Taken, path: Path) -> None:
    """A record moved from one block into the next, each with a digest that fits its new content."""
    for block in range(len(small.records) - 1):
        before, after = small.records[block], small.records[block + 1]
        moved = [*small.records[:block], before[:-1], [before[-1], *after], *small.records[block + 2 :]]
        edited = take_apart(forge(path, small.header, moved))
        mixed = [*edited.raw[: block + 1], *small.raw[block + 1 :]]
        path.write_bytes(small.header + b"".join(mixed))
        assert "does not follow" in refusal(path)


def test_chaining_anew_moves_the_head(small: Taken, path: Path) -> None:
    """Whoever writes all later blocks again gets a ledger that holds, under another head than the published one."""
    path.write_bytes(whole(small))
    heads = {check(path).head}
    assert check(forge(path, small.header, small.records)).head in heads
    for block, records in enumerate(small.records):
        edited = [*records[:-1], records[-1]._replace(now=records[-1].now ^ 1)]
        parts = [*small.records[:block], edited, *small.records[block + 1 :]]
        ending = check(forge(path, small.header, parts))
        assert ending.seal is not None
        assert ending.head not in heads
        heads.add(ending.head)


# Whatever the bytes


def read(path: Path) -> tuple[list[list[Record]], str]:
    """The records of each block, and what the reader refused the file with, empty if it holds."""
    found: list[list[Record]] = []
    try:
        found += (records_of(block) for block in blocks_of(path))
    except LedgerError as refused:
        return found, str(refused)
    return found, ""


pieces = st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40))


@given(st.lists(pieces, min_size=1, max_size=4))
def test_a_mutilated_ledger_is_refused_or_shorter(
    small: Taken, tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[float, int, bytes]]
) -> None:
    """Bytes overwritten, cut out and put in anywhere: nothing but a LedgerError, or a prefix of the honest records."""
    content = whole(small)
    for place, removed, put in mutations:
        at = int(place * len(content))
        content = content[:at] + put + content[at + removed :]
    path = tmp_path_factory.mktemp("mutilated") / "rank0.ledger"
    path.write_bytes(content)
    found, refused = read(path)
    assert "\n" not in refused
    if not refused:
        assert tuple(found) == small.records[: len(found)]
        assert (check(path).seal is not None) == (len(found) == len(small.records))


@given(st.binary(max_size=300), st.binary(max_size=60), st.integers(0, 2), st.integers(1, 70_000), st.data())
def test_what_chains_is_refused_or_canonical(
    small: Taken,
    tmp_path_factory: pytest.TempPathFactory,
    facts: bytes,
    clock: bytes,
    block: int,
    count: int,
    data: st.DataObject,
) -> None:
    """Random or mutilated content under digests that fit: refused with its records, or exactly what `encode` gives.

    Less than 64 MiB are allocated either way.
    """
    if data.draw(st.booleans(), label="mutilate honest parts"):
        count = len(small.records[block])
        parts = [bytearray(part) for part in blocks.encode(small.records[block])]
        for _ in range(data.draw(st.integers(1, 3))):
            part = parts[data.draw(st.integers(0, 1))]
            at = data.draw(st.integers(0, len(part) - 1))
            part[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        facts, clock = (bytes(part) for part in parts)
    path = tmp_path_factory.mktemp("chained") / "rank0.ledger"
    head = blocks.parse_header(small.header, where="here").head
    path.write_bytes(small.header + blocks.pack(head, 0, count, facts, clock)[0])
    tracemalloc.start()
    found, refused = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20
    assert "\n" not in refused
    if refused:
        assert "block 0" in refused
    else:
        assert blocks.encode(found[0]) == (facts, clock)


def test_the_small_ledger_is_not_too_small(small: Taken) -> None:
    """All kinds are in it, and more than three blocks, so that the tests above mean something."""
    assert {record.kind for records in small.records for record in records} == set(range(len(KINDS)))
    assert len(small.raw) > 3
    assert all(len(records) > 1 for records in small.records)
