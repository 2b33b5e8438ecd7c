"""Changing a chunk changes its descendants in the model, and a mask that is wrong is found where it is."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from legraph import Bundle, Chunk, compile_chunks
from legraph.engine import Engine
from legraph.errors import BundleError, InputError, ModelError
from legraph.mask import ChunkMask
from legraph.tokens import load_tokenizer
from legraph.verify import num_passes, other_ids, reached, sampled, verify, windows_of_layers
from legraph.verifyshow import VerifyPicture, verify_data
from tests.command_line import Call
from tests.naive import dense_logits, engine
from tests.random_graphs import Dag, bundles, dags, tokenizer
from tests.tiny_models import tiny_model

FEW = settings(max_examples=8)


def descendants(parents: Sequence[Sequence[int]], chunk: int, most: int | None = None) -> set[int]:
    """Whoever is at most so many edges below a chunk, itself included; walks down edge by edge."""
    found, ring, hops = {chunk}, {chunk}, 0
    while ring and (most is None or hops < most):
        ring = {child for child, row in enumerate(parents) if ring & set(row)} - found
        found |= ring
        hops += 1
    return found


def parents_of(bundle: Bundle) -> list[list[int]]:
    return [bundle.parents(i).tolist() for i in range(bundle.mask.num_chunks)]


def cells(matrix: np.ndarray) -> set[tuple[int, int]]:
    return {(row, column) for row, column in np.argwhere(matrix).tolist()}


def with_rows(bundle: Bundle, rows: Sequence[Sequence[int]]) -> Bundle:
    """The same chunks with other parents."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    indices = np.array([parent for row in rows for parent in row], dtype=np.int64)
    return replace(bundle, mask=ChunkMask(bundle.span_offsets, offsets, indices))


def drawn(picture: Any, width: int = 100) -> str:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()


@FEW
@given(bundles(max_chunks=9, max_length=5))
def test_descendants_change_and_nothing_else(bundle: Bundle) -> None:
    found = verify(engine("llama"), bundle)
    parents, every = parents_of(bundle), range(bundle.mask.num_chunks)
    assert found.perturbed == tuple(every)
    assert found.tolerance == 0
    assert found.is_ok
    assert found.violations == ()
    # The model has two layers, so that influence goes two edges far.
    assert cells(found.changes > 0) == {(c, d) for c in every for d in descendants(parents, c, 2)}
    assert cells(found.expected) == cells(found.changed)
    assert cells(found.influenced) == {(c, d) for c in every for d in descendants(parents, c)}


@pytest.mark.parametrize("attn", ["auto", "eager"])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt-neox", "gpt2", "gemma2", "gemma3", "mistral-window"])
def test_every_family_and_attention(name: str, attn: str) -> None:
    a, b = Chunk("alpha.", name="a"), Chunk("beta", name="b")
    c = Chunk("gamma", name="c", parents=[a])
    d = Chunk("delta!", name="d", parents=[b, c])
    # All start at 0, so that no window of 5 positions hides a chunk.
    found = verify(engine(name, attn), compile_chunks([d], tokenizer(), positions="local"))
    assert found.names == ("b", "a", "c", "d")
    assert found.is_ok
    assert found.tolerance == 0
    assert cells(found.changed) == {(0, 0), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)}


@FEW
@given(bundles(max_chunks=7, max_length=5))
def test_plain_causal_attention_leaks_wherever_the_graph_hides(bundle: Bundle) -> None:
    every = range(bundle.mask.num_chunks)
    plain = with_rows(bundle, [range(i) for i in every])
    found = verify(engine("llama", "sdpa"), bundle, run_as=plain)
    parents = parents_of(bundle)
    hidden = {(c, d) for c in every for d in every if c < d and d not in descendants(parents, c)}
    assert cells(found.leaks) == hidden
    assert not found.without_effect.any()
    assert {(v.perturbed, v.observed) for v in found.violations} == {
        (bundle.span_names[c], bundle.span_names[d]) for c, d in hidden
    }
    assert all(v.kind == "leak" and v.change > 1e-3 for v in found.violations)
    assert found.is_ok == (not hidden)


