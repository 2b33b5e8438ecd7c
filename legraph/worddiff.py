"""Two texts, word by word: what was removed, what was added, and a few words around each change."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

# Words on each side, beyond what both begin and end with, that are matched one by one: the time is quadratic.
MAX_WORDS_MATCHED = 1000
# Words that both have, shown around a change.
CONTEXT_WORDS = 3
_WORD = re.compile(r"\S+\s*|\s+")

WordKind = Literal["same", "removed", "added", "skipped"]


class Words(NamedTuple):
    """A run of words of a text and what became of it; of "skipped" words both have, only that there are."""

    kind: WordKind
    text: str


def word_diff(before: str, after: str) -> Iterator[Words]:
    """Two texts, word by word: what was removed and what was added, with a few words around each."""
    a, b = _WORD.findall(before), _WORD.findall(after)
    most = min(len(a), len(b))
    first = next((i for i in range(most) if a[i] != b[i]), most)
    most -= first
    last = next((i for i in range(most) if a[-1 - i] != b[-1 - i]), most)
    a_end, b_end = len(a) - last, len(b) - last
    yield from _shared_words(a[:first], is_first=True)
    yield from _changed_words(a[first:a_end], b[first:b_end])
    yield from _shared_words(a[a_end:], is_last=True)


def _changed_words(a: Sequence[str], b: Sequence[str]) -> Iterator[Words]:
    if max(len(a), len(b)) > MAX_WORDS_MATCHED:
        steps = [("replace", 0, len(a), 0, len(b))]
    else:
        steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    for step, a_first, a_last, b_first, b_last in steps:
        if step == "equal":
            yield from _shared_words(a[a_first:a_last])
            continue
        if a_last > a_first:
            yield Words("removed", "".join(a[a_first:a_last]))
        if b_last > b_first:
            yield Words("added", "".join(b[b_first:b_last]))


def _shared_words(words: Sequence[str], is_first: bool = False, is_last: bool = False) -> Iterator[Words]:
    """The words next to a change: the last ones of a beginning, the first ones of an end, both in between."""
    head = 0 if is_first else CONTEXT_WORDS
    tail = 0 if is_last else CONTEXT_WORDS
    if len(words) <= head + tail:
        if words:
            yield Words("same", "".join(words))
        return
    if head:
        yield Words("same", "".join(words[:head]))
    yield Words("skipped", "...")
    if tail:
        yield Words("same", "".join(words[-tail:]))
