"""Bundles come back from disk as they went, and what is not a bundle is refused in one clear sentence."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.bundle import Bundle, MaskMode
from legraph.bundlefile import BUNDLE_VERSION, MAX_AUTO_DENSE_TOKENS
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import BundleError
from legraph.graph import Generate
from legraph.wholefile import write_atomically
from tests.random_graphs import bundles, content, tokenizer

SUFFIXES = (".npz", ".pt")
MODES: tuple[MaskMode, ...] = ("auto", "dense", "compact")
INT_KEYS = ("input_ids", "position_ids", "span_offsets", "parent_offsets", "parent_indices")


@pytest.fixture(params=SUFFIXES)
def suffix(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """a <- b, c <- d, with everything that the meta can hold."""
    a = Chunk("ab", name="a", start=5)
    b = Chunk("cde", name="b", parents=[a], generate=Generate(7, ("\n", "é"), temperature=0.5, top_k=3))
    c = Chunk("f", name="c", parents=[a])
    return compile_chunks([Chunk("gh", name="d", parents=[b, c])], tokenizer(), positions="flat", bos=True)


def long_bundle(num_tokens: int) -> Bundle:
    return compile_chunks([Chunk("x" * num_tokens, name="long")], tokenizer())


def read(path: Path) -> dict[str, Any]:
    """What a file holds, read as a user without legraph would."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write(path: Path, values: dict[str, Any]) -> None:
    """Writes a bundle's keys by hand; arrays are numpy's and become tensors in a `.pt` file."""
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **values)
        return
    as_torch: dict[str, Any] = {}
    for key, value in values.items():
        as_torch[key] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
    torch.save(as_torch, path)


def keys_of(bundle: Bundle, suffix: str, **changed: Any) -> dict[str, Any]:
    """A bundle's keys as design says they are, some of them changed; None leaves a key out."""
    values: dict[str, Any] = {key: getattr(bundle, key).copy() for key in INT_KEYS}
    values |= {"span_names": list(bundle.span_names), "meta": json.dumps(meta_of(bundle))} | changed
    values = {key: value for key, value in values.items() if value is not None}
    if suffix == ".npz":
        values = {key: np.array(value) for key, value in values.items()}
    return values


def meta_of(bundle: Bundle, **changed: Any) -> dict[str, Any]:
    meta = {
        "format_version": 1,
        "legraph_version": bundle.meta.legraph_version,
        "tokenizer": bundle.meta.tokenizer,
        "tokenizer_fingerprint": bundle.meta.tokenizer_fingerprint,
        "source_sha256": bundle.meta.source_sha256,
        "positions": bundle.meta.positions,
        "pinned": sorted(bundle.meta.pinned),
        "generate": {
            name: {
                "max_new_tokens": how.max_new_tokens,
                "stop": list(how.stop),
                "temperature": how.temperature,
                "top_k": how.top_k,
            }
            for name, how in bundle.meta.generate.items()
        },
    } | changed
    return {key: value for key, value in meta.items() if value is not None}


def refusal(path: Path) -> str:
    """The one sentence that says what is wrong with a file, without the file's name in front."""
    with pytest.raises(BundleError) as caught:
        Bundle.load(path)
    assert len(caught.value.problems) == 1
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    error = caught.value
    assert error.__suppress_context__ or error.__context__ is None, "a traceback shows no inner error"
    return text.removeprefix(f"{path}: ")


# Round trips


@settings(max_examples=60)
@given(bundle=bundles(plain=False), mode=st.sampled_from(MODES))
@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_bundle_comes_back_as_it_went(kind: str, mode: MaskMode, bundle: Bundle, tmp_path_factory: Any):
    path = tmp_path_factory.mktemp("round") / f"bundle{kind}"
    bundle.save(path, mode)
    again = Bundle.load(path)
    assert content(again) == content(bundle)
    assert all(getattr(again, key).dtype == np.int64 for key in INT_KEYS)
    assert np.array_equal(again.dense_mask(), bundle.dense_mask())


