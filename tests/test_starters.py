"""Starters: each is written where it is wanted, checks, compiles and runs, and replaces nothing unasked."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import legraph
from legraph.errors import GraphError
from legraph.starters import STARTERS, next_commands, write_starter
from tests.chat_tokenizers import chat_tokenizer
from tests.command_line import Call

NAMES = sorted(STARTERS)


def next_lines(out: str) -> list[str]:
    return [line.strip() for line in out.partition("Next:\n")[2].splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_a_starter_checks_and_compiles(name: str, call: Call, tmp_path: Path) -> None:
    done = call("init", tmp_path / "new" / name, "--template", name)
    graph = tmp_path / "new" / name / "graph.yaml"
    assert (done.code, done.err) == (0, "")
    assert f"wrote {graph}\n" in done.out
    assert call("check", graph).out == f"{graph}: ok\n"
    tokenizer = chat_tokenizer("llama3") if STARTERS[name].needs_model else None
    bundle = legraph.compile_file(graph, tokenizer)
    leaves = {bundle.span_names[i] for i in bundle.leaves}
    assert leaves and leaves <= set(bundle.meta.generate), "a run answers it"
    assert graph.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("rag", ["the west gate."]),
        ("fewshot", ["pelkaisur."]),
        (
            "forkjoin",
            [
                "[amber] the north gate.",
                "[silver] the south gate.",
                "[join] the north gate and the south gate.",
            ],
        ),
        ("tree", ["[east_question] the north gate.", "[west_question] the south gate."]),
    ],
)
def test_what_is_said_to_do_next_works(name: str, answers: list[str], call: Call, tmp_path: Path) -> None:
    """The answers are those that the starter's own texts hold."""
    lines = next_lines(call("init", tmp_path / "a folder", "--template", name).out)
    assert [shlex.split(line)[:2] for line in lines] == [
        ["legraph", verb] for verb in ("check", "show", "run")
    ]
    ran = [call(*shlex.split(line)[1:]) for line in lines]
    assert [(done.code, done.err) for done in ran] == [(0, "")] * 3
    assert [line.strip() for line in ran[-1].out.splitlines()] == answers


def test_the_documents_of_rag_are_chunks_of_their_own(tmp_path: Path) -> None:
    written = write_starter("rag", str(tmp_path))
    (tmp_path / "docs" / "iron.txt").write_text("The iron key of Pelka opens the old gate.")
    bundle = legraph.compile_file(written[0])
    assert bundle.span_names == ("head", "amber", "copper", "iron", "silver", "question")
    for doc in ("amber", "copper", "iron", "silver"):
        assert [bundle.span_names[i] for i in bundle.parents(doc)] == ["head"]
    assert len(bundle.parents("question")) == 5


def test_the_chat_needs_a_model_and_says_so(tmp_path: Path) -> None:
    assert next_commands("chat", Path("x.yaml")) == [
        "legraph check x.yaml",
        "legraph show x.yaml --tokenizer MODEL",
        "legraph run x.yaml --model MODEL",
    ]


def test_a_file_name_is_taken_as_it_is(call: Call, tmp_path: Path) -> None:
    done = call("init", tmp_path / "mine.yaml")
    assert done.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "mine.yaml"]


def test_nothing_is_replaced_unasked_and_then_nothing_is_written(call: Call, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    mine = tmp_path / "docs" / "amber.txt"
    mine.write_text("mine")
    refused = call("init", tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert f"{mine}: exists already" in refused.err
    assert (mine.read_text(), (tmp_path / "graph.yaml").exists()) == ("mine", False)
    assert call("init", tmp_path, "--force").code == 0
    assert mine.read_text() == STARTERS["rag"].files["docs/amber.txt"]


def test_wrong_templates_and_places(call: Call, tmp_path: Path) -> None:
    wrong = call("init", tmp_path, "--template", "forkjoint")
    assert wrong.code == 2
    assert (
        "one of rag, tree, forkjoin, chat, fewshot" in wrong.err and "did you mean 'forkjoin'?" in wrong.err
    )
    (tmp_path / "file").write_text("x")
    with pytest.raises(GraphError, match="cannot be made"):
        write_starter("tree", str(tmp_path / "file" / "folder"))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
