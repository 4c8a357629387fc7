"""The reader of artifacts against files that lie: each lie is one line, and memory stays bounded."""

from __future__ import annotations

import math
import struct
import tracemalloc
from collections.abc import Callable

import brotli
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from tests.trainer import bombs
from tests.trainer.artifacts import craft, craft_1, numbers, row, seal, stored, table, vector
from trainer import ans, artifact, container
from trainer.codecs import BROTLI, RAW, Stream, load, store
from trainer.errors import ArtifactError

VECTOR = row(b"v", 0, (1,))
TWO = 0, bytes(2)
NONE = 0, b""
HALF = 0, struct.pack("<e", 0.5)
ZEROS = stored(bytes(64))
PLAIN = b"\0"


def one(name: bytes = b"w", bits: int = 6, shape: tuple[int, ...] = (1, 1), extras: bytes = PLAIN) -> bytes:
    """A row of a matrix."""
    return row(name, bits, shape, extras)


def protected(start: int, width: int, bits: int) -> bytes:
    """Flags and fields of a matrix with protected columns."""
    return b"\1" + struct.pack("<IIB", start, width, bits)


def corrected(rank: int, group: int) -> bytes:
    """Flags and fields of a matrix with a correction."""
    return b"\2" + struct.pack("<IH", rank, group)


def matrix(code: bytes, scale: float, *, bits: int = 6) -> bytes:
    """A file of one matrix [1, 1]."""
    return craft(table(one(bits=bits)), (0, code), (0, struct.pack("<e", scale)), NONE)


def coded(*codes: int, high: int = 31) -> tuple[int, bytes]:
    """A stream of one matrix [1, n] by the coder of codes."""
    values = np.array([codes], np.int8)
    return 2, ans.encode([values], [ans.Plane(1, len(codes), -high, high)])


VALUES = table(row(b"v", 0, (32,)))
"""Of a vector whose values are 64 bytes: `ZEROS` is its stream by brotli."""

