"""The digest of the sources sees every change, and their packed size can be unpacked."""

from __future__ import annotations

import base64
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from trainer import source

TREE = {"__init__.py": b"", "a.py": b"x = 1\n", "kernels/a.py": b"y = 2\n"}


def plant(root: Path, tree: dict[str, bytes]) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    "changed",
    [
        TREE | {"a.py": b"x = 2\n"},
        TREE | {"a.py": b"x = 1\n "},
        TREE | {"b.py": b""},
        {name: content for name, content in TREE.items() if name != "__init__.py"},
        {"__init__.py": b"", "a2.py": b"x = 1\n", "kernels/a.py": b"y = 2\n"},
        {"__init__.py": b"", "a.py": b"y = 2\n", "kernels/a.py": b"x = 1\n"},
        {"__init__.py": b"", "a.py": b"x = 1\n", "kernels_/a.py": b"y = 2\n"},
        {"__init__.py": b"", "a.py": b"x = 1\nkernels/a.pyy = 2\n"},
    ],
    ids=["content", "size", "more", "fewer", "name", "swapped", "folder", "merged"],
)
def test_every_change_changes_the_digest(tmp_path: Path, changed: dict[str, bytes]) -> None:
    """Content, names, folders and the number of files all count."""
    before = source.digest(plant(tmp_path / "one", TREE))
    assert source.digest(plant(tmp_path / "two", changed)) != before


def test_where_the_sources_lie_and_what_lies_beside_them_does_not_count(tmp_path: Path) -> None:
    """Another folder, compiled files, data and the order of writing leave the digest as it is."""
    one = plant(tmp_path / "one", TREE)
    beside = {"__pycache__/a.cpython-311.pyc": b"\0", "notes.txt": b"hello"}
    two = plant(tmp_path / "elsewhere" / "two", dict(reversed((TREE | beside).items())))
    assert source.digest(one) == source.digest(two)
    assert source.packed_size(one) == source.packed_size(two)


TREES = st.dictionaries(
    st.text("ab", min_size=1, max_size=3).map(lambda n: n + ".py"), st.binary(max_size=6), max_size=3
)


@given(TREES, TREES)
@example({"a.py": b"b", "c.py": b""}, {"a.py": b"", "bc.py": b""})
def test_digests_are_equal_only_for_equal_trees(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    """No two trees coincide by where one file ends and the next begins."""
    root = tmp_path_factory.mktemp("trees")
    (root / "one").mkdir()
    (root / "two").mkdir()
    same = source.digest(plant_into(root / "one", one)) == source.digest(plant_into(root / "two", two))
    assert same == (one == two)


def plant_into(root: Path, tree: dict[str, bytes]) -> Path:
    for name, content in tree.items():
        (root / name).write_bytes(content)
    return root


def test_the_digest_is_of_the_trainer_itself() -> None:
    """Without arguments it is the installed package: every module, kernels included, and nothing else."""
    names = list(source.files())
    assert names == sorted(names)
    assert {"__init__.py", "gptq.py", "kernels/__init__.py", "source.py"} <= set(names)
    assert all(name.endswith(".py") for name in names)
    assert source.files()["source.py"] == Path(source.__file__).read_bytes()
    assert source.digest() == source.digest(Path(source.__file__).parent)
    assert source.digest().startswith("sha256:")
    assert len(source.digest()) == 71


def test_the_packed_size_is_that_of_a_program_that_unpacks(tmp_path: Path) -> None:
    """A file of exactly that many bytes, built as the wrapper says, gives the sources back."""
    root = plant(tmp_path / "one", TREE | {"big.py": b"value = 1\n" * 5000})
    serialized = source._serialize({name: source.strip(content) for name, content in source.files(root).items()})
    packed = lzma.compress(serialized, format=lzma.FORMAT_RAW, filters=source._FILTERS)
    program = source._WRAPPER.replace(b'""', b'"' + base64.b85encode(packed) + b'"')
    assert len(program) == source.packed_size(root)
    literal = program.split(b'"')[1]
    unpacked = lzma.decompress(
        base64.b85decode(literal), format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}]
    )
    assert unpacked == serialized


def test_a_stripped_trainer_is_the_same_program(tmp_path: Path) -> None:
    """Without comments and docstrings the trainer runs and writes the same recipe; stripping twice is once."""
    stripped = {name: source.strip(content) for name, content in source.files().items()}
    assert all(source.strip(content) == content for content in stripped.values())
    assert sum(map(len, stripped.values())) < 0.8 * sum(map(len, source.files().values()))
    plant(tmp_path / "trainer", stripped)
    written = []
    for folder in (tmp_path, source.ROOT.parent):
        runs = tmp_path / f"runs{len(written)}"
        config = source.ROOT.parent / "params.yaml"
        command = [sys.executable, "-m", "trainer", "resolve", "--config", str(config), "--runs", str(runs)]
        subprocess.run([*command, "--set", "scale=cpu"], cwd=folder, check=True, capture_output=True)
        written.append((runs / "recipe.json").read_bytes())
    assert written[0] == written[1]


def test_a_function_that_is_only_a_docstring_stays_a_function() -> None:
    """A body that loses its only statement gets another."""
    assert source.strip(b'"""Module."""\nclass E(Exception):\n    """One."""\n') == b"class E(Exception):\n    pass"
