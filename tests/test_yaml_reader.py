"""YAML is read strictly, in bounded time, and every value knows its place."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import KeyPath
from legraph.marks import MAX_DEPTH, Mark, Span, TextProblem
from legraph.yaml_reader import MAX_NUMBER_LENGTH, MAX_VALUES, read_yaml
from tests.marked import unmark

# What YAML can hold without escapes, on one line.
CHARACTERS = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"])
STRINGS = st.text(CHARACTERS, max_size=12)
SCALARS = (
    STRINGS | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False, allow_infinity=False)
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(STRINGS, part, max_size=4),
    max_leaves=20,
)
STYLES = st.fixed_dictionaries(
    {
        "default_flow_style": st.sampled_from([True, False, None]),
        "default_style": st.sampled_from([None, '"', "'"]),
        "indent": st.integers(2, 6),
        "allow_unicode": st.booleans(),
        "explicit_start": st.booleans(),
    }
)


def scalar_paths(data: Any, path: KeyPath = ()) -> list[tuple[KeyPath, Any]]:
    """Every value that holds no other, with its key path."""
    if isinstance(data, dict | list) and data:
        parts = data.items() if isinstance(data, dict) else enumerate(data)
        return [found for key, part in parts for found in scalar_paths(part, (*path, key))]
    return [(path, data)]


def part_at(text: str, span: Span) -> str:
    return text.split("\n")[span.line][span.column :][: span.width]


def refusal(marked: str) -> TextProblem:
    """The problem that ends the reading of a text, after a look at its place."""
    text, (place,) = unmark(marked)
    with pytest.raises(TextProblem) as caught:
        read_yaml(text)
    span = caught.value.span
    assert (span.line + 1, span.column + 1) == (place.line, place.column)
    return caught.value


@given(DOCUMENTS, STYLES)
def test_the_data_is_what_pyyaml_makes_of_the_text(data: Any, style: dict[str, Any]):
    text = yaml.safe_dump(data, width=10_000, **style)
    assert read_yaml(text) == (yaml.safe_load(text), [])


@given(DOCUMENTS, STYLES)
def test_the_mark_of_every_scalar_points_at_it(data: Any, style: dict[str, Any]):
    text = yaml.safe_dump(data, width=10_000, **style)
    marks: dict[KeyPath, Mark] = {}
    read_yaml(text, marks)
    for path, value in scalar_paths(data):
        written = part_at(text, marks[path].value)
        if value not in ([], {}):
            assert yaml.safe_load(written) == value
        else:
            assert written == str(value)[0], "of a list or mapping, the bracket that opens it"


@given(st.dictionaries(STRINGS, st.dictionaries(STRINGS, SCALARS, max_size=3), max_size=3), STYLES)
def test_the_mark_of_every_key_points_at_it(data: dict[str, Any], style: dict[str, Any]):
    text = yaml.safe_dump(data, width=10_000, **style)
    marks: dict[KeyPath, Mark] = {}
    read_yaml(text, marks)
    for outer, values in data.items():
        for path in [(outer,), *((outer, inner) for inner in values)]:
            written = part_at(text, marks[path].key)
            assert yaml.safe_load(written) == path[-1]


@given(st.dictionaries(st.text(max_size=12), DOCUMENTS, max_size=4), st.booleans(), st.booleans())
def test_json_is_read_as_json(data: dict[str, Any], ensure_ascii: bool, indented: bool):
    text = json.dumps(data, ensure_ascii=ensure_ascii, indent="\t" if indented else None)
    assert read_yaml(text) == (data, [])


def test_a_json_file_may_hold_all_that_json_allows():
    text = r'{"a": "\ud83d\ude00 \\ud83d \/ \u0000", "b": [1e-05, 1E5, -0.5, true, null], "<<": "x"}'
    assert read_yaml(text) == (json.loads(text), [])
    raw = '{"a": "x \u2028 y\x85z\x7f\ufeff\ue000", "b": "\\ue001\\uE002"}'
    assert read_yaml(raw) == (json.loads(raw), [])


def test_json_that_yaml_cuts_in_other_ways_is_refused():
    """To YAML, a key and its colon stand on one line."""
    with pytest.raises(TextProblem, match="broken YAML"):
        read_yaml('{"a"\n: 1e-5}')


def test_values_behind_a_character_written_as_two_escapes_keep_their_place():
    text, (place,) = unmark(
        r'{"a": "\ud83d\ude00\ud83d\ude00#\u0085", "b": «"c"»}'.replace("#", "\u2028\x85\ufeff")
    )
    marks: dict[KeyPath, Mark] = {}
    read_yaml(text, marks)
    assert marks[("b",)].value == Span(place.line - 1, place.column - 1, len(place.part))


@pytest.mark.parametrize(
    "text, path",
    [
        ("a: «|»\n  first\n  second\nb: 1", ("a",)),
        ("a:\n- x\n- «>»\n  folded\n  text\n", ("a", 1)),
        ("a: «'»two\n\n  lines'\n", ("a",)),
        ("b: [1,\n  [2,\n   «3»]]\n", ("b", 1, 1)),
        ("- {b: «{»c: 1, d: 2}}\n", (0, "b")),
        ("a: 1\r\nb:\r\n- «2»\r\n", ("b", 0)),
        ("a: 'é😀'\nb: ['é😀', «c»]\n", ("b", 1)),
        ("# first\n\n---\na: «1»\n", ("a",)),
        ("a: 1\u2028b: «2»", ("b",)),
    ],
    ids=["literal", "folded", "quoted", "flow", "mapping", "CRLF", "wide", "comment", "line separator"],
)
def test_values_of_every_form_know_where_they_start(text: str, path: KeyPath):
    lines = re.split("\r\n|\n|\u2028", text)
    text = text.replace("«", "").replace("»", "")
    (line,) = [i for i, with_marks in enumerate(lines) if "«" in with_marks]
    start, end = lines[line].index("«"), lines[line].index("»") - 1
    marks: dict[KeyPath, Mark] = {}
    read_yaml(text, marks)
    assert marks[path].value == Span(line, start, end - start)


def test_a_literal_block_keeps_its_lines_whatever_ends_them():
    assert read_yaml("a: |\r\n  x\r\n  y\r\n") == ({"a": "x\ny\n"}, [])


@pytest.mark.parametrize(
    "marked, message, expected",
    [
        (
            "a: [1\nb«:» 2",
            "broken YAML: did not find expected ',' or ']' while parsing a flow sequence",
            None,
        ),
        (
            "a: 'x\n«»",
            "broken YAML: found unexpected end of stream while scanning a quoted scalar",
            None,
        ),
        (
            "a:\n«\t»- b",
            "broken YAML: found character that cannot start any token while scanning for the next token",
            None,
        ),
        ("a: b«:» c", "broken YAML: mapping values are not allowed in this context", None),
        ("é: 'é«\x07»'", "broken YAML: control characters are not allowed", None),
        ("é: 1\nb: «\x07»", "broken YAML: control characters are not allowed", None),
        ("a: 1\n«---»\nb: 2\n", "a second YAML document starts here", "one graph in a file"),
        ("? «[»a]\n: b", "a key must be a string", "a quoted key"),
        ("{«{»a: b}: c}", "a key must be a string", "a quoted key"),
        ("a: &x 1\n«*x» : 2", "an alias cannot be a key", "a quoted key"),
        ("a: «*x»", "alias *x has no anchor &x before it", None),
        ("a: &x [«*x»]", "alias *x stands inside its own anchor", None),
        ("a: &x {b: [«*x»]}", "alias *x stands inside its own anchor", None),
    ],
    ids=lambda value: None if value is None else re.sub(r"\W+", " ", str(value))[:40],
)
def test_broken_and_refused_yaml_says_where(marked: str, message: str, expected: str | None):
    problem = refusal(marked)
    assert (problem.message, problem.expected) == (message, expected)


def test_a_line_ends_where_yaml_says_it_ends():
    with pytest.raises(TextProblem) as caught:
        read_yaml("a: 1\x85b: 2\r\nc: 3\u2028d: \x07")
    assert caught.value.span == Span(3, 3)


@pytest.mark.parametrize(
    "tag, value",
    [
        ("!!python/object/apply:os.system", "[ls]"),
        ("!!python/name:os.system", "''"),
        ("!!binary", "aGk="),
        ("!!set", "{a, b}"),
        ("!!omap", "[a: 1]"),
        ("!mine", "1"),
        ("!<tag:yaml.org,2002:python/none>", "''"),
    ],
)
def test_tags_are_refused(tag: str, value: str):
    problem = refusal(f"a: «{tag}» {value}")
    full = tag.replace("!!", "tag:yaml.org,2002:").removeprefix("!<").removesuffix(">")
    assert problem.message == f"YAML tag {full!r} is not supported"
    assert problem.expected == "plain values"


@pytest.mark.parametrize(
    "written, value",
    [("!!str 1", "1"), ("!!int '2'", 2), ("!!float 1", 1.0), ("! x", "x"), ("!!map {a: b}", {"a": "b"})],
)
def test_the_tags_of_plain_values_are_understood(written: str, value: Any):
    assert read_yaml(f"a: {written}") == ({"a": value}, [])


@pytest.mark.parametrize(
    "written, kind",
    [
        ("!!int abc", "int"),
        ("!!int ''", "int"),
        ("!!float x", "float"),
        ("!!bool maybe", "bool"),
        ("!!timestamp yesterday", "timestamp"),
        ("2024-13-45", "timestamp"),
    ],
)
def test_a_value_that_its_tag_does_not_fit_is_refused(written: str, kind: str):
    problem = refusal(f"a: «{written}»")
    value = written.split()[-1].strip("'")
    assert problem.message == f"{value!r} is not a valid {kind}"
    assert problem.expected == "a quoted string, if it is text"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        ("9" * 100_000, "valid int"),
        ("0x" + "f" * 100_000, "valid int"),
        ("1:" * 100_000 + "1", "plain number"),
    ],
)
def test_endless_numbers_are_refused_and_not_written_out(number: str, kind: str):
    problem = refusal(f"a: «{number}»")
    assert problem.message == f"{number[:57] + '...'!r} is not a {kind}"


def test_the_longest_number_is_still_a_number():
    digits = "9" * MAX_NUMBER_LENGTH
    assert read_yaml(f"a: {digits}") == ({"a": int(digits)}, [])


@pytest.mark.parametrize("opening, num_levels", [("[", 1), ("{a: ", 1), ("- ", 1), ("[{a: ", 2)])
def test_nesting_deeper_than_the_limit_is_refused_where_it_is_exceeded(opening: str, num_levels: int):
    with pytest.raises(TextProblem) as caught:
        read_yaml(opening * (MAX_DEPTH + 1))
    assert caught.value.message == f"nested deeper than {MAX_DEPTH} levels"
    assert caught.value.expected == "a graph file nests 4 levels deep"
    assert caught.value.span == Span(0, MAX_DEPTH // num_levels * len(opening))


@pytest.mark.parametrize("opening", ["[", "{a: ", "[{a: ", "- ", "? "])
def test_endless_nesting_is_refused(opening: str):
    # libyaml has a limit of its own, and a list as a key is refused for that first.
    with pytest.raises(TextProblem, match=r"nest|a key must be a string") as caught:
        read_yaml(opening * 100_000)
    assert caught.value.span.line == 0


def test_nesting_up_to_the_limit_is_read():
    data, problems = read_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert problems == []
    assert json.dumps(data) == "[" * MAX_DEPTH + "]" * MAX_DEPTH


def test_nesting_through_aliases_is_refused():
    half = MAX_DEPTH // 2 + 1
    start, end = "[" * half, "]" * half
    problem = refusal(f"a: &x {start}{end}\nb: {start[1:]}«*x»{end[1:]}")
    assert problem.message == f"nested deeper than {MAX_DEPTH} levels through aliases"


def bomb(levels: int) -> str:
    """Ten times as many values a level."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize("levels", [7, 9, 25])
