"""Commands that say something of graphs without a model: problems, findings, reasons, differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from legraph.cli.console import draw_error, print_picture
from legraph.cli.inputs import (
    JSONL_SUFFIX,
    compile_with_progress,
    graph_or_bundle,
    is_bundle,
    read_graph,
    tokenizer_named,
)
from legraph.cli.options import (
    InputArgument,
    JsonOption,
    OutsideOption,
    TokenizerOption,
    VarOption,
    VarsOption,
    reading_of,
)
from legraph.errors import GraphError, InputError, Problem
from legraph.source import STDIN

_UNCHECKED = "; 'max_tokens' needs a tokenizer, and is checked by compile and run"


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

    reading = reading_of(var, vars_file, allow_outside)
    found: dict[str, tuple[Problem, ...]] = {}
    unchecked = set[str]()
    for graph in graphs:
        try:
            if Path(graph).suffix == JSONL_SUFFIX:
                checked = [build_graph(row.graph) for row in read_rows(graph, *reading)]
            else:
                checked = [read_graph(graph, reading)]
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
                draw_error(str(GraphError(problems)))
    if any(found.values()):
        raise typer.Exit(2)


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

    reading, loaded = reading_of(var, vars_file, allow_outside), tokenizer_named(tokenizer)
    found: dict[str, list[Finding] | InputError] = {}
    for graph in graphs:
        try:
            read = read_graph(graph, reading)
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
                draw_error(str(result))
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
    given = graph_or_bundle(source, reading_of(var, vars_file, allow_outside))
    bundle = given if is_bundle(source) else None
    graph = given if bundle is None else graph_of_bundle(given)
    if bundle is None and any(target.index is not None for target in targets):
        bundle = compile_with_progress(graph, tokenizer_named(tokenizer), "declared")
    found = explain(graph, *targets, bundle)
    print(json.dumps(explanation_data(found)) if as_json else explanation_text(found))


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
    reading = reading_of(var, vars_file, allow_outside)
    found = diff(
        graph_or_bundle(before, reading), graph_or_bundle(after, reading), tokenizer_named(tokenizer)
    )
    if as_json:
        print(json.dumps({"a": before, "b": after} | found.data()))
    else:
        print_picture(DiffPicture(found, before, after))
    if not found.is_empty:
        raise typer.Exit(1)
