"""Contents: what draws and scores claim is held against the shards, all or a sample, and traced elsewhere."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import contents, fingerprint
from audit.contents import check_contents
from audit.errors import LedgerError
from audit.evidence import Contents, Stage
from audit.ledger import Writer
from audit.records import CONTENT, LISTS
from audit.shards import Shard
from audit.splits import Data, Split
from tests.audit.forgery import create

T = 64


def split_of(name: str, seed: int, sizes: Sequence[int]) -> Split:
    random = np.random.default_rng([7, seed])
    shards = (
        Shard(Path(f"{name}_{i}.bin"), (), random.integers(0, 400, n).astype(np.uint16)) for i, n in enumerate(sizes)
    )
    return Split(name, tuple(shards))


TRAIN, VAL, SELF = split_of("train", 1, [900, 700]), split_of("val", 2, [500, 400]), split_of("self", 3, [650])
DATA = Data(splits={"train": TRAIN, "val": VAL}, tokenizer=None, others=())
SPLITS = {"train": TRAIN, "val": VAL, "self": SELF}


def sums(rows: np.ndarray) -> dict[str, Any]:
    """What the recorder writes of rows [n, T+1]."""
    return {"digest": hashlib.sha256(rows.tobytes()).digest(), "checksum": fingerprint.checksum(rows[:, :-1])}


def draw(writer: Writer, source: str, places: Sequence[tuple[int, int]], *, number: int = 0, **changes: Any) -> None:
    """An honest draw of T + 1 tokens from each of these places of a split, but for the changes."""
    listed = np.array(list(places), dtype=LISTS["draw"][1])
    length = changes.pop("row_length", T)
    rows = SPLITS[source].rows(listed["shard"], listed["start"], length=length + 1)
    writer.draw(number, **({"split": source, "sequences": listed, "length": length} | sums(rows) | changes))


def score(writer: Writer, starts: Sequence[int], *, scored: int = T, **changes: Any) -> None:
    """An honest score of windows of T targets from each of these places of validation, the last `scored` of them."""
    listed = np.zeros(len(starts), dtype=LISTS["score"][1])
    listed["begin"], listed["scored"] = np.array(starts) + T - scored, scored
    rows = VAL.at(np.array(starts), length=T + 1)
    about = {"counted": True, "collectives": 0, "length": T, "parameters": 1, "label": "sliding", "windows": listed}
    writer.score(**(about | sums(rows) | changes))


def stage(folder: Path, *records: Callable[[Writer], object], length: int = T) -> Stage:
    """A sealed ledger of these records."""
    writer = create(folder / "rank0.ledger")
    writer.note("run", {"stage": "train", "length": length})
    for record in records:
        record(writer)
    writer.seal({"ended": "announced"})
    return Stage.open(folder)


def check(folder: Path, *records: Callable[[Writer], object], **options: Any) -> Contents:
    return check_contents([stage(folder, *records)], DATA, **options)


def honest(writer: Writer) -> None:
    draw(writer, "train", [(0, 3), (1, 600), (1, 0)])
    draw(writer, "val", [(0, 450), (1, 9)], number=1)  # the first row runs over the end of a shard
    draw(writer, "train", [], number=2)
    score(writer, [0, 64, 800])
    score(writer, [32, 64], scored=32)


def test_honest_records_hold(tmp_path: Path) -> None:
    """Draws of both splits and scores with any stride are of the tokens that stand where they say."""
    found = check(tmp_path, honest)
    assert found == Contents(drawn=5, checked=5, escape=0.0, mismatches=())


@given(st.data())
def test_random_records_hold_and_a_single_changed_number_does_not(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any honest draw holds; with one start, shard, length, digest or checksum changed it is named, with its number."""
    places = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 600)), min_size=1, max_size=6))
    length = data.draw(st.integers(1, 90))
    folder = tmp_path_factory.mktemp("contents")
    plain = lambda writer: draw(writer, "train", places, row_length=length)  # noqa: E731
    assert not check(folder / "honest", plain).mismatches
    row = data.draw(st.integers(0, len(places) - 1))
    moved = [(shard, start + (i == row)) for i, (shard, start) in enumerate(places)]
    flipped = [(shard ^ (i == row), start) for i, (shard, start) in enumerate(places)]
    changes = [
        {"sequences": np.array(moved, dtype=LISTS["draw"][1])},
        {"sequences": np.array(flipped, dtype=LISTS["draw"][1])},
        {"length": length + 1},
        {"digest": bytes(32)},
        {"checksum": 2**64 - 1},
    ]
    change = data.draw(st.sampled_from(changes))
    found = check(folder / "forged", plain, lambda writer: draw(writer, "train", places, row_length=length, **change))
    assert [(one.at, one.kind, one.split, one.stage) for one in found.mismatches] == [(2, "draw", "train", "train")]
    assert "the ledger has" in found.mismatches[0].detail


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": np.array([(64, 64, 0.0, 0)], dtype=LISTS["score"][1])},
        {"windows": np.array([(33, 32, 0.0, 0)], dtype=LISTS["score"][1])},
        {"windows": np.array([(0, 63, 0.0, 0)], dtype=LISTS["score"][1])},
        {"windows": np.array([(836, 64, 0.0, 0)], dtype=LISTS["score"][1])},
        {"windows": np.array([(2**32 - 1, 2**32 - 1, 0.0, 0)], dtype=LISTS["score"][1])},
        {"length": 65},
        {"length": 2**32 - 1},
        {"digest": bytes(32)},
        {"checksum": 5},
    ],
)
def test_a_score_of_other_tokens_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Targets, lengths or sums that are not those of the validation stream, or are outside of it."""
    found = check(tmp_path, lambda writer: score(writer, [0], **changes))
    assert [(one.at, one.kind, one.split) for one in found.mismatches] == [(1, "score", "val")]


def test_rows_outside_of_the_data_are_a_mismatch(tmp_path: Path) -> None:
    """Shards that are not there, rows over the end of the split, rows that are longer than anything."""
    outside = [(2, 0), (1, 700), (1, 650), (2**32 - 1, 2**32 - 1)]
    listed = [np.array([place], dtype=LISTS["draw"][1]) for place in outside]
    records = [lambda w, rows=rows: draw(w, "train", [(0, 0)], sequences=rows) for rows in listed]
    found = check(tmp_path, *records, lambda w: draw(w, "train", [(0, 0)], length=2**32 - 1))
    assert [one.at for one in found.mismatches] == [1, 2, 3, 4, 5]
    assert all("other data" in one.detail for one in found.mismatches)


def test_a_long_row_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows above the limit are no training rows, and cost nothing."""
    monkeypatch.setattr(contents, "MOST_LENGTH", T - 1)
    assert "at most 63 are read" in check(tmp_path, honest).mismatches[0].detail


