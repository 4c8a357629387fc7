"""From documents to a data set: tokenizer, token shards, facts; and back, checked.

Data flow of `build`: documents → split (the first N are validation; repeated ones leave training) → tokenizer, trained
on training documents alone → shards → `data.json`, written last: a folder with it is complete. The published export
comes tokenized (`trainer.hub`) and takes the last two steps only. `DataSet.open` maps the shards and checks them
against `data.json` and the recipe.

"Bytes" are UTF-8 bytes of normalized text, the denominator of bits per byte; "original" ones are counted before
normalization. Both are written down, so that a score can be given per original byte too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer import bigram, corpus, hub, tokenizer
from trainer.errors import DataError
from trainer.files import read_json, sha256_file, write_json
from trainer.runlog import RunLog
from trainer.settings import VIRTUAL_RANKS, Recipe
from trainer.shards import Shard, chunks, read_shard, write_shard
from trainer.tokenizer import BOS, ByteTable, Tokenizer

SCHEMA = 1
TOKENIZER = "tokenizer.model"
FACTS = "data.json"


def build(recipe: Recipe, out: Path, *, log: RunLog | None = None, source: hub.Hub | None = None) -> dict[str, Any]:
    """Write tokenizer, shards and `data.json` into `out`, an empty or new folder; the facts, and `digest` of data.json.

    `source` stands in for the hub. Raises DataError if `out` holds files, and for whatever is wrong with the documents.
    """
    log = log or RunLog(None, stage="data", seed=None)
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty; empty it or build into another folder")
    out.mkdir(parents=True, exist_ok=True)
    facts = _build_export(recipe, out, log, source) if recipe.corpus.source == "fineweb" else _build(recipe, out, log)
    write_json(out / FACTS, facts)
    return facts | {"digest": sha256_file(out / FACTS)}


@dataclasses.dataclass
class _Text:
    """A document, and its UTF-8 bytes before and after normalization."""

    text: str
    original_bytes: int
    bytes: int


def _split(texts: Iterable[str], *, validation: int) -> tuple[list[_Text], list[_Text], int]:
    """Training documents, the first `validation` documents, and how many repeated ones were left out of training.

    A document is repeated if an earlier one of either split has the same normalized text; validation keeps its own.
    Documents without any normalized text are left out.
    """
    train: list[_Text] = []
    val: list[_Text] = []
    seen: set[bytes] = set()
    dropped = 0
    for text in texts:
        normalized = tokenizer.normalize(text).encode()
        if not normalized:
            continue
        key = hashlib.sha256(normalized).digest()
        document = _Text(text, len(text.encode()), len(normalized))
        if len(val) < validation:
            val.append(document)
        elif key in seen:
            dropped += 1
        else:
            train.append(document)
        seen.add(key)
    return train, val, dropped


def _build(recipe: Recipe, out: Path, log: RunLog) -> dict[str, Any]:
    """Own documents, from text to shards."""
    with log.phase("documents"):
        train, val, dropped = _split(corpus.documents(recipe.corpus), validation=recipe.corpus.validation_documents)
    shards = max(recipe.corpus.train_shards, VIRTUAL_RANKS)
    if len(train) < shards:
        raise DataError(
            f"got {len(val)} validation and {len(train)} training documents, expected at least {shards} for training, "
            "one a shard; give more documents or lower corpus.validation_documents or corpus.train_shards"
        )
    log.line(f"{len(val):,} validation and {len(train):,} training documents, {dropped} repeated ones left out")
    sample = [document.text for document in train[: recipe.tokens.sample_documents]]
    with log.phase("tokenizer"):
        tokenizer.train(sample, out / TOKENIZER, vocab_size=recipe.tokens.vocab_size)
    tokens = Tokenizer.load(out / TOKENIZER)
    log.line(f"tokenizer of {tokens.vocab_size} pieces, trained on {len(sample):,} training documents")
    with log.phase("encode"):
        ids = tokens.encode_all([document.text for document in val])
        kept = _documents_within(np.array([len(row) for row in ids]), recipe.corpus.max_validation_tokens)
        write_shard(out / "val_000000.bin", np.concatenate(ids[:kept]))
        for number in range(shards):
            part = train[len(train) * number // shards : len(train) * (number + 1) // shards]
            rows = tokens.encode_all([document.text for document in part])
            write_shard(out / f"train_{number:06}.bin", np.concatenate(rows))
    splits = {
        "train": _split_facts(sorted(out.glob("train_*.bin")), tokens, texts=train),
        "val": _split_facts([out / "val_000000.bin"], tokens, texts=val[:kept]),
    }
    return _facts(recipe, out, tokens, splits, log, cut=kept < len(val), dropped=dropped)


def _build_export(recipe: Recipe, out: Path, log: RunLog, source: hub.Hub | None) -> dict[str, Any]:
    """The published export: fetched or found, verified, linked into `out`.

    `corpus.validation_documents` and `max_validation_tokens` can cut validation; `corpus.documents` has no meaning.
    Nothing is dropped from training, and whether documents of the splits are equal is left to the audit.
    """
    with log.phase("fetch"):
        if recipe.corpus.path:
            export = hub.local(recipe, Path(recipe.corpus.path))
        else:
            export = hub.fetch(recipe, out.parent / "hub", hub=source or _real_hub(), log=log)
    with log.phase("shards"):
        _link(export.tokenizer, out / TOKENIZER)
        tokens = Tokenizer.load(out / TOKENIZER)
        _check_vocabulary(tokens, recipe)
        cut = _place_validation(recipe, export, out, tokens)
        for path in export.train:
            _link(path, out / path.name)
        splits = {
            split: _split_facts(sorted(out.glob(f"fineweb_{split}_*.bin")), tokens, log=log)
            for split in ("train", "val")
        }
    facts = _facts(recipe, out, tokens, splits, log, cut=cut, dropped=None)
    return facts | {
        "export": {"repository": hub.REPOSITORY, "revision": export.revision, "manifest": dict(export.stats)}
    }


def _real_hub() -> hub.Hub:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise DataError("huggingface_hub is not installed; install it, or set corpus.path to a local copy") from None
    api: hub.Hub = HfApi()
    return api


def _place_validation(recipe: Recipe, export: hub.Export, out: Path, tokens: Tokenizer) -> bool:
    """Link the validation shards, or write the leading documents that the recipe keeps; whether there was a cut."""
    parts = [read_shard(path, vocab_size=tokens.vocab_size) for path in export.val]
    stream = np.concatenate(parts)
    starts = np.flatnonzero(stream == BOS)
    if not len(starts) or starts[0]:
        raise DataError(
            f"{export.val[0].name} doesn't start with BOS = {BOS}, expected whole documents; fetch it again"
        )
    hub.check_counts(export, tokens=len(stream), documents=len(starts))
    lengths = np.diff(starts, append=len(stream))[: recipe.corpus.validation_documents]
    kept = _documents_within(lengths, recipe.corpus.max_validation_tokens)
    if kept == len(starts):
        for path in export.val:
            _link(path, out / path.name)
    else:
        write_shard(out / export.val[0].name, stream[: starts[kept]])
    return bool(kept < len(starts))


def _documents_within(lengths: np.ndarray, max_tokens: int) -> int:
    """How many leading documents of these lengths hold at most `max_tokens` tokens (0 = no limit)."""
    kept = int(np.searchsorted(np.cumsum(lengths), max_tokens, side="right")) if max_tokens else len(lengths)
    if not kept:
        raise DataError(
            f"corpus.max_validation_tokens = {max_tokens} is less than the first validation document's "
            f"{lengths[0] if len(lengths) else 0} tokens; raise it"
        )
    return kept


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _split_facts(
    paths: Sequence[Path], tokens: Tokenizer, *, texts: Sequence[_Text] | None = None, log: RunLog | None = None
) -> dict[str, Any]:
    """What the shards of one split hold, by reading them; compared with the texts they were made from."""
    shards: list[dict[str, Any]] = []
    total, documents, counted, previous = 0, 0, 0, BOS
    for number, path in enumerate(paths, start=1):
        stream = read_shard(path, vocab_size=tokens.vocab_size)
        shards.append({"name": path.name, "tokens": len(stream), "sha256": sha256_file(path)})
        total += len(stream)
        documents += sum(int(np.count_nonzero(part == BOS)) for _, part in chunks(stream))
        counted += tokens.byte_table.total(stream, previous=previous)
        previous = int(stream[-1]) if len(stream) else previous
        if log:
            log.line(f"shard {number} of {len(paths)}: {path.name}, {len(stream):,} tokens")
    original = None
    if texts is not None:
        original, expected = sum(text.original_bytes for text in texts), sum(text.bytes for text in texts)
        if (documents, counted) != (len(texts), expected):
            raise DataError(
                f"{paths[0].name} and following spell {documents} documents of {counted} bytes, expected "
                f"{len(texts)} of {expected} bytes after normalization; train the tokenizer on other documents"
            )
    return {"shards": shards, "documents": documents, "tokens": total, "bytes": counted, "original_bytes": original}


def _facts(
    recipe: Recipe,
    out: Path,
    tokens: Tokenizer,
    splits: dict[str, dict[str, Any]],
    log: RunLog,
    *,
    cut: bool,
    dropped: int | None,
) -> dict[str, Any]:
    """The content of data.json."""
    streams = {name: [read_shard(out / shard["name"]) for shard in split["shards"]] for name, split in splits.items()}
    with log.phase("bigram"):
        bar = bigram.bits_per_byte(streams["train"], streams["val"], table=tokens.byte_table)
    originals = [split["original_bytes"] for split in splits.values()]
    normalized = sum(split["bytes"] for split in splits.values())
    return {
        "schema": SCHEMA,
        "source": recipe.corpus.source,
        "tokenizer": {"name": TOKENIZER, "sha256": tokens.sha256, "vocab_size": tokens.vocab_size},
        "splits": splits,
        "validation_cut": cut,
        "duplicates_dropped": dropped,
        "normalized_share": None if None in originals else normalized / sum(originals),
        "bigram_val_bpb": round(bar, 9),  # what differs between machines' logarithms lies further down
    }


def _check_vocabulary(tokens: Tokenizer, recipe: Recipe) -> None:
    if tokens.vocab_size != recipe.tokens.vocab_size:
        raise DataError(
            f"the tokenizer has {tokens.vocab_size} pieces, tokens.vocab_size is {recipe.tokens.vocab_size}; "
            "run the data stage again with this recipe"
        )


@dataclasses.dataclass(frozen=True)
class DataSet:
    """An opened data set; `digest` is `sha256:…` of its data.json, `facts` that file's content."""

    train: tuple[Shard, ...]
    val: tuple[Shard, ...]
    byte_table: ByteTable
    facts: dict[str, Any]
    digest: str

    @property
    def training_digest(self) -> str:
        """`training_digest` of the facts."""
        return training_digest(self.facts)

    @classmethod
    def open(
        cls,
        directory: Path,
        recipe: Recipe,
        *,
        splits: Sequence[str] = ("train", "val"),
        ids: bool = True,
        verify: bool = False,
    ) -> DataSet:
        """Map the shards of `splits` (the others aren't opened and stay empty) after checking them.

        Checked are the recipe's source and vocabulary, the tokenizer's SHA-256, each shard's header and count, and that
        there is text for one sequence in every virtual rank; with `ids` that every id is in the vocabulary (all bytes
        are read: of several ranks, one does it); with `verify` each shard's SHA-256. Raises DataError.
        """
        path = directory / FACTS
        facts = read_json(path, remedy="run the data stage")
        try:
            if facts["schema"] != SCHEMA:
                raise DataError(f"{path}: got schema {facts['schema']!r}, expected {SCHEMA}; run the data stage again")
            float(facts["bigram_val_bpb"])
            if facts["source"] != recipe.corpus.source:
                raise DataError(
                    f"{path} is of corpus.source {facts['source']}, the recipe says {recipe.corpus.source}; "
                    "run the data stage again with this recipe"
                )
            tokens = Tokenizer.load(directory / TOKENIZER)
            _check_vocabulary(tokens, recipe)
            if tokens.sha256 != facts["tokenizer"]["sha256"]:
                raise DataError(
                    f"{directory / TOKENIZER} has {tokens.sha256}, {FACTS} says {facts['tokenizer']['sha256']}; "
                    "run the data stage again"
                )
            opened = {
                split: tuple(
                    _open_shard(directory, entry, vocab_size=tokens.vocab_size if ids else None, verify=verify)
                    for entry in facts["splits"][split]["shards"]
                )
                for split in splits
            }
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: {type(error).__name__} {error}; run the data stage again") from None
        _check_windows(opened, length=recipe.train.sequence_length)
        return cls(opened.get("train", ()), opened.get("val", ()), tokens.byte_table, facts, sha256_file(path))


