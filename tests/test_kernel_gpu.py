"""On a GPU: the kernel against the formula, and engines whose passes are recorded against the CPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine
from legraph.errors import ModelError
from legraph.flatattention import plain_attention
from legraph.flatkernel import attend, tiles
from legraph.graph import Generate
from legraph.kvstore import KVStore
from legraph.rotary import KeyShift
from tests.naive import NEVER, counts, ids_of, oracle, run_and_check
from tests.random_graphs import tokenizer
from tests.tiny_models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Largest difference from the formula in float64, relative to the largest number.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def check_kernel(
    num_queries: int,
    num_slots: int,
    heads: int,
    groups: int,
    channels: int,
    dtype: torch.dtype,
    softcap: float | None = None,
    sinks: bool = False,
    out_channels: int | None = None,
) -> None:
    """Queries that each see a few stretches of slots; what they do not see is huge, and must not matter."""
    generator = torch.Generator(device="cuda").manual_seed(num_queries)
    random = Random(num_queries)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    out_channels = out_channels or channels
    q = normal(heads, num_queries, channels)
    # A cache that is larger than what is shown, so that its strides are not those of its shape.
    k, v = (normal(groups, num_slots + 70, size)[:, :num_slots] for size in (channels, out_channels))
    rows = torch.zeros((num_queries, num_slots), dtype=torch.bool)
    for row in rows:
        for _ in range(random.randint(1, 4)):
            start = random.randrange(num_slots)
            row[start : start + random.randint(1, 90)] = True
    rows = rows.cuda()
    unseen = ~rows.any(0)
    k[:, unseen], v[:, unseen] = 500, -500
    s_aux = normal(heads).float() if sinks else None
    scale = channels**-0.5
    found = attend(q, k, v, tiles(rows, heads // groups), scale, softcap, s_aux)
    assert (found.dtype, tuple(found.shape)) == (dtype, (num_queries, heads, out_channels))
    assert found.is_contiguous()
    expected = exact(q, k, v, rows, scale, softcap, s_aux)
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE[dtype]


def exact(q: Any, k: Any, v: Any, rows: Any, scale: float, softcap: Any, sinks: Any) -> torch.Tensor:
    """[T, H, E] in float64, head by head."""
    heads = []
    for h in range(len(q)):
        j = h // (len(q) // len(k))
        scores = q[h].double() @ k[j].double().T * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.where(rows, scores.exp(), 0.0)
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks[h].double().exp()
        heads.append(weights / total @ v[j].double())
    return torch.stack(heads, 1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1), (14, 2), (8, 1)])
@pytest.mark.parametrize("num_queries", [1, 2, 5, 16, 17, 65, 300])
def test_the_kernel_is_the_formula_for_any_number_of_queries(
    num_queries: int, heads: int, groups: int, dtype: torch.dtype
) -> None:
    check_kernel(num_queries, 777, heads, groups, 64, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [16, 24, 64, 80, 96, 128, 192, 256])
def test_the_kernel_is_the_formula_for_any_number_of_channels(channels: int, dtype: torch.dtype) -> None:
    check_kernel(9, 200, 4, 2, channels, dtype)


@pytest.mark.parametrize("num_slots", [1, 63, 64, 65, 128, 5000, 40_000])
def test_the_kernel_is_the_formula_for_any_number_of_slots(num_slots: int) -> None:
    for num_queries in (1, 7):
        check_kernel(num_queries, num_slots, 4, 2, 64, torch.bfloat16)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("softcap", "sinks"), [(30.0, False), (0.7, False), (None, True), (5.0, True)])
def test_the_kernel_has_soft_caps_and_sinks(softcap: Any, sinks: bool, dtype: torch.dtype) -> None:
    for num_queries in (1, 33):
        check_kernel(num_queries, 500, 8, 2, 64, dtype, softcap, sinks)


def test_the_kernel_takes_values_that_are_narrower_than_keys() -> None:
    check_kernel(9, 200, 4, 4, 96, torch.bfloat16, out_channels=64)


def test_the_reference_is_the_same_formula() -> None:
    q, k, v = (torch.randn(2, 5, 16, device="cuda") for _ in range(3))
    rows = torch.ones(5, 5, dtype=torch.bool, device="cuda").tril()
    found = plain_attention(q[None], k[None], v[None], rows, 0.25)[0].transpose(0, 1)
    torch.testing.assert_close(found.double(), exact(q, k, v, rows, 0.25, None, None), atol=1e-5, rtol=0)


# Engines.

HOW = Generate(max_new_tokens=10)
MODELS = ["llama", "llama-gqa", "qwen3", "mistral-window", "gpt-neox", "gemma2", "gemma3", "smollm3", "gpt2"]


def on_gpu(
    name: str = "llama", dtype: torch.dtype = torch.float32, attn: Any = "auto", **more: Any
) -> Engine:
    model = deepcopy(tiny_model(name)).to("cuda", dtype)
    made = Engine(model, tokenizer(), attn, **more)
    made.end_ids = NEVER
    return made


def graph(number: int = 0, docs: int = 3, leaves: int = 3) -> Bundle:
    """Documents, a chunk that writes, and questions below both."""
    texts = [Chunk(f"{number}{chr(97 + i)}" * (1 + i), name=f"d{i}") for i in range(docs)]
    draft = Chunk("go", parents=texts[:1], name="draft", generate=Generate(max_new_tokens=5))
    questions = [
        Chunk("so?" + "!" * i, parents=[draft, texts[i % docs]], name=f"q{i}") for i in range(leaves)
    ]
    return compile_chunks(questions, tokenizer())


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_gives_on_a_gpu_what_it_gives_on_the_cpu(name: str) -> None:
    """Three times: passes are recorded when they come for the second time, and played from then on."""
    made = on_gpu(name)
    assert made._forward.uses_flat
    bundle = graph()
    expected = oracle(name, bundle, counts(bundle, 10))
    for _ in range(3):
        assert ids_of(run_and_check(made, bundle, HOW, 1e-3)) == expected
    assert made._forward.steps is not None and made._forward.steps.refused is None
    assert made.compilations()["cuda_graphs"] >= 2


@pytest.mark.parametrize("attn", ["flex", "sdpa", "eager"])
def test_every_attention_gives_the_same(attn: str) -> None:
    made, bundle = on_gpu(attn=attn), graph()
    expected = oracle("llama", bundle, counts(bundle, 10))
    for _ in range(3):
        # FlexAttention may round products to TF32.
        assert ids_of(run_and_check(made, bundle, HOW, 2e-2 if attn == "flex" else 1e-3)) == expected


def test_attention_sinks_hold_whether_passes_are_recorded_or_not() -> None:
    """Some versions of its experts wait for a number, and cannot be."""
    made, bundle = on_gpu("gpt-oss"), graph()
    for _ in range(3):
        run_and_check(made, bundle, HOW, 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_stay_close_to_one_dense_pass(dtype: torch.dtype) -> None:
    made, bundle = on_gpu("llama-gqa", dtype), graph()
    for _ in range(3):
        run_and_check(made, bundle, HOW, 0.15)


def test_recordings_survive_other_graphs_and_a_cache_that_grows() -> None:
    """Branches come and go, more lanes than before are needed, and the tensors behind recordings change."""
    made = on_gpu()
    for number, (docs, leaves) in enumerate(
        [(2, 1), (3, 3), (2, 1), (3, 12), (3, 3), (30, 20), (2, 1), (3, 12)]
    ):
        bundle = graph(number, docs, leaves)
        expected = oracle("llama", bundle, counts(bundle, 10))
        for _ in range(2):
            assert ids_of(made.run(bundle, HOW)) == expected
    assert made._forward.capacity > 512
    assert made._forward.steps is not None and made._forward.steps.refused is None


def test_graphs_side_by_side_give_what_they_give_alone() -> None:
    made = on_gpu(prefill_tokens=7)
    bundles = [graph(i, 1 + i % 3, 1 + i % 4) for i in range(6)]
    expected = [oracle("llama", bundle, counts(bundle, 10)) for bundle in bundles]
    for _ in range(3):
        assert [ids_of(result) for result in made.run(bundles, HOW)] == expected


@pytest.mark.parametrize("attn, num_compiled", [("auto", 0), ("flex", 1)])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_large_prefill_decodes_from_the_slots(name: str, attn: str, num_compiled: int) -> None:
    """By the interval kernel, or by FlexAttention, which layers with a window always take."""
    docs = [Chunk(f"{i:03}" * 50, name=f"d{i}") for i in range(20)]
    bundle = compile_chunks([Chunk("which?", parents=docs, name="q")], tokenizer())
    made = on_gpu(name, attn=attn)
    for _ in range(3):
        run_and_check(made, bundle, HOW, 2e-2)
    assert made.compilations()["flex"] == (1 if name == "gemma3" else num_compiled)


def test_the_number_of_recordings_is_bounded() -> None:
    """Five sizes of prefill; the powers of two of lanes up to 8, and up to 16 once there are more."""
    made = on_gpu(cache_tokens=4000)
    random = Random(0)
    for number in range(100):
        made.run(graph(number, random.randint(1, 6), random.randint(1, 9)), Generate(max_new_tokens=4))
    assert made.compilations()["cuda_graphs"] <= 5 + 4 + 5


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox", "smollm3"])
def test_known_chunks_give_the_same_from_the_cache_memory_and_disk(name: str, tmp_path: Any) -> None:
    store = KVStore(disk=tmp_path)
    bundle = graph()
    first = on_gpu(name, kv=store)
    shift = first._scheduler.reuse.shift
    assert isinstance(shift, KeyShift), shift
    moved = replace(
        bundle,
        position_ids=bundle.position_ids + 333,
        meta=replace(bundle.meta, pinned=frozenset(bundle.span_names[: bundle.index("draft")])),
    )
    expected = oracle(name, bundle, counts(bundle, 10))
    for made in (first, first, first, on_gpu(name, kv=store), on_gpu(name, kv=KVStore(disk=tmp_path))):
        assert ids_of(run_and_check(made, bundle, HOW, 1e-3)) == expected
        run_and_check(made, moved, HOW, 1e-3)
    origins = {source.chunk: source.origin for source in first.run(bundle, HOW).sources}
    assert origins["d0"] == "device"


def test_a_graph_that_does_not_fit_says_how_much_memory_is_free() -> None:
    made = on_gpu()
    expected = ids_of(made.run(graph(), HOW))
    made.model.config.max_position_embeddings = 10**9
    huge = Generate(max_new_tokens=200_000_000)
    with pytest.raises(
        ModelError, match=r"need 1\d\d\.\d GiB of keys and values, and \d+\.\d of \d+\.\d GiB"
    ):
        made.run(compile_chunks([Chunk("x", name="x")], tokenizer()), huge)
    assert ids_of(made.run(graph(), HOW)) == expected
