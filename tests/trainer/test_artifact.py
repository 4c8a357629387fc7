"""Artifacts: identity of pack and unpack, the documented bytes, old files, and what is not written."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import brotli
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from tests.trainer import goldens, plain_ans
from tests.trainer.artifacts import FACTS, JSON, bits_of, document, matrix, models, planes, seal, small, vector
from trainer import ans, artifact, container
from trainer.errors import ArtifactError
from trainer.quantized import QuantizedMatrix, QuantizedModel

CODECS = st.sampled_from(["brotli", "ans"])
each_codec = pytest.mark.parametrize("codec", ["brotli", "ans"])
DOCUMENT = Path(__file__).parents[2] / "docs" / "artifact.md"


@given(models(), st.dictionaries(st.text(max_size=5), JSON, max_size=3), CODECS, st.integers(0, 11))
def test_unpacking_gives_what_was_packed(
    model: QuantizedModel, facts: dict[str, Any], codec: str, quality: int
) -> None:
    """unpack is the inverse of pack for both codecs and all options, bit for bit, with the metadata."""
    unpacked, metadata = artifact.unpack(artifact.pack(model, metadata=facts, codec=codec, quality=quality))
    assert bits_of(unpacked) == bits_of(model)
    assert metadata == facts


@each_codec
@pytest.mark.parametrize("quality", [0, 11])
def test_models_that_compress_to_almost_nothing_come_back(codec: str, quality: int) -> None:
    """Streams of a few bytes for a megabyte (zeros, runs) are no bombs: they unpack to what was packed."""
    codes = torch.zeros(1000, 1000, dtype=torch.int8)
    codes[:, 500:] = 7
    model = QuantizedModel(
        {"w": QuantizedMatrix(codes, torch.full((1000,), 0.5, dtype=torch.float16), 4)},
        {"v": torch.ones(1 << 20, dtype=torch.float16), "x": torch.zeros(1, dtype=torch.float16)},
    )
    data = artifact.pack(model, metadata={"zeros": "0" * 100_000}, codec=codec, quality=quality)
    assert len(data) < (4000 if codec == "brotli" else 140_000)
    assert bits_of(artifact.unpack(data)[0]) == bits_of(model)


@given(models(), CODECS)
def test_neither_threads_nor_order_change_a_byte(model: QuantizedModel, codec: str) -> None:
    """Equal models give equal bytes, however their dicts are ordered and however many threads compress."""
    swapped = QuantizedModel(dict(reversed(model.matrices.items())), dict(reversed(model.vectors.items())))
    one = artifact.pack(model, metadata={"a": 1, "b": 2}, codec=codec, quality=5)
    assert artifact.pack(swapped, metadata={"b": 2, "a": 1}, codec=codec, quality=5, threads=3) == one


@given(models(), st.dictionaries(st.text(max_size=5), JSON, max_size=3), CODECS)
def test_the_bytes_are_the_documented_ones(model: QuantizedModel, facts: dict[str, Any], codec: str) -> None:
    """A writer made from docs/artifact.md alone gives the same file."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert artifact.pack(model, metadata=facts, codec=codec) == document(model, text, codec)


@given(models())
def test_codes_are_coded_as_documented(model: QuantizedModel) -> None:
    """A reader of codec 2 made from docs/artifact.md alone, in plain Python, finds the codes."""
    coded = [plane for name in sorted(model.matrices) for plane in planes(model.matrices[name])]
    if coded:
        streams = container.unseal(artifact.pack(model, metadata={}, codec="ans")).streams
        shapes = [(len(rows), len(rows[0]), low, high) for rows, low, high in coded]
        assert plain_ans.decode(streams[0].data, shapes) == [rows for rows, _, _ in coded]


@pytest.mark.parametrize("case", ["many lanes", "zeros", "predicted"])
def test_many_codes_are_coded_as_documented(case: str) -> None:
    """So does it with many lanes, with many that end before the few begin, and with a plane that is predicted."""
    rng = np.random.default_rng(0)
    codes = np.clip(np.round(rng.standard_t(4, (363, 363)) * 2), -31, 31)
    if case == "zeros":
        codes[:] = 0
    elif case == "predicted":
        codes = np.clip(np.round(10 * rng.standard_normal((300, 1)) + rng.standard_normal((300, 7))), -31, 31)
    data = ans.encode([codes.astype(np.int8)], [ans.Plane(*codes.shape, -31, 31)])
    assert (data[0] == 128) is (case == "predicted")
    assert plain_ans.decode(data, [(*codes.shape, -31, 31)]) == [codes.tolist()]


