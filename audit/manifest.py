"""The manifest of a data set: what its files are, to the byte, and how that was found out.

Data flow: `open_data` (`audit.splits`) → `take` reads every file once, in parallel → `Manifest`, a value that
`as_dict` and `parse` turn into JSON and back → `check` takes a new one with the parameters of the old and raises with
all that is extra, missing or changed. A manifest holds no paths and no times: equal files have equal manifests.

    manifest = take(open_data([Path("runs/data")]))
    check(parse(read_json(path, remedy="…"), where=str(path)), [Path("runs/data")])

Roots (`audit.merkle`): a shard's leaf holds its name, file size, tokens, documents, SHA-256 and header; a split's root
is over its shards in order, empty ones too; the manifest's is over the hashing parameters, the splits (name, number of
shards, tokens, documents, bytes, root), the tokenizer and the other files. So it differs if two names are swapped, a
shard is split or merged, or an empty file is added, even where the stream of tokens stays the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from audit import merkle
from audit.errors import ManifestError, RunError, SplitError
from audit.octets import Counter, Octets
from audit.shards import BOS, HEADER_BYTES, Shard, open_regular, read_header
from audit.splits import CORES, Data, data_files, open_data
from audit.trees import parse as parse_tree

SCHEMA = 1
BUFFER = 1 << 18
"""Bytes read in one go: they are hashed and counted while they are in a core's cache (1.60 GB/s; 1.45 with 4 MiB)."""
DIGEST = re.compile("sha256:[0-9a-f]{64}")

Progress = Callable[[int], None]
"""Called with the number of bytes (or tokens) done since the last call, from any thread."""


@dataclass(frozen=True, kw_only=True)
class Hashing:
    """The parameters of a manifest: another value of any of them makes other numbers or roots."""

    algorithm: str = "sha256"
    format: str = "golf-audit/manifest/1"
    """What is hashed into the roots, as documented above."""
    bos: int = BOS
    """The token that starts a document, and the one that the bytes of a split's first token are counted after."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    name: str
    size: int
    """Bytes of the file."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardRecord(FileRecord):
    header: tuple[int, ...]
    """The words of the header up to the last that is not zero; negative ones as their value modulo 2^32."""
    tokens: int
    documents: int
    """BOS tokens."""


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    shards: tuple[ShardRecord, ...]
    tokens: int
    documents: int
    bytes: int | None
    """Bytes of text that all tokens stand for (`audit.octets`), null without a tokenizer."""
    root: str


