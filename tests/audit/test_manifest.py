"""Manifests: equal for equal files, another for every change, and a check that says everything that is wrong."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit import manifest as manifests
from audit import merkle
from audit.errors import AuditError, ManifestError, SplitError
from audit.files import to_json
from audit.manifest import Manifest, check, compare, parse, table, take
from audit.splits import open_data
from tests.toy import toy_recipe
from trainer import data as trainer_data
from trainer.shards import write_shard

FILES = {"train_0.bin": [1, 5, 6, 1, 7], "train_1.bin": [8, 1, 9], "val_0.bin": [1, 5, 5]}


def write(folder: Path, files: dict[str, list[int]] = FILES) -> Path:
    folder.mkdir(exist_ok=True)
    for name, tokens in files.items():
        write_shard(folder / name, np.array(tokens, dtype=np.uint16))
    return folder


def of(folder: Path) -> Manifest:
    return take(open_data([folder]))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "data"
    trainer_data.build(toy_recipe(), folder)
    return folder


def test_it_holds_what_the_files_hold(tmp_path: Path) -> None:
    """Names, sizes, header words, tokens, documents and SHA-256 of each shard are those of the files."""
    found = of(write(tmp_path / "d"))
    shard = found.splits["train"].shards[0]
    content = (tmp_path / "d" / "train_0.bin").read_bytes()
    assert (shard.name, shard.size, shard.tokens, shard.documents) == ("train_0.bin", 1034, 5, 2)
    assert shard.header == (20240520, 1, 5)
    assert shard.sha256 == "sha256:" + hashlib.sha256(content).hexdigest()
    train = found.splits["train"]
    assert (train.tokens, train.documents, train.bytes, len(train.shards)) == (8, 3, None, 2)
    assert found.tokenizer is None


def test_it_agrees_with_the_trainers_facts(toy: Path) -> None:
    """Tokens, documents, bytes of text and digests equal those that the trainer wrote into data.json."""
    facts = json.loads((toy / "data.json").read_text())
    found = of(toy)
    for name, split in found.splits.items():
        expected = facts["splits"][name]
        assert {k: getattr(split, k) for k in ("tokens", "documents", "bytes")} == {
            k: expected[k] for k in ("tokens", "documents", "bytes")
        }
        assert [{"name": s.name, "tokens": s.tokens, "sha256": s.sha256} for s in split.shards] == expected["shards"]
    assert found.tokenizer is not None
    assert (found.tokenizer.sha256, found.tokenizer.vocab_size) == (facts["tokenizer"]["sha256"], 400)
    assert [record.name for record in found.others] == ["data.json"]


def test_text_and_back(toy: Path, tmp_path: Path) -> None:
    """`parse` gives back what was written as JSON, with a tokenizer and without; the check of the same files passes."""
    for folder in (toy, write(tmp_path / "d")):
        found = of(folder)
        again = parse(json.loads(to_json(found.as_dict())), where="m.json")
        assert again == found
        assert check(again, [folder]) == found


def test_equal_files_have_equal_manifests(tmp_path: Path, toy: Path) -> None:
    """Place, order of writing, times, hard links, threads and the size of the buffer leave no trace."""
    first = of(toy)
    (tmp_path / "again").mkdir()
    for path in sorted(toy.iterdir(), reverse=True):
        os.link(path, tmp_path / "again" / path.name)
    os.utime(tmp_path / "again" / "val_000000.bin", (0, 0))
    assert of(tmp_path / "again") == first
    assert take(open_data([toy]), threads=1) == first
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifests, "BUFFER", 14)
        assert of(toy) == first


def test_the_format_of_version_1_stands_still(tmp_path: Path) -> None:
    """The roots of known files never change; whoever changes what is hashed writes another format's name."""
    found = of(write(tmp_path / "d"))
    assert found.hashing.format == "golf-audit/manifest/1"
    assert found.splits["train"].root == ROOTS[0]
    assert found.root == ROOTS[1]


