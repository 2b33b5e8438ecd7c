"""Names for keys and values: two chunks have the same key exactly if a model computes the same for them.

What a model computes for a chunk depends on its weights and settings, on the chunk's token ids, on where the
chunk's tokens and those of its parents lie relative to each other, and on what it computed for the parents.
So a chunk's key is a hash over those and over its parents' keys (a Merkle hash): any change anywhere above a
chunk changes its key, and nothing else does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from legraph.mask import Int64Array

if TYPE_CHECKING:
    import torch

_FORMAT = "legraph kv 1"
# Settings that do not change what is computed.
_IRRELEVANT = {"_name_or_path", "transformers_version", "use_cache", "torch_dtype", "dtype", "architectures"}
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd, as int64
_PIECE = 2**22


def chunk_key(
    model: str, ids: Int64Array, parents: Iterable[tuple[str, int]], start: int | None = None
) -> str:
    """The key of a chunk whose tokens have consecutive positions: 64 hexadecimal digits.

    Args:
        model: fingerprint of the model, and of the dtype it computes in.
        parents: key, and first position less the chunk's own first position, of each direct parent. Their
            order does not matter: attention does not know it.
        start: the first position, where a model computes something else at another one.
    """
    digest = sha256(f"{_FORMAT}:{model}:{start}:{len(ids)}:".encode())
    digest.update(ids.astype("<i8").tobytes())
    for key, offset in sorted(parents):
        digest.update(f":{key}@{offset}".encode())
    return digest.hexdigest()


def model_fingerprint(model: Any) -> str:
    """SHA-256 over a model's settings and a checksum of every weight.

    A checksum takes one pass over the weights on their own device. It tells weights apart that differ by
    accident or by training; it does not stand up to somebody who wants two models to look alike.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _IRRELEVANT}
    digest = sha256(f"{_FORMAT}:{type(model).__name__}:{model.dtype}:".encode())
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(f":{name}:{weight.dtype}:{tuple(weight.shape)}:{_checksum(weight)}".encode())
    return digest.hexdigest()


def _checksum(weight: torch.Tensor) -> int:
    """Sum of the bytes in groups of eight, each times an odd number of its own, modulo 2^64."""
    import torch

    data = weight.detach().contiguous().reshape(-1).view(torch.uint8)
    if len(data) % 8:
        data = torch.nn.functional.pad(data, (0, -len(data) % 8))
    words = data.view(torch.int64)
    total = 0
    for first in range(0, len(words), _PIECE):
        piece = words[first : first + _PIECE]
        factors = torch.arange(first, first + len(piece), device=piece.device) * _GOLDEN * 2 + 1
        # Without the shift, two changes of a word's highest bit would cancel.
        mixed = piece ^ ((piece >> 32) & 0xFFFFFFFF)
        total += int((mixed * factors).sum())
    return total % 2**64
