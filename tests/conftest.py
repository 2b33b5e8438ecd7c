"""What tests share: tokenizers whose ids can be foreseen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import settings

from legraph.tokens import bytes_tokenizer

# On top of the profile of hypothesis itself, which draws the same examples every time where CI is set.
settings.register_profile("legraph", settings(), deadline=None)
settings.load_profile("legraph")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """The tokenizer that ships with legraph: one token for each byte."""
    return bytes_tokenizer()


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[..., Any]:
    """`word_tokenizer({"The": 1, " fox": 2}, bos="<bos>")`: exactly these tokens, with exactly these ids.

    A text is cut into words with the space before them, single digits or whole numbers (as the ids say),
    and punctuation marks. Anything else becomes the unknown token, which no graph of the tests contains.
    """

    def make(id_by_word: Mapping[str, int], bos: str | None = None) -> Any:
        from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        unknown = "<unknown>"
        vocabulary = dict(id_by_word) | {unknown: max(id_by_word.values()) + 1}
        backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=unknown))
        word = Regex(r" ?[^\W\d]+| ?\d+|[^\w\s]")
        backend.pre_tokenizer = pre_tokenizers.Split(word, behavior="isolated")
        if bos is not None:
            backend.add_special_tokens([AddedToken(bos, special=True)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos)

    return make
