"""What `explain` found, for people (some lines of text) and for programs (plain data)."""

from __future__ import annotations

import math
from typing import Any

from legraph.errors import Source, count
from legraph.explain import Explanation, Influence, TokenPlace
from legraph.marks import printable

# Of a list of names, and of the edges of a path.
MAX_NAMES = 5
MAX_EDGES = 12
# Python writes out integers of up to 4,300 digits.
_MAX_BITS_WRITTEN = 14_000
_MAX_BITS_DRAWN = 100


def explanation_text(found: Explanation) -> str:
    """The answer in some lines."""
    q, k = _label(found.query, found.query_token), _label(found.key, found.key_token)
    lines = [f"{q} {'sees' if found.is_visible else 'does not see'} {k}", f"  {_reason(found)}"]
    if found.influence is not None and found.influence.hops == 1:
        lines += _edge_lines(found.influence)
    lines += _token_lines(found)
    if found.relation in ("grandparent", "ancestor"):
        hint = f"list {found.key!r} in the parents of {found.query!r}, to let it see that chunk"
        lines.append(f"  hint: {hint}")
    for flow, source, target in ((found.influence, k, q), (found.reverse, q, k)):
        if flow is not None and flow.hops > 0:
            lines += _influence_lines(flow, source, target)
    if found.influence is None and found.reverse is None:
        lines.append(f"influence: none, in either direction, between {q} and {k}")
    return "\n".join(lines)


def _reason(found: Explanation) -> str:
    q, k = found.query, found.key
    if found.relation == "itself":
        return "the same chunk: each token sees those before it, and itself"
    if found.relation == "later token":
        return "the same chunk, and the key comes after the query"
    if found.relation == "parent":
        return f"{k} is a parent of {q}: it is seen in full"
    if found.relation in ("grandparent", "ancestor"):
        which = "a grandparent" if found.relation == "grandparent" else "an ancestor"
        return f"{k} is {which} of {q}, not a parent: nothing is inherited"
    if found.relation == "descendant":
        return f"{k} comes after {q}, and is influenced by it"
    if found.relation == "sibling":
        shared = [("parent", found.common_parents), ("child", found.common_children)]
        said = [_shared(noun, names) for noun, names in shared if names]
        return f"siblings: they share the {' and the '.join(said)}, and neither lists the other"
    return "no edge leads from one to the other, in any number of hops"


def _shared(noun: str, names: tuple[str, ...]) -> str:
    if len(names) > 1:
        noun = {"parent": "parents", "child": "children"}[noun]
    shown = ", ".join(names[:MAX_NAMES])
    more = len(names) - MAX_NAMES
    return f"{noun} {shown}" + (f" and {more:,} more" if more > 0 else "")


def _influence_lines(flow: Influence, source: str, target: str) -> list[str]:
    how = "directly" if flow.hops == 1 else "through the hidden states of the chunks between"
    lines = [
        f"influence: {source} reaches {target} in {count(flow.hops, 'hop')}, {how}; "
        f"{_number(flow.num_paths)} {'path' if flow.num_paths == 1 else 'paths'} in all",
    ]
    return lines + (_edge_lines(flow) if flow.hops > 1 else [])


def _edge_lines(flow: Influence) -> list[str]:
    lines = [
        f"    {each.parent} -> {each.child}" + (f"  ({_shown(each.place)})" if each.place else "")
        for each in flow.edges
    ]
    if len(lines) > MAX_EDGES:
        half = MAX_EDGES // 2
        lines[half:-half] = [f"    ... {len(lines) - 2 * half:,} more ..."]
    return lines


def _shown(place: Source) -> str:
    return f"{place}, {place.note}" if place.note else str(place)


def _label(name: str, token: TokenPlace | None) -> str:
    if token is None:
        return printable(name)
    return f"{printable(name)}:{token.index}"


def _token_lines(found: Explanation) -> list[str]:
    """Where the tokens lie that were asked for."""
    asked = ((found.query, found.query_token), (found.key, found.key_token))
    return [
        f"  {_label(name, token)} is token {token.token} of the graph, at position {token.position}"
        for name, token in asked
        if token is not None
    ]


def _number(value: int) -> str:
    """Exact while people can read it."""
    return (
        f"{value:,}" if value.bit_length() <= _MAX_BITS_DRAWN else f"about 1e{math.floor(math.log10(value))}"
    )


def explanation_data(found: Explanation) -> dict[str, Any]:
    """The answer as plain data for JSON."""
    return {
        "query": _target_data(found.query, found.query_token),
        "key": _target_data(found.key, found.key_token),
        "visible": found.is_visible,
        "relation": found.relation,
        "reason": _reason(found),
        "common_parents": list(found.common_parents),
        "common_children": list(found.common_children),
        "influence": _influence_data(found.influence),
        "reverse_influence": _influence_data(found.reverse),
    }


def _target_data(name: str, token: TokenPlace | None) -> dict[str, Any]:
    if token is None:
        return {"chunk": name}
    return {"chunk": name, "index": token.index, "token": token.token, "position": token.position}


def _influence_data(flow: Influence | None) -> dict[str, Any] | None:
    if flow is None:
        return None
    is_written = flow.num_paths.bit_length() <= _MAX_BITS_WRITTEN
    return {
        "hops": flow.hops,
        "path": list(flow.path),
        "edges": [
            {"parent": each.parent, "child": each.child, "place": str(each.place) if each.place else None}
            for each in flow.edges
        ],
        # Exact; null where it has thousands of digits, which no JSON reader takes.
        "num_paths": flow.num_paths if is_written else None,
        "log10_num_paths": math.log10(flow.num_paths),
    }
