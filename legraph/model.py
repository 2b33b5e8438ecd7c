"""Loads a Hugging Face causal LM, and makes sure that it obeys a graph before anything relies on it.

transformers has hundreds of model classes. Some ignore a 4-D mask, some ignore position ids, some are not
attention at all; none of them says so. `check_obeys` asks the model itself: it changes a token that must be
invisible, one that must be visible, and a position, and looks at what the output does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from legraph.attention import (
    IMPLEMENTATIONS,
    Attention,
    dense_form,
    for_each_layer_kind,
    layer_windows,
    within_window,
)
from legraph.errors import ModelError
from legraph.parallel import check_choice, check_plan, is_lost, join, load_options, lost
from legraph.tokens import SHIPPED_FOLDER, SHIPPED_MODEL

_LOADABLE = "give a folder with config.json and model.safetensors, or a hub id that can be reached here"
# The probe: two one-chunk documents and a question that sees the first one only.
_PROBE_LENGTH = 6
_PROBE_SEEN, _PROBE_UNSEEN = slice(0, 2), slice(2, 4)
# A leak must stay below this share of the effect that a visible change has (rounding of batched kernels).
_LEAK_SHARE = 1e-3
# A plain text: its tokens, the window of windowed layers meanwhile, and the share of the effect of another
# token that may lie between a model with our mask and positions and the model by itself. It is 0 for nearly
# all; rounding that decides between two experts may add to it. What is foreign exceeds 1.
_TEXT_LENGTH, _TEXT_WINDOW, _FOREIGN_SHARE = 6, 3, 0.25


def load_model(name: str, device: str | None = None, dtype: str = "auto", tp: str | None = None) -> Any:
    """Loads a causal LM by path or hub id, in evaluation mode; `recall` ships with legraph.

    Args:
        device: a torch device; default the first CUDA device, else the CPU.
        dtype: a torch dtype's name; "auto" is the checkpoint's own on a GPU and float32 on a CPU.
        tp: "auto" shares the model out to the processes that `torchrun` has started (see `parallel`).

    Raises:
        InputError: `tp` together with a device.
        ModelError: it cannot be loaded, has no causal LM class, lacks weights or has some of another shape,
            or does not fit into memory.
    """
    from transformers import AutoModelForCausalLM

    check_choice(tp, device, has_kv=False)
    num_processes = 1 if tp is None else join()
    target = device_of(device)
    if name.startswith((os.sep, ".")) and not Path(name).exists():
        # transformers would take it for a hub id, and say that it is a malformed one.
        raise ModelError(f"model {name!r} cannot be loaded: no such folder", _LOADABLE)
    with run_errors(f"loading model {name!r}"):
        try:
            place = str(SHIPPED_FOLDER) if name == SHIPPED_MODEL else name
            options = _sharing(name, place, num_processes)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=_dtype(dtype, target),
                output_loading_info=True,
                # What does not fit is reported below, by name, instead of as a table on stderr.
                ignore_mismatched_sizes=True,
                **options,
            )
            model, report = loaded
        except Exception as error:  # transformers and its file formats raise a dozen types
            if isinstance(error, ModelError) or is_out_of_memory(error) or is_lost(error):
                raise
            raise ModelError(
                f"model {name!r} cannot be loaded: {_reason(error)}",
                _LOADABLE,
            ) from None
        _check_weights(name, report)
        return model.eval() if options else model.to(target).eval()


def _sharing(name: str, place: str, num_processes: int) -> dict[str, Any]:
    """How a model is loaded by several processes together; nothing where it is one."""
    from transformers import AutoConfig

    if num_processes == 1:
        return {}
    check_plan(name, AutoConfig.from_pretrained(place), num_processes)
    return load_options(num_processes)


def check_place(model: Any) -> None:
    """accelerate's `device_map` may spread layers; the cache and the masks lie on one device.

    Weights that it keeps on the CPU or on disk, and brings to that device when a layer needs them, are fine.

    Raises:
        ModelError: layers are computed on several devices, or the first weights are not on one.
    """
    places = map(str, (getattr(model, "hf_device_map", None) or {}).values())
    devices = sorted(set(places) - {"cpu", "disk"})
    if len(devices) > 1:
        raise ModelError(
            f"the layers of {type(model).__name__} are spread over the devices {', '.join(devices)}",
            'share each layer out instead (tp="auto"), or name one device, "cpu" and "disk" for others',
        )
    if model.device.type == "meta":
        raise ModelError(
            f"the embedding of {type(model).__name__} is not in memory, so nobody knows where it is computed",
            "keep it on the device: name it in the device_map",
        )


def is_offloaded(model: Any) -> bool:
    """Whether some weights are brought to the device only when they are needed."""
    return any(weight.is_meta for weight in model.parameters())


def _check_weights(name: str, report: dict[str, Any]) -> None:
    """transformers fills weights that are missing or do not fit with random numbers."""
    hint = "the checkpoint was made for another class of model; use one made for causal language models"
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"model {name!r} lacks {len(missing)} of its weights, among them {missing[0]}",
            hint,
        )
    misfits = sorted(key for key, *_ in report["mismatched_keys"])
    if misfits:
        raise ModelError(
            f"model {name!r}: {len(misfits)} weights have another shape than config.json says, "
            f"among them {misfits[0]}",
            hint,
        )


def _reason(error: BaseException) -> str:
    """What a library's error says first: its messages go on for paragraphs."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    if first.endswith(":") and rest:
        first += " " + rest[0].strip()
    return first.split(". ")[0].rstrip(".")


