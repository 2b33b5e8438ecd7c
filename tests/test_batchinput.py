"""Many graphs from files, globs, rows, bundles, a template with a table: in order, broken ones among them."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from legraph.batchinput import Inputs, Item, bundle_of, graph_of, items
from legraph.compiler import compile_file
from legraph.errors import GraphError, InputError
from legraph.rows import read_rows
from legraph.tokens import bytes_tokenizer


def graph(text: str = "Hello.", **more: Any) -> dict[str, Any]:
    return {"legraph": 1, "chunks": [{"name": "a", "text": text, **more}]}


def row(id: Any = "one", text: str = "Hello.", **more: Any) -> str:
    return json.dumps({"id": id, "graph": graph(text, **more)})


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def text_of(item: Item) -> str:
    """The text of its chunk, or what is wrong."""
    try:
        return graph_of(item).chunks[0].text or ""
    except InputError as error:
        return f"! {error.problems[0].message}"


def told(found: Any) -> list[tuple[int, str, str]]:
    return [(item.number, item.id, text_of(item)) for item in found]


def problem(*arguments: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(items(*arguments, **options))
    return str(caught.value).splitlines()[0]


# What is read


def test_inputs_of_all_kinds_come_in_their_order(tmp_path: Path) -> None:
    rows = write(tmp_path / "r.jsonl", row("x", "row x"), "", row("y", "row y"))
    file = write(tmp_path / "g.yaml", "legraph: 1", "chunks: [{name: a, text: a file}]")
    bundle = tmp_path / "b.npz"
    compile_file(file, bytes_tokenizer()).save(bundle)
    found = list(items([file, rows, bundle]))
    assert [(item.number, item.id) for item in found] == [
        (0, str(file)),
        (1, "x"),
        (2, "y"),
        (3, str(bundle)),
    ]
    assert [str(item.place) for item in found[1:3]] == [f"{rows}:1", f"{rows}:3"]
    texts = [bytes(bundle_of(item, bytes_tokenizer()).input_ids.tolist()).decode() for item in found]
    assert texts == ["a file", "row x", "row y", "a file"]


def test_rows_are_the_graphs_that_check_and_run_read(tmp_path: Path) -> None:
    lines = [row(f"g{i}", f"text {i}", start=i) for i in range(5)]
    path = write(tmp_path / "r.jsonl", *lines)
    read = read_rows(path)
    found = list(items([path]))
    assert [(one.id, one.line) for one in read] == [(item.id, item.place.line) for item in found]
    for one, item in zip(read, found, strict=True):
        assert one.graph.texts[0] == text_of(item)


def test_a_glob_that_the_shell_left_is_ours_and_counts_as_people_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (10, 9, 1):
        write(tmp_path / f"g{number}.yaml", "legraph: 1", f"chunks: [{{name: a, text: number {number}}}]")
    expected = ["number 1", "number 9", "number 10"]
    assert [text_of(item) for item in items([tmp_path / "g*.yaml"])] == expected
    monkeypatch.chdir(tmp_path)
    assert [text_of(item) for item in items(["g*.yaml"])] == expected
    # A file of that very name is no glob.
    write(tmp_path / "g[1].yaml", "legraph: 1", "chunks: [{name: a, text: brackets}]")
    assert [text_of(item) for item in items(["g[1].yaml"])] == ["brackets"]


def test_files_that_a_row_names_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("from a file")
    path = write(
        tmp_path / "r.jsonl",
        json.dumps({"id": "x", "graph": {"legraph": 1, "chunks": [{"name": "a", "file": "text.txt"}]}}),
    )
    assert told(items([path])) == [(0, "x", "from a file")]


def test_variables_reach_every_graph(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", row("x", "I am ${who}"))
    file = write(tmp_path / "g.yaml", "legraph: 1", "chunks: [{name: a, text: 'You are ${who}'}]")
    found = items([path, file], variables={"who": "Bob"})
    assert [text_of(item) for item in found] == ["I am Bob", "You are Bob"]


def test_an_item_can_go_to_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", row("x"), "broken")
    for item in items([path]):
        copy = pickle.loads(pickle.dumps(item))
        assert (copy.number, copy.id, copy.place, str(copy.error)) == (
            item.number,
            item.id,
            item.place,
            str(item.error),
        )
        assert text_of(copy) == text_of(item)


def test_a_long_file_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with path.open("w") as file:
        for i in range(5000):
            file.write(row(f"g{i}", "x" * 2000) + "\n")
    tracemalloc.start()
    try:
        num = sum(1 for _ in items([path]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num == 5000
    # 10 MB of rows; a hash and a number of each id.
    assert peak < 2e6


# A template and a table


TEMPLATE = """\
legraph: 1
vars: {name: nobody}
chunks: [{name: a, text: "I am ${name}, ${age}."}]
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "template.yaml"
    path.write_text(TEMPLATE)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_each_row_of_a_table_is_a_graph(kind: str, template: Path, tmp_path: Path) -> None:
    rows = [{"id": "p1", "name": "Bob", "age": 3}, {"id": "p2", "name": 'Al "x", \n$', "age": 40}]
    table = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        write(table, *map(json.dumps, rows))
    elif kind == "csv":
        table.write_text('id,name,age\np1,Bob,3\np2,"Al ""x"", \n$",40\n', newline="")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), table)
    assert told(items([], template, table)) == [
        (0, "p1", "I am Bob, 3."),
        (1, "p2", 'I am Al "x", \n$, 40.'),
    ]


