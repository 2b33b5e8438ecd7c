"""Scores are what a model says in one plain forward pass with the mask spelled out, token by token."""

from __future__ import annotations

import copy
import json
import math
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

from legraph import Bundle, Chunk, compile_chunks, compile_file
from legraph import score as score_module
from legraph.compiler import compile_graph, graph_of
from legraph.engine import Engine
from legraph.errors import InputError, ModelError
from legraph.graph import Generate, Graph
from legraph.model import use_attention
from legraph.score import Score, label_targets, score, score_all, score_generated, scored_tokens
from legraph.scoreshow import score_data, score_table
from tests.command_line import Call
from tests.naive import dense_logits, engine
from tests.random_graphs import LETTERS, brute_force_mask, dag_in_order, dags, graphs, running, tokenizer
from tests.tiny_models import tiny_model

FEW = settings(max_examples=12)


@st.composite
def completed_graphs(draw: st.DrawFn) -> Graph:
    """Graphs in which some chunks have a completion."""
    made = draw(graphs(dags(max_chunks=7, max_length=5), plain=True))
    endings = st.none() | st.text("xyz", min_size=1, max_size=4)
    chunks = [replace(chunk, completion=draw(endings)) for chunk in made.chunks]
    return replace(made, chunks=tuple(chunks))


def eager_log_probs(bundle: Bundle, mask: np.ndarray) -> torch.Tensor:
    """[N, V] of the token that follows each, from one eager pass without cache or engine."""
    model = tiny_model("llama")
    use_attention(model, "eager")
    hidden = torch.finfo(torch.float32).min
    added = torch.where(torch.from_numpy(mask), 0.0, hidden)[None, None]
    with torch.inference_mode():
        logits = model(
            torch.from_numpy(bundle.input_ids)[None],
            position_ids=torch.from_numpy(bundle.position_ids)[None],
            attention_mask=added,
            use_cache=False,
        ).logits[0]
    # Not torch's own log_softmax.
    return logits.double() - logits.double().exp().sum(-1, keepdim=True).log()


@FEW
@given(completed_graphs())
def test_equal_to_one_eager_pass(graph: Graph) -> None:
    # Of a byte tokenizer's chunk, every letter is a token; without a completion the first is not scored.
    scored = {
        chunk.name: (chunk.completion, len(chunk.text or ""))
        if chunk.completion is not None
        else ((chunk.text or "")[1:], 1)
        for chunk in graph.chunks
    }
    targets = [name for name, (text, _) in scored.items() if text]
    if not targets:
        return
    found = score(engine("llama"), graph, targets)
    assert list(found) == targets
    bundle = compile_graph(graph, tokenizer())
    letters = replace(
        graph,
        chunks=tuple(replace(c, text=(c.text or "") + (c.completion or "")) for c in graph.chunks),
    )
    mask = brute_force_mask(dag_in_order(letters, bundle.span_names))
    expected = eager_log_probs(bundle, mask)
    for name in targets:
        text, before = scored[name]
        first = bundle.span(name).start + before
        assert found[name].token_ids == tuple(text.encode())
        assert found[name].tokens == tuple(text)
        wanted = [float(expected[first + i - 1, byte]) for i, byte in enumerate(text.encode())]
        np.testing.assert_allclose(found[name].log_probs, wanted, atol=1e-4)
        assert found[name].num_tokens == len(text)
        assert found[name].total == pytest.approx(sum(wanted), abs=1e-3)
        assert found[name].mean == pytest.approx(sum(wanted) / len(wanted), abs=1e-4)
        assert found[name].perplexity == pytest.approx(math.exp(-sum(wanted) / len(wanted)), rel=1e-3)


@FEW
@given(st.lists(st.text(LETTERS, min_size=2, max_size=6), min_size=1, max_size=5))
def test_a_chain_that_sees_everything_is_a_plain_text(texts: list[str]) -> None:
    chunks = list[Chunk]()
    for text in texts:
        chunks.append(Chunk(text, parents=tuple(chunks), name=f"c{len(chunks)}"))
    found = score(engine("llama"), graph_of([chunks[-1]]), [str(chunk.name) for chunk in chunks])
    ids = list("".join(texts).encode())
    model = tiny_model("llama")
    use_attention(model, "sdpa")
    with torch.inference_mode():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    at = 0
    for chunk, text in zip(chunks, texts, strict=True):
        wanted = [float(log_probs[at + i - 1, ids[at + i]]) for i in range(1, len(text))]
        np.testing.assert_allclose(found[str(chunk.name)].log_probs, wanted, atol=1e-4)
        at += len(text)


