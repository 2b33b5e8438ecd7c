"""Odd and broken graph files: each is a graph, or an error that can be drawn. Nothing else, and in good time.

Three kinds: files made from the whole language of the format, in which any part may be wrong; valid files
with characters and lines taken out, doubled or replaced; and lines and bytes of any kind.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from legraph.compiler import compile_graph
from legraph.errors import LegraphError
from legraph.flow import assertion_problems
from legraph.graph import build_graph
from legraph.parse import parse_file
from legraph.schema import json_schema
from legraph.source import SourceText
from legraph.tokens import bytes_tokenizer
from tests.command_line import Call

EXAMPLES = Path(__file__).parent.parent / "examples"
# A file of a few hundred bytes takes milliseconds.
MOST_SECONDS = 10

# What files can name: texts, rows, files to include. All of them stand in one folder.
FILES = {
    "a.txt": b"The fox says ring.",
    "empty.txt": b"",
    "latin.txt": b"caf\xe9",
    "docs/one.txt": b"one",
    "docs/two.txt": b"two",
    "rows.jsonl": b'{"title": "fox", "n": 1, "role": "user"}\n\n'
    b'{"title": "owl", "n": null, "role": "system"}\n',
    "rows.csv": b"title,n\nfox,1\nowl,2\n",
    "rows.json": b'["red", 2, {"title": "fox"}]',
    "bad.jsonl": b'{"title": \n',
    "inner.yaml": b"legraph: 1\nvars: {t: x}\nchunks:\n  - {name: in1, text: '${t}', group: ins}\n"
    b"  - {name: in2, text: y, parents: ['@ins']}\nassert: [{sees: [in2, in1]}]\n",
    "inner.toml": b'legraph = 1\n[[chunks]]\nname = "in1"\ntext = "x"\n',
    "circle.yaml": b"legraph: 1\nchunks: [{include: circle2.yaml, as: c}]\n",
    "circle2.yaml": b"legraph: 1\nchunks: [{include: circle.yaml, as: c}]\n",
    "broken.yaml": b"legraph: 1\nchunks: [{name: 'x\n",
    "list.yaml": b"- 1\n",
}

# Valid files that use what the examples do not.
SEEDS = [
    """\
