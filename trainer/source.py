"""The trainer's own source files: their digest, which ties a run to its code, and their packed size.

`digest` is taken before the first step and again at the end of a run; the two must be equal. `packed_size` is what the
code adds to `total_bytes`, an estimate for as long as no packaged single file exists.
"""

from __future__ import annotations

import ast
import hashlib
import lzma
from collections.abc import Mapping
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
    return "sha256:" + hashlib.sha256(_DOMAIN + _serialize(files(root))).hexdigest()


def packed_size(root: Path = ROOT) -> int:
    """Estimated bytes of a submission's code: raw LZMA2 of all source files in base85, and the lines that unpack it.

    Everything that the trainer needs to run is counted, the kernels and `__main__` too, without comments and
    docstrings but with all names, so a packaged file that leaves out what it does not need should come out smaller.
    Equal sources give an equal size for one version of Python and of liblzma.
    """
    stripped = {name: strip(content) for name, content in files(root).items()}
    packed = lzma.compress(_serialize(stripped), format=lzma.FORMAT_RAW, filters=_FILTERS)
    return -(-len(packed) * 5 // 4) + len(_WRAPPER)


def strip(content: bytes) -> bytes:
    """A module's source without comments and docstrings: the same program. Raises SyntaxError if it is none."""
    tree = ast.parse(content)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            # Any bare string goes, an attribute's docstring too; a body must not become empty.
            kept = [s for s in node.body if not (isinstance(s, ast.Expr) and _is_text(s.value))]
            node.body = kept if kept or isinstance(node, ast.Module) else [ast.Pass()]
    return ast.unparse(tree).encode()


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _serialize(found: Mapping[str, bytes]) -> bytes:
    """The source files as one sequence of bytes in which no two trees coincide: every part follows its length."""
    parts = [len(found).to_bytes(8, "little")]
    for name, content in found.items():
        for part in (name.encode(), content):
            parts += [len(part).to_bytes(8, "little"), part]
    return b"".join(parts)
