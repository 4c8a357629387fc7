"""Hear what the trainer announces (`sys.audit("golf.…")`) inside a `with` block."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Events = list[tuple[Any, ...]]
_listening: list[Events] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event.startswith("golf."):
        for events in _listening:
            events.append((event, *arguments))


# An audit hook can't be removed, so one stays for the process and does nothing while nobody listens.
sys.addaudithook(_hook)


@contextmanager
def listening() -> Iterator[Events]:
    """A list that fills with (event, *arguments) while the block runs."""
    events: Events = []
    _listening.append(events)
    try:
        yield events
    finally:
        _listening.remove(events)
