"""Graph file -> `ParsedFile`: the file's content as checked data, or every problem of the file at once.

Order of the checks: syntax, the language (`expand`), single values (`schema`), keys that exclude each other,
names and edges (`links`), text files. Only broken syntax ends the reading; all other problems are collected.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from legraph.assertions import Assertion, resolved
from legraph.errors import GraphError, KeyPath, Problem, Source, did_you_mean
from legraph.expand import expand
from legraph.include import NAME_IN_WORDS
from legraph.links import Link, link_problems
from legraph.loops import check_inside
from legraph.marks import describe, number, printable, quoted
from legraph.origin import Expanded, Places
from legraph.schema import (
    FORMAT_VERSION,
    MAX_NAME_LENGTH,
    AssertSpec,
    ChunkEntry,
    GenerateSpec,
    GraphFile,
    LintSpec,
    PositionPolicy,
    Role,
    WrittenGraph,
    keys_of,
)
from legraph.selectors import Selectors
from legraph.source import SourceText, read_text_file

_Finder = SourceText | Places
_EXPECTED_BY_TYPE = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "model_type": "a mapping",
}
# Of the problems that rounds of a loop have at one place.
MAX_ROUNDS_REPORTED = 3
_LITERALS = (*get_args(PositionPolicy), *get_args(Role))
_EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+")


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """A valid graph file. `texts[i]` is the text of chunk i, read from its file where it names one."""

    spec: GraphFile
    texts: tuple[str, ...]
    source: SourceText | Places
    assertions: tuple[Assertion, ...] = ()
    # What the selectors of its chunks meant; None where the file has none of the language.
    selectors: Selectors | None = None


def parse_file(
    path: str | Path, variables: Mapping[str, Any] | None = None, allow_outside: bool = False
) -> ParsedFile:
    """Reads and checks a graph file (YAML, TOML or JSON; `-` is standard input).

    Args:
        variables: override those of the file: strings, numbers or booleans by name.
        allow_outside: paths in the file may lead out of its folder.

    Raises:
        GraphError: with all problems of the file, each with its place.
    """
    return parse(SourceText.load(path), variables, allow_outside)


def parse(
    source: SourceText, variables: Mapping[str, Any] | None = None, allow_outside: bool = False
) -> ParsedFile:
    """Checks the text of a graph file. Arguments and errors as `parse_file`."""
    with _collector_paused():
        return _parse(source, variables or {}, None if allow_outside else source.folder)


@contextmanager
def _collector_paused() -> Generator[None, None, None]:
    """Reading makes many objects and no cycles; looking for cycles among them would not be linear."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _parse(source: SourceText, variables: Mapping[str, Any], tree: Path | None) -> ParsedFile:
    data, problems = source.read()
    if not isinstance(data, dict):
        what = (
            "the file is empty" if data is None else f"a graph file must be a mapping, not {describe(data)}"
        )
        raise GraphError([*problems, Problem(what, "'legraph: 1' and 'chunks:'", source=source.place(()))])
    expanded = expand(source, cast("dict[str, Any]", data), variables, tree)
    data, places = expanded.data, expanded.places
    problems += expanded.problems
    spec = None
    try:
        spec = GraphFile.model_validate(data)
    except ValidationError as error:
        found = [details for details in error.errors(include_url=False) if not _is_echo(details, expanded)]
        problems += [_schema_problem(places, data, details) for details in found]
    entries = _entries(data)
    problems += _exclusion_problems(places, entries)
    problems += _link_problems(places, data, entries)
    texts, text_problems = _read_texts(source.folder, tree, places, entries)
    problems += text_problems
    assertions: tuple[Assertion, ...] = ()
    if spec is not None and spec.assertions:
        assertions, wrong = resolved(spec, expanded)
        problems += wrong
    if problems or spec is None:
        # Where the language is wrong already, what follows from that need not be said too.
        told = {_value(problem) for problem in expanded.problems}
        of_language = set(map(id, expanded.problems))
        problems = [each for each in problems if id(each) in of_language or _value(each) not in told]
        raise GraphError(_in_order(problems, source))
    return ParsedFile(spec, texts, places, assertions, expanded.chunks)


def _in_order(problems: list[Problem], source: SourceText) -> list[Problem]:
    """In the order of the file, then those of other files; once, if all rounds of a loop have it."""
    first = {(_place(problem), problem.message): problem for problem in reversed(problems)}
    once = [problem for problem in problems if first[_place(problem), problem.message] is problem]
    once.sort(key=lambda found: (_place(found)[0] != source.name, *_place(found)))
    return list(_few_of_each_place(once))


