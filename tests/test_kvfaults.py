"""What goes wrong around a store: killed writers, full disks, damage, strangers. No read gives wrong data.

Scripts run in processes of their own; they fork, so that torch is loaded once for many writers.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from legraph import kvdisk, kvfile
from legraph.kvdisk import DiskTier, KVStoreWarning
from legraph.kvfile import BadFileError, read_head, verify_file
from legraph.kvstore import KVStore
from tests.kv_files import chunk, content, file_of, key_of, parts, rewrite, temporary_files

ROOT = Path(__file__).parent.parent
KEY = key_of(0)
PAGE = 4096


@pytest.fixture
def tier(tmp_path: Path) -> DiskTier:
    return DiskTier(tmp_path / "store")


@pytest.fixture
def good(tier: DiskTier) -> Path:
    """A sound file of `KEY`."""
    tier.write(KEY, chunk(0, num_tokens=2))
    return file_of(tier.folder, KEY)


def script(code: str, *arguments: object, cwd: Path = ROOT) -> str:
    """What the code prints; it finds the tests' modules, and fails the test where it fails."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Processes

KILLED = """
import os, random, signal, sys, time
from legraph.kvdisk import DiskTier
from tests.kv_files import *
folder, random = Path(sys.argv[1]), random.Random(0)
chunks = {key_of(n): chunk(n, 512, shapes=((8, 2, 64), (8, 2, 64))) for n in range(6)}
expected = {key: content(kv) for key, kv in chunks.items()}

def write_for_ever():
    tier = DiskTier(folder)
    while True:
        for key, kv in chunks.items():
            tier.write(key, kv)
        file_of(folder, random.choice(list(chunks))).unlink(missing_ok=True)

tier = DiskTier(folder)
rounds = num_read = 0
while rounds < 15 or not temporary_files(folder):
    rounds += 1
    assert rounds < 300, "no writer was ever killed while it wrote"
    writer = os.fork()
    if writer == 0:
        write_for_ever()
    time.sleep(random.uniform(0.002, 0.04))
    os.kill(writer, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(writer, 0)[1]) == signal.SIGKILL
    assert tier.verify().bad == ()
    for key in chunks:
        kv = tier.read(key)
        assert kv is None or content(kv) == expected[key]
        num_read += kv is not None
assert num_read > rounds
"""


def test_writers_that_are_killed_leave_whole_files_and_temporary_ones_that_pruning_finds(
    tmp_path: Path,
) -> None:
    script(KILLED, tmp_path)
    tier = DiskTier(tmp_path)
    left = temporary_files(tmp_path)
    assert left
    assert tier.prune(10**9).num_temporary == 0, "their writers might be alive"
    for path in left:
        long_ago = path.stat().st_mtime - kvdisk.STALE_S - 1
        os.utime(path, (long_ago, long_ago))
    removed = tier.prune(10**9)
    assert (removed.num_entries, removed.num_temporary) == (0, len(left))
    assert temporary_files(tmp_path) == []
    assert tier.verify().bad == ()


TOGETHER = """
import os, sys
from legraph.kvdisk import DiskTier
from tests.kv_files import *
folder, chunks = Path(sys.argv[1]), [chunk(n, 64) for n in range(20)]
expected = [content(kv) for kv in chunks]

def work(tier):
    for _ in range(12):
        for number, kv in enumerate(chunks):
            assert tier.write(key_of(number), kv)
            again = tier.read(key_of(number))
            assert again is None or content(again) == expected[number]
        tier.prune(tier.usage()[1] // 2)

writers = []
for _ in range(3):
    writers.append(os.fork())
    if writers[-1] == 0:
        try:
            work(DiskTier(folder))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
assert [os.waitpid(writer, 0)[1] for writer in writers] == [0, 0, 0]
for number, kv in enumerate(chunks):
    DiskTier(folder).write(key_of(number), kv)
"""


