"""YAML text -> plain data, strictly, and where each value stands.

PyYAML's own loader lets repeated keys overwrite each other in silence, recurses as deep as the text nests,
and follows aliases that multiply. So the data is built here from libyaml's event stream, in one loop:
repeated and non-string keys are problems, nesting and aliases are bounded. (It is also ten times faster
than composing nodes, because nothing is resolved twice.)
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from legraph.errors import KeyPath
from legraph.marks import MAX_DEPTH, Mark, Span, TextProblem, describe, printable, quoted

MAX_VALUES = 5_000_000
# Base 60 numbers (1:30:00) take quadratic time.
MAX_NUMBER_LENGTH = 1000

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_JSON_LINE_BREAK = re.compile("\r\n|[\n\r]")

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = yaml.resolver.Resolver()
_CONSTRUCTOR: Any = yaml.constructor.SafeConstructor()
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp")}
_COLLECTION_TAGS = {None, "!", _TAG + "map", _TAG + "seq"}
_NUMBER_TAGS = {_TAG + "int", _TAG + "float"}
_MISREAD_NUMBER = re.compile(r"[-+]?0[0-9_]+$|.*:")
_MERGE_KEY = "<<"
# To YAML, a number needs a point and a sign in the exponent.
_EXPONENT = re.compile(r"\A-?[0-9.]+[eE][-+]?[0-9]+\Z")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
# One character escaped in two halves; any other escape is passed over.
_SURROGATES = re.compile(r"\\u([dD][89abAB]..)\\u([dD][c-fC-F]..)|\\.")
# What JSON allows in strings and YAML does not, or takes for the end of a line.
_ONLY_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been read yet."""

    data: dict[str, Any] | list[Any]
    path: KeyPath
    anchor: str | None
    key: str | None = None
    key_span: Span | None = None
    is_merge: bool = False
    is_refused: bool = False
    key_spans: dict[str, Span] = field(default_factory=dict[str, Span])
    merges: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    num_values: int = 1
    height: int = 1