LIES = [
    (craft(table()), "header: 0 tensors, expected 1 to 4096"),
    (craft(table(*(row(b"%04d" % i, 0, (1,)) for i in range(4097)))), "header: 4097 tensors, expected 1 to 4096"),
    (craft(table(row(b"v", 0, (0,)))), r"'v' has shape \[0\], expected no empty"),
    (craft(table(one(shape=(3, 0)))), r"'w' has shape \[3, 0\], expected no empty"),
    (craft(table(one(bits=1, shape=(1,)))), "'w' has kind 1 and 1 dim"),
    (craft(table(one(bits=9))), "'w' has kind 9 and 2 dim"),
    (craft(table(one(shape=(1,)))), "'w' has kind 6 and 1 dim"),
    (craft(table(row(b"v", 0, (1,) * 9))), "'v' has kind 0 and 9 dim"),
    (craft(table(row(b"v", 0, (2**32 - 1,) * 8))), "take [0-9]+ bytes, the limit is 67108864"),
    (craft(table(one(shape=(2**32 - 1, 2**32 - 1)))), "take [0-9]+ bytes, the limit is 67108864"),
    (craft(table(one(b"a", 8, (2**25, 1)), row(b"b", 0, (1,)))), "up to 'a' take 100663296 bytes"),
    (craft(table(one(b"a", 8, (1, 2**25)), row(b"b", 0, (2**25,)))), "up to 'b' take 100663298 bytes"),
    (craft(table(one(shape=(2**12, 2**13), extras=corrected(2**12, 1)))), "up to 'w' take [0-9]+ bytes"),
    (craft(table(row(b"b", 0, (1,)), row(b"a", 0, (1,)))), "tensor 1 is 'a' after 'b'"),
    (craft(table(row(b"a", 0, (1,)), one(b"a"))), "tensor 1 is 'a' after 'a'"),
    (craft(table(row(b"\xff", 0, (1,)))), "name of tensor 0 is not UTF-8"),
    (craft(table(VECTOR, count=2**32 - 1)), "tensor 1 needs 1 bytes"),
    (craft(table(VECTOR), NONE), "stream 1 needs 1 bytes at offset"),
    (craft(table(one(extras=b"\4"))), "'w' has flags 4, expected at most 3"),
    (craft(table(one(extras=b"\xff"))), "'w' has flags 255, expected at most 3"),
    (craft(table(one(shape=(2, 3), extras=protected(0, 0, 8)))), "'w' protects 0 columns from 0 on"),
    (craft(table(one(shape=(2, 3), extras=protected(0, 3, 8)))), "'w' protects 3 columns .* some of its 3, not all"),
    (craft(table(one(shape=(2, 3), extras=protected(2, 2, 8)))), "'w' protects 2 columns from 2 on"),
    (craft(table(one(shape=(2, 3), extras=protected(2**32 - 1, 2, 8)))), "protects 2 columns from 4294967295 on"),
    (craft(table(one(shape=(2, 3), extras=protected(1, 1, 1)))), "from 1 on with 1 bits, .* with 2 to 8"),
    (craft(table(one(shape=(2, 3), extras=protected(1, 1, 9)))), "from 1 on with 9 bits"),
    (craft(table(one(shape=(2, 3), extras=corrected(0, 1)))), "'w' is corrected with rank 0 in groups of 1"),
    (craft(table(one(shape=(2, 3), extras=corrected(3, 1)))), "with rank 3 in groups of 1, expected 1 to 2"),
    (craft(table(one(shape=(2, 3), extras=corrected(1, 0)))), "with rank 1 in groups of 0"),
    (craft(table(one(shape=(2, 3), extras=protected(0, 1, 8)[:-1]))), "tensor 0 needs 1 bytes"),
    (craft(table(VECTOR) + PLAIN, NONE, TWO), "stream 1 has 512 bytes for 2 by codec 0"),
    (craft(table(VECTOR) + struct.pack("<BIBI", 0, 0, 0, 2) + PLAIN), "header: 1 bytes after the end"),
    (craft(table(VECTOR), NONE, TWO, TWO), "header: 5 bytes after the end"),
    (seal(craft(table(VECTOR), NONE, TWO)[:-32] + PLAIN), "artifact: 1 bytes after the end"),
    (seal(craft(table(VECTOR), NONE, TWO)[:-33]), "artifact: stream 1 needs 2 bytes"),
    (craft(table(VECTOR), NONE, (3, b"xx")), "stream 1 has codec 3, expected 0, 1, or 2 for all codes"),
    (craft(table(VECTOR), NONE, (2, b"xx")), "stream 1 has codec 2, expected"),
    (craft(table(VECTOR), (2, b""), TWO), "stream 0 has codec 2, expected"),
    (craft(table(one()), coded(1), (2, b"")), "stream 1 has codec 2, expected"),
    (craft(table(VECTOR), NONE, (0, b"x")), "stream 1 has 1 bytes for 2 by codec 0, expected 1 for less, else 0"),
    (craft(table(VECTOR), NONE, (0, b"xxx")), "stream 1 has 3 bytes for 2 by codec 0"),
    (craft(table(VECTOR), (0, b"x"), TWO), "stream 0 has 1 bytes for 0 by codec 0"),
    (craft(table(VECTOR), NONE, (1, brotli.compress(bytes(2)))), "stream 1 has 6 bytes for 2 by codec 1"),
    (craft(table(VECTOR) + struct.pack("<BIBI", 0, 0, 0, 2**32 - 1)), "stream 1 has 4294967295 bytes for 2"),
    (craft(VALUES, NONE, (1, ZEROS[1] + b"x")), "values: not a brotli stream, or something follows it"),
    (craft(VALUES, NONE, (1, ZEROS[1][:-1])), "values: ends after [0-9]+ of 64"),
    (craft(VALUES, NONE, (1, b"")), "values: ends after 0 of 64"),
    (craft(VALUES, NONE, stored(bytes(63))), "values: decompresses to less than the 64 bytes promised"),
    (craft(VALUES, NONE, stored(bytes(65))), "values: decompresses to more than the 64 bytes promised"),
    (craft(table(), promised=2**20 + 1), "header: 1048577 bytes promised, [0-9]+ stored, expected at most 1048576"),
    (
        craft(table(VECTOR), NONE, TWO, promised=5),
        "header: 5 bytes promised, [0-9]+ stored, expected at most 1048576 and 5",
    ),
    (seal(struct.pack("<4sIII", b"GOLF", 2, 9, 10) + bytes(8)), "artifact: header needs 9 bytes at offset 16 of 24"),
    (craft(table(facts=b"[]")), "metadata is not a JSON object in canonical form"),
    (craft(table(facts=b"5")), "metadata is not"),
    (craft(table(facts=b'{"a":1,"a":1}')), "metadata is not"),
    (craft(table(facts=b'{"a": 1}')), "metadata is not"),
    (craft(table(facts=b'{"b":1,"a":1}')), "metadata is not"),
    (craft(table(facts=b'{"a":NaN}')), "metadata is not"),
    (craft(table(facts=b'{"a":1e400}')), "metadata is not"),
    (craft(table(facts=b'{"a":"\\ud800"}')), "metadata is not"),
    (craft(table(facts=b"\xff")), "metadata is not"),
    (craft(table(facts=b"[" * 200_000)), "metadata is not"),
    (craft(table(facts=b'{"a":' + b"9" * 5000 + b"}")), "metadata is not"),
    (matrix(b"\x20", 0.5), r"'w': codes from 32 to 32, expected from -31 to 31"),
    (matrix(b"\x80", 0.5, bits=8), r"'w': codes from -128 to -128, expected from -127 to 127"),
    (matrix(b"\0", 0.0), "'w': an fp16 number is NaN, infinite, or a scale"),
    (matrix(b"\0", -1.0), "'w': an fp16 number"),
    (matrix(b"\0", math.nan), "'w': an fp16 number"),
    (matrix(b"\0", math.inf), "'w': an fp16 number"),
    (craft(table(VECTOR), NONE, (0, struct.pack("<e", -math.inf))), "'v': an fp16 number"),
    (
        craft(table(one(shape=(1, 2), extras=protected(0, 1, 2))), (0, b"\1"), (0, b"\2"), (0, b"\0\0\x3c\x3c"), NONE),
        "'w': codes from 2 to 2, expected from -1 to 1",
    ),
    (
        craft(table(one(extras=corrected(1, 9))), *[(0, b"\2")] * 3, (0, bytes(3) + b"\x3c" * 3), NONE),
        "'w': codes from 2 to 2, expected from -2 to 1",
    ),
    (
        craft(table(one(extras=corrected(1, 9))), *[(0, b"\0")] * 3, (0, bytes(3) + b"\x3c\xbc\x3c"), NONE),
        "'w': an fp16 number",
    ),
    (craft(table(one(bits=5, shape=(1, 8))), coded(*range(8)), HALF, NONE), "codes"),
    (craft(table(one(shape=(1, 8))), (2, coded(*range(8))[1][:-1]), HALF, NONE), "codes"),
    (craft(table(one(shape=(1, 8))), (2, coded(*range(8))[1] + bytes(4)), HALF, NONE), "codes"),
    (craft(table(one(shape=(1, 8))), (2, b""), HALF, NONE), "plane 0: 0 classes"),
    (seal(b"PNG!" + bytes(12)), "begins with b'PNG!'"),
    (seal(struct.pack("<4sIII", b"GOLF", 3, 0, 0)), "version 3, expected 1 to 2; read it with the trainer that"),
    (seal(struct.pack("<4sIII", b"GOLF", 0, 0, 0)), "version 0, expected 1 to 2"),
    (b"GOLF", "4 bytes, expected from 48"),
]


