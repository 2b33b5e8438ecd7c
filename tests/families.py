"""Tiny random models of every family of causal LMs in transformers, and what is known about each.

The sizes are the same for all, under whichever of their names a config takes. A family adds what makes it
itself: a window that bites within a few tokens, a kind of rotary embedding, layers without positions. A
model type that the installed transformers does not have is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 260  # that of the byte tokenizer
# Larger than usual: with tiny weights every input gives nearly the same logits, and tests prove nothing.
SPREAD = 0.12
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 259,
    "initializer_range": SPREAD,
    "init_std": SPREAD,
    "hidden_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rotary_dim": 8,
    "query_pre_attn_scalar": 16,
    "word_embed_proj_dim": 64,
    "max_position_embeddings": 4096,
    # encoders that can be used as decoders, and the decoder halves of encoder-decoders
    "is_decoder": True,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "zero_expert_num": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "dense_intermediate_size": 96,
    "expert_ffn_hidden_size": 32,
    "intermediate_size_mlp": 96,
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "index_head_dim": 16,
    "index_n_heads": 2,
    # recurrent layers
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 32,
    "mamba_d_ssm": 128,
    "mamba_chunk_size": 16,
    "n_mamba_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "ssm_state_size": 8,
    "n_groups": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
}
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
WINDOW = 5
SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
WINDOWED: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": SLIDING_AND_FULL}
# Latent attention has as many key heads as query heads.
LATENT: dict[str, Any] = {"num_key_value_heads": 4}


@dataclass(frozen=True, slots=True)
class Family:
    """
    Attributes:
        name: what it is called in docs/models.md.
        model_type: transformers' name for the config.
        settings: of the config, besides `SIZES`.
    """

    name: str
    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        return (
            self.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
            and self.model_type in transformers.CONFIG_MAPPING
        )

    def config(self) -> Any:
        kind = transformers.CONFIG_MAPPING[self.model_type]
        # Some configs of transformers 5.0 do not name the special tokens, which they need.
        known = {*signature(kind).parameters, *kind.attribute_map, *_SPECIAL_TOKENS}
        return kind(**{key: value for key, value in SIZES.items() if key in known} | self.settings)

    def model(self) -> Any:
        """Its weights depend on the family's name only. Biases, norms and sinks are no zeros and ones."""
        torch.manual_seed(sum(self.name.encode()))
        model = transformers.AutoModelForCausalLM.from_config(self.config()).float().eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 1:
                    weight += SPREAD * torch.randn_like(weight)
        return model


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | settings}


def plain(*names_and_types: str) -> Iterator[Family]:
    """Families that need no settings of their own: name, model type, name, model type, ..."""
    for name, model_type in zip(names_and_types[::2], names_and_types[1::2], strict=True):
        yield Family(name, model_type)


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONGROPE = {
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4],
    "original_max_position_embeddings": 512,
}

