"""Many graphs through one engine: the results of single runs, in any order of admission, in flat memory."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import batch
from legraph.batch import run_batch
from legraph.batchinput import Item, bundle_of, graph_of, items
from legraph.bundle import Bundle
from legraph.engine import RUNS_AHEAD, Engine, Submission
from legraph.errors import GraphError, InputError, LegraphError, ModelError
from legraph.graph import Generate, Graph
from legraph.job import Job
from legraph.kvstore import KVStore
from legraph.result import RunResult
from tests.naive import engine, ids_of
from tests.random_graphs import dags, graphs

THREE = Generate(max_new_tokens=3)


def graph_data(graph: Graph, most: int = 4) -> dict[str, Any]:
    """The graph as a file's content; chunks generate up to `most` tokens."""
    chunks = list[dict[str, Any]]()
    for chunk in graph.chunks:
        data: dict[str, Any] = {"name": chunk.name, "text": chunk.text}
        data["parents"] = [graph.chunks[parent].name for parent in chunk.parents]
        data |= {key: getattr(chunk, key) for key in ("start", "end") if getattr(chunk, key) is not None}
        if chunk.generate is not None:
            data["generate"] = {"max_new_tokens": min(chunk.generate.max_new_tokens, most)}
        chunks.append(data)
    return {"legraph": 1, "positions": graph.positions, "chunks": chunks}


def write_rows(path: Path, graphs: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"id": f"g{i}", "graph": g}) + "\n" for i, g in enumerate(graphs)))
    return path


def one_chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"legraph": 1, "chunks": [{"name": "a", "text": text, **more}]}


def by_id(made: Engine, rows: Any, **options: Any) -> dict[str, RunResult | LegraphError]:
    found = list(run_batch(made, rows, THREE, **options))
    assert len({item.number for item, _ in found}) == len(found)
    return {item.id: result for item, result in found}


def ids(results: dict[str, RunResult | LegraphError]) -> dict[str, dict[str, list[int]]]:
    return {name: ids_of(result) for name, result in results.items() if isinstance(result, RunResult)}


@settings(max_examples=20, deadline=None)
@given(
    some=st.lists(graphs(dags(7, 5)), min_size=10, max_size=10),
    budget=st.sampled_from([1, 30, 80, 10_000]),
    order=st.randoms(use_true_random=False),
    memory_bytes=st.sampled_from([None, 0, 2**20]),
)
def test_a_batch_gives_what_single_runs_give(
    tmp_path_factory: pytest.TempPathFactory,
    some: list[Graph],
    budget: int,
    order: Any,
    memory_bytes: int | None,
) -> None:
    """Twenty times ten random graphs, admitted in random orders, into caches of different sizes; what they
    share computed for each, kept in the cache, or kept in memory."""
    path = write_rows(tmp_path_factory.mktemp("rows") / "r.jsonl", [graph_data(graph) for graph in some])
    rows = list(items([path]))
    single = engine()
    expected = {row.id: ids_of(single.run(bundle_of(row, single.tokenizer), THREE)) for row in rows}
    order.shuffle(rows)
    made = engine() if memory_bytes is None else engine(kv=KVStore(memory_bytes))
    assert ids(by_id(made, rows, budget=budget)) == expected


def test_the_budget_holds_and_a_graph_beyond_it_runs_alone(tmp_path: Path) -> None:
    texts = ["x" * n for n in (20, 300, 20, 20, 500, 20)]
    made, most, beside = engine(), list[int](), list[int]()
    admit = made._scheduler._admit

    def watched() -> None:
        admit()
        rooms = [len(job.room) for job in made._scheduler.active]
        most.append(sum(rooms))
        beside.append(len(rooms) if max(rooms, default=0) > 100 else 0)

    made._scheduler._admit = watched  # type: ignore[method-assign]
    rows = items([write_rows(tmp_path / "r.jsonl", [one_chunk(text) for text in texts])])
    found = by_id(made, rows, budget=100)
    assert all(isinstance(result, RunResult) for result in found.values())
    assert max(n for n in most if n <= 101) > 40
    # 300 and 500 tokens and 3 to generate, and nobody beside them.
    assert {n for n in most if n > 101} == {303, 503}
    assert max(beside) == 1


def test_small_graphs_come_while_a_long_one_still_generates(tmp_path: Path) -> None:
    data = [one_chunk("long", generate={"max_new_tokens": 60})] + [one_chunk(f"short {i}") for i in range(30)]
    rows = items([write_rows(tmp_path / "r.jsonl", data)])
    # The long one takes 64, and two short ones have room beside it.
    order = [item.id for item, _ in run_batch(engine(), rows, THREE, budget=90)]
    assert sorted(order) == sorted(f"g{i}" for i in range(31))
    assert order.index("g0") > 15


def test_graphs_that_fail_anywhere_are_results_among_others(tmp_path: Path) -> None:
    late = [
        {"name": "a", "text": "abc", "start": 4080, "generate": {"max_new_tokens": 5}},
        {"name": "b", "text": "ten bytes.", "parents": ["a"]},
    ]
    data = [
        one_chunk("fine"),
        one_chunk(""),
        one_chunk("abc", start=4094),
        {"legraph": 1, "chunks": late},
        {"legraph": 2},
        one_chunk("fine too"),
    ]
    path = write_rows(tmp_path / "r.jsonl", data)
    path.write_text(path.read_text() + "nonsense\n")
    found = by_id(engine(), items([path]))
    kinds = {name: type(result) for name, result in found.items()}
    assert kinds == {
        "g0": RunResult,
        "g1": GraphError,
        "g2": ModelError,
        "g3": ModelError,
        "g4": GraphError,
        "g5": RunResult,
        f"{path}:7": GraphError,
    }


