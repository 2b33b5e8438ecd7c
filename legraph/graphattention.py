"""Attention over the mask of a graph, for any model code: one of several kernels, all exact.

Run side: imports torch. All kernels compute the same; which one is fast depends on the graph and the device:

- `intervals`: a Triton kernel that walks what each chunk sees and nothing else (`intervalkernel`). CUDA, no
  gradients,
- `causal`: torch's SDPA, where the graph is plain causal attention,
- `chunks`: torch's SDPA, one call for each chunk, over what it sees,
- `dense`: torch's SDPA with the mask spelled out. The slow and readable reference,
- `flex`: torch's FlexAttention with a block mask in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch

from legraph import cost, intervalkernel
from legraph.cost import Kernel
from legraph.errors import ModelError
from legraph.flatattention import by_parts, parts, torch_attention
from legraph.flatkernel import is_available
from legraph.flexattention import flex_attention_forward, many_flex_versions, padded_length
from legraph.flexmask import block_mask
from legraph.mask import ChunkMask
from legraph.seen import SeenIntervals

# From queries [B, H, N, D], keys and values [B, J, N, D], and the scale, to [B, H, N, D].
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Planned:
    """A kernel, and all that it needs to know of the mask, on the device. Made once, used in every layer."""

    kernel: Kernel
    attend: Attend

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        return self.attend(query, key, value, query.shape[-1] ** -0.5 if scale is None else scale)


def plan_attention(
    mask: ChunkMask, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kernel: str = "auto"
) -> Planned:
    """Chooses a kernel and prepares it for tensors of these shapes, dtypes and devices.

    Args:
        query, key, value: [B, H, N, D], [B, J, N, D] and [B, J, N, E]; H is a multiple of J. Only looked at.
        kernel: one of the module's, or "auto".

    Raises:
        ValueError: the shapes do not belong together or to the mask; no kernel has this name.
        ModelError: the kernel cannot do it: it needs CUDA, has no gradients, or the mask is not causal.
    """
    _check_shapes(mask, query, key, value)
    if kernel not in ("auto", *get_args(Kernel)):
        raise ValueError(f"kernel is {kernel!r}; expected auto, {', '.join(get_args(Kernel))}")
    seen = SeenIntervals.of(mask).melted()
    chosen: Any = _choose(seen, query, key, value) if kernel == "auto" else kernel
    return Planned(chosen, _PREPARE[chosen](mask, seen, query, key, value))


def plan_key(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kernel: str) -> tuple[Any, ...]:
    """Tensors with the same key can share a plan."""
    needs_gradients = _needs_gradients(query, key, value)
    return query.shape, key.shape, value.shape, query.dtype, query.device, needs_gradients, kernel


def _choose(seen: SeenIntervals, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Kernel:
    if query.device.type not in ("cuda", "cpu"):
        return "dense"
    kernel = cost.choose(seen, "gpu" if query.is_cuda else "cpu", query.shape[1], query.shape[3])
    if kernel == "intervals" and (_needs_gradients(query, key, value) or not is_available()):
        return "flex"
    return kernel


def _needs_gradients(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check_shapes(mask: ChunkMask, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in (query, key, value)]
    if any(len(shape) != 4 for shape in shapes) or key.shape[:3] != value.shape[:3]:
        raise ValueError(
            f"queries, keys and values are {shapes}; expected [B, H, N, D], [B, J, N, D], [B, J, N, E]"
        )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or query.shape[1] % key.shape[1]:
        raise ValueError(f"queries {shapes[0]} and keys {shapes[1]} do not belong together")
    if {query.shape[2], key.shape[2]} != {mask.num_tokens}:
        raise ValueError(f"the mask is for {mask.num_tokens} tokens, and queries and keys are {shapes[:2]}")


def _intervals(
    mask: ChunkMask, seen: SeenIntervals, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Attend:
    if not query.is_cuda or not is_available():
        raise ModelError("the interval kernel runs on CUDA devices with triton only", "use kernel='chunks'")
    if _needs_gradients(query, key, value):
        raise ModelError("the interval kernel has no gradients", "use kernel='flex'")
    heads, groups = query.shape[1], key.shape[1]
    plan = intervalkernel.plan(
        seen,
        heads // groups,
        groups * query.shape[0],
        query.device,
        dtype=query.dtype,
        channels=max(query.shape[3], value.shape[3]),
    )
    return lambda q, k, v, scale: intervalkernel.attend(q, k, v, plan, scale).transpose(1, 2)


def _causal(
    mask: ChunkMask, seen: SeenIntervals, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Attend:
    if not seen.is_causal():
        raise ModelError("the graph is not plain causal attention", "use kernel='auto'")
    return lambda q, k, v, scale: torch_attention(q, k, v, None, scale)


def _dense(
    mask: ChunkMask, seen: SeenIntervals, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Attend:
    visible = torch.from_numpy(mask.dense()).to(query.device)
    if query.device.type == "cpu":
        # As numbers to add: SDPA would make them of bools in every call.
        visible = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
    return lambda q, k, v, scale: torch_attention(q, k, v, visible, scale)


def _chunks(
    mask: ChunkMask, seen: SeenIntervals, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Attend:
    made = parts(seen, query.device)
    return lambda q, k, v, scale: by_parts(q, k, v, made, scale).transpose(1, 2)


def _flex(
    mask: ChunkMask, seen: SeenIntervals, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> Attend:
    if query.device.type == "cpu" and _needs_gradients(query, key, value):
        raise ModelError("flex attention has no gradients on a CPU", "use kernel='chunks'")
    blocks = block_mask(mask, query.device, padded_length=padded_length(mask.num_tokens))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        with many_flex_versions():
            return flex_attention_forward(None, q, k, v, blocks, scale)[0].transpose(1, 2)

    return attend


_PREPARE: dict[str, Callable[..., Attend]] = {
    "intervals": _intervals,
    "causal": _causal,
    "chunks": _chunks,
    "dense": _dense,
    "flex": _flex,
}
