"""The writer of graph files: what it writes reads back as the same data, by our reader and by another."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from legraph.errors import GraphError
from legraph.graphtext import graph_text, literal, write_text_file
from legraph.parse import ParsedFile, parse
from legraph.source import SourceText


def parsed(text: str) -> ParsedFile:
    return parse(SourceText("written", text, "yaml", Path()))


def written(*chunks: dict[str, Any], **settings: Any) -> str:
    return graph_text({"legraph": 1, "chunks": list(chunks)} | settings)


# Any Unicode text, and texts of what YAML reads in a special way.
AWKWARD = st.lists(
    st.sampled_from(
        [
            *"a \t\n\r#'\"\\${}|>%@&*!\x85\u2028\ufeff\xa0\x00\U0001f600",
            *("${", "$${", ": ", "- ", "---", "...", "no", "\n\n", "x" * 90),
        ]
    ),
    min_size=1,
    max_size=12,
).map("".join)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | AWKWARD


@given(text=TEXTS, completion=TEXTS, comment=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="a\n\n\n", completion="b", comment="")
@example(text="\n", completion="\n\n", comment="# \n---")
@example(text="a\n b\n\tc\n\n d", completion="a\n---\n...\n# no comment\n", comment="a\x85b\rc\u2028d")
@example(text=" leading\nspace", completion="x" * 200, comment="")
@example(text="a\n   \nb", completion="$${a} ${b}\n$$${", comment="")
def test_texts_read_back_as_they_were(text: str, completion: str, comment: str) -> None:
    chunks = [{"name": "a", "text": text, "completion": completion}, {"name": "b", "text": "end"}]
    file = graph_text({"legraph": 1, "chunks": chunks}, comment, {"a": comment})
    read = parsed(file)
    assert read.texts == (text, "end")
    assert read.spec.chunks[0].completion == completion
    # PyYAML knows nothing of variables, so it sees the text with its escapes.
    assert yaml.safe_load(file)["chunks"][0]["text"] == text.replace("${", "$${")


@given(st.text("ab${}", max_size=20))
def test_an_escaped_text_has_no_variables(text: str) -> None:
    """Counted from the left: a `${` of the text is always behind one more `$`."""
    escaped = literal(text)
    assert escaped.count("$") == text.count("$") + text.count("${")
    assert escaped.replace("$${", "\0").count("${") == 0


@pytest.mark.parametrize(
    "name", ["no", "Yes", "on", "null", "true", "a.b-c", "_", "e5", "y", "False", "NULL", "N"]
)
def test_names_stay_names(name: str) -> None:
    read = parsed(written({"name": name, "text": "x"}, {"name": "z", "text": "y", "parents": [name]}))
    assert read.spec.chunks[0].name == name
    assert read.spec.chunks[1].parents == (name,)


def test_all_keys_read_back_in_one_order() -> None:
    chunk = {"generate": {"stop": ["\n", "a: b"], "temperature": 1e-7, "max_new_tokens": 3}, "loss": True}
    chunk |= {"end": 9, "parents": None, "text": "x", "name": "a", "completion": "y"}
    file = graph_text(
        {"chunks": [chunk], "bos": True, "tokenizer": "a: b", "positions": "flat", "legraph": 1}
    )
    spec = parsed(file).spec
    assert (spec.legraph, spec.tokenizer, spec.positions, spec.bos) == (1, "a: b", "flat", True)
    read = spec.chunks[0]
    assert read.generate is not None
    assert (read.generate.stop, read.generate.temperature) == (("\n", "a: b"), 1e-7)
    assert (read.end, read.loss, read.completion, read.parents) == (9, True, "y", ())
    assert list(yaml.safe_load(file)) == ["legraph", "tokenizer", "positions", "bos", "chunks"]
    keys = ["name", "text", "completion", "loss", "end", "generate"]
    assert list(yaml.safe_load(file)["chunks"][0]) == keys


def test_a_file_reads_well() -> None:
    chunks = [
        {"name": "doc", "text": 'One # "line".\nAnother: line.\n'},
        {"name": "q", "text": 'Say "fox": é.', "parents": ["doc"], "generate": {"max_new_tokens": 5}},
    ]
    file = graph_text({"legraph": 1, "chunks": chunks}, "What it is.\nAnd why.", {"q": "the question"})
    assert (
        file
        == """\
# What it is.
# And why.
legraph: 1
chunks:
  - name: doc
    text: |
      One # "line".
      Another: line.
  # the question
  - name: q
    text: "Say \\"fox\\": é."
    parents: [doc]
    generate: {max_new_tokens: 5}
"""
    )


def test_long_lists_and_comments_are_wrapped() -> None:
    names = [f"document_number_{i}" for i in range(100)]
    chunks = [{"name": name, "text": "x"} for name in names]
    question = {"name": "q", "text": "y", "parents": names}
    file = graph_text({"legraph": 1, "chunks": [*chunks, question]}, "word " * 100)
    assert max(map(len, file.splitlines())) <= 110
    assert parsed(file).spec.chunks[-1].parents == tuple(names)


def test_a_file_is_written_whole_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "graph.yaml"
    write_text_file(path, "one\n")
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode) & 0o400) == (b"one\n", 0o400)
    with pytest.raises(GraphError, match="exists already"):
        write_text_file(path, "two\n")
    assert path.read_text() == "one\n"
    write_text_file(path, "two\n", force=True)
    assert path.read_text() == "two\n"
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_a_place_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="cannot be written: No such file or directory"):
        write_text_file(tmp_path / "missing" / "graph.yaml", "x")
    with pytest.raises(GraphError, match="is a folder"):
        write_text_file(tmp_path, "x", force=True)
    with pytest.raises(GraphError, match="is a folder"):
        write_text_file(tmp_path, "x")
