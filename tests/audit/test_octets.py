"""Bytes counted without the trainer and without the sentencepiece library: the same ones, for every token."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from audit import octets
from audit.errors import SplitError
from audit.octets import Octets, pieces
from trainer import tokenizer
from trainer.corpus import documents
from trainer.errors import DataError
from trainer.settings import Corpus
from trainer.tokenizer import BOS, SPACE, Tokenizer

DOCUMENTS = list(documents(Corpus(source="embedded", documents=120)))
OPTIONS = {
    "model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "add_dummy_prefix": False, "pad_id": 0, "bos_id": 1,
    "eos_id": 2, "unk_id": 3, "hard_vocab_limit": False, "minloglevel": 3, "num_threads": 1,
}  # fmt: skip


def model_of(**changes: object) -> bytes:
    """A small model by the library's own trainer."""
    model = io.BytesIO()
    texts = iter(["abcabd abd " * 9 + str(i % 7) for i in range(50)])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **(OPTIONS | changes))
    return model.getvalue()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer.train(DOCUMENTS[50:], path, vocab_size=512)
    return path


@pytest.fixture(scope="module")
def counted(path: Path) -> Octets:
    return Octets.read(path)


@pytest.mark.parametrize("changes", [{}, {"user_defined_symbols": ["▁xy", "<q>"]}, {"control_symbols": ["▁zz", "<c>"]}])
def test_tables_are_those_of_the_trainer(changes: dict[str, object]) -> None:
    """Base bytes, leading spaces and boundaries of every piece equal the trainer's, for symbols of every kind."""
    model = model_of(**changes)
    ours, theirs = Octets.of(model, where="m"), Tokenizer(model, name="m")
    assert ours.base.tolist() == theirs.byte_table.base.tolist()
    assert ours.space.tolist() == theirs.byte_table.leading_space.tolist()
    assert ours.boundary.tolist() == theirs.byte_table.boundary.tolist()
    assert (ours.sha256, ours.size, ours.vocab_size) == (theirs.sha256, len(model), theirs.vocab_size)


def test_pieces_are_those_of_the_library(path: Path) -> None:
    """Our reader of the file finds the text and type of each piece that the sentencepiece library finds."""
    library = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    found = pieces(path.read_bytes(), where="m")
    assert [text.decode() for text, _ in found] == [library.id_to_piece(i) for i in range(library.get_piece_size())]
    for kind, test in ((octets.UNKNOWN, "is_unknown"), (octets.CONTROL, "is_control"), (octets.BYTE, "is_byte")):
        assert [k == kind for _, k in found] == [getattr(library, test)(i) for i in range(len(found))]


def test_bytes_of_documents_are_those_of_their_text(counted: Octets, path: Path) -> None:
    """A document's tokens count as many bytes as its normalized text has in UTF-8."""
    encoder = Tokenizer.load(path)
    for text in DOCUMENTS[:40]:
        row = encoder.encode(text)
        expected = len(encoder.normalize(text).encode())
        assert counted.total(row) == expected == counted.count(row[:-1], row[1:]).sum()


@given(data=st.data())
def test_a_stream_totals_as_its_tokens(counted: Octets, path: Path, data: st.DataObject) -> None:
    """However a stream is cut into parts, and whatever came before it, its bytes are the sum of its tokens' bytes."""
    spaced = st.sampled_from(np.flatnonzero(counted.space).tolist())
    token = st.integers(0, 511) | st.integers(0, 4) | spaced
    stream = np.array(data.draw(st.lists(token, max_size=80)), dtype=np.uint16)
    previous = data.draw(token)
    expected = counted.count(np.concatenate([[previous], stream[:-1]])[: len(stream)], stream).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(octets, "PART", data.draw(st.integers(1, 9)))
        assert counted.total(stream, previous=previous) == expected
    assert Tokenizer.load(path).byte_table.total(stream, previous=previous) == expected


def test_the_space_after_a_boundary_is_not_counted(counted: Octets, path: Path) -> None:
    """For every pair of a token before and a target the count is the rule read aloud."""
    library = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    befores = [0, 1, 2, 3, 70, 400]
    for y in range(512):
        piece, edge = library.id_to_piece(y), library.is_control(y) or library.is_unknown(y)
        plain = 0 if edge else 1 if library.is_byte(y) else len(piece.removeprefix(SPACE).encode())
        spaced = not edge and not library.is_byte(y) and piece.startswith(SPACE)
        expected = [plain + (spaced and x > 3) for x in befores]
        assert counted.count(np.array(befores), np.full(len(befores), y)).tolist() == expected


