"""The SentencePiece BPE tokenizer, and how many bytes of text each token stands for.

Data flow: texts of training documents → `train` → `tokenizer.model` → `Tokenizer.load` → `encode` gives BOS and ids,
`byte_table` gives the denominator of bits per byte. Settings are those of the contest's tokenizers (pg#1394): BPE,
character coverage .999, byte fallback, split digits, nmt_nfkc normalization, no dummy prefix, pad 0, bos 1, eos 2,
unk 3, soft vocabulary limit.

Bytes are those of the *normalized* text, which is what the tokens spell: NFKC, runs of whitespace as one space, none
at the ends. U+2581 ("▁") is how SentencePiece writes a space, so it counts as one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from trainer.errors import DataError
from trainer.files import atomic
from trainer.shards import chunks

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPACE = "▁"
NORMALIZATION = "nmt_nfkc"
MAX_MODEL_BYTES = 1 << 24
"""A model of 65,536 pieces has under 2 MB; what is larger is not parsed."""
MAX_PIECE = 1 << 10
"""Bytes of a piece; trained ones have at most 16 characters."""


@dataclasses.dataclass(frozen=True)
class ByteTable:
    """Bytes of text per token: `base` int16 [V], `leading_space` bool [V], `boundary` bool [V]."""

    base: np.ndarray
    leading_space: np.ndarray
    boundary: np.ndarray

    def count(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Bytes of each target as int64, of the targets' shape, given the token before it.

        The piece's own bytes, plus one for its leading space unless a boundary token (control, unknown or unused)
        comes before it: a document's first space is not text (techniques of pg#1394; pg issue #897).
        """
        space = self.leading_space[targets] & ~self.boundary[previous]
        counted: np.ndarray = self.base[targets].astype(np.int64) + space
        return counted

    def total(self, tokens: np.ndarray, *, previous: int = BOS) -> int:
        """Bytes of a whole stream, in chunks; `previous` is the token before its first."""
        counted = 0
        for _, part in chunks(tokens):
            counted += int(self.count(np.concatenate([[previous], part[:-1]]), part).sum())
            previous = int(part[-1])
        return counted


@functools.cache
def _normalizer() -> sentencepiece.SentencePieceNormalizer:
    return sentencepiece.SentencePieceNormalizer(
        rule_name=NORMALIZATION, escape_whitespaces=True, remove_extra_whitespaces=True, add_dummy_prefix=False
    )


def clean(text: str) -> str:
    """NUL as a space, no whitespace at the ends: what is done to a document before it is normalized."""
    return text.replace("\0", " ").strip()


def normalize(text: str) -> str:
    """The text that a tokenizer of `train` spells; available before there is one."""
    return str(_normalizer().normalize(clean(text))).replace(SPACE, " ")


def train(texts: Iterable[str], path: Path, *, vocab_size: int) -> None:
    """Train a tokenizer on documents and write its model file, as a whole; one thread, so equal texts give equal bytes.

    Raises DataError if there is no text, or too little of it for `vocab_size` pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([clean(text) for text in texts]),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=0.999,
            required_chars=SPACE,  # a text without spaces would leave it to three byte pieces (pg issue #897)
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name=NORMALIZATION,
            add_dummy_prefix=False,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            hard_vocab_limit=False,
            max_sentence_length=1 << 30,  # the default leaves out documents above 4192 bytes
            num_threads=1,  # the count is written into the model
            minloglevel=3,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).rpartition("] ")[2].split()) or "no text"
        raise DataError(
            f"can't train a tokenizer of {vocab_size} pieces: {reason}; give more text or another tokens.vocab_size"
        ) from None
    pieces = Tokenizer(model.getvalue(), name=path.name).vocab_size
    if pieces != vocab_size:
        raise DataError(
            f"the text supports {pieces} pieces, tokens.vocab_size is {vocab_size}; set tokens.vocab_size={pieces} "
            "or give more documents"
        )
    with atomic(path) as temporary:
        temporary.write_bytes(model.getvalue())


class Tokenizer:
    """A SentencePiece model whose tokens' bytes can be counted; `sha256` is that of the model file."""

    def __init__(self, model: bytes, *, name: str) -> None:
        self.sha256 = "sha256:" + hashlib.sha256(model).hexdigest()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = self._model.get_piece_size()
            self.byte_table = self._byte_table(name)
        except (RuntimeError, UnicodeDecodeError):
            raise DataError(
                f"{name} ({len(model)} bytes) is not a SentencePiece model; build or fetch it again"
            ) from None

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a model file. Raises DataError if it is missing, not a model, or its bytes can't be counted."""
        try:
            with path.open("rb") as stream:
                model = stream.read(MAX_MODEL_BYTES + 1)
        except OSError as error:
            raise DataError(f"can't read the tokenizer {path}: {error.strerror}; run the data stage") from None
        if not 0 < len(model) <= MAX_MODEL_BYTES:
            raise DataError(f"{path}: got {'no' if not model else 'too many'} bytes, expected 1 to {MAX_MODEL_BYTES}")
        return cls(model, name=str(path))

    def normalize(self, text: str) -> str:
        """The text that `encode`'s tokens spell: its UTF-8 length is their byte count."""
        return str(self._model.normalize(clean(text))).replace(SPACE, " ").lstrip(" ")

    def encode(self, text: str) -> np.ndarray:
        """BOS and the ids of a document as uint16 [n]."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each document, faster: one call, on all cores (order and ids don't depend on their number)."""
        encoded = self._model.encode([clean(text) for text in texts], out_type=int)
        return [np.array([BOS, *ids], dtype=np.uint16) for ids in encoded]

    def _byte_table(self, name: str) -> ByteTable:
        """Bytes per piece, and the checks without which they would be wrong."""
        model, size = self._model, self.vocab_size
        if not 0 < size <= 1 << 16 or model.bos_id() != BOS:
            raise DataError(
                f"{name}: got {size} pieces and BOS {model.bos_id()}, expected 1 to 65536 and BOS {BOS}; "
                "use a tokenizer of the contest's form"
            )
        pieces = [model.id_to_piece(i) for i in range(size)]
        boundary = np.array([model.is_control(i) or model.is_unknown(i) or model.is_unused(i) for i in range(size)])
        byte = np.array([model.is_byte(i) for i in range(size)])
        spaced = SPACE in (piece for piece, edge in zip(pieces, boundary, strict=True) if not edge)
        if byte.sum() != 256 or not spaced:
            raise DataError(
                f"{name}: got {byte.sum()} byte pieces of 256, and {SPACE!r} is {'' if spaced else 'not '}a text piece"
                "; without them bytes are miscounted (pg issue #897); train the tokenizer with byte fallback"
            )
        base = np.array([len(piece.removeprefix(SPACE).encode()) for piece in pieces])
        odd = [p for p, n, e in zip(pieces, base, boundary, strict=True) if not e and (SPACE in p[1:] or n > MAX_PIECE)]
        if odd:
            raise DataError(
                f"{name}: the piece {odd[0][:40]!r} has a space inside or over {MAX_PIECE} bytes, which is miscounted; "
                "train the tokenizer with split_by_whitespace"
            )
        base[byte], base[boundary] = 1, 0
        leading = np.array([piece.startswith(SPACE) for piece in pieces]) & ~boundary & ~byte
        return ByteTable(base=base.astype(np.int16), leading_space=leading, boundary=boundary)
