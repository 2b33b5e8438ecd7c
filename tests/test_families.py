"""Every family of causal LMs runs graphs exactly or is refused, as docs/models.md says (`family_trials`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from legraph import attention, flatattention, forward, model, rotary
from tests.families import FAMILIES, UNTRIED, Family
from tests.family_trials import HEADER, Trial, row, trial

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "models.md").read_text()
PINNED = re.search(r"^transformers==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
IS_PINNED = PINNED is not None and PINNED[1] == transformers.__version__
INSTALLED = [family for family in FAMILIES if family.is_installed]
# What other versions of transformers must run as well.
MUST_RUN = {
    "Llama",
    "Mistral, window",
    "Qwen 3",
    "Gemma 2",
    "Gemma 3",
    "Phi 3",
    "gpt-oss",
    "GPT-NeoX",
    "OLMo 2",
}


def named(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)


@pytest.mark.parametrize("family", INSTALLED, ids=lambda family: family.name)
def test_a_family_runs_exactly_or_is_refused(family: Family) -> None:
    if not IS_PINNED and family.name not in MUST_RUN:
        try:
            family.model()
        except Exception as error:
            pytest.skip(f"this transformers cannot make it: {error}")
    found = trial(family)
    if IS_PINNED:
        assert row(family, found) in DOCUMENT.splitlines(), "run docs/make_models.py"
    if family.name in MUST_RUN:
        assert found.refusal is None


@pytest.mark.skipif(not IS_PINNED, reason="docs/models.md is about the pinned transformers")
def test_the_document_has_a_row_for_each_family_and_no_others() -> None:
    assert DOCUMENT.startswith(HEADER)
    rows = [line for line in DOCUMENT.splitlines() if re.match(r"\| (?!family \|)", line)]
    assert sorted(line.split(" | ")[0].removeprefix("| ") for line in rows) == sorted(
        f.name for f in FAMILIES
    )


@pytest.mark.skipif(not IS_PINNED, reason="other versions have other models")
def test_every_causal_lm_is_tried_or_left_out_by_name() -> None:
    tried = {family.model_type for family in FAMILIES}
    assert not tried & UNTRIED.keys()
    assert tried | UNTRIED.keys() == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


# That a trial can fail. Each fault is planted in legraph, after the engine has looked at the model.


@dataclass(frozen=True)
class Fault:
    family: str
    plant: Callable[[pytest.MonkeyPatch], object]
    said: str


def full_windows(patch: pytest.MonkeyPatch) -> None:
    kinds = attention.layer_windows
    patch.setattr(attention, "layer_windows", lambda config: dict.fromkeys(kinds(config)))


def wider_window(patch: pytest.MonkeyPatch) -> None:
    near = attention.within_window
    patch.setattr(forward, "within_window", lambda q, k, window: near(q, k, window and window + 1))


def no_check_of_plain_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(model, "_check_plain_text", lambda *args, **kwargs: None)


def flat_without(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Leaves out what a layer hands to the attention function, and does not compare it with transformers'."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        whole = flatattention.flat_attention_forward

        def without(*args: Any, **kwargs: Any) -> Any:
            return whole(*args, **kwargs | {name: None})

        patch.setitem(transformers.AttentionInterface._global_mapping, flatattention.NAME, without)
        patch.setattr(forward.Forward, "_choose_attention", lambda self: True)

    return plant


def wrong_turn(patch: pytest.MonkeyPatch) -> None:
    turned = rotary.Rotation.turned
    patch.setattr(rotary.Rotation, "turned", lambda self, keys, old, new: turned(self, keys, old, new + 1))
    patch.setattr(rotary, "_fits", lambda rotation, tensors, dtype: rotation is not None)


def no_turn_of_values(patch: pytest.MonkeyPatch) -> None:
    fits = rotary._fits
    patch.setattr(rotary, "_fits", lambda one, tensors, dtype: one is None or fits(one, tensors, dtype))


FAULTS = {
    "a window that is dropped": Fault("Gemma 3", full_windows, "LM counts positions, or cuts a window"),
    "a window that is dropped everywhere": Fault(
        "Mistral, window",
        lambda patch: (full_windows(patch), no_check_of_plain_text(patch)),
        "a plain text, text: logits differ",
    ),
    "a window too wide by one": Fault("Mistral, window", wider_window, "a plain text, text: logits differ"),
    "no soft cap": Fault("Gemma 2", flat_without("softcap"), "a plain text, text: logits differ"),
    "no sinks": Fault("gpt-oss", flat_without("s_aux"), "a plain text, text: logits differ"),
    "positions from 2": Fault("RoBERTa", no_check_of_plain_text, "a plain text, text: logits differ"),
    "keys that turn too far": Fault("Llama", wrong_turn, "a graph, join: logits differ"),
    "latent keys that are not turned": Fault(
        "DeepSeek V3", no_turn_of_values, "a graph, join: logits differ"
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_trial_notices(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    family = named(fault.family)
    if not family.is_installed:
        pytest.skip("not in this transformers")
    fault.plant(monkeypatch)
    try:
        outcome = str(trial(family).refusal)
    except AssertionError as error:
        outcome = str(error)
    assert fault.said in outcome


def test_a_sink_or_cap_that_our_attention_lost_shows_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine notices, and takes transformers' own attention: right, but no longer what the row says."""
    plain = flatattention.flat_attention_forward

    def without(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs | {"s_aux": None})

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, flatattention.NAME, without)
    assert trial(named("gpt-oss")).attention == "eager"


def test_rows() -> None:
    llama = named("Llama")
    runs = Trial("C", None, "flat", ("window", "sinks"), "why not")
    assert row(llama, runs) == "| Llama | C | flat | window, sinks | no: why not |"
    assert row(llama, Trial("C", "C cannot")) == "| Llama | C cannot |"


def test_weights_depend_on_the_family_only() -> None:
    torch.manual_seed(7)
    one = named("Llama").model().state_dict()
    torch.manual_seed(8)
    other = named("Llama").model().state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
