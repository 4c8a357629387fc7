"""golf-audit: what makes a number believable. `golf-audit --help`, or `python -m audit --help`.

Commands are thin: they name paths, call one function of the library and write or print what it returns. Modules that
take time to import are imported inside the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit import cli

if TYPE_CHECKING:
    from audit.verdicts import Judgement

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
    """Record training runs, and prove from the record and the data what can be proven about them.

    Exit codes of the commands that judge (verify, gate): 0 PASS, 1 FAIL, 2 UNPROVEN. Of all: 0 done, 64 wrong usage,
    65 bad input, 70 internal error, 130 interrupted; `run` answers with the program's own.

    \b
    Example:
      golf-audit run -o ledger train.py --lr 0.1
      golf-audit verify ledger --data data
    """


@audit.command("hash")
@click.argument("folders", nargs=-1, type=FOLDER, required=True)
@click.option(
    "--check", type=FOLDER, metavar="MANIFEST", help="Compare with this manifest; data that differ are bad input."
)
@click.option("--tokenizer", type=FOLDER, help="The tokenizer, if it is not in the folders.")
@click.option("--overlap", is_flag=True, help="Measure too which validation text stands in training.")
@click.option("-o", "--out", type=FOLDER, help="Write the manifest to this file, and overlap.json beside it.")
@json_option
@cli.chatter_options
@click.pass_obj
def hash_(
    chatter: cli.Chatter,
    folders: tuple[Path, ...],
    check: Path | None,
    tokenizer: Path | None,
    overlap: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say what the data are: shards, tokens, documents, bytes, SHA-256 and roots of each split.

    With --check everything that is extra, missing or changed is named, and the exit code is 65.

    \b
    Example:
      golf-audit hash runs/data -o manifest.json
      golf-audit hash runs/data --check manifest.json
    """
    from audit import identity, manifest
    from audit.files import read_json, to_json
    from audit.splits import open_data

    if check:
        expected = manifest.parse(
            read_json(check, remedy="give a file that `golf-audit hash -o` wrote"), where=str(check)
        )
        taken = manifest.check(expected, folders, tokenizer=tokenizer)
        chatter.say(f"the data are those of {check}")
    data = open_data(folders, tokenizer=tokenizer)
    if not check:
        taken = manifest.take(data)
    shared = identity.measured(data, taken) if overlap else None
    if out:
        identity.write(out, taken, shared)
        chatter.say(f"wrote {out}")
    if as_json:
        click.echo(to_json(taken.as_dict() | ({"overlap": shared} if shared else {})), nl=False)
        return
    for line in [*manifest.table(taken), *([identity.describe(shared)] if shared else [])]:
        click.echo(line)


@audit.command(context_settings={"allow_interspersed_args": False})
@click.option("-o", "--out", type=FOLDER, default=Path("ledger"), show_default=True, help="Where the ledger goes.")
@click.option("--after", type=FOLDER, metavar="DIR", help="The sealed ledger of the stage before, to start from.")
@click.option("-m", "--module", is_flag=True, help="TARGET is a module, as in `python -m`.")
@click.argument("target", nargs=-1, type=click.UNPROCESSED, required=True, metavar="TARGET [ARGUMENTS]...")
@cli.chatter_options
@click.pass_obj
def run(chatter: cli.Chatter, out: Path, after: Path | None, module: bool, target: tuple[str, ...]) -> int:
    """Run a Python program and record its ledger. Answers with the program's own exit code.

    Options of `run` stand before TARGET, all that follows it is the program's.

    The program computes what it would compute without it. Every process of torchrun writes its own part.

    \b
    Example:
      golf-audit run -o ledger/train -m trainer train --seed 42
      golf-audit run -o ledger train.py --lr 0.1
    """
    from audit import running

    return running.run(out=out, target=list(target), module=module, after=after, say=chatter.say)


