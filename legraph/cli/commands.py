"""All commands, in the order in which `legraph --help` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

from legraph import __version__
from legraph.cli.batch import batch_command
from legraph.cli.cache import cache
from legraph.cli.checks import check, diff_command, explain_command, lint_command
from legraph.cli.graphs import compile_command, init, schema
from legraph.cli.imports import imports
from legraph.cli.models import run, score, verify
from legraph.cli.pack import pack_command
from legraph.cli.pictures import show, watch_command
from legraph.cli.plots import plot, view


def _version(wanted: bool) -> None:
    if wanted:
        print(f"legraph {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="legraph",
    help="Compile prompt graphs (DAGs of text chunks) to token ids, masks and positions; show and run them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile prompt graphs (DAGs of text chunks) to token ids, masks and positions; show and run them."""


app.command("compile")(compile_command)
app.command("show")(show)
app.command("plot")(plot)
app.command("view")(view)
app.command("watch")(watch_command)
app.command("check")(check)
app.command("lint")(lint_command)
app.command("explain")(explain_command)
app.command("diff")(diff_command)
app.command("run")(run)
app.command("batch")(batch_command)
app.command("verify")(verify)
app.command("score")(score)
app.command("pack")(pack_command)
app.command("schema")(schema)
app.command("init")(init)
app.add_typer(cache, name="cache")
app.add_typer(imports, name="import")
