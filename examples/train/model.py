"""The model, and a pass of it over a bundle."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from legraph import Bundle
from legraph.bundle import NO_LABEL
from legraph.model import use_attention

from .recipe import Recipe


def new_model(recipe: Recipe, tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def last_hidden(model: Any, bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model has at each token but the last [N - 1, C], and the labels of the next tokens [N - 1].

    FlexAttention on a GPU; on a CPU torch cannot learn through it, so there the mask is a dense one.
    """
    on_gpu = model.device.type == "cuda"
    attn = "flex" if on_gpu else "sdpa"
    use_attention(model, attn)
    inputs = bundle.model_inputs(model.device, attn)
    labels = inputs.pop("labels")[0, 1:]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=on_gpu):
        return model.model(**inputs, use_cache=False).last_hidden_state[0, :-1], labels


def batch_loss(model: Any, bundle: Bundle, text_loss_weight: float) -> torch.Tensor:
    """Mean cross-entropy of the labelled tokens, plus a share of that of all texts.

    Made-up names cost many tokens, and the answers alone teach how they are spelled slowly.
    """
    hidden, labels = last_hidden(model, bundle)
    learned = labels != NO_LABEL
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        loss = cross_entropy(model.lm_head(hidden[learned]).float(), labels[learned])
        if not text_loss_weight:
            return loss
        # Within chunks only: a chunk's first token has no one token before it.
        ids = torch.from_numpy(bundle.input_ids[1:]).to(model.device)
        inner = torch.ones_like(learned)
        inner[torch.from_numpy(bundle.span_offsets[1:-1] - 1).to(model.device)] = False
        text = cross_entropy(model.lm_head(hidden[inner]).float(), ids[inner])
    return loss + text_loss_weight * text


def publish(model: Any, tokenizer: Any, folder: Any, dtype: str) -> None:
    """The finished model as any other: config, safetensors in half precision, tokenizer."""
    model = model.to(getattr(torch, dtype))
    use_attention(model, "sdpa")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
