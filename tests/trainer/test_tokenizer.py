"""The tokenizer spells the normalized text, and its bytes are counted exactly."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from trainer import shards, tokenizer
from trainer.corpus import documents
from trainer.errors import DataError
from trainer.settings import Corpus
from trainer.tokenizer import BOS, SPACE, ByteTable, Tokenizer

DOCUMENTS = list(documents(Corpus(source="embedded", documents=150)))
OPTIONS = {
    "model_type": "bpe", "vocab_size": 300, "byte_fallback": True, "add_dummy_prefix": False, "pad_id": 0, "bos_id": 1,
    "eos_id": 2, "unk_id": 3, "hard_vocab_limit": False, "minloglevel": 3, "num_threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    tokenizer.train(DOCUMENTS[50:], path, vocab_size=512)
    return path


@pytest.fixture(scope="module")
def tokens(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


def count(tokens: Tokenizer, text: str) -> int:
    row = tokens.encode(text)
    return int(tokens.byte_table.count(row[:-1], row[1:]).sum())


hard = st.text(
    alphabet=st.sampled_from("a Zé0▁▅\u0301\u200b\u200d\u3000\ufeff\xa0\0\t\n\x85\u2028½…ﬁ漢字가😀🏔️👩🌾<0x41>sunk/")
)


@given(text=st.one_of(st.text(), hard))
@example("▁▁ a ▁")
@example(" \0 ")
@example("<0x41><s></s><unk><pad>▁")
def test_bytes_are_the_utf8_length_of_the_normalized_document(tokens: Tokenizer, text: str) -> None:
    """Whatever the text, its tokens count as many bytes as the normalized text has in UTF-8."""
    assert count(tokens, text) == len(tokens.normalize(text).encode())


@pytest.mark.parametrize("start", range(0, 150, 30))
def test_bytes_of_each_embedded_document_are_exact(tokens: Tokenizer, start: int) -> None:
    """Document by document, for text the tokenizer was trained on and text it was not."""
    part = DOCUMENTS[start : start + 30]
    assert [count(tokens, text) for text in part] == [len(tokens.normalize(text).encode()) for text in part]


@given(text=st.one_of(st.text(), hard))
def test_tokens_spell_the_normalized_text(tokens: Tokenizer, path: Path, text: str) -> None:
    """SentencePiece's own decoder gives back the normalized text, no token is unknown, and no space leads or trails."""
    row = tokens.encode(text)
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    assert row[0] == BOS
    assert row.dtype == np.uint16
    assert tokenizer.UNK not in row
    assert BOS not in row[1:]
    assert model.decode(row[1:].tolist()) == tokens.normalize(text)
    assert tokens.normalize(text) == tokens.normalize(text).strip(" ")


@given(text=st.one_of(st.text(), hard))
def test_normalizing_needs_no_tokenizer(tokens: Tokenizer, text: str) -> None:
    """The normalization that finds repeated documents before there is a tokenizer is the tokenizer's own."""
    assert tokenizer.normalize(text) == tokens.normalize(text)


def test_nul_and_the_space_mark_are_spaces(tokens: Tokenizer) -> None:
    """NUL, U+2581, line breaks and their runs are each one space; at the ends they are nothing."""
    assert tokens.normalize("\0 a\0\0b▁ ▁c\n\nd▁\0") == "a b c d"


def slow_count(model: sentencepiece.SentencePieceProcessor, previous: int, target: int) -> int:
    """techniques §2, read aloud."""

    def is_boundary(token: int) -> bool:
        return bool(model.is_control(token) or model.is_unknown(token) or model.is_unused(token))

    if is_boundary(target):
        return 0
    if model.is_byte(target):
        return 1
    piece = model.id_to_piece(target)
    size = len(piece.encode())
    if piece.startswith(SPACE):
        size -= len(SPACE.encode())
        size += 0 if is_boundary(previous) else 1
    return size


def test_the_table_agrees_with_a_slow_count_of_every_piece(tokens: Tokenizer, path: Path) -> None:
    """For every piece after a boundary token, a byte piece and a normal one the fast count equals the plain rule."""
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    previous, targets = np.meshgrid(np.array([0, 1, 2, 3, 70, 400]), np.arange(512), indexing="ij")
    expected = [[slow_count(model, int(x), y) for y in range(512)] for x in previous[:, 0]]
    counted = tokens.byte_table.count(previous, targets)
    assert counted.dtype == np.int64
    assert counted.tolist() == expected


