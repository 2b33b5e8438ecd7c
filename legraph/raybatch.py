"""A batch on a Ray cluster: Ray Data deals the graphs out to actors, each of which has an engine of its own.

    inputs, on this machine -> rows of some graphs each -> actors: `run_batch` -> journal, on this machine

Which actor gets what, how much is under way at a time, and what is tried again when an actor dies, is
Ray's business (`map_batches` over a pool of actors). An actor answers a row as a whole: what Ray tries again,
it gives again from the start, so half an answer would come twice.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, cast

from legraph.batch import Progress, model_header, row_of, run_batch, store_bytes
from legraph.batchinput import Inputs, Item
from legraph.batchjournal import Journal
from legraph.errors import LegraphError
from legraph.graph import Generate
from legraph.raycluster import Pool, needs, num_actors, ray_errors, ray_module
from legraph.result import RunResult

# Rows that an actor has at a time: while the last graphs of one run, those of the next join them.
_CALLS_AT_A_TIME = 2
# How often a row is tried again whose actor has died.
_RETRIES = 3
_COLUMN = "data"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How actors make their engines.

    Attributes:
        load: for `Engine.load`. Paths must exist where the actors run.
        reuse: chunks that graphs share are computed once, while they are in an actor's memory, ...
        kv, kv_bytes: ... or in the folder of a KV store that they share, and how much it may hold.
        budget: see `run_batch`.
    """

    load: dict[str, Any] = field(default_factory=dict[str, Any])
    reuse: bool = True
    kv: str | None = None
    kv_bytes: int | None = None
    budget: int | None = None

    def engine(self) -> Any:
        """Run by an actor, in its own process."""
        from legraph.engine import Engine
        from legraph.kvstore import KVStore

        memory = store_bytes(self.load.get("device"))
        return Engine.load(**self.load, kv=KVStore(memory, self.kv, self.kv_bytes) if self.reuse else None)


def model_header_of(pool: Pool, options: EngineOptions) -> dict[str, Any]:
    """`batch.model_header`, from a machine of the cluster: this one may have neither the model nor a GPU.

    Raises:
        LegraphError: the model cannot be loaded there.
        RunError: no machine of the cluster can have an actor.
    """
    ray = ray_module()

    def header() -> bytes:
        return _answer(lambda: model_header(options.engine()))

    needed = needs(pool)
    with ray_errors():
        return _opened(ray.get(ray.remote(**needed, max_retries=_RETRIES)(header).remote()))


