"""The command line. Each verb reads its options, calls one function, and renders what it returns.

Only this module prints, exits, or looks at the environment. Nothing heavy is imported before a verb needs
it: `legraph --help` and `legraph check` load neither numpy nor torch nor transformers.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

import typer

from legraph import __version__
from legraph.errors import GraphError, InputError, LegraphError, ModelError, Problem, did_you_mean
from legraph.source import STDIN

if TYPE_CHECKING:
    from legraph.bundle import Bundle
    from legraph.engine import Engine, RunResult, Submission
    from legraph.kvdisk import DiskTier, Removed

app = typer.Typer(
    name="legraph",
    help="Compile prompt graphs (DAGs of text chunks) to token ids, masks and positions; show and run them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

BUNDLE_SUFFIXES = (".npz", ".pt")
_UNCHECKED = "; 'max_tokens' needs a tokenizer, and is checked by compile and run"
JSONL_SUFFIX = ".jsonl"
# Panels are drawn anew no more often than this.
_SECONDS_PER_PICTURE = 0.1

# Where a shell asks what could come next.
_COMPLETION_VARIABLE = "_LEGRAPH_COMPLETE"

T = TypeVar("T")
# Takes the name of a branch, its next piece of text, and whether that was its last.
Show = Callable[[str, str, bool], object]


def _words(*words: str) -> Callable[[str], list[str]]:
    """What a shell offers for an option. Where nothing is offered, it offers the names of files."""

    def offered(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

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
        autocompletion=_words("declared", "locality"),
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
        autocompletion=_words("auto", "float32", "bfloat16", "float16"),
    ),
]
AttnOption = Annotated[
    str,
    typer.Option(
        "--attn",
        metavar="auto|flex|sdpa|eager",
        help="sdpa, eager: transformers' own, slow and plain.",
        autocompletion=_words("auto", "flex", "sdpa", "eager"),
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
    if os.environ.get(_COMPLETION_VARIABLE):
        app(prog_name="legraph")  # typer answers the shell, and ends the process
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
    warnings.showwarning = _draw_warning
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
            "--mask",
            metavar="auto|dense|compact",
            help="Store the N x N mask too? auto: up to 4,096 tokens.",
            autocompletion=_words("auto", "dense", "compact"),
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
            autocompletion=_words("dense", "flashmask", "ffa", "cu-seqlens"),
            help="Instead of a bundle, write ids and mask as another attention library takes them (.npz).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a graph file to a bundle: token ids, positions, spans, parents, mask."""
    _one_of("--mask", mask, ("auto", "dense", "compact"))
    path = _output_path(graph, output) if export is None else _export_path(graph, output, export, mask)
    bundle = _compiled(graph, tokenizer, order, _reading(var, vars_file, allow_outside))
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


@app.command()
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
    reading = _reading(var, vars_file, allow_outside)
    if expand:
        _print_expanded(source, reading, as_json)
        return
    from legraph.show import summary, tree

    # For a bundle it only turns ids back into text; a graph is compiled with it.
    loaded = _tokenizer(tokenizer)
    bundle = _bundle(source, loaded, order, reading)
    if cost:
        from legraph.costshow import CostPicture, cost_data

        data = cost_data(bundle)
        print(json.dumps(data)) if as_json else _print_picture(CostPicture(data))
    elif as_json:
        print(json.dumps(summary(bundle, loaded)))
    else:
        _print_picture(tree(bundle, loaded))


@app.command("watch")
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

    if graph == STDIN or _is_bundle(graph):
        what = "standard input" if graph == STDIN else "a bundle"
        raise InputError(Problem(f"{what} cannot be watched", "a graph file"))
    loaded = _tokenizer(tokenizer)
    _one_of("--order", order, ("declared", "locality"))

    def draw() -> None:
        if sys.stdout.isatty():
            print("\x1b[H\x1b[2J\x1b[3J", end="", flush=True)
        try:
            reading = _reading(var, vars_file, allow_outside)
            _print_picture(tree(_compiled(graph, loaded, order, reading), loaded))
        except LegraphError as error:
            _draw_error(str(error))
        print(flush=True)

    with suppress(KeyboardInterrupt):
        watch(draw)


