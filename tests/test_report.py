"""Results as data, as text and as a table; made by hand, so that every number is another."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from legraph.branch import Output
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import BundleError, GraphError, InputError, LegraphError, ModelError, Problem, Source
from legraph.report import error_data, outputs_text, result_data, source_data, sources_table
from legraph.result import RunResult
from legraph.reuse import ChunkSource
from legraph.tokens import bytes_tokenizer

SOURCES = (
    ChunkSource("doc", "device", 1200, 1200, 3 * 2**20, 0),
    ChunkSource("note", "memory", 34, 34, 2048, -1500),
    ChunkSource("page", "disk", 50, 49, 512, 70),
    ChunkSource("[red]odd", "unused", 7, 7, 0, 0),
    ChunkSource("question", "computed", 9, 0, 0, 0),
)


def result(**texts: str) -> RunResult:
    outputs = {name: Output(text, (5, 6), "stop") for name, text in texts.items()}
    bundle = compile_chunks([Chunk("x", name="x")], tokenizer=bytes_tokenizer())
    return RunResult(outputs, {"total_s": 3.5}, {"prompt": 9}, SOURCES, bundle)


def test_a_result_as_data_has_what_the_contract_says() -> None:
    data = result_data(result(a=" text\n"), {"load_s": 1.0, "total_s": 3.5})
    assert json.loads(json.dumps(data)) == {
        "outputs": {"a": {"text": " text\n", "token_ids": [5, 6], "finish": "stop"}},
        "timing": {"load_s": 1.0, "total_s": 3.5},
        "tokens": {"prompt": 9},
    }


def test_a_result_that_is_explained_has_the_source_of_each_chunk() -> None:
    data = result_data(result(a="x"), {}, explain=True)
    assert list(data) == ["outputs", "timing", "tokens", "cache"]
    assert data["cache"] == [source_data(source) for source in SOURCES]
    assert data["cache"][2] == {
        "chunk": "page",
        "origin": "disk",
        "tokens": 50,
        "reused": 49,
        "bytes": 512,
        "shift": 70,
    }


@pytest.mark.parametrize(
    ("error", "kind", "message", "where"),
    [
        (ModelError("too long", "shorten it"), "ModelError", "too long", ""),
        (
            GraphError(Problem("bad", "good", source=Source("r.jsonl", 3, key_path=("chunks", 0)))),
            "GraphError",
            "bad",
            "r.jsonl:3",
        ),
        (
            GraphError([Problem("one", source=Source("g.yaml", 3, 7)), Problem("two")]),
            "GraphError",
            "one",
            "g.yaml:3:7",
        ),
        (BundleError("b.npz: is damaged"), "BundleError", "b.npz: is damaged", ""),
        (InputError("wrong"), "InputError", "wrong", ""),
    ],
)
def test_an_error_as_data_says_kind_message_and_where(
    error: LegraphError, kind: str, message: str, where: str
) -> None:
    assert error_data(error) == {"kind": kind, "message": message, "where": where}


def test_the_text_of_one_output_stands_alone_and_of_several_with_names() -> None:
    assert outputs_text(result(a="\n one\ntwo \n")) == "one\ntwo"
    assert outputs_text(result(a=" one ", b="two\n")) == "[a] one\n[b] two"


def lines(*sources: ChunkSource) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as captured:
        console.print(sources_table(sources))
    return [re.split(r" {2,}", line.strip()) for line in captured.get().splitlines()]


def test_the_table_has_a_line_for_each_chunk_and_the_sums() -> None:
    assert lines(*SOURCES) == [
        ["chunk", "from", "tokens", "reused", "bytes", "moved by"],
        ["doc", "device", "1,200", "1,200", "3.0 MiB"],
        ["note", "memory", "34", "34", "2.0 KiB", "-1,500"],
        ["page", "disk", "50", "49", "512 B", "+70"],
        ["[red]odd", "unused", "7", "7"],
        ["question", "computed", "9", "0"],
        ["1,290 of 1,300 tokens reused", "1,300", "1,290", "3.0 MiB"],
    ]


def test_a_table_of_nothing() -> None:
    assert lines()[-1] == ["0 of 0 tokens reused", "0", "0", "0 B"]