def diamond() -> Bundle:
    top = Chunk("top", name="top")
    left, right = Chunk("left", name="left", parents=[top]), Chunk("right", name="right", parents=[top])
    return compile_chunks([Chunk("end", name="end", parents=[left, right])], tokenizer())


def test_one_edge_too_many_and_one_too_few() -> None:
    bundle = diamond()
    assert bundle.span_names == ("top", "left", "right", "end")
    found = verify(engine("llama"), bundle, run_as=with_rows(bundle, [[], [0], [0, 1], [2]]))
    # `right` sees `left`, which `end` does not: what `left` says gets there through `right` all the same.
    assert [(v.kind, v.perturbed, v.observed) for v in found.violations] == [("leak", "left", "right")]
    found = verify(engine("llama"), bundle, run_as=with_rows(bundle, [[], [0], [0], [1]]))
    assert [(v.kind, v.perturbed, v.observed) for v in found.violations] == [("no effect", "right", "end")]
    assert found.violations[0].change == 0


def reached_by_tokens(dag: Dag, positions: list[int], windows: Sequence[int | None]) -> set[tuple[int, int]]:
    """Pairs of chunks, found by walking from token to token, a layer after the other."""
    owner = [chunk for chunk, length in enumerate(dag.lengths) for _ in range(length)]
    every = range(len(owner))

    def sees(q: int, k: int, window: int | None) -> bool:
        is_near = window is None or abs(positions[q] - positions[k]) < window
        return is_near and (owner[k] in dag.parents[owner[q]] or (owner[q] == owner[k] and k <= q))

    found = set()
    for source in range(len(dag.lengths)):
        influenced = {t for t in every if owner[t] == source}
        for window in windows:
            influenced |= {q for q in every for k in influenced if sees(q, k, window)}
        found |= {(source, owner[t]) for t in influenced}
    return found


@given(
    dags(max_chunks=7, max_length=4),
    st.lists(st.none() | st.integers(1, 6), max_size=3),
    st.randoms(use_true_random=False),
)
def test_how_far_layers_and_windows_reach(dag: Dag, windows: list[int | None], random: Any) -> None:
    positions = [random.randint(0, 12) for _ in range(dag.num_tokens)]
    names = tuple(f"c{i}" for i in range(len(dag.lengths)))
    ids = np.zeros(dag.num_tokens, dtype=np.int64)
    bundle = Bundle(ids, np.array(positions), names, dag.mask(), diamond().meta)
    found = reached(bundle, range(len(names)), windows)
    assert cells(found) == reached_by_tokens(dag, positions, windows)


@FEW
@given(bundles(max_chunks=8, max_length=8))
def test_windows_end_what_the_graph_allows(bundle: Bundle) -> None:
    found = verify(engine("mistral-window"), bundle)
    assert found.is_ok
    assert (found.changed <= found.expected).all()


def test_a_window_hides_what_is_far_away() -> None:
    far = Chunk("far away", name="far", start=0)
    near = Chunk("near", name="near", start=60)
    bundle = compile_chunks([Chunk("question", name="q", parents=[far, near], start=64)], tokenizer())
    windowed, mixed = (verify(engine(name), bundle) for name in ("mistral-window", "gemma3"))
    assert windowed.is_ok
    assert mixed.is_ok
    assert cells(windowed.changed) == {(0, 0), (1, 1), (1, 2), (2, 2)}
    # One of Gemma's two layers sees everything.
    assert cells(mixed.changed) == cells(mixed.influenced) == cells(windowed.influenced)
    assert "1 pair more has too few layers, or windows, between them" in drawn(VerifyPicture(windowed))


def test_layers_of_models() -> None:
    assert windows_of_layers(tiny_model("llama").config) == [None, None]
    assert windows_of_layers(tiny_model("mistral-window").config) == [5, 5]
    assert windows_of_layers(tiny_model("gemma3").config) == [5, None]


