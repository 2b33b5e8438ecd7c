"""Texts -> token ids, one chunk at a time, and the tokenizers that do it.

A chunk's ids depend on its own text only: no special tokens are added, those written in the text are
recognised. transformers is imported when a tokenizer has to be loaded, not before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from legraph.errors import TokenizerError
from legraph.graph import Graph
from legraph.mask import Int64Array

BYTES_TOKENIZER = "bytes"
BYTES_SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|eot|>", "<|pad|>")
# Texts are handed over in slices so that the tokenizer's offsets and word maps never pile up.
ENCODE_SLICE = 2048


@dataclass(frozen=True, slots=True)
class TokenizedGraph:
    """Token ids of all chunks, end to end in declared order. int64 [N], int64 [K + 1]."""

    ids: Int64Array
    offsets: Int64Array

    def lengths(self) -> Int64Array:
        return np.diff(self.offsets)

    def in_order(self, order: Int64Array) -> Int64Array:
        """The ids of the chunks in another order, end to end. int64 [N]."""
        lengths = self.lengths()[order]
        starts = self.offsets[order]
        before = np.cumsum(lengths) - lengths
        return self.ids[np.arange(len(self.ids)) + np.repeat(starts - before, lengths)]


def load_tokenizer(name: str | None) -> Any:
    """The tokenizer at a path or hub id; `bytes`, which is also the default, ships with legraph.

    Raises:
        TokenizerError: it cannot be loaded, or is a slow tokenizer.
    """
    if name is None or name == BYTES_TOKENIZER:
        return bytes_tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TokenizerError(
            f"tokenizer {name!r} cannot be loaded: {reason}",
            "give a folder that holds tokenizer.json, or a hub id that can be reached from here",
        ) from None
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

    For graphs that name no tokenizer: structure, masks and positions can be looked at with no download.
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
    """
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
    parts, lengths = list[Int64Array](), list[int]()
    chunks = list(graph.chunks)
    if chunks and chunks[0].text is None:
        if tokenizer.bos_token_id is None:
            raise TokenizerError(
                f"the graph has 'bos: true', but tokenizer {tokenizer_id(tokenizer)!r} has no BOS token",
                "remove 'bos: true', or write a root chunk with the token you mean",
            )
        parts.append(np.array([tokenizer.bos_token_id], dtype=np.int64))
        lengths.append(1)
        chunks = chunks[1:]
    for at in range(0, len(chunks), ENCODE_SLICE):
        texts = [chunk.text for chunk in chunks[at : at + ENCODE_SLICE]]
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        rows = encoded["input_ids"]
        lengths += [len(row) for row in rows]
        parts.append(np.fromiter((i for row in rows for i in row), dtype=np.int64))
        advance(len(texts))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return TokenizedGraph(np.concatenate(parts), offsets)