legraph: 1
tokenizer: bytes
positions: flat
bos: true
vars: {title: "The fox", n: 3}
chunks:
  - name: head
    text: "${title} says $${x}"
    start: 4
  - for: {doc: docs/*.txt}
    name: doc${doc.number}
    file: ${doc.path}
    group: docs
    parents: [head]
    lint: {ignore: [LG001]}
  - for: {row: rows.jsonl, i: {range: [1, 3]}}
    name: row_${i}_${row.index}
    text: "${row.title}"
  - include: inner.yaml
    as: in
    vars: {t: "a text"}
    parents: [head]
  - name: question
    text: "What?"
    parents: ["@docs", "row*", in.in1, "ancestors(in.in2)", "^doc1"]
    generate: {max_new_tokens: 5, stop: ["\\n"], temperature: 0.5, top_k: 3, top_p: 0.9, seed: 1}
  - {name: end, text: x, completion: y, loss: true, parents: [all-before]}
assert:
  - not_sees: [head, question]
  - influences: [head, question]
  - {max_tokens: 900}
lint: {ignore: [LG002]}
""",
    """\
legraph: 1
vars: {p: local}
positions: ${p}
chunks:
  - {for: {row: rows.jsonl}, name: "${row.title}", text: x, role: "${row.role}", start: 1, end: null}
assert: [{not_sees: [fox, owl], sees: null, of: null}]
""",
    """\
legraph: 1
chunks:
  - &base {name: a, text: x, lint: &none {ignore: []}}
  - <<: *base
    name: b
    parents: [a]
  - {name: c, text: "\\u2028\\x01", parents: [a, b], lint: *none, end: 40}
""",
    """\
legraph = 1
positions = "local"
[vars]
t = 'x'
[[chunks]]
name = "a"
text = '''
long ${t}'''
[[chunks]]
name = "b"
text = "b"
parents = ["a"]
generate.max_new_tokens = 2
[[chunks]]
for = {i = {range = 2}, c = ["red", {k = 1}]}
name = "l${i}_${c.index}"
text = "${i.number}"
[[assert]]
sees = ["b", "a"]
""",
    '{"legraph": 1, "chunks": [{"name": "a", "text": "\\ud83d\\ude00\\u0085", "start": 100}]}',
    '{"legraph": 1, "chunks": [{"name": "a", "text": "x", "generate": {"temperature": 1e-5}}]}',
]
VALID = [path.read_text() for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".yaml", ".toml")] + SEEDS


def mostly(usual: SearchStrategy[Any], odd: SearchStrategy[Any], of: int = 24) -> SearchStrategy[Any]:
    """One time in `of` something odd."""
    return st.integers(1, of).flatmap(lambda number: odd if number == of else usual)


LETTERS = st.sampled_from(
    [*"ab \n\t\"'#:-{}[],&*!|>%@`\\$~0", "\x00", "\x7f", "\x85", "\u2028", "é", "😀", "\ufeff"]
)
# Names, selectors, variables, paths, and what YAML takes for something else than text.
_WORDS = r"""
a b c d doc1 in in.in1 bos all-before @g @docs @ ^a ^ ^@g ^^a a* [ ?? *
ancestors(a) ancestors() ancestors(
${v} ${ ${v.x} ${i} ${i.index} ${row.title} $${a} ${} ${v. user LG001
a.txt docs/*.txt **/* ../x.txt ~/x C:\x /dev/null latin.txt empty.txt docs . .. / - rows.jsonl rows.csv
rows.json bad.jsonl inner.yaml inner.toml circle.yaml broken.yaml list.yaml graph.fuzz
no 1 1e5 1_0 0x1f 010 1:30 .inf .nan ~ null true 2020-01-01 << =
"""
WORDS = st.sampled_from(["", *_WORDS.split()])
STRINGS = st.one_of(
    WORDS, st.text(LETTERS, max_size=8), st.text(max_size=8), st.sampled_from(["a" * 300, "x/" * 3000])
)
NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([2**31 - 1, 2**31, -(2**63), 2**64, 10**40, 10**400, 10**4000]),
    st.floats(),
)
ODD: SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, STRINGS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(STRINGS, inner, max_size=3)),
    max_leaves=4,
)
TEXTS = st.one_of(
    st.sampled_from(["x", "two words", "${v}", "$${a}", "\n", "é😀"]), st.text(LETTERS, min_size=1)
)
GENERATE = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, 9),
        "stop": st.lists(st.text(LETTERS, min_size=1, max_size=2), max_size=2),
        "temperature": st.sampled_from([0, 0.5, None]),
        "top_k": st.integers(1, 5),
        "top_p": st.sampled_from([0.5, 1]),
        "seed": st.integers(0, 5),
    },
)
LINT = st.fixed_dictionaries({"ignore": st.lists(st.sampled_from(["LG001", "LG205", "${code}"]), max_size=2)})
LOOPS = st.one_of(
    st.sampled_from(["docs/*.txt", "rows.jsonl", "rows.csv", "rows.json"]),
    st.lists(st.one_of(st.integers(0, 3), st.just("${v}"), st.just({"k": "t"})), min_size=1, max_size=3),
    st.fixed_dictionaries({"range": st.sampled_from([1, 3, [2, 4], [3, 0, -1]])}),
)
OPTIONS: dict[str, SearchStrategy[Any]] = {
    "completion": st.text(LETTERS, min_size=1, max_size=4),
    "loss": st.booleans(),
    "generate": GENERATE,
    "lint": LINT,
    "start": st.integers(0, 400),
    "end": st.integers(200, 400),
    "role": st.sampled_from(["user", "system", "${role}"]),
    "group": st.sampled_from(["g", "h"]),
}


@st.composite
def chunks(draw: st.DrawFn, letter: str, known: list[str]) -> Any:
    """A chunk that is called by a letter, a loop of them, or an include; adds to the known selectors."""
    kind = draw(st.sampled_from(["chunk", "chunk", "chunk", "file", "loop", "include"]))
    options = draw(st.lists(st.sampled_from(list(OPTIONS)), max_size=3, unique=True))
    data: dict[str, Any] = {
        key: draw(OPTIONS[key]) for key in options if key != "end" or "start" not in options
    }
    if known and draw(st.booleans()):
        selectors = st.sampled_from([*known, "all-before", *(f"^{each}" for each in known)])
        data["parents"] = draw(st.lists(selectors, max_size=4, unique=True))
    if kind == "include":
        data = {key: data[key] for key in ("group", "parents") if key in data}
        known += [f"@{letter}", f"{letter}.*", f"{letter}.in1"]
        names = st.sampled_from([{"include": "inner.yaml", "vars": {"t": "${v}"}}, {"include": "inner.toml"}])
        return {"as": letter, **draw(names), **data}
    known += ["@g"] if data.get("group") == "g" else []
    if kind == "loop":
        known.append(f"{letter}*")
        over = {"i": draw(LOOPS)} | ({"j": draw(LOOPS)} if draw(st.booleans()) else {})
        name = letter + "".join(f"_${{{variable}.index}}" for variable in over)
        return {"for": over, "name": name, "text": "${i.number}${v}", **data}
    known += [letter, f"{letter}*", f"ancestors({letter})"]
    return {"name": letter, **({"file": "a.txt"} if kind == "file" else {"text": draw(TEXTS)}), **data}


@st.composite
def assertions(draw: st.DrawFn, known: list[str]) -> Any:
    pair = st.lists(st.sampled_from(known), min_size=2, max_size=2)
    kind = draw(st.sampled_from(["sees", "not_sees", "influences", "not_influences", "max_tokens", "of"]))
    if kind == "of":
        return {"max_tokens": 999, "of": draw(st.sampled_from(known))}
    return {kind: 9999 if kind == "max_tokens" else draw(pair)}


@st.composite
def sound(draw: st.DrawFn) -> dict[str, Any]:
    """A graph that is valid most of the time, with any part of the language."""
    known = list[str]()
    entries = [draw(chunks(letter, known)) for letter in "abcde"[: draw(st.integers(1, 5))]]
    settings_of_graph = st.fixed_dictionaries(
        {"vars": st.just({"v": "value", "role": "user", "code": "LG001"})},
        optional={
            "tokenizer": st.sampled_from(["bytes", "recall"]),
            "positions": st.sampled_from(["causal", "flat", "local"]),
            "bos": st.booleans(),
            "assert": st.lists(assertions(known), max_size=2),
            "lint": st.just({"ignore": ["LG002"]}),
        },
    )
    return {"legraph": 1, "chunks": entries, **draw(settings_of_graph)}


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """A graph in which up to three parts have been replaced, taken out, or put somewhere else."""
    data: Any = copy.deepcopy(draw(sound()))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        owner, key = draw(st.sampled_from(parts(data)))
        kind = draw(st.sampled_from(["odd", "word", "out", "other", "more"]))
        if kind == "out":
            del owner[key]
        elif kind == "more":
            more = draw(
                mostly(st.sampled_from([*OPTIONS, "for", "include", "as", "text", "file"]), STRINGS, of=3)
            )
            _put(owner, more, draw(ODD))
        else:
            others = [value[at] for value, at in parts(data)]
            new = draw({"odd": ODD, "word": STRINGS, "other": st.sampled_from(others)}[kind])
            owner[key] = copy.deepcopy(new)
        if not parts(data):
            break
    return draw(mostly(st.just(data), ODD, of=50))


def parts(data: Any) -> list[tuple[Any, Any]]:
    """Every value inside data, as what it stands in and where."""
    pairs = list(
        data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    )
    return [(data, key) for key, _ in pairs] + [part for _, value in pairs for part in parts(value)]


def _put(owner: Any, key: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[key] = value
    else:
        owner.append(value)


def as_toml(data: Any) -> str:
    """Data as TOML, or as something like it: TOML has no null, and escapes other characters."""
    if not isinstance(data, dict):
        return _toml_value(data)
    plain = [f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in data.items() if key != "chunks"]
    entries = data.get("chunks", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return "".join(plain) + f"chunks = {_toml_value(entries)}\n"
    for entry in entries:
        plain += [
            "[[chunks]]\n",
            *(f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in entry.items()),
        ]
    return "".join(plain)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_yaml(data: Any) -> str:
    return yaml.safe_dump(data, allow_unicode=True, sort_keys=False)


def as_letters(data: Any) -> str:
    return json.dumps(data, indent=1, ensure_ascii=False)


WRITTEN = st.tuples(graphs(), st.sampled_from([as_yaml, as_toml, json.dumps, as_letters])).map(
    lambda both: both[1](both[0])
)

# Lines that a YAML or TOML file may hold; most files of them are broken in an interesting way. A broken bar
# stands for the bar.
_LINES = """
legraph: 1|legraph = 1|legraph: 1.0|legraph: true|chunks:|chunks: &c|chunks: *c|  - name: a|    text: x
    text: ¦|    text: ¦-|      more|    text: >|  - &a {name: a, text: x}|  - *a|  - <<: *a
    <<: [*a, *a]|    name: b|    parents: [a]|    parents: &p [a, a]|    parents: *p|  - ? name|    : a
  - ? [a]|    : b|---|...|%YAML 1.2|# comment|\ttab: x|  - !!python/object:os.system {}|  - !x a
!!binary a|    text: !!str 1|    start: !!int x|    start: 1_000|    start: 0o17|bos: yes|no: 1|1: 2
~: 3|{|}|[|]|[[chunks]]|[chunks]|name = 'a'|name = "a"|text = '''|text = \"""x\"""|'''|a.b.c = 1
start = 0x1f|start = 1979-05-27|parents = [|  'a',|]|generate = {max_new_tokens = 1}|[chunks.generate]
[vars]|v = 1|vars: {v: 1}|assert:|  - sees: [a, b]|lint: {ignore: []}|\ufeff|\x85|\u2028|[[chunks]]
"""
LINES = st.sampled_from(
    [
        *(line.replace("¦", "|") for row in _LINES.split("\n") for line in row.split("|")),
        # Longer numbers than Python reads.
        f"    start: {'9' * 5000}",
        f"start = {'9' * 5000}",
    ]
)
LINE_FILES = st.lists(LINES, max_size=14).map("\n".join)
NESTED = st.tuples(
    st.sampled_from(["[", "{a: ", '{"a": ', "- ", "a: [", "x = [", "x = {a=", "? ", "a.", '"']),
    st.integers(1, 4000),
).map(lambda both: both[0] * both[1])


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid file after up to four accidents."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["cut", "put", "replace", "line out", "line twice", "swap", "word", "end"])
        )
        lines, at = text.split("\n"), draw(st.integers(0, len(text)))
        i, j = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        if kind == "cut":
            text = text[:at] + text[at + draw(st.integers(1, 12)) :]
        elif kind == "put":
            text = text[:at] + draw(st.one_of(LETTERS, st.characters())) + text[at:]
        elif kind == "replace":
            text = text[:at] + draw(LETTERS) + text[at + 1 :]
        elif kind == "word":
            words = [*re.finditer(r"[\w.$@^-]+", text), *re.finditer(r"\Z", text)]
            found = draw(st.sampled_from(words))
            other = draw(st.one_of(WORDS, st.sampled_from(words).map(lambda each: each[0])))
            text = text[: found.start()] + other + text[found.end() :]
        elif kind == "end":
            text = text[:at]
        else:
            line = lines[i]
            lines[i : i + 1] = {"line out": [], "line twice": [line, line], "swap": [lines[j]]}[kind]
            if kind == "swap":
                lines[j % len(lines)] = line
            text = "\n".join(lines)
    return text


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid file in which bytes are others."""
    raw = bytearray(encoded(draw(st.sampled_from(VALID))))
    for _ in range(draw(st.integers(1, 5))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


BYTES = st.one_of(st.binary(max_size=60), st.text(max_size=60).map(encoded), damaged())
SUFFIXES = st.sampled_from([".yaml", ".toml", ".json", ".fuzz"])
ANY_FILE = st.one_of(WRITTEN.map(encoded), mutated().map(encoded), LINE_FILES.map(encoded), BYTES)

# Files are large to hypothesis; `call` may serve many examples.
quick = settings(
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
        HealthCheck.function_scoped_fixture,
    ]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    for name, raw in FILES.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
    # What the examples name.
    shutil.copytree(EXAMPLES, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "train", "__*"))
    return root


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token for each byte, and a chat template, so that roles are no error."""
    found = copy.deepcopy(bytes_tokenizer())
    found.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot|>{% endfor %}"
    return found


@contextmanager
def limited() -> Iterator[None]:
    """Ends what takes too long."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


VALIDATOR = Draft202012Validator(json_schema())


def check_reading(folder: Path, raw: bytes, suffix: str, tokenizer: Any) -> bool:
    """A graph that the schema agrees with, and its bundle; or errors that can be drawn. True for a graph."""
    path = folder / f"graph{suffix}"
    path.write_bytes(raw)
    with limited():
        try:
            graph = build_graph(parse_file(path))
        except LegraphError as error:
            assert str(error)
            return False
        data, problems = SourceText.load(path).read()
        assert problems == []
        refused = best_match(VALIDATOR.iter_errors(data))
        assert refused is None, f"the schema refuses what the reader accepts: {refused}"
        failed = assertion_problems(graph)
        assert all(map(str, failed))
        try:
            bundle = compile_graph(graph, tokenizer)
        except LegraphError as error:
            assert str(error)
        else:
            assert not failed
            assert sorted(bundle.span_names) == sorted(chunk.name for chunk in graph.chunks)
    return True


def test_the_files_that_are_broken_here_are_valid(folder: Path, tokenizer: Any) -> None:
    """Otherwise nothing below would reach far."""
    for text in VALID:
        suffix = ".json" if text.startswith("{") else ".toml" if "[[" in text else ".yaml"
        assert check_reading(folder, encoded(text), suffix, tokenizer), text


@settings(quick, max_examples=600)
@given(WRITTEN, SUFFIXES)
def test_a_file_made_from_the_grammar(folder: Path, tokenizer: Any, text: str, suffix: str) -> None:
    check_reading(folder, encoded(text), suffix, tokenizer)


def test_about_half_of_these_files_are_valid(folder: Path, tokenizer: Any) -> None:
    """Broken ones only would test the first lines of the reader again and again."""
    found = list[bool]()

    @settings(quick, max_examples=100, database=None)
    @given(WRITTEN, SUFFIXES)
    def count(text: str, suffix: str) -> None:
        found.append(check_reading(folder, encoded(text), suffix, tokenizer))

    count()
    assert 25 < sum(found) < 75


@settings(quick, max_examples=300)
@given(mutated(), SUFFIXES)
def test_a_valid_file_after_accidents(folder: Path, tokenizer: Any, text: str, suffix: str) -> None:
    check_reading(folder, encoded(text), suffix, tokenizer)


@settings(quick, max_examples=250)
@given(st.one_of(LINE_FILES, NESTED), SUFFIXES)
def test_lines_in_any_order(folder: Path, tokenizer: Any, text: str, suffix: str) -> None:
    check_reading(folder, encoded(text), suffix, tokenizer)


@settings(quick, max_examples=250)
@given(BYTES, SUFFIXES)
def test_bytes(folder: Path, tokenizer: Any, raw: bytes, suffix: str) -> None:
    check_reading(folder, raw, suffix, tokenizer)


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(quick, max_examples=100)
@given(ANY_FILE, SUFFIXES, st.sampled_from(["compile", "compile", "check", "show", "lint"]))
@example(encoded(SEEDS[1]), ".yaml", "compile")
@example(encoded(SEEDS[0]), ".yaml", "check")
def test_the_command_line(folder: Path, call: Call, raw: bytes, suffix: str, command: str) -> None:
    graph = folder / f"graph{suffix}"
    graph.write_bytes(raw)
    output = folder / "out.npz"
    before = listing(folder)
    options = [] if command == "check" else ["--tokenizer", "bytes"]
    options += ["-o", str(output)] if command == "compile" else []
    with limited():
        done = call(command, graph, *options)
    assert "Traceback" not in done.err
    # Findings of the linter are no error; that a tokenizer has no markers for roles is not the file's.
    if done.code == 1:
        assert command == "lint" or "has no chat template" in done.err
    else:
        assert done.code in (0, 2)
        assert ("error: " in done.err) == (done.code == 2)
    written = listing(folder).keys() - before.keys()
    assert written == ({str(output)} if command == "compile" and done.code == 0 else set())
    assert {path: raw for path, raw in listing(folder).items() if path not in written} == before
    output.unlink(missing_ok=True)