@pytest.mark.parametrize(("data", "message"), LIES, ids=[message[:40] for _, message in LIES])
def test_hostile_files_are_refused_where_they_lie(data: bytes, message: str) -> None:
    """Each lie has its own one-line message, although the digest is right."""
    with pytest.raises(ArtifactError, match=message) as caught:
        artifact.unpack(data)
    assert "\n" not in str(caught.value)


PACKED = brotli.compress(PLAIN), brotli.compress(HALF[1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (craft_1(table(row(b"w", 6, (1, 1))), *PACKED, brotli.compress(b"")), "header: 4 bytes after the end"),
        (craft_1(table(one()), *PACKED), "stream 0 has 1280 bytes for 1, expected at most 65"),
        (craft_1(table(row(b"w", 6, (1, 1))), *PACKED[:1]), "stream 1 needs 4 bytes"),
        (craft_1(table(row(b"w", 6, (1, 1))), PLAIN, PACKED[1]), "codes of 'w': (not a brotli|ends after)"),
        (craft_1(table(row(b"w", 6, (1, 1))), brotli.compress(b"\x20"), PACKED[1]), "'w': codes from 32 to 32"),
        (craft_1(table(row(b"w", 6, (1, 1))), PACKED[0], brotli.compress(bytes(2))), "'w': an fp16 number"),
        (
            craft_1(table(row(b"w", 6, (1, 1))), PACKED[0] + bytes(65), PACKED[1]),
            "stream 0 has 70 bytes for 1, expected at most 65",
        ),
    ],
)
def test_hostile_files_of_version_1_are_refused(data: bytes, message: str) -> None:
    """The reader of the old version believes no more than that of the new."""
    with pytest.raises(ArtifactError, match=message):
        artifact.unpack(data)


