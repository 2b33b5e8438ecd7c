"""The store of both tiers: what comes from where, what is kept, and that nothing is shared with the giver."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from legraph import kvstore
from legraph.errors import InputError
from legraph.kvdisk import ChunkKV, DiskTier, KVStoreWarning
from legraph.kvstore import KVStore
from tests.kv_files import MODEL, chunk, content, file_of, key_of

KEY = key_of(0)
SIZE = chunk(0).num_bytes
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def fill(store: KVStore, *numbers: int) -> None:
    store.put((key_of(number), chunk(number)) for number in numbers)


def found(store: KVStore, number: int) -> str | None:
    """The tier where a chunk was found, once its content has been compared."""
    hit = store.get(key_of(number))
    if hit is None:
        return None
    assert content(hit[0]) == content(chunk(number))
    return hit[1]


# What a chunk is


def test_a_chunk_knows_its_tokens_and_bytes() -> None:
    kv = ChunkKV((torch.zeros(2, 3, 5, 4), torch.zeros(1, 1, 5, 8)), 0, MODEL, "tiny")
    assert (kv.num_tokens, kv.num_bytes) == (5, 4 * (2 * 3 * 5 * 4 + 5 * 8))


@pytest.mark.parametrize(
    "changed",
    [
        {"tensors": ()},
        {"tensors": (torch.zeros(2, 3, 4),)},
        {"tensors": (torch.zeros(2, 3, 0, 4),)},
        {"tensors": (torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 3, 1))},
        {"tensors": (torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 1).bfloat16())},
        {"tensors": (torch.zeros(1, 1, 2, 1, dtype=torch.int64),)},
        {"start": -1},
        {"model": "gpt2"},
    ],
)
def test_what_is_no_chunk_is_an_error_of_ours(changed: dict[str, Any]) -> None:
    fields = {"tensors": (torch.zeros(1, 1, 2, 1),), "start": 0, "model": MODEL, "model_name": "tiny"}
    ChunkKV(**fields)
    with pytest.raises(AssertionError):
        ChunkKV(**(fields | changed))


# Memory


def test_what_was_put_is_found_in_memory() -> None:
    store = KVStore()
    fill(store, 0, 1)
    assert [found(store, number) for number in (0, 1, 2)] == ["memory", "memory", None]
    assert KEY in store and key_of(2) not in store and len(store) == 2
    stats = store.stats()
    assert (stats.memory_entries, stats.memory_bytes) == (2, 2 * SIZE)
    assert (stats.hits_memory, stats.hits_disk, stats.misses) == (2, 0, 1)
    assert (stats.disk_entries, stats.disk_bytes) == (0, 0)


def test_the_least_recently_used_goes_first() -> None:
    store = KVStore(memory_bytes=3 * SIZE)
    fill(store, 0, 1, 2)
    assert found(store, 0) == "memory"
    fill(store, 3)
    assert [found(store, number) for number in range(4)] == ["memory", None, "memory", "memory"]


def test_asking_whether_a_key_is_there_is_no_use() -> None:
    store = KVStore(memory_bytes=2 * SIZE)
    fill(store, 0, 1)
    assert KEY in store
    fill(store, 2)
    assert KEY not in store
    assert store.stats().misses == 0


@pytest.mark.parametrize("with_disk", [False, True])
def test_a_chunk_larger_than_memory_is_not_kept_there_and_pushes_nothing_out(
    with_disk: bool, tmp_path: Path
) -> None:
    store = KVStore(memory_bytes=2 * SIZE, disk=tmp_path if with_disk else None)
    fill(store, 0)
    store.put([("f" * 64, chunk(1, num_tokens=11))])
    assert store.stats().memory_entries == 1
    assert found(store, 0) == "memory"
    assert (store.get("f" * 64) is not None) == with_disk


def test_a_chunk_that_fills_memory_exactly_is_kept() -> None:
    store = KVStore(memory_bytes=SIZE)
    fill(store, 0)
    assert found(store, 0) == "memory"


def test_clearing_memory_empties_it_and_leaves_what_was_given_out() -> None:
    store = KVStore()
    fill(store, 0)
    hit = store.get(KEY)
    store.clear_memory()
    stats = store.stats()
    assert (stats.memory_entries, stats.memory_bytes, len(store)) == (0, 0, 0)
    assert hit is not None and content(hit[0]) == content(chunk(0))


def test_what_is_kept_is_a_copy_of_no_more_than_the_chunk() -> None:
    """The giver goes on writing to its cache, and the store must not keep that whole cache alive."""
    cache = torch.randn(2, 2, 1000, 4)
    given = cache[:, :, 10:15]
    expected = given.clone()
    store = KVStore()
    store.put([(KEY, ChunkKV((given,), 10, MODEL, "tiny"))])
    cache.zero_()
    hit = store.get(KEY)
    assert hit is not None
    (kept,) = hit[0].tensors
    assert torch.equal(kept, expected)
    assert kept.is_contiguous() and kept.untyped_storage().nbytes() == kept.nbytes


def test_tensors_that_need_a_gradient_lose_it() -> None:
    store = KVStore()
    store.put([(KEY, ChunkKV((torch.ones(1, 1, 2, 2, requires_grad=True) * 2,), 0, MODEL, "tiny"))])
    hit = store.get(KEY)
    assert hit is not None and not hit[0].tensors[0].requires_grad


def test_a_key_twice_in_one_put_is_kept_once() -> None:
    store = KVStore()
    fill(store, 0, 0)
    assert store.stats().memory_bytes == SIZE


def test_a_put_of_nothing_is_nothing() -> None:
    store = KVStore()
    store.put([])
    assert len(store) == 0


@pytest.mark.parametrize("key", ["", "A" * 64, "a" * 63])
def test_what_is_no_key_is_refused(key: str, tmp_path: Path) -> None:
    store = KVStore(disk=tmp_path)
    for use in (store.get, store.__contains__, lambda key: store.put([(key, chunk(0))])):
        with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
            use(key)


class AgainstAModel(RuleBasedStateMachine):
    """Any sequence of uses does what an ordered dictionary with a byte budget does."""

    BUDGET = 6 * SIZE

    def __init__(self) -> None:
        super().__init__()
        self.store = KVStore(memory_bytes=self.BUDGET)
        self.model: OrderedDict[str, int] = OrderedDict()
        self.hits = self.misses = 0

    @rule(number=st.integers(0, 9))
    def put(self, number: int) -> None:
        kv = chunk(number, num_tokens=5 * (1 + number % 8))
        self.store.put([(key_of(number), kv)])
        if key_of(number) in self.model or kv.num_bytes > self.BUDGET:
            return
        self.model[key_of(number)] = kv.num_bytes
        while sum(self.model.values()) > self.BUDGET:
            self.model.popitem(last=False)

    @rule(number=st.integers(0, 9))
    def get(self, number: int) -> None:
        hit = self.store.get(key_of(number))
        assert (hit is not None) == (key_of(number) in self.model)
        if hit is None:
            self.misses += 1
            return
        self.hits += 1
        self.model.move_to_end(key_of(number))
        assert content(hit[0]) == content(chunk(number, num_tokens=5 * (1 + number % 8)))

    @rule()
    def clear(self) -> None:
        self.store.clear_memory()
        self.model.clear()

    @invariant()
    def agrees(self) -> None:
        stats = self.store.stats()
        assert (stats.memory_entries, stats.memory_bytes) == (len(self.model), sum(self.model.values()))
        assert (stats.hits_memory, stats.misses) == (self.hits, self.misses)


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=40, stateful_step_count=30)


# Memory and disk


def test_what_was_put_is_found_by_the_next_process_on_disk_and_then_in_memory(tmp_path: Path) -> None:
    fill(KVStore(disk=tmp_path), 0, 1)
    store = KVStore(disk=str(tmp_path))
    assert KEY in store and len(store) == 2
    assert [found(store, 0), found(store, 0), found(store, 2)] == ["disk", "memory", None]
    stats = store.stats()
    assert (stats.hits_memory, stats.hits_disk, stats.misses) == (1, 1, 1)
    assert (stats.memory_entries, stats.memory_bytes, stats.disk_entries) == (1, SIZE, 2)
    assert stats.disk_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))


def test_what_is_taken_into_memory_does_not_depend_on_its_file(tmp_path: Path) -> None:
    fill(KVStore(disk=tmp_path), 0)
    store = KVStore(disk=tmp_path)
    assert found(store, 0) == "disk"
    path = file_of(tmp_path, KEY)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert found(store, 0) == "memory"


def test_what_does_not_fit_into_memory_is_read_from_disk_each_time(tmp_path: Path) -> None:
    store = KVStore(memory_bytes=SIZE - 1, disk=tmp_path)
    fill(store, 0)
    assert [found(store, 0), found(store, 0)] == ["disk", "disk"]
    assert (store.stats().memory_entries, store.stats().disk_entries) == (0, 1)


def test_what_memory_let_go_is_still_on_disk(tmp_path: Path) -> None:
    store = KVStore(memory_bytes=2 * SIZE, disk=tmp_path)
    fill(store, 0, 1, 2)
    assert [found(store, number) for number in (2, 1, 0)] == ["memory", "memory", "disk"]
    assert len(store) == 3


def test_a_key_that_is_in_both_tiers_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = KVStore(disk=tmp_path)
    fill(store, 0)
    monkeypatch.setattr(kvstore, "_copy", lambda tensor: pytest.fail("copied"))
    monkeypatch.setattr(DiskTier, "write", lambda *_: pytest.fail("written"))
    fill(store, 0)


def test_a_key_that_is_in_memory_only_is_written_without_being_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KVStore(disk=tmp_path)
    fill(store, 0)
    assert store.disk is not None
    store.disk.clear()
    monkeypatch.setattr(kvstore, "_copy", lambda tensor: pytest.fail("copied"))
    fill(store, 0)
    store.clear_memory()
    monkeypatch.undo()
    assert found(store, 0) == "disk"


def test_a_key_that_is_on_disk_only_is_taken_into_memory(tmp_path: Path) -> None:
    store = KVStore(disk=tmp_path)
    fill(store, 0)
    store.clear_memory()
    fill(store, 0)
    assert found(store, 0) == "memory"


def test_what_neither_tier_takes_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvstore, "_copy", lambda tensor: pytest.fail("copied"))
    fill(KVStore(memory_bytes=SIZE - 1), 0)


def test_the_disk_tier_has_a_limit_of_its_own(tmp_path: Path) -> None:
    limit = 10_000
    store = KVStore(disk=tmp_path, disk_bytes=limit)
    fill(store, *range(40))
    stats = store.stats()
    assert 0 < stats.disk_bytes <= limit
    assert stats.memory_entries == 40


def test_a_damaged_file_is_a_miss_with_a_warning(tmp_path: Path) -> None:
    store = KVStore(disk=tmp_path)
    fill(store, 0)
    store.clear_memory()
    path = file_of(tmp_path, KEY)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(KVStoreWarning, match=f"{KEY}.safetensors: has .* bytes instead of .*; removed"):
        assert store.get(KEY) is None
    assert store.stats().misses == 1
    assert KEY not in store
    fill(store, 0)
    assert found(store, 0) == "memory"


def test_a_store_of_another_model_is_never_hit(tmp_path: Path) -> None:
    """Keys begin with the model, so another model's chunk lies under another key."""
    store = KVStore(disk=tmp_path)
    store.put([(key_of(1), chunk(0, model="1" * 64)), (key_of(2), chunk(0, model="2" * 64))])
    store.clear_memory()
    for number in (1, 2):
        hit = store.get(key_of(number))
        assert hit is not None and hit[0].model == str(number) * 64
    assert store.get(key_of(3)) is None


