"""FlexAttention as the engine uses it, against softmax written out, against sdpa, and how often it compiles.

One compilation takes seconds, so nearly everything here has one shape: 256 tokens after padding, 4 heads of
16 channels, float32, inference mode.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from legraph.attention import attention_mask
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import ModelError
from legraph.flexattention import flex_attention_forward, many_flex_versions, padded_length
from legraph.flexmask import block_mask
from legraph.maskform import ADJACENCY, BITS, MaskForm, cheapest_form
from legraph.model import use_attention
from tests.mask_forms import (  # noqa: F401
    ALL_FORMS,
    form_id,
    graph_of,
    no_table_where_bits_are_wanted,
    structure_of,
)
from tests.random_graphs import Dag, brute_force_mask, tokenizer
from tests.tiny_models import tiny_model

LENGTH, HEADS, CHANNELS = 256, 4, 16
MODULE = torch.nn.Module()  # transformers hands over the layer; nothing of it is used
# One of each kind: stretches by query, by key, by either, a table, and bits.
FORMS = (MaskForm("query", 1, 0), MaskForm("key", 0, 1), MaskForm("mixed", 1, 1), ADJACENCY, BITS)
# Those that small graphs have.
SMALL_FORMS = [form for form in ALL_FORMS if form != BITS]
each_form = pytest.mark.parametrize("form", FORMS, ids=form_id)

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


# Lengths


def allowed_lengths() -> list[int]:
    """Powers of two and three times powers of two from 256, ascending."""
    return sorted([2**k for k in range(8, 33)] + [3 * 2**k for k in range(7, 31)])


@given(num_tokens=st.integers(1, 2**31))
def test_a_length_is_padded_to_the_next_of_a_few(num_tokens: int):
    assert padded_length(num_tokens) == next(each for each in allowed_lengths() if each >= num_tokens)


@pytest.mark.parametrize("length", [256, 384, 512, 768, 1024, 1536, 131072, 196608])
def test_padding_starts_one_token_past_an_allowed_length(length: int):
    following = allowed_lengths()[allowed_lengths().index(length) + 1]
    assert (padded_length(length), padded_length(length + 1)) == (length, following)


@given(num_tokens=st.integers(257, 2**31))
def test_at_most_a_third_is_padding(num_tokens: int):
    assert 3 * (padded_length(num_tokens) - num_tokens) <= padded_length(num_tokens)


@given(num_tokens=st.integers(1, 2**31))
def test_a_padded_length_is_whole_blocks_and_stays_as_it_is(num_tokens: int):
    length = padded_length(num_tokens)
    assert length % 128 == 0
    assert padded_length(length) == length


# What the kernel computes


def heads(num_tokens: int, num_kv_heads: int = HEADS, **how: Any) -> Heads:
    """Queries, keys and values [1, H, N, D], the same for the same length."""
    torch.manual_seed(num_tokens)
    # Larger scores than usual, or a softcap would hardly change them.
    q = 3 * torch.randn(1, HEADS, num_tokens, CHANNELS)
    k, v = torch.randn(2, 1, num_kv_heads, num_tokens, CHANNELS)
    return q.to(**how), k.to(**how), v.to(**how)


def written_out(
    parts: Heads, mask: np.ndarray, scale: float = 0.25, softcap: float | None = None
) -> torch.Tensor:
    """Softmax attention in float64, one head and one query after the other. [1, N, H, D], as transformers."""
    q_HND, k_HND, v_HND = (part[0].double().numpy() for part in parts)
    group = len(q_HND) // len(k_HND)
    out = np.zeros((q_HND.shape[1], len(q_HND), q_HND.shape[2]))
    for head in range(len(q_HND)):
        keys, values = k_HND[head // group], v_HND[head // group]
        for query in range(len(out)):
            seen = np.flatnonzero(mask[query])
            scores = keys[seen] @ q_HND[head, query] * scale
            if softcap is not None:
                scores = np.tanh(scores / softcap) * softcap
            weights = np.exp(scores - scores.max())
            out[query, head] = weights @ values[seen] / weights.sum()
    return torch.from_numpy(out)[None]


def flex(parts: Heads, dag: Dag, window: int | None = None, **options: Any) -> torch.Tensor:
    device = parts[0].device
    positions = np.arange(dag.num_tokens)
    mask = block_mask(dag.mask(), device, 128, positions, window, padded_length(dag.num_tokens))
    with many_flex_versions():
        out, weights = flex_attention_forward(MODULE, *parts, mask, scaling=0.25, **options)
    assert weights is None
    return out


@each_form
@pytest.mark.parametrize("num_tokens", [None, 200])
@torch.inference_mode()
def test_the_kernel_is_softmax_over_what_is_seen(num_tokens: int | None, form: MaskForm):
    dag = graph_of(form, num_tokens)
    parts = heads(dag.num_tokens)
    out = flex(parts, dag)
    assert out.shape == (1, dag.num_tokens, HEADS, CHANNELS) and out.is_contiguous()
    torch.testing.assert_close(out.double(), written_out(parts, brute_force_mask(dag)), atol=1e-5, rtol=1e-5)


SOFTCAP, WINDOW = 5.0, 9


def within_window(dag: Dag) -> np.ndarray:
    tokens = np.arange(dag.num_tokens)
    return brute_force_mask(dag) & (abs(tokens[:, None] - tokens[None, :]) < WINDOW)


@torch.inference_mode()
def test_softcap_shared_keys_and_window_hold_together():
    """As in Gemma 2: two heads share a key and a value, scores are capped, and far keys are hidden."""
    dag = graph_of(FORMS[0])
    parts = heads(dag.num_tokens, num_kv_heads=2)
    out = flex(parts, dag, WINDOW, softcap=SOFTCAP).double()
    torch.testing.assert_close(
        out, written_out(parts, within_window(dag), softcap=SOFTCAP), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("without", ["softcap", "window", "sharing"])
def test_each_of_them_matters_there(without: str):
    """So the test above can fail: without one of them the attention written out is another."""
    dag = graph_of(FORMS[0])
    q, k, v = heads(dag.num_tokens, num_kv_heads=2)
    expected = written_out((q, k, v), within_window(dag), softcap=SOFTCAP)
    if without == "sharing":
        # The heads in turns, where neighbours should share.
        k, v = (part.repeat(1, 2, 1, 1) for part in (k, v))
    other = written_out(
        (q, k, v),
        brute_force_mask(dag) if without == "window" else within_window(dag),
        softcap=None if without == "softcap" else SOFTCAP,
    )
    assert (other - expected).abs().max() > 0.05


@each_form
@torch.inference_mode()
def test_what_is_hidden_does_not_count(form: MaskForm):
    """Huge keys and values where nobody looks change no bit."""
    dag = graph_of(form)
    parts = heads(dag.num_tokens)
    last = slice(sum(dag.lengths[:-1]), dag.num_tokens)
    hidden = ~brute_force_mask(dag)[last].any(0)
    assert hidden.any()
    q, k, v = parts
    is_hidden = torch.from_numpy(hidden)[:, None]
    changed = q, torch.where(is_hidden, 1e4, k), torch.where(is_hidden, 1e4, v)
    assert torch.equal(flex(parts, dag)[:, last], flex(changed, dag)[:, last])


# Whole models


def bundle_of(form: MaskForm) -> Bundle:
    """The graph for a form, in texts; its chunks are declared in token order, and stay in it."""
    chunks: list[Chunk] = []
    for i, parents in enumerate(structure_of(form)):
        chunks.append(Chunk(f"{i}. " * (1 + i % 2), name=f"c{i}", parents=[chunks[at] for at in parents]))
    return compile_chunks(chunks, tokenizer())


def logits(name: str, bundle: Bundle, attn: Any) -> torch.Tensor:
    model = tiny_model(name)
    use_attention(model, attn)
    inputs = bundle.model_inputs("cpu", attn, config=model.config)
    if attn == "flex":
        inputs["attention_mask"] = attention_mask(
            bundle.mask, bundle.position_ids, "cpu", "flex", model.config, padded_length=LENGTH
        )
    with torch.inference_mode(), many_flex_versions():
        return model(**inputs, use_cache=False).logits[0]


@each_form
def test_a_model_says_the_same_with_flex_and_with_sdpa(form: MaskForm):
    bundle = bundle_of(form)
    assert cheapest_form(bundle.mask) == form
    sdpa = logits("llama", bundle, "sdpa")
    torch.testing.assert_close(logits("llama", bundle, "flex"), sdpa, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(sdpa[-1], sdpa[-2], atol=0.1), "the model tells inputs apart"


# What is refused


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 8, 8, dtype=torch.bool), "causal"])
def test_a_mask_that_is_no_block_mask_is_refused(mask: Any):
    kind = type(mask).__name__
    with pytest.raises(ModelError, match=f"legraph_flex_attention takes a BlockMask, not {kind}"):
        flex_attention_forward(MODULE, *heads(8), mask)


def test_a_model_refuses_it_too():
    """Padding masks and no mask at all are what users pass who do not ask `model_inputs`."""
    model = tiny_model("llama")
    use_attention(model, "flex")
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ModelError, match="takes a BlockMask, not Tensor"):
        model(ids, attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.bool), use_cache=False)


def mask_of(num_tokens: int) -> Any:
    return block_mask(Dag((num_tokens,), ((),)).mask(), "cpu")


def test_a_mask_for_fewer_tokens_is_refused():
    with pytest.raises(ModelError, match="is for 128 tokens, and there are 200 queries and 200 keys"):
        flex_attention_forward(MODULE, *heads(200), mask_of(128))


def test_keys_of_a_cache_are_refused():
    q, k, v = heads(200)
    with pytest.raises(ModelError, match="is for 128 tokens, and there are 7 queries and 200 keys"):
        flex_attention_forward(MODULE, q[:, :, -7:], k, v, mask_of(128))


def test_dropout_is_refused_and_not_left_out_without_a_word():
    with pytest.raises(ModelError, match="flex attention has no dropout"):
        flex_attention_forward(MODULE, *heads(8), mask_of(8), dropout=0.1)


def test_attention_sinks_are_refused_on_a_cpu():
    with pytest.raises(ModelError, match="attention sinks cannot be computed with flex attention on a CPU"):
        flex_attention_forward(MODULE, *heads(8), mask_of(8), s_aux=torch.zeros(HEADS))


# How often it compiles


def random_dags(seed: int, forms: Sequence[MaskForm], number: int = 60) -> Iterator[Dag]:
    """Graphs of up to 256 tokens, with chunks of random lengths, in turns of each form."""
    chance = random.Random(seed)
    for i in range(number):
        parents = structure_of(forms[i % len(forms)])
        dag = Dag(tuple(chance.randint(1, 256 // len(parents)) for _ in parents), tuple(parents))
        assert cheapest_form(dag.mask()) == forms[i % len(forms)]
        yield dag


def num_compiled() -> int:
    return counters["stats"]["unique_graphs"]


@torch.inference_mode()
def test_many_graphs_of_one_padded_length_share_one_kernel_for_each_form():
    """Other graphs are other tensors in the same code. These have four forms, as in the tests above; where
    such tests have run before, their kernels are used again."""
    before = num_compiled()
    graphs = list(random_dags(1, FORMS[:-1]))
    assert len(set(graphs)) == 60
    for dag in graphs:
        flex(heads(dag.num_tokens), dag)
    assert num_compiled() - before <= len(FORMS) - 1
    after_first = num_compiled()
    for dag in random_dags(2, FORMS[:-1]):
        flex(heads(dag.num_tokens), dag)
    assert num_compiled() == after_first, "another 60 graphs need no other code"


def test_torch_sees_one_program_for_each_form():
    """torch's front end alone, which decides what is compiled anew, from an empty start."""
    counter = CompileCounterWithBackend("eager")
    # A head more than elsewhere, so that no other test has prepared this shape.
    q, k, v = torch.randn(3, 1, HEADS + 1, LENGTH, CHANNELS)
    kernel: Any = torch.compile(flex_attention, dynamic=False, backend=counter)
    # What the tests before have compiled counts, too, towards the limit of `many_flex_versions`.
    with torch._dynamo.config.patch(recompile_limit=256), torch.inference_mode():
        for dag in random_dags(3, SMALL_FORMS):
            kernel(q, k, v, block_mask=block_mask(dag.mask(), "cpu", padded_length=LENGTH))
    assert counter.frame_count == len(SMALL_FORMS)


