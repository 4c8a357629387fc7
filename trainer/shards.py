"""Token shards in the contest's format: read and write.

A shard is 256 little-endian int32 words of header (magic 20240520, version 1, number of tokens, rest zero when we
write and ignored when we read) followed by that many little-endian uint16 token ids (data scripts of
openai/parameter-golf). `write_shard` and `read_shard` are inverse; reading maps the file and copies nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.errors import DataError
from trainer.files import atomic

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
MAX_TOKENS = 2**31 - 1
CHUNK = 1 << 22
"""Tokens looked at in one go, so that memory stays small beside a shard of 100 million."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A named shard of a split; `tokens` is uint16, shape [number of tokens], mapped from the file."""

    name: str
    tokens: np.ndarray


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write uint16 token ids, shape [n], as one shard, as a whole. Raises DataError for another dtype or shape."""
    if tokens.dtype != np.uint16 or tokens.ndim != 1:
        raise DataError(f"{path.name}: got {tokens.dtype} tokens of shape {tokens.shape}, expected uint16 of shape [n]")
    if len(tokens) > MAX_TOKENS:
        raise DataError(f"{path.name}: got {len(tokens)} tokens, the format holds {MAX_TOKENS}; write more shards")
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with atomic(path) as temporary, temporary.open("wb") as stream:
        stream.write(header.tobytes())
        stream.write(tokens.astype("<u2", copy=False).data)


def read_shard(path: Path, *, vocab_size: int | None = None) -> np.ndarray:
    """The ids of a shard as a read-only uint16 memory map of shape [n]; with `vocab_size`, every id is checked.

    Raises DataError if the file is missing, shorter or longer than its header says, of another format or version, or
    holds an id that is not below `vocab_size`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(HEADER_BYTES)
    except OSError as error:
        raise DataError(f"can't read the shard {path}: {error.strerror}; run the data stage") from None
    if len(head) < HEADER_BYTES:
        raise DataError(f"{path}: got {size} bytes, a shard has a header of {HEADER_BYTES}; fetch or build it again")
    magic, version, count = (int(word) for word in np.frombuffer(head, dtype="<i4", count=3))
    if magic != MAGIC:
        raise DataError(f"{path}: got magic {magic}, expected {MAGIC}; this is not a token shard")
    if version != VERSION:
        raise DataError(f"{path}: got shard version {version}, expected {VERSION}; convert it")
    if size != HEADER_BYTES + 2 * count:
        raise DataError(
            f"{path}: the header says {count} tokens, so {HEADER_BYTES + 2 * count} bytes, but the file has {size}; "
            "fetch or build it again"
        )
    if not count:
        return np.zeros(0, dtype=np.uint16)
    tokens = np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
    if vocab_size is not None:
        check_ids(tokens, vocab_size=vocab_size, where=str(path))
    return tokens


def check_ids(tokens: np.ndarray, *, vocab_size: int, where: str) -> None:
    """Raise DataError at the first id that is not below `vocab_size`."""
    for start, chunk in chunks(tokens):
        if chunk.max() >= vocab_size:
            offset = int(np.argmax(chunk >= vocab_size))
            raise DataError(
                f"{where}: token {start + offset} is {chunk[offset]}, expected ids below tokens.vocab_size = "
                f"{vocab_size}; use the tokenizer that made the shards"
            )


def chunks(tokens: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(start, part) over a stream in parts of at most `CHUNK` tokens; empty streams give nothing."""
    for start in range(0, len(tokens), CHUNK):
        yield start, tokens[start : start + CHUNK]
