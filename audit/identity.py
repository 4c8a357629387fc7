"""What the data of a run are, written down once and held against the files later.

Data flow: data folders → `take` → manifest (`audit.manifest`) and, if asked for, the overlap of training and validation
(`audit.overlap`) → two JSON files side by side; `read` takes both, hashes the data folder anew, and recognises the
contest's published splits by their counts → `evidence.Identity`, which rule DATA judges. Measuring the overlap is the
costly part and the same for all seeds, so it is done once and only read again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audit import manifest, overlap
from audit.errors import ManifestError
from audit.evidence import Identity, Overlap
from audit.files import read_json, sha256_file, to_json, write_text
from audit.manifest import Manifest
from audit.published import recognise
from audit.ruleset import Ruleset
from audit.splits import Data, open_data
from audit.trees import parse

OVERLAP = "overlap.json"
"""Stands beside the manifest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pattern:
    length: int
    first: int | None
    contiguous: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Overlap:
    """The part of overlap.json that a rule needs, and what ties it to a manifest."""

    root: str
    share: float
    equal_documents: int
    pattern: _Pattern


def measured(data: Data, taken: Manifest) -> dict[str, Any]:
    """The overlap of the two splits as JSON values, under the root of the manifest that it was measured with."""
    return {"root": taken.root} | overlap.measure(data.split("train"), data.split("val")).as_dict()


def describe(shared: Mapping[str, Any]) -> str:
    """The overlap in one line."""
    pattern = shared["pattern"]
    return (
        f"{shared['share']:.4%} of the validation tokens stand in training too (runs of {shared['run']} or more); "
        f"{shared['equal_documents']:,} documents are equal, {pattern['length']:,} overlapping ones in a row at most"
    )


def write(path: Path, taken: Manifest, shared: dict[str, Any] | None) -> None:
    """Write the manifest, and beside it the overlap if there is one. Raises OutputError."""
    if shared is not None:
        write_text(path.with_name(OVERLAP), to_json(shared))
    write_text(path, to_json(taken.as_dict()))


def read(folder: Path, data: Sequence[Path], ruleset: Ruleset, *, facts: Path) -> Identity:
    """The data of a run by what `write` left in `folder` (or a manifest there) and by the files of `data` as they are.

    `facts` is what the run calls its data (data.json); its digest is theirs. Raises ManifestError, RunError or
    SplitError for files that can't be read; data that differ from their manifest are a fact for the rules.
    """
    path = folder if folder.is_file() else folder / "manifest.json"
    remedy = f"run `golf-audit hash --overlap -o {path} {' '.join(map(str, data))}`"
    expected = manifest.parse(read_json(path, remedy=remedy), where=str(path))
    found = manifest.take(open_data(data), hashing=expected.hashing)
    known = recognise(found, ruleset.published_splits)
    return Identity(
        digest=sha256_file(facts, remedy="give the data folder of the run with --data"),
        root=found.root,
        differences=tuple(manifest.compare(expected, found).lines()),
        published=known.name if known.recognised else "",
        published_differences=known.differences,
        published_overlap=known.overlap_share if known.recognised else None,
        overlap=_read_overlap(path.with_name(OVERLAP), expected, remedy),
    )


def _read_overlap(path: Path, expected: Manifest, remedy: str) -> Overlap | None:
    if not path.exists():
        return None
    found = parse(_Overlap, read_json(path, remedy=remedy), where=str(path), remedy=remedy)
    if found.root != expected.root:
        raise ManifestError(
            f"{path} was measured on data of root {found.root}, the manifest has {expected.root}; {remedy}"
        )
    return Overlap(
        share=found.share,
        documents=found.equal_documents,
        contiguous=found.pattern.contiguous,
        first=found.pattern.first,
        stretch=found.pattern.length,
    )