# On a GPU


def gpu_bundle(form: MaskForm) -> Bundle:
    """As `bundle_of`, in several blocks, and every chunk that sees others has an answer to learn."""
    chunks: list[Chunk] = []
    for i, parents in enumerate(structure_of(form)):
        seen = [chunks[at] for at in parents]
        how: dict[str, Any] = {"completion": f" the {i}th one", "loss": True} if seen else {}
        chunks.append(Chunk(f"document {i}. " * (1 + i % 3), name=f"c{i}", parents=seen, **how))
    return compile_chunks(chunks, tokenizer())


@pytest.mark.gpu
@needs_cuda
@each_form
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-2), (torch.bfloat16, 4e-2)])
@torch.inference_mode()
def test_on_a_gpu_the_kernel_is_softmax_too(dtype: torch.dtype, tolerance: float, form: MaskForm):
    """float32 products may be rounded to TF32 there, hence the tolerance."""
    small = graph_of(form)
    dag = Dag(tuple(7 * length for length in small.lengths), small.parents)
    parts = heads(dag.num_tokens, device="cuda", dtype=dtype)
    q, k, v = (part.cpu() for part in parts)
    expected = written_out((q, k, v), brute_force_mask(dag))
    torch.testing.assert_close(flex(parts, dag).cpu().double(), expected, atol=tolerance, rtol=tolerance)