def _few_of_each_place(problems: list[Problem]) -> Iterator[Problem]:
    """All problems, but of those that rounds of a loop have at one place the first ones only."""
    for _, group in groupby(problems, key=_place):
        kept, num_rounds = list[Problem](), 0
        for problem in group:
            is_round = problem.source is not None and problem.source.note is not None
            num_rounds += is_round
            if not is_round or num_rounds <= MAX_ROUNDS_REPORTED:
                kept.append(problem)
        if num_rounds > MAX_ROUNDS_REPORTED:
            more = f"(and {num_rounds - MAX_ROUNDS_REPORTED:,} more like it)"
            kept[-1] = replace(kept[-1], message=f"{kept[-1].message} {more}")
        yield from kept


def _value(problem: Problem) -> tuple[str, KeyPath]:
    """The value that a problem is about; its place may be a part of it."""
    assert problem.source is not None
    return problem.source.file, problem.source.key_path


def _place(problem: Problem) -> tuple[str, int, int]:
    assert problem.source is not None
    return problem.source.file, problem.source.line or 0, problem.source.column or 0


def _entries(data: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """The chunks that can be looked at further, with their numbers, whatever else is wrong in the file."""
    chunks = data.get("chunks")
    if not isinstance(chunks, list):
        return []
    numbered = enumerate(cast("list[Any]", chunks))
    return [(i, cast("dict[str, Any]", entry)) for i, entry in numbered if isinstance(entry, dict)]


def _exclusion_problems(source: _Finder, entries: list[tuple[int, dict[str, Any]]]) -> Iterator[Problem]:
    for i, entry in entries:
        label = _label(entry)
        path: KeyPath = ("chunks", i)
        if "text" in entry and "file" in entry:
            yield Problem(
                f"{label} has both 'text' and 'file'",
                "one of them",
                source=source.place((*path, "file"), at_key=True),
            )
        elif entry.get("text") is None and entry.get("file") is None:
            yield Problem(
                f"{label} has neither 'text' nor 'file'",
                "one of them",
                source=source.place(path),
            )
        if entry.get("start") is not None and entry.get("end") is not None:
            yield Problem(
                f"{label} has both 'start' and 'end'",
                "one of them: the other follows from the length",
                source=source.place((*path, "end"), at_key=True),
            )


def _link_problems(
    source: _Finder, data: dict[str, Any], entries: list[tuple[int, dict[str, Any]]]
) -> Iterator[Problem]:
    links = [Link(_string(entry.get("name")), _strings(entry.get("parents"))) for _, entry in entries]
    for problem in link_problems(links, has_bos=data.get("bos") is True):
        path: KeyPath = ("chunks", entries[problem.chunk][0])
        path += ("name",) if problem.parent is None else ("parents", problem.parent)
        yield Problem(problem.message, problem.expected, problem.hint, source.place(path))


def _read_texts(
    folder: Path, tree: Path | None, places: _Finder, entries: list[tuple[int, dict[str, Any]]]
) -> tuple[tuple[str, ...], list[Problem]]:
    texts, problems = list[str](), list[Problem]()
    for i, entry in entries:
        text, file = _string(entry.get("text")), _string(entry.get("file"))
        if text is None and file:
            try:
                check_inside(file, folder, tree)
                text = read_text_file(folder / file, file)
            except GraphError as error:
                place = places.place(("chunks", i, "file"))
                problems += [
                    Problem(problem.message, problem.expected, problem.hint, place)
                    for problem in error.problems
                ]
        texts.append(text or "")
    return tuple(texts), problems


def _is_echo(details: ErrorDetails, expanded: Expanded) -> bool:
    """pydantic counts valid entries only, so to it a list of wrong entries is also too short. And chunks that
    could not be made are not missing."""
    if details["type"] != "too_short":
        return False
    is_long_enough = len(details["input"]) >= details.get("ctx", {})["min_length"]
    return is_long_enough or (expanded.is_partial and details["loc"] == ("chunks",))


def _version_problem(value: Any, place: Source) -> Problem:
    if type(value) is not int:
        return Problem(
            f"the format version must be a whole number, not {describe(value)}",
            f"version {FORMAT_VERSION}",
            source=place,
        )
    return Problem(
        f"unknown format version {number(value)}",
        f"version {FORMAT_VERSION}",
        "the file is for a newer legraph: upgrade" if value > FORMAT_VERSION else None,
        place,
    )


def _wrong_type(kind: str, key: str, value: Any, place: Source) -> Problem:
    text, column = place.line_text or "", place.column or 1
    written = text[column - 1 : column - 1 + place.width]
    hint = None
    if kind == "string_type" and not isinstance(value, list | dict | None) and not written.startswith("*"):
        hint = f'quote it: "{printable(written)}"'
    elif kind == "float_type" and _EXPONENT.fullmatch(written):
        hint = "YAML wants a point before an exponent, and a sign in it: 1.0e-5"
    return Problem(f"{key} must be {_EXPECTED_BY_TYPE[kind]}, not {describe(value)}", hint=hint, source=place)


def _schema_problem(source: _Finder, data: dict[str, Any], details: ErrorDetails) -> Problem:
    """A pydantic error in our words, at its place in the file."""
    path: KeyPath = details["loc"]
    kind, value = details["type"], details["input"]
    key = _key_label(path)
    place = source.place(path)
    if kind == "extra_forbidden":
        known = keys_of(_model_at(path))
        return Problem(
            f"unknown key {quoted(str(path[-1]))}",
            f"one of {', '.join(known)}",
            did_you_mean(str(path[-1]), known),
            source.place(path, at_key=True),
        )
    if kind == "missing":
        owner = "the file" if len(path) == 1 else _label(_at(data, path[:-1]))
        first_line = f"legraph{' = ' if source.syntax == 'toml' else ': '}{FORMAT_VERSION}"
        hint = f"the first line of a graph file is '{first_line}'" if path == ("legraph",) else None
        return Problem(f"{owner} has no {path[-1]!r}", hint=hint, source=source.place(path[:-1]))
    if path == ("legraph",):
        return _version_problem(value, place)
    if kind in _EXPECTED_BY_TYPE:
        return _wrong_type(kind, key, value, place)
    message, expected, hint = _value_problem(kind, key, value, details)
    if kind == "string_pattern_mismatch" and place.note and key == "'name'":
        hint = "the name of a file can hold anything; a number cannot: ${item.number}, ${item.index}"
    return Problem(message, expected, hint, place)


def _value_problem(kind: str, key: str, value: Any, details: ErrorDetails) -> tuple[str, str, str | None]:
    """Message, what was expected, and a hint, for a value of the right type that is not allowed."""
    context = details.get("ctx", {})
    if kind == "literal_error":
        return (
            f"{key} is {quoted(value) if isinstance(value, str) else describe(value)}",
            context["expected"],
            did_you_mean(value, _LITERALS) if isinstance(value, str) else None,
        )
    if kind == "string_pattern_mismatch":
        if "ignore" in details["loc"]:
            return f"{quoted(value)} cannot be the code of a finding", "a code such as LG001", None
        what = "group's" if key == "'group'" else "chunk's"
        return f"{quoted(value)} cannot be a {what} name", NAME_IN_WORDS, None
    if kind == "string_too_long":
        return f"{key} is {len(value):,} characters long", f"at most {MAX_NAME_LENGTH}", None
    if kind == "string_too_short":
        return f"{key} is empty", "a string of at least one character", None
    if kind == "too_short" and key == "'chunks'":
        return "the graph has no chunks", "at least one chunk", None
    if kind in ("too_short", "too_long"):
        return (
            f"{key} has {context['actual_length']} entries",
            f"{context['min_length' if kind == 'too_short' else 'max_length']}",
            None,
        )
    if kind == "greater_than_equal" and key in ("'start'", "'end'"):
        what = "a position" if key == "'start'" else "the last token's position, one less,"
        return f"{key} is {number(value)}: {what} cannot be negative", f"{context['ge']} or more", None
    bounds = {
        "greater_than_equal": ("ge", "{} or more"),
        "greater_than": ("gt", "more than {}"),
        "less_than_equal": ("le", "{} or less"),
        "less_than": ("lt", "less than {}"),
    }
    if kind in bounds:
        bound, words = bounds[kind]
        return f"{key} is {number(value)}", words.format(context[bound]), None
    if kind == "finite_number":
        return f"{key} is {value}", "a finite number", None
    return f"{key}: {details['msg']}", describe(value), None


def _model_at(path: KeyPath) -> type[BaseModel]:
    """The model whose keys stand beside the last key of a path."""
    if path[0] == "assert" and len(path) > 1:
        return AssertSpec
    if "generate" in path[:-1]:
        return GenerateSpec
    if "lint" in path[:-1]:
        return LintSpec
    return ChunkEntry if len(path) > 1 else WrittenGraph


def _key_label(path: KeyPath) -> str:
    if path[-1:] and isinstance(path[-1], int):
        return f"entry {path[-1] + 1} of {path[-2]!r}"
    return repr(path[-1])


def _at(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def _label(entry: Any) -> str:
    name = cast("dict[str, Any]", entry).get("name") if isinstance(entry, dict) else None
    return f"chunk {quoted(name)}" if isinstance(name, str) else "the chunk"


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _strings(value: Any) -> list[str | None]:
    return [_string(part) for part in cast("list[Any]", value)] if isinstance(value, list) else []
