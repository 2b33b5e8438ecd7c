"""The DAG of a graph as text for other programs: DOT for graphviz, Mermaid for Markdown pages.

Nodes are called n0, n1, ...; names of chunks stand in labels only, where nothing in them has a meaning.
"""

from __future__ import annotations

from legraph.bundle import Bundle
from legraph.errors import count
from legraph.figure import one_line
from legraph.fold import MAX_NODES, FoldedDag, Node, fold
from legraph.palette import PALETTES

# Mermaid refuses more edges. This many nodes cannot have more: 32 * 31 / 2 = 496.
MAX_MERMAID_EDGES = 500
_MERMAID_NODES = 32
_LONGEST_LABEL = 60
_COLORS = PALETTES["light"]

_DOT_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "&": "&amp;"})
_MERMAID_ESCAPES = str.maketrans({char: f"#{ord(char)};" for char in '#"&<>`\\'})
_DOT_HEAD = f"""\
digraph legraph {{
  bgcolor="transparent";
  node [shape=box, style="rounded,filled", fillcolor="{_COLORS.box}", color="{_COLORS.box_line}"];
  node [fontname="Helvetica", fontsize=11, fontcolor="{_COLORS.ink}"];
  edge [color="{_COLORS.muted}", arrowsize=0.7];"""
_MERMAID_CLASSES = f"""\
  classDef default fill:{_COLORS.box},stroke:{_COLORS.box_line},color:{_COLORS.ink}
  classDef generates fill:{_COLORS.box},stroke:{_COLORS.generate},color:{_COLORS.ink}"""


def dot_text(bundle: Bundle, most: int = MAX_NODES) -> str:
    """A DOT file. What stands for several chunks has a double border, for several edges a thick line.

    Raises:
        InputError: `most` is less than 1.
    """
    dag = fold(bundle, most)
    lines = [_DOT_HEAD]
    for at, node in enumerate(dag.nodes):
        name, note = (text.translate(_DOT_ESCAPES) for text in _texts(node))
        more = ", peripheries=2" if len(node.chunks) > 1 else ""
        more += f', color="{_COLORS.generate}"' if node.generates else ""
        lines.append(f'  n{at} [label="{name}\\n{note}"{more}];')
    for parent, child, several in _edges(dag):
        lines.append(f"  n{parent} -> n{child}{' [penwidth=2]' if several else ''};")
    return "\n".join([*lines, "}"]) + "\n"


def mermaid_text(bundle: Bundle, most: int = MAX_NODES) -> str:
    """A Mermaid flowchart, folded further where it would have more edges than Mermaid takes.

    Raises:
        InputError: `most` is less than 1.
    """
    dag = fold(bundle, most)
    if len(dag.edges) > MAX_MERMAID_EDGES:
        dag = fold(bundle, _MERMAID_NODES)
    lines = ["flowchart TD"]
    for at, node in enumerate(dag.nodes):
        name, note = (text.translate(_MERMAID_ESCAPES) for text in _texts(node))
        opens, closes = ("[[", "]]") if len(node.chunks) > 1 else ("(", ")")
        kind = ":::generates" if node.generates else ""
        lines.append(f'  n{at}{opens}"{name}<br/>{note}"{closes}{kind}')
    for parent, child, several in _edges(dag):
        lines.append(f"  n{parent} {'==>' if several else '-->'} n{child}")
    return "\n".join([*lines, _MERMAID_CLASSES]) + "\n"


def _texts(node: Node) -> tuple[str, str]:
    """Both lines of a label."""
    note = count(node.num_tokens, "token")
    if node.generates:
        note += f", generates {node.max_new_tokens:,}"
    return one_line(node.label, _LONGEST_LABEL), note


def _edges(dag: FoldedDag) -> list[tuple[int, int, bool]]:
    """Parent, child, and whether an edge stands for several."""
    return [(*ends, many > 1) for ends, many in zip(dag.edges.tolist(), dag.num_edges.tolist(), strict=True)]
