"""Files that the audit reads and writes: read whole and bounded, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from audit.errors import OutputError, RunError

MOST_TEXT_BYTES = 64 * 2**20
"""Longer text files are refused unread: the longest honest one, a loss series, stays below 2 MiB."""


def read_text(path: Path, *, remedy: str) -> str:
    """The UTF-8 text of a file. Raises RunError if it is missing, longer than 64 MiB, or not UTF-8."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(MOST_TEXT_BYTES + 1)
        if len(raw) > MOST_TEXT_BYTES:
            raise RunError(f"{path} is longer than {MOST_TEXT_BYTES} bytes, expected a short text file; {remedy}")
        return raw.decode("utf-8")
    except OSError as cause:
        raise RunError(f"can't read {path}: {cause.strerror}; {remedy}") from None
    except UnicodeDecodeError:
        raise RunError(f"{path} is not UTF-8 text; {remedy}") from None


def read_json(path: Path, *, remedy: str) -> Any:
    """The value of a JSON file. Raises RunError as `read_text` does, and for what is not JSON or names a key twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise ValueError("a key appears twice in one object")
        return tree

    text = read_text(path, remedy=remedy)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as cause:
        raise RunError(f"{path} is not JSON: {' '.join(str(cause).split())}; {remedy}") from None


def sha256_file(path: Path, *, remedy: str) -> str:
    """`sha256:…` of a file's bytes. Raises RunError if it can't be read."""
    try:
        with path.open("rb") as stream:
            return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as cause:
        raise RunError(f"can't read {path}: {cause.strerror}; {remedy}") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it. Raises OutputError; then nothing is left behind."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as cause:
        raise OutputError(f"can't write {path}: {cause.strerror}; free it, or write elsewhere with -o") from None
    finally:
        # The parent may be a file, in which case there is nothing to remove and no way to look.
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole, as `write_bytes` does; half a surrogate pair, which JSON can hold, as its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def to_json(value: Any) -> str:
    """JSON text in the order given, two spaces of indent, no NaN, one newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
