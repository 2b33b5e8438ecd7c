"""Completions and labels: what a model is to learn, from the graph file to the loss that it returns."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from legraph.bundle import NO_LABEL, Bundle
from legraph.compiler import Chunk, compile_chunks, compile_file, compile_graph
from legraph.engine import Engine
from legraph.errors import BundleError, GraphError
from legraph.graph import Generate, Graph, GraphChunk
from legraph.model import use_attention
from legraph.union import disjoint_union
from tests.marked import place_of, unmark
from tests.random_graphs import Dag, brute_force_mask, content, dags, drawn, graphs, tokenizer
from tests.tiny_models import tiny_model

SUFFIXES = (".npz", ".pt")
EOS = 257


@st.composite
def learned_graphs(draw: st.DrawFn, max_chunks: int = 10) -> Graph:
    """Graphs in which some chunks have a completion (in capitals), and some a loss."""
    graph = draw(graphs(dags(max_chunks, max_length=5)))
    chunks = [
        replace(
            chunk,
            completion=draw(st.none() | st.text("ABCDEFG", min_size=1, max_size=4)),
            loss=draw(st.booleans()),
        )
        for chunk in graph.chunks
    ]
    return replace(graph, chunks=tuple(chunks))


def content_of(bundle: Bundle) -> dict[str, Any]:
    return content(bundle) | {"labels": None if bundle.labels is None else bundle.labels.tolist()}


def written(chunk: GraphChunk) -> str:
    """All that stands in a chunk's span, a letter for each token."""
    return (chunk.text or "") + (chunk.completion or "")


def learned_letters(chunk: GraphChunk) -> list[str | None]:
    """The letters of a chunk that count, None in the place of the others."""
    if not chunk.loss:
        return [None] * len(written(chunk))
    if chunk.completion is not None:
        return [None] * len(chunk.text or "") + list(chunk.completion)
    return [None, *(chunk.text or "")[1:]]


def labels_by_chunk(bundle: Bundle) -> dict[str, list[int]]:
    assert bundle.labels is not None
    return {name: bundle.labels[bundle.span(name)].tolist() for name in bundle.span_names}


def story() -> Bundle:
    """Two documents, a question with an answer to learn, and a text to learn. 2 + 3 + (2 + 3) + 3 tokens."""
    docs = [Chunk("d1", name="d1"), Chunk("two", name="d2")]
    question = Chunk("q?", parents=docs, name="q", completion=" A<|eos|>", loss=True)
    return compile_chunks([question, Chunk("xyz", parents=docs, name="t", loss=True)], tokenizer())


# Which tokens are labelled, and where they lie


@settings(max_examples=80)
@given(graph=learned_graphs())
@pytest.mark.parametrize("order", ["declared", "locality"])
def test_labels_are_the_ids_of_what_is_to_be_learned(order: Any, graph: Graph):
    bundle = compile_graph(graph, tokenizer(), order=order)
    if not any(chunk.loss for chunk in graph.chunks):
        assert bundle.labels is None
        return
    assert bundle.labels is not None and bundle.labels.dtype == np.int64
    assert bundle.labels.shape == bundle.input_ids.shape
    assert labels_by_chunk(bundle) == {
        chunk.name: [-100 if letter is None else ord(letter) for letter in learned_letters(chunk)]
        for chunk in graph.chunks
    }


@settings(max_examples=100)
@given(graph=learned_graphs())
def test_a_completion_is_part_of_its_chunk_after_the_text(graph: Graph):
    bundle = compile_graph(graph, tokenizer())
    by_name = {chunk.name: chunk for chunk in graph.chunks}
    place = {name: at for at, name in enumerate(bundle.span_names)}
    chunks = [by_name[name] for name in bundle.span_names]
    assert bytes(bundle.input_ids.tolist()).decode() == "".join(map(written, chunks))
    dag = Dag(
        tuple(len(written(chunk)) for chunk in chunks),
        tuple(tuple(sorted(place[graph.chunks[i].name] for i in chunk.parents)) for chunk in chunks),
    )
    assert drawn(bundle.dense_mask()) == drawn(brute_force_mask(dag))


