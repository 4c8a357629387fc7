"""The trainer's own source files: their digest, which ties a run to its code, and their packed size.

`digest` is taken before the first step and again at the end of a run; the two must be equal. `packed_size` is what the
code adds to `total_bytes`, an estimate for as long as no packaged single file exists.
"""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

ROOT = Path(__file__).parent

_DOMAIN = b"golf-audit trainer source 1\n"
_WRAPPER = (
    b"import lzma as L,base64 as B\n"
    b'exec(L.decompress(B.b85decode(""),format=L.FORMAT_RAW,filters=[{"id":L.FILTER_LZMA2,"preset":9}]))\n'
)
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def files(root: Path = ROOT) -> dict[str, bytes]:
    """Relative POSIX name → content of every Python file below `root`, names ascending."""
    return {
        name: (root / name).read_bytes() for name in sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    }


def digest(root: Path = ROOT) -> str:
    """`sha256:…` over the number of source files and each one's name, size and content."""
    return "sha256:" + hashlib.sha256(_DOMAIN + _serialize(root)).hexdigest()


def packed_size(root: Path = ROOT) -> int:
    """Estimated bytes of a submission's code: raw LZMA2 of all source files in base85, and the lines that unpack it.

    Everything that the trainer needs to run is counted, the kernels and `__main__` too, as it stands: comments and
    docstrings included, nothing minified, so a packaged file should come out smaller. Equal sources give an equal
    size for one version of liblzma.
    """
    packed = lzma.compress(_serialize(root), format=lzma.FORMAT_RAW, filters=_FILTERS)
    return -(-len(packed) * 5 // 4) + len(_WRAPPER)


def _serialize(root: Path) -> bytes:
    """The source files as one sequence of bytes in which no two trees coincide: every part follows its length."""
    found = files(root)
    parts = [len(found).to_bytes(8, "little")]
    for name, content in found.items():
        for part in (name.encode(), content):
            parts += [len(part).to_bytes(8, "little"), part]
    return b"".join(parts)
