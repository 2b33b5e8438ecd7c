"""The picture of a graph: golden text for small ones, folding for large ones, and the summary's figures."""

from __future__ import annotations

import io
import json
import random
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.errors import MarkupError

from legraph.bundle import Bundle
from legraph.compiler import compile_graph
from legraph.graph import Generate, Graph, GraphChunk
from legraph.outline import MAX_LINES, MAX_SIBLINGS, MAX_UNFOLDED_CHUNKS, fold_names
from legraph.show import summary, tree
from legraph.tokens import bytes_tokenizer

BYTES = bytes_tokenizer()


def bundle_of(*chunks: tuple[str, str, list[str]], generate: dict[str, Generate] | None = None) -> Bundle:
    """(name, text, names of parents) with one token a byte."""
    index_by_name = {name: i for i, (name, _, _) in enumerate(chunks)}
    made = [
        GraphChunk(name, text, tuple(index_by_name[parent] for parent in parents))
        for name, text, parents in chunks
    ]
    made = [replace(chunk, generate=(generate or {}).get(chunk.name)) for chunk in made]
    return compile_graph(Graph(tuple(made)), BYTES)


def drawn(bundle: Bundle, tokenizer: object = BYTES, width: int = 100, encoding: str = "utf-8") -> list[str]:
    """The picture's lines as a terminal without colours shows them."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    Console(file=file, width=width, color_system=None).print(tree(bundle, tokenizer))
    file.flush()
    return raw.getvalue().decode(encoding).splitlines()


def picture(bundle: Bundle, tokenizer: object = BYTES) -> list[str]:
    """The lines before the footer."""
    lines = drawn(bundle, tokenizer)
    return lines[: lines.index("")]


def text(lines: str) -> list[str]:
    """A golden text without its first and last newline."""
    return lines.removeprefix("\n").removesuffix("\n").split("\n")


# Small graphs, drawn whole.


def test_a_question_over_two_documents_with_a_shared_head():
    bundle = bundle_of(
        ("head", "Facts:", []),
        ("doc1", "The fox says ring.", ["head"]),
        ("doc2", "The owl says hoot.", ["head"]),
        ("question", "What says the fox?", ["head", "doc1", "doc2"]),
        generate={"question": Generate(max_new_tokens=16)},
    )
    # 6 + 18 + 18 + 18 tokens. Visible pairs: triangles 21 + 3 * 171; rectangles 2 * 18 * 6 + 18 * 42.
    # 21 + 513 + 216 + 756 = 1506 of 60 * 61 / 2 = 1830.
    assert drawn(bundle) == text("""
question  18 tokens  at 24..41  ▸ max 16  "What says the fox?"
├── head  6 tokens  at 0..5  "Facts:"
├── doc1  18 tokens  at 6..23  ↑ head  "The fox says ring."
└── doc2  18 tokens  at 6..23  ↑ head  "The owl says hoot."

60 tokens, 4 chunks, 5 edges, 1 leaf, causal positions
density 82.3% (dense): 1,506 visible of 1,830 causal pairs
1 of 1 active 128 x 128 blocks: 100% of the arithmetic of full causal attention
""")


def test_one_chunk_of_one_token():
    assert drawn(bundle_of(("only", "a", []))) == text("""
only  1 token  at 0  "a"

1 token, 1 chunk, 0 edges, 1 leaf, causal positions
density 100% (fully causal): 1 visible of 1 causal pair
1 of 1 active 128 x 128 blocks: 100% of the arithmetic of full causal attention
""")


def test_a_diamond_draws_its_top_once():
    bundle = bundle_of(("a", "a", []), ("b", "b", ["a"]), ("c", "c", ["a"]), ("d", "d", ["b", "c"]))
    assert picture(bundle) == text("""
d  1 token  at 2  "d"
├── b  1 token  at 1  "b"
│   └── a  1 token  at 0  "a"
└── c  1 token  at 1  ↑ a  "c"
""")


def test_leaves_stand_at_the_margin_and_share_what_is_drawn():
    bundle = bundle_of(
        ("doc", "abc", []),
        ("note", "no", ["doc"]),
        ("left", "l?", ["note"]),
        ("right", "r?", ["doc", "note"]),
    )
    assert picture(bundle) == text("""