@dataclass(frozen=True, kw_only=True)
class TokenizerRecord(FileRecord):
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    schema: int
    hashing: Hashing
    tokenizer: TokenizerRecord | None
    splits: dict[str, SplitRecord]
    others: tuple[FileRecord, ...]
    """Files beside the shards that belong to the data: sidecars, other *.bin and *.model files, data.json."""
    root: str

    def as_dict(self) -> dict[str, Any]:
        """Nested JSON values. `parse` is the inverse."""
        tree: dict[str, Any] = _listed(dataclasses.asdict(self))
        return tree

    def entries(self) -> list[tuple[str, FileRecord]]:
        """(what it serves as, record) of every file."""
        found: list[tuple[str, FileRecord]] = [(name, r) for name, split in self.splits.items() for r in split.shards]
        found += [("other", record) for record in self.others]
        return found + ([("tokenizer", self.tokenizer)] if self.tokenizer else [])


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How data differ from a manifest; no two manifests that differ have an empty one."""

    extra: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    def lines(self) -> list[str]:
        """`extra: NAME`, `missing: NAME`, `changed: NAME (what from → to)`; empty if nothing differs."""
        return [f"{kind}: {item}" for kind, items in dataclasses.asdict(self).items() for item in items]


def take(
    data: Data, *, hashing: Hashing | None = None, threads: int | None = None, progress: Progress | None = None
) -> Manifest:
    """The manifest of opened data; every file is read once, `threads` (default: all cores) side by side."""
    hashing = hashing or Hashing()
    octets = Octets.read(data.tokenizer) if data.tokenizer else None
    jobs: list[tuple[Path, Callable[[], Any]]] = [(path, partial(_file, path, progress)) for path in data.others]
    for split in data.splits.values():
        previous = hashing.bos
        for shard in split.shards:
            counter = Counter(octets, previous=previous) if octets else None
            jobs.append((shard.path, partial(_shard, shard, hashing, counter, progress)))
            previous = int(shard.tokens[-1]) if len(shard.tokens) else previous
    # The largest files first: one of them, started last, would keep one core busy and leave the others idle.
    with ThreadPoolExecutor(threads or CORES, thread_name_prefix="hash") as pool:
        waiting = {path: pool.submit(job) for path, job in sorted(jobs, key=lambda job: -_size(job[0]))}
        try:
            found = {path: future.result() for path, future in waiting.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    splits = {name: _split([found[shard.path] for shard in split.shards]) for name, split in data.splits.items()}
    tokenizer = None
    if data.tokenizer and octets:
        name, size, sha256 = data.tokenizer.name, octets.size, octets.sha256
        tokenizer = TokenizerRecord(name=name, size=size, sha256=sha256, vocab_size=octets.vocab_size)
    return _sealed(hashing, tokenizer, splits, tuple(found[path] for path in data.others))


def parse(value: Any, *, where: str) -> Manifest:
    """The manifest that a JSON value is. Raises ManifestError if it is damaged, has unknown keys, or sums or roots
    that its entries don't give.
    """
    remedy = "take it again with golf-audit hash"
    try:
        manifest = parse_tree(Manifest, value, where=where, remedy=remedy)
    except RunError as cause:
        raise ManifestError(str(cause)) from None
    if not any(split.shards for split in manifest.splits.values()):
        raise ManifestError(f"{where} names no shards, expected those of a data folder; {remedy}")
    known = {"schema": SCHEMA, "hashing": Hashing(bos=manifest.hashing.bos % (1 << 16))}
    for name, expected in known.items():
        if getattr(manifest, name) != expected:
            raise ManifestError(
                f"{where}: {name} is {getattr(manifest, name)}, this version knows {expected}; {remedy}"
            )
    names, digests = zip(*((record.name, record.sha256) for _, record in manifest.entries()), strict=True)
    if len(set(names)) != len(names) or not all(map(DIGEST.fullmatch, digests)):
        raise ManifestError(f"{where}: two files have one name, or a digest is not sha256:…; {remedy}")
    splits = {name: _split([(shard, 0) for shard in split.shards]) for name, split in manifest.splits.items()}
    splits = {name: dataclasses.replace(split, bytes=manifest.splits[name].bytes) for name, split in splits.items()}
    again = _sealed(manifest.hashing, manifest.tokenizer, splits, manifest.others)
    if again.as_dict() != value:
        odd = next(key for key in {**again.as_dict(), **value} if again.as_dict().get(key) != value.get(key))
        raise ManifestError(f"{where}: {odd} is not what the entries of the manifest give; {remedy}")
    return manifest


def compare(expected: Manifest, found: Manifest) -> Difference:
    """How `found` differs from `expected`: by its files, else by the totals of its splits, else by its root.

    What follows from something that is told already is not told again.
    """
    told = _difference(_files(expected), _files(found))
    if not told.lines():
        told = _difference(_totals(expected), _totals(found))
    keys = ("hashing",) if told.lines() else ("hashing", "root")
    last = ({"manifest": {key: manifest.as_dict()[key] for key in keys}} for manifest in (expected, found))
    return dataclasses.replace(told, changed=(*told.changed, *_difference(*last).changed))


def _files(manifest: Manifest) -> dict[str, dict[str, Any]]:
    return {record.name: {"role": role} | dataclasses.asdict(record) for role, record in manifest.entries()}


def _totals(manifest: Manifest) -> dict[str, dict[str, Any]]:
    keys = ("tokens", "documents", "bytes", "root")
    return {f"split {name}": {key: getattr(split, key) for key in keys} for name, split in manifest.splits.items()}


def _difference(before: Mapping[str, dict[str, Any]], after: Mapping[str, dict[str, Any]]) -> Difference:
    """The three-way difference of two tables of facts by name."""
    changed = []
    for name in before:
        if name in after and before[name] != after[name]:
            old, new = before[name], after[name]
            what = [f"{key} {old.get(key)} → {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]
            changed.append(f"{name} ({', '.join(what)})")
    return Difference(
        extra=tuple(name for name in after if name not in before),
        missing=tuple(name for name in before if name not in after),
        changed=tuple(changed),
    )


def check(expected: Manifest, folders: Sequence[Path], *, tokenizer: Path | None = None) -> Manifest:
    """The manifest of these folders, taken anew with the parameters of `expected`.

    Raises ManifestError with everything that is extra, missing or changed, also where a file can't be read as a shard.
    """
    where = ", ".join(str(folder) for folder in folders)
    try:
        found = take(open_data(folders, tokenizer=tokenizer), hashing=expected.hashing)
        different = compare(expected, found).lines()
    except SplitError as fault:
        different = _raw(expected, folders, tokenizer, str(fault).rpartition(";")[0])
    if different:
        raise ManifestError(f"{where} is not what the manifest says: {'; '.join(different)}; fetch or build it again")
    return found


def _raw(expected: Manifest, folders: Sequence[Path], tokenizer: Path | None, fault: str) -> list[str]:
    """How the files, whatever they hold, differ from a manifest in name, size and digest; one of them has a fault."""
    paths = [*data_files(folders), *([tokenizer] if tokenizer else [])]
    after = {path.name: dataclasses.asdict(_file(path, None)) for path in paths}
    before = {
        record.name: {"name": record.name, "size": record.size, "sha256": record.sha256}
        for _, record in expected.entries()
    }
    lines = _difference(before, after).lines()
    for path in paths:
        what = fault.removeprefix(f"{path}: ")
        for i, line in enumerate(lines):
            if what != fault and line.partition(": ")[2].partition(" (")[0] == path.name:
                lines[i] = f"{line.removesuffix(')')}; {what})" if line.endswith(")") else f"{line} ({what})"
                return lines
    return [*lines, fault]


def table(manifest: Manifest) -> list[str]:
    """The manifest as a few lines for a person."""
    head = ("split", "shards", "tokens", "documents", "text bytes", "bytes/token", "root")
    rows = [head]
    for name, split in manifest.splits.items():
        share = "–" if split.bytes is None or not split.tokens else f"{split.bytes / split.tokens:.7f}"
        octets = "–" if split.bytes is None else f"{split.bytes:,}"
        rows.append(
            (name, str(len(split.shards)), f"{split.tokens:,}", f"{split.documents:,}", octets, share, split.root)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{r[0]:<{widths[0]}}  " + "  ".join(f"{c:>{w}}" for c, w in zip(r[1:], widths[1:], strict=True)) for r in rows
    ]
    if manifest.tokenizer:
        model = manifest.tokenizer
        lines.append(f"tokenizer {model.name}, {model.vocab_size:,} pieces, {model.sha256}")
    lines += [f"beside them {record.name}, {record.size:,} bytes, {record.sha256}" for record in manifest.others]
    return [*lines, f"root {manifest.root}"]


def _file(path: Path, progress: Progress | None) -> FileRecord:
    """Size and digest of any file."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as stream:
        for part in _parts(stream, path, progress):
            digest.update(part)
            size += len(part)
    return FileRecord(name=path.name, size=size, sha256="sha256:" + digest.hexdigest())