def expected_starts(graph: Graph, names: tuple[str, ...]) -> dict[str, int]:
    """First position of each chunk, by the rules of the format, chunk after chunk in token order."""
    by_name = {chunk.name: chunk for chunk in graph.chunks}
    seen = {graph.chunks[i].name for chunk in graph.chunks for i in chunk.parents}
    starts: dict[str, int] = {}
    num_before = 0
    for name in names:
        chunk = by_name[name]
        parents = [graph.chunks[i] for i in chunk.parents]
        if chunk.start is not None:
            starts[name] = chunk.start
        elif chunk.end is not None:
            # The text ends there; the completion comes after it.
            starts[name] = chunk.end - len(chunk.text or "")
        elif graph.positions == "causal":
            starts[name] = max((starts[each.name] + len(written(each)) for each in parents), default=0)
        else:
            starts[name] = num_before if graph.positions == "flat" else 0
        num_before += len(written(chunk))
        if chunk.generate and name in seen:
            num_before += chunk.generate.max_new_tokens
    return starts


@settings(max_examples=80)
@given(graph=learned_graphs())
def test_positions_run_on_through_a_completion_and_children_start_after_it(graph: Graph):
    bundle = compile_graph(graph, tokenizer())
    by_name = {chunk.name: chunk for chunk in graph.chunks}
    starts = expected_starts(graph, bundle.span_names)
    for name, start in starts.items():
        positions = bundle.position_ids[bundle.span(name)].tolist()
        assert positions == list(range(start, start + len(written(by_name[name]))))


def test_end_fixes_where_the_text_ends_and_the_completion_stands_after_it():
    chunk = Chunk("abc", name="a", end=10, completion="DE")
    bundle = compile_chunks([Chunk("f", name="child", parents=[chunk])], tokenizer())
    assert bundle.position_ids.tolist() == [7, 8, 9, 10, 11, 12]


def test_an_end_needs_room_for_the_text_only():
    chunk = Chunk("abc", name="a", end=3, completion="much longer than three")
    assert compile_chunks([chunk], tokenizer()).position_ids[0] == 0
    with pytest.raises(GraphError, match=r"chunk 'a' has 3 tokens.*would be -1"):
        compile_chunks([Chunk("abc", name="a", end=2, completion="much longer")], tokenizer())


def test_a_completion_is_tokenized_apart_from_the_text(word_tokenizer: Any):
    """Together "fo" and "xes" would be one word; a model that continues "fo" writes other tokens."""
    words = word_tokenizer({"foxes": 1, "fo": 2, "xes": 3})
    apart = compile_chunks([Chunk("fo", completion="xes")], words)
    assert apart.input_ids.tolist() == [2, 3]
    assert compile_chunks([Chunk("foxes")], words).input_ids.tolist() == [1]


def test_special_tokens_in_a_completion_are_recognised():
    bundle = compile_chunks([Chunk("a", completion="B<|eos|>", loss=True)], tokenizer())
    assert bundle.input_ids.tolist() == [ord("a"), ord("B"), EOS]
    assert bundle.labels is not None and bundle.labels.tolist() == [-100, ord("B"), EOS]


def test_a_loss_on_a_text_of_one_token_labels_nothing():
    """No single token comes before a chunk's first one."""
    bundle = compile_chunks([Chunk("b", parents=[Chunk("a")], loss=True)], tokenizer())
    assert bundle.labels is not None and bundle.labels.tolist() == [NO_LABEL, NO_LABEL]


def test_many_chunks_keep_their_own_completions():
    """More chunks than are handed to the tokenizer at once, a completion on every third one."""
    num_chunks = 5000
    chunks = [
        Chunk(f"<{i}>", completion=f"[{i}]" if i % 3 == 0 else None, loss=i % 2 == 0)
        for i in range(num_chunks)
    ]
    bundle = compile_chunks(chunks, tokenizer())
    texts = [f"<{i}>[{i}]" if i % 3 == 0 else f"<{i}>" for i in range(num_chunks)]
    assert bytes(bundle.input_ids.tolist()).decode() == "".join(texts)
    learned = [
        "" if i % 2 else f"[{i}]" if i % 3 == 0 else f"{i}>" for i in range(num_chunks)
    ]  # fmt: skip
    assert bundle.labels is not None
    assert bytes(bundle.labels[bundle.labels != -100].tolist()).decode() == "".join(learned)