def test_without_ids_rows_are_called_by_their_number_and_nulls_are_not_given(
    template: Path, tmp_path: Path
) -> None:
    table = write(tmp_path / "t.jsonl", '{"age": 1}', '{"age": 2, "name": null}', '{"age": 3, "name": "Al"}')
    assert told(items([], template, table)) == [
        (0, "1", "I am nobody, 1."),
        (1, "2", "I am nobody, 2."),
        (2, "3", "I am Al, 3."),
    ]


def test_a_rows_own_values_win_and_others_come_from_outside(template: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "t.jsonl", '{"name": "Al"}', '{"name": "Bo", "age": 9}')
    found = items([], template, table, variables={"age": "old"})
    assert [text_of(item) for item in found] == ["I am Al, old.", "I am Bo, 9."]


def test_an_id_can_be_a_variable_too(tmp_path: Path) -> None:
    template = write(tmp_path / "t.yaml", "legraph: 1", "chunks: [{name: a, text: 'number ${id}'}]")
    table = write(tmp_path / "t.jsonl", '{"id": 7}', '{"id": "x"}')
    assert told(items([], template, table)) == [(0, "7", "number 7"), (1, "x", "number x")]


def test_broken_rows_of_a_table_are_told_and_passed(template: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b'id,name,age\na,Al,1\nb,Bo\nc,\xff,2\nd,"x"y,3\ne,Ed,4\n')
    found = told(items([], template, table))
    assert [text for _, _, text in found] == [
        "I am Al, 1.",
        "! the row has 2 fields, and the header 3",
        "! is not UTF-8",
        "! not CSV: ',' expected after '\"'",
        "I am Ed, 4.",
    ]
    table = write(
        tmp_path / "t.jsonl",
        "[]",
        '{"name": ["x"], "age": 1}',
        '{"a b": 1, "age": 1}',
        '{"age": 1, "nmae": "Al"}',
        '{"name": "Al"}',
    )
    assert [text for _, _, text in told(items([], template, table))] == [
        "! the row is a list",
        "! 'name' is a list",
        "! 'a b' cannot be a variable's name",
        "! the file has no variable 'nmae'",
        "! unknown variable '${age}'",
    ]


# Parquet


