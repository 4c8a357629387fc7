"""The fuzzer itself: a short campaign finds nothing, planted faults of the reader are found, and each by its name."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brotli
import numpy as np
import pytest

from tests.fuzz import campaign, dying, lines
from tests.fuzz.__main__ import main
from tests.fuzz.anatomy import ANS, AnatomyError, assemble, dissect, reseal
from tests.fuzz.campaign import Tally, Watched, bounded_memory, one, run, watch
from tests.fuzz.corpus import Seed, seeds
from tests.fuzz.mutants import mutant
from tests.fuzz.oracle import ACCEPTED, REFUSED, Finding, Reader, judge, predicts
from tests.trainer import bombs
from tests.trainer.artifacts import craft, row, table
from trainer import ans, artifact, codecs, container, rans
from trainer.codecs import Stream
from trainer.errors import ArtifactError
from trainer.quantized import QuantizedModel

SEED = 5


def test_a_short_campaign_finds_nothing() -> None:
    """Of 3,000 mutants, half of them resealed, none gets more than a refusal or a reading of what it says.

    `python -m tests.fuzz` asks for 95 % of the reader's lines; so few mutants reach nine tenths.
    """
    tally = Tally()
    run(SEED, range(3000), tally, traced=2, from_file=100)
    assert not tally.findings, [text for text, _ in tally.findings.values()]
    resealed: Counter[str] = Counter()
    for (mutation, outcome), n in tally.outcomes.items():
        resealed[outcome] += 0 if "," in mutation else n
    assert (tally.count(), resealed.total()) == (3000, 1500)
    assert 100 < resealed[ACCEPTED] < resealed[REFUSED]
    assert len(tally.refusals) > 25
    assert lines.share(tally.hit) >= 0.9


def test_mutants_are_the_same_for_everybody() -> None:
    """A number is always the same bytes, whichever numbers were made before; another seed's are others."""
    numbers = range(100, 140)
    first = [mutant(SEED, n).data for n in numbers]
    assert [mutant(SEED, n).data for n in reversed(numbers)] == first[::-1]
    assert sum(mutant(SEED + 1, n).data == data for n, data in zip(numbers, first, strict=True)) == 0


def test_half_of_the_mutants_are_resealed_and_none_is_its_origin() -> None:
    """Odd numbers have a right digest, even ones a wrong one, and all differ from what they began as."""
    for number in range(400):
        subject = mutant(SEED, number)
        assert subject.resealed == bool(number % 2) == (reseal(subject.data[:-32]) == subject.data)
        assert subject.data != subject.origin.data


def test_the_corpus_has_one_of_everything() -> None:
    """Both versions, all codecs, all options, all dimensions, predicted and plain planes; each is read as it is."""
    versions, kinds, flags, dimensions = set(), set(), set(), set()
    found: set[int | str] = set()
    for seed in seeds():
        assert judge(seed.data, resealed=True) == ACCEPTED, seed.name
        versions.add(seed.anatomy.version)
        for entry in seed.anatomy.rows:
            kinds.add(entry.kind)
            flags.add(entry.flags)
            dimensions.add(len(entry.shape))
        found |= {stream.codec for stream in seed.anatomy.streams}
        if seed.anatomy.streams[0].codec == ANS:
            planes = [plane[:2] for entry in seed.anatomy.rows for plane in entry.planes()]
            found.add(f"predicts: {predicts(seed.anatomy.streams[0].data, planes)}")
    assert (versions, kinds, flags, dimensions) == ({1, 2}, {0, *range(2, 9)}, {0, 1, 2, 3} - {1, 2}, set(range(9)))
    assert found == {0, 1, 2, "predicts: True", "predicts: False"}


@pytest.mark.parametrize("seed", seeds(), ids=lambda seed: seed.name)
def test_dissecting_and_assembling_are_inverse(seed: Seed) -> None:
    """The parts of a file make a file of the same parts; a file with one more byte anywhere has none."""
    assert dissect(assemble(seed.anatomy)).essence() == seed.anatomy.essence()
    body = seed.data[:-32]
    for at in (len(body), len(body) - len(seed.anatomy.streams[-1].data)):
        with pytest.raises(AnatomyError):
            dissect(reseal(body[:at] + b"\0" + body[at:]))


class Always(bytes):
    """A digest that equals all others."""

    __hash__ = bytes.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


class Fits(int):
    """A size that none is at odds with."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __gt__(self, other: int) -> bool:
        return True


class Same:
    """Classes that equal all others."""

    def __ne__(self, other: object) -> Any:
        return np.zeros(1, bool)


def no_digest(patch: pytest.MonkeyPatch) -> None:
    """The digest is not looked at."""
    patch.setattr(container, "hashlib", SimpleNamespace(sha256=lambda data: SimpleNamespace(digest=Always)))


def no_end(patch: pytest.MonkeyPatch) -> None:
    """What follows the header's end and the last stream is not looked at."""
    patch.setattr(container._Cursor, "expect_end", lambda cursor: None)


def no_end_of_words(patch: pytest.MonkeyPatch) -> None:
    """What follows the last code is not looked at."""
    patch.setattr(rans.Decoder, "expect_end", lambda decoder: None)


def no_classes(patch: pytest.MonkeyPatch) -> None:
    """Classes of the coder of codes may be others than those of the codes."""
    patch.setattr(ans, "_classes", lambda codes, rows=False: Same())


def no_sizes(patch: pytest.MonkeyPatch) -> None:
    """Brotli may be longer than what it stands for."""
    sizes = container.plain_sizes
    patch.setattr(container, "plain_sizes", lambda table: [Fits(size) for size in sizes(table)])


