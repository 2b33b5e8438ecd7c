"""Prompt Cache's markup (Gim et al., "Prompt Cache: Modular Attention Reuse for Low-Latency Inference",
2023) -> graph file.

A schema lays modules out one after the other; a prompt imports some of them and adds text. Modules are
computed each alone, the members of a union at one place; the prompt's text sees all that was imported.

    schema   | text | module a | union: b or c | module d |
    prompt     text   a          c                           question

As a graph: every imported module is a chunk without parents, and the prompt's text the last chunk, which
sees them all. Where a chunk begins depends on the lengths of all modules, so it can only be told with a
tokenizer: then each has its `start`. Without one, `positions: flat` puts the chunks one after the other, as
the schema does, but leaves no gaps for what was not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from legraph.errors import GraphError, Problem, did_you_mean
from legraph.graphtext import graph_text
from legraph.import_messages import ANSWER_TOKENS
from legraph.importing import ForeignText, Names, raise_all, read_foreign
from legraph.marks import quoted
from legraph.pml import Element, read_elements
from legraph.pml_schema import Import, Module, Parameter, Prompt, Text, Union, read_prompt, read_schema

# Takes a text, gives its number of tokens.
Count = Callable[[str], int]


def import_pml(path: str, schema_path: str | None = None, tokenizer: Any = None) -> str:
    """The graph file's text for a prompt and its schema.

    Args:
        path: the file that holds the prompt, and the schema unless `schema_path` names another file.
        tokenizer: a Hugging Face tokenizer; with it, every chunk gets the position of the schema's layout.

    Raises:
        GraphError: a file cannot be read, is not PML, or the prompt does not fit the schema; with all
            problems.
    """
    source = read_foreign(path)
    schemas = None if schema_path is None else read_foreign(schema_path)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return pml_text(source, schemas, None if tokenizer is None else count)


def pml_text(source: ForeignText, schemas: ForeignText | None = None, count: Count | None = None) -> str:
    prompt_element, schema_element = _prompt_and_schema(source, schemas)
    problems = list[Problem]()
    prompt, schema = read_prompt(prompt_element, problems), read_schema(schema_element, problems)
    _fit(schema, prompt.imports, problems)
    layout = _Layout(count, problems)
    end = layout.lay(schema, prompt.imports, 0, None)
    roles = {part.role for part in (*layout.pieces, *prompt.texts)} - {None}
    if roles and count is not None:
        wrong = "positions cannot be told: what a chat tag becomes depends on the chat template"
        problems.append(prompt_element.problem(wrong, "no chat tags, or no --tokenizer"))
    raise_all(problems)
    chunks = [piece.as_chunk(has_start=count is not None) for piece in layout.pieces]
    chunks += _prompt_chunks(prompt, chunks, layout.names, None if count is None else end)
    graph = {"legraph": 1, "positions": "flat" if count is None else "causal", "chunks": chunks}
    return graph_text(graph, _comment(source.name, count is not None, bool(roles)))


def _prompt_and_schema(source: ForeignText, schemas: ForeignText | None) -> tuple[Element, Element]:
    root = read_elements(source)
    prompts = _top(root, "prompt")
    if len(prompts) != 1:
        at = prompts[1] if prompts else root
        raise GraphError(at.problem(f"the file holds {len(prompts)} prompts", 'one <prompt schema="...">'))
    known = _top(root if schemas is None else read_elements(schemas), "schema")
    names = [schema.attributes.get("name", "") for schema in known]
    wanted = prompts[0].attributes.get("schema", "")
    if names.count(wanted) != 1:
        wrong = f"{names.count(wanted) or 'no'} schemas are called {quoted(wanted)}, the prompt's schema"
        expected = f"one of {', '.join(map(quoted, names))}" if names else 'a <schema name="...">'
        hint = did_you_mean(wanted, names) if names else "--schema FILE names the file that holds it"
        raise GraphError(prompts[0].problem(wrong, expected, hint))
    return prompts[0], known[names.index(wanted)]


def _top(root: Element, tag: str) -> list[Element]:
    """The elements of a tag, side by side in the file or inside a root of any name."""
    roots = [root, *(element for element in root.elements() if element.tag not in ("schema", "prompt"))]
    return [element for above in roots for element in above.elements() if element.tag == tag]


def _fit(module: Module, wanted: Import, problems: list[Problem]) -> None:
    """Adds what a prompt wants of a module that it does not have."""
    modules = {str(part.name): part for part in module.modules()}
    parameters = [parameter.name for parameter in module.parameters()]
    here = "the schema" if module.name is None else f"module {quoted(module.name)}"
    for name, inner in wanted.imports.items():
        if name in modules:
            _fit(modules[name], inner, problems)
            continue
        expected = f"one of {', '.join(modules)}" if modules else None
        hint = did_you_mean(name, list(modules))
        problems.append(inner.problem(f"{here} has no module {quoted(name)}", expected, hint))
    for name in wanted.arguments:
        if name not in parameters:
            expected = f"one of {', '.join(parameters)}" if parameters else "no parameter"
            wrong = f"{here} has no parameter {quoted(name)}"
            problems.append(wanted.problem(wrong, expected, did_you_mean(name, parameters)))
    for part in module.parts:
        if isinstance(part, Union):
            members = {member.name for member in part.members}
            chosen = [name for name in wanted.imports if name in members]
            for name in chosen[1:]:
                wrong = f"{quoted(name)} and {quoted(chosen[0])} are members of one union"
                problems.append(wanted.imports[name].problem(wrong, "one of them"))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Imported text that is one chunk. `sees` are the pieces of the same module before it."""

    name: str
    text: str
    role: str | None
    start: int
    sees: tuple[str, ...]

    def as_chunk(self, has_start: bool) -> dict[str, Any]:
        chunk = {"name": self.name, "role": self.role, "text": self.text, "parents": self.sees or None}
        return chunk | ({"start": self.start} if has_start else {})


