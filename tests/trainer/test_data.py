"""A data set is built from documents as the recipe says, and opened only if it is what it was built as."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import data, tokenizer
from trainer.corpus import documents
from trainer.data import DataSet, build
from trainer.errors import DataError
from trainer.files import read_json, sha256_file, write_json
from trainer.loader import Stream
from trainer.recipe import resolve
from trainer.settings import Recipe
from trainer.shards import Shard, read_shard, write_shard
from trainer.tokenizer import BOS, Tokenizer

SMALL = {
    "scale": "cpu",
    "corpus.documents": 300,
    "corpus.validation_documents": 20,
    "tokens.vocab_size": 450,
    "tokens.sample_documents": 100,
    "train.sequence_length": 64,
}


def recipe(**changes: Any) -> Recipe:
    return resolve(SMALL | changes)


def jsonl(path: Path, texts: list[str], **changes: Any) -> Recipe:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    keys = {"corpus.source": "jsonl", "corpus.path": str(path), "corpus.documents": 0, "tokens.vocab_size": 400}
    return recipe(**keys | changes)


TEXTS = list(documents(recipe(**{"corpus.documents": 60}).corpus))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "data"
    build(recipe(), out)
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    for path in built.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def decoded(root: Path, names: list[str]) -> list[list[int]]:
    """The documents of shards, as ids without BOS."""
    stream = np.concatenate([read_shard(root / name) for name in names])
    starts = np.flatnonzero(stream == BOS)
    return [part[1:].tolist() for part in np.split(stream, starts[1:])]


def test_shards_hold_the_documents_of_the_source(built: Path) -> None:
    """Validation is the first documents, training the following ones without repeats, in order, over 8 shards."""
    facts = read_json(built / "data.json")
    texts = list(documents(recipe().corpus))
    model = Tokenizer.load(built / "tokenizer.model")
    val, seen, train = texts[:20], set(texts[:20]), []
    for text in texts[20:]:
        if text not in seen:
            train.append(text)
        seen.add(text)
    assert len(train) < 280, "the corpus has repeats, else this shows nothing"
    for split, expected in (("val", val), ("train", train)):
        names = [shard["name"] for shard in facts["splits"][split]["shards"]]
        assert decoded(built, names) == [model.encode(text)[1:].tolist() for text in expected]
        assert facts["splits"][split]["documents"] == len(expected)
        assert facts["splits"][split]["bytes"] == sum(len(model.normalize(text).encode()) for text in expected)
        assert facts["splits"][split]["original_bytes"] == sum(len(text.encode()) for text in expected)
    assert facts["duplicates_dropped"] == 280 - len(train)
    assert facts["normalized_share"] == pytest.approx(
        sum(facts["splits"][s]["bytes"] for s in ("train", "val"))
        / sum(facts["splits"][s]["original_bytes"] for s in ("train", "val"))
    )
    assert [shard["name"] for shard in facts["splits"]["train"]["shards"]] == [f"train_{i:06}.bin" for i in range(8)]
    per_shard = [len(decoded(built, [shard["name"]])) for shard in facts["splits"]["train"]["shards"]]
    assert max(per_shard) - min(per_shard) <= 1


def test_two_builds_are_equal_to_the_byte(built: Path, tmp_path: Path) -> None:
    """Equal recipes give equal files, names and contents, wherever they are built; the digest is data.json's."""
    facts = build(recipe(), tmp_path / "elsewhere")
    assert {p.name: sha256_file(p) for p in built.iterdir()} == {
        p.name: sha256_file(p) for p in (tmp_path / "elsewhere").iterdir()
    }
    assert facts.pop("digest") == sha256_file(built / "data.json")
    assert facts == read_json(built / "data.json")


def test_opening_gives_what_was_built(built: Path) -> None:
    """The opened set has the shards of both splits, the byte table, the facts and the digest of data.json."""
    opened = DataSet.open(built, recipe(), verify=True)
    assert [shard.name for shard in opened.val] == ["val_000000.bin"]
    assert len(opened.train) == 8
    assert opened.digest == sha256_file(built / "data.json")
    assert sum(opened.byte_table.total(shard.tokens) for shard in opened.val) == opened.facts["splits"]["val"]["bytes"]
    assert 0 < opened.facts["bigram_val_bpb"] < 8


