"""Real Hugging Face model classes with small random weights. All have the same heads, so that compiled
attention is shared between them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers

# Products this small gain nothing from a second thread, and lose a lot where others use the processors too.
torch.set_num_threads(1)

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
        case "llama-yarn" | "llama-dynamic" | "llama-linear":
            return _rotary(name.removeprefix("llama-"), factor=4.0)
        case "llama-llama3":
            return _rotary(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            )
        case "phi3-partial":
            rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
            return transformers.Phi3Config(**SHAPE, sliding_window=None, rope_parameters=rope)
        case "smollm3":
            return transformers.SmolLM3Config(**SHAPE, no_rope_layers=[1, 0])
        case "cohere":
            return transformers.CohereConfig(**SHAPE)
        case "glm":
            return transformers.GlmConfig(**SHAPE, head_dim=16)
        case "gptj":
            return transformers.GPTJConfig(
                vocab_size=VOCABULARY,
                n_embd=64,
                n_layer=2,
                n_head=4,
                n_positions=4096,
                rotary_dim=8,
                initializer_range=0.12,
                bos_token_id=256,
                eos_token_id=257,
            )
        case "opt":
            return transformers.OPTConfig(
                vocab_size=VOCABULARY,
                hidden_size=64,
                ffn_dim=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                word_embed_proj_dim=64,
                max_position_embeddings=512,
                init_std=0.12,
                bos_token_id=256,
                eos_token_id=257,
                pad_token_id=259,
            )
        case "gpt-oss":
            rope = {"rope_type": "default", "rope_theta": 10000.0}
            return transformers.GptOssConfig(
                **SHAPE,
                head_dim=16,
                # All of them for every token: a choice would flip with the last bit.
                num_local_experts=2,
                num_experts_per_tok=2,
                sliding_window=5,
                layer_types=SLIDING_AND_FULL,
                rope_parameters=rope,
            )
        case _:
            raise KeyError(name)


def _rotary(kind: str, **more: Any) -> Any:
    parameters = {"rope_type": kind, "rope_theta": 10000.0} | more
    return transformers.LlamaConfig(**SHAPE, rope_parameters=parameters)


@cache
def tiny_model(name: str) -> Any:
    """A model by name, the same object in every test; float32 on the CPU."""
    torch.manual_seed(sum(name.encode()))
    return transformers.AutoModelForCausalLM.from_config(_config(name)).eval()