def test_processes_may_write_read_and_prune_the_same_keys_at_once(tmp_path: Path) -> None:
    """A warning would fail the script: what was removed under a reader is a miss, not damage."""
    script(TOGETHER, tmp_path)
    tier = DiskTier(tmp_path)
    assert (tier.verify().num_good, tier.verify().bad, temporary_files(tmp_path)) == (20, (), [])
    assert [content(tier.read(key_of(n))) for n in range(20)] == [content(chunk(n, 64)) for n in range(20)]


def test_a_reader_under_whom_files_are_removed_gets_all_or_nothing(tier: DiskTier) -> None:
    expected, done = content(chunk(0, 64)), threading.Event()

    def write_and_remove() -> None:
        other = DiskTier(tier.folder)
        while not done.is_set():
            other.write(KEY, chunk(0, 64))
            other.prune(0)

    writer = threading.Thread(target=write_and_remove)
    writer.start()
    outcomes = set[bool]()
    try:
        for _ in range(20_000):
            kv = tier.read(KEY)
            assert kv is None or content(kv) == expected
            outcomes.add(kv is not None)
            if len(outcomes) == 2 and _ > 500:
                break
    finally:
        done.set()
        writer.join()
    assert outcomes == {True, False}


@pytest.mark.parametrize("meanwhile", ["nothing", "removed", "replaced"])
def test_a_file_that_cannot_be_mapped_is_not_taken_for_a_damaged_one(
    meanwhile: str, tier: DiskTier, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch opens it once more; its `RuntimeError` may mean that the file has gone, or that memory has."""
    other = shutil.copy(good, good.with_name("other"))

    def refuses(*_: object, **__: object) -> None:
        if meanwhile == "removed":
            good.unlink()
        elif meanwhile == "replaced":
            other.replace(good)
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr("safetensors.safe_open", refuses)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert tier.read(KEY) is None
    said = [f"{good}: cannot be read: it cannot be mapped: unable to mmap"] if meanwhile == "nothing" else []
    assert [str(warning.message) for warning in warned] == said
    assert good.exists() is (meanwhile != "removed")


def test_a_file_that_is_replaced_between_its_header_and_its_tensors_is_not_taken_for_a_damaged_one(
    tier: DiskTier, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DiskTier(tier.folder.with_name("other"))
    other.write(KEY, chunk(1, num_tokens=2))
    mapped = kvfile._mapped_tensors

    def after_another_process(path: Path, num_tensors: int) -> Any:
        file_of(other.folder, KEY).replace(path)
        return mapped(path, num_tensors)

    with monkeypatch.context() as patched:
        patched.setattr(kvfile, "_mapped_tensors", after_another_process)
        assert tier.read(KEY) is None
    assert content(tier.read(KEY)) == content(chunk(1, num_tokens=2))


# Disks


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow further: a full disk that needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 500, 2000, 100_000])
def test_a_write_that_runs_out_of_room_leaves_nothing_and_warns_once(room: int, tier: DiskTier) -> None:
    kv = chunk(0, num_tokens=2000)
    assert kv.num_bytes > room
    with largest_file(room):
        with pytest.warns(KVStoreWarning, match=r"cannot be written: File too large") as warned:
            assert tier.write(KEY, kv) is False
        assert len(warned) == 1
        assert tier.write(key_of(1), kv) is False, "and no second warning, which would be an error"
    assert temporary_files(tier.folder) == []
    assert tier.usage() == (0, 0)
    assert tier.write(KEY, kv) is True
    assert content(tier.read(KEY)) == content(kv)


def test_a_store_goes_on_in_memory_when_its_disk_is_full(tmp_path: Path) -> None:
    store = KVStore(disk=tmp_path)
    with largest_file(100), pytest.warns(KVStoreWarning, match="cannot be written"):
        store.put((key_of(number), chunk(number)) for number in range(5))
    for number in range(5):
        hit = store.get(key_of(number))
        assert hit is not None and hit[1] == "memory" and content(hit[0]) == content(chunk(number))


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    tier = DiskTier(small_disk)
    chunks = [chunk(number, num_tokens=1500) for number in range(12)]
    with pytest.warns(KVStoreWarning, match="cannot be written: No space left on device") as warned:
        written = [tier.write(key_of(number), kv) for number, kv in enumerate(chunks)]
    assert len(warned) == 1
    num_written = written.index(False)
    assert 0 < num_written < 12 and not any(written[num_written:])
    assert temporary_files(small_disk) == []
    assert (tier.verify().num_good, tier.verify().bad) == (num_written, ())
    for number in range(num_written):
        assert content(tier.read(key_of(number))) == content(chunks[number])
    tier.prune(0)
    assert tier.write(key_of(11), chunks[11]) is True


READ_ONLY = """
import os, sys, warnings
from legraph.kvdisk import DiskTier
from tests.kv_files import *
import safetensors
warnings.simplefilter("always")
if os.geteuid() == 0:
    os.setuid(65534)
tier = DiskTier("store")
assert content(tier.read(key_of(0))) == content(chunk(0)), "reading needs no right to write"
with warnings.catch_warnings(record=True) as warned:
    assert not tier.write(key_of(1), chunk(1)) and not tier.write(key_of(2), chunk(2))
    assert tier.prune(0).num_entries == tier.clear().num_entries == 0
    assert tier.read(key_of(3)) is None
    assert tier.verify(remove=True).bad[0].removed is False
print(*(warning.message for warning in warned), sep="\\n")
"""


def test_a_folder_that_may_only_be_read(tmp_path: Path) -> None:
    """As root, who may write anywhere, the script becomes somebody else."""
    tier = DiskTier(tmp_path / "store")
    tier.write(KEY, chunk(0))
    tier.write(key_of(3), chunk(3))
    damaged = file_of(tier.folder, key_of(3))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        said = script(READ_ONLY, cwd=tmp_path).splitlines()
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert len(said) == 2
    assert "cannot be written: Permission denied; " in said[0]
    assert said[1].endswith("is damaged (checksum); cannot be removed")


# Damage


def refused(tier: DiskTier, path: Path, reason: str = ".") -> None:
    """All who read the file see that it is bad; `read` removes it, and says so."""
    with pytest.raises(BadFileError, match=reason):
        verify_file(path)
    with pytest.warns(KVStoreWarning, match=reason) as warned:
        assert tier.read(KEY) is None
    assert str(path) in str(warned[0].message) and str(warned[0].message).endswith("; removed")
    assert not path.exists()
    assert tier.read(KEY) is None, "now it is just not there"


def test_every_bit_of_a_file_counts(good: Path) -> None:
    raw = good.read_bytes()
    verify_file(good)
    # In place: closing a file that has been cut and written again takes its time on some file systems.
    with good.open("r+b", buffering=0) as file:
        for at, byte in enumerate(raw):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), at)
                with pytest.raises(BadFileError):
                    verify_file(good)
            os.pwrite(file.fileno(), bytes([byte]), at)
    verify_file(good)


def test_no_read_returns_a_file_with_a_changed_byte(tier: DiskTier, good: Path) -> None:
    raw = good.read_bytes()
    for at in range(len(raw)):
        good.write_bytes(raw[:at] + bytes([raw[at] ^ 0xFF]) + raw[at + 1 :])
        with pytest.warns(KVStoreWarning):
            assert tier.read(KEY) is None, at


def test_no_read_returns_a_file_with_another_length(tier: DiskTier, good: Path) -> None:
    raw = good.read_bytes()
    for length in [*range(0, len(raw), 7), len(raw) - 1]:
        good.write_bytes(raw[:length])
        with pytest.warns(KVStoreWarning):
            assert tier.read(KEY) is None, length
    for more in (b"\0", b"\0" * PAGE, raw):
        good.write_bytes(raw + more)
        refused(tier, good, r"has [\d,]+ bytes instead of [\d,]+")


def zeroed(pages: list[bytes]) -> None:
    pages[2] = b"\0" * PAGE


def swapped(pages: list[bytes]) -> None:
    pages[1], pages[3] = pages[3], pages[1]


def repeated(pages: list[bytes]) -> None:
    pages[3] = pages[2]


def two_signs(pages: list[bytes]) -> None:
    """The highest bits of two words: damage that sums of words modulo 2^64 do not see."""
    for number in (1, 2):
        pages[number] = pages[number][:7] + bytes([pages[number][7] ^ 0x80]) + pages[number][8:]


@pytest.mark.parametrize("damage", [zeroed, swapped, repeated, two_signs])
def test_damage_of_whole_pages_is_seen(damage: Callable[[list[bytes]], None], tier: DiskTier) -> None:
    tier.write(KEY, chunk(0, num_tokens=400))
    path = file_of(tier.folder, KEY)
    raw = path.read_bytes()
    pages = [raw[at : at + PAGE] for at in range(0, len(raw), PAGE)]
    assert len(pages) > 5
    damage(pages)
    path.write_bytes(b"".join(pages))
    assert path.read_bytes() != raw
    refused(tier, path, r"is damaged \(checksum\)")


@pytest.mark.parametrize("field", ["start", "model", "model_name", "created", "checksum"])
def test_metadata_that_still_make_sense_but_changed_are_seen(field: str, tier: DiskTier) -> None:
    tier.write(KEY, chunk(0, start=11))
    path = file_of(tier.folder, KEY)
    value = parts(path)[0]["__metadata__"][field].encode()
    other = value[:-1] + (b"2" if value[-1:] != b"2" else b"3")
    raw = path.read_bytes()
    path.write_bytes(
        raw.replace(b'"%s":"%s"' % (field.encode(), value), b'"%s":"%s"' % (field.encode(), other))
    )
    assert path.read_bytes() != raw
    refused(tier, path, r"is damaged \(checksum\)")


# Strangers


def test_a_file_with_another_keys_name_is_refused(tier: DiskTier) -> None:
    tier.write(key_of(1), chunk(1))
    path = file_of(tier.folder, KEY)
    path.parent.mkdir(exist_ok=True)
    shutil.copy(file_of(tier.folder, key_of(1)), path)
    assert [entry.key for entry in tier.entries()] == [key_of(1)]
    refused(tier, path, "holds what belongs to another key")


@pytest.mark.parametrize("version", ["0", "2", "10"])
def test_a_file_of_another_format_version_is_refused(version: str, tier: DiskTier, good: Path) -> None:
    rewrite(good, lambda header: header["__metadata__"].update(version=version))
    assert tier.entries() == []
    refused(tier, good, f"has format version '{version}'; this legraph has 1")


def test_files_that_other_programs_wrote_are_refused(tier: DiskTier, good: Path) -> None:
    (tensor, _) = chunk(0).tensors
    save_file({"0": tensor}, good)
    refused(tier, good, "is not a file of a KV store")
    save_file({"0": tensor}, good, metadata={"format": "pt"})
    refused(tier, good, "is not a file of a KV store")
    save_file({"0": tensor}, good, metadata={"format": "legraph-kv", "version": "2"})
    refused(tier, good, "has format version '2'")
    good.write_text("Dear diary, ")
    refused(tier, good, "is not a safetensors file")
    good.write_bytes(b"")
    refused(tier, good, "is not a safetensors file")


def test_rewriting_a_header_without_a_change_gives_a_good_file(tier: DiskTier, good: Path) -> None:
    """Shows that what the headers below are refused for is their content."""
    rewrite(good, lambda header: None)
    verify_file(good)
    assert content(tier.read(KEY)) == content(chunk(0, num_tokens=2))


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no tensors": lambda h: (h.pop("0"), h.pop("1")),
    "a tensor missing": lambda h: h.pop("0"),
    "a tensor's name": lambda h: h.update({"2": h.pop("1")}),
    "a tensor is a list": lambda h: h.update({"1": []}),
    "three dimensions": lambda h: h["0"].update(shape=[4, 2, 4]),
    "a dimension of 0": lambda h: h["0"].update(shape=[0, 2, 2, 4]),
    "a negative dimension": lambda h: h["0"].update(shape=[-2, -2, 2, 4]),
    "a huge dimension": lambda h: h["0"].update(shape=[2**60, 2**60, 2, 4]),
    "a dimension that is true": lambda h: h["0"].update(shape=[True, 4, 2, 4]),
    "a fractional dimension": lambda h: h["0"].update(shape=[2.0, 2, 2, 4]),
    "a shape that is a number": lambda h: h["0"].update(shape=4),
    "other tokens in one": lambda h: h["0"].update(shape=[2, 4, 1, 4]),
    "offsets that overlap": lambda h: h["1"].update(data_offsets=[0, 128]),
    "negative offsets": lambda h: h["0"].update(data_offsets=[-64, 0]),
    "offsets that are text": lambda h: h["0"].update(data_offsets="ab"),
    "two dtypes": lambda h: h["0"].update(dtype="F16"),
    "integers": lambda h: [h[name].update(dtype="I16") for name in "01"],
    "a dtype that is a list": lambda h: h["0"].update(dtype=[]),
    "no start": lambda h: h["__metadata__"].pop("start"),
    "a negative start": lambda h: h["__metadata__"].update(start="-1"),
    "a start that is a number": lambda h: h["__metadata__"].update(start=1),
    "an endless start": lambda h: h["__metadata__"].update(start="9" * 16),
    "other digits": lambda h: h["__metadata__"].update(start="\N{ARABIC-INDIC DIGIT ONE}"),
    "other tokens": lambda h: h["__metadata__"].update(tokens="3"),
    "a model that is no fingerprint": lambda h: h["__metadata__"].update(model="gpt2"),
    "a model's name that is a list": lambda h: h["__metadata__"].update(model_name=["tiny"]),
    "a key that is a number": lambda h: h["__metadata__"].update(key=1),
    "a version that is a list": lambda h: h["__metadata__"].update(version=["1"]),
    "a checksum in another place": lambda h: h["__metadata__"].update(
        checksum=h["__metadata__"].pop("checksum")
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_that_lie_are_refused_even_with_a_right_checksum(
    name: str, tier: DiskTier, good: Path
) -> None:
    rewrite(good, HOSTILE[name])
    assert tier.entries() == []
    with pytest.raises(BadFileError):
        read_head(good)
    refused(tier, good)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"__metadata__":' * 10_000,
        b"null",
        b"[]",
        b'{"__metadata__":[]}',
        b'{"__metadata__":"format"}',
        b'{"__metadata__":{"format":"legraph-kv"}}',
        b'{"__metadata__":{"checksum":"',
        b"\xff" * 100,
        b"9" * 10_000,
    ],
    ids=range(12),
)
def test_headers_that_are_no_header_are_refused(text: bytes, tier: DiskTier, good: Path) -> None:
    good.write_bytes(len(text).to_bytes(8, "little") + text)
    assert tier.entries() == []
    refused(tier, good)


@pytest.mark.parametrize("length", [2**20 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_to_be_huge_is_not_read(length: int, tier: DiskTier, good: Path) -> None:
    good.write_bytes(length.to_bytes(8, "little") + good.read_bytes()[8:])
    refused(tier, good, "is not a safetensors file")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=5,
)


@given(data=st.data(), value=JSON)
def test_whatever_stands_in_a_header_is_refused_or_right(
    data: st.DataObject, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tier = DiskTier(tmp_path_factory.mktemp("store"))
    tier.write(KEY, chunk(0, num_tokens=2))
    path = file_of(tier.folder, KEY)
    where = data.draw(st.sampled_from(["", "__metadata__", "0", "1"]))

    def change(header: dict[str, Any]) -> None:
        inside = header[where] if where else header
        inside[
            data.draw(st.sampled_from([name for name in inside if name not in ("__metadata__", "checksum")]))
        ] = value

    rewrite(path, change)
    header = json.loads(json.dumps(parts(path)[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KVStoreWarning)
        kv = tier.read(KEY)
    if kv is not None:
        metadata = header["__metadata__"]
        assert (kv.start, kv.model_name) == (int(metadata["start"]), metadata["model_name"])
        assert content(kv)[0] == content(chunk(0, num_tokens=2))[0]