# Files and objects


YAML = """\
legraph: 1
chunks:
  - {name: doc, text: "d1"}
  - {name: q, text: "q?", parents: [doc], completion: " A<|eos|>", loss: true}
  - {name: t, text: "xyz", loss: true}
  - {name: given, text: "g", parents: [q], completion: "H"}
"""
TOML = """\
legraph = 1
chunks = [
    {name = "doc", text = "d1"},
    {name = "q", text = "q?", parents = ["doc"], completion = " A<|eos|>", loss = true},
    {name = "t", text = "xyz", loss = true},
    {name = "given", text = "g", parents = ["q"], completion = "H"},
]
"""


def as_objects() -> list[Chunk]:
    q = Chunk("q?", name="q", parents=[Chunk("d1", name="doc")], completion=" A<|eos|>", loss=True)
    text = Chunk("xyz", name="t", loss=True)
    return [q, text, Chunk("g", name="given", parents=[q], completion="H")]


@pytest.mark.parametrize("text, suffix", [(YAML, ".yaml"), (TOML, ".toml")], ids=["yaml", "toml"])
def test_a_file_and_its_twin_in_python_give_equal_labels(text: str, suffix: str, tmp_path: Path):
    path = tmp_path / f"graph{suffix}"
    path.write_text(text)
    bundle = compile_file(path, tokenizer())
    assert content_of(bundle) == content_of(compile_chunks(as_objects(), tokenizer()))
    hidden = [-100, -100]
    assert labels_by_chunk(bundle) == {
        "doc": hidden,
        "q": [*hidden, ord(" "), ord("A"), EOS],
        "t": [-100, ord("y"), ord("z")],
        "given": hidden,
    }


@pytest.mark.parametrize("changed", [{"completion": "C"}, {"loss": True}, {"completion": "CC"}])
def test_the_source_hash_knows_completion_and_loss(changed: dict[str, Any]):
    plain = compile_chunks([Chunk("a")], tokenizer()).meta.source_sha256
    assert compile_chunks([Chunk("a", **changed)], tokenizer()).meta.source_sha256 != plain


# Errors


