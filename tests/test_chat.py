"""Chunks with roles read, token for token, as the tokenizer's own chat template writes a conversation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from legraph.chat import dress
from legraph.chattemplate import ChatPieces, cut_chat_template
from legraph.errors import GraphError, TokenizerError
from legraph.graph import Generate, Graph, GraphChunk, build_graph
from legraph.parse import parse_file
from legraph.schema import Role
from legraph.tokens import tokenize
from tests.chat_tokenizers import SPECIAL_TOKENS, chat_tokenizer, plain_tokenizer
from tests.test_tokens import slow_tokenizer

SYSTEM: Role = "system"
USER: Role = "user"
ASSISTANT: Role = "assistant"
BOS_CHUNK = GraphChunk("bos", None)
GENERATE = Generate(4)
FOX = "<|im_start|>system\nYou are a fox.<|im_end|>\n"


def llama(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def chatml(role: str) -> str:
    return f"<|im_start|>{role}\n"


# BOS, preamble, before, after, generation prompt, roles that are trimmed.
EXPECTED: dict[str, tuple[str, str, dict[str, str], dict[str, str], str, set[str]]] = {
    "chatml": (
        "",
        "",
        {role: chatml(role) for role in (SYSTEM, USER, ASSISTANT)},
        dict.fromkeys((SYSTEM, USER, ASSISTANT), "<|im_end|>\n"),
        chatml(ASSISTANT),
        set(),
    ),
    "qwen": (
        "",
        FOX,
        {role: chatml(role) for role in (SYSTEM, USER, ASSISTANT)},
        dict.fromkeys((SYSTEM, USER, ASSISTANT), "<|im_end|>\n"),
        chatml(ASSISTANT),
        set(),
    ),
    "llama3": (
        "<|begin_of_text|>",
        "",
        {role: llama(role) for role in (SYSTEM, USER, ASSISTANT)},
        dict.fromkeys((SYSTEM, USER, ASSISTANT), "<|eot_id|>"),
        llama(ASSISTANT),
        {SYSTEM, USER, ASSISTANT},
    ),
    "gemma": (
        "<bos>",
        "",
        {USER: "<start_of_turn>user\n", ASSISTANT: "<start_of_turn>model\n"},
        dict.fromkeys((USER, ASSISTANT), "<end_of_turn>\n"),
        "<start_of_turn>model\n",
        {USER, ASSISTANT},
    ),
    "mistral": (
        "<s>",
        "",
        {USER: "[INST] ", ASSISTANT: " "},
        {USER: " [/INST]", ASSISTANT: "</s>"},
        "",
        {ASSISTANT},
    ),
    "llama2": (
        "",
        "",
        {USER: "<s>[INST] ", ASSISTANT: " "},
        {USER: " [/INST]", ASSISTANT: " </s>"},
        "",
        {USER, ASSISTANT},
    ),
    "wordy": ("<s>", "", {USER: "Q: ", ASSISTANT: ""}, {USER: " (answer)", ASSISTANT: "</s>"}, "", set()),
    "zephyr": (
        "",
        "",
        {role: f"<{role}>\n" for role in (SYSTEM, USER, ASSISTANT)},
        dict.fromkeys((SYSTEM, USER, ASSISTANT), "</s>\n"),
        "<assistant>\n",
        set(),
    ),
    "phi3": (
        "",
        "",
        {role: f"<|{role}|>\n" for role in (SYSTEM, USER, ASSISTANT)},
        dict.fromkeys((SYSTEM, USER, ASSISTANT), "<|end|>\n"),
        "<|assistant|>\n",
        set(),
    ),
    "reasoner": (
        "<s>",
        "",
        {SYSTEM: "", USER: "<|user|>"},
        {SYSTEM: "", USER: ""},
        "<|assistant|><think>\n",
        set(),
    ),
    "thinking": (
        "",
        "",
        {role: chatml(role) for role in (SYSTEM, USER)},
        dict.fromkeys((SYSTEM, USER), "<|im_end|>\n"),
        chatml(ASSISTANT),
        set(),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_template_is_cut_into_these_pieces(name: str):
    pieces = cut_chat_template(chat_tokenizer(name))
    assert (
        pieces.bos,
        pieces.preamble,
        pieces.before,
        pieces.after,
        pieces.generation_prompt,
        pieces.trims,
    ) == EXPECTED[name]
    assert pieces.closing == ("<|endoftext|>" if name == "phi3" else "")
    assert pieces.before.keys() | pieces.missing.keys() == {SYSTEM, USER, ASSISTANT}


def test_a_default_system_message_with_the_date_is_a_preamble_or_stands_in_front_of_the_system_message():
    pieces = cut_chat_template(chat_tokenizer("llama31"))
    header = f"{llama(SYSTEM)}Knowledge: 2023\nToday: {time.strftime('%d %b %Y')}\n\n"
    assert pieces.bos == "<|begin_of_text|>"
    assert pieces.preamble == header + "<|eot_id|>"
    assert pieces.before == {USER: llama(USER), ASSISTANT: llama(ASSISTANT), SYSTEM: header}


@pytest.mark.parametrize(
    "name, role, reason",
    [
        ("gemma", SYSTEM, "System role not supported"),
        ("gemma3", SYSTEM, "the template writes the system message inside the first user message"),
        ("mistral", SYSTEM, "the template writes the system message inside the first user message"),
        ("llama2", SYSTEM, "the template writes the system message inside the first user message"),
        ("wordy", SYSTEM, "Roles must alternate user/assistant/user/assistant/..."),
        ("half_system", SYSTEM, "it does not write the content of the system message once, in its place"),
        ("reasoner", ASSISTANT, "the template changes the content of the assistant message"),
        ("thinking", ASSISTANT, "depends on its place or its neighbours: user, assistant"),
    ],
)
def test_a_role_that_a_template_cannot_do_is_missing_with_the_reason(name: str, role: Role, reason: str):
    pieces = cut_chat_template(chat_tokenizer(name))
    assert pieces.missing.keys() == {role}
    assert reason in pieces.missing[role]


@pytest.mark.parametrize(
    "name, reason",
    [
        (
            "numbered",
            r"'<\|im_start\|>3user\\n' in front of a later user message, but not in front of the first",
        ),
        ("last_counts", "what it writes after a message depends on what follows"),
        ("shouting", "it does not write the content of the user message once"),
        ("squeezing", r"the template changes the content of the user message, such as 'two\\n\\n  lines"),
        ("left_only", "it changes the white space around the content of the user message"),
        ("broken", "cannot be written chunk by chunk: Expected an expression"),
    ],
)
def test_a_template_that_cannot_be_cut_is_refused_with_the_reason(name: str, reason: str):
    with pytest.raises(TokenizerError, match=reason) as caught:
        cut_chat_template(chat_tokenizer(name))
    assert f"the chat template of tokenizer '{name}' cannot be written" in str(caught.value)
    assert "leave out 'role'" in str(caught.value)


def test_white_space_inside_a_content_that_is_changed_is_found():
    tokenizer = plain_tokenizer(None, "</s>")
    content = r"message.content.replace('\n\n', '\n')"
    tokenizer.chat_template = (
        f"{{% for message in messages %}}{{{{ message.role + {content} }}}}{{% endfor %}}"
    )
    with pytest.raises(TokenizerError, match="changes the content of the user message"):
        cut_chat_template(tokenizer)


def test_a_tokenizer_without_a_chat_template_and_a_slow_one_are_refused():
    with pytest.raises(TokenizerError, match="has no chat template"):
        cut_chat_template(plain_tokenizer())
    with pytest.raises(TokenizerError, match="slow tokenizer"):
        cut_chat_template(slow_tokenizer())


# Conversations as graphs.

FULL = ["chatml", "qwen", "llama3", "llama31", "zephyr", "phi3"]
NO_SYSTEM = ["gemma", "gemma3", "mistral", "llama2"]
NO_WRITTEN_ANSWER = ["thinking", "reasoner"]
CONTENTS = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=12)
    | st.sampled_from([" ", "\n", "\n\n", "\t", "\u3000", "hello", " the quick", "é", "🦊", *SPECIAL_TOKENS]),
    max_size=5,
).map("".join)


def linear(roles: Sequence[Role], contents: Sequence[str], bos: bool = False) -> Graph:
    """A conversation in which each message sees all before it."""
    chunks = [BOS_CHUNK] if bos else []
    for role, content in zip(roles, contents, strict=True):
        chunks.append(GraphChunk(f"m{len(chunks)}", content, tuple(range(len(chunks))), role=role))
    return Graph(tuple(chunks))


def rendered(tokenizer: Any, roles: Sequence[Role], contents: Sequence[str], ask: bool) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=ask, return_dict=False)


def ids(graph: Graph, tokenizer: Any) -> list[int]:
    return tokenize(dress(graph, tokenizer), tokenizer).ids.tolist()


@st.composite
def conversations(draw: st.DrawFn, system: bool, written: bool) -> tuple[list[Role], list[str]]:
    """Roles that alternate from the user on, and contents. The last answer is not empty."""
    length = draw(st.integers(1, 6)) if written else 1
    roles: list[Role] = [ASSISTANT if at % 2 else USER for at in range(length)]
    if system and draw(st.booleans()):
        roles.insert(0, SYSTEM)
    contents = [draw(CONTENTS) for _ in roles]
    if roles[-1] == ASSISTANT:
        contents[-1] += "!"
    return roles, contents


@pytest.mark.parametrize("name", FULL + NO_SYSTEM + NO_WRITTEN_ANSWER)
@settings(max_examples=25)
@given(data=st.data(), bos=st.booleans())
def test_a_conversation_is_what_the_template_makes_of_it(name: str, data: st.DataObject, bos: bool):
    tokenizer = chat_tokenizer(name)
    roles, contents = data.draw(conversations(name not in NO_SYSTEM, name not in NO_WRITTEN_ANSWER))
    # BOS that the text itself starts with is the same one; see below.
    assume(not contents[0].startswith(tokenizer.bos_token or "no BOS"))
    has_bos = name in ("llama3", "llama31", "gemma", "gemma3", "mistral", "llama2", "reasoner")
    expected = rendered(tokenizer, roles, contents, ask=False)
    if name == "phi3":
        assert expected.pop() == tokenizer.eos_token_id
    assert ids(linear(roles, contents, bos=bos and has_bos), tokenizer) == expected


@pytest.mark.parametrize("name", FULL + NO_SYSTEM + NO_WRITTEN_ANSWER)
@settings(max_examples=25)
@given(data=st.data(), how=st.sampled_from(["leaf", "generate"]))
def test_an_empty_answer_is_what_the_template_asks_with(name: str, data: st.DataObject, how: str):
    tokenizer = chat_tokenizer(name)
    roles, contents = data.draw(conversations(name not in NO_SYSTEM, name not in NO_WRITTEN_ANSWER))
    assume(roles[-1] == USER and not contents[0].startswith(tokenizer.bos_token or "no BOS"))
    graph = linear([*roles, ASSISTANT], [*contents, ""])
    generate = GENERATE if how == "generate" else None
    graph = replace(graph, chunks=(*graph.chunks[:-1], replace(graph.chunks[-1], generate=generate)))
    assert ids(graph, tokenizer) == rendered(tokenizer, roles, contents, ask=True)
    lengths = tokenize(dress(graph, tokenizer), tokenizer).lengths()
    assert lengths[-1] > 0, "the model needs a token to start from"


@settings(max_examples=60)
@given(
    name=st.sampled_from(["chatml", "llama3", "gemma", "mistral", "zephyr"]),
    text=CONTENTS,
    completion=CONTENTS.map(lambda text: text + "."),
)
def test_a_text_and_its_completion_are_one_content(name: str, text: str, completion: str):
    tokenizer = chat_tokenizer(name)
    question, answer = linear([USER, ASSISTANT], ["hello", text]).chunks
    dressed = dress(Graph((question, replace(answer, completion=completion))), tokenizer)
    written = "".join((chunk.text or "") + (chunk.completion or "") for chunk in dressed.chunks)
    messages = [{"role": USER, "content": "hello"}, {"role": ASSISTANT, "content": text + completion}]
    assert written == tokenizer.apply_chat_template(messages, tokenize=False)
    assert dressed.chunks[1].text, "a chunk starts with a token of its text"


@pytest.mark.parametrize(
    "name", ["chatml", "qwen", "llama3", "llama31", "zephyr", "phi3", "gemma", "mistral"]
)
@settings(max_examples=20)
@given(data=st.data(), bos=st.booleans())
def test_with_answers_that_are_generated_it_becomes_the_same_conversation(
    name: str, data: st.DataObject, bos: bool
):
    """Answers are put in where the model would write them; the last message is a question."""
    tokenizer = chat_tokenizer(name)
    num_answers = data.draw(st.integers(1, 3))
    roles: list[Role] = [*[USER, ASSISTANT] * num_answers, USER]
    contents = [f"what is {at}?" for at in range(len(roles))]
    graph = linear(roles, contents, bos=bos and name in ("llama3", "llama31", "gemma", "mistral"))
    answers = [i for i, chunk in enumerate(graph.chunks) if chunk.role == ASSISTANT]
    live = [replace(c, text="", generate=GENERATE) if c.role == ASSISTANT else c for c in graph.chunks]
    dressed = dress(replace(graph, chunks=tuple(live)), tokenizer)
    written = "".join(
        (tokenizer.bos_token if chunk.text is None else chunk.text)
        + (f"{' ' * (name == 'mistral')}what is {answers.index(i) * 2 + 1}?" if i in answers else "")
        for i, chunk in enumerate(dressed.chunks)
    )
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert written == expected.removesuffix(tokenizer.eos_token if name == "phi3" else "")


def test_the_message_that_directly_follows_ends_a_generated_answer_once():
    """Two branches that are answered at once, a message that joins them, and one that sees all of it."""
    answer = GraphChunk("", "", role=ASSISTANT, generate=GENERATE)
    graph = Graph(
        (
            GraphChunk("ask", "go", role=USER),
            replace(answer, name="left", parents=(0,)),
            replace(answer, name="right", parents=(0,)),
            GraphChunk("join", "both", (0, 1, 2), role=USER),
            replace(answer, name="end", parents=(0, 1, 2, 3)),
            GraphChunk("note", "plain", (1,)),
        )
    )
    question, prompt = chatml(USER), chatml(ASSISTANT)
    assert texts(graph, "chatml") == [
        f"{question}go<|im_end|>\n",
        prompt,
        prompt,
        f"<|im_end|>\n{question}both<|im_end|>\n",
        prompt,
        "plain",
    ]


# What goes where.


def texts(graph: Graph, name: str) -> list[str | None]:
    return [chunk.text for chunk in dress(graph, chat_tokenizer(name)).chunks]


def test_without_roles_the_graph_comes_back_and_nobody_looks_at_the_template():
    graph = Graph((BOS_CHUNK, GraphChunk("a", "text", (0,))))
    assert dress(graph, object()) is graph


@pytest.mark.parametrize("name", ["qwen", "llama31", "mistral"])
def test_dressing_twice_is_dressing_once(name: str):
    tokenizer = chat_tokenizer(name)
    graph = linear([USER, ASSISTANT, USER], ["a", "b", "c"])
    once = dress(graph, tokenizer)
    assert once != graph
    assert dress(once, tokenizer) is once


def test_all_but_texts_and_completions_stays():
    chunk = GraphChunk("q", "why", (0,), 7, None, GENERATE, None, True, USER)
    graph = Graph((GraphChunk("doc", "the fox"), chunk), "local", "chatml")
    dressed = dress(graph, chat_tokenizer("chatml"))
    assert dressed.chunks[0] == graph.chunks[0], "no role, no markers"
    assert dressed.chunks[1] == replace(chunk, text="<|im_start|>user\nwhy", role=None)
    assert replace(dressed, chunks=()) == replace(graph, chunks=())


def test_a_chunk_that_generates_is_left_open_and_an_answer_may_have_a_beginning():
    answer = replace(linear([USER, ASSISTANT], ["a", " Well, "]).chunks[1], generate=GENERATE)
    graph = Graph((linear([USER], ["a"]).chunks[0], answer))
    assert texts(graph, "chatml")[1] == "<|im_start|>assistant\n Well, "
    assert texts(graph, "llama3")[1] == llama(ASSISTANT) + "Well,"


def test_an_empty_message_that_others_see_is_an_empty_message():
    graph = linear([USER, ASSISTANT, USER], ["a", "", "b"])
    assert texts(graph, "chatml")[1] == "<|im_start|>assistant\n<|im_end|>\n"


def test_an_answer_starts_with_the_generation_prompt_not_with_an_answers_marker():
    assert texts(linear([USER, ASSISTANT], ["a", ""]), "reasoner") == [
        "<s><|user|>a",
        "<|assistant|><think>\n",
    ]


def test_a_default_system_message_stands_in_the_bos_chunk():
    graph = linear([USER, ASSISTANT], ["a", "b"], bos=True)
    assert texts(graph, "qwen")[0] == FOX, "a template without BOS, a tokenizer without one"
    assert texts(graph, "llama31")[0] == cut_text("llama31")
    assert texts(graph, "llama3")[0] is None
    assert texts(graph, "chatml")[0] is None


def cut_text(name: str) -> str:
    pieces = cut_chat_template(chat_tokenizer(name))
    return pieces.bos + pieces.preamble


def test_a_system_chunk_stands_for_the_default_one_wherever_it_is():
    graph = Graph((BOS_CHUNK, GraphChunk("a", "a", (0,), role=USER), GraphChunk("b", "b", (0,), role=SYSTEM)))
    assert texts(graph, "qwen") == [None, f"{chatml(USER)}a<|im_end|>\n", f"{chatml(SYSTEM)}b<|im_end|>\n"]


def test_one_root_takes_what_stands_in_front_even_if_it_has_no_role_and_is_not_the_first():
    graph = Graph((GraphChunk("q", "why", (1,), role=USER), GraphChunk("doc", "the fox")))
    assert texts(graph, "llama3") == [f"{llama(USER)}why<|eot_id|>", "<|begin_of_text|>the fox"]
    assert texts(graph, "qwen")[1] == FOX + "the fox"


@pytest.mark.parametrize("role, after", [(None, ""), (USER, "<|eot_id|>")])
def test_bos_that_the_root_starts_with_is_not_written_twice(role: Role | None, after: str):
    before = llama(USER) if role else ""
    root = GraphChunk("a", "<|begin_of_text|>hello", role=role)
    graph = Graph((root, GraphChunk("b", "b", (0,), role=USER)))
    assert texts(graph, "llama3")[0] == f"<|begin_of_text|>{before}hello{after}"
    assert texts(graph, "llama31")[0] == f"{cut_text('llama31')}{before}hello{after}"


def test_bos_in_every_question_is_not_a_second_one_behind_the_bos_chunk():
    graph = linear([USER, ASSISTANT, USER], ["a", "b", "c"], bos=True)
    expected = [None, "[INST] a [/INST]", " b </s>", "<s>[INST] c [/INST]"]
    assert texts(graph, "llama2") == expected


def parallel(bos: bool = False) -> Graph:
    """Two documents and a question that sees both, all of them messages."""
    roots = (0,) if bos else ()
    shift = len(roots)
    chunks = [GraphChunk("a", "a", roots, role=USER), GraphChunk("b", "b", roots, role=USER)]
    chunks.append(GraphChunk("q", "q", (*roots, shift, shift + 1), role=USER))
    return Graph((BOS_CHUNK, *chunks) if bos else tuple(chunks))


@pytest.mark.parametrize(
    "name, what",
    [
        ("llama3", "BOS"),
        ("qwen", "a default system message"),
        ("llama31", "BOS and a default system message"),
    ],
)
def test_several_roots_cannot_all_have_what_stands_in_front(name: str, what: str):
    tokenizer = chat_tokenizer(name)
    with pytest.raises(GraphError, match=f"starts with {what}, but the graph has 2 roots") as caught:
        dress(parallel(), tokenizer)
    assert "set 'bos: true'" in str(caught.value)
    dress(parallel(bos=True), tokenizer)
    assert texts(parallel(), "chatml")[0] == f"{chatml(USER)}a<|im_end|>\n", (
        "a template with nothing in front"
    )


def test_every_chunk_of_a_role_that_is_missing_is_reported_at_its_role(tmp_path: Path):
    path = tmp_path / "graph.yaml"
    path.write_text(
        "legraph: 1\nbos: true\nchunks:\n"
        "  - {name: s, role: system, text: abc}\n"
        "  - {name: t, text: abc,\n     role: system}\n"
        "  - {name: u, role: user, text: abc}\n"
    )
    with pytest.raises(GraphError, match="System role not supported") as caught:
        dress(build_graph(parse_file(path)), chat_tokenizer("gemma"))
    places = [(found.source.line, found.source.column) for found in caught.value.problems if found.source]
    assert places == [(4, 21), (6, 12)]


def test_an_answer_can_be_had_where_a_written_one_cannot():
    graph = linear([USER, ASSISTANT], ["a", ""])
    assert texts(graph, "thinking")[1] == chatml(ASSISTANT)
    completed = replace(graph.chunks[1], completion="b")
    for chunk in (completed, replace(graph.chunks[1], text="b")):
        with pytest.raises(GraphError, match="chunk 'm1' has 'role: assistant', which"):
            dress(Graph((graph.chunks[0], chunk)), chat_tokenizer("thinking"))


# Templates that write nothing in front of an answer.


def answer(name: str, *parents: int, **changes: Any) -> GraphChunk:
    return replace(GraphChunk(name, "", parents, role=ASSISTANT), **changes)


QUESTION = GraphChunk("q", "why ", role=USER)


def test_answers_take_the_questions_last_marker_for_a_start():
    graph = Graph((QUESTION, answer("a", 0), answer("b", 0, generate=GENERATE)))
    assert texts(graph, "mistral") == ["<s>[INST] why  ", "[/INST]", "[/INST]"]
    assert texts(graph, "wordy") == ["<s>Q: why ", " (answer)", " (answer)"]


def test_the_last_question_in_token_order_gives_its_marker():
    first, last = replace(QUESTION, name="p"), replace(QUESTION, parents=(2,))
    graph = Graph((last, answer("a", 0, 2), first))
    assert texts(graph, "mistral") == ["[INST] why  ", "[/INST]", "<s>[INST] why  [/INST]"]


def test_who_sees_the_question_and_an_answer_sees_the_marker_once_for_each_answer():
    judge = GraphChunk("judge", "which", (0, 1), role=USER)
    graph = Graph((QUESTION, answer("a", 0, generate=GENERATE), judge, answer("end", 0, 1, 2)))
    assert texts(graph, "mistral") == ["<s>[INST] why  ", "[/INST]", "</s>[INST] which ", "[/INST]"]


@pytest.mark.parametrize(
    "chunks, why",
    [
        ([GraphChunk("doc", "fox"), answer("a", 0)], "none of its direct parents is a user's chunk"),
        (
            [replace(QUESTION, generate=GENERATE), answer("a", 0)],
            "none of its direct parents is a user's chunk",
        ),
        (
            [QUESTION, answer("a", 0), GraphChunk("other", "o", (0,), role=USER)],
            "chunk 'other' sees that of 'q' without seeing the answer",
        ),
    ],
)
def test_an_answer_without_a_token_to_start_from_is_an_error(chunks: list[GraphChunk], why: str):
    with pytest.raises(GraphError, match=why) as caught:
        dress(Graph(tuple(chunks)), chat_tokenizer("mistral"))
    assert "the answer 'a' has no token to start from" in str(caught.value)
    dress(Graph(tuple(chunks)), chat_tokenizer("chatml"))


def test_pieces_are_values():
    tokenizer = chat_tokenizer("llama3")
    assert cut_chat_template(tokenizer) == cut_chat_template(tokenizer)
    assert isinstance(cut_chat_template(tokenizer), ChatPieces)
