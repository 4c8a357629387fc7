"""The published splits are recognised by their counts, and what differs is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from audit.errors import ManifestError
from audit.manifest import Manifest, take
from audit.published import read_published, recognise
from audit.splits import open_data
from trainer.shards import write_shard

RULES = """
small:
  status: current
  documents: 3
  tokens: 100
  scored_tokens: 96
  sequence_length: 32
  train_shard_tokens: 50
  overlap_share: 0.25
nearly:
  status: superseded
  documents: 3
  scored_tokens: 64
  sequence_length: 32
"""


def manifest_of(folder: Path, *, val: int = 100, documents: int = 3, train: tuple[int, ...] = (50, 50, 7)) -> Manifest:
    folder.mkdir()
    tokens = np.full(val, 9, dtype=np.uint16)
    tokens[:documents] = 1
    write_shard(folder / "val_0.bin", tokens)
    for number, count in enumerate(train):
        write_shard(folder / f"train_{number}.bin", np.full(count, 9, dtype=np.uint16))
    return take(open_data([folder]))


def test_counts_that_are_met_are_recognised(tmp_path: Path) -> None:
    """Documents, tokens, scored tokens and training shards as published: recognised, with the known overlap."""
    found = recognise(manifest_of(tmp_path / "d"), read_published(yaml.safe_load(RULES), where="r"))
    assert found.recognised
    assert (found.name, found.overlap_share) == ("small", 0.25)
    assert set(found.compared) == {"documents", "tokens", "scored_tokens", "train_shard_tokens"}


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"val": 101}, "tokens is 101, published 100"),
        ({"val": 96}, "scored_tokens is 64, published 96"),
        ({"documents": 2}, "documents is 2, published 3"),
        ({"train": (50, 49, 50)}, "train_shard_tokens is one of [49, 50], published 50"),
        ({"train": (49, 49, 50)}, "train_shard_tokens is 49, published 50"),
    ],
)
def test_each_count_that_differs_is_named(tmp_path: Path, changes: dict[str, int], difference: str) -> None:
    """A cut, longer or re-split data set is not recognised, and the count that betrays it is said."""
    facts = {"small": yaml.safe_load(RULES)["small"]}
    found = recognise(manifest_of(tmp_path / "d", **changes), read_published(facts, where="r"))  # type: ignore[arg-type]
    assert not found.recognised
    assert difference in found.differences


def test_the_nearest_is_chosen(tmp_path: Path) -> None:
    """Of several published splits the one with the fewest differences is named, and its status."""
    published = read_published(yaml.safe_load(RULES), where="r")
    found = recognise(manifest_of(tmp_path / "d", val=96), published)
    assert (found.name, found.status, found.recognised) == ("nearly", "superseded", True)


def test_bytes_per_token_have_a_tolerance(tmp_path: Path, toy_manifest: Manifest) -> None:
    """The bytes per token of a split with a tokenizer are compared within the published tolerance, and no wider."""
    val = toy_manifest.splits["val"]
    assert val.bytes is not None
    ratio, scored = val.bytes / val.tokens, (val.tokens - 1) // 64 * 64
    for shift, expected in ((1.0003, True), (0.9997, True), (1.0005, False), (0.9995, False)):
        facts = {"status": "current", "bytes_per_token": ratio * shift, "bytes_per_token_tolerance": 4e-4}
        facts |= {"scored_tokens": scored, "sequence_length": 64, "vocab_size": 400}
        assert recognise(toy_manifest, read_published({"t": facts}, where="r")).recognised is expected
    facts |= {"vocab_size": 401}
    assert (
        "vocab_size is 400, published 401"
        in recognise(toy_manifest, read_published({"t": facts}, where="r")).differences
    )


@pytest.fixture(scope="module")
def toy_manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    from tests.toy import toy_recipe
    from trainer import data

    folder = tmp_path_factory.mktemp("toy") / "data"
    data.build(toy_recipe(), folder)
    return take(open_data([folder]))


def test_nothing_to_compare_recognises_nothing(tmp_path: Path) -> None:
    """A published split of which no number of tokens is known matches whatever comes, and so recognises nothing."""
    facts = {"t": {"status": "current", "documents": 3}}
    assert not recognise(manifest_of(tmp_path / "d"), read_published(facts, where="r")).recognised


def test_damaged_facts_and_missing_splits_are_refused(tmp_path: Path) -> None:
    """No facts, facts of another type and a manifest without validation are errors of one line."""
    for tree in (None, {}, [], {"t": None}, {"t": {}}, {"t": {"status": "current", "tokens": "many"}}):
        with pytest.raises(ManifestError, match="rules"):
            read_published(tree, where="rules")
    (tmp_path / "d").mkdir()
    write_shard(tmp_path / "d" / "train_0.bin", np.array([1], dtype=np.uint16))
    with pytest.raises(ManifestError, match="no split val"):
        recognise(take(open_data([tmp_path / "d"])), read_published(yaml.safe_load(RULES), where="r"))
