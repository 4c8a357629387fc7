"""The same target and mutations, led by coverage of the reader: `python -m tests.fuzz --atheris`.

    python -m tests.fuzz.guided --seconds 600 --seed 1 --out runs/fuzz

libFuzzer keeps mutants that reach something new and goes on from them, which a campaign of independent mutants does
not. It decides what to mutate; half of the time how is for `structural`, the other half for libFuzzer's own mutations,
of the header before compression or of the file's body. Every mutant is resealed. It ends at the first finding, the
bytes of which it writes to `out`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import atheris

# The reader is imported here first, so that what the other modules import is instrumented.
with atheris.instrument_imports(include=["trainer"]):
    from trainer import artifact

from tests.fuzz import structural
from tests.fuzz.anatomy import DIGEST_BYTES, Anatomy, assemble, dissect, reseal
from tests.fuzz.campaign import SLOW, Tally, Watched
from tests.fuzz.corpus import seeds
from tests.fuzz.oracle import Finding, judge

LONGEST = 1 << 16
"""Bytes of a mutant."""


def target(data: bytes) -> None:
    """Raises Finding."""
    reader = Watched(artifact.unpack, Tally())
    judge(data, resealed=reseal(data[:-DIGEST_BYTES]) == data, reader=reader)
    if reader.seconds > SLOW:
        raise Finding("slow", f"more than {SLOW} s", f"{reader.seconds:.1f} s")


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """A sealed file of at most so many bytes."""
    rng = random.Random(seed)
    try:
        anatomy, donor = dissect(data), rng.choice(seeds()).anatomy
        made = _by_libfuzzer(anatomy, longest) if rng.random() < 0.3 else _by_parts(rng, anatomy, donor)
    except Exception:  # what is no right file breaks mutations of parts anywhere
        made = b""
    if not made or rng.random() < 0.2:
        made = reseal(atheris.Mutate(data[:-DIGEST_BYTES], max(1, longest - DIGEST_BYTES)))
    return made if len(made) <= longest else data


def _by_libfuzzer(anatomy: Anatomy, longest: int) -> bytes:
    return assemble(anatomy, atheris.Mutate(anatomy.header(), longest))


def _by_parts(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    (mutation,) = rng.choices(tuple(structural.MUTATIONS), tuple(structural.MUTATIONS.values()))
    return mutation(rng, anatomy, donor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds():
            if len(seed.data) < LONGEST // 4:
                (Path(folder) / seed.name).write_bytes(seed.data)
        flags = {"max_total_time": arguments.seconds, "seed": arguments.seed, "max_len": LONGEST, "timeout": 60}
        options = [f"-{name}={value}" for name, value in flags.items()]
        atheris.Setup(
            [sys.argv[0], *options, f"-artifact_prefix={arguments.out}/", folder], target, custom_mutator=mutate
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
