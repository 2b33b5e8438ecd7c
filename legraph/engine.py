"""`Engine`: a causal LM and its tokenizer, ready to run bundles. What a run does is in `run`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from legraph.attention import Attention
from legraph.blocks import active_blocks
from legraph.branch import Branch, Piece
from legraph.bundle import Bundle
from legraph.errors import BundleError, InputError, ModelError, Problem
from legraph.graph import Generate
from legraph.model import check_obeys, dense_attention, load_model, max_positions, supported_attention
from legraph.run import Run, RunResult, check_positions
from legraph.schema import GenerateSpec
from legraph.tokens import SHIPPED_MODEL, check_tokenizer, fingerprint, load_tokenizer, tokenizer_id

# On a CPU: seconds that sdpa takes for one (query, key) pair in one layer and one channel, and seconds that
# the first compilation of flex takes. Measured on two cores; they decide `auto`, never a result.
_CPU_SECONDS_PER_PAIR_CHANNEL = 3.2e-11
_CPU_COMPILE_SECONDS = 20.0


class Engine:
    """A causal LM and its tokenizer, ready to run bundles.

    Args:
        model: a Hugging Face causal LM. It is put into evaluation mode, and its attention implementation is
            changed as needed.
        tokenizer: the fast tokenizer that bundles for this model are compiled with.
        attn: "flex", "sdpa" or "eager" for prefill; "auto" takes flex on a GPU, and on a CPU what is
            expected to answer soonest. Decoding uses sdpa, or eager where the model's class needs it.

    Raises:
        ModelError: the model cannot honour a graph, or does not offer `attn`.
        TokenizerError: the tokenizer is a slow one.
    """

    def __init__(self, model: Any, tokenizer: Any, attn: str = "auto") -> None:
        self.model = model.eval()
        self.tokenizer = check_tokenizer(tokenizer)
        supported = supported_attention(model)
        if attn != "auto" and attn not in supported:
            raise ModelError(
                f"{type(model).__name__} cannot use {attn!r} attention", f"use one of {', '.join(supported)}"
            )
        self.attn = attn
        check_obeys(model)
        self.end_ids = _end_ids(model, tokenizer)
        self._fingerprint = fingerprint(tokenizer)

    @classmethod
    def load(
        cls,
        model: str | None = None,
        tokenizer: str | None = None,
        *,
        device: str | None = None,
        dtype: str = "auto",
        attn: str = "auto",
    ) -> Engine:
        """Loads model and tokenizer by path or hub id; without `tokenizer`, the model's own.

        Without a model, `recall` is loaded, the small one that ships with legraph.

        Raises:
            ModelError, TokenizerError: they cannot be loaded or used.
        """
        model = model or SHIPPED_MODEL
        loaded = load_model(model, device, dtype)
        return cls(loaded, load_tokenizer(tokenizer or model), attn)

    def run(self, bundle: Bundle, settings: Generate | None = None) -> RunResult:
        """Runs a bundle to the end.

        Args:
            settings: holds for every leaf without `generate` of its own, and fills the temperature, top_k,
                top_p, seed and stop that a chunk's own settings leave open. Default: greedy, 32 tokens.

        Raises:
            InputError: settings that a graph file could not have.
            BundleError: the bundle was made with another tokenizer.
            ModelError: positions that the model does not know, out of memory.
        """
        for event in self.stream(bundle, settings):
            if isinstance(event, RunResult):
                return event
        raise AssertionError("a run ends with its result")

    def stream(self, bundle: Bundle, settings: Generate | None = None) -> Iterator[Piece | RunResult]:
        """As `run`, piece by piece: yields each token's text as it comes, and the result at the end."""
        settings = settings or Generate()
        _check_settings(settings)
        self.check(bundle)
        run = Run(
            self.model,
            bundle,
            self._branches(bundle, settings),
            self.prefill_attention(bundle),
            may_fall_back=self.attn == "auto",
        )
        return run.events()

    def _branches(self, bundle: Bundle, settings: Generate) -> dict[int, Branch]:
        """The chunks that generate: every leaf, and those that say so."""
        leaves, known = set(bundle.leaves), max_positions(self.model.config)
        return {
            i: Branch(bundle, i, settings, self.tokenizer, self.end_ids, known, has_children=i not in leaves)
            for i, name in enumerate(bundle.span_names)
            if i in leaves or name in bundle.meta.generate
        }

    def check(self, bundle: Bundle) -> None:
        """Raises what `run` would raise before it computes anything."""
        if bundle.meta.tokenizer_fingerprint != self._fingerprint:
            raise BundleError(
                f"the bundle was compiled with tokenizer {bundle.meta.tokenizer!r}, and this model is run "
                f"with {tokenizer_id(self.tokenizer)!r}: the ids would mean other tokens; "
                "compile the graph again with the model's tokenizer"
            )
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        if int(bundle.input_ids.max()) >= vocabulary:
            raise BundleError(
                f"the bundle has token id {int(bundle.input_ids.max())}, and the model knows {vocabulary} ids"
            )
        check_positions(bundle.position_ids, max_positions(self.model.config))

    def prefill_attention(self, bundle: Bundle) -> Attention:
        """The implementation that the first pass over a bundle uses."""
        if self.attn != "auto":
            return self.attn  # type: ignore[return-value]
        supported = supported_attention(self.model)
        if "flex" not in supported or "sdpa" not in supported:
            return dense_attention(self.model)
        if self.model.device.type == "cuda":
            return "flex"
        if self.model.device.type != "cpu":
            return "sdpa"
        blocks = active_blocks(bundle.mask)
        skipped_pairs = max(0, len(bundle) ** 2 - len(blocks) * blocks.block_size**2)
        config = self.model.config.get_text_config()
        channels = config.num_hidden_layers * config.hidden_size
        saved = skipped_pairs * channels * _CPU_SECONDS_PER_PAIR_CHANNEL
        return "flex" if saved > _CPU_COMPILE_SECONDS else "sdpa"


def _check_settings(settings: Generate) -> None:
    try:
        GenerateSpec.model_validate(asdict(settings))
    except ValidationError as error:
        raise InputError(
            Problem(f"{'.'.join(map(str, details['loc']))} is {details['input']!r}", details["msg"])
            for details in error.errors(include_url=False)
        ) from None


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a generation: the model's and the tokenizer's."""
    found = set[int]()
    for config in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return frozenset(found)