left  2 tokens  at 5..6  "l?"
└── note  2 tokens  at 3..4  "no"
    └── doc  3 tokens  at 0..2  "abc"
right  2 tokens  at 5..6  ↑ doc, note  "r?"
""")


def test_many_references_are_one_word():
    names = [f"example{i}" for i in range(6)]
    bundle = bundle_of(*((name, "ab", names[:i]) for i, name in enumerate(names)))
    assert picture(bundle) == text("""
example5  2 tokens  at 10..11  "ab"
├── example0  2 tokens  at 0..1  "ab"
├── example1  2 tokens  at 2..3  ↑ example0  "ab"
├── example2  2 tokens  at 4..5  ↑ example0, example1  "ab"
├── example3  2 tokens  at 6..7  ↑ example0, example1, example2  "ab"
└── example4  2 tokens  at 8..9  ↑ example[0..3]  "ab"
""")


def test_references_without_a_common_word_are_counted():
    names = ["ant", "bee", "cat", "dog", "eel"]
    lines = picture(bundle_of(*((name, "ab", names[:i]) for i, name in enumerate(names)), ("f", "f", names)))
    assert lines[-1] == '└── eel  2 tokens  at 8..9  ↑ ant, bee, cat and 1 more  "ab"'


def test_a_longer_chain_is_flat_and_its_root_keeps_its_parents_under_it():
    bundle = bundle_of(
        ("a", "a", []),
        ("b", "bb", []),
        ("s1", "1", ["a", "b"]),
        ("s2", "2", ["s1"]),
        ("s3", "3", ["s2"]),
        ("s4", "4", ["s3"]),
        ("x", "x", []),
        ("q", "q", ["s4", "x"]),
    )
    assert picture(bundle) == text("""
q  1 token  at 6  "q"
├── s4  1 token  at 5  "4"
│   ╰─ s3  1 token  at 4  "3"
│   ╰─ s2  1 token  at 3  "2"
│   ╰─ s1  1 token  at 2  "1"
│      ├── a  1 token  at 0  "a"
│      └── b  2 tokens  at 0..1  "bb"
└── x  1 token  at 0  "x"
""")


def test_what_would_nest_too_deep_goes_on_at_the_margin():
    # 11 layers of two chunks; each chunk sees both of the layer before.
    layers = [
        (f"l{i}.{side}", side, [f"l{i - 1}.a", f"l{i - 1}.b"][: 2 * i]) for i in range(11) for side in "ab"
    ]
    lines = picture(bundle_of(*layers, ("q", "q", ["l10.a", "l10.b"])))
    assert len(lines) == 23
    at = next(i for i, line in enumerate(lines) if "↓" in line)
    # The eighth level below and including the margin: q, l10, l9, ..., l4.
    assert re.fullmatch(r"(│   ){6}├── l4\.a  1 token  at 4  ↓ l3\.a, l3\.b  \"a\"", lines[at])
    margin = [line for line in lines if line[0] not in "├│└ "]
    assert [line.split("  ")[0] for line in margin] == ["q", "↓ l3.a", "↓ l3.b"]


# Any small graph: the picture says exactly which chunks and edges there are.


def edges_in(lines: list[str]) -> tuple[list[str], set[tuple[str, str]]]:
    """Reads a picture back: the names in it, and its (parent, child) pairs."""
    names, edges = list[str](), set[tuple[str, str]]()
    columns = list[int]()
    for line in lines:
        guides = re.match(r"[│├└╰─ ]*", line).group()
        head = re.fullmatch(r'(?:↓ )?(\S+)  .*?(?:  ↑ (.*?))?(?:  ↓ (.*?))?  ".*', line[len(guides) :])
        name, *references = head.groups()
        if guides.endswith("╰─ "):
            edges.add((name, names[-1]))
        elif guides:
            owner = max(i for i, column in enumerate(columns) if column == len(guides) - 4)
            edges.add((name, names[owner]))
        for reference in filter(None, references):
            edges |= {(parent, name) for parent in unfolded(reference)}
        names.append(name)
        columns.append(len(guides))
    return names, edges


def unfolded(reference: str) -> list[str]:
    """`a, b` or `n[3..5]` as names."""
    folded = re.fullmatch(r"n\[(\d+)\.\.(\d+)\]", reference)
    if folded:
        return [f"n{i}" for i in range(int(folded[1]), int(folded[2]) + 1)]
    listed = re.fullmatch(r"n\{([\d,]+)\}", reference)
    if listed:
        return [f"n{i}" for i in listed[1].split(",")]
    return reference.split(", ")


@st.composite
def small_graphs(draw: st.DrawFn) -> list[list[int]]:
    """Parents of each chunk: at most three, which are all named, and too few chunks for a list to be cut."""
    num_chunks = draw(st.integers(1, min(MAX_UNFOLDED_CHUNKS, MAX_SIBLINGS + 1)))
    return [sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(num_chunks)]


@given(small_graphs())
@settings(max_examples=150, deadline=None)
def test_every_chunk_is_drawn_once_and_every_edge_is_there(parents: list[list[int]]):
    bundle = bundle_of(*((f"n{i}", "x", [f"n{p}" for p in row]) for i, row in enumerate(parents)))
    names, edges = edges_in(picture(bundle))
    assert sorted(names) == sorted(f"n{i}" for i in range(len(parents)))
    assert edges == {(f"n{p}", f"n{i}") for i, row in enumerate(parents) for p in row}


# Large graphs.


def test_alike_siblings_share_a_line():
    docs = [f"doc{i}" for i in range(500)]
    bundle = bundle_of(
        ("head", "h", []), *((doc, "abcdefg", ["head"]) for doc in docs), ("q", "who", ["head", *docs])
    )
    assert drawn(bundle) == text("""
