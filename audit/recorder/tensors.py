"""Checksums and fingerprints where the tensors are: the sums of `audit.fingerprint`, in torch.

    checksum(ids)                      an int on a CPU; on a GPU a `Deferred`, which has its number when the GPU has
    Sum(parameters, places).value()    the fingerprint of some parameters, as the same kind of `Value`

On a GPU nothing here waits: sums are queued on the current stream, copied to pinned memory and marked with an event.
The parameters are copied together in chunks, so a fingerprint costs a few launches a chunk and none a parameter. On a
CPU numpy reads the parameters' own memory. The weights are kept beside them, 4 bytes a word on a CPU and 8 on a GPU,
where that saves a conversion.

Nothing is drawn, no mode is changed and nothing of the program's is written.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from audit import fingerprint
from audit.fingerprint import MASK

CHUNK = 1 << 23
"""Words that a GPU sums in one go: 64 MiB of products, five chunks for 36 million parameters."""

APART = 1 << 40
"""The first place of parameters that no model was announced with."""

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}
"""Bytes of an element → the integers that it is read as."""

INTEGERS = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64}
)


class Deferred:
    """A sum modulo 2^64 of a number that is known and of some that a GPU is still computing."""

    __slots__ = ("_known", "_parts")

    def __init__(self, scalars: Sequence[Tensor], known: int) -> None:
        self._known = known
        self._parts = [_copied(scalar) for scalar in scalars]

    def ready(self) -> bool:
        """Whether `settle` would not wait."""
        return all(event.query() for _, event in self._parts)  # type: ignore[no-untyped-call]

    def settle(self) -> int:
        """The number, 0 to 2^64 - 1; waits for the GPU if it must."""
        for _, event in self._parts:
            event.synchronize()
        return (self._known + sum(int(host) for host, _ in self._parts)) & MASK


Value = int | Deferred
"""A 64-bit number, now or later."""


def _copied(scalar: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    """A copy to pinned memory that is under way, and the event at its end."""
    host = torch.empty((), dtype=torch.int64, device="cpu", pin_memory=True)
    with torch.cuda.device(scalar.device):
        host.copy_(scalar, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
    return host, event


def total(scalars: Sequence[Tensor], known: int) -> Value:
    """Σ scalars + known modulo 2^64; the scalars are int64 on any devices."""
    later = [scalar for scalar in scalars if scalar.is_cuda]
    known += sum(int(scalar) for scalar in scalars if not scalar.is_cuda)
    return Deferred(later, known) if later else known & MASK


def check_not_capturing(tensor: Tensor) -> None:
    """Raise RuntimeError while a CUDA graph is captured: a sum queued then would be one of every replay, or of none."""
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a CUDA graph is being captured, so no checksum can be taken; announce outside of it")


def words(tensor: Tensor) -> Tensor:
    """The bits of a tensor as signed integers [n], as `fingerprint.as_words`; a view if the tensor is contiguous.

    Raises TypeError for a tensor that is spread over ranks: to look at it whole would take collectives of our own.
    """
    if hasattr(tensor, "to_local"):
        raise TypeError(f"{type(tensor).__name__} is spread over ranks, so its fingerprint can't be taken here")
    return tensor.detach().reshape(-1).view(WORDS[tensor.element_size()])


# Token ids

_id_weights: dict[torch.device, Tensor] = {}


def checksum(ids: Tensor) -> Value:
    """`fingerprint.checksum` of a tensor of any shape, where it is."""
    check_not_capturing(ids)
    flat = ids.detach().reshape(-1) if ids.dtype in INTEGERS else words(ids)
    if not flat.is_cuda:
        return fingerprint.checksum(flat.long().numpy(force=True))
    return total([weighted(flat)], fingerprint.id_weights(flat.numel())[1])


def weighted(flat: Tensor) -> Tensor:
    """Σ id_i·w_i of integers [n], int64 scalar on their device; the Σ w_i of the checksum is known without it."""
    kept = _id_weights.get(flat.device)
    if kept is None or len(kept) < flat.numel():
        kept = torch.from_numpy(fingerprint.weights(0, flat.numel())).to(flat.device)
        _id_weights[flat.device] = kept
    return (flat.long() * kept[: flat.numel()]).sum()


# Parameters


class Places:
    """The row of words in which every parameter has its place.

    Those of announced models stand first, model by model in the order of their parameters, so a model's fingerprint is
    that of its checkpoint whatever moved it before. All others stand far behind, by the order in which they were seen.
    """

    def __init__(self) -> None:
        self._first = WeakIdKeyDictionary()
        self._ends = {True: 0, False: APART}

    def announce(self, parameters: Iterable[Tensor]) -> None:
        """Give the parameters of a model their places; one that had another loses it."""
        for parameter in parameters:
            if self._first.get(parameter, APART) >= APART:  # type: ignore[no-untyped-call]
                self._put(parameter, announced=True)

    def first(self, parameter: Tensor) -> int:
        """The place of the parameter's first word."""
        if parameter not in self._first:
            self._put(parameter, announced=False)
        return int(self._first[parameter])

    def _put(self, parameter: Tensor, *, announced: bool) -> None:
        self._first[parameter] = self._ends[announced]
        self._ends[announced] += parameter.numel() * max(parameter.element_size() // 4, 1)


@dataclass(frozen=True)
class Chunk:
    """Words that are summed together: parts (row, slice) of rows of words, and the weights of all in a row, int64."""

    parts: list[tuple[int, slice]]
    factors: Tensor

    def views(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """The parts of these rows."""
        return [rows[row][part] for row, part in self.parts]

    def sum(self, views: Sequence[Tensor]) -> Tensor:
        """int64 scalar on the device of the views."""
        joined = views[0] if len(views) == 1 else torch.cat(list(views))
        return (joined * self.factors).sum()


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two lists hold the very same tensors; `==` would compare numbers."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


class Sum:
    """The fingerprint of fixed parameters. It keeps weights, and views of the parameters as long as these stay put."""

    def __init__(self, parameters: Sequence[Tensor], places: Places) -> None:
        self.parameters = list(parameters)
        self._firsts = [places.first(parameter) for parameter in parameters]
        self._seen: list[tuple[int, int, torch.dtype, bool]] = []
        self._lasting = False
        self._kinds: list[tuple[int, torch.dtype, torch.device]] = []
        self._factors: list[np.ndarray] = []
        self._chunks: list[Chunk] = []
        self._host: list[tuple[np.ndarray, np.ndarray]] = []
        self._views: list[list[Tensor]] = []

    def same(self, other: Sum) -> bool:
        """Whether this is over the very same tensors at the same places."""
        return self._firsts == other._firsts and same(self.parameters, other.parameters)

    def value(self) -> Value:
        """The fingerprint of what the parameters hold at this point of the program."""
        for parameter in self.parameters[:1]:
            check_not_capturing(parameter)
        seen = [(p.data_ptr(), p.numel(), p.dtype, p.is_contiguous()) for p in self.parameters]
        if seen != self._seen or not self._lasting:
            self._look()
            self._seen = seen
        known = sum(fingerprint.fingerprint_words(*pair) for pair in self._host)
        sums = [chunk.sum(views) for chunk, views in zip(self._chunks, self._views, strict=True)]
        return total(sums, known)

    def _look(self) -> None:
        """Find the parameters' words anew. Weights stay unless sizes, types or devices changed."""
        rows = [words(parameter) for parameter in self.parameters]
        # The words of a parameter that is not contiguous are a copy, so they can't be kept.
        self._lasting = all(parameter.is_contiguous() for parameter in self.parameters)
        kinds = [(row.numel(), row.dtype, row.device) for row in rows]
        if kinds != self._kinds:
            self._kinds = kinds
            weights = [fingerprint.word_weights(first, len(row)) for first, row in zip(self._firsts, rows, strict=True)]
            on_gpu = [index for index, row in enumerate(rows) if row.is_cuda]
            self._chunks = list(chunks(rows, weights, which=on_gpu))
            self._factors = [weight for weight, row in zip(weights, rows, strict=True) if not row.is_cuda]
        host = [row.numpy() for row in rows if not row.is_cuda]
        self._host = list(zip(host, self._factors, strict=True))
        self._views = [chunk.views(rows) for chunk in self._chunks]


def chunks(
    rows: Sequence[Tensor], weights: Sequence[np.ndarray], *, which: Iterable[int], size: int = CHUNK
) -> Iterator[Chunk]:
    """Some of the rows of words, cut and joined to chunks of at most `size` words of one device and type."""

    def kind(index: int) -> tuple[str, str]:
        return str(rows[index].device), str(rows[index].dtype)

    for _, group in itertools.groupby(sorted(which, key=kind), key=kind):
        pieces = [
            (index, slice(start, min(start + size, len(rows[index]))))
            for index in group
            for start in range(0, len(rows[index]), size)
        ]
        while pieces:
            taken = room = 0
            while taken < len(pieces) and (room := room + pieces[taken][1].stop - pieces[taken][1].start) <= size:
                taken += 1
            parts, pieces = pieces[:taken], pieces[taken:]
            factors = np.concatenate([weights[index][part] for index, part in parts])
            yield Chunk(parts, torch.from_numpy(factors).to(rows[parts[0][0]].device, torch.int64))
