"""Every graph that runs, in one cache: who gets slots, and what the next pass computes.

A pass is either a prefill of text that is ready, from any graph, or a decode step that gives every live
branch of every graph one token. They take turns, so that text that comes in does not hold up those who
generate for longer than one prefill pass.

There is no thread of its own. Whoever waits for events of its run drives the passes for all (`advance`), one
at a time under a lock; another waiter takes over when it has what it wanted.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np

from legraph.errors import ModelError
from legraph.forward import Forward
from legraph.job import Job
from legraph.logits import Logits
from legraph.passes import Segment
from legraph.reuse import Reuse
from legraph.slots import Extent, Residents, SlotPool


class Scheduler:
    """
    Args:
        num_slots: the least that the cache holds; it grows when a graph needs more.
        reuse: None keeps nothing between runs.
    """

    def __init__(self, forward: Forward, pool: SlotPool, reuse: Reuse | None, num_slots: int = 0) -> None:
        self.forward, self.pool, self.reuse = forward, pool, reuse
        self.residents = reuse.residents if reuse is not None else Residents(pool)
        self.num_slots = num_slots
        self.waiting, self.active = deque[Job](), list[Job]()
        self.lock = threading.RLock()
        self._prefilled_last = False

    def submit(self, job: Job) -> None:
        """Queues a run. It starts when somebody waits for it, or for another one."""
        self.waiting.append(job)

    def wait(self, *jobs: Job) -> None:
        """Drives passes until one of the jobs has events, or is done."""
        while not any(job.events or job.is_done for job in jobs):
            with self.lock:
                if not any(job.events or job.is_done for job in jobs):
                    self.advance()

    def cancel(self, job: Job) -> None:
        """Ends a run early and frees its slots; what it has generated stays in its result."""
        with self.lock:
            if job.is_done:
                return
            if job in self.waiting:
                self.waiting.remove(job)
            self._end(job, None)

    def advance(self) -> None:
        """One pass."""
        self._admit()
        lanes = self.forward.lanes
        has_text = any(job.pending for job in self.active)
        if has_text and not (len(lanes) and self._prefilled_last):
            self._prefilled_last = True
            self._prefill()
        elif len(lanes):
            self._prefilled_last = False
            self._decode()
        for job in list(self.active):
            if job.is_finished:
                self._end(job, None)

    # Coming

    def _admit(self) -> None:
        while self.waiting:
            # A rotary embedding that depends on the length of a pass leaves no room for others in it.
            if self.active and self.forward.border is not None:
                return
            job = self.waiting[0]
            try:
                room = self._room(job)
            except ModelError as error:
                self.waiting.popleft()
                self._end(job, error)
                continue
            if room is None:
                return
            self.waiting.popleft()
            job.settle(room)
            self.active.append(job)
            self._place_ready(job)

    def _room(self, job: Job) -> Extent | None:
        """Slots for a whole run, or None as long as others have to finish first."""
        if self.forward.cache is None:
            self._grow(max(self.num_slots, 1 + job.most_slots()))
        if not job.is_planned:
            job.plan()
        needed = job.num_slots()
        if not needed:
            return Extent(0, 0)
        room = self.residents.evict(needed)
        if room is None and self._grow_for(needed):
            room = self.pool.take(needed)
        return room

    def _grow_for(self, needed: int) -> bool:
        try:
            self._grow(self.pool.capacity + self.pool.missing(needed))
        except ModelError:
            # Others that are under way will give their slots back.
            if self.active:
                return False
            raise
        return True

    def _grow(self, num_slots: int) -> None:
        self.forward.fit(num_slots, keep=bool(self.active) or len(self.residents) > 0)
        is_new = self.pool.capacity == 0
        self.pool.grow(self.forward.capacity)
        if is_new:
            # Slot 0 is scratch space.
            self.pool.take(1)

    def _place_ready(self, job: Job) -> None:
        try:
            job.place_ready()
        except ModelError as error:
            self._end(job, error)

    # Passes

    def _prefill(self) -> None:
        taken = self._take_pending()
        try:
            logits = self.forward.prefill([segment for _, _, segment in taken], self.pool.high_water)
        except BaseException as error:
            for job, chunk, segment in reversed(taken):
                job.pending.appendleft((segment, chunk))
            self._fail({job for job, _, _ in taken}, error)
            return
        asked = [(job, chunk) for job, chunk, segment in taken if segment.wants_logits]
        self._accept(asked, logits)
        for job in {job for job, _, _ in taken}:
            job.num_passes += 1

    def _take_pending(self) -> list[tuple[Job, int, Segment]]:
        """Text for one pass: everything that is ready, or as much as `prefill_tokens` allows.

        A chunk is cut only if it is longer than a pass (see `passes.split`).
        """
        limit = self.forward.prefill_tokens
        taken, room = list[tuple[Job, int, Segment]](), limit
        for job in self.active:
            while job.pending:
                segment, chunk = job.pending[0]
                if room is not None and limit is not None and len(segment) > room:
                    if room < min(len(segment), limit):
                        return taken
                    job.pending[0] = segment.cut(room, len(segment)), chunk
                    segment = segment.cut(0, room)
                else:
                    job.pending.popleft()
                room = None if room is None else room - len(segment)
                taken.append((job, chunk, segment))
        return taken

    def _decode(self) -> None:
        fed = dict[tuple[Job, int], Segment]()
        for job, chunk in list(self.forward.lanes.owners):
            try:
                fed[job, chunk] = job.feed(chunk)
            except ModelError as error:
                self._end(job, error)
        owners: list[tuple[Job, int]] = list(self.forward.lanes.owners)
        if not owners:
            return
        segments = [fed[owner] for owner in owners]
        ids, positions, slots = (
            np.array(column, dtype=np.int64)
            for column in zip(*((s.ids[0], s.positions[0], s.slot) for s in segments), strict=True)
        )
        try:
            logits = self.forward.decode(ids, positions, slots, self.pool.high_water)
        except BaseException as error:
            self._fail({job for job, _ in owners}, error)
            return
        self._accept(owners, logits)
        for job in {job for job, _ in owners}:
            job.num_passes += 1

    def _accept(self, asked: list[tuple[Job, int]], logits: Logits) -> None:
        """Draws a token for every branch that was asked for; starts what became ready by that."""
        now = time.perf_counter()
        for (job, chunk), row, best, highest in zip(
            asked, logits.rows, logits.best, logits.highest, strict=False
        ):
            if job.is_done:
                continue
            branch = job.branches[chunk]
            try:
                piece = branch.accept(row, best, highest)
            except ModelError as error:
                self._end(job, error)
                continue
            job.first_token = job.first_token or now
            if piece is not None:
                job.events.append(piece)
            is_in_lane = (job, chunk) in self.forward.lanes.owners
            if branch.finish is None:
                if not is_in_lane:
                    self.forward.lanes.enter((job, chunk), [*job.seen(chunk), job.own_slots(chunk)])
                continue
            if is_in_lane:
                self.forward.lanes.leave((job, chunk))
            job.finish(chunk)
            self._place_ready(job)

    # Going

    def _fail(self, jobs: set[Job], error: BaseException) -> None:
        """A pass failed. Whoever waits for one of the runs that took part in it gets the error."""
        if isinstance(error, Exception):
            for job in jobs:
                self._end(job, error)
            return
        # An interrupt is for the thread that it came to; what was complete before it stays.
        for job in jobs:
            self._end(job, ModelError("the run was interrupted"), is_sound=True)
        raise error

    def _end(self, job: Job, error: Exception | None, is_sound: bool | None = None) -> None:
        """
        Args:
            is_sound: whether what was computed for it can be used again; by default, if there is no error.
        """
        job.ended = time.perf_counter()
        job.error = error
        if job in self.active:
            self.active.remove(job)
            for owner in [owner for owner in self.forward.lanes.owners if owner[0] is job]:
                self.forward.lanes.leave(owner)
            self._give_back(job, error is None if is_sound is None else is_sound)
        else:
            job.leave()
        if error is None and job.is_finished:
            job.events.append(job.result())
        # Last: readers in other threads look at it without the lock.
        job.is_done = True

    def _give_back(self, job: Job, is_sound: bool) -> None:
        """Its slots, less those of the chunks that stay in the cache."""
        cache = self.forward.cache
        assert cache is not None
        staying = job.leave()
        # A run that was cancelled may not have noticed what a pass that it shared has done to it.
        if not is_sound or (self.reuse is not None and not cache.is_finite(job.room)):
            # 0 times NaN is NaN, so it must not lie where others may come to lie.
            cache.clear(job.room)
            staying = []
        elif self.reuse is not None:
            self.reuse.keep(job.computed())
        at = job.room.start
        for place, extent in sorted(staying, key=lambda entry: entry[1].start):
            self.pool.give(Extent(at, extent.start))
            self.residents.add(place, extent)
            at = extent.end
        self.pool.give(Extent(at, job.room.end))