def test_changes_are_real_ones() -> None:
    """What is reported is what another way of computing the same graph shows, up to the model's head."""
    bundle = diamond()
    model = tiny_model("llama")
    found = verify(engine("llama"), bundle, sample=1)
    assert found.perturbed == (0,)
    ids = bundle.input_ids.copy()
    ids[bundle.span(0)] = other_ids(ids[bundle.span(0)], tokenizer(), 260)
    states = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        states.append(output.last_hidden_state[0])

    watching = model.model.register_forward_hook(keep)
    try:
        dense_logits(model, bundle)
        dense_logits(model, replace(bundle, input_ids=ids))
    finally:
        watching.remove()
    change = (states[0] - states[1]).abs().amax(-1)
    expected = [float(change[bundle.span(i)].max()) for i in range(4)]
    np.testing.assert_allclose(found.changes[0], expected, atol=1e-4)


@given(st.lists(st.integers(0, 259), min_size=1, max_size=30))
def test_other_ids_are_others(ids: list[int]) -> None:
    found = other_ids(np.array(ids), tokenizer(), 260).tolist()
    assert len(found) == len(ids)
    assert all(new != old and 0 <= new < 256 for new, old in zip(found, ids, strict=True))


def test_other_ids_of_the_shipped_model_are_words() -> None:
    shipped = load_tokenizer(None)
    every = np.arange(len(shipped))
    found = other_ids(every, shipped, len(shipped))
    assert (found != every).all()
    assert not set(found.tolist()) & set(shipped.all_special_ids)


def test_samples() -> None:
    assert sampled(5) == (0, 1, 2, 3, 4)
    assert sampled(5, 3) == (0, 2, 4)
    assert sampled(5, 1) == (0,)
    assert sampled(5, 99) == (0, 1, 2, 3, 4)
    assert sampled(64) == tuple(range(64))
    many = sampled(1000)
    assert (len(set(many)), many[0], many[-1]) == (64, 0, 999)
    assert max(np.diff(many)) - min(np.diff(many)) <= 1
    assert num_passes(1000) == 66
    with pytest.raises(InputError, match="a sample of 0 chunks"):
        sampled(5, 0)


def test_passes_are_told() -> None:
    done = list[int]()
    verify(engine("llama"), diamond(), sample=2, advance=done.append)
    assert sum(done) == num_passes(4, 2) == 4


def test_a_bundle_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(BundleError, match="compiled with tokenizer"):
        verify(engine("llama"), compile_chunks([Chunk("The amber key.", name="a")]))


def test_numbers_that_are_none_are_told() -> None:
    broken = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        broken.model.embed_tokens.weight[ord("p")] = float("nan")
    with pytest.raises(ModelError, match="computes NaN or infinity for this graph"):
        verify(Engine(broken, tokenizer()), diamond())


def test_the_picture() -> None:
    bundle = diamond()
    found = verify(engine("llama"), bundle, run_as=with_rows(bundle, [[], [0], [0, 1], [0]]))
    text = re.sub(r"changed by \S+", "changed by X", drawn(VerifyPicture(found)))
    assert text == (
        "        1 2 3 4\n"
        "1 top   ● ● ● ●\n"
        "2 left  · ● ✗ ○\n"
        "3 right · · ● ○\n"
        "4 end   · · · ●\n"
        "row: replaced; column: looked at; ● changed · unchanged ✗ leak ○ no effect\n"
        "\n"
        "replaced 4 chunks, one at a time\n"
        "7 pairs changed along the graph, 6 stayed equal bit by bit, 1 leak, 2 without effect\n"
        "✗ leak: right changed by X with left, which does not influence it\n"
        "○ no effect: end did not change with left, which influences it\n"
        "○ no effect: end did not change with right, which influences it\n"
    )


