"""Many graphs in one cache: everyone gets what they get alone, and gives back what they took."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import scheduler
from legraph.branch import Branch, Piece
from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine, Submission
from legraph.errors import ModelError
from legraph.flatcache import FlatCache
from legraph.graph import Generate
from legraph.job import Job
from legraph.kvstore import KVStore
from legraph.result import RunResult
from legraph.slots import Extent
from tests.naive import counts, engine, ids_of, oracle, watched
from tests.random_graphs import running, tokenizer
from tests.tiny_models import tiny_model

HOW = Generate(max_new_tokens=6)
# A token that the model below cannot read.
POISON = "\x01"


def graph(*texts: str, question: str = "which?", **more: Any) -> Bundle:
    docs = [Chunk(text, name=f"d{i}") for i, text in enumerate(texts)]
    return compile_chunks([Chunk(question, parents=docs, name="q", **more)], tokenizer())


def expected(bundle: Bundle, at_leaves: int = 6) -> dict[str, list[int]]:
    return oracle("llama", bundle, counts(bundle, at_leaves))


def check_empty(made: Engine) -> None:
    """Nobody holds anything, but for chunks that stayed and slot 0."""
    scheduler = made._scheduler
    assert not scheduler.active and not scheduler.waiting
    assert len(scheduler.forward.lanes) == 0
    assert not scheduler.forward.lanes.rows.any()
    residents = scheduler.residents._by_place.values()
    assert all(resident.num_users == 0 for resident in residents)
    kept = sum(len(resident.extent) for resident in residents)
    assert scheduler.pool.num_free == scheduler.pool.capacity - 1 - kept
    assert scheduler.pool.capacity == scheduler.forward.capacity


def check_apart(made: Engine) -> None:
    """No slot has two owners: runs, chunks that stayed, what is free, and slot 0."""
    scheduler = made._scheduler
    pool = scheduler.pool
    held = [Extent(0, 1), *(job.room for job in scheduler.active)]
    held += [resident.extent for resident in scheduler.residents._by_place.values()]
    held += [Extent(start, end) for start, end in zip(pool._starts, pool._ends, strict=True)]
    slots = [slot for extent in held for slot in range(extent.start, extent.end)]
    assert sorted(slots) == list(range(pool.capacity))
    for job in scheduler.active:
        own = [extent for extent in job._extents if extent is not None]
        inside = [e for e in own if job.room.start <= e.start < job.room.end]
        assert all(e.end <= job.room.end for e in inside)
        taken = [slot for e in inside for slot in range(e.start, e.end)]
        assert len(taken) == len(set(taken))


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each returns, or the error that it raised; all start at once."""
    results: list[Any] = [None] * len(work)
    together = threading.Barrier(len(work))

    def do(i: int) -> None:
        together.wait()
        try:
            results[i] = work[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=do, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return results


@pytest.mark.parametrize("kv", [False, True])
def test_threads_that_come_at_once_get_what_they_get_alone(kv: bool) -> None:
    made = engine(kv=KVStore() if kv else None)
    bundles = [
        [graph("shared text", f"{i} of {j}" * (1 + i), question=f"{i}{j}?") for j in range(3)]
        for i in range(8)
    ]
    found = in_threads(*(lambda own=own: [made.run(bundle, HOW) for bundle in own] for own in bundles))
    for own, results in zip(bundles, found, strict=True):
        assert not isinstance(results, BaseException), results
        for bundle, result in zip(own, results, strict=True):
            assert ids_of(result) == expected(bundle)
    check_empty(made)
    check_apart(made)


def test_threads_stream_side_by_side() -> None:
    made = engine()
    bundles = [graph(f"text {i}") for i in range(6)]

    def read(bundle: Bundle) -> tuple[list[int], RunResult]:
        *pieces, result = made.stream(bundle, HOW)
        assert isinstance(result, RunResult)
        return [piece.token_id for piece in pieces], result

    for bundle, (ids, result) in zip(
        bundles, in_threads(*(lambda b=b: read(b) for b in bundles)), strict=True
    ):
        assert ids == list(result.outputs["q"].token_ids) == expected(bundle)["q"]
    check_empty(made)


def test_a_reader_gets_the_result_though_another_thread_brings_it_to_its_end(monkeypatch: Any) -> None:
    """The reader comes at the worst moment: the run has ended, and its result is being put together."""
    made = engine()
    submission, result_of = made.submit(graph("text"), HOW), Job.result
    read = list[Any]()
    reader = threading.Thread(target=lambda: read.extend(submission.events()))

    def meanwhile(self: Job) -> RunResult:
        if not reader.ident:
            reader.start()
            reader.join(0.3)
        return result_of(self)

    monkeypatch.setattr(Job, "result", meanwhile)
    while not submission.is_done:
        made._scheduler.wait(submission.job)
        made._scheduler.advance()
    reader.join(10)
    assert isinstance(read[-1], RunResult)
    assert [event.token_id for event in read[:-1]] == expected(graph("text"))["q"]


@settings(max_examples=40, deadline=None)
@given(
    graphs=st.lists(running(max_chunks=5), min_size=1, max_size=6),
    random=st.randoms(use_true_random=False),
    kv=st.booleans(),
    prefill_tokens=st.sampled_from([None, 2]),
)
def test_runs_that_come_and_go_in_any_order_leave_nothing_behind(
    graphs: list[Bundle], random: Any, kv: bool, prefill_tokens: int | None
) -> None:
    """Graphs are submitted, advanced and cancelled at random moments; the others are right."""
    made = engine(kv=KVStore() if kv else None, prefill_tokens=prefill_tokens)
    to_come, running_now, cancelled = list(graphs), list[tuple[Bundle, Submission]](), set[int]()
    while to_come or any(not submission.is_done for _, submission in running_now):
        what = random.choice(["submit", "advance", "advance", "advance", "cancel"])
        if what == "submit" and to_come:
            bundle = to_come.pop()
            running_now.append((bundle, made.submit(bundle, Generate(max_new_tokens=3))))
        elif what == "cancel" and running_now and random.random() < 0.3:
            i = random.randrange(len(running_now))
            if not running_now[i][1].is_done:
                cancelled.add(i)
            running_now[i][1].cancel()
        else:
            made._scheduler.advance()
        if made._forward.cache is not None:
            check_apart(made)
    for i, (bundle, submission) in enumerate(running_now):
        found, whole = ids_of(submission.result()), expected(bundle, 3)
        if i not in cancelled:
            assert found == whole
            continue
        finishes = {output.finish for output in submission.result().outputs.values()}
        assert finishes <= {"length", "cancelled"}
        for name, ids in found.items():
            assert ids == whole[name][: len(ids)]
    if made._forward.cache is not None:
        check_empty(made)


def test_a_run_that_is_cancelled_in_the_middle_keeps_what_it_had_and_hurts_nobody() -> None:
    made = engine()
    mine, other = graph("mine"), graph("another text")
    submission, stays = made.submit(mine, HOW), made.submit(other, HOW)
    events = submission.events()
    pieces = [next(events) for _ in range(3)]
    submission.cancel()
    submission.cancel()
    assert submission.is_done
    result = submission.result()
    assert result.outputs["q"].finish == "cancelled"
    assert list(result.outputs["q"].token_ids) == [
        piece.token_id for piece in pieces if isinstance(piece, Piece)
    ]
    assert ids_of(result)["q"] == expected(mine)["q"][:3]
    assert [event.outputs["q"].finish for event in events] == ["cancelled"]
    assert ids_of(stays.result()) == expected(other)
    check_empty(made)


def test_a_run_that_has_not_begun_can_be_cancelled() -> None:
    made = engine(kv=KVStore())
    made.run(graph("text"), HOW)
    submission = made.submit(graph("text"), HOW)
    submission.cancel()
    assert submission.result().outputs["q"].token_ids == ()
    check_empty(made)


def test_who_stops_reading_a_stream_ends_the_run() -> None:
    made = engine()
    stream = made.stream(graph("text"), HOW)
    next(stream)
    assert made._scheduler.active
    stream.close()  # type: ignore[attr-defined]
    check_empty(made)


def test_one_that_fails_side_by_side_ends_the_others() -> None:
    made = poisoned()
    with pytest.raises(ModelError, match="not finite numbers"):
        made.run([graph("text"), graph(f"te{POISON}xt"), graph("text")], HOW)
    check_empty(made)


# Errors in one run.


def poisoned(**more: Any) -> Engine:
    """An engine whose model makes NaN of one token: in the hidden states where it stands, and below."""
    model = deepcopy(tiny_model("llama"))
    with torch.no_grad():
        model.get_input_embeddings().weight[ord(POISON)] = float("nan")
    made = Engine(model, tokenizer(), more.pop("attn", "auto"), **more)
    made.end_ids = frozenset()
    return made


@pytest.mark.parametrize("attn", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("kv", [False, True])
@pytest.mark.parametrize("prefill_tokens", [None, 4])
def test_numbers_that_are_none_are_told_and_go_with_the_graph_they_came_from(
    attn: str, kv: bool, prefill_tokens: int | None
) -> None:
    """Who shares a pass with them may get the same error, never a wrong answer; who comes later does not."""
    made = poisoned(attn=attn, kv=KVStore() if kv else None, prefill_tokens=prefill_tokens)
    good = graph("a text", "another")
    bad = graph("a text", f"ano{POISON}ther")
    before, wrong, after = made.submit(good, HOW), made.submit(bad, HOW), made.submit(good, HOW)
    for fine in (after, before):
        try:
            assert ids_of(fine.result()) == expected(good)
        except ModelError as error:
            assert "are not finite numbers" in str(error)
    with pytest.raises(ModelError, match="logits for chunk 'q' are not finite numbers"):
        wrong.result()
    check_empty(made)
    # Longer than before, so that it lies where the other lay.
    longer = graph("a text of another length", "that covers all the slots", "of all of those before")
    assert ids_of(made.run(longer, HOW)) == expected(longer)
    # Nothing of it was kept.
    with pytest.raises(ModelError, match="not finite"):
        made.run(bad, HOW)


def test_who_waits_in_another_thread_gets_the_error_of_their_own_run() -> None:
    made = poisoned()
    good, bad = graph("a text"), graph(f"a{POISON}text")
    found = in_threads(*(lambda b=b: made.run(b, HOW) for b in (good, bad, good, bad)))
    for bundle, result in zip((good, bad, good, bad), found, strict=True):
        if bundle is bad or isinstance(result, ModelError):
            assert "are not finite numbers" in str(result)
        else:
            assert ids_of(result) == expected(good)
    check_empty(made)


def test_a_chunk_that_would_move_past_the_last_position_fails_alone() -> None:
    """Known only when the chunk above it has been written."""
    made = engine("gpt2")
    draft = Chunk("x" * 40, name="draft", generate=Generate(max_new_tokens=20))
    moves = compile_chunks([Chunk("0123456789", parents=[draft], name="end")], tokenizer())
    good = graph("short")
    bad, fine = made.submit(moves), made.submit(good, HOW)
    assert ids_of(fine.result()) == oracle("gpt2", good, {"q": 6})
    with pytest.raises(ModelError, match="uses position 69, and the model knows positions up to 63"):
        bad.result()
    check_empty(made)


# Interrupts.


@pytest.mark.parametrize("kv", [False, True])
@pytest.mark.parametrize("at", range(1, 8))
def test_an_interrupt_leaves_what_was_written_and_an_engine_that_works(
    at: int, kv: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pass number `at`: one for the text, six for the tokens of a draft, then its child's."""
    made = engine(kv=KVStore() if kv else None)
    draft = Chunk("draft", name="draft", generate=Generate(max_new_tokens=5))
    bundle = compile_chunks([Chunk("so?", parents=[draft], name="end")], tokenizer())
    made.run(graph("warm"), Generate(max_new_tokens=1))
    forward, num_passes = made.model.forward, 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_passes
        num_passes += 1
        if num_passes == at:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        submission = made.submit(bundle, HOW)
        patch.setattr(made.model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            submission.result()
    found = submission.partial()
    whole = expected(bundle)
    assert {name: ids for name, ids in ids_of(found).items() if ids} == {
        name: ids
        for name, ids in {
            "draft": whole["draft"][: at - 1],
            "end": whole["end"][: max(0, at - 6)],
        }.items()
        if ids
    }
    check_empty(made)
    for _ in range(2):
        assert ids_of(made.run(bundle, HOW)) == whole


# Room.


def test_the_cache_grows_for_a_graph_that_needs_more() -> None:
    made = engine()
    small, large = graph("small"), graph("x" * 700, "y" * 700)
    first = made.submit(small, Generate(max_new_tokens=12))
    events = first.events()
    next(events)
    assert made._forward.capacity == 512
    # What is under way moves with its slots.
    assert ids_of(made.run(large, HOW)) == expected(large)
    assert made._forward.capacity == 1536
    assert ids_of(first.result()) == oracle("llama", small, {"q": 12})
    check_empty(made)


def test_a_cache_may_be_large_from_the_start() -> None:
    made = engine(cache_tokens=2000)
    made.run(graph("small"), HOW)
    assert made._forward.capacity == 2048


def no_cache_above(most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Larger ones do not fit into memory. Returns the sizes that are asked for, as they come."""
    asked = list[int]()

    def limited(shape: Any, device: Any, capacity: int) -> FlatCache:
        asked.append(capacity)
        if capacity > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FlatCache(shape, device, capacity)

    monkeypatch.setattr("legraph.forward.FlatCache", limited)
    return asked


def test_a_graph_waits_where_there_is_no_room_until_others_have_gone(monkeypatch: Any) -> None:
    made = engine()
    one, two = graph("x" * 300), graph("y" * 400)
    no_cache_above(512, monkeypatch)
    first, second = made.submit(one, HOW), made.submit(two, HOW)
    events = first.events()
    next(events)
    assert len(made._scheduler.active) == len(made._scheduler.waiting) == 1
    assert ids_of(second.result()) == expected(two)
    assert first.is_done
    assert ids_of(first.result()) == expected(one)
    check_empty(made)


@pytest.mark.parametrize("kv", [False, True])
def test_a_graph_that_never_fits_says_so_and_lets_others_pass(kv: bool, monkeypatch: Any) -> None:
    """Also after the cache has grown: what it had is there again, or as much as the next one needs."""
    made = engine(kv=KVStore() if kv else None)
    small, medium, large = graph("x" * 100), graph("z" * 900), graph("y" * 2000)
    no_cache_above(1024, monkeypatch)
    made.run(small, HOW)
    made.run(medium, HOW)
    # With a store the first graph's document stays where it is.
    assert made._forward.capacity == (1024 if kv else 960)
    first, never, last = (made.submit(bundle, HOW) for bundle in (small, large, small))
    with pytest.raises(ModelError, match="out of memory: "):
        never.result()
    assert ids_of(first.result()) == ids_of(last.result()) == expected(small)
    with pytest.raises(ModelError, match="out of memory: "):
        made.run(large, HOW)
    assert ids_of(made.run(small, HOW)) == expected(small)
    assert ids_of(made.run(medium, HOW)) == expected(medium)
    check_empty(made)
    check_apart(made)


def test_text_and_tokens_take_turns() -> None:
    """A long text that comes in does not hold up those who generate for longer than one pass."""
    made = engine(prefill_tokens=10)
    writer = made.submit(graph("short", question="?"), Generate(max_new_tokens=9))
    events = writer.events()
    next(events)
    made.submit(graph("x" * 50, question="ten tokens"), Generate(max_new_tokens=2))
    with watched(made.model) as seen:
        list(events)
    # 60 tokens of text in parts of ten; the writer's tokens in between; at the end both.
    assert seen.passes[:12] == [1, 10] * 6 or seen.passes[:12] == [10, 1] * 6


def test_a_rotary_embedding_that_depends_on_the_length_lets_one_graph_run_at_a_time() -> None:
    made = engine("llama-dynamic")
    first, second = made.submit(graph("one"), HOW), made.submit(graph("two"), HOW)
    next(first.events())
    assert len(made._scheduler.active) == len(made._scheduler.waiting) == 1
    assert ids_of(second.result()) == oracle("llama-dynamic", graph("two"), {"q": 6})
    assert ids_of(first.result()) == oracle("llama-dynamic", graph("one"), {"q": 6})


# Between two passes.


def fails_once(error: BaseException, work: Callable[..., Any]) -> Callable[..., Any]:
    """The same work, but the second call raises."""
    calls = list[int]()

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return work(*args, **kwargs)

    return failing


@pytest.mark.parametrize("kv", [False, True])
@pytest.mark.parametrize("method", ["enter", "leave"])
def test_memory_that_ends_between_passes_is_told_to_whom_it_concerns(
    kv: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = engine(kv=KVStore() if kv else None)
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    lanes = made._forward.lanes
    with monkeypatch.context() as patch:
        patch.setattr(lanes, method, fails_once(error, getattr(lanes, method)))
        running = [made.submit(graph(text), HOW) for text in ("one", "two", "three")]
        found = in_threads(*(one.result for one in running))
    assert any(isinstance(one, ModelError) for one in found)
    for text, one in zip(("one", "two", "three"), found, strict=True):
        if isinstance(one, ModelError):
            assert "out of memory while running the graphs" in str(one)
        else:
            assert ids_of(one) == expected(graph(text))
    check_empty(made)
    assert ids_of(made.run(graph("one"), HOW)) == expected(graph("one"))


def test_an_interrupt_while_tokens_are_drawn_leaves_no_run_half_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = engine()
    with monkeypatch.context() as patch:
        patch.setattr(Branch, "accept", fails_once(KeyboardInterrupt(), Branch.accept))
        mine, other = made.submit(graph("mine"), HOW), made.submit(graph("other"), HOW)
        with pytest.raises(KeyboardInterrupt):
            mine.result()
    with pytest.raises(ModelError, match="interrupted"):
        other.result()
    check_empty(made)
    assert ids_of(made.run(graph("other"), HOW)) == expected(graph("other"))


def test_a_store_that_fails_is_the_error_of_the_run_it_failed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(kv=KVStore())
    with monkeypatch.context() as patch:
        patch.setattr(made.kv, "put", fails_once(RuntimeError("no page-locked memory"), made.kv.put))
        first, second = made.submit(graph("one"), HOW), made.submit(graph("two"), HOW)
        found = in_threads(first.result, second.result)
    assert [str(one) for one in found if isinstance(one, Exception)] == ["no page-locked memory"]
    assert sum(isinstance(one, RunResult) for one in found) == 1
    check_empty(made)


def test_a_branch_whose_last_token_cannot_be_placed_fails_alone() -> None:
    """Its children would see a token beyond the border of the rotary embedding."""
    made = engine()
    made._forward.border = 64
    root = Chunk("a" * 52, name="root")
    draft = Chunk("bb", parents=[root], name="draft", generate=Generate(max_new_tokens=11))
    bad = compile_chunks([Chunk("cc", parents=[draft], name="end", start=0)], tokenizer())
    first, second = made.submit(bad, HOW), made.submit(graph("fine"), HOW)
    assert ids_of(second.result()) == expected(graph("fine"))
    with pytest.raises(ModelError, match="rotary embedding changes"):
        first.result()
    check_empty(made)


def test_a_known_chunk_is_given_up_where_its_copy_would_not_fit(monkeypatch: Any) -> None:
    """Wanted at another position, it would need its slots twice."""
    made = engine(kv=KVStore())
    no_cache_above(512, monkeypatch)
    text = "document text " * 22

    def at(start: int) -> Bundle:
        document = Chunk(text, name="d", start=start)
        return compile_chunks([Chunk("q?", parents=[document], name="q", start=start + 400)], tokenizer())

    for start in (0, 7, 7, 0):
        assert ids_of(made.run(at(start), HOW)) == expected(at(start))
    check_empty(made)


def test_what_was_moved_is_not_where_others_are_moved_from() -> None:
    """In bfloat16 every move rounds once more; copies of copies would drift away."""
    made = engine(kv=KVStore())

    def at(start: int) -> Bundle:
        document = Chunk("a document", name="d", start=start)
        return compile_chunks([Chunk("q?", parents=[document], name="q")], tokenizer())

    shifts = [made.run(at(start), HOW).sources[0].shift for start in (5, 9, 9, 2)]
    assert shifts == [0, 4, 4, -3]


def test_branches_wait_for_a_lane_where_rows_would_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    leaves = [Chunk(f"branch {i}", name=f"b{i}") for i in range(7)]
    bundle = compile_chunks(leaves, tokenizer())
    monkeypatch.setattr(scheduler, "_MAX_LANE_BYTES", 2 * 512)
    sizes = list[int]()
    decode = made._forward.decode
    monkeypatch.setattr(
        made._forward, "decode", lambda ids, *more: (sizes.append(len(ids)), decode(ids, *more))[1]
    )
    assert ids_of(made.run(bundle, HOW)) == expected(bundle)
    assert max(sizes) == 2
    check_empty(made)


def test_a_run_that_waits_for_room_does_not_try_in_every_pass(monkeypatch: Any) -> None:
    made = engine()
    made.run(graph("x" * 300), HOW)
    attempts = no_cache_above(512, monkeypatch)
    first, second = (made.submit(graph("y" * 300), Generate(max_new_tokens=20)) for _ in range(2))
    assert ids_of(second.result()) == expected(graph("y" * 300), 20)
    assert ids_of(first.result()) == expected(graph("y" * 300), 20)
    assert len(attempts) <= 2
