"""Commands that write a graph file from another format: `legraph import ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from legraph.cli.inputs import tokenizer_named
from legraph.cli.options import ForceOption

imports = typer.Typer(
    help="Write a graph file from another format.", no_args_is_help=True, rich_markup_mode=None
)

ForeignArgument = Annotated[str, typer.Argument(metavar="FILE", help="The file to import; - is stdin.")]
GraphOutputOption = Annotated[
    str | None, typer.Option("-o", "--output", metavar="OUT.yaml", help="Default: standard output.")
]


@imports.command("pml")
def import_pml_command(
    file: ForeignArgument,
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="FILE2", help="The schema, if it is in another file.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="T", help="Write the positions of the schema's layout too."),
    ] = None,
    output: GraphOutputOption = None,
    force: ForceOption = False,
) -> None:
    """Import a prompt and its schema in Prompt Cache's markup."""
    from legraph.import_pml import import_pml

    _write_import(import_pml(file, schema, tokenizer_named(tokenizer)), output, force)


@imports.command("pcw")
def import_pcw_command(
    file: ForeignArgument, output: GraphOutputOption = None, force: ForceOption = False
) -> None:
    """Import parallel context windows: JSON {"contexts": [...], "task": "..."}."""
    from legraph.import_pcw import import_pcw

    _write_import(import_pcw(file), output, force)


@imports.command("prefix-tree")
def import_prefix_tree_command(
    file: ForeignArgument, output: GraphOutputOption = None, force: ForceOption = False
) -> None:
    """Import sequences that begin alike: a JSON list of strings, or of lists of strings."""
    from legraph.import_trie import import_prefix_tree

    _write_import(import_prefix_tree(file), output, force)


@imports.command("messages")
@imports.command("from-llm-messages", hidden=True)
def import_messages_command(
    file: ForeignArgument, output: GraphOutputOption = None, force: ForceOption = False
) -> None:
    """Import a conversation: JSON messages in the form of OpenAI's API."""
    from legraph.import_messages import import_messages

    _write_import(import_messages(file), output, force)


def _write_import(text: str, output: str | None, force: bool) -> None:
    from legraph.graphtext import write_text_file

    if output is None:
        print(text, end="")
    else:
        write_text_file(Path(output), text, force)
        print(f"wrote {output}")