def printed(picture: Any) -> str:
    console = Console(width=100, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(picture)
    return captured.get()


def small_graph() -> Graph:
    head = Chunk("some head text", name="head")
    left = Chunk("left document", name="left", parents=[head])
    right = Chunk("right one", name="right", parents=[head])
    unrelated = Chunk("something else", name="other")
    answer = Chunk("Q: ", name="answer", parents=[left, right], completion="the answer")
    return graph_of([answer, unrelated])


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "gemma2", "mistral-window", "gpt-oss"])
@pytest.mark.parametrize("attn", ["auto", "eager"])
def test_families(name: str, attn: str) -> None:
    graph = small_graph()
    bundle = compile_graph(graph, tokenizer())
    log_probs = dense_logits(tiny_model(name), bundle).log_softmax(-1)
    found = score(engine(name, attn), graph, ["answer", "right"])
    for target, before in (("answer", 3), ("right", 1)):
        span = bundle.span(target)
        tokens = range(span.start + before, span.stop)
        wanted = [float(log_probs[t - 1, bundle.input_ids[t]]) for t in tokens]
        np.testing.assert_allclose(found[target].log_probs, wanted, atol=1e-4)


def test_scored_tokens_are_those_that_training_labels() -> None:
    chunks = [Chunk("abcd", name="plain", loss=True), Chunk("ab", name="split", completion="cd", loss=True)]
    bundle = compile_chunks(chunks, tokenizer())
    assert bundle.labels is not None
    for name in ("plain", "split"):
        tokens = scored_tokens(bundle, name).tolist()
        assert [i for i in range(*bundle.span(name).indices(8)) if bundle.labels[i] >= 0] == tokens
    found = score(engine("llama"), bundle)
    assert {name: "".join(one.tokens) for name, one in found.items()} == {"plain": "bcd", "split": "cd"}


def test_without_targets_completions_are_scored_or_leaves() -> None:
    made = engine("llama")
    assert list(score(made, small_graph())) == ["answer"]
    root = Chunk("root", name="root")
    leaves = [Chunk("one", name="one", parents=[root]), Chunk("two", name="two", parents=[root])]
    assert list(score(made, graph_of(leaves))) == ["one", "two"]
    assert list(score(made, compile_chunks(leaves, tokenizer()))) == ["one", "two"]
    # Where a completion begins, a bundle that was not compiled for training does not know.
    unlabelled = compile_graph(small_graph(), tokenizer())
    found = score(made, unlabelled, ["answer"])["answer"]
    assert bytes(found.token_ids) == b": the answer"


def test_a_loss_elsewhere_is_not_scored() -> None:
    chunks = [Chunk("abcd", name="learned", loss=True), Chunk("wxyz", name="asked")]
    found = score(engine("llama"), graph_of(chunks), ["asked"])
    assert {name: "".join(one.tokens) for name, one in found.items()} == {"asked": "xyz"}
    graphs_by_name = label_targets({"g": graph_of(chunks)}, ["asked"])
    labelled = graphs_by_name["g"]
    assert isinstance(labelled, Graph)
    assert [chunk.loss for chunk in labelled.chunks] == [False, True]


def test_only_what_influences_the_targets_is_computed() -> None:
    made = engine("llama")
    seen = list[int]()

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["input_ids"].shape[1])

    graph = small_graph()
    expected = score(made, graph, ["right"])
    watching = made.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        assert score(made, graph, ["right"]) == expected
    finally:
        watching.remove()
    # One pass, after those in which a model is tried out: 14 letters of the head, and 9 of the chunk.
    assert seen[-1] == 23
    assert max(seen[:-1]) < 10


def test_many_logits_are_computed_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine("llama")
    graph = small_graph()
    targets = ["head", "left", "right", "answer", "other"]
    whole = score(made, graph, targets)
    monkeypatch.setattr(score_module, "_MAX_LOGITS", 260 * 3)
    pieces = score(made, graph, targets)
    assert list(pieces) == targets
    for name in targets:
        assert pieces[name].token_ids == whole[name].token_ids
        np.testing.assert_allclose(pieces[name].log_probs, whole[name].log_probs, atol=1e-5)