class _Builder:
    """Turns events into data; keeps the collections that are still open on a stack."""

    def __init__(self, marks: dict[KeyPath, Mark] | None) -> None:
        self.marks = marks
        # In JSON, the letters that stand for others.
        self.json_letters: dict[int, str] | None = None
        self.problems: list[TextProblem] = []
        self.stack: list[_Open] = []
        self.root: Any = None
        self.num_documents = 0
        # anchor -> data, number of values it expands to, how deep it nests
        self.anchors: dict[str, tuple[Any, int, int]] = {}

    def feed(self, event: Any) -> None:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            self._scalar(event)
        elif kind is yaml.SequenceStartEvent:
            self._open([], event)
        elif kind is yaml.MappingStartEvent:
            self._open({}, event)
        elif kind is yaml.SequenceEndEvent or kind is yaml.MappingEndEvent:
            self._close()
        elif kind is yaml.AliasEvent:
            self._alias(event)
        elif kind is yaml.DocumentStartEvent:
            self.num_documents += 1
            if self.num_documents > 1:
                raise _refusal("a second YAML document starts here", event, expected="one graph in a file")

    def _scalar(self, event: Any) -> None:
        if self.json_letters:
            event.value = event.value.translate(self.json_letters)
        top = self.stack[-1] if self.stack else None
        if top is not None and isinstance(top.data, dict) and top.key is None:
            self._key(top, event)
            return
        is_number = self.json_letters is not None and event.implicit[0] and _EXPONENT.search(event.value)
        value = float(event.value) if is_number else _scalar_value(event)
        if event.anchor:
            self.anchors[event.anchor] = (value, 1, 0)
        self._place(value, _span(event), 1, 0)

    def _key(self, top: _Open, event: Any) -> None:
        key, span = _scalar_value(event), _span(event)
        if event.anchor:
            self.anchors[event.anchor] = (key, 1, 0)
        top.is_merge = event.value == _MERGE_KEY and event.implicit[0]
        top.is_refused = not isinstance(key, str)
        if not isinstance(key, str):
            shown = f" ({printable(event.value)} is {describe(key)} in YAML)" if event.value else ""
            self.problems.append(
                TextProblem(
                    f"a key must be a string{shown}", span.line, span.column, span.width, "a quoted key"
                )
            )
            key = str(event.value)
        elif key in top.key_spans:
            first = top.key_spans[key]
            self.problems.append(
                TextProblem(
                    f"key {quoted(key)} is repeated (first on line {first.line + 1})",
                    span.line,
                    span.column,
                    span.width,
                    "each key once",
                )
            )
        top.key, top.key_span = key, span
        top.key_spans.setdefault(key, span)

    def _open(self, data: dict[str, Any] | list[Any], event: Any) -> None:
        top = self.stack[-1] if self.stack else None
        if top is not None and isinstance(top.data, dict) and top.key is None:
            raise _refusal("a key must be a string", event, expected="a quoted key")
        if event.tag not in _COLLECTION_TAGS:
            raise _unsupported_tag(event)
        if len(self.stack) >= MAX_DEPTH:
            raise _refusal(
                f"nested deeper than {MAX_DEPTH} levels", event, expected="a graph file nests 4 levels deep"
            )
        path = self._child_path()
        self._mark(path, _span(event))
        self.stack.append(_Open(data, path, event.anchor))

    def _close(self) -> None:
        done = self.stack.pop()
        if isinstance(done.data, dict):
            for merged in done.merges:
                for key, value in merged.items():
                    done.data.setdefault(key, value)
        if done.anchor:
            self.anchors[done.anchor] = (done.data, done.num_values, done.height)
        self._put(done.data, done.num_values, done.height)

    def _alias(self, event: Any) -> None:
        if any(part.anchor == event.anchor for part in self.stack):
            raise _refusal(f"alias *{event.anchor} stands inside its own anchor", event)
        top = self.stack[-1] if self.stack else None
        if top is not None and isinstance(top.data, dict) and top.key is None:
            raise _refusal("an alias cannot be a key", event, expected="a quoted key")
        if event.anchor not in self.anchors:
            raise _refusal(f"alias *{event.anchor} has no anchor &{event.anchor} before it", event)
        value, num_values, height = self.anchors[event.anchor]
        if len(self.stack) + height > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels through aliases", event)
        if sum(part.num_values for part in self.stack) + num_values > MAX_VALUES:
            raise _refusal(f"aliases expand to more than {MAX_VALUES:,} values", event)
        self._place(value, _span(event), num_values, height)

    def _place(self, value: Any, span: Span, num_values: int, height: int) -> None:
        self._mark(self._child_path(), span)
        self._put(value, num_values, height)

    def _put(self, value: Any, num_values: int, height: int) -> None:
        if not self.stack:
            self.root = value
            return
        top = self.stack[-1]
        top.num_values += num_values
        top.height = max(top.height, height + 1)
        if isinstance(top.data, list):
            top.data.append(value)
            return
        assert top.key is not None
        if top.is_merge:
            self._merge(top, value)
        elif not top.is_refused:
            # The marks are those of the first, too, where a key is repeated.
            top.data.setdefault(top.key, value)
        top.key = None

    def _merge(self, top: _Open, value: Any) -> None:
        for part in _as_list(value):
            if isinstance(part, dict):
                top.merges.append(part)
            else:
                assert top.key_span is not None
                span = top.key_span
                message = f"{_MERGE_KEY!r} merges mappings, not {describe(part)}"
                self.problems.append(
                    TextProblem(
                        message,
                        span.line,
                        span.column,
                        span.width,
                        "an alias of a mapping, or a list of them",
                    )
                )

    def _child_path(self) -> KeyPath:
        if self.marks is None or not self.stack:
            return ()
        top = self.stack[-1]
        return (*top.path, len(top.data) if isinstance(top.data, list) else str(top.key))

    def _mark(self, path: KeyPath, span: Span) -> None:
        if self.marks is not None:
            key_span = self.stack[-1].key_span if self.stack else None
            self.marks.setdefault(path, Mark(key_span or span, span))


