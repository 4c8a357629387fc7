"""golf-audit: what makes a number believable. `golf-audit --help`, or `python -m audit --help`.

Commands are thin: they name paths, call one function of the library and write or print what it returns. Modules that
take time to import are imported inside the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from audit import cli

RUNS = Path("runs")
FOLDER = click.Path(path_type=Path)


def runs_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--runs`, the folder that the pipeline writes."""
    text = "The folder that the pipeline writes."
    return click.option("--runs", type=FOLDER, default=RUNS, show_default=True, help=text)(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`: one JSON document on stdout instead of the table."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document instead of the table.")(command)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="golf-audit")
@cli.chatter_options
def audit() -> None:
    """Look at what a training run left, and say what can be said about it.

    Exit codes: 0 done, 64 wrong usage, 65 bad input, 70 internal error, 130 interrupted.

    \b
    Example:
      golf-audit show
    """


@audit.command()
@click.option("--recipe", type=FOLDER, help="The resolved recipe.  [default: RUNS/recipe.json]")
@runs_option
@click.option("-o", "--out", type=FOLDER, help="Where metrics.json goes.  [default: RUNS/aggregate]")
@json_option
@cli.chatter_options
@click.pass_obj
def stats(chatter: cli.Chatter, recipe: Path | None, runs: Path, out: Path | None, as_json: bool) -> None:
    """Mean and sample standard deviation over exactly the seeds of the recipe.

    A declared seed that is missing, or was evaluated under another recipe than the others, is an error (65). Folders
    of other seeds are named in a note and not read.

    \b
    Example:
      golf-audit stats --recipe runs/recipe.json --runs runs -o runs/aggregate
    """
    from audit.curves import CURVES, long_table
    from audit.files import to_json, write_text
    from audit.report.text import seed_table
    from audit.stats import aggregate

    found = aggregate(recipe or runs / "recipe.json", runs / "evaluate")
    document = to_json(found.as_dict())
    folder = out or runs / "aggregate"
    for name in CURVES:
        write_text(folder / name, long_table(runs / "train", name, found.seeds))
    path = folder / "metrics.json"
    write_text(path, document)
    chatter.say(f"wrote {path}")
    click.echo(document if as_json else seed_table(found), nl=not as_json)
    for note in found.notes:
        chatter.say(f"note: {note}")


@audit.command()
@runs_option
@click.option("-o", "--out", type=FOLDER, help="Where report.md and its figure go.  [default: RUNS/report]")
@cli.chatter_options
@click.pass_obj
def report(chatter: cli.Chatter, runs: Path, out: Path | None) -> None:
    """Write the report of a run: report.md and loss_curves.svg.

    Every file is checked against the others first; one that contradicts them is an error (65) that names the stage to
    run again.

    \b
    Example:
      golf-audit report --runs runs -o runs/report
    """
    from audit.report.files import write

    path = write(runs, out or runs / "report")
    chatter.say(f"wrote {path}")


@audit.command()
@runs_option
@json_option
@cli.chatter_options
def show(runs: Path, as_json: bool) -> None:
    """Say where the report is, and print the table of seeds.

    \b
    Example:
      golf-audit show --runs runs
    """
    from audit.files import to_json
    from audit.report.text import seed_table
    from audit.stats import read_aggregate

    found = read_aggregate(runs / "aggregate" / "metrics.json")
    path = runs / "report" / "report.md"
    if as_json:
        click.echo(to_json({"report": str(path) if path.exists() else None} | found.as_dict()), nl=False)
        return
    click.echo(f"report: {path if path.exists() else 'not written yet; run `golf-audit report`'}\n")
    click.echo(seed_table(found))
    for note in found.notes:
        click.echo(f"note: {note}")


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    sys.exit(cli.run(audit, argv))


if __name__ == "__main__":
    main()
