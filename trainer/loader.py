"""Training sequences, drawn so that every batch knows where each of its tokens stands.

Shuffled sequences (pg#1394). Each of 8 virtual ranks owns windows of T+1 tokens (input = the first T, target = the
last T): whole shards v, v+8, … where there are at least 8, else the windows v, v+8, … of every shard. In each epoch a
shard's windows start at a random phase in [0, T-1] and follow each other, so no token is an input twice. Choosing a
shard with probability proportional to its remaining windows and popping one of them, again and again, is one uniform
permutation of all windows; so an epoch is a permutation, and sample i of the stream can be had without samples 0 to
i-1. Nothing is carried from step to step: resumption is a number, and any count of threads reads the same stream.

A process takes the samples of its virtual ranks, so the set of sequences in a step is equal for 1, 2, 4, 8 processes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from trainer.errors import DataError
from trainer.settings import VIRTUAL_RANKS
from trainer.shards import Shard


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some sequences of one split: `rows` uint16 [n, T+1], and for each row its shard's index and first token.

    `split` is train or val, or self for text that the model wrote (`trainer.calibration`).
    """

    draw: int
    split: str
    rows: np.ndarray
    shards: np.ndarray
    starts: np.ndarray

    def announce(self) -> Batch:
        """Tell listeners (PEP 578) that this batch is handed to the loop: `golf.draw`."""
        sys.audit("golf.draw", self.draw, self.split, self.shards, self.starts, self.rows)
        return self


class Stream:
    """The endless sequence of windows of one virtual rank. `at(i)` is a pure function of seed, rank and i."""

    def __init__(self, shards: Sequence[Shard], *, length: int, seed: int, virtual_rank: int) -> None:
        self.length, self.seed, self.virtual_rank = length, seed, virtual_rank
        by_shard = len(shards) >= VIRTUAL_RANKS
        self.owned = [
            (index, (len(shard.tokens) - length) // length)
            for index, shard in enumerate(shards)
            if not by_shard or index % VIRTUAL_RANKS == virtual_rank
        ]
        # The count holds for every phase (the last window of phase T-1 still fits), so all epochs are equally long.
        self.step = 1 if by_shard else VIRTUAL_RANKS
        self.first = 0 if by_shard else virtual_rank
        self.windows = sum(len(range(self.first, count, self.step)) for _, count in self.owned)
        if self.windows < 1:
            have = sum(len(shards[index].tokens) for index, _ in self.owned)
            raise DataError(
                f"virtual rank {virtual_rank} of {VIRTUAL_RANKS} has no window of {length} + 1 tokens in its {have} "
                "tokens; use more training text or a smaller train.sequence_length"
            )
        self._epoch = -1
        self._table = np.empty((0, 2), dtype=np.int64)

    def epoch(self, number: int) -> np.ndarray:
        """All windows of an epoch in their order: int64 [windows, 2], shard index and first token."""
        parts = []
        for shard, count in self.owned:
            # One phase a shard and epoch, the same for all virtual ranks: their windows must not overlap.
            phase = np.random.default_rng([self.seed, number, 0, shard]).integers(self.length)
            starts = phase + self.length * np.arange(self.first, max(count, 0), self.step, dtype=np.int64)
            parts.append(np.stack([np.full_like(starts, shard), starts], axis=1))
        order = np.random.default_rng([self.seed, number, 1, self.virtual_rank]).permutation(self.windows)
        return np.concatenate(parts)[order]

    def at(self, first: int, count: int) -> np.ndarray:
        """Samples first … first+count-1: int64 [count, 2], shard index and first token of each window."""
        found = np.empty((count, 2), dtype=np.int64)
        done = 0
        while done < count:
            epoch, position = divmod(first + done, self.windows)
            if epoch != self._epoch:
                self._epoch, self._table = epoch, self.epoch(epoch)
            taken = min(count - done, self.windows - position)
            found[done : done + taken] = self._table[position : position + taken]
            done += taken
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loader:
    """Batches of the training split for the virtual ranks of one process.

    `length` tokens a sequence, `sequences` a step and virtual rank, at most `micro` in a batch; `threads` read ahead.
    """

    shards: Sequence[Shard]
    length: int
    sequences: int
    micro: int
    seed: int
    virtual_ranks: Sequence[int]
    threads: int = 0

    @property
    def batch_sizes(self) -> list[int]:
        """The different numbers of sequences that the micro-batches of a step have, ascending."""
        rows = self.sequences * len(self.virtual_ranks)
        return sorted({min(self.micro, rows - done) for done in range(0, rows, self.micro)})

    def steps(self, first: int = 0) -> Generator[list[Batch], None, None]:
        """The micro-batches of step `first`, `first` + 1, …; each batch is announced when it is handed out."""
        streams = self._streams()
        per_step = -(-self.sequences * len(self.virtual_ranks) // self.micro)
        if not self.threads:
            step = first
            while True:
                yield [batch.announce() for batch in self._read(step, per_step, self._rows(streams, step))]
                step += 1
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            # Rows are drawn here, in order; only reading them is spread over threads.
            ahead: list[Future[list[Batch]]] = []
            step = first
            try:
                while True:
                    while len(ahead) <= self.threads:
                        ahead.append(pool.submit(self._read, step, per_step, self._rows(streams, step)))
                        step += 1
                    yield [batch.announce() for batch in ahead.pop(0).result()]
            finally:
                for future in ahead:
                    future.cancel()

    def calibration(self, after: int, *, batches: int, sequences: int) -> list[Batch]:
        """Batches for the Hessians: batch j holds the next samples of virtual rank j mod 8 after step `after` - 1.

        They are not announced here. Draw ids lie below zero, so that they never meet those of a step.
        """
        streams = self._streams()
        found = []
        for number in range(batches):
            rank = number % VIRTUAL_RANKS
            if rank in streams:
                first = after * self.sequences + number // VIRTUAL_RANKS * sequences
                found.append(self._batch(-1 - number, streams[rank].at(first, sequences)))
        return found

    def _streams(self) -> dict[int, Stream]:
        return {v: Stream(self.shards, length=self.length, seed=self.seed, virtual_rank=v) for v in self.virtual_ranks}

    def _rows(self, streams: dict[int, Stream], step: int) -> np.ndarray:
        return np.concatenate([s.at(step * self.sequences, self.sequences) for s in streams.values()])

    def _read(self, step: int, per_step: int, rows: np.ndarray) -> list[Batch]:
        ranks = VIRTUAL_RANKS // len(self.virtual_ranks)
        base = (step * ranks + self.virtual_ranks[0] % ranks) * per_step
        return [self._batch(base + i, rows[i * self.micro : (i + 1) * self.micro]) for i in range(per_step)]

    def _batch(self, draw: int, windows: np.ndarray) -> Batch:
        rows = np.stack([self.shards[shard].tokens[start : start + self.length + 1] for shard, start in windows])
        return Batch(draw, "train", rows, windows[:, 0].astype(np.int32), windows[:, 1].copy())