@given(rows=st.integers(1, 9), chunk=st.integers(1, 2000))
def test_chunks_change_nothing(tmp_path_factory: pytest.TempPathFactory, rows: int, chunk: int) -> None:
    """A batch that is read in several goes has the same digest and checksum."""
    places = [(0, 30 * i) for i in range(rows)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "CHUNK_BYTES", chunk)
        found = check(tmp_path_factory.mktemp("chunks"), lambda w: draw(w, "train", places))
    assert (found.checked, found.mismatches) == (1, ())


def test_the_length_of_the_run_counts_where_a_draw_has_none(tmp_path: Path) -> None:
    """A draw without a length has that of its run; without either it can't be read, and its split is named."""
    plain = lambda writer: draw(writer, "train", [(0, 3)], length=0)  # noqa: E731
    assert check(tmp_path / "a", plain) == Contents(drawn=1, checked=1, escape=0.0, mismatches=())
    found = check_contents([stage(tmp_path / "b", plain, length=0)], DATA)
    assert (found.checked, found.escape, found.unread) == (0, 1.0, ("train",))


def test_what_can_not_be_read_again_is_named(tmp_path: Path) -> None:
    """Splits that nobody has, and draws that are known by content alone, are listed and not counted as checked."""
    found = check(
        tmp_path,
        honest,
        lambda w: draw(w, "self", [(0, 0)]),
        lambda w: draw(w, "train", [(0, 0)], split="random"),
        lambda w: draw(w, "train", [(0, 0)], origin=CONTENT, sequences=np.array([(9, 9)], dtype=LISTS["draw"][1])),
        lambda w: score(w, [0], length=0),
    )
    assert (found.drawn, found.checked, found.escape) == (9, 5, 0.0)
    assert found.unread == ("random", "self", "train")
    assert not found.mismatches


