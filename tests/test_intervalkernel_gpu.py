"""On a GPU: the kernel for intervals against the formula, and a prefill that goes through it."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

import pytest
import torch

from legraph import forward
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine
from legraph.flatattention import RowMask, plain_attention
from legraph.graph import Generate
from legraph.intervalkernel import attend, plan
from legraph.passes import Segment, seen_intervals, visible_rows
from tests.naive import NEVER, engine, ids_of
from tests.random_graphs import Dag, tokenizer
from tests.test_passes import whole_graph
from tests.tiny_models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}


def random_segments(random: Random, num_chunks: int, longest: int) -> list[Segment]:
    lengths = tuple(random.randint(1, longest) for _ in range(num_chunks))
    parents = tuple(
        tuple(sorted(random.sample(range(i), random.randint(0, min(i, 5))))) for i in range(num_chunks)
    )
    segments = whole_graph(Dag(lengths, parents), [random.randint(0, 9) for _ in lengths])
    return [one for one in segments if random.random() < 0.8] or segments


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "groups", "channels", "softcap", "sinks"),
    [
        (4, 1, 64, None, False),
        (8, 8, 32, None, True),
        (7, 1, 80, 5.0, False),
        (16, 2, 128, None, False),
        (4, 2, 256, None, True),
        (2, 2, 16, 3.0, False),
    ],
)
def test_the_kernel_is_the_formula(
    heads: int, groups: int, channels: int, softcap: float | None, sinks: bool, dtype: torch.dtype
) -> None:
    random, generator = Random(channels), torch.Generator(device="cuda").manual_seed(channels)
    for num_chunks, longest, max_keys in ((1, 3, None), (12, 40, 30), (20, 300, None), (20, 300, 257)):
        segments = random_segments(random, num_chunks, longest)
        num_slots = max(one.slot + len(one) for one in segments)
        visible = torch.from_numpy(visible_rows(segments, num_slots)).cuda()

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device="cuda").to(dtype)

        q = normal(1, len(visible), heads, channels).transpose(1, 2)
        k, v = normal(1, groups, num_slots + 9, channels), normal(1, groups, num_slots + 9, channels)
        unseen = ~visible.any(0)
        k[:, :, :num_slots][:, :, unseen] = 500
        v[:, :, :num_slots][:, :, unseen] = -500
        s_aux = normal(heads).float() if sinks else None
        made = plan(
            seen_intervals(segments),
            heads // groups,
            groups,
            "cuda",
            dtype=dtype,
            channels=channels,
            max_keys=max_keys,
        )
        found = attend(q, k, v, made, channels**-0.5, softcap, s_aux)
        k, v = k[:, :, :num_slots], v[:, :, :num_slots]
        expected = plain_attention(
            q.float(), k.float(), v.float(), visible[None, None], channels**-0.5, softcap, s_aux
        ).transpose(1, 2)
        error = (found.float() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype], (num_chunks, longest, max_keys)


@pytest.mark.parametrize("name", ["llama", "llama-gqa", "qwen3"])
def test_a_prefill_by_intervals_gives_what_the_cpu_gives(name: str, monkeypatch: Any) -> None:
    docs = [Chunk(letter * 150, name=letter) for letter in "abc"]
    seen = Chunk("after them", parents=docs, name="plan", generate=Generate(max_new_tokens=9))
    late = Chunk("x" * 300, parents=[docs[0], seen], name="late")
    bundle = compile_chunks([late, Chunk("q" * 40, parents=docs, name="q")], tokenizer())
    calls, make = list[int](), RowMask.of_intervals
    monkeypatch.setattr(
        RowMask, "of_intervals", staticmethod(lambda *given: (calls.append(1), make(*given))[1])
    )
    monkeypatch.setattr(forward, "chunks_ms", lambda *_: float("inf"))
    expected = ids_of(engine(name).run(bundle, Generate(max_new_tokens=8)))
    assert not calls
    made = Engine(deepcopy(tiny_model(name)).cuda(), tokenizer())
    made.end_ids = NEVER
    for _ in range(2):
        assert ids_of(made.run(bundle, Generate(max_new_tokens=8))) == expected
    assert len(calls) == 4
    assert made.compilations()["flex"] == 0
