"""Hashing a data set beside sha256sum, and looking for validation tokens in training data.

    .venv/bin/python -m benchmarks.splits [--json FILE] [--megabytes 1000] [--tokens 100]

Data are random tokens from a fixed seed, as shards in a temporary folder, read from the system's file cache. Hashing
alternates with its baselines on the same number of cores (`xargs -P`), and medians are compared: a shared machine gets
slower for all of them. The overlap runs in a process of its own, so that its peak memory is its own; the bars are 60 s
and 4,096 MB for 100 million tokens of two splits.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audit.manifest import take
from audit.overlap import measure
from audit.splits import open_data
from trainer.shards import write_shard

CORES = len(os.sched_getaffinity(0))
VOCABULARY, DOCUMENT = 8192, 800
"""Pieces, and tokens of a document on average."""
BAR_SECONDS, BAR_MEGABYTES = 60.0, 4096.0
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the shards to hash")
    parser.add_argument("--tokens", type=int, default=100, help="million tokens of the two splits that are compared")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds of hashing")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(overlap(options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        rows = hashing(Path(name) / "hash", options.megabytes, options.rounds)
        for train, leaked in ((0.9, 0.0), (0.6, 0.0), (0.6, 0.8)):
            rows += overlaps(Path(name) / "overlap", options.tokens * 10**6, train, leaked)
    for one in rows:
        print(f"{one['figure']:58} {one['ours']:10.2f} {one['baseline']:10.2f} {one['unit']:5} {one['ratio']:7.3f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def hashing(folder: Path, megabytes: int, rounds: int) -> list[Row]:
    """Seconds for a manifest of ten shards beside what hashes the same files and no more."""
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, megabytes * 10**5 // 2, dtype=np.uint16)
    for number in range(10):
        write_shard(folder / f"train_{number:06}.bin", np.roll(tokens, number))

    def peer(*command: str) -> Callable[[], object]:
        names = "\n".join(str(path) for path in sorted(folder.iterdir()))
        xargs = ["xargs", "-P", str(CORES), "-n", "1", *command]
        return lambda: subprocess.run(xargs, input=names, text=True, stdout=subprocess.DEVNULL, check=True)

    jobs = {"ours": lambda: take(open_data([folder])), "sha256sum": peer("sha256sum")}
    if shutil.which("openssl"):
        jobs["openssl dgst"] = peer("openssl", "dgst", "-sha256")
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - began)
    shutil.rmtree(folder)
    ours, *others = (statistics.median(times) for times in seconds.values())
    what = f"manifest of {megabytes} MB, {CORES} cores, beside"
    return [row(f"{what} {name}", ours, other, "s") for name, other in zip([*jobs][1:], others, strict=True)]


def overlaps(folder: Path, tokens: int, train: float, leaked: float) -> list[Row]:
    """Seconds, CPU seconds and peak memory for two splits, of which `leaked` of validation stands in training."""
    folder.mkdir()
    random = np.random.default_rng(1)
    first = int(tokens * train)
    streams = random.integers(2, VOCABULARY, tokens, dtype=np.uint16)
    streams[random.integers(0, tokens, tokens // DOCUMENT)] = 1
    streams[[0, first]] = 1
    copied = int((tokens - first) * leaked)
    streams[first - copied : first] = streams[tokens - copied :]
    for number, part in enumerate(np.array_split(streams[:first], 8)):
        write_shard(folder / f"train_{number:06}.bin", part)
    write_shard(folder / "val_000000.bin", streams[first:])
    del streams
    command = [sys.executable, "-m", "benchmarks.splits", "--folder", str(folder)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    shutil.rmtree(folder)
    if abs(found["share"] - leaked) > 1e-3:
        raise SystemExit(f"planted a share of {leaked}, found {found['share']}")
    million = f"{first // 10**6} + {(tokens - first) // 10**6} M tokens, {leaked:.0%} leaked"
    return [
        row(f"overlap of {million}", found["seconds"], BAR_SECONDS, "s"),
        row(f"overlap of {million}, CPU time", found["cpu"], BAR_SECONDS * CORES, "s"),
        row(f"overlap of {million}, peak memory", found["megabytes"], BAR_MEGABYTES, "MB"),
    ]


def overlap(folder: Path) -> dict[str, float]:
    """The measurement itself, in this process."""
    began, cpu = time.perf_counter(), time.process_time()
    data = open_data([folder])
    found = measure(data.split("train"), data.split("val"))
    return {
        "share": found.share,
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def row(figure: str, ours: float, baseline: float, unit: str) -> Row:
    """One figure beside what it is held against."""
    ratio = ours / baseline
    return {"figure": figure, "ours": ours, "baseline": baseline, "ratio": ratio, "unit": unit, "device": "cpu"}


if __name__ == "__main__":
    main()
