"""Differences of graphs: by hand, and pairs of tokens against sets made from dense masks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.bundle import Bundle
from legraph.compiler import compile_graph
from legraph.diff import Difference, diff, token_difference
from legraph.diffshow import DiffPicture
from legraph.graph import Graph, build_graph
from legraph.parse import parse
from legraph.source import SourceText
from legraph.worddiff import MAX_WORDS_MATCHED, word_diff
from tests.command_line import Call
from tests.random_graphs import bundles, dags, graphs, tokenizer

BEFORE = """\
legraph: 1
tokenizer: bytes
chunks:
  - {name: a, text: aaa}
  - {name: b, text: bb}
  - {name: q, text: "who is there?", parents: [a, b]}
"""


def read(text: str) -> Graph:
    return build_graph(parse(SourceText("g.yaml", text, "yaml", Path())))


def compared(after: str, before: str = BEFORE, tokenizer: Any = None) -> Difference:
    return diff(read(before), read(after), tokenizer)


def picture(found: Difference) -> list[str]:
    return [line.plain for line in DiffPicture(found, "A", "B").lines()]


def test_equal_graphs():
    found = compared(BEFORE)
    assert found.is_empty
    assert picture(found) == ["A and B are equal"]
    without = BEFORE.replace("tokenizer: bytes\n", "")
    assert picture(compared(without, without)) == [
        "A and B are equal; tokens were not compared: no --tokenizer is given"
    ]


def test_a_cut_edge():
    found = compared(BEFORE.replace("[a, b]", "[b]"))
    assert picture(found) == [
        "--- A",
        "+++ B",
        "- q sees a",
        "tokens: 18 -> 18",
        "~ q: position 3 -> 2",
        # Triangles of 3, 2 and 13 tokens; 13 queries by 5 keys, then by 2.
        "visible pairs: 165 -> 126  +0  -39",
        "  q sees a: -39",
    ]


def test_a_new_chunk():
    after = BEFORE.replace("[a, b]", "[a, b, c]") + "  - {name: c, text: cccc}\n"
    assert picture(compared(after)) == [
        "--- A",
        "+++ B",
        "+ chunk c",
        "+ q sees c",
        "tokens: 18 -> 22",
        "~ q: position 3 -> 4",
        "visible pairs: 165 -> 227  +62  -0",
        "  q sees c: +52",
        "  c sees itself: +10",
    ]
    assert picture(compared(BEFORE, after))[2:4] == ["- chunk c", "- q sees c"]


def test_a_changed_text():
    found = compared(BEFORE.replace("who is there?", "who was there?"))
    assert picture(found) == [
        "--- A",
        "+++ B",
        "~ text of q: who [-is -]{+was +}there?",
        "tokens: 18 -> 19",
        "~ q: 13 -> 14 tokens",
        "visible pairs: 165 -> 184  +19  -0",
        "  q sees itself: +14",
        "  q sees a: +3",
        "  q sees b: +2",
    ]
    same_length = compared(BEFORE.replace("bb", "bc"))
    assert picture(same_length)[2:] == [
        "~ text of b: [-bb-]{+bc+}",
        "tokens: 18 -> 18",
        "~ b: 2 tokens, others",
        "visible pairs: 165 -> 165",
    ]


def test_another_order_alone_is_a_difference():
    lines = BEFORE.splitlines(keepends=True)
    after = "".join([*lines[:3], lines[4], lines[3], lines[5]])
    found = compared(after)
    assert found.is_reordered
    assert picture(found)[2] == "~ the chunks that both have stand in another order"
    # The order in which parents are listed means nothing.
    assert compared(BEFORE.replace("[a, b]", "[b, a]")).is_empty


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("legraph: 1\n", "legraph: 1\npositions: flat\n", '~ positions: "causal" -> "flat"'),
        ("tokenizer: bytes\n", "", '~ tokenizer: "bytes" -> none'),
        ("legraph: 1\n", "legraph: 1\nbos: true\n", "~ bos: false -> true"),
        ("text: bb}", "text: bb, start: 7}", "~ start of b: none -> 7"),
        ("text: bb}", "text: bb, end: 7}", "~ end of b: none -> 7"),
        (
            "text: bb}",
            "text: bb, generate: {max_new_tokens: 3, stop: [x]}}",
            '~ generate of b: none -> {"max_new_tokens": 3, "stop": ["x"]}',
        ),
        ("text: bb}", "text: bb, loss: true}", "~ loss of b: false -> true"),
        ("text: bb}", "text: bb, completion: cc}", "~ completion of b: {+cc+}"),
    ],
)
def test_settings(old: str, new: str, line: str):
    found = compared(BEFORE.replace(old, new))
    assert not found.is_empty
    assert picture(found)[2] == line
    assert sum(part.startswith("~") and "position " not in part for part in picture(found)) <= 5
    assert found.added == found.removed == ()


def test_a_role_is_a_setting():
    plain = BEFORE.replace("tokenizer: bytes\n", "")
    found = compared(plain.replace("text: aaa", "text: aaa, role: user"), plain)
    assert picture(found)[2:] == [
        '~ role of a: none -> "user"',
        "tokens were not compared: no --tokenizer is given",
    ]


def token_pairs(bundle: Bundle) -> set[tuple[tuple[str, int], tuple[str, int]]]:
    """The visible pairs, each token as the name of its chunk and its place there."""
    tokens = [
        (name, at)
        for name in bundle.span_names
        for at in range(bundle.span(name).stop - bundle.span(name).start)
    ]
    return {(tokens[q], tokens[k]) for q, k in np.argwhere(bundle.dense_mask()).tolist()}


@settings(max_examples=60)
@given(bundles(8, 4), bundles(8, 4))
def test_visible_pairs_against_dense_masks(before: Bundle, after: Bundle):
    found = token_difference(before, after)
    a, b = token_pairs(before), token_pairs(after)
    assert found.visible_pairs == (len(a), len(b))
    assert (found.became_visible, found.became_hidden) == (len(b - a), len(a - b))
    chunk_pairs = {(q[0], k[0]) for q, k in a ^ b}
    assert {(each.query, each.key) for each in found.pairs} == chunk_pairs
    for each in found.pairs:
        expected = [sum((q[0], k[0]) == (each.query, each.key) for q, k in pairs) for pairs in (b - a, a - b)]
        assert [each.became_visible, each.became_hidden] == expected
    sizes = [each.became_visible + each.became_hidden for each in found.pairs]
    assert sizes == sorted(sizes, reverse=True)
    # Back again it is the same, the other way round.
    back = token_difference(after, before)
    assert (back.became_visible, back.became_hidden) == (found.became_hidden, found.became_visible)


@settings(max_examples=40)
@given(bundles(8, 4), bundles(8, 4))
def test_tokens_and_positions_chunk_by_chunk(before: Bundle, after: Bundle):
    found = token_difference(before, after)
    common = [name for name in before.span_names if name in after.span_names]

    def held(bundle: Bundle, name: str, key: str) -> list[int]:
        return getattr(bundle, key)[bundle.span(name)].tolist()

    other_tokens = [
        name for name in common if held(before, name, "input_ids") != held(after, name, "input_ids")
    ]
    assert [each.chunk for each in found.resized] == other_tokens
    firsts = {name: [held(each, name, "position_ids")[0] for each in (before, after)] for name in common}
    expected = [(name, *first) for name, first in firsts.items() if first[0] != first[1]]
    assert [tuple(each) for each in found.moved] == expected


@settings(max_examples=40)
@given(graphs(dags(max_chunks=8, max_length=3)))
def test_a_graph_is_equal_to_itself_in_every_form(graph: Graph):
    bundle = compile_graph(graph, tokenizer())
    assert diff(graph, graph).is_empty
    assert diff(graph, graph, tokenizer()).is_empty
    assert diff(bundle, bundle).is_empty
    assert diff(graph, bundle, tokenizer()).is_empty
    assert diff(bundle, graph).is_empty


@settings(max_examples=40)
@given(graphs(dags(max_chunks=8, max_length=3), plain=True), st.data())
def test_edges_taken_out_are_the_edges_removed(graph: Graph, data: st.DataObject):
    chunks = list(graph.chunks)
    expected = list[tuple[str, str]]()
    for i, chunk in enumerate(chunks):
        kept = [parent for parent in chunk.parents if data.draw(st.booleans())]
        expected += [(chunk.name, chunks[parent].name) for parent in chunk.parents if parent not in kept]
        chunks[i] = replace(chunk, parents=tuple(kept))
    found = diff(graph, replace(graph, chunks=tuple(chunks)), tokenizer())
    assert list(found.removed_edges) == sorted(expected)
    assert found.added_edges == ()
    assert found.tokens is not None
    assert found.tokens.became_visible == 0
    assert {(each.query, each.key) for each in found.tokens.pairs} == set(expected)


words = st.lists(st.sampled_from(["a ", "b ", "c\n", "  ", "dd"]), max_size=12).map("".join)


@given(words, words)
def test_words_put_together_again_are_the_texts(before: str, after: str):
    """But for the words left out, which both have."""
    parts = list(word_diff(before, after))
    for text, own in ((before, "removed"), (after, "added")):
        own_parts = [part for part in parts if part.kind in ("same", "skipped", own)]
        pattern = "".join(".+" if kind == "skipped" else re.escape(run) for kind, run in own_parts)
        assert re.fullmatch(pattern, text, re.DOTALL)
    assert any(kind in ("removed", "added") for kind, _ in parts) == (before != after)


def test_words_far_from_a_change_are_left_out():
    many = " ".join(f"w{i}" for i in range(100))
    assert list(word_diff(many, many.replace("w50 ", "x "))) == [
        ("skipped", "..."),
        ("same", "w47 w48 w49 "),
        ("removed", "w50 "),
        ("added", "x "),
        ("same", "w51 w52 w53 "),
        ("skipped", "..."),
    ]


def test_texts_too_long_to_match_word_by_word_are_replaced_as_a_whole():
    """Beyond the limit, the middle is one change, though every other word is the same."""
    size = MAX_WORDS_MATCHED + 1
    before = "first " + "".join(f"w{i} " for i in range(size)) + "last"
    after = "first " + "".join(f"w{i} " if 0 < i < size - 1 and i % 2 else "x " for i in range(size)) + "last"
    assert [kind for kind, _ in word_diff(before, after)] == ["same", "removed", "added", "same"]
    shorter = before.split(" ", 3)[3], after.split(" ", 3)[3]
    assert sum(kind == "removed" for kind, _ in word_diff(*shorter)) > 100


def test_long_lists_are_cut():
    chunks = "".join(f"  - {{name: c{i}, text: c}}\n" for i in range(23))
    after = BEFORE.replace("[a, b]", f"[a, b, {', '.join(f'c{i}' for i in range(23))}]") + chunks
    lines = picture(compared(after))
    assert [line for line in lines if "more" in line] == [
        "  ... and 3 more added chunks",
        "  ... and 3 more added edges",
        "  ... and 26 more pairs of chunks",
    ]


def test_control_characters_do_not_reach_a_terminal():
    after = BEFORE.replace("who is there?", "who \\e[31m there?\\n")
    line = next(line for line in picture(compared(after)) if "text of q" in line)
    assert line == "~ text of q: who [-is there?-]{+\\x1b[31m there?\\n+}"


def test_which_tokenizer_compares():
    plain = BEFORE.replace("tokenizer: bytes\n", "")
    assert compared(plain, plain).tokens is None
    found = compared(plain, plain, tokenizer())
    assert found.tokens is not None
    assert found.tokens.num_tokens == (18, 18)
    # One file names its own: the other is compiled as it would be by itself, with recall's.
    found = compared(plain)
    recall = len(compile_graph(read(plain)))
    assert found.tokens is not None
    assert found.tokens.num_tokens == (18, recall)
    # A graph beside a bundle takes the bundle's.
    assert diff(compile_graph(read(BEFORE)), read(plain)).is_empty
    found = diff(compile_graph(read(plain)), read(BEFORE))
    assert {change.key for change in found.settings} == {"tokenizer", "tokenizer_fingerprint"}


def test_bundles_with_other_labels():
    learned = BEFORE.replace('there?"', 'there?", loss: true')
    found = diff(compile_graph(read(BEFORE)), compile_graph(read(learned)))
    assert {(change.chunk, change.key) for change in found.settings} == {
        ("a", "labels"),
        ("b", "labels"),
        ("q", "labels"),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(BEFORE)
    (tmp_path / "b.yaml").write_text(BEFORE.replace("[a, b]", "[b]"))
    (tmp_path / "broken.yaml").write_text("legraph: 1\nchunks: [{name: a}]")
    return tmp_path


def test_the_exit_code(folder: Path, call: Call):
    a, b, broken = (folder / f"{name}.yaml" for name in ("a", "b", "broken"))
    done = call("diff", a, a)
    assert (done.code, done.out) == (0, f"{a} and {a} are equal\n")
    done = call("diff", a, b)
    assert (done.code, done.out.splitlines()[:3]) == (1, [f"--- {a}", f"+++ {b}", "- q sees a"])
    assert call("diff", a, broken).code == 2
    assert call("diff", "-", "-").code == 2
    assert call("diff", "-", a, stdin=BEFORE).code == 0


def test_bundles_and_graphs_mix(folder: Path, call: Call):
    a, b = (folder / f"{name}.yaml" for name in ("a", "b"))
    bundle = folder / "a.npz"
    assert call("compile", a, "-o", bundle).code == 0
    assert call("diff", bundle, a).code == 0
    assert call("diff", bundle, bundle).code == 0
    assert call("diff", b, bundle).code == 1


def test_the_difference_for_programs(folder: Path, call: Call):
    a, b = (folder / f"{name}.yaml" for name in ("a", "b"))
    assert json.loads(call("diff", a, b, "--json").out) == {
        "a": str(a),
        "b": str(b),
        "equal": False,
        "settings": [],
        "added": [],
        "removed": [],
        "reordered": False,
        "texts": [],
        "added_edges": [],
        "removed_edges": [{"child": "q", "parent": "a"}],
        "tokens": {
            "num_tokens": [18, 18],
            "visible_pairs": [165, 126],
            "became_visible": 0,
            "became_hidden": 39,
            "resized": [],
            "moved": [{"chunk": "q", "before": 3, "after": 2}],
            "pairs": [{"query": "q", "key": "a", "became_visible": 0, "became_hidden": 39}],
        },
    }
    data = call("diff", a, b, "--json", "--tokenizer", "recall").data()
    assert data["tokens"]["num_tokens"] != [18, 18]