def test_the_documented_example_is_the_file_that_is_written() -> None:
    """The bytes of the worked example in docs/artifact.md are those of the model that it describes."""
    model = QuantizedModel(
        {
            "w": QuantizedMatrix(
                torch.tensor([[31, 0, -1], [2, -31, 1]], dtype=torch.int8),
                torch.tensor([0.5, 0.25], dtype=torch.float16),
                6,
            )
        },
        {"gain": torch.tensor([1.0, -2.0], dtype=torch.float16)},
    )
    found = [
        bytes.fromhex("".join(re.findall(r"^[0-9a-f]{4}  ([0-9a-f ]+?)(?:  .*)?$", block, flags=re.MULTILINE)))
        for block in DOCUMENT.read_text().partition("## A file by hand")[2].split("```")[1::2]
    ]
    data = artifact.pack(model, metadata={"seed": 1})
    assert found == [data, brotli.decompress(data[16:67])]


def test_the_documented_limits_are_those_of_the_reader() -> None:
    """docs/artifact.md names every limit with its value."""
    limits = {name: value for name, value in vars(container).items() if name.startswith("MAX_")}
    found = dict(re.findall(r"^\| `(MAX_\w+)` \| ([0-9,]+) \|", DOCUMENT.read_text(), flags=re.MULTILINE))
    assert {name: int(value.replace(",", "")) for name, value in found.items()} == limits


def test_files_of_version_1_stay_readable() -> None:
    """A file of the last code that wrote version 1 is read as what it was made from."""
    model, metadata = artifact.read(goldens.FOLDER / "version1.golf")
    assert bits_of(model) == bits_of(goldens.early())
    assert metadata == goldens.FACTS


@pytest.mark.parametrize(("name", "codec"), goldens.CODECS.items())
def test_files_of_version_2_stay_as_they_are(name: str, codec: str) -> None:
    """The goldens are read as what they were made from, and written byte for byte.

    Where only the writing fails, brotli changed: nothing is wrong with old files.
    """
    model, metadata = artifact.read(goldens.FOLDER / name)
    assert bits_of(model) == bits_of(goldens.late())
    assert metadata == goldens.FACTS
    written = artifact.pack(goldens.late(), metadata=goldens.FACTS, codec=codec)
    assert written == (goldens.FOLDER / name).read_bytes()


@each_codec
def test_every_flipped_bit_is_refused(codec: str) -> None:
    """No single bit of an artifact can change unnoticed."""
    data = artifact.pack(small(), metadata=FACTS, codec=codec)
    artifact.unpack(data)
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(ArtifactError):
            artifact.unpack(bytes(flipped))


@each_codec
def test_every_truncation_and_extension_is_refused(codec: str) -> None:
    """Nor can an artifact lose its last bytes, its first ones, or gain any."""
    data = artifact.pack(small(), metadata=FACTS, codec=codec)
    for size in range(len(data)):
        for part in (data[:size], data[len(data) - size :]):
            with pytest.raises(ArtifactError):
                artifact.unpack(part)
    for extra in (b"\0", data):
        with pytest.raises(ArtifactError):
            artifact.unpack(data + extra)


