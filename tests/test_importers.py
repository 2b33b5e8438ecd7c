"""Importers: what comes out is a graph that means what the other format means, worked out a second way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import legraph
from legraph.chat import dress
from legraph.import_messages import messages_text
from legraph.import_pcw import pcw_text
from legraph.import_trie import prefix_tree_text
from legraph.importing import ForeignText, Json, Names
from tests.chat_tokenizers import chat_tokenizer
from tests.command_line import Call
from tests.imported import graph_of, parents_of, paths_of, problems_of, starts_of, texts_of

LETTERS = st.characters(exclude_categories=["Cs"])


def given_json(value: Any) -> Json:
    """Through a text, as a file would be read."""
    return Json.read(ForeignText("given.json", json.dumps(value)))


# Prefix trees.

WORDS = st.sampled_from(["a", "b", " a", "  b", "\n", " ", "a b", "${c}"])
STRINGS = st.lists(WORDS, min_size=1, max_size=6).map("".join)
SEQUENCES = st.lists(STRINGS | st.lists(WORDS, min_size=1, max_size=6), min_size=1, max_size=12)


def joined(sequence: str | list[str]) -> str:
    return sequence if isinstance(sequence, str) else "".join(sequence)


@given(SEQUENCES)
def test_every_sequence_is_the_way_to_a_chunk(sequences: list[str | list[str]]) -> None:
    graph = graph_of(prefix_tree_text(given_json(sequences)))
    paths = paths_of(graph)
    for number, sequence in enumerate(sequences, 1):
        # The first of several that are equal, in segments, gives the name.
        assert f"sequence{number}" not in paths or paths[f"sequence{number}"] == joined(sequence)
        assert joined(sequence) in paths.values()
    leaves = {graph.chunks[i].name for i in graph.leaves()}
    assert all(name.startswith("sequence") for name in leaves)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=8), min_size=1, max_size=12))
def test_what_sequences_share_stands_once_and_nothing_is_cut_without_need(sequences: list[list[str]]) -> None:
    """A chunk ends where a sequence ends, or where two go apart: prefixes, counted one by one."""
    ways = {tuple(sequence) for sequence in sequences}
    prefixes = {way[:n] for way in ways for n in range(1, len(way) + 1)}
    forks = {p for p in prefixes if len({way[len(p)] for way in ways if way[: len(p)] == p and way != p}) > 1}
    graph = graph_of(prefix_tree_text(given_json(sequences)))
    assert sorted(paths_of(graph).values()) == sorted("".join(way) for way in ways | forks)
    assert graph.num_edges() <= 2 * sum(map(len, sequences)), "the file is linear in the segments"


@given(st.lists(st.text(LETTERS, min_size=1, max_size=12), min_size=1, max_size=8))
def test_strings_are_cut_at_white_space_only(strings: list[str]) -> None:
    graph = graph_of(prefix_tree_text(given_json(strings)))
    assert set(strings) <= set(paths_of(graph).values())
    for chunk in graph.chunks:
        assert chunk.text is not None
        assert not chunk.parents or chunk.text[0].isspace()


def test_tokens_and_positions_of_a_way_are_those_of_the_plain_sequence(tmp_path: Path) -> None:
    sequences = ["the fox runs far", "the fox runs home", "the fox", "an owl"]
    path = tmp_path / "tree.yaml"
    path.write_text(prefix_tree_text(given_json(sequences)))
    bundle = legraph.compile_file(path, "bytes")
    for number, sequence in enumerate(sequences, 1):
        last = bundle.span(f"sequence{number}").stop - 1
        seen = np.flatnonzero(bundle.dense_mask()[last])
        assert bundle.input_ids[seen].tolist() == list(sequence.encode())
        assert bundle.position_ids[seen].tolist() == list(range(len(sequence)))


def test_a_deep_tree_is_built_without_recursion() -> None:
    graph = graph_of(prefix_tree_text(given_json([["x"] * n for n in range(1, 600)])))
    assert len(graph.chunks) == 599
    assert len(graph.chunks[-1].parents) == 598


def test_where_sequences_end_is_told() -> None:
    text = prefix_tree_text(given_json(["a", "a b", "a b"]))
    assert "# sequence 1 ends here; others go on\n" in text
    assert "# sequences 2, 3 end here\n" in text


# Parallel context windows.


def test_windows_are_parallel_and_the_task_begins_after_the_longest() -> None:
    graph = graph_of(pcw_text(given_json({"contexts": ["one", "three", "${two}"], "task": "which?"})))
    assert list(texts_of(graph).values()) == ["one", "three", "${two}", "which?"]
    assert list(parents_of(graph).values()) == [[], [], [], ["context1", "context2", "context3"]]
    assert list(starts_of(graph).values()) == [0, 0, 0, len("${two}")]


def test_the_task_may_be_called_a_question() -> None:
    assert texts_of(graph_of(pcw_text(given_json({"contexts": ["a"], "question": "b"})))) == {
        "context1": "a",
        "question": "b",
    }


# Messages.

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who says ${ring}?"},
    {"role": "assistant", "content": "The fox.", "refusal": None, "tool_calls": []},
    {"role": "user", "content": "And hoot?\n\n  Who?"},
]


@pytest.mark.parametrize("template", ["chatml", "llama3"])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_conversation_reads_as_the_chat_template_writes_it(template: str, wrap: bool) -> None:
    tokenizer = chat_tokenizer(template)
    graph = graph_of(
        messages_text(given_json({"messages": CHAT, "model": "m", "tools": []} if wrap else CHAT))
    )
    plain = [{"role": message["role"], "content": message["content"]} for message in CHAT]
    expected = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert "".join(chunk.text or "" for chunk in dress(graph, tokenizer).chunks) == expected
    for i, chunk in enumerate(graph.chunks):
        assert chunk.parents == tuple(range(i)), "each message sees all before it"
    last = graph.chunks[-1]
    assert (last.name, last.generate is not None) == ("answer", True)


def test_parts_names_and_developers() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts, "name": "Ann Lee"},
        {"role": "assistant", "content": "c"},
    ]
    graph = graph_of(messages_text(given_json(messages)))
    assert texts_of(graph) == {"developer": "d", "Ann_Lee": "a\nb", "assistant": "c"}
    assert [chunk.role for chunk in graph.chunks] == ["system", "user", "assistant"]


# What is wrong with JSON files.


@pytest.mark.parametrize(
    ("function", "value", "said"),
    [
        (prefix_tree_text, {}, "given.json: is a mapping"),
        (prefix_tree_text, [], "given.json: is empty"),
        (prefix_tree_text, ["a", ""], "given.json: [1]: is empty"),
        (prefix_tree_text, [["a", 7]], "given.json: [0][1]: is the number 7"),
        (prefix_tree_text, ["\ud800"], "given.json: [0]: holds half of a character"),
        (pcw_text, [], "given.json: is a list"),
        (pcw_text, {"contexts": ["a"]}, "has no 'contexts', or not one of 'task' and 'question'"),
        (pcw_text, {"contexts": ["a"], "task": "b", "question": "c"}, "or not one of"),
        (pcw_text, {"contexts": [None], "task": "b"}, "given.json: contexts[0]: is null"),
        (pcw_text, {"contexts": ["a"], "task": "b", "more": 1}, "given.json: more: unknown key"),
        (messages_text, "hello", "given.json: is the string 'hello'"),
        (messages_text, {"messages": []}, "given.json: messages: is empty"),
        (messages_text, {"prompt": []}, "given.json: has no 'messages'"),
        (messages_text, {"messages": CHAT, "tools": [{}]}, "given.json: tools: tools cannot be imported"),
        (messages_text, [{"role": "tool", "content": "x"}], "given.json: [0].role: is 'tool'"),
        (messages_text, [{"role": "user"}], "given.json: [0]: has no 'content'"),
        (messages_text, [{"role": "user", "content": ""}], "given.json: [0].content: is empty"),
        (
            messages_text,
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "given.json: [0].content[0]: a part 'image_url' cannot be imported",
        ),
        (
            messages_text,
            [{"role": "assistant", "content": "x", "tool_calls": [{}]}],
            "given.json: [0].tool_calls: cannot be imported",
        ),
    ],
)
def test_a_value_that_cannot_be_imported_is_named_by_its_place(function: Any, value: Any, said: str) -> None:
    (problem,) = problems_of(function, given_json(value))
    assert said in problem


def test_all_wrong_entries_are_reported_together() -> None:
    assert len(problems_of(messages_text, given_json([{"role": "tool", "content": "x"}, 7]))) == 2
    assert len(problems_of(prefix_tree_text, given_json(["", 7, "a"]))) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a":\n 1,}', "given.json:2:"),
        ("", "given.json:1:1: broken JSON"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[" * 40 + "]" * 40, "nested deeper than 32 levels"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_json_that_cannot_be_read(text: str, said: str) -> None:
    (problem,) = problems_of(Json.read, ForeignText("given.json", text))
    assert said in problem


@given(
    st.lists(
        st.text(LETTERS, max_size=8) | st.sampled_from(["a", "a_2", "bos", "all-before", "7"]), max_size=9
    )
)
def test_names_are_valid_and_unique(wanted: list[str]) -> None:
    """As parents too: what a file keeps for itself is no chunk's name."""
    names = Names()
    made = [names.new(each) for each in [*wanted, "x" * 300, "x" * 300]]
    chunks: list[dict[str, Any]] = [{"name": name, "text": "x"} for name in made]
    graph = graph_of(
        json.dumps({"legraph": 1, "chunks": [*chunks, {"name": "last_of_all", "text": "y", "parents": made}]})
    )
    assert [chunk.name for chunk in graph.chunks[:-1]] == made
    assert graph.chunks[-1].parents == tuple(range(len(made)))