def run_batch_on_ray(
    pool: Pool, options: EngineOptions, inputs: Inputs, settings: Generate, done: bytes = b""
) -> Iterator[tuple[int, dict[str, Any], dict[str, int]]]:
    """Runs graphs on the cluster that this process is connected to.

    Args:
        done: 1 at the number of each graph that is left out.

    Yields:
        a graph's number, its row (see `batch.row_of`), and how many tokens it had: prompt, reused, generated.

    Raises:
        LegraphError: the inputs cannot be read, or a model cannot be loaded.
        RunError: actors die again and again.
    """
    import pyarrow

    ray = ray_module()
    from ray.data import ActorPoolStrategy, read_datasource

    class Engines:
        """An actor."""

        def __init__(self) -> None:
            self.engine = _answer(options.engine, pickles=False)

        def __call__(self, rows: Any) -> Any:
            given = [_answer(lambda row=row: self._run(row.as_py())) for row in rows[_COLUMN]]
            return pyarrow.table({_COLUMN: given})

        def _run(self, row: bytes) -> list[Any]:
            if isinstance(self.engine, LegraphError):
                raise self.engine
            items = cast("list[Item]", _opened(row))
            found = run_batch(self.engine, items, settings, options.budget)
            # In a fixed order, because Ray may have kept a part of what it asks for again.
            return sorted(((i.number, row_of(i, r), _counts(r)) for i, r in found), key=lambda each: each[0])

    needed, size = needs(pool), num_actors(pool)
    with _block_for_each_row(), ray_errors():
        rows = read_datasource(
            _source(inputs, done, pool.graphs_per_call),
            override_num_blocks=1,
            num_cpus=0,
            label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
        )
        strategy = ActorPoolStrategy(
            min_size=1,
            max_size=size,
            initial_size=size,
            max_tasks_in_flight_per_actor=_CALLS_AT_A_TIME,
            max_concurrent_calls_per_actor=_CALLS_AT_A_TIME,
            enable_true_multi_threading=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see `_retries`
            answers = rows.map_batches(
                Engines,
                batch_size=1,
                batch_format="pyarrow",
                compute=strategy,
                **needed,
                **_retries(rows.map_batches),
            )
        for table in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for answer in table[_COLUMN]:
                yield from _opened(answer.as_py())


def run_to_file_on_ray(
    pool: Pool,
    options: EngineOptions,
    inputs: Inputs,
    settings: Generate,
    journal: Journal,
    retry_errors: bool = False,
    shown: Callable[[Progress], object] = lambda progress: None,
) -> Progress:
    """As `batch.run_to_file`, on the cluster that this process is connected to."""
    started, progress = time.perf_counter(), Progress()
    done = bytearray(
        number in journal and not (retry_errors and journal.has_failed(number))
        for number in range(inputs.num_graphs())
    )
    progress.skipped = sum(done)

    def tick() -> None:
        progress.failed, progress.seconds = journal.num_failed, time.perf_counter() - started
        shown(progress)

    for number, row, counts in run_batch_on_ray(pool, options, inputs, settings, bytes(done)):
        if done[number]:
            continue
        done[number] = 1
        journal.write(number, row)
        progress.note(row)
        progress.tokens += counts["generated"]
        progress.prompt += counts["prompt"]
        progress.reused += counts["reused"]
        tick()
    journal.finish()
    tick()
    return progress


def _source(inputs: Inputs, done: bytes, size: int) -> Any:
    """The inputs as a source of Ray Data: read on this machine, and no faster than they are wanted."""
    import pyarrow
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def read() -> Iterator[Any]:
        for row in _rows(inputs, done, size):
            yield pyarrow.table({_COLUMN: [row]})

    class Graphs(Datasource):
        def get_read_tasks(self, parallelism: int, *more: Any, **options: Any) -> list[Any]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, unknown)]

        def estimate_inmemory_data_size(self) -> None:
            return None

    return Graphs()


def _rows(inputs: Inputs, done: bytes, size: int) -> Iterator[bytes]:
    """The graphs that are left, some in each row; at the end, what is wrong with the inputs."""
    taken = list[Item]()
    try:
        for item in inputs.items():
            if item.number < len(done) and done[item.number]:
                continue
            taken.append(item)
            if len(taken) == size:
                yield pickle.dumps(taken)
                taken = []
    except LegraphError as error:
        yield pickle.dumps(error)
    if taken:
        yield pickle.dumps(taken)


def _counts(result: RunResult | LegraphError) -> dict[str, int]:
    if isinstance(result, LegraphError):
        return {"prompt": 0, "reused": 0, "generated": 0}
    return {name: int(result.tokens[name]) for name in ("prompt", "reused", "generated")}


def _answer(function: Callable[[], Any], pickles: bool = True) -> Any:
    """What a function gives, or its error: Ray would wrap it in pages of its own."""
    try:
        found = function()
    except LegraphError as error:
        found = error
    return pickle.dumps(found) if pickles else found


def _opened(answer: bytes) -> Any:
    found = pickle.loads(answer)
    if isinstance(found, LegraphError):
        raise found
    return found


@contextmanager
def _block_for_each_row() -> Iterator[None]:
    """Ray Data would put rows together until they are large enough, and give them all to one actor."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    context.target_max_block_size, context.enable_progress_bars = 1, False
    try:
        yield
    finally:
        context.target_max_block_size, context.enable_progress_bars = before


def _retries(map_batches: Any) -> dict[str, Any]:
    """Ray asks an actor that dies again without end, and a graph may be what kills it.

    Ray calls the argument deprecated, and has no other yet. Where it is gone, Ray's own ways hold.
    """
    name = "ray_remote_args_fn"
    return {name: lambda: {"max_task_retries": _RETRIES}} if name in signature(map_batches).parameters else {}
