"""Workers for the test of the watch, in a module that imports nothing, so that their processes begin at once."""

from __future__ import annotations

import os
import time
from typing import Any


def work(seed: int, count: int, until: float, index: int, taken: Any, current: Any, results: Any) -> None:
    """The first worker ends its process at mutant 3; the second does not come back from mutant 4."""
    current[index] = 3 + index
    if index:
        time.sleep(600)
    os._exit(9)
