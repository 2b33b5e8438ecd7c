"""Text from tokens: pieces that add up, and never half a character."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legraph.detokenize import Detokenizer
from legraph.tokens import bytes_tokenizer

TRAINING = [
    "the fox says ring",
    "Der Fuchs sagt süß und groß",
    "naïve café, 東京の狐",
    "🦊 🦊🐺 «раз два»",
] * 4
EOS = 257


@cache
def tokenizer(kind: str) -> Any:
    return {"bytes": bytes_tokenizer, "byte-level": _byte_level, "metaspace": _metaspace}[kind]()


def _byte_level() -> Any:
    """As GPT-2, Llama 3 or Qwen: tokens are strings of bytes, which may begin and end inside a character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TRAINING, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _metaspace() -> Any:
    """As Llama 2 or Gemma: a text starts with a space that decoding drops; what is unknown goes by bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    # Foxes and Japanese are left to the bytes, which are ordinary tokens and so join after training.
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(TRAINING[:2], trainer)
    trained = json.loads(backend.to_str())["model"]
    known = len(trained["vocab"])
    backend.model = models.BPE(
        vocab=trained["vocab"] | {f"<0x{byte:02X}>": known + byte for byte in range(256)},
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def ids_of(kind: str, text: str) -> list[int]:
    return tokenizer(kind)(text, add_special_tokens=False)["input_ids"]


def decoded(kind: str, ids: list[int]) -> str:
    return tokenizer(kind).decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces_of(kind: str, context: list[int], ids: list[int]) -> tuple[list[str], str]:
    """The pieces, one for each token, and what is left at the end."""
    made = Detokenizer(tokenizer(kind), context)
    pieces = [made.push(token) for token in ids]
    rest = made.flush()
    assert "".join(pieces) + rest == made.text
    return pieces, rest


texts = st.text(st.characters(codec="utf-8"), max_size=30) | st.text("aé東🦊\u0301\u200d ", max_size=30)
contexts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@given(context=contexts, text=texts)
@pytest.mark.parametrize("kind", ["bytes", "byte-level"])
def test_pieces_of_byte_tokens_add_up_to_the_text(kind: str, context: str, text: str) -> None:
    pieces, rest = pieces_of(kind, ids_of(kind, context), ids_of(kind, text))
    assert "".join(pieces) + rest == text


@given(
    context=st.text("the fox süß狐🦊", min_size=1, max_size=12), text=st.text("the fox süß狐🦊▁", max_size=20)
)
def test_pieces_of_metaspace_tokens_add_up_to_what_is_decoded_at_once(context: str, text: str) -> None:
    before, after = ids_of("metaspace", context), ids_of("metaspace", text)
    pieces, rest = pieces_of("metaspace", before, after)
    whole = decoded("metaspace", before + after)
    assert whole == decoded("metaspace", before) + "".join(pieces) + rest


@given(context=contexts, text=texts)
@pytest.mark.parametrize("kind", ["bytes", "byte-level", "metaspace"])
def test_no_piece_shows_half_a_character(kind: str, context: str, text: str) -> None:
    text = text.replace("\ufffd", "")
    pieces, rest = pieces_of(kind, ids_of(kind, context), ids_of(kind, text))
    assert "\ufffd" not in "".join(pieces) + rest


@given(context=contexts, text=texts)
def test_a_character_comes_with_its_last_byte(context: str, text: str) -> None:
    text = text.replace("\ufffd", "")
    pieces, rest = pieces_of("bytes", ids_of("bytes", context), list(text.encode()))
    expected = [piece for char in text for piece in [""] * (len(char.encode()) - 1) + [char]]
    assert (pieces, rest) == (expected, "")


@given(context=contexts, ids=st.lists(st.integers(0, 259), max_size=40))
def test_any_bytes_add_up_to_their_lossy_text(context: str, ids: list[int]) -> None:
    """A random model's tokens: broken characters anywhere, special tokens (256 and on) without a text."""
    pieces, rest = pieces_of("bytes", ids_of("bytes", context), ids)
    raw = bytes(token for token in ids if token < 256)
    assert "".join(pieces) + rest == raw.decode("utf-8", errors="replace")


def test_a_broken_character_at_the_end_is_what_is_left() -> None:
    assert pieces_of("bytes", [97], list("a🦊".encode()[:3])) == (["a", "", ""], "\ufffd")


def test_a_broken_character_in_the_middle_waits_for_what_follows() -> None:
    assert pieces_of("bytes", [97], [0xE6, ord("b")]) == (["", "\ufffdb"], "")


def test_bytes_of_a_metaspace_tokenizer_wait_for_their_character() -> None:
    ids = ids_of("metaspace", "x🦊")
    assert [len(piece) for piece in pieces_of("metaspace", ids, ids[-4:])[0]] == [0, 0, 0, 1]


def test_the_space_between_a_chunk_and_what_follows_is_kept() -> None:
    """Alone, the second word would be decoded without it."""
    before, after = ids_of("metaspace", "the fox"), ids_of("metaspace", "says")
    assert decoded("metaspace", after) == "says"
    pieces, rest = pieces_of("metaspace", before, after)
    assert "".join(pieces) + rest == " says"


def test_special_tokens_have_no_text() -> None:
    assert pieces_of("bytes", [97], [98, EOS, 99]) == (["b", "", "c"], "")


def test_a_long_text_is_decoded_a_short_window_at_a_time() -> None:
    """The cost of a token must not grow with the text before it."""
    longest = 0

    class Watched:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return tokenizer("bytes").decode(ids, **options)

    made = Detokenizer(Watched(), list(b"x" * 500))
    text = "aé東🦊" * 100
    for byte in text.encode():
        made.push(byte)
    assert made.text == text
    assert longest <= 16
