"""`legraph run` of several graphs in one call: files, bundles, rows of JSONL, some of which fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legraph.graph import Generate
from tests.command_line import FORK, GRAPH, LATE, Call, expected_outputs

SIX = Generate(max_new_tokens=6)
# As JSON, what FORK and GRAPH are as YAML.
FORK_DATA = {
    "legraph": 1,
    "tokenizer": "bytes",
    "chunks": [
        {"name": "task", "text": "Two keys. "},
        {"name": "north", "text": "North: ", "parents": ["task"]},
        {"name": "south", "text": "South: ", "parents": ["task"]},
    ],
}
ONE = {"legraph": 1, "tokenizer": "bytes", "chunks": [{"name": "a", "text": "alone"}]}
TOO_LONG = {"legraph": 1, "chunks": [{"name": "a", "text": "abc", "start": 4094}]}
WITHOUT_TOKENS = {"legraph": 1, "chunks": [{"name": "a", "text": ""}]}
# `b` passes the last position once `a` has generated its tokens.
LATE_DATA = {
    "legraph": 1,
    "chunks": [
        {"name": "a", "text": "abc", "start": 4080, "generate": {"max_new_tokens": 5}},
        {"name": "b", "text": "ten bytes.", "parents": ["a"]},
    ],
}

Rows = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """`rows("a.jsonl", first=graph, second=graph)`: the file."""

    def write(name: str, **graphs: Any) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"id": key, "graph": data}) + "\n" for key, data in graphs.items())
        )
        return path

    return write


@pytest.fixture
def six(model_folder: Path, call: Call) -> Call:
    """`call("run", ...)` with six tokens for each leaf."""
    return lambda *arguments, **options: call(
        "run", *arguments, "--model", model_folder, "--max-new-tokens", 6, **options
    )


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def by_name(out: str) -> dict[str, str]:
    """What stands under each heading `== name ==`."""
    _, *parts = re.split(r"^== (.+) ==\n", out, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


# Good ones


def test_several_graphs_have_headings_over_what_each_gives_alone(graph: Path, fork: Path, six: Call) -> None:
    done = six(graph, fork)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"== {graph} ==\n")
    assert by_name(done.out) == {str(path): six(path).out for path in (graph, fork)}


def test_several_graphs_as_json_are_lines_with_what_each_gives_alone(
    graph: Path, fork: Path, six: Call
) -> None:
    done = six(fork, graph, "--json")
    assert (done.code, done.err) == (0, "")
    found = lines(done.out)
    assert [list(line) for line in found] == [["id", "outputs", "timing", "tokens"]] * 2
    assert [line["id"] for line in found] == [str(fork), str(graph)]
    for path, line in zip((fork, graph), found, strict=True):
        assert line["outputs"] == six(path, "--json").data()["outputs"] == expected_outputs(path, SIX)
        assert list(line["timing"]) == ["load_s", "compile_s", "prefill_s", "decode_s", "total_s"]


def test_bundles_rows_and_standard_input_run_beside_each_other(
    graph: Path, fork: Path, model_folder: Path, rows: Rows, six: Call, call: Call
) -> None:
    bundle = graph.with_suffix(".npz")
    assert call("compile", graph, "--tokenizer", model_folder, "-o", bundle).code == 0
    done = six(bundle, rows("r.jsonl", one=FORK_DATA, other=ONE), "-", "--json", stdin=GRAPH)
    assert done.code == 0
    found = {line["id"]: line["outputs"] for line in lines(done.out)}
    assert list(found) == [str(bundle), "one", "other", "-"]
    assert found[str(bundle)] == found["-"] == expected_outputs(graph, SIX)
    assert found["one"] == expected_outputs(fork, SIX)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_file_with_one_row_still_gives_its_id(as_json: list[str], rows: Rows, six: Call) -> None:
    done = six(rows("r.jsonl", alone=FORK_DATA), *as_json)
    assert done.code == 0
    if as_json:
        assert done.data()["id"] == "alone"
    else:
        assert list(by_name(done.out)) == ["alone"]


def test_a_name_is_printed_but_not_obeyed(rows: Rows, six: Call) -> None:
    odd = "x\x1b[31m\n== y =="
    done = six(rows("r.jsonl", **{odd: ONE, "long": TOO_LONG, odd + "!": WITHOUT_TOKENS}))
    assert done.out.startswith(f"== {odd!r} ==\n")
    assert "\x1b" not in done.out.partition("\n")[0] + done.err


def test_streamed_graphs_say_which_chunk_of_which_speaks(graph: Path, fork: Path, six: Call) -> None:
    done = six(graph, fork, "--stream")
    assert done.code == 0
    said: dict[str, str] = {}
    _, *turns = re.split(r"(?:^|\n)\[([^\n]*?\.yaml:(?:question|north|south))\] ", done.out[:-1])
    for name, text in zip(turns[::2], turns[1::2], strict=True):
        said[name] = said.get(name, "") + text
    assert said == {
        f"{path}:{chunk}": output["text"]
        for path in (graph, fork)
        for chunk, output in expected_outputs(path, SIX).items()
    }


# Some fail


def test_graphs_that_fail_are_rows_among_good_ones(fork: Path, rows: Rows, six: Call) -> None:
    path = rows(
        "r.jsonl", first=FORK_DATA, long=TOO_LONG, late=LATE_DATA, empty=WITHOUT_TOKENS, last=FORK_DATA
    )
    done = six(path, "--json")
    assert (done.code, done.err) == (1, "")
    found = {line["id"]: line for line in lines(done.out)}
    assert list(found) == ["first", "long", "late", "empty", "last"]
    for name in ("first", "last"):
        assert found[name]["outputs"] == expected_outputs(fork, SIX)
    for name in ("long", "late", "empty"):
        assert list(found[name]) == ["id", "error"]
        assert list(found[name]["error"]) == ["kind", "message", "where"]
    errors = {name: line["error"] for name, line in found.items() if "error" in line}
    assert [error["kind"] for error in errors.values()] == ["ModelError", "ModelError", "GraphError"]
    assert errors["long"]["message"].startswith("the graph uses position 4096, and the model knows positions")
    assert errors["late"]["message"].startswith("the graph uses position 4097, and the model knows positions")
    assert errors["empty"]["message"] == "chunk 'a' gives no token"
    assert [error["where"] for error in errors.values()] == ["", "", f"{path}:4"]


@pytest.mark.parametrize("streams", [[], ["--stream"]])
def test_as_text_errors_go_to_stderr_with_their_names(
    streams: list[str], fork: Path, tmp_path: Path, rows: Rows, six: Call
) -> None:
    late, empty = tmp_path / "late.yaml", tmp_path / "empty.yaml"
    late.write_text(LATE)
    empty.write_text(json.dumps(WITHOUT_TOKENS))
    done = six(late, fork, empty, rows("r.jsonl", long=TOO_LONG), *streams)
    assert done.code == 1
    if not streams:
        assert by_name(done.out) == {str(fork): six(fork).out}
    first, second, third = re.findall(r"^error: (.+)$", done.err, re.MULTILINE)
    assert first.startswith(f"{late}: the graph uses position 4097")
    assert second == f"{empty}:1:49: chunk 'a' gives no token"
    assert third.startswith("long: the graph uses position 4096")


def test_a_bundle_of_another_tokenizer_does_not_stop_the_others(
    fork: Path, tmp_path: Path, call: Call, six: Call, word_tokenizer: Callable[..., Any]
) -> None:
    word_tokenizer({"The": 5, " fox": 6}).save_pretrained(tmp_path / "words")
    source, bundle = "legraph: 1\nchunks: [{name: a, text: The fox}]", tmp_path / "b.npz"
    assert call("compile", "-", "--tokenizer", tmp_path / "words", "-o", bundle, stdin=source).code == 0
    done = six(bundle, fork, "--json")
    bad, good = lines(done.out)
    assert (done.code, bad["error"]["kind"]) == (1, "BundleError")
    assert good["outputs"] == expected_outputs(fork, SIX)


def test_where_all_fail_there_are_only_errors(rows: Rows, six: Call) -> None:
    path = rows("r.jsonl", long=TOO_LONG, empty=WITHOUT_TOKENS)
    for options in ([], ["--stream"]):
        done = six(path, *options)
        assert (done.code, done.out) == (1, "")
        assert done.err.count("error: ") == 2
    done = six(path, "--json")
    assert (done.code, [list(line) for line in lines(done.out)]) == (1, [["id", "error"]] * 2)


# Wrong input: said at once, before a model is looked for.


def refused(call: Call, *sources: object, stdin: str = "") -> str:
    done = call("run", *sources, "--model", "/no/such/model", stdin=stdin)
    assert (done.code, done.out) == (2, "")
    return done.err


def test_the_same_file_twice(graph: Path, fork: Path, call: Call) -> None:
    said = refused(call, graph, fork, graph)
    assert said == f"error: two graphs are called {str(graph)!r}\n  expected: each name once\n"


def test_the_same_id_in_two_files(rows: Rows, call: Call) -> None:
    first = rows("a.jsonl", x=ONE, y=ONE)
    second = rows("b.jsonl", z=ONE, y=ONE)
    said = refused(call, first, second)
    assert said == f"error: two graphs are called 'y' ({first}:2, {second}:2)\n  expected: each name once\n"


def test_standard_input_twice(fork: Path, call: Call) -> None:
    said = refused(call, "-", fork, "-", stdin=FORK)
    assert said == "error: standard input is given twice\n  expected: - once\n"


def test_all_problems_of_all_files_are_told_together(
    graph: Path, broken: Path, tmp_path: Path, call: Call
) -> None:
    rows, missing = tmp_path / "r.jsonl", tmp_path / "missing.npz"
    rows.write_text('{"id": "a"}\nnonsense\n')
    said = refused(call, graph, broken, rows, missing)
    for problem in (
        f"{broken}:5:15: unknown parent 'docc'",
        f"{broken}:7:11: 'text' must be a string, not the number 7",
        f"{rows}:1: the row has no 'graph'",
        f"{rows}:2:1: not JSON",
        f"{missing}: no such file",
    ):
        assert problem in said
    assert said.count("error: ") == 1


def test_check_reads_rows_and_the_others_say_that_they_do_not(tmp_path: Path, call: Call) -> None:
    rows = tmp_path / "rows.jsonl"
    graph = {"legraph": 1, "tokenizer": "bytes", "chunks": [{"name": "a", "text": "Hello."}]}
    rows.write_text(json.dumps({"id": "one", "graph": graph}))
    assert call("check", rows).code == 0
    for verb in ("show", "compile"):
        done = call(verb, rows)
        assert (done.code, done.out) == (2, "")
        assert "many graphs in one file are for 'legraph run'" in done.err
    rows.write_text(json.dumps(graph))
    done = call("check", rows)
    assert done.code == 2
    assert done.err.splitlines()[0] == f"error: {rows}:1: the row is a graph itself"
    assert len(done.err.splitlines()) == 2