def test_generate_settings_change_nothing() -> None:
    plain, continued = (
        graph_of([Chunk("abcd", name="a", parents=[Chunk("wxyz", name="w", generate=how)])])
        for how in (None, Generate(7))
    )
    assert score(engine("llama"), plain) == score(engine("llama"), continued)


def test_all_that_is_wrong_is_told() -> None:
    made = engine("llama")
    with pytest.raises(InputError) as caught:
        score(made, small_graph(), ["anwser", "left", "zzz"])
    assert [problem.message for problem in caught.value.problems] == [
        "there is no chunk 'anwser'",
        "there is no chunk 'zzz'",
    ]
    assert caught.value.problems[0].hint == "did you mean 'answer'?"
    short = compile_chunks([Chunk("a", name="a"), Chunk("b", name="b"), Chunk("cd", name="c")], tokenizer())
    with pytest.raises(InputError) as caught:
        score_all(made, {"short": short, "long": compile_graph(small_graph(), tokenizer())})
    assert [problem.message for problem in caught.value.problems] == [
        "short: chunk 'a' has one token, and nothing predicts a chunk's first token",
        "short: chunk 'b' has one token, and nothing predicts a chunk's first token",
    ]
    assert caught.value.exit_code == 2
    # A completion of one token has a token before it.
    assert score(made, graph_of([Chunk("a", name="a", completion="b")]))["a"].token_ids == (98,)


def test_numbers_that_are_none_are_told() -> None:
    broken = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        broken.model.embed_tokens.weight[ord("b")] = float("nan")
    with pytest.raises(ModelError, match="computes NaN or infinity for this graph"):
        score(Engine(broken, tokenizer()), graph_of([Chunk("abc", name="a")]))


GATES = """\
legraph: 1
chunks:
  - {{name: amber, text: "The amber key of Voldan opens the north gate."}}
  - {{name: silver, text: "The silver key of Maren opens the south gate."}}
  - name: answer
    text: "Which gate does the amber key of Voldan open?"
    parents: [{parents}]
    completion: " the {gate} gate."
"""


@pytest.fixture
def gates(tmp_path: Path) -> dict[str, Path]:
    """The right answer, a wrong one, and the right one where the document that has it is hidden."""
    told = {
        "right": ("amber, silver", "north"),
        "wrong": ("amber, silver", "south"),
        "hidden": ("silver", "north"),
    }
    paths = dict[str, Path]()
    for name, (parents, gate) in told.items():
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(GATES.format(parents=parents, gate=gate))
    return paths


def test_the_shipped_model_prefers_what_it_sees(call: Call, gates: dict[str, Path]) -> None:
    done = call("score", *gates.values(), "--device", "cpu", "--json")
    assert done.code == 0
    found = {Path(one["graph"]).stem: one["targets"]["answer"] for one in done.data()["graphs"]}
    assert list(found) == ["right", "wrong", "hidden"]
    assert found["right"]["perplexity"] < 1.1
    assert found["right"]["log_prob"] > found["wrong"]["log_prob"] + 3
    assert found["right"]["log_prob"] > found["hidden"]["log_prob"] + 3
    # It is one word that makes the difference.
    worst = int(np.argmin(found["wrong"]["log_probs"]))
    assert "south" in found["wrong"]["tokens"][worst]


def test_json_has_every_token(call: Call, gates: dict[str, Path], tmp_path: Path) -> None:
    data = call("score", gates["right"], "--target", "answer", "--device", "cpu", "--json").data()
    assert list(data) == ["graphs"]
    assert [one["graph"] for one in data["graphs"]] == [str(gates["right"])]
    answer = data["graphs"][0]["targets"]["answer"]
    keys = ["num_tokens", "log_prob", "mean", "perplexity", "token_ids", "tokens", "log_probs"]
    assert list(answer) == keys
    bundle = compile_file(gates["right"])
    assert answer["token_ids"] == bundle.input_ids[-answer["num_tokens"] :].tolist()
    assert len(answer["tokens"]) == len(answer["log_probs"]) == answer["num_tokens"]
    assert answer["log_prob"] == pytest.approx(sum(answer["log_probs"]))
    assert answer["mean"] == pytest.approx(answer["log_prob"] / answer["num_tokens"])


