"""`legraph pack`: graphs -> packs to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legraph.cli.console import progress
from legraph.cli.options import (
    ForceOption,
    JsonOption,
    OutsideOption,
    TokenizerOption,
    VarOption,
    VarsOption,
    reading_of,
)

if TYPE_CHECKING:
    from legraph.packfile import PackInfo


def pack_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...", help="Graph files, globs, .jsonl or .parquet of graphs, bundles; - is stdin."
        ),
    ],
    output: Annotated[str, typer.Option("-o", "--output", metavar="DIR", help="A new folder.")],
    length: Annotated[
        int, typer.Option("--length", metavar="N", min=1, help="Tokens of a pack, at most.")
    ] = 8192,
    tokenizer: TokenizerOption = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Processes that compile; 1: none besides.")
    ] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of packs.")] = 0,
    learn_unlabelled: Annotated[
        bool,
        typer.Option(
            "--learn-unlabelled",
            help="Learn graphs without 'loss' whole, every token but a chunk's first.",
        ),
    ] = False,
    skip_long: Annotated[
        bool, typer.Option("--skip-long", help="Leave out graphs that are longer than a pack.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out graphs that have a problem.")
    ] = False,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pack labelled graphs into sequences of a fixed length to train on, as Parquet for `datasets`."""
    from legraph.batchinput import Inputs
    from legraph.pack import PackSettings, pack
    from legraph.packfile import check_target

    check_target(Path(output), force)
    found = Inputs.find(inputs, None, None, *reading_of(var, vars_file, allow_outside))
    settings = PackSettings(
        length,
        tokenizer,
        seed=seed,
        workers=workers,
        learn_unlabelled=learn_unlabelled,
        skip_long=skip_long,
        skip_broken=skip_broken,
    )
    with progress("packing", found.num_graphs(), "graphs") as advance:
        info = pack(found.items(), output, settings, force, advance)
    print(json.dumps({"output": output} | info.data()) if as_json else f"{output}: {_totals(info)}")


def _totals(info: PackInfo) -> str:
    from legraph.errors import count

    said = (
        f"{count(info.packs, 'pack')} of {info.length:,} tokens, {100 * info.fill:.1f}% full, "
        f"of {count(info.graphs, 'graph')} with {count(info.labels, 'label')}"
    )
    skipped = {"too long": info.skipped_long, "broken": info.skipped_broken}
    left_out = ", ".join(f"{number:,} {why}" for why, number in skipped.items() if number)
    return said + (f"; left out: {left_out} (skipped.jsonl)" if left_out else "")
