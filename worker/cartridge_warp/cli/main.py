"""The command `cartridge-warp`."""

from __future__ import annotations

import asyncio
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from cartridge_warp import __version__
from cartridge_warp.cli.inspect import init, status, validate
from cartridge_warp.cli.options import load, run_options
from cartridge_warp.cli.process import fail, hide_passwords
from cartridge_warp.config import environment_settings
from cartridge_warp.errors import mask

__all__ = ["cli", "main"]


class _Commands(click.Group):
    """The sub-commands; `demo` is only loaded when it is asked for, since it brings servers along."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "demo"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name != "demo":
            return super().get_command(ctx, cmd_name)
        from cartridge_warp.cli.demo import demo

        return demo


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cartridge-warp")
def cli() -> None:
    """Copy MongoDB collections into PostgreSQL and follow every change, without losing a row.

    Without a sub-command: run. Settings come from the command line, then from the environment
    (CARTRIDGE_WARP_SOURCE__CONNECTION_STRING and the like), then from the file.
    """


@cli.command()
@run_options
@click.option("--once", is_flag=True, help="Copy what is missing, follow the changes up to now, then end.")
@click.option("--take-over", is_flag=True, help="Take the destination over from another identity.")
def run(once: bool, take_over: bool, **options: Any) -> int:
    """Replicate until Ctrl-C."""
    from cartridge_warp.cli.operate import operate

    return asyncio.run(operate(load(**options), once=once, take_over=take_over))


for _command in (validate, init, status):
    cli.add_command(_command)


def _complete(words: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The arguments with `run` in front where no sub-command is named."""
    known = cli.list_commands(click.Context(cli))
    if not words:
        configured = environment_settings(environ) or environ.get("CARTRIDGE_WARP_CONFIG")
        return ["run"] if configured else []
    if words[0] in known or words[0] in ("-h", "--help", "--version"):
        return list(words)
    if not words[0].startswith("-"):
        near = difflib.get_close_matches(words[0], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise click.UsageError(f"there is no command '{words[0]}'; {hint}")
    return ["run", *words]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `arguments` default to those of the process. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if arguments is None:
            hide_passwords(words, os.environ)
        completed = _complete(words, os.environ)
        if not completed:
            click.echo(cli.get_help(click.Context(cli, info_name="cartridge-warp")), err=True)
            return 2
        result = cli.main(completed, prog_name="cartridge-warp", standalone_mode=False)
    except click.ClickException as error:
        return _usage(error)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read the output has gone, as in `status | head`; nothing else may be written to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last place where it can be said in one masked line
        return fail(error)
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> int:
    if isinstance(error, click.UsageError) and error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
    click.echo(f"error: {mask(error.format_message())}", err=True)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
