"""Markdown (GitHub's dialect) out of values that nobody vouches for: text, tables, and JSON as nested lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from audit.report.text import visible

ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&dollar;"}
"""`$` would open a formula on GitHub, and a backslash before it doesn't help there."""
MOST_LINES, MOST_DEPTH, MOST_LISTED, MOST_SIGNS = 80, 8, 24, 400
"""Of a value that is shown nested: lines in all, levels, numbers in one line, characters of one text."""


@dataclass(frozen=True)
class Table:
    """A header and rows of cells that are Markdown already; `left` columns are aligned left, the others right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def __str__(self) -> str:
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"a row of another width than the header {self.header}")
        rule = [":--" if i < self.left else "--:" for i in range(len(self.header))]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in (self.header, rule, *self.rows))


def plain(value: object) -> str:
    """Text that Markdown shows as it is: in one line, with every character of meaning escaped."""
    line = re.sub(r"[&<>$]", lambda hit: ENTITIES[hit[0]], visible(value))
    line = re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", line)
    # At the start of a line these make a list, a rule or a heading of the one above.
    return re.sub(r"^(\d*)([-+.)](?=\s|$)|[-=](?=[-=]*\s*$))", r"\1\\\2", line)


def code(value: object) -> str:
    """Text in the font of code."""
    return f"<code>{plain(value)}</code>"


def nested(value: Mapping[str, Any]) -> str:
    """A JSON object as a list of `key: value`, objects inside as lists below; bounded, and it says what it left out."""
    lines = list(_lines(value, 0))
    if len(lines) > MOST_LINES:
        lines = [*lines[:MOST_LINES], f"- … and {len(lines) - MOST_LINES:,} more lines; report.json has them all"]
    return "\n".join(lines)


def _lines(value: Mapping[str, Any] | Sequence[Any], depth: int) -> Iterator[str]:
    items = value.items() if isinstance(value, Mapping) else ((f"no. {i}", item) for i, item in enumerate(value, 1))
    for key, item in items:
        name = f"{'  ' * depth}- {code(_cut(str(key)))}:"
        if (line := _line(item)) is not None:
            yield f"{name} {line}"
        elif depth == MOST_DEPTH:
            yield f"{name} {plain(_cut(json.dumps(item, ensure_ascii=False)))}"
        else:
            yield name
            yield from _lines(item, depth + 1)


def _line(value: Any) -> str | None:
    """A scalar, or a list of scalars and of lists of them; None for what needs lines of its own."""
    if not isinstance(value, (Mapping, list, tuple)):
        return _scalar(value)
    if not value:
        return "none"
    if isinstance(value, Mapping):
        return None
    inner = [_scalars(item) if isinstance(item, (list, tuple)) else _scalar(item) for item in value[:MOST_LISTED]]
    told = [item for item in inner if item is not None]
    more = f", … ({len(value):,} in all)" if len(value) > MOST_LISTED else ""
    return ", ".join(told) + more if len(told) == len(inner) else None


def _scalars(values: Sequence[Any]) -> str | None:
    """A range, or another short list of scalars, in parentheses."""
    told = [_scalar(value) for value in values[:MOST_LISTED]]
    return f"({', '.join(map(str, told))})" if None not in told and len(values) <= MOST_LISTED else None


def _scalar(value: Any) -> str | None:
    if isinstance(value, (Mapping, list, tuple)):
        return None
    return (plain(_cut(value)) or "“”") if isinstance(value, str) else plain(json.dumps(value))


def _cut(value: str) -> str:
    return value if len(value) <= MOST_SIGNS else f"{value[:MOST_SIGNS]}… ({len(value):,} characters)"
