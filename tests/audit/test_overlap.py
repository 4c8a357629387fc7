"""Overlap of splits: planted runs and documents are found, honest neighbours are not, and the pattern is told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import overlap
from audit.errors import SplitError
from audit.grams import RUN
from audit.overlap import Overlap, locate, measure, pattern
from audit.shards import BOS, Shard
from audit.splits import Split, open_data
from tests.toy import toy_recipe
from trainer import data as trainer_data

SIZE = 3000


def split_of(name: str, stream: np.ndarray, cuts: Sequence[int] = ()) -> Split:
    parts = np.split(stream.astype(np.uint16), sorted(cuts))
    return Split(name, tuple(Shard(Path(f"{name}_{i}.bin"), (), part) for i, part in enumerate(parts)))


def random_tokens(seed: int, count: int, *, low: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 60000, count).astype(np.uint16)


def documents_of(seed: int, count: int, *, length: int = 80) -> list[np.ndarray]:
    """Documents of about this length, none shorter than a run, no two of them alike."""
    random = np.random.default_rng(seed)
    sizes = random.integers(RUN, 2 * length, count)
    return [np.concatenate([[BOS], random.integers(2, 60000, size)]).astype(np.uint16) for size in sizes]


def compare(train: Sequence[np.ndarray], val: Sequence[np.ndarray]) -> Overlap:
    return measure(split_of("train", np.concatenate(train)), split_of("val", np.concatenate(val)))


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), length=st.integers(RUN - 8, 3 * RUN))
def test_a_planted_run_is_found_from_50_tokens_on(data: st.DataObject, seed: int, length: int) -> None:
    """A run of ≥ 50 copied tokens, anywhere, also over ends of shards, is found to the token; a shorter one is not."""
    train, val = random_tokens(seed, SIZE, low=0), random_tokens(seed + 1, SIZE, low=0)
    source, target = (data.draw(st.integers(0, SIZE - length)) for _ in "ab")
    val[target : target + length] = train[source : source + length]
    cuts = st.lists(st.integers(source, source + length) | st.integers(0, SIZE), max_size=3)
    found = measure(split_of("train", train, data.draw(cuts)), split_of("val", val, data.draw(cuts)))
    if length < RUN:
        assert (found.shared_tokens, found.examples) == (0, ())
        return
    # A neighbouring token may be equal by chance, about once in 30,000.
    assert length <= found.shared_tokens <= length + 2
    assert found.share == found.shared_tokens / SIZE
    [example] = found.examples
    assert example.length == found.shared_tokens


@given(seed=st.integers(0, 2**32 - 1))
def test_honest_splits_share_nothing(seed: int) -> None:
    """Different random documents have no shared token, no equal document and no pattern."""
    found = compare(documents_of(seed, 40), documents_of(seed + 1, 20))
    assert (found.shared_tokens, found.equal_documents, found.pattern.overlapping) == (0, 0, 0)
    assert (found.train_documents, found.val_documents) == (40, 20)
    assert not found.pattern.contiguous
    assert not found.examples


def test_issue_2127_is_recognised() -> None:
    """pg issue #2127: validation documents 10 to 49 stand in training; their share and their places are said."""
    val = documents_of(1, 50)
    found = compare([*val[10:], *documents_of(2, 60)], val)
    assert found.equal_documents == 40
    assert (found.pattern.overlapping, found.pattern.first, found.pattern.length) == (40, 10, 40)
    assert found.pattern.contiguous
    assert found.share == sum(map(len, val[10:])) / sum(map(len, val))
    assert (found.examples[0].row, found.examples[0].row_start, found.examples[0].offset) == (10, 0, 0)
    assert found.examples[0].length == found.shared_tokens


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(8, 50))
def test_a_contiguous_leak_is_recognised_in_any_order(seed: int, count: int) -> None:
    """Neighbouring validation documents that are shuffled among training documents still show where they come from."""
    random = np.random.default_rng(seed)
    val, train = documents_of(seed, 400), documents_of(seed + 1, 100)
    first = int(random.integers(0, 400 - count))
    train += val[first : first + count]
    found = compare([train[i] for i in random.permutation(len(train))], val)
    assert found.equal_documents == count
    assert (found.pattern.first, found.pattern.length) == (first, count)
    assert found.pattern.contiguous


