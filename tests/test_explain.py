"""What `explain` says, against the dense mask and the direct reading of random graphs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.compiler import compile_graph
from legraph.errors import InputError
from legraph.explain import Edge, Explanation, Target, edge, explain, graph_of_bundle
from legraph.explainshow import explanation_data as data_of
from legraph.explainshow import explanation_text as text_of
from legraph.graph import Graph, GraphChunk, build_graph
from legraph.parse import parse
from legraph.source import SourceText
from tests.command_line import Call
from tests.random_graphs import dags, graphs, tokenizer

FAMILY = """\
legraph: 1
tokenizer: bytes
chunks:
  - name: head
    text: "abc"
  - name: left
    text: "de"
    parents: [head]
  - name: right
    text: "fg"
    parents: [head]
  - name: join
    text: "hij"
    parents: [left, right]
  - name: leaf
    text: "k"
    parents: [join]
  - name: alone
    text: "l"
"""


def read(written: str) -> Graph:
    return build_graph(parse(SourceText("g.yaml", written, "yaml", Path())))


def asked(query: str, key: str, written: str = FAMILY) -> Explanation:
    graph = read(written)
    targets = Target.of(query), Target.of(key)
    needs_tokens = any(target.index is not None for target in targets)
    return explain(graph, *targets, compile_graph(graph) if needs_tokens else None)


@pytest.mark.parametrize(
    ("query", "key", "lines"),
    [
        (
            "join",
            "left",
            """\
join sees left
  left is a parent of join: it is seen in full
    left -> join  (g.yaml:14:15)
influence: left reaches join in 1 hop, directly; 1 path in all""",
        ),
        (
            "join",
            "head",
            """\
join does not see head
  head is a grandparent of join, not a parent: nothing is inherited
  hint: list 'head' in the parents of 'join', to let it see that chunk
influence: head reaches join in 2 hops, through the hidden states of the chunks between; 2 paths in all
    head -> left  (g.yaml:8:15)
    left -> join  (g.yaml:14:15)""",
        ),
        (
            "leaf",
            "head",
            """\
leaf does not see head
  head is an ancestor of leaf, not a parent: nothing is inherited
  hint: list 'head' in the parents of 'leaf', to let it see that chunk
influence: head reaches leaf in 3 hops, through the hidden states of the chunks between; 2 paths in all
    head -> left  (g.yaml:8:15)
    left -> join  (g.yaml:14:15)
    join -> leaf  (g.yaml:17:15)""",
        ),
        (
            "left",
            "leaf",
            """\
left does not see leaf
  leaf comes after left, and is influenced by it
influence: left reaches leaf in 2 hops, through the hidden states of the chunks between; 1 path in all
    left -> join  (g.yaml:14:15)
    join -> leaf  (g.yaml:17:15)""",
        ),
        (
            "left",
            "right",
            """\
left does not see right
  siblings: they share the parent head and the child join, and neither lists the other
influence: none, in either direction, between left and right""",
        ),
        (
            "alone",
            "head",
            """\
alone does not see head
  no edge leads from one to the other, in any number of hops
influence: none, in either direction, between alone and head""",
        ),
        (
            "head",
            "head",
            """\
head sees head
  the same chunk: each token sees those before it, and itself""",
        ),
        (
            "head:1",
            "head:-3",
            """\
head:1 sees head:0
  the same chunk: each token sees those before it, and itself
  head:1 is token 1 of the graph, at position 1
  head:0 is token 0 of the graph, at position 0""",
        ),
        (
            "head:0",
            "head:2",
            """\
head:0 does not see head:2
  the same chunk, and the key comes after the query
  head:0 is token 0 of the graph, at position 0
  head:2 is token 2 of the graph, at position 2""",
        ),
        (
            "join:0",
            "right:-1",
            """\
join:0 sees right:1
  right is a parent of join: it is seen in full
    right -> join  (g.yaml:14:21)
  join:0 is token 7 of the graph, at position 5
  right:1 is token 6 of the graph, at position 4