def read_yaml(text: str, marks: dict[KeyPath, Mark] | None = None) -> tuple[Any, list[TextProblem]]:
    """The data of a YAML text, and the problems that do not stop the reading (repeated keys, say).

    With `marks`, the place of every value is added to it by key path.

    Raises:
        TextProblem: broken syntax, nesting deeper than MAX_DEPTH, aliases that multiply, unknown tags.
    """
    builder = _Builder(marks)
    if _is_json(text):
        text, builder.json_letters = _json_as_yaml(text)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.feed(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(part for part in (error.problem, error.context) if part)
        line, column = (mark.line, mark.column) if mark else (0, 0)
        raise TextProblem(f"broken YAML: {message}", line, column) from None
    except yaml.reader.ReaderError as error:
        # libyaml counts bytes.
        before = _LINE_BREAK.split(text.encode()[: error.position].decode(errors="ignore"))
        raise TextProblem(f"broken YAML: {error.reason}", len(before) - 1, len(before[-1])) from None
    return builder.root, builder.problems


def yaml_lines(text: str) -> list[str]:
    """The lines of a text, as marks count them."""
    return (_JSON_LINE_BREAK if _is_json(text) else _LINE_BREAK).split(text)


def _is_json(text: str) -> bool:
    """JSON is YAML, but for some characters in strings, and for numbers such as 1e-5."""
    if not text.lstrip().startswith("{"):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_as_yaml(text: str) -> tuple[str, dict[int, str]]:
    """A JSON text that libyaml can read, all things in their places, and what it writes in other letters."""
    unused = (chr(code) for code in range(0xE000, 0xF900) if not _holds(text, code))
    letter_by_character = dict(zip(sorted(set(_ONLY_JSON.findall(text))), unused, strict=False))
    text = _JSON_STRING.sub(_join_surrogates, text.translate(str.maketrans(letter_by_character)))
    return text, {ord(letter): character for character, letter in letter_by_character.items()}


def _holds(text: str, code: int) -> bool:
    return chr(code) in text or f"\\u{code:04x}" in text.lower()


def _join_surrogates(found: re.Match[str]) -> str:
    """A joined character is written shorter; blanks behind the string keep what follows in its column."""
    string = found[0]
    return _SURROGATES.sub(_joined, string).ljust(len(string)) if "\\u" in string else string


def _joined(found: re.Match[str]) -> str:
    if found[1] is None:
        return found[0]
    character: str = json.loads(f'"{found[0]}"')
    return f"\\U{ord(character):08x}"


def _scalar_value(event: Any) -> Any:
    tag = event.tag
    if tag is None or tag == "!":
        if not event.implicit[0]:
            return event.value
        tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (True, False))
        if tag == _TAG + "str" or tag == _TAG + "merge":
            return event.value
    if tag not in _SCALAR_TAGS:
        if tag == _TAG + "value":
            return event.value
        raise _unsupported_tag(event)
    if tag == _TAG + "str":
        return event.value
    if tag in _NUMBER_TAGS and _MISREAD_NUMBER.match(event.value):
        # YAML 1.1 reads 010 as 8 and 1:30 as 90; TOML, JSON and YAML 1.2 do not.
        raise _refusal(f"{quoted(event.value)} is not a plain number", event, "a decimal number, such as 10")
    if len(event.value) <= MAX_NUMBER_LENGTH:
        # What the constructors raise when an explicit tag does not fit the value.
        with suppress(ValueError, KeyError, IndexError, AttributeError, OverflowError, yaml.YAMLError):
            return _CONSTRUCTOR.yaml_constructors[tag](_CONSTRUCTOR, yaml.ScalarNode(tag, event.value))
    kind = tag.removeprefix(_TAG)
    raise _refusal(f"{quoted(event.value)} is not a valid {kind}", event, "a quoted string, if it is text")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _span(event: Any) -> Span:
    start, end = event.start_mark, event.end_mark
    return Span(start.line, start.column, max(1, end.column - start.column) if end.line == start.line else 1)


def _unsupported_tag(event: Any) -> TextProblem:
    return _refusal(f"YAML tag {quoted(event.tag)} is not supported", event, expected="plain values")


def _refusal(message: str, event: Any, expected: str | None = None) -> TextProblem:
    mark = event.start_mark
    return TextProblem(message, mark.line, mark.column, expected=expected)
