"""The command line of the trainer: `golf-train`, or `python -m trainer`.

Exit codes: 0 done, 64 wrong usage, 65 bad input (a recipe, data or an artifact that can't be used), 70 a bug of ours,
130 interrupted. Under torchrun (`launch` with more than one rank) a failure ends in torchrun's own 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import CompletionItem

from trainer import recipe as recipes
from trainer.errors import GolfError
from trainer.files import write_json
from trainer.layout import Layout

if TYPE_CHECKING:
    from trainer.settings import Recipe


DRIVER = Path("/proc/driver/nvidia/gpus")
"""Where the kernel driver lists its GPUs, one folder each."""


class Setting(click.ParamType[str]):
    """KEY=VALUE of the recipe; completes the key."""

    name = "KEY=VALUE"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(f"{name}=", help=field.metadata["doc"])
            for name, field in recipes.known_keys().items()
            if name.startswith(incomplete)
        ]


Command = Callable[..., Any]


def recipe_options(command: Command) -> Command:
    """`--config`, `--set` and `--runs`, the same for every stage."""
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            type=Setting(),
            help="Change one key of the recipe, e.g. --set qk_gain=5.0. Repeatable.",
        ),
        click.option(
            "--config", type=click.Path(path_type=Path), help="The recipe. Default: recipe.json in the --runs folder."
        ),
        click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show the trace of an error."),
        click.option(
            "--runs",
            type=click.Path(path_type=Path),
            default=Path("runs"),
            show_default=True,
            help="The folder of the run.",
        ),
    ):
        command = option(command)
    return command


seed_option = click.option("--seed", type=click.IntRange(0, 2**32 - 1), required=True, help="The seed of the run.")


def the_recipe(runs: Path, config: Path | None, overrides: tuple[str, ...]) -> tuple[Layout, Recipe]:
    layout = Layout(runs)
    flat = recipes.load(config or layout.recipe, overrides)
    return layout, recipes.resolve(flat, gpus=0 if "scale" in flat and flat["scale"] != "auto" else count_gpus())


def count_gpus() -> int:
    """GPUs of this machine, found without importing torch: the driver's list, else nvidia-smi, else none."""
    listed = list(DRIVER.glob("*"))
    if listed or not shutil.which("nvidia-smi"):
        return len(listed)
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="golf-audit")
def cli() -> None:
    """Train, quantize and score a Parameter Golf model, stage by stage.

    \b
    Example: the whole of one small run in small
      golf-train resolve --config params.yaml --set scale=cpu --runs small
      golf-train data --runs small
      golf-train train --seed 42 --runs small
      golf-train quantize --seed 42 --runs small
      golf-train evaluate --seed 42 --runs small
    """


@cli.command()
@recipe_options
def resolve(runs: Path, config: Path | None, overrides: tuple[str, ...]) -> None:
    """Fill in the recipe for this machine and write it as recipe.json.

    \b
    Example:
      golf-train resolve --config params.yaml --set scale=cpu --set qk_gain=5.0
    """
    layout, recipe = the_recipe(runs, config or Path("params.yaml"), overrides)
    recipe = recipes.pin(recipe)
    write_json(layout.recipe, recipes.as_dict(recipe))
    click.echo(f"{layout.recipe}: scale {recipe.scale}, {recipe.dist.ranks} x {recipe.device}, seeds {recipe.seeds}")


@cli.command()
@recipe_options
def data(runs: Path, config: Path | None, overrides: tuple[str, ...]) -> None:
    """Make tokenizer and token shards from documents, or fetch the published ones.

    \b
    Example:
      golf-train data --set corpus.source=jsonl --set corpus.path=documents.jsonl
    """
    layout, recipe = the_recipe(runs, config, overrides)
    from trainer.data import build
    from trainer.runlog import stage_folders

    with stage_folders(layout, "data", None, layout.data) as (folder, log):
        facts = build(recipes.pin(recipe), folder, log=log)
        for name, split in facts["splits"].items():
            log.line(f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, {split['bytes']:,} bytes")
        log.line(f"a bigram model reaches {facts['bigram_val_bpb']:.4f} bits per byte on validation")


@cli.command()
@seed_option
@recipe_options
def train(seed: int, runs: Path, config: Path | None, overrides: tuple[str, ...]) -> None:
    """Train one seed and collect its Hessians. Goes on from a checkpoint if there is one of the same inputs.

    \b
    Example:
      golf-train train --seed 42 --set train.steps=20
    """
    layout, recipe = the_recipe(runs, config, overrides)
    from trainer import stages

    stages.train(layout, recipes.pin(recipe), seed)


@cli.command()
@seed_option
@recipe_options
def quantize(seed: int, runs: Path, config: Path | None, overrides: tuple[str, ...]) -> None:
    """Quantize trained weights and write the artifact.

    With ttt.mode=prequant the weights are first fitted to the validation tokens: the result is marked contaminated.

    \b
    Example:
      golf-train quantize --seed 42 --set gptq.matrix_k=12
    """
    layout, recipe = the_recipe(runs, config, overrides)
    from trainer import stages

    stages.quantize(layout, recipe, seed)


@cli.command()
@seed_option
@recipe_options
def evaluate(seed: int, runs: Path, config: Path | None, overrides: tuple[str, ...]) -> None:
    """Score the artifact on disk: bits per byte by sequential and by sliding windows, and as ttt.mode says.

    \b
    Example:
      golf-train evaluate --seed 42 --set eval.stride=32
    """
    layout, recipe = the_recipe(runs, config, overrides)
    from trainer import stages

    stages.evaluate(layout, recipe, seed)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("stage", type=click.Choice(["train", "evaluate"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def launch(context: click.Context, stage: str, arguments: tuple[str, ...]) -> None:
    """Start a stage with as many processes as the recipe says (dist.ranks), by torchrun if more than one.

    \b
    Example:
      golf-train launch train --seed 42
    """
    command = {"train": train, "evaluate": evaluate}[stage]
    given = command.make_context(f"golf-train {stage}", list(arguments), parent=context).params
    _, recipe = the_recipe(given["runs"], given["config"], given["overrides"])
    module = ["-m", "trainer", stage, *arguments]
    if recipe.dist.ranks > 1:
        processes = f"--nproc_per_node={recipe.dist.ranks}"
        module = ["-m", "torch.distributed.run", "--standalone", processes, *module]
        # torchrun would choose one thread a process and warn at length; the recipe decides.
        os.environ["OMP_NUM_THREADS"] = str(recipe.dist.threads)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *module])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code; an error is one line on standard error."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        cli.main(args=given, prog_name="golf-train", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as bare:
        click.echo(bare.format_message(), err=True)
        sys.exit(64)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "golf-train"
        leave(f"error: {error.format_message()} (see {where} --help)", 64)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except GolfError as error:
        leave(f"error: {error}", 65, trace="-v" in given)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        leave(f"error: {where}{error.strerror}; mend that and run again", 65, trace="-v" in given)
    except Exception as error:  # the last boundary: one line, and a code of its own
        leave(f"internal error: {type(error).__name__}: {error}; this is a bug, run again with -v", 70, "-v" in given)


def leave(text: str, code: int, trace: bool = False) -> NoReturn:
    """One line on standard error, after the trace if it was asked for, and the exit code."""
    if trace:
        traceback.print_exc()
    click.echo(" ".join(text.split()), err=True)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        os._exit(code)  # no clean-up that would wait for ranks which wait for this one
    sys.exit(code)


if __name__ == "__main__":
    main()