def padded(plain: bytes, size: int) -> bytes:
    """Brotli of some bytes in as many as wanted, by a block that decoders skip (RFC 7932, 9.2)."""
    encoder = brotli.Compressor(quality=5)
    made: bytes = encoder.process(plain) + encoder.flush()
    end = encoder.finish()
    count = size - len(made) - len(end) - 2
    return b"".join([made, (0b010110 | count - 1 << 6).to_bytes(2, "little"), bytes(count), end])


@pytest.mark.parametrize(
    ("where", "message"), [("header", "header: [0-9]+ bytes promised"), ("stream", "stream 1 has")]
)
def test_version_1_has_no_room_for_bytes_that_say_nothing(where: str, message: str) -> None:
    """A header and a stream of n plain bytes are read if n + ⌊n / 1000⌋ + 64 are stored, and refused with one more."""
    plain = numbers(vector((1000,), seed=0))
    for more, room in ((0, True), (1, False)):
        stream = padded(plain, 2000 + 2 + 64 + more) if where == "stream" else brotli.compress(plain)
        header = table(row(b"v", 0, (1000,))) + struct.pack("<I", len(stream))
        packed = padded(header, len(header) + 64 + more) if where == "header" else brotli.compress(header)
        data = seal(struct.pack("<4sIII", b"GOLF", 1, len(packed), len(header)) + packed + stream)
        if room:
            assert numbers(artifact.unpack(data)[0].vectors["v"]) == plain
        else:
            with pytest.raises(ArtifactError, match=message):
                artifact.unpack(data)


@given(st.integers(0, 3000), st.integers(0, 11))
def test_brotli_of_noise_has_the_room_that_version_1_gives(size: int, quality: int) -> None:
    """What the writer of version 1 made of incompressible bytes is not refused for its size."""
    packed = brotli.compress(np.random.default_rng(size).bytes(size), quality=quality, lgwin=24)
    assert len(packed) <= container._most_stored(size)