def test_settings_that_no_graph_could_have_end_the_batch(tmp_path: Path) -> None:
    rows = items([write_rows(tmp_path / "r.jsonl", [one_chunk("x")])])
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        list(run_batch(engine(), rows, Generate(max_new_tokens=0)))


def test_what_the_reader_raises_ends_the_batch_and_frees_the_engine(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "r.jsonl", [one_chunk("x", generate={"max_new_tokens": 50})])

    def rows() -> Iterator[Item]:
        yield from items([path])
        raise InputError("the rest cannot be read")

    made = engine()
    with pytest.raises(InputError, match="the rest cannot be read"):
        list(run_batch(made, rows()))
    assert not made._scheduler.active and not made._scheduler.waiting


def test_who_stops_reading_ends_everything(tmp_path: Path) -> None:
    made = engine()
    found = run_batch(
        made, items([write_rows(tmp_path / "r.jsonl", [one_chunk(f"t{i}") for i in range(50)])])
    )
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not made._scheduler.active and not made._scheduler.waiting
    free = made._scheduler.pool.num_free
    assert free == made._scheduler.pool.capacity - 1


def test_nothing_of_finished_graphs_is_kept(tmp_path: Path) -> None:
    """What is alive after some of 200 graphs: no more than runs, waits, or is compiled ahead."""
    data = [graph_data(_fan(i)) for i in range(200)]
    rows = items([write_rows(tmp_path / "r.jsonl", data)])
    made, alive = engine(), list[tuple[int, int, int]]()
    for at, _ in enumerate(run_batch(made, rows, THREE, budget=200)):
        if at % 40 == 20:
            gc.collect()
            kinds = [type(one) for one in gc.get_objects()]
            alive.append((kinds.count(Job), kinds.count(Submission), kinds.count(Bundle)))
    running = 200 // 20
    most_jobs = RUNS_AHEAD + running + 2
    for jobs, submissions, bundles in alive:
        assert jobs <= most_jobs and submissions <= most_jobs
        # Each that runs has one, and its result another.
        assert bundles <= batch.COMPILED_AHEAD + 2 * most_jobs + 2
    assert len(alive) == 5


def _fan(seed: int) -> Graph:
    from legraph.graph import GraphChunk

    draw = random.Random(seed)
    docs = [GraphChunk(f"d{i}", "x" * draw.randint(3, 9)) for i in range(3)]
    return Graph((*docs, GraphChunk("q", "what?", (0, 1, 2))))


def test_an_endless_stream_of_broken_rows_does_not_pile_up() -> None:
    """Each failure is given before more than a few further ones are read."""
    read = 0

    def rows() -> Iterator[Item]:
        nonlocal read
        from legraph.errors import Source

        for read in range(5000):
            yield Item(read, f"b{read}", Source("f", read + 1), error=GraphError("broken"))

    ahead = 0
    for at, (item, result) in enumerate(run_batch(engine(), rows())):
        assert item.number == at and isinstance(result, GraphError)
        ahead = max(ahead, read - at)
    assert read == 4999
    assert ahead <= batch.COMPILED_AHEAD + 2


def test_tokens_are_counted_as_they_come(tmp_path: Path) -> None:
    rows = items([write_rows(tmp_path / "r.jsonl", [one_chunk("x"), one_chunk("y")])])
    told = list[int]()
    list(run_batch(engine(), rows, THREE, generated=told.append))
    assert sum(told) == 6


@pytest.mark.parametrize("memory_bytes", [0, 2**20], ids=["in the cache", "in memory"])
def test_graphs_with_equal_chunks_compute_them_once(tmp_path: Path, memory_bytes: int) -> None:
    doc = {"name": "d", "text": "the same document in all of them"}
    data = [
        {"legraph": 1, "chunks": [doc, {"name": "q", "text": f"question {i}", "parents": ["d"]}]}
        for i in range(20)
    ]
    made = engine(kv=KVStore(memory_bytes))
    found = by_id(made, items([write_rows(tmp_path / "r.jsonl", data)]), budget=150)
    reused = [result.tokens["reused"] for result in found.values() if isinstance(result, RunResult)]
    assert len(reused) == 20
    # 32 tokens of the document, in all but those that started before the first had ended.
    assert sum(n >= 32 for n in reused) >= 16
    origins = {source.origin for result in found.values() for source in result.sources}
    assert origins - {"computed"} == {"memory" if memory_bytes else "device"}
    plain = by_id(engine(), items([tmp_path / "r.jsonl"]), budget=150)
    assert ids(found) == ids(plain)


def test_a_batch_takes_graphs_as_they_are_parsed(tmp_path: Path, word_tokenizer: Callable[..., Any]) -> None:
    """A bundle of another tokenizer is one failure."""
    path = write_rows(tmp_path / "r.jsonl", [one_chunk("x")])
    (row,) = items([path])
    assert graph_of(row).chunks[0].text == "x"
    other = bundle_of(
        items([write_rows(tmp_path / "w.jsonl", [one_chunk("fox")])]).__next__(), word_tokenizer({"fox": 1})
    )
    other.save(tmp_path / "b.npz")
    found = by_id(engine(), items([tmp_path / "b.npz", path]))
    assert {name: type(result).__name__ for name, result in found.items()} == {
        str(tmp_path / "b.npz"): "BundleError",
        "g0": "RunResult",
    }
