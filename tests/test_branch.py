"""One chunk while it is continued: when it ends and why, its text, and which positions its tokens take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from legraph.branch import Branch, Output, Piece
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import ModelError
from legraph.graph import Generate
from legraph.tokens import bytes_tokenizer

VOCABULARY, END = 260, 257
TOKENIZER = bytes_tokenizer()


def branch(
    settings: Generate | None = None,
    own: Generate | None = None,
    max_positions: int | None = None,
    has_children: bool = False,
) -> Branch:
    """A branch of the chunk `q`, whose text `ask` stands at positions 0 to 3."""
    bundle = compile_chunks([Chunk("ask", name="q")], TOKENIZER)
    if own is not None:
        bundle = replace(bundle, meta=replace(bundle.meta, generate={"q": own}))
    made = Branch(bundle, 0, settings or Generate(), TOKENIZER, frozenset([END]), max_positions, has_children)
    made.next_position = 3
    return made


def write(to: Branch, tokens: bytes | list[int]) -> list[Piece | None]:
    """Lets the model choose these tokens, as long as the branch goes on."""
    pieces = []
    for token in tokens:
        pieces.append(choose(to, token))
        if to.finish is not None:
            break
        to.feed()
    return pieces


def choose(to: Branch, token: int) -> Piece | None:
    logits_V = torch.zeros(VOCABULARY)
    logits_V[token] = 1
    return to.accept(logits_V, token, 1.0)


def test_it_ends_with_the_last_token_it_may_write() -> None:
    made = branch(Generate(max_new_tokens=3))
    assert write(made, b"abcdef") == [Piece("q", 97, "a"), Piece("q", 98, "b"), Piece("q", 99, "c")]
    assert made.output() == Output("abc", (97, 98, 99), "length")


def test_the_end_token_is_not_part_of_it() -> None:
    made = branch()
    assert write(made, [97, END, 98]) == [Piece("q", 97, "a"), None]
    assert made.output() == Output("a", (97,), "end")


def test_it_may_end_before_it_began() -> None:
    made = branch()
    assert write(made, [END]) == [None]
    assert made.output() == Output("", (), "end")


@pytest.mark.parametrize(
    ("stop", "written"),
    [
        (("d",), "abcd"),
        (("bc",), "abc"),
        (("xyz", "cd"), "abcd"),
        (("abcdef",), "abcdef"),
        (("c", "bc"), "abc"),
    ],
)
def test_a_stop_string_is_found_across_tokens_and_stays(stop: tuple[str, ...], written: str) -> None:
    made = branch(Generate(stop=stop))
    write(made, b"abcdefgh")
    assert made.output() == Output(written, tuple(written.encode()), "stop")


def test_a_stop_string_counts_in_what_is_written_only() -> None:
    """The chunk's text ends in k: a stop string that begins there is not met."""
    made = branch(Generate(max_new_tokens=2, stop=("ka", "ask", "k")))
    write(made, b"ab")
    assert made.finish == "length"


def test_a_stop_string_is_found_with_the_last_byte_of_its_last_character() -> None:
    made = branch(Generate(stop=("é!", "🦊")))
    write(made, "é🦊é!".encode())
    assert made.output() == Output("é🦊", tuple("é🦊".encode()), "stop")


def test_a_stop_string_at_the_very_end_is_a_stop() -> None:
    made = branch(Generate(max_new_tokens=2, stop=("b",)))
    write(made, b"ab")
    assert made.finish == "stop"


def test_a_character_that_is_not_finished_is_shown_broken_at_the_end() -> None:
    by_length = branch(Generate(max_new_tokens=2))
    assert write(by_length, "a🦊".encode()) == [Piece("q", 97, "a"), Piece("q", 0xF0, "\ufffd")]
    by_end_token = branch()
    pieces = write(by_end_token, [97, 0xF0, END])
    assert pieces == [Piece("q", 97, "a"), Piece("q", 0xF0, ""), Piece("q", None, "\ufffd")]
    assert by_end_token.output() == Output("a\ufffd", (97, 0xF0), "end")