def test_the_crafted_files_are_good_but_for_their_lie() -> None:
    """The control of the hostile files: without the lie the same builders make artifacts that unpack."""
    assert artifact.unpack(craft(table(VECTOR), NONE, TWO))[0].vectors["v"].tolist() == [0.0]
    assert artifact.unpack(craft(VALUES, NONE, ZEROS))[0].vectors["v"].tolist() == [0.0] * 32
    raw, by_ans = matrix(b"\x1f", 0.5), craft(table(one()), coded(31), HALF, NONE)
    first = craft_1(table(row(b"w", 6, (1, 1))), brotli.compress(b"\x1f"), PACKED[1])
    for data in (raw, by_ans, first):
        weight = artifact.unpack(data)[0].matrices["w"]
        assert (weight.codes.tolist(), weight.scales.tolist(), weight.bits) == ([[31]], [0.5], 6)
    striped = craft(
        table(one(shape=(1, 3), extras=protected(1, 1, 2))), (0, b"\2\3"), (0, b"\1"), (0, b"\0\0\x3c\x38"), NONE
    )
    found = artifact.unpack(striped)[0].matrices["w"]
    assert found.codes.tolist() == [[2, 1, 3]]
    assert found.protected is not None
    assert (found.scales.tolist(), found.protected.scales.tolist()) == ([1.0], [0.5])
    mended = craft(table(one(extras=corrected(1, 9))), *[(0, b"\1")] * 3, (0, bytes(3) + b"\x3c" * 3), NONE)
    correction = artifact.unpack(mended)[0].matrices["w"].correction
    assert correction is not None
    assert correction.product().tolist() == [[1.0]]


TIE = bytes([*range(1, 9), *[0] * 8])
"""As many bytes as brotli makes of it."""


