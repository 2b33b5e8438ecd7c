"""Graph files: the good ones are read, and all that is wrong with a bad one is said, with its place."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.errors import GraphError, KeyPath, Problem
from legraph.marks import MAX_DEPTH
from legraph.parse import ParsedFile, parse, parse_file
from legraph.schema import ChunkSpec, GenerateSpec, GraphFile
from legraph.source import SourceText
from tests.marked import Place, place_of, unmark

SYNTAXES = ("yaml", "flow", "json", "toml")
FILE_KEYS = "one of legraph, tokenizer, positions, bos, chunks, assert, lint, vars"
CHUNK_KEYS = (
    "one of name, text, file, role, group, completion, loss, parents, start, end, generate, lint, for"
)
GENERATE_KEYS = "one of max_new_tokens, stop, temperature, top_k, top_p, seed"
TEMPERATURE = "did you mean 'temperature'?"
NAME = "a letter or '_', then letters, digits, '_', '.' or '-'"
POLICIES = "'causal', 'flat' or 'local'"
NOT_EMPTY = "a string of at least one character"
OTHER_NAME = "the name of a chunk in this file"
SELF_HINT = "a chunk always sees itself, causally: remove it from the list"
NO_SUCH_PLACE = Path("no such folder")


def source(text: str, syntax: str = "yaml", folder: Path = NO_SUCH_PLACE) -> SourceText:
    return SourceText("g", text, "toml" if syntax == "toml" else "yaml", folder)


def problems_of(text: str, syntax: str = "yaml", folder: Path = NO_SUCH_PLACE) -> tuple[Problem, ...]:
    with pytest.raises(GraphError) as caught:
        parse(source(text, syntax, folder))
    return caught.value.problems


@dataclass(frozen=True)
class Said:
    message: str
    expected: str | None = None
    hint: str | None = None


def check(marked: str, *said: Said, syntax: str = "yaml", folder: Path = NO_SUCH_PLACE) -> None:
    """The file has these problems, at the marked places, in file order."""
    text, places = unmark(marked)
    problems = problems_of(text, syntax, folder)
    assert [Said(each.message, each.expected, each.hint) for each in problems] == list(said)
    assert [place_of(each) for each in problems] == places


# Single values: one table, written in each syntax.


def written(where: str, key: str, pair: str, syntax: str) -> str:
    """A file that is right but for one pair, which stands in the file, in its chunk or in `generate`."""
    pairs = {
        "file": {"legraph": "1"},
        "chunk": {"name": '"a"', "text": '"hi"'},
        "generate": {},
    }
    lines = {owner: [f"{name}: {value}" for name, value in own.items() if (owner, name) != (where, key)]
             for owner, own in pairs.items()}  # fmt: skip
    lines[where].append(pair)
    has_chunks = (where, key) != ("file", "chunks")
    form = {"yaml": as_yaml, "flow": as_flow, "json": as_json, "toml": as_toml}[syntax]
    return form(lines, has_chunks)


def as_yaml(lines: dict[str, list[str]], has_chunks: bool) -> str:
    text = "\n".join(lines["file"])
    if has_chunks:
        text += "\nchunks:\n  - " + "\n    ".join(lines["chunk"])
    if lines["generate"]:
        text += "\n    generate:\n      " + "\n      ".join(lines["generate"])
    return text


def as_flow(lines: dict[str, list[str]], has_chunks: bool) -> str:
    chunk = list(lines["chunk"])
    if lines["generate"]:
        chunk.append(f"generate: {{{', '.join(lines['generate'])}}}")
    parts = [*lines["file"], *([f"chunks: [{{{', '.join(chunk)}}}]"] if has_chunks else [])]
    return "{" + ", ".join(parts) + "}"


def as_json(lines: dict[str, list[str]], has_chunks: bool) -> str:
    def quoted(line: str) -> str:
        key, _, value = line.partition(": ")
        return f'«"{key[1:-1]}"»: {value}' if key.startswith("«") else f'"{key}": {value}'

    quoted_lines = {owner: list(map(quoted, own)) for owner, own in lines.items()}
    return (
        as_flow(quoted_lines, has_chunks).replace("chunks:", '"chunks":').replace("generate:", '"generate":')
    )


def as_toml(lines: dict[str, list[str]], has_chunks: bool) -> str:
    text = "\n".join(lines["file"])
    if has_chunks:
        text += "\n[[chunks]]\n" + "\n".join(lines["chunk"])
    if lines["generate"]:
        text += "\n[chunks.generate]\n" + "\n".join(lines["generate"])
    return text.replace(": ", " = ")


def key_path(where: str, key: str) -> KeyPath:
    return {"file": (), "chunk": ("chunks", 0), "generate": ("chunks", 0, "generate")}[where] + (key,)


def mark(value: str, syntax: str) -> str:
    """In YAML a list or mapping is shown by the bracket that opens it."""
    is_opened = value[0] in "[{" and syntax != "toml"
    return f"«{value[0]}»{value[1:]}" if is_opened else f"«{value}»"


def must_be(key: str, kind: str, value: str, hint: str | None = None) -> Said:
    return Said(f"'{key}' must be {kind}, not {value}", hint=hint)


def must_be_string(what: str, value: str, written: str) -> Said:
    return Said(f"{what} must be a string, not {value}", hint=quote(written))


def quote(value: str) -> str:
    return f'quote it: "{value}"'


BELOW_2_31 = "less than 2147483648"
LAST_TOKEN = "the last token's position, one less,"
TOO_SMALL = "'start' is under -1e30: a position cannot be negative"
VERSION = "version 1"
UPGRADE = "the file is for a newer legraph: upgrade"
WRONG_VALUES = [
    ("file", "legraph", "2", Said("unknown format version 2", VERSION, UPGRADE)),
    ("file", "legraph", "0", Said("unknown format version 0", VERSION)),
    ("file", "legraph", "-1", Said("unknown format version -1", VERSION)),
    *[
        ("file", "legraph", value, Said(f"the format version must be a whole number, not {words}", VERSION))
        for value, words in [
            ("true", "the boolean true"),
            ("1.0", "the number 1.0"),
            ('"1"', "the string '1'"),
            ("[1]", "a list"),
            ("{}", "a mapping"),
        ]
    ],
    ("file", "tokenizer", "4", must_be("tokenizer", "a string", "the number 4", quote("4"))),
    ("file", "tokenizer", "true", must_be("tokenizer", "a string", "the boolean true", quote("true"))),
    ("file", "tokenizer", '["a"]', must_be("tokenizer", "a string", "a list")),
    ("file", "tokenizer", '""', Said("'tokenizer' is empty", NOT_EMPTY)),
    ("file", "positions", '"casual"', Said("'positions' is 'casual'", POLICIES, "did you mean 'causal'?")),
    ("file", "positions", '"LOCAL"', Said("'positions' is 'LOCAL'", POLICIES)),
    ("file", "positions", '"other"', Said("'positions' is 'other'", POLICIES)),
    ("file", "positions", "1", Said("'positions' is the number 1", POLICIES)),
    ("file", "positions", "true", Said("'positions' is the boolean true", POLICIES)),
    ("file", "positions", "[]", Said("'positions' is a list", POLICIES)),
    ("file", "positions", f'"{"x" * 99}"', Said(f"'positions' is '{'x' * 57}...'", POLICIES)),
    ("file", "bos", "1", must_be("bos", "true or false", "the number 1")),
    ("file", "bos", '"yes"', must_be("bos", "true or false", "the string 'yes'")),
    ("file", "chunks", "[]", Said("the graph has no chunks", "at least one chunk")),
    ("file", "chunks", "{}", must_be("chunks", "a list", "a mapping")),
    ("file", "chunks", '"a"', must_be("chunks", "a list", "the string 'a'")),
    ("chunk", "name", "1", must_be("name", "a string", "the number 1", quote("1"))),
    ("chunk", "name", "1.50", must_be("name", "a string", "the number 1.5", quote("1.50"))),
    ("chunk", "name", "false", must_be("name", "a string", "the boolean false", quote("false"))),
    ("chunk", "name", '["a"]', must_be("name", "a string", "a list")),
    ("chunk", "name", '""', Said("'' cannot be a chunk's name", NAME)),
    ("chunk", "name", '"1a"', Said("'1a' cannot be a chunk's name", NAME)),
    ("chunk", "name", '"a b"', Said("'a b' cannot be a chunk's name", NAME)),
    ("chunk", "name", '"é"', Said("'é' cannot be a chunk's name", NAME)),
    ("chunk", "name", r'"a\n"', Said(r"'a\n' cannot be a chunk's name", NAME)),
    ("chunk", "name", r'"\u001b[2J"', Said(r"'\x1b[2J' cannot be a chunk's name", NAME)),
    ("chunk", "name", f'"{"a" * 257}"', Said("'name' is 257 characters long", "at most 256")),
    ("chunk", "text", "4", must_be("text", "a string", "the number 4", quote("4"))),
    ("chunk", "text", "true", must_be("text", "a string", "the boolean true", quote("true"))),
    ("chunk", "text", '["a"]', must_be("text", "a string", "a list")),
    ("chunk", "text", "{}", must_be("text", "a string", "a mapping")),
    ("chunk", "completion", "4", must_be("completion", "a string", "the number 4", quote("4"))),
    ("chunk", "completion", '""', Said("'completion' is empty", NOT_EMPTY)),
    ("chunk", "loss", "1", must_be("loss", "true or false", "the number 1")),
    ("chunk", "loss", '"yes"', must_be("loss", "true or false", "the string 'yes'")),
    ("chunk", "parents", '"a"', must_be("parents", "a list", "the string 'a'")),
    ("chunk", "parents", "true", must_be("parents", "a list", "the boolean true")),
    ("chunk", "start", "-1", Said("'start' is -1: a position cannot be negative", "0 or more")),
    ("chunk", "end", "-5", Said(f"'end' is -5: {LAST_TOKEN} cannot be negative", "1 or more")),
    ("chunk", "end", "0", Said(f"'end' is 0: {LAST_TOKEN} cannot be negative", "1 or more")),
    ("chunk", "start", "1.0", must_be("start", "a whole number", "the number 1.0")),
    ("chunk", "start", "true", must_be("start", "a whole number", "the boolean true")),
    ("chunk", "start", '"4"', must_be("start", "a whole number", "the string '4'")),
    ("chunk", "start", "2147483648", Said("'start' is 2147483648", BELOW_2_31)),
    ("chunk", "end", "9" * 31, Said("'end' is over 1e30", BELOW_2_31)),
    ("chunk", "start", "-" + "9" * 31, Said(TOO_SMALL, "0 or more")),
    ("chunk", "generate", "true", must_be("generate", "a mapping", "the boolean true")),
    ("chunk", "generate", "[]", must_be("generate", "a mapping", "a list")),
    ("generate", "max_new_tokens", "0", Said("'max_new_tokens' is 0", "1 or more")),
    ("generate", "max_new_tokens", str(2**31), Said("'max_new_tokens' is 2147483648", BELOW_2_31)),
    ("generate", "max_new_tokens", "1.5", must_be("max_new_tokens", "a whole number", "the number 1.5")),
    ("generate", "max_new_tokens", "true", must_be("max_new_tokens", "a whole number", "the boolean true")),
    ("generate", "stop", '"x"', must_be("stop", "a list", "the string 'x'")),
    ("generate", "temperature", "-0.5", Said("'temperature' is -0.5", "0.0 or more")),
    ("generate", "temperature", "true", must_be("temperature", "a number", "the boolean true")),
    ("generate", "temperature", '"0.5"', must_be("temperature", "a number", "the string '0.5'")),
    ("generate", "top_k", "0", Said("'top_k' is 0", "1 or more")),
    ("generate", "top_k", "2.5", must_be("top_k", "a whole number", "the number 2.5")),
    ("generate", "top_p", "0", Said("'top_p' is 0", "more than 0.0")),
    ("generate", "top_p", "1.5", Said("'top_p' is 1.5", "1.0 or less")),
    ("generate", "seed", "-1", Said("'seed' is -1", "0 or more")),
    ("generate", "seed", str(2**63), Said(f"'seed' is {2**63}", f"less than {2**63}")),
]  # fmt: skip


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "where, key, value, said", WRONG_VALUES, ids=[f"{key} {value[:20]}" for _, key, value, _ in WRONG_VALUES]
)
def test_a_wrong_value_is_found_and_explained(where: str, key: str, value: str, said: Said, syntax: str):
    marked = written(where, key, f"{key}: {mark(value, syntax)}", syntax)
    check(marked, said, syntax=syntax)
    (problem,) = problems_of(unmark(marked)[0], syntax)
    assert problem.source is not None and problem.source.key_path == key_path(where, key)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "key, value, said",
    [
        ("parents", '["b", «1»]', must_be_string("entry 2 of 'parents'", "the number 1", "1")),
        ("parents", "[«true»]", must_be_string("entry 1 of 'parents'", "the boolean true", "true")),
        ("stop", '["x", «""»]', Said("entry 2 of 'stop' is empty", NOT_EMPTY)),
        ("stop", "[«false»]", must_be_string("entry 1 of 'stop'", "the boolean false", "false")),
    ],
)
def test_a_wrong_entry_of_a_list_is_found(key: str, value: str, said: Said, syntax: str):
    where = "chunk" if key == "parents" else "generate"
    pair = f"{key}: {value}"
    if key == "parents" and '"b"' in value:
        second = {
            "yaml": '\n  - {name: b, text: ""}',
            "toml": '\n[[chunks]]\nname = "b"\ntext = ""',
            "flow": ', {name: b, text: ""}]}',
            "json": ', {"name": "b", "text": ""}]}',
        }[syntax]
        marked = written(where, key, pair, syntax)
        marked = marked.removesuffix("]}") + second
    else:
        marked = written(where, key, pair, syntax)
    check(marked, said, syntax=syntax)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "where, key, said",
    [
        ("file", "postions", Said("unknown key 'postions'", FILE_KEYS, "did you mean 'positions'?")),
        ("file", "name", Said("unknown key 'name'", FILE_KEYS)),
        ("chunk", "prents", Said("unknown key 'prents'", CHUNK_KEYS, "did you mean 'parents'?")),
        ("chunk", "Text", Said("unknown key 'Text'", CHUNK_KEYS, "did you mean 'text'?")),
        ("chunk", "bos", Said("unknown key 'bos'", CHUNK_KEYS)),
        ("generate", "temprature", Said("unknown key 'temprature'", GENERATE_KEYS, TEMPERATURE)),
        ("generate", "zzz", Said("unknown key 'zzz'", GENERATE_KEYS)),
    ],
)
def test_an_unknown_key_is_found_and_a_close_one_suggested(where: str, key: str, said: Said, syntax: str):
    marked = written(where, key, f"«{key}»: 1", syntax)
    check(marked, said, syntax=syntax)
    (problem,) = problems_of(unmark(marked)[0], syntax)
    assert problem.source is not None and problem.source.key_path == key_path(where, key)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    "where, key, value",
    [
        ("chunk", "name", '"' + "a" * 256 + '"'),
        ("chunk", "name", '"_a.B-9"'),
        ("chunk", "text", '""'),
        ("chunk", "completion", '"x"'),
        ("chunk", "loss", "true"),
        ("chunk", "start", "0"),
        ("chunk", "start", "2147483647"),
        ("chunk", "end", "1"),
        ("chunk", "generate", "{}"),
        ("generate", "max_new_tokens", "1"),
        ("generate", "temperature", "0"),
        ("generate", "temperature", "0.0"),
        ("generate", "top_k", "1"),
        ("generate", "top_p", "1"),
        ("generate", "seed", str(2**63 - 1)),
        ("generate", "stop", '["\\n"]'),
        ("file", "bos", "false"),
        ("file", "positions", '"flat"'),
    ],
)
def test_the_last_right_value_is_right(where: str, key: str, value: str, syntax: str):
    spec = parse(source(written(where, key, f"{key}: {value}", syntax), syntax)).spec
    owner: Any = {"file": spec, "chunk": spec.chunks[0], "generate": spec.chunks[0].generate}[where]
    meant = json.loads(value)
    meant = {"{}": GenerateSpec(), '["\\n"]': ("\n",)}.get(value, meant)
    assert getattr(owner, key) == meant


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_defaults_are_those_of_the_format(syntax: str):
    text = written("file", "bos", "bos: false", syntax)
    assert parse(source(text, syntax)).spec == GraphFile(legraph=1, chunks=(ChunkSpec(name="a", text="hi"),))
    chunk = ChunkSpec(name="a", text="hi")
    assert (chunk.parents, chunk.start, chunk.end, chunk.generate) == ((), None, None, None)
    assert (chunk.completion, chunk.loss) == (None, False)
    assert GenerateSpec().max_new_tokens == 32


def test_a_number_too_long_to_be_written_out_is_still_refused_politely():
    digits = "f" * 10_000
    said = Said("'positions' is the number over 1e30", POLICIES)
    check(written("file", "positions", f"positions: «0x{digits}»", "toml"), said, syntax="toml")
    check(
        written("chunk", "end", f"end: «0x{digits}»", "toml"),
        Said("'end' is over 1e30", BELOW_2_31),
        syntax="toml",
    )


# What YAML alone can say.


@pytest.mark.parametrize(
    "value, words",
    [("no", "the boolean false"), ("on", "the boolean true"), ("~", "null"), ("2024-01-02", "a date")],
)
def test_a_name_that_yaml_reads_as_something_else_must_be_quoted(value: str, words: str):
    hint = quote(value) if value != "~" else None
    check(written("chunk", "name", f"name: «{value}»", "yaml"), must_be("name", "a string", words, hint))


@pytest.mark.parametrize("value", ["no", "on", "null"])
def test_a_name_that_is_quoted_is_a_string(value: str):
    text = written("chunk", "name", f"name: '{value}'", "yaml")
    assert parse(source(text)).spec.chunks[0].name == value


@pytest.mark.parametrize("pair", ["name: «»", "name:« »# c"])
def test_a_value_that_is_left_out_is_null_and_no_hint_is_made_of_what_follows(pair: str):
    text, _ = unmark(written("chunk", "name", pair, "yaml"))
    (problem,) = problems_of(text)
    assert (problem.message, problem.hint) == ("'name' must be a string, not null", None)
    assert problem.source is not None and problem.source.line == 4


def test_no_hint_is_made_of_an_alias():
    check(
        "legraph: &n 1\nchunks: [{name: «*n», text: a}]",
        must_be("name", "a string", "the number 1"),
    )


@pytest.mark.parametrize("number", ["1e-5", "1E5", "0.5e3"])
def test_a_number_that_yaml_does_not_see_as_one_gets_a_hint(number: str):
    check(
        written("generate", "temperature", f"temperature: «{number}»", "yaml"),
        must_be(
            "temperature",
            "a number",
            f"the string '{number}'",
            "YAML wants a point before an exponent, and a sign in it: 1.0e-5",
        ),
    )
    for syntax in ("json", "toml"):
        text = written("generate", "temperature", f"temperature: {number}", syntax)
        (chunk,) = parse(source(text, syntax)).spec.chunks
        assert chunk.generate is not None and chunk.generate.temperature == float(number)


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_temperature_is_a_finite_number(value: str):
    text, (place,) = unmark(written("generate", "temperature", f"temperature: «{value}»", "yaml"))
    (problem,) = problems_of(text)
    assert problem.message == f"'temperature' is {float(value.replace('.', ''))}"
    assert problem.expected == "a finite number"
    assert place_of(problem) == place


def test_null_is_as_good_as_nothing_for_what_is_optional():
    text = "legraph: 1\ntokenizer: ~\nchunks: [{name: a, text: b, file: , start: 1, end: ~, generate: }]"
    problems = problems_of(text)
    assert [each.message for each in problems] == ["chunk 'a' has both 'text' and 'file'"]
    assert parse(source(text.replace(" file: ,", ""))).spec.chunks[0].end is None


# What is wrong between values, and between chunks.


@dataclass(frozen=True)
class Twins:
    """The same mistake in both syntaxes."""

    yaml: str
    toml: str
    said: tuple[Said, ...]


def toml_chunks(*rows: str) -> str:
    return "legraph = 1\n" + "".join(f"[[chunks]]\n{row}\n" for row in rows)


def yaml_chunks(*rows: str) -> str:
    return "legraph: 1\nchunks:\n" + "".join(f"- {row}\n" for row in rows)


CYCLE = "a graph without cycles"
TWINS = {
    "a repeated key": Twins(
        yaml_chunks("name: a\n  text: hi\n  «text»: ho"),
        toml_chunks("name = 'a'\ntext = 'hi'\n«text» = 'ho'"),
        (Said("key 'text' is repeated (first on line 4)", "each key once"),),
    ),
    "a repeated name": Twins(
        yaml_chunks("{name: a, text: x}", "{name: b, text: x}", "{name: «a», text: x}"),
        toml_chunks("name = 'a'\ntext = ''", "name = 'b'\ntext = ''", "name = «'a'»\ntext = ''"),
        (Said("chunk name 'a' is taken by chunk number 1", "a unique name"),),
    ),
    "unknown parents": Twins(
        yaml_chunks("{name: doc1, text: x}", "{name: b, text: x, parents: [doc1, «dco1», «zzz»]}"),
        toml_chunks(
            "name = 'doc1'\ntext = ''",
            "name = 'b'\ntext = ''\nparents = [\n  'doc1', # ]\n  «'dco1'», «'zzz'»,\n]",
        ),
        (
            Said("unknown parent 'dco1'", OTHER_NAME, "did you mean 'doc1'?"),
            Said("unknown parent 'zzz'", OTHER_NAME),
        ),
    ),
    "its own parent": Twins(
        yaml_chunks("name: a\n  text: x\n  parents:\n  - «a»"),
        toml_chunks("name = 'a'\ntext = ''\nparents = [«'a'»]"),
        (Said("chunk 'a' is its own parent", None, SELF_HINT),),
    ),
    "a parent twice": Twins(
        yaml_chunks("{name: a, text: x}", "{name: b, text: x, parents: [a, «a»]}"),
        toml_chunks("name = 'a'\ntext = ''", "name = 'b'\ntext = ''\nparents = ['a', «'a'»]"),
        (Said("parent 'a' is listed twice", "each parent once"),),
    ),
    "two cycles": Twins(
        yaml_chunks(
            "{name: a, text: x, parents: [«b»]}",
            "{name: b, text: x, parents: [a]}",
            "{name: c, text: x, parents: [a, «e»]}",
            "{name: d, text: x, parents: [c]}",
            "{name: e, text: x, parents: [d]}",
        ),
        toml_chunks(
            "name = 'a'\ntext = ''\nparents = [«'b'»]",
            "name = 'b'\ntext = ''\nparents = ['a']",
            "name = 'c'\ntext = ''\nparents = ['a', «'e'»]",
            "name = 'd'\ntext = ''\nparents = ['c']",
            "name = 'e'\ntext = ''\nparents = ['d']",
        ),
        (
            Said("the parents form a cycle: a -> b -> a", CYCLE),
            Said("the parents form a cycle: c -> d -> e -> c", CYCLE),
        ),
    ),
    "both text and file": Twins(
        yaml_chunks("name: a\n  text: x\n  «file»: y.txt"),
        toml_chunks("name = 'a'\n«file» = 'y.txt'\ntext = ''"),
        (Said("chunk 'a' has both 'text' and 'file'", "one of them"),),
    ),
    "start with end": Twins(
        yaml_chunks("name: a\n  text: x\n  start: 3\n  «end»: 4"),
        toml_chunks("name = 'a'\ntext = ''\n«end» = 4\nstart = 3"),
        (Said("chunk 'a' has both 'start' and 'end'", "one of them: the other follows from the length"),),
    ),
    "the name of the BOS chunk": Twins(
        "bos: true\n" + yaml_chunks("{name: a, text: x, parents: [bos]}", "{name: «bos», text: x}"),
        "bos = true\n" + toml_chunks("name = 'a'\ntext = ''\nparents = ['bos']", "name = «'bos'»\ntext = ''"),
        (
            Said(
                "chunk name 'bos' is taken by the chunk that 'bos: true' adds",
                "another name, or no 'bos: true'",
            ),
        ),
    ),
    "a missing file": Twins(
        yaml_chunks("{name: a, file: «no/such.txt»}"),
        toml_chunks("name = 'a'\nfile = «'no/such.txt'»"),
        (Said("no/such.txt: no such file"),),
    ),
    "a file with NUL in its name": Twins(
        yaml_chunks(r'{name: a, file: «"a\0b"»}'),
        toml_chunks('name = "a"\nfile = «"a\\u0000b"»'),
        (Said(r"'a\x00b': cannot be a file's name"),),
    ),
    "a file of control characters": Twins(
        yaml_chunks(r'{name: a, file: «"\e[2J"»}'),
        toml_chunks('name = "a"\nfile = «"\\u001b[2J"»'),
        (Said(r"'\x1b[2J': no such file"),),
    ),
    "an empty file name": Twins(
        yaml_chunks("{name: a, file: «''»}"),
        toml_chunks("name = 'a'\nfile = «''»"),
        (Said("'file' is empty", NOT_EMPTY),),
    ),
    "inline chunks": Twins(
        "legraph: 1\nchunks: [{name: a, text: x}, {name: b, «txt»: y, text: z}, {name: c, text: «5»}]",
        "legraph = 1\nchunks = [{name = 'a', text = 'x'}, {name = 'b', «txt» = 'y', text = 'z'},\n"
        "  {name = 'c', text = «5»}]",
        (
            Said("unknown key 'txt'", CHUNK_KEYS, "did you mean 'text'?"),
            must_be("text", "a string", "the number 5", quote("5")),
        ),
    ),
    "a value behind a long text": Twins(
        yaml_chunks("name: a\n  text: |\n    start: 1\n\n    - end\n  start: «x»"),
        toml_chunks("name = 'a'\ntext = '''\nstart = 1\n\n[[chunks]]\n'''\nstart = «'x'»"),
        (must_be("start", "a whole number", "the string 'x'"),),
    ),
}


@pytest.mark.parametrize("syntax", ["yaml", "toml"])
@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS.keys())
def test_what_is_wrong_between_chunks_is_found_in_both_syntaxes(twins: Twins, syntax: str):
    check(twins.yaml if syntax == "yaml" else twins.toml, *twins.said, syntax=syntax)


def test_dotted_keys_of_toml_are_followed():
    check(
        toml_chunks(
            "name = 'a'\ntext = ''\ngenerate.max_new_tokens = «0»\n«generate.tmperature» = 1",
            "name = 'b'\ntext = ''\n[chunks.generate]\nseed = «-1»\n[«chunks.generate.x»]",
        ),
        Said("'max_new_tokens' is 0", "1 or more"),
        Said("unknown key 'tmperature'", GENERATE_KEYS, TEMPERATURE),
        Said("'seed' is -1", "0 or more"),
        Said("unknown key 'x'", GENERATE_KEYS),
        syntax="toml",
    )


@pytest.mark.parametrize(
    "marked, syntax",
    [(yaml_chunks("«n»ame: a"), "yaml"), ("legraph = 1\n«[[chunks]]»\nname = 'a'", "toml")],
)
def test_a_chunk_with_neither_text_nor_file_is_found(marked: str, syntax: str):
    check(marked, Said("chunk 'a' has neither 'text' nor 'file'", "one of them"), syntax=syntax)


def test_a_chunk_without_anything_says_all_it_lacks():
    text, (place,) = unmark(yaml_chunks("«{»}"))
    problems = problems_of(text)
    assert [each.message for each in problems] == [
        "the chunk has no 'name'",
        "the chunk has neither 'text' nor 'file'",
    ]
    assert [place_of(each) for each in problems] == [place, place]


@pytest.mark.parametrize("entry, words", [("a", "the string 'a'"), ("[]", "a list"), ("~", "null")])
def test_a_chunk_must_be_a_mapping(entry: str, words: str):
    check(
        yaml_chunks("{name: a, text: x}", f"«{entry[0]}»{entry[1:]}"),
        Said(f"entry 2 of 'chunks' must be a mapping, not {words}"),
    )


def test_what_is_right_is_not_said_to_be_missing_because_of_what_is_wrong():
    """A chunk with a wrong key still has its name, so others may have it as a parent."""
    check(
        yaml_chunks(
            "{name: a, text: x, «color»: red}", "{name: b, text: x, parents: [a]}", "{name: «1», text: x}"
        ),
        Said("unknown key 'color'", CHUNK_KEYS),
        must_be("name", "a string", "the number 1", quote("1")),
    )


@pytest.mark.parametrize(
    "syntax, text, first_line",
    [
        ("yaml", "# a comment\n\nchunks: [{name: a, text: x}]", "legraph: 1"),
        ("toml", "[[chunks]]\nname = 'a'\ntext = 'x'", "legraph = 1"),
    ],
)
def test_a_file_without_a_version_is_told_how_it_starts(syntax: str, text: str, first_line: str):
    (problem,) = problems_of(text, syntax)
    assert problem.message == "the file has no 'legraph'"
    assert problem.hint == f"the first line of a graph file is '{first_line}'"


@pytest.mark.parametrize("syntax, text", [("yaml", "legraph: 1"), ("toml", "legraph = 1")])
def test_a_file_without_chunks_is_refused(syntax: str, text: str):
    text, (place,) = unmark(f"«{text[0]}»{text[1:]}")
    (problem,) = problems_of(text, syntax)
    assert problem.message == "the file has no 'chunks'"
    assert place_of(problem) == place


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("~", "the file is empty"),
        ("- a\n- b\n", "a graph file must be a mapping, not a list"),
        ("[]", "a graph file must be a mapping, not a list"),
        ("'hello'", "a graph file must be a mapping, not the string 'hello'"),
        ("42", "a graph file must be a mapping, not the number 42"),
        ("x" * 100, f"a graph file must be a mapping, not the string '{'x' * 57}...'"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(text: str, message: str):
    (problem,) = problems_of(text)
    assert (problem.message, problem.expected) == (message, "'legraph: 1' and 'chunks:'")
    assert problem.source is not None and (problem.source.line, problem.source.column) == (1, 1)


def test_an_empty_toml_file_lacks_everything():
    assert [each.message for each in problems_of("", "toml")] == [
        "the file has no 'legraph'",
        "the file has no 'chunks'",
    ]


def test_a_key_that_is_not_a_string_is_said_once():
    check(
        "legraph: 1\nchunks:\n- name: a\n  text: b\n  «no»: c\n  «1»: d",
        Said("a key must be a string (no is the boolean false in YAML)", "a quoted key"),
        Said("a key must be a string (1 is the number 1 in YAML)", "a quoted key"),
    )


# Anchors and merge keys.


def test_anchors_and_merge_keys_save_writing():
    text = """
