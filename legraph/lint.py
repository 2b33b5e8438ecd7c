"""`lint`: findings about graphs that are valid, and may yet not be what their author means.

A table of rules, and what is silenced. Rules about tokens run where it is known which tokenizer is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from legraph.errors import Problem, Source, did_you_mean
from legraph.graph import Graph
from legraph.lintgraph import (
    Hit,
    bottlenecks,
    duplicates,
    isolated_chunks,
    leaks,
    open_turns,
    silent_leaves,
    unseen_names,
)
from legraph.marks import quoted

if TYPE_CHECKING:
    from legraph.linttokens import Compiled


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the graph, or one that needs its tokens."""

    code: str
    title: str
    check: Callable[[Graph], Iterator[Hit]] | None = None
    check_tokens: Callable[[Compiled], Iterator[Hit]] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What `lint` says about a graph. `docs/lint.md` has more on each code."""

    code: str
    title: str
    message: str
    place: Source | None = None
    hint: str | None = None

    def __str__(self) -> str:
        return str(Problem(f"{self.code} {self.title}: {self.message}", hint=self.hint, source=self.place))

    def data(self) -> dict[str, Any]:
        """As plain data for JSON."""
        place = self.place
        return {
            "code": self.code,
            "title": self.title,
            "message": self.message,
            "hint": self.hint,
            "file": place.file if place else None,
            "line": place.line if place else None,
            "column": place.column if place else None,
            "where": place.note if place else None,
        }


def lint(graph: Graph, tokenizer: Any = None, model_max: int | None = None) -> list[Finding]:
    """The findings about a graph that it does not silence, in the order of their places.

    Args:
        tokenizer: as for `compile_graph`. Without one here or in the graph, the rules about tokens do not
            run, unless `model_max` asks for them; then it is the one that compiling would take.
        model_max: number of positions the model knows; default: what its tokenizer says.

    Raises:
        GraphError, TokenizerError: the graph cannot be compiled.
    """
    hits = [(rule, hit) for rule in RULES if rule.check is not None for hit in rule.check(graph)]
    if tokenizer is not None or graph.tokenizer is not None or model_max is not None:
        made = _compiled(graph, tokenizer, model_max)
        hits += [
            (rule, hit) for rule in RULES if rule.check_tokens is not None for hit in rule.check_tokens(made)
        ]
    found = [
        Finding(rule.code, rule.title, hit.message, hit.place, hit.hint)
        for rule, hit in hits
        if rule.code not in graph.ignored and rule.code not in _ignored_by(graph, hit.chunk)
    ]
    return sorted(found, key=_place_in_file)


def _compiled(graph: Graph, tokenizer: Any, model_max: int | None) -> Compiled:
    from legraph.compiler import compile_graph
    from legraph.linttokens import Compiled
    from legraph.tokens import load_tokenizer

    if tokenizer is None or isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer or graph.tokenizer)
    return Compiled(graph, compile_graph(graph, tokenizer), tokenizer, model_max)


def _ignored_by(graph: Graph, chunk: int | None) -> frozenset[str]:
    return frozenset() if chunk is None else graph.ignored_of.get(chunk, frozenset())


def _place_in_file(finding: Finding) -> tuple[str, int, int]:
    place = finding.place
    return (place.file, place.line or 0, place.column or 0) if place else ("", 0, 0)


def _token_rule(name: str) -> Callable[[Compiled], Iterator[Hit]]:
    """A rule of `linttokens`, which loads numpy, so it is looked up when it is needed."""

    def check(made: Compiled) -> Iterator[Hit]:
        from legraph import linttokens

        yield from getattr(linttokens, name)(made)

    return check


def unknown_codes(graph: Graph) -> Iterator[Hit]:
    """Codes that are ignored and that no rule has: a slip that silences nothing."""
    known = [rule.code for rule in RULES]
    whole = graph.source.place(("lint", "ignore")) if graph.source is not None else None
    named: Sequence[tuple[int | None, frozenset[str], Source | None]] = [
        (None, graph.ignored, whole),
        *((i, codes, graph.place(i, "lint", "ignore")) for i, codes in sorted(graph.ignored_of.items())),
    ]
    for chunk, codes, place in named:
        for code in sorted(codes - set(known)):
            yield Hit(chunk, f"no finding has the code {quoted(code)}", place, did_you_mean(code, known))


RULES = (
    Rule("LG001", "hidden but influential", leaks),
    Rule("LG002", "bottleneck", bottlenecks),
    Rule("LG003", "names what it does not see", unseen_names),
    Rule("LG004", "leaf without generate", silent_leaves),
    Rule("LG005", "isolated chunk", isolated_chunks),
    Rule("LG006", "no assistant's turn", open_turns),
    Rule("LG007", "same chunk twice", duplicates),
    Rule("LG008", "unknown code ignored", unknown_codes),
    Rule("LG101", "repeated BOS", check_tokens=_token_rule("repeated_bos")),
    Rule("LG102", "missing BOS", check_tokens=_token_rule("missing_bos")),
    Rule("LG103", "position before a parent's end", check_tokens=_token_rule("positions_before_parents")),
    Rule("LG104", "position beyond the model", check_tokens=_token_rule("positions_beyond_model")),
    Rule("LG105", "border inside a token", check_tokens=_token_rule("split_borders")),
)
