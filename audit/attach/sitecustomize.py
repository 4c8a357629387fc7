"""Python runs this at its start, in every process of a recorded run: attach the recorder, then step aside.

`audit.running` puts this folder in front of PYTHONPATH. A process that replaces the recorded one, or is started by it,
so finds the recorder as well (torchrun's ranks, `golf-train launch`). It must cost little and break nothing: another
`sitecustomize` on the path runs as if this one were not there, and the path is as it would be without us.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).absolute().parent


def attach() -> None:
    """Record this process, as the environment says. The package is found where this file lies, whatever the path is."""
    names = "GOLF_AUDIT_OUT", "GOLF_AUDIT_PREVIOUS", "GOLF_AUDIT_BEGAN"
    if not all(name in os.environ for name in names):
        return
    out, previous, began = (os.environ[name] for name in names)
    home = str(HERE.parent.parent)
    sys.path.insert(0, home)
    try:
        from audit.recorder import hook
    finally:
        sys.path.remove(home)
    hook.attach(out=Path(out), previous=bytes.fromhex(previous), began=int(began))


def step_aside() -> None:
    """Leave the path, and run the `sitecustomize` that would have run."""
    sys.path[:] = [entry for entry in sys.path if Path(entry).absolute() != HERE]
    found = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if found is None or found.loader is None:
        return
    module = importlib.util.module_from_spec(found)
    sys.modules["sitecustomize"] = module
    found.loader.exec_module(module)


try:
    attach()
except Exception as cause:
    print(f"golf-audit: this process is not recorded: {type(cause).__name__}: {cause}", file=sys.stderr, flush=True)
step_aside()
