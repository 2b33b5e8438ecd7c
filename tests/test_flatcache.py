"""The flat cache's rows, against the one rule applied to every pair of slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from legraph.flatcache import FlatCache, Segment
from tests.random_graphs import Dag, dags


@dataclass
class Cache:
    """A `FlatCache` and beside it, in plain lists, which token of which chunk each slot holds."""

    dag: Dag
    cache: FlatCache = field(init=False)
    slots: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = FlatCache(self.dag.mask())

    def sees(self, q: int, k: int) -> bool:
        (q_chunk, q_index), (k_chunk, k_index) = self.slots[q], self.slots[k]
        return k_chunk in self.dag.parents[q_chunk] or (k_chunk == q_chunk and k_index <= q_index)

    def segment(self, chunk: int, length: int) -> Segment:
        """The next tokens of a chunk; a token's position says whose it is."""
        at = sum(owner == chunk for owner, _ in self.slots)
        self.slots += [(chunk, at + i) for i in range(length)]
        ids = np.arange(at, at + length)
        return Segment(chunk, ids, ids + 1000 * chunk)

    def check(self, rows: np.ndarray) -> None:
        num_slots = len(self.slots)
        new = range(num_slots - len(rows), num_slots)
        expected = [[self.sees(q, k) for k in range(num_slots)] for q in new]
        assert rows.dtype == np.bool_
        assert rows.tolist() == expected
        assert len(self.cache) == num_slots
        assert self.cache.positions.tolist() == [index + 1000 * chunk for chunk, index in self.slots]


@dataclass
class Run:
    """A run of a graph in random steps: texts in one part or several, chunks that grow side by side."""

    cache: Cache
    random: Random
    text_left: list[int]
    growth_left: list[int]

    def is_done(self, chunk: int) -> bool:
        return self.text_left[chunk] == self.growth_left[chunk] == 0

    def is_over(self) -> bool:
        return all(map(self.is_done, range(len(self.text_left))))

    def next_segments(self) -> list[Segment]:
        """One token for some of the chunks that grow, then text of chunks whose parents are done."""
        segments = []
        for chunk, left in enumerate(self.growth_left):
            if left and not self.text_left[chunk] and self.random.random() < 0.8:
                segments.append(self.cache.segment(chunk, 1))
                self.growth_left[chunk] -= 1
        for chunk, left in enumerate(self.text_left):
            # A parent may have become complete in this very pass.
            if left and all(map(self.is_done, self.cache.dag.parents[chunk])) and self.random.random() < 0.8:
                length = self.random.choice([left, self.random.randint(1, left)])
                segments.append(self.cache.segment(chunk, length))
                self.text_left[chunk] -= length
        return segments


@given(
    dag=dags(max_chunks=12, max_length=6),
    random=st.randoms(use_true_random=False),
    first_has_rows=st.booleans(),
)
def test_rows_are_the_rule_in_whatever_steps_a_graph_is_run(
    dag: Dag, random: Random, first_has_rows: bool
) -> None:
    growth = [random.choice([0, 0, 1, 4]) for _ in dag.lengths]
    run = Run(Cache(dag), random, list(dag.lengths), growth)
    cache = run.cache.cache
    while not run.is_over():
        segments = run.next_segments()
        if not segments:
            continue
        if len(cache) == 0 and not first_has_rows:
            cache.append(segments)
        else:
            run.cache.check(cache.append_with_rows(segments))
        for segment in segments:
            if run.is_done(segment.chunk):
                cache.close(segment.chunk)


def test_two_branches_over_a_document_in_a_picture() -> None:
    """Rows and columns in slot order: the branches take turns, so a chunk's slots lie apart."""
    dag = Dag((2, 1, 1), ((), (0,), (0,)))
    cache = Cache(dag)
    rows = cache.cache.append_with_rows([cache.segment(0, 2), cache.segment(1, 1), cache.segment(2, 1)])
    assert picture(rows) == ["#...", "##..", "###.", "##.#"]
    rows = cache.cache.append_with_rows([cache.segment(1, 1), cache.segment(2, 1)])
    assert picture(rows) == ["###.#.", "##.#.#"]
    rows = cache.cache.append_with_rows([cache.segment(2, 1)])
    assert picture(rows) == ["##.#.##"]


def picture(rows: np.ndarray) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in rows]


def test_a_chunk_that_joins_later_sees_all_that_its_parents_wrote() -> None:
    dag = Dag((1, 1, 1), ((), (0,), (1,)))
    cache = Cache(dag)
    cache.cache.append([cache.segment(0, 1), cache.segment(1, 1)])
    for _ in range(2):
        cache.cache.append_with_rows([cache.segment(1, 1)])
    cache.cache.close(1)
    assert picture(cache.cache.append_with_rows([cache.segment(2, 1)])) == [".####"]


def test_a_cache_starts_empty() -> None:
    cache = FlatCache(Dag((1,), ((),)).mask())
    assert len(cache) == 0
    assert cache.positions.dtype == np.int64
    assert cache.kv.get_seq_length() == 0


def test_a_segment_is_as_long_as_its_tokens() -> None:
    assert len(Segment(0, np.arange(3), np.arange(3))) == 3
