"""The command line. Each verb reads its options, calls one function, and renders what it returns.

Only this module prints, exits, or looks at the environment. Nothing heavy is imported before a verb needs
it: `legraph --help` and `legraph check` load neither numpy nor torch nor transformers.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from legraph import __version__
from legraph.errors import GraphError, InputError, LegraphError, Problem, did_you_mean
from legraph.source import STDIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from legraph.bundle import Bundle
    from legraph.engine import Engine, RunResult

app = typer.Typer(
    name="legraph",
    help="Compile prompt graphs (DAGs of text chunks) to token ids, masks and positions; show and run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BUNDLE_SUFFIXES = (".npz", ".pt")

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
    typer.Option("--order", metavar="declared|locality", help="Token order; locality: fewer active blocks."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]


def main() -> NoReturn:
    """Entry point: the only place where errors are drawn, once, and turned into an exit code."""
    code = 0
    try:
        _prepare_process()
        code = _exit_code_of(sys.argv[1:])
        _flush_stdout()
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        _abandon_stdout()
    except OSError as error:
        # Files answer for themselves; what is left is the world around: a full disk behind standard output.
        _abandon_stdout()
        _draw_error(error.strerror or str(error))
        code = 1
    sys.exit(code)


def _flush_stdout() -> None:
    """Here and not while Python shuts down, where nobody can catch what goes wrong."""
    stdout: TextIO | None = sys.stdout  # a process may be started without one
    if stdout is not None:
        stdout.flush()


def _abandon_stdout() -> None:
    """What is still to be written goes nowhere; Python would complain about it while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _exit_code_of(arguments: list[str]) -> int:
    # Not `app()`: it would swallow exit codes, interrupts and broken pipes, each in a way of its own.
    command = typer.main.get_command(app)
    try:
        with command.make_context("legraph", arguments) as context:
            command.invoke(context)
    except LegraphError as error:
        _draw_error(str(error))
        return error.exit_code
    except MemoryError as error:
        _draw_error(
            f"out of memory: {error}\n  hint: store no dense mask (--mask compact), or split the graph"
        )
        return 1
    except KeyboardInterrupt:
        _draw_error("interrupted")
        return 130
    except Exception as error:
        # typer carries click inside; its usage errors know how to show themselves and which code they have.
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            error.show()  # type: ignore[attr-defined]
        return error.exit_code  # type: ignore[attr-defined]
    return 0


def _prepare_process() -> None:
    """What transformers and the hub say on stderr is for their users; ours get their errors from legraph."""
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_VERBOSITY", "error"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TOKENIZERS_PARALLELISM", "true"),
    ):
        os.environ.setdefault(name, value)
    # A model may write any character; a terminal or pipe that lacks it must not end the run.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"legraph {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile prompt graphs (DAGs of text chunks) to token ids, masks and positions; show and run them."""


@app.command("compile")
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
            "--mask", metavar="auto|dense|compact", help="Store the N x N mask too? auto: up to 4,096 tokens."
        ),
    ] = "auto",
    order: OrderOption = "declared",
    as_json: JsonOption = False,
) -> None:
    """Compile a graph file to a bundle: token ids, positions, spans, parents, mask."""
    _one_of("--mask", mask, ("auto", "dense", "compact"))
    path = _output_path(graph, output)
    bundle = _compiled(graph, tokenizer, order)
    bundle.save(path, mask)  # type: ignore[arg-type]
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


@app.command()
def show(
    source: InputArgument,
    tokenizer: TokenizerOption = None,
    order: OrderOption = "declared",
    as_json: JsonOption = False,
) -> None:
    """Draw a graph as a tree, from the leaves up, with token counts, positions and totals."""
    from legraph.show import summary, tree

    # For a bundle it only turns ids back into text; a graph is compiled with it.
    loaded = _tokenizer(tokenizer)
    bundle = _bundle(source, loaded, order)
    if as_json:
        print(json.dumps(summary(bundle, loaded)))
    else:
        _print_picture(tree(bundle, loaded))


@app.command()
def check(
    graphs: Annotated[list[str], typer.Argument(metavar="GRAPH...", help="Graph files; - is stdin.")],
    as_json: JsonOption = False,
) -> None:
    """Check graph files, without a tokenizer: every problem with its place. Exit code 0 or 2."""
    from legraph.parse import parse_file

    found: dict[str, tuple[Problem, ...]] = {}
    for graph in graphs:
        try:
            parse_file(graph)
            found[graph] = ()
        except GraphError as error:
            found[graph] = error.problems
    if as_json:
        files = [
            {"file": graph, "ok": not problems, "problems": [_as_data(problem) for problem in problems]}
            for graph, problems in found.items()
        ]
        print(json.dumps({"ok": not any(found.values()), "files": files}))
    else:
        for graph, problems in found.items():
            if not problems:
                print(f"{graph}: ok")
            else:
                _draw_error(str(GraphError(problems)))
    if any(found.values()):
        raise typer.Exit(2)


