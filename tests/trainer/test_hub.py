"""The published export: found, fetched, resumed, verified, refused; with a stand-in and with the real client."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer import data, hub, tokenizer
from trainer.corpus import documents
from trainer.data import DataSet
from trainer.errors import DataError, ResourceError
from trainer.files import sha256_file
from trainer.recipe import resolve
from trainer.runlog import RunLog
from trainer.settings import Corpus, Recipe
from trainer.shards import read_shard, write_shard

FOLDER = "datasets/fineweb10B_sp400"
SHARDS = 9
TEXTS = list(documents(Corpus(source="embedded", documents=100)))
QUIET = RunLog(None, stage="data", seed=None)


def recipe(**changes: Any) -> Recipe:
    keys = {"corpus.train_shards": SHARDS, "tokens.vocab_size": 400, "train.sequence_length": 64}
    return resolve({"scale": "cpu", "corpus.source": "fineweb"} | keys | changes)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small export in the published layout: 10 validation documents in two shards, 90 training ones in nine.

    As in the real one, shards are cut inside documents.
    """
    root = tmp_path_factory.mktemp("export")
    (root / "tokenizers").mkdir()
    model = root / "tokenizers/fineweb_400_bpe.model"
    tokenizer.train(TEXTS[10:], model, vocab_size=400)
    rows = tokenizer.Tokenizer.load(model).encode_all(TEXTS)
    for split, texts, count in (("val", rows[:10], 2), ("train", rows[10:], SHARDS)):
        for number, part in enumerate(np.array_split(np.concatenate(texts), count)):
            write_shard(root / FOLDER / f"fineweb_{split}_{number:06}.bin", part)
    tokens = sum(len(row) for row in rows[:10])
    stats = {"files_train": SHARDS, "files_val": 2, "docs_val": 10, "tokens_val": tokens}
    manifest = {"version": "1", "datasets": [{"name": "other"}, {"name": "fineweb10B_sp400", "stats": stats}]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


class StandIn:
    """The hub's three functions over a folder. `breaks` names a file whose first download stops half way.

    Like the real client it leaves a file alone that it believes to have, whatever it holds.
    """

    def __init__(self, root: Path, *, breaks: str = "", corrupts: str = "", prefix: str = "") -> None:
        self.root, self.breaks, self.corrupts, self.prefix = root, breaks, corrupts, prefix
        self.asked: list[str] = []
        self.sent = 0

    def repo_info(self, repo_id: str, *, repo_type: str) -> Any:
        assert (repo_id, repo_type) == ("kevclark/parameter-golf", "dataset")
        return types.SimpleNamespace(sha="c0ffee")

    def list_repo_tree(self, repo_id: str, *, recursive: bool, revision: str, repo_type: str) -> Iterator[Any]:
        assert recursive
        assert revision == "c0ffee"
        yield types.SimpleNamespace(path=self.prefix + "datasets", tree_id="0")
        for path in sorted(self.root.rglob("*.*")):
            if path.is_file():
                sha = hashlib.sha256(path.read_bytes()).hexdigest()
                lfs = types.SimpleNamespace(sha256=sha) if path.suffix != ".json" else None
                name = self.prefix + path.relative_to(self.root).as_posix()
                yield types.SimpleNamespace(path=name, size=path.stat().st_size, lfs=lfs)

    def hf_hub_download(self, repo_id: str, filename: str, *, repo_type: str, revision: str, local_dir: Path) -> object:
        assert revision == "c0ffee"
        self.asked.append(filename)
        content = (self.root / filename.removeprefix(self.prefix)).read_bytes()
        target = local_dir / filename
        if target.exists():
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".incomplete")
        start = partial.stat().st_size if partial.exists() else 0
        stop = len(content) // 2 if self.breaks and self.breaks in filename else len(content)
        with partial.open("ab") as stream:
            stream.write(content[start:stop])
        self.sent += stop - start
        if stop < len(content):
            self.breaks = ""
            raise ConnectionError("connection lost")
        partial.replace(target)
        if self.corrupts and self.corrupts in filename:
            damaged = bytearray(content)
            damaged[-2:] = (7).to_bytes(2, "little")
            target.write_bytes(damaged)
        return str(target)