def test_the_table_puts_the_graphs_of_a_target_together() -> None:
    scores = {
        "a.yaml": {"x": Score((1, 2), ("p", "q"), (-1.0, -3.0)), "y": Score((1,), ("p",), (-1000.0,))},
        "b.yaml": {"x": Score((1, 2), ("p", "q"), (-0.5, -0.5))},
    }
    lines = [line.split() for line in printed(score_table(scores)).splitlines()]
    assert lines == [
        ["target", "graph", "tokens", "log-prob", "per", "token", "perplexity"],
        ["x", "a.yaml", "2", "-4.0000", "-2.0000", "7.389"],
        ["x", "b.yaml", "2", "-1.0000", "-0.5000", "1.649"],
        ["y", "a.yaml", "1", "-1,000.0000", "-1,000.0000", "inf"],
    ]
    alone = printed(score_table({"a.yaml": scores["b.yaml"]})).splitlines()
    assert [line.split() for line in alone][1] == ["x", "2", "-1.0000", "-0.5000", "1.649"]
    # JSON knows no infinity.
    assert json.loads(json.dumps(score_data(scores), allow_nan=False))["graphs"][0]["targets"]["y"] == {
        "num_tokens": 1,
        "log_prob": -1000.0,
        "mean": -1000.0,
        "perplexity": None,
        "token_ids": [1],
        "tokens": ["p"],
        "log_probs": [-1000.0],
    }


def errors(done: Any) -> Sequence[str]:
    return done.err.splitlines()


def test_the_command_tells_all_that_is_wrong(
    call: Call, graph: Path, fork: Path, model_folder: Path, tmp_path: Path
) -> None:
    # Before a model is loaded.
    done = call("score", graph, fork, "--target", "questio", "--model", "/nowhere")
    assert done.code == 2
    assert f"error: {graph}: there is no chunk 'questio'" in errors(done)
    assert "  hint: did you mean 'question'?" in errors(done)
    assert f"{fork}: there is no chunk 'questio'" in errors(done)
    short = tmp_path / "short.yaml"
    short.write_text("legraph: 1\ntokenizer: bytes\nchunks:\n  - {name: a, text: x}\n")
    done = call("score", short, "--model", model_folder, "--device", "cpu")
    assert done.code == 2
    assert errors(done)[0] == (
        f"error: {short}: chunk 'a' has one token, and nothing predicts a chunk's first token"
    )
    assert "--dtype is 'float'" in call("score", graph, "--dtype", "float").err


def test_the_command_draws_a_table(call: Call, graph: Path, model_folder: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "graph.npz"
    assert call("compile", graph, "-o", compiled).code == 0
    arguments = ("--model", model_folder, "--device", "cpu", "--target", "question", "--target", "doc1")
    lines = call("score", graph, compiled, *arguments).out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        [target, str(source), "17"] for target in ("question", "doc1") for source in (graph, compiled)
    ]
    # A graph and what it compiles to have the same scores.
    assert lines[1].split()[3:] == lines[2].split()[3:]


# What a run generated


@FEW
@given(bundle=running())
def test_generated_tokens_have_the_log_probabilities_of_one_eager_pass(bundle: Bundle) -> None:
    result = engine("llama").run(bundle, Generate(4, temperature=1.0, seed=3))
    found = score_generated(engine("llama"), result)
    expected = eager_log_probs(result.bundle, result.bundle.dense_mask())
    assert list(found) == list(result.outputs)
    for name, output in result.outputs.items():
        end = result.bundle.span(name).stop
        places = range(end - len(output.token_ids), end)
        wanted = [float(expected[at - 1, result.bundle.input_ids[at]]) for at in places]
        assert found[name] == pytest.approx(wanted, abs=1e-4)


def test_of_a_run_that_generated_nothing_there_is_nothing_to_score() -> None:
    bundle = compile_chunks([Chunk("abc", name="a")], tokenizer=tokenizer())
    submission = engine("llama").submit(bundle)
    submission.cancel()
    assert score_generated(engine("llama"), submission.partial()) == {"a": ()}