ROOTS = (
    "sha256:4c1312db2038e2dee82d7c485b0a938d6dac69b59ced8b40847d9b0c23037d2f",
    "sha256:323d152b4e05f3ca329ec40e00421052cffbd5a5419ebe6d21a8cab254086c3a",
)


def swapped(files: dict[str, list[int]]) -> dict[str, list[int]]:
    return files | {"train_0.bin": files["train_1.bin"], "train_1.bin": files["train_0.bin"]}


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(swapped(FILES), id="two names swapped"),
        pytest.param(FILES | {"train_0.bin": [1, 5, 6], "train_00.bin": [1, 7]}, id="a shard split in two"),
        pytest.param({**FILES, "train_1.bin": [], "train_0.bin": [1, 5, 6, 1, 7, 8, 1, 9]}, id="shards merged"),
        pytest.param(FILES | {"train_2.bin": []}, id="an empty shard added"),
        pytest.param({"train_9.bin" if n == "train_1.bin" else n: t for n, t in FILES.items()}, id="a shard renamed"),
        pytest.param({n: t for n, t in FILES.items() if n != "val_0.bin"}, id="a split gone"),
        pytest.param(FILES | {"val_1.bin": [2]}, id="a shard added"),
        pytest.param(FILES | {"train_0.bin": [1, 5, 6, 1, 8]}, id="one token changed"),
    ],
)
def test_the_root_differs_with_every_change(tmp_path: Path, changed: dict[str, list[int]]) -> None:
    """Names, counts and empty files are in the root, not only the tokens in their order; the check says so."""
    honest = of(write(tmp_path / "a"))
    other = of(write(tmp_path / "b", changed))
    assert other.root != honest.root
    assert compare(honest, other).lines()
    with pytest.raises(ManifestError, match="is not what the manifest says"):
        check(honest, [tmp_path / "b"])


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Extra, missing and changed files stand together in one line, each with what changed."""
    honest = of(write(tmp_path / "d"))
    (tmp_path / "d" / "train_1.bin").unlink()
    write(tmp_path / "d", {"train_0.bin": [1, 5, 6, 7], "train_2.bin": [2]})
    (tmp_path / "d" / "odd.bin").write_bytes(b"x")
    with pytest.raises(ManifestError) as caught:
        check(honest, [tmp_path / "d"])
    said = str(caught.value)
    assert "\n" not in said
    for part in (
        "extra: train_2.bin", "extra: odd.bin", "missing: train_1.bin", "changed: train_0.bin (size 1034 → 1032",
        "tokens 5 → 4", "documents 2 → 1",
    ):  # fmt: skip
        assert part in said
    assert "val_0" not in said


@pytest.mark.parametrize(
    ("at", "what"),
    [(0, "; got magic"), (4, "; got shard version"), (8, "; the header says"), (100, ", header ("), (1026, "")],
    ids=["magic", "version", "count", "header", "token"],
)
def test_one_changed_byte_is_told_once(tmp_path: Path, at: int, what: str) -> None:
    """The file is named once, with what is wrong with it; totals and roots, which only follow, are not told."""
    folder = write(tmp_path / "d")
    honest, content = of(folder), bytearray((folder / "train_0.bin").read_bytes())
    content[at] ^= 1
    (folder / "train_0.bin").write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        check(honest, [folder])
    told = str(caught.value).removeprefix(f"{folder} is not what the manifest says: ")
    assert told.startswith("changed: train_0.bin (sha256 ")
    assert what in told
    assert (told.count("changed: "), told.count("train_0.bin")) == (1, 1)


def test_totals_and_roots_are_told_where_no_file_says_it(tmp_path: Path) -> None:
    """Equal files hashed otherwise: the splits' totals, or else the root, and always how they were hashed."""
    found = of(write(tmp_path / "d"))
    split = dataclasses.replace(found.splits["val"], bytes=7)
    other = dataclasses.replace(found, splits=found.splits | {"val": split}, root="sha256:x")
    assert compare(found, other).lines() == ["changed: split val (bytes None → 7)"]
    other = dataclasses.replace(found, root="sha256:x")
    assert compare(found, other).lines() == [f"changed: manifest (root {found.root} → sha256:x)"]
    hashing = dataclasses.replace(found.hashing, bos=2)
    (line,) = compare(found, dataclasses.replace(found, hashing=hashing)).lines()
    assert line.startswith("changed: manifest (hashing ")
    assert compare(found, found).lines() == []