def device_of(name: str | None) -> torch.device:
    """The device of that name; without one the first CUDA device, else the CPU.

    Raises:
        ModelError: there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        hint = "this torch sees no CUDA device; use --device cpu" if name.startswith("cuda") else None
        raise ModelError(f"device {name!r} cannot be used here", hint) from None
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"unknown dtype {name!r}", "use auto, float32, bfloat16 or float16")
    return dtype


@contextmanager
def run_errors(doing: str) -> Iterator[None]:
    """Turns what torch raises when memory, or another process, ends into a `ModelError`: what to do."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if is_lost(error):
            raise lost(error) from None
        if not is_out_of_memory(error):
            raise
        raise ModelError(
            f"out of memory while {doing}",
            "use a smaller --dtype (bfloat16), a shorter graph, fewer --max-new-tokens or a larger device",
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, CUDA or Python ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "can't allocate memory" in text or "out of memory" in text.lower()


def use_attention(model: Any, attn: Attention) -> None:
    """Switches the model to an attention implementation.

    Raises:
        ModelError: the model's class does not offer it.
    """
    wanted = IMPLEMENTATIONS[attn]
    if model.config._attn_implementation == wanted:
        return
    try:
        model.set_attn_implementation(wanted)
    except (ValueError, ImportError, AttributeError) as error:
        raise _cannot_use(model, attn, _reason(error)) from None
    if model.config._attn_implementation != wanted:
        raise _cannot_use(model, attn, "its class keeps the one it was made with")


def _cannot_use(model: Any, attn: Attention, reason: str) -> ModelError:
    others = " or ".join(f"--attn {name}" for name in supported_attention(model) if name != attn)
    return ModelError(f"{type(model).__name__} cannot use {attn} attention: {reason}", f"use {others}")


def supported_attention(model: Any) -> list[Attention]:
    """The implementations that compute this model right, fastest first."""
    config = model.config.get_text_config()
    # transformers' sdpa refuses logit soft-capping (Gemma 2), in its forward pass only.
    has_softcap = getattr(config, "attn_logit_softcapping", None) is not None
    supported: list[Attention] = []
    if getattr(model, "_supports_flex_attn", False):
        supported.append("flex")
    if getattr(model, "_supports_sdpa", False) and not has_softcap:
        supported.append("sdpa")
    return [*supported, "eager"]


def dense_attention(model: Any) -> Attention:
    """The implementation that takes any mask, row by row: sdpa where the model can, else eager."""
    return "sdpa" if "sdpa" in supported_attention(model) else "eager"


def max_positions(config: Any) -> int | None:
    """Number of position ids that the model knows, or None if it does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def rotary_border(config: Any) -> int | None:
    """The position at which the model's rotary embedding changes for *all* tokens, or None.

    Dynamic NTK and LongRoPE choose their frequencies by the largest position of a forward pass, so keys
    that were cached on one side of the border do not fit queries on the other.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    for part in by_layer:
        if part.get("rope_type") in ("dynamic", "longrope"):
            return part.get("original_max_position_embeddings") or text.max_position_embeddings
    return None


def cache_argument(model: Any) -> str:
    """Name of the argument that takes the KV cache: transformers renamed it in 5.2x, class by class."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


@torch.inference_mode()
def check_obeys(model: Any) -> None:
    """Asks the model, with a few tiny inputs, whether it obeys masks and positions.

    Raises:
        ModelError: it sees what the mask hides, does not see what it shows, does not care for positions, or
            means something else by a mask, a position or its window than legraph does.
    """
    name = type(model).__name__
    if "local" in (getattr(model.config, "attention_layers", None) or ()):
        # GPT-Neo: its window is too wide for the probe, and it counts tokens, not positions.
        raise _disobeys(name, "has a window over the last tokens, whichever the mask shows")
    try:
        windows = layer_windows(model.config)
    except ModelError as error:
        raise ModelError(f"{name}: {error.message}", error.hint) from None
    if getattr(model.config, "attention_type", None) == "block_sparse":
        # BigBird: no probe is long enough to see it.
        raise _disobeys(name, "attends to blocks of its own choice where a text is long")
    if getattr(model.config, "alibi", False):
        raise _disobeys(name, "attends by distances that it counts in tokens (ALiBi)")
    arguments = signature(model.forward).parameters
    if "position_ids" not in arguments:
        raise _disobeys(name, "takes no position ids")
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("llama_4_scaling_beta") and "cache_position" in arguments:
        # Ministral 3, before transformers 5.2x.
        raise _disobeys(name, "scales attention by how many tokens came before, not by position ids")
    if "logits_to_keep" not in arguments:
        raise _disobeys(name, "gives logits for all tokens, whichever are asked for")
    attn = dense_attention(model)
    use_attention(model, attn)
    try:
        with run_errors(f"trying out {name}"):
            _check_probe(model, attn)
            _check_plain_text(model, attn, has_window=any(windows.values()))
    except Exception as error:  # whatever a class makes of inputs that it was not written for
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{name} cannot take a graph's mask and positions: {_reason(error)}",
            "use a decoder-only model with rotary or learned position ids, such as Llama, Qwen or Mistral",
        ) from None


def _check_probe(model: Any, attn: Attention) -> None:
    """Changes a token that must be invisible, one that must be visible, and a position."""
    name = type(model).__name__
    ids_BT, positions_BT, visible_TT = _probe(model)
    masks = _masks(model, attn, visible_TT, positions_BT)
    output = model(input_ids=ids_BT, position_ids=positions_BT, attention_mask=masks, use_cache=False)
    base, unseen, seen, moved = output.logits[:, -1].float()
    effect = (base - seen).abs().max()
    if not effect > 0:
        raise _disobeys(name, "does not look at the tokens that the mask shows")
    if (base - unseen).abs().max() > _LEAK_SHARE * effect:
        raise _disobeys(name, "looks at tokens that the mask hides")
    if not (base - moved).abs().max() > 0:
        raise _disobeys(name, "takes no notice of position ids")


def _check_plain_text(model: Any, attn: Attention, has_window: bool) -> None:
    """A plain text must give the same with our mask and positions as without any.

    RoBERTa counts positions from 2; a window may be something else than its config seems to say. So that the
    window bites, it is made tiny meanwhile.
    """
    text, device = model.config.get_text_config(), model.device
    window = getattr(text, "sliding_window", None)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids_BT = ((torch.arange(_TEXT_LENGTH, device=device) * 37 + 5) % vocabulary).repeat(2, 1)
    ids_BT[1, -3:-1] = (ids_BT[1, -3:-1] + vocabulary // 2) % vocabulary
    positions_BT = torch.arange(_TEXT_LENGTH, device=device).repeat(2, 1)
    visible_TT = torch.ones((_TEXT_LENGTH, _TEXT_LENGTH), dtype=torch.bool, device=device).tril()
    try:
        if has_window:
            text.sliding_window = _TEXT_WINDOW
        masks = _masks(model, attn, visible_TT, positions_BT)
        ours = model(input_ids=ids_BT, position_ids=positions_BT, attention_mask=masks, use_cache=False)
        own = model(input_ids=ids_BT, use_cache=False)
    finally:
        if has_window:
            text.sliding_window = window
    ours_BV, own_BV = ours.logits[:, -1].float(), own.logits[:, -1].float()
    effect = (own_BV[0] - own_BV[1]).norm()
    if not (ours_BV[0] - own_BV[0]).norm() <= _FOREIGN_SHARE * effect:
        raise _disobeys(
            type(model).__name__, "counts positions, or cuts a window, in another way than its config says"
        )


def _masks(model: Any, attn: Attention, visible_TT: torch.Tensor, positions_BT: torch.Tensor) -> Any:
    """The model's `attention_mask` argument; rows of the batch share it."""
    return for_each_layer_kind(
        model.config,
        lambda window: dense_form(
            visible_TT & within_window(positions_BT[0], positions_BT[0], window), attn, model.dtype
        ).expand(len(positions_BT), -1, -1, -1),
    )


def _disobeys(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name} {what}, so it cannot run a graph",
        "use a decoder-only attention model with rotary or learned position ids",
    )


def _probe(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four rows that differ from the first in an invisible token, a visible one, and the visible positions.

    Returns:
        ids and positions, int64 [4, T], and the mask they share, bool [T, T].
    """
    device = model.device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(_PROBE_LENGTH, device=device) + 3) % vocabulary
    positions = torch.tensor([0, 1, 0, 1, 3, 4], device=device)
    visible = torch.ones((_PROBE_LENGTH, _PROBE_LENGTH), dtype=torch.bool, device=device).tril()
    visible[2:4, _PROBE_SEEN] = False
    visible[4:, _PROBE_UNSEEN] = False
    ids_BT, positions_BT = ids.repeat(4, 1), positions.repeat(4, 1)
    ids_BT[1, _PROBE_UNSEEN] = (ids_BT[1, _PROBE_UNSEEN] + vocabulary // 2) % vocabulary
    ids_BT[2, _PROBE_SEEN] = (ids_BT[2, _PROBE_SEEN] + vocabulary // 2) % vocabulary
    positions_BT[3, _PROBE_SEEN] += 1
    return ids_BT, positions_BT, visible
