"""The data that the programs run on, in the pipeline's own form, and what entries change in them.

`build` makes `data/`: 8 training shards, one validation shard, a SentencePiece model of 384 pieces and data.json; and
`identity/`, the audit's manifest and overlap of them. `copied` gives a run its own folders of hard links, in which a
plant replaces shards; what describes the data is then made anew, or not.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from audit import identity, manifest
from audit.splits import open_data
from tests.toy import toy_recipe
from trainer import corpus, data
from trainer.shards import read_shard, write_shard

BOS = 1
TRAIN, VAL = "train_000003.bin", "val_000000.bin"


def build(folder: Path) -> None:
    """Beginnings of generated documents: 40 for validation (5,350 tokens), 417 for training (55,747)."""
    texts = [text[:200] for text in corpus.documents(toy_recipe(corpus__documents=460).corpus)]
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = {"corpus.source": "jsonl", "corpus.path": str(source), "corpus.documents": 0}
    settings |= {"corpus.validation_documents": 40, "tokens.vocab_size": 384}
    data.build(toy_recipe(**settings), folder / "data")
    _describe(folder)


def copied(source: Path, target: Path) -> None:
    """Hard links to the files of `build`'s folders; whoever changes a file replaces it."""
    for name in ("data", "identity"):
        (target / name).mkdir(parents=True)
        for path in (source / name).iterdir():
            os.link(path, target / name / path.name)


def val_documents_in_train(folder: Path) -> None:
    """The first twelve validation documents, appended to a training shard."""
    _append(folder, _documents(folder / "data" / VAL)[:12])


def more_train_documents(folder: Path) -> None:
    """Twelve documents of another training shard, appended to the same one."""
    _append(folder, _documents(folder / "data" / "train_000000.bin")[:12])


def easy_validation(folder: Path) -> None:
    """Training text under the name of the validation shard; nobody says so in data.json."""
    val = folder / "data" / VAL
    text = np.concatenate([read_shard(path) for path in sorted(val.parent.glob("train_*.bin"))])
    _replace(val, text[: len(read_shard(val))])


def _documents(path: Path) -> list[np.ndarray]:
    tokens = read_shard(path)
    return np.split(tokens, np.flatnonzero(tokens == BOS)[1:])


def _append(folder: Path, documents: list[np.ndarray]) -> None:
    """Documents at the end of a training shard, which data.json and the manifest then describe truly."""
    path = folder / "data" / TRAIN
    _replace(path, np.concatenate([read_shard(path), *documents]))
    facts = json.loads((folder / "data" / "data.json").read_text())
    split = facts["splits"]["train"]
    split["documents"] += len(documents)
    split["tokens"] += sum(len(document) for document in documents)
    shard = next(shard for shard in split["shards"] if shard["name"] == TRAIN)
    shard["tokens"] = len(read_shard(path))
    shard["sha256"] = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "data" / "data.json").unlink()
    (folder / "data" / "data.json").write_text(json.dumps(facts))
    _describe(folder)


def _describe(folder: Path) -> None:
    """The manifest and the overlap of the data, as they are now."""
    found = open_data([folder / "data"])
    taken = manifest.take(found)
    identity.write(folder / "identity" / "manifest.json", taken, identity.measured(found, taken))


def _replace(path: Path, tokens: np.ndarray) -> None:
    kept = np.array(tokens, dtype=np.uint16)
    path.unlink()
    write_shard(path, kept)
