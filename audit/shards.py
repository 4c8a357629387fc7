"""Token shards in the contest's format, read a second time and without the trainer.

A shard is 256 little-endian int32 words (magic 20240520, version 1, number of tokens, the rest free) and then that
many little-endian uint16 token ids. A document is a BOS token and what follows up to the next one, whatever shard that
stands in.

Data flow: a path → `open_shard`, which checks the file's kind, header and length before anything is mapped → `Shard`,
whose tokens are a read-only map of the file. Nothing is copied and nothing is believed that the length contradicts.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from audit.errors import SplitError

MAGIC, VERSION, BOS = 20240520, 1, 1
HEADER_WORDS = 256
HEADER_BYTES = 4 * HEADER_WORDS
REMEDY = "fetch or build it again"

Tokens = npt.NDArray[np.uint16]
"""Token ids, uint16 [n]."""


@dataclass(frozen=True, eq=False)
class Shard:
    """One opened shard. `header`: the header's words, each 0 to 2^32 - 1, up to the last that is not zero."""

    path: Path
    header: tuple[int, ...]
    tokens: Tokens
    """uint16 [n], mapped from the file, read-only."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return HEADER_BYTES + 2 * len(self.tokens)


def open_shard(path: Path) -> Shard:
    """Map a shard. Raises SplitError if it is missing, no plain file, of another format, or not as long as it says."""
    with open_regular(path) as stream:
        header, count = read_header(stream, path)
        if count:
            mapped = np.memmap(stream, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))
            return Shard(path, header, np.asarray(mapped))  # a plain view: slices of a memmap cost microseconds each
    return Shard(path, header, np.zeros(0, dtype=np.uint16))


def open_regular(path: Path) -> BinaryIO:
    """A plain file, opened for unbuffered reading. Raises SplitError if it is missing or a pipe, device or folder."""
    try:
        # Without O_NONBLOCK a pipe that stands in for a shard would be waited on for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        raise SplitError(f"can't read {path}: {cause.strerror}; {REMEDY}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SplitError(f"{path} is no plain file, expected one; {REMEDY}")
    return os.fdopen(handle, "rb", buffering=0)


def read_header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], int]:
    """(header words, number of tokens) from the start of an opened shard, checked against the file's length."""
    size, head = os.fstat(stream.fileno()).st_size, stream.read(HEADER_BYTES)
    if len(head) < HEADER_BYTES:
        raise SplitError(f"{path}: got {size} bytes, a shard has a header of {HEADER_BYTES}; {REMEDY}")
    words = [int(word) for word in np.frombuffer(head, dtype="<u4")]
    magic, version, count = words[:3]
    if magic != MAGIC:
        raise SplitError(f"{path}: got magic {magic}, expected {MAGIC}; this is not a token shard")
    if version != VERSION:
        raise SplitError(f"{path}: got shard version {version}, expected {VERSION}; convert it")
    if count >= 1 << 31 or size != HEADER_BYTES + 2 * count:
        raise SplitError(
            f"{path}: the header says {count} tokens, so {HEADER_BYTES + 2 * count} bytes, but the file has {size}; "
            f"{REMEDY}"
        )
    while not words[-1]:
        words.pop()
    return tuple(words), count