def test_chunks_used_from_memory_are_used_on_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the chunks that everybody uses would be the first to be pruned."""
    touched: list[str] = []
    now = [0.0]
    monkeypatch.setattr(DiskTier, "touch", lambda self, key: touched.append(key))
    monkeypatch.setattr(kvstore, "time", SimpleNamespace(monotonic=lambda: now[0]))
    store = KVStore(disk=tmp_path)
    fill(store, 0)
    touched.clear()
    for now[0], is_due in ((1, False), (50, False), (70, True), (71, False), (129, False), (140, True)):
        found(store, 0)
        assert touched == [KEY] * is_due, f"after {now[0]} s"
        touched.clear()


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        KVStore(disk=tmp_path / "file")


# Threads


@pytest.mark.parametrize("with_disk", [False, True])
def test_many_threads_may_share_a_store(with_disk: bool, tmp_path: Path) -> None:
    store = KVStore(memory_bytes=8 * SIZE, disk=tmp_path if with_disk else None)
    expected = {number: content(chunk(number)) for number in range(24)}
    num_threads, num_rounds = 6, 60

    def work(thread: int) -> int:
        num_hits = 0
        for step in range(num_rounds):
            number = (7 * thread + 5 * step) % len(expected)
            hit = store.get(key_of(number))
            if hit is not None:
                assert content(hit[0]) == expected[number]
                num_hits += 1
            fill(store, number, (number + thread) % len(expected))
        return num_hits

    with ThreadPoolExecutor(num_threads) as pool:
        num_hits = sum(pool.map(work, range(num_threads)))
    stats = store.stats()
    assert stats.hits_memory + stats.hits_disk == num_hits > 0
    assert num_hits + stats.misses == num_threads * num_rounds
    assert stats.memory_entries == 8 and stats.memory_bytes == 8 * SIZE
    assert stats.disk_entries == (24 if with_disk else 0)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Reads and writes that begin and then wait until the event is set."""
    go_on = threading.Event()

    def waiting(self: DiskTier, *_: Any) -> None:
        assert go_on.wait(20)

    monkeypatch.setattr(DiskTier, "read", waiting)
    monkeypatch.setattr(DiskTier, "write", waiting)
    yield go_on
    go_on.set()