def test_where_brotli_saves_nothing_the_bytes_are_stored() -> None:
    """A tie goes to the bytes; brotli of equal size is refused in version 2, while version 1 had no choice."""
    packed = brotli.compress(TIE, quality=11, lgwin=24)
    assert len(packed) == len(TIE)
    assert store(TIE, 11) == (RAW, TIE)
    header = table(row(b"v", 0, (len(TIE) // 2,)))
    artifact.unpack(craft(header, NONE, (RAW, TIE)))
    with pytest.raises(ArtifactError, match="stream 1 has 16 bytes for 16 by codec 1, expected 1 for less, else 0"):
        artifact.unpack(craft(header, NONE, (BROTLI, packed)))
    for dimensions, facts, more in ((0, b"{}", 4), (4, b'{"a":"0"}', 0)):
        header, stream = table(row(b"v", 0, (1,) * dimensions), facts=facts), brotli.compress(bytes(2))
        data = craft_1(header, stream)
        size, plain = struct.unpack_from("<II", data, 8)
        assert size == plain + more
        assert artifact.unpack(data)[0].vectors["v"].shape == (1,) * dimensions


@given(st.binary(max_size=200), st.binary(max_size=60), st.integers(0, 3))
def test_random_bytes_are_refused(header: bytes, stream: bytes, codec: int) -> None:
    """Neither random files nor random headers with a right digest raise anything but ArtifactError."""
    for data in (header, seal(b"GOLF\x02\0\0\0" + header), craft(header, (codec, stream)), craft_1(header, stream)):
        with pytest.raises(ArtifactError):
            artifact.unpack(data)


@given(st.binary(max_size=300), st.sampled_from([ans.Plane(4, 5, -31, 31), ans.Plane(1, 1, -1, 1)]))
def test_random_streams_of_codes_are_refused_or_codes(stream: bytes, plane: ans.Plane) -> None:
    """Behind a right table and digest random bytes of the codec ans raise ArtifactError, or are codes in range."""
    header = table(one(bits=2 if plane.high == 1 else 6, shape=(plane.rows, plane.cols)))
    scales = numbers(vector((plane.rows,), seed=0).abs() + 1)
    try:
        found = artifact.unpack(craft(header, (2, stream), (0, scales), NONE))[0].matrices["w"].codes
    except ArtifactError:
        return
    assert int(found.abs().max()) <= plane.high


@pytest.mark.parametrize("where", ["header", "codes", "scales", "values"])
def test_a_bomb_is_stopped_at_the_promised_size(where: str) -> None:
    """A stream that would grow to 256 MiB is cut off after what the header promises: under 4 MiB are ever held."""
    size = 1 << 20
    bomb = bombs.zeros(256 * size)
    if where == "header":
        data = seal(struct.pack("<4sIII", b"GOLF", 2, len(bomb[1]), size) + bomb[1])
    elif where == "codes":
        data = craft(table(one(shape=(1, size))), bomb, HALF, NONE)
    elif where == "scales":
        data = craft(table(one(shape=(size // 2, 1))), bombs.zeros(size // 2), bomb, NONE)
    else:
        data = craft(table(row(b"v", 0, (size // 2,))), NONE, bomb)
    assert len(data) < size
    assert _peak(data, "decompresses to more than") < 4 * size


@pytest.mark.parametrize(
    "bomb", [bomb for bomb in bombs.BOMBS if bomb not in bombs.AT_THE_LIMITS], ids=lambda bomb: bomb.__name__
)
def test_memory_is_bounded_by_the_content(bomb: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading takes at most 8 bytes for each of content, 20 kB for each tensor, and the statistics of codec 2.

    At the limits that is less than 1 GB with torch's 250 MB; `python -m tests.trainer.bombs` measures it there.
    """
    statistics, tensors, content = 12 << 20, 64, 1 << 20
    most = 8 * container.MAX_CONTENT_BYTES + 3 * container.MAX_FILE_BYTES + 20_000 * container.MAX_TENSORS
    assert most + statistics + 250_000_000 < 1e9
    monkeypatch.setattr(container, "MAX_TENSORS", tensors)
    data = bomb(content)
    fixed = (statistics if bomb in bombs.BY_ANS else 1 << 19) + 20_000 * (tensors if bomb in bombs.CROWDS else 1)
    assert _peak(data) < 8 * content + 3 * len(data) + fixed


def _peak(data: bytes, message: str = "") -> int:
    """Most bytes that numpy and Python held while `data` was unpacked, or refused with `message`."""
    tracemalloc.start()
    try:
        if message:
            with pytest.raises(ArtifactError, match=message):
                artifact.unpack(data)
        else:
            artifact.unpack(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_stream_is_fed_in_pieces() -> None:
    """A brotli stream longer than a piece is read whole; refused if it is cut or goes on, in a piece or behind it."""
    noise = np.random.default_rng(0).bytes(1 << 16)
    edge = next(n for n in range(len(noise)) if len(brotli.compress(noise[n:])) == len(noise))
    for plain in (noise * 3, noise[edge:]):
        packed = brotli.compress(plain, quality=1)
        assert load(Stream(BROTLI, packed), len(plain), "x") == plain
        with pytest.raises(ArtifactError, match=f"x: ends after [0-9]+ of {len(plain)} bytes"):
            load(Stream(BROTLI, packed[:-1]), len(plain), "x")
        for rest in (1, 1 << 16, 1 << 18):
            with pytest.raises(ArtifactError, match="follow"):
                load(Stream(BROTLI, packed + bytes(rest)), len(plain), "x")


def test_pieces_that_give_nothing_are_no_end() -> None:
    """A block that a brotli decoder skips (RFC 7932, 9.2), longer than some pieces, does not end a stream."""
    size = 200_000
    skipped = (0b1101100 | size - 1 << 7).to_bytes(4, "little") + bytes(size)
    assert load(Stream(BROTLI, skipped + b"\3"), 0, "x") == b""
    with pytest.raises(ArtifactError, match="x: ends after 0 of 0 bytes"):
        load(Stream(BROTLI, skipped), 0, "x")
