"""Rules of `lint` that look at tokens and positions: what only shows once a graph is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from legraph.bundle import Bundle
from legraph.errors import count
from legraph.graph import Graph, GraphChunk
from legraph.lintgraph import Hit
from legraph.marks import quoted
from legraph.tokens import tokenizer_id

MAX_NAMES = 5
# Parents of one chunk whose borders are looked at, and how much of a text on either side.
MAX_BORDERS = 4
BORDER_CHARACTERS = 200
# What transformers calls a tokenizer's length where it has none is far above this.
MAX_SANE_LENGTH = 10**6
# Tokens shown on either side of what differs.
_CONTEXT = 1


@dataclass(frozen=True, slots=True)
class Compiled:
    """A graph with its tokens. `model_max`: how many positions the model knows, if that is given."""

    graph: Graph
    bundle: Bundle
    tokenizer: Any
    model_max: int | None = None

    def span(self, chunk: int) -> slice:
        return self.bundle.span(self.graph.chunks[chunk].name)

    def first_position(self, chunk: int) -> int:
        return int(self.bundle.position_ids[self.span(chunk).start])

    def end_position(self, chunk: int) -> int:
        """Just past the last token."""
        return int(self.bundle.position_ids[self.span(chunk).stop - 1]) + 1


def repeated_bos(made: Compiled) -> Iterator[Hit]:
    """BOS tokens anywhere but at the beginning of a root: the model has learned to see one, at the start."""
    bos = _own_bos(made.tokenizer)
    for i, chunk in enumerate(made.graph.chunks):
        if bos is None or chunk.text is None:
            continue
        found = [at for at, token in enumerate(made.bundle.input_ids[made.span(i)].tolist()) if token == bos]
        above = [made.graph.chunks[parent].name for parent in chunk.parents]
        if found == [0] and above:
            said = f"begins with the BOS token, and is not the beginning: it sees {quoted(above[0])}"
        elif any(at > 0 for at in found):
            said = f"has the BOS token inside, as token {next(at for at in found if at > 0)}"
        else:
            continue
        hint = f"take {made.tokenizer.bos_token!r} out of the text"
        yield Hit(i, f"{quoted(chunk.name)} {said}", made.graph.place(i, "text"), hint)


def missing_bos(made: Compiled) -> Iterator[Hit]:
    """Roots without BOS, for a tokenizer that would put one first on its own."""
    bos = _own_bos(made.tokenizer)
    if bos is None or made.tokenizer("x")["input_ids"][:1] != [bos]:
        return
    graph = made.graph
    without = [
        i
        for i, chunk in enumerate(graph.chunks)
        if not chunk.parents and made.bundle.input_ids[made.span(i).start] != bos
    ]
    if without:
        names = ", ".join(quoted(graph.chunks[i].name) for i in without[:MAX_NAMES])
        more = f" and {len(without) - MAX_NAMES:,} more" if len(without) > MAX_NAMES else ""
        roots = "root" if len(without) == 1 else "roots"
        yield Hit(
            without[0] if len(without) == 1 else None,
            f"tokenizer {tokenizer_id(made.tokenizer)!r} puts a BOS token before a text, and the {roots} "
            f"{names}{more} {'has' if len(without) == 1 else 'have'} none",
            graph.place(without[0]),
            "'bos: true' gives the graph one that every chunk sees",
        )


def _own_bos(tokenizer: Any) -> int | None:
    """The id of a token that means BOS and nothing else (GPT-2 has one token for all borders)."""
    bos = tokenizer.bos_token_id
    return None if bos == tokenizer.eos_token_id else bos


def positions_before_parents(made: Compiled) -> Iterator[Hit]:
    """Chunks that stand, by `start` or `end`, before the end of what they see: a distance below zero."""
    graph = made.graph
    for i, chunk in enumerate(graph.chunks):
        start = made.first_position(i)
        late = [
            (parent, end)
            for parent in chunk.parents
            if _is_pinned(chunk) or (_is_pinned(graph.chunks[parent]) and graph.positions == "flat")
            if (end := made.end_position(parent) + _num_generated(graph.chunks[parent])) > start
        ]
        if late:
            parent, end = max(late, key=lambda found: found[1])
            room = _num_generated(graph.chunks[parent])
            what = f"its {room} generated ones included, " if room else ""
            rest = f"; and so of {count(len(late) - 1, 'more parent')}" if len(late) > 1 else ""
            yield Hit(
                i,
                f"{quoted(chunk.name)} begins at position {start}, and the tokens of its parent "
                f"{quoted(graph.chunks[parent].name)} reach, {what}up to {end - 1}{rest}",
                graph.place(i, "start" if chunk.start is not None else "end"),
                f"a 'start' of {end} or more, or no 'start' and 'end'",
            )


def _is_pinned(chunk: GraphChunk) -> bool:
    return chunk.start is not None or chunk.end is not None


def _num_generated(chunk: GraphChunk) -> int:
    return chunk.generate.max_new_tokens if chunk.generate is not None else 0


def positions_beyond_model(made: Compiled) -> Iterator[Hit]:
    """Chunks with positions that the model has not been made for, generated tokens included."""
    limit = made.model_max or made.tokenizer.model_max_length
    if made.model_max is None and limit >= MAX_SANE_LENGTH:
        return
    graph, ends = made.graph, _latest_ends(made)
    beyond = [i for i in graph.order() if ends[i] > limit]
    if beyond:
        first = beyond[0]
        rest = f"; and so do {count(len(beyond) - 1, 'more chunk')}" if len(beyond) > 1 else ""
        room = "with all it may generate, " if ends[first] > made.end_position(first) else ""
        yield Hit(
            first if len(beyond) == 1 else None,
            f"{quoted(graph.chunks[first].name)} reaches, {room}position {ends[first] - 1:,}, and the model "
            f"has {limit:,}: 0..{limit - 1:,}{rest}",
            graph.place(first),
            "shorten the texts, let parallel chunks share positions ('positions: causal'), or set 'start'",
        )


def _latest_ends(made: Compiled) -> list[int]:
    """Just past the last position of each chunk if all that may be generated is generated."""
    graph = made.graph
    ends = [0] * len(graph.chunks)
    for i in graph.order():
        chunk, start = graph.chunks[i], made.first_position(i)
        length = made.end_position(i) - start
        if graph.positions == "causal" and not _is_pinned(chunk):
            start = max([start, *(ends[parent] for parent in chunk.parents)])
        ends[i] = start + length + _num_generated(chunk)
    return ends


def split_borders(made: Compiled) -> Iterator[Hit]:
    """Borders of a chunk and the one it goes on from where the joined text has other tokens.

    Only where positions say that one text goes on in the other, and text stands on both sides: markers of a
    chat template and generated tokens are borders of their own.
    """
    pairs = [(parent, i) for i in range(len(made.graph.chunks)) for parent in _goes_on_from(made, i)]
    if not pairs:
        return
    chunks = made.graph.chunks
    sides = [
        (_tail(chunks[parent].completion or chunks[parent].text or ""), _head(chunks[i].text or ""))
        for parent, i in pairs
    ]
    lefts = _ids(made, [left for left, _ in sides])
    rights = _ids(made, [right for _, right in sides])
    joined = _ids(made, [left + right for left, right in sides])
    reported = set[int]()
    for (parent, i), left, right, together in zip(pairs, lefts, rights, joined, strict=True):
        if left + right != together and i not in reported:
            reported.add(i)
            names = quoted(chunks[i].name), quoted(chunks[parent].name)
            yield Hit(
                i,
                f"{names[0]} goes on from {names[1]}, and the joined text has other tokens there: "
                f"{_difference(made.tokenizer, left, right, together)}",
                made.graph.place(i, "text"),
                "move the border, and the space at it, to where the tokenizer starts a new token",
            )


def _goes_on_from(made: Compiled, i: int) -> list[int]:
    """The parents that a chunk's text directly continues, by its positions; some, if they are many."""
    chunk, start = made.graph.chunks[i], made.first_position(i)
    found = list[int]()
    for parent in chunk.parents:
        above = made.graph.chunks[parent]
        is_text = above.text is not None and above.generate is None and above.role is None
        if is_text and chunk.role is None and made.end_position(parent) == start and len(found) < MAX_BORDERS:
            found.append(parent)
    return found


