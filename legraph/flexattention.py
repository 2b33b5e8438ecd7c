"""FlexAttention for transformers, compiled a few times instead of once for every length.

Run side: imports torch and transformers. transformers' own implementation ("flex_attention") leaves the
shapes to torch, which makes them dynamic when it meets a second length. On a CPU that ends in code that does
not compile, or in minutes of symbolic algebra (torch 2.13). Here every shape is static, and lengths are
rounded up to a few: queries, keys and values are padded to the length of the `BlockMask`. No token sees the
padding, and what the padding itself computes is cut off.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from legraph.errors import ModelError

NAME = "legraph_flex_attention"
_MIN_LENGTH = 256
_MAX_VERSIONS = 256


def padded_length(num_tokens: int) -> int:
    """The smallest 2^k or 3 * 2^k from 256 that holds so many tokens. Past 256 a third is padding at most."""
    power = max(_MIN_LENGTH, 1 << (num_tokens - 1).bit_length())
    return power * 3 // 4 if power > _MIN_LENGTH and num_tokens <= power * 3 // 4 else power


def flex_attention_forward(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: [1, H, N, D] in, [1, N, H, D] out.

    Args:
        attention_mask: a `BlockMask` of N tokens or more.
        softcap: scores are squeezed into (-softcap, softcap) (Gemma 2).
        s_aux: attention sinks [H]: scores of a key without a value (gpt-oss).

    Raises:
        ModelError: another mask, one for fewer tokens, attention dropout, which the kernel does not have, or
            attention sinks on a CPU, where torch gives no log-sum-exp.
    """
    _check_inputs(query, key, attention_mask, dropout, s_aux)
    # Under autocast the rotary embedding makes queries and keys float32 again.
    query, key = query.to(value.dtype), key.to(value.dtype)
    num_tokens = query.shape[2]
    room = attention_mask.seq_lengths[0] - num_tokens
    if room:
        query, key, value = (torch.nn.functional.pad(part, (0, 0, 0, room)) for part in (query, key, value))
    result: Any = _kernel()(
        query,
        key,
        value,
        score_mod=None if softcap is None else _softcap(softcap),
        block_mask=attention_mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=None if s_aux is None else AuxRequest(lse=True),
    )
    if s_aux is not None:
        result, aux = result
        # exp(lse) / (exp(lse) + exp(sink)): the share of the probability that is not the sink's.
        result = result * torch.sigmoid(aux.lse - s_aux[None, :, None])[..., None].to(result.dtype)
    return result[:, :, :num_tokens].transpose(1, 2).contiguous(), None


def _check_inputs(
    query: torch.Tensor, key: torch.Tensor, attention_mask: Any, dropout: float, s_aux: torch.Tensor | None
) -> None:
    if not isinstance(attention_mask, BlockMask):
        raise ModelError(
            f"{NAME} takes a BlockMask, not {type(attention_mask).__name__}",
            "make the model's inputs with Bundle.model_inputs(attn='flex')",
        )
    if dropout:
        raise ModelError(
            "flex attention has no dropout", "set attention_dropout to 0 in the model's config, or use sdpa"
        )
    if s_aux is not None and query.device.type == "cpu":
        raise ModelError(
            "attention sinks cannot be computed with flex attention on a CPU", "use --attn eager"
        )
    num_queries, num_keys, length = query.shape[2], key.shape[2], attention_mask.seq_lengths[0]
    if length < num_queries or num_keys != num_queries:
        # A negative padding would cut tokens off; with a cache there are more keys than queries.
        raise ModelError(
            f"the BlockMask is for {length} tokens, and there are {num_queries} queries and {num_keys} keys",
            "give the model as many tokens as the mask is for, and no cache",
        )


def many_flex_versions() -> AbstractContextManager[Any]:
    """While it is open, torch keeps compiling FlexAttention for new kinds of graphs and models.

    One function is compiled for all of them, and torch by default gives up after 8 versions of a function:
    from then on it would build the N x N matrix, with nothing but a warning. Our own kernel is always called
    so; around transformers' own, and around compiled models, it has to be opened.
    """
    import torch._dynamo

    return torch._dynamo.config.patch(recompile_limit=_MAX_VERSIONS)


def is_compile_error(error: BaseException) -> bool:
    """Whether torch's compiler failed, for want of g++, say. Its errors share no public base class."""
    return type(error).__module__.startswith(("torch._inductor.", "torch._dynamo."))


@cache
def _compiled() -> Any:
    import torch._dynamo

    kernel: Any = torch.compile(flex_attention, dynamic=False)

    def call(*args: Any, **kwargs: Any) -> Any:
        # To open it takes 40 microseconds, in every layer: whoever has many calls opens it around them.
        if torch._dynamo.config.recompile_limit >= _MAX_VERSIONS:
            return kernel(*args, **kwargs)
        with many_flex_versions():
            return kernel(*args, **kwargs)

    return call


def _kernel() -> Any:
    """Inside a compiled model the kernel is compiled with the rest."""
    return flex_attention if torch.compiler.is_compiling() else _compiled()


@cache
def _softcap(limit: float) -> Any:
    """One function for each limit: torch compiles anew for another function object."""

    def score_mod(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return limit * torch.tanh(score / limit)

    return score_mod


AttentionInterface.register(NAME, flex_attention_forward)
# Without a mask function of its own, transformers would pass no mask at all, without a word.
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["flex_attention"])