def test_large_graphs_are_told_in_numbers() -> None:
    head = Chunk("h", name="head")
    documents = [Chunk("d", name=f"d{i}", parents=[head]) for i in range(45)]
    bundle = compile_chunks([Chunk("q", name="q", parents=documents)], tokenizer())
    found = verify(engine("llama"), bundle, sample=3)
    text = drawn(VerifyPicture(found))
    assert "●" not in text
    assert "replaced 3 chunks of 47, evenly chosen, one at a time" in text
    # head: itself, 45 documents, and two edges far the question; a document: itself and the question; q.
    assert f"{47 + 2 + 1} pairs changed along the graph, {3 * 47 - 50} stayed equal bit by bit" in text
    plain = verify(engine("llama"), bundle, 3, run_as=with_rows(bundle, [range(i) for i in range(47)]))
    text = drawn(VerifyPicture(plain))
    # Every document after the one that was replaced, the 23rd, leaks.
    assert text.count("✗ leak") == 20
    assert "... and 2 more violations" in text


def test_columns_are_numbered_from_top_to_bottom() -> None:
    chunks = [Chunk("x", name=f"c{i}") for i in range(12)]
    found = verify(engine("llama"), compile_chunks(chunks, tokenizer()), sample=1)
    lines = drawn(VerifyPicture(found)).splitlines()
    assert lines[0].split() == ["1", "1", "1"]
    assert lines[1].replace(" ", "") == "123456789012"
    assert lines[0].index("1") == lines[1].index("0")
    narrow = drawn(VerifyPicture(found), width=20).splitlines()
    assert narrow[1].endswith("123456789012")


def test_the_command(call: Call, model_folder: Path, graph: Path, tmp_path: Path) -> None:
    done = call("verify", graph, "--model", model_folder, "--device", "cpu")
    assert (done.code, done.err) == (0, "")
    assert "3 doc" not in done.out
    assert "3 question · · ●" in done.out
    assert "5 pairs changed along the graph, 4 stayed equal bit by bit, 0 leaks" in done.out
    compiled = tmp_path / "graph.npz"
    assert call("compile", graph, "-o", compiled).code == 0
    data = call(
        "verify", compiled, "--model", model_folder, "--device", "cpu", "--sample", 2, "--json"
    ).data()
    assert data["ok"] is True
    assert data["chunks"] == ["doc1", "doc2", "question"]
    assert data["perturbed"] == ["doc1", "question"]
    assert data["expected"] == data["influenced"] == [[True, False, True], [False, False, True]]
    assert [[change > 0 for change in row] for row in data["changes"]] == data["expected"]
    assert data["violations"] == []


def test_the_command_reports_a_flat_model(call: Call, tmp_path: Path) -> None:
    """A model that knows two letters as one: replacing one by the other has no effect."""
    flat = copy.deepcopy(tiny_model("llama"))
    old = ord("a")
    new = int(other_ids(np.array([old]), tokenizer(), 260)[0])
    with torch.no_grad():
        flat.model.embed_tokens.weight[new] = flat.model.embed_tokens.weight[old]
    flat.save_pretrained(tmp_path / "flat")
    tokenizer().save_pretrained(tmp_path / "flat")
    path = tmp_path / "flat.yaml"
    path.write_text(
        "legraph: 1\nchunks:\n  - {name: one, text: aa}\n  - {name: two, text: xy, parents: [one]}\n"
    )
    done = call("verify", path, "--model", tmp_path / "flat", "--device", "cpu")
    assert done.code == 1
    assert "0 leaks, 2 without effect" in done.out
    assert "○ no effect: two did not change with one, which influences it" in done.out
    assert "nothing leaks" in done.out
    data = call("verify", path, "--model", tmp_path / "flat", "--device", "cpu", "--json").data()
    assert data["ok"] is False
    assert [violation["kind"] for violation in data["violations"]] == ["no effect", "no effect"]


def test_wrong_options_are_told_before_a_model_is_loaded(call: Call, graph: Path, broken: Path) -> None:
    assert "--attn is 'flx'" in call("verify", graph, "--attn", "flx").err
    done = call("verify", broken, "--model", "/nowhere")
    assert done.code == 2
    assert "docc" in done.err


def test_plain_data_has_no_infinity() -> None:
    found = verify(engine("llama"), diamond(), sample=1)
    overflown = replace(found, changes=np.full_like(found.changes, np.inf))
    assert verify_data(overflown)["changes"] == [[None] * 4]
