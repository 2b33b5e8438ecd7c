"""The language written out: what loops, groups and includes make is what one would write by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.compiler import compile_file
from legraph.errors import GraphError, Problem
from legraph.graph import Graph, build_graph
from legraph.origin import Places
from legraph.parse import parse_file
from tests.marked import place_of, unmark


class Desk:
    """A folder of files, and the graphs in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **texts: str) -> None:
        """`name=text`; `__` in a name stands for a folder's stroke."""
        for name, text in texts.items():
            path = self.folder / (name.replace("__", "/") + ("" if "." in name else ".yaml"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def graph(self, name: str = "main.yaml", **variables: str) -> Graph:
        return build_graph(parse_file(self.folder / name, variables))

    def problems(
        self, name: str = "main.yaml", allow_outside: bool = False, **variables: str
    ) -> tuple[Problem, ...]:
        with pytest.raises(GraphError) as caught:
            parse_file(self.folder / name, variables, allow_outside)
        return caught.value.problems

    def said(self, **variables: str) -> list[tuple[str, str | None, str | None, str]]:
        """Place, where, hint and message of each problem; paths seen from the folder."""
        here = f"{self.folder}/"
        found = []
        for problem in self.problems("main.yaml", False, **variables):
            assert problem.source is not None
            note = problem.source.note
            found.append(
                (
                    str(problem.source).replace(here, ""),
                    note.replace(here, "") if note else None,
                    problem.hint,
                    problem.message.replace(here, ""),
                )
            )
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def same(desk: Desk, short: str, long: str) -> Graph:
    """The short file means what the long one says."""
    desk.write(main=short, long=long)
    graph = desk.graph()
    assert graph == desk.graph("long.yaml")
    assert graph.sha256() == desk.graph("long.yaml").sha256()
    return graph


def test_a_file_that_uses_nothing_of_the_language_passes_through(desk: Desk):
    desk.write(main="legraph: 1\nchunks: [{name: a, text: '$x { }'}, {name: b, text: b, parents: [a]}]\n")
    parsed = parse_file(desk.folder / "main.yaml")
    assert not isinstance(parsed.source, Places)
    assert parsed.selectors is None
    assert parsed.texts == ("$x { }", "b")


def test_loops_variables_and_groups(desk: Desk):
    desk.write(docs__2="two", docs__10="ten")
    same(
        desk,
        """legraph: 1
vars: {kind: doc, title: "the ${kind}s"}
positions: flat
chunks:
  - {name: head, text: "About ${title}:"}
  - for: {file: docs/*.yaml, lang: [en, fr]}
    name: ${kind}-${file.stem}-${lang}
    file: ${file}
    completion: "${lang.number} of $${2}"
    generate: {stop: ["${lang}"]}
    parents: [head]
    group: docs
  - {name: q, text: "so?", parents: [head, "@docs", "^*-10-fr"]}
""",
        """legraph: 1
positions: flat
chunks:
  - {name: head, text: "About the docs:"}
  - {name: doc-2-en, text: two, completion: "1 of ${2}", generate: {stop: [en]}, parents: [head]}
  - {name: doc-2-fr, text: two, completion: "2 of ${2}", generate: {stop: [fr]}, parents: [head]}
  - {name: doc-10-en, text: ten, completion: "1 of ${2}", generate: {stop: [en]}, parents: [head]}
  - {name: doc-10-fr, text: ten, completion: "2 of ${2}", generate: {stop: [fr]}, parents: [head]}
  - {name: q, text: "so?", parents: [head, doc-2-en, doc-2-fr, doc-10-en]}
""".replace("of ${2}", "of $${2}"),
    )


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    sees=st.lists(st.booleans(), min_size=3, max_size=3),
)
@settings(max_examples=25)
def test_a_loop_is_a_product_in_the_order_of_its_variables(
    sizes: list[int], sees: list[bool], tmp_path_factory: pytest.TempPathFactory
):
    """The last variable turns fastest, as the innermost of nested loops."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    names = [()]
    for size in sizes:
        names = [(*name, i) for name in names for i in range(size)]
    loops = ", ".join(f"v{at}: {{range: {size}}}" for at, size in enumerate(sizes))
    template = "".join(f"-${{v{at}}}" for at in range(len(sizes)))
    parents = "[all-before]" if sees[0] else '["c*"]' if sees[1] and len(names) > 1 else "[]"
    desk.write(
        main=f"legraph: 1\nchunks: [{{for: {{{loops}}}, name: 'c{template}', text: x, parents: {parents}}}]\n"
    )
    if parents == '["c*"]':
        assert any("cycle" in problem.message for problem in desk.problems())
        return
    graph = desk.graph()
    assert [chunk.name for chunk in graph.chunks] == ["c" + "".join(f"-{i}" for i in name) for name in names]
    before = [tuple(range(i)) if sees[0] else () for i in range(len(names))]
    assert [chunk.parents for chunk in graph.chunks] == before


RAG = """legraph: 1
chunks:
  - {name: head, text: "Answer from the documents."}
  - for: {doc: docs/*.txt}
    name: doc${doc.stem}
    file: ${doc}
    parents: [head]
    group: docs
  - name: question
    text: "What does the fox say?"
    parents: [head, "@docs"]
    generate: {max_new_tokens: 32}
"""
NUMBER = 500


@pytest.fixture
def rag(desk: Desk) -> Desk:
    desk.write(main=RAG)
    (desk.folder / "docs").mkdir()
    for i in range(NUMBER):
        (desk.folder / f"docs/{i}.txt").write_text(f"Text {i}.")
    return desk


def test_five_hundred_files_take_twelve_lines(rag: Desk):
    assert len(RAG.splitlines()) <= 12
    graph = rag.graph()
    names = ["head", *(f"doc{i}" for i in range(NUMBER)), "question"]
    assert [chunk.name for chunk in graph.chunks] == names
    assert [chunk.text for chunk in graph.chunks[1:-1]] == [f"Text {i}." for i in range(NUMBER)]
    assert {chunk.parents for chunk in graph.chunks[1:-1]} == {(0,)}
    assert graph.chunks[-1].parents == tuple(range(NUMBER + 1))
    bundle = compile_file(rag.folder / "main.yaml", "bytes")
    assert len(bundle) == sum(len(chunk.text or "") for chunk in graph.chunks)


def test_an_error_in_one_of_them_names_it(rag: Desk):
    (rag.folder / "docs/317.txt").write_bytes(b"caf\xe9")
    (problem,) = rag.problems()
    assert problem.message == "docs/317.txt: is not UTF-8: byte 0xe9 at offset 3 (line 1)"
    assert problem.source is not None and problem.source.note == "doc is docs/317.txt"
    assert place_of(problem).part == "${doc}" and problem.source.line == 6


def test_an_error_in_all_of_them_is_said_once(rag: Desk):
    text, places = unmark(RAG.replace("file: ${doc}", "text: a «${dok}» b").replace("docs]", "«docs»]"))
    rag.write(main=text)
    (problem,) = rag.problems()
    assert (problem.message, problem.hint) == ("unknown variable '${dok}'", "did you mean 'doc'?")
    assert place_of(problem) == places[0]
    assert problem.source is not None and problem.source.note == "doc is docs/0.txt"


def test_work_grows_with_the_number_of_files(tmp_path: Path):
    """Counted in calls of functions, which do not depend on how busy the machine is."""
    import sys

    def calls(number: int) -> int:
        text = RAG.replace("docs/*.txt", f"{{range: {number}}}").replace("file: ${doc}", 'text: "t ${doc}"')
        (tmp_path / "g.yaml").write_text(text.replace("doc.stem", "doc"))
        counted = 0

        def count(frame: object, event: str, what: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            parse_file(tmp_path / "g.yaml")
        finally:
            sys.setprofile(None)
        return counted

    small, large = calls(1000), calls(4000)
    assert large < 4.2 * small


def test_all_problems_come_at_once_in_the_order_of_the_file(desk: Desk):
    text, places = unmark(
        """legraph: 1
vars: {title: fox, «1x»: a, other: «[»1]}
chunks:
  - {name: a, text: "«${titel}» ${title} «${row}»"}
  - name: b${i}
    for: {i: {range: 3}}
    text: |
      some lines
      and «${i.x}» here
    parents: [«"@nope"», a, «ancestors(c)», «^dov»]
  - {for: {«2»: [a]}, name: c, text: c}
  - {for: «7», name: d, text: c}
  - {name: e, text: f, «textt»: g}
assert:
  - {sees: [a, «"@none"»]}
""".replace("  - {for: {«2»: [a]}, name: c, text: c}\n  - {for: «7», name: d, text: c}\n", "")
    )
    desk.write(main=text)
    problems = desk.problems()
    assert [place_of(problem) for problem in problems] == places[:-1]


def test_what_a_broken_loop_would_have_made_is_not_missed(desk: Desk):
    desk.write(
        main="""legraph: 1
chunks:
  - {for: {d: "none/*.txt"}, name: "d${d.index}", file: "${d}", group: docs}
  - {for: {2x: [a]}, name: c, text: c}
  - {for: [a], name: e, text: c}
  - {name: q, text: q, parents: ["@docs", d0, "c*", ancestors(d1), ^d2], start: -1}
assert: [{sees: [q, d0]}]
"""
    )
    assert [problem.message for problem in desk.problems()] == [
        "no file matches none/*.txt",
        "the string '2x' cannot be a variable's name",
        "'for' is a list",
        "'start' is -1: a position cannot be negative",
    ]
    desk.write(main='legraph: 1\nchunks: [{for: {d: "none/*.txt"}, name: "d${d.index}", file: "${d}"}]\n')
    assert [problem.message for problem in desk.problems()] == ["no file matches none/*.txt"]


def test_a_wrong_variable_is_the_only_thing_said_of_a_value(desk: Desk):
    desk.write(
        main='legraph: 1\nchunks: [{name: "doc ${x}", text: a}, {name: b, text: c, parents: ["${y}"]}]\n'
    )
    assert [problem.message for problem in desk.problems()] == [
        "unknown variable '${x}'",
        "unknown variable '${y}'",
    ]


@pytest.mark.parametrize(
    "written",
    [
        'text: "a «${x}»"',
        "text: a «${x}»",
        "text: 'it''s «${x}» and ${x}'",
        "text: &anchor x «${x}»",
        'text: "one\\n two «${x}»"',
        'text: "one\n        two «${x}»"',
        'text: "some words\n     «${x}»"',
        'text: «"\\u0024{x} ${y}"»',
    ],
)
def test_the_place_of_a_reference_is_its_own(desk: Desk, written: str):
    """Where the file writes it in another way, that of the string."""
    text, places = unmark(f"legraph: 1\nvars: {{y: 1}}\nchunks:\n  - name: a\n    {written}\n")
    desk.write(main=text)
    (problem,) = desk.problems()
    assert problem.message == "unknown variable '${x}'"
    assert place_of(problem) == places[0]


def test_a_reference_behind_an_alias_is_where_the_alias_is(desk: Desk):
    text, places = unmark(
        "legraph: 1\nchunks:\n  - {name: a, text: &t 'x «${x}»'}\n  - {name: b, text: «*t»}\n"
        "  - {name: c, text: 'y «${x}»'}\n"
    )
    desk.write(main=text)
    assert [place_of(problem) for problem in desk.problems()] == places


# Includes.

PART = """legraph: 1
vars: {who: nobody}
chunks:
  - {name: a, text: "I am ${who}", group: both}
  - {name: b, file: b.txt, parents: [a], group: both}
  - {name: c, text: c, parents: ["@both", all-before]}
assert:
  - {sees: [c, "@both"]}
"""


def test_a_file_can_be_included_twice(desk: Desk):
    desk.write(sub__part=PART, **{"sub__b.txt": "${text}"})
    graph = same(
        desk,
        """legraph: 1
vars: {who: main}
chunks:
  - {name: a, text: "of ${who}"}
  - {include: sub/part.yaml, as: x, parents: [a], vars: {who: "${who}"}, group: parts}
  - {include: sub/part.yaml, as: y, group: parts}
  - {name: q, text: q, parents: ["@x", "@y.both", ^x.c, ancestors(y.c)]}
  - {name: r, text: r, parents: ["@parts"]}
""",
        """legraph: 1
chunks:
  - {name: a, text: "of main"}
  - {name: x.a, text: "I am main", parents: [a]}
  - {name: x.b, text: "$${text}", parents: [x.a, a]}
  - {name: x.c, text: c, parents: [x.a, x.b, a]}
  - {name: y.a, text: "I am nobody"}
  - {name: y.b, text: "$${text}", parents: [y.a]}
  - {name: y.c, text: c, parents: [y.a, y.b]}
  - {name: q, text: q, parents: [x.a, x.b, y.a, y.b]}
  - {name: r, text: r, parents: [x.a, x.b, x.c, y.a, y.b, y.c]}
""",
    )
    assert [each.pairs for each in graph.assertions] == [((3, 1), (3, 2)), ((6, 4), (6, 5))]


def test_a_diamond_of_includes_and_prefixes_of_prefixes(desk: Desk):
    desk.write(
        leaf='legraph: 1\nvars: {t: ""}\n'
        'chunks: [{name: x, text: "x${t}"}, {name: y, text: y, parents: [x]}]\n',
        one="legraph: 1\n"
        "chunks: [{include: leaf.yaml, as: l, vars: {t: 1}}, {name: e, text: e, parents: [l.y]}]\n",
        two='legraph: 1\nchunks: [{include: leaf.yaml}, {name: e, text: e, parents: ["@m", x], group: m}, '
        "{name: f, text: f, group: m}]\n",
    )
    same(
        desk,
        "legraph: 1\nchunks: [{include: one.yaml, as: o}, {include: two.yaml, as: t}, "
        '{name: q, text: q, parents: ["@o.l", "t.*"]}]\n',
        """legraph: 1
chunks:
  - {name: o.l.x, text: x1}
  - {name: o.l.y, text: y, parents: [o.l.x]}
  - {name: o.e, text: e, parents: [o.l.y]}
  - {name: t.x, text: x}
  - {name: t.y, text: y, parents: [t.x]}
  - {name: t.e, text: e, parents: [t.f, t.x]}
  - {name: t.f, text: f}
  - {name: q, text: q, parents: [o.l.x, o.l.y, t.x, t.y, t.e, t.f]}
""",
    )


def test_parents_and_groups_of_includes_reach_the_files_below(desk: Desk):
    desk.write(
        mid="legraph: 1\nchunks: [{name: m, text: m}, "
        "{include: leaf.yaml, as: l, parents: [m], group: inner}, {name: n, text: n, parents: ['@inner']}]\n",
        leaf="legraph: 1\nchunks: [{name: x, text: x}]\n",
    )
    same(
        desk,
        "legraph: 1\nchunks: [{name: a, text: a}, {include: mid.yaml, as: o, parents: [a], group: outer}, "
        "{name: q, text: q, parents: ['@outer', '^o.n']}, {name: r, text: r, parents: ['@o.inner']}]\n",
        """legraph: 1
chunks:
  - {name: a, text: a}
  - {name: o.m, text: m, parents: [a]}
  - {name: o.l.x, text: x, parents: [a, o.m]}
  - {name: o.n, text: n, parents: [o.l.x, a]}
  - {name: q, text: q, parents: [o.m, o.l.x]}
  - {name: r, text: r, parents: [o.l.x]}
""",
    )


def test_an_include_for_each_row(desk: Desk):
    desk.write(part='legraph: 1\nchunks: [{name: t, text: "${title}!"}, {name: u, text: u, parents: [t]}]\n')
    (desk.folder / "rows.csv").write_text("id,title\nx,The fox\ny,The ${owl}\n")
    same(
        desk,
        """legraph: 1
chunks:
  - {name: head, text: h}
  - {for: {row: rows.csv}, include: part.yaml, as: "r${row.id}", vars: {title: "${row.title}"},
     parents: [head], group: all}
  - {name: q, text: q, parents: ["@all", "^*.t"]}
""",
        """legraph: 1
chunks:
  - {name: head, text: h}
  - {name: rx.t, text: "The fox!", parents: [head]}
  - {name: rx.u, text: u, parents: [rx.t, head]}
  - {name: ry.t, text: "The $${owl}!", parents: [head]}
  - {name: ry.u, text: u, parents: [ry.t, head]}
  - {name: q, text: q, parents: [rx.u, ry.u]}
""",
    )


def test_an_included_file_sees_no_variables_but_those_it_is_given(desk: Desk):
    main, (unused,) = unmark(
        "legraph: 1\nvars: {a: 1, b: 2}\nchunks:\n"
        "  - {include: part.yaml, vars: {c: 3, «d»: 4}, for: {i: [5]}}\n"
    )
    part, unknown = unmark('legraph: 1\nchunks:\n  - {name: x, text: "${c} «${a}» «${i}»"}\n')
    desk.write(main=main, part=part)
    problems = desk.problems()
    assert [place_of(problem) for problem in problems] == [unused, *unknown]
    assert [(place, where, message) for place, where, _, message in desk.said()] == [
        (f"main.yaml:4:{unused.column}", "i is '5'", "part.yaml has no variable 'd'"),
        (
            f"part.yaml:3:{unknown[0].column}",
            "included at main.yaml:4:15, i is '5'",
            "unknown variable '${a}'",
        ),
        (
            f"part.yaml:3:{unknown[1].column}",
            "included at main.yaml:4:15, i is '5'",
            "unknown variable '${i}'",
        ),
    ]


def test_variables_from_outside_are_the_outermost_files(desk: Desk):
    desk.write(
        main='legraph: 1\nvars: {a: 1}\nchunks: [{include: part.yaml, vars: {a: "${a}"}}]\n',
        part='legraph: 1\nvars: {a: 7, b: 8}\nchunks: [{name: x, text: "${a} ${b}"}]\n',
    )
    assert desk.graph(a="x").chunks[0].text == "x 8"
    assert [problem.message for problem in desk.problems(b="x")] == ["the file has no variable 'b'"]


def test_an_error_inside_an_included_file_says_where_it_was_included(desk: Desk):
    """Once, however often it was."""
    leaf, places = unmark("""legraph: 1
chunks:
  - {name: x, text: «7»}
  - {name: y, file: «none.txt», parents: [«xx», x]}
  - {name: «1y», text: y, start: «-»1}
  - {name: z, text: z, parents: [«"@zz"», «"^w*"»]}
""")
    desk.write(
        main="legraph: 1\nchunks:\n  - {name: a, text: a}\n"
        "  - {for: {i: [1, 2]}, include: mid.yaml, as: 'm${i}', parents: [a]}\n",
        mid="legraph: 1\nchunks:\n  - {include: sub/leaf.yaml, as: l}\n",
        sub__leaf=leaf,
    )
    problems = desk.problems()
    assert [(place_of(problem).line, place_of(problem).column) for problem in problems] == [
        (place.line, place.column) for place in places
    ]
    where = "included at mid.yaml:3:15, included at main.yaml:4:33, i is '1'"
    assert [(place.partition(":")[0], note, message) for place, note, _, message in desk.said()] == [
        ("sub/leaf.yaml", where, message)
        for message in [
            "'text' must be a string, not the number 7",
            "sub/none.txt: no such file",
            "unknown parent 'xx'",
            "'1y' cannot be a chunk's name",
            "'start' is -1: a position cannot be negative",
            "there is no group '@zz'",
            "'^w*' matches no chunk",
        ]
    ]


def test_an_included_file_may_name_the_chunk_that_all_files_have(desk: Desk):
    desk.write(
        main="legraph: 1\nbos: true\nchunks: [{include: part.yaml, as: p}]\n",
        part="legraph: 1\nbos: true\nchunks: [{name: x, text: x, parents: [bos]}]\n",
    )
    assert desk.graph().chunks[1].parents == (0,)
    desk.write(
        main="legraph: 1\nchunks: [{include: part.yaml, as: p}]\n",
        part="legraph: 1\nchunks: [{name: x, text: x, parents: [bos]}]\n",
    )
    assert [problem.message for problem in desk.problems()] == ["unknown parent 'bos'"]


def test_broken_syntax_of_an_included_file_does_so_too(desk: Desk):
    desk.write(
        main="legraph: 1\nchunks:\n  - {include: part.yaml}\n  - {include: other.yaml}\n",
        part="legraph: 1\nchunks: [\n",
        other="legraph: 1\nlegraph: 1\nchunks: [{name: x, text: x}]\n",
    )
    found = desk.said()
    assert [(place.partition(":")[0], where) for place, where, _, _ in found] == [
        ("other.yaml", "included at main.yaml:4:15"),
        ("part.yaml", "included at main.yaml:3:15"),
    ]
    assert found[0][3] == "key 'legraph' is repeated (first on line 1)"


def test_rows_that_cannot_be_read_say_who_reads_them(desk: Desk):
    desk.write(main="legraph: 1\nchunks:\n  - {for: {r: r.jsonl}, name: 'c${r.x}', text: '${r.x}'}\n")
    (desk.folder / "r.jsonl").write_text('{"x": 1}\n{"x": 2\n')
    assert [(place, where) for place, where, _, _ in desk.said()] == [
        ("r.jsonl:2:8", "read at main.yaml:3:15")
    ]


@pytest.mark.parametrize(
    ("files", "drawn"),
    [
        ({"main": "main"}, "main.yaml -> main.yaml"),
        ({"main": "a", "a": "b", "b": "a"}, "a.yaml -> b.yaml -> a.yaml"),
        ({"main": "a", "a": "./main"}, "main.yaml -> a.yaml -> main.yaml"),
    ],
)
def test_includes_that_lead_back(desk: Desk, files: dict[str, str], drawn: str):
    for name, other in files.items():
        desk.write(**{name: f"legraph: 1\nchunks:\n  - {{include: {other}.yaml, as: p}}\n"})
    (problem,) = desk.problems()
    assert problem.message == f"the includes form a cycle: {drawn}"


def test_includes_that_lead_back_under_a_name_that_cannot_be_printed(desk: Desk):
    name = "ma\tin.yaml"
    (desk.folder / name).write_text('legraph: 1\nchunks: [{include: "ma\\tin.yaml", as: p}]\n')
    assert "the includes form a cycle" in desk.problems(name)[0].message


def test_too_many_includes(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    for i in range(40):
        desk.write(**{f"f{i}": f"legraph: 1\nchunks: [{{include: f{i + 1}.yaml, as: p}}]\n"})
    assert [problem.message for problem in desk.problems("f0.yaml")] == [
        "more than 32 files include each other"
    ]
    # Each file includes the next one twice, so that there are two to the power of twenty.
    monkeypatch.setattr("legraph.expand.MAX_INCLUDES", 1000)
    for i in range(20):
        twice = f"[{{include: f{i + 1}.yaml, as: p}}, {{include: f{i + 1}.yaml, as: q}}]"
        desk.write(**{f"f{i}": f"legraph: 1\nchunks: {twice}\n"})
    desk.write(f20="legraph: 1\nchunks: [{name: x, text: x}]\n")
    (problem,) = desk.problems("f0.yaml")
    assert problem.message == "over 1,000 files are included"


def test_too_many_chunks(desk: Desk):
    desk.write(
        main="legraph: 1\nchunks:\n"
        "  - {for: {i: {range: 1001}, j: {range: 1000}}, name: 'c${i}-${j}', text: x}\n"
    )
    (problem,) = desk.problems()
    assert problem.message == "the graph has over 1,000,000 chunks"


SECRET = "leads out of the folder of the graph file"


def test_paths_that_leave_the_tree_are_refused_unless_that_is_allowed(desk: Desk):
    whole = desk.folder.resolve()
    desk.write(
        tree__main=f"""legraph: 1
chunks:
  - {{name: a, file: ../out.txt}}
  - {{name: b, file: "{whole}/out.txt"}}
  - {{name: c, file: in/../../out.txt}}
  - {{for: {{d: "../*.txt"}}, name: "d${{d.index}}", file: "${{d}}"}}
  - {{for: {{r: ../rows.csv}}, name: "r${{r.index}}", text: "${{r.x}}"}}
  - {{include: ../part.yaml, as: p}}
  - {{include: "{whole}/part.yaml", as: q}}
  - {{include: in/part.yaml, as: s}}
""",
        part="legraph: 1\nchunks: [{name: x, file: out.txt}]\n",
        tree__in__part="legraph: 1\nchunks: [{name: x, file: ../in.txt}, {name: y, file: ../../out.txt}]\n",
        **{"out.txt": "outside", "rows.csv": "x\n1\n", "tree__in.txt": "inside"},
    )
    problems = desk.problems("tree/main.yaml")
    assert [problem.message.endswith(SECRET) for problem in problems] == 8 * [True]
    assert {problem.hint for problem in problems} == {"--allow-outside lets paths lead anywhere"}
    assert [problem.source.line for problem in problems if problem.source] == [3, 4, 5, 6, 7, 8, 9, 2]
    graph = build_graph(parse_file(desk.folder / "tree/main.yaml", allow_outside=True))
    texts = {chunk.name: chunk.text for chunk in graph.chunks}
    assert texts == {
        **dict.fromkeys(["a", "b", "c", "d0", "p.x", "q.x", "s.y"], "outside"),
        "r0": "1",
        "s.x": "inside",
    }


@pytest.mark.parametrize("value", ["no.yaml", "sub", "a\\0b", "loop"])
def test_files_that_cannot_be_included(desk: Desk, value: str):
    (desk.folder / "sub").mkdir()
    (desk.folder / "loop").symlink_to("loop")
    desk.write(main=f'legraph: 1\nchunks:\n  - {{include: "{value}", as: p}}\n')
    (problem,) = desk.problems()
    assert problem.source is not None and (problem.source.line, problem.source.column) == (3, 15)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("include: 7", "'include' is the number 7"),
        ("include: ''", "'include' is the string ''"),
        ("include: null", "'include' is null"),
        ("include: part.yaml, as: 1x", "'as' is the string '1x'"),
        ('include: part.yaml, as: "x\\n"', "'as' is the string 'x\\n'"),
        ("include: part.yaml, group: a b", "'group' is the string 'a b'"),
        ("include: part.yaml, parents: x", "'parents' is the string 'x'"),
        ("include: part.yaml, parents: [7]", "'parents' is a list"),
        ("include: part.yaml, vars: [7]", "'vars' is a list"),
        ("include: part.yaml, vars: {t: null}", "variable 't' is null"),
        ("include: part.yaml, vars: {1t: a}", "the string '1t' cannot be a variable's name"),
        ("include: part.yaml, text: a", "unknown key 'text'"),
        ("include: part.yaml, as: '${x}'", "unknown variable '${x}'"),
    ],
)
def test_wrong_values_of_an_include(desk: Desk, entry: str, message: str):
    desk.write(
        main=f"legraph: 1\nchunks:\n  - {{{entry}}}\n",
        part="legraph: 1\nvars: {t: a}\nchunks: [{name: x, text: x}]\n",
    )
    assert message in [problem.message for problem in desk.problems()]
    assert len(desk.problems()) == 1


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        ("", "positions: flat", "'positions' is the string 'flat', and for the graph the string 'causal'"),
        ("bos: true", "bos: false", "'bos' is the boolean false, and for the graph the boolean true"),
        ("tokenizer: a", "tokenizer: b", "'tokenizer' is the string 'b', and for the graph the string 'a'"),
        ("", "lint: {ignore: [LG001]}", "'lint' of an included file"),
        ("", "extra: 1", "unknown key 'extra'"),
        ("bos: true", "", None),
        ("", "positions: causal", None),
        ("", "bos: false", None),
        ("positions: flat", "positions: flat", None),
        ("vars: {t: a}\ntokenizer: '${t}'", "vars: {u: a}\ntokenizer: '${u}'", None),
    ],
)
def test_settings_of_included_files(desk: Desk, outer: str, inner: str, message: str | None):
    desk.write(
        main=f"legraph: 1\n{outer}\nchunks: [{{include: mid.yaml}}]\n",
        mid="legraph: 1\nchunks: [{include: part.yaml}]\n",
        part=f"legraph: 1\n{inner}\nchunks: [{{name: x, text: x}}]\n",
    )
    if message is None:
        assert [chunk.name for chunk in desk.graph().chunks if chunk.text] == ["x"]
    else:
        (problem,) = desk.problems()
        assert problem.message == message
        assert problem.source is not None and problem.source.file.endswith("part.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "part.yaml is no graph file"),
        ("chunks: [{name: x, text: x}]\n", "the file does not say 'legraph: 1'"),
        ("legraph: 2\nchunks: [{name: x, text: x}]\n", "the file does not say 'legraph: 1'"),
        ("legraph: 1\n", "the included file has no chunks"),
        ("legraph: 1\nchunks: []\n", "the included file has no chunks"),
    ],
)
def test_files_that_are_no_graphs(desk: Desk, text: str, message: str):
    desk.write(main="legraph: 1\nchunks: [{name: y, text: y}, {include: part.yaml}]\n", part=text)
    (problem,) = desk.problems()
    assert problem.message.endswith(message)


def test_names_that_meet(desk: Desk):
    desk.write(
        main="legraph: 1\nchunks: [{include: part.yaml}, {include: part.yaml}]\n",
        part="legraph: 1\nchunks: [{name: x, text: x}]\n",
    )
    (problem,) = desk.problems()
    assert problem.message == "chunk name 'x' is taken by chunk number 1"


@pytest.mark.parametrize("written", ["[{a: 1}]", "5", "text", "null"])
def test_variables_that_are_none(desk: Desk, written: str):
    desk.write(main=f"legraph: 1\nvars: {written}\nchunks: [{{name: x, text: x}}]\n")
    messages = [problem.message for problem in desk.problems(given="a")]
    assert sorted(messages)[0].startswith("'vars' is")
    assert sorted(messages)[1:] == ["the file has no variable 'given'"]


YAML_TWIN = """legraph: 1
vars: {kind: doc}
chunks:
  - {name: head, text: "a ${kind}"}
  - for: {row: rows.csv, i: {range: [1, 3]}}
    name: ${kind}${row.id}-${i}
    text: ${row.title}
    parents: [head]
    group: docs
  - {include: part.yaml, as: p, vars: {who: "${kind}"}, parents: ["@docs"]}
  - {name: q, text: "$${q}", parents: ["*", "^head"]}
assert:
  - {sees: [q, "@docs"]}
"""
TOML_TWIN = """legraph = 1
vars = {kind = "doc"}
assert = [{sees = ["q", "@docs"]}]

[[chunks]]
name = "head"
text = "a ${kind}"

[[chunks]]
for = {row = "rows.csv", i = {range = [1, 3]}}
name = "${kind}${row.id}-${i}"
text = "${row.title}"
parents = ["head"]
group = "docs"

[[chunks]]
include = "part.toml"
as = "p"
vars = {who = "${kind}"}
parents = ["@docs"]

[[chunks]]
name = "q"
text = "$${q}"
parents = ["*", "^head"]
"""
JSON_TWIN = {
    "legraph": 1,
    "vars": {"kind": "doc"},
    "chunks": [
        {"name": "head", "text": "a ${kind}"},
        {
            "for": {"row": "rows.csv", "i": {"range": [1, 3]}},
            "name": "${kind}${row.id}-${i}",
            "text": "${row.title}",
            "parents": ["head"],
            "group": "docs",
        },
        {"include": "part.yaml", "as": "p", "vars": {"who": "${kind}"}, "parents": ["@docs"]},
        {"name": "q", "text": "$${q}", "parents": ["*", "^head"]},
    ],
    "assert": [{"sees": ["q", "@docs"]}],
}


def test_twins_of_all_syntaxes_are_equal(desk: Desk):
    desk.write(
        main=YAML_TWIN,
        part='legraph: 1\nchunks: [{name: x, text: "${who}"}]\n',
        **{
            "main.toml": TOML_TWIN,
            "part.toml": 'legraph = 1\n[[chunks]]\nname = "x"\ntext = "${who}"\n',
            "main.json": json.dumps(JSON_TWIN),
            "rows.csv": "id,title\na,The fox\nb,The owl\n",
        },
    )
    one, two, three = desk.graph(), desk.graph("main.toml"), desk.graph("main.json")
    assert [chunk.name for chunk in one.chunks] == [
        "head",
        "doca-1",
        "doca-2",
        "docb-1",
        "docb-2",
        "p.x",
        "q",
    ]
    assert one == two == three
    assert one.sha256() == two.sha256() == three.sha256()
    pairs = [[each.pairs for each in graph.assertions] for graph in (one, two, three)]
    assert pairs[0] == pairs[1] == pairs[2] == [((6, 1), (6, 2), (6, 3), (6, 4))]


def test_a_problem_of_a_toml_file_has_its_place_too(desk: Desk):
    text, places = unmark(TOML_TWIN.replace('"a ${kind}"', '"a «${knd}»"').replace("part.toml", "part.yaml"))
    desk.write(
        part='legraph: 1\nchunks: [{name: x, text: "${who}"}]\n',
        **{"main.toml": text, "rows.csv": "id,title\na,b\n"},
    )
    (problem,) = desk.problems("main.toml")
    assert place_of(problem) == places[0]