# The command.

PML = """\
<schema name="s"><module name="m">one</module>${two}</schema>
<prompt schema="s"><m/>three</prompt>
"""


@pytest.fixture
def foreign(tmp_path: Path) -> dict[str, Path]:
    """A file of each format."""
    contents = {
        "pml": PML,
        "pcw": json.dumps({"contexts": ["a", "b"], "task": "c"}),
        "prefix-tree": json.dumps(["a b", "a c"]),
        "messages": json.dumps(CHAT),
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    return {name: tmp_path / name for name in contents}


@pytest.mark.parametrize("name", ["pml", "pcw", "prefix-tree", "messages"])
def test_the_command_writes_a_graph_that_checks(
    name: str, foreign: dict[str, Path], call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out.yaml"
    assert call("import", name, foreign[name], "-o", out).out == f"wrote {out}\n"
    assert call("check", out).code == 0
    printed = call("import", name, foreign[name])
    assert (printed.code, printed.err, printed.out) == (0, "", out.read_text())
    piped = call("import", name, "-", stdin=foreign[name].read_text())
    assert graph_of(piped.out) == graph_of(printed.out)


def test_the_command_replaces_a_file_only_if_told_to(
    foreign: dict[str, Path], call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "out.yaml"
    out.write_text("mine")
    refused = call("import", "pcw", foreign["pcw"], "-o", out)
    assert (refused.code, refused.out, out.read_text()) == (2, "", "mine")
    assert "exists already" in refused.err
    assert call("import", "pcw", foreign["pcw"], "-o", out, "--force").code == 0
    assert out.read_text().startswith("#")


def test_an_older_name_and_what_is_wrong(foreign: dict[str, Path], call: Call) -> None:
    assert call("import", "from-llm-messages", foreign["messages"]).code == 0
    for name in foreign:
        missing = call("import", name, "missing")
        assert (missing.code, missing.err) == (2, "error: missing: no such file\n")
    wrong = call("import", "messages", foreign["pml"])
    assert (wrong.code, wrong.out) == (2, "") and "broken JSON" in wrong.err


def test_importing_loads_nothing_heavy(foreign: dict[str, Path]) -> None:
    program = (
        "import sys; from legraph.import_pml import import_pml; from legraph.import_trie import *; "
        "from legraph.import_pcw import import_pcw; import_pml(sys.argv[1]); import_pcw(sys.argv[2]); "
        "print([name for name in ('numpy', 'torch', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(foreign["pml"]), str(foreign["pcw"])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_page_about_importing_shows_what_the_commands_print(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "importing.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    num_commands = 0
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            if command.startswith("cat "):
                Path(command.removeprefix("cat ")).write_text(shown, encoding="utf-8")
            else:
                num_commands += 1
                assert call(*command.split()[1:]).out == shown
    assert num_commands == 4
