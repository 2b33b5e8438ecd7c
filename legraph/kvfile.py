"""One file of the KV store: the keys and values of one chunk, with a checksum over all of it.

A file is in the safetensors format, and that library maps its tensors into memory. The header is read here,
because listing a store must not load torch, and files are written here, because the checksum must stand at a
known place (the library orders metadata at random) and a full disk must be an `OSError`. Nothing in a header
is believed before it is checked.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

FORMAT = "legraph-kv"
FORMAT_VERSION = 1
KEY_PATTERN = re.compile("[0-9a-f]{64}")

# The names of dtypes in safetensors headers and in torch, and their bytes.
_DTYPES = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4), "F64": ("float64", 8)}
_CODES = {name: code for code, (name, _) in _DTYPES.items()}

# The checksum comes first in a header, so that its place is known before the rest is understood.
_PREFIX = b'{"__metadata__":{"checksum":"'
_LENGTH_BYTES = 8
_CHECKSUM_AT = _LENGTH_BYTES + len(_PREFIX)
_NO_CHECKSUM = b"00000000"
# A header has a few hundred bytes; one that claims more than this is damaged, and is not read into memory.
_MAX_HEADER_BYTES = 2**20
# Where tensors start: a multiple of the widest vectors of CPUs.
_ALIGNMENT = 64
# Far above any size that is real, far below where products of four of them become slow.
_MAX_NUMBER = 2**48
_PIECE_BYTES = 2**20


class BadFileError(Exception):
    """A file is damaged, or is not what its name says. The message is the reason, without the name."""


@dataclass(frozen=True, slots=True)
class ChunkKV:
    """Keys and values of one chunk.

    Attributes:
        tensors: one for each group of layers of the same shape, [n, H, T, D]; T and the dtype, a floating
            one, are the same for all.
        start: position id at which the first token was computed.
        model: fingerprint of the weights and the config, 64 hex digits.
        model_name: what the user calls the model.
    """

    tensors: tuple[torch.Tensor, ...]
    start: int
    model: str
    model_name: str

    def __post_init__(self) -> None:
        assert self.tensors, "a chunk has keys and values"
        first = self.tensors[0]
        assert _dtype_name(first) in _CODES, "a floating dtype"
        for tensor in self.tensors:
            assert tensor.ndim == 4 and tensor.numel() > 0, f"shape {tuple(tensor.shape)}"
            assert (tensor.shape[2], tensor.dtype) == (first.shape[2], first.dtype), "one T, one dtype"
        assert self.start >= 0
        assert KEY_PATTERN.fullmatch(self.model), "64 lowercase hex digits"

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def num_tokens(self) -> int:
        return self.tensors[0].shape[2]


@dataclass(frozen=True, slots=True)
class Head:
    """What a file says about itself. The tensors lie one after the other from `data_at` to the end."""

    key: str
    model: str
    model_name: str
    start: int
    num_tokens: int
    created: int
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    data_at: int
    num_bytes: int
    checksum: str


def checksum(head: bytes, data: Iterable[Any]) -> str:
    """CRC-32 of a file's bytes but for the checksum itself, as 8 hex digits.

    `head` is all up to the data, `data` buffers of any size. CRC-32 sees every change of up to 32
    neighbouring bits for certain and misses other damage once in 2^32. A sum of words times odd weights
    modulo 2^64 is faster, but any two changes of a word's highest bit cancel in it.
    """
    at, end = _CHECKSUM_AT, _CHECKSUM_AT + len(_NO_CHECKSUM)
    crc = zlib.crc32(head[:at] + _NO_CHECKSUM + head[end:])
    for buffer in data:
        crc = zlib.crc32(buffer, crc)
    return f"{crc:08x}"


def encode(key: str, kv: ChunkKV) -> list[Any]:
    """The buffers that make up a file: its head, then each tensor's memory (copied if not contiguous)."""
    data = [_memory(tensor) for tensor in kv.tensors]
    metadata = {
        "checksum": _NO_CHECKSUM.decode(),
        "format": FORMAT,
        "version": str(FORMAT_VERSION),
        "key": key,
        "model": kv.model,
        "model_name": kv.model_name,
        "start": str(kv.start),
        "tokens": str(kv.num_tokens),
        "created": str(int(time.time())),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for number, tensor in enumerate(kv.tensors):
        start, end = end, end + tensor.nbytes
        code = _CODES[_dtype_name(tensor)]
        header[str(number)] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    head = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    digits = checksum(head, data).encode()
    return [head[:_CHECKSUM_AT] + digits + head[_CHECKSUM_AT + len(digits) :], *data]


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _memory(tensor: torch.Tensor) -> memoryview:
    import torch

    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data


def read_head(path: Path, file: BinaryIO | None = None) -> Head:
    """What the file says about itself, checked to fit its name and its size; the checksum is not.

    Raises:
        BadFileError: the file is damaged, foreign, of another format version, or has another key's name.
        OSError: it cannot be read.
    """
    if file is None:
        with path.open("rb") as opened:
            return read_head(path, opened)
    return _parse_head(path.stem, _head_bytes(file), os.fstat(file.fileno()).st_size)


def _head_bytes(file: BinaryIO) -> bytes:
    length = file.read(_LENGTH_BYTES)
    num_bytes = int.from_bytes(length, "little")
    if len(length) < _LENGTH_BYTES or num_bytes > _MAX_HEADER_BYTES:
        raise BadFileError("is not a safetensors file")
    text = file.read(num_bytes)
    if len(text) < num_bytes:
        raise BadFileError("is truncated")
    return length + text


def _parse_head(key: str, head: bytes, num_bytes: int) -> Head:
    try:
        content: Any = json.loads(head[_LENGTH_BYTES:])
        metadata = content.pop("__metadata__")
        form, version = metadata["format"], metadata["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadFileError("is not a file of a KV store") from None
    if form != FORMAT:
        raise BadFileError("is not a file of a KV store")
    if version != str(FORMAT_VERSION):
        raise BadFileError(f"has format version {str(version)[:20]!r}; this legraph has {FORMAT_VERSION}")
    try:
        parsed = _to_head(head, metadata, content)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadFileError("has a damaged header") from None
    if parsed.num_bytes != num_bytes:
        raise BadFileError(f"has {num_bytes:,} bytes instead of {parsed.num_bytes:,}")
    if parsed.key != key:
        raise BadFileError("holds what belongs to another key")
    return parsed


def _to_head(head: bytes, metadata: dict[str, Any], tensors: dict[str, Any]) -> Head:
    """Raises ValueError, KeyError, TypeError or AttributeError where it is not as `encode` wrote it."""
    key, model, name = metadata["key"], metadata["model"], metadata["model_name"]
    start, num_tokens, created = (_decimal(metadata[field]) for field in ("start", "tokens", "created"))
    if not (head[_LENGTH_BYTES:].startswith(_PREFIX) and KEY_PATTERN.fullmatch(key) and tensors):
        raise ValueError
    if not (KEY_PATTERN.fullmatch(model) and isinstance(name, str)):
        raise ValueError
    shapes: list[tuple[int, ...]] = []
    dtypes: set[str] = set()
    end = 0
    for number in range(len(tensors)):
        tensor = tensors[str(number)]
        shape = tuple(tensor["shape"])
        if len(shape) != 4 or shape[2] != num_tokens:
            raise ValueError
        start_of, end = end, end + _num_values(shape) * _DTYPES[tensor["dtype"]][1]
        if tensor["data_offsets"] != [start_of, end]:
            raise ValueError
        shapes.append(shape)
        dtypes.add(_DTYPES[tensor["dtype"]][0])
    (dtype,) = dtypes
    digits = head[_CHECKSUM_AT : _CHECKSUM_AT + len(_NO_CHECKSUM)].decode()
    at = len(head)
    return Head(key, model, name, start, num_tokens, created, dtype, tuple(shapes), at, at + end, digits)


def _decimal(text: str) -> int:
    if not re.fullmatch("[0-9]{1,15}", text):
        raise ValueError
    return int(text)


def _num_values(shape: tuple[Any, ...]) -> int:
    product = 1
    for length in shape:
        if type(length) is not int or not 0 < length < _MAX_NUMBER:
            raise ValueError
        product *= length
    return product


def map_file(path: Path) -> ChunkKV:
    """The file's tensors, backed by its pages (private: writing to them changes no file), checksum verified.

    Raises:
        BadFileError: as `read_head`, or the checksum is wrong.
        OSError: it cannot be read; a `FileNotFoundError` also if it was removed or replaced meanwhile.
    """
    from safetensors import SafetensorError

    with path.open("rb") as file:
        head = read_head(path, file)
        file.seek(0)
        start = file.read(head.data_at)
        try:
            tensors = _mapped_tensors(path, len(head.shapes))
            is_good = checksum(start, map(_memory, tensors)) == head.checksum
        except (SafetensorError, RuntimeError) as error:
            _check_same(path, file)
            # torch's word for whatever the system answers, such as that memory has run out.
            raise OSError(f"it cannot be mapped: {error}") from None
        if not is_good:
            _check_same(path, file)
            raise BadFileError("is damaged (checksum)")
    return ChunkKV(tensors, head.start, head.model, head.model_name)


def _mapped_tensors(path: Path, num_tensors: int) -> tuple[torch.Tensor, ...]:
    """Opens the file again, by its name, and keeps it mapped without keeping it open."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        return tuple(opened.get_tensor(str(number)) for number in range(num_tensors))


def _check_same(path: Path, file: BinaryIO) -> None:
    """Raises FileNotFoundError: by now another file has the name, or none, so nothing is known to be bad."""
    if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise FileNotFoundError(f"{path}: replaced by another process")


def verify_file(path: Path) -> int:
    """Reads the whole file and returns its size. Not mapped: a disk that fails to read raises, kills nothing.

    Raises:
        BadFileError, OSError: as `map_file`.
    """
    with path.open("rb") as file:
        head = read_head(path, file)
        file.seek(0)
        start = file.read(head.data_at)
        if checksum(start, iter(lambda: file.read(_PIECE_BYTES), b"")) != head.checksum:
            raise BadFileError("is damaged (checksum)")
    return head.num_bytes