def training_digest(facts: Mapping[str, Any]) -> str:
    """`sha256:…` of what weights can come from: the tokenizer's digest; names, counts and digests of training shards.

    It stays the same with other validation text, so it may stand in an artifact.
    """
    seen = [facts["tokenizer"]["sha256"], facts["splits"]["train"]["shards"]]
    return "sha256:" + hashlib.sha256(json.dumps(seen, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _open_shard(directory: Path, entry: Any, *, vocab_size: int | None, verify: bool) -> Shard:
    """One shard of data.json, checked."""
    name = str(entry["name"])
    if Path(name).name != name:
        raise DataError(
            f"{FACTS} names the shard {name!r}, expected a file name without folders; run the data stage again"
        )
    path = directory / name
    tokens = read_shard(path, vocab_size=vocab_size)
    if len(tokens) != entry["tokens"]:
        raise DataError(f"{path} has {len(tokens)} tokens, {FACTS} says {entry['tokens']}; run the data stage again")
    if verify and sha256_file(path) != entry["sha256"]:
        raise DataError(f"{path} is not the file of {FACTS}, by SHA-256 ({entry['sha256']}); run the data stage again")
    return Shard(name, tokens)


def _check_windows(opened: dict[str, tuple[Shard, ...]], *, length: int) -> None:
    """Every virtual rank needs a window of `length` + 1 training tokens at any phase, validation needs one.

    Ranks own shards where there are at least 8, else every eighth window of each shard (`trainer.loader`).
    """
    for split, shards in opened.items():
        counts = [len(shard.tokens) for shard in shards]
        windows = [max(count // length - 1, 0) for count in counts]
        if split == "val":
            enough = sum(counts) > length
        elif len(shards) >= VIRTUAL_RANKS:
            enough = all(sum(windows[rank::VIRTUAL_RANKS]) for rank in range(VIRTUAL_RANKS))
        else:
            enough = max(windows, default=0) >= VIRTUAL_RANKS
        if not enough:
            raise DataError(
                f"{split}: {sum(counts)} tokens in {len(counts)} shards are not enough for one batch of sequences of "
                f"{length} + 1 tokens; use more documents or a smaller train.sequence_length"
            )
