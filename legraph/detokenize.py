"""Token ids -> text, one token at a time, never half a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Enough text before the first generated token for tokenizers that treat the start of a text in a special way.
_CONTEXT_TOKENS = 8
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """Text of the tokens that follow a chunk's own; the pieces it returns add up to `text`.

    Decodes a short window instead of everything so far: the window starts at a place where the text was
    complete, and what it grew by is the new piece (the scheme of Hugging Face's text-generation-inference).
    """

    def __init__(self, tokenizer: Any, context: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self._ids = list(context[-_CONTEXT_TOKENS:])
        self._window = 0
        self._shown = len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character still lacks bytes."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        shown = self._decode(self._ids[self._window : self._shown])
        whole = self._decode(self._ids[self._window :])
        if whole.endswith(_INCOMPLETE) and not final:
            return ""
        piece = whole[len(shown) :]
        if piece:
            self._window, self._shown = self._shown, len(self._ids)
            self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
