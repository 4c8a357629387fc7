"""Coding a model beside brotli: seconds, bytes over the order-0 entropy, and the whole file.

    .venv/bin/python -m benchmarks.artifact [--runs DIR] [--layers N] [--quality Q] [--json FILE]

Models are the full shape with Gaussian weights, then with heavy tails and columns of unequal spread
(`benchmarks.shapes`, codes by rounding), and with `--runs` the quantized model of every seed of a run. “codes” are the
codes alone: `trainer.ans` on one thread beside brotli as `trainer.artifact` uses it, column after column, a stream a
matrix, compressed on `--threads`. “file” is `artifact.pack` and `unpack` by either codec, with scales, vectors, table
and digest. Ours is the median of `--repeats`; brotli 11 takes a minute a time and runs once. Seconds are the clock's,
and the processor's (of all threads), which other work on the machine moves less. A model read back is checked to be the
one that was written.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import numpy as np
import torch

from benchmarks import shapes
from trainer import ans, artifact
from trainer.layout import Layout
from trainer.quantized import QuantizedModel, q_max
from trainer.settings import Gptq
from trainer.stages import check_same


class Seconds(NamedTuple):
    """Of the clock and of the processor."""

    wall: float
    cpu: float


class Measured(NamedTuple):
    """A coder's seconds both ways and what it wrote."""

    compress: Seconds
    decompress: Seconds
    bytes: int


def models(options: argparse.Namespace) -> Iterator[tuple[str, QuantizedModel]]:
    """Name and model of each case."""
    for name, tails in (("gaussian", False), ("tails", True)):
        weights, sites = shapes.state(tails=tails, layers=options.layers)
        yield name, shapes.rounded(weights, sites, Gptq())
    if options.runs:
        layout = Layout(options.runs)
        for folder in sorted(layout.stage("quantize", 0).parent.iterdir()):
            yield f"seed {folder.name}", artifact.read(folder / "model.golf")[0]


def planes(model: QuantizedModel) -> tuple[list[np.ndarray], list[ans.Plane]]:
    """Codes of all matrices as they are, with their bounds."""
    codes, found = [], []
    for name in sorted(model.matrices):
        matrix = model.matrices[name]
        high = q_max(max(matrix.bits, matrix.protected.bits if matrix.protected else 0))
        codes.append(matrix.codes.numpy())
        found.append(ans.Plane(matrix.codes.shape[0], matrix.codes.shape[1], -high, high))
    return codes, found


def entropy_bytes(codes: np.ndarray) -> float:
    """n·H₀ of a matrix's codes."""
    counts = np.bincount(codes.ravel().astype(np.int64) + 128)
    return -math.fsum(n * math.log2(n / codes.size) for n in counts[counts > 0].tolist()) / 8


def timed(action: Callable[[], Any], repeats: int) -> tuple[Seconds, Any]:
    """Median seconds, and what the last call gave."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = action()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Seconds(statistics.median(walls), statistics.median(cpus)), result


def by_ans(codes: Sequence[np.ndarray], bounds: Sequence[ans.Plane], *, repeats: int) -> Measured:
    compress, data = timed(lambda: ans.encode(codes, bounds), repeats)
    decompress, found = timed(lambda: ans.decode(data, bounds), repeats)
    assert all(np.array_equal(a, b) for a, b in zip(codes, found, strict=True))
    return Measured(compress, decompress, len(data))


def by_brotli(codes: Sequence[np.ndarray], *, quality: int, threads: int) -> Measured:
    def compress() -> list[bytes]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda c: brotli.compress(c.T.tobytes(), quality=quality, lgwin=24), codes))

    def decompress() -> list[np.ndarray]:
        plain = [np.frombuffer(brotli.decompress(stream), np.int8) for stream in streams]
        return [p.reshape(c.shape[::-1]).T.copy() for p, c in zip(plain, codes, strict=True)]

    seconds, streams = timed(compress, 1)
    back, found = timed(decompress, 1)
    assert all(np.array_equal(a, b) for a, b in zip(codes, found, strict=True))
    return Measured(seconds, back, sum(map(len, streams)))


def whole_file(model: QuantizedModel, codec: str, *, repeats: int, quality: int, threads: int) -> Measured:
    def pack() -> bytes:
        return artifact.pack(model, metadata={}, codec=codec, quality=quality, threads=threads)

    compress, data = timed(pack, repeats)
    decompress, (found, _) = timed(lambda: artifact.unpack(data), repeats)
    check_same(model, found)
    return Measured(compress, decompress, len(data))


def rows(case: str, model: QuantizedModel, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of one model."""
    codes, bounds = planes(model)
    entropy = sum(map(entropy_bytes, codes))
    how = {"quality": options.quality, "threads": options.threads}
    ours, theirs = by_ans(codes, bounds, repeats=options.repeats), by_brotli(codes, **how)
    found = seconds(f"{case}, codes", ours, theirs)
    over, baseline = (measured.bytes / entropy - 1 for measured in (ours, theirs))
    found.append(row("over_entropy_fraction", f"{case}, codes", over, baseline, "fraction"))
    found.append(row("codes_bytes", f"{case}, codes", ours.bytes, theirs.bytes, "bytes"))
    ours = whole_file(model, "ans", repeats=options.repeats, **how)
    theirs = whole_file(model, "brotli", repeats=1, **how)
    found += seconds(f"{case}, file", ours, theirs)
    found.append(row("model_bytes", f"{case}, file", ours.bytes, theirs.bytes, "bytes"))
    return found


def seconds(case: str, ours: Measured, theirs: Measured) -> list[dict[str, Any]]:
    return [
        row("compress_seconds", case, ours.compress.wall, theirs.compress.wall, "s"),
        row("compress_cpu_seconds", case, ours.compress.cpu, theirs.compress.cpu, "s"),
        row("decompress_seconds", case, ours.decompress.wall, theirs.decompress.wall, "s"),
        row("decompress_cpu_seconds", case, ours.decompress.cpu, theirs.decompress.cpu, "s"),
    ]


def row(figure: str, case: str, ours: float, baseline: float, unit: str) -> dict[str, Any]:
    """One figure beside brotli's."""
    return {
        "figure": figure,
        "case": case,
        "ours": ours,
        "baseline": baseline,
        "ratio": ours / baseline,
        "unit": unit,
        "device": "cpu",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder of a run whose quantized models to add")
    parser.add_argument("--layers", type=int, default=shapes.LAYERS)
    parser.add_argument("--quality", type=int, default=11, help="brotli's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    print(f"{'case':18}{'figure':24}{'ours':>14}{'brotli':>14}{'ratio':>9}")
    for case, model in models(options):
        for one in rows(case, model, options):
            found.append(one)
            values = "".join(f"{one[side]:14,.{0 if one['unit'] == 'bytes' else 4}f}" for side in ("ours", "baseline"))
            print(f"{one['case']:18}{one['figure']:24}{values}{one['ratio']:9.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
