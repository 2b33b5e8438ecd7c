"""Real Hugging Face model classes with small random weights. All have the same heads, so that compiled
attention is shared between them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

VOCABULARY = 260  # that of the byte tokenizer
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    # Larger than usual: with tiny weights every input gives nearly the same logits, and tests prove nothing.
    "initializer_range": 0.12,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 259,
}
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]


def _config(name: str) -> Any:
    match name:
        case "llama":
            return transformers.LlamaConfig(**SHAPE)
        case "llama-gqa":
            return transformers.LlamaConfig(**SHAPE | {"num_key_value_heads": 2})
        case "qwen3":
            return transformers.Qwen3Config(**SHAPE, head_dim=16)
        case "mistral":
            return transformers.MistralConfig(**SHAPE, sliding_window=None)
        case "mistral-window":
            return transformers.MistralConfig(**SHAPE, sliding_window=5)
        case "gpt-neox":
            return transformers.GPTNeoXConfig(**SHAPE)
        case "gemma3":
            return transformers.Gemma3TextConfig(
                **SHAPE,
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=5,
                layer_types=SLIDING_AND_FULL,
            )
        case "gemma2":
            return transformers.Gemma2Config(
                **SHAPE, head_dim=16, query_pre_attn_scalar=16, sliding_window=5, layer_types=SLIDING_AND_FULL
            )
        case "phi3":
            return transformers.Phi3Config(**SHAPE, sliding_window=None)
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=64,
                n_embd=64,
                n_layer=2,
                n_head=4,
                initializer_range=0.12,
                bos_token_id=256,
                eos_token_id=257,
            )
        case _:
            raise KeyError(name)


@cache
def tiny_model(name: str) -> Any:
    """A model by name, the same object in every test; float32 on the CPU."""
    torch.manual_seed(sum(name.encode()))
    return transformers.AutoModelForCausalLM.from_config(_config(name)).eval()
