"""The command line: exit codes that mean something, errors in one line, help that starts at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from audit import __main__ as program
from audit import cli
from audit.errors import RunError
from audit.ledger import Writer

Write = Callable[..., Path]
COMMANDS = sorted(program.audit.commands)


def run(*arguments: str | Path) -> int:
    return cli.run(program.audit, [str(argument) for argument in arguments])


def raising(error: BaseException) -> click.Command:
    """A command that ends in `error`."""

    @click.command()
    @cli.chatter_options
    def command() -> None:
        raise error

    return command


def test_the_commands_are_these() -> None:
    """A new command is a decision: it is added here, and to the README."""
    assert COMMANDS == ["gate", "hash", "report", "run", "show", "stats", "verify"]


def test_the_three_commands_end_a_pipeline(
    write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """stats, report, show: each answers 0, and show tells the path of a report that is there and the table."""
    runs = write_runs(tmp_path / "runs", val_loss_nats=[3.25, 3.5, 3.75])
    assert run("stats", "--runs", runs) == 0
    table = capsys.readouterr().out
    assert run("report", "--runs", runs) == 0
    assert capsys.readouterr() == ("", f"wrote {runs}/report/report.md\n")
    assert run("show", "--runs", runs) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"report: {runs}/report/report.md\n\n{table}\nPASS (profile pipeline): ")
    assert "3.5000 ± 0.2500" in table
    assert Path(out.splitlines()[0].removeprefix("report: ")).read_text().startswith("# Report")


def test_where_things_go_can_be_said(write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--recipe and -o: another recipe names the seeds, and the file lies where it was asked for."""
    runs = write_runs(tmp_path / "runs")
    recipe = json.loads((runs / "recipe.json").read_text()) | {"seeds": [314]}
    (tmp_path / "one.json").write_text(json.dumps(recipe))
    assert run("stats", "--recipe", tmp_path / "one.json", "--runs", runs, "-o", tmp_path / "here") == 0
    assert json.loads((tmp_path / "here" / "metrics.json").read_text())["seeds"] == [314]
    assert not (runs / "aggregate").exists()
    out, err = capsys.readouterr()
    assert "one seed, no sd" in out
    assert "not read" in err