@audit.command()
@click.argument("ledgers", nargs=-1, type=FOLDER, metavar="[LEDGER]...")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Verify this seed of the pipeline's folder instead.")
@runs_option
@click.option("--data", type=FOLDER, help="The data folder.  [default: that of the run]")
@click.option("--identity", type=FOLDER, help="Manifest and overlap of the data.  [default: RUNS/identity with --seed]")
@click.option("--profile", help="Which rules are required: pipeline, generic, …  [default: by the run]")
@click.option("--ruleset", type=FOLDER, help="Another contest's rules.")
@click.option("--sample", type=click.IntRange(1), help="Read only so many records' contents again.  [default: all]")
@click.option("--rescore", type=click.IntRange(0), help="Compute the losses of so many records again.")
@click.option("-o", "--out", type=FOLDER, help="Where verdict.json goes.  [default: RUNS/verify/SEED with --seed]")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 whatever the verdict is.")
@json_option
@cli.chatter_options
@click.pass_obj
def verify(
    chatter: cli.Chatter,
    /,
    ledgers: tuple[Path, ...],
    seed: int | None,
    runs: Path,
    out: Path | None,
    exit_zero: bool,
    as_json: bool,
    ruleset: Path | None,
    **options: Any,
) -> int:
    """Replay ledgers against the rules and the data. Exit codes: 0 PASS, 1 FAIL, 2 UNPROVEN.

    Ledgers are given in the order in which they ran; each must start from the seal of the one before.

    \b
    Example:
      golf-audit verify ledger --data data
      golf-audit verify --seed 42 --runs runs
    """
    from audit import verify as verifying
    from audit.report.text import verdict_lines
    from audit.ruleset import PARAMETER_GOLF

    if (seed is None) == (not ledgers):
        raise click.UsageError("give ledgers, or --seed for one seed of the pipeline's folder")
    if seed is None and options["rescore"] is not None:
        raise click.UsageError("--rescore goes with --seed: only the pipeline's folder has the artifact")
    wanted = verifying.Options(ruleset=ruleset or PARAMETER_GOLF, **options)
    if seed is None:
        found = verifying.verify_folders(ledgers, wanted)
    else:
        found = verifying.verify_seed(runs, seed, wanted)
        out = out or runs / "verify" / str(seed)
        verifying.write_clock(runs / "clock" / f"clock.verify.{seed}" / "times.json", seed, found)
    if out:
        verifying.write_verdict(out, found)
        chatter.say(f"wrote {out / 'verdict.json'}")
    return answer(found.judgement, as_json=as_json, text=verdict_lines(found.judgement), exit_zero=exit_zero)


@audit.command()
@click.argument("path", type=FOLDER, default=RUNS / "report", metavar="[RUN|REPORT]")
@json_option
@cli.chatter_options
def gate(path: Path, as_json: bool) -> int:
    """Nothing but the exit code and one line: what a CI job asks. 0 PASS, 1 FAIL, 2 UNPROVEN.

    PATH is a report.json or verdict.json, or a folder that holds one.  [default: runs/report]

    \b
    Example:
      golf-audit gate runs/report/report.json
    """
    from audit.merging import read_verdict
    from audit.report.text import gate_line

    judgement = read_verdict(path)
    return answer(judgement, as_json=as_json, text=gate_line(judgement))


def answer(judgement: Judgement, *, as_json: bool, text: str, exit_zero: bool = False) -> int:
    """Print a judgement, and the exit code that it has."""
    from audit.files import to_json

    click.echo(to_json(judgement.as_dict()) if as_json else text, nl=not as_json)
    return cli.OK if exit_zero else judgement.verdict.exit_code


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
    """Write the report of a run: report.md, its figures, and report.json, which is what `gate` reads.

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
    """Say where the report is, print the table of seeds, and what the audit found.

    \b
    Example:
      golf-audit show --runs runs
    """
    from audit.files import to_json
    from audit.merging import read_verdict
    from audit.report.text import seed_table, verdict_lines
    from audit.stats import read_aggregate

    found = read_aggregate(runs / "aggregate" / "metrics.json")
    path = runs / "report" / "report.md"
    judgement = read_verdict(runs / "report") if path.exists() else None
    if as_json:
        verdict = str(judgement.verdict) if judgement else None
        head = {"report": str(path) if path.exists() else None, "verdict": verdict}
        click.echo(to_json(head | found.as_dict()), nl=False)
        return
    missing = f"not written yet; run `golf-audit report --runs {runs}`"
    click.echo(f"report: {path if path.exists() else missing}\n")
    click.echo(seed_table(found))
    for note in found.notes:
        click.echo(f"note: {note}")
    if judgement:
        click.echo(f"\n{verdict_lines(judgement)}")


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    sys.exit(cli.run(audit, argv))


if __name__ == "__main__":
    main()
