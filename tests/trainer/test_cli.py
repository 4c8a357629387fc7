"""The command line: fast, helpful, and one line with the right exit code when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tests.toy import TOY
from trainer import __main__ as command_line
from trainer.layout import Layout

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(command_line.cli.commands)


def golf_train(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `golf-train` with these arguments."""
    with pytest.raises(SystemExit) as left:
        command_line.main(list(arguments))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS), ["train", "--sed", "1"]])
def test_help_and_typing_errors_import_nothing_heavy(arguments: list[str]) -> None:
    """Help and a mistyped option answer without torch, numpy, sentencepiece or DVC, so in a fraction of a second."""
    program = (
        "import sys\nfrom trainer.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print([n for n in ('torch', 'numpy', 'sentencepiece', 'brotli', 'dvc', 'tqdm') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str) -> None:
    """The help of each command holds an Example block with a line that begins with the program's name."""
    text = CliRunner().invoke(command_line.cli, [name, "--help"]).output
    assert "Example:" in text
    assert "golf-train" in text.partition("Example:")[2]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["trian"], 64, "Did you mean 'train'"),
        (["train", "--sed", "1"], 64, "--seed"),
        (["train"], 64, "Missing option '--seed'"),
        (["train", "--seed", "x"], 64, "not a valid integer"),
        (["launch", "quantize"], 64, "'train', 'evaluate'"),
        (["resolve", "--config", "nowhere.yaml"], 65, "can't read the recipe nowhere.yaml"),
        (["resolve", "--set", "qkgain=5"], 65, "did you mean 'qk_gain'"),
        (["train", "--seed", "1", "--runs", "nowhere"], 65, "nowhere/recipe.json"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 for wrong usage, 65 for bad input; one line on standard error, nothing on standard output."""
    monkeypatch.chdir(ROOT)
    found, out, err = golf_train(*arguments, capsys=capsys)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("error: ")
    assert said in err


def test_a_bug_of_ours_is_70_and_shows_its_trace_when_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An exception nobody expected is never taken for a result: code 70, one line; -v adds the trace."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(command_line, "write_json", broken)
    monkeypatch.chdir(ROOT)
    arguments = ("resolve", "--set", "scale=cpu", "--runs", str(tmp_path))
    code, _, err = golf_train(*arguments, capsys=capsys)
    assert (code, err.count("\n")) == (70, 1)
    assert "internal error: ZeroDivisionError: planted" in err
    code, _, err = golf_train(*arguments, "-v", capsys=capsys)
    assert code == 70
    assert "Traceback" in err


def test_resolve_writes_the_whole_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds every key with its value at this scale; overrides win."""
    monkeypatch.chdir(ROOT)
    arguments = ["resolve", "--runs", str(tmp_path), "--set", "scale=cpu", "--set", "qk_gain=5.0"]
    assert CliRunner().invoke(command_line.cli, arguments, catch_exceptions=False).exit_code == 0
    tree = json.loads((tmp_path / "recipe.json").read_text())
    assert (tree["qk_gain"], tree["scale"], tree["device"], tree["model"]["width"]) == (5.0, "cpu", "cpu", 96)


def test_set_completes_the_keys_of_the_recipe() -> None:
    """Shell completion offers the keys that begin with what was typed, with their help."""
    context = click.Context(command_line.cli)
    offered = command_line.Setting().shell_complete(context, click.Option(["--set"]), "muon.m")
    assert [item.value for item in offered] == ["muon.momentum=", "muon.momentum_start=", "muon.momentum_warmup_steps="]
    assert all(item.help for item in offered)


def test_launch_starts_torchrun_with_as_many_processes_as_the_recipe_says(
    fresh_layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank is this process's program; more are torchrun's, with the same arguments."""
    started: list[list[str]] = []
    monkeypatch.setattr(command_line.os, "execv", lambda _, command: started.append(command[1:]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for ranks in (1, 4):
        fresh_layout.recipe.write_text(json.dumps(nested(TOY | {"dist.ranks": ranks})))
        arguments = ["launch", "train", "--seed", "3", "--runs", str(fresh_layout.root)]
        result = CliRunner().invoke(command_line.cli, arguments, catch_exceptions=False)
        assert result.exit_code == 0
    stage = ["-m", "trainer", "train", "--seed", "3", "--runs", str(fresh_layout.root)]
    assert started == [stage, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", *stage]]


def nested(flat: dict[str, object]) -> dict[str, object]:
    tree: dict[str, object] = {}
    for name, value in flat.items():
        section, dot, inner = name.partition(".")
        if dot:
            tree.setdefault(section, {})[inner] = value  # type: ignore[index]
        else:
            tree[name] = value
    return tree


@pytest.mark.parametrize(
    ("present", "answer", "expected"),
    [(True, "GPU 0: A\nGPU 1: B\n", 2), (True, "", 0), (False, "GPU 0: A\n", 0)],
    ids=["two", "none", "no driver"],
)
def test_gpus_are_counted_without_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: bool, answer: str, expected: int
) -> None:
    """Where the driver's folder is missing, nvidia-smi's list is counted; without both there are none."""
    monkeypatch.setattr(command_line, "DRIVER", tmp_path / "gpus")
    monkeypatch.setattr(command_line.shutil, "which", lambda _: "nvidia-smi" if present else None)
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(command_line.subprocess, "run", lambda *_, **__: done)
    assert command_line.count_gpus() == expected
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    assert command_line.count_gpus() == 1