@dataclass(slots=True)
class _Layout:
    """Puts a schema's modules one after the other; collects as pieces what the prompt imports of them.

    Without `count` every text has length 0: the pieces are the same, their positions say nothing.
    """

    count: Count | None
    problems: list[Problem]
    pieces: list[_Piece] = field(default_factory=list[_Piece])
    names: Names = field(default_factory=Names)

    def lay(self, module: Module, wanted: Import | None, start: int, path: str | None) -> int:
        """Lays out a module (one that is not imported where `wanted` is None); gives the position after it.

        `path` is its name with those of the modules around it, None for the schema.
        """
        own = list[str]()
        for part in _runs(module, self.count is not None):
            if isinstance(part, list):
                texts, lengths = zip(*(self._filled(text, wanted) for text in part), strict=True)
                if wanted is not None:
                    self._add("".join(texts), part[0].role, start, path, own)
                start += sum(lengths)
            else:
                members = part.members if isinstance(part, Union) else (part,)
                start = max([start, *(self._lay_inside(member, wanted, start, path) for member in members)])
        return start

    def _lay_inside(self, module: Module, outer: Import | None, start: int, outer_path: str | None) -> int:
        name, num_pieces = str(module.name), len(self.pieces)
        wanted = None if outer is None else outer.imports.get(name)
        end = self.lay(module, wanted, start, name if outer_path is None else f"{outer_path}.{name}")
        if wanted is not None and len(self.pieces) == num_pieces:
            self.problems.append(wanted.problem(f"module {quoted(name)} gives no text"))
        return end

    def _filled(self, part: Text | Parameter, wanted: Import | None) -> tuple[str, int]:
        """Text and room of a part; a parameter's text is what the prompt gives for it."""
        if isinstance(part, Text):
            return part.text, 0 if self.count is None else self.count(part.text)
        text = part.scaffold if wanted is None else wanted.arguments.get(part.name, part.scaffold)
        if self.count is None:
            return text, 0
        name, num_tokens = quoted(part.name), self.count(text) if text else 0
        if part.length is None:
            wrong = f"parameter {name} has no 'length'"
            self.problems.append(Problem(wrong, "its room in tokens, for positions", source=part.source))
        elif num_tokens > part.length:
            wrong, limit = f"the value of {name} has {num_tokens:,} tokens", f"{part.length:,} or fewer"
            at = part.source if wanted is None else wanted.source
            self.problems.append(Problem(wrong, limit, source=at))
        return text, part.length or 0

    def _add(self, text: str, role: str | None, start: int, path: str | None, own: list[str]) -> None:
        if not text.strip():
            return
        # The schema's own texts are modules without names: they do not see each other.
        name = self.names.new("text" if path is None else path)
        sees = () if path is None else tuple(own)
        own.append(name)
        self.pieces.append(_Piece(name, text if role is None else text.strip(), role, start, sees))


def _runs(module: Module, is_apart: bool) -> list[list[Text | Parameter] | Module | Union]:
    """A module's parts; texts and parameters of one role without a module between them are together.

    With `is_apart` each is alone: a value may be shorter than its room, and the text behind it begins after
    the room.
    """
    runs = list[list[Text | Parameter] | Module | Union]()
    for part in module.parts:
        if isinstance(part, Module | Union):
            runs.append(part)
        elif runs and isinstance(runs[-1], list) and runs[-1][-1].role == part.role and not is_apart:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _prompt_chunks(
    prompt: Prompt, modules: list[dict[str, Any]], names: Names, start: int | None
) -> list[dict[str, Any]]:
    """The prompt's own texts, one chunk for each role's turn: they see all before them."""
    chunks, before = list[dict[str, Any]](), [chunk["name"] for chunk in modules]
    for text in prompt.texts:
        name = names.new("prompt")
        chunks.append({"name": name, "role": text.role, "text": text.text, "parents": list(before) or None})
        before.append(name)
    if start is not None:
        chunks[0]["start"] = start
    if prompt.texts[-1].role == "user":
        answer = {"role": "assistant", "text": "", "generate": {"max_new_tokens": ANSWER_TOKENS}}
        chunks.append({"name": names.new("answer"), "parents": before} | answer)
    return chunks


def _comment(file: str, has_starts: bool, has_roles: bool) -> str:
    lines = [
        f"A prompt of Prompt Cache (Gim et al., 2023), imported from {file}: no module sees another, and the "
        "prompt's own text sees all that it imports. A parameter's value is part of its module's text "
        "(Prompt Cache computes the module with placeholders, and the value later)."
    ]
    if has_starts:
        lines.append(
            "Positions are those of the schema's layout: modules one after the other, imported or not, the "
            "members of a union at one place, a parameter as long as its room. They hold for the tokenizer "
            "that counted them."
        )
    else:
        lines.append(
            "Positions follow the schema's order, one chunk after the other, without Prompt Cache's gaps for "
            "what is not imported; import with --tokenizer for those. (positions: causal would start all "
            "modules at 0, as parallel windows.)"
        )
    if has_roles:
        lines.append(
            "Each chunk with a role is a turn of its own in the model's chat template. For a template that "
            "begins with a BOS token, add bos: true."
        )
    return "\n".join(lines)