q  3 tokens  at 8..10  "who"
├── head  1 token  at 0  "h"
└── doc[0..499] x500  3,500 tokens  at 1..7  ↑ head  "abcdefg"

3,504 tokens, 502 chunks, 1,001 edges, 1 leaf, causal positions
density 0.456% (very sparse): 28,010 visible of 6,140,760 causal pairs
102 of 784 active 128 x 128 blocks: 25.1% of the arithmetic of full causal attention
""")


@pytest.mark.parametrize("difference", ["length", "parents", "children", "generate"])
def test_siblings_that_differ_do_not_share_a_line(difference: str):
    docs = [f"doc{i}" for i in range(40)]
    graph = {doc: ["head"] for doc in docs}
    if difference == "parents":
        graph["doc7"] = ["head", "other"]
    chunks = [(doc, "x" * (2 if difference == "length" and doc == "doc7" else 1), graph[doc]) for doc in docs]
    late = [("late", "l", ["doc7"])] if difference == "children" else []
    bundle = bundle_of(
        ("head", "h", []),
        ("other", "o", []),
        *chunks,
        ("q", "q", ["other", *docs]),
        *late,
        generate={"doc7": Generate()} if difference == "generate" else None,
    )
    lines = [line for line in picture(bundle) if "doc" in line.split("  ")[0]]
    assert [re.sub("[├└│─ ]", "", line.split("  ")[0]) for line in lines] == ["doc0...doc39x39", "doc7"]


def test_up_to_thirty_chunks_nothing_is_folded():
    docs = [f"doc{i}" for i in range(MAX_UNFOLDED_CHUNKS - 1)]
    chunks = [(doc, "same", list[str]()) for doc in docs]
    whole = picture(bundle_of(*chunks[:20], ("q", "q", docs[:20])))
    assert len(whole) == 21
    folded = picture(bundle_of(*chunks, ("extra", "other", []), ("q", "q", [*docs, "extra"])))
    assert len(folded) == 3


def test_unlike_siblings_are_cut_and_counted():
    docs = [f"doc{i}" for i in range(200)]
    bundle = bundle_of(*((doc, "x" * (i + 1), []) for i, doc in enumerate(docs)), ("q", "q", docs))
    lines = picture(bundle)
    assert len(lines) == 1 + MAX_SIBLINGS + 1
    # doc24 to doc199, with 25 to 200 tokens.
    assert lines[-1] == "└── ... and 176 more  19,800 tokens"
    assert sum(range(25, 201)) == 19_800


def test_ten_thousand_alike_leaves_are_one_line():
    bundle = bundle_of(("root", "r", []), *((f"leaf{i}", "ab", ["root"]) for i in range(10_000)))
    assert picture(bundle) == text("""