# torch's compiler looks at the gradients of tensors that are padded.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.gpu
@needs_cuda
@each_form
@pytest.mark.parametrize("name", ["llama", "llama-gqa"])
def test_on_a_gpu_gradients_through_flex_are_those_through_sdpa(name: str, form: MaskForm):
    bundle = gpu_bundle(form)
    assert cheapest_form(bundle.mask) == form
    flex_loss, flex_gradients = loss_and_gradients(name, bundle, "flex")
    sdpa_loss, sdpa_gradients = loss_and_gradients(name, bundle, "sdpa")
    assert flex_loss == pytest.approx(sdpa_loss, abs=1e-2)
    for parameter, expected in sdpa_gradients.items():
        error = (flex_gradients[parameter] - expected).norm() / expected.norm()
        assert expected.norm() > 0 and error < 1e-2, parameter


def loss_and_gradients(name: str, bundle: Bundle, attn: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Of a copy on the GPU: other tests keep the model where it is."""
    model = deepcopy(tiny_model(name)).to("cuda")
    use_attention(model, attn)
    inputs = bundle.model_inputs("cuda", attn, config=model.config)
    with many_flex_versions():
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
    gradients = {key: each.grad for key, each in model.named_parameters() if each.grad is not None}
    assert set(gradients) == {key for key, _ in model.named_parameters()}
    return float(loss.detach()), gradients
