"""Elements of Prompt Cache's markup -> what they say: a schema's modules, and a prompt's imports and texts.

Each side is checked for itself; whether they fit each other is in `import_pml`. Problems are added to a list,
so that all of a file are reported together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from legraph.errors import Problem, Source, did_you_mean
from legraph.marks import quoted
from legraph.pml import Element

CHAT_TAGS = ("system", "user", "assistant")
MAX_PARAMETER_LENGTH = 2**20
_LENGTH = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    role: str | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A place in a module's text: `length` tokens of room, filled by the prompt, or else by `scaffold`."""

    name: str
    length: int | None
    scaffold: str
    role: str | None
    source: Source


@dataclass(frozen=True, slots=True)
class Union:
    """Modules of which a prompt imports one at most."""

    members: tuple[Module, ...]


@dataclass(frozen=True, slots=True)
class Module:
    """A module; the schema itself is one without a name."""

    name: str | None
    parts: tuple[Text | Parameter | Union | Module, ...]

    def modules(self) -> Iterator[Module]:
        """The modules directly inside, those of unions too."""
        for part in self.parts:
            if isinstance(part, Module):
                yield part
            elif isinstance(part, Union):
                yield from part.members

    def parameters(self) -> Iterator[Parameter]:
        return (part for part in self.parts if isinstance(part, Parameter))


@dataclass(frozen=True, slots=True)
class Import:
    """What a prompt imports of a module: itself, with `arguments` for its parameters, and what is inside."""

    arguments: dict[str, str]
    imports: dict[str, Import]
    source: Source

    def problem(self, message: str, expected: str | None = None, hint: str | None = None) -> Problem:
        return Problem(message, expected, hint, self.source)


@dataclass(frozen=True, slots=True)
class Prompt:
    """`texts` are the prompt's own; neighbours have different roles."""

    imports: Import
    texts: tuple[Text, ...]


def read_schema(schema: Element, problems: list[Problem]) -> Module:
    return _module(None, schema, None, problems)


def read_prompt(prompt: Element, problems: list[Problem]) -> Prompt:
    texts, references = list[Text](), list[Element]()
    for child, role in _without_chat_tags(prompt, None):
        if isinstance(child, Element):
            references.append(child)
        elif texts and texts[-1].role == role:
            texts[-1] = Text(texts[-1].text + child, role)
        else:
            texts.append(Text(child, role))
    texts = [Text(text.text.strip(), text.role) for text in texts if text.text.strip()]
    if not texts:
        problems.append(prompt.problem("the prompt has no text of its own", "a question, say"))
    return Prompt(Import({}, _imports(references, problems), prompt.source), tuple(texts))


def _imports(references: Sequence[Element], problems: list[Problem]) -> dict[str, Import]:
    found = dict[str, Import]()
    for reference in references:
        name = quoted(reference.tag)
        if reference.tag in found:
            problems.append(reference.problem(f"{name} is imported twice", "each module once"))
        if any(isinstance(child, str) and child.strip() for child in reference.children):
            wrong = f"text stands inside the import of {name}"
            problems.append(
                reference.problem(wrong, "imports only", "a prompt's text stands beside its imports")
            )
        inside = _imports(list(reference.elements()), problems)
        found[reference.tag] = Import(reference.attributes, inside, reference.source)
    return found


def _without_chat_tags(element: Element, role: str | None) -> Iterator[tuple[str | Element, str | None]]:
    """What stands in an element, chat tags opened, each with its role."""
    for child in element.children:
        if isinstance(child, Element) and child.tag in CHAT_TAGS and role is None:
            yield from _without_chat_tags(child, child.tag)
        else:
            yield child, role


def _module(name: str | None, element: Element, role: str | None, problems: list[Problem]) -> Module:
    parts = list[Text | Parameter | Union | Module]()
    # Chat tags stand around modules, not in them.
    is_schema = name is None
    children = _without_chat_tags(element, role) if is_schema else ((part, role) for part in element.children)
    for child, child_role in children:
        if isinstance(child, str):
            parts += _text(child, child_role)
        elif child.tag == "module":
            parts += _named_module(child, child_role, problems)
        elif child.tag == "union":
            parts.append(_union(child, child_role, problems))
        elif child.tag == "parameter" and not is_schema:
            parts += _parameter(child, child_role, problems)
        else:
            known = ("module", "union", *(CHAT_TAGS if is_schema else ("parameter",)))
            problems.append(_misplaced(child, known))
    found = Module(name, tuple(parts))
    taken = [*(module.name for module in found.modules()), *(part.name for part in found.parameters())]
    for repeated in (name for name, times in Counter(taken).items() if times > 1):
        problems.append(element.problem(f"two parts are called {quoted(str(repeated))}", "each name once"))
    return found


def _text(text: str, role: str | None) -> list[Text]:
    """As Prompt Cache reads it: white space around a text is one space; alone, it is nothing."""
    bare = text.strip()
    before, after = (" " if end.isspace() else "" for end in (text[:1], text[-1:]))
    return [Text(before + bare + after, role)] if bare else []


def _named_module(element: Element, role: str | None, problems: list[Problem]) -> list[Module]:
    name = element.attributes.get("name")
    if not name or name in CHAT_TAGS:
        wrong = "the module has no 'name'" if not name else f"a module cannot be called {quoted(name)}"
        problems.append(element.problem(wrong, "a name that the prompt can import"))
        return []
    return [_module(name, element, role, problems)]


def _union(element: Element, role: str | None, problems: list[Problem]) -> Union:
    members = list[Module]()
    for child in element.children:
        if isinstance(child, Element) and child.tag == "module":
            members += _named_module(child, role, problems)
        elif isinstance(child, Element):
            problems.append(_misplaced(child, ("module",)))
        elif child.strip():
            problems.append(element.problem("text stands in a union", "modules only"))
    return Union(tuple(members))


def _parameter(element: Element, role: str | None, problems: list[Problem]) -> list[Parameter]:
    name, length = element.attributes.get("name"), element.attributes.get("length")
    if not name:
        problems.append(element.problem("the parameter has no 'name'"))
        return []
    is_number = length is not None and _LENGTH.fullmatch(length) is not None
    if length is not None and not (is_number and 1 <= int(length) <= MAX_PARAMETER_LENGTH):
        wrong = f"the length of parameter {quoted(name)} is {quoted(length)}"
        problems.append(element.problem(wrong, f"a number of tokens, 1 to {MAX_PARAMETER_LENGTH:,}"))
        return []
    room = None if length is None else int(length)
    return [Parameter(name, room, element.attributes.get("scaffold", ""), role, element.source)]


def _misplaced(element: Element, known: Sequence[str]) -> Problem:
    hint = did_you_mean(element.tag, known)
    return element.problem(f"<{element.tag}> cannot stand here", f"one of {', '.join(known)}", hint)
