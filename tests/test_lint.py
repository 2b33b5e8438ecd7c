"""Every code of `lint` is documented with a graph that gives it; that graph is run here, and silenced."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from legraph.graph import Graph, build_graph
from legraph.lint import RULES, Finding, lint
from legraph.parse import parse, parse_file
from legraph.source import SourceText
from legraph.tokens import bytes_tokenizer
from tests.command_line import Call

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
CODES = [rule.code for rule in RULES]


def read(text: str) -> Graph:
    return build_graph(parse(SourceText("g.yaml", text, "yaml", Path())))


def codes(text: str, tokenizer: Any = None, model_max: int | None = None) -> list[str]:
    return [finding.code for finding in lint(read(text), tokenizer, model_max)]


@cache
def greeting_tokenizer() -> Any:
    """The byte tokenizer, but it puts BOS in front of what it is given, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_tokenizer()
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert tokenizer("x")["input_ids"] == [tokenizer.bos_token_id, ord("x")]
    return tokenizer


# What the example of a code is linted with, beside its file.
OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "LG102": lambda: {"tokenizer": greeting_tokenizer()},
    "LG104": lambda: {"model_max": 40},
}


@cache
def sections() -> dict[str, tuple[str, list[str]]]:
    """Of docs/lint.md: title and YAML blocks by code."""
    text = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    found = dict[str, tuple[str, list[str]]]()
    for part in text.split("\n## ")[1:]:
        heading, body = part.split("\n", 1)
        code, title = heading.split(" ", 1)
        found[code] = title, re.findall(r"^```yaml\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    return found


def example(code: str, number: int = 0) -> tuple[str, dict[str, Any]]:
    return sections()[code][1][number], OPTIONS.get(code, dict)()


def test_the_documentation_has_every_rule_and_no_other():
    assert {code: title for code, (title, _) in sections().items()} == {
        rule.code: rule.title for rule in RULES
    }
    assert list(sections()) == CODES == sorted(set(CODES))


def test_the_documented_output_is_that_of_its_graph(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
):
    text = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    (shown,) = re.findall(
        r"^```console\n\$ legraph lint graph.yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    )
    (tmp_path / "graph.yaml").write_text(example("LG005")[0])
    monkeypatch.chdir(tmp_path)
    assert call("lint", "graph.yaml").out == shown


def test_an_assertion_that_fails_makes_a_file_invalid(tmp_path: Path, call: Call):
    path = tmp_path / "g.yaml"
    path.write_text("legraph: 1\nchunks: [{name: a, text: A}, {name: b, text: B}]\nassert: [{sees: [b, a]}]")
    done = call("lint", path)
    assert (done.code, done.out) == (2, "")
    assert "asserted 'sees': 'b' does not see 'a'" in done.err


@pytest.mark.parametrize("code", CODES)
def test_the_documented_graph_gives_the_code_and_no_other(code: str):
    text, options = example(code)
    findings = lint(read(text), **options)
    assert [finding.code for finding in findings] == [code]
    assert findings[0].place is not None
    assert findings[0].place.line is not None
    assert findings[0].hint


@pytest.mark.parametrize("code", CODES)
def test_the_documented_remedy_gives_nothing(code: str):
    text, options = example(code, 1)
    assert lint(read(text), **options) == []


@pytest.mark.parametrize("code", [code for code in CODES if code != "LG008"])
def test_a_code_is_silenced_by_the_file(code: str):
    text, options = example(code)
    other = "LG001" if code != "LG001" else "LG002"
    silenced, kept = (
        text.replace("legraph: 1\n", f"legraph: 1\nlint: {{ignore: [{one}]}}\n") for one in (code, other)
    )
    assert lint(read(silenced), **options) == []
    assert codes(kept, **options) == [code]


@pytest.mark.parametrize(
    ("code", "chunk", "other"),
    [
        ("LG001", "answer", "secret"),
        ("LG002", "question", "middle"),
        ("LG003", "question", "doc2"),
        ("LG004", "doc2", "doc1"),
        ("LG005", "note", "doc"),
        ("LG006", "question", "doc"),
        ("LG007", "doc2", "question"),
        ("LG101", "question", None),
        ("LG102", "doc1", "question"),
        ("LG103", "question", "doc"),
        ("LG104", "question", "doc1"),
        ("LG105", "rest", "begin"),
    ],
)
def test_a_code_is_silenced_by_the_chunk_it_is_about(code: str, chunk: str, other: str | None):
    text, options = example(code)

    def at(name: str) -> str:
        changed = text.replace(f"- name: {name}\n", f"- name: {name}\n    lint: {{ignore: [{code}]}}\n")
        assert changed != text
        return changed

    assert codes(at(chunk), **options) == []
    if other is not None:
        assert codes(at(other), **options) == [code]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_give_no_finding_but_the_bottleneck_that_is_meant(path: Path):
    findings = lint(build_graph(parse_file(path)), "recall")
    expected = {"LG002"} if path.stem == "token_compression" else set[str]()
    assert {finding.code for finding in findings} <= expected


def test_a_leak_names_the_path_and_counts_the_rest():
    text = """\
legraph: 1
chunks:
  - {name: a, text: aaa}
  - {name: b, text: bbb}
  - {name: mid, text: mmm, parents: [a, b]}
  - {name: low, text: lll, parents: [mid]}
  - {name: end, text: eee, parents: [low]}
assert:
  - not_sees: [end, "?"]
"""
    (finding,) = lint(read(text))
    assert finding.message == (
        "'end' does not see 'a', but is influenced by it: 'a' -> 'mid' -> 'low' -> 'end'; and 1 more pair"
    )
    assert finding.place is not None
    assert finding.place.line == 9


def test_generated_text_is_no_bottleneck_and_neither_is_a_parent_that_is_long_enough():
    chunks = """\
legraph: 1
chunks:
  - {{name: long, text: "{long}"}}
  - {{name: short, text: "{short}", parents: [long]{more}}}
  - {{name: leaf, text: "leaf", parents: [{parents}]}}
"""
    values = {"long": "x" * 81, "short": "y" * 20, "more": "", "parents": "short"}
    assert codes(chunks.format(**values)) == ["LG002"]
    assert codes(chunks.format(**values | {"long": "x" * 80})) == []
    assert codes(chunks.format(**values | {"parents": "short, long"})) == []
    assert codes(chunks.format(**values | {"more": ", generate: {max_new_tokens: 9}"})) == []
    # What comes as a completion can carry content as well.
    assert codes(chunks.format(**values | {"more": ", completion: abc"})) == []


def test_isolated_chunks_are_those_that_share_no_edge_but_bos():
    text = """\
legraph: 1
bos: true
chunks: [{name: a, text: A}, {name: b, text: B, parents: [a]}, {name: c, text: C%s}]
"""
    assert codes(text % "") == ["LG005"]
    assert codes(text % ", generate: {max_new_tokens: 1}") == ["LG004"]
    assert codes("legraph: 1\nbos: true\nchunks: [{name: a, text: A}, {name: b, text: B}]") == []


def test_names_are_looked_for_as_whole_names():
    text = """\
legraph: 1
chunks:
  - {name: doc1, text: "See doc-12, doc10, xdoc1 and Doc1."}
  - {name: doc-1, text: "See doc1."}
  - {name: question, text: "doc1, doc-1, question?", parents: [doc1]}
  - {name: end, text: "plan? doc10", parents: [question, doc-1]}
  - {name: plan, text: "plan.", parents: [end]}
"""
    found = lint(read(text))
    assert [(each.code, each.message) for each in found] == [
        ("LG003", "the text of 'doc-1' names 'doc1', and does not see it"),
        ("LG003", "the text of 'question' names 'doc-1', and does not see it"),
    ]


def test_bos_tokens_are_found_wherever_they_are_too_many():
    text = (
        'legraph: 1\ntokenizer: bytes\nchunks: [{name: a, text: "%s"}, {name: b, text: "%s", parents: [a]}]'
    )
    bos = "<|bos|>"
    assert codes(text % (f"{bos}a", "b")) == []
    found = [lint(read(text % texts))[0].message for texts in ((f"{bos}a", f"{bos}b"), (f"a{bos}", "b"))]
    assert found == [
        "'b' begins with the BOS token, and is not the beginning: it sees 'a'",
        "'a' has the BOS token inside, as token 1",
    ]


def test_a_root_that_begins_with_bos_needs_none():
    text = """\
legraph: 1
chunks: [{name: a, text: "%sa"}, {name: c, text: c}, {name: b, text: b, parents: [a, c]}]
"""
    messages = [lint(read(text % bos), greeting_tokenizer())[0].message for bos in ("", "<|bos|>")]
    assert "the roots 'a', 'c' have none" in messages[0]
    assert "the root 'c' has none" in messages[1]
    assert "LG102" not in codes(text % "", bytes_tokenizer())


@pytest.mark.parametrize(
    ("policy", "parent", "child", "is_found"),
    [
        # The parent has 3 tokens.
        ("causal", "", "start: 2", True),
        ("causal", "", "start: 3", False),
        ("causal", "", "end: 5", True),
        ("causal", "", "end: 6", False),
        ("causal", "start: 50", "", False),
        ("flat", "start: 50", "", True),
        ("local", "", "", False),
        ("local", "start: 50", "", False),
        ("local", "", "start: 1", True),
        ("causal", "generate: {max_new_tokens: 4}", "start: 6", True),
        ("causal", "generate: {max_new_tokens: 4}", "start: 7", False),
    ],
)
def test_positions_before_the_end_of_a_parent(policy: str, parent: str, child: str, is_found: bool):
    text = f"""\
legraph: 1
tokenizer: bytes
positions: {policy}
chunks:
  - {{name: a, text: aaa, {parent}}}
  - {{name: b, text: bbb, parents: [a], {child}}}
"""
    text = text.replace(", }", "}")
    assert codes(text) == (["LG103"] if is_found else [])


@pytest.mark.parametrize("policy", ["causal", "flat"])
def test_the_model_needs_room_for_what_may_be_generated(policy: str):
    text = f"""\
legraph: 1
tokenizer: bytes
positions: {policy}
chunks:
  - {{name: a, text: aaa, generate: {{max_new_tokens: 10}}}}
  - {{name: b, text: bb, parents: [a], generate: {{max_new_tokens: 20}}}}
"""
    # 3 + 10 + 2 + 20 positions.
    assert codes(text, model_max=35) == []
    (finding,) = lint(read(text), model_max=34)
    assert (
        finding.message == "'b' reaches, with all it may generate, position 34, and the model has 34: 0..33"
    )
    (finding,) = lint(read(text), model_max=12)
    assert finding.message.startswith(
        "'a' reaches, with all it may generate, position 12, and the model has 12"
    )
    assert finding.message.endswith("; and so do 1 more chunk")


def test_the_tokenizer_may_say_how_many_positions_there_are():
    tokenizer = bytes_tokenizer()
    text = "legraph: 1\nchunks: [{name: a, text: aaaa}]"
    tokenizer.model_max_length = 4
    assert codes(text, tokenizer) == []
    tokenizer.model_max_length = 3
    assert codes(text, tokenizer) == ["LG104"]
    assert codes(text, tokenizer, model_max=4) == []


def test_a_split_border_shows_both_ways_to_cut_it():
    text, _ = example("LG105")
    (finding,) = lint(read(text))
    assert finding.message == (
        "'rest' goes on from 'begin', and the joined text has other tokens there: "
        "'The' 'Ġ' | 'a' 'mber' 'Ġkey' apart, 'The' 'Ġamber' 'Ġkey' joined"
    )


def test_borders_are_looked_at_in_long_texts_and_only_where_one_text_goes_on():
    long = "The amber key of Voldan opens the north gate. " * 20
    text = """\
legraph: 1
tokenizer: recall
positions: %s
chunks:
  - {name: a, text: "%s"%s}
  - {name: b, text: "amber gate %s", parents: [a]%s}
"""
    assert codes(text % ("causal", long, "", long, "")) == ["LG105"]
    assert codes(text % ("causal", long.strip(), "", long, "")) == []
    assert codes(text % ("local", long, "", long, "")) == []
    assert codes(text % ("causal", long, "", long, ", start: 999")) == []
    assert codes(text % ("causal", long, ", generate: {max_new_tokens: 1}", long, "")) == []
    # The completion is the end of the text.
    assert codes(text % ("causal", long.strip(), ', completion: " "', long, "")) == ["LG105"]


def test_rules_about_tokens_wait_for_a_tokenizer():
    text, _ = example("LG105")
    without = text.replace("tokenizer: recall\n", "")
    assert codes(without) == []
    assert codes(without, "recall") == ["LG105"]
    assert codes(without, model_max=100) == ["LG105"]


def test_findings_come_in_the_order_of_the_file_and_then_of_their_codes():
    text = """\
legraph: 1
chunks:
  - {name: a, text: aa}
  - {name: b, text: bb, parents: [a]}
  - {name: c1, text: cc}
  - {name: d, text: see c1, parents: [a]}
  - {name: e, text: aa}
"""
    found = [(each.code, each.place.line if each.place else None) for each in lint(read(text))]
    assert found == [("LG005", 5), ("LG003", 6), ("LG005", 7), ("LG007", 7)]


def test_a_finding_is_drawn_with_its_place():
    text, _ = example("LG005")
    (finding,) = lint(read(text))
    assert str(finding) == (
        "g.yaml:5:5: LG005 isolated chunk: 'note' sees no chunk and no chunk sees it\n"
        "      5 |   - name: note\n"
        "        |     ^\n"
        "  hint: list it in the parents of a chunk, or remove it"
    )
    assert str(Finding("LG005", "isolated chunk", "x")) == "LG005 isolated chunk: x"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.yaml").write_text("legraph: 1\nchunks: [{name: a, text: A}]")
    (tmp_path / "found.yaml").write_text(example("LG005")[0])
    (tmp_path / "broken.yaml").write_text("legraph: 1\nchunks: [{name: a, text: A, parents: [b]}]")
    return tmp_path


def test_the_exit_code_says_what_was_found(folder: Path, call: Call):
    good, found, broken = (folder / f"{name}.yaml" for name in ("good", "found", "broken"))
    assert call("lint", good).code == 0
    assert call("lint", good).out == f"{good}: ok\n"
    done = call("lint", found, good)
    assert done.code == 1
    assert done.out.startswith(f"{found}:5:5: LG005 isolated chunk: ")
    assert done.out.endswith(f"{good}: ok\n")
    done = call("lint", found, broken)
    assert done.code == 2
    assert "LG005" in done.out
    assert "unknown parent 'b'" in done.err


def test_findings_for_programs(folder: Path, call: Call):
    good, found, broken = (folder / f"{name}.yaml" for name in ("good", "found", "broken"))
    done = call("lint", good, found, broken, "--json")
    assert done.code == 2
    data = json.loads(done.out)
    assert data["ok"] is False
    assert [(each["file"], each["ok"]) for each in data["files"]] == [
        (str(good), True),
        (str(found), False),
        (str(broken), False),
    ]
    assert data["files"][1]["findings"] == [
        {
            "code": "LG005",
            "title": "isolated chunk",
            "message": "'note' sees no chunk and no chunk sees it",
            "hint": "list it in the parents of a chunk, or remove it",
            "file": str(found),
            "line": 5,
            "column": 5,
            "where": None,
        }
    ]
    assert [problem["message"] for problem in data["files"][2]["problems"]] == ["unknown parent 'b'"]


def test_the_options_reach_the_rules(tmp_path: Path, call: Call):
    path = tmp_path / "g.yaml"
    path.write_text("legraph: 1\nchunks: [{name: a, text: AAAA}]")
    assert call("lint", path).code == 0
    assert call("lint", path, "--tokenizer", "bytes", "--model-max", "4").code == 0
    done = call("lint", path, "--tokenizer", "bytes", "--model-max", "3")
    assert (done.code, "LG104" in done.out) == (1, True)