FAMILIES: tuple[Family, ...] = (
    Family("Llama", "llama"),
    Family(
        "Llama, tied embeddings, one key head",
        "llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
    ),
    Family("Llama, llama3 rope", "llama", rope("llama3", **_LLAMA3)),
    Family("Llama, linear rope", "llama", rope("linear", factor=4.0)),
    Family("Llama, dynamic rope", "llama", rope("dynamic", factor=4.0)),
    Family("Llama, yarn rope", "llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    Family("Mistral", "mistral", {"sliding_window": None}),
    Family("Mistral, window", "mistral", {"sliding_window": WINDOW}),
    Family("Ministral", "ministral", WINDOWED),
    Family(
        "Ministral 3",
        "ministral3",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=64,
            llama_4_scaling_beta=0.1,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
        ),
    ),
    Family("Mixtral", "mixtral"),
    Family("Mixtral, window", "mixtral", {"sliding_window": WINDOW}),
    Family("Qwen 2", "qwen2"),
    Family(
        "Qwen 2, window",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Family("Qwen 2 MoE", "qwen2_moe"),
    Family(
        "Qwen 2 MoE, window",
        "qwen2_moe",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Family("Qwen 3", "qwen3"),
    Family(
        "Qwen 3, window",
        "qwen3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    Family("Qwen 3 MoE", "qwen3_moe"),
    Family("Qwen 3 MoE, window", "qwen3_moe", {"use_sliding_window": True, "sliding_window": WINDOW}),
    *plain(
        "Qwen 3 Next",
        "qwen3_next",
        "Qwen 3.5",
        "qwen3_5_text",
        "Qwen 3.5 MoE",
        "qwen3_5_moe_text",
        "Qwen 4 experimental",
        "qwen4_exp_text",
        "Gemma",
        "gemma",
    ),
    Family("Gemma 2", "gemma2", WINDOWED | {"attn_logit_softcapping": 2.0}),
    Family("VaultGemma", "vaultgemma", WINDOWED | {"attn_logit_softcapping": 2.0}),
    Family("Gemma 3", "gemma3_text", WINDOWED),
    Family(
        "Gemma 3, with images",
        "gemma3",
        {
            "text_config": SIZES | WINDOWED,
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            "mm_tokens_per_image": 4,
        },
    ),
    Family(
        "Gemma 3n",
        "gemma3n_text",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "sliding_window": WINDOW,
            "layer_types": SLIDING_AND_FULL * 2,
            "intermediate_size": 96,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": None,
        },
    ),
    Family(
        "Gemma 4",
        "gemma4_text",
        WINDOWED | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    ),
    *plain("Phi", "phi"),
    Family("Phi 3", "phi3", {"sliding_window": None}),
    Family("Phi 3, window", "phi3", {"sliding_window": WINDOW}),
    Family(
        "Phi 3, longrope", "phi3", {"original_max_position_embeddings": 512} | rope("longrope", **_LONGROPE)
    ),
    *plain("Phi 3.5 MoE", "phimoe"),
    Family("gpt-oss", "gpt_oss", WINDOWED),
    Family("DeepSeek V2", "deepseek_v2", LATENT),
    Family("DeepSeek V3", "deepseek_v3", LATENT),
    Family("DeepSeek V3.2", "deepseek_v32", LATENT),
    *plain("DeepSeek V4", "deepseek_v4"),
    Family("MiniCPM 3", "minicpm3", LATENT),
    Family("Youtu", "youtu", LATENT),
    Family("GLM 4 MoE Lite", "glm4_moe_lite", LATENT),
    Family("LongCat Flash", "longcat_flash", LATENT | {"head_dim": 8}),
    Family("A.X K1", "axk1", LATENT),
    Family("A.X K2", "axk2", LATENT),
    Family("Sarvam MLA", "sarvam_mla", LATENT),
    *plain("Sarvam MoE", "sarvam_moe"),
    Family("GLM MoE DSA", "glm_moe_dsa", LATENT),
    *plain("GLM", "glm", "GLM 4", "glm4", "GLM 4 MoE", "glm4_moe"),
    *plain("OLMo", "olmo", "OLMo 2", "olmo2"),
    Family("OLMo 3", "olmo3", WINDOWED),
    *plain("OLMoE", "olmoe", "FlexOlmo", "flex_olmo", "OLMo hybrid", "olmo_hybrid"),
    *plain("StableLM", "stablelm", "Cohere", "cohere"),
    Family("Cohere 2", "cohere2", WINDOWED),
    Family("Cohere 2 MoE", "cohere2_moe", WINDOWED),
    *plain("Granite", "granite", "Granite MoE", "granitemoe", "Granite MoE shared", "granitemoeshared"),
    *plain("Granite MoE hybrid", "granitemoehybrid"),
    Family("Granite SWA", "granite_swa", WINDOWED),
    Family("Granite MoE SWA", "granitemoe_swa", WINDOWED),
    *plain("StarCoder 2", "starcoder2"),
    Family("StarCoder 2, window", "starcoder2", {"sliding_window": WINDOW}),
    Family("SmolLM 3", "smollm3", {"no_rope_layers": [1, 0]}),
    Family("EXAONE 4", "exaone4", WINDOWED),
    Family("EXAONE MoE", "exaone_moe", WINDOWED | {"first_k_dense_replace": 1}),
    *plain(
        "Nemotron",
        "nemotron",
        "Helium",
        "helium",
        "Seed-OSS",
        "seed_oss",
        "ERNIE 4.5",
        "ernie4_5",
        "ERNIE 4.5 MoE",
        "ernie4_5_moe",
        "Hunyuan dense",
        "hunyuan_v1_dense",
        "Hunyuan MoE",
        "hunyuan_v1_moe",
        "HunYuan V3",
        "hy_v3",
        "HunYuan V4",
        "hy_v4",
        "HyperCLOVA X",
        "hyperclovax",
        "Apertus",
        "apertus",
        "Apertus 1.5",
        "apertus1p5_text",
        "Arcee",
        "arcee",
        "Aria",
        "aria_text",
        "BitNet",
        "bitnet",
        "DiffLlama",
        "diffllama",
        "Doge",
        "doge",
        "Jais 2",
        "jais2",
        "JetMoE",
        "jetmoe",
        "HRM text",
        "hrm_text",
        "MiniMax M2",
        "minimax_m2",
        "MiniMax M3",
        "minimax_m3_vl_text",
        "NanoChat",
        "nanochat",
        "Persimmon",
        "persimmon",
        "Solar Open",
        "solar_open",
    ),
    Family("AFMoE", "afmoe", WINDOWED),
    Family("Beam", "beam", WINDOWED | {"layer_types": SLIDING_AND_FULL[::-1]}),
    Family("CWM", "cwm", WINDOWED),
    Family("dots.llm1", "dots1"),
    Family("dots.llm1, window", "dots1", WINDOWED),
    Family(
        "Dory",
        "dory",
        {
            "num_hidden_layers": 3,
            "n_input_layers": 1,
            "n_recurrent_layers": 1,
            "n_output_layers": 1,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    Family("Flint", "flint", WINDOWED),
    Family("Kolibri 1", "kolibri1", WINDOWED),
    Family("Laguna", "laguna", WINDOWED | {"num_attention_heads_per_layer": [4, 8]}),
    Family("Mellum", "mellum", WINDOWED),
    Family(
        "MiMo V2 Flash",
        "mimo_v2_flash",
        WINDOWED | {"layer_types": SLIDING_AND_FULL[::-1]},
    ),
    Family("ModernBERT decoder", "modernbert-decoder", WINDOWED),
    Family("Moshi", "moshi", {"sliding_window": WINDOW}),
    Family(
        "DBRX",
        "dbrx",
        {
            "d_model": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
            "ffn_config": {"ffn_hidden_size": 32},
        },
    ),
    *plain("GPT-NeoX", "gpt_neox", "GPT-NeoX Japanese", "gpt_neox_japanese", "GPT-J", "gptj"),
    *plain("CodeGen", "codegen", "GPT-2", "gpt2", "GPT-SW3", "gpt-sw3", "GPT-BigCode", "gpt_bigcode"),
    Family("GPT-Neo, global", "gpt_neo", {"num_layers": 2, "attention_types": [[["global"], 2]]}),
    Family(
        "GPT-Neo",
        "gpt_neo",
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    ),
    *plain("GPT", "openai-gpt", "CTRL", "ctrl", "OPT", "opt", "XGLM", "xglm", "BioGPT", "biogpt"),
    Family("Falcon", "falcon", {"alibi": False}),
    Family("Falcon, alibi", "falcon", {"alibi": True}),
    *plain("MPT", "mpt", "BLOOM", "bloom"),
    Family("Llama 4", "llama4_text", {"attention_chunk_size": WINDOW}),
    *plain("Mamba", "mamba"),
    Family("Mamba 2", "mamba2", {"num_heads": 4, "head_dim": 32, "n_groups": 1, "state_size": 8}),
    *plain(
        "Falcon Mamba", "falcon_mamba", "RWKV", "rwkv", "xLSTM", "xlstm", "RecurrentGemma", "recurrent_gemma"
    ),
    *plain("Jamba", "jamba", "Bamba", "bamba", "Falcon H1", "falcon_h1", "Nemotron H", "nemotron_h"),
    Family(
        "Zamba",
        "zamba",
        {"num_hidden_layers": 5, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba"]},
    ),
    Family("Zamba 2", "zamba2", {"layers_block_type": ["mamba", "hybrid"]}),
    Family("Zaya", "zaya", {"num_experts_per_tok": 1}),
    *plain("MiniMax", "minimax", "Kimi Linear", "kimi_linear", "Bailing hybrid", "bailing_hybrid"),
    Family("LFM 2", "lfm2", {"layer_types": ["conv", "full_attention"]}),
    Family("LFM 2, all attention", "lfm2", {"layer_types": ["full_attention", "full_attention"]}),
    Family("LFM 2 MoE", "lfm2_moe", {"layer_types": ["conv", "full_attention"]}),
    *plain(
        "LFM 3", "lfm3", "Lara mini", "lara_mini", "Inkling", "inkling_text", "Inkling 2", "inkling2_text"
    ),
    *plain("Inkling 2 loop", "inkling2_loop_text"),
    *plain("EXAONE 3", "exaone", "InternLM 3", "internlm3", "IQuest-Coder", "iquestcoder"),
    Family(
        "Gemma 4 unified",
        "gemma4_unified_text",
        WINDOWED | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    ),
    Family(
        "Cohere Compass",
        "cohere_compass_text",
        WINDOWED
        | {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in SLIDING_AND_FULL
            }
        },
    ),
    Family("dots 3 note", "dots3_note_text", LATENT | {"n_routed_experts": 4}),
    Family(
        "RoCBert",
        "roc_bert",
        {
            "enable_pronunciation": False,
            "enable_shape": False,
            "shape_vocab_size": 260,
            "pronunciation_vocab_size": 260,
        },
    ),
    *plain("BERT", "bert", "BERT generation", "bert-generation", "CamemBERT", "camembert"),
    *plain(
        "data2vec", "data2vec-text", "ELECTRA", "electra", "ERNIE", "ernie", "Megatron BERT", "megatron-bert"
    ),
    *plain("RemBERT", "rembert", "RoBERTa", "roberta", "RoBERTa PreLayerNorm", "roberta-prelayernorm"),
    *plain("RoFormer", "roformer", "XLM-RoBERTa", "xlm-roberta", "XLM-RoBERTa XL", "xlm-roberta-xl"),
    Family("BigBird", "big_bird", {"attention_type": "original_full"}),
    Family("BigBird, sparse blocks", "big_bird"),
    Family("X-MOD", "xmod", {"default_language": "en_XX"}),
    *plain("XLM", "xlm", "CPM-Ant", "cpmant"),
    Family("XLNet", "xlnet", {"d_model": 64, "n_head": 4, "n_layer": 2, "d_inner": 96}),
    *plain("BART", "bart", "BigBird Pegasus", "bigbird_pegasus", "Blenderbot", "blenderbot"),
    *plain("Blenderbot small", "blenderbot-small", "Marian", "marian", "mBART", "mbart", "MVP", "mvp"),
    *plain("Pegasus", "pegasus", "PLBart", "plbart", "ProphetNet", "prophetnet", "TrOCR", "trocr"),
    *plain("Whisper", "whisper"),
)

# Not tried, and why.
_NOT_TEXT = "a model of images, audio or video beside text"
UNTRIED: dict[str, str] = {
    **dict.fromkeys(
        [
            "dots3_note", "emu3", "fuyu", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4",
            "mllama", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "phi4_multimodal", "qwen3_5",
            "qwen3_5_moe", "qwen4_exp",
        ],
        _NOT_TEXT,
    ),
    "gemma4_assistant": "drafts tokens for another model",
    "gemma4_unified_assistant": "drafts tokens for another model",
    "blt": "byte patches of its own in place of tokens",
    "reformer": "hashes of its own in place of a mask",
}  # fmt: skip