def test_parquet_holds_graphs_as_json_or_as_structs(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    data = [
        graph("one"),
        graph("two", start=3),
        {
            "legraph": 1,
            "bos": False,
            "chunks": [
                {"name": "p", "text": "three"},
                {"name": "q", "text": "x", "parents": ["p"], "generate": {"max_new_tokens": 2}},
            ],
        },
    ]
    as_json = [{"id": f"j{i}", "graph": json.dumps(each)} for i, each in enumerate(data)]
    as_struct = [{"id": f"s{i}", "graph": each} for i, each in enumerate(data)]
    paths = [tmp_path / "j.parquet", tmp_path / "s.parquet"]
    for path, rows in zip(paths, (as_json, as_struct), strict=True):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = list(items(paths))
    assert [item.id for item in found] == ["j0", "j1", "j2", "s0", "s1", "s2"]
    graphs = [graph_of(item) for item in found]
    assert graphs[:3] == graphs[3:]
    assert str(found[4].place) == f"{paths[1]}:2"
    assert graphs[2].chunks[1].generate is not None and graphs[2].chunks[1].generate.max_new_tokens == 2
    assert Inputs.find(paths).num_graphs() == 6


def test_parquet_that_is_none_and_rows_that_are_broken(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "r.parquet"
    rows = [
        {"id": "a", "graph": "{"},
        {"id": None, "graph": json.dumps(graph())},
        {"id": "b", "graph": json.dumps(graph("ok"))},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert told(items([path])) == [
        (0, "a", "! not JSON: Expecting property name enclosed in double quotes"),
        (1, f"{path}:2", "! the row has no 'id'"),
        (2, "b", "ok"),
    ]
    text = pyarrow.array([b"\xff"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"id": text}), path)
    assert "is not Parquet, or damaged" in problem([path])
    path.write_bytes(b"PAR1 nothing else")
    assert "is not Parquet, or damaged" in problem([path])


# What is wrong


def test_broken_rows_are_items_with_their_error_and_place(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    lines = [
        row("a"),
        "nonsense",
        '{"id": "c"}',
        row("d", parents=["x"]),
        '{"id": "e", "grpah": {}}',
        row(7),
        row("f"),
    ]
    path.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}\n' + row("h").encode())
    found = list(items([path]))
    assert [(item.id, text_of(item)) for item in found] == [
        ("a", "Hello."),
        (f"{path}:2", "! not JSON: Expecting value"),
        ("c", "! the row has no 'graph'"),
        ("d", "! graph.chunks[0].parents[0]: unknown parent 'x'"),
        ("e", "! unknown key 'grpah'"),
        (f"{path}:6", "! 'id' is the number 7"),
        ("f", "Hello."),
        (f"{path}:8", "! is not UTF-8: byte 0xff at offset 8 of the line"),
        ("h", "Hello."),
    ]
    assert [item.place.line for item in found] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [item.number for item in found] == list(range(9))
    with pytest.raises(GraphError) as caught:
        graph_of(found[3])
    assert caught.value.problems[0].source is not None
    assert caught.value.problems[0].source.line == 4


def test_an_id_that_is_there_twice_names_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "a.jsonl", row("x"), row("y"), row("x"))
    second = write(tmp_path / "b.jsonl", row("z"), row("y"))
    found = list(items([first, second]))
    assert [str(item.error).splitlines()[0] for item in found if item.error] == [
        f"{first}:3: id 'x' is taken by {first}:1",
        f"{second}:2: id 'y' is taken by {first}:2",
    ]
    assert [item.number for item in found] == [0, 1, 2, 3, 4]
    again = list(items([first, first]))
    assert sum(item.error is not None for item in again) == 1 + 3
    monkeypatch.chdir(tmp_path)
    file = Path("g.yaml")
    write(file, "legraph: 1", "chunks: [{name: a, text: x}]")
    assert [str(item.error or "").partition("\n")[0] for item in items([file, file])] == [
        "",
        "g.yaml: id 'g.yaml' is taken by g.yaml",
    ]


def test_inputs_that_are_wrong_are_said_at_once(tmp_path: Path) -> None:
    missing, empty = tmp_path / "no.jsonl", write(tmp_path / "e.jsonl", "", " ")
    rows = write(tmp_path / "r.jsonl", row())
    for arguments, said in (
        (([],), "there are no inputs"),
        (([missing],), f"{missing}: no such file"),
        (([tmp_path],), f"{tmp_path}: is a folder, not a file"),
        (([tmp_path / "n*.yaml"],), f"no file matches {tmp_path}/n*.yaml"),
        (([empty],), f"{empty}: no graph is there"),
        (([], rows), "--template goes with --table"),
        (([], None, rows), "--table goes with --template"),
        (([rows], rows, rows), "there are inputs, and a template"),
        (([], rows, write(tmp_path / "t.txt", "x")), f"{tmp_path}/t.txt: is no table"),
        (([], missing, rows), f"{missing}: no such file"),
    ):
        assert problem(*arguments) == said


def test_a_graph_file_is_looked_at_when_it_is_wanted(tmp_path: Path) -> None:
    bad, good = (
        write(tmp_path / "bad.yaml", "legraph: 9"),
        write(tmp_path / "good.yaml", "legraph: 1", "chunks: [{name: a, text: x}]"),
    )
    assert [text[:1] for _, _, text in told(items([bad, good]))] == ["!", "x"]


def test_the_digest_is_of_names_and_contents(tmp_path: Path, template: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", row("x")), write(tmp_path / "b.jsonl", row("y"))
    digests = {Inputs.find(given).digest() for given in ([first], [second], [first, second], [second, first])}
    assert len(digests) == 4
    before = Inputs.find([first]).digest()
    assert Inputs.find([first]).digest() == before
    write(first, row("x", "Hello!"))
    assert Inputs.find([first]).digest() != before
    table = Inputs.find([], template, second).digest()
    template.write_text(TEMPLATE + "# changed\n")
    assert Inputs.find([], template, second).digest() != table