def test_nothing_is_not_everything(tmp_path: Path) -> None:
    """Of a ledger without draws nothing was checked, and the chance of an escape is 1."""
    found = check(tmp_path)
    assert (found.drawn, found.checked, found.escape) == (0, 0, 1.0)


# Where else


def relabelled(places: Sequence[tuple[int, int]], source: str, label: str, moved: int = 0) -> Callable[[Writer], None]:
    """A draw of one split that calls itself another one's, from a little further on."""

    def record(writer: Writer) -> None:
        listed = np.array([(shard, start + moved) for shard, start in places], dtype=LISTS["draw"][1])
        draw(writer, source, places, split=label, sequences=listed)

    return record


def test_validation_rows_that_call_themselves_training_are_found(tmp_path: Path) -> None:
    """The tokens' real split and place is given: at the same places, a token off, or as consecutive rows."""
    consecutive = [(0, 128), (0, 192)]
    found = check(
        tmp_path,
        relabelled([(0, 100), (1, 7)], "val", "train"),
        relabelled([(0, 100)], "val", "train", moved=1),
        relabelled([(0, 100)], "train", "train", moved=-1),
        lambda w: draw(w, "val", consecutive, split="train", sequences=np.array([(1, 5), (0, 77)], LISTS["draw"][1])),
        lambda w: draw(
            w, "val", [(0, 5), (0, 88)], split="train", sequences=np.array([(1, 5), (0, 7)], LISTS["draw"][1])
        ),
    )
    places = [(one.found_in.get("split"), one.found_in.get("token")) for one in found.mismatches]
    assert places == [("val", 100), ("val", 100), ("train", 100), ("val", 128), (None, None)]
    assert "its rows stand in split val from token 100 on" in found.mismatches[0].detail
    assert found.mismatches[0].found_in == {"split": "val", "token": 100, "shard": 0, "start": 100}


