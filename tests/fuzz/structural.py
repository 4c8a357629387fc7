"""Mutations of parts, sealed again: (rng, anatomy, donor) -> file, with sizes and digest that fit.

What is mutated lies behind the digest, behind brotli and behind the coder of codes, where mutated bytes of a file
never get. A mutation may change the anatomy that it is given.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import brotli
import numpy as np

from tests.fuzz.anatomy import ANS, BROTLI, DIGEST_BYTES, RAW, Anatomy, Row, Stream, assemble, enclose, reseal, stored
from tests.fuzz.bytewise import EDGES, mutate, number_near
from trainer import ans

Mutation = Callable[[random.Random, Anatomy, Anatomy], bytes]

HALVES = [0x0000, 0x8000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0x7E00]
"""fp16 numbers at the edges: zeros, subnormals, the largest, infinities, NaN."""
NAMES = [b"", b"\n", b"a\nb", b"\x1b[31m", "\u2028".encode(), "e\u0301".encode(), b"\0", b"\xff", b"\xed\xa0\x80"]
NAMES += [b"x" * 255, b"\1" * 255, "\U0010ffff".encode() * 63, b"'", b'"', b"\\", b"{0}", b"%s"]
WORTHLESS = [b"", b"[]", b"null", b"{}\n", b" {}", b"\xef\xbb\xbf{}", b"{", b"\xff", b'{"a":1,"a":1}', b'{"b":1,"a":1}']
WORTHLESS += [
    b'{"a":' + value + b"}"
    for value in (b"NaN", b"-Infinity", b"1.0e0", b"-0", b"1.00", b"1E5", b"1e999", b"9" * 5000, b"[" * 5000, b"")
]
WORTHLESS += [b'{"a":"' + text + b'"}' for text in (b"\\/", b"\\u00e4", b"\\ud800", b"\n")]
"""Metadata that no writer gives."""


def body(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Bytes of the file before the digest."""
    return reseal(mutate(rng, assemble(anatomy)[:-DIGEST_BYTES], assemble(donor)[:-DIGEST_BYTES]))


