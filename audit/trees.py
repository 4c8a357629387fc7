"""JSON values as frozen dataclasses: the fields are the schema.

    parse(Kind, tree, where="runs/x.json", remedy="run `dvc repro x`")

A key that is missing, of another type or not finite is an error; keys that nobody reads are let pass.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from audit.errors import RunError

T = TypeVar("T")


def parse(kind: type[T], tree: Any, *, where: str, remedy: str) -> T:
    """A `kind` (a dataclass) from a JSON value. Raises RunError that names the key, what it is and should be."""
    if not isinstance(tree, dict):
        raise RunError(f"{where} is {short(tree)}, expected an object; {remedy}")
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is always a dataclass here
        if field.name in tree:
            values[field.name] = value_of(hints[field.name], tree[field.name], f"{where}: {field.name}", remedy)
        elif field.default is dataclasses.MISSING:
            raise RunError(f"{where}: {field.name} is missing; {remedy}")
    return kind(**values)


def value_of(kind: Any, given: Any, where: str, remedy: str) -> Any:
    """One JSON value as the annotation `kind` wants it.

    str, bool, int ≥ 0, finite float, tuple, dict, dataclass or None.
    """
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(inner for inner in get_args(kind) if inner is not type(None))
        return None if given is None else value_of(kind, given, where, remedy)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return parse(kind, given, where=where, remedy=remedy)
    if get_origin(kind) is tuple and isinstance(given, list):
        return tuple(value_of(get_args(kind)[0], item, f"{where}[{i}]", remedy) for i, item in enumerate(given))
    if get_origin(kind) is dict and isinstance(given, dict):
        return {name: value_of(get_args(kind)[1], item, f"{where}.{name}", remedy) for name, item in given.items()}
    if kind in (str, bool) and isinstance(given, kind):
        return given
    if kind is int and isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**63:
        return given
    if kind is float and isinstance(given, (int, float)) and not isinstance(given, bool) and abs(given) < 2**1000:
        return given
    wanted = {
        str: "text",
        bool: "true or false",
        int: "a whole number from 0 to 2^63 - 1",
        float: "a finite number",
        tuple: "a list",
        dict: "an object",
    }
    raise RunError(f"{where} is {short(given)}, expected {wanted[get_origin(kind) or kind]}; {remedy}")


def short(value: Any) -> str:
    """A value in a message: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