@pytest.fixture
def spaceless() -> Any:
    """A tokenizer that drops white space, so that a text of nothing else gives no token."""
    backend = Tokenizer(models.WordLevel(vocab={"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend)


EMPTY_COMPLETIONS = {
    "beside a text": '- {name: x, text: a, completion: «"  "»}',
    "after its parent": '- {name: y, text: b}\n- {name: x, text: a, parents: [y], completion: «"\\n"»}',
    "in a block": '- name: x\n  completion: «"\\t "»\n  text: a',
}


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("marked", EMPTY_COMPLETIONS.values(), ids=EMPTY_COMPLETIONS.keys())
def test_a_completion_that_gives_no_token_is_an_error_with_its_place(
    marked: str, bos: bool, spaceless: Any, tmp_path: Path
):
    if bos:
        # The chunk that it adds must not shift the places.
        spaceless.add_special_tokens({"bos_token": "<s>"})
    text, [place] = unmark(f"legraph: 1\nbos: {'true' if bos else 'false'}\nchunks:\n{marked}\n")
    path = tmp_path / "graph.yaml"
    path.write_text(text)
    with pytest.raises(GraphError) as caught:
        compile_file(path, spaceless)
    [problem] = caught.value.problems
    assert problem.message == "the completion of chunk 'x' gives no token"
    assert problem.expected == "a completion that the tokenizer turns into at least one token"
    assert place_of(problem) == place


def test_so_is_one_of_a_chunk_object(spaceless: Any):
    with pytest.raises(GraphError, match="the completion of chunk 'x' gives no token") as caught:
        compile_chunks([Chunk("a", name="x", completion=" ")], spaceless)
    assert caught.value.problems[0].source is None


def test_an_empty_text_and_an_empty_completion_are_both_reported(spaceless: Any):
    leaves = [Chunk(" ", name="x", completion="a"), Chunk("a", name="y", completion=" ")]
    with pytest.raises(GraphError) as caught:
        compile_chunks(leaves, spaceless)
    assert [problem.message for problem in caught.value.problems] == [
        "chunk 'x' gives no token",
        "the completion of chunk 'y' gives no token",
    ]


WRONG_VALUES = {
    "number": ("completion: «7»", "'completion' must be a string, not the number 7"),
    "boolean": ("completion: «true»", "'completion' must be a string, not the boolean true"),
    "list": ("completion: «[»a]", "'completion' must be a string, not a list"),
    "empty": ('completion: «""»', "'completion' is empty"),
    "loss number": ("loss: «1»", "'loss' must be true or false, not the number 1"),
    "loss string": ('loss: «"yes"»', "'loss' must be true or false, not the string 'yes'"),
    "misspelt": ("«completon»: a", "unknown key 'completon'"),
}


@pytest.mark.parametrize("pair, message", WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_check_says_where_a_completion_or_loss_is_of_another_type(pair: str, message: str, tmp_path: Path):
    text, [place] = unmark(f"legraph: 1\nchunks:\n  - {{name: a, text: t, {pair}}}\n")
    path = tmp_path / "graph.yaml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "legraph.cli", "check", str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"graph.yaml:{place.line}:{place.column}: {message}" in done.stderr
    assert place.excerpt() in done.stderr


WRONG_CHUNKS: dict[str, tuple[Any, str]] = {
    "completion number": ({"completion": 4}, "chunk 'x': completion: .*string"),
    "completion bytes": ({"completion": b"a"}, "chunk 'x': completion: .*string"),
    "empty completion": ({"completion": ""}, "chunk 'x': completion: .*at least 1 character"),
    "half a surrogate pair": ({"completion": "\ud800"}, "chunk 'x': completion"),
    "loss number": ({"loss": 1}, "chunk 'x': loss: .*boolean"),
    "loss string": ({"loss": "true"}, "chunk 'x': loss: .*boolean"),
    "no loss": ({"loss": None}, "chunk 'x': loss: .*boolean"),
}


@pytest.mark.parametrize("changed, message", WRONG_CHUNKS.values(), ids=WRONG_CHUNKS.keys())
def test_one_wrong_thing_in_a_chunk_object_is_one_problem(changed: dict[str, Any], message: str):
    with pytest.raises(GraphError, match=message) as caught:
        compile_chunks([Chunk("a", name="x", **changed)], tokenizer())
    assert len(caught.value.problems) == 1


# On disk


def read(path: Path) -> dict[str, Any]:
    """What a file holds, as numpy arrays."""
    if path.suffix == ".pt":
        loaded = torch.load(path, weights_only=True)
        return {key: each.numpy() if isinstance(each, torch.Tensor) else each for key, each in loaded.items()}
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def write(path: Path, values: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **values)
        return
    items = values.items()
    torch.save({key: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for key, v in items}, path)


@settings(max_examples=30)
@given(graph=learned_graphs())
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_come_back_as_they_went(suffix: str, graph: Graph, tmp_path_factory: Any):
    bundle = compile_graph(graph, tokenizer())
    path = tmp_path_factory.mktemp("round") / f"bundle{suffix}"
    bundle.save(path)
    again = Bundle.load(path)
    assert content_of(again) == content_of(bundle)
    stored = read(path)
    assert ("labels" in stored) == any(chunk.loss for chunk in graph.chunks)
    if bundle.labels is not None:
        assert stored["labels"].dtype == np.int64
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


# Tokens of `story`: d1 0:2, two 2:5, q 5:10 (its text is 5:7), t 10:13.
WRONG_LABELS: dict[str, tuple[Any, str]] = {
    "too short": (np.full(12, -100), "'labels' is not an int64 array of 13"),
    "with a batch": (np.full((1, 13), -100), "'labels' is not an int64 array of 13"),
    "int32": (np.full(13, -100, np.int32), "'labels' is not an int64 array of 13"),
    "float": (np.full(13, -100.0), "'labels' is not an int64 array of 13"),
    "one number": (np.array(-100), "'labels' is not an int64 array of 13"),
}
NOT_TOKENS = "'labels' are not the ids of tokens that have another before them in their chunk"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels, message", WRONG_LABELS.values(), ids=WRONG_LABELS.keys())
def test_labels_of_another_shape_or_type_are_refused(
    labels: np.ndarray, message: str, suffix: str, tmp_path: Path
):
    check_refused(tmp_path / f"bundle{suffix}", labels, message)


def check_refused(path: Path, labels: Any, message: str) -> None:
    story().save(path)
    write(path, read(path) | {"labels": labels})
    with pytest.raises(BundleError) as caught:
        Bundle.load(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("value", [-1, -99, -101, 0, 2**40])
@pytest.mark.parametrize("token", [1, 7, 12])
def test_a_label_that_is_not_its_tokens_id_is_refused(token: int, value: int, suffix: str, tmp_path: Path):
    labels = story().labels
    assert labels is not None
    labels[token] = value
    check_refused(tmp_path / f"bundle{suffix}", labels, NOT_TOKENS)


@pytest.mark.parametrize("token", [0, 2, 5, 10])
def test_a_label_on_the_first_token_of_a_chunk_is_refused(token: int, tmp_path: Path):
    bundle = story()
    labels = np.full(len(bundle), -100)
    labels[token] = bundle.input_ids[token]
    check_refused(tmp_path / "bundle.npz", labels, NOT_TOKENS)


@pytest.mark.parametrize("token", [1, 3, 6, 12])
def test_labels_that_a_user_chose_otherwise_are_kept(token: int, tmp_path: Path):
    """Any token but a chunk's first may be learned: a text's too, beside a completion."""
    bundle = story()
    labels = np.full(len(bundle), -100)
    labels[token] = bundle.input_ids[token]
    path = tmp_path / "bundle.npz"
    replace(bundle, labels=labels).save(path)
    again = Bundle.load(path).labels
    assert again is not None and again.tolist() == labels.tolist()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_that_are_a_text_are_refused(suffix: str, tmp_path: Path):
    text = json.dumps([-100] * 13)
    value = np.array(text) if suffix == ".npz" else text
    check_refused(tmp_path / f"bundle{suffix}", value, "'labels' is not an int64 array of 13")


# Parts of a bundle


@settings(max_examples=60)
@given(graph=learned_graphs(), data=st.data())
def test_a_part_of_a_bundle_keeps_the_labels_of_its_chunks(graph: Graph, data: st.DataObject):
    bundle = compile_graph(graph, tokenizer())
    names = data.draw(st.lists(st.sampled_from(bundle.span_names), min_size=1, unique=True))
    part = bundle.select(names)
    if bundle.labels is None:
        assert part.labels is None
        return
    whole = labels_by_chunk(bundle)
    assert labels_by_chunk(part) == {name: whole[name] for name in part.span_names}
    assert set(part.span_names) == set(names)


def test_what_one_chunk_sees_keeps_its_labels():
    part = story().with_parents("q")
    assert labels_by_chunk(part) == {
        "d1": [-100] * 2,
        "d2": [-100] * 3,
        "q": [-100, -100, ord(" "), ord("A"), EOS],
    }


# What a model makes of them


def logits_of(name: str, bundle: Bundle, attn: Any) -> torch.Tensor:
    model = tiny_model(name)
    use_attention(model, attn)
    inputs = bundle.model_inputs("cpu", attn, config=model.config)
    inputs.pop("labels", None)
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits[0].double()


def surprises(logits_NV: torch.Tensor, graph: Graph, bundle: Bundle) -> list[float]:
    """-log p of every letter that is to be learned, under the logits of the token before it."""
    found = []
    for chunk in graph.chunks:
        start = bundle.span(chunk.name).start
        for at, letter in enumerate(learned_letters(chunk)):
            if letter is not None:
                row = logits_NV[start + at - 1]
                found.append(float(torch.logsumexp(row, 0) - row[ord(letter)]))
    return found


def loss_of(name: str, bundle: Bundle, attn: Any = "sdpa") -> float:
    model = tiny_model(name)
    use_attention(model, attn)
    with torch.inference_mode():
        return float(model(**bundle.model_inputs("cpu", attn, config=model.config), use_cache=False).loss)


@pytest.mark.parametrize(
    "name, attn",
    [("llama", "sdpa"), ("llama", "eager"), ("gpt-neox", "sdpa"), ("gemma3", "sdpa"), ("gemma2", "eager")],
)
@settings(max_examples=12)
@given(graph=learned_graphs())
def test_the_models_loss_is_the_mean_surprise_of_the_labelled_tokens(name: str, attn: str, graph: Graph):
    bundle = compile_graph(graph, tokenizer())
    expected = surprises(logits_of(name, bundle, attn), graph, bundle)
    if expected:
        assert loss_of(name, bundle, attn) == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_the_loss_of_one_chunk_is_that_of_plain_text_without_us():
    """Ordinary causal attention over text and answer, labels by hand: what everyone trains on."""
    bundle = compile_chunks([Chunk("What? ", completion="Ring<|eos|>", loss=True)], tokenizer())
    prompt, answer = [*b"What? "], [*b"Ring", EOS]
    model = tiny_model("llama")
    use_attention(model, "sdpa")
    ids, labels = torch.tensor([prompt + answer]), torch.tensor([[-100] * len(prompt) + answer])
    with torch.inference_mode():
        expected = float(model(ids, labels=labels, use_cache=False).loss)
    assert loss_of("llama", bundle) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=25)
@given(parts=st.lists(learned_graphs(max_chunks=4), min_size=2, max_size=4))
def test_the_loss_of_a_union_is_the_mean_of_its_parts_weighted_by_tokens(parts: list[Graph]):
    bundles = [compile_graph(graph, tokenizer()) for graph in parts]
    counts = [
        sum(letter is not None for c in graph.chunks for letter in learned_letters(c)) for graph in parts
    ]
    if not sum(counts):
        return
    # A part that learns nothing has no loss of its own: the mean of no numbers.
    losses = [loss_of("llama", b) if n else 0.0 for b, n in zip(bundles, counts, strict=True)]
    expected = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert loss_of("llama", disjoint_union(bundles)) == pytest.approx(expected, abs=1e-4)


def test_gradients_come_from_labelled_tokens_only():
    """The embedding of a chunk that no labelled token sees gets none; that of a seen one does."""
    seen, unseen = Chunk("s", name="s"), Chunk("u", name="u")
    leaf = Chunk("q", parents=[seen], completion="A", loss=True)
    bundle = compile_chunks([leaf, Chunk("v", parents=[unseen])], tokenizer())
    model = tiny_model("llama")
    use_attention(model, "sdpa")
    weight = model.get_input_embeddings().weight
    loss = model(**bundle.model_inputs("cpu", "sdpa"), use_cache=False).loss
    [gradient] = torch.autograd.grad(loss, [weight])
    has_gradient = {letter: bool(gradient[ord(letter)].abs().max() > 0) for letter in "suvqA"}
    # Nothing is learned after A, so its embedding is not asked for.
    assert has_gradient == {"s": True, "u": False, "v": False, "q": True, "A": False}


@pytest.mark.parametrize("attn", ["flex", "sdpa", "eager"])
def test_model_inputs_hold_labels_where_the_bundle_has_some(attn: str):
    bundle = story()
    inputs = bundle.model_inputs("cpu", attn)
    assert inputs["labels"].dtype == torch.int64
    hidden = [-100] * 7
    labelled = [ord(" "), ord("A"), EOS, -100, ord("y"), ord("z")]
    assert inputs["labels"].tolist() == [hidden + labelled]
    assert set(replace(bundle, labels=None).model_inputs("cpu", attn)) == set(inputs) - {"labels"}


# A completion is text to whoever runs the graph


@pytest.mark.parametrize("positions", ["causal", "flat", "local"])
def test_a_run_takes_a_completion_as_if_it_had_been_written_before(positions: Any):
    def leaves(text: str, completion: str | None) -> list[Chunk]:
        doc = Chunk(text, name="doc", completion=completion, generate=Generate(3))
        child = Chunk("child", name="child", parents=[doc])
        return [child, Chunk(text, name="leaf", completion=completion, loss=True)]

    engine = Engine(tiny_model("llama"), tokenizer(), "sdpa")
    whole, split = (
        engine.run(compile_chunks(leaves(*parts), tokenizer(), positions=positions), Generate(8)).outputs
        for parts in [("alpha beta", None), ("alpha", " beta")]
    )
    assert set(whole) == {"doc", "child", "leaf"}
    assert split == whole
