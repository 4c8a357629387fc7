"""How many bytes of text each token stands for, counted a second time and without the trainer.

bytes(y | x), y the token and x the one before it: 0 for control, unknown and unused pieces; 1 for byte pieces; else the
UTF-8 length of the piece without its leading "▁" (U+2581, SentencePiece's space), plus 1 for that space unless x is a
control, unknown or unused piece (techniques of pg#1394). The sum over a stream is what bits per byte divides by.

Data flow: a SentencePiece model file → `pieces`, which reads its protocol-buffer bytes itself (the sentencepiece
library has no part in it) → `Octets`: three tables over the vocabulary → `count` token by token, `total` over a stream
in parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from audit.errors import SplitError
from audit.shards import BOS, Tokens, open_regular

SPACE = "▁".encode()
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""`SentencePiece.Type` of sentencepiece_model.proto."""
MOST_MODEL_BYTES = 1 << 24
"""A model of 65,536 pieces has under 2 MB; what is larger is not parsed."""
MOST_PIECE_BYTES = 1 << 10
PART = 1 << 17
"""Tokens counted in one go: the widest temporary array stays in a core's cache."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Octets:
    """The byte tables of a tokenizer; `sha256` and `size` (bytes) are those of its model file."""

    base: npt.NDArray[np.int16]
    """Bytes of the piece itself, int16 [V]."""
    space: npt.NDArray[np.bool_]
    """Whether the piece starts with a space, bool [V]."""
    boundary: npt.NDArray[np.bool_]
    """Whether it is a control, unknown or unused piece, bool [V]."""
    sha256: str
    size: int
    where: str

    @property
    def vocab_size(self) -> int:
        return len(self.base)

    @classmethod
    def read(cls, path: Path) -> Octets:
        """Read a model file. Raises SplitError if it is missing, damaged, or its bytes would be miscounted."""
        with open_regular(path) as stream:
            model = stream.read(MOST_MODEL_BYTES + 1)
        if not 0 < len(model) <= MOST_MODEL_BYTES:
            raise SplitError(f"{path}: got {'no' if not model else 'too many'} bytes, expected 1 to {MOST_MODEL_BYTES}")
        return cls.of(model, where=str(path))

    @classmethod
    def of(cls, model: bytes, *, where: str) -> Octets:
        """The tables of a model's bytes; raises as `read` does."""
        texts, kinds = _checked(pieces(model, where=where), where)
        kind = np.array(kinds)
        boundary, byte = np.isin(kind, (CONTROL, UNKNOWN, UNUSED)), kind == BYTE
        space = np.array([text.startswith(SPACE) for text in texts]) & ~boundary & ~byte
        base = np.array([len(text.removeprefix(SPACE)) for text in texts], dtype=np.int16)
        base[byte], base[boundary] = 1, 0
        digest = "sha256:" + hashlib.sha256(model).hexdigest()
        return cls(base=base, space=space, boundary=boundary, sha256=digest, size=len(model), where=where)

    def count(self, previous: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        """Bytes of each target, int64 of the targets' shape, given the token before it (an array of that shape)."""
        self.check(previous)
        self.check(targets)
        spaces = self.space[targets] & ~self.boundary[previous]
        counted: npt.NDArray[np.int64] = self.base[targets].astype(np.int64) + spaces
        return counted

    def total(self, tokens: Tokens, *, previous: int = BOS) -> int:
        """Bytes of a whole stream, uint16 [n]; `previous` is the token before its first."""
        counter = Counter(self, previous=previous)
        for start in range(0, len(tokens), PART):
            counter.add(tokens[start : start + PART])
        return counter.octets

    def check(self, tokens: npt.NDArray[np.integer]) -> None:
        """Raise SplitError if a token is not in the vocabulary."""
        if tokens.size and int(tokens.max()) >= self.vocab_size:
            raise SplitError(
                f"got token {int(tokens.max())}, {self.where} has {self.vocab_size} pieces; use the tokenizer that "
                "made the shards"
            )


class Counter:
    """A running total over the parts of a stream, one after the other."""

    def __init__(self, octets: Octets, *, previous: int = BOS) -> None:
        octets.check(np.array([previous]))
        self.octets = 0
        self._tables = octets
        self._after_boundary = bool(octets.boundary[previous])
        # One table and one look-up a token: the bytes with the leading space, doubled, and the boundary as last bit.
        self._code = 2 * (octets.base + octets.space) + octets.boundary

    def add(self, part: Tokens) -> None:
        """Count the next tokens, uint16 [n]."""
        if not len(part):
            return
        self._tables.check(part)
        code = self._code.take(part)
        edges = np.flatnonzero(code[:-1] & 1) + 1
        after = np.concatenate([[0], edges]) if self._after_boundary else edges
        self.octets += int((code >> 1).sum(dtype=np.int64)) - int(self._tables.space[part[after]].sum())
        self._after_boundary = bool(code[-1] & 1)


def pieces(model: bytes, *, where: str) -> list[tuple[bytes, int]]:
    """(UTF-8 text, type) of each piece of a SentencePiece model, in the order of ids."""
    found: list[tuple[bytes, int]] = []
    try:
        for field, value in _fields(model):
            if field == 1:
                entry = dict(_fields(_bytes(value)))
                text, kind = _bytes(entry.get(1, b"")), entry.get(3, NORMAL)
                text.decode()
                if kind not in range(NORMAL, BYTE + 1):
                    raise ValueError(f"piece {len(found)} has type {kind!r}")
                found.append((text, int(kind)))
    except ValueError as cause:
        raise SplitError(f"{where} is not a SentencePiece model: {cause}; build or fetch it again") from None
    return found


def _checked(found: list[tuple[bytes, int]], where: str) -> tuple[list[bytes], list[int]]:
    """Texts and types, if the rule counts them truly: the conditions under which it doesn't are refused."""
    texts, kinds = [text for text, _ in found], [kind for _, kind in found]
    if not BOS < len(found) <= 1 << 16 or kinds[BOS] != CONTROL:
        what = f"type {kinds[BOS]}" if len(found) > BOS else "nothing"
        raise SplitError(
            f"{where}: got {len(found)} pieces and {what} as piece {BOS}, expected 2 to 65536 and the control piece BOS"
            "; use a tokenizer of the contest's form"
        )
    plain = [text for text, kind in found if kind in (NORMAL, USER_DEFINED)]
    if kinds.count(BYTE) != 256 or SPACE not in plain:
        raise SplitError(
            f"{where}: got {kinds.count(BYTE)} byte pieces of 256, and '▁' is {'' if SPACE in plain else 'not '}a text "
            "piece; without them bytes are miscounted (pg issue #897); use a tokenizer with byte fallback"
        )
    for text in plain:
        if SPACE in text.removeprefix(SPACE) or len(text) > MOST_PIECE_BYTES:
            raise SplitError(
                f"{where}: the piece {text.decode()[:40]!r} has a space inside or over {MOST_PIECE_BYTES} bytes, which "
                "is miscounted; use a tokenizer that splits at whitespace"
            )
    return texts, kinds


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of each field of a protocol-buffer message; fixed-width values are given as their bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(message):
            raise ValueError(f"a field of {length} bytes at byte {at} of {len(message)}")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """(number, position after it) of a variable-length number of at most 10 bytes."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError(f"an unfinished number at byte {at}")


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"the number {value} where text is expected")
    return value