@app.command()
def check(
    graphs: Annotated[list[str], typer.Argument(metavar="GRAPH...", help="Graph files; - is stdin.")],
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check graph files, without a tokenizer: every problem with its place. Exit code 0 or 2."""
    from legraph.flow import assertion_problems
    from legraph.graph import build_graph
    from legraph.rows import read_rows

    reading = _reading(var, vars_file, allow_outside)
    found: dict[str, tuple[Problem, ...]] = {}
    unchecked = set[str]()
    for graph in graphs:
        try:
            if Path(graph).suffix == JSONL_SUFFIX:
                checked = [build_graph(row.graph) for row in read_rows(graph, *reading)]
            else:
                checked = [_graph(graph, reading)]
            found[graph] = tuple(problem for each in checked for problem in assertion_problems(each))
            if any(said.kind == "max_tokens" for each in checked for said in each.assertions):
                unchecked.add(graph)
        except GraphError as error:
            found[graph] = error.problems
    if as_json:
        files = [
            {"file": graph, "ok": not problems, "problems": [_as_data(problem) for problem in problems]}
            | ({"unchecked": ["max_tokens"]} if graph in unchecked else {})
            for graph, problems in found.items()
        ]
        print(json.dumps({"ok": not any(found.values()), "files": files}))
    else:
        for graph, problems in found.items():
            if not problems:
                print(f"{graph}: ok" + (_UNCHECKED if graph in unchecked else ""))
            else:
                _draw_error(str(GraphError(problems)))
    if any(found.values()):
        raise typer.Exit(2)


@app.command("lint")
def lint_command(
    graphs: Annotated[list[str], typer.Argument(metavar="GRAPH...", help="Graph files; - is stdin.")],
    tokenizer: TokenizerOption = None,
    model_max: Annotated[
        int | None,
        typer.Option(
            "--model-max", metavar="N", min=1, help="Positions the model has; else as its tokenizer says."
        ),
    ] = None,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find what is valid and may not be meant. Exit code 0, 1 with findings, 2 for invalid files."""
    from legraph.flow import assertion_problems
    from legraph.lint import Finding, lint

    reading, loaded = _reading(var, vars_file, allow_outside), _tokenizer(tokenizer)
    found: dict[str, list[Finding] | InputError] = {}
    for graph in graphs:
        try:
            read = _graph(graph, reading)
            if problems := assertion_problems(read):
                raise GraphError(problems)
            found[graph] = lint(read, loaded, model_max)
        except InputError as error:
            found[graph] = error
    if as_json:
        files = [_lint_data(graph, result) for graph, result in found.items()]
        print(json.dumps({"ok": not any(found.values()), "files": files}))
    else:
        for graph, result in found.items():
            if isinstance(result, InputError):
                _draw_error(str(result))
            else:
                print("\n".join(map(str, result)) if result else f"{graph}: ok")
    if any(found.values()):
        raise typer.Exit(2 if any(isinstance(result, InputError) for result in found.values()) else 1)


def _lint_data(graph: str, result: Any) -> dict[str, Any]:
    is_wrong = isinstance(result, InputError)
    return {
        "file": graph,
        "ok": not result,
        "findings": [] if is_wrong else [finding.data() for finding in result],
        "problems": [_as_data(problem) for problem in result.problems] if is_wrong else [],
    }


@app.command("explain")
def explain_command(
    source: InputArgument,
    query: Annotated[str, typer.Argument(metavar="Q", help="Who looks: CHUNK, or CHUNK:3 for a token.")],
    key: Annotated[str, typer.Argument(metavar="K", help="What is looked at: CHUNK, or CHUNK:-1.")],
    tokenizer: TokenizerOption = None,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether Q may attend to K, why, and how K's content reaches Q anyway."""
    from legraph.explain import Target, explain, graph_of_bundle
    from legraph.explainshow import explanation_data, explanation_text

    targets = Target.of(query), Target.of(key)
    given = _graph_or_bundle(source, _reading(var, vars_file, allow_outside))
    bundle = given if _is_bundle(source) else None
    graph = given if bundle is None else graph_of_bundle(given)
    if bundle is None and any(target.index is not None for target in targets):
        bundle = _compile_graph(graph, _tokenizer(tokenizer), "declared")
    found = explain(graph, *targets, bundle)
    print(json.dumps(explanation_data(found)) if as_json else explanation_text(found))


@app.command("diff")
def diff_command(
    before: Annotated[str, typer.Argument(metavar="A", help="Graph file (- is stdin) or bundle.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Graph file (- is stdin) or bundle.")],
    tokenizer: TokenizerOption = None,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two graphs: chunks, texts, edges, tokens, visible pairs. Exit code 0 if equal, 1 if not."""
    from legraph.diff import diff
    from legraph.diffshow import DiffPicture

    if before == after == STDIN:
        raise InputError(Problem("standard input is given twice", "- once"))
    reading = _reading(var, vars_file, allow_outside)
    found = diff(_graph_or_bundle(before, reading), _graph_or_bundle(after, reading), _tokenizer(tokenizer))
    if as_json:
        print(json.dumps({"a": before, "b": after} | found.data()))
    else:
        _print_picture(DiffPicture(found, before, after))
    if not found.is_empty:
        raise typer.Exit(1)


@app.command()
def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="GRAPH|BUNDLE...", help='Graph files, bundles, .jsonl of {"id", "graph"}; - is stdin.'
        ),
    ],
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="For leaves without 'generate' of their own.")
    ] = 32,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0, help="Sample, where a chunk does not say; else greedy."),
    ] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus sampling, 0 < p <= 1.")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Among the k likeliest.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the random numbers.")] = 0,
    prefill_tokens: Annotated[
        int | None,
        typer.Option("--prefill-tokens", min=1, help="Most tokens of one prefill pass."),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option("--kv", metavar="DIR", help="Keep keys and values of chunks there, and reuse them."),
    ] = None,
    kv_bytes: Annotated[
        str | None,
        typer.Option("--kv-bytes", metavar="SIZE", help="Most that DIR holds: 500MB, 20GiB, ..."),
    ] = None,
    explain_cache: Annotated[
        bool, typer.Option("--explain-cache", help="Show where each chunk's keys and values came from.")
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(
            "--save", metavar="OUT", help="Write the finished graph, text and generated tokens, as a bundle."
        ),
    ] = None,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    stream: Annotated[bool, typer.Option("--stream", help="Show text as it is generated.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run graphs on a model: every leaf, and every chunk with 'generate', is continued."""
    from legraph.graph import Generate

    _check_model_options(dtype, attn)
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(Problem(f"--top-p is {top_p}", "more than 0, at most 1"))
    if temperature is not None and not math.isfinite(temperature):
        raise InputError(Problem(f"--temperature is {temperature}", "a number"))
    _check_cache_options(kv, kv_bytes, explain_cache)
    path = None if save is None else _saved_path(save, sources)
    settings = Generate(max_new_tokens, (), temperature, top_k, top_p, seed)
    started = time.perf_counter()
    # What is wrong with the input is said before a model is loaded.
    given = _run_inputs(sources, _reading(var, vars_file, allow_outside))
    engine = _engine(
        model,
        tokenizer,
        device=device,
        dtype=dtype,
        attn=attn,
        kv=_kv_store(kv, kv_bytes),
        prefill_tokens=prefill_tokens,
    )
    loaded = time.perf_counter()
    bundles = [_or_error(_as_bundle, graph, engine.tokenizer) for graph in given.values()]
    compiled = time.perf_counter()
    runs = [
        bundle if isinstance(bundle, LegraphError) else _or_error(engine.submit, bundle, settings)
        for bundle in bundles
    ]
    is_several = len(sources) > 1 or Path(sources[0]).suffix == JSONL_SUFFIX
    if not is_several and isinstance(runs[0], LegraphError):
        raise runs[0]
    setup = {"load_s": loaded - started, "compile_s": compiled - loaded}
    report = _Report(list(given), is_several, as_json, explain_cache, setup)
    try:
        report.follow(engine, runs, stream and not as_json)
    finally:
        # After an interrupt too: what was generated until then is kept.
        results = report.results(runs)
        try:
            # First, because nobody may read the results.
            if path is not None and not isinstance(results[0], LegraphError):
                results[0].bundle.save(path)
        finally:
            report.give(results)
    if report.errors:
        raise typer.Exit(1)


@app.command()
def verify(
    source: InputArgument,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Change N chunks only; default all, or 64 if there are more."),
    ] = None,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove on a model that each chunk changes its descendants and nothing else. Exit code 0 or 1."""
    from legraph.verify import num_passes
    from legraph.verify import verify as verify_bundle
    from legraph.verifyshow import VerifyPicture, verify_data

    _check_model_options(dtype, attn)
    given = _graph_or_bundle(source, _reading(var, vars_file, allow_outside))
    engine = _engine(model, tokenizer, device=device, dtype=dtype, attn=attn)
    bundle = _as_bundle(given, engine.tokenizer)
    with _progress("verifying", num_passes(bundle.mask.num_chunks, sample), "passes") as advance:
        found = verify_bundle(engine, bundle, sample, advance=advance)
    print(json.dumps(verify_data(found))) if as_json else _print_picture(VerifyPicture(found))
    if not found.is_ok:
        raise typer.Exit(1)


@app.command()
def score(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="GRAPH|BUNDLE...", help="Graph files, bundles, .jsonl; - is stdin."),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="NAME", help="May be repeated. Default: completions, else leaves."),
    ] = None,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Log-probabilities of chunks under their graph: of completions, or of texts without the first token."""
    from legraph.score import label_targets, score_all
    from legraph.scoreshow import score_data, score_table

    _check_model_options(dtype, attn)
    targets = target or []
    given = label_targets(_run_inputs(sources, _reading(var, vars_file, allow_outside)), targets)
    engine = _engine(model, tokenizer, device=device, dtype=dtype, attn=attn)
    bundles = {name: _as_bundle(graph, engine.tokenizer) for name, graph in given.items()}
    scores = score_all(engine, bundles, targets)
    print(json.dumps(score_data(scores))) if as_json else _print_picture(score_table(scores))


def _check_model_options(dtype: str, attn: str) -> None:
    _one_of("--attn", attn, ("auto", "flex", "sdpa", "eager"))
    _one_of("--dtype", dtype, ("auto", "float32", "bfloat16", "float16"))


cache = typer.Typer(
    help="Look after a folder in which keys and values (KV) of chunks are kept for reuse.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(cache, name="cache")

FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="The KV store's folder.")]


@cache.command("ls")
def cache_ls(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """List the entries, the one used last first."""
    from legraph.kvshow import entry_data, table

    entries = _kv_folder(folder).entries()
    if as_json:
        print(json.dumps({"folder": folder, "entries": [entry_data(entry) for entry in entries]}))
    elif entries:
        _print_picture(table(entries))
    else:
        print(f"{folder}: no entries")


@cache.command("stat")
def cache_stat(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Count entries, tokens and bytes, of each model and in all."""
    from legraph.kvshow import totals_data, totals_text

    tier = _kv_folder(folder)
    totals = totals_data(tier.usage(), tier.entries())
    if as_json:
        print(json.dumps({"folder": folder} | totals))
    else:
        print(f"{folder}: {totals_text(totals)}")


@cache.command("prune")
def cache_prune(
    folder: FolderArgument,
    max_bytes: Annotated[str, typer.Option("--max-bytes", metavar="SIZE", help="500MB, 2GiB, 1000000, ...")],
    as_json: JsonOption = False,
) -> None:
    """Remove the least recently used entries until the rest fits, and what dead processes left."""
    from legraph.kvshow import parse_size

    size = parse_size(max_bytes)
    _print_removed(folder, _kv_folder(folder).prune(size), as_json)


@cache.command("verify")
def cache_verify(
    folder: FolderArgument,
    remove: Annotated[bool, typer.Option("--remove", help="Remove entries that are damaged.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every entry with its checksum. Exit code 1 if a damaged one stays."""
    from legraph.kvshow import verified_data, verified_line

    tier = _kv_folder(folder)
    with _progress("verifying", tier.usage()[0], "entries") as advance:
        verified = tier.verify(remove, advance)
    if as_json:
        print(json.dumps({"folder": folder} | verified_data(verified)))
    else:
        for file in verified.bad:
            _draw_error(f"{file.path}: {file.reason}{'; removed' if file.removed else ''}")
        print(f"{folder}: {verified_line(verified)}")
    if not all(file.removed for file in verified.bad):
        raise typer.Exit(1)


@cache.command("clear")
def cache_clear(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Remove all entries. Other files in the folder stay."""
    _print_removed(folder, _kv_folder(folder).clear(), as_json)


def _kv_folder(folder: str) -> DiskTier:
    """Unlike a run, which makes the folder, these commands are about one that is there."""
    from legraph.kvdisk import DiskTier

    if not Path(folder).is_dir():
        wrong = "is a file" if Path(folder).exists() else "no such folder"
        raise InputError(Problem(f"{folder}: {wrong}", "the folder of a KV store"))
    return DiskTier(folder)


def _print_removed(folder: str, removed: Removed, as_json: bool) -> None:
    from legraph.kvshow import removed_data, removed_line

    if as_json:
        print(json.dumps({"folder": folder} | removed_data(removed)))
    else:
        print(f"{folder}: {removed_line(removed)}")


@app.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of graph files, for editors."""
    from legraph.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
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
            autocompletion=_words("rag", "tree", "forkjoin", "chat", "fewshot"),
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


imports = typer.Typer(
    help="Write a graph file from another format.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(imports, name="import")

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

    _write_import(import_pml(file, schema, _tokenizer(tokenizer)), output, force)


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


# What a graph file is read with: variables from outside, and whether its paths may leave its folder.
Reading = tuple[dict[str, Any], bool]


def _reading(var: list[str] | None, file: str | None, allow_outside: bool) -> Reading:
    if not var and file is None:
        return {}, allow_outside
    from legraph.given import given_variables

    return given_variables(var or (), file), allow_outside


def _graph(path: str, reading: Reading = ({}, False)) -> Any:
    from legraph.graph import build_graph
    from legraph.parse import parse_file

    if Path(path).suffix == JSONL_SUFFIX:
        raise InputError(Problem(f"{path}: many graphs in one file are for 'legraph run'", "one graph"))
    return build_graph(parse_file(path, *reading))


def _print_expanded(path: str, reading: Reading, as_json: bool) -> None:
    from legraph.parse import parse_file
    from legraph.writtenout import expanded_data, written_out

    if _is_bundle(path):
        raise InputError(Problem(f"{path}: a bundle has nothing to write out", "a graph file"))
    parsed = parse_file(path, *reading)
    print(json.dumps(expanded_data(parsed)) if as_json else written_out(parsed), end="\n" if as_json else "")


def _compiled(path: str, tokenizer: Any, order: str, reading: Reading = ({}, False)) -> Bundle:
    _one_of("--order", order, ("declared", "locality"))
    return _compile_graph(_graph(path, reading), tokenizer, order)


def _compile_graph(graph: Any, tokenizer: Any, order: str) -> Bundle:
    from legraph.compiler import compile_graph

    with _progress("tokenizing", len(graph.chunks), "chunks") as advance:
        return compile_graph(graph, tokenizer, order=order, advance=advance)  # type: ignore[arg-type]


def _tokenizer(name: str | None) -> Any:
    from legraph.tokens import load_tokenizer

    return None if name is None else load_tokenizer(name)


def _bundle(source: str, tokenizer: Any, order: str, reading: Reading = ({}, False)) -> Bundle:
    if not _is_bundle(source):
        return _compiled(source, tokenizer, order, reading)
    if order != "declared":
        raise InputError(Problem(f"{source} is compiled: its token order is fixed", "--order with a graph"))
    return _load_bundle(source)


def _graph_or_bundle(source: str, reading: Reading) -> Any:
    return _load_bundle(source) if _is_bundle(source) else _graph(source, reading)


def _is_bundle(source: str) -> bool:
    return Path(source).suffix in BUNDLE_SUFFIXES


def _load_bundle(path: str) -> Bundle:
    from legraph.bundle import Bundle

    return Bundle.load(path)


def _run_inputs(sources: list[str], reading: Reading) -> dict[str, Any]:
    """Parsed graphs and bundles, by the name that their results get.

    Raises:
        InputError: with all problems of all files.
    """
    if sources.count(STDIN) > 1:
        raise InputError(Problem("standard input is given twice", "- once"))
    given, place_by_name, problems = dict[str, Any](), dict[str, str](), list[Problem]()
    for source in sources:
        try:
            for name, place, graph in _run_input(source, reading):
                if name in given:
                    where = f" ({place_by_name[name]}, {place})" if place != name else ""
                    problems.append(Problem(f"two graphs are called {name!r}{where}", "each name once"))
                given[name], place_by_name[name] = graph, place
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return given


def _run_input(source: str, reading: Reading) -> list[tuple[str, str, Any]]:
    """Name, place and content of each graph in a file."""
    from legraph.graph import build_graph
    from legraph.rows import read_rows

    if Path(source).suffix == JSONL_SUFFIX:
        rows = read_rows(source, *reading)
        return [(row.id, f"{source}:{row.line}", _holding(build_graph(row.graph))) for row in rows]
    return [
        (source, source, _load_bundle(source) if _is_bundle(source) else _holding(_graph(source, reading)))
    ]


def _holding(graph: Any) -> Any:
    """The graph, if what it asserts holds, as far as that can be said without its tokens."""
    from legraph.flow import assertion_problems

    if failed := assertion_problems(graph):
        raise GraphError(failed)
    return graph


def _or_error(function: Callable[..., T], *arguments: Any) -> T | LegraphError:
    """A graph that cannot be run on this model is an error of its own: others beside it can."""
    try:
        return function(*arguments)
    except LegraphError as error:
        return error


def _as_bundle(graph: Any, tokenizer: Any) -> Bundle:
    from legraph.bundle import Bundle

    return graph if isinstance(graph, Bundle) else _compile_graph(graph, tokenizer, "declared")


def _check_cache_options(kv: str | None, kv_bytes: str | None, explain_cache: bool) -> None:
    if kv is None and (kv_bytes is not None or explain_cache):
        option = "--explain-cache" if explain_cache else "--kv-bytes"
        raise InputError(Problem(f"{option} is about a store, and there is none", "--kv DIR beside it"))


def _kv_store(folder: str | None, max_bytes: str | None) -> Any:
    from legraph.kvdisk import DiskTier
    from legraph.kvshow import parse_size
    from legraph.kvstore import KVStore

    if folder is None:
        return None
    # The folder is enough: what one run needs twice stays in its cache.
    store = KVStore(0, folder, None if max_bytes is None else parse_size(max_bytes))
    if max_bytes is not None:
        # What an earlier run was allowed to keep may be more.
        DiskTier(folder).prune(parse_size(max_bytes))
    return store


def _saved_path(save: str, sources: list[str]) -> Path:
    if len(sources) > 1 or Path(sources[0]).suffix == JSONL_SUFFIX:
        raise InputError(Problem("--save keeps one graph, and there are several", "one graph"))
    path = _output_path(sources[0], save)
    # Before the run, which may take long: its result must have a place.
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        wrong = "permission denied" if path.parent.is_dir() else "no such folder"
        raise InputError(Problem(f"{path}: cannot be written: {wrong}", "a folder that can be written to"))
    return path


def _engine(model: str | None, tokenizer: str | None, **options: Any) -> Engine:
    from transformers.utils import logging

    from legraph.engine import Engine

    # The environment says so too, but transformers reads it once, when it is imported.
    logging.disable_progress_bar()
    return Engine.load(model, tokenizer, **options)


class _Report:
    """Shows runs while they go on, and gives their results."""

    def __init__(
        self, names: list[str], is_several: bool, as_json: bool, explains: bool, setup: dict[str, float]
    ) -> None:
        self.names, self.is_several, self.as_json = names, is_several, as_json
        self.explains, self.setup = explains, setup
        self.errors: dict[int, LegraphError] = {}
        self.is_shown = False

    def follow(self, engine: Engine, runs: Sequence[Submission | LegraphError], streams: bool) -> None:
        """Reads all events; with `streams`, shows text as it comes. Of several runs some may fail."""
        from legraph.branch import Piece
        from legraph.marks import printable

        self.errors = {i: run for i, run in enumerate(runs) if isinstance(run, LegraphError)}
        under_way = {i: run for i, run in enumerate(runs) if not isinstance(run, LegraphError)}
        numbers, submissions = list(under_way), list(under_way.values())
        with self._shown(submissions, streams) as show:
            for at, event in engine.follow(submissions):
                number = numbers[at]
                prefix = f"{printable(self.names[number])}:" if self.is_several else ""
                if isinstance(event, Piece):
                    show(prefix + event.chunk, event.text, False)
                elif isinstance(event, ModelError):
                    self.errors[number] = event
                else:
                    for chunk in event.outputs:
                        show(prefix + chunk, "", True)

    def results(self, runs: Sequence[Submission | LegraphError]) -> list[RunResult | LegraphError]:
        """Ends what is under way, and gives what there is of each run."""
        found: list[RunResult | LegraphError] = []
        for number, run in enumerate(runs):
            if not isinstance(run, LegraphError):
                run.cancel()
                run = self.errors.get(number) or run.partial()
            found.append(run)
        return found

    @contextmanager
    def _shown(self, submissions: list[Submission], streams: bool) -> Iterator[Show]:
        if not streams or not submissions:
            with _progress("generating", None, "tokens") as advance:
                yield lambda name, text, is_done: advance(0 if is_done else 1)
        elif sys.stdout.isatty() and sum(submission.num_branches for submission in submissions) > 1:
            with _panels() as show:
                yield show
        else:
            self.is_shown = True
            is_one = sum(submission.num_branches for submission in submissions) == 1
            try:
                yield _in_turns(has_headings=not is_one)
            finally:
                print(flush=True)

    def give(self, results: list[RunResult | LegraphError]) -> None:
        """Prints results: as JSON, or as text unless it has been shown.

        Raises:
            LegraphError: the only run failed.
        """
        from legraph import report
        from legraph.marks import printable

        for name, result in zip(self.names, results, strict=True):
            if isinstance(result, LegraphError):
                if not self.is_several:
                    raise result
                if self.as_json:
                    print(json.dumps({"id": name, "error": report.error_data(result)}))
                else:
                    # Problems of a file begin with its name.
                    text, prefix = str(result), f"{printable(name)}:"
                    _draw_error(text if text.startswith(prefix) else f"{prefix} {text}")
                continue
            heading = f"== {printable(name)} ==\n" if self.is_several else ""
            if self.as_json:
                row = report.result_data(result, self.setup | result.timing, self.explains)
                print(json.dumps(({"id": name} if self.is_several else {}) | row))
            elif not self.is_shown:
                print(_for_eyes(heading + report.outputs_text(result)))
            if self.explains and not self.as_json:
                print(heading, end="", file=sys.stderr)
                _print_picture(report.sources_table(result.sources), to_stderr=True)


def _for_eyes(text: str) -> str:
    """A model may write any character; on a terminal, none of them gives it orders."""
    if not sys.stdout.isatty():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _in_turns(has_headings: bool) -> Show:
    """Prints text as it comes. Branches speak in turns; a heading says whose turn it is."""
    last: str | None = None

    def show(name: str, text: str, is_done: bool) -> None:
        nonlocal last
        if text and has_headings and name != last:
            print(("" if last is None else "\n") + f"[{name}] ", end="")
            last = name
        print(_for_eyes(text), end="", flush=True)

    return show


@contextmanager
def _panels() -> Iterator[Show]:
    """Shows branches side by side while they are generated; the panels are gone afterwards."""
    from rich.console import Console
    from rich.live import Live

    from legraph.live import LiveView

    view, console = LiveView(), Console()
    drawn = -_SECONDS_PER_PICTURE
    with Live(console=console, transient=True, auto_refresh=False) as live:

        def show(name: str, text: str, is_done: bool) -> None:
            nonlocal drawn
            view.add(name, text)
            if is_done:
                view.close(name)
            if time.monotonic() - drawn >= _SECONDS_PER_PICTURE:
                drawn = time.monotonic()
                live.update(view.picture(console.width, console.height), refresh=True)

        yield show


def _output_path(graph: str, output: str | None) -> Path:
    if output is None and graph == STDIN:
        raise InputError(Problem("a graph from standard input needs -o", "-o OUT.npz or -o OUT.pt"))
    if output is None and not Path(graph).name:
        raise InputError(Problem(f"{graph!r} is not a file", "a graph file"))
    path = Path(output) if output is not None else Path(graph).with_suffix(".npz")
    if path.suffix not in BUNDLE_SUFFIXES:
        raise InputError(Problem(f"{path}: unknown kind of bundle", "a name that ends in .npz or .pt"))
    return path


def _export_path(graph: str, output: str | None, export: str, mask: str) -> Path:
    """Where an export goes, once the options that go with it have been checked."""
    from legraph.export import FORMATS, SUFFIX

    _one_of("--export", export, FORMATS)
    if mask != "auto":
        raise InputError(Problem("--mask is about bundles, and --export writes none", "one of the two"))
    if output is None and graph != STDIN:
        return _output_path(graph, None).with_suffix(f".{export}{SUFFIX}")
    if output is None:
        raise InputError(Problem("a graph from standard input needs -o", f"-o OUT{SUFFIX}"))
    if Path(output).suffix != SUFFIX:
        raise InputError(Problem(f"{output}: exports are {SUFFIX} files", f"-o OUT{SUFFIX}"))
    return Path(output)


def _save_export(bundle: Bundle, path: Path, export: str) -> None:
    from legraph.export import save_export

    save_export(bundle, path, export)


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
        **({"where": place.note} if place and place.note else {}),
    }


@contextmanager
def _progress(label: str, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr, where stderr is a terminal; gives the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)
    bar = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


def _print_picture(picture: Any, to_stderr: bool = False) -> None:
    from rich.console import Console

    console = Console(highlight=False, stderr=to_stderr)
    if not console.is_terminal:
        # Into a file or pipe, lines stay whole: nobody can scroll a wrapped tree back together.
        console = Console(highlight=False, stderr=to_stderr, width=200)
    # Through `print`, because rich ends the process itself when the reader of a pipe has gone.
    with console.capture() as captured:
        console.print(picture)
    print(captured.get(), end="", file=sys.stderr if to_stderr else sys.stdout)


def _draw_warning(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """What the store could not do is said in one line; other warnings are for developers, and as Python's."""
    from legraph.kvdisk import KVStoreWarning

    if issubclass(category, KVStoreWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *place[:2]), end="", file=sys.stderr)


def _draw_error(text: str) -> None:
    """A report on stderr; in colour only where a terminal shows it."""
    if not sys.stderr.isatty() or os.environ.get("NO_COLOR"):
        # Nobody may read it; the exit code says it all the same.
        with suppress(BrokenPipeError):
            print(f"error: {text}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)


if __name__ == "__main__":
    main()