def header(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Bytes of the header before it is compressed."""
    return assemble(anatomy, mutate(rng, anatomy.header(), donor.header()))


def metadata_bytes(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    anatomy.facts = rng.choice([mutate(rng, anatomy.facts, donor.facts), rng.choice(WORTHLESS)])
    return assemble(anatomy)


def metadata_spelling(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """The same JSON otherwise written, or other JSON in canonical form."""
    facts = json.loads(anatomy.facts)
    if rng.random() < 0.3:
        facts[rng.choice(["", "a", "seed", "\n"])] = rng.choice([None, 1, -0.0, 1e300, [{**facts}], "ä", {"": 0}])
        anatomy.facts = _json(facts)
    elif rng.random() < 0.5:
        name, value = rng.choice([("indent", 1), ("ensure_ascii", True), ("separators", (", ", ":"))])
        anatomy.facts = _json(facts, **{name: value})
    else:
        anatomy.facts = _json(dict(sorted(facts.items(), reverse=True)), sort_keys=False)
    return assemble(anatomy)


def _json(facts: dict[str, Any], **changed: Any) -> bytes:
    form: dict[str, Any] = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False, **changed}
    return json.dumps(facts, **form).encode()


def field(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """A number of a row."""
    row = rng.choice(anatomy.rows)
    what = rng.choice(["kind", "shape", "shape", "order", "ones", "flags", "extras", "extras", "extras"])
    if what == "kind":
        row.kind = rng.choice([number_near(rng, row.kind), rng.randrange(10)])
    elif what == "shape" and row.shape:
        at = rng.randrange(len(row.shape))
        row.shape[at] = number_near(rng, row.shape[at])
    elif what == "order":
        rng.shuffle(row.shape)
    elif what == "flags":
        row.flags = rng.choice([0, 1, 2, 3, 4, 128, 255])
        row.extras += [0, 1, 2, 1, 1][: rng.randrange(6)]
    elif what == "extras" and row.extras:
        at = rng.randrange(len(row.extras))
        row.extras[at] = number_near(rng, row.extras[at])
    else:
        row.shape.insert(rng.randrange(len(row.shape) + 1), rng.choice([1, 1, 0, 2]))
    return assemble(anatomy)


def rows(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Rows change places, go, come twice, come from elsewhere, are miscounted."""
    found, at = anatomy.rows, rng.randrange(len(anatomy.rows))
    what = rng.randrange(6)
    if what == 0:
        rng.shuffle(found)
    elif what == 1:
        del found[at]
    elif what == 2:
        found.insert(rng.randrange(len(found) + 1), found[at])
    elif what == 3:
        found[at] = rng.choice(donor.rows)
    elif what == 4:
        anatomy.count = number_near(rng, len(found))
    else:
        found.append(Row(found[-1].name + b"+", 0, rng.choices([0, 1, 2, 3, *EDGES], k=rng.randrange(10))))
    return assemble(anatomy)


def names(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """A row has another name, at times one that sorts where it stands, and at times a fault that speaks of it."""
    at = rng.randrange(len(anatomy.rows))
    row = anatomy.rows[at]
    row.name = rng.choice([rng.choice(NAMES), row.name + rng.choice(NAMES), mutate(rng, row.name, donor.rows[0].name)])
    if rng.random() < 0.5:
        anatomy.rows.sort(key=lambda row: row.name)
    return numbers(rng, anatomy, donor) if rng.random() < 0.5 else assemble(anatomy)


def directory(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """A codec or a size, or a border between two streams."""
    found = [(codec, len(data)) for codec, data in anatomy.streams]
    at, what = rng.randrange(len(found)), rng.randrange(4)
    codec, size = found[at]
    if what == 0:
        found[at] = rng.choice([RAW, BROTLI, ANS, 3, 255]), size
    elif what == 1:
        found[at] = codec, number_near(rng, size)
    elif what == 2 and at:
        step = rng.choice([-2, -1, 1, 2])
        found[at - 1], found[at] = (found[at - 1][0], max(0, found[at - 1][1] + step)), (codec, max(0, size - step))
    else:
        found = rng.choice([found[:at] + found[at + 1 :], found[: at + 1] + found[at:], found[::-1]])
    anatomy.directory = found
    return assemble(anatomy)


def streams(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Streams change places, go, come twice, come from elsewhere."""
    found, at, what = anatomy.streams, rng.randrange(len(anatomy.streams)), rng.randrange(4)
    if what == 0:
        rng.shuffle(found)
    elif what == 1:
        del found[at]
    elif what == 2:
        found.insert(at, found[at])
    else:
        found[at] = rng.choice(donor.streams)
    return assemble(anatomy)


def plain(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Bytes of a stream before it is compressed."""
    at, other = _stream(rng, anatomy), rng.choice(donor.streams)
    anatomy.streams[at] = _stored(anatomy, mutate(rng, anatomy.streams[at].plain(), other.plain()))
    return assemble(anatomy)


def numbers(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """A code or an fp16 number becomes one from the edges of the range, or any other."""
    at = _stream(rng, anatomy)
    values = bytearray(anatomy.streams[at].plain())
    if at < sum(len(row.planes()) for row in anatomy.rows) and anatomy.streams[0].codec != ANS:
        limits = [low for row in anatomy.rows for _, _, low, _ in row.planes()] if rng.random() < 0.5 else [-1]
        edge = rng.choice(limits)
        values[rng.randrange(len(values))] = rng.choice([edge, edge - 1, -edge, 1 - edge, 0, -128, 127]) % 256
    else:
        half, place = rng.choice([*HALVES, rng.randrange(1 << 16)]), rng.randrange(len(values) // 2)
        values[place], values[place + len(values) // 2] = half & 255, half >> 8
    anatomy.streams[at] = _stored(anatomy, bytes(values))
    return assemble(anatomy)


def _stream(rng: random.Random, anatomy: Anatomy) -> int:
    """One that is not empty and not by the coder of codes."""
    return rng.choice([i for i, stream in enumerate(anatomy.streams) if stream.data and stream.codec != ANS])


def _stored(anatomy: Anatomy, content: bytes) -> Stream:
    return Stream(BROTLI, brotli.compress(content, quality=1)) if anatomy.version == 1 else stored(content)


def packing(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """A stream, or the header, by another run of brotli, by none, or with bytes that do not belong to it."""
    if rng.random() < 0.25:
        content = anatomy.header()
        return enclose(anatomy, _packed(rng, content).data, len(content))
    at = _stream(rng, anatomy)
    anatomy.streams[at] = _packed(rng, anatomy.streams[at].plain())
    return assemble(anatomy)


def _packed(rng: random.Random, content: bytes) -> Stream:
    if rng.random() < 0.1:
        return Stream(RAW, content)
    encoder = brotli.Compressor(quality=rng.choice([0, 2, 5, 9]), lgwin=rng.randrange(10, 25), mode=rng.randrange(3))
    cuts = sorted(rng.randrange(len(content) + 1) for _ in range(rng.choice([0, 0, 1, 3])))
    made = b""
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        made += encoder.process(content[start:end]) + (encoder.flush() if end < len(content) else b"")
    made += encoder.finish()
    return Stream(BROTLI, rng.choice([made, made, mutate(rng, made, made), made + rng.randbytes(2), made[:-1]]))


def coded(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Bytes of the stream of codes, of any codec, as stored."""
    codec, data = anatomy.streams[0]
    anatomy.streams[0] = Stream(codec, mutate(rng, data, donor.streams[0].data))
    return assemble(anatomy)


def recoded(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """Some other codes, encoded as well as they can be; at times codes or planes that are not the table's."""
    if anatomy.streams[0].codec != ANS:
        return numbers(rng, anatomy, donor)
    planes = [ans.Plane(*plane) for row in anatomy.rows for plane in row.planes()]
    values = [codes.copy() for codes in _codes(anatomy.streams[0].data, tuple(planes))]
    if rng.random() < 0.3:
        # The same codes, predicted whatever it costs, or never, or with a class that is not theirs.
        name, value = rng.choice([("_WORTH", 0), ("_WORTH", 1e9), ("_classes", functools.partial(_other_class, rng))])
        with mock.patch.object(ans, name, value):
            anatomy.streams[0] = Stream(ANS, ans.encode(values, planes))
        return assemble(anatomy)
    at = rng.randrange(len(values))
    low, high = planes[at].low, planes[at].high
    if rng.random() < 0.4:
        low, high = max(-127, 2 * low - 1), min(127, 2 * high + 1)
    flat = values[at].reshape(-1)
    for _ in range(rng.choice([1, 1, 2, 9])):
        flat[rng.randrange(flat.size)] = rng.choice([low, high, 0, rng.randrange(low, high + 1)])
    if rng.random() < 0.2:
        values[at] = np.ascontiguousarray(values[at].T)
    rows, cols = values[at].shape
    planes[at] = ans.Plane(rows, cols, min(planes[at].low, int(flat.min())), max(planes[at].high, int(flat.max())))
    anatomy.streams[0] = Stream(ANS, ans.encode(values, planes))
    return assemble(anatomy)


_CLASSES = ans._classes


def _other_class(rng: random.Random, codes: np.ndarray, *, rows: bool = False) -> np.ndarray:
    return (_CLASSES(codes, rows=rows) + rng.choice([-1, 0, 1])).clip(0, 63)


@functools.lru_cache(64)
def _codes(data: bytes, planes: tuple[ans.Plane, ...]) -> list[np.ndarray]:
    return ans.decode(data, planes)


def bomb(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """A stream that gives a lot; a table that promises a lot; or both, so that it is right."""
    size, what = 1 << rng.randrange(8, 27 if rng.random() < 0.01 else 21), rng.randrange(4)
    if what == 0:
        content = anatomy.header() + bytes(size)
        promised = rng.choice([len(content), len(content) - size, (1 << 20), (1 << 20) + 1])
        return enclose(anatomy, brotli.compress(content, quality=0), promised)
    if what != 1:
        row = rng.choice(anatomy.rows)
        row.shape = [size >> 1] if not row.kind else rng.choice([[size, 1], [1, size], [size >> 5, 1 << 5]])
    if what == 2:
        return assemble(anatomy)
    at = _stream(rng, anatomy)
    if what == 3:
        anatomy.rows, at = [Row(b"v", 0, [size >> 1])], 1
        anatomy.streams = [Stream(RAW, b"")] * 2 if anatomy.version == 2 else [Stream(RAW, b"")]
    anatomy.streams[min(at, len(anatomy.streams) - 1)] = _stored(anatomy, bytes(size))
    return assemble(anatomy)


def version(rng: random.Random, anatomy: Anatomy, donor: Anatomy) -> bytes:
    """The version alone, or the file in the form of the other version."""
    sealed = assemble(anatomy)
    if rng.random() < 0.5:
        other = rng.choice([0, 1, 2, 3, 1 << 31, rng.randrange(1 << 32)])
        return reseal(sealed[:4] + other.to_bytes(4, "little") + sealed[8:-DIGEST_BYTES])
    anatomy.version = 3 - anatomy.version
    if rng.random() < 0.5:
        anatomy.streams = [_stored(anatomy, stream.plain()) for stream in anatomy.streams]
    return assemble(anatomy)


MUTATIONS: dict[Mutation, float] = {
    body: 4,
    header: 4,
    metadata_bytes: 1,
    metadata_spelling: 1,
    field: 4,
    rows: 2,
    names: 1,
    directory: 2,
    streams: 1,
    plain: 2,
    numbers: 2,
    packing: 2,
    coded: 2,
    recoded: 1,
    version: 0.5,
    bomb: 0.1,
}
"""With how often each is drawn."""
