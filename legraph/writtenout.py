"""`legraph show --expand`: a graph file with its language written out, and what each selector matched."""

from __future__ import annotations

from typing import Any

from legraph.errors import count
from legraph.graphtext import graph_text
from legraph.origin import Places
from legraph.parse import ParsedFile
from legraph.selectors import is_selector

# A selector may match ten thousand chunks; the parents below the comment name them all.
MAX_NAMES_IN_COMMENT = 6
# What only the language needs, or what says something about the graph and is no part of it.
_LEFT_OUT = {"assertions": True, "chunks": {"__all__": {"group"}}}


def written_out(parsed: ParsedFile) -> str:
    """The text of a plain graph file that means the same, with a comment at each chunk that was made from
    something shorter. Assertions and groups are left out."""
    data = parsed.spec.model_dump(by_alias=True, exclude_defaults=True, exclude=_LEFT_OUT)
    comments = dict[str, str]()
    for chunk in expanded_data(parsed)["chunks"]:
        lines = [chunk["where"]] if chunk["where"] else []
        lines += [_matched(selector, names) for selector, names in chunk["selectors"].items()]
        comments[chunk["name"]] = "\n".join(lines)
    comment = f"Written out from {parsed.source.place(()).file}."
    if parsed.spec.assertions:
        comment += f" Left out: {count(len(parsed.spec.assertions), 'assertion')}."
    return graph_text(data, comment, comments)


def expanded_data(parsed: ParsedFile) -> dict[str, Any]:
    """`{"chunks": [...]}`: of each chunk its name, parents, what each of its selectors matched, the place of
    its entry and which round of a loop it is."""
    chosen = parsed.selectors.parents() if parsed.selectors is not None else None
    chunks = list[dict[str, Any]]()
    for i, chunk in enumerate(parsed.spec.chunks):
        selectors = dict[str, list[str]]()
        if chosen is not None and parsed.selectors is not None:
            for at, want in enumerate(parsed.selectors.wants[i]):
                if is_selector(want.text):
                    found = [each.chunk for each in chosen[i] if each.at == at]
                    names = (parsed.selectors.names[each] for each in found if isinstance(each, int))
                    selectors[want.text] = [name for name in names if name is not None]
        place = parsed.source.place(("chunks", i)) if isinstance(parsed.source, Places) else None
        chunks.append(
            {
                "name": chunk.name,
                "parents": list(chunk.parents),
                "selectors": selectors,
                "place": str(place) if place is not None else None,
                "where": place.note if place is not None else None,
            }
        )
    return {"chunks": chunks}


def _matched(selector: str, names: list[str]) -> str:
    if selector.startswith("^"):
        return f"{selector} is left out"
    if not names:
        return f"{selector}: nothing more"
    shown = ", ".join(names[:MAX_NAMES_IN_COMMENT])
    return f"{selector}: {shown}" + (
        f", ... ({count(len(names), 'chunk')})" if len(names) > MAX_NAMES_IN_COMMENT else ""
    )
