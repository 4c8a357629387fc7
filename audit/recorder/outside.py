"""What the interpreter itself reports (PEP 578) and a ledger notes: shards opened, sockets, other programs, forks.

    note = heard("open", (path, mode, flags))        Outside(name, facts, clock), or None if it is nothing to note

Only Python code is seen: what a C extension opens or connects raises no event. Imported before the program is, so
nothing but the standard library may be imported here.
"""

from __future__ import annotations

import ipaddress
import os
import platform
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SHARD_MAGIC = struct.pack("<ii", 20240520, 1)
SHARD_HEADER_BYTES = 1024
NO_SHARDS = (".py", ".pyc", ".so", ".json", ".txt", ".pth")
"""Endings of files that are opened by the thousand and not looked into."""
MOST_TEXT = 500
"""Characters kept of a command line or an address."""


class Outside(NamedTuple):
    """A note to be: its name, facts that repeat from run to run, and what depends on the machine."""

    name: str
    facts: Mapping[str, Any]
    clock: Mapping[str, Any]


def heard(event: str, arguments: tuple[Any, ...]) -> Outside | None:
    """The note for an audit event, None for one that is not noted."""
    return HEARD[event](event, arguments) if event in HEARD else None


def _open(_: str, arguments: tuple[Any, ...]) -> Outside | None:
    path, _, flags = arguments
    if not isinstance(path, str | bytes) or (isinstance(flags, int) and flags & os.O_ACCMODE == os.O_WRONLY):
        return None
    path = os.fsdecode(path)
    if path.endswith(NO_SHARDS) or not is_shard(path):
        return None
    return Outside("open", {"kind": "shard", "name": Path(path).name}, {"path": str(Path(path).absolute())})


def is_shard(path: str) -> bool:
    """Whether a file begins as token shards do. Only regular files are looked into: a pipe loses what is read."""
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size < SHARD_HEADER_BYTES:
            return False
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return False
    try:
        return os.read(descriptor, len(SHARD_MAGIC)) == SHARD_MAGIC
    finally:
        os.close(descriptor)


def _socket(event: str, arguments: tuple[Any, ...]) -> Outside | None:
    # (socket, address), or of what resolves names (host, …); sendmsg on a connected socket has no address.
    address = arguments[1] if event in ADDRESSED else arguments[0]
    host = address[0] if isinstance(address, tuple) and address else address
    if address is None or (event in ADDRESSED and host is address):
        return None  # an address that is a path names a socket of this machine: no network, and processes share many
    facts = {"event": event.removeprefix("socket."), "loopback": is_loopback(host)}
    return Outside("socket", facts, {"address": str(address)[:MOST_TEXT]})


def is_loopback(host: Any) -> bool:
    """Whether a host is this machine: a loopback address, or its own name."""
    name = host.decode(errors="replace") if isinstance(host, bytes) else host
    if not isinstance(name, str):
        return False
    if name in ("localhost", platform.node()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _program(event: str, arguments: tuple[Any, ...]) -> Outside:
    path, rest = arguments[0], arguments[1] if len(arguments) > 1 else ()
    command = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    words = command.split() if event == "os.system" else [command]
    line = rest if isinstance(rest, str | bytes) else [_shown(each) for each in rest or ()]
    clock = {"event": event, "command": command[:MOST_TEXT], "arguments": str(line)[:MOST_TEXT]}
    return Outside("subprocess", {"executable": Path(words[0]).name if words else ""}, clock)


def _shown(argument: Any) -> str:
    return os.fsdecode(argument) if isinstance(argument, str | bytes | os.PathLike) else str(argument)


def _fork(event: str, _: tuple[Any, ...]) -> Outside:
    return Outside("fork", {"event": event}, {})


ADDRESSED = frozenset({"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"})
RESOLVING = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"})
PROGRAMS = frozenset({"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system"})
HEARD: Mapping[str, Callable[[str, tuple[Any, ...]], Outside | None]] = {
    "open": _open,
    **dict.fromkeys(ADDRESSED | RESOLVING, _socket),
    **dict.fromkeys(PROGRAMS, _program),
    **dict.fromkeys(("os.fork", "os.forkpty"), _fork),
}
