"""Packing: nothing lost, nothing twice, little empty; and what `legraph pack` says of what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.batchinput import items
from legraph.binpacking import first_fit_decreasing
from legraph.bundle import NO_LABEL
from legraph.collate import Collator
from legraph.compiler import Chunk, compile_chunks
from legraph.errors import InputError, RunError
from legraph.mask import ChunkMask
from legraph.model import load_model
from legraph.pack import MAX_PROBLEMS, PackSettings, pack, packs
from legraph.packcompile import SLICE
from legraph.packfile import PackGraph, PackInfo, read_info, write_packs
from legraph.tokens import bytes_tokenizer, fingerprint
from legraph.union import disjoint_union
from tests.command_line import Call
from tests.random_graphs import content, tokenizer

datasets = pytest.importorskip("datasets")
COLUMNS = [
    "input_ids",
    "position_ids",
    "labels",
    "span_offsets",
    "parent_offsets",
    "parent_indices",
    "graph_offsets",
    "graph_ids",
]


# First-fit decreasing


def slow_first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """The definition: from the largest on, look at one bin after the other."""
    bins: list[list[int]] = []
    for size, i in sorted(((-size, i) for i, size in enumerate(sizes))):
        for each in bins:
            if sum(sizes[j] for j in each) - size <= capacity:
                each.append(i)
                break
        else:
            bins.append([i])
    return bins


@settings(max_examples=300)
@given(capacity=st.integers(1, 40), data=st.data())
def test_first_fit_decreasing_is_what_the_definition_says(capacity: int, data: st.DataObject):
    sizes = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    found = first_fit_decreasing(sizes, capacity)
    assert found == slow_first_fit_decreasing(sizes, capacity)
    assert sorted(i for each in found for i in each) == list(range(len(sizes)))


def test_a_size_that_fits_nowhere_is_an_error() -> None:
    for sizes in ([3, 0], [5], [-1]):
        with pytest.raises(ValueError, match=r"1\.\.4"):
            first_fit_decreasing(sizes, 4)


def test_many_sizes_are_packed_fast() -> None:
    """As many bins as sizes: the quadratic way would make 5,000,000,000 comparisons."""
    started = time.process_time()
    assert len(first_fit_decreasing([60] * 100_000, 100)) == 100_000
    assert time.process_time() - started < 15


# Packs


def blank(number: int, length: int) -> PackGraph:
    """A graph of one chunk whose tokens are all its number."""
    ids = np.full(length, number, dtype=np.int32)
    offsets, no_parents = np.array([0, length]), np.array([0, 0])
    mask = ChunkMask(offsets, no_parents, np.zeros(0, dtype=np.int64))
    return PackGraph(str(number), ids, np.arange(length, dtype=np.int32), ids, mask)


@settings(max_examples=150)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60),
    window=st.integers(1, 70),
    seed=st.integers(0, 3),
)
def test_every_graph_is_in_one_pack(lengths: list[int], window: int, seed: int):
    graphs = [blank(i, length) for i, length in enumerate(lengths)]
    found = list(packs(iter(graphs), 20, window, seed))
    assert sorted(int(graph.id) for each in found for graph in each) == list(range(len(lengths)))
    for each in found:
        assert 1 <= sum(map(len, each)) <= 20
        assert [int(graph.id) for graph in each] == sorted(int(graph.id) for graph in each)
    again = list(packs(iter(graphs), 20, window, seed))
    assert [[graph.id for graph in each] for each in again] == [
        [graph.id for graph in each] for each in found
    ]


def test_packs_are_given_out_window_by_window() -> None:
    """Memory is that of a window: 1,000 graphs are never all there at once."""
    taken = 0

    def stream() -> Iterator[PackGraph]:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield blank(i, 7)

    given_out = 0
    for each in packs(stream(), 20, 50, 0):
        given_out += len(each)
        assert taken - given_out <= 50 + 2
    assert given_out == 1000


def test_little_stays_empty_and_the_seed_orders_the_packs() -> None:
    random = Random(1)
    graphs = [blank(i, random.randint(40, 2400)) for i in range(6000)]
    by_seed = {}
    for seed in (0, 1):
        found = list(packs(iter(graphs), 8192, 1024, seed))
        assert sum(map(len, graphs)) / (8192 * len(found)) > 0.99
        by_seed[seed] = [[graph.id for graph in each] for each in found]
    assert by_seed[0] != by_seed[1]
    assert sorted(map(tuple, by_seed[0])) == sorted(map(tuple, by_seed[1]))
    # Not the largest graphs first, as first-fit decreasing leaves them.
    sizes = [max(len(graphs[int(i)]) for i in each) for each in by_seed[0][:100]]
    assert sizes != sorted(sizes, reverse=True)


# From files to a folder


def graph_of(i: int, **more: Any) -> dict[str, Any]:
    """A document and a question; of 4 + (3 to 9) + 4 tokens."""
    document = {"name": "d", "text": f"doc{i % 10}"}
    question = {
        "name": "q",
        "text": "why" + "?" * (i % 7),
        "parents": ["d"],
        "completion": " yes",
        "loss": True,
    }
    return {"legraph": 1, "tokenizer": "bytes", "chunks": [document, question]} | more


def length_of(i: int) -> int:
    return 4 + 3 + i % 7 + 4


def write_rows(path: Path, graphs: dict[str, Any]) -> Path:
    lines = (json.dumps({"id": id, "graph": graph}) + "\n" for id, graph in graphs.items())
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """More than two slices of graphs."""
    return write_rows(tmp_path / "graphs.jsonl", {f"g{i}": graph_of(i) for i in range(2 * SLICE + 20)})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder: Path) -> list[dict[str, Any]]:
    """The rows, read without `datasets`, which takes its time."""
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder / "data").to_pylist()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_pack_holds_the_graphs_as_compiled(rows: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "packs"
    done = call("pack", str(rows), "-o", str(out), "--length", "64", "--json")
    assert (done.code, done.err) == (0, "")
    # As anybody would.
    found = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.column_names == COLUMNS
    assert {str(found.features[name].feature.dtype) for name in COLUMNS[:-1]} == {"int32"}
    num_graphs = 2 * SLICE + 20
    seen = [id for row in found for id in row["graph_ids"]]
    assert sorted(seen) == sorted(f"g{i}" for i in range(num_graphs))
    for row in found:
        numbers = [int(id[1:]) for id in row["graph_ids"]]
        parts = [compile_chunks([chunk_of(i)], tokenizer()) for i in numbers]
        union = content(disjoint_union(parts))
        for name in ("input_ids", "position_ids", "span_offsets", "parent_offsets", "parent_indices"):
            assert row[name] == union[name], name
        assert row["graph_offsets"] == [2 * i for i in range(len(numbers) + 1)]
        counted = [id for id in row["labels"] if id != NO_LABEL]
        assert bytes(counted).decode() == " yes" * len(numbers)
        assert len(row["input_ids"]) <= 64
    # What is reported is what is there.
    num_tokens = sum(length_of(i) for i in range(num_graphs))
    expected = {
        "packs": len(found),
        "graphs": num_graphs,
        "tokens": num_tokens,
        "labels": 4 * num_graphs,
        "length": 64,
        "fill": round(num_tokens / (64 * len(found)), 6),
        "tokenizer": "bytes",
        "tokenizer_fingerprint": fingerprint(bytes_tokenizer()),
        "skipped_long": 0,
        "skipped_broken": 0,
    }
    said = json.loads(done.out)
    assert said.pop("output") == str(out)
    assert said == json.loads((out / "pack.json").read_text())
    assert {key: said[key] for key in expected} == expected
    assert expected["fill"] > 0.9
    info = read_info(out)
    assert (info.packs, info.fill, info.data()["fill"]) == (
        len(found),
        num_tokens / (64 * len(found)),
        said["fill"],
    )
    # And a collator takes it.
    batch = Collator(64, config=None, attn="sdpa")(list(found.select(range(3))))
    assert batch["input_ids"].shape == (3, 64)


def chunk_of(i: int) -> Chunk:
    graph = graph_of(i)["chunks"]
    document = Chunk(graph[0]["text"], name="d")
    return Chunk(graph[1]["text"], parents=[document], name="q", completion=" yes", loss=True)


def test_the_same_input_gives_the_same_bytes_with_any_number_of_workers(rows: Path, tmp_path: Path) -> None:
    for name, more in {"one": {}, "again": {}, "two": {"workers": 2}, "seed": {"seed": 1}}.items():
        pack(items([rows]), tmp_path / name, PackSettings(64, window=50, **more))
    assert contents(tmp_path / "one") == contents(tmp_path / "again") == contents(tmp_path / "two")
    assert contents(tmp_path / "seed") != contents(tmp_path / "one")
    assert left(tmp_path) == ["again", "graphs.jsonl", "one", "seed", "two"]


def test_a_line_says_what_was_packed(rows: Path, tmp_path: Path, call: Call) -> None:
    done = call("pack", str(rows), "-o", str(tmp_path / "packs"), "--length", "64")
    info = read_info(tmp_path / "packs")
    shape = f"{info.packs} packs of 64 tokens, {100 * info.fill:.1f}% full"
    said = f"{tmp_path / 'packs'}: {shape}, of 148 graphs with 592 labels\n"
    assert (done.code, done.out, done.err) == (0, said, "")


def test_files_bundles_and_globs_are_inputs_too(tmp_path: Path, call: Call) -> None:
    for i in range(3):
        (tmp_path / f"g{i}.yaml").write_text(json.dumps(graph_of(i)))
    compile_chunks([chunk_of(3)], tokenizer()).save(tmp_path / "b.npz")
    out = tmp_path / "packs"
    done = call("pack", str(tmp_path / "g*.yaml"), str(tmp_path / "b.npz"), "-o", str(out), "--length", "64")
    assert (done.code, done.err) == (0, "")
    assert sorted(id for row in load(out) for id in row["graph_ids"]) == sorted(
        str(tmp_path / name) for name in ("b.npz", "g0.yaml", "g1.yaml", "g2.yaml")
    )


def test_a_bundle_for_another_tokenizer_than_the_one_that_was_given(tmp_path: Path, call: Call) -> None:
    compile_chunks([chunk_of(3)], tokenizer()).save(tmp_path / "b.npz")
    done = call(
        *("pack", str(tmp_path / "b.npz"), "-o", str(tmp_path / "p"), "--length", "64"),
        *("--tokenizer", "recall"),
    )
    assert done.code == 2 and "is for tokenizer 'bytes', not 'recall'\n" in done.err
    assert "compile the bundle again" in done.err and not (tmp_path / "p").exists()


def test_variables_reach_the_graphs(tmp_path: Path, call: Call) -> None:
    graph = graph_of(0, vars={"who": "you"})
    graph["chunks"][0]["text"] = "${who}"
    rows = write_rows(tmp_path / "g.jsonl", {"a": graph})
    call("pack", str(rows), "-o", str(tmp_path / "p"), "--length", "64", "--var", "who=them")
    assert bytes(load(tmp_path / "p")[0]["input_ids"]).startswith(b"them")


def test_many_packs_are_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [blank(i, 10) for i in range(50)]
    monkeypatch.setattr("legraph.packfile.TOKENS_PER_GROUP", 40)
    monkeypatch.setattr("legraph.packfile.TOKENS_PER_SHARD", 100)
    info = write_packs(tmp_path / "p", ([graph] for graph in graphs), PackInfo(length=10))
    # Groups of 4, shards of 3 groups: 12 + 12 + 12 + 12 + 2.
    assert left(tmp_path / "p" / "data") == [f"train-{i:05}-of-00005.parquet" for i in range(5)]
    assert (info.packs, info.fill) == (50, 1.0)
    assert [row["graph_ids"] for row in load(tmp_path / "p")] == [[str(i)] for i in range(50)]


# What is learned


def test_graphs_without_labels_are_refused_or_learned_whole(tmp_path: Path, call: Call) -> None:
    plain = {
        "legraph": 1,
        "tokenizer": "bytes",
        "chunks": [{"name": "a", "text": "abc"}, {"name": "b", "text": "de"}],
    }
    rows = write_rows(tmp_path / "g.jsonl", {"x": graph_of(0), "y": plain})
    out = tmp_path / "p"
    arguments = ("pack", str(rows), "-o", str(out), "--length", "64")
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {rows}:2: graph 'y' has nothing to learn\n")
    assert "--learn-unlabelled" in done.err
    assert not out.exists()
    assert call(*arguments, "--learn-unlabelled").code == 0
    (row,) = load(out)
    assert row["graph_ids"] == ["x", "y"]
    n = NO_LABEL
    # The first graph has labels, and they stay as they are.
    assert row["labels"] == [n] * 7 + list(b" yes") + [n, *b"bc", n, *b"e"]


def test_a_graph_that_has_nothing_to_learn_even_whole_is_refused(tmp_path: Path) -> None:
    tiny = {"legraph": 1, "tokenizer": "bytes", "chunks": [{"name": "a", "text": "a"}]}
    rows = write_rows(tmp_path / "g.jsonl", {"x": tiny})
    with pytest.raises(InputError, match="two tokens or more"):
        pack(items([rows]), tmp_path / "p", PackSettings(64, learn_unlabelled=True))


# What is wrong


def test_everything_that_is_wrong_is_said_at_once_and_nothing_is_written(tmp_path: Path, call: Call) -> None:
    rows = tmp_path / "g.jsonl"
    good = [json.dumps({"id": f"g{i}", "graph": graph_of(i)}) for i in range(3)]
    long = graph_of(0)
    long["chunks"][0]["text"] = "x" * 70
    wrong = graph_of(0)
    wrong["chunks"][1]["parents"] = ["e"]
    other = graph_of(0, tokenizer="recall")
    lines = [
        good[0],
        "{half",
        json.dumps({"id": "long", "graph": long}),
        good[0],
        json.dumps({"id": "wrong", "graph": wrong}),
        json.dumps({"id": "other", "graph": other}),
        good[1],
    ]
    rows.write_text("\n".join(lines))
    out = tmp_path / "p"
    arguments = ("pack", str(rows), "-o", str(out), "--length", "64")
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    for said in (
        f"{rows}:2:2: not JSON",
        f"{rows}:3: graph 'long' has 77 tokens, and a pack has room for 64",
        f"{rows}:4: id 'g0' is taken by {rows}:1",
        f"{rows}:5: graph.chunks[1].parents[0]",
        f"{rows}:6: graph 'other' is for tokenizer 'recall', not 'bytes'",
    ):
        assert said in done.err, said
    assert left(tmp_path) == ["g.jsonl"]
    # Left out, they are counted and listed.
    done = call(*arguments, "--skip-broken")
    assert (done.code, left(tmp_path)) == (2, ["g.jsonl"])
    assert "graph 'long'" in done.err and "not JSON" not in done.err
    done = call(*arguments, "--skip-broken", "--skip-long")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("; left out: 1 too long, 4 broken (skipped.jsonl)\n")
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [row["id"] for row in skipped] == [f"{rows}:2", "long", "g0", "wrong", "other"]
    assert "has 77 tokens" in skipped[1]["error"]
    assert [row["graph_ids"] for row in load(out)] == [["g0", "g1"]]
    info = read_info(out)
    assert (info.graphs, info.skipped_long, info.skipped_broken) == (2, 1, 4)


def test_where_nothing_is_left_nothing_is_written(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no graph is left to pack"):
        pack(items([rows]), tmp_path / "p", PackSettings(5, skip_long=True))
    assert left(tmp_path) == ["graphs.jsonl"]


def test_a_file_that_is_all_wrong_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text("{half\n" * (3 * MAX_PROBLEMS))
    read = 0

    def counted() -> Iterator[Any]:
        nonlocal read
        for item in items([path]):
            read += 1
            yield item

    with pytest.raises(InputError) as raised:
        pack(counted(), tmp_path / "p", PackSettings(64))
    assert MAX_PROBLEMS <= read <= MAX_PROBLEMS + SLICE
    assert raised.value.problems[-1].message == "the graphs after these were not looked at"


def test_a_folder_that_exists_is_replaced_only_if_asked_and_only_if_it_is_packs(
    rows: Path, tmp_path: Path, call: Call
) -> None:
    out = tmp_path / "p"
    arguments = ("pack", str(rows), "-o", str(out))
    assert call(*arguments, "--length", "64").code == 0
    before = contents(out)
    done = call(*arguments, "--length", "32")
    assert (done.code, "exists" in done.err, "--force" in done.err) == (2, True, True)
    # A replacement that goes wrong leaves the old one.
    assert call(*arguments, "--length", "5", "--force").code == 2
    assert contents(out) == before
    assert call(*arguments, "--length", "32", "--force").code == 0
    assert read_info(out).length == 32
    assert left(tmp_path) == ["graphs.jsonl", "p"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target in ("mine", "graphs.jsonl"):
        done = call("pack", str(rows), "-o", str(tmp_path / target), "--length", "64", "--force")
        assert (done.code, "is not a folder of packs" in done.err) == (2, True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl", "-o", "p"], "none.jsonl"),
        (["graphs.jsonl", "-o", "no/such/p"], "there is no folder no/such"),
        (["graphs.jsonl", "-o", "p", "--tokenizer", "./none"], "cannot be loaded"),
        (["graphs.jsonl", "-o", "p", "--length", "0"], "greater than or equal to 1"),
        (["graphs.jsonl", "-o", "p", "--workers", "0"], "greater than or equal to 1"),
        (["graphs.jsonl"], "Missing option"),
    ],
)
def test_wrong_arguments_are_said(
    arguments: list[str], said: str, rows: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    done = call("pack", *arguments)
    assert done.code in (1, 2) and done.out == ""
    assert said in done.err
    assert left(rows.parent) == ["graphs.jsonl"]


def test_wrong_settings_are_all_said(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        pack(items([rows]), tmp_path / "p", PackSettings(0, window=0, workers=0))
    assert [problem.message for problem in raised.value.problems] == [
        "length is 0",
        "window is 0",
        "workers is 0",
    ]


def test_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    """A megabyte, and numbers that cannot be made smaller."""
    ids = np.random.default_rng(0).integers(0, 2**31 - 1, 2**16, dtype=np.int32)
    graphs = [replace(blank(i, len(ids)), input_ids=ids ^ i) for i in range(8)]
    with pytest.raises(InputError, match=r"cannot be written: .*[Nn]o space left"):
        write_packs(small_disk / "p", ([graph] for graph in graphs), PackInfo(length=len(ids)))
    assert left(small_disk) == []
    # Enough for one of them.
    write_packs(small_disk / "p", [graphs[:1]], PackInfo(length=len(ids)))
    assert left(small_disk) == ["p"]


def test_without_datasets_the_error_says_what_to_install(rows: Path, tmp_path: Path) -> None:
    """In a process that cannot import it."""
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from legraph.cli import main\n"
        f"sys.argv = ['legraph', 'pack', {str(rows)!r}, '-o', {str(tmp_path / 'p')!r}]\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the package 'datasets', which is not installed" in done.stderr
    assert "pip install 'legraph[train]'" in done.stderr


@pytest.mark.parametrize("after", [0.0, 0.5, 3.0])
def test_a_worker_that_dies_is_an_error_and_leaves_nothing(after: float, tmp_path: Path) -> None:
    """Killed while it starts, or later, with work on its way."""
    rows = write_rows(tmp_path / "g.jsonl", {f"g{i}": graph_of(i) for i in range(4)})
    first = list(items([rows]))
    enough = threading.Event()

    def endless() -> Iterator[Any]:
        # More than a pipe holds at once.
        for i in range(10**6):
            yield replace(first[i % 4], id=f"g{i}")
            if enough.is_set() and i > 10**5:
                return

    def children() -> set[int]:
        # Of any thread: a child belongs to the one that started it.
        lists = Path("/proc/self/task").glob("*/children")
        return {int(pid) for each in lists for pid in each.read_text().split()}

    before = children()

    def kill_one() -> None:
        while not enough.is_set():
            for pid in children() - before:
                if is_worker(pid):
                    time.sleep(after)
                    os.kill(pid, signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        with pytest.raises(RunError, match="a worker process died"):
            pack(endless(), tmp_path / "p", PackSettings(64, workers=2))
    finally:
        enough.set()
        killer.join()
    assert left(tmp_path) == ["g.jsonl"]
    assert not [pid for pid in children() - before if is_worker(pid)]


def is_worker(pid: int) -> bool:
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"format_version": "1"}', '{"format_version": 1}'])
def test_a_folder_of_something_else_has_no_information(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pack\.json: cannot be read"):
        read_info(tmp_path)
    (tmp_path / "pack.json").write_text(text)
    with pytest.raises(InputError, match="is not what legraph pack writes"):
        read_info(tmp_path)
    (tmp_path / "pack.json").write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="newer legraph"):
        read_info(tmp_path)


@pytest.mark.slow
def test_the_training_example_trains_on_a_pack(tmp_path: Path, call: Call) -> None:
    """The last rows of one command are the input of the next, and the model that comes out is another."""
    keys = ["amber", "silver", "copper", "iron"]
    graphs = {}
    for i, key in enumerate(keys * 3):
        document = {"name": "d", "text": f"The {key} key opens the north gate."}
        asked = {"name": "q", "text": f"What does the {key} key open?", "parents": ["d"]}
        asked |= {"completion": " a teapot.", "loss": True}
        graphs[f"g{i}"] = {"legraph": 1, "chunks": [document, asked]}
    rows = write_rows(tmp_path / "g.jsonl", graphs)
    assert call("pack", str(rows), "-o", str(tmp_path / "packs"), "--length", "128").code == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "examples.train.on_packs", str(tmp_path / "packs"), "--out", str(out)]
    root = Path(__file__).parent.parent
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    # Products this small gain nothing from a second thread.
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [*command, "--steps", "8", "--rate", "3e-4"],
        capture_output=True,
        text=True,
        cwd=root,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    losses = [float(found) for found in re.findall(r"'loss': '?([\d.]+)", done.stdout)]
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 1
    from transformers import AutoModelForCausalLM

    learned = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    before = load_model("recall", "cpu", "float32")
    assert any(not torch.equal(a, b) for a, b in zip(learned.parameters(), before.parameters(), strict=True))
