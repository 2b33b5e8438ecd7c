"""A `Graph` is the meaning of a file: the same for every way to write it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.graph import Generate, Graph, GraphChunk, build_graph
from legraph.parse import parse, parse_file
from legraph.source import SourceText
from tests.random_graphs import dags, graphs
from tests.test_toml_reader import written_tables

EXAMPLES = Path(__file__).parent.parent / "examples"
TEXTS = st.text(max_size=12)
# An example is a whole file.
few = settings(max_examples=40)
GENERATES = st.builds(
    Generate,
    max_new_tokens=st.integers(1, 2**31 - 1),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=2).map(tuple),
    temperature=st.none() | st.floats(0, 1e9),
    top_k=st.none() | st.integers(1, 10**30),
    top_p=st.none() | st.floats(0, 1, exclude_min=True),
    seed=st.none() | st.integers(0, 2**63 - 1),
)


@st.composite
def any_graphs(draw: st.DrawFn) -> Graph:
    """Graphs with texts of any characters, all settings, and sometimes a BOS chunk."""
    graph = draw(graphs(dags(max_chunks=6, max_length=1)))
    chunks = [
        replace(
            chunk,
            text=draw(TEXTS),
            generate=draw(st.none() | GENERATES),
            completion=draw(st.none() | st.text(min_size=1, max_size=5)),
            loss=draw(st.booleans()),
        )
        for chunk in graph.chunks
    ]
    if draw(st.booleans()):
        below = [replace(each, parents=(0, *(parent + 1 for parent in each.parents))) for each in chunks]
        chunks = [GraphChunk("bos", None), *below]
    return replace(graph, chunks=tuple(chunks), tokenizer=draw(st.none() | st.text(min_size=1, max_size=5)))


def file_of(graph: Graph) -> dict[str, Any]:
    """The file that means this graph, as plain data; what is at its default is left out."""
    has_bos = graph.chunks[0].text is None
    data: dict[str, Any] = {"legraph": 1, "positions": graph.positions}
    if has_bos:
        data["bos"] = True
    if graph.tokenizer is not None:
        data["tokenizer"] = graph.tokenizer
    data["chunks"] = [entry_of(graph, chunk, has_bos) for chunk in graph.chunks[has_bos:]]
    return as_written(data)


def as_written(value: Any) -> Any:
    """Strings as a file says them, in which `${` begins a variable."""
    if isinstance(value, dict):
        return {key: as_written(each) for key, each in value.items()}
    if isinstance(value, list):
        return [as_written(each) for each in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


def entry_of(graph: Graph, chunk: GraphChunk, has_bos: bool) -> dict[str, Any]:
    names = [graph.chunks[parent].name for parent in chunk.parents[has_bos:]]
    generate = asdict(chunk.generate) | {"stop": list(chunk.generate.stop)} if chunk.generate else None
    entry = asdict(chunk) | {"parents": names, "generate": generate and without_none(generate)}
    return without_none(entry)


def without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def read(text: str, syntax: str = "yaml") -> Graph:
    return build_graph(parse(SourceText("g", text, "toml" if syntax == "toml" else "yaml", Path())))


def assert_same(graph: Graph, found: Graph) -> None:
    assert found == graph
    assert found.sha256() == graph.sha256()


@few
@given(any_graphs(), st.sampled_from([True, False, None]), st.booleans())
def test_a_graph_written_as_yaml_is_read_back(graph: Graph, flow: bool | None, sort_keys: bool):
    text = yaml.safe_dump(file_of(graph), default_flow_style=flow, sort_keys=sort_keys)
    assert_same(graph, read(text))


@few
@given(any_graphs(), st.booleans(), st.sampled_from([None, 0, "\t"]))
def test_a_graph_written_as_json_is_read_back(graph: Graph, ensure_ascii: bool, indent: int | str | None):
    assert_same(graph, read(json.dumps(file_of(graph), ensure_ascii=ensure_ascii, indent=indent)))


@few
@given(st.data())
def test_a_graph_written_as_toml_is_read_back(data: st.DataObject):
    graph = data.draw(any_graphs())
    _, writer = data.draw(written_tables(st.just(file_of(graph))))
    assert_same(graph, read(writer.text, "toml"))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_twins_among_the_examples_are_equal(path: Path):
    assert_same(build_graph(parse_file(path)), build_graph(parse_file(path.with_suffix(".yaml"))))


def test_there_are_twins_among_the_examples():
    assert len(list(EXAMPLES.glob("*.toml"))) >= 2


def test_parents_become_indices_in_declared_order():
    graph = read(
        """
