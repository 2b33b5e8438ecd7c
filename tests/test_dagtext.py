"""DOT that graphviz reads as the same graph, Mermaid that is read back line by line, and hostile names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from hypothesis import given, settings

from legraph.bundle import Bundle
from legraph.dagtext import MAX_MERMAID_EDGES, dot_text, mermaid_text
from legraph.fold import fold
from legraph.graph import Generate
from tests.pictures import bundle_of, documents
from tests.random_graphs import Dag, dags

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
HOSTILE = ['a"]; n0 -> n9; "', "b\\", "c</div><script>alert(1)</script>", "d&quot;#35;`x`", "e\nf\\n", "\\N"]
# A line end is shown as a sign; everything else as it is.
SHOWN = [name.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}") for name in HOSTILE]
_NODE = re.compile(r'  n(\d+)(\[\[|\()"([^"]*)"(\]\]|\))(:::generates)?')
_EDGE = re.compile(r"  n(\d+) (-->|==>) n(\d+)")


def read_dot(text: str) -> tuple[dict[int, list[str]], set[tuple[int, int]]]:
    """What graphviz draws of a DOT file: the lines of the nodes' texts, and the edges."""
    done = subprocess.run(["dot", "-Tjson"], input=text, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    ids = {node["_gvid"]: int(node["name"][1:]) for node in found["objects"]}
    labels = {
        ids[node["_gvid"]]: [op["text"] for op in node["_ldraw_"] if op["op"] == "T"]
        for node in found["objects"]
    }
    return labels, {(ids[edge["tail"]], ids[edge["head"]]) for edge in found.get("edges", [])}


def read_mermaid(text: str) -> tuple[dict[int, list[str]], set[tuple[int, int]]]:
    """A flowchart read back; every line must be one of the few forms there are."""
    first, *lines = text.splitlines()
    assert first == "flowchart TD"
    labels, edges = dict[int, list[str]](), set[tuple[int, int]]()
    for line in lines:
        if node := _NODE.fullmatch(line):
            parts = node[3].split("<br/>")
            labels[int(node[1])] = [
                re.sub(r"#(\d+);", lambda code: chr(int(code[1])), part) for part in parts
            ]
            assert not re.search(r"[<>&`\\]", "".join(parts))
        elif edge := _EDGE.fullmatch(line):
            edges.add((int(edge[1]), int(edge[3])))
        else:
            assert line.startswith("  classDef ")
    return labels, edges


def first_lines(labels: dict[int, list[str]]) -> list[str]:
    assert all(len(lines) == 2 for lines in labels.values())
    return [labels[node][0] for node in range(len(labels))]


def hostile() -> Bundle:
    return bundle_of([1] * len(HOSTILE), [[]] * len(HOSTILE), HOSTILE)


@needs_dot
@given(dag=dags(max_chunks=12))
@settings(max_examples=15)
def test_dot_is_the_graph(dag: Dag) -> None:
    bundle = bundle_of(dag.lengths, dag.parents)
    labels, edges = read_dot(dot_text(bundle))
    assert first_lines(labels) == list(bundle.span_names)
    assert edges == {(parent, child) for child, row in enumerate(dag.parents) for parent in row}


@given(dag=dags())
def test_mermaid_is_the_graph(dag: Dag) -> None:
    bundle = bundle_of(dag.lengths, dag.parents)
    labels, edges = read_mermaid(mermaid_text(bundle))
    assert first_lines(labels) == list(bundle.span_names)
    assert edges == {(parent, child) for child, row in enumerate(dag.parents) for parent in row}


@needs_dot
def test_names_mean_nothing_in_dot() -> None:
    labels, edges = read_dot(dot_text(hostile()))
    assert edges == set()
    assert first_lines(labels) == SHOWN


def test_names_mean_nothing_in_mermaid() -> None:
    labels, edges = read_mermaid(mermaid_text(hostile()))
    assert edges == set()
    assert first_lines(labels) == SHOWN


@needs_dot
def test_folded_nodes_are_marked_in_dot() -> None:
    text = dot_text(documents(500, 10))
    labels, edges = read_dot(text)
    assert labels == {
        0: ["bos", "1 token"],
        1: ["doc[0..499] x500", "5,000 tokens"],
        2: ["question", "20 tokens"],
    }
    assert edges == {(0, 1), (0, 2), (1, 2)}
    assert text.count("peripheries=2") == 1
    assert text.count("penwidth=2") == 2


def test_folded_nodes_are_marked_in_mermaid() -> None:
    text = mermaid_text(documents(500, 10))
    assert '  n1[["doc[0..499] x500<br/>5,000 tokens"]]' in text
    assert "  n0 ==> n1\n  n0 --> n2\n  n1 ==> n2\n" in text


def test_a_mermaid_chart_stays_below_the_limit_of_its_edges() -> None:
    bundle = bundle_of([1] * 60, [list(range(i)) for i in range(60)])
    assert len(fold(bundle).edges) > MAX_MERMAID_EDGES
    assert len(read_mermaid(mermaid_text(bundle))[1]) <= MAX_MERMAID_EDGES
    # 64 chunks in 32 pairs, each of which sees one or both of every pair before it: nothing is alike.
    rows = [[j for j in range(i - i % 2) if (i + j) % 3] for i in range(64)]
    assert len(read_mermaid(mermaid_text(bundle_of([1] * 64, rows), 64))[1]) <= MAX_MERMAID_EDGES


def test_chunks_that_generate_are_marked() -> None:
    bundle = bundle_of([2, 3], [[], [0]])
    bundle = replace(bundle, meta=replace(bundle.meta, generate={"c1": Generate(24)}))
    assert '"c1<br/>3 tokens, generates 24"):::generates' in mermaid_text(bundle)
    assert "generates" not in mermaid_text(bundle).splitlines()[1]
    assert 'label="c1\\n3 tokens, generates 24", color=' in dot_text(bundle)
