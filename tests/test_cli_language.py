"""The language of graph files from the command line: variables, paths outside, assertions, roles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import legraph
from tests.command_line import Call

GRAPH = """legraph: 1
vars: {who: fox, n: 2}
chunks:
  - {name: a, text: "The ${who}."}
  - {name: b, text: "${n} of them", parents: [a]}
"""
FAILING = """legraph: 1
chunks:
  - {name: secret, text: "4711"}
  - {name: gist, text: "A number", parents: [secret]}
  - {name: answer, text: "What is it?", parents: [gist]}
assert:
  - not_sees: [answer, secret]
  - not_influences: [secret, answer]
"""


def texts_of(call: Call, graph: Path, *arguments: object) -> list[str]:
    """The texts of the chunks of a compiled graph, one token a byte."""
    path = graph.with_suffix(".npz")
    assert call("compile", graph, *arguments, "--tokenizer", "bytes", "-o", path).code == 0
    bundle = legraph.Bundle.load(path)
    path.unlink()
    return [bytes(bundle.input_ids[bundle.span(name)].tolist()).decode() for name in bundle.span_names]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.yaml"
    path.write_text(GRAPH)
    return path


def test_variables_of_the_command_line_go_before_those_of_a_file_and_those_before_the_graphs(
    graph: Path, call: Call
):
    given = graph.with_name("given.toml")
    given.write_text('who = "hen"\nn = 3\n')
    assert texts_of(call, graph) == ["The fox.", "2 of them"]
    assert texts_of(call, graph, "--var", "who=cat=dog") == ["The cat=dog.", "2 of them"]
    assert texts_of(call, graph, "--vars", given) == ["The hen.", "3 of them"]
    assert texts_of(call, graph, "--vars", given, "--var", "who=") == ["The .", "3 of them"]


def test_so_they_do_in_python(graph: Path):
    bundle = legraph.compile_file(graph, "bytes", variables={"who": "owl", "n": 7})
    assert bytes(bundle.input_ids.tolist()) == b"The owl.7 of them"


@pytest.mark.parametrize("command", ["compile", "check", "show", "run", "lint"])
def test_an_unknown_variable_is_an_error_for_every_command(command: str, graph: Path, call: Call):
    done = call(command, graph, "--var", "whom=x")
    assert done.code == 2 and done.out == ""
    assert "the file has no variable 'whom'" in done.err and "did you mean 'who'?" in done.err
    assert [path.name for path in graph.parent.iterdir()] == [graph.name]


@pytest.mark.parametrize("pair", ["who", "=x", "a b=x", "1=x"])
def test_a_pair_that_is_none_is_an_error(pair: str, graph: Path, call: Call):
    done = call("check", graph, "--var", pair)
    assert done.code == 2 and "expected: name=value" in done.err


def test_paths_stay_inside_unless_it_is_said(tmp_path: Path, call: Call):
    (tmp_path / "note.txt").write_text("noted")
    (tmp_path / "inner").mkdir()
    graph = tmp_path / "inner" / "graph.yaml"
    graph.write_text("legraph: 1\nchunks:\n  - {name: a, file: ../note.txt}\n")
    refused = call("check", graph)
    assert refused.code == 2 and f"{graph}:3:21: ../note.txt leads out of" in refused.err
    assert texts_of(call, graph, "--allow-outside") == ["noted"]


@pytest.mark.parametrize("command", ["check", "compile", "run"])
def test_a_graph_that_breaks_what_it_asserts_is_refused(command: str, tmp_path: Path, call: Call):
    graph = tmp_path / "graph.yaml"
    graph.write_text(FAILING)
    done = call(command, graph)
    assert done.code == 2 and done.out == "" and not list(tmp_path.glob("*.npz"))
    where = f"{graph}:8:21: asserted 'not_influences': 'secret' reaches 'answer' through"
    assert f"{where} 'secret' -> 'gist' -> 'answer'" in done.err
    assert "not_sees" not in done.err.replace("asserted 'not_influences'", "")


def test_a_limit_of_tokens_holds_where_there_are_tokens(tmp_path: Path, call: Call):
    graph = tmp_path / "graph.yaml"
    graph.write_text('legraph: 1\nchunks: [{name: a, text: "12345"}]\nassert: [{max_tokens: 4}]\n')
    checked = call("check", graph)
    assert checked.code == 0
    assert checked.out == f"{graph}: ok; 'max_tokens' needs a tokenizer, and is checked by compile and run\n"
    assert json.loads(call("check", graph, "--json").out)["files"][0]["unchecked"] == ["max_tokens"]
    done = call("compile", graph, "--tokenizer", "bytes")
    assert done.code == 2 and "the graph has 5 tokens, more than 4" in done.err
    graph.write_text(graph.read_text().replace("4}", "5}"))
    assert call("compile", graph, "--tokenizer", "bytes").code == 0


def test_a_row_that_breaks_what_it_asserts_is_refused_too(tmp_path: Path, call: Call):
    row = {"legraph": 1, "chunks": [{"name": "a", "text": "x"}, {"name": "b", "text": "y"}]}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "1", "graph": row | {"assert": [{"sees": ["b", "a"]}]}}) + "\n")
    done = call("check", rows)
    assert done.code == 2 and "'b' does not see 'a'" in done.err


def test_a_role_needs_a_chat_template(tmp_path: Path, call: Call):
    graph = tmp_path / "graph.yaml"
    graph.write_text('legraph: 1\nchunks: [{name: a, role: user, text: "Hi"}]\n')
    done = call("compile", graph, "--tokenizer", "bytes")
    assert done.code == 1 and "has no chat template" in done.err


def test_what_is_wrong_in_many_rounds_is_said_for_three(tmp_path: Path, call: Call):
    graph = tmp_path / "graph.yaml"
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text("x")
    graph.write_text(
        "legraph: 1\nchunks:\n  - {for: {f: '*.txt'}, name: '${f.stem}', text: x}\n  - {name: 1, text: x}\n"
    )
    problems = json.loads(call("check", graph, "--json").out)["files"][0]["problems"]
    said = [(problem["line"], problem["message"]) for problem in problems]
    assert said[:2] == [(3, "'0' cannot be a chunk's name"), (3, "'1' cannot be a chunk's name")]
    assert said[2] == (3, "'2' cannot be a chunk's name (and 27 more like it)")
    assert [line for line, _ in said] == [3, 3, 3, 4]
    assert "${item.number}" in problems[0]["hint"]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")
def test_an_error_that_nobody_reads_is_one_all_the_same(tmp_path: Path):
    graph = tmp_path / "graph.yaml"
    graph.write_text("legraph: 2\n")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "legraph.cli", "check", graph], stdout=write, stderr=write)
    os.close(write)
    assert done.returncode == 2