def test_a_token_outside_the_vocabulary_is_refused(counted: Octets) -> None:
    """Shards of another tokenizer are named, not miscounted: as target, as token before, in a stream."""
    good, bad = np.array([5], dtype=np.uint16), np.array([512], dtype=np.uint16)
    for attempt in (
        lambda: counted.count(good, bad),
        lambda: counted.count(bad, good),
        lambda: counted.total(bad),
        lambda: counted.total(good, previous=512),
    ):
        with pytest.raises(SplitError, match=r"got token 512, .*tokenizer\.model has 512 pieces"):
            attempt()
    assert counted.total(good[:0]) == 0


def encoded(entries: list[tuple[bytes, int]]) -> bytes:
    """A model file of these pieces and types, as protocol-buffer bytes."""
    found = b""
    for text, kind in entries:
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15\0\0\0\0" + b"\x18" + bytes([kind])
        found += b"\x0a" + bytes([len(piece)]) + piece
    return found


def test_the_type_of_a_piece_goes_before_its_text() -> None:
    """A byte piece is one byte and an unused piece none, whatever their texts are; spaces after them follow suit."""
    space = SPACE.encode()
    entries = [(b"<unk>", octets.UNKNOWN), (b"<s>", octets.CONTROL), (space, octets.NORMAL), (space + b"ab", 5)]
    entries += [(space + b"x" if i == 9 else b"<0x%02X>" % i, octets.BYTE) for i in range(256)]
    found = Octets.of(encoded(entries), where="m")
    lone, unused, byte = 2, 3, 4 + 9
    pairs = [(lone, lone), (unused, lone), (byte, lone), (lone, unused), (lone, byte), (unused, byte)]
    before, targets = np.array(pairs).T
    assert found.count(before, targets).tolist() == [1, 0, 1, 0, 1, 1]
    with pytest.raises(SplitError, match="piece 2 has type 7"):
        Octets.of(encoded([*entries[:2], (b"a", 7)]), where="m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byte_fallback": False, "vocab_size": 30}, "0 byte pieces of 256"),
        ({"bos_id": 3, "unk_id": 1}, "type 2 as piece 1"),
        ({"split_by_whitespace": False}, "has a space inside"),
        ({"control_symbols": [SPACE]}, "256 byte pieces of 256, and '▁' is not a text piece"),
    ],
)
def test_a_tokenizer_that_would_be_miscounted_is_refused(changes: dict[str, object], message: str) -> None:
    """Models whose bytes the rule counts wrongly don't load, here or in the trainer; without the change they do."""
    assert Octets.of(model_of(), where="honest").vocab_size <= 300
    with pytest.raises(SplitError, match=message):
        Octets.of(model_of(**changes), where="foreign")
    with pytest.raises(DataError):
        Tokenizer(model_of(**changes), name="foreign")


def test_damaged_files_are_refused(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, empty, cut, foreign and oversized files are each an error that names the file."""
    bad = tmp_path / "bad.model"
    with pytest.raises(SplitError, match=r"bad\.model: No such file"):
        Octets.read(bad)
    whole = path.read_bytes()
    for content in (b"", whole[:2000], whole[:-1], b"not a model at all", b"\0" * 64, b"\x0b", b"\x0a\x02\x08\x01"):
        bad.write_bytes(content)
        with pytest.raises(SplitError, match=r"bad\.model"):
            Octets.read(bad)
    monkeypatch.setattr(octets, "MOST_MODEL_BYTES", 1000)
    with pytest.raises(SplitError, match="too many bytes"):
        Octets.read(path)


@given(data=st.data())
def test_damage_never_escapes_as_another_error(path: Path, data: st.DataObject) -> None:
    """A model with changed bytes or a cut end still loads, or is a SplitError: nothing else, and no endless loop."""
    model = bytearray(path.read_bytes())
    for _ in range(3):
        model[data.draw(st.integers(0, 8000))] = data.draw(st.integers(0, 255))
    cut = bytes(model[: data.draw(st.integers(0, len(model)))])
    with contextlib.suppress(SplitError):
        loaded = Octets.of(cut, where="damaged")
        assert len(loaded.base) == loaded.vocab_size > BOS
