"""Attention over a graph by every kernel, against the formula: forward and backward, on CPU and GPU."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import graphattention
from legraph.compiler import Chunk, compile_chunks
from legraph.cost import choose
from legraph.errors import ModelError
from legraph.flatattention import plain_attention
from legraph.graphattention import plan_attention
from legraph.seen import SeenIntervals
from tests.random_graphs import Dag, brute_force_mask, dags, tokenizer

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def inputs(dag: Dag, heads: int, groups: int, channels: int, batch: int = 1) -> list[torch.Tensor]:
    """Queries, keys, values in float32."""
    generator = torch.Generator().manual_seed(dag.num_tokens)
    sizes = (heads, groups, groups)
    return [torch.randn((batch, size, dag.num_tokens, channels), generator=generator) for size in sizes]


def reference(dag: Dag, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    visible = torch.from_numpy(brute_force_mask(dag)).to(q.device)
    return plain_attention(q.float(), k.float(), v.float(), visible[None, None], q.shape[-1] ** -0.5)


def random_dag(random: Random, num_chunks: int, longest: int) -> Dag:
    lengths = tuple(random.randint(1, longest) for _ in range(num_chunks))
    parents = tuple(
        tuple(sorted(random.sample(range(i), random.randint(0, min(i, 5))))) for i in range(num_chunks)
    )
    return Dag(lengths, parents)


@settings(max_examples=60)
@given(dag=dags(max_chunks=10), grouped=st.booleans(), batch=st.integers(1, 2))
@pytest.mark.parametrize("kernel", ["auto", "chunks", "dense"])
def test_every_kernel_of_a_cpu_is_the_formula(kernel: str, dag: Dag, grouped: bool, batch: int) -> None:
    q, k, v = inputs(dag, 4, 2 if grouped else 4, 8, batch)
    found = plan_attention(dag.mask(), q, k, v, kernel)(q, k, v)
    torch.testing.assert_close(found, reference(dag, q, k, v), atol=1e-5, rtol=1e-5)


@settings(max_examples=30)
@given(dag=dags(max_chunks=8))
@pytest.mark.parametrize("kernel", ["chunks", "dense"])
def test_gradients_on_a_cpu_are_the_formulas(kernel: str, dag: Dag) -> None:
    q, k, v = (tensor.requires_grad_() for tensor in inputs(dag, 4, 2, 8))
    found = plan_attention(dag.mask(), q, k, v, kernel)(q, k, v)
    gradients = torch.autograd.grad(found.square().sum(), (q, k, v))
    expected = torch.autograd.grad(reference(dag, q, k, v).square().sum(), (q, k, v))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_flex_on_a_cpu_is_the_formula_too() -> None:
    """Compiled once; its forms have tests of their own."""
    dag = random_dag(Random(1), 9, 40)
    q, k, v = inputs(dag, 4, 2, 16)
    found = plan_attention(dag.mask(), q, k, v, "flex")(q, k, v)
    torch.testing.assert_close(found, reference(dag, q, k, v), atol=1e-5, rtol=1e-5)


def test_plain_causal_attention_is_recognised() -> None:
    dag = Dag((3, 4, 5), ((), (0,), (0, 1)))
    q, k, v = inputs(dag, 2, 2, 8)
    planned = plan_attention(dag.mask(), q, k, v)
    assert planned.kernel == "causal"
    torch.testing.assert_close(planned(q, k, v), reference(dag, q, k, v), atol=1e-5, rtol=1e-5)


def test_what_is_chosen_depends_on_the_graph_and_the_device() -> None:
    documents = SeenIntervals.of(Dag((200,) * 8, ((),) * 8).mask()).melted()
    words = SeenIntervals.of(Dag((2,) * 8, ((),) * 8).mask()).melted()
    assert choose(documents, "cpu", 8, 64) == "chunks"
    assert choose(words, "cpu", 8, 64) == "dense"
    assert choose(documents, "gpu", 8, 64) == "intervals"


def test_a_bundle_attends_and_keeps_its_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Chunk("d" * 5, name=f"d{i}") for i in range(3)]
    bundle = compile_chunks([Chunk("q" * 4, parents=documents, name="q")], tokenizer())
    made, make = list[str](), graphattention.plan_attention
    monkeypatch.setattr(
        graphattention, "plan_attention", lambda *given: (made.append(given[-1]), make(*given))[1]
    )
    q, k, v = torch.randn(3, 1, 2, len(bundle), 8, generator=torch.Generator().manual_seed(0))
    visible = torch.from_numpy(bundle.dense_mask())
    for scale in (None, 0.5):
        expected = plain_attention(q, k, v, visible[None, None], scale or 8**-0.5)
        for kernel in ("auto", "chunks"):
            torch.testing.assert_close(bundle.attention(q, k, v, scale=scale, kernel=kernel), expected)
    assert made == ["auto", "chunks"]


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((1, 4, 5, 8), (1, 4, 5, 8), (4, 5, 8)),
        ((1, 4, 5, 8), (1, 3, 5, 8), (1, 3, 5, 8)),
        ((1, 4, 5, 8), (1, 4, 5, 4), (1, 4, 5, 4)),
        ((2, 4, 5, 8), (1, 4, 5, 8), (1, 4, 5, 8)),
        ((1, 4, 6, 8), (1, 4, 6, 8), (1, 4, 6, 8)),
    ],
)
def test_shapes_that_do_not_belong_together_are_refused(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected|belong|tokens"):
        plan_attention(Dag((2, 3), ((), (0,))).mask(), *map(torch.zeros, (q, k, v)))


def test_kernels_that_cannot_do_it_say_so() -> None:
    dag = Dag((2, 3), ((), ()))
    q, k, v = inputs(dag, 2, 2, 8)
    with pytest.raises(ValueError, match="kernel is 'fast'; expected auto, intervals"):
        plan_attention(dag.mask(), q, k, v, "fast")
    with pytest.raises(ModelError, match="CUDA"):
        plan_attention(dag.mask(), q, k, v, "intervals")
    with pytest.raises(ModelError, match="not plain causal"):
        plan_attention(dag.mask(), q, k, v, "causal")
    with pytest.raises(ModelError, match="no gradients on a CPU"):
        plan_attention(dag.mask(), q.requires_grad_(), k, v, "flex")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("heads", "groups", "channels"), [(4, 4, 32), (8, 2, 64), (7, 1, 80), (8, 2, 128), (4, 2, 256)]
)
@pytest.mark.parametrize("kernel", ["intervals", "chunks"])
def test_every_kernel_of_a_gpu_is_the_formula(
    kernel: str, heads: int, groups: int, channels: int, dtype: torch.dtype
) -> None:
    """Ragged lengths, chunks of one token, fewer tokens than a block, many short ones, all on random DAGs."""
    random = Random(channels)
    for num_chunks, longest in ((1, 1), (2, 3), (40, 4), (12, 40), (25, 200), (3, 1500), (60, 30)):
        dag = random_dag(random, num_chunks, longest)
        q, k, v = (tensor.cuda().to(dtype) for tensor in inputs(dag, heads, groups, channels, 2))
        found = plan_attention(dag.mask(), q, k, v, kernel)(q, k, v)
        expected = reference(dag, q, k, v)
        error = (found.float() - expected).abs().max() / expected.abs().max()
        assert error < TOLERANCE[dtype], (num_chunks, longest)


# torch's compiler looks at the padded tensors' gradients.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.gpu
@gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 5e-2)], ids=str)
@pytest.mark.parametrize(("heads", "groups", "channels"), [(4, 4, 32), (8, 2, 128)])
def test_where_gradients_are_wanted_a_gpu_takes_flex(
    heads: int, groups: int, channels: int, dtype: torch.dtype, tolerance: float
) -> None:
    dag = random_dag(Random(3), 14, 60)
    q, k, v = (t.cuda().to(dtype).requires_grad_() for t in inputs(dag, heads, groups, channels))
    planned = plan_attention(dag.mask(), q, k, v)
    assert planned.kernel == "flex"
    gradients = torch.autograd.grad(planned(q, k, v).float().square().sum(), (q, k, v))
    expected = torch.autograd.grad(reference(dag, q, k, v).square().sum(), (q, k, v))
    for one, other in zip(gradients, expected, strict=True):
        assert (one.float() - other.float()).abs().max() / other.float().abs().max() < tolerance
