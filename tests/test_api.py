"""The public face: exactly these names, each documented, and the sample code of the documentation runs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import legraph
from tests.tiny_models import tiny_model

PUBLIC = [
    "Bundle",
    "BundleError",
    "Chunk",
    "Collator",
    "Engine",
    "Generate",
    "GraphError",
    "InputError",
    "KVStore",
    "LegraphError",
    "ModelError",
    "RunError",
    "TokenizerError",
    "__version__",
    "compile_chunks",
    "compile_file",
    "load_model",
    "tree",
]


def test_these_are_all_the_names() -> None:
    assert sorted(legraph.__all__) == PUBLIC
    assert dir(legraph) == PUBLIC


def test_a_star_import_gives_the_same_names() -> None:
    names: dict[str, Any] = {}
    exec("from legraph import *", names)
    assert sorted(set(names) - {"__builtins__"}) == PUBLIC


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_every_name_is_documented_and_comes_from_legraph(name: str) -> None:
    value = getattr(legraph, name)
    assert value.__name__ == name
    assert value.__module__.startswith("legraph.")
    # A dataclass without a docstring gets its signature as one, which documents nothing.
    assert value.__doc__ and not value.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize("name", ["Bundle", "Engine", "KVStore"])
def test_every_public_method_is_documented(name: str) -> None:
    for method, value in vars(getattr(legraph, name)).items():
        is_public = not method.startswith("_") and (callable(value) or isinstance(value, property))
        if is_public:
            assert inspect.getdoc(value), f"{name}.{method}"


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'legraph' has no attribute 'compile'"):
        legraph.compile  # noqa: B018
    assert not hasattr(legraph, "Layout")


def test_every_error_is_a_legraph_error_with_an_exit_code() -> None:
    codes = {name: getattr(legraph, name).exit_code for name in PUBLIC if name.endswith("Error")}
    assert codes == {
        "BundleError": 2,
        "GraphError": 2,
        "InputError": 2,
        "LegraphError": 1,
        "ModelError": 1,
        "RunError": 1,
        "TokenizerError": 1,
    }
    assert all(issubclass(getattr(legraph, name), legraph.LegraphError) for name in codes)
    assert issubclass(legraph.InputError, ValueError)


# The documented way through the library, in the order in which it is documented.


@pytest.fixture
def bundle(byte_tokenizer: Any) -> legraph.Bundle:
    x1 = legraph.Chunk("example1.", name="X1")
    q = legraph.Chunk("What does the fox say?", parents=[x1], name="Q")
    return legraph.compile_chunks([q], tokenizer=byte_tokenizer, positions="local")


X1, Q = slice(0, 9), slice(9, 31)


def expected_mask() -> np.ndarray:
    """9 tokens, then 22 that see them all."""
    rows, columns = np.indices((31, 31))
    return columns <= rows


def test_a_file_is_compiled_with_any_form_of_tokenizer(tmp_path: Path, byte_tokenizer: Any) -> None:
    (tmp_path / "graph.yaml").write_text("legraph: 1\nchunks: [{name: a, text: fox}]")
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    for tokenizer in (byte_tokenizer, "bytes", str(tmp_path / "tokenizer"), tmp_path / "tokenizer"):
        bundle = legraph.compile_file(tmp_path / "graph.yaml", tokenizer=tokenizer)
        assert bundle.input_ids.tolist() == list(b"fox")


def test_a_bundle_says_what_it_holds(bundle: legraph.Bundle) -> None:
    assert bundle.input_ids.tolist() == list(b"example1.What does the fox say?")
    assert bundle.position_ids.tolist() == [*range(9), *range(22)]
    assert bundle.span_offsets.tolist() == [0, 9, 31]
    assert bundle.span_names == ("X1", "Q")
    assert bundle.parents(0).tolist() == [] and bundle.parents(1).tolist() == [0]
    assert (bundle.span("X1"), bundle.span("Q")) == (X1, Q)


def test_a_bundle_gives_its_mask_in_every_form(bundle: legraph.Bundle) -> None:
    expected = expected_mask()
    assert np.array_equal(bundle.dense_mask(), expected)
    rows, columns = np.indices(expected.shape)
    assert np.array_equal(bundle.visible(rows, columns), expected)
    assert bundle.visible(Q.start, X1.stop - 1) is True
    assert bundle.visible(X1.start, Q.start) is False
    q, k = torch.from_numpy(rows), torch.from_numpy(columns)
    assert np.array_equal(bundle.mask_mod("cpu")(0, 0, q, k).numpy(), expected)
    assert bundle.block_mask("cpu", block_size=128).shape == (1, 1, 31, 31)


@pytest.mark.parametrize("attn", ["flex", "sdpa", "eager"])
def test_a_model_takes_a_bundles_inputs(attn: str, bundle: legraph.Bundle) -> None:
    inputs = bundle.model_inputs("cpu", attn=attn)
    assert list(inputs) == ["input_ids", "position_ids", "attention_mask"]
    assert inputs["input_ids"].tolist() == [bundle.input_ids.tolist()]
    assert inputs["position_ids"].tolist() == [bundle.position_ids.tolist()]
    mask = inputs["attention_mask"]
    assert tuple(mask.shape) == (1, 1, 31, 31)
    if attn == "sdpa":
        assert np.array_equal(mask[0, 0].numpy(), expected_mask())
    if attn == "eager":
        assert np.array_equal(mask[0, 0].numpy() == 0, expected_mask())


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_bundle_is_saved_and_loaded(suffix: str, tmp_path: Path, bundle: legraph.Bundle) -> None:
    bundle.save(tmp_path / f"b{suffix}")
    loaded = legraph.Bundle.load(tmp_path / f"b{suffix}")
    assert np.array_equal(loaded.dense_mask(), expected_mask())
    assert (loaded.span_names, loaded.meta) == (bundle.span_names, bundle.meta)


def test_a_tree_is_a_rich_renderable(bundle: legraph.Bundle) -> None:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(legraph.tree(bundle))
    assert captured.get().splitlines()[0].startswith("Q  22 tokens  at 0..21")


def test_an_engine_runs_a_bundle(bundle: legraph.Bundle, byte_tokenizer: Any) -> None:
    engine = legraph.Engine(tiny_model("llama"), byte_tokenizer)
    output = engine.run(bundle, legraph.Generate(max_new_tokens=3)).outputs["Q"]
    assert len(output.token_ids) == 3
    assert output.text == byte_tokenizer.decode(output.token_ids)


def test_an_engine_keeps_what_it_has_computed(bundle: legraph.Bundle, byte_tokenizer: Any) -> None:
    """In a store that other engines share, whose numbers add up; a folder does as well."""
    store = legraph.KVStore(memory_bytes=2**20)
    how = legraph.Generate(max_new_tokens=3)
    results = [
        legraph.Engine(tiny_model("llama"), byte_tokenizer, kv=store).run(bundle, how) for _ in range(2)
    ]
    assert results[0].outputs == results[1].outputs
    assert [source.origin for source in results[0].sources] == ["computed", "computed"]
    assert [source.origin for source in results[1].sources] == ["memory", "memory"]
    # All of the document; of the question all but the last token, which is asked for the next.
    assert [source.reused for source in results[1].sources] == [9, 21]
    assert results[1].tokens["reused"] == 30
    assert store.stats().memory_entries == 2


def test_a_result_is_a_bundle_again(bundle: legraph.Bundle, byte_tokenizer: Any) -> None:
    engine = legraph.Engine(tiny_model("llama"), byte_tokenizer)
    result = engine.run(bundle, legraph.Generate(max_new_tokens=3))
    assert result.bundle.span("Q") == slice(9, 34)
    assert set(result.timing) == {"prefill_s", "decode_s", "total_s"}
    assert result.tokens == {"prompt": 31, "reused": 0, "generated": 3, "passes": 3}


def test_several_bundles_run_side_by_side(bundle: legraph.Bundle, byte_tokenizer: Any) -> None:
    engine = legraph.Engine(tiny_model("llama"), byte_tokenizer)
    alone = engine.run(bundle, legraph.Generate(max_new_tokens=3))
    both = engine.run([bundle, bundle], legraph.Generate(max_new_tokens=3))
    assert [result.outputs for result in both] == [alone.outputs] * 2


def test_a_run_can_be_handed_over_and_waited_for(bundle: legraph.Bundle, byte_tokenizer: Any) -> None:
    engine = legraph.Engine(tiny_model("llama"), byte_tokenizer)
    submission = engine.submit(bundle, legraph.Generate(max_new_tokens=3))
    assert not submission.is_done
    assert submission.partial().outputs["Q"].token_ids == ()
    assert len(submission.result().outputs["Q"].token_ids) == 3
    assert submission.is_done


def test_what_is_no_bundle_or_store_is_told_at_once() -> None:
    from tests.naive import engine

    with pytest.raises(TypeError, match="a run takes a Bundle, not str: compile the graph first"):
        engine().submit("graph.yaml")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kv is a int; expected a KVStore or a folder"):
        engine(kv=3)
