"""Many sequences that begin alike -> graph file: a prefix tree, so that what they share stands once.

The tree is a radix tree over segments: what no sequence branches off from, or ends in, is one chunk. A chunk
lists all its ancestors as parents, because direct parents only are seen; under `causal` positions the way
from a root to the end of a sequence is then exactly the plain sequence. Cost and size of the file are linear
in the number of segments: a branching adds a chunk with fewer ancestors than the sequence that branches off
has segments.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from legraph.errors import GraphError, Problem
from legraph.graphtext import graph_text
from legraph.importing import Json, Names, raise_all, read_foreign

_EXPECTED = "a list of strings, or of lists of strings"
# A word with the white space before it, as tokenizers cut too; white space at the end stands alone.
_WORD = re.compile(r"\s*\S+|\s+")
MAX_ENDS_SHOWN = 20


@dataclass(slots=True)
class _Node:
    """Segments `start:stop` of a sequence, shared by all sequences below; `ends` are those that end here."""

    sequence: Sequence[str]
    start: int
    stop: int
    children: dict[str, _Node] = field(default_factory=dict[str, "_Node"])
    ends: list[int] = field(default_factory=list[int])

    def text(self) -> str:
        return "".join(self.sequence[self.start : self.stop])


def import_prefix_tree(path: str) -> str:
    """The graph file's text for a JSON file that is a list of strings, or of lists of segments.

    Raises:
        GraphError: the file cannot be read, or is not of this form; with all entries that are wrong.
    """
    return prefix_tree_text(Json.read(read_foreign(path)))


def prefix_tree_text(data: Json) -> str:
    sequences, problems = list[list[str]](), list[Problem]()
    for entry in data.entries(_EXPECTED):
        try:
            sequences.append(_segments(entry))
        except GraphError as error:
            problems += error.problems
    raise_all(problems)
    chunks, comments = _chunks(_tree(sequences))
    comment = (
        f"A prefix tree of {len(sequences):,} sequences, imported from {data.file}: what sequences share "
        "stands once. Each chunk sees all its ancestors and continues at their positions, so that the way "
        "from a root to a leaf is the plain sequence."
    )
    return graph_text({"legraph": 1, "positions": "causal", "chunks": chunks}, comment, comments)


def _segments(entry: Json) -> list[str]:
    if isinstance(entry.value, str):
        return _WORD.findall(entry.text())
    return [segment.text() for segment in entry.entries("a string, or a list of strings")]


def _tree(sequences: Sequence[Sequence[str]]) -> _Node:
    """The root, which is empty. A node is split where a sequence leaves it; no segment is copied."""
    root = _Node((), 0, 0)
    for number, sequence in enumerate(sequences, 1):
        node, at = root, 0
        while at < len(sequence):
            child = node.children.get(sequence[at])
            if child is None:
                child = _Node(sequence, at, len(sequence))
                node.children[sequence[at]] = child
                at = len(sequence)
            else:
                shared = _num_shared(child, sequence, at)
                if shared < child.stop - child.start:
                    child = _split(node, child, shared)
                at += shared
            node = child
        node.ends.append(number)
    return root


def _num_shared(node: _Node, sequence: Sequence[str], at: int) -> int:
    """How many of a node's segments the sequence goes on with."""
    most = min(node.stop - node.start, len(sequence) - at)
    for i in range(most):
        if node.sequence[node.start + i] != sequence[at + i]:
            return i
    return most


def _split(parent: _Node, node: _Node, length: int) -> _Node:
    """Puts a node of the first `length` segments of `node` between it and its parent."""
    upper = _Node(node.sequence, node.start, node.start + length)
    node.start += length
    parent.children[upper.sequence[upper.start]] = upper
    upper.children[node.sequence[node.start]] = node
    return upper


def _chunks(root: _Node) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The chunks, ancestors first, branch after branch; and what the file says about each."""
    names, chunks, comments = Names(), list[dict[str, Any]](), dict[str, str]()
    waiting: list[tuple[_Node, tuple[str, ...]]] = [(node, ()) for node in reversed(root.children.values())]
    num_shared = 0
    while waiting:
        node, ancestors = waiting.pop()
        if node.ends:
            name = names.new(f"sequence{node.ends[0]}")
        else:
            num_shared += 1
            name = names.new(f"prefix{num_shared}")
        if node.ends and (node.children or len(node.ends) > 1):
            comments[name] = _ends_comment(node)
        chunks.append({"name": name, "text": node.text(), "parents": ancestors or None})
        below = (*ancestors, name)
        waiting += [(child, below) for child in reversed(node.children.values())]
    return chunks, comments


def _ends_comment(node: _Node) -> str:
    shown = ", ".join(map(str, node.ends[:MAX_ENDS_SHOWN]))
    more = f" and {len(node.ends) - MAX_ENDS_SHOWN:,} more" if len(node.ends) > MAX_ENDS_SHOWN else ""
    what = "sequences" if len(node.ends) > 1 else "sequence"
    goes_on = "; others go on" if node.children else ""
    return f"{what} {shown}{more} end{'' if len(node.ends) > 1 else 's'} here{goes_on}"
