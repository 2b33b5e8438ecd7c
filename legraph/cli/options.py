"""What commands are told: their arguments and options, the words allowed for them, and variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from legraph.errors import InputError, Problem, did_you_mean


def words(*allowed: str) -> Callable[[str], list[str]]:
    """What a shell offers for an option. Where nothing is offered, it offers the names of files."""

    def offered(incomplete: str) -> list[str]:
        return [word for word in allowed if word.startswith(incomplete)]

    return offered


GraphArgument = Annotated[str, typer.Argument(metavar="GRAPH", help="Graph file (YAML, TOML); - is stdin.")]
InputArgument = Annotated[
    str,
    typer.Argument(metavar="GRAPH|BUNDLE", help="Graph file (- is stdin) or compiled bundle (.npz, .pt)."),
]
TokenizerOption = Annotated[
    str | None, typer.Option("--tokenizer", metavar="T", help="Path or hub id; overrides the file's own.")
]
OrderOption = Annotated[
    str,
    typer.Option(
        "--order",
        metavar="declared|locality",
        help="Token order; locality: what is seen lies together.",
        autocompletion=words("declared", "locality"),
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="M", help="Path or hub id of a causal LM; default: recall, in the box."),
]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="D", help="cuda, cuda:1, cpu, ...")]
DtypeOption = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="T",
        help="auto, float32, bfloat16 or float16.",
        autocompletion=words("auto", "float32", "bfloat16", "float16"),
    ),
]
AttnOption = Annotated[
    str,
    typer.Option(
        "--attn",
        metavar="auto|flex|sdpa|eager",
        help="sdpa, eager: transformers' own, slow and plain.",
        autocompletion=words("auto", "flex", "sdpa", "eager"),
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]
VarOption = Annotated[
    list[str] | None,
    typer.Option("--var", metavar="NAME=VALUE", help="A variable of the graph file; may be repeated."),
]
VarsOption = Annotated[
    str | None,
    typer.Option("--vars", metavar="FILE", help="Variables: YAML, TOML or JSON of names and values."),
]
OutsideOption = Annotated[
    bool, typer.Option("--allow-outside", help="Paths in the file may lead out of its folder.")
]

# What a graph file is read with: variables from outside, and whether its paths may leave its folder.
Reading = tuple[dict[str, Any], bool]


def reading_of(var: list[str] | None, file: str | None, allow_outside: bool) -> Reading:
    """What --var, --vars and --allow-outside say together."""
    if not var and file is None:
        return {}, allow_outside
    from legraph.given import given_variables

    return given_variables(var or (), file), allow_outside


def check_model_options(dtype: str, attn: str) -> None:
    one_of("--attn", attn, ("auto", "flex", "sdpa", "eager"))
    one_of("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises InputError for a value that the option cannot have."""
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise InputError(Problem(f"{option} is {value!r}", f"one of {', '.join(allowed)}", hint))
