"""`legraph watch`: draws a graph again whenever something that it was read from changes.

What is watched is what was read: the graph file, the files that it includes, texts, rows, and the globs of
its loops. They are looked at from time to time, which works on every file system and takes no library.
Knows nothing of graphs: what is drawn is the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from legraph.reads import noted_reads

SECONDS_BETWEEN_LOOKS = 0.3


def watch(
    draw: Callable[[], object],
    sleep: Callable[[float], object] = time.sleep,
    is_over: Callable[[], bool] = lambda: False,
) -> None:
    """Calls `draw`, and again after every change of what it read, until `is_over`.

    Args:
        draw: reads and shows; what it raises ends the watch.
        sleep: called between two looks at the files.
    """
    while not is_over():
        with noted_reads() as reads:
            draw()
        while not is_over() and not reads.are_out_of_date():
            sleep(SECONDS_BETWEEN_LOOKS)
