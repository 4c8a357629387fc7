"""The audit around a training run: what makes a number believable.

`watch` and `scoring` (`audit.watching`) record a training loop that announces nothing of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audit.watching import scoring, watch

__all__ = ["scoring", "watch"]


def __getattr__(name: str) -> Any:
    # Late, because it imports torch, which most commands can do without.
    if name in __all__:
        from audit import watching

        return getattr(watching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
