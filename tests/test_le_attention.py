"""LE-ATTENTION's own example and demonstrations give its masks and positions, without its faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from legraph.blocks import active_blocks
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from tests.random_graphs import drawn

# Ids of Llama 3's tokenizer.
WORDS = {
    "example": 8858,
    "1": 16,
    "2": 17,
    "3": 18,
    ".": 13,
    "What": 3923,
    " does": 1587,
    " the": 279,
    " fox": 39935,
    " say": 2019,
    "?": 30,
}
X1, X2, X3 = [8858, 16, 13], [8858, 17, 13], [8858, 18, 13]
QUESTION = [3923, 1587, 279, 39935, 2019, 30]


@pytest.fixture(scope="module")
def llama(word_tokenizer: Callable[..., Any]) -> Any:
    return word_tokenizer(WORDS)


def example(**where: int) -> Chunk:
    """X1 <- X2 <- X3 <- Q, with a place for X3."""
    x1 = Chunk("example1.", name="X1")
    x2 = Chunk("example2.", name="X2", parents=[x1])
    x3 = Chunk("example3.", name="X3", parents=[x2], **where)
    return Chunk("What does the fox say?", name="Q", parents=[x3])


def test_the_example_has_its_tokens_in_its_order(llama: Any):
    bundle = compile_chunks([example()], llama, positions="local")
    assert bundle.span_names == ("X1", "X2", "X3", "Q")
    assert bundle.input_ids.tolist() == X1 + X2 + X3 + QUESTION


def test_the_example_has_its_mask(llama: Any):
    bundle = compile_chunks([example()], llama, positions="local")
    assert drawn(bundle.dense_mask()) == "\n".join(
        [
            "#..............",
            "##.............",
            "###............",
            "####...........",
            "#####..........",
            "######.........",
            "...####........",
            "...#####.......",
            "...######......",
            "......####.....",
            "......#####....",
            "......######...",
            "......#######..",
            "......########.",
            "......#########",
        ]
    )


@pytest.mark.parametrize(
    "where, x3",
    [({}, [0, 1, 2]), ({"start": 40}, [40, 41, 42]), ({"end": 40}, [37, 38, 39])],
    ids=["without a place", "start", "end"],
)
def test_the_example_has_its_positions(llama: Any, where: dict[str, int], x3: list[int]):
    bundle = compile_chunks([example(**where)], llama, positions="local")
    assert bundle.position_ids.tolist() == [0, 1, 2, 0, 1, 2, *x3, 0, 1, 2, 3, 4, 5]


# One token a chunk, so that a row of a drawing is a chunk. In the compression, a document has three.
DOC, A, B, C, Q = "example1.", "1", "2", "3", "?"


def fully_causal() -> Chunk:
    a = Chunk(A)
    b = Chunk(B, parents=[a])
    c = Chunk(C, parents=[a, b])
    return Chunk(Q, parents=[a, b, c])


def chain() -> Chunk:
    return Chunk(Q, parents=[Chunk(C, parents=[Chunk(B, parents=[Chunk(A)])])])


def parallel() -> Chunk:
    return Chunk(Q, parents=[Chunk(A), Chunk(B), Chunk(C)])


def token_compression() -> Chunk:
    return Chunk("What?", parents=[Chunk(A, parents=[Chunk(DOC)])])


@pytest.mark.parametrize(
    "make, mask",
    [
        (fully_causal, ["#...", "##..", "###.", "####"]),
        (chain, ["#...", "##..", ".##.", "..##"]),
        (parallel, ["#...", ".#..", "..#.", "####"]),
        (token_compression, ["#.....", "##....", "###...", "####..", "...##.", "...###"]),
    ],
    ids=["fully causal", "chain", "parallel", "token compression"],
)
def test_the_demonstrations_have_their_masks(llama: Any, make: Callable[[], Chunk], mask: list[str]):
    assert drawn(compile_chunks([make()], llama).dense_mask()) == "\n".join(mask)


NUM_DOCS = 500


@pytest.fixture(scope="module")
def five_hundred_documents(word_tokenizer: Callable[..., Any]) -> Bundle:
    """BOS, 500 documents of 7 tokens whose texts begin alike, and a question of 3 that sees all of them."""
    words = ["A", " simple", " fact", " about", " year", ".", "What", " happened", " in"]
    years = [f" {1500 + i}" for i in range(NUM_DOCS)]
    tokenizer = word_tokenizer({word: i for i, word in enumerate(words + years)}, bos="<bos>")
    docs = [Chunk(f"A simple fact about year{year}.") for year in years]
    return compile_chunks([Chunk("What happened in", parents=docs)], tokenizer, bos=True)


def test_five_hundred_documents_that_begin_alike_stay_apart(five_hundred_documents: Bundle):
    bundle = five_hundred_documents
    assert np.diff(bundle.span_offsets).tolist() == [1] + [7] * NUM_DOCS + [3]
    assert len(bundle) == 1 + 500 * 7 + 3 == 3504
    assert len(set(bundle.span_names)) == NUM_DOCS + 2
    years = {int(bundle.input_ids[bundle.span(doc)][5]) for doc in range(1, NUM_DOCS + 1)}
    assert len(years) == NUM_DOCS


def test_five_hundred_documents_have_28_010_visible_pairs(five_hundred_documents: Bundle):
    bos, docs = 1, NUM_DOCS * (7 * 8 // 2 + 7)
    question = 3 * 4 // 2 + 3 * (1 + NUM_DOCS * 7)
    assert bos + docs + question == 28_010
    assert five_hundred_documents.mask.num_visible_pairs() == 28_010
    assert int(five_hundred_documents.dense_mask().sum()) == 28_010


def test_five_hundred_documents_have_102_active_blocks_of_784(five_hundred_documents: Bundle):
    blocks = active_blocks(five_hundred_documents.mask)
    assert blocks.num_blocks**2 == 784
    padded = np.zeros((28 * 128, 28 * 128), dtype=np.bool_)
    padded[:3504, :3504] = five_hundred_documents.dense_mask()
    assert int(padded.reshape(28, 128, 28, 128).any(axis=(1, 3)).sum()) == 102
    assert len(blocks) == 102


def test_unnamed_chunks_with_equal_texts_are_different_chunks(llama: Any):
    same = [Chunk("example1."), Chunk("example1.")]
    bundle = compile_chunks([Chunk("?", parents=[same[1]]), same[0]], llama)
    assert bundle.input_ids.tolist() == [*X1, 30, *X1]
    assert drawn(bundle.dense_mask()) == "\n".join(
        [
            "#......",
            "##.....",
            "###....",
            "####...",
            "....#..",
            "....##.",
            "....###",
        ]
    )


def test_a_diamond_is_compiled_once_however_many_paths_lead_to_it(llama: Any):
    """60 diamonds on top of each other: 2 ** 60 paths, 181 chunks."""
    top = Chunk("1")
    for _ in range(60):
        sides = [Chunk("2", parents=[top]), Chunk("3", parents=[top])]
        top = Chunk(".", parents=sides)
    assert len(compile_chunks([top], llama)) == 1 + 3 * 60