def test_aliases_that_multiply_are_refused(levels: int):
    with pytest.raises(TextProblem) as caught:
        read_yaml(bomb(levels))
    assert caught.value.message == f"aliases expand to more than {MAX_VALUES:,} values"
    # 10^7 values would stand in a6; those of a0 to a5 fit.
    assert caught.value.span.line == 6


def test_merge_keys_that_multiply_are_refused():
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: v" for i in range(1000)) + "}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 100)}]}}" for i in range(1, 5)]
    with pytest.raises(TextProblem, match="aliases expand to more than"):
        read_yaml("\n".join(lines))


def test_anchors_aliases_and_merge_keys_work_as_in_pyyaml():
    text = """
    base: &base {a: 1, b: [x, y]}
    more: &more
      c: 3
      a: 4
    one: {<<: *base, a: 2}
    two:
      <<: [*more, *base]
      d: 5
    inline: {<<: {e: 6}, f: 7}
    same: *base
    word: &word hello
    words: [*word, *word]
    &key name: 1
    from key: *key
    """
    data, problems = read_yaml(text)
    assert problems == []
    assert data == yaml.safe_load(text)
    assert data["one"] == {"a": 2, "b": ["x", "y"]}
    assert data["two"] == {"a": 4, "b": ["x", "y"], "c": 3, "d": 5}
    assert data["from key"] == "name"