legraph: 1
chunks:
- &doc {name: doc1, text: x, generate: &g {max_new_tokens: 5}}
- {<<: *doc, name: doc2}
- name: q
  text: y
  parents: &all [doc1, doc2]
  generate: {<<: *g, seed: 3}
- {name: r, text: z, parents: *all}
"""
    spec = parse(source(text)).spec
    assert [chunk.text for chunk in spec.chunks] == ["x", "x", "y", "z"]
    assert spec.chunks[1].generate == GenerateSpec(max_new_tokens=5)
    assert spec.chunks[2].generate == GenerateSpec(max_new_tokens=5, seed=3)
    assert spec.chunks[3].parents == ("doc1", "doc2")


def test_what_came_by_an_alias_or_a_merge_is_wrong_where_it_is_used_too():
    check(
        yaml_chunks(
            "{name: a, text: x, parents: &p [«zzz»]}",
            "{name: b, text: x, parents: «*p»}",
            "&c {name: c, text: x, «color»: red}",
            "«{»<<: *c, name: d}",
        ),
        Said("unknown parent 'zzz'", OTHER_NAME),
        Said("unknown parent 'zzz'", OTHER_NAME),
        Said("unknown key 'color'", CHUNK_KEYS),
        Said("unknown key 'color'", CHUNK_KEYS),
    )


# Files.


def test_texts_are_read_from_files_beside_the_graph_file(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "one.txt").write_bytes("\ufeffone é\r\n".encode())
    (tmp_path / "two.txt").write_text("two")
    graph = tmp_path / "g.yaml"
    graph.write_text(
        f"legraph: 1\nchunks:\n- {{name: a, file: docs/one.txt}}\n- {{name: b, file: {tmp_path}/two.txt}}\n"
        "- {name: c, text: three}\n"
    )
    parsed = parse_file(graph)
    assert parsed.texts == ("one é\r\n", "two", "three")
    assert isinstance(parsed, ParsedFile) and parsed.source.folder == tmp_path


def test_a_text_file_that_cannot_be_a_text_is_found_where_it_is_named(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "binary").write_bytes(b"\0")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(200 * 2**20)
    check(
        yaml_chunks(
            "{name: a, file: «latin.txt»}",
            "{name: b, file: «binary»}",
            "{name: c, file: «.»}",
            "{name: d, file: «large»}",
            "{name: e, file: «latin.txt/x»}",
        ),
        Said(
            "latin.txt: is not UTF-8: byte 0xe9 at offset 3 (line 1)",
            "UTF-8 text",
            "convert it, for example with: iconv -f LATIN1 -t UTF-8",
        ),
        Said("binary: is a binary file", "UTF-8 text"),
        Said(".: is a folder, not a file"),
        Said(
            "large: larger than 64 MiB",
            "a smaller file: long texts can stand in files of their own, named by 'file'",
        ),
        Said("latin.txt/x: cannot be read: Not a directory"),
        folder=tmp_path,
    )


@pytest.mark.parametrize("name", ["g.yaml", "g.json", "-"])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_graph_comes_from_a_file_or_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, syntax: str
):
    path = tmp_path / ("g.toml" if syntax == "toml" else "g.yaml" if name == "-" else name)
    path.write_text(written("chunk", "start", "start: 3", syntax))
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        parsed = parse_file("-" if name == "-" else path)
    assert parsed.spec.chunks == (ChunkSpec(name="a", text="hi", start=3),)
    assert parsed.source.name == ("<stdin>" if name == "-" else str(path))


def test_a_problem_on_standard_input_has_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = tmp_path / "input"
    path.write_text("legraph: 2\nchunks: [{name: a, text: x}]")
    with path.open() as file, pytest.raises(GraphError) as caught:
        monkeypatch.setattr(sys, "stdin", file)
        parse_file("-")
    (problem,) = caught.value.problems
    assert str(problem.source) == "<stdin>:1:10"


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path, syntax: str):
    text = written("chunk", "start", "start: 3", syntax)
    path = tmp_path / ("g.toml" if syntax == "toml" else "g.yaml")
    path.write_text(text)
    plain = parse_file(path)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert parse_file(path).spec == plain.spec


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_places_are_the_same_with_any_line_ends(syntax: str):
    text, (place,) = unmark(written("chunk", "start", "start: «-1»", syntax))
    for line_break in ("\n", "\r\n"):
        (problem,) = problems_of(text.replace("\n", line_break), syntax)
        assert place_of(problem) == place


# The whole report.


def test_all_problems_of_a_file_are_reported_in_the_order_of_the_file():
    check(
        """legraph: «3»
