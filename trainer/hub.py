"""The published, pre-tokenized FineWeb export: find, download, verify.

The export of V pieces holds `datasets/fineweb10B_sp<V>/fineweb_{train,val}_*.bin`, `tokenizers/fineweb_<V>_bpe.model`
and usually a `manifest.json` with counts (data/README.md of openai/parameter-golf), at the top of the repository or of
a folder, or below `datasets/`. `fetch` downloads what the recipe asks for into a cache folder and gives it back as an
`Export`; `local` finds the same in a folder that is there. Both check names, sizes and the manifest's counts; a
download is also checked against the SHA-256 that the hub lists for it, and is pinned to one revision.

Interrupted downloads go on where they stopped: files that are whole are kept, the rest is left to `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.errors import DataError, ResourceError
from trainer.files import read_json, sha256_file
from trainer.runlog import RunLog
from trainer.settings import Recipe

REPOSITORY = "kevclark/parameter-golf"
ROOTS = ("", "datasets/")


class Hub(Protocol):
    """What is used of `huggingface_hub.HfApi`."""

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any: ...

    def list_repo_tree(self, repo_id: str, *, recursive: bool, revision: str, repo_type: str) -> Iterable[Any]: ...

    def hf_hub_download(
        self, repo_id: str, filename: str, *, repo_type: str, revision: str, local_dir: Path
    ) -> object: ...


@dataclasses.dataclass(frozen=True)
class Export:
    """Files of an export: tokenizer, shards in order, the manifest's numbers for it, the revision it was fetched at."""

    tokenizer: Path
    train: list[Path]
    val: list[Path]
    stats: Mapping[str, Any]
    revision: str | None


def fetch(recipe: Recipe, cache: Path, *, hub: Hub, log: RunLog) -> Export:
    """Download tokenizer, validation and the first `corpus.train_shards` training shards into `cache`.

    Raises DataError if the hub can't be reached, lacks a file, or a file isn't the one that the hub lists, and
    ResourceError for a full disk.
    """
    with _reported():
        revision = str(hub.repo_info(REPOSITORY, repo_type="dataset").sha)
        tree = list(hub.list_repo_tree(REPOSITORY, recursive=True, revision=revision, repo_type="dataset"))
    listed = {entry.path: entry for entry in tree if hasattr(entry, "size")}
    paths = _select(listed, recipe, where=f"{REPOSITORY} on the hub")
    for number, name in enumerate(paths.all, start=1):
        target = cache / name
        if not _is_listed(target, listed[name]):
            log.line(f"file {number} of {len(paths.all)}: {name}, {listed[name].size / 1e6:.1f} MB")
            target.unlink(missing_ok=True)
            with _reported():
                hub.hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=revision, local_dir=cache)
            _refuse_other(target, listed[name])
    return paths.export(cache, recipe, revision=revision)


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Whatever the hub's client raises as a DataError: its errors share no class, and change with its version."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError("no space left for the download; free some and run again, it goes on") from error
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"download from {REPOSITORY} failed: {type(error).__name__}: {reason}; run again, it goes on where it "
            "stopped, or set corpus.path to a local copy"
        ) from error


def local(recipe: Recipe, folder: Path) -> Export:
    """The same files in a folder with the export's layout. Raises DataError if one is missing."""
    names = [
        path.relative_to(folder).as_posix()
        for root in ROOTS
        for pattern in ("manifest.json", "datasets/*/*.bin", "tokenizers/*.model")
        for path in sorted((folder / root).glob(pattern))
    ]
    return _select(names, recipe, where=str(folder)).export(folder, recipe, revision=None)


@dataclasses.dataclass(frozen=True)
class _Paths:
    """Relative paths of the files that a recipe needs."""

    tokenizer: str
    train: list[str]
    val: list[str]
    manifest: str | None

    @property
    def all(self) -> list[str]:
        return [*([self.manifest] if self.manifest else []), self.tokenizer, *self.val, *self.train]

    def export(self, folder: Path, recipe: Recipe, *, revision: str | None) -> Export:
        stats = _stats(folder / self.manifest, recipe) if self.manifest else {}
        _check(stats, "files_val", len(self.val))
        train, val = ([folder / name for name in names] for names in (self.train, self.val))
        return Export(folder / self.tokenizer, train, val, stats, revision)


def _select(names: Iterable[str], recipe: Recipe, *, where: str) -> _Paths:
    """The files of the recipe's export among `names`: all of validation, the first `train_shards` of training."""
    available, size, wanted = set(names), recipe.tokens.vocab_size, recipe.corpus.train_shards
    for root in ROOTS:
        folder, tokenizer = f"{root}datasets/fineweb10B_sp{size}", f"{root}tokenizers/fineweb_{size}_bpe.model"
        train, val = (
            sorted(name for name in available if re.fullmatch(rf"{folder}/fineweb_{split}_\d+\.bin", name))
            for split in ("train", "val")
        )
        if not train and not val:
            continue
        if tokenizer not in available or not val or len(train) < wanted:
            raise DataError(
                f"{where}: {folder} has {len(train)} training and {len(val)} validation shards and its tokenizer is "
                f"{'there' if tokenizer in available else 'missing'}; expected {wanted} training shards, validation "
                f"and {tokenizer}; complete the copy or set corpus.train_shards={len(train)}"
            )
        manifest = f"{root}manifest.json"
        return _Paths(tokenizer, train[:wanted], val, manifest if manifest in available else None)
    exports = sorted({name.rpartition("/")[0] for name in available if name.endswith(".bin")})
    raise DataError(
        f"{where}: no export datasets/fineweb10B_sp{size}, found {', '.join(exports) or 'none'}; "
        "set tokens.vocab_size to a published one or corpus.path to a copy"
    )


def _is_listed(path: Path, entry: Any) -> bool:
    """Whether a file has the size and, where the hub lists one, the SHA-256 of its entry."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    lfs = getattr(entry, "lfs", None)
    return lfs is None or sha256_file(path) == f"sha256:{lfs.sha256}"


def _refuse_other(path: Path, entry: Any) -> None:
    """Remove a download that isn't what the hub lists, so that the next run fetches it anew, and raise DataError."""
    if not _is_listed(path, entry):
        size = path.stat().st_size if path.is_file() else 0
        path.unlink(missing_ok=True)
        raise DataError(
            f"{path.name}: got {size} bytes that are not the {entry.size} bytes the hub lists, by size or SHA-256; "
            "removed, run again to fetch it anew"
        )


def _stats(path: Path, recipe: Recipe) -> dict[str, Any]:
    """The numbers that the manifest gives for the recipe's export; none if it doesn't name it (some are stale)."""
    manifest = read_json(path, remedy="fetch it again, or remove it: it is optional")
    datasets = manifest.get("datasets") if isinstance(manifest, dict) else None
    for entry in datasets if isinstance(datasets, list) else []:
        if isinstance(entry, dict) and entry.get("name") == f"fineweb10B_sp{recipe.tokens.vocab_size}":
            stats = entry.get("stats")
            return stats if isinstance(stats, dict) else {}
    return {}


def _check(stats: Mapping[str, Any], key: str, found: int) -> None:
    if key in stats and stats[key] != found:
        raise DataError(f"manifest.json of the export says {key} = {stats[key]!r}, found {found}; fetch it again")


def check_counts(export: Export, *, tokens: int, documents: int) -> None:
    """Raises DataError if the manifest gives other numbers of validation tokens and documents than those found."""
    _check(export.stats, "tokens_val", tokens)
    _check(export.stats, "docs_val", documents)