def test_what_an_alias_brings_stands_at_the_alias():
    text, (place,) = unmark("base: &base [1, 2]\nused: {again: «*base»}\n")
    marks: dict[KeyPath, Mark] = {}
    read_yaml(text, marks)
    assert marks[("used", "again")].value == Span(place.line - 1, place.column - 1, len(place.part))
    assert ("used", "again", 0) not in marks


def found_problems(text: str) -> list[tuple[int, int, int, str, str | None]]:
    _, problems = read_yaml(text)
    return [
        (each.span.line + 1, each.span.column + 1, each.span.width, each.message, each.expected)
        for each in problems
    ]


@pytest.mark.parametrize(
    "marked, message, expected",
    [
        ("a: 1\nb: 2\n«a»: 3", "key 'a' is repeated (first on line 1)", "each key once"),
        ("{a: 1, «a»: 3}", "key 'a' is repeated (first on line 1)", "each key once"),
        ("- a: 1\n- a: 2\n  b: 3\n  «b»: 4", "key 'b' is repeated (first on line 3)", "each key once"),
        ("a: 1\n«'a'»: 3", "key 'a' is repeated (first on line 1)", "each key once"),
        ('{"a": 1, «"a"»: 2}', "key 'a' is repeated (first on line 1)", "each key once"),
        ("«no»: 1", "a key must be a string (no is the boolean false in YAML)", "a quoted key"),
        ("«1»: 1", "a key must be a string (1 is the number 1 in YAML)", "a quoted key"),
        ("«1.5»: 1", "a key must be a string (1.5 is the number 1.5 in YAML)", "a quoted key"),
        ("«~»: 1", "a key must be a string (~ is null in YAML)", "a quoted key"),
        ("«2024-01-02»: 1", "a key must be a string (2024-01-02 is a date in YAML)", "a quoted key"),
        ("?« »\n: 1", "a key must be a string", "a quoted key"),
        (
            r'? «!!null "\e[2J"»' + "\n: 1",
            r"a key must be a string ('\x1b[2J' is null in YAML)",
            "a quoted key",
        ),
        ("«<<»: 3", "'<<' merges mappings, not the number 3", "an alias of a mapping, or a list of them"),
        (
            "a: &a {b: 1}\nc: {«<<»: [*a, no]}",
            "'<<' merges mappings, not the boolean false",
            "an alias of a mapping, or a list of them",
        ),
    ],
)
def test_wrong_keys_are_reported_and_the_reading_goes_on(marked: str, message: str, expected: str):
    text, (place,) = unmark(marked)
    assert found_problems(text) == [(place.line, place.column, len(place.part), message, expected)]


