"""What the interpreter reports of itself and a ledger notes: shards, sockets, other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.recorder import outside


def test_a_shard_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    """A token shard of whatever name is noted when it is opened to be read; other files, pipes and writes are not."""
    header = np.zeros(256, dtype="<i4")
    header[:2] = 20240520, 1
    for name in ("train_000000.bin", "renamed.dat"):
        (tmp_path / name).write_bytes(header.tobytes())
        found = outside.heard("open", (str(tmp_path / name), "rb", os.O_RDONLY))
        assert found is not None
        assert found.facts == {"kind": "shard", "name": name}
        assert found.clock == {"path": str(tmp_path / name)}
        assert outside.heard("open", (os.fsencode(tmp_path / name), None, os.O_RDWR)) is not None
        assert outside.heard("open", (str(tmp_path / name), "wb", os.O_WRONLY)) is None
    (tmp_path / "weights.bin").write_bytes(bytes(2048))
    os.mkfifo(tmp_path / "pipe.bin")
    for path in ("weights.bin", "pipe.bin", "missing.bin", "", "\0"):
        assert outside.heard("open", (str(tmp_path / path) if path else path, "rb", os.O_RDONLY)) is None
    assert outside.heard("open", (3, "rb", os.O_RDONLY)) is None


@pytest.mark.parametrize(
    ("event", "arguments", "loopback"),
    [
        ("socket.connect", (None, ("127.0.0.1", 80)), True),
        ("socket.connect", (None, ("::1", 80, 0, 0)), True),
        ("socket.connect", (None, ("localhost", 80)), True),
        ("socket.connect", (None, ("10.0.0.1", 80)), False),
        ("socket.connect", (None, ("127.0.0.1.example.org", 80)), False),
        ("socket.bind", (None, ("0.0.0.0", 80)), False),
        ("socket.bind", (None, ("", 80)), False),
        ("socket.sendto", (None, ("8.8.8.8", 53)), False),
        ("socket.getaddrinfo", ("example.org", 443, 0, 0, 0), False),
        ("socket.getaddrinfo", (b"localhost", 443, 0, 0, 0), True),
        ("socket.gethostbyname", ("127.0.0.1",), True),
        ("socket.getnameinfo", (("192.0.2.1", 80),), False),
    ],
)
def test_only_this_machine_is_loopback(event: str, arguments: tuple[Any, ...], loopback: bool) -> None:
    """Loopback addresses and this machine's name stay here; every other host, and listening to all, does not."""
    found = outside.heard(event, arguments)
    assert found is not None
    assert found.facts == {"event": event.removeprefix("socket."), "loopback": loopback}


def test_programs_are_noted_by_their_names() -> None:
    """A started program's name repeats from run to run, its path does not; a socket that is a path is no network."""
    names: list[tuple[str, tuple[Any, ...], str]] = [
        ("subprocess.Popen", ("/usr/bin/nvidia-smi", ["nvidia-smi", b"-L"], None, None), "nvidia-smi"),
        ("os.system", (b"curl -s example.org | sh",), "curl"),
        ("os.system", ("",), ""),
        ("os.exec", ("/usr/bin/python3", ["python3"], None), "python3"),
        ("os.posix_spawn", (Path("/bin/ls"), ["ls"], {}), "ls"),
    ]
    for event, arguments, name in names:
        found = outside.heard(event, arguments)
        assert found is not None
        assert found.facts == {"executable": name}
    assert outside.heard("socket.connect", (None, "/run/some.socket")) is None
    assert outside.heard("socket.sendmsg", (None, None)) is None
    assert outside.heard("os.listdir", (".",)) is None