def no_form(patch: pytest.MonkeyPatch) -> None:
    """Metadata may be written in any way."""

    def parse(text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ArtifactError("header: metadata is not a JSON object")
        return found

    patch.setattr(container, "_parse_metadata", parse)


def no_bounds(patch: pytest.MonkeyPatch) -> None:
    """Codes may be out of their bits."""
    patch.setattr(artifact, "_checked_codes", lambda entry, codes, plane: codes)


def no_signs(patch: pytest.MonkeyPatch) -> None:
    """Scales may be anything."""
    patch.setattr(artifact, "_checked_numbers", lambda entry, numbers, shape: numbers)


def no_limit(patch: pytest.MonkeyPatch) -> None:
    """There is room for whatever the table promises."""

    def load(stream: Stream, size: int, what: str) -> bytes:
        room = bytearray(size)
        room[:] = codecs.load(stream, size, what)
        return bytes(room)

    patch.setattr(container, "MAX_CONTENT_BYTES", 1 << 60)
    patch.setattr(artifact, "load", load)


def no_guard(patch: pytest.MonkeyPatch) -> None:
    """An error of brotli is let through."""
    patch.setattr(codecs, "brotli", SimpleNamespace(Decompressor=brotli.Decompressor, error=KeyError))


def whole_names(patch: pytest.MonkeyPatch) -> None:
    """A message quotes what it refuses as it stands."""
    patch.setattr(container, "ArtifactError", lambda text: ArtifactError(f"{text}\n"))


def planted(fault: Callable[[pytest.MonkeyPatch], None]) -> Reader:
    """A reader with a fault, which the oracle and the mutations do not share."""

    def reader(data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            return artifact.unpack(data)

    return reader


@pytest.mark.parametrize(
    ("fault", "kind", "origin"),
    [
        (no_digest, "silent", ""),
        (no_end, "malformed", ""),
        (no_end_of_words, "spelling", "-ans"),
        (no_classes, "spelling", "-ans"),
        (no_sizes, "malformed", ""),
        (no_form, "malformed", ""),
        (no_bounds, "malformed", ""),
        (no_signs, "malformed", ""),
        (no_limit, "crash", ""),
        (no_guard, "crash", ""),
        (whole_names, "message", ""),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found(fault: Callable[[pytest.MonkeyPatch], None], kind: str, origin: str) -> None:
    """Each fault of the reader shows in one of a few thousand mutants; the campaign above is its control."""
    tally, number = Tally(), 0
    while kind not in (kinds := {found for found, _ in tally.findings}):
        number += 1
        assert number < 20_000, kinds
        subject = mutant(SEED, number)
        if origin in subject.origin.name:
            one(subject, tally, planted(fault))


def test_a_bomb_is_stopped() -> None:
    """Of 256 MiB in 50 kB the reader holds what the table promises; one that asks afterwards fails for memory."""
    data = craft(table(row(b"v", 0, (1 << 19,))), (0, b""), bombs.zeros(1 << 28))
    assert len(data) < 50_000

    def unlimited(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(artifact, "load", lambda stream, size, what: brotli.decompress(stream.data)[:size])

    assert judge(data, resealed=True, reader=Watched(artifact.unpack, Tally(), 1 << 26)) == REFUSED
    with pytest.raises(Finding, match="crash: error at"):  # brotli's own, when it can't have more memory
        judge(data, resealed=True, reader=Watched(planted(unlimited), Tally(), 1 << 26))


def test_memory_is_bounded_and_free_again() -> None:
    """An array of twice the bound can't be had, used or not; afterwards it can."""
    with bounded_memory(1 << 27), pytest.raises(MemoryError):
        np.empty(1 << 28, np.uint8)
    assert np.empty(1 << 28, np.uint8).size == 1 << 28


def test_a_slow_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes more time of the processor than the bound is a finding, although it is refused in the end."""
    monkeypatch.setattr(campaign, "SLOW", 0.01)

    def reader(data: bytes) -> tuple[QuantizedModel, dict[str, Any]]:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        return artifact.unpack(data)

    tally = Tally()
    one(mutant(SEED, 0), tally, reader)
    assert [kind for kind, _ in tally.findings] == ["slow"]


def test_workers_that_die_or_hang_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends, and one that stands still, are given with the mutant that they were at."""
    monkeypatch.setattr(campaign, "HANG", 0.5)
    monkeypatch.setattr(campaign, "POLL", 0.1)
    tally = watch(dying.work, SEED, 10, 2, time.time() + 60, lambda line: None)
    assert {(kind, subject.number) for (kind, _), (_, subject) in tally.findings.items()} == {("died", 3), ("hang", 4)}


def test_the_coverage_knows_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not there, or one that reading runs, can't be left out of the count."""
    counted = lines.counted()
    assert all(len(found) > 10 for found in counted.values())
    monkeypatch.setitem(lines.WRITING, codecs, {"store", "nonsense"})
    with pytest.raises(ValueError, match=r"trainer.codecs has no \['nonsense'\]"):
        lines.counted()
    monkeypatch.setitem(lines.WRITING, codecs, {"load"})
    with pytest.raises(AssertionError, match="load runs in reading"), lines.Lines():
        artifact.unpack(seeds()[0].data)


def test_the_command_names_a_mutant_and_keeps_what_it_finds(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--only N` prints a mutant and what becomes of it; with a faulty reader it leaves the bytes and fails."""
    subject = next(m for m in (mutant(SEED, n) for n in range(0, 100, 2)) if m.mutation == "bytes")
    command = ["--seed", str(SEED), "--only", str(subject.number), "--out", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert subject.data.hex() in printed
    assert "refused container.py:" in printed
    assert not [*tmp_path.iterdir()]
    monkeypatch.setattr(artifact, "unpack", lambda data: 1 / 0)
    assert main(command) == 1
    assert "crash: ZeroDivisionError" in capsys.readouterr().out
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [subject.data]