def test_damaged_shards_do_not_hide_the_rest(tmp_path: Path) -> None:
    """Where a file can't even be read as a shard, all that is extra, missing and changed is still listed."""
    honest = of(write(tmp_path / "d"))
    (tmp_path / "d" / "train_0.bin").write_bytes(b"short")
    (tmp_path / "d" / "train_1.bin").unlink()
    write(tmp_path / "d", {"val_1.bin": [1]})
    with pytest.raises(ManifestError) as caught:
        check(honest, [tmp_path / "d"])
    for part in ("extra: val_1.bin", "missing: train_1.bin", "train_0.bin (size 1034 → 5", "5 bytes, a shard has"):
        assert part in str(caught.value)
    with pytest.raises(SplitError, match="can't read the folder"):
        check(honest, [tmp_path / "none"])


@given(seed=st.integers(0, 2**32 - 1))
def test_any_changed_byte_is_found(tmp_path_factory: pytest.TempPathFactory, toy: Path, seed: int) -> None:
    """One flipped bit in any file of the folder, or a cut anywhere, fails the check, and the file is named."""
    draw, honest = random.Random(seed), of(toy)
    folder = tmp_path_factory.mktemp("flip")
    for path in toy.iterdir():
        os.link(path, folder / path.name)
    victim = folder / draw.choice(sorted(path.name for path in toy.iterdir()))
    content = bytearray(victim.read_bytes())
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    victim.unlink()
    victim.write_bytes(content)
    with pytest.raises(ManifestError, match=rf"changed: {victim.name}".replace(".", r"\.")):
        check(honest, [folder])


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values that are no containers."""
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(value, (*path, key))
    else:
        yield path


def test_an_edited_manifest_is_refused(toy: Path) -> None:
    """Every value of a manifest is bound to its root: whichever is edited, removed or added to, `parse` refuses it."""
    value = of(toy).as_dict()
    for path in leaves(value):
        for edit in ("change", "remove"):
            tree = copy.deepcopy(value)
            inner = tree
            for key in path[:-1]:
                inner = inner[key]
            if edit == "remove":
                del inner[path[-1]]
            elif isinstance(inner[path[-1]], int):
                inner[path[-1]] += 1
            else:
                inner[path[-1]] = f"{inner[path[-1]]}0"
            with pytest.raises(ManifestError, match=r"m\.json"):
                parse(tree, where="m.json")
    with pytest.raises(ManifestError, match=r"note is not what the entries"):
        parse(value | {"note": 1}, where="m.json")


@pytest.mark.parametrize("value", [None, [], {}, 1, "x", {"schema": 1, "splits": {}}])
def test_what_is_no_manifest_is_refused(value: Any) -> None:
    """Any other JSON value is an error of one line that names the file."""
    with pytest.raises(ManifestError, match=r"m\.json") as caught:
        parse(value, where="m.json")
    assert "\n" not in str(caught.value)


def test_a_manifest_of_nothing_is_refused(tmp_path: Path) -> None:
    """A consistent manifest without any shard proves nothing and is not accepted."""
    value = of(write(tmp_path / "d")).as_dict()
    empty = merkle.root("data", [merkle.leaf("hashing", ["sha256", "golf-audit/manifest/1", 1])]).hex()
    with pytest.raises(ManifestError, match="names no shards"):
        parse(value | {"splits": {}, "root": f"sha256:{empty}"}, where="m.json")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """A manifest that names a file twice, with roots to match, could hide one of them; it is not accepted."""
    found = of(write(tmp_path / "d"))
    val = found.splits["val"]
    twice = manifests._split([(val.shards[0], None)] * 2)
    forged = manifests._sealed(found.hashing, None, {"val": twice}, ())
    with pytest.raises(ManifestError, match="two files have one name"):
        parse(forged.as_dict(), where="m.json")


def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path) -> None:
    """A shard that was replaced after it was opened is an error, not a manifest of half of each."""
    data = open_data([write(tmp_path / "d")])
    write_shard(tmp_path / "d" / "val_0.bin", np.array([1, 2, 3, 4], dtype=np.uint16))
    with pytest.raises(SplitError, match=r"val_0\.bin changed while it was read"):
        take(data)
    (tmp_path / "d" / "val_0.bin").unlink()
    with pytest.raises(AuditError, match=r"can't read .*val_0\.bin"):
        take(data)


def test_a_shard_that_grows_under_the_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were appended after the length was checked, an odd one too, are an error and are not hashed along."""
    data = open_data([write(tmp_path / "d")])
    honest = manifests.read_header

    def grow(stream: Any, path: Path) -> Any:
        found = honest(stream, path)
        with path.open("ab") as end:
            end.write(b"x")
        return found

    monkeypatch.setattr(manifests, "read_header", grow)
    with pytest.raises(SplitError, match="changed while it was read"):
        take(data, threads=1)