@given(seed=st.integers(0, 2**32 - 1))
def test_scattered_repeats_are_no_pattern(seed: int) -> None:
    """The honest neighbour: as many equal documents at random places are counted, and are not called contiguous."""
    random = np.random.default_rng(seed)
    val, train = documents_of(seed, 400), documents_of(seed + 1, 100)
    chosen = random.permutation(400)[:40]
    found = compare([*train, *(val[i] for i in chosen)], val)
    assert found.equal_documents == 40
    assert not found.pattern.contiguous


def test_an_equal_document_may_be_short() -> None:
    """Documents shorter than a run are found by their hash; alone they are neither shared runs nor a pattern."""
    val = [np.array([BOS, 5 + i % 3], dtype=np.uint16) for i in range(60)]
    found = compare([*documents_of(1, 9), val[0]], [*val, *documents_of(2, 9)])
    assert (found.equal_documents, found.shared_tokens, found.pattern.overlapping) == (20, 0, 0)


def test_a_document_that_differs_in_one_token_overlaps() -> None:
    """An edited copy is no equal document, but its tokens are shared and it counts as overlapping."""
    val, edited = documents_of(1, 30, length=400), documents_of(1, 30, length=400)[7]
    edited[len(edited) // 2] += 1
    found = compare([*documents_of(2, 30), edited], val)
    assert found.equal_documents == 0
    assert (found.pattern.overlapping, found.pattern.first) == (1, 7)
    assert found.shared_tokens == len(edited) - 1


def test_documents_run_over_shards_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a shard or a part ends inside a document makes no difference to which documents are equal."""
    val, train = documents_of(1, 30), documents_of(2, 40)
    streams = np.concatenate([*train, *val[3:9]]), np.concatenate(val)
    expected = measure(split_of("train", streams[0]), split_of("val", streams[1]))
    assert expected.equal_documents == 6
    for part in (1, 13, 100):
        monkeypatch.setattr(overlap, "PART", part)
        cut = measure(split_of("train", streams[0], [5, 5, 900]), split_of("val", streams[1], [17, 300]))
        assert (cut.equal_documents, cut.train_documents, cut.val_documents) == (6, 46, 30)
        assert (cut.shared_tokens, cut.pattern) == (expected.shared_tokens, expected.pattern)


def test_tokens_before_the_first_document_are_compared(tmp_path: Path) -> None:
    """A stream without any BOS has no documents; its shared runs are found all the same."""
    train, val = random_tokens(1, 500), random_tokens(2, 500)
    val[100:300] = train[200:400]
    found = measure(split_of("train", train), split_of("val", val))
    assert (found.val_documents, found.train_documents, found.shared_tokens) == (0, 0, 200)
    assert (found.examples[0].row, found.examples[0].row_start, found.examples[0].offset) == (-1, 100, 200)


def test_equal_splits_share_everything() -> None:
    """A split compared with itself is shared to the last token, also where every token is the same."""
    for stream in (np.concatenate(documents_of(1, 40)), np.full(300, 7, dtype=np.uint16)):
        found = measure(split_of("train", stream), split_of("val", stream))
        assert found.share == 1.0
        assert found.equal_documents == found.val_documents


def test_an_empty_split_is_refused() -> None:
    """Nothing overlaps with nothing, and that is no result."""
    some, none = random_tokens(1, 100), random_tokens(1, 0)
    for train, val in ((some, none), (none, some)):
        with pytest.raises(SplitError, match="has no tokens"):
            measure(split_of("train", train), split_of("val", val))


def test_fewer_tokens_than_a_run_are_measured() -> None:
    """Splits shorter than a run share no run, but may share a document."""
    val = np.array([BOS, 2, 3], dtype=np.uint16)
    found = compare([val], [val])
    assert (found.shared_tokens, found.equal_documents) == (0, 1)


@given(count=st.integers(1, 400), data=st.data())
def test_the_longest_stretch_is_the_longest(count: int, data: st.DataObject) -> None:
    """First and length are those of the longest run of overlapping documents; the chance is a probability."""
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    found = pattern(flags)
    runs = [len(run) for run in "".join("x" if flag else " " for flag in flags).split()]
    assert found.overlapping == flags.sum()
    assert found.length == max(runs, default=0)
    assert 0 <= found.chance <= 1
    if runs:
        assert found.first is not None
        assert flags[found.first : found.first + found.length].all()


def test_the_chance_of_a_stretch_is_bounded() -> None:
    """Among 4,000 random placings of 12 of 40 documents no stretch length is more frequent than its bound."""
    random = np.random.default_rng(1)
    lengths = [pattern(random.permutation(np.arange(40) < 12)).length for _ in range(4000)]
    for length in range(3, 9):
        flags = np.zeros(40, dtype=np.bool_)
        flags[:length] = True
        flags[length + 1 : length + 1 + 2 * (12 - length) : 2] = True
        bound = pattern(flags)
        assert (bound.overlapping, bound.length) == (12, length)
        assert np.mean(np.array(lengths) >= length) <= bound.chance * 1.1 + 0.002


@pytest.mark.parametrize(
    ("documents", "stretch", "contiguous"),
    [(50000, 40000, True), (400, 8, True), (400, 7, False), (12, 8, False), (32, 32, True), (31, 31, False)],
)
def test_what_is_called_contiguous(documents: int, stretch: int, contiguous: bool) -> None:
    """Eight in a row that are not there by chance, or 32 in a row; issue 2127 is 40,000 of 50,000."""
    flags = np.arange(documents) >= documents - stretch
    assert pattern(flags).contiguous is contiguous


@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_rows_of_a_split_are_located(data: st.DataObject, seed: int) -> None:
    """Rows cut from a split are found with shard and offset, strangers among them are not."""
    stream = random_tokens(seed, 2000)
    cuts = data.draw(st.lists(st.integers(0, 2000), max_size=3))
    split = split_of("val", stream, cuts)
    length = data.draw(st.integers(RUN, 130))
    starts = data.draw(st.lists(st.integers(0, 2000 - length), min_size=1, max_size=5))
    rows = np.stack([*(stream[start : start + length] for start in starts), random_tokens(seed + 1, length)])
    found = locate(rows, split)
    assert [(place.row, place.row_start, place.length) for place in found] == [
        (i, 0, length) for i in range(len(starts))
    ]
    names = [shard.name for shard in split.shards]
    assert [int(split.offsets[names.index(place.shard)]) + place.offset for place in found] == starts


def test_a_row_may_hold_several_runs() -> None:
    """A row that was put together from two places is located in both, with the tokens between them left out."""
    stream = random_tokens(1, 2000)
    row = np.concatenate([random_tokens(2, 9), stream[700:790], random_tokens(3, 5), stream[100:160]])
    found = locate(row[None], split_of("val", stream))
    assert [(place.row_start, place.offset, place.length) for place in found] == [(9, 700, 90), (104, 100, 60)]


def test_runs_may_lie_in_each_other() -> None:
    """Two runs of a row that share 30 tokens are both located, so that no token of either is left out."""
    row = random_tokens(1, 150)
    stream = np.concatenate([row[:90], random_tokens(2, 100), row[60:]])
    found = locate(row[None], split_of("val", stream))
    assert [(place.row_start, place.offset, place.length) for place in found] == [(0, 0, 90), (60, 190, 90)]


def test_odd_rows_are_answered() -> None:
    """No rows, rows shorter than a run and rows of another shape: nothing found, or a refusal, and no crash."""
    split = split_of("val", random_tokens(1, 500))
    for shape in ((0, 60), (3, 0), (3, RUN - 1)):
        assert locate(np.ones(shape, dtype=np.uint16), split) == ()
    for wrong in (np.ones(60, dtype=np.uint16), np.ones((2, 60), dtype=np.int64)):
        with pytest.raises(SplitError, match=r"expected uint16 of shape \[n, L\]"):
            locate(wrong, split)


def test_the_number_of_threads_makes_no_difference() -> None:
    """Examples and counts are equal with one thread and with several."""
    val = documents_of(1, 60)
    streams = split_of("train", np.concatenate([*val[:20], *val[10:30]])), split_of("val", np.concatenate(val))
    assert measure(*streams, threads=1) == measure(*streams, threads=3)


def test_the_embedded_corpus_has_little_overlap(tmp_path: Path) -> None:
    """Our own data set repeats a saying here and there, but no document; the result can be written as JSON."""
    trainer_data.build(toy_recipe(), tmp_path / "data")
    data = open_data([tmp_path / "data"])
    found = measure(data.split("train"), data.split("val"))
    assert (found.share < 0.05, found.equal_documents) == (True, 0)
    assert json.loads(json.dumps(found.as_dict()))["pattern"]["contiguous"] is False
    leaked = measure(data.split("val"), data.split("val")).as_dict()
    assert leaked["share"] == 1.0