legraph: 1
positions: flat
tokenizer: t
chunks:
- {name: q, text: "?", parents: [b, a], start: 7}
- {name: a, text: A, end: 9, completion: C, loss: true}
- {name: b, text: B, parents: [a], generate: {max_new_tokens: 3, stop: [x], seed: 5}}
"""
    )
    assert graph == Graph(
        chunks=(
            GraphChunk("q", "?", (2, 1), start=7),
            GraphChunk("a", "A", (), end=9, completion="C", loss=True),
            GraphChunk("b", "B", (1,), generate=Generate(3, ("x",), seed=5)),
        ),
        positions="flat",
        tokenizer="t",
    )
    assert graph.order() == [1, 2, 0]
    assert graph.num_edges() == 3
    assert graph.leaves() == [0]


@pytest.mark.parametrize("parents", ["[a]", "[bos, a]", "[a, bos]"])
def test_bos_is_the_first_chunk_and_the_first_parent_of_every_other(parents: str):
    graph = read(
        f"legraph: 1\nbos: true\nchunks: [{{name: a, text: A}}, {{name: b, text: B, parents: {parents}}}]"
    )
    assert graph.chunks == (
        GraphChunk("bos", None),
        GraphChunk("a", "A", (0,)),
        GraphChunk("b", "B", (0, 1)),
    )


def test_a_chunk_may_be_named_bos_where_none_is_added():
    graph = read("legraph: 1\nchunks: [{name: bos, text: A}, {name: b, text: B, parents: [bos]}]")
    assert graph.chunks == (GraphChunk("bos", "A"), GraphChunk("b", "B", (0,)))


def test_a_text_is_the_same_wherever_it_stands(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A")
    (tmp_path / "g.yaml").write_text("legraph: 1\nchunks: [{name: a, file: a.txt}]")
    assert_same(
        build_graph(parse_file(tmp_path / "g.yaml")), read("legraph: 1\nchunks: [{name: a, text: A}]")
    )


def test_a_graph_knows_the_file_it_came_from():
    text = "legraph: 1\nchunks: [{name: a, text: A}]"
    graph = read(text)
    assert graph.source is not None
    place = graph.source.place(("chunks", 0, "text"))
    assert (place.line, place.column) == (2, text.split("\n")[1].index("A") + 1)


PLAIN = Graph((GraphChunk("a", "A"), GraphChunk("b", "B", (0,), generate=Generate())))


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAIN, positions="flat"),
        replace(PLAIN, chunks=PLAIN.chunks[:1]),
        replace(PLAIN, chunks=(GraphChunk("x", "A"), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(GraphChunk("a", "x"), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(GraphChunk("a", None), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(GraphChunk("a", "A", start=0), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(GraphChunk("a", "A", end=0), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(PLAIN.chunks[0], GraphChunk("b", "B", (), generate=Generate()))),
        replace(PLAIN, chunks=(PLAIN.chunks[0], GraphChunk("b", "B", (0,)))),
        replace(PLAIN, chunks=(GraphChunk("a", "A", completion="C"), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(GraphChunk("a", "A", loss=True), PLAIN.chunks[1])),
        replace(PLAIN, chunks=(PLAIN.chunks[0], GraphChunk("b", "B", (0,), generate=Generate(seed=0)))),
    ],
)
def test_the_hash_tells_graphs_of_different_meaning_apart(other: Graph):
    assert other.sha256() != PLAIN.sha256()


def test_the_hash_is_that_of_the_content_alone():
    same = replace(PLAIN, source=SourceText("g", "", "yaml", Path()))
    assert (same, same.sha256()) == (PLAIN, PLAIN.sha256())
    assert hash(same) == hash(PLAIN)


@given(graphs(dags(max_chunks=10, max_length=1)))
def test_order_leaves_and_edges_fit_together(graph: Graph):
    order = graph.order()
    assert sorted(order) == list(range(len(graph.chunks)))
    pairs = [(i, parent) for i, chunk in enumerate(graph.chunks) for parent in chunk.parents]
    assert all(order.index(parent) < order.index(i) for i, parent in pairs)
    assert graph.num_edges() == len(pairs)
    assert graph.leaves() == sorted(set(range(len(graph.chunks))) - {parent for _, parent in pairs})