def test_a_stream_totals_over_chunks(tokens: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of a stream are those of its documents, wherever the chunks are cut, and go on from a token before."""
    rows = tokens.encode_all(DOCUMENTS[:3])
    stream, expected = np.concatenate(rows), sum(len(tokens.normalize(text).encode()) for text in DOCUMENTS[:3])
    for size in (1, 7, 1 << 20):
        monkeypatch.setattr(shards, "CHUNK", size)
        assert tokens.byte_table.total(stream) == expected
        cut = tokens.byte_table.total(stream[:100]), tokens.byte_table.total(stream[100:], previous=int(stream[99]))
        assert sum(cut) == expected


def test_the_space_after_a_boundary_is_not_counted() -> None:
    """A leading space counts one byte, except after a control, unknown or unused token; those count none themselves."""
    table = ByteTable(np.array([0, 3], np.int16), np.array([False, True]), np.array([True, False]))
    assert table.count(np.array([0, 1, 1]), np.array([1, 1, 0])).tolist() == [3, 4, 0]


def test_a_batch_is_encoded_as_single_documents(tokens: Tokenizer) -> None:
    """Encoding many documents at once gives each one's own ids, in order."""
    for text, row in zip(DOCUMENTS[:20], tokens.encode_all(DOCUMENTS[:20]), strict=True):
        assert row.tolist() == tokens.encode(text).tolist()


def test_training_repeats_to_the_byte(tmp_path: Path, path: Path) -> None:
    """Equal documents give equal model files, so that the model's digest is one of the data."""
    tokenizer.train(iter(DOCUMENTS[50:]), tmp_path / "again", vocab_size=512)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    assert Tokenizer.load(path).sha256 == Tokenizer.load(tmp_path / "again").sha256


def test_settings_are_those_of_the_contest(tokens: Tokenizer, path: Path) -> None:
    """512 pieces as asked; pad, bos, eos, unk are 0 to 3; digits stay single; byte pieces and a lone space exist."""
    model = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    assert tokens.vocab_size == 512
    assert [model.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert not [p for i in range(260, 512) if len(p := model.id_to_piece(i)) > 1 and any(c.isdigit() for c in p)]
    assert not model.is_unknown(model.piece_to_id(SPACE))
    assert tokens.byte_table.leading_space.sum() > 50


def test_long_documents_are_learned_from(tmp_path: Path) -> None:
    """A document above SentencePiece's default limit of 4192 bytes still shapes the vocabulary."""
    tokenizer.train(["zzyzx wirt " * 1000, "abc def"], tmp_path / "t", vocab_size=280)
    model = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "t").read_bytes())
    assert not model.is_unknown(model.piece_to_id("zzyzx"))


def test_a_text_without_spaces_still_gives_a_space_piece(tmp_path: Path) -> None:
    """pg issue #897: without a lone space piece a space would be three byte pieces; training makes one in any case."""
    tokenizer.train(["abcabd" * 20, "bcdabc" * 20], tmp_path / "t", vocab_size=270)
    found = Tokenizer.load(tmp_path / "t")
    assert count(found, "abc abd  x") == len("abc abd x")


def test_too_little_text_says_how_many_pieces_it_supports(tmp_path: Path) -> None:
    """A vocabulary that the text can't fill is refused with the number it can, and with that number it works."""
    with pytest.raises(DataError, match=r"supports (\d+) pieces, tokens.vocab_size is 5000") as caught:
        tokenizer.train(["abc abd abe"] * 5, tmp_path / "t", vocab_size=5000)
    assert not list(tmp_path.iterdir())
    supported = int(str(caught.value).split()[3])
    tokenizer.train(["abc abd abe"] * 5, tmp_path / "t", vocab_size=supported)
    assert Tokenizer.load(tmp_path / "t").vocab_size == supported


@pytest.mark.parametrize("texts", [[], [""], [" \0 "]])
def test_no_text_is_refused(tmp_path: Path, texts: list[str]) -> None:
    """A tokenizer can't be trained on nothing; the message is one line."""
    with pytest.raises(DataError, match="can't train a tokenizer of 300 pieces: no text;") as caught:
        tokenizer.train(texts, tmp_path / "t", vocab_size=300)
    assert "\n" not in str(caught.value)


def test_more_characters_than_pieces_are_refused(tmp_path: Path) -> None:
    """A vocabulary smaller than the alphabet can't be trained, and that is said."""
    with pytest.raises(DataError, match="can't train a tokenizer of 300 pieces: Vocabulary size is smaller than"):
        tokenizer.train([chr(0x4E00 + i) for i in range(500)], tmp_path / "t", vocab_size=300)


def foreign(**changes: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["abcabd abd " * 9 + str(i % 7) for i in range(50)]), model_writer=model,
        **(OPTIONS | changes),
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"byte_fallback": False, "vocab_size": 30}, "0 byte pieces of 256"),
        ({"bos_id": 2, "eos_id": 1}, "BOS 2, expected .* BOS 1"),
        ({"split_by_whitespace": False}, "has a space inside"),
        ({"control_symbols": [SPACE]}, "256 byte pieces of 256, and '▁' is not a text piece"),
    ],
)
def test_a_foreign_tokenizer_that_would_be_miscounted_is_refused(changes: dict[str, object], message: str) -> None:
    """Models whose bytes the rule of §2 counts wrongly don't load; the same model without the change does."""
    assert Tokenizer(foreign(), name="honest").vocab_size <= 300
    with pytest.raises(DataError, match=message):
        Tokenizer(foreign(**changes), name="foreign")


def test_a_model_without_a_space_piece_is_refused() -> None:
    """pg issue #897 as planted by SentencePiece's defaults: text without spaces gives no lone space piece."""
    model = io.BytesIO()
    texts = iter(["abcabcabdabc" * 3 + str(i % 7) for i in range(50)])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **OPTIONS)
    with pytest.raises(DataError, match="'▁' is not a text piece"):
        Tokenizer(model.getvalue(), name="foreign")


def test_damaged_files_are_refused(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, empty, cut, foreign and oversized files are each a DataError that names the file."""
    bad = tmp_path / "bad.model"
    with pytest.raises(DataError, match=r"bad\.model: No such file"):
        Tokenizer.load(bad)
    for content in (b"", path.read_bytes()[:2000], b"not a model at all", b"\0" * 64):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.model"):
            Tokenizer.load(bad)
    monkeypatch.setattr(tokenizer, "MAX_MODEL_BYTES", 1000)
    with pytest.raises(DataError, match="too many bytes"):
        Tokenizer.load(path)


@given(seed=st.integers(0, 2**32 - 1))
def test_flipped_bytes_never_escape_as_another_error(path: Path, seed: int) -> None:
    """A model with random damage either still loads or is a DataError: no decoding error, no crash."""
    draw, model = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(3):
        model[draw.randrange(8000)] = draw.randrange(256)
    with contextlib.suppress(DataError):
        loaded = Tokenizer(bytes(model), name="damaged")
        assert len(loaded.byte_table.base) == loaded.vocab_size
