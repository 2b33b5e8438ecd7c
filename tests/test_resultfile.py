"""A result that was printed gives back the finished graph of its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from legraph import Bundle, Chunk, Generate, InputError, compile_chunks
from legraph.report import result_data
from legraph.resultfile import OutputEntry, ResultEntry, TokenCounts, finished_with, read_result
from tests.naive import engine
from tests.random_graphs import content, running, tokenizer


def printed(result: Any) -> str:
    return json.dumps(result_data(result, result.timing))


@settings(max_examples=25)
@given(bundle=running())
def test_the_finished_graph_is_that_of_the_run(bundle: Bundle) -> None:
    result = engine("llama").run(bundle, Generate(3))
    read = ResultEntry.model_validate_json(printed(result))
    assert content(finished_with(bundle, read, Path("r.json"))) == content(result.bundle)


@settings(max_examples=25)
@given(bundle=running())
def test_a_bundle_that_was_saved_after_the_run_is_left_as_it_is(bundle: Bundle) -> None:
    result = engine("llama").run(bundle, Generate(3))
    read = ResultEntry.model_validate_json(printed(result))
    assert finished_with(result.bundle, read, Path("r.json"), may_be_finished=True) is result.bundle
    with pytest.raises(InputError, match=r"is the result of a graph of \d+ tokens?, and this one has"):
        finished_with(result.bundle, read, Path("r.json"))


def test_a_compiled_bundle_is_not_taken_for_a_finished_one() -> None:
    """Its text ends with what was generated then: one more of the same."""
    bundle = compile_chunks([Chunk("aaaa", name="a")], tokenizer=tokenizer())
    entry = OutputEntry(text="a", token_ids=[97])
    read = ResultEntry(outputs={"a": entry}, tokens=TokenCounts(prompt=4))
    made = finished_with(bundle, read, Path("r.json"), may_be_finished=True)
    assert made.input_ids.tolist() == [97] * 5


def fork() -> Bundle:
    head = Chunk("abc ", name="head")
    left = Chunk("left ", parents=[head], name="left", generate=Generate(5))
    return compile_chunks([Chunk("join", parents=[left], name="join")], tokenizer=tokenizer())


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = engine("llama").run(fork(), Generate(4))
    path.write_text(printed(result))
    outputs = read_result(path).outputs
    assert {name: tuple(output.token_ids) for name, output in outputs.items()} == {
        name: output.token_ids for name, output in result.outputs.items()
    }
    assert outputs["join"].text == result.outputs["join"].text
    assert outputs["join"].log_probs is None


def with_output(**more: Any) -> str:
    output = {"text": "x", "token_ids": [1], "finish": "end"} | more
    return json.dumps({"outputs": {"q": output}, "tokens": {"prompt": 3}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"outputs": {}}\n{"outputs": {}}\n', "holds several JSON objects"),
        ("[]", "the content: Input should be"),
        ("{}", "outputs: Field required"),
        ('{"outputs": {}}', "tokens: Field required"),
        (with_output(token_ids=[2**31]), r"outputs\.q\.token_ids\.0: .*2147483648"),
        (with_output(log_probs=[float("nan")]), r"outputs\.q\.log_probs\.0: "),
        (with_output(log_probs=[0.5]), r"outputs\.q\.log_probs\.0: .*0"),
        (with_output(log_probs=[-float("inf")]), r"outputs\.q\.log_probs\.0: "),
        ('{"id": "a", "error": {"kind": "ModelError"}}', "holds the error of a run that failed"),
        (
            json.dumps({"outputs": {"q": {"text": "x"}}, "tokens": {"prompt": 1}}),
            r"outputs\.q\.token_ids: Field required",
        ),
        (with_output(token_ids=[-1]), r"outputs\.q\.token_ids\.0: .*0"),
        (
            with_output(log_probs=[-0.5, -0.25]),
            "'q' has 1 token ids and 2 log-probabilities",
        ),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_result(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_result(tmp_path / "none.json")
    binary = tmp_path / "result.json"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8"):
        read_result(binary)


def test_the_result_of_another_graph_is_refused() -> None:
    outputs = {"joint": OutputEntry(text="x", token_ids=[1])}
    read = ResultEntry(outputs=outputs, tokens=TokenCounts(prompt=len(fork())))
    with pytest.raises(InputError, match="the graph has no chunk 'joint'") as caught:
        finished_with(fork(), read, Path("r.json"))
    assert "did you mean 'join'?" in str(caught.value)
    longer = ResultEntry(outputs={}, tokens=TokenCounts(prompt=len(fork()) + 1))
    with pytest.raises(InputError, match="is the result of a graph of 14 tokens, and this one has 13"):
        finished_with(fork(), longer, Path("r.json"))
