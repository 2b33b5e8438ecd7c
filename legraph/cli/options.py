"""What commands are told: their arguments and options, the words allowed for them, and variables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from legraph.errors import InputError, Problem, did_you_mean

if TYPE_CHECKING:
    from legraph.graph import Generate


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
TpOption = Annotated[
    str | None,
    typer.Option(
        "--tp",
        metavar="auto",
        help="Share the model out to the processes of torchrun.",
        autocompletion=words("auto"),
    ),
]
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
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="For leaves without 'generate' of their own.")
]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", min=0, help="Sample, where a chunk does not say; else greedy."),
]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="Nucleus sampling, 0 < p <= 1.")]
TopKOption = Annotated[int | None, typer.Option("--top-k", min=1, help="Among the k likeliest.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of the random numbers.")]
PrefillTokensOption = Annotated[
    int | None, typer.Option("--prefill-tokens", min=1, help="Most tokens of one prefill pass.")
]
KvOption = Annotated[
    str | None,
    typer.Option("--kv", metavar="DIR", help="Keep keys and values of chunks there, and reuse them."),
]
KvBytesOption = Annotated[
    str | None, typer.Option("--kv-bytes", metavar="SIZE", help="Most that DIR holds: 500MB, 20GiB, ...")
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


def run_settings(
    max_new_tokens: int, temperature: float | None, top_k: int | None, top_p: float | None, seed: int
) -> Generate:
    """How leaves are continued, from the options of that name."""
    from legraph.graph import Generate

    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(Problem(f"--top-p is {top_p}", "more than 0, at most 1"))
    if temperature is not None and not math.isfinite(temperature):
        raise InputError(Problem(f"--temperature is {temperature}", "a number"))
    return Generate(max_new_tokens, (), temperature, top_k, top_p, seed)


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises InputError for a value that the option cannot have."""
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise InputError(Problem(f"{option} is {value!r}", f"one of {', '.join(allowed)}", hint))
