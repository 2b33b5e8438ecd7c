"""One chunk while the model continues it: its tokens so far, its text, and when it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from legraph.bundle import Bundle
from legraph.detokenize import Detokenizer
from legraph.graph import Generate
from legraph.sampling import Sampler, settings_for

Finish = Literal["end", "stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A token that a chunk has just generated, and the text it completes (empty inside a character).

    `token_id` is None for what is left of an incomplete character when a chunk ends.
    """

    chunk: str
    token_id: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a chunk generated, without the end-of-sequence token.

    `finish` says why it ended: "end" (end-of-sequence token), "stop" (a stop string, which is part of the
    text), "length" (max_new_tokens, or the last position the model knows), "cancelled" (the run was).
    """

    text: str
    token_ids: tuple[int, ...]
    finish: Finish


class Branch:
    """A chunk that generates. `next_position` is set when its text is placed."""

    def __init__(
        self,
        bundle: Bundle,
        chunk: int,
        run: Generate,
        tokenizer: Any,
        end_ids: frozenset[int],
        max_positions: int | None,
        has_children: bool,
    ) -> None:
        self.chunk = chunk
        self.name = bundle.span_names[chunk]
        self.has_children = has_children
        own = bundle.meta.generate.get(self.name)
        self.settings = settings_for(own, run)
        seed_name = bundle.meta.seed_names.get(self.name, self.name)
        self.sampler = Sampler(self.settings, seed_name, own.seed if own else None)
        self.detokenizer = Detokenizer(tokenizer, bundle.input_ids[bundle.span(chunk)].tolist())
        self.end_ids, self.max_positions = end_ids, max_positions
        # Special tokens leave no text behind, so a stop string that is one is told by its id.
        self.stop_ids = frozenset(_special_ids(tokenizer, self.settings.stop))
        self.ids: list[int] = []
        self.next_position = 0
        self.is_fed = True
        self.finish: Finish | None = None

    def accept(self, logits_V: Any, best: int, highest: float) -> Piece | None:
        """Draws the next token (see `Sampler.draw`); None if it ends the sequence and leaves no text."""
        token = self.sampler.draw(logits_V, best, highest)
        if token in self.end_ids:
            self.finish = "end"
            rest = self.detokenizer.flush()
            return Piece(self.name, None, rest) if rest else None
        self.ids.append(token)
        self.is_fed = False
        text = self.detokenizer.push(token)
        if token in self.stop_ids or self._has_stop(text):
            self.finish = "stop"
        elif len(self.ids) >= self.settings.max_new_tokens or self._next_is_unknown():
            self.finish = "length"
        if self.finish is not None:
            text += self.detokenizer.flush()
        return Piece(self.name, token, text)

    def feed(self) -> tuple[int, int]:
        """The newest token, which the model has not seen yet, and its position."""
        assert not self.is_fed
        self.is_fed = True
        self.next_position += 1
        return self.ids[-1], self.next_position - 1

    def has_unfed_end(self) -> bool:
        """It is finished, and its children must see a last token that the model has not seen yet."""
        return self.finish is not None and self.has_children and not self.is_fed

    def end_position(self) -> int:
        """Position just past the last token."""
        return self.next_position + (0 if self.is_fed else 1)

    def output(self) -> Output:
        return Output(self.detokenizer.text, tuple(self.ids), self.finish or "cancelled")

    def _has_stop(self, piece: str) -> bool:
        """Whether a stop string ends in the newest piece of text."""
        if not piece:
            return False
        return any(
            stop in self.detokenizer.text[-(len(piece) + len(stop) - 1) :] for stop in self.settings.stop
        )

    def _next_is_unknown(self) -> bool:
        """A token after the newest one would stand at a position that the model does not know."""
        return self.max_positions is not None and self.next_position + 1 >= self.max_positions


def _special_ids(tokenizer: Any, texts: Iterable[str]) -> Iterator[int]:
    """The ids of those texts that are special tokens."""
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special and token.content in texts:
            yield token_id