def test_memory_answers_while_the_disk_is_slow(tmp_path: Path, slow_disk: threading.Event) -> None:
    store = KVStore(disk=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(fill, store, 0)
        reading = pool.submit(store.get, key_of(1))
        while KEY not in store:
            assert not writing.done()
        assert found(store, 0) == "memory"
        assert not writing.done() and not reading.done()
        slow_disk.set()
    assert reading.result() is None


# Devices


@pytest.mark.gpu
@needs_cuda
def test_chunks_from_a_gpu_are_kept_in_pinned_memory(tmp_path: Path) -> None:
    cache = torch.randn(2, 2, 1000, 64, device="cuda", dtype=torch.bfloat16)
    chunks = {
        key_of(at): ChunkKV((cache[:, :, at : at + 10],), at, MODEL, "tiny") for at in range(0, 1000, 10)
    }
    expected = {key: kv.tensors[0].cpu() for key, kv in chunks.items()}
    store = KVStore(disk=tmp_path)
    store.put(chunks.items())
    cache.zero_()
    for key in chunks:
        hit = store.get(key)
        assert hit is not None and hit[0].tensors[0].is_pinned()
        assert torch.equal(hit[0].tensors[0], expected[key])
    store.clear_memory()
    for key in chunks:
        hit = store.get(key)
        assert hit is not None and hit[1] == "disk"
        assert torch.equal(hit[0].tensors[0], expected[key])
