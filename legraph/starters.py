"""Graph files to start from, each the shape of one common task, which `legraph init` writes.

They are about keys and gates, so that the model in the box can answer them; the chat needs a model with a
chat template.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from legraph.errors import GraphError, Problem, did_you_mean
from legraph.graphtext import write_text_file
from legraph.marks import printable

GRAPH_NAME = "graph.yaml"
_GRAPH_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True, slots=True)
class Starter:
    """A graph file's text, and the texts of other files by path beside it."""

    graph: str
    files: dict[str, str] = field(default_factory=dict[str, str])
    # The model in the box has no chat template.
    needs_model: bool = False


def write_starter(template: str, target: str, force: bool = False) -> list[Path]:
    """Writes a starter's files; gives their paths, the graph first.

    Args:
        target: the graph file (.yaml or .yml), or the folder for it, which is made where it is missing.
        force: replace files that exist.

    Raises:
        GraphError: an unknown template, files that exist (then none is written), a place that cannot be
            written to.
    """
    if template not in STARTERS:
        hint = did_you_mean(template, list(STARTERS))
        raise GraphError(Problem(f"--template is {template!r}", f"one of {', '.join(STARTERS)}", hint))
    starter = STARTERS[template]
    graph = Path(target) if Path(target).suffix in _GRAPH_SUFFIXES else Path(target) / GRAPH_NAME
    texts = {graph: starter.graph} | {graph.parent / path: text for path, text in starter.files.items()}
    taken = [path for path in texts if path.exists() and not force]
    if taken:
        expected = "another place, or --force to replace it"
        raise GraphError(Problem(f"{printable(str(path))}: exists already", expected) for path in taken)
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GraphError(f"{printable(str(path.parent))}: cannot be made: {error.strerror}") from None
        write_text_file(path, text, force)
    return list(texts)


def next_commands(template: str, graph: Path) -> list[str]:
    """What to do with a starter once it is written."""
    path = shlex.quote(str(graph))
    tokenizer, model = (
        (" --tokenizer MODEL", " --model MODEL") if STARTERS[template].needs_model else ("", "")
    )
    return [f"legraph check {path}", f"legraph show {path}{tokenizer}", f"legraph run {path}{model}"]


_RAG = """\
# Questions about documents: every file in docs/ is a chunk of its own. No document sees another, so their
# order does not matter, their cost adds up instead of multiplying, and each can be computed once and kept
# (legraph run --kv FOLDER). Put your own .txt files into docs/ and ask your own question.
legraph: 1
chunks:
  - name: head
    text: "Answer from the documents, in one short sentence."
  # One chunk for each file; they are called after it.
  - for: {doc: docs/*.txt}
    name: ${doc.stem}
    file: ${doc.path}
    group: docs
    parents: [head]
  - name: question
    text: "Which gate does the copper key of Sarn open?"
    parents: [head, "@docs"] # @docs is every chunk of the group
    generate: {max_new_tokens: 32}
"""

_TREE = """\
# A tree: a chunk sees its ancestors, and nothing of other branches. What branches share is read once, however
# many there are. Only direct parents are seen, so each chunk lists all its ancestors.
legraph: 1
chunks:
  - name: castle
    text: "The guard of Voldan is Maren."
  - name: east
    text: "The amber key of Voldan opens the north gate."
    parents: [castle]
  - name: west
    text: "The silver key of Voldan opens the south gate."
    parents: [castle]
  - name: east_question
    text: "Which gate does the amber key of Voldan open?"
    parents: [castle, east]
    generate: {max_new_tokens: 24}
  - name: west_question
    text: "Which gate does the silver key of Voldan open?"
    parents: [castle, west]
    generate: {max_new_tokens: 24}
"""

_FORKJOIN = """\
# Fork and join: two branches are written at the same time, one token of each in every step, neither seeing
# the other. The join starts when both are there, and sees them with what was generated.
legraph: 1
chunks:
  - name: task
    text: "The amber key of Voldan opens the north gate. The silver key of Maren opens the south gate."
  - name: amber
    text: "Which gate does the amber key of Voldan open?"
    parents: [task]
    generate: {max_new_tokens: 24}
  - name: silver
    text: "Which gate does the silver key of Maren open?"
    parents: [task]
    generate: {max_new_tokens: 24}
  - name: join
    text: "Which gates do the amber key of Voldan and the silver key of Maren open?"
    parents: [amber, silver] # add task, and it sees that too
    generate: {max_new_tokens: 24}
"""

_CHAT = """\
# A conversation for a model with a chat template: a chunk with a role is a message, and gets the template's
# markers. The answers see the question, not each other: they are written side by side.
legraph: 1
chunks:
  - name: system
    role: system
    text: "Answer in one short sentence."
  - name: question
    role: user
    text: "What is a prompt graph good for?"
    parents: [system]
  # An assistant's text may be empty: the model writes it.
  - name: answer1
    role: assistant
    text: ""
    parents: [system, question]
    generate: {max_new_tokens: 128}
  - name: answer2
    role: assistant
    text: ""
    parents: [system, question]
    generate: {max_new_tokens: 128, temperature: 0.8, seed: 1}
"""

_FEWSHOT = """\
# Few-shot examples in parallel: no example sees another and all begin at position 0, so that their order
# cannot matter. For the ordinary prompt, where each sees those before it, give example2 the parent example1,
# and example3 both.
legraph: 1
chunks:
  - name: example1
    text: "doka -> dokaisur.\\n"
  - name: example2
    text: "melu -> meluisur.\\n"
  - name: example3
    text: "sarin -> sarinisur.\\n"
  - name: question
    text: "pelka ->"
    parents: [example1, example2, example3]
    generate: {max_new_tokens: 24}
"""

STARTERS = {
    "rag": Starter(
        _RAG,
        {
            "docs/amber.txt": "The amber key of Voldan opens the north gate.\n",
            "docs/copper.txt": "The copper key of Sarn opens the west gate.\n",
            "docs/silver.txt": "The silver key of Maren opens the south gate.\n",
        },
    ),
    "tree": Starter(_TREE),
    "forkjoin": Starter(_FORKJOIN),
    "chat": Starter(_CHAT, needs_model=True),
    "fewshot": Starter(_FEWSHOT),
}
