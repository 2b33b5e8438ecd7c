"""A function in several processes, over a stream: results in order, and a death is an error, never a wait.

`concurrent.futures.ProcessPoolExecutor` can wait for ever when one of its processes is killed while a large
piece of work is on its way (CPython issue 94777). Here each process has a pipe and a thread of its own, which
hands it one part after the other: when the process dies, its pipe ends, and the thread is told so.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from legraph.errors import RunError

# Parts that wait for each process, so that none waits for the reader, and the reader does not run away.
_PARTS_AHEAD = 3

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


def mapped(
    make: Callable[[S], Callable[[T], R]], setting: S, parts: Iterable[T], num_processes: int
) -> Iterator[R]:
    """`map(make(setting), parts)`, where each of the processes calls `make(setting)` for itself, once.

    Everything handed over must be something that can be pickled.

    Raises:
        RunError: a process died.
    """
    # Not forked: threads, like those of tokenizers, do not survive that.
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(num_processes)]
    idle = SimpleQueue[Connection]()
    processes = [
        context.Process(target=_serve, args=(theirs, make, setting), daemon=True) for _, theirs in pipes
    ]
    threads = ThreadPoolExecutor(num_processes)
    try:
        for process, (ours, theirs) in zip(processes, pipes, strict=True):
            process.start()
            # The pipe ends with the process only if nobody else holds its end.
            theirs.close()
            idle.put(ours)
        yield from _in_order(threads, idle, parts, num_processes * _PARTS_AHEAD)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise RunError(
            "a worker process died", "use fewer --workers: it may have run out of memory"
        ) from None
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()
        threads.shutdown()
        for ours, _ in pipes:
            ours.close()


def _in_order(
    threads: ThreadPoolExecutor, idle: SimpleQueue[Connection], parts: Iterable[T], num_ahead: int
) -> Iterator[Any]:
    waiting = deque[Future[Any]]()
    for part in parts:
        waiting.append(threads.submit(_ask, idle, part))
        if len(waiting) >= num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _ask(idle: SimpleQueue[Connection], part: Any) -> Any:
    """Has a process that does nothing work on the part. There are as many threads as processes."""
    process = idle.get()
    try:
        process.send(part)
        return process.recv()
    finally:
        idle.put(process)


def _serve(connection: Connection, make: Callable[[Any], Callable[[Any], Any]], setting: Any) -> None:
    """What a process does: until there is no more."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function = make(setting)
    with suppress(EOFError, BrokenPipeError):
        while True:
            connection.send(function(connection.recv()))