@pytest.mark.parametrize(
    ("where", "moves"),
    [("val", False), ("train", True), ("tokenizer", True)],
)
def test_the_digest_of_training_is_blind_to_validation(built: Path, where: str, moves: bool) -> None:
    """What an artifact says about its data changes with training shards and tokenizer, not with validation text."""
    opened = DataSet.open(built, recipe())
    facts = json.loads(json.dumps(opened.facts))
    entry = facts["tokenizer"] if where == "tokenizer" else facts["splits"][where]["shards"][-1]
    entry["sha256"] = "sha256:other"
    twin = dataclasses.replace(opened, facts=facts, digest="sha256:other")
    assert (twin.training_digest != opened.training_digest) == moves


def test_only_the_splits_asked_for_are_opened(copy: Path) -> None:
    """Whoever asks for validation alone opens no training shard: they may even be gone."""
    for path in copy.glob("train_*.bin"):
        path.unlink()
    opened = DataSet.open(copy, recipe(), splits=("val",))
    assert opened.train == ()
    assert len(opened.val) == 1
    with pytest.raises(DataError, match=r"train_000000\.bin: No such file"):
        DataSet.open(copy, recipe())


def test_repeats_are_found_in_normalized_text(tmp_path: Path) -> None:
    """A training document that differs from an earlier one by whitespace or form alone is dropped; validation's stay.

    This is what keeps a validation document out of training.
    """
    val = [TEXTS[0], TEXTS[0], TEXTS[1]]
    again = [TEXTS[0].replace(" ", "  "), TEXTS[1] + "\n", TEXTS[2].replace("a", "ａ", 1), TEXTS[3]]
    source = jsonl(tmp_path / "a.jsonl", val + TEXTS[2:40] + again, **{"corpus.validation_documents": 3})
    facts = build(source, tmp_path / "data")
    assert facts["duplicates_dropped"] == 4
    assert facts["splits"]["val"]["documents"] == 3
    assert facts["splits"]["train"]["documents"] == 38


def test_documents_without_text_are_left_out(tmp_path: Path) -> None:
    """A document that normalizes to nothing is in no split: it would be a lone BOS."""
    source = jsonl(tmp_path / "a.jsonl", ["\u200b", *TEXTS[:30], " \0 ", "\ufeff"])
    facts = build(source, tmp_path / "data")
    assert facts["splits"]["val"]["documents"] + facts["splits"]["train"]["documents"] == 30


def test_the_tokenizer_sees_training_documents_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained on the first `sample_documents` training documents; no validation document, no repeat is among."""
    given: list[str] = []
    real = tokenizer.train

    def spy(texts: list[str], path: Path, *, vocab_size: int) -> None:
        given.extend(texts)
        real(texts, path, vocab_size=vocab_size)

    monkeypatch.setattr(tokenizer, "train", spy)
    keys = {"corpus.validation_documents": 10, "tokens.sample_documents": 25}
    build(jsonl(tmp_path / "a.jsonl", TEXTS[:10] + TEXTS[3:60], **keys), tmp_path / "data")
    assert given == TEXTS[10:35]


@pytest.mark.parametrize("limit", [1000, 2500, 10**9])
def test_validation_is_cut_at_a_document(built: Path, tmp_path: Path, limit: int) -> None:
    """At most `max_validation_tokens` remain, whole documents from the first on; the cut is on record, training isn't
    touched by it."""
    facts = build(recipe(**{"corpus.max_validation_tokens": limit}), tmp_path / "data")
    whole = read_json(built / "data.json")
    kept = decoded(tmp_path / "data", ["val_000000.bin"])
    all_documents = decoded(built, ["val_000000.bin"])
    assert kept == all_documents[: len(kept)]
    assert facts["splits"]["val"]["tokens"] <= limit
    assert facts["validation_cut"] == (len(kept) < len(all_documents))
    assert facts["validation_cut"] == (limit < 10**9)
    if facts["validation_cut"]:
        assert facts["splits"]["val"]["tokens"] + len(all_documents[len(kept)]) + 1 > limit
    assert facts["splits"]["train"] == whole["splits"]["train"]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9), limit=st.integers(0, 90))
def test_as_many_documents_are_kept_as_fit(lengths: list[int], limit: int) -> None:
    """The most leading documents within the limit, the limit itself included; 0 keeps all."""
    fitting = [n for n in range(1, len(lengths) + 1) if sum(lengths[:n]) <= limit or not limit]
    if fitting:
        assert data._documents_within(np.array(lengths), limit) == max(fitting)
    else:
        with pytest.raises(DataError, match="is less than the first"):
            data._documents_within(np.array(lengths), limit)


def test_a_cut_before_the_first_document_is_refused(tmp_path: Path) -> None:
    """A limit below the first validation document would leave none, so it is an error with that document's length."""
    with pytest.raises(DataError, match=r"max_validation_tokens = 5 is less than .* \d+ tokens"):
        build(recipe(**{"corpus.max_validation_tokens": 5}), tmp_path / "data")


