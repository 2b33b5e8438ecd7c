"""Recorded passes, without a GPU: a tape that plays torch's operations again stands in for a CUDA graph.

As a CUDA graph does, it reads and writes the very tensors that were there when it was recorded, and refuses
whatever would wait for a number. test_kernel_gpu does the same with real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.cudasteps import CudaSteps
from legraph.engine import Engine
from legraph.graph import Generate
from legraph.kvstore import KVStore
from tests.naive import counts, engine, ids_of, oracle, run_and_check
from tests.random_graphs import tokenizer

HOW = Generate(max_new_tokens=6)
WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero")


class Tape(TorchDispatchMode):
    """Operations on tensors, with what went in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                # Views and what was written in place are there already.
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def tape_of(tape: Tape, pool: Any) -> Tape:
    return tape


class Torch:
    """torch, with CUDA as far as it is needed here."""

    cuda = SimpleNamespace(
        graph_pool_handle=lambda: None,
        synchronize=lambda: None,
        Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
        stream=lambda stream: nullcontext(),
        CUDAGraph=Tape,
        graph=tape_of,
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return torch.empty(*args, **kwargs)


@pytest.fixture(autouse=True)
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("legraph.cudasteps.torch", Torch())
    # On a CPU the slots that are seen are looked up; the kernel of a GPU needs no such number.
    monkeypatch.setattr("legraph.flatattention._seen", lambda rows_TS: slice(0, rows_TS.shape[1]))


def recording_engine(name: str = "llama", **more: Any) -> Engine:
    made = engine(name, **more)
    made._forward.steps = CudaSteps(made._forward)
    return made


def steps_of(made: Engine) -> CudaSteps:
    assert made._forward.steps is not None
    return made._forward.steps


@contextmanager
def counted(made: Engine) -> Iterator[list[int]]:
    """Sizes of the passes that the model itself ran; those that are played are not among them."""
    sizes = list[int]()
    note = made.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield sizes
    note.remove()


def graph(number: int = 0, docs: int = 2, leaves: int = 3) -> Bundle:
    texts = [Chunk(f"{number}{chr(97 + i)}" * (1 + i), name=f"d{i}") for i in range(docs)]
    draft = Chunk("go", parents=texts[:1], name="draft", generate=Generate(max_new_tokens=3))
    questions = [
        Chunk("so?" + "!" * i, parents=[draft, texts[i % docs]], name=f"q{i}") for i in range(leaves)
    ]
    return compile_chunks(questions, tokenizer())


@pytest.mark.parametrize("name", ["llama", "llama-gqa", "mistral-window", "gemma3", "gemma2", "gpt2"])
def test_played_passes_give_what_the_model_gives(name: str) -> None:
    made, bundle = recording_engine(name), graph()
    expected = oracle(name, bundle, counts(bundle, 6))
    for _ in range(3):
        assert ids_of(run_and_check(made, bundle, HOW)) == expected
    with counted(made) as sizes:
        assert ids_of(made.run(bundle, HOW)) == expected
    # By then all of its passes are recorded.
    assert sizes == []
    assert steps_of(made).refused is None
    assert made.compilations()["cuda_graphs"] == steps_of(made).num_recordings > 2


def test_a_pass_is_recorded_when_it_comes_for_the_second_time() -> None:
    made = recording_engine()
    bundle = compile_chunks([Chunk("text", name="x")], tokenizer())
    with counted(made) as sizes:
        made.run(bundle, Generate(max_new_tokens=6))
    # Text; a first step; another one, tried out and recorded; three more are played.
    assert sizes == [4, 1, 1, 1]
    assert steps_of(made).num_recordings == 1


def test_recordings_survive_other_graphs_and_a_cache_that_grows() -> None:
    """Branches come and go, more lanes than before are needed, and the tensors behind recordings change."""
    made = recording_engine()
    for number, (docs, leaves) in enumerate([(2, 1), (3, 3), (2, 1), (3, 12), (3, 3), (30, 20), (2, 1)]):
        bundle = graph(number, docs, leaves)
        expected = oracle("llama", bundle, counts(bundle, 6))
        for _ in range(2):
            assert ids_of(made.run(bundle, HOW)) == expected
    assert made._forward.capacity > 512
    assert steps_of(made).refused is None


def test_graphs_side_by_side_with_a_store_and_in_small_parts() -> None:
    made = recording_engine(prefill_tokens=7, kv=KVStore())
    bundles = [graph(i, 1 + i % 3, 1 + i % 4) for i in range(4)]
    expected = [oracle("llama", bundle, counts(bundle, 6)) for bundle in bundles]
    for _ in range(3):
        assert [ids_of(result) for result in made.run(bundles, HOW)] == expected


@pytest.mark.parametrize("at", ["the trial", "the recording"])
def test_a_model_that_cannot_be_recorded_runs_as_before(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a number in every pass. What the attempt has written must not be seen."""
    made, bundle = recording_engine(), graph()
    expected = oracle("llama", bundle, counts(bundle, 6))

    def wait(module: Any, args: Any, kwargs: Any) -> None:
        kwargs["input_ids"].max().item()

    note = made.model.register_forward_pre_hook(wait, with_kwargs=True)
    if at == "the trial":
        monkeypatch.setattr(Torch.cuda, "stream", lambda stream: Tape())
    try:
        for _ in range(3):
            assert ids_of(run_and_check(made, bundle, HOW)) == expected
    finally:
        note.remove()
    assert steps_of(made).refused == "operation not permitted when stream is capturing"
    assert made.compilations()["cuda_graphs"] == 0


def test_the_number_of_recordings_is_bounded() -> None:
    """Five sizes of prefill; the powers of two of lanes up to 8, and up to 16 once there are more."""
    made = recording_engine(cache_tokens=2000)
    random = Random(0)
    for number in range(40):
        made.run(graph(number, random.randint(1, 6), random.randint(1, 9)), Generate(max_new_tokens=4))
    assert 5 < made.compilations()["cuda_graphs"] <= 5 + 4 + 5


def test_many_branches_are_more_than_a_recording_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, bundle = recording_engine(), graph(leaves=6)
    monkeypatch.setattr("legraph.cudasteps._MAX_LANES", 4)
    expected = oracle("llama", bundle, counts(bundle, 6))
    for _ in range(3):
        assert ids_of(made.run(bundle, HOW)) == expected
    assert {size for kind, size in steps_of(made)._recordings if kind == "decode"} == {1}
