"""Artifacts: identity of pack and unpack, the documented bytes, and refusal of everything else."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import brotli
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trainer import artifact
from trainer.errors import ArtifactError
from trainer.quantized import QuantizedMatrix, QuantizedModel, q_max

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: "\\ud" not in json.dumps(value))


def matrix(rows: int, columns: int, *, bits: int, seed: int) -> QuantizedMatrix:
    """Codes over the whole range of `bits`, scales over the whole range of positive fp16."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-q_max(bits), q_max(bits) + 1, (rows, columns)).astype(np.int8)
    scales = rng.integers(1, 0x7C00, rows).astype(np.uint16).view(np.float16)
    return QuantizedMatrix(torch.from_numpy(codes), torch.from_numpy(scales), bits)


def vector(shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Any finite fp16, subnormal and negative zero included."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 0x7C00, shape).astype(np.uint16) | rng.choice([0, 0x8000], shape).astype(np.uint16)
    return torch.from_numpy(np.asarray(words, np.uint16).view(np.float16))


@st.composite
def models(draw: st.DrawFn) -> QuantizedModel:
    """Models of up to four tensors under any names, at least one."""
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=4))
    seed = st.integers(0, 2**32 - 1)
    matrices: dict[str, QuantizedMatrix] = {}
    vectors: dict[str, Tensor] = {}
    for name in names:
        if draw(st.booleans()):
            rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
            matrices[name] = matrix(rows, columns, bits=draw(st.integers(2, 8)), seed=draw(seed))
        else:
            vectors[name] = vector(tuple(draw(st.lists(st.integers(1, 5), max_size=3))), seed=draw(seed))
    return QuantizedModel(matrices, vectors)


def small() -> QuantizedModel:
    """One of everything, in an order that is not that of the names."""
    return QuantizedModel(
        {"w": matrix(3, 4, bits=6, seed=0), "embedding": matrix(5, 2, bits=8, seed=1)},
        {"gain": vector((3,), seed=2), "λ": vector((), seed=3)},
    )


FACTS = {"seed": 42, "recipe": "sha256:00", "nested": {"b": [1, 2.5, None], "a": "ä"}}


def bits_of(quantized: QuantizedModel) -> dict[str, Any]:
    """Everything that a model consists of, as comparable values."""
    found: dict[str, Any] = {}
    for name, m in quantized.matrices.items():
        found[name] = (m.bits, m.codes.dtype, m.codes.tolist(), m.scales.view(torch.int16).tolist(), m.scales.dtype)
    for name, v in quantized.vectors.items():
        found[name] = (v.dtype, v.shape, v.view(torch.int16).tolist())
    return found


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def craft(header: bytes, streams: bytes = b"", *, promised: int | None = None) -> bytes:
    """A file with a right digest around any header and streams."""
    packed = brotli.compress(header)
    size = len(header) if promised is None else promised
    return seal(struct.pack("<4sIII", b"GOLF", 1, len(packed), size) + packed + streams)


def table(*rows: tuple[bytes, int, tuple[int, ...]], facts: bytes = b"{}", count: int | None = None) -> bytes:
    """A header up to the sizes of the streams."""
    parts = [struct.pack("<I", len(facts)), facts, struct.pack("<I", len(rows) if count is None else count)]
    for name, kind, shape in rows:
        parts.append(bytes([len(name)]) + name + bytes([kind, len(shape)]) + struct.pack(f"<{len(shape)}I", *shape))
    return b"".join(parts)


def sizes(*streams: bytes) -> bytes:
    return struct.pack(f"<{len(streams)}I", *map(len, streams))


def one_matrix(codes: bytes, scales: bytes, *, bits: int = 6, shape: tuple[int, int] = (1, 1)) -> bytes:
    """A file of one matrix "w" with these plain streams."""
    streams = [brotli.compress(codes), brotli.compress(scales)]
    return craft(table((b"w", bits, shape)) + sizes(*streams), b"".join(streams))


GOOD_SCALE = struct.pack("<e", 0.5)


@given(models(), st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.integers(0, 11))
def test_unpacking_gives_what_was_packed(model: QuantizedModel, facts: dict[str, Any], quality: int) -> None:
    """unpack is the inverse of pack, bit for bit, with the metadata."""
    unpacked, metadata = artifact.unpack(artifact.pack(model, metadata=facts, quality=quality))
    assert bits_of(unpacked) == bits_of(model)
    assert metadata == facts
    assert all(m.codes.is_contiguous() for m in unpacked.matrices.values())


