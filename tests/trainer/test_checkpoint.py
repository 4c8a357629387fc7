"""Checkpoints: identity of save and load, equal bytes, and refusal of what is not whole."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from trainer import checkpoint
from trainer.errors import ArtifactError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tensors of any dtype and shape, empty and 0-dimensional ones too, under any name."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda n: n != "__metadata__"
    )
    found = {}
    for name in draw(st.lists(names, unique=True, max_size=4)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        found[name] = (100 * torch.randn(shape, generator=generator)).to(draw(st.sampled_from(DTYPES)))
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@given(tensors(), st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(max_size=20), max_size=4))
def test_loading_gives_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory, given: dict[str, Tensor], texts: dict[str, str]
) -> None:
    """load is the inverse of save: names, dtypes, shapes, bits and metadata."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    checkpoint.save(path, given, texts)
    loaded, metadata = checkpoint.load(path)
    assert same(given, loaded)
    assert metadata == texts


def test_views_parameters_and_shared_storage_can_be_saved(tmp_path: Path) -> None:
    """Slices, transposed views, parameters and two names of one tensor are saved by value."""
    base = torch.arange(12.0).reshape(3, 4)
    given = {"t": base.T[1:], "a": base, "b": base, "p": torch.nn.Parameter(base[1])}
    checkpoint.save(tmp_path / "x", given, {})
    assert same(given, checkpoint.load(tmp_path / "x")[0])


def test_loaded_tensors_are_their_own(tmp_path: Path) -> None:
    """Writing into a loaded tensor changes no file, and replacing the file changes no loaded tensor."""
    path = tmp_path / "x"
    checkpoint.save(path, {"a": torch.zeros(3)}, {})
    loaded, _ = checkpoint.load(path)
    loaded["a"][0] = 7
    assert checkpoint.load(path)[0]["a"].tolist() == [0, 0, 0]
    checkpoint.save(path, {"a": torch.ones(3)}, {})
    assert loaded["a"].tolist() == [7, 0, 0]


SAVE = """
import sys, torch
from pathlib import Path
from trainer import checkpoint
names = sys.argv[2].split(",")
tensors = {name: torch.full((2, 2), float(ord(name))) for name in names}
checkpoint.save(Path(sys.argv[1]), tensors, {name: name for name in names})
"""


def test_equal_content_gives_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """Neither the order of the names nor the process changes a byte (safetensors alone orders metadata at random)."""
    root = Path(checkpoint.__file__).parents[1]
    digests = set()
    for i, names in enumerate(["a,b,c,d,e,f", "f,e,d,c,b,a"]):
        path = tmp_path / str(i)
        subprocess.run([sys.executable, "-c", SAVE, str(path), names], check=True, cwd=root)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """A file that lost any number of its last bytes, or gained one, is an error that names it."""
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, {"a": torch.arange(5), "b": torch.ones(2)}, {"seed": "1"})
    whole = path.read_bytes()
    for data in [*(whole[:size] for size in range(len(whole))), whole + b"\0"]:
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"model\.safetensors is not a whole checkpoint"):
            checkpoint.load(path)


def with_header(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ROW = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        b"not a checkpoint at all, but text",
        struct.pack("<Q", 2**62) + b"{}",
        with_header({"a": ROW}, bytes(4)),
        with_header({"__metadata__": {"golf": "{"}, "a": ROW}, bytes(4)),
        with_header({"__metadata__": {"golf": "{}"}, "a": ROW | {"shape": [2**40, 2**40]}}, bytes(4)),
        with_header({"__metadata__": {"golf": "{}"}, "a": ROW | {"data_offsets": [0, 2**60]}}, bytes(4)),
        with_header({"__metadata__": {"golf": "{}"}, "a": ROW, "b": ROW}, bytes(4)),
        with_header({"__metadata__": {"golf": "{}"}, "a": ROW | {"dtype": "X9"}}, bytes(4)),
        with_header({"__metadata__": {"golf": "[" * 100_000}, "a": ROW}, bytes(4)),
    ],
    ids=["text", "huge header", "foreign", "bad json", "overflow", "past the end", "overlap", "dtype", "deep json"],
)
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, data: bytes) -> None:
    """Foreign, hostile and damaged files are one-line errors, before anything of their claimed size is allocated."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"x\.safetensors is not a whole checkpoint of this trainer") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    """A file that is absent, or a folder, is an ArtifactError with the remedy."""
    with pytest.raises(ArtifactError, match=r"No such file.*run the stage that writes it"):
        checkpoint.load(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="can't read the checkpoint"):
        checkpoint.load(tmp_path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving is atomic: a write that breaks off leaves the file as it was, and nothing beside it."""
    path = tmp_path / "x"
    checkpoint.save(path, {"a": torch.zeros(1)}, {})

    def broken(_: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half of it")
        raise RuntimeError(metadata)

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(RuntimeError):
        checkpoint.save(path, {"a": torch.ones(1)}, {})
    assert checkpoint.load(path)[0]["a"].tolist() == [0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_names_that_do_not_fit_stay_on_one_short_line(tmp_path: Path) -> None:
    """Of four names of a hostile file the first three are shown, shortened and escaped, and the others counted."""
    model, hostile = torch.nn.Linear(2, 1, bias=False), ["A\nb\x1b[31m" + "x" * 240, "B", "C", "D", "E"]
    for count, last in ((3, "'B' is [1], expected none"), (4, "1 more"), (6, "3 more")):
        state = {"weight": torch.ones(3)} | {name: torch.ones(1) for name in hostile[: count - 1]}
        with pytest.raises(ArtifactError) as caught:
            checkpoint.put(model, state, where=tmp_path / "x", why="test")
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'x'} does not fit the recipe: 'A\\nb\\x1b[31mxxxx")
        assert message.isprintable()
        assert len(message) < len(str(tmp_path)) + 250
        assert ("more" in message) is (count > 3)
        assert last in message
        assert "'D'" not in message


def test_what_fits_is_put_and_announced(tmp_path: Path) -> None:
    """The control: a state of the model's own names and shapes becomes its weights."""
    model = torch.nn.Linear(2, 1, bias=False)
    checkpoint.put(model, {"weight": torch.tensor([[3.0, 4.0]])}, where=tmp_path, why="test")
    assert model.weight.tolist() == [[3.0, 4.0]]
    with pytest.raises(ArtifactError, match=r"'weight' is missing, expected \[1, 2\]; use the recipe"):
        checkpoint.put(model, {}, where=tmp_path, why="test")