def build(root: Path, source: StandIn, **changes: Any) -> dict[str, Any]:
    return data.build(recipe(**changes), root / "data", source=source)


@pytest.mark.parametrize("prefix", ["", "datasets/"])
def test_a_fetched_export_is_a_data_set(export: Path, tmp_path: Path, prefix: str) -> None:
    """Both published layouts give the same shards, byte for byte, with counts, revision and manifest on record."""
    facts = build(tmp_path, StandIn(export, prefix=prefix))
    opened = DataSet.open(tmp_path / "data", recipe(), verify=True)
    assert [len(opened.train), len(opened.val)] == [SHARDS, 2]
    for shard in (*opened.train, *opened.val):
        assert (tmp_path / "data" / shard.name).read_bytes() == (export / FOLDER / shard.name).read_bytes()
    val, model = facts["splits"]["val"], tokenizer.Tokenizer.load(export / "tokenizers/fineweb_400_bpe.model")
    assert (val["documents"], facts["splits"]["train"]["documents"]) == (10, 90)
    assert val["bytes"] == sum(len(model.normalize(text).encode()) for text in TEXTS[:10])
    assert facts["splits"]["train"]["bytes"] == sum(len(model.normalize(text).encode()) for text in TEXTS[10:])
    assert val["original_bytes"] is None
    assert facts["normalized_share"] is None
    assert facts["duplicates_dropped"] is None
    assert not facts["validation_cut"]
    assert facts["export"]["revision"] == "c0ffee"
    assert facts["export"]["manifest"]["docs_val"] == 10


def test_only_the_shards_asked_for_are_fetched(export: Path, tmp_path: Path) -> None:
    """All of validation and the first `train_shards` training shards, no more."""
    source = StandIn(export)
    found = hub.fetch(recipe(**{"corpus.train_shards": 3}), tmp_path, hub=source, log=QUIET)
    assert [path.name for path in found.train] == [f"fineweb_train_{i:06}.bin" for i in range(3)]
    assert sum("train" in name for name in source.asked) == 3
    assert sum("val" in name for name in source.asked) == 2


def test_an_interrupted_download_goes_on(export: Path, tmp_path: Path) -> None:
    """After a lost connection the next run keeps whole files, goes on in the broken one, and sends no byte twice."""
    source = StandIn(export, breaks="train_000004")
    with pytest.raises(DataError, match="ConnectionError: connection lost; run again"):
        hub.fetch(recipe(), tmp_path, hub=source, log=QUIET)
    before = list(source.asked)
    hub.fetch(recipe(), tmp_path, hub=source, log=QUIET)
    again = source.asked[len(before) :]
    assert again[0] == before[-1] == f"{FOLDER}/fineweb_train_000004.bin"
    assert not set(again) & set(before[:-1])
    assert source.sent == sum(path.stat().st_size for path in export.rglob("*") if path.is_file())


def test_a_fetched_export_is_not_fetched_again(export: Path, tmp_path: Path) -> None:
    """With everything in the cache nothing is downloaded, and a second build gives the same facts."""
    source = StandIn(export)
    first = data.build(recipe(), tmp_path / "a", source=source)
    asked = len(source.asked)
    assert data.build(recipe(), tmp_path / "b", source=source) == first
    assert len(source.asked) == asked


def test_a_corrupted_download_is_refused_and_fetched_anew(export: Path, tmp_path: Path) -> None:
    """A shard of the right size whose SHA-256 isn't the listed one is refused and removed; the next run mends it."""
    source = StandIn(export, corrupts="train_000002")
    with pytest.raises(DataError, match=r"fineweb_train_000002\.bin: got \d+ bytes that are not .* SHA-256; removed"):
        build(tmp_path, source)
    assert not (tmp_path / "hub" / FOLDER / "fineweb_train_000002.bin").exists()
    source.corrupts = ""
    build(tmp_path, source)
    assert (tmp_path / "hub" / FOLDER / "fineweb_train_000002.bin").read_bytes() == (
        export / FOLDER / "fineweb_train_000002.bin"
    ).read_bytes()


