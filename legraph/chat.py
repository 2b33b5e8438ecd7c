"""`dress`: a graph whose chunks have roles -> the same graph with a chat template's markers in its texts.

An instruct model was trained on messages between markers. A chunk with a role is a message: it gets the
markers that the tokenizer's own chat template writes around it. What the template writes in front of
everything, BOS and mostly nothing else, is written once, where every chunk sees it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from legraph.chattemplate import ChatPieces, cut_chat_template
from legraph.errors import GraphError, Problem, count
from legraph.graph import Graph, GraphChunk
from legraph.schema import Role
from legraph.tokens import tokenizer_id


def dress(graph: Graph, tokenizer: Any) -> Graph:
    """The graph with the markers written into the texts of the chunks that have a role.

    An assistant's chunk whose text is empty is an answer: it gets what asks the model for one, and the model
    (or the completion) writes the rest. The chunks that come back have no role, so that dressing twice is
    dressing once. Without any role the graph itself comes back; the chat template is not looked at.

    Raises:
        TokenizerError: the tokenizer has no chat template, or one that cannot be cut into pieces.
        GraphError: the template cannot do a role of the graph, an answer has no token to start from, or
            there is no one place for what the template writes in front of everything.
    """
    if all(chunk.role is None for chunk in graph.chunks):
        return graph
    pieces = cut_chat_template(tokenizer)
    front, plain = _front(graph, pieces, tokenizer)
    openings = _openings(plain, pieces)
    problems = _missing_roles(plain, pieces, openings, tokenizer)
    if problems:
        raise GraphError(problems)
    giver_of = _givers(plain, openings)
    kept, given = _split(pieces.after["user"], tokenizer)
    openings |= dict.fromkeys(giver_of, given)
    givers = set(giver_of.values())
    chunks = list(plain.chunks)
    for i, chunk in enumerate(plain.chunks):
        if chunk.role is not None:
            after = kept if i in givers else pieces.after.get(chunk.role, "")
            chunks[i] = _dressed(chunk, chunk.role, pieces, openings.get(i), after)
            if graph.chunks[0].text is None and chunk.parents == (0,):
                chunks[i] = _behind_bos(chunks[i], tokenizer)
    for i in _closers(plain):
        chunks[i] = replace(chunks[i], text=pieces.after.get("assistant", "") + (chunks[i].text or ""))
    for i, text in front.items():
        chunks[i] = replace(chunks[i], text=text + (chunks[i].text or ""))
    return replace(graph, chunks=tuple(chunks))


def _dressed(
    chunk: GraphChunk, role: Role, pieces: ChatPieces, opening: str | None, after: str
) -> GraphChunk:
    """A chunk with its markers: `after` behind the content, and the text of an answer is its `opening`."""
    text, completion = chunk.text or "", chunk.completion
    if completion is None:
        text = pieces.content(role, text)
    elif role in pieces.trims:
        # Both are one content: white space between them stays.
        text = text.lstrip()
        completion = completion.rstrip() if text else completion.strip()
    text = pieces.before[role] + text if opening is None else opening
    # What the model continues has no end yet; see `_closers`.
    if chunk.generate is None and completion is not None:
        completion += after
    elif chunk.generate is None and opening is None:
        text += after
    return replace(chunk, text=text, completion=completion, role=None)


def _behind_bos(chunk: GraphChunk, tokenizer: Any) -> GraphChunk:
    """Some templates (Llama 2) start every question with BOS; the first has it in the BOS chunk."""
    bos = getattr(tokenizer, "bos_token", None) or ""
    return replace(chunk, text=(chunk.text or "").removeprefix(bos))


def _closers(graph: Graph) -> list[int]:
    """The messages that follow an answer which is still to be generated, and write the marker that ends it.

    The model stops in front of that marker, or with it: neither is kept as a part of the answer. A message
    follows an answer that it sees if it sees no other message that follows it. However many answers it
    follows, the marker is written once.
    """
    is_live = [chunk.role == "assistant" and chunk.generate is not None for chunk in graph.chunks]
    found = list[int]()
    for i, chunk in enumerate(graph.chunks):
        if chunk.role is None:
            continue
        answers = [parent for parent in chunk.parents if is_live[parent]]
        between = [set(graph.chunks[parent].parents) for parent in chunk.parents if graph.chunks[parent].role]
        if any(all(answer not in seen for seen in between) for answer in answers):
            found.append(i)
    return found


def _openings(graph: Graph, pieces: ChatPieces) -> dict[int, str]:
    """The texts of the answers by chunk: of the assistant's chunks that have no text of their own.

    One that neither generates nor has a completion is an answer if it is a leaf, which a run continues.
    """
    leaves = set(graph.leaves())
    openings = dict[int, str]()
    for i, chunk in enumerate(graph.chunks):
        if chunk.role != "assistant" or pieces.content("assistant", chunk.text or ""):
            continue
        if chunk.completion is not None:
            openings[i] = pieces.before.get("assistant", pieces.generation_prompt)
        elif chunk.generate is not None or i in leaves:
            openings[i] = pieces.generation_prompt
    return openings


def _givers(graph: Graph, openings: dict[int, str]) -> dict[int, int]:
    """For each answer that would have no token: the user's chunk whose closing marker it takes for a start.

    Some templates (Mistral, Llama 2) write nothing between the question's last marker and the answer, but a
    chunk has at least one token, and the model writes its first one after that. The marker changes its chunk,
    not its place: whoever sees the question must see an answer that took it, or be one.

    Raises:
        GraphError: for all answers for which that cannot be done.
    """
    place = {chunk: at for at, chunk in enumerate(graph.order())}
    giver_of, problems = dict[int, int](), list[Problem]()
    for i in (i for i, opening in openings.items() if not opening):
        asking = [parent for parent in graph.chunks[i].parents if graph.chunks[parent].role == "user"]
        written = [parent for parent in asking if graph.chunks[parent].generate is None]
        if written:
            giver_of[i] = max(written, key=place.__getitem__)
        else:
            problems.append(
                _no_opening(graph, i, "none of its direct parents is a user's chunk with a text of its own")
            )
    takers_of = dict[int, set[int]]()
    for taker, giver in giver_of.items():
        takers_of.setdefault(giver, set()).add(taker)
    for i, chunk in enumerate(graph.chunks):
        for giver in takers_of.keys() & set(chunk.parents):
            if i not in takers_of[giver] and not takers_of[giver] & set(chunk.parents):
                taker = min(takers_of[giver])
                question = graph.chunks[giver].name
                why = f"chunk {chunk.name!r} sees that of {question!r} without seeing the answer"
                problems.append(_no_opening(graph, taker, why))
    if problems:
        raise GraphError(problems)
    return giver_of


def _split(after: str, tokenizer: Any) -> tuple[str, str]:
    """What a question keeps of its closing marker, and what the answer takes.

    White space in front of a special token stays, because it may be one token with white space that the
    question ends with. White space in front of anything else may be one token with that.
    """
    marker = after.lstrip()
    if any(marker.startswith(token) for token in tokenizer.get_added_vocab()):
        return after.removesuffix(marker), marker
    return "", after


def _no_opening(graph: Graph, i: int, why: str) -> Problem:
    return Problem(
        f"the answer {graph.chunks[i].name!r} has no token to start from: the chat template writes nothing "
        f"in front of it, and it cannot take the last marker of the question: {why}",
        hint="give the answer a question of its own, or a text",
        source=graph.place(i),
    )


def _missing_roles(
    graph: Graph, pieces: ChatPieces, openings: dict[int, str], tokenizer: Any
) -> list[Problem]:
    hints = {
        "system": "write its text into the user's, or use a model whose template has a system message",
        "assistant": "an assistant's chunk with an empty text, which the model writes, can be had",
    }
    problems = list[Problem]()
    for i, chunk in enumerate(graph.chunks):
        if chunk.role is None or chunk.role not in pieces.missing:
            continue
        if i not in openings or chunk.completion is not None:
            message = (
                f"chunk {chunk.name!r} has 'role: {chunk.role}', which the chat template of tokenizer "
                f"{tokenizer_id(tokenizer)!r} cannot do: {pieces.missing[chunk.role]}"
            )
            hint = hints.get(chunk.role)
            problems.append(Problem(message, hint=hint, source=graph.place(i, "role")))
    return problems


def _front(graph: Graph, pieces: ChatPieces, tokenizer: Any) -> tuple[dict[int, str], Graph]:
    """What the template writes in front of everything, by the chunk it stands in front of.

    Also the graph without a BOS token that its root's own text starts with: there is one already.

    Raises:
        GraphError: there is something to write, and no one chunk that all others see.
    """
    has_system = any(chunk.role == "system" for chunk in graph.chunks)
    preamble = "" if has_system else pieces.preamble
    if graph.chunks[0].text is None:
        bos = pieces.bos or getattr(tokenizer, "bos_token", None) or ""
        return ({0: bos + preamble} if preamble else {}), graph
    front = pieces.bos + preamble
    if not front:
        return {}, graph
    root, *others = (i for i, chunk in enumerate(graph.chunks) if not chunk.parents)
    if others:
        what = " and ".join(
            word for word, text in (("BOS", pieces.bos), ("a default system message", preamble)) if text
        )
        raise GraphError(
            Problem(
                f"the chat template of tokenizer {tokenizer_id(tokenizer)!r} starts with {what}, but the "
                f"graph has {count(1 + len(others), 'root')}",
                expected="a single root",
                hint="set 'bos: true': one BOS chunk that every chunk sees",
                source=graph.place(others[0]),
            )
        )
    chunks = list(graph.chunks)
    chunks[root] = replace(chunks[root], text=(chunks[root].text or "").removeprefix(pieces.bos))
    return {root: front}, replace(graph, chunks=tuple(chunks))
