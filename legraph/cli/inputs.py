"""What commands work on: graphs, bundles, tokenizers and models, from the arguments that name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from legraph.cli.console import progress
from legraph.cli.options import Reading, one_of
from legraph.errors import GraphError, InputError, Problem
from legraph.source import STDIN

if TYPE_CHECKING:
    from legraph.bundle import Bundle
    from legraph.engine import Engine

BUNDLE_SUFFIXES = (".npz", ".pt")
JSONL_SUFFIX = ".jsonl"


def read_graph(path: str, reading: Reading = ({}, False)) -> Any:
    """The graph of a file: parsed, not compiled."""
    from legraph.graph import build_graph
    from legraph.parse import parse_file

    if Path(path).suffix == JSONL_SUFFIX:
        raise InputError(Problem(f"{path}: many graphs in one file are for 'legraph run'", "one graph"))
    return build_graph(parse_file(path, *reading))


def compiled(path: str, tokenizer: Any, order: str, reading: Reading = ({}, False)) -> Bundle:
    """A graph file, compiled; `tokenizer` is one, its name, or None for the file's own."""
    one_of("--order", order, ("declared", "locality"))
    return compile_with_progress(read_graph(path, reading), tokenizer, order)


def compile_with_progress(graph: Any, tokenizer: Any, order: str) -> Bundle:
    from legraph.compiler import compile_graph

    with progress("tokenizing", len(graph.chunks), "chunks") as advance:
        return compile_graph(graph, tokenizer, order=order, advance=advance)  # type: ignore[arg-type]


def tokenizer_named(name: str | None) -> Any:
    from legraph.tokens import load_tokenizer

    return None if name is None else load_tokenizer(name)


def bundle_of(source: str, tokenizer: Any, order: str, reading: Reading = ({}, False)) -> Bundle:
    """A bundle from a file, or a graph file compiled to one."""
    if not is_bundle(source):
        return compiled(source, tokenizer, order, reading)
    if order != "declared":
        raise InputError(Problem(f"{source} is compiled: its token order is fixed", "--order with a graph"))
    return _load_bundle(source)


def graph_or_bundle(source: str, reading: Reading) -> Any:
    return _load_bundle(source) if is_bundle(source) else read_graph(source, reading)


def as_bundle(graph: Any, tokenizer: Any) -> Bundle:
    from legraph.bundle import Bundle

    return graph if isinstance(graph, Bundle) else compile_with_progress(graph, tokenizer, "declared")


def is_bundle(source: str) -> bool:
    return Path(source).suffix in BUNDLE_SUFFIXES


def _load_bundle(path: str) -> Bundle:
    from legraph.bundle import Bundle

    return Bundle.load(path)


def run_inputs(sources: list[str], reading: Reading) -> dict[str, Any]:
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
        (source, source, _load_bundle(source) if is_bundle(source) else _holding(read_graph(source, reading)))
    ]


def _holding(graph: Any) -> Any:
    """The graph, if what it asserts holds, as far as that can be said without its tokens."""
    from legraph.flow import assertion_problems

    if failed := assertion_problems(graph):
        raise GraphError(failed)
    return graph


def load_engine(model: str | None, tokenizer: str | None, **options: Any) -> Engine:
    from transformers.utils import logging

    from legraph.engine import Engine

    # The environment says so too, but transformers reads it once, when it is imported.
    logging.disable_progress_bar()
    return Engine.load(model, tokenizer, **options)


def kv_store(folder: str | None, max_bytes: str | None, memory_bytes: int | None = None) -> Any:
    """Where keys and values are kept, if anywhere.

    Args:
        memory_bytes: None if there need not be a store without a folder.
    """
    from legraph.kvdisk import DiskTier
    from legraph.kvshow import parse_size
    from legraph.kvstore import KVStore

    if folder is None:
        return None if memory_bytes is None else KVStore(memory_bytes)
    # The folder is enough for one run: what it needs twice stays in its cache.
    store = KVStore(memory_bytes or 0, folder, None if max_bytes is None else parse_size(max_bytes))
    if max_bytes is not None:
        # What an earlier run was allowed to keep may be more.
        DiskTier(folder).prune(parse_size(max_bytes))
    return store


def output_path(graph: str, output: str | None) -> Path:
    if output is None and graph == STDIN:
        raise InputError(Problem("a graph from standard input needs -o", "-o OUT.npz or -o OUT.pt"))
    if output is None and not Path(graph).name:
        raise InputError(Problem(f"{graph!r} is not a file", "a graph file"))
    path = Path(output) if output is not None else Path(graph).with_suffix(".npz")
    if path.suffix not in BUNDLE_SUFFIXES:
        raise InputError(Problem(f"{path}: unknown kind of bundle", "a name that ends in .npz or .pt"))
    return path
