"""Lines of the reader, and which of them ran: what `unpack` can reach in the modules that it is made of.

Counted are the lines within functions, but for functions that writing alone calls. Those are listed here by name; that
none of them runs while something is read is checked, so the list can't grow to hide anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import Any

from trainer import ans, artifact, codecs, container, prediction, rans

WRITING: dict[ModuleType, set[str]] = {
    artifact: {"pack", "write", "_table", "_parts", "_split"},
    container: {"describe", "seal", "_row"},
    codecs: {"store", "shuffle"},
    ans: {"encode", "_split", "_fold", "_entropy"},
    rans: {"Encoder.__init__", "Encoder.code", "Encoder.words", "_write"},
    prediction: {"fit", "column_weights", "residual"},
}
"""Modules of the reader, and what of them serves the writer alone."""

Line = tuple[str, int]


def _functions(module: ModuleType) -> Iterator[CodeType]:
    """Code of functions and methods, without what is nested in them."""
    path = str(module.__file__)
    pending = [compile(Path(path).read_text(encoding="utf-8"), path, "exec")]
    while pending:
        for code in pending.pop().co_consts:
            if isinstance(code, CodeType):
                # A class's body is no function: it has no fast locals.
                if code.co_flags & 2:
                    yield code
                else:
                    pending.append(code)


def _lines(code: CodeType) -> set[int]:
    """Lines of a function with what is nested in it, without those of `def` and its arguments."""
    nested = [_lines(inner) for inner in code.co_consts if isinstance(inner, CodeType)]
    first = next(line for start, _, line in code.co_lines() if start is not None and line is not None)
    own = {line for _, _, line in code.co_lines() if line is not None}
    return set().union(own - {first} if not code.co_name.startswith("<") else own, *nested)


def counted() -> dict[ModuleType, set[int]]:
    """For each module the lines that a reader should reach."""
    found = {}
    for module, writing in WRITING.items():
        functions = {code.co_qualname: code for code in _functions(module)}
        if missing := writing - functions.keys():
            raise ValueError(f"{module.__name__} has no {sorted(missing)}; change WRITING")
        found[module] = set().union(*(_lines(code) for name, code in functions.items() if name not in writing))
    return found


class Lines:
    """Collects lines of the reader that run: `with lines: unpack(data)`."""

    def __init__(self) -> None:
        self.hit: set[Line] = set()
        self._files = {module.__file__: writing for module, writing in WRITING.items()}

    def __enter__(self) -> Lines:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        writing = self._files.get(frame.f_code.co_filename)
        if writing is None:
            return None
        if frame.f_code.co_qualname in writing:
            raise AssertionError(f"{frame.f_code.co_qualname} runs in reading; take it from lines.WRITING")
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if event == "line":
            self.hit.add((frame.f_code.co_filename, frame.f_lineno))
        return self._line


def coverage(hit: Iterable[Line]) -> dict[ModuleType, tuple[set[int], set[int]]]:
    """For each module the counted lines that ran, and those that did not."""
    found = set(hit)
    return {
        module: (
            {line for line in lines if (module.__file__, line) in found},
            {line for line in lines if (module.__file__, line) not in found},
        )
        for module, lines in counted().items()
    }


def share(hit: Iterable[Line]) -> float:
    """The part of all counted lines that ran."""
    modules = coverage(hit).values()
    return sum(len(ran) for ran, _ in modules) / sum(len(ran) + len(rest) for ran, rest in modules)