def test_few_mismatches_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of another data set has mismatches everywhere; all are named, the first ones are looked for."""
    monkeypatch.setattr(contents, "MOST_TRACED", 2)
    found = check(tmp_path, *[relabelled([(0, 100)], "val", "train")] * 4)
    assert [bool(one.found_in) for one in found.mismatches] == [True, True, False, False]


def test_rows_that_the_run_kept_are_read(tmp_path: Path) -> None:
    """Draws of `self` hold against what was kept; another digest, or a row that was not kept, is a mismatch."""
    found = check(
        tmp_path,
        lambda w: draw(w, "self", [(0, 0), (0, 65)]),
        lambda w: draw(w, "self", [(0, 130)], digest=bytes(32)),
        lambda w: draw(w, "self", [(0, 130)], sequences=np.array([(1, 0)], dtype=LISTS["draw"][1])),
        kept={"self": SELF},
    )
    assert (found.checked, found.escape, found.unread) == (3, 0.0, ())
    assert [one.at for one in found.mismatches] == [2, 3]


def test_kept_rows_that_are_validation_text_are_found(tmp_path: Path) -> None:
    """Validation rows that were kept as text of the model are traced, though their digests are right."""
    tokens = np.concatenate([SELF.slice(0, 65), VAL.slice(200, 265)])
    kept = Split("self", (Shard(Path("kept"), (), tokens),))

    def record(writer: Writer) -> None:
        places = np.array([(0, 0), (0, 65)], dtype=LISTS["draw"][1])
        rows = kept.rows(places["shard"], places["start"], length=65)
        writer.draw(0, "self", places, length=T, **sums(rows))

    (found,) = check(tmp_path, record, kept={"self": kept}).mismatches
    assert (found.at, found.split, found.detail[:29]) == (1, "self", "row 1 is validation text; its")
    assert (found.found_in["split"], found.found_in["token"]) == ("val", 200)


# Samples


def test_a_sample_says_what_escapes_it(tmp_path: Path) -> None:
    """One forged record of 40 is missed by a sample of 10 three times in four, as `escape` says."""
    plain = [lambda w, i=i: draw(w, "train", [(0, i)], number=i) for i in range(39)]
    run = stage(tmp_path, *plain, lambda w: draw(w, "train", [(0, 0)], digest=bytes(32)))
    samples = [check_contents([run], DATA, sample=10, seed=seed) for seed in range(200)]
    assert {(found.drawn, found.checked, found.escape) for found in samples} == {(40, 10, 0.75)}
    missed = sum(not found.mismatches for found in samples) / len(samples)
    assert 0.65 < missed < 0.85
    assert samples[0] == check_contents([run], DATA, sample=10, seed=0)
    assert len(check_contents([run], DATA, sample=40, seed=0).mismatches) == 1
    assert check_contents([run], DATA, sample=41, seed=0).escape == 0.0
    with pytest.raises(LedgerError, match="at least 1"):
        check_contents([run], DATA, sample=0)


# Tokens of unknown origin


def unknown(rows: np.ndarray, **changes: Any) -> Callable[[Writer], None]:
    """A forward under gradients that matched no draw."""

    def record(writer: Writer) -> None:
        writer.forward(checksum=fingerprint.checksum(rows), tokens=rows.size, grad=True)
        packed = base64.b64encode(zlib.compress(rows.astype("<u2").tobytes()[: 1 << 16])).decode()
        writer.note("unknown", {"at": 1, "shape": list(rows.shape), "dtype": "<u2", "rows": packed} | changes)

    return record


def test_unknown_tokens_are_looked_for_in_validation(tmp_path: Path) -> None:
    """Validation rows that nobody announced are located, row by row; random ids are not."""
    random = np.random.default_rng(0).integers(0, 400, (2, T)).astype(np.uint16)
    rows = np.stack([VAL.slice(7, 7 + T), random[0], VAL.slice(480, 480 + T)])
    (found,) = check(tmp_path / "a", unknown(rows)).located
    assert (found.at, found.split, found.starts, found.length, found.rank) == (1, "val", (7, -1, 480), T, 0)
    assert check(tmp_path / "b", unknown(random)).located == ()
    assert check(tmp_path / "c", unknown(TRAIN.slice(0, T)[None])).located == ()


def test_rows_that_were_not_kept_are_not_known(tmp_path: Path) -> None:
    """Where only some rows of a batch are in the note, the rest counts as standing nowhere."""
    rows = np.broadcast_to(VAL.slice(0, 800), (50, 800))
    (found,) = check(tmp_path, unknown(rows)).located
    assert found.starts == (0,) * 40 + (-1,)


def test_a_damaged_note_of_unknown_tokens_is_refused(tmp_path: Path) -> None:
    """Ids that don't fit their shape were not written by the recorder."""
    with pytest.raises(LedgerError, match="record 2: got 128 bytes of ids, expected 130"):
        check(tmp_path, unknown(VAL.slice(0, T)[None], shape=[1, 65]))


def test_the_prefixes_of_kept_rows_are_known_and_no_others(tmp_path: Path) -> None:
    """What a model reads while it writes its own text is each prefix of the batch that was kept, and nothing else."""
    path = tmp_path / "rank0.ledger"
    writer = create(path)
    places = [(0, 0), (0, T + 1)]
    draw(writer, "self", places)
    writer.seal({})
    found = check_contents([Stage.open(tmp_path)], DATA, kept={"self": SELF})
    rows = SELF.rows(np.zeros(2, dtype=np.int64), np.array([0, T + 1]), length=T + 1)
    assert found.written == {fingerprint.checksum(rows[:, :count]) for count in range(1, T + 1)}
    assert fingerprint.checksum(rows[:1, :5]) not in found.written
    assert check_contents([Stage.open(tmp_path)], DATA).written == frozenset()
