"""A folder of chunks' keys and values: what is written comes back bit by bit; nothing else is touched."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from legraph import kvdisk
from legraph.errors import InputError
from legraph.kvdisk import ChunkKV, DiskTier, KVStoreWarning
from tests.kv_files import DTYPES, MODEL, chunk, content, file_of, key_of, parts, temporary_files

KEY = key_of(0)


@pytest.fixture
def tier(tmp_path: Path) -> DiskTier:
    return DiskTier(tmp_path / "store")


def set_age(tier: DiskTier, key: str, seconds_since_1970: float) -> None:
    os.utime(file_of(tier.folder, key), (seconds_since_1970, seconds_since_1970))


# Round trips


@st.composite
def chunks(draw: st.DrawFn) -> ChunkKV:
    size = st.integers(1, 4)
    shapes = draw(st.lists(st.tuples(size, size, size), min_size=1, max_size=12))
    names = st.text(max_size=20)
    return chunk(
        draw(st.integers(0, 1000)),
        num_tokens=draw(st.integers(1, 9)),
        dtype=draw(st.sampled_from(DTYPES)),
        shapes=tuple(shapes),
        start=draw(st.integers(0, 10**9)),
        model_name=draw(names),
    )


@settings(max_examples=60)
@given(kv=chunks())
def test_a_chunk_comes_back_bit_by_bit(kv: ChunkKV, tmp_path_factory: pytest.TempPathFactory) -> None:
    tier = DiskTier(tmp_path_factory.mktemp("store"))
    assert tier.write(KEY, kv) is True
    assert content(tier.read(KEY)) == content(kv)
    (entry,) = tier.entries()
    assert (entry.key, entry.num_tokens, entry.start) == (KEY, kv.num_tokens, kv.start)
    assert (entry.model, entry.model_name) == (kv.model, kv.model_name)
    assert f"torch.{entry.dtype}" == str(kv.tensors[0].dtype)
    verified = tier.verify()
    assert (verified.num_good, verified.num_bytes, verified.bad) == (1, entry.num_bytes, ())


def test_a_chunk_that_is_not_there_is_none(tier: DiskTier) -> None:
    tier.write(key_of(1), chunk(1))
    assert tier.read(KEY) is None
    assert KEY not in tier
    assert key_of(1) in tier


def test_views_are_written_as_what_they_show(tier: DiskTier) -> None:
    """Layers and tokens cut out of a larger cache, which are not contiguous, and need a gradient."""
    large = torch.randn(6, 2, 50, 4, requires_grad=True)
    kv = ChunkKV((large[::2, :, 7:19], large[1:3, :, 30:42]), 7, MODEL, "tiny")
    tier.write(KEY, kv)
    again = tier.read(KEY)
    assert again is not None
    for stored, given_ in zip(again.tensors, kv.tensors, strict=True):
        assert torch.equal(stored, given_)
    assert file_of(tier.folder, KEY).stat().st_size < large.nbytes


def test_a_file_is_what_the_safetensors_library_reads(tier: DiskTier) -> None:
    kv = chunk(3)
    tier.write(KEY, kv)
    path = tier.folder / "v1" / KEY[:2] / f"{KEY}.safetensors"
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == ["0", "1"]
        for name, tensor in zip("01", kv.tensors, strict=True):
            assert torch.equal(file.get_tensor(name).view(torch.int16), tensor.view(torch.int16))
        metadata = file.metadata()
    assert int(metadata.pop("created")) > 0
    assert re.fullmatch("[0-9a-f]{8}", metadata.pop("checksum"))
    assert metadata == {
        "format": "legraph-kv",
        "version": "1",
        "key": KEY,
        "model": MODEL,
        "model_name": "tiny",
        "start": "3",
        "tokens": "5",
    }


def test_the_checksum_is_the_crc_of_all_other_bytes(tier: DiskTier) -> None:
    tier.write(KEY, chunk(3))
    path = file_of(tier.folder, KEY)
    digits = parts(path)[0]["__metadata__"]["checksum"]
    raw = path.read_bytes()
    assert raw.count(digits.encode()) == 1
    assert int(digits, 16) == zlib.crc32(raw.replace(digits.encode(), b"00000000"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_tensors_that_are_read_lie_in_the_files_pages_and_keep_no_file_open(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    before = len(list(Path("/proc/self/fd").iterdir()))
    read = [tier.read(KEY) for _ in range(20)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if KEY in line]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in mapped]
    for kv in read:
        assert kv is not None
        for tensor in kv.tensors:
            assert any(start <= tensor.data_ptr() < end for start, end in ranges)


def test_what_was_read_stays_when_its_file_goes_and_writing_to_it_changes_no_file(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    first, second = tier.read(KEY), tier.read(KEY)
    assert first is not None and second is not None
    first.tensors[0].zero_()
    assert content(tier.read(KEY)) == content(second) == content(chunk(0))
    tier.clear()
    assert content(second) == content(chunk(0))


@pytest.mark.parametrize(
    "key", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "../" + "a" * 61, "a" * 63 + "\n"]
)
def test_what_is_no_key_is_refused(key: str, tier: DiskTier) -> None:
    for use in (tier.read, tier.touch, tier.__contains__, lambda key: tier.write(key, chunk(0))):
        with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
            use(key)
    assert list(tier.folder.rglob("*")) == []


# Writing


def test_a_file_that_is_there_is_left_as_it_is(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    path = file_of(tier.folder, KEY)
    before = path.stat().st_ino, path.read_bytes()
    assert tier.write(KEY, chunk(1)) is True
    assert (path.stat().st_ino, path.read_bytes()) == before


def test_a_file_that_cannot_be_right_is_written_again(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    path = file_of(tier.folder, KEY)
    path.write_bytes(path.read_bytes()[:-1])
    assert tier.write(KEY, chunk(0)) is True
    assert content(tier.read(KEY)) == content(chunk(0))


def test_a_file_is_as_readable_as_the_users_other_files(tier: DiskTier) -> None:
    umask = os.umask(0o027)
    try:
        tier.write(KEY, chunk(0))
    finally:
        os.umask(umask)
    assert file_of(tier.folder, KEY).stat().st_mode & 0o777 == 0o640


def test_no_temporary_files_stay(tier: DiskTier) -> None:
    for number in range(5):
        tier.write(key_of(number), chunk(number))
    assert temporary_files(tier.folder) == []


def test_an_interrupted_write_leaves_nothing(tier: DiskTier, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        assert temporary_files(tier.folder), "it was there when the interrupt came"
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tier.write(KEY, chunk(0))
    assert temporary_files(tier.folder) == []
    assert KEY not in tier


# What is there


def test_entries_are_listed_the_one_used_last_first(tier: DiskTier) -> None:
    for number, age in enumerate([300, 100, 200]):
        kv = chunk(number, num_tokens=number + 1, model=str(number) * 64, model_name=f"model {number}")
        tier.write(key_of(number), kv)
        set_age(tier, key_of(number), 10**9 - age)
    entries = tier.entries()
    assert [entry.key for entry in entries] == [key_of(1), key_of(2), key_of(0)]
    newest = entries[0]
    assert newest.path == file_of(tier.folder, key_of(1))
    assert newest.num_bytes == newest.path.stat().st_size
    assert (newest.num_tokens, newest.dtype, newest.start) == (2, "bfloat16", 1)
    assert (newest.model, newest.model_name, newest.last_used) == ("1" * 64, "model 1", 10**9 - 100)
    assert tier.usage() == (3, sum(entry.num_bytes for entry in entries))
    assert tier.keys() == {key_of(number) for number in range(3)}


def test_listing_marks_nothing_as_used_but_reading_and_writing_again_do(tier: DiskTier) -> None:
    for number in range(3):
        tier.write(key_of(number), chunk(number))
        set_age(tier, key_of(number), 1000.0)
    tier.entries(), tier.usage(), tier.verify()
    assert {entry.last_used for entry in tier.entries()} == {1000.0}
    tier.read(key_of(1))
    tier.write(key_of(2), chunk(2))
    used = {entry.key: entry.last_used for entry in tier.entries()}
    assert used[key_of(0)] == 1000.0
    assert used[key_of(1)] > 10**9 and used[key_of(2)] > 10**9


# Making room


def test_pruning_removes_the_least_recently_used_first_and_no_more_than_needed(tier: DiskTier) -> None:
    ages = [5, 3, 9, 1, 7]
    for number, age in enumerate(ages):
        tier.write(key_of(number), chunk(number))
        set_age(tier, key_of(number), 10**9 - age)
    size = file_of(tier.folder, KEY).stat().st_size
    removed = tier.prune(3 * size + size // 2)
    assert (removed.num_entries, removed.num_temporary) == (2, 0)
    assert (removed.num_bytes, removed.left_bytes) == (2 * size, 3 * size)
    assert tier.keys() == {key_of(0), key_of(1), key_of(3)}
    assert tier.prune(3 * size).num_entries == 0
    assert tier.prune(0).num_entries == 3
    assert tier.usage() == (0, 0)


def test_a_tier_stays_below_its_limit_and_keeps_what_was_used(tmp_path: Path) -> None:
    unlimited = DiskTier(tmp_path / "one")
    unlimited.write(KEY, chunk(0))
    size = file_of(unlimited.folder, KEY).stat().st_size
    limit = 20 * size
    tier = DiskTier(tmp_path / "store", max_bytes=limit)
    for number in range(60):
        assert tier.write(key_of(number), chunk(number)) is True
        set_age(tier, key_of(number), 10**8 + number)
        tier.touch(KEY)
        assert tier.usage()[1] <= limit
        assert key_of(number) in tier, "what was just written is the last to go"
    assert KEY in tier
    num_files, _ = tier.usage()
    assert num_files >= 17, "no more room is made than a sixteenth and one entry"
    assert tier.keys() - {KEY} == {key_of(number) for number in range(61 - num_files, 60)}


def test_what_others_wrote_counts_too(tmp_path: Path) -> None:
    other = DiskTier(tmp_path)
    for number in range(20):
        other.write(key_of(number), chunk(number))
    size = other.usage()[1] // 20
    tier = DiskTier(tmp_path, max_bytes=10 * size)
    tier.write(key_of(100), chunk(100))
    assert tier.usage()[1] <= 10 * size


def test_what_others_write_is_noticed_before_a_tier_has_written_a_sixteenth_itself(tmp_path: Path) -> None:
    other = DiskTier(tmp_path / "store")
    other.write(KEY, chunk(0))
    limit = 64 * other.usage()[1]
    tier = DiskTier(tmp_path / "store", max_bytes=limit)
    tier.write(key_of(1), chunk(1))
    for number in range(100, 180):
        other.write(key_of(number), chunk(number))
    for number in range(200, 204):
        tier.write(key_of(number), chunk(number))
    assert tier.usage()[1] <= limit


def test_a_full_tier_makes_room_for_several_writes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = DiskTier(tmp_path / "one")
    one.write(KEY, chunk(0))
    tier, pruned = DiskTier(tmp_path / "store", max_bytes=80 * one.usage()[1]), []
    prune = DiskTier.prune
    monkeypatch.setattr(DiskTier, "prune", lambda self, size: pruned.append(size) or prune(self, size))
    for number in range(140):
        tier.write(key_of(number), chunk(number))
    assert 60 // 6 <= len(pruned) <= 60 // 5


def test_a_write_does_not_list_the_folder_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, listed = DiskTier(tmp_path, max_bytes=10**9), []
    usage = DiskTier.usage
    monkeypatch.setattr(DiskTier, "usage", lambda self: listed.append(1) or usage(self))
    for number in range(50):
        tier.write(key_of(number), chunk(number))
    assert len(listed) == 1


def test_what_is_larger_than_the_tier_is_not_written_and_removes_nothing(tmp_path: Path) -> None:
    tier = DiskTier(tmp_path, max_bytes=4000)
    tier.write(KEY, chunk(0))
    assert tier.write(key_of(1), chunk(1, num_tokens=100)) is False
    assert tier.keys() == {KEY}


def test_temporary_files_of_the_dead_go_and_those_of_the_living_stay(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    folder = file_of(tier.folder, KEY).parent
    fresh, stale = (folder / f".{KEY}.{pid}-00000000.part" for pid in (1, 2))
    foreign = folder / "notes.part"
    for path in (fresh, stale, foreign):
        path.write_bytes(b"x" * 100)
    old = stale.stat().st_mtime - kvdisk.STALE_S - 1
    os.utime(stale, (old, old))
    os.utime(foreign, (old, old))
    removed = tier.prune(10**9)
    assert (removed.num_entries, removed.num_temporary, removed.num_bytes) == (0, 1, 100)
    assert temporary_files(tier.folder) == sorted([fresh, foreign])
    assert tier.clear().num_temporary == 1
    assert temporary_files(tier.folder) == [foreign]


# What is not ours


def test_other_files_in_the_folder_are_neither_read_nor_removed(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    others = [
        tier.folder / "README.md",
        tier.folder / f"{key_of(1)}.safetensors",
        tier.folder / "v1" / "model.safetensors",
        tier.folder / "v1" / KEY[:2] / "model.safetensors",
        tier.folder / "v1" / "zz" / f"{KEY}.safetensors",
        tier.folder / "v2" / KEY[:2] / f"{KEY}.safetensors",
        tier.folder / "v1" / KEY[:2] / ".part",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not ours")
        os.utime(path, (0, 0))
    assert [entry.key for entry in tier.entries()] == [KEY]
    assert tier.usage()[0] == 1
    assert (tier.verify(remove=True).num_good, tier.verify().bad) == (1, ())
    assert tier.prune(0).num_entries == 1
    assert tier.clear().num_entries == 0
    assert all(path.read_bytes() == b"not ours" for path in others)


def test_a_link_to_a_file_elsewhere_is_not_ours(tier: DiskTier, tmp_path: Path) -> None:
    tier.write(KEY, chunk(0))
    elsewhere = tmp_path / "elsewhere"
    file_of(tier.folder, KEY).rename(elsewhere)
    file_of(tier.folder, KEY).symlink_to(elsewhere)
    assert (tier.usage(), tier.clear().num_entries) == ((0, 0), 0)
    assert elsewhere.exists() and file_of(tier.folder, KEY).is_symlink()


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(InputError) as caught:
        DiskTier(path)
    assert str(caught.value) == f"{path}: is a file\n  expected: a folder for the KV store"
    assert caught.value.exit_code == 2
    with pytest.raises(InputError, match="inside: cannot be made: Not a directory"):
        DiskTier(path / "inside")


def test_a_missing_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    tier = DiskTier(str(tmp_path / "a" / "b"))
    assert tier.folder.is_dir()
    assert (tier.entries(), tier.usage(), tier.verify().num_good) == ([], (0, 0), 0)


# Verifying


def test_verify_names_each_bad_file_with_the_reason_and_removes_it_when_asked(tier: DiskTier) -> None:
    for number in range(4):
        tier.write(key_of(number), chunk(number))
    damaged, truncated = (file_of(tier.folder, key_of(number)) for number in (1, 2))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x55")
    truncated.write_bytes(truncated.read_bytes()[:20])
    for remove in (False, True):
        steps: list[int] = []
        verified = tier.verify(remove, steps.append)
        assert steps == [1] * 4
        assert verified.num_good == 2
        assert {file.path: file.reason for file in verified.bad} == {
            damaged: "is damaged (checksum)",
            truncated: "is truncated",
        }
        assert {file.removed for file in verified.bad} == {remove}
        assert damaged.exists() is truncated.exists() is not remove
    assert tier.verify().bad == ()


def test_a_folder_in_the_place_of_a_file_is_survived(tier: DiskTier) -> None:
    file_of(tier.folder, KEY).mkdir(parents=True)
    with pytest.warns(KVStoreWarning, match="cannot be read: Is a directory"):
        assert tier.read(KEY) is None
    with pytest.warns(KVStoreWarning, match="cannot be written"):
        assert tier.write(KEY, chunk(0)) is False
    assert temporary_files(tier.folder) == []


# Without torch

LISTING = """
import sys
from legraph import kvdisk, kvshow, kvstore
tier = kvdisk.DiskTier(sys.argv[1])
assert len(tier.entries()) == 1 and tier.verify().num_good == 1 and tier.usage()[0] == 1
assert kvstore.KVStore(disk=tier.folder).stats().disk_entries == 1
tier.prune(0)
assert not {"torch", "numpy", "safetensors"} & set(sys.modules)
tier.read("0" * 64), tier.clear()
"""


def test_looking_after_a_folder_loads_no_torch(tier: DiskTier) -> None:
    tier.write(KEY, chunk(0))
    subprocess.run([sys.executable, "-c", LISTING, str(tier.folder)], check=True)
