"""Files and folders are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import __main__ as command_line
from trainer.errors import DataError, ResourceError
from trainer.files import atomic, read_json, sha256_file, write_json, write_text
from trainer.layout import Layout, whole_folder
from trainer.runlog import stage_folders

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """read_json is the inverse of write_json."""
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    """An exception inside `atomic` keeps what was there and removes the temporary file."""
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="planted"), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("planted")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_by_name_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    """No space left: one line with the path; neither the file nor a piece of it stays."""
    with pytest.raises(ResourceError, match=r"no space left for .*new\.txt"), atomic(tmp_path / "new.txt") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_any_other_trouble_of_the_system_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is a file, say, ends in 65 with the path and the system's word for it."""
    monkeypatch.chdir(Path(__file__).parents[2])
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as left:
        command_line.main(["resolve", "--set", "scale=cpu", "--runs", str(tmp_path / "file" / "below")])
    assert left.value.code == 65
    err = capsys.readouterr().err
    assert "Not a directory" in err
    assert err.count("\n") == 1


def test_not_json_is_said_with_the_path_and_the_remedy(tmp_path: Path) -> None:
    """A damaged file names itself and what to run."""
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json is not JSON.*; run the stage"):
        read_json(tmp_path / "bad.json", remedy="run the stage")
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


def test_the_digest_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    """Against the published value for the empty file and for `abc`."""
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc").endswith("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def fill(path: Path, started: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "half").write_text("half")
        started.write_text("")
        signal.pause()


def test_a_killed_stage_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    """SIGKILL in the middle of a stage: its folder does not exist, and the stage can simply be run again."""
    child = multiprocessing.get_context("spawn").Process(target=fill, args=(tmp_path / "out", tmp_path / "started"))
    child.start()
    while not (tmp_path / "started").exists():
        assert child.is_alive()
        child.join(0.01)
    child.kill()
    child.join()
    assert not (tmp_path / "out").exists()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("whole")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["whole"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "started"]


def test_two_processes_never_write_the_same_results(tmp_path: Path) -> None:
    """While a stage runs, a second one of the same name is refused by name; the first is not disturbed."""
    with whole_folder(tmp_path / "out") as folder:
        (folder / "first").write_text("")
        with pytest.raises(ResourceError, match=r"another process is writing .*out"), whole_folder(tmp_path / "out"):
            pass
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["first"]


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    """A folder that holds something is refused, an empty one (as DVC makes it) is filled."""
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("")
    with pytest.raises(DataError, match="is not empty; remove it"), whole_folder(tmp_path / "out"):
        pass


def test_a_stage_that_fails_keeps_its_log_out_of_the_way(tmp_path: Path) -> None:
    """After a failure neither outputs nor clock folder appear; the log of the failure lies under a hidden name."""
    layout = Layout(tmp_path)
    with pytest.raises(RuntimeError), stage_folders(layout, "train", 3, layout.stage("train", 3)) as (_, log):
        log.line("a line")
        raise RuntimeError("planted")
    assert not layout.stage("train", 3).exists()
    assert not layout.clock("train", 3).exists()
    hidden = layout.clock("train", 3).with_name(".clock.train.3.partial")
    assert (hidden / "log.txt").read_text() == "a line\n"
    failed = json.loads((hidden / "log.jsonl").read_text().splitlines()[-1])
    assert failed["error"] == "RuntimeError: planted"
