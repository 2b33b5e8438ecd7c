"""Chat messages in the form of OpenAI's API -> graph file: one chunk for each message.

Each message sees all messages before it, which is the plain conversation; what is gained is that edges can
be cut and branches added, and that the messages' keys and values can be kept one by one.
"""

from __future__ import annotations

from typing import Any

from legraph.errors import GraphError, Problem
from legraph.graphtext import graph_text
from legraph.importing import Json, Names, raise_all, read_foreign
from legraph.marks import quoted

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
ANSWER_TOKENS = 256
_EXPECTED = 'a list of {"role": ..., "content": ...}, or {"messages": [...]}'
_EXPECTED_CONTENT = 'a string, or a list of {"type": "text", "text": "..."}'


def import_messages(path: str) -> str:
    """The graph file's text for a JSON file of messages, or a request that holds them.

    Raises:
        GraphError: the file cannot be read, or holds what a graph of texts cannot (tools, images); with all
            messages that are wrong.
    """
    return messages_text(Json.read(read_foreign(path)))


def messages_text(data: Json) -> str:
    names, chunks = Names(), list[dict[str, Any]]()
    problems = list[Problem]()
    for message in _messages(data):
        try:
            name, role, text = _message(message)
        except GraphError as error:
            problems += error.problems
            continue
        before = [chunk["name"] for chunk in chunks]
        chunks.append({"name": names.new(name), "role": role, "text": text, "parents": before or None})
    raise_all(problems)
    if chunks[-1]["role"] == "user":
        answer = {"role": "assistant", "text": "", "generate": {"max_new_tokens": ANSWER_TOKENS}}
        before = [chunk["name"] for chunk in chunks]
        chunks.append({"name": names.new("answer"), "parents": before} | answer)
    comment = (
        f"A conversation, imported from {data.file}: each message sees all messages before it. It needs a "
        "model whose tokenizer has a chat template."
    )
    return graph_text({"legraph": 1, "positions": "causal", "chunks": chunks}, comment)


def _messages(data: Json) -> list[Json]:
    if not isinstance(data.value, dict):
        return data.entries(_EXPECTED)
    keys = data.keys(_EXPECTED)
    if "messages" not in keys:
        data.refuse("has no 'messages'", _EXPECTED)
    for key in ("tools", "functions"):
        if key in keys and keys[key].value:
            keys[key].refuse("tools cannot be imported", "messages of text only")
    return keys["messages"].entries(_EXPECTED)


def _message(message: Json) -> tuple[str, str, str]:
    """Name, role and text of a message."""
    keys = message.keys('{"role": ..., "content": ...}')
    for key in ("role", "content"):
        if key not in keys:
            message.refuse(f"has no {key!r}", '{"role": ..., "content": ...}')
    for key, value in keys.items():
        # Dumps of answers hold keys such as "refusal" and "tool_calls" that say nothing.
        if key not in ("role", "content", "name") and value.value not in (None, [], {}, "", False):
            value.refuse("cannot be imported", "messages of role and text only")
    role = keys["role"].text()
    if role not in ROLES:
        keys["role"].refuse(f"is {quoted(role)}", f"one of {', '.join(ROLES)}")
    is_named = "name" in keys and keys["name"].value is not None
    return keys["name"].text() if is_named else role, ROLES[role], _content(keys["content"])


def _content(content: Json) -> str:
    """Several parts are joined by line breaks, as servers do for models that read text only."""
    if not isinstance(content.value, list):
        return content.text(_EXPECTED_CONTENT)
    texts = list[str]()
    for part in content.entries(_EXPECTED_CONTENT):
        keys = part.keys('{"type": "text", "text": "..."}')
        kind = keys["type"].value if "type" in keys else None
        if kind != "text" or "text" not in keys:
            shown = quoted(kind) if isinstance(kind, str) else "without a type"
            part.refuse(f"a part {shown} cannot be imported", '{"type": "text", "text": "..."}')
        texts.append(keys["text"].text())
    return "\n".join(texts)