leaf[0..9999] x10000  20,000 tokens  at 1..2  "ab"
└── root  1 token  at 0  "r"
""")


def test_ten_thousand_unlike_leaves_are_cut():
    pairs = [
        chunk for i in range(10_000) for chunk in ((f"d{i}", "d", list[str]()), (f"q{i}", "q", [f"d{i}"]))
    ]
    lines = picture(bundle_of(*pairs))
    assert lines[:2] == ['q0  1 token  at 1  "q"', '└── d0  1 token  at 0  "d"']
    assert len(lines) == 2 * MAX_SIBLINGS + 1
    assert lines[-1] == "... and 9,976 more  9,976 tokens"


def test_a_chain_of_ten_thousand_alike_links_is_one_line():
    chunks = [(f"step{i}", "abcd", [f"step{i - 1}"] if i else []) for i in range(10_000)]
    assert picture(bundle_of(*chunks)) == [
        'step[0..9999] x10000 chain  40,000 tokens  at 0..39999  "abcd"',
    ]


def test_a_chain_of_ten_thousand_unlike_links_is_flat_and_cut_in_the_middle():
    chunks = [(f"step{i}", "x" * (1 + i % 2), [f"step{i - 1}"] if i else []) for i in range(10_000)]
    lines = picture(bundle_of(*chunks))
    assert len(lines) == MAX_SIBLINGS + 1
    assert lines[0] == 'step9999  2 tokens  at 14998..14999  "xx"'
    assert lines[1] == '╰─ step9998  1 token  at 14997  "x"'
    assert lines[-1] == '╰─ step0  1 token  at 0  "x"'
    assert "╰─ ... and 9,976 more  14,964 tokens" in lines
    assert {len(re.match("[╰─ ]*", line).group()) for line in lines[1:]} == {3}


def test_a_chain_under_a_shared_root_is_still_a_chain():
    chunks = [(f"s{i}", "abcd", ["bos", f"s{i - 1}"] if i else ["bos"]) for i in range(100)]
    assert picture(bundle_of(("bos", "b", []), *chunks)) == text("""
