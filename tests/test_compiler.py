"""Files and `Chunk` objects go through one compiler: the same graph, the same bundle, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings

from legraph.compiler import Chunk, compile_chunks, compile_file, graph_of
from legraph.errors import GraphError
from legraph.graph import Generate, Graph, GraphChunk
from tests.random_graphs import content, graphs, tokenizer


def as_file(graph: Graph, chunks: list[GraphChunk], bos: bool) -> dict[str, Any]:
    """What a graph file says of these chunks of a graph."""
    entries = []
    for chunk in chunks:
        entry: dict[str, Any] = {"name": chunk.name, "text": chunk.text}
        entry |= {key: value for key in ("start", "end") if (value := getattr(chunk, key)) is not None}
        if chunk.parents:
            entry["parents"] = [graph.chunks[i].name for i in chunk.parents]
        if chunk.generate:
            entry["generate"] = {
                "max_new_tokens": chunk.generate.max_new_tokens,
                "stop": list(chunk.generate.stop),
            }
        entries.append(entry)
    return {"legraph": 1, "positions": graph.positions, "bos": bos, "chunks": entries}


def as_objects(graph: Graph, chunks: list[GraphChunk]) -> list[Chunk]:
    """The same chunks as objects; parents must come before their children."""
    made: dict[str, Chunk] = {}
    for chunk in chunks:
        made[chunk.name] = Chunk(
            chunk.text or "",
            parents=[made[graph.chunks[i].name] for i in chunk.parents],
            name=chunk.name,
            start=chunk.start,
            end=chunk.end,
            generate=chunk.generate,
        )
    return list(made.values())


@settings(max_examples=50)
@given(graph=graphs())
@pytest.mark.parametrize("bos", [False, True])
def test_a_file_and_its_twin_in_python_give_equal_bundles(graph: Graph, bos: bool, tmp_path_factory: Any):
    chunks = [graph.chunks[i] for i in graph.order()]
    path = tmp_path_factory.mktemp("twins") / "graph.yaml"
    path.write_text(yaml.safe_dump(as_file(graph, chunks, bos)))
    from_file = compile_file(path, tokenizer())
    twin = compile_chunks(as_objects(graph, chunks), tokenizer(), positions=graph.positions, bos=bos)
    assert content(twin) == content(from_file)


def test_lists_and_tuples_in_python_are_the_same():
    leaves = [
        Chunk("a", parents=sequence([Chunk("b")]), generate=Generate(5, stop=sequence(["\n"])))
        for sequence in (list, tuple)
    ]
    first, second = (compile_chunks([leaf], tokenizer()) for leaf in leaves)
    assert content(first) == content(second)


def test_ancestors_are_collected_parents_before_the_child_as_it_lists_them():
    a, b = Chunk("a", name="a"), Chunk("b", name="b")
    both = Chunk("c", name="both", parents=[b, a])
    leaves = [Chunk("d", name="d", parents=[both]), Chunk("e", name="e", parents=[a, both])]
    assert [chunk.name for chunk in graph_of(leaves).chunks] == ["b", "a", "both", "d", "e"]


def test_a_leaf_that_is_given_twice_or_is_an_ancestor_too_is_one_chunk():
    root = Chunk("a", name="root")
    leaf = Chunk("b", name="leaf", parents=[root])
    assert compile_chunks([root, leaf, leaf, root], tokenizer()).span_names == ("root", "leaf")


def test_a_long_chain_needs_no_deep_recursion():
    chunk = Chunk("a")
    for _ in range(3000):
        chunk = Chunk("a", parents=[chunk])
    assert len(compile_chunks([chunk], tokenizer())) == 3001


def test_unnamed_chunks_are_numbered_past_names_that_are_taken():
    parents = [Chunk("a"), Chunk("b", name="chunk1"), Chunk("c"), Chunk("d", name="chunk0")]
    bundle = compile_chunks([Chunk("e", parents=parents)], tokenizer())
    assert bundle.span_names == ("chunk2", "chunk1", "chunk3", "chunk0", "chunk4")


def test_generated_names_count_from_zero():
    bundle = compile_chunks([Chunk("b", parents=[Chunk("a")]), Chunk("c")], tokenizer())
    assert bundle.span_names == ("chunk0", "chunk1", "chunk2")


def test_a_chunk_cannot_be_changed_so_no_cycle_can_be_made():
    a = Chunk("a")
    b = Chunk("b", parents=[a])
    with pytest.raises(FrozenInstanceError):
        a.parents = (b,)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(b.parents, tuple)
    with pytest.raises(TypeError):
        Chunk("a", [b])  # pyright: ignore[reportCallIssue]


def test_a_list_of_parents_that_changes_later_changes_nothing():
    parents = [Chunk("a", name="a")]
    leaf = Chunk("b", name="b", parents=parents)
    parents.append(leaf)
    assert compile_chunks([leaf], tokenizer()).span_names == ("a", "b")


ROOT = Chunk("root", name="root")
WRONG: dict[str, tuple[list[Any], str]] = {
    "no chunk": ([], "the graph has no chunks"),
    "repeated name": (
        [Chunk("a", name="x"), Chunk("b", name="x")],
        "chunk name 'x' is taken by chunk number 1",
    ),
    "repeated parent": ([Chunk("a", name="x", parents=[ROOT, ROOT])], "parent 'root' is listed twice"),
    "start and end": ([Chunk("a", name="x", start=1, end=9)], "chunk 'x' has both start and end"),
    "negative start": ([Chunk("a", name="x", start=-1)], "chunk 'x': start: .*greater than or equal to 0"),
    "negative end": ([Chunk("a", name="x", end=-1)], "chunk 'x': end: .*greater than or equal to 1"),
    "huge start": ([Chunk("a", name="x", start=2**31)], "chunk 'x': start: .*less than 2147483648"),
    "start of another type": ([Chunk("a", name="x", start="4")], "chunk 'x': start: .*integer"),  # type: ignore
    "name with a space": ([Chunk("a", name="x y")], "chunk 'x y': name: "),
    "empty name": ([Chunk("a", name="")], "chunk '': name: "),
    "name of another type": ([Chunk("a", name=5)], "chunk 5: name: .*string"),  # type: ignore
    "name that cannot be a key": ([Chunk("a", name=["x"])], r"chunk \['x'\]: name: .*string"),  # type: ignore
    "no text": ([Chunk(None, name="x")], "chunk 'x': text is None"),  # type: ignore
    "text of another type": ([Chunk(b"a", name="x")], "chunk 'x': text is b'a'"),  # type: ignore
    "half a surrogate pair": ([Chunk("\ud800", name="x")], "chunk 'x': text has half a surrogate pair"),
    "generate nothing": (
        [Chunk("a", name="x", generate=Generate(0))],
        "chunk 'x': generate.max_new_tokens: ",
    ),
    "stop at a string": (
        [Chunk("a", name="x", generate=Generate(stop="\n"))],  # type: ignore
        "chunk 'x': generate.stop: ",
    ),
    "generate of another type": (
        [Chunk("a", name="x", generate={"max_new_tokens": 5})],  # type: ignore
        "chunk 'x': generate is {'max_new_tokens': 5}",
    ),
    "text for a leaf": (["a"], "a leaf is 'a'"),
    "name for a parent": ([Chunk("a", name="x", parents=["root"])], "a parent of chunk 'x' is 'root'"),  # type: ignore
    "list for a parent": ([Chunk("a", name="x", parents=[[]])], r"a parent of chunk 'x' is \[\]"),  # type: ignore
}


@pytest.mark.parametrize("leaves, message", WRONG.values(), ids=WRONG.keys())
def test_one_wrong_thing_is_one_problem(leaves: list[Any], message: str):
    with pytest.raises(GraphError, match=message) as caught:
        compile_chunks(leaves, tokenizer())
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].source is None


@pytest.mark.parametrize("positions", ["casual", 3, None])
def test_an_unknown_policy_is_refused(positions: Any):
    with pytest.raises(GraphError, match=f"positions is {positions!r}") as caught:
        compile_chunks([Chunk("a")], tokenizer(), positions=positions)
    assert caught.value.problems[0].expected == "one of causal, flat, local"
    assert caught.value.problems[0].hint == ("did you mean 'causal'?" if positions == "casual" else None)


def test_the_name_bos_is_taken_only_where_bos_is_added():
    leaf = Chunk("a", name="bos")
    assert compile_chunks([leaf], tokenizer()).span_names == ("bos",)
    with pytest.raises(GraphError, match="chunk name 'bos' is taken"):
        compile_chunks([leaf], tokenizer(), bos=True)


def test_all_problems_are_reported_together():
    bad = [Chunk("a", name="x", start=-1, end=-1), Chunk("b", name="x"), Chunk("c", name="a b")]
    with pytest.raises(GraphError) as caught:
        compile_chunks(bad, tokenizer(), positions="casual")  # pyright: ignore[reportArgumentType]
    words = ["taken", "both start and end", "start: ", "end: ", "name: ", "positions is"]
    assert len(caught.value.problems) == len(words)
    for word in words:
        assert any(word in problem.message for problem in caught.value.problems)


def test_meta_tells_where_a_bundle_comes_from():
    pinned = [Chunk("a", name="a", start=3), Chunk("bc", name="b", end=9)]
    leaf = Chunk("d", name="c", parents=pinned, generate=Generate(4, ("x",), temperature=0.5, seed=1))
    meta = compile_chunks([leaf], tokenizer(), positions="local").meta
    assert (meta.tokenizer, meta.positions, meta.pinned) == ("bytes", "local", {"a", "b"})
    assert meta.generate == {"c": Generate(4, ("x",), temperature=0.5, seed=1)}


def test_the_source_hash_is_one_of_the_content():
    def source(text: str = "a", start: int | None = None, positions: Any = "causal") -> str:
        return compile_chunks([Chunk(text, start=start)], tokenizer(), positions=positions).meta.source_sha256

    assert source() == source()
    different = [source(), source("b"), source(start=0), source(positions="flat")]
    assert len(set(different)) == len(different)


GRAPH = """\
legraph: 1
bos: true
positions: flat
chunks:
  - {name: last, text: "What?", parents: [one, two, three]}
  - {name: two, text: "second", generate: {max_new_tokens: 3, stop: [".", "?"]}}
  - {name: one, text: "first", start: 7}
  - {name: three, text: "third", parents: [two], end: 60}
  - {name: other, text: "leaf", parents: [one]}
""" + "".join(f"  - {{name: pinned{i}, text: x, start: {i}, generate: {{}}}}\n" for i in range(9))
SAVE = """\
import sys, legraph
bundle = legraph.compile_file(sys.argv[1])
for path in sys.argv[2:]:
    bundle.save(path)
"""


@pytest.fixture
def graph_path(tmp_path: Path) -> Path:
    path = tmp_path / "graph.yaml"
    path.write_text(GRAPH)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_the_same_file_gives_the_same_bundle_byte_for_byte(graph_path: Path, suffix: str):
    paths = [graph_path.with_name(name + suffix) for name in ("first", "another")]
    for path in paths:
        compile_file(graph_path).save(path)
    first, another = (path.read_bytes() for path in paths)
    assert first == another


def test_processes_with_different_hash_seeds_write_the_same_bytes(graph_path: Path):
    """Sets and dicts of strings are in another order in each of them."""
    written: list[list[bytes]] = []
    for seed in ("1", "2"):
        folder = graph_path.parent / seed
        folder.mkdir()
        paths = [folder / f"bundle{suffix}" for suffix in (".npz", ".pt")]
        subprocess.run(
            [sys.executable, "-c", SAVE, str(graph_path), *map(str, paths)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
        )
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1]
