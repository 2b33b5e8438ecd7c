"""Texts -> token ids, one chunk at a time, and the tokenizers that do it.

A chunk's ids depend on its own text only: no special tokens are added, those written in the text are
recognised. transformers is imported when a tokenizer has to be loaded, not before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from legraph.errors import TokenizerError
from legraph.graph import Graph
from legraph.mask import Int64Array

# The model in the box: small, and good at one thing, finding facts in the chunks it sees.
SHIPPED_MODEL = "recall"
SHIPPED_FOLDER = Path(__file__).parent / "recall"
BYTES_TOKENIZER = "bytes"
BYTES_SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|eot|>", "<|pad|>")
# Texts are handed over in slices so that the tokenizer's offsets and word maps never pile up.
ENCODE_SLICE = 2048
_LOADABLE = "give a folder that holds tokenizer.json, or a hub id that can be reached from here"


_FINGERPRINTS: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class TokenizedGraph:
    """Token ids of all chunks, end to end in declared order.

    Attributes:
        ids: int64 [N].
        offsets: int64 [K + 1], chunk i holds `ids[offsets[i]:offsets[i + 1]]`, its completion included.
        text_lengths: int64 [K], number of tokens of each chunk without its completion.
    """

    ids: Int64Array
    offsets: Int64Array
    text_lengths: Int64Array

    def lengths(self) -> Int64Array:
        return np.diff(self.offsets)

    def in_order(self, order: Int64Array) -> Int64Array:
        """The ids of the chunks in another order, end to end. int64 [N]."""
        lengths = self.lengths()[order]
        starts = self.offsets[order]
        before = np.cumsum(lengths) - lengths
        return self.ids[np.arange(len(self.ids)) + np.repeat(starts - before, lengths)]


def load_tokenizer(name: str | None) -> Any:
    """The tokenizer at a path or hub id; `recall`, which is also the default, and `bytes` ship with legraph.

    Raises:
        TokenizerError: it cannot be loaded, or is a slow tokenizer.
    """
    if name == BYTES_TOKENIZER:
        return bytes_tokenizer()
    if name is None or name == SHIPPED_MODEL:
        tokenizer = load_tokenizer(str(SHIPPED_FOLDER))
        tokenizer.name_or_path = SHIPPED_MODEL
        return tokenizer
    if name.startswith((os.sep, ".")) and not Path(name).exists():
        # transformers would take it for a hub id, and say that it is a malformed one.
        raise TokenizerError(f"tokenizer {name!r} cannot be loaded: no such folder", _LOADABLE)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TokenizerError(f"tokenizer {name!r} cannot be loaded: {reason}", _LOADABLE) from None
    return check_tokenizer(tokenizer)


def check_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, if it can do what a graph needs.

    Raises:
        TokenizerError: it is a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"tokenizer {getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__!r} is a slow "
            "tokenizer, which cannot be relied on to recognise special tokens inside a chunk's text",
            "use a fast tokenizer: a folder with a tokenizer.json",
        )
    return tokenizer


def bytes_tokenizer() -> Any:
    """One token for each UTF-8 byte (ids 0..255), then <|bos|>, <|eos|>, <|eot|>, <|pad|>.

    For looking at structure, masks and positions where one token should be one letter.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in BYTES_SPECIAL_TOKENS])
    bos, eos, _, pad = BYTES_SPECIAL_TOKENS
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad)
    tokenizer.name_or_path = BYTES_TOKENIZER
    return tokenizer


def _byte_of(char: str) -> int:
    """The byte that a character of GPT-2's printable byte alphabet stands for."""
    code = ord(char)
    if 33 <= code <= 126 or 161 <= code <= 172 or 174 <= code <= 255:
        return code
    unprintable = [*range(33), *range(127, 161), 173]
    return unprintable[code - 256]


def tokenizer_id(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def fingerprint(tokenizer: Any) -> str:
    """SHA-256 of what turns text into ids: vocabulary, merges, normaliser, special tokens.

    Padding and truncation settings are left out: they are state of the last call, not of the vocabulary.
    It is remembered for each tokenizer until tokens are added, because writing out a large vocabulary takes
    longer than compiling most graphs.
    """
    size, found = _FINGERPRINTS.get(tokenizer, (-1, ""))
    if size != len(tokenizer):
        found = _computed_fingerprint(tokenizer)
        _FINGERPRINTS[tokenizer] = (len(tokenizer), found)
    return found


def _computed_fingerprint(tokenizer: Any) -> str:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for key in ("version", "truncation", "padding"):
        content.pop(key, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tokenize(
    graph: Graph, tokenizer: Any, advance: Callable[[int], object] = lambda done: None
) -> TokenizedGraph:
    """Token ids of every chunk. A chunk may come out empty: the caller knows where its text stands.

    Args:
        advance: called with the number of chunks done since the last call.

    Raises:
        TokenizerError: the graph wants a BOS token and the tokenizer has none.
    """
    parts, lengths, text_lengths = list[Int64Array](), list[int](), list[int]()
    chunks = list(graph.chunks)
    if chunks and chunks[0].text is None:
        if tokenizer.bos_token_id is None:
            raise TokenizerError(
                f"the graph has 'bos: true', but tokenizer {tokenizer_id(tokenizer)!r} has no BOS token",
                "remove 'bos: true', or write a root chunk with the token you mean",
            )
        parts.append(np.array([tokenizer.bos_token_id], dtype=np.int64))
        lengths.append(1)
        text_lengths.append(1)
        chunks = chunks[1:]
    for at in range(0, len(chunks), ENCODE_SLICE):
        part = chunks[at : at + ENCODE_SLICE]
        rows = _encode(tokenizer, [chunk.text for chunk in part])
        text_lengths += [len(row) for row in rows]
        # Apart from the text, as the tokens that a model generates there would be.
        completed = [i for i, chunk in enumerate(part) if chunk.completion is not None]
        completions = _encode(tokenizer, [part[i].completion for i in completed])
        for i, completion in zip(completed, completions, strict=True):
            rows[i] = rows[i] + completion
        lengths += [len(row) for row in rows]
        parts.append(np.fromiter((i for row in rows for i in row), dtype=np.int64))
        advance(len(part))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TokenizedGraph(np.concatenate(parts), offsets, np.array(text_lengths, dtype=np.int64))


def _encode(tokenizer: Any, texts: list[str | None]) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return encoded["input_ids"]