s99  4 tokens  at 397..400  "abcd"
├── bos  1 token  at 0  "b"
└── s[0..98] x99 chain  396 tokens  at 1..396  ↑ bos  "abcd"
""")


def test_a_deep_diamond_of_alike_layers_is_one_line():
    chunks = [
        (f"l{i}_{side}", "abcd", [f"l{i - 1}_a", f"l{i - 1}_b"] if i else [])
        for i in range(500)
        for side in "ab"
    ]
    assert picture(bundle_of(*chunks)) == [
        'l[0..499]_{a,b} x1000 chain of 500 layers  4,000 tokens  at 0..1999  "abcd"'
    ]


def test_a_deep_diamond_of_unlike_layers_stays_within_two_pages():
    chunks = [
        (f"l{i}_{side}", "x" if side == "a" else "xx", [f"l{i - 1}_a", f"l{i - 1}_b"] if i else [])
        for i in range(500)
        for side in "ab"
    ]
    lines = picture(bundle_of(*chunks))
    assert len(lines) == MAX_LINES + 1
    named = [re.search(r"l\d+_[ab]", line).group() for line in lines[:-1]]
    assert len(set(named)) == MAX_LINES
    tokens_left = 500 * (1 + 2) - sum(1 if name.endswith("a") else 2 for name in named)
    assert lines[-1] == f"... and 900 more  {tokens_left:,} tokens"
    assert max(len(re.match("[│├└─ ]*", line).group()) for line in lines) <= 40


@pytest.mark.parametrize("seed", range(5))
def test_a_large_random_graph_counts_every_chunk_that_it_does_not_name(seed: int):
    rng = random.Random(seed)
    num_chunks = 3000
    chunks = [
        (
            f"n{i}",
            "x" * rng.randint(1, 3),
            sorted({f"n{rng.randrange(max(0, i - 50), i)}" for _ in range(rng.randint(1, 3))} if i else []),
        )
        for i in range(num_chunks)
    ]
    lines = picture(bundle_of(*chunks))
    assert len(lines) <= MAX_LINES + 1
    cut = re.compile(r"\.\.\. and ([\d,]+) more")
    counted = [int(cut.search(line)[1].replace(",", "")) for line in lines if cut.search(line)]
    folded = [int(size) for line in lines for size in re.findall(r" x(\d+)", line.split("  ")[0])]
    single = sum(" x" not in line and not cut.search(line) for line in lines)
    assert sum(counted) + sum(folded) + single == num_chunks


# Names.


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["doc0", "doc1", "doc2"], "doc[0..2]"),
        (["doc9", "doc10", "doc11"], "doc[9..11]"),
        (["doc08", "doc09", "doc10"], "doc[08..10]"),
        (["a.x", "a.y"], "a.{x,y}"),
        (["l0_a", "l0_b", "l1_a", "l1_b"], "l[0..1]_{a,b}"),
        (["n1", "n7"], "n{1,7}"),
        (["only"], "only"),
        (["l0_a", "l1_b"], None),
        (["doc1", "doc01"], "doc{1,01}"),
        (["doc07", "doc8", "doc09", "doc10"], None),
        (["ant", "bee2"], None),
        (["n1", "n3", "n5", "n7"], None),
        (["ant", "bee", "cat", "dog"], None),
    ],
)
def test_names_fold_into_a_word_that_stands_for_exactly_them(names: list[str], word: str | None):
    assert fold_names(names) == word


# Texts that a terminal would obey, and tokenizers that are not there.


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[bold]no[/bold]", "[bold]no[/bold]"),
        ("[/]", "[/]"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ('say "hi"', r"say \"hi\""),
        ("back\\slash", r"back\\slash"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("naïve ☕", "naïve ☕"),
        ("<|eot|>", "<|eot|>"),
    ],
)
def test_previews_show_what_is_written(written: str, shown: str):
    try:
        lines = picture(bundle_of(("a.b-c_", written, [])))
    except MarkupError:
        pytest.fail("a chunk's text was read as markup")
    assert lines[0].endswith(f'  "{shown}"')


def test_a_preview_is_the_first_twenty_tokens_and_never_half_a_character():
    assert picture(bundle_of(("a", "x" * 20, [])))[0].endswith(f'"{"x" * 20}"')
    assert picture(bundle_of(("a", "x" * 21, [])))[0].endswith(f'"{"x" * 20}..."')
    # The twentieth byte is the first of the two of é.
    assert picture(bundle_of(("a", "x" * 19 + "é", [])))[0].endswith(f'"{"x" * 19}..."')


def test_lines_are_cut_at_the_terminals_width_not_wrapped():
    bundle = bundle_of(("a_rather_long_name", "x" * 100, []), ("q", "q", ["a_rather_long_name"]))
    lines = drawn(bundle, width=50)
    assert len(lines) == 2 + 4
    assert lines[1].startswith("└── a_rather_long_name  100 tokens  at 0..99  ")
    assert len(lines[1]) == 50


def test_a_terminal_without_unicode_gets_ascii():
    bundle = bundle_of(("a", "é", []), ("b", "b", ["a"]), ("c", "c", ["a", "b"]))
    lines = drawn(bundle, encoding="ascii")
    assert lines[:3] == text(r"""