@pytest.mark.parametrize("name", [f"{FOLDER}/fineweb_val_000001.bin", "manifest.json"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_file_damaged_in_the_cache_is_fetched_again(export: Path, tmp_path: Path, name: str, cut: bool) -> None:
    """A cached file that changed since is noticed by size or listed SHA-256 (the manifest has none) and replaced."""
    source = StandIn(export)
    hub.fetch(recipe(), tmp_path, hub=source, log=QUIET)
    content = (export / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + (b"" if cut else bytes([content[-1] ^ 1])))
    if cut or name.endswith(".bin"):
        hub.fetch(recipe(), tmp_path, hub=source, log=QUIET)
        assert (tmp_path / name).read_bytes() == content
        assert source.asked.count(name) == 2
    else:
        with pytest.raises(DataError, match=r"manifest\.json is not JSON"):
            hub.fetch(recipe(), tmp_path, hub=source, log=QUIET)


def test_a_full_disk_is_a_resource_error(export: Path, tmp_path: Path) -> None:
    """No space left is told apart from a bad connection."""
    source = StandIn(export)

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    source.hf_hub_download = full  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match="no space left"):
        hub.fetch(recipe(), tmp_path, hub=source, log=QUIET)


def test_a_local_copy_needs_no_hub(export: Path, tmp_path: Path) -> None:
    """With corpus.path the copy's shards are linked, not copied, and the hub isn't asked."""
    facts = data.build(recipe(**{"corpus.path": str(export)}), tmp_path / "data")
    assert facts["export"]["revision"] is None
    for shard in facts["splits"]["train"]["shards"]:
        assert (tmp_path / "data" / shard["name"]).samefile(export / FOLDER / shard["name"])


def test_links_fall_back_to_copies(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where hard links are impossible the files are copied."""

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(data.os, "link", refuse)
    data.build(recipe(**{"corpus.path": str(export)}), tmp_path / "data")
    name = "fineweb_train_000003.bin"
    assert not (tmp_path / "data" / name).samefile(export / FOLDER / name)
    assert sha256_file(tmp_path / "data" / name) == sha256_file(export / FOLDER / name)


@pytest.mark.parametrize("keys", [{"corpus.validation_documents": 4}, {"corpus.max_validation_tokens": 3000}])
def test_validation_is_cut_at_a_document_and_says_so(export: Path, tmp_path: Path, keys: dict[str, int]) -> None:
    """A recipe can keep fewer validation documents: whole ones, from the first on, recorded; the export stays whole."""
    before = [sha256_file(path) for path in sorted((export / FOLDER).glob("*val*"))]
    facts = data.build(recipe(**{"corpus.path": str(export)} | keys), tmp_path / "data")
    val = facts["splits"]["val"]
    model = tokenizer.Tokenizer.load(export / "tokenizers/fineweb_400_bpe.model")
    rows = model.encode_all(TEXTS[: val["documents"] + 1])
    assert facts["validation_cut"]
    assert val["documents"] == keys.get("corpus.validation_documents", val["documents"])
    assert read_shard(tmp_path / "data" / val["shards"][0]["name"]).tolist() == np.concatenate(rows[:-1]).tolist()
    assert val["tokens"] <= keys.get("corpus.max_validation_tokens", val["tokens"]) < val["tokens"] + len(rows[-1])
    assert [sha256_file(path) for path in sorted((export / FOLDER).glob("*val*"))] == before


def copied(export: Path, root: Path) -> Path:
    for path in export.rglob("*.*"):
        if path.is_file():
            target = root / path.relative_to(export)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return root


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("tokenizers/fineweb_400_bpe.model", "tokenizer is missing"),
        (f"{FOLDER}/fineweb_train_000008.bin", "8 training and 2 validation .* corpus.train_shards=8"),
        (f"{FOLDER}/fineweb_val_000001.bin", "files_val = 2, found 1"),
    ],
)
def test_a_missing_file_is_named(export: Path, tmp_path: Path, gone: str, message: str) -> None:
    """A copy without its tokenizer, a training or a validation shard is refused, with what is missing."""
    root = copied(export, tmp_path / "copy")
    (root / gone).unlink()
    with pytest.raises(DataError, match=message):
        hub.local(recipe(), root)


def test_another_vocabulary_is_refused_with_those_there_are(export: Path) -> None:
    """Asking for an export that isn't there names the ones that are."""
    with pytest.raises(DataError, match=f"no export datasets/fineweb10B_sp512, found {FOLDER}"):
        hub.local(recipe(**{"tokens.vocab_size": 512}), export)
    with pytest.raises(DataError, match="found none"):
        hub.local(recipe(), export / "tokenizers")


@pytest.mark.parametrize(("key", "value"), [("docs_val", 50_000), ("tokens_val", 1), ("files_val", 3)])
def test_counts_that_the_manifest_denies_are_refused(export: Path, tmp_path: Path, key: str, value: int) -> None:
    """An export whose validation isn't what its manifest says is refused, by number."""
    root = copied(export, tmp_path / "copy")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["datasets"][1]["stats"][key] = value
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"{key} = {value}, found \d+"):
        data.build(recipe(**{"corpus.path": str(root)}), tmp_path / "data")


@pytest.mark.parametrize("content", ["[]", '{"datasets": 5}', '{"datasets": [7, {"name": "fineweb10B_sp400"}]}'])
def test_a_manifest_that_does_not_speak_of_the_export_says_nothing(export: Path, tmp_path: Path, content: str) -> None:
    """Stale and odd manifests are taken for no manifest, broken JSON is refused."""
    root = copied(export, tmp_path / "copy")
    (root / "manifest.json").write_text(content)
    assert hub.local(recipe(), root).stats == {}
    (root / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        hub.local(recipe(), root)


def test_validation_must_begin_with_a_document(export: Path, tmp_path: Path) -> None:
    """Validation that starts inside a document is refused."""
    root = copied(export, tmp_path / "copy")
    path = root / FOLDER / "fineweb_val_000000.bin"
    write_shard(path, np.concatenate([[5], read_shard(path)[1:]]).astype(np.uint16))
    with pytest.raises(DataError, match="doesn't start with BOS"):
        data.build(recipe(**{"corpus.path": str(root)}), tmp_path / "data")


class Handler(http.server.BaseHTTPRequestHandler):
    """The few routes of the hub that the real client asks for."""

    root: Path

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, headers = self.path.partition("?")[0], {}
        if "/tree/" in path:
            listed = list(StandIn(self.root).list_repo_tree("", recursive=True, revision="c0ffee", repo_type=""))
            entries = [
                {"type": "file", "path": e.path, "size": e.size, "oid": "0" * 40}
                | ({"lfs": {"oid": e.lfs.sha256, "size": e.size, "pointerSize": 130}} if e.lfs else {})
                for e in listed
                if hasattr(e, "size")
            ]
            content = json.dumps([{"type": "directory", "path": "datasets", "oid": "0" * 40}, *entries]).encode()
        elif path.startswith("/api/"):
            content = json.dumps({"id": hub.REPOSITORY, "sha": "c0ffee"}).encode()
        else:
            content = (self.root / path.partition("/resolve/c0ffee/")[2]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "c0ffee"}
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


def test_the_real_client_fetches_the_export(export: Path, tmp_path: Path) -> None:
    """huggingface_hub's own HfApi, over HTTP to this process, gives what the stand-in gives."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    handler = type("Bound", (Handler,), {"root": export})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
        fetched = data.build(recipe(), tmp_path / "real" / "data", source=api)
        server.shutdown()
    assert fetched == data.build(recipe(), tmp_path / "stand-in" / "data", source=StandIn(export))
