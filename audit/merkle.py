"""A Merkle tree over SHA-256: one digest for a list of things, from which none can be moved, split or left out.

    leaf(kind, parts)  = H(0x00 ‖ kind ‖ number of parts ‖ for each part: its length ‖ its bytes)
    node(left, right)  = H(0x01 ‖ left ‖ right)
    root(kind, leaves) = H(0x02 ‖ kind ‖ number of leaves ‖ top)

All numbers are 8 bytes, little-endian; `kind` is a text preceded by its length. The prefixes keep leaves, nodes and
roots apart, so that none can be passed off as another. `top` of one leaf is the leaf, of none 32 zero bytes, of n the
node of two trees, the left one over the largest power of two below n: nothing is paired with itself, so that no two
lists have one tree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def leaf(kind: str, parts: Sequence[str | int]) -> bytes:
    """The digest of a thing described by texts and numbers from 0 to 2^64 - 1, in this order."""
    coded = [_bytes(part) for part in parts]
    return _hash(b"\0", _sized(kind.encode()), _number(len(coded)), *map(_sized, coded))


def root(kind: str, leaves: Sequence[bytes]) -> bytes:
    """The digest of a list of leaves in their order, which may be empty."""
    return _hash(b"\2", _sized(kind.encode()), _number(len(leaves)), _top(leaves))


def _top(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) < 2:
        return leaves[0] if leaves else bytes(32)
    left = 1 << (len(leaves) - 1).bit_length() - 1
    return _hash(b"\1", _top(leaves[:left]), _top(leaves[left:]))


def _bytes(part: str | int) -> bytes:
    return _number(part) if isinstance(part, int) else part.encode()


def _sized(content: bytes) -> bytes:
    return _number(len(content)) + content


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()
