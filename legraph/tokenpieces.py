"""Which part of a chunk's text each of its tokens is: the borders that a page draws between tokens.

The pieces of a chunk add up to its text. A token that only begins a character has an empty piece, and the one
that completes it has the whole character; for the former there is what the vocabulary writes instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from legraph.bundle import Bundle
from legraph.mask import Int64Array


@dataclass(frozen=True, eq=False, slots=True)
class TokenPieces:
    """The texts of a bundle's K chunks, cut into the pieces of its N tokens.

    Attributes:
        texts: K texts, special tokens written out.
        lengths: int64 [N], length of each token's piece in UTF-16 units, as JavaScript counts them.
        writings: how the vocabulary writes the tokens that have an empty piece somewhere, by id.
    """

    texts: tuple[str, ...]
    lengths: Int64Array
    writings: dict[int, str]


def token_pieces(bundle: Bundle, tokenizer: Any) -> TokenPieces:
    """Cuts every chunk's text at the borders of its tokens. The tokenizer knows all ids of the bundle."""
    ids = bundle.input_ids.tolist()
    texts, pieces = list[str](), list[str]()
    for chunk in range(bundle.mask.num_chunks):
        of_chunk = _pieces(tokenizer, ids[bundle.span(chunk)])
        texts.append("".join(of_chunk))
        pieces += of_chunk
    lengths = np.fromiter(map(_utf16_length, pieces), dtype=np.int64, count=len(pieces))
    silent = sorted({token for token, piece in zip(ids, pieces, strict=True) if not piece})
    writings = dict(zip(silent, tokenizer.convert_ids_to_tokens(silent), strict=True))
    return TokenPieces(tuple(texts), lengths, writings)


def written_tokens(bundle: Bundle, tokenizer: Any) -> list[str]:
    """N texts, one for each token: its piece, or what the vocabulary writes where that is empty."""
    written = list[str]()
    for chunk in range(bundle.mask.num_chunks):
        ids = bundle.input_ids[bundle.span(chunk)].tolist()
        names = tokenizer.convert_ids_to_tokens(ids)
        pieces = zip(_pieces(tokenizer, ids), names, ids, strict=True)
        written += [piece or name or f"<{token}>" for piece, name, token in pieces]
    return written


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    try:
        return list(_streamed(tokenizer.backend_tokenizer, ids))
    except Exception:  # the decoder raises plain Exception where a text does not grow token by token
        return tokenizer.convert_ids_to_tokens(ids)


def _streamed(backend: Any, ids: list[int]) -> Iterator[str]:
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    for token in ids:
        yield stream.step(backend, token) or ""


def _utf16_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2
