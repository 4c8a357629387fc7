"""Files that ask as much of a reader as a file may: content, tensors, time.

    python -m tests.trainer.bombs           seconds and peak memory (resident, Python and torch included) of each

Each is read in a process of its own. tests/trainer/test_container.py reads smaller ones of the same makers.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import brotli
import numpy as np

from tests.trainer.artifacts import craft, row, stored, table
from trainer import ans, artifact, container


def zeros(count: int) -> tuple[int, bytes]:
    """A brotli stream of zeros, without holding them."""
    encoder, block = brotli.Compressor(quality=1), bytes(1 << 20)
    parts = [encoder.process(block[: min(len(block), count - done)]) for done in range(0, count, len(block))]
    return 1, b"".join([*parts, encoder.finish()])


def scales(count: int) -> tuple[int, bytes]:
    """A stream of that many scales, 1.0 each."""
    return 1, brotli.compress(bytes(count) + b"\x3c" * count, quality=1)


def brotli_codes(content: int) -> bytes:
    """One matrix of zeros by brotli."""
    cols = content // 1024 - 2
    return craft(table(row(b"w", 8, (1024, cols), b"\0")), zeros(1024 * cols), scales(1024), (0, b""))


def ans_codes(content: int) -> bytes:
    """One matrix by the coder of codes."""
    cols = content // 1024 - 2
    coded = ans.encode([np.zeros((1024, cols), np.int8)], [ans.Plane(1024, cols, -127, 127)])
    return craft(table(row(b"w", 8, (1024, cols), b"\0")), (2, coded), scales(1024), (0, b""))


def noise(content: int) -> bytes:
    """One matrix by the coder of codes that does not get small: half of what a file may hold is stored."""
    cols = content // 2048 - 16
    plane = ans.Plane(1024, cols, -127, 127)
    codes = np.random.default_rng(0).integers(-127, 128, (1024, cols)).astype(np.int8)
    return craft(table(row(b"w", 8, (1024, cols), b"\0")), (2, ans.encode([codes], [plane])), scales(1024), (0, b""))


def predicted(content: int) -> bytes:
    """Four matrices as wide as a predicted plane may be, each column the one before and a little noise."""
    rows = content // 4104
    steps = np.random.default_rng(0).integers(-1, 2, (rows, 1024), np.int8)
    codes = np.clip(np.cumsum(steps, axis=1, dtype=np.int16), -127, 127).astype(np.int8)
    coded = ans.encode([codes] * 4, [ans.Plane(rows, 1024, -127, 127)] * 4)
    header = table(*(row(name, 8, (rows, 1024), b"\0") for name in (b"a", b"b", b"c", b"d")))
    return craft(header, (2, coded), scales(4 * rows), (0, b""))


def protected_codes(content: int) -> bytes:
    """One matrix by brotli with half of its columns protected."""
    half = (content // 1024 - 4) // 2
    extras = b"\1" + half.to_bytes(4, "little") * 2 + b"\x08"
    header = table(row(b"w", 8, (1024, 2 * half), extras))
    return craft(header, zeros(1024 * half), zeros(1024 * half), scales(2048), (0, b""))


def values(content: int) -> bytes:
    """One vector."""
    return craft(table(row(b"v", 0, (content // 2,))), (0, b""), zeros(content // 2 * 2))


def vectors(content: int) -> bytes:
    """As many vectors as there may be, of one size."""
    count, size = container.MAX_TENSORS, content // container.MAX_TENSORS // 2
    rows = (row(b"%04d" % i, 0, (size,)) for i in range(count))
    return craft(table(*rows), (0, b""), zeros(2 * size * count))


def matrices(content: int) -> bytes:
    """As many matrices as there may be, each with all options and streams of its own."""
    count, cols = container.MAX_TENSORS, content // container.MAX_TENSORS - 16
    extras = b"\3" + struct.pack("<IIBIH", 0, 1, 8, 1, 65535)
    rows = (row(b"%04d" % i, 8, (1, cols // 2), extras) for i in range(count))
    coded = [stored(bytes(cols // 2 - 1)), (0, b"\0"), (0, b"\0"), stored(bytes(cols // 2))]
    return craft(table(*rows), *coded * count, scales(4 * count), (0, b""))


def planes(content: int) -> bytes:
    """The same matrices by the coder of codes."""
    count, cols = container.MAX_TENSORS, content // container.MAX_TENSORS - 16
    extras = b"\3" + struct.pack("<IIBIH", 0, 1, 8, 1, 65535)
    rows = (row(b"%04d" % i, 8, (1, cols // 2), extras) for i in range(count))
    shapes = [(cols // 2 - 1, -127, 127), (1, -127, 127), (1, -2, 1), (cols // 2, -8, 7)] * count
    coded = ans.encode(
        [np.zeros((1, size), np.int8) for size, _, _ in shapes],
        [ans.Plane(1, size, low, high) for size, low, high in shapes],
    )
    return craft(table(*rows), (2, coded), scales(4 * count), (0, b""))


def slow(content: int) -> bytes:
    """One vector of zeros by brotli at its slowest: blocks of 98 bytes, each with contexts for 256 types of literals.

    Nothing of what they describe takes bits of its own: each tree has one symbol (RFC 7932, 9.2 and 10).
    """
    fields = [(0, 1), (0, 2), (97, 16), (0, 1)]  # not the last block; its length less one; compressed
    fields += [(1, 1), (7, 3), (127, 7), *_tree(0, 9), *_tree(25, 5), (0, 24)]  # 256 types of literals
    fields += [(0, 1), (0, 1), (0, 6), (0, 512)]  # one type of commands, of distances; contexts of each literal type
    fields += [(1, 1), (0, 3), (1, 1), (15, 4), *_tree(14, 5), (0, 14), (1, 1), (0, 1)]  # 2 trees, a map of zeros
    fields += [*_tree(0, 8) * 2, *_tree(47, 10), *_tree(0, 6)]  # literal 0; insert 5, copy 9; last distance
    block, size = 0, 0
    for value, bits in fields:
        block, size = block | value << size, size + bits
    eight = sum(block << i * size for i in range(8)).to_bytes(size, "little")
    count = min(content // 784, (container.MAX_FILE_BYTES - 4096) // size)
    whole = int.from_bytes(eight * count, "little") << 1 | 3 << 8 * size * count + 1
    header = table(row(b"v", 0, (392 * count,)))
    return craft(header, (0, b""), (1, whole.to_bytes(size * count + 1, "little")))


def _tree(symbol: int, bits: int) -> list[tuple[int, int]]:
    """Fields of a prefix code of one symbol."""
    return [(1, 2), (0, 2), (symbol, bits)]


CROWDS: tuple[Callable[[int], bytes], ...] = (vectors, matrices, planes)
BY_ANS = (ans_codes, noise, predicted, planes)
AT_THE_LIMITS = (noise, predicted)
"""Of little content they are no other than `ans_codes`."""
BOMBS = (brotli_codes, ans_codes, noise, predicted, protected_codes, values, slow, *CROWDS)


def peak_bytes() -> int:
    """The most memory of this process that was resident at one time, since it began."""
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def main() -> None:
    """`NAME FILE` makes a bomb, `FILE` reads one, nothing does both for all."""
    if sys.argv[2:]:
        make = next(bomb for bomb in BOMBS if bomb.__name__ == sys.argv[1])
        Path(sys.argv[2]).write_bytes(make(container.MAX_CONTENT_BYTES))
    elif sys.argv[1:]:
        before, began = peak_bytes(), time.perf_counter()
        artifact.read(Path(sys.argv[1]))
        seconds = time.perf_counter() - began
        print(f"{seconds:6.1f} s {peak_bytes() / 1e6:7.0f} MB, of these {before / 1e6:.0f} before it read")
    else:
        with tempfile.TemporaryDirectory() as folder:
            path, program = Path(folder) / "bomb.golf", [sys.executable, "-m", "tests.trainer.bombs"]
            for bomb in BOMBS:
                subprocess.run([*program, bomb.__name__, path], check=True)
                found = subprocess.run([*program, path], check=True, capture_output=True, text=True)
                print(f"{bomb.__name__:16}{path.stat().st_size:10} bytes {found.stdout.strip()}")


if __name__ == "__main__":
    main()