@pytest.mark.parametrize("quality", [0, 5, 11])
def test_models_that_compress_to_almost_nothing_come_back(quality: int) -> None:
    """Streams of a few bytes for a megabyte (zeros, runs) are no bombs: they unpack to what was packed."""
    codes = torch.zeros(1000, 1000, dtype=torch.int8)
    codes[:, 500:] = 7
    model = QuantizedModel(
        {"w": QuantizedMatrix(codes, torch.full((1000,), 0.5, dtype=torch.float16), 4)},
        {"v": torch.ones(1 << 20, dtype=torch.float16), "x": torch.zeros(1, dtype=torch.float16)},
    )
    data = artifact.pack(model, metadata={"zeros": "0" * 100_000}, quality=quality)
    assert len(data) < 4000
    assert bits_of(artifact.unpack(data)[0]) == bits_of(model)


@given(models())
def test_neither_threads_nor_order_change_a_byte(model: QuantizedModel) -> None:
    """Equal models give equal bytes, however their dicts are ordered and however many threads compress."""
    swapped = QuantizedModel(dict(reversed(model.matrices.items())), dict(reversed(model.vectors.items())))
    one = artifact.pack(model, metadata={"a": 1, "b": 2}, quality=5)
    assert artifact.pack(swapped, metadata={"b": 2, "a": 1}, quality=5, threads=3) == one


def test_the_bytes_are_the_documented_ones() -> None:
    """A reader written from the module's docstring alone finds every number where it says."""
    model = small()
    data = artifact.pack(model, metadata={"seed": 1, "a": "ä"})
    magic, version, stored, plain = struct.unpack_from("<4sIII", data)
    assert (magic, version) == (b"GOLF", 1)
    header = brotli.decompress(data[16 : 16 + stored])
    assert len(header) == plain
    text = '{"a":"ä","seed":1}'.encode()
    rows = b"\x09embedding\x08\x02\x05\0\0\0\x02\0\0\0" + b"\x04gain\0\x01\x03\0\0\0"
    rows += b"\x01w\x06\x02\x03\0\0\0\x04\0\0\0" + b"\x02\xce\xbb\0\0"
    fixed = struct.pack("<I", len(text)) + text + struct.pack("<I", 4) + rows
    assert header[: len(fixed)] == fixed
    streams, offset = [], 16 + stored
    for size in struct.unpack("<4I", header[len(fixed) :]):
        streams.append(brotli.decompress(data[offset : offset + size]))
        offset += size
    assert data[offset:] == hashlib.sha256(data[:offset]).digest()
    embedding, w = model.matrices["embedding"], model.matrices["w"]
    scales = struct.pack("<8e", *embedding.scales.tolist(), *w.scales.tolist())
    values = struct.pack("<4e", *model.vectors["gain"].tolist(), float(model.vectors["λ"]))
    assert streams == [
        bytes(code % 256 for code in embedding.codes.T.flatten().tolist()),
        bytes(code % 256 for code in w.codes.T.flatten().tolist()),
        scales[::2] + scales[1::2],
        values[::2] + values[1::2],
    ]


def test_every_flipped_bit_is_refused() -> None:
    """No single bit of an artifact can change unnoticed."""
    data = artifact.pack(small(), metadata=FACTS)
    artifact.unpack(data)
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(ArtifactError):
            artifact.unpack(bytes(flipped))


def test_every_truncation_and_extension_is_refused() -> None:
    """Nor can an artifact lose its last bytes, its first ones, or gain any."""
    data = artifact.pack(small(), metadata=FACTS)
    for size in range(len(data)):
        for part in (data[:size], data[len(data) - size :]):
            with pytest.raises(ArtifactError):
                artifact.unpack(part)
    for extra in (b"\0", data):
        with pytest.raises(ArtifactError):
            artifact.unpack(data + extra)


