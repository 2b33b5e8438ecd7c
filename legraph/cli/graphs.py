"""Commands that write: a bundle from a graph, the schema of graph files, a graph file to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legraph.cli.inputs import compiled, output_path
from legraph.cli.options import (
    ForceOption,
    GraphArgument,
    JsonOption,
    OrderOption,
    OutsideOption,
    TokenizerOption,
    VarOption,
    VarsOption,
    one_of,
    reading_of,
    words,
)
from legraph.errors import InputError, Problem
from legraph.source import STDIN

if TYPE_CHECKING:
    from legraph.bundle import Bundle


def compile_command(
    graph: GraphArgument,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="OUT", help=".npz or .pt; default: GRAPH's name with .npz."),
    ] = None,
    tokenizer: TokenizerOption = None,
    mask: Annotated[
        str,
        typer.Option(
            "--mask",
            metavar="auto|dense|compact",
            help="Store the N x N mask too? auto: up to 4,096 tokens.",
            autocompletion=words("auto", "dense", "compact"),
        ),
    ] = "auto",
    order: OrderOption = "declared",
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="dense|flashmask|ffa|cu-seqlens",
            autocompletion=words("dense", "flashmask", "ffa", "cu-seqlens"),
            help="Instead of a bundle, write ids and mask as another attention library takes them (.npz).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a graph file to a bundle: token ids, positions, spans, parents, mask."""
    one_of("--mask", mask, ("auto", "dense", "compact"))
    path = output_path(graph, output) if export is None else _export_path(graph, output, export, mask)
    bundle = compiled(graph, tokenizer, order, reading_of(var, vars_file, allow_outside))
    if export is None:
        bundle.save(path, mask)  # type: ignore[arg-type]
    else:
        _save_export(bundle, path, export)
    totals = {
        "output": str(path),
        "tokens": len(bundle),
        "chunks": bundle.mask.num_chunks,
        "edges": bundle.mask.num_edges,
        "leaves": len(bundle.leaves),
        "tokenizer": bundle.meta.tokenizer,
        "source_sha256": bundle.meta.source_sha256,
    }
    if as_json:
        print(json.dumps(totals))
    else:
        print(f"{path}: {len(bundle):,} tokens, {totals['chunks']:,} chunks, {totals['edges']:,} edges")


def _export_path(graph: str, output: str | None, export: str, mask: str) -> Path:
    """Where an export goes, once the options that go with it have been checked."""
    from legraph.export import FORMATS, SUFFIX

    one_of("--export", export, FORMATS)
    if mask != "auto":
        raise InputError(Problem("--mask is about bundles, and --export writes none", "one of the two"))
    if output is None and graph != STDIN:
        return output_path(graph, None).with_suffix(f".{export}{SUFFIX}")
    if output is None:
        raise InputError(Problem("a graph from standard input needs -o", f"-o OUT{SUFFIX}"))
    if Path(output).suffix != SUFFIX:
        raise InputError(Problem(f"{output}: exports are {SUFFIX} files", f"-o OUT{SUFFIX}"))
    return Path(output)


def _save_export(bundle: Bundle, path: Path, export: str) -> None:
    from legraph.export import save_export

    save_export(bundle, path, export)


def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of graph files, for editors."""
    from legraph.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def init(
    target: Annotated[
        str, typer.Argument(metavar="DIR|FILE", help="Where to: a folder, or a .yaml file.")
    ] = ".",
    template: Annotated[
        str,
        typer.Option(
            "--template",
            metavar="rag|tree|forkjoin|chat|fewshot",
            help="What to start from.",
            autocompletion=words("rag", "tree", "forkjoin", "chat", "fewshot"),
        ),
    ] = "rag",
    force: ForceOption = False,
) -> None:
    """Write a commented graph file to start from."""
    from legraph.starters import next_commands, write_starter

    written = write_starter(template, target, force)
    for path in written:
        print(f"wrote {path}")
    print("\nNext:", *next_commands(template, written[0]), sep="\n  ")