influence: right:1 reaches join:0 in 1 hop, directly; 1 path in all""",
        ),
    ],
)
def test_the_answer_in_words(query: str, key: str, lines: str):
    assert text_of(asked(query, key)) == lines


BOS = """\
legraph: 1
bos: true
chunks:
  - {name: a, text: A}
  - {name: b, text: B, parents: %s}
"""


@pytest.mark.parametrize("parents", ["[a]", "[bos, a]", "[a, bos]", "['bos', 'a']"])
def test_an_edge_stands_where_it_is_written_though_bos_is_a_parent_too(parents: str):
    graph = read(BOS % parents)
    line = (BOS % parents).splitlines()[4]
    # Names are drawn with their quotes.
    column = line.rindex("'a'" if "'" in parents else "a", 0, line.rindex("]")) + 1
    if parents == "[a, bos]":
        column = line.index("[a") + 2
    found = edge(graph, 2, 1)
    assert found.place is not None
    assert (found.child, found.parent, str(found.place)) == ("b", "a", f"g.yaml:5:{column}")
    assert edge(graph, 2, 0) == Edge("b", "bos", None)


def test_siblings_under_bos_alone_are_not_called_siblings():
    written = "legraph: 1\nbos: true\nchunks: [{name: a, text: A}, {name: b, text: B}]"
    assert asked("a", "b", written).relation == "unrelated"


def test_long_answers_are_cut():
    chunks = [GraphChunk("c0", "x")] + [GraphChunk(f"c{i}", "x", (i - 1,)) for i in range(1, 101)]
    chunks += [GraphChunk(f"leaf{i}", "x", (100,)) for i in range(8)]
    chunks += [GraphChunk("all", "x", tuple(range(101, 109)))]
    lines = text_of(explain(Graph(tuple(chunks)), Target("c100"), Target("c0"))).splitlines()
    assert lines[3].startswith("influence: c0 reaches c100 in 100 hops")
    assert lines[4:] == [
        *(f"    c{i} -> c{i + 1}" for i in range(6)),
        "    ... 88 more ...",
        *(f"    c{i} -> c{i + 1}" for i in range(94, 100)),
    ]
    two = [GraphChunk(f"p{i}", "x") for i in range(7)]
    two += [GraphChunk(name, "x", tuple(range(7))) for name in ("a", "b")]
    shared = text_of(explain(Graph(tuple(two)), Target("a"), Target("b"))).splitlines()[1]
    assert shared == (
        "  siblings: they share the parents p0, p1, p2, p3, p4 and 2 more, and neither lists the other"
    )


@pytest.mark.parametrize("rungs", [10, 200, 20_000])
def test_paths_are_counted_exactly_while_they_can_be_written(rungs: int):
    """Each rung doubles the number of paths."""
    chunks = [GraphChunk("b0", "x")]
    for rung in range(1, rungs + 1):
        below = len(chunks) - 1
        chunks += [GraphChunk(f"l{rung}", "x", (below,)), GraphChunk(f"r{rung}", "x", (below,))]
        chunks.append(GraphChunk(f"b{rung}", "x", (below + 1, below + 2)))
    found = explain(Graph(tuple(chunks)), Target(f"b{rungs}"), Target("b0"))
    assert found.influence is not None
    assert found.influence.num_paths == 2**rungs
    written = {10: "1,024 paths", 200: "about 1e60 paths", 20_000: "about 1e6020 paths"}
    assert written[rungs] in text_of(found)
    flow = json.loads(json.dumps(data_of(found)))["influence"]
    assert flow["num_paths"] == (2**rungs if rungs < 20_000 else None)
    assert flow["log10_num_paths"] == pytest.approx(rungs * math.log10(2))


@settings(max_examples=40)
@given(graphs(dags(max_chunks=8, max_length=4)), st.data())
def test_tokens_see_what_the_dense_mask_says(graph: Graph, drawn: st.DataObject):
    bundle = compile_graph(graph, tokenizer())
    dense = bundle.dense_mask()
    token = st.integers(0, len(bundle) - 1)
    for q, k in drawn.draw(st.lists(st.tuples(token, token), min_size=5, max_size=10)):
        targets = list[Target]()
        for at in (q, k):
            name = bundle.span_names[int(bundle.mask.chunk_of(at))]
            span = bundle.span(name)
            shift = drawn.draw(st.sampled_from((0, span.stop - span.start)))
            targets.append(Target(name, at - span.start - shift))
        found = explain(graph, targets[0], targets[1], bundle)
        assert found.is_visible == bool(dense[q, k])
        assert found.query_token is not None
        assert found.key_token is not None
        assert (found.query_token.token, found.key_token.token) == (q, k)
        assert found.query_token.position == bundle.position_ids[q]
        if found.is_visible:
            assert found.influence is not None
        # A bundle says the same, but for the places.
        other = explain(graph_of_bundle(bundle), targets[0], targets[1], bundle)
        assert (other.relation, other.is_visible) == (found.relation, found.is_visible)


@settings(max_examples=40)
@given(graphs(dags(max_chunks=8, max_length=1)))
def test_the_relation_is_what_the_edges_say(graph: Graph):
    for q, query in enumerate(graph.chunks):
        for k, key in enumerate(graph.chunks):
            found = explain(graph, Target(query.name), Target(key.name))
            grandparents = {above for parent in query.parents for above in graph.chunks[parent].parents}
            if q == k:
                expected = "itself"
            elif k in query.parents:
                expected = "parent"
            elif k in grandparents:
                expected = "grandparent"
            elif found.influence is not None:
                expected = "ancestor"
            elif found.reverse is not None:
                expected = "descendant"
            else:
                shares = set(query.parents) & set(key.parents) or [
                    chunk for chunk in graph.chunks if {q, k} <= set(chunk.parents)
                ]
                expected = "sibling" if shares else "unrelated"
            assert found.relation == expected
            assert found.is_visible == (expected in ("itself", "parent"))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(InputError) as raised:
        asked("jion", "nobody")
    assert str(raised.value) == (
        "no chunk named 'jion'\n  expected: the name of a chunk\n  hint: did you mean 'join'?\n"
        "no chunk named 'nobody'\n  expected: the name of a chunk"
    )
    with pytest.raises(InputError) as raised:
        asked("head:3", "left:-3")
    assert str(raised.value) == (
        "head:3: the chunk has 3 tokens\n  expected: an index in -3..2\n"
        "left:-3: the chunk has 2 tokens\n  expected: an index in -2..1"
    )
    with pytest.raises(InputError, match="'x' is no index of a token"):
        Target.of("head:x")


def test_the_command(tmp_path: Path, call: Call):
    path, bundle = tmp_path / "g.yaml", tmp_path / "g.npz"
    path.write_text(FAMILY)
    done = call("explain", path, "join", "left")
    assert (done.code, done.out.splitlines()[:3]) == (
        0,
        [
            "join sees left",
            "  left is a parent of join: it is seen in full",
            f"    left -> join  ({path}:14:15)",
        ],
    )
    found = call("explain", path, "join:0", "head", "--json").data()
    assert found["query"] == {"chunk": "join", "index": 0, "token": 7, "position": 5}
    assert found["key"] == {"chunk": "head"}
    assert (found["visible"], found["relation"], found["reverse_influence"]) == (False, "grandparent", None)
    assert found["influence"]["path"] == ["head", "left", "join"]
    assert found["influence"]["edges"][0] == {"parent": "head", "child": "left", "place": f"{path}:8:15"}
    assert call("compile", path, "-o", bundle).code == 0
    done = call("explain", bundle, "join:0", "left:-1")
    assert done.code == 0
    assert done.out.splitlines()[2] == "    left -> join"
    done = call("explain", path, "jion", "left")
    assert (done.code, "did you mean 'join'?" in done.err) == (2, True)
    assert call("explain", path, "join:x", "left").code == 2