positions: «flatt»
chunks:
- name: a
  text: x
  «parnts»: []
- name: b
  text: x
  «file»: y.txt
  start: «-3»
  «start»: 4
- name: «a»
  file: «nothing.txt»
  parents: [«zzz», b, «b», «a»]
- name: c
  text: x
  parents: [«d»]
  generate: {max_new_tokens: «0», «seeds»: 1}
- name: d
  text: x
  parents: [c]
«tokeniser»: t
""",
        Said("unknown format version 3", VERSION, UPGRADE),
        Said("'positions' is 'flatt'", POLICIES, "did you mean 'flat'?"),
        Said("unknown key 'parnts'", CHUNK_KEYS, "did you mean 'parents'?"),
        Said("chunk 'b' has both 'text' and 'file'", "one of them"),
        Said("'start' is -3: a position cannot be negative", "0 or more"),
        Said("key 'start' is repeated (first on line 10)", "each key once"),
        Said("chunk name 'a' is taken by chunk number 1", "a unique name"),
        Said("nothing.txt: no such file"),
        Said("unknown parent 'zzz'", OTHER_NAME),
        Said("parent 'b' is listed twice", "each parent once"),
        Said("chunk 'a' is its own parent", None, SELF_HINT),
        Said("the parents form a cycle: c -> d -> c", CYCLE),
        Said("'max_new_tokens' is 0", "1 or more"),
        Said("unknown key 'seeds'", GENERATE_KEYS, "did you mean 'seed'?"),
        Said("unknown key 'tokeniser'", FILE_KEYS, "did you mean 'tokenizer'?"),
    )


def test_a_report_draws_each_problem_with_its_line():
    text = "legraph: 1\nchunks:\n  - name: a\n    txt: x\n"
    with pytest.raises(GraphError) as caught:
        parse(source(text))
    assert str(caught.value) == (
        "g:3:5: chunk 'a' has neither 'text' nor 'file'\n"
        "      3 |   - name: a\n"
        "        |     ^\n"
        "  expected: one of them\n"
        "g:4:5: unknown key 'txt'\n"
        "      4 |     txt: x\n"
        "        |     ^^^\n"
        f"  expected: {CHUNK_KEYS}\n"
        "  hint: did you mean 'text'?"
    )


ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
# Control characters, direction marks, line separators: escaped in the file, so that every reader takes them.
RAW = st.text("\x1b\x00\x07\x9b\u202e\u2028\x85\n\r\tab", min_size=1, max_size=8)


@given(
    st.fixed_dictionaries(
        {
            "name": RAW,
            "file": RAW,
            "parents": st.lists(RAW | st.just("b"), max_size=3),
            "generate": st.dictionaries(RAW, RAW, max_size=2),
        },
        optional={"start": RAW, "text": st.lists(RAW)},
    ),
    st.fixed_dictionaries({}, optional={"positions": RAW, "tokenizer": st.lists(RAW), "legraph": RAW}),
)
def test_control_characters_of_a_file_never_reach_the_report(chunk: dict[str, Any], top: dict[str, Any]):
    second = {"name": "b", "text": "", "parents": [chunk["name"]]}
    text = json.dumps({"legraph": 1, "chunks": [chunk, second, chunk]} | top)
    with pytest.raises(GraphError) as caught:
        parse(source(text))
    assert [char for char in str(caught.value) if not char.isprintable() and char != "\n"] == []


VALID = {
    syntax: form(
        {
            "file": ["legraph: 1", 'positions: "flat"', "bos: true", 'tokenizer: "x"'],
            "chunk": ['name: "a"', 'text: "hi \\n é"', 'parents: ["bos"]', "start: 3"],
            "generate": ["max_new_tokens: 3", 'stop: ["\\n", "x"]', "temperature: 0.5", "seed: 1"],
        },
        True,
    )
    for syntax, form in [("yaml", as_yaml), ("flow", as_flow), ("json", as_json), ("toml", as_toml)]
}
NOISE = st.sampled_from(
    [*"[]{}:,#&*!|>'\"%@`=-?~. \t\n\r\x07\x85\u2028\ufeff", "\r\n", "'''", "[[", "1e5", "&a *a"]
)


@settings(max_examples=400)
@given(
    st.sampled_from(SYNTAXES),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5), NOISE | ANY_TEXT), min_size=1, max_size=4),
)
def test_a_damaged_file_is_read_or_refused_with_places(syntax: str, damage: list[tuple[float, int, str]]):
    text = VALID[syntax]
    for where, num_cut, noise in damage:
        at = int(where * len(text))
        text = text[:at] + noise + text[at + num_cut :]
    try:
        parse(source(text, syntax))
    except GraphError as error:
        # As YAML counts them; the other syntaxes have fewer.
        num_lines = len(re.split("\r\n|[\n\r\x85\u2028\u2029]", text))
        for problem in error.problems:
            assert problem.source is not None and problem.source.line is not None
            assert 1 <= problem.source.line <= num_lines
            assert problem.source.column is not None and problem.source.line_text is not None
            assert 1 <= problem.source.column <= len(problem.source.line_text) + 1
        assert str(error)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_file_that_gets_damaged_is_valid(syntax: str):
    assert parse(source(VALID[syntax], syntax)).spec.chunks[0].text == "hi \n é"


# Size.


@pytest.mark.parametrize(
    "text, syntax", [("[" * 100_000, "yaml"), ("{a: " * 100_000, "yaml"), ("a = " + "[" * 100_000, "toml")]
)
def test_endless_nesting_is_refused(text: str, syntax: str):
    (problem,) = problems_of(text, syntax)
    assert "nest" in problem.message
    assert problem.source is not None and problem.source.line == 1


@pytest.mark.parametrize("syntax, equals", [("yaml", ": "), ("toml", " = ")])
def test_nesting_that_may_be_read_is_still_no_graph(syntax: str, equals: str):
    depth = MAX_DEPTH - 2
    text = f"legraph{equals}1\nx{equals}{'[' * depth}{']' * depth}"
    messages = [each.message for each in problems_of(text, syntax)]
    assert messages == ["the file has no 'chunks'", "unknown key 'x'"]


@pytest.mark.parametrize("syntax", ["yaml", "toml"])
def test_a_graph_of_fifty_thousand_chunks_is_read(syntax: str):
    num_chunks = 50_000
    yaml_rows = (f"{{name: c{i + 1}, text: x, parents: [c{i}]}}" for i in range(num_chunks - 1))
    toml_rows = (f"name='c{i + 1}'\ntext='x'\nparents=['c{i}']" for i in range(num_chunks - 1))
    text = {
        "yaml": yaml_chunks("{name: c0, text: x}", *yaml_rows),
        "toml": toml_chunks("name='c0'\ntext='x'", *toml_rows),
    }[syntax]
    parsed = parse(source(text, syntax))
    assert len(parsed.texts) == len(parsed.spec.chunks) == num_chunks
    assert parsed.spec.chunks[-1] == ChunkSpec(name="c49999", text="x", parents=("c49998",))


@pytest.mark.parametrize("syntax", ["yaml", "toml"])
def test_ten_thousand_problems_are_reported_each_at_its_place(syntax: str):
    """Marks and lines are looked up, not searched for: squared, this would take minutes."""
    num_chunks = 10_000
    rows = [f"name: c{i}\n  text: x\n  prents: x" for i in range(num_chunks)]
    text = yaml_chunks(*rows)
    if syntax == "toml":
        text = toml_chunks(*(f"name='c{i}'\ntext='x'\nprents='x'" for i in range(num_chunks)))
    problems = problems_of(text, syntax)
    assert [each.source.line for each in problems if each.source] == [
        3 * i + 5 if syntax == "yaml" else 4 * i + 5 for i in range(num_chunks)
    ]


def test_places_of_marked_texts_are_those_of_an_editor():
    """The helper itself: columns count from 1, marks are not characters."""
    text, places = unmark("a\nb «c» «d»")
    assert text == "a\nb c d"
    assert places == [Place(2, 3, "c", "b c d"), Place(2, 5, "d", "b c d")]