def _tail(text: str) -> str:
    """The end of a text, from the beginning of a word on where it is cut."""
    if len(text) <= BORDER_CHARACTERS:
        return text
    tail = text[-BORDER_CHARACTERS:]
    return tail[max(tail.find(" "), 0) :]


def _head(text: str) -> str:
    if len(text) <= BORDER_CHARACTERS:
        return text
    head = text[:BORDER_CHARACTERS]
    return head[: head.rfind(" ")] if " " in head[1:] else head


def _ids(made: Compiled, texts: list[str]) -> list[list[int]]:
    return made.tokenizer(texts, add_special_tokens=False)["input_ids"]


def _difference(tokenizer: Any, left: Sequence[int], right: Sequence[int], together: Sequence[int]) -> str:
    """The pieces around the border, apart and joined, without what both ways have."""
    apart = [*left, *right]
    most = min(len(apart), len(together))
    same_first = next((i for i in range(most) if apart[i] != together[i]), most)
    most -= same_first
    same_last = next((i for i in range(most) if apart[-1 - i] != together[-1 - i]), most)
    first, last = max(same_first - _CONTEXT, 0), max(same_last - _CONTEXT, 0)
    pieces = tokenizer.convert_ids_to_tokens(apart)
    before = [repr(piece) for piece in pieces[min(first, len(left)) : len(left)]]
    after = [repr(piece) for piece in pieces[len(left) : max(len(apart) - last, len(left))]]
    joined = tokenizer.convert_ids_to_tokens(together[first : len(together) - last])
    return f"{' '.join(before)} | {' '.join(after)} apart, {' '.join(map(repr, joined))} joined"