def test_tokens_of_another_tokenizer_are_named(toy: Path, tmp_path: Path) -> None:
    """A shard with a token that the tokenizer doesn't have is named, with the token and the number of pieces."""
    os.link(toy / "tokenizer.model", write(tmp_path / "d", FILES | {"val_0.bin": [1, 400]}) / "tokenizer.model")
    with pytest.raises(SplitError, match=r"val_0\.bin: got token 400, .* has 400 pieces"):
        of(tmp_path / "d")


def test_bytes_go_on_over_the_end_of_a_shard(toy: Path, tmp_path: Path) -> None:
    """A stream cut into other shards, inside documents, has the same bytes of text and documents."""
    whole = open_data([toy])
    cut = tmp_path / "d"
    cut.mkdir()
    os.link(toy / "tokenizer.model", cut / "tokenizer.model")
    for name, split in whole.splits.items():
        for number, part in enumerate(np.array_split(split.slice(0, split.tokens), 37)):
            write_shard(cut / f"{name}_{number:06}.bin", part)
    expected, found = take(whole), of(cut)
    for name in ("train", "val"):
        assert found.splits[name].bytes == expected.splits[name].bytes
        assert found.splits[name].documents == expected.splits[name].documents
        assert found.splits[name].root != expected.splits[name].root


def test_progress_counts_every_byte(toy: Path) -> None:
    """What is reported while it works adds up to the bytes of all files but the headers."""
    done: list[int] = []
    data = open_data([toy])
    take(data, progress=done.append)
    shards = [shard for split in data.splits.values() for shard in split.shards]
    assert sum(done) == sum(shard.size - 1024 for shard in shards) + (toy / "data.json").stat().st_size


def test_the_table_names_what_counts(toy: Path, tmp_path: Path) -> None:
    """The table shows each split's numbers, the tokenizer and the root; without a tokenizer no bytes are made up."""
    found = of(toy)
    lines = table(found)
    assert f"{found.splits['val'].tokens:,}" in lines[2]
    assert f"{found.splits['val'].bytes:,}" in lines[2]
    assert lines[-1] == f"root {found.root}"
    assert any("tokenizer.model, 400 pieces" in line for line in lines)
    assert " – " in table(of(write(tmp_path / "d")))[1]


names = st.lists(st.text(max_size=3), max_size=5)


@given(one=names, other=names)
def test_no_two_lists_have_one_root(one: list[str], other: list[str]) -> None:
    """Roots are equal for equal lists of leaves only, whatever their lengths and however the texts are cut."""
    first, second = (merkle.root("x", [merkle.leaf("y", [text]) for text in texts]) for texts in (one, other))
    assert (first == second) == (one == other)
    assert (merkle.leaf("y", one) == merkle.leaf("y", other)) == (one == other)
    assert merkle.root("x", []) != merkle.root("z", [])
    assert merkle.root("x", [merkle.root("x", [])]) != merkle.root("x", [])
