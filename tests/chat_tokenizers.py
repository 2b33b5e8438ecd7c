"""Fast tokenizers with chat templates in the manner of real models, written for the tests.

They share one trained byte-level BPE, whose special tokens are the markers of all templates. Zephyr's markers
are plain text, as they are in that model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

CORPUS = ["the quick brown fox jumps over the lazy dog", "a prompt is a graph\n\nof chunks", "  hello  hello"]
SPECIAL_TOKENS = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|endoftext|>",
)

CHATML = """\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

QWEN = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are a fox.<|im_end|>\n' }}{%- endif %}
"""

# What an assistant thought is left out, and the last message alone has a place for thoughts.
THINKING = """\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.role == 'assistant' and loop.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
    {{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

# What an assistant thought is left out; an answer starts with a thought.
REASONER = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- message.content }}{%- endif %}
    {%- if message.role == 'user' %}{{- '<|user|>' + message.content }}{%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|assistant|>' + message.content.split('</think>')[-1] + '</s>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|><think>\n' }}{%- endif %}"""

LLAMA3 = """\
{% for message in messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
{% set content = content + message['content'] | trim + '<|eot_id|>' %}
{% if loop.first %}{% set content = bos_token + content %}{% endif %}{{- content -}}
{% endfor %}
{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{% endif %}"""

LLAMA31 = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nKnowledge: 2023\nToday: ' + date_string + '\n\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

ALTERNATE = """\
{%- for message in messages %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}{%- endfor %}
"""

GEMMA_TURNS = (
    ALTERNATE
    + """\
{%- for message in messages %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {{- message.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}"""
)

GEMMA = (
    """\
{{- bos_token }}{%- set first = '' %}
{%- if messages[0].role == 'system' %}{{- raise_exception('System role not supported') }}{%- endif %}
"""
    + GEMMA_TURNS
)

GEMMA3 = (
    """\
{{- bos_token }}{%- set first = '' %}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content + '\n\n' %}{%- set messages = messages[1:] %}
{%- endif %}
"""
    + GEMMA_TURNS
)

# White space is stripped from the assistant's contents only.
MISTRAL = (
    """\
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content + '\n\n' %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
"""
    + ALTERNATE
    + """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (system if loop.first else '') + message.content + ' [/INST]' }}
    {%- else %}{{- ' ' + message.content | trim + eos_token }}{%- endif %}
{%- endfor %}"""
)

# BOS in front of every question.
LLAMA2 = (
    """\
{%- if messages[0].role == 'system' %}
    {%- set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
"""
    + ALTERNATE
    + """\
{%- for message in messages %}
    {%- set content = (system if loop.first else '') + message.content %}
    {%- if message.role == 'user' %}{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- else %}{{- ' ' + content.strip() + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""
)

# As Mistral, but the markers are words like any other, and nothing is stripped.
WORDY = (
    ALTERNATE
    + """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}{{- 'Q: ' + message.content + ' (answer)' }}
    {%- else %}{{- message.content + eos_token }}{%- endif %}
{%- endfor %}"""
)

ZEPHYR = """\
{% for message in messages %}
{{- '<' + message['role'] + '>\n' }}
{{- message['content'] + eos_token + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{- '<assistant>\n' }}{% endif %}"""

# A conversation that asks for no answer ends with EOS.
PHI3 = """\
{% for message in messages %}\
{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

NUMBERED = """\
{% for message in messages %}{{ '<|im_start|>' ~ loop.index ~ message.role ~ '\n' ~ message.content }}\
{{ '<|im_end|>\n' }}{% endfor %}"""

LAST_COUNTS = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content }}\
{{ '<|im_end|>' if loop.last else '<|eot_id|>' }}{% endfor %}"""

SHOUTING = "{% for message in messages %}{{ message.role + message.content | upper }}{% endfor %}"

SQUEEZING = """\
{% for message in messages %}\
{{ message.role + message.content.split() | join(' ') + '<|end|>' }}{% endfor %}"""

LEFT_ONLY = (
    "{% for message in messages %}{{ message.role + message.content.lstrip() + '<|end|>' }}{% endfor %}"
)

HALF_SYSTEM = """\
{% for message in messages %}{% if message.role != 'system' %}{{ message.role + message.content }}{% endif %}\
{% endfor %}"""

# Template, BOS and EOS by name.
TEMPLATES: dict[str, tuple[str, str | None, str]] = {
    "chatml": (CHATML, None, "<|im_end|>"),
    "qwen": (QWEN + CHATML, None, "<|im_end|>"),
    "llama3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>"),
    "llama31": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>"),
    "gemma": (GEMMA, "<bos>", "<end_of_turn>"),
    "gemma3": (GEMMA3, "<bos>", "<end_of_turn>"),
    "mistral": (MISTRAL, "<s>", "</s>"),
    "llama2": (LLAMA2, "<s>", "</s>"),
    "wordy": (WORDY, "<s>", "</s>"),
    "zephyr": (ZEPHYR, "<s>", "</s>"),
    "phi3": (PHI3, "<s>", "<|endoftext|>"),
    "thinking": (THINKING, None, "<|im_end|>"),
    "reasoner": (REASONER, "<s>", "</s>"),
    "numbered": (NUMBERED, None, "<|im_end|>"),
    "last_counts": (LAST_COUNTS, None, "</s>"),
    "shouting": (SHOUTING, None, "</s>"),
    "squeezing": (SQUEEZING, None, "</s>"),
    "left_only": (LEFT_ONLY, None, "</s>"),
    "half_system": (HALF_SYSTEM, None, "</s>"),
    "broken": ("{% for message in %}", None, "</s>"),
}


@cache
def _backend() -> str:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=320, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return backend.to_str()


@cache
def chat_tokenizer(name: str) -> Any:
    """The tokenizer with the template of this name."""
    template, bos, eos = TEMPLATES[name]
    tokenizer = plain_tokenizer(bos, eos)
    tokenizer.chat_template = template
    tokenizer.name_or_path = name
    return tokenizer


def plain_tokenizer(bos: str | None = None, eos: str | None = None) -> Any:
    """The tokenizer without a chat template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_backend())
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
