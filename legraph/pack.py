"""Graphs -> packs: put together so that little of a fixed length stays empty.

Graphs flow through: a slice of them is compiled at a time (`packcompile`), and a window of compiled ones is
packed at a time by first-fit decreasing (`binpacking`). Memory is that of a window, whatever the number of
graphs, and of the errors of those that are left out. The same input, settings and legraph give the same
packs, with any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random

from legraph import __version__
from legraph.batchinput import Item
from legraph.binpacking import first_fit_decreasing
from legraph.errors import InputError, Problem
from legraph.packcompile import Compiled, PackSettings, compiled
from legraph.packfile import PackGraph, PackInfo, check_target, write_packs
from legraph.tokens import check_tokenizer, fingerprint, load_tokenizer, tokenizer_id

# A file of a million rows that are all wrong is wrong in one way.
MAX_PROBLEMS = 1000


def pack(
    items: Iterable[Item],
    folder: str | Path,
    settings: PackSettings,
    force: bool = False,
    advance: Callable[[int], object] = lambda done: None,
) -> PackInfo:
    """Packs graphs into a new folder (`packfile`).

    Args:
        advance: called with the number of graphs compiled since the last call.

    Raises:
        InputError: with everything that is wrong with the graphs, unless it is to be skipped; no graph is
            left; the folder exists or cannot be written. Nothing is written then.
        RunError: a package or the tokenizer is missing, or a worker process died.
    """
    _check(settings)
    check_target(Path(folder), force)
    made = _Gate(settings, advance)
    if settings.tokenizer is not None:
        # One that is not there is one error, not one for each graph.
        loaded = settings.tokenizer
        loaded = load_tokenizer(str(loaded)) if isinstance(loaded, str | Path) else check_tokenizer(loaded)
        made.tokenizer_id, made.fingerprint = tokenizer_id(loaded), fingerprint(loaded)
    info = PackInfo(__version__, length=settings.length, window=settings.window, seed=settings.seed)

    def filled() -> Iterator[list[PackGraph]]:
        """Ends with an error if anything was wrong, and with what is known only now."""
        yield from packs(made.graphs(items), settings.length, settings.window, settings.seed)
        made.raise_problems()
        info.tokenizer, info.tokenizer_fingerprint = made.tokenizer_id, made.fingerprint
        info.skipped_long, info.skipped_broken = made.num_long, made.num_broken

    return write_packs(Path(folder), filled(), info, made.skipped, force)


def packs(graphs: Iterable[PackGraph], length: int, window: int, seed: int) -> Iterator[list[PackGraph]]:
    """Packs of at most `length` tokens, a window of graphs at a time; graphs in order of input in each.

    The emptiest pack of a window is not given out: its graphs wait for those of the next one.
    """
    random = Random(seed)
    waiting = list[PackGraph]()
    graphs = iter(graphs)
    while new := list(islice(graphs, window)):
        *full, waiting = _packed([*waiting, *new], length)
        random.shuffle(full)
        yield from full
    if waiting:
        yield waiting


def _packed(graphs: Sequence[PackGraph], length: int) -> list[list[PackGraph]]:
    """All packs, the emptiest one last."""
    bins = first_fit_decreasing([len(graph) for graph in graphs], length)
    found = [[graphs[i] for i in sorted(bin)] for bin in bins]
    emptiest = min(range(len(found)), key=lambda i: sum(map(len, found[i])))
    return [*found[:emptiest], *found[emptiest + 1 :], found[emptiest]]


def _check(settings: PackSettings) -> None:
    values = {"length": settings.length, "window": settings.window, "workers": settings.workers}
    problems = [Problem(f"{name} is {value}", "1 or more") for name, value in values.items() if value < 1]
    if problems:
        raise InputError(problems)


@dataclass
class _Gate:
    """Lets compiled graphs through that can be packed, and keeps what is wrong with the others."""

    settings: PackSettings
    advance: Callable[[int], object]
    tokenizer_id: str = ""
    fingerprint: str = ""
    num_packed: int = 0
    num_long: int = 0
    num_broken: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    problems: list[Problem] = field(default_factory=list[Problem])

    def graphs(self, items: Iterable[Item]) -> Iterator[PackGraph]:
        """Those that can be packed. Stops early when so much is wrong that more would not help."""
        for results in compiled(items, self.settings):
            for result in map(self._checked, results):
                if result.graph is None:
                    self._note(result)
                elif not self.problems:
                    self.num_packed += 1
                    yield result.graph
            self.advance(len(results))
            if len(self.problems) >= MAX_PROBLEMS:
                return

    def _checked(self, result: Compiled) -> Compiled:
        """What can be told only beside the graphs before it: a model learns one vocabulary."""
        if result.graph is None:
            return result
        name, found = result.tokenizer
        if not self.fingerprint:
            self.tokenizer_id, self.fingerprint = name, found
        if found == self.fingerprint:
            return result
        is_given = self.settings.tokenizer is not None
        wrong = Problem(
            f"graph {result.id!r} is for tokenizer {name!r}, not {self.tokenizer_id!r}"
            + ("" if is_given else " like those before it"),
            hint="compile the bundle again with it" if is_given else "give one for all graphs: --tokenizer",
            source=result.place,
        )
        return replace(result, graph=None, problems=(wrong,))

    def _note(self, result: Compiled) -> None:
        skips = self.settings.skip_long if result.is_long else self.settings.skip_broken
        self.num_long += result.is_long
        self.num_broken += not result.is_long
        if skips:
            self.skipped.append({"id": result.id, "error": "\n".join(map(str, result.problems))})
        else:
            self.problems += result.problems

    def raise_problems(self) -> None:
        if len(self.problems) >= MAX_PROBLEMS:
            self.problems.append(Problem("the graphs after these were not looked at"))
        if self.problems:
            raise InputError(self.problems)
        if not self.num_packed:
            raise InputError(Problem("no graph is left to pack", "at least one"))
