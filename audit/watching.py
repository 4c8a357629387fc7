"""Two lines for a training loop that knows nothing of the audit.

    import audit

    for inputs, targets in audit.watch(loader, split="train", model=model):     every batch is recorded when handed out
        …
    with audit.scoring(model):                                     what is drawn in here is being scored
        for inputs, targets in audit.watch(holdout, split="val"):
            …

Run by `golf-audit run -o FOLDER script.py`. Without the recorder both do nothing but pass on.

Rows are known by their content: a 64-bit hash of each row of the batch's first tensor. So it does not matter what a
split is called, in which order it is read, or whether worker processes read it: a row that was scored is recognised in
whatever loader it comes from. Watch the loader where the loop takes its batches from it, before they move to a GPU;
give the model that first tensor as it is, then what entered the model is matched with what was handed out.

A row's score is fixed when the block ends, or when the block's loader hands out its next batch. Leave the block before
training on what was scored in it: a step before that counts as training on a row without a score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from audit import fingerprint
from audit.recorder import hook
from audit.recorder.story import Content
from audit.recorder.tensors import WORDS

Batch = TypeVar("Batch")


class Watched(Generic[Batch]):
    """A loader whose batches are recorded when they are handed out. Everything else is the loader's own."""

    def __init__(self, loader: Iterable[Batch], split: str, model: nn.Module | None) -> None:
        self._loader, self._split, self._model = loader, split, model

    def __iter__(self) -> Iterator[Batch]:
        if (recorded := hook.current()) is not None and self._model is not None:
            recorded.guard("watch", _announce_model, recorded, self._model)
        for batch in self._loader:
            if (here := hook.current()) is not None:
                here.guard("watch", _announce, here, self._split, batch)
            yield batch

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def watch(loader: Iterable[Batch], split: str = "train", *, model: nn.Module | None = None) -> Watched[Batch]:
    """The same batches, each recorded as a draw of `split` when it is handed out.

    `model` is what they are given to: what enters it is recorded from here on. Without it that begins with the first
    `scoring`, and steps before it are not proven to use what they were handed.

    `loader` is any iterable of batches: tensors or numpy arrays [n, …], or tuples, lists and mappings of them. The
    first array's rows name what was drawn. A batch without arrays can't be recorded, and then no rule passes.
    """
    return Watched(loader, split, model)


@contextmanager
def scoring(model: nn.Module, *, label: str = "scoring", counted: bool = True) -> Iterator[None]:
    """What is handed out in this block, or enters `model` in it, is scored.

    `counted` says whether the score is one that is reported. From the first block on, what enters `model` is recorded.
    """
    here = hook.current()
    if here is not None:
        here.guard("scoring", lambda: here.recording().begin_scoring(model, label, counted))
    try:
        yield
    finally:
        if here is not None:
            here.guard("scoring", lambda: here.recording().end_scoring())


def _announce_model(here: hook.Hook, model: nn.Module) -> None:
    here.recording().model(model)


def _announce(here: hook.Hook, split: str, batch: Any) -> None:
    here.recording().content(split, content(batch))


def content(batch: Any) -> Content:
    """What a batch holds. Raises TypeError if it holds no array."""
    found = [_array(leaf) for leaf in leaves(batch)]
    if not found:
        raise TypeError(f"a batch of {type(batch).__name__} holds no tensor; watch a loader of tensors or arrays")
    digest = hashlib.sha256()
    for array in found:
        digest.update(f"golf-audit batch {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    first = found[0]
    hashes = fingerprint.row_hashes(first)
    length = first.size // max(len(hashes), 1)
    return Content(hashes, length, digest.digest(), fingerprint.checksum(first))


def leaves(batch: Any) -> Iterator[Tensor | np.ndarray]:
    """The tensors and arrays of a batch, in order."""
    if isinstance(batch, Tensor | np.ndarray):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from leaves(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from leaves(value)


def _array(leaf: Tensor | np.ndarray) -> np.ndarray:
    """As numpy sees it; what numpy has no type for, as its bits."""
    if isinstance(leaf, np.ndarray):
        return leaf
    plain = leaf.detach().cpu()
    if plain.dtype == torch.bfloat16 or (plain.is_floating_point() and plain.dtype.itemsize == 1):
        plain = plain.view(WORDS[plain.element_size()])
    return plain.numpy()
