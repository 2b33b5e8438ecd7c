"""What tests of the KV store share: chunks whose every bit follows from a number, and files made by hand."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from legraph.kvdisk import ChunkKV

MODEL = "0123456789abcdef" * 4
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def key_of(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def chunk(
    number: int,
    num_tokens: int = 5,
    dtype: torch.dtype = torch.bfloat16,
    shapes: tuple[tuple[int, int, int], ...] = ((2, 2, 4), (4, 1, 8)),
    start: int | None = None,
    model: str = MODEL,
    model_name: str = "tiny",
) -> ChunkKV:
    """Any bits, those of NaN and infinities too. `shapes`: layers, heads and channels of each tensor."""
    bits = np.random.default_rng(number)
    tensors = []
    for layers, heads, channels in shapes:
        num_bytes = layers * heads * num_tokens * channels * dtype.itemsize
        values = torch.from_numpy(bits.integers(0, 256, num_bytes, dtype=np.uint8)).view(dtype)
        tensors.append(values.view(layers, heads, num_tokens, channels))
    return ChunkKV(tuple(tensors), number if start is None else start, model, model_name)


def content(kv: ChunkKV | None) -> Any:
    """All that a chunk is, to compare: bit by bit, since NaN is not equal to itself."""
    if kv is None:
        return None
    tensors = [
        (tuple(tensor.shape), tensor.dtype, bytes(tensor.contiguous().view(torch.uint8).numpy().data))
        for tensor in kv.tensors
    ]
    return tensors, kv.start, kv.model, kv.model_name


def file_of(folder: Path, key: str) -> Path:
    return folder / "v1" / key[:2] / f"{key}.safetensors"


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """A file's header and data, taken apart as the safetensors format says."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a file's header, and gives it a checksum that is right: only the content is then wrong."""
    header, data = parts(path)
    change(header)
    header["__metadata__"]["checksum"] = "0" * 8
    text = json.dumps(header, separators=(",", ":")).encode()
    raw = len(text).to_bytes(8, "little") + text + data
    digits = f"{zlib.crc32(raw):08x}".encode()
    path.write_bytes(raw.replace(b'"checksum":"00000000"', b'"checksum":"' + digits + b'"', 1))


def temporary_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.part"))
