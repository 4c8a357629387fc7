"""Files that are either whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import DataError, GolfError, ResourceError


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` at the end, removed if the body raises.

    Raises ResourceError for a full disk.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left for {path}; free some, or write elsewhere, and run again") from None
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as a whole."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted structure as given, two spaces of indent, no NaN; `read_json` is its inverse."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, error: type[GolfError] = DataError, remedy: str = "run the stage that writes it") -> Any:
    """Read a JSON file. Raises `error` with the path and the remedy if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise error(f"can't read {path}: {cause.strerror}; {remedy}") from None
    except ValueError as cause:
        raise error(f"{path} is not JSON: {cause}; {remedy}") from None


def sha256_file(path: Path) -> str:
    """`sha256:…` of a file's bytes."""
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