@each_codec
def test_a_forged_digest_does_not_get_past_the_structure(codec: str) -> None:
    """With the digest made right again, a flipped bit is refused or gives a model that can be packed, never a crash."""
    data = artifact.pack(small(), metadata=FACTS, codec=codec)
    refused = 0
    positions = range(0, 8 * (len(data) - 32), 13)  # a bit of two bytes in three, each of the eight as often
    for position in positions:
        flipped = bytearray(data[:-32])
        flipped[position // 8] ^= 1 << position % 8
        try:
            model, metadata = artifact.unpack(seal(bytes(flipped)))
        except ArtifactError:
            refused += 1
        else:
            assert artifact.unpack(artifact.pack(model, metadata=metadata, codec=codec, quality=0))[1] == metadata
    assert refused > len(positions) // 4, "many flips break a length, a name, a brotli stream or a range"


def test_files_above_the_limit_are_neither_read_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file longer than the stated limit no more than the limit is read; it is refused unhashed and unparsed."""
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 200)
    path = tmp_path / "model.golf"
    with path.open("wb") as stream:
        stream.truncate(1 << 26)
    with pytest.raises(ArtifactError, match="201 bytes, expected from 48 to 200"):
        artifact.read(path)
    with pytest.raises(ArtifactError, match=r"[0-9]+ bytes, expected at most 200; raise k or lower the bits"):
        artifact.pack(small(), metadata=FACTS)


@each_codec
def test_files_are_written_whole_and_read_back(tmp_path: Path, codec: str) -> None:
    """read is the inverse of write; the folder holds the artifact alone, of the size that write returned."""
    path = tmp_path / "out" / "model.golf"
    size = artifact.write(path, small(), metadata=FACTS, codec=codec, quality=11)
    assert path.read_bytes() == artifact.pack(small(), metadata=FACTS, codec=codec)
    assert size == path.stat().st_size
    model, metadata = artifact.read(path)
    assert bits_of(model) == bits_of(small())
    assert metadata == FACTS
    assert [entry.name for entry in path.parent.iterdir()] == ["model.golf"]


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """A missing file, a folder and a damaged file are ArtifactErrors with the path and the remedy."""
    for path in (tmp_path / "absent.golf", tmp_path):
        with pytest.raises(ArtifactError, match=r"can't read the artifact .*; run the stage quantize"):
            artifact.read(path)
    damaged = tmp_path / "damaged.golf"
    damaged.write_bytes(artifact.pack(small(), metadata={})[:-1] + b"\0\0")
    with pytest.raises(ArtifactError, match=r"damaged\.golf: artifact: content and SHA-256 differ"):
        artifact.read(damaged)


W = matrix(2, 3, bits=4, seed=0)
P = matrix(2, 3, bits=4, seed=0, protect=(1, 1, 3))
C = matrix(2, 3, bits=4, seed=0, correct=(1, 2))


def other(of: QuantizedMatrix, **changes: Any) -> dict[str, QuantizedMatrix]:
    """A matrix with some fields of its protection or correction changed."""
    field = "protected" if of.protected else "correction"
    return {"a": dataclasses.replace(of, **{field: dataclasses.replace(getattr(of, field), **changes)})}


@each_codec
@pytest.mark.parametrize(
    ("matrices", "vectors", "message"),
    [
        ({}, {}, "header: 0 tensors, expected 1 to 4096"),
        ({"a": W}, {"a": vector((1,), seed=0)}, "'a': the name of a matrix and of a vector"),
        ({"a": QuantizedMatrix(W.codes, W.scales, 3)}, {}, r"'a': codes from -[0-9] to [0-9], expected from -3 to 3"),
        ({"a": QuantizedMatrix(W.codes, W.scales, 9)}, {}, "'a' has kind 9"),
        ({"a": QuantizedMatrix(W.codes, W.scales, -1)}, {}, "'a' has kind -1"),
        ({"a": QuantizedMatrix(W.codes, W.scales[:1], 4)}, {}, r"'a': numbers .*float16 \[1\], expected float16 \[2\]"),
        ({"a": QuantizedMatrix(W.codes.view(torch.uint8), W.scales, 4)}, {}, r"uint8 \[2, 3\], expected int8 \[2, 3\]"),
        ({"a": QuantizedMatrix(W.codes[0], W.scales, 4)}, {}, "'a' has kind 4 and 1 dim"),
        ({"a": QuantizedMatrix(W.codes, W.scales.float(), 4)}, {}, "float32 .*, expected float16"),
        ({"a": QuantizedMatrix(W.codes, -W.scales, 4)}, {}, "'a': an fp16 number is NaN, infinite, or a scale"),
        ({"a": QuantizedMatrix(W.codes[:0], W.scales[:0], 4)}, {}, r"shape \[0, 3\]"),
        (other(P, bits=2), {}, "expected from -1 to 1"),
        (other(P, bits=9), {}, "'a' protects 1 columns from 1 on with 9 bits"),
        (other(P, start=-1), {}, "'a' protects 1 columns from -1 on with 3 bits"),
        (other(P, start=3), {}, "'a' protects 1 columns from 3 on with 3 bits, expected some of its 3"),
        (other(P, start=0, width=3), {}, "'a' protects 3 columns from 0 on .* expected some of its 3, not all"),
        (other(P, width=0), {}, "'a' protects 0 columns"),
        (other(P, scales=P.scales[:1]), {}, r"float16 \[1\], expected float16 \[2\]"),
        (other(P, scales=torch.zeros(2).half()), {}, "a scale that is not positive"),
        (other(C, group=0), {}, "with rank 1 in groups of 0, expected 1 to 2 and 1 to 65535"),
        (other(C, group=65536), {}, "groups of 65536"),
        (other(C, group=3), {}, r"float16 \[2\], expected float16 \[1\]"),
        (other(C, left=torch.ones(2, 3).char()), {}, "rank 3 in groups of 2, expected 1 to 2"),
        (other(C, left=torch.ones(2, 2).char()), {}, r"int8 \[1, 3\], expected int8 \[2, 3\]"),
        (other(C, left=torch.full((2, 1), 2).char()), {}, "codes from 2 to 2, expected from -2 to 1"),
        (other(C, right=torch.full((1, 3), 8).char()), {}, "codes from 8 to 8, expected from -8 to 7"),
        (other(C, left_scale=torch.ones(2).half()), {}, r"float16 \[2\], expected float16 \[1\]"),
        (other(C, right_scales=torch.full((2,), math.inf).half()), {}, "NaN, infinite"),
        ({}, {"v": torch.ones(2)}, "'v': numbers torch.float32"),
        ({}, {"v": torch.tensor([math.nan], dtype=torch.float16)}, "'v': an fp16 number is NaN"),
        ({}, {"v" * 256: vector((1,), seed=0)}, "256 bytes, expected a name of at most 255"),
        ({"a": QuantizedMatrix(W.codes, W.scales, 0)}, {}, "'a': a matrix with codes of 0 bits, expected 2 to 8"),
        ({}, {"v\ud800": vector((1,), seed=0)}, "half of a surrogate pair, expected a name in UTF-8"),
        ({}, {"v": torch.ones(1).half().expand(1 << 33)}, "take 17179869184 bytes, the limit is 67108864"),
    ],
)
def test_what_can_not_be_read_is_not_written(codec: str, matrices: Any, vectors: Any, message: str) -> None:
    """pack refuses every model that unpack would refuse."""
    with pytest.raises(ArtifactError, match=message):
        artifact.pack(QuantizedModel(matrices, vectors), metadata={}, codec=codec)


def test_their_honest_neighbours_are_written() -> None:
    """The control of what is refused: the same matrices unchanged."""
    model = QuantizedModel({"a": W, "b": P, "c": C}, {"v" * 255: vector((1,), seed=0)})
    assert bits_of(artifact.unpack(artifact.pack(model, metadata={}))[0]) == bits_of(model)


def test_a_codec_that_does_not_exist_is_refused() -> None:
    """codec is one of two words."""
    with pytest.raises(ArtifactError, match="codec 'lrzip', expected brotli or ans"):
        artifact.pack(small(), metadata={}, codec="lrzip")


def test_metadata_is_small() -> None:
    """Metadata that would make the header larger than its limit is refused."""
    with pytest.raises(ArtifactError, match=r"header: [0-9]+ bytes, expected at most 1048576"):
        artifact.pack(small(), metadata={"log": "x" * (1 << 20)})


@pytest.mark.parametrize(("codec", "most"), [("brotli", 1.04), ("ans", 1.01)])
def test_codes_cost_little_more_than_their_entropy(codec: str, most: float) -> None:
    """On a Gaussian matrix brotli stays within 4 % of the codes' order-0 entropy, ans within 1 %, all included."""
    generator = torch.Generator().manual_seed(0)
    codes = (2.4 * torch.randn(512, 512, generator=generator)).round().clamp(-31, 31).to(torch.int8)
    scales = (0.002 * (1 + 0.1 * torch.randn(512, generator=generator))).half()
    share = np.unique(codes.numpy(), return_counts=True)[1] / codes.numel()
    entropy = -float((share * np.log2(share)).sum()) * codes.numel() / 8
    data = artifact.pack(QuantizedModel({"w": QuantizedMatrix(codes, scales, 6)}, {}), metadata=FACTS, codec=codec)
    assert entropy < len(data) < most * entropy
