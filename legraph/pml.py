"""Text of Prompt Cache's markup (PML) -> elements that know their place. What they mean is in `import_pml`.

The markup is XML in small: elements, attributes, text. Document types and entities of one's own are refused,
so nothing can be expanded or fetched; nesting is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.parsers import expat

from legraph.errors import GraphError, Problem, Source
from legraph.importing import ForeignText
from legraph.marks import MAX_DEPTH

# A file may hold a schema and a prompt side by side; XML wants one root.
_ROOT = "<pml>"
# Inside a root there can be none; expat finds the letter wrong that follows "<!".
_DOCTYPE = "<!DOCTYPE"
_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")


@dataclass(slots=True)
class Element:
    """An element: `children` holds texts (str) and elements in their order."""

    tag: str
    attributes: dict[str, str]
    source: Source
    children: list[str | Element] = field(default_factory=list["str | Element"])

    def elements(self) -> Iterator[Element]:
        return (child for child in self.children if isinstance(child, Element))

    def problem(self, message: str, expected: str | None = None, hint: str | None = None) -> Problem:
        return Problem(message, expected, hint, self.source)


def read_elements(source: ForeignText) -> Element:
    """All elements of a file, under one root that the file does not have.

    Raises:
        GraphError: broken XML, a document type, nesting deeper than MAX_DEPTH.
    """
    # Blanks in its place: the root has to come first, and lines and columns must stay.
    text = _DECLARATION.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), source.text)
    reader = _Reader(source.name, text.split("\n"))
    try:
        for part in (_ROOT, text, _ROOT.replace("<", "</")):
            reader.parser.Parse(part, False)
        reader.parser.Parse("", True)
    except expat.ExpatError as error:
        raise GraphError(_problem(error, reader.place(error.lineno, error.offset))) from None
    return reader.root


_CHARACTER_ERRORS = {
    expat.errors.codes[expat.errors.XML_ERROR_INVALID_TOKEN],
    expat.errors.codes[expat.errors.XML_ERROR_UNDEFINED_ENTITY],
}


def _problem(error: expat.ExpatError, place: Source) -> Problem:
    assert place.line_text is not None and place.column is not None
    if place.line_text.startswith(_DOCTYPE, max(0, place.column - 3)):
        return Problem("document types and entities are refused", f"no {_DOCTYPE} ...>", source=place)
    hint = "write & as &amp; and < as &lt; in texts" if error.code in _CHARACTER_ERRORS else None
    return Problem(f"broken markup: {expat.errors.messages[error.code]}", hint=hint, source=place)


class _Reader:
    """Builds elements from expat's events."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name, self.lines = name, lines
        self.root = Element("", {}, Source(name, 1, 1))
        self.stack = [self.root]
        self.parser: Any = expat.ParserCreate()
        # expat gives a long text in pieces.
        self.texts = list[str]()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def place(self, line: int, column: int, width: int = 1) -> Source:
        """A place as expat counts it: lines from 1, columns from 0, the root's tag in the first line."""
        column -= len(_ROOT) if line == 1 else 0
        line = min(line, len(self.lines))
        text = self.lines[line - 1]
        return Source(self.name, line, max(0, min(column, len(text))) + 1, line_text=text, width=width)

    def _here(self, width: int = 1) -> Source:
        return self.place(self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber, width)

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if tag == "pml" and self.stack == [self.root] and not self.root.tag:
            self.root.tag = tag
            return
        if len(self.stack) > MAX_DEPTH:
            raise GraphError(Problem(f"nested deeper than {MAX_DEPTH} levels", source=self._here()))
        self._end_text()
        element = Element(tag, attributes, self._here(len(tag) + 1))
        self.stack[-1].children.append(element)
        self.stack.append(element)

    def _end(self, tag: str) -> None:
        self._end_text()
        if len(self.stack) > 1:
            self.stack.pop()

    def _text(self, text: str) -> None:
        self.texts.append(text)

    def _end_text(self) -> None:
        """A text goes to its element as a whole, whatever pieces and comments it is cut by."""
        if self.texts:
            self.stack[-1].children.append("".join(self.texts))
            self.texts.clear()