@pytest.mark.parametrize("written", [b"hello", "süß 🦊".encode(), b"\xf0a\xe6"])
def test_pieces_add_up_to_the_output(written: bytes) -> None:
    made = branch(Generate(max_new_tokens=len(written)))
    pieces = [piece for piece in write(made, written) if piece is not None]
    assert "".join(piece.text for piece in pieces) == made.output().text
    assert made.output().token_ids == tuple(written)


def test_the_chunks_own_settings_come_first() -> None:
    made = branch(Generate(max_new_tokens=9, stop=("z",)), own=Generate(max_new_tokens=2))
    write(made, b"abcdef")
    assert made.output().text == "ab"


def test_tokens_take_the_positions_after_the_text() -> None:
    made = branch()
    taken = []
    for byte in b"abc":
        choose(made, byte)
        taken.append(made.feed())
    assert taken == [(97, 3), (98, 4), (99, 5)]
    assert made.end_position() == 6


def test_a_last_token_is_fed_for_children_only() -> None:
    """The model has written it and not read it: who comes after must see it all the same."""
    alone, parent = branch(Generate(max_new_tokens=2)), branch(Generate(max_new_tokens=2), has_children=True)
    for made in (alone, parent):
        write(made, b"ab")
        assert made.end_position() == 5
    assert not alone.has_unfed_end()
    assert parent.has_unfed_end()
    assert parent.feed() == (98, 4)
    assert not parent.has_unfed_end()
    assert parent.end_position() == 5


def test_after_an_end_token_nothing_is_left_to_feed() -> None:
    made = branch(has_children=True)
    write(made, [97, END])
    assert not made.has_unfed_end()
    assert made.end_position() == 4


@pytest.mark.parametrize(("max_positions", "num_tokens"), [(4, 1), (5, 2), (6, 3), (None, 8)])
def test_it_ends_at_the_last_position_the_model_knows(max_positions: int | None, num_tokens: int) -> None:
    """With 4 positions, 0 to 3, the first new token is the one at position 3."""
    made = branch(Generate(max_new_tokens=8), max_positions=max_positions)
    write(made, b"abcdefgh")
    assert (len(made.ids), made.finish) == (num_tokens, "length")
    assert made.end_position() == 3 + num_tokens


def test_two_branches_with_the_same_own_seed_draw_alike() -> None:
    hot: Any = Generate(max_new_tokens=8, temperature=1.0, seed=4)
    ids = []
    for _ in range(2):
        made = branch(own=hot)
        while made.finish is None:
            made.accept(torch.zeros(VOCABULARY), 0, 0.0)
            made.feed()
        ids.append(made.ids)
    assert ids[0] == ids[1]
    assert len(set(ids[0])) > 1


def test_a_stop_string_that_is_a_special_token_ends_it_though_it_leaves_no_text() -> None:
    eot = TOKENIZER.convert_tokens_to_ids("<|eot|>")
    made = branch(Generate(stop=("<|eot|>",)))
    write(made, [97, eot, 98])
    assert made.output() == Output("a", (97, eot), "stop")


def test_special_tokens_that_are_no_stop_strings_do_not_end_it() -> None:
    made = branch(Generate(max_new_tokens=3, stop=("eot",)))
    write(made, [97, TOKENIZER.convert_tokens_to_ids("<|eot|>"), 98])
    assert made.output().finish == "length"


def test_a_token_is_fed_once() -> None:
    made = branch()
    with pytest.raises(AssertionError):
        made.feed()
    choose(made, 97)
    made.feed()
    with pytest.raises(AssertionError):
        made.feed()


def test_what_has_not_ended_was_cancelled() -> None:
    made = branch()
    write(made, b"ab")
    assert made.output() == Output("ab", (97, 98), "cancelled")


def test_logits_that_are_no_numbers_end_nothing_and_say_whose_they_are() -> None:
    made = branch()
    with pytest.raises(ModelError, match="chunk 'q'"):
        made.accept(torch.zeros(VOCABULARY), 0, float("nan"))
    assert (made.ids, made.finish) == ([], None)