@pytest.mark.parametrize(("asked", "written"), [(1, 8), (3, 8), (8, 8), (11, 11)])
def test_at_least_eight_shards_are_written(tmp_path: Path, asked: int, written: int) -> None:
    """Fewer shards than virtual ranks are never written, so that each rank owns one."""
    source = jsonl(tmp_path / "a.jsonl", TEXTS, **{"corpus.train_shards": asked})
    assert len(build(source, tmp_path / "data")["splits"]["train"]["shards"]) == written


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    """Fewer training documents than shards is an error with both numbers, and so is no document at all."""
    source = jsonl(tmp_path / "a.jsonl", TEXTS[:27])
    with pytest.raises(DataError, match="20 validation and 7 training documents, expected at least 8"):
        build(source, tmp_path / "data")
    with pytest.raises(DataError, match="0 validation and 0 training"):
        build(jsonl(tmp_path / "b.jsonl", []), tmp_path / "other")


def test_a_folder_with_files_is_not_written_to(tmp_path: Path) -> None:
    """Building over something would mix two data sets."""
    (tmp_path / "train_000099.bin").touch()
    with pytest.raises(DataError, match="is not empty"):
        build(recipe(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train_000099.bin"]


def test_a_failed_build_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """data.json is written last: what stops before leaves a folder that doesn't open."""

    def stop(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(data.bigram, "bits_per_byte", stop)
    with pytest.raises(KeyboardInterrupt):
        build(recipe(), tmp_path / "data")
    with pytest.raises(DataError, match=r"can't read .*data\.json"):
        DataSet.open(tmp_path / "data", recipe())


def test_a_tokenizer_that_misspells_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the shards' bytes aren't those of the normalized texts, the build fails, not the score."""
    real = Tokenizer.encode_all
    monkeypatch.setattr(Tokenizer, "encode_all", lambda self, texts: [row[:-1] for row in real(self, texts)])
    with pytest.raises(DataError, match=r"expected 2[0-9]+ of .* bytes after normalization"):
        build(recipe(), tmp_path / "data")


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        facts = read_json(root / "data.json")
        change(facts)
        write_json(root / "data.json", facts)

    return apply


def longer_shard(root: Path) -> None:
    path = root / "train_000003.bin"
    write_shard(path, np.append(read_shard(path), np.uint16(5)))


def id_beyond(root: Path) -> None:
    path = root / "val_000000.bin"
    tokens = np.array(read_shard(path))
    tokens[17] = 450
    path.unlink()
    write_shard(path, tokens)


def other_tokenizer(root: Path) -> None:
    (root / "tokenizer.model").unlink()
    tokenizer.train(TEXTS[5:], root / "tokenizer.model", vocab_size=450)


def smaller_tokenizer(root: Path) -> None:
    (root / "tokenizer.model").unlink()
    tokenizer.train(TEXTS, root / "tokenizer.model", vocab_size=400)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "data.json").unlink(), r"can't read .*data\.json"),
        (lambda root: (root / "data.json").write_text("{"), "is not JSON"),
        (lambda root: (root / "data.json").write_text("[]"), "is damaged"),
        (edit(lambda facts: facts.pop("splits")), "is damaged: KeyError 'splits'"),
        (edit(lambda facts: facts["splits"].update(train=None)), "is damaged: TypeError"),
        (edit(lambda facts: facts.update(schema=2)), "got schema 2, expected 1"),
        (edit(lambda facts: facts.update(source="jsonl")), "corpus.source jsonl, the recipe says embedded"),
        (edit(lambda facts: facts["splits"]["val"]["shards"][0].update(name="../x.bin")), "without folders"),
        (edit(lambda facts: facts["splits"]["train"].update(shards=[])), "train: 0 tokens in 0 shards"),
        (longer_shard, r"train_000003\.bin has \d+ tokens, data\.json says \d+"),
        (id_beyond, r"val_000000\.bin: token 17 is 450"),
        (other_tokenizer, r"tokenizer\.model has sha256:\w+, data\.json says"),
        (smaller_tokenizer, "the tokenizer has 400 pieces, tokens.vocab_size is 450"),
        (lambda root: (root / "tokenizer.model").unlink(), "can't read the tokenizer"),
    ],
)
def test_a_data_set_that_is_not_as_built_is_refused(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    """Each kind of damage or mismatch is refused by name in one line; the same set without it opens."""
    DataSet.open(copy, recipe())
    damage(copy)
    with pytest.raises(DataError, match=message) as caught:
        DataSet.open(copy, recipe())
    assert "\n" not in str(caught.value)


def test_a_changed_id_is_noticed_when_verified(copy: Path) -> None:
    """A shard with the right count and a changed token opens without verification and is refused with it."""
    path = copy / "train_000005.bin"
    tokens = np.array(read_shard(path))
    tokens[-1] ^= 1
    path.unlink()
    write_shard(path, tokens)
    DataSet.open(copy, recipe())
    with pytest.raises(DataError, match=r"train_000005\.bin is not the file of data\.json, by SHA-256"):
        DataSet.open(copy, recipe(), verify=True)


def test_a_recipe_of_another_vocabulary_is_refused(built: Path) -> None:
    """The model's vocabulary must be the tokenizer's."""
    with pytest.raises(DataError, match=r"450 pieces, tokens\.vocab_size is 1024"):
        DataSet.open(built, recipe(**{"tokens.vocab_size": 1024}))


@pytest.mark.parametrize("shards", [1, 3, 8, 9])
@pytest.mark.parametrize("windows", [1, 2, 3, 8, 9])
def test_enough_tokens_means_that_every_rank_draws(built: Path, tmp_path: Path, shards: int, windows: int) -> None:
    """A set opens exactly if the loader finds a window for each of the 8 virtual ranks."""
    length, facts = 64, read_json(built / "data.json")
    stream = np.concatenate([read_shard(path) for path in sorted(built.glob("train_*.bin"))])
    for name in ("tokenizer.model", "val_000000.bin"):
        (tmp_path / name).write_bytes((built / name).read_bytes())
    entries = []
    for number in range(shards):
        part = stream[: length * windows + (number % 2)]
        write_shard(tmp_path / f"t{number}.bin", part)
        entries.append({"name": f"t{number}.bin", "tokens": len(part), "sha256": ""})
    facts["splits"]["train"]["shards"] = entries
    write_json(tmp_path / "data.json", facts)
    loaded = [Shard(entry["name"], read_shard(tmp_path / entry["name"])) for entry in entries]
    if all(loader_draws(loaded, length, rank) for rank in range(8)):
        assert len(DataSet.open(tmp_path, recipe()).train) == shards
    else:
        with pytest.raises(DataError, match=f"in {shards} shards are not enough for one batch"):
            DataSet.open(tmp_path, recipe())


def loader_draws(loaded: list[Shard], length: int, rank: int) -> bool:
    try:
        return Stream(loaded, length=length, seed=1, virtual_rank=rank).windows > 0
    except DataError:
        return False


def test_validation_needs_one_window(built: Path) -> None:
    """A sequence longer than validation is refused."""
    tokens = read_json(built / "data.json")["splits"]["val"]["tokens"]
    keys = {"train.sequence_length": tokens, "eval.stride": 1}
    assert DataSet.open(built, recipe(**keys | {"train.sequence_length": tokens - 1}), splits=("val",)).val
    with pytest.raises(DataError, match=rf"val: {tokens} tokens in 1 shards are not enough"):
        DataSet.open(built, recipe(**keys), splits=("val",))