def test_a_forged_digest_does_not_get_past_the_structure() -> None:
    """With the digest made right again, a flipped bit is refused or gives a model that can be packed, never a crash."""
    data = artifact.pack(small(), metadata=FACTS)
    refused = 0
    for position in range(8 * (len(data) - 32)):
        flipped = bytearray(data[:-32])
        flipped[position // 8] ^= 1 << position % 8
        try:
            model, metadata = artifact.unpack(seal(bytes(flipped)))
        except ArtifactError:
            refused += 1
        else:
            assert artifact.unpack(artifact.pack(model, metadata=metadata, quality=0))[1] == metadata
    assert refused > 4 * (len(data) - 32), "most flips break a length, a name, a brotli stream or a range"


@given(st.binary(max_size=200), st.binary(max_size=60))
def test_random_bytes_are_refused(header: bytes, streams: bytes) -> None:
    """Neither random files nor random headers with a right digest raise anything but ArtifactError."""
    for data in (header, seal(b"GOLF\x01\0\0\0" + header), craft(header, streams)):
        with pytest.raises(ArtifactError):
            artifact.unpack(data)


OK = brotli.compress(b"\0"), brotli.compress(GOOD_SCALE)
VECTOR = brotli.compress(bytes(2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (craft(table()), "no tensors"),
        (craft(table((b"v", 0, (0,)))), r"'v' has shape \[0\], expected no empty"),
        (craft(table((b"v", 1, (1,)))), "'v' has kind 1 and 1 dim"),
        (craft(table((b"v", 9, (1, 1)))), "'v' has kind 9 and 2 dim"),
        (craft(table((b"v", 6, (1,)))), "'v' has kind 6 and 1 dim"),
        (craft(table((b"v", 0, (1,) * 9))), "'v' has kind 0 and 9 dim"),
        (craft(table((b"v", 0, (2**32 - 1,) * 8))), "take [0-9]+ bytes, the limit is 536870912"),
        (craft(table((b"a", 8, (2**28, 1)), (b"b", 0, (2**28,)))), "up to 'b' take 805306368 bytes"),
        (craft(table((b"b", 0, (1,)), (b"a", 0, (1,)))), "tensor 1 is 'a' after 'b'"),
        (craft(table((b"a", 0, (1,)), (b"a", 0, (1,)))), "tensor 1 is 'a' after 'a'"),
        (craft(table((b"\xff", 0, (1,)))), "name of tensor 0 is not UTF-8"),
        (craft(table((b"v", 0, (1,)), count=2**32 - 1)), "tensor 1 needs 1 bytes"),
        (craft(table((b"v", 0, (1,))) + sizes(VECTOR) + b"\0", VECTOR), "header: 1 bytes after the end"),
        (craft(table((b"v", 0, (1,))) + sizes(VECTOR), VECTOR + b"\0"), "artifact: 1 bytes after the end"),
        (craft(table((b"v", 0, (1,))) + struct.pack("<I", 2**32 - 1), VECTOR), "stream 0 needs 4294967295 bytes"),
        (craft(table((b"v", 0, (1,))) + sizes(VECTOR + b"x"), VECTOR + b"x"), "stream 0: not a brotli stream"),
        (craft(table((b"v", 0, (1,))) + sizes(VECTOR[:-1]), VECTOR[:-1]), "stream 0: ends after"),
        (craft(table((b"v", 0, (1,))) + sizes(b""), b""), "stream 0: ends after 0 of 2"),
        (craft(table((b"v", 0, (2,))) + sizes(VECTOR), VECTOR), "stream 0: decompresses to less than the 4"),
        (craft(table(), promised=3), "header: decompresses to more than the 3"),
        (craft(table(), promised=2**20 + 1), "header: 1048577 bytes promised"),
        (craft(table(facts=b"[]")), "metadata is not a JSON object in canonical form"),
        (craft(table(facts=b'{"a":1,"a":1}')), "metadata is not"),
        (craft(table(facts=b'{"a": 1}')), "metadata is not"),
        (craft(table(facts=b'{"b":1,"a":1}')), "metadata is not"),
        (craft(table(facts=b'{"a":NaN}')), "metadata is not"),
        (craft(table(facts=b"\xff")), "metadata is not"),
        (craft(table(facts=b"[" * 200_000)), "metadata is not"),
        (craft(table(facts=b'{"a":' + b"9" * 5000 + b"}")), "metadata is not"),
        (one_matrix(b"\x20", GOOD_SCALE), r"w: codes from 32 to 32, expected within ±31 for 6 bits"),
        (one_matrix(b"\x80", GOOD_SCALE, bits=8), r"w: codes from -128 to -128, expected within ±127"),
        (one_matrix(b"\0", struct.pack("<e", 0.0)), "w: an fp16 number is NaN, infinite, or a scale"),
        (one_matrix(b"\0", struct.pack("<e", -1.0)), "w: an fp16 number"),
        (one_matrix(b"\0", struct.pack("<e", math.nan)), "w: an fp16 number"),
        (one_matrix(b"\0", struct.pack("<e", math.inf)), "w: an fp16 number"),
        (seal(b"PNG!" + bytes(12)), "begins with b'PNG!'"),
        (seal(struct.pack("<4sIII", b"GOLF", 2, 0, 0)), "version 2, expected 1"),
        (b"GOLF", "4 bytes, expected from 48"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_hostile_files_are_refused_where_they_lie(data: bytes, message: str) -> None:
    """Each lie has its own one-line message, although the digest is right."""
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.unpack(data)
    assert "\n" not in str(caught.value)


def test_the_crafted_files_are_good_but_for_their_lie() -> None:
    """The control of the hostile files: without the lie the same builders make artifacts that unpack."""
    vectors = artifact.unpack(craft(table((b"v", 0, (1,))) + sizes(VECTOR), VECTOR))[0].vectors
    assert vectors["v"].tolist() == [0.0]
    weight = artifact.unpack(one_matrix(b"\x1f", GOOD_SCALE))[0].matrices["w"]
    assert (weight.codes.tolist(), weight.scales.tolist(), weight.bits) == ([[31]], [0.5], 6)


@pytest.mark.parametrize("where", ["header", "codes"])
def test_a_bomb_is_stopped_at_the_promised_size(where: str) -> None:
    """A stream that would grow to 256 MiB is cut off after what the header promises: under 4 MiB are ever held."""
    encoder = brotli.Compressor(quality=1)
    block = bytes(1 << 20)
    bomb = b"".join(encoder.process(block) for _ in range(256)) + encoder.finish()
    if where == "header":
        data = seal(struct.pack("<4sIII", b"GOLF", 1, len(bomb), 1000) + bomb)
    else:
        data = craft(table((b"w", 6, (10, 10))) + sizes(bomb, OK[1]), bomb + OK[1])
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="decompresses to more than"):
            artifact.unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 22


def test_files_above_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file longer than the stated limit no more than the limit is read; it is refused unhashed and unparsed."""
    monkeypatch.setattr(artifact, "MAX_FILE_BYTES", 1000)
    path = tmp_path / "model.golf"
    with path.open("wb") as stream:
        stream.truncate(1 << 26)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="1001 bytes, expected from 48 to 1000"):
            artifact.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_files_are_written_whole_and_read_back(tmp_path: Path) -> None:
    """read is the inverse of write; the folder holds the artifact alone, of the size that write returned."""
    path = tmp_path / "out" / "model.golf"
    size = artifact.write(path, small(), metadata=FACTS, quality=11)
    assert path.read_bytes() == artifact.pack(small(), metadata=FACTS)
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


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (QuantizedModel({}, {}), "no tensors"),
        (QuantizedModel({"a": W}, {"a": vector((1,), seed=0)}), "expected fp16 and a name that no matrix has"),
        (QuantizedModel({"a": QuantizedMatrix(W.codes, W.scales, 3)}, {}), r"a: codes .* within ±3 for 3 bits"),
        (QuantizedModel({"a": QuantizedMatrix(W.codes, W.scales, 9)}, {}), "'a' has kind 9"),
        (QuantizedModel({"a": QuantizedMatrix(W.codes, W.scales[:1], 4)}, {}), "expected int8 codes"),
        (QuantizedModel({"a": QuantizedMatrix(W.codes.view(torch.uint8), W.scales, 4)}, {}), "expected int8 codes"),
        (QuantizedModel({"a": QuantizedMatrix(W.codes, W.scales.float(), 4)}, {}), "expected int8 codes"),
        (QuantizedModel({"a": QuantizedMatrix(W.codes[:0], W.scales[:0], 4)}, {}), r"shape \[0, 3\]"),
        (QuantizedModel({}, {"v": torch.ones(2)}), "vector of torch.float32"),
        (QuantizedModel({}, {"v": torch.tensor([math.nan], dtype=torch.float16)}), "v: an fp16 number is NaN"),
        (QuantizedModel({}, {"v" * 256: vector((1,), seed=0)}), "256 bytes, expected a name of at most 255"),
    ],
)
def test_what_can_not_be_read_is_not_written(model: QuantizedModel, message: str) -> None:
    """pack refuses every model that unpack would refuse."""
    with pytest.raises(ArtifactError, match=message):
        artifact.pack(model, metadata={})


def test_metadata_is_small() -> None:
    """Metadata that would make the header larger than its limit is refused."""
    with pytest.raises(ArtifactError, match=r"header: [0-9]+ bytes, expected at most 1048576"):
        artifact.pack(small(), metadata={"log": "x" * (1 << 20)})


def test_codes_cost_little_more_than_their_entropy() -> None:
    """brotli on the codes of a Gaussian matrix stays within 4 % of the order-0 entropy, scales and header included."""
    generator = torch.Generator().manual_seed(0)
    codes = (2.4 * torch.randn(512, 512, generator=generator)).round().clamp(-31, 31).to(torch.int8)
    scales = (0.002 * (1 + 0.1 * torch.randn(512, generator=generator))).half()
    share = np.unique(codes.numpy(), return_counts=True)[1] / codes.numel()
    entropy = -float((share * np.log2(share)).sum()) * codes.numel() / 8
    data = artifact.pack(QuantizedModel({"w": QuantizedMatrix(codes, scales, 6)}, {}), metadata=FACTS)
    assert entropy < len(data) < 1.04 * entropy
