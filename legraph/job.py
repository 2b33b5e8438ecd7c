"""One graph on its way through the engine: which chunk is ready, where its tokens go, what it generates.

A chunk's text is placed when all its parents are complete. A chunk that generates is complete when it has
finished; its children see text and generated tokens. Chunks whose keys and values are known already are not
computed, and what only such chunks see is not even loaded. Nothing here calls the model.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from legraph.branch import Branch, Piece
from legraph.bundle import Bundle
from legraph.errors import ModelError
from legraph.mask import ChunkMask, Int64Array
from legraph.passes import Segment
from legraph.result import RunResult, finished_bundle, moved_by
from legraph.reuse import ChunkSource, Hit, Reuse
from legraph.slots import Extent, merged


class Job:
    """The state of one run.

    Args:
        branches: the chunks that generate, by index.
        known_positions: number of position ids that the model knows, or None.
        border: see `model.rotary_border`; a run must stay on one side of it.
        reuse: None keeps nothing and finds nothing.

    Attributes:
        pending: tokens that are ready to be computed, parents before children.
        error: why the run ended early.
    """

    def __init__(
        self,
        bundle: Bundle,
        branches: dict[int, Branch],
        known_positions: int | None = None,
        border: int | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        self.bundle, self.branches, self.reuse = bundle, branches, reuse
        self.known_positions, self.border = known_positions, border
        self._beyond_border: bool | None = None
        self.is_planned = self.is_settled = False
        self.events = deque[Piece | RunResult]()
        self.pending = deque[tuple[Segment, int]]()
        self.error: Exception | None = None
        self.is_done = False
        self.num_passes = 0
        self.started, self.first_token, self.ended = time.perf_counter(), 0.0, 0.0
        mask = bundle.mask
        num_chunks = mask.num_chunks
        self._num_waiting = np.diff(mask.parent_offsets)
        self._ready = [int(i) for i in np.flatnonzero(self._num_waiting == 0)]
        self._children = children_of(mask)
        # First position of each chunk, and the one past its last: as compiled, and as really used.
        self.starts = bundle.position_ids[mask.span_offsets[:-1]].copy()
        self.ends = bundle.position_ids[mask.span_offsets[1:] - 1] + 1
        self._compiled_ends = self.ends.copy()
        self.room = Extent(0, 0)
        self._first_slots = [0] * num_chunks
        # Slots with tokens, so far.
        self._extents: list[Extent | None] = [None] * num_chunks
        self._is_needed = np.ones(num_chunks, dtype=np.bool_)
        # What is known about reuse: keys of texts and of finished chunks, hits, and where chunks came from.
        self._text_keys: list[str | None] = [None] * num_chunks
        self._keys: list[str | None] = [None] * num_chunks
        self._hits: dict[int, Hit] = {}
        self._sources: dict[int, ChunkSource] = {}
        self._used_residents: dict[int, tuple[str, int]] = {}
        self._in_place: set[int] = set()
        self._places_taken: set[tuple[str, int]] = set()

    # Before the run

    def plan(self) -> None:
        """Looks for what is known already, from the leaves up: nothing above a hit is looked for."""
        self.is_planned = True
        if self.reuse is None:
            return
        mask = self.bundle.mask
        is_static = np.ones(mask.num_chunks, dtype=np.bool_)
        for chunk in range(mask.num_chunks):
            parents = mask.parents(chunk)
            is_static[chunk] = all(is_static[p] and p not in self.branches for p in parents.tolist())
            if is_static[chunk]:
                self._set_text_key(chunk)
        for chunk in reversed(range(mask.num_chunks)):
            is_branch = chunk in self.branches
            self._is_needed[chunk] = is_branch or any(
                self._is_needed[child] and (child not in self._hits or child in self.branches)
                for child in self._children[chunk].tolist()
            )
            if self._is_needed[chunk] and is_static[chunk]:
                self._look_up(chunk)
        hits = (self._hits[chunk].extent for chunk in self._in_place)
        if not self.reuse.pays_in_place([extent for extent in hits if extent is not None]):
            self._in_place.clear()
            self._places_taken.clear()

    def forget_plan(self) -> None:
        """Everything is computed after all."""
        self.leave()
        self._hits.clear()
        self._in_place.clear()
        self._places_taken.clear()
        self._is_needed[:] = True

    def most_slots(self) -> int:
        """Slots that the run needs if nothing is known."""
        return len(self.bundle) + sum(map(self._room_to_generate, self.branches))

    def num_slots(self) -> int:
        """Slots that the run needs for itself: text that is not in the cache yet, and room to generate."""
        total = 0
        for chunk in range(self.bundle.mask.num_chunks):
            if self._is_needed[chunk] and not self._lies_in_cache(chunk):
                total += self._text_length(chunk) + self._room_to_generate(chunk)
        return total

    def settle(self, room: Extent) -> None:
        """Gives the run its slots, and every chunk its place among them."""
        assert len(room) == self.num_slots()
        self.room, self.is_settled = room, True
        at = room.start
        for chunk in range(self.bundle.mask.num_chunks):
            if self._is_needed[chunk] and not self._lies_in_cache(chunk):
                self._first_slots[chunk] = at
                at += self._text_length(chunk) + self._room_to_generate(chunk)

    def _text_length(self, chunk: int) -> int:
        span = self.bundle.span(chunk)
        return span.stop - span.start

    def _room_to_generate(self, chunk: int) -> int:
        if chunk not in self.branches:
            return 0
        most = self.branches[chunk].settings.max_new_tokens
        return most if self.known_positions is None else min(most, self.known_positions)

    def _lies_in_cache(self, chunk: int) -> bool:
        """It is used where it lies: at the same position, and without growing."""
        return chunk in self._in_place

    # On the way

    def place_ready(self) -> None:
        """Moves every chunk whose parents are complete to `pending`, or fills it with what is known."""
        while self._ready:
            chunk = heapq.heappop(self._ready)
            if self._is_needed[chunk]:
                self._place(chunk)
            if chunk not in self.branches:
                self._release_children(chunk)

    def _place(self, chunk: int) -> None:
        span = self.bundle.span(chunk)
        positions = self.bundle.position_ids[span] + moved_by(
            self.bundle, chunk, self._compiled_ends, self.ends
        )
        self._check(positions)
        self.starts[chunk], self.ends[chunk] = positions[0], positions[-1] + 1
        branch = self.branches.get(chunk)
        if branch is not None:
            branch.next_position = int(self.ends[chunk])
        if self.reuse is not None and self._text_keys[chunk] is None:
            self._set_text_key(chunk)
            self._look_up(chunk)
        num_known = self._fill(chunk)
        segment = self._text_segment(chunk, self.bundle.input_ids[span], positions)
        if num_known < len(segment):
            rest = segment.cut(num_known, len(segment))
            self.pending.append((replace(rest, wants_logits=branch is not None), chunk))

    def _text_segment(self, chunk: int, ids: Int64Array, positions: Int64Array) -> Segment:
        own = self._first_slots[chunk]
        if not self._lies_in_cache(chunk):
            self._extents[chunk] = Extent(own, own + len(ids))
        return Segment(ids, positions, own, own, self.seen(chunk))

    def seen(self, chunk: int) -> tuple[Extent, ...]:
        """Slots of the chunk's parents."""
        extents = (self._extents[parent] for parent in self.bundle.mask.parents(chunk).tolist())
        return tuple(merged(extent for extent in extents if extent is not None))

    def own_slots(self, chunk: int) -> Extent:
        extent = self._extents[chunk]
        assert extent is not None
        return extent

    def feed(self, chunk: int) -> Segment:
        """The newest token of a branch, in the chunk's next slot. What it sees stands in its lane."""
        token, position = self.branches[chunk].feed()
        self._check(np.array([position]))
        offset = len(self.own_slots(chunk))
        own = self._first_slots[chunk]
        self._extents[chunk] = Extent(own, own + offset + 1)
        return Segment(np.array([token]), np.array([position]), own + offset, own)

    def _check(self, positions: Int64Array) -> None:
        check_positions(positions, self.known_positions)
        if self.border is None:
            return
        beyond = int(positions.max()) >= self.border
        if self._beyond_border is None:
            self._beyond_border = beyond
        if beyond != self._beyond_border:
            raise ModelError(
                f"the model's rotary embedding changes at position {self.border}, and the run would cross it",
                "keep the whole run on one side (fewer tokens, or other 'start' positions), or use a model "
                "without dynamic or LongRoPE scaling",
            )

    def finish(self, chunk: int) -> None:
        """A branch has ended: its children may start."""
        branch = self.branches[chunk]
        if branch.has_unfed_end():
            self.pending.append((replace(self.feed(chunk), seen=self.seen(chunk)), chunk))
        self.ends[chunk] = branch.end_position()
        if self.reuse is not None and branch.has_children:
            ids = np.concatenate([self.bundle.input_ids[self.bundle.span(chunk)], branch.ids])
            self._keys[chunk] = self._key(chunk, ids.astype(np.int64))
        self._release_children(chunk)

    def _release_children(self, chunk: int) -> None:
        for child in self._children[chunk].tolist():
            self._num_waiting[child] -= 1
            if self._num_waiting[child] == 0:
                heapq.heappush(self._ready, child)

    @property
    def is_finished(self) -> bool:
        return not self._ready and not self.pending and all(b.finish for b in self.branches.values())

    # Reuse

    def _key(self, chunk: int, ids: Int64Array) -> str | None:
        assert self.reuse is not None
        parents = list[tuple[str, int]]()
        for parent in self.bundle.mask.parents(chunk).tolist():
            key = self._keys[parent]
            if key is None:
                return None
            parents.append((key, int(self.starts[parent])))
        return self.reuse.key(ids, int(self.starts[chunk]), parents)

    def _set_text_key(self, chunk: int) -> None:
        span = self.bundle.span(chunk)
        # The compiler makes no others; a bundle that somebody made by hand may have them.
        is_consecutive = bool((np.diff(self.bundle.position_ids[span]) == 1).all())
        key = self._key(chunk, self.bundle.input_ids[span]) if is_consecutive else None
        self._text_keys[chunk] = key
        if chunk not in self.branches:
            self._keys[chunk] = key

    def _look_up(self, chunk: int) -> None:
        key, start = self._text_keys[chunk], int(self.starts[chunk])
        # The last token of a branch is computed anyway, for its logits.
        if self.reuse is None or key is None or (chunk in self.branches and self._text_length(chunk) == 1):
            return
        hit = self.reuse.find(key, start, self._text_length(chunk))
        if hit is not None:
            self._hits[chunk] = hit
            if hit.extent is not None:
                self._used_residents[chunk] = place = key, hit.start
                # The same text twice counts twice: the second chunk gets a copy.
                if hit.start == start and chunk not in self.branches and place not in self._places_taken:
                    self._in_place.add(chunk)
                    self._places_taken.add(place)

    def _fill(self, chunk: int) -> int:
        """Puts what is known about a chunk into its slots. Returns for how many of its tokens that is."""
        length, hit = self._text_length(chunk), self._hits.get(chunk)
        if self.reuse is None:
            return 0
        name, start = self.bundle.span_names[chunk], int(self.starts[chunk])
        if hit is None:
            self._sources[chunk] = ChunkSource(name, "computed", length, 0, 0, 0)
            return 0
        known = length - 1 if chunk in self.branches else length
        if self._lies_in_cache(chunk):
            assert hit.extent is not None
            self._first_slots[chunk], self._extents[chunk] = hit.extent.start, hit.extent
        else:
            own = self._first_slots[chunk]
            self.reuse.fill(hit, Extent(own, own + known), start)
            if hit.extent is not None:
                self.reuse.residents.leave(self._used_residents.pop(chunk))
        # What was found in memory need not stay there for this run.
        self._hits[chunk] = replace(hit, tensors=None)
        num_bytes = known * self.reuse.forward.shape.bytes_per_token()
        self._sources[chunk] = ChunkSource(name, hit.origin, length, known, num_bytes, start - hit.start)
        return known

    def computed(self) -> Iterator[tuple[str, int, Extent]]:
        """Key, first position and slots of everything that was computed and is complete."""
        still_pending = {chunk for _, chunk in self.pending}
        for chunk, source in self._sources.items():
            extent, length = self._extents[chunk], self._text_length(chunk)
            text_key, key = self._text_keys[chunk], self._keys[chunk]
            if extent is None or chunk in still_pending:
                continue
            if text_key is not None and source.origin == "computed":
                yield text_key, int(self.starts[chunk]), Extent(extent.start, extent.start + length)
            # What was moved was rounded once more; moved again from there, it would drift.
            if key is not None and key != text_key and source.shift == 0:
                yield key, int(self.starts[chunk]), extent

    def leave(self) -> list[tuple[tuple[str, int], Extent]]:
        """Gives up the residents that it used. Returns chunks in its own slots that can become residents."""
        if self.reuse is None:
            return []
        for place in self._used_residents.values():
            self.reuse.residents.leave(place)
        self._used_residents.clear()
        still_pending = {chunk for _, chunk in self.pending}
        new = list[tuple[tuple[str, int], Extent]]()
        for chunk, source in self._sources.items():
            key, extent = self._keys[chunk], self._extents[chunk]
            if key is None or extent is None or chunk in self.branches or chunk in still_pending:
                continue
            is_own = self.room.start <= extent.start < self.room.end
            if is_own and source.shift == 0 and self.reuse.makes_residents:
                new.append(((key, int(self.starts[chunk])), extent))
        return new

    # Afterwards

    def result(self) -> RunResult:
        outputs = {branch.name: branch.output() for branch in self.branches.values()}
        ended = self.ended or time.perf_counter()
        first = self.first_token or ended
        timing = {
            "prefill_s": first - self.started,
            "decode_s": ended - first,
            "total_s": ended - self.started,
        }
        tokens = {
            "prompt": len(self.bundle),
            "reused": sum(source.reused for source in self.sources()),
            "generated": sum(len(output.token_ids) for output in outputs.values()),
            "passes": self.num_passes,
        }
        branches = self.branches.values()
        generated = {branch.name: branch.ids for branch in branches}
        finished = {branch.name for branch in branches if branch.finish is not None}
        bundle = finished_bundle(self.bundle, generated, self.starts, finished)
        return RunResult(outputs, timing, tokens, self.sources(), bundle)

    def sources(self) -> tuple[ChunkSource, ...]:
        if self.reuse is None:
            return ()
        return tuple(
            self._sources.get(i) or self._unused(i)
            for i in range(self.bundle.mask.num_chunks)
            if i in self._sources or not self._is_needed[i]
        )

    def _unused(self, chunk: int) -> ChunkSource:
        length = self._text_length(chunk)
        return ChunkSource(self.bundle.span_names[chunk], "unused", length, length, 0, 0)


def children_of(mask: ChunkMask) -> list[Int64Array]:
    """The children of each chunk, ascending."""
    children = mask.children_of_edges()
    order = np.argsort(mask.parent_indices, kind="stable")
    borders = np.searchsorted(mask.parent_indices[order], np.arange(1, mask.num_chunks))
    return np.split(children[order], borders)


def check_positions(positions: Int64Array, known: int | None) -> None:
    """
    Raises:
        ModelError: a position that the model does not know.
    """
    highest = int(positions.max())
    if known is not None and highest >= known:
        raise ModelError(
            f"the graph uses position {highest}, and the model knows positions up to {known - 1}",
            "shorten the graph, use 'positions: causal' so that parallel chunks share positions, "
            "or take a model with a longer context",
        )
