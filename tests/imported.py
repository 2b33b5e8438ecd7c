"""What the tests of importers look at: the graph of an imported text, by the names of its chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from legraph.errors import GraphError
from legraph.graph import Graph, build_graph
from legraph.layout import build_layout
from legraph.parse import parse
from legraph.source import SourceText
from legraph.tokens import bytes_tokenizer, tokenize


def graph_of(text: str) -> Graph:
    return build_graph(parse(SourceText("imported", text, "yaml", Path())))


def texts_of(graph: Graph) -> dict[str, str]:
    return {chunk.name: chunk.text or "" for chunk in graph.chunks}


def parents_of(graph: Graph) -> dict[str, list[str]]:
    return {chunk.name: [graph.chunks[i].name for i in chunk.parents] for chunk in graph.chunks}


def starts_of(graph: Graph) -> dict[str, int]:
    """First positions of all chunks, a byte a token."""
    tokens = tokenize(graph, bytes_tokenizer())
    layout = build_layout(graph, tokens.lengths())
    firsts = layout.position_ids[layout.mask.span_offsets[:-1]].tolist()
    return dict(zip((graph.chunks[i].name for i in layout.order.tolist()), firsts, strict=True))


def problems_of(function: Any, *arguments: Any) -> list[str]:
    with pytest.raises(GraphError) as caught:
        function(*arguments)
    return [str(problem) for problem in caught.value.problems]


def paths_of(graph: Graph) -> dict[str, str]:
    """What each chunk sees, in token order, and itself behind that."""
    texts, order = texts_of(graph), [graph.chunks[i].name for i in graph.order()]
    return {
        name: "".join(texts[parent] for parent in order if parent in parents) + texts[name]
        for name, parents in parents_of(graph).items()
    }