def test_of_a_repeated_key_the_first_counts_for_the_value_and_its_place():
    text, (place, _) = unmark("a: «1»\na: «2»")
    marks: dict[KeyPath, Mark] = {}
    data, problems = read_yaml(text, marks)
    assert len(problems) == 1
    assert data == {"a": 1}
    assert marks[("a",)].value == Span(place.line - 1, place.column - 1, 1)


def test_a_key_that_is_not_a_string_is_not_in_the_data():
    data, problems = read_yaml("1: x\na: y")
    assert (data, len(problems)) == ({"a": "y"}, 1)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "--- \n...\n"])
def test_a_text_without_a_value_is_none(text: str):
    assert read_yaml(text) == (None, [])


@pytest.mark.parametrize("written", ["010", "-017", "0_7", "08", "1:30", "1:30.5", "-1:0"])
def test_numbers_that_yaml_reads_in_a_way_of_its_own_are_refused(written: str):
    """As octal, or in base 60; JSON, TOML and YAML 1.2 read none of them so."""
    data = yaml.safe_load(f"start: {written}")["start"]
    if isinstance(data, str):
        assert read_yaml(f"start: {written}")[0] == {"start": written}
        return
    problem = refusal(f"start: «{written[0]}»{written[1:]}")
    assert problem.message == f"{written!r} is not a plain number"
    assert problem.expected == "a decimal number, such as 10"
