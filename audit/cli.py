"""The boundary of a command line: exit codes, and errors as one line on stderr.

    sys.exit(run(command, sys.argv[1:]))

0 is success, 64 wrong usage (click's own 2 is remapped), 65 bad input (AuditError), 70 an internal error, 130 Ctrl-C,
141 a reader that closed the pipe. A command that judges returns its own code. No path leads to 1 by accident, because
1 means FAIL. `-v` adds the trace.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from audit.errors import AuditError

OK, USAGE, BAD_INPUT, INTERNAL, INTERRUPTED, CLOSED_PIPE = 0, 64, 65, 70, 130, 141


@dataclass
class Chatter:
    """How much a command says besides its result. It is `ctx.obj` of every command."""

    quiet: bool = False
    verbose: bool = False

    def say(self, text: str) -> None:
        """A line for the person, on stderr, unless `-q`."""
        if not self.quiet:
            click.echo(text, err=True)


def chatter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `-q` and `-v`, which set `Chatter` and are not passed to the command."""

    def note(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            setattr(context.obj, option.name or "", True)

    for flags, text in ((("-v", "--verbose"), "Show the trace of an error."), (("-q", "--quiet"), "Only the result.")):
        command = click.option(*flags, is_flag=True, expose_value=False, callback=note, help=text)(command)
    return command


def run(command: click.Command, argv: Sequence[str] | None = None, *, name: str = "golf-audit") -> int:
    """Run a click command with arguments (default: those of the process) and return its exit code."""
    chatter = Chatter()
    try:
        code = command.main(argv, prog_name=name, standalone_mode=False, obj=chatter)
        return code if isinstance(code, int) else OK
    except click.exceptions.NoArgsIsHelpError as bare:
        click.echo(bare.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        return _fail(f"{error.format_message()} (see {where} --help)", USAGE, chatter)
    except (AuditError, click.ClickException) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        return _fail(text, BAD_INPUT, chatter)
    except click.Abort as abort:
        if isinstance(abort.__cause__, EOFError):  # click takes any EOFError for a closed prompt; we never prompt
            return _fail(_described(abort.__cause__), INTERNAL, chatter)
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit:  # click's answer to a broken pipe, with code 1
        return CLOSED_PIPE
    except Exception as error:
        return _fail(_described(error), INTERNAL, chatter)


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}; this is a bug, run again with -v for the trace"


def _fail(text: str, code: int, chatter: Chatter) -> int:
    if chatter.verbose:
        traceback.print_exc(file=sys.stderr)
    kind = "internal error" if code == INTERNAL else "error"
    click.echo(f"{kind}: {' '.join(text.split())}", err=True)
    return code