@app.command()
def run(
    source: InputArgument,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="M", help="Path or hub id of a causal LM; default: recall, in the box."
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="D", help="cuda, cuda:1, cpu, ...")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="T", help="auto, float32, bfloat16 or float16.")
    ] = "auto",
    attn: Annotated[
        str, typer.Option("--attn", metavar="auto|flex|sdpa|eager", help="Attention used for prefill.")
    ] = "auto",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="For leaves without 'generate' of their own.")
    ] = 32,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0, help="Sample; without it decoding is greedy.")
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus sampling, 0 < p <= 1.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Among the k likeliest.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random numbers.")] = 0,
    stream: Annotated[bool, typer.Option("--stream", help="Show text as it is generated.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a graph on a model: every leaf, and every chunk with 'generate', is continued."""
    from legraph.graph import Generate

    _one_of("--attn", attn, ("auto", "flex", "sdpa", "eager"))
    _one_of("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(Problem(f"--top-p is {top_p}", "more than 0, at most 1"))
    settings = Generate(max_new_tokens, (), temperature, top_k, top_p, seed)
    started = time.perf_counter()
    parsed = None if _is_bundle(source) else _graph(source)
    # What is wrong with the input is said before a model is loaded.
    given = _load_bundle(source) if parsed is None else None
    engine = _engine(model, tokenizer, device, dtype, attn)
    loaded = time.perf_counter()
    bundle = given or _compile_graph(parsed, engine.tokenizer, "declared")
    compiled = time.perf_counter()
    result = _streamed(engine, bundle, settings, stream and not as_json)
    timing = {"load_s": loaded - started, "compile_s": compiled - loaded} | result.timing
    if as_json:
        print(json.dumps(_result_data(result, timing)))
    elif not stream:
        _print_outputs(result)


@app.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of graph files, for editors."""
    from legraph.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


def _graph(path: str) -> Any:
    from legraph.graph import build_graph
    from legraph.parse import parse_file

    return build_graph(parse_file(path))


def _compiled(path: str, tokenizer: Any, order: str) -> Bundle:
    _one_of("--order", order, ("declared", "locality"))
    return _compile_graph(_graph(path), tokenizer, order)


def _compile_graph(graph: Any, tokenizer: Any, order: str) -> Bundle:
    from legraph.compiler import compile_graph

    with _progress("tokenizing", len(graph.chunks), "chunks") as advance:
        return compile_graph(graph, tokenizer, order=order, advance=advance)  # type: ignore[arg-type]


def _tokenizer(name: str | None) -> Any:
    from legraph.tokens import load_tokenizer

    return None if name is None else load_tokenizer(name)


def _bundle(source: str, tokenizer: Any, order: str) -> Bundle:
    if not _is_bundle(source):
        return _compiled(source, tokenizer, order)
    if order != "declared":
        raise InputError(Problem(f"{source} is compiled: its token order is fixed", "--order with a graph"))
    return _load_bundle(source)


def _is_bundle(source: str) -> bool:
    return Path(source).suffix in BUNDLE_SUFFIXES


def _load_bundle(path: str) -> Bundle:
    from legraph.bundle import Bundle

    return Bundle.load(path)


def _engine(model: str | None, tokenizer: str | None, device: str | None, dtype: str, attn: str) -> Engine:
    from transformers.utils import logging

    from legraph.engine import Engine

    # The environment says so too, but transformers reads it once, when it is imported.
    logging.disable_progress_bar()
    return Engine.load(model, tokenizer, device=device, dtype=dtype, attn=attn)


def _streamed(engine: Engine, bundle: Bundle, settings: Any, shown: bool) -> RunResult:
    from legraph.run import RunResult

    several = len(set(bundle.leaves) | {bundle.index(name) for name in bundle.meta.generate}) > 1
    last: str | None = None
    with _progress("generating", None, "tokens", hidden=shown) as advance:
        for event in engine.stream(bundle, settings):
            if isinstance(event, RunResult):
                if shown:
                    print(flush=True)
                return event
            advance(1)
            if not shown or not event.text:
                continue
            if several and event.chunk != last:
                # Branches speak in turns; a heading says whose turn it is.
                print(("" if last is None else "\n") + f"[{event.chunk}] ", end="")
                last = event.chunk
            print(event.text, end="", flush=True)
    raise AssertionError("a run ends with its result")


def _print_outputs(result: RunResult) -> None:
    if len(result.outputs) == 1:
        print(next(iter(result.outputs.values())).text.strip())
        return
    for chunk, output in result.outputs.items():
        print(f"[{chunk}] {output.text.strip()}")


def _result_data(result: RunResult, timing: dict[str, float]) -> dict[str, Any]:
    outputs = {
        chunk: {"text": output.text, "token_ids": list(output.token_ids), "finish": output.finish}
        for chunk, output in result.outputs.items()
    }
    return {"outputs": outputs, "timing": timing, "tokens": result.tokens}


def _output_path(graph: str, output: str | None) -> Path:
    if output is None and graph == STDIN:
        raise InputError(Problem("a graph from standard input needs -o", "-o OUT.npz or -o OUT.pt"))
    if output is None and not Path(graph).name:
        raise InputError(Problem(f"{graph!r} is not a file", "a graph file"))
    path = Path(output) if output is not None else Path(graph).with_suffix(".npz")
    if path.suffix not in BUNDLE_SUFFIXES:
        raise InputError(Problem(f"{path}: unknown kind of bundle", "a name that ends in .npz or .pt"))
    return path


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        hint = did_you_mean(value, allowed)
        raise InputError(Problem(f"{option} is {value!r}", f"one of {', '.join(allowed)}", hint))


def _as_data(problem: Problem) -> dict[str, Any]:
    place = problem.source
    return {
        "message": problem.message,
        "expected": problem.expected,
        "hint": problem.hint,
        "line": place.line if place else None,
        "column": place.column if place else None,
    }


@contextmanager
def _progress(
    label: str, total: int | None, unit: str, hidden: bool = False
) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, where stderr is a terminal; gives the function that advances it."""
    if hidden or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


def _print_picture(picture: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        # Into a file or pipe, lines stay whole: nobody can scroll a wrapped tree back together.
        console = Console(highlight=False, width=200)
    # Through `print`, because rich ends the process itself when the reader of a pipe has gone.
    with console.capture() as captured:
        console.print(picture)
    print(captured.get(), end="")


def _draw_error(text: str) -> None:
    """A report on stderr; in colour only where a terminal shows it."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        print(f"error: {text}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


if __name__ == "__main__":
    main()
