"""Hear what the trainer announces (`sys.audit("golf.…")`), and what Python opens, inside a `with` block."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Events = list[tuple[Any, ...]]
_listening: list[Events] = []
_opening: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event.startswith("golf."):
        for events in _listening:
            events.append((event, *arguments))
    elif _opening and event == "open" and isinstance(arguments[0], str):
        for paths in _opening:
            paths.append(arguments[0])


# An audit hook can't be removed, so one stays for the process and does nothing while nobody listens.
sys.addaudithook(_hook)


def heard(events: Events, *names: str) -> Events:
    """Those events whose name is one of `names` (without the `golf.` before it), in their order."""
    return [event for event in events if event[0].removeprefix("golf.") in names]


@contextmanager
def listening() -> Iterator[Events]:
    """A list that fills with (event, *arguments) while the block runs."""
    events: Events = []
    _listening.append(events)
    try:
        yield events
    finally:
        _listening.remove(events)


@contextmanager
def opened() -> Iterator[list[str]]:
    """A list that fills with the paths that Python opens while the block runs."""
    paths: list[str] = []
    _opening.append(paths)
    try:
        yield paths
    finally:
        _opening.remove(paths)