def test_saving_a_loaded_bundle_gives_the_same_bytes(bundle: Bundle, tmp_path: Path, suffix: str):
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    bundle.save(first)
    Bundle.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_both_kinds_of_files_hold_the_same(bundle: Bundle, tmp_path: Path):
    loaded = []
    for kind in SUFFIXES:
        bundle.save(tmp_path / f"bundle{kind}")
        loaded.append(content(Bundle.load(str(tmp_path / f"bundle{kind}"))))
    assert loaded[0] == loaded[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_file_has_the_keys_dtypes_and_shapes_of_the_format(
    bundle: Bundle, tmp_path: Path, suffix: str, mode: MaskMode
):
    path = tmp_path / f"bundle{suffix}"
    bundle.save(path, mode)
    stored = read(path)
    num_tokens, num_chunks, num_edges = 9, 5, 4 + 4
    shapes = {
        "input_ids": (num_tokens,),
        "position_ids": (num_tokens,),
        "span_offsets": (num_chunks + 1,),
        "parent_offsets": (num_chunks + 1,),
        "parent_indices": (num_edges,),
    }
    arrays = set(shapes) | ({"attention_mask"} if mode != "compact" else set())
    assert set(stored) == arrays | {"span_names", "meta"}
    for key, shape in shapes.items():
        assert tuple(stored[key].shape) == shape
        assert stored[key].dtype == (torch.int64 if suffix == ".pt" else np.int64)
        assert stored[key].tolist() == getattr(bundle, key).tolist()
    if mode != "compact":
        assert stored["attention_mask"].dtype == (torch.bool if suffix == ".pt" else np.bool_)
        assert stored["attention_mask"].tolist() == bundle.dense_mask().tolist()
    if suffix == ".pt":
        assert type(stored["span_names"]) is list and type(stored["meta"]) is str
    else:
        assert stored["span_names"].dtype.kind == "U" and stored["span_names"].shape == (num_chunks,)
        assert stored["meta"].dtype.kind == "U" and stored["meta"].shape == ()
    assert list(stored["span_names"]) == ["bos", "a", "b", "c", "d"]


def test_the_meta_is_json_that_tells_where_the_bundle_comes_from(bundle: Bundle, tmp_path: Path, suffix: str):
    bundle.save(tmp_path / f"bundle{suffix}")
    meta = json.loads(str(read(tmp_path / f"bundle{suffix}")["meta"]))
    settings = {
        "max_new_tokens": 7,
        "stop": ["\n", "é"],
        "temperature": 0.5,
        "top_k": 3,
        "top_p": None,
        "seed": None,
    }
    assert meta == meta_of(bundle, generate={"b": settings}, pinned=["a"], positions="flat")


@pytest.mark.parametrize(
    "num_tokens, is_dense", [(MAX_AUTO_DENSE_TOKENS, True), (MAX_AUTO_DENSE_TOKENS + 1, False)]
)
def test_auto_stores_the_matrix_up_to_4096_tokens(
    num_tokens: int, is_dense: bool, tmp_path: Path, suffix: str
):
    assert MAX_AUTO_DENSE_TOKENS == 4096
    path = tmp_path / f"bundle{suffix}"
    long_bundle(num_tokens).save(path)
    assert ("attention_mask" in read(path)) == is_dense
    assert len(Bundle.load(path)) == num_tokens


def test_a_file_without_optional_keys_written_by_hand_is_a_bundle(
    bundle: Bundle, tmp_path: Path, suffix: str
):
    path = tmp_path / f"by_hand{suffix}"
    write(path, keys_of(bundle, suffix))
    assert content(Bundle.load(path)) == content(bundle)


# Writing


def test_another_suffix_is_refused_before_anything_is_written(bundle: Bundle, tmp_path: Path):
    with pytest.raises(BundleError, match=r"bundle\.zip: a bundle's file name ends in \.npz or \.pt"):
        bundle.save(tmp_path / "bundle.zip")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mask_mode_is_refused(bundle: Bundle, tmp_path: Path, suffix: str):
    with pytest.raises(BundleError, match="mask is 'full'; expected one of auto, dense, compact"):
        bundle.save(tmp_path / f"bundle{suffix}", "full")  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_a_bundle_error(bundle: Bundle, tmp_path: Path, suffix: str):
    path = tmp_path / "missing" / f"bundle{suffix}"
    with pytest.raises(BundleError, match="cannot be written: No such file or directory") as caught:
        bundle.save(path)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_a_file_is_a_bundle_error(bundle: Bundle, tmp_path: Path, suffix: str):
    (tmp_path / "file").write_text("text")
    with pytest.raises(BundleError, match="cannot be written: Not a directory"):
        bundle.save(tmp_path / "file" / f"bundle{suffix}")


def test_a_folder_in_the_place_of_the_file_stays_and_nothing_else_does(
    bundle: Bundle, tmp_path: Path, suffix: str
):
    path = tmp_path / f"bundle{suffix}"
    path.mkdir()
    with pytest.raises(BundleError, match="cannot be written"):
        bundle.save(path)
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """As a disk that is full after so many bytes: the operating system refuses to write more to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("before", [None, b"what was there before"], ids=["new", "replaced"])
@pytest.mark.parametrize("limit", [0, 1, 700])
def test_a_write_that_fails_leaves_nothing_half_written(
    bundle: Bundle, tmp_path: Path, suffix: str, limit: int, before: bytes | None
):
    path = tmp_path / f"bundle{suffix}"
    if before is not None:
        path.write_bytes(before)
    with file_size_limit(limit), pytest.raises(BundleError, match="cannot be written: File too large"):
        bundle.save(path)
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert left == ({} if before is None else {path.name: before})


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, RuntimeError])
def test_an_interrupted_write_leaves_no_temporary_file(tmp_path: Path, error: type[BaseException]):
    def interrupted(file: Any) -> None:
        file.write(b"half of it")
        raise error

    with pytest.raises(error):
        write_atomically(tmp_path / "bundle.npz", interrupted, BundleError)
    assert list(tmp_path.iterdir()) == []


def test_an_os_error_without_words_still_says_something(tmp_path: Path):
    def fail(file: Any) -> None:
        raise OSError("the cable is out")

    with pytest.raises(BundleError, match="cannot be written: the cable is out"):
        write_atomically(tmp_path / "bundle.npz", fail, BundleError)


def test_a_file_is_replaced_and_a_reader_keeps_the_old_one(bundle: Bundle, tmp_path: Path, suffix: str):
    path = tmp_path / f"bundle{suffix}"
    long_bundle(3).save(path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        bundle.save(path)
        assert reader.read() == before
    assert content(Bundle.load(path)) == content(bundle)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_mode_respects_the_umask(
    bundle: Bundle, tmp_path: Path, suffix: str, umask: int, mode: int
):
    path = tmp_path / f"bundle{suffix}"
    before = os.umask(umask)
    try:
        bundle.save(path)
    finally:
        assert os.umask(before) == umask, "writing leaves the umask as it was"
    assert path.stat().st_mode & 0o777 == mode


# Damaged and foreign files


def test_a_missing_file_is_called_missing(tmp_path: Path, suffix: str):
    assert refusal(tmp_path / f"none{suffix}") == "no such file"


def test_a_folder_is_called_a_folder(tmp_path: Path, suffix: str):
    (tmp_path / f"bundle{suffix}").mkdir()
    assert refusal(tmp_path / f"bundle{suffix}") == "is a folder"


def test_another_suffix_is_not_read(tmp_path: Path):
    (tmp_path / "bundle.bin").write_bytes(b"")
    assert refusal(tmp_path / "bundle.bin") == "a bundle's file name ends in .npz or .pt"


@pytest.mark.parametrize("mode", ["dense", "compact"])
@pytest.mark.parametrize("part", [0, 1, 0.1, 0.3, 0.5, 0.8, 0.99, -1])
def test_a_file_that_was_cut_is_damaged(
    bundle: Bundle, tmp_path: Path, suffix: str, part: float, mode: MaskMode
):
    """At a share of its length, after its first byte, or before its last one."""
    path = tmp_path / f"bundle{suffix}"
    bundle.save(path, mode)
    whole = path.read_bytes()
    path.write_bytes(whole[: part if isinstance(part, int) else int(len(whole) * part)])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("mode", ["dense", "compact"])
def test_a_flipped_bit_never_goes_unnoticed(bundle: Bundle, tmp_path: Path, suffix: str, mode: MaskMode):
    """One bit in every few bytes. Where the archive does not care about a bit, the bundle is the same."""
    path = tmp_path / f"bundle{suffix}"
    bundle.save(path, mode)
    whole, expected = path.read_bytes(), content(bundle)
    num_refused = 0
    for offset in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << offset % 8
        path.write_bytes(flipped)
        try:
            loaded = Bundle.load(path)
        except BundleError as error:
            assert str(error).startswith(f"{path}: ")
            num_refused += 1
        else:
            assert content(loaded) == expected
    assert num_refused > 0


def test_a_flipped_bit_in_a_token_id_is_noticed(bundle: Bundle, tmp_path: Path):
    """torch reads the changed id and says nothing; the archive's checksum knows."""
    path = tmp_path / "bundle.pt"
    bundle.save(path)
    changed = bytearray(path.read_bytes())
    changed[changed.index(bundle.input_ids.tobytes())] ^= 1
    path.write_bytes(changed)
    assert read(path)["input_ids"].tolist() != bundle.input_ids.tolist()
    assert "damaged" in refusal(path)


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


FOREIGN = {
    "text": b"legraph: 1\n",
    "empty zip": zip_of({}),
    "zip of texts": zip_of({"readme.txt": b"hello", "meta": b"{}"}),
    "npy": npy_bytes(np.arange(3)),
    "zip bomb's header": zip_of(
        {"input_ids.npy": npy_bytes(np.zeros(1)).replace(b"(1,), ", b"(10**15,), ")},
    ),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_file_is_refused(data: bytes, tmp_path: Path, suffix: str):
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(data)
    assert refusal(path).startswith(("is damaged, or is not a", "is not a legraph bundle: "))


def test_a_foreign_npz_is_called_no_bundle(tmp_path: Path):
    np.savez(tmp_path / "foreign.npz", input_ids=np.arange(3), weights=np.ones(3))
    assert refusal(tmp_path / "foreign.npz") == (
        "is not a legraph bundle: 'meta', 'parent_indices', 'parent_offsets', 'position_ids', "
        "'span_names', 'span_offsets' missing"
    )


@pytest.mark.parametrize(
    "value, words",
    [
        ({"weight": torch.ones(2)}, "is not a legraph bundle: 'input_ids', "),
        ([torch.ones(2)], "is not a bundle: it holds a list"),
        (torch.ones(2), "is not a bundle: it holds a Tensor"),
        ("text", "is not a bundle: it holds a str"),
    ],
    ids=["state dict", "list", "tensor", "text"],
)
def test_a_foreign_pt_is_called_no_bundle(value: Any, words: str, tmp_path: Path):
    torch.save(value, tmp_path / "foreign.pt")
    assert refusal(tmp_path / "foreign.pt").startswith(words)


def test_the_other_kind_of_file_under_the_wrong_name_is_refused(bundle: Bundle, tmp_path: Path):
    for kind, other in zip(SUFFIXES, SUFFIXES[::-1], strict=True):
        path = tmp_path / f"bundle{kind}"
        bundle.save(path)
        renamed = path.rename(tmp_path / f"renamed{other}")
        assert refusal(renamed).startswith(("is damaged, or is not a", "is not a legraph bundle"))


class Code:
    """What a pickle runs when it is read: it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def malicious(kind: str, folder: Path) -> bytes:
    if kind == "pickle":
        return pickle.dumps({"input_ids": Code(folder)})
    if kind == "npz":
        return zip_of({"input_ids.npy": npy_bytes(np.array([Code(folder)], dtype=object), allow_pickle=True)})
    buffer = io.BytesIO()
    torch.save({"input_ids": Code(folder)}, buffer, _use_new_zipfile_serialization=kind == "pt")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "npz", "pt", "old pt"])
def test_code_in_a_file_does_not_run(kind: str, tmp_path: Path, suffix: str):
    ran = tmp_path / "ran"
    path = tmp_path / f"bundle{suffix}"
    path.write_bytes(malicious(kind, ran))
    assert refusal(path).startswith(("is damaged, or is not a", "is not a legraph bundle"))
    assert not ran.exists()


def test_the_code_would_run_if_it_were_let(tmp_path: Path):
    """So the test above can fail."""
    (tmp_path / "code").write_bytes(malicious("pt", tmp_path / "ran"))
    torch.load(tmp_path / "code", weights_only=False)
    assert (tmp_path / "ran").is_dir()


# Files with the right keys that say something impossible


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# The bundle has spans bos 0:1, a 1:3, b 3:6, c 6:7, d 7:9; parents a: bos; b: bos a; c: bos a; d: bos b c.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "int32 ids": ({"input_ids": np.zeros(9, np.int32)}, "'input_ids' is not a one-dimensional int64 array"),
    "float positions": ({"position_ids": np.zeros(9)}, "'position_ids' is not a one-dimensional int64"),
    "ids with a batch": ({"input_ids": np.zeros((1, 9), np.int64)}, "'input_ids' is not a one-dimensional"),
    "bool parents": ({"parent_indices": np.zeros(9, np.bool_)}, "'parent_indices' is not a one-dim"),
    "negative id": ({"input_ids": ints(*range(8), -1)}, "token ids and position ids cannot be negative"),
    "negative position": ({"position_ids": ints(-1, *range(8))}, "token ids and position ids cannot be neg"),
    "too few ids": ({"input_ids": ints(*range(8))}, "'span_offsets' does not cut 8 tokens into 5 chunks"),
    "too many positions": ({"position_ids": ints(*range(10))}, "10 position ids for 9 tokens"),
    "no tokens": ({"input_ids": ints()}, "'span_offsets' does not cut 0 tokens"),
    "spans from 1": ({"span_offsets": ints(1, 2, 3, 6, 7, 9)}, "'span_offsets' does not cut"),
    "spans that end early": ({"span_offsets": ints(0, 1, 3, 6, 7, 8)}, "'span_offsets' does not cut"),
    "empty span": ({"span_offsets": ints(0, 1, 1, 6, 7, 9)}, "'span_offsets' does not cut"),
    "spans backwards": ({"span_offsets": ints(0, 6, 3, 7, 8, 9)}, "'span_offsets' does not cut"),
    "spans that overflow": (
        {"span_offsets": ints(0, 2**62, -(2**62), 2**63 - 1, -(2**63), 9)},
        "'span_offsets' does not cut",
    ),
    "too few spans": ({"span_offsets": ints(0, 9)}, "'span_offsets' does not cut 9 tokens into 5 chunks"),
    "no spans": ({"span_offsets": ints()}, "'span_offsets' does not cut"),
    "rows backwards": ({"parent_offsets": ints(0, 0, 5, 3, 5, 8)}, "'parent_offsets' does not fit"),
    "rows too long": ({"parent_offsets": ints(0, 0, 1, 3, 5, 9)}, "'parent_offsets' does not fit"),
    "rows from 1": ({"parent_offsets": ints(1, 1, 1, 3, 5, 8)}, "'parent_offsets' does not fit"),
    "too few rows": ({"parent_offsets": ints(0, 8)}, "'parent_offsets' does not fit"),
    "own parent": (
        {"parent_indices": ints(0, 0, 1, 0, 1, 0, 2, 4)},
        "'parent_indices' names a parent that does not come before its child",
    ),
    "parent after its child": (
        {"parent_indices": ints(2, 0, 1, 0, 1, 0, 2, 3)},
        "'parent_indices' names a parent",
    ),
    "negative parent": ({"parent_indices": ints(0, 0, 1, 0, 1, -1, 2, 3)}, "'parent_indices' names a parent"),
    "unknown parent": ({"parent_indices": ints(0, 0, 1, 0, 1, 0, 2, 99)}, "'parent_indices' names a parent"),
    "parents in disorder": (
        {"parent_indices": ints(0, 1, 0, 0, 1, 0, 2, 3)},
        "'parent_indices' is not ascending",
    ),
    "repeated parent": (
        {"parent_indices": ints(0, 0, 0, 0, 1, 0, 2, 3)},
        "'parent_indices' is not ascending",
    ),
    "repeated name": ({"span_names": ["a", "b", "c", "d", "a"]}, "two chunks have the same name"),
    "name with a space": ({"span_names": ["a b", "b", "c", "d", "e"]}, "'a b' cannot be a chunk's name"),
    "name with a line break": (
        {"span_names": ["a\n", "b", "c", "d", "e"]},
        "'a\\n' cannot be a chunk's name",
    ),
    "too few names": ({"span_names": ["a", "b", "c", "d"]}, "'span_offsets' does not cut 9 tokens into 4"),
    "names that are numbers": ({"span_names": np.arange(5)}, "'span_names' is not a list of strings"),
    "nested names": (
        {"span_names": [["a", "b", "c", "d", "e"]]},
        "['a', 'b', 'c', 'd', 'e'] cannot be a chunk's name",
    ),
    "one name": ({"span_names": "a"}, "'span_names' is not a list of strings"),
    "no names": ({"span_names": None}, "is not a legraph bundle: 'span_names' missing"),
    "small mask": (
        {"attention_mask": np.ones((8, 8), np.bool_)},
        "'attention_mask' is not a bool array of 9 x 9",
    ),
    "float mask": ({"attention_mask": np.ones((9, 9))}, "'attention_mask' is not a bool array of 9 x 9"),
    "mask with a batch": (
        {"attention_mask": np.ones((1, 9, 9), np.bool_)},
        "'attention_mask' is not a bool array",
    ),
    "causal mask": (
        {"attention_mask": np.tril(np.ones((9, 9), np.bool_))},
        "'attention_mask' contradicts spans and parents",
    ),
    "meta that is no JSON": ({"meta": "{"}, "is not a legraph bundle: 'meta' is not what legraph writes"),
    "meta that is a list": ({"meta": "[1]"}, "is not a legraph bundle: 'meta' is not what legraph writes"),
    "meta that is a number": ({"meta": np.arange(3)}, "is not a legraph bundle: 'meta' is not what legraph"),
    "endless meta": ({"meta": "[" * 100_000}, "is not a legraph bundle: 'meta' is not what legraph writes"),
    "meta of another program": ({"meta": "{}"}, "is not a legraph bundle: 'meta' is not what legraph writes"),
}


@pytest.mark.parametrize("changed, words", WRONG.values(), ids=WRONG.keys())
def test_an_impossible_bundle_is_refused(
    bundle: Bundle, tmp_path: Path, suffix: str, changed: dict[str, Any], words: str
):
    path = tmp_path / f"bundle{suffix}"
    write(path, keys_of(bundle, suffix, **changed))
    assert refusal(path).startswith(words)


WHOLE = "'meta' does not hold what a bundle of its version holds"
WRONG_META: dict[str, tuple[dict[str, Any], str]] = {
    "newer": (
        {"format_version": BUNDLE_VERSION + 1, "pinned": None},
        "is a bundle of format version 2; this legraph reads up to 1: upgrade legraph",
    ),
    "version 0": ({"format_version": 0}, "is not a legraph bundle"),
    "version that is a text": ({"format_version": "1"}, "is not a legraph bundle"),
    "version that is true": ({"format_version": True}, "is not a legraph bundle"),
    "unknown key": ({"more": 1}, WHOLE),
    "missing key": ({"source_sha256": None}, WHOLE),
    "no pinned": ({"pinned": None}, WHOLE),
    "no generate": ({"generate": None}, WHOLE),
    "tokenizer that is a number": ({"tokenizer": 3}, WHOLE),
    "pinned that is a number": ({"pinned": 3}, WHOLE),
    "pinned that is a text": ({"pinned": "abc"}, WHOLE),
    "pinned number": ({"pinned": [3]}, WHOLE),
    "pinned list": ({"pinned": [["a"]]}, WHOLE),
    "generate that is a list": ({"generate": ["b"]}, WHOLE),
    "settings that are a list": ({"generate": {"b": []}}, WHOLE),
    "negative setting": ({"generate": {"b": {"max_new_tokens": -1}}}, WHOLE),
    "unknown setting": ({"generate": {"b": {"more": 1}}}, WHOLE),
    "generate of nobody": ({"generate": {"zzz": {}}}, "'meta' speaks of a chunk 'zzz' that is not there"),
    "pinned nobody": ({"pinned": ["zzz"]}, "'meta' speaks of a chunk 'zzz' that is not there"),
    "policy": ({"positions": "casual"}, "unknown position policy 'casual' in 'meta'"),
    "policy that is a list": ({"positions": []}, "unknown position policy [] in 'meta'"),
}


@pytest.mark.parametrize("changed, words", WRONG_META.values(), ids=WRONG_META.keys())
def test_an_impossible_meta_is_refused(
    bundle: Bundle, tmp_path: Path, suffix: str, changed: dict[str, Any], words: str
):
    path = tmp_path / f"bundle{suffix}"
    write(path, keys_of(bundle, suffix, meta=json.dumps(meta_of(bundle, **changed))))
    assert refusal(path).startswith(words)


@settings(max_examples=100)
@given(bundle=bundles(max_chunks=6, max_length=4), data=st.data())
def test_one_wrong_pair_in_the_stored_matrix_is_found(
    bundle: Bundle, data: st.DataObject, tmp_path_factory: Any
):
    q, k = data.draw(st.tuples(*[st.integers(0, len(bundle) - 1)] * 2))
    dense = bundle.dense_mask()
    path = tmp_path_factory.mktemp("pair") / "bundle.npz"
    write(path, keys_of(bundle, ".npz", attention_mask=dense))
    Bundle.load(path)
    dense[q, k] ^= True
    write(path, keys_of(bundle, ".npz", attention_mask=dense))
    assert refusal(path) == "'attention_mask' contradicts spans and parents"


@pytest.mark.parametrize("row", [0, 1023, 1024, 2499])
def test_the_stored_matrix_is_compared_to_its_last_row(row: int, tmp_path: Path, suffix: str):
    """It is compared a slice of rows at a time; the rows here stand at the slices' borders."""
    bundle = long_bundle(2500)
    dense = bundle.dense_mask()
    dense[row, row] = False
    path = tmp_path / f"bundle{suffix}"
    write(path, keys_of(bundle, suffix, attention_mask=dense))
    assert refusal(path) == "'attention_mask' contradicts spans and parents"
