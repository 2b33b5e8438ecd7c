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
from contextlib import suppress
from typing import Any

import numpy as np

from legraph.errors import ModelError
from legraph.forward import Forward
from legraph.job import Job
from legraph.logits import Logits
from legraph.model import run_errors
from legraph.passes import Segment
from legraph.reuse import Reuse
from legraph.slots import Extent, Residents, SlotPool

# Rows of the mask for live branches take no more than this; further branches wait for a lane.
_MAX_LANE_BYTES = 2**30
# How long a waiter waits for the one who drives before it looks whether there is something for itself.
_LOOK_EVERY_S = 0.005


class Scheduler:
    """
    Args:
        num_slots: the least that the cache holds; it grows when a graph needs more.
        reuse: None keeps nothing between runs.

    Attributes:
        max_slots: beyond these, runs wait for others to end rather than have the cache grow; one that needs
            more by itself gets them. None: it grows as long as there is memory.
    """

    def __init__(self, forward: Forward, pool: SlotPool, reuse: Reuse | None, num_slots: int = 0) -> None:
        self.forward, self.pool, self.reuse = forward, pool, reuse
        self.residents = reuse.residents if reuse is not None else Residents(pool)
        self.num_slots = num_slots
        self.max_slots: int | None = None
        self.waiting, self.active = deque[Job](), list[Job]()
        self.lock = threading.RLock()
        self._prefilled_last = False
        # Branches that have their first token, and no lane yet.
        self._without_lane = deque[tuple[Job, int]]()
        # The runs that the pass under way is for.
        self._involved = set[Job]()
        # The first in the queue does not fit until a run has ended.
        self._is_full = False

    def submit(self, job: Job) -> None:
        """Queues a run. It starts when somebody waits for it, or for another one."""
        self.waiting.append(job)

    def wait(self, *jobs: Job) -> None:
        """Drives passes until one of the jobs has events, or is done."""
        while not any(job.events or job.is_done for job in jobs):
            # Whoever drives serves all, so there may be something to read before the lock is free.
            if not self.lock.acquire(timeout=_LOOK_EVERY_S):
                continue
            try:
                if not any(job.events or job.is_done for job in jobs):
                    self.advance()
            finally:
                self.lock.release()

    def cancel(self, job: Job) -> None:
        """Ends a run early and frees its slots; what it has generated stays in its result."""
        with self.lock:
            if job in self.waiting:
                self.waiting.remove(job)
            self._end(job, None)

    def advance(self) -> None:
        """One pass. What goes wrong in it is an error of the runs that it was for; none is left half-way."""
        self._involved = set()
        try:
            with run_errors("running the graphs"):
                self._admit()
                self._pass()
            for job in [job for job in self.active if job.is_finished]:
                self._involved = {job}
                self._end(job, None)
        except BaseException as error:
            self._fail(self._involved or set(self.active), error)
            # It may have happened here only, and the others wait in the middle of the pass: this is the end.
            if self.forward.team is not None:
                raise

    def _pass(self) -> None:
        self._give_lanes()
        num_lanes = len(self.forward.lanes)
        has_text = any(job.pending for job in self.active)
        if has_text and not (num_lanes and self._prefilled_last):
            self._prefilled_last = True
            self._prefill()
        elif num_lanes:
            self._prefilled_last = False
            self._decode()
        else:
            assert not self.active or any(job.is_finished for job in self.active), "nothing is left to do"

    # Coming

    def _admit(self) -> None:
        while self.waiting and not self._is_full:
            # A rotary embedding that depends on the length of a pass leaves no room for others in it.
            if self.active and self.forward.border is not None:
                return
            job = self.waiting[0]
            try:
                room = self._room(job)
            except Exception as error:  # of whatever kind, it is this run's alone
                if self.forward.team is not None and not isinstance(error, ModelError):
                    raise
                self.waiting.popleft()
                self._end(job, error)
                continue
            if room is None:
                self._is_full = True
                return
            self.waiting.popleft()
            job.settle(room)
            self.active.append(job)
            self._place_ready(job)

    def _room(self, job: Job) -> Extent | None:
        """Slots for a whole run, or None as long as others have to finish first.

        Raises:
            ModelError: there is no memory for it, though nobody else is there.
        """
        if self.forward.cache is None:
            self._grow(max(self.num_slots, 1 + job.most_slots()))
        if not job.is_planned:
            job.plan()
        if self.active and not self._is_allowed_beside(job):
            return None
        room = self._find_room(job.num_slots())
        if room is not None or self.active:
            return room
        # What it would use from the cache is in its way.
        job.forget_plan()
        room = self._find_room(job.num_slots())
        if room is None:
            # They are in the way: what lies between them is too short, and all of it has to be copied.
            self.residents.clear()
            self._grow_for(job.num_slots())
            room = self.pool.take(job.num_slots())
        return room

    def _find_room(self, needed: int) -> Extent | None:
        """Free slots; else those of chunks that nobody uses; else new ones."""
        if not needed:
            return Extent(0, 0)
        room = self.residents.evict(needed)
        if room is None and self._may_grow_for(needed):
            with suppress(ModelError):
                self._grow_for(needed)
                room = self.pool.take(needed)
        return room

    def _is_allowed_beside(self, job: Job) -> bool:
        """Whether all that run would still keep within `max_slots`, less what is left to chunks that have
        proved of use to others, half of it at most."""
        if self.max_slots is None:
            return True
        most = self.max_slots - min(self.residents.num_proved_slots(), self.max_slots // 2)
        return sum(len(each.room) for each in self.active) + job.num_slots() <= most

    def _may_grow_for(self, needed: int) -> bool:
        return self.max_slots is None or self.pool.capacity + self.pool.missing(needed) <= self.max_slots

    def _grow_for(self, needed: int) -> None:
        self._grow(self.pool.capacity + self.pool.missing(needed))

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

    def _give_lanes(self) -> None:
        """Branches that wait for a lane get one, as long as the rows of the mask do not take too much."""
        lanes, most = self.forward.lanes, max(1, _MAX_LANE_BYTES // max(1, self.forward.capacity))
        while self._without_lane and len(lanes) < most:
            job, chunk = self._without_lane.popleft()
            lanes.enter((job, chunk), [*job.seen(chunk), job.own_slots(chunk)])

    # Passes

    def _prefill(self) -> None:
        taken = self._take_pending()
        self._involved = {job for job, _, _ in taken}
        try:
            logits = self.forward.prefill([segment for _, _, segment in taken], self.pool.high_water)
        except BaseException:
            # Not computed: nobody may take it for known.
            for job, chunk, segment in reversed(taken):
                job.pending.appendleft((segment, chunk))
            raise
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
        self._involved = {job for job, _ in owners}
        logits = self.forward.decode(ids, positions, slots, self.pool.high_water)
        self._accept(owners, logits)
        for job in {job for job, _ in owners}:
            job.num_passes += 1

    def _accept(self, asked: list[tuple[Job, int]], logits: Logits) -> None:
        """Draws a token for every branch that was asked for; starts what became ready by that."""
        now = time.perf_counter()
        if self.forward.team is not None:
            samples = any(not job.branches[chunk].sampler.is_greedy for job, chunk in asked)
            logits = self.forward.team.agreed(logits, with_rows=samples)
        for (job, chunk), row, best, highest in zip(
            asked, logits.rows, logits.best, logits.highest, strict=False
        ):
            if job.is_done:
                continue
            try:
                self._draw(job, chunk, row, best, highest)
            except ModelError as error:
                self._end(job, error)
                continue
            job.first_token = job.first_token or now
            self._place_ready(job)

    def _draw(self, job: Job, chunk: int, row: Any, best: int, highest: float) -> None:
        branch, lanes = job.branches[chunk], self.forward.lanes
        piece = branch.accept(row, best, highest)
        if piece is not None:
            job.events.append(piece)
        if branch.finish is None:
            if (job, chunk) not in lanes:
                self._without_lane.append((job, chunk))
            return
        if (job, chunk) in lanes:
            lanes.leave((job, chunk))
        job.finish(chunk)

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
        if job.is_done:
            return
        job.ended = time.perf_counter()
        job.error = error
        self._is_full = False
        try:
            self._leave(job, error is None if is_sound is None else is_sound)
            if error is None and job.is_finished:
                job.events.append(job.result())
        except Exception as failure:
            job.error = error or failure
        finally:
            # Last: readers in other threads look at it without the lock.
            job.is_done = True

    def _leave(self, job: Job, is_sound: bool) -> None:
        if job not in self.active:
            job.leave()
            return
        self.active.remove(job)
        self._without_lane = deque(owner for owner in self._without_lane if owner[0] is not job)
        for owner in [owner for owner in self.forward.lanes.owners if owner[0] is job]:
            self.forward.lanes.leave(owner)
        staying = job.leave()
        cache = self.forward.cache
        assert cache is not None
        try:
            # A run that was cancelled may not have noticed what a pass that it shared has done to it.
            if not is_sound or (self.reuse is not None and not cache.is_finite(job.room)):
                staying = []
                # 0 times NaN is NaN, so it must not lie where others may come to lie.
                cache.clear(job.room)
            elif self.reuse is not None:
                self.reuse.keep(job.computed())
        finally:
            self._give_back(job, staying)

    def _give_back(self, job: Job, staying: list[tuple[tuple[str, int], Extent]]) -> None:
        """Its slots, less those of the chunks that stay in the cache."""
        at = job.room.start
        for place, extent in sorted(staying, key=lambda entry: entry[1].start):
            self.pool.give(Extent(at, extent.start))
            self.residents.add(place, extent)
            at = extent.end
        self.pool.give(Extent(at, job.room.end))