def test_json_is_one_document(write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints what was written, and nothing else, on stdout; show adds where the report is."""
    runs = write_runs(tmp_path)
    assert run("stats", "--runs", runs, "--json", "-q") == 0
    out, err = capsys.readouterr()
    written = (runs / "aggregate" / "metrics.json").read_text()
    assert (out, err) == (written, "")
    assert run("show", "--runs", runs, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"report": None, "verdict": None} | json.loads(written)


def test_show_without_a_report_says_how_to_get_one(
    write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is there before the report is."""
    runs = write_runs(tmp_path)
    (runs / "evaluate" / "7").mkdir()
    assert run("stats", "-q", "--runs", runs) == run("show", "--runs", runs) == 0
    out = capsys.readouterr().out
    assert f"not written yet; run `golf-audit report --runs {runs}`" in out
    assert "note: not read, for the recipe does not declare these seeds: evaluate/7" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stat"], ["'stats'"]),
        (["show", "--runz", "x"], ["'--runs'"]),
        (["show", "extra"], ["extra", "golf-audit show --help"]),
        (["show", "--runs"], ["--runs"]),
        (["--nonsense"], ["--nonsense", "golf-audit --help"]),
        (["run", "-z", "train.py"], ["-z", "golf-audit run --help"]),
    ],
)
def test_wrong_usage_is_64(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What click ends with 2, which would read as UNPROVEN, ends with 64: one line with the nearest right word."""
    assert run(*arguments) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [word for word in words if word not in err] == []


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A bare `golf-audit` is wrong usage and shows, on stderr, what there is."""
    assert run() == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert all(name in err for name in COMMANDS)


def test_run_takes_its_options_before_the_program(tmp_path: Path) -> None:
    """-q leaves the program's own words alone and is not the program's; behind the program it is."""
    (tmp_path / "script.py").write_text("import sys; print(sys.argv[1:])")
    for arguments, line in ((["-q", "script.py", "-v"], ""), (["script.py", "-q"], "nothing was recorded into ")):
        asked = [sys.executable, "-m", "audit", "run", "-o", "ledger", *arguments]
        home = {"PYTHONPATH": str(Path(program.__file__).parents[1])}
        done = subprocess.run(asked, cwd=tmp_path, env=os.environ | home, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"{arguments[-1:]}\n")
        assert done.stderr.startswith(line)
        assert bool(done.stderr) == bool(line)


def test_remedies_name_what_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rank's ledger, or the folder of all stages, in place of a stage's folder: the error names the folders meant."""
    for stage in ("evaluate", "train"):
        Writer.create(tmp_path / "ledgers" / stage / "rank0.ledger", rank=0, ranks=1).close()
    for given in ("ledgers/train/rank0.ledger", "ledgers", "none"):
        assert run("verify", tmp_path / given) == 65
    one, several, none = capsys.readouterr().err.splitlines()
    assert one.endswith(f"; give {tmp_path}/ledgers/train")
    assert several.endswith(f"; give those of {tmp_path}/ledgers/evaluate, {tmp_path}/ledgers/train")
    assert none.endswith(f"record a run with `golf-audit run -o {tmp_path}/none …`")


NOTHING = {
    "gate": ["NOTHING"],
    "hash": ["NOTHING"],
    "run": ["-o", "NOTHING/ledger", "NOTHING/train.py"],
    "verify": ["NOTHING/ledger"],
}
"""What a command is given where there is nothing; others take --runs."""


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_65(command: str, tmp_path: Path) -> None:
    """Where there is nothing to read or to run: one line that says what to do, no trace, and with -v the trace."""
    there = str(tmp_path / "nothing")
    arguments = [part.replace("NOTHING", there) for part in NOTHING.get(command, ["--runs", there])]
    for verbose in (False, True):  # in processes of their own, because `run` records the one that it is in
        asked = [sys.executable, "-m", "audit", command, *(["-v"] if verbose else []), *arguments]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (65, "")
        *trace, last = done.stderr.splitlines()
        assert last.startswith("error: ")
        assert ";" in last
        assert bool(trace) == verbose


def test_a_place_that_can_not_be_written_is_65(
    write_runs: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Output below a file: one line that says where, and nothing written."""
    (tmp_path / "file").write_text("kept")
    runs = write_runs(tmp_path / "runs")
    assert run("stats", "--runs", runs, "-o", tmp_path / "file") == 65
    assert f"can't write {tmp_path}/file/" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("two\nlines"), 65, "error: two lines\n"),
        (click.ClickException("odd"), 65, "error: odd\n"),
        (KeyError("x"), 70, "internal error: KeyError: 'x' at test_cli.py:"),
        (EOFError("cut"), 70, "internal error: EOFError: cut"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of end has its code and its line; a bug is named as one and never ends in 1."""
    assert cli.run(raising(error), []) == code
    err = capsys.readouterr().err.lstrip("\n")
    assert err.startswith(line)
    assert "Traceback" not in err
    if code == 70:
        assert cli.run(raising(error), ["-v"]) == code
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_command_that_judges_gives_its_own_code(code: int) -> None:
    """What a command returns is the exit code."""

    @click.command()
    def judge() -> int:
        return code

    assert cli.run(judge, []) == code


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    """--help and --version are answers, on stdout."""
    for arguments in (["--help"], ["-h"], ["stats", "-h"], ["--version"]):
        assert run(*arguments) == 0
        out, err = capsys.readouterr()
        assert "golf-audit" in out
        assert err == ""


@pytest.mark.parametrize("command", [program.audit, *program.audit.commands.values()], ids=lambda command: command.name)
def test_every_help_has_an_example_that_parses(command: click.Command) -> None:
    """The help of each command shows an example, and the example is one that the command line takes."""
    example = (command.help or "").partition("Example:")[2].split()
    assert example[0] == "golf-audit"
    named = program.audit.commands[example[1]]
    assert named.make_context(example[1], example[2:], obj=cli.Chatter())
    assert command in (program.audit, named)


def python(code: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], text=True, check=False, **kwargs)


def test_help_imports_nothing_heavy() -> None:
    """Help, also of each command, starts without numpy, torch, matplotlib, jinja2 and the trainer."""
    code = f"""
import sys
from audit import __main__ as program, cli
for arguments in [["--help"], *([name, "--help"] for name in {COMMANDS})]:
    assert cli.run(program.audit, arguments) == 0
heavy = {{"numpy", "torch", "matplotlib", "jinja2", "trainer", "statistics", "hashlib"}}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    done = python(code, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_is_141(write_runs: Write, tmp_path: Path) -> None:
    """A closed pipe ends quietly, and not in 1, which would read as FAIL."""
    runs = write_runs(tmp_path)
    assert run("stats", "-q", "--runs", runs) == 0
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; from audit import __main__ as program; program.main(['show', '--runs', {str(runs)!r}])"
    done = python(code, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_python_m_audit(tmp_path: Path) -> None:
    """`python -m audit` is the same program, with its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "audit", "show", "--runs", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 65
    assert done.stderr.startswith("error: can't read ")
