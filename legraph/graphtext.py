"""Plain data -> the text of a graph file: clean YAML with comments, which reads back as the same data.

PyYAML's own emitter folds, quotes and sorts in ways of its own. Here a text of several lines, or a long one,
stands as a literal block where that says exactly the same; every other string that could be read as
something else is in double quotes. Keys have one order, so the same data always gives the same text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from legraph.errors import GraphError, Problem
from legraph.marks import printable
from legraph.schema import NAME_PATTERN
from legraph.wholefile import write_atomically

WIDTH = 100
# A shorter text of one line stands in quotes behind its key.
MAX_QUOTED_LENGTH = 80
_TEXT_INDENT = " " * 6
_FILE_KEYS = ("legraph", "tokenizer", "positions", "bos")
_CHUNK_KEYS = ("name", "role", "text", "file", "completion", "loss", "parents", "start", "end", "generate")
_NAME = re.compile(NAME_PATTERN.removesuffix("$") + r"\Z")
_RESOLVER = yaml.resolver.Resolver()
# What libyaml reads as it is, without the characters that end a line to YAML alone.
_BLOCK_TEXT = re.compile(
    "[\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]+"
)
# All that may have to be written otherwise inside double quotes.
_ESCAPED = re.compile(r'["\\]|[^\x20-\x7e]')
_SHORT_ESCAPES = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\t": r"\t", "\r": r"\r"}


def literal(text: str) -> str:
    """A text as a graph file's strings must hold it, so that `${` stays two characters, not a variable."""
    return text.replace("${", "$${")


def graph_text(
    graph: Mapping[str, Any], comment: str = "", chunk_comments: Mapping[str, str] | None = None
) -> str:
    """The text of a graph file.

    Args:
        graph: the file's content: strings, numbers, booleans, lists, mappings. Strings are taken as they are
            meant: what would be a variable in a file is escaped.
        comment: stands at the top; lines are wrapped, line breaks stay.
        chunk_comments: comments by chunk name, each before its chunk.
    """
    lines = list(_comment_lines(comment, ""))
    for key in _ordered({key: value for key, value in graph.items() if key != "chunks"}, _FILE_KEYS):
        lines.append(f"{key}: {_flow(graph[key])}")
    lines.append("chunks:")
    for chunk in graph["chunks"]:
        lines += _comment_lines((chunk_comments or {}).get(chunk["name"], ""), "  ")
        mark = "  - "
        for key in _ordered(chunk, _CHUNK_KEYS):
            lines.append(f"{mark}{key}: {_value(key, chunk[key])}")
            mark = "    "
    return "\n".join(lines) + "\n"


def write_text_file(path: Path, text: str, force: bool = False) -> None:
    """Writes a file under a temporary name, then renames it: nobody sees half of it.

    Raises:
        GraphError: the file exists already (and not `force`), or cannot be written.
    """
    shown = printable(str(path))
    if path.is_dir():
        raise GraphError(Problem(f"{shown}: is a folder", "the name of a file"))
    if path.exists() and not force:
        raise GraphError(Problem(f"{shown}: exists already", "another name, or --force to replace it"))
    write_atomically(path, lambda file: file.write(text.encode()), GraphError)


def _ordered(data: Mapping[str, Any], first: tuple[str, ...]) -> Iterator[str]:
    """The keys that hold something, those in `first` in their order, then the others in their own."""
    yield from (key for key in first if data.get(key) is not None)
    yield from (key for key in data if key not in first and data[key] is not None)


def _comment_lines(comment: str, indent: str) -> Iterator[str]:
    for line in comment.split("\n") if comment else ():
        safe = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
        for part in textwrap.wrap(safe, WIDTH - len(indent), break_on_hyphens=False) or [""]:
            yield f"{indent}# {part}".rstrip()


def _value(key: str, value: Any) -> str:
    if isinstance(value, str) and key in ("text", "completion"):
        return _text(literal(value))
    if isinstance(value, list | tuple):
        return _wrapped_list(value)
    return _flow(value)


def _text(text: str) -> str:
    is_long = "\n" in text or len(text) > MAX_QUOTED_LENGTH
    if not is_long or not _may_be_block(text):
        return _quoted(text)
    body = text.rstrip("\n")
    num_breaks = len(text) - len(body)
    # "-": no line break at the end; "+": all of them.
    chomping = "-" if num_breaks == 0 else "" if num_breaks == 1 else "+"
    lines = [_TEXT_INDENT + line if line else "" for line in body.split("\n")]
    return "\n".join([f"|{chomping}", *lines, *[""] * max(0, num_breaks - 1)])


def _may_be_block(text: str) -> bool:
    """A block's indentation is that of its first line, which therefore has to begin with a letter."""
    return not text[0].isspace() and _BLOCK_TEXT.fullmatch(text) is not None


def _wrapped_list(values: Iterable[Any]) -> str:
    """A list in one line, or where that is too long, in lines filled with its entries."""
    parts = [_flow(value) for value in values]
    if sum(map(len, parts)) + 2 * len(parts) <= WIDTH:
        return f"[{', '.join(parts)}]"
    lines, width = [[""]], 0
    for part in parts:
        if width + len(part) > WIDTH - len(_TEXT_INDENT):
            lines.append([])
            width = 0
        lines[-1].append(part)
        width += len(part) + 2
    filled = [", ".join(part for part in line if part) for line in lines]
    return "[\n" + ",\n".join(_TEXT_INDENT + line for line in filled if line) + "]"


def _flow(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if _is_plain(value) else _quoted(literal(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(part)}" for key, part in value.items()) + "}"
    if isinstance(value, float):
        # To YAML, an exponent needs a point before it and a sign in it.
        mantissa, has_exponent, exponent = repr(value).partition("e")
        point = "" if "." in mantissa or not has_exponent else ".0"
        sign = "+" if has_exponent and exponent[0].isdigit() else ""
        return f"{mantissa}{point}{has_exponent}{sign}{exponent}"
    assert isinstance(value, int)
    return str(value)


@lru_cache(maxsize=2**16)  # a name stands in the lists of many chunks
def _is_plain(text: str) -> bool:
    """Whether a word without quotes is read as itself: `no` is not, to YAML."""
    if not _NAME.match(text):
        return False
    return _RESOLVER.resolve(yaml.ScalarNode, text, (True, False)) == "tag:yaml.org,2002:str"


def _quoted(text: str) -> str:
    return f'"{_ESCAPED.sub(_escape, text)}"'


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    if char in _SHORT_ESCAPES:
        return _SHORT_ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