c  1 token  at 3  "c"
+-- a  2 tokens  at 0..1  "\xe9"
`-- b  1 token  at 2  ^ a  "b"
""")


@pytest.mark.parametrize("name", ["/nowhere/at-all", "bytes"])
def test_without_the_bundles_tokenizer_there_is_no_preview(name: str):
    """The tokenizer cannot be loaded, or is not the one that made the bundle."""
    bundle = bundle_of(("a", "abc", []))
    meta = replace(bundle.meta, tokenizer=name, tokenizer_fingerprint="0" * 64)
    bundle = replace(bundle, meta=meta)
    assert picture(bundle, tokenizer=None) == ["a  3 tokens  at 0..2"]
    assert summary(bundle)["chunks"][0]["preview"] is None


def test_the_bundles_own_tokenizer_is_found():
    assert picture(bundle_of(("a", "abc", [])), tokenizer=None) == ['a  3 tokens  at 0..2  "abc"']


def test_ids_that_the_tokenizer_does_not_know_give_no_preview():
    bundle = bundle_of(("a", "abc", []))
    bundle = replace(bundle, input_ids=bundle.input_ids + 10_000)
    assert picture(bundle) == ["a  3 tokens  at 0..2"]


def test_drawing_prints_nothing(capsys: pytest.CaptureFixture[str]):
    tree(bundle_of(("a", "abc", [])), BYTES)
    assert capsys.readouterr() == ("", "")


# The summary.


def test_summary_of_a_small_graph():
    bundle = bundle_of(
        ("head", "Facts:", []),
        ("doc", "The fox says ring.", ["head"]),
        ("question", "Who?", ["head", "doc"]),
        generate={"question": Generate(max_new_tokens=16, stop=("\n",))},
    )
    assert summary(bundle, BYTES) == {
        "num_tokens": 28,
        "num_chunks": 3,
        "num_edges": 3,
        "num_leaves": 1,
        "positions": "causal",
        "tokenizer": "bytes",
        "visible_pairs": 406,
        "causal_pairs": 406,
        "density": 1.0,
        "blocks": {"block_size": 128, "active": 1, "full": 0, "causal": 1, "all": 1},
        "arithmetic": 1.0,
        "chunks": [
            {
                "name": "head",
                "num_tokens": 6,
                "span": [0, 6],
                "positions": [0, 6],
                "parents": [],
                "generate": None,
                "preview": "Facts:",
            },
            {
                "name": "doc",
                "num_tokens": 18,
                "span": [6, 24],
                "positions": [6, 24],
                "parents": ["head"],
                "generate": None,
                "preview": "The fox says ring.",
            },
            {
                "name": "question",
                "num_tokens": 4,
                "span": [24, 28],
                "positions": [24, 28],
                "parents": ["head", "doc"],
                "generate": {
                    "max_new_tokens": 16,
                    "stop": ("\n",),
                    "temperature": None,
                    "top_k": None,
                    "top_p": None,
                    "seed": None,
                },
                "preview": "Who?",
            },
        ],
    }


@pytest.mark.parametrize("seed", range(10))
def test_summary_counts_what_the_dense_mask_holds(seed: int):
    rng = random.Random(seed)
    chunks = [
        (f"n{i}", "x" * rng.randint(1, 90), [f"n{p}" for p in range(i) if rng.random() < 0.2])
        for i in range(rng.randint(1, 25))
    ]
    bundle = bundle_of(*chunks)
    found = summary(bundle, BYTES)
    mask = bundle.dense_mask()
    n = len(mask)
    edges = np.append(np.arange(0, n, 128), n)
    blocks = [
        mask[top:bottom, left:right] for top, bottom in pairwise(edges) for left, right in pairwise(edges)
    ]
    assert json.loads(json.dumps(found))["num_tokens"] == n
    assert found["num_edges"] == sum(len(parents) for _, _, parents in chunks)
    assert found["num_leaves"] == len(
        {name for name, _, _ in chunks} - {p for _, _, row in chunks for p in row}
    )
    assert found["visible_pairs"] == mask.sum()
    assert found["causal_pairs"] == np.tri(n, dtype=bool).sum()
    assert found["density"] == pytest.approx(mask.sum() / np.tri(n).sum())
    assert found["blocks"]["active"] == sum(block.any() for block in blocks)
    assert found["blocks"]["full"] == sum(block.size == 128 * 128 and block.all() for block in blocks)
    assert found["blocks"]["all"] == len(blocks)
    causal = sum(i >= j for i in range(len(edges) - 1) for j in range(len(edges) - 1))
    assert found["arithmetic"] == pytest.approx(found["blocks"]["active"] / causal)
