"""Commands that draw a graph: once, or whenever its file changes."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated

import typer

from legraph.cli.console import clear_screen, draw_error, print_picture
from legraph.cli.inputs import bundle_of, compiled, is_bundle, tokenizer_named
from legraph.cli.options import (
    InputArgument,
    JsonOption,
    OrderOption,
    OutsideOption,
    Reading,
    TokenizerOption,
    VarOption,
    VarsOption,
    one_of,
    reading_of,
)
from legraph.errors import InputError, LegraphError, Problem
from legraph.source import STDIN


def show(
    source: InputArgument,
    tokenizer: TokenizerOption = None,
    order: OrderOption = "declared",
    cost: Annotated[
        bool,
        typer.Option("--cost", help="What attention costs instead: pairs, blocks, kernels, predicted times."),
    ] = False,
    expand: Annotated[
        bool,
        typer.Option("--expand", help="Print the graph file with loops, includes and selectors written out."),
    ] = False,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a graph as a tree, from the leaves up, with token counts, positions and totals."""
    reading = reading_of(var, vars_file, allow_outside)
    if expand:
        _print_expanded(source, reading, as_json)
        return
    from legraph.show import summary, tree

    # For a bundle it only turns ids back into text; a graph is compiled with it.
    loaded = tokenizer_named(tokenizer)
    bundle = bundle_of(source, loaded, order, reading)
    if cost:
        from legraph.costshow import CostPicture, cost_data

        data = cost_data(bundle)
        print(json.dumps(data)) if as_json else print_picture(CostPicture(data))
    elif as_json:
        print(json.dumps(summary(bundle, loaded)))
    else:
        print_picture(tree(bundle, loaded))


def _print_expanded(path: str, reading: Reading, as_json: bool) -> None:
    from legraph.parse import parse_file
    from legraph.writtenout import expanded_data, written_out

    if is_bundle(path):
        raise InputError(Problem(f"{path}: a bundle has nothing to write out", "a graph file"))
    parsed = parse_file(path, *reading)
    print(json.dumps(expanded_data(parsed)) if as_json else written_out(parsed), end="\n" if as_json else "")


def watch_command(
    graph: Annotated[str, typer.Argument(metavar="GRAPH", help="Graph file (YAML, TOML).")],
    tokenizer: TokenizerOption = None,
    order: OrderOption = "declared",
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
) -> None:
    """Show a graph, and again whenever its file changes, or one that it reads. Ctrl-C ends it."""
    from legraph.show import tree
    from legraph.watch import watch

    if graph == STDIN or is_bundle(graph):
        what = "standard input" if graph == STDIN else "a bundle"
        raise InputError(Problem(f"{what} cannot be watched", "a graph file"))
    loaded = tokenizer_named(tokenizer)
    one_of("--order", order, ("declared", "locality"))

    def draw() -> None:
        clear_screen()
        try:
            reading = reading_of(var, vars_file, allow_outside)
            print_picture(tree(compiled(graph, loaded, order, reading), loaded))
        except LegraphError as error:
            draw_error(str(error))
        print(flush=True)

    with suppress(KeyboardInterrupt):
        watch(draw)