def _shard(
    shard: Shard, hashing: Hashing, counter: Counter | None, progress: Progress | None
) -> tuple[ShardRecord, int | None]:
    """The record of a shard and its bytes of text, all from the same reading of the file."""
    digest, size, documents = hashlib.sha256(), 0, 0
    with open_regular(shard.path) as stream:
        header, count = read_header(stream, shard.path)
        stream.seek(0)
        digest.update(stream.read(HEADER_BYTES))
        for part in _parts(stream, shard.path, progress):
            digest.update(part)
            size += len(part)
            ids = np.frombuffer(part[: len(part) // 2 * 2], dtype="<u2")
            documents += int(np.count_nonzero(ids == hashing.bos))
            if counter:
                try:
                    counter.add(ids)
                except SplitError as cause:
                    raise SplitError(f"{shard.path}: {cause}") from None
    if (header, size) != (shard.header, 2 * count):
        raise SplitError(f"{shard.path} changed while it was read; let no one write there, and run again")
    record = ShardRecord(
        name=shard.name,
        size=HEADER_BYTES + size,
        sha256="sha256:" + digest.hexdigest(),
        header=header,
        tokens=count,
        documents=documents,
    )
    return record, counter.octets if counter else None


def _parts(stream: BinaryIO, path: Path, progress: Progress | None) -> Iterator[memoryview]:
    """A file from where it stands to its end, in parts of an even number of bytes but the last; each part overwrites
    the one before.
    """
    buffer = memoryview(bytearray(BUFFER))
    try:
        while length := stream.readinto(buffer):  # type: ignore[attr-defined]
            yield buffer[:length]
            if progress:
                progress(length)
    except OSError as cause:
        raise SplitError(f"can't read {path}: {cause.strerror}; fetch or build it again") from None


def _split(measured: Sequence[tuple[ShardRecord, int | None]]) -> SplitRecord:
    """The record of shards in their order, each with its bytes of text."""
    shards = tuple(record for record, _ in measured)
    counted = [octets for _, octets in measured if octets is not None]
    leaves = [merkle.leaf("shard", [s.name, s.size, s.tokens, s.documents, s.sha256, *s.header]) for s in shards]
    return SplitRecord(
        shards=shards,
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        bytes=sum(counted) if len(counted) == len(shards) else None,
        root="sha256:" + merkle.root("split", leaves).hex(),
    )


def _sealed(
    hashing: Hashing, tokenizer: TokenizerRecord | None, splits: dict[str, SplitRecord], others: tuple[FileRecord, ...]
) -> Manifest:
    """A manifest with its root."""
    leaves = [merkle.leaf("hashing", [hashing.algorithm, hashing.format, hashing.bos])]
    for name, split in splits.items():
        counted = "unknown" if split.bytes is None else split.bytes
        about: list[str | int] = [name, len(split.shards), split.tokens, split.documents, counted, split.root]
        leaves.append(merkle.leaf("split", about))
    if tokenizer:
        leaves.append(
            merkle.leaf("tokenizer", [tokenizer.name, tokenizer.size, tokenizer.vocab_size, tokenizer.sha256])
        )
    leaves += [merkle.leaf("other", [record.name, record.size, record.sha256]) for record in others]
    root = "sha256:" + merkle.root("data", leaves).hex()
    return Manifest(schema=SCHEMA, hashing=hashing, tokenizer=tokenizer, splits=splits, others=others, root=root)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # reading it gives the error that names it


def _listed(value: Any) -> Any:
    """JSON values with lists for tuples."""
    if isinstance(value, dict):
        return {name: _listed(item) for name, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
