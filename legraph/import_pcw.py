"""Parallel context windows (Ratner et al., 2023) -> graph file.

The paper's layout is the language's own: windows that do not see each other and share one range of
positions, and a task after them that sees them all.
"""

from __future__ import annotations

from typing import Any

from legraph.graphtext import graph_text
from legraph.importing import Json, Names, read_foreign

_EXPECTED = '{"contexts": ["...", ...], "task": "..."}'
_TASKS = ("task", "question")


def import_pcw(path: str) -> str:
    """The graph file's text for a JSON file `{"contexts": [str, ...], "task": str}` (or "question").

    Raises:
        GraphError: the file cannot be read, or is not of this form.
    """
    return pcw_text(Json.read(read_foreign(path)))


def pcw_text(data: Json) -> str:
    keys = data.keys(_EXPECTED)
    for key, value in keys.items():
        if key not in ("contexts", *_TASKS):
            value.refuse("unknown key", _EXPECTED)
    given = [key for key in _TASKS if key in keys]
    if "contexts" not in keys or len(given) != 1:
        data.refuse("has no 'contexts', or not one of 'task' and 'question'", _EXPECTED)
    names = Names()
    chunks: list[dict[str, Any]] = [
        {"name": names.new(f"context{i}"), "text": context.text()}
        for i, context in enumerate(keys["contexts"].entries("a list of strings"), 1)
    ]
    parents = [chunk["name"] for chunk in chunks]
    chunks.append({"name": names.new(given[0]), "text": keys[given[0]].text(), "parents": parents})
    comment = (
        f"Parallel context windows (Ratner et al., 2023), imported from {data.file}: no window sees another, "
        "all begin at position 0, and the task, which sees them all, begins after the longest."
    )
    return graph_text({"legraph": 1, "positions": "causal", "chunks": chunks}, comment)
