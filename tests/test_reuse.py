"""Keys and values that are found again: the same tokens and logits come out, and less is computed.

Expected tokens are those of an engine that knows no cache (`naive.oracle`), expected logits those of one
dense forward pass over the finished graph; where each chunk must come from is worked out here by hand.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine
from legraph.graph import Generate
from legraph.kvstore import KVStore
from legraph.result import RunResult
from legraph.reuse import ChunkSource, usable
from legraph.rotary import KeyShift
from tests.naive import check_logits, counts, engine, ids_of, oracle, run_and_check, watched
from tests.random_graphs import running, tokenizer
from tests.tiny_models import tiny_model

# Keys and values of 4 heads of 16 channels in 2 layers, 4 bytes each.
BYTES_PER_TOKEN = 2 * 4 * 16 * 2 * 4
HOW = Generate(max_new_tokens=3)
# Of every kind of rotary embedding that can be moved.
MOVABLE = [
    "llama",
    "llama-gqa",
    "llama-linear",
    "llama-llama3",
    "llama-yarn",
    "qwen3",
    "mistral-window",
    "gpt-neox",
    "gemma3",
    "gemma2",
    "phi3-partial",
    "smollm3",
    "cohere",
    "glm",
    "gpt-oss",
]
IMMOVABLE = {
    "llama-dynamic": "its rotary embedding is of type dynamic",
    "gpt2": "it has no rotary embedding that legraph knows",
    "opt": "it has no rotary embedding that legraph knows",
    "gptj": "it has no rotary embedding that legraph knows",
}


def moved(bundle: Bundle, distance: int) -> Bundle:
    """The same graph further on: every chunk is pinned there."""
    meta = replace(bundle.meta, pinned=frozenset(bundle.span_names))
    return replace(bundle, position_ids=bundle.position_ids + distance, meta=meta)


def stripped(sources: tuple[ChunkSource, ...]) -> dict[str, tuple[str, int]]:
    return {source.chunk: (source.origin, source.reused) for source in sources}


def naive_sources(bundle: Bundle, text: str, others: str) -> dict[str, tuple[str, int]]:
    """Origin and reused tokens of each chunk of a graph that has been run before, with python sets.

    Args:
        text: where the text of a chunk that generates is.
        others: where chunks that do not generate are.
    """
    chunks = range(bundle.mask.num_chunks)
    parents = [set(bundle.parents(i).tolist()) for i in chunks]
    children = [{j for j in chunks if i in parents[j]} for i in chunks]
    generates = {i for i in chunks if not children[i] or bundle.span_names[i] in bundle.meta.generate}
    # What stands below a chunk that generates is known only when that has happened.
    waits = set[int]()
    for i in chunks:
        if parents[i] & (generates | waits):
            waits.add(i)
    needed = set[int]()
    for i in reversed(chunks):
        if i in generates or any(j in needed and (j in generates or j in waits) for j in children[i]):
            needed.add(i)
    found = dict[str, tuple[str, int]]()
    for i in chunks:
        length = bundle.span(i).stop - bundle.span(i).start
        if i not in needed:
            found[bundle.span_names[i]] = "unused", length
        elif i not in generates:
            found[bundle.span_names[i]] = others, length
        else:
            found[bundle.span_names[i]] = (text, length - 1) if length > 1 else ("computed", 0)
    return found


def check_sources(bundle: Bundle, result: RunResult, passes: list[int], distance: int = 0) -> None:
    """That what a result says of its sources fits together, and the tokens that the model was given."""
    new = 0
    for source in result.sources:
        span = bundle.span(source.chunk)
        assert source.tokens == span.stop - span.start
        is_read = source.origin in ("device", "memory", "disk")
        assert source.num_bytes == (source.reused * BYTES_PER_TOKEN if is_read else 0)
        assert source.shift == (distance if is_read else 0)
        new += source.tokens - source.reused
    assert [source.chunk for source in result.sources] == list(bundle.span_names)
    assert result.tokens["reused"] == sum(source.reused for source in result.sources)
    assert result.tokens["prompt"] == len(bundle)
    # A chunk's last token is read by the model if others are to see it.
    for name, ids in ids_of(result).items():
        new += len(ids) - (bundle.index(name) in bundle.leaves)
    assert sum(passes) == new


@settings(max_examples=30, deadline=None)
@given(bundle=running(), distance=st.integers(1, 99), prefill_tokens=st.sampled_from([None, None, 1, 3]))
def test_known_chunks_give_the_same_wherever_they_come_from(
    bundle: Bundle, distance: int, prefill_tokens: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("kv")
    store = KVStore(disk=folder)
    expected = oracle("llama", bundle, counts(bundle, 3))
    computed = dict.fromkeys(bundle.span_names, ("computed", 0))
    in_cache = naive_sources(bundle, "memory", "device")
    further = moved(bundle, distance)
    expected_further = oracle("llama", further, counts(bundle, 3))

    def check(made: Engine, graph: Bundle, tokens: Any, origins: Any, shift: int = 0) -> None:
        with watched(made.model) as seen:
            result = made.run(graph, HOW)
        assert ids_of(result) == tokens
        check_sources(graph, result, seen.passes, shift)
        assert stripped(result.sources) == origins
        check_logits(made.model, graph, result, seen)

    first = engine(kv=store, prefill_tokens=prefill_tokens)
    # Both look at the model when they are first asked for.
    assert isinstance(first._scheduler.reuse.shift, KeyShift) and first._scheduler.reuse.model
    check(first, bundle, expected, computed)
    check(first, bundle, expected, in_cache)
    second = engine(kv=store, prefill_tokens=prefill_tokens)
    assert isinstance(second._scheduler.reuse.shift, KeyShift)
    check(second, bundle, expected, naive_sources(bundle, "memory", "memory"))
    third = engine(kv=KVStore(disk=folder), prefill_tokens=prefill_tokens)
    assert isinstance(third._scheduler.reuse.shift, KeyShift)
    check(third, bundle, expected, naive_sources(bundle, "disk", "disk"))
    # Chunks that generate move with their parents under `causal`: pin them in the oracle's graph too.
    if bundle.meta.positions != "causal" or not bundle.meta.generate:
        check(third, further, expected_further, in_cache, distance)
        fourth = engine(kv=KVStore(disk=folder), prefill_tokens=prefill_tokens)
        assert isinstance(fourth._scheduler.reuse.shift, KeyShift)
        check(fourth, further, expected_further, naive_sources(bundle, "disk", "disk"), distance)


# The same documents in other graphs.

DOCUMENTS = ("the first document", "another one", "and a third, which is longer")


def documents(starts: list[int | None]) -> list[Chunk]:
    return [
        Chunk(text, name=f"d{i}", start=start)
        for i, (text, start) in enumerate(zip(DOCUMENTS, starts, strict=True))
    ]


def graph_a() -> Bundle:
    """Documents side by side at position 0."""
    return compile_chunks([Chunk("which one?", parents=documents([None] * 3), name="q")], tokenizer())


def graph_b() -> Bundle:
    """The same one after the other, in another order, behind a text, below another question."""
    docs = documents([None] * 3)
    before = Chunk("a text that comes before", name="before")
    q = Chunk("say which:", parents=[before, docs[2], docs[0], docs[1]], name="q")
    return compile_chunks([q], tokenizer(), positions="flat")


def graph_c() -> Bundle:
    """Each pinned somewhere; the second below a chain that generates and does not concern it."""
    docs = documents([70, 11, 500])
    chain = Chunk("go", name="c1", generate=Generate(max_new_tokens=4))
    chain = Chunk("on", parents=[chain], name="c2")
    q1 = Chunk("first?", parents=[chain, docs[1]], name="q1")
    q2 = Chunk("second?", parents=docs, name="q2", start=600)
    return compile_chunks([q1, q2], tokenizer())


@pytest.mark.parametrize(
    ("make", "starts"),
    [
        # Token order is that of the question's parents.
        (graph_b, {"d2": 24, "d0": 52, "d1": 70}),
        (graph_c, {"d0": 70, "d1": 11, "d2": 500}),
    ],
    ids=["flat", "pinned"],
)
@pytest.mark.parametrize("name", MOVABLE)
def test_documents_move_from_graph_to_graph(name: str, make: Any, starts: dict, tmp_path: Path) -> None:
    """From where they lie in the cache, from memory and from disk."""
    bundle = make()
    assert {doc: bundle.position_ids[bundle.span(doc)][0] for doc in starts} == starts
    first, store = engine(name, kv=KVStore()), KVStore()
    assert isinstance(first._scheduler.reuse.shift, KeyShift), first._scheduler.reuse.shift
    for kv in (store, tmp_path):
        engine(name, kv=kv).run(graph_a(), HOW)
    first.run(graph_a(), HOW)
    for origin, made in {
        "device": first,
        "memory": engine(name, kv=store),
        "disk": engine(name, kv=tmp_path),
    }.items():
        found = {source.chunk: source for source in run_and_check(made, bundle, HOW).sources}
        assert {found[doc].origin for doc in starts} == {origin}
        # They were computed at position 0.
        assert {doc: found[doc].shift for doc in starts} == starts
        assert {name for name in found if found[name].origin == "computed"} == set(found) - set(starts)


@pytest.mark.parametrize("name", IMMOVABLE)
def test_models_whose_keys_cannot_be_moved_find_them_at_the_same_position(name: str, tmp_path: Path) -> None:
    made = engine(name, kv=KVStore(disk=tmp_path))
    assert made._scheduler.reuse.shift == IMMOVABLE[name]
    doc = Chunk("document", name="doc")
    here = compile_chunks([Chunk("q?", parents=[doc], name="q")], tokenizer())
    there = compile_chunks(
        [Chunk("q?", parents=[Chunk("document", name="doc", start=5)], name="q")], tokenizer()
    )
    assert run_and_check(made, here, HOW).tokens["reused"] == 0
    with watched(made.model) as seen:
        result = made.run(there, HOW)
    assert {source.origin for source in result.sources} == {"computed"}
    check_logits(made.model, there, result, seen)
    for again in (made, engine(name, kv=KVStore(disk=tmp_path))):
        for graph in (here, there):
            found = run_and_check(again, graph, HOW)
            assert [source.shift for source in found.sources] == [0, 0]
            assert found.tokens["reused"] == 8 + 1


def test_what_lies_beyond_a_rotary_border_is_not_kept(tmp_path: Path) -> None:
    """There a key depends on the longest position of the pass that it was computed in."""
    made = engine("llama-dynamic", kv=tmp_path)
    border = made._forward.border
    assert border == 4096
    assert usable(made._forward, 4095) and not usable(made._forward, 4096)
    assert usable(engine("llama")._forward, 10**6)
    near = compile_chunks([Chunk("text", name="near", start=4000)], tokenizer())
    assert made.run(near, Generate(max_new_tokens=50)).sources != ()
    # The run might cross the border, so nothing is kept, whether it does or not.
    assert made.run(near, Generate(max_new_tokens=93)).sources == ()


# What changes what a chunk is.


def one_document(text: str = "document", question: str = "q?", **more: Any) -> Bundle:
    return compile_chunks([Chunk(question, parents=[Chunk(text, name="doc", **more)], name="q")], tokenizer())


def test_a_question_that_is_new_finds_its_documents() -> None:
    made = engine(kv=KVStore())
    made.run(one_document(), HOW)
    found = run_and_check(made, one_document(question="another"), HOW)
    assert stripped(found.sources) == {"doc": ("device", 8), "q": ("computed", 0)}


def test_a_document_that_has_changed_changes_everything_below() -> None:
    made = engine(kv=KVStore())
    made.run(one_document(), HOW)
    found = run_and_check(made, one_document("Document"), HOW)
    assert stripped(found.sources) == {"doc": ("computed", 0), "q": ("computed", 0)}


def test_another_distance_between_parent_and_child_changes_the_child_only() -> None:
    made = engine(kv=KVStore())
    made.run(one_document(), HOW)
    found = run_and_check(made, one_document(start=1, question="q?"), HOW)
    # Under `causal` the question moves with its document, and the distance stays.
    assert stripped(found.sources) == {"doc": ("device", 8), "q": ("memory", 1)}
    pinned = Chunk("q?", parents=[Chunk("document", name="doc")], name="q", start=9)
    found = run_and_check(made, compile_chunks([pinned], tokenizer()), HOW)
    assert stripped(found.sources) == {"doc": ("device", 8), "q": ("computed", 0)}


def test_other_weights_find_nothing_in_a_shared_store(tmp_path: Path) -> None:
    """A store that several models share never mixes them up."""
    store = KVStore(disk=tmp_path)
    engine(kv=store).run(one_document(), HOW)
    for name in ("qwen3", "mistral", "llama-linear"):
        found = run_and_check(engine(name, kv=store), one_document(), HOW)
        assert {source.origin for source in found.sources} == {"computed"}
        found = run_and_check(engine(name, kv=store), one_document(), HOW)
        assert found.tokens["reused"] == 9


def test_generated_text_is_found_by_the_children_that_see_it() -> None:
    """A draft is written anew (for its logits); the review below it finds what it computed for that draft."""
    draft = Chunk("draft:", name="draft", generate=Generate(max_new_tokens=5))
    review = Chunk("review:", parents=[draft], name="review")
    graph = compile_chunks([Chunk("so?", parents=[draft, review], name="end")], tokenizer())
    made = engine(kv=KVStore())
    cold = run_and_check(made, graph, HOW)
    warm = run_and_check(made, graph, HOW)
    assert ids_of(warm) == ids_of(cold)
    assert stripped(warm.sources) == {"draft": ("memory", 5), "review": ("device", 7), "end": ("memory", 2)}
    # Written as a text, the whole draft is known too.
    known = run_and_check(made, cold.bundle, HOW)
    assert stripped(known.sources) == {
        "draft": ("memory", 11),
        "review": ("device", 7),
        "end": ("computed", 0),
    }


def test_what_was_written_below_a_moved_text_is_not_kept() -> None:
    """Its keys would be turned a second time."""
    draft = Chunk("draft:", name="draft", generate=Generate(max_new_tokens=5))
    graph = compile_chunks([Chunk("so?", parents=[draft], name="end")], tokenizer())
    store = KVStore()
    made = engine(kv=store)
    # The draft's text, the draft as a whole, and the question's text; another draft and the question below
    # it; the question below a third one, which begins with a text that was moved.
    for distance, seed, number in ((0, 1, 3), (0, 2, 5), (7, 3, 6)):
        result = made.run(moved(graph, distance), Generate(3, temperature=9.0, seed=seed))
        assert stripped(result.sources)["draft"][0] == ("computed" if seed == 1 else "memory")
        assert len(store) == number


@pytest.mark.parametrize("positions", ["causal", "flat", "local"])
def test_the_same_text_twice_in_a_graph_is_known_once(positions: Any) -> None:
    """Side by side at one position, or one after the other: each has keys of its own place."""
    docs = [Chunk("the same", name=name) for name in ("one", "two", "three")]
    bundle = compile_chunks([Chunk("q?", parents=docs, name="q")], tokenizer(), positions=positions)
    store = KVStore()
    num_residents = list[int]()
    for made in (engine(kv=store), engine(kv=store)):
        for _ in range(3):
            result = run_and_check(made, bundle, HOW)
            assert ids_of(result) == oracle("llama", bundle, {"q": 3})
        assert {source.origin for source in result.sources[:3]} == {"device"}
        num_residents.append(len(made._scheduler.residents))
    # Where their positions are the same they are one chunk in the cache, and what was moved does not stay.
    assert num_residents == [3 if positions == "flat" else 1, 1]
    assert store.stats().memory_entries == 2


def test_positions_inside_a_chunk_count() -> None:
    """A bundle that somebody made by hand, with two positions for each token."""
    bundle = one_document()
    ids, meta = bundle.position_ids.copy(), replace(bundle.meta, pinned=frozenset(bundle.span_names))
    ids[:8] *= 2
    wide = replace(bundle, position_ids=ids, meta=meta)
    made = engine(kv=KVStore())
    made.run(bundle, HOW)
    with watched(made.model) as seen:
        result = made.run(wide, HOW)
    check_logits(made.model, wide, result, seen)
    assert result.bundle.position_ids[:8].tolist() == list(range(0, 16, 2))


def test_without_a_store_nothing_is_kept_and_nothing_said() -> None:
    made = engine()
    for _ in range(2):
        result = made.run(one_document(), HOW)
        assert result.sources == ()
        assert result.tokens["reused"] == 0
    assert made._scheduler.pool.num_free == made._scheduler.pool.capacity - 1


def test_an_entry_of_another_shape_is_not_used() -> None:
    """As a store might give that somebody else wrote into."""
    store = KVStore()
    first = engine(kv=store)
    first.run(one_document(), HOW)
    reuse = first._scheduler.reuse
    bundle = one_document()
    key = reuse.key(bundle.input_ids[:8], 0, [])
    kept, _ = store.get(key)
    store.clear_memory()
    store.put([(key, replace(kept, tensors=tuple(tensor[:, :, :5] for tensor in kept.tensors)))])
    found = run_and_check(engine(kv=store), bundle, HOW)
    assert stripped(found.sources)["doc"] == ("computed", 0)


def test_residents_are_given_up_when_their_slots_are_needed() -> None:
    """The cache does not grow for what nobody uses; who comes back is found in memory."""
    made = engine(kv=KVStore())
    texts = [chr(97 + i) * 100 for i in range(26)]
    for text in texts:
        run_and_check(made, one_document(text), HOW)
    assert made._forward.capacity == 512
    assert {s.chunk: s.origin for s in made.run(one_document(texts[-1]), HOW).sources}["doc"] == "device"
    assert {s.chunk: s.origin for s in made.run(one_document(texts[0]), HOW).sources}["doc"] == "memory"


@pytest.mark.parametrize(("numbers", "is_copied"), [((0, 1), False), ((0, 9), True)])
def test_documents_that_lie_scattered_are_copied_together(numbers: tuple[int, int], is_copied: bool) -> None:
    """So that a step need not gather them."""
    made = engine(kv=KVStore(), cache_tokens=1024)
    texts = [chr(97 + i) * 40 for i in range(10)]
    for text in texts:
        made.run(one_document(text), HOW)
    documents = [Chunk(texts[i], name=f"d{i}") for i in numbers]
    bundle = compile_chunks([Chunk("q?", parents=documents, name="q")], tokenizer())
    submission = made.submit(bundle, HOW)
    assert ids_of(submission.result()) == oracle("llama", bundle, {"q": 3})
    assert {s.origin for s in submission.result().sources} == {"device", "computed"}
    assert len(submission.job.room) == 2 + 3 + (80 if is_copied else 0)
    # Nobody uses what was copied any more, nor what was not, and all of it is still there.
    assert made._scheduler.residents.num_idle_slots() == 400


def test_a_document_that_others_use_where_it_lies_is_not_given_up() -> None:
    made = engine(kv=KVStore())
    made.run(one_document("x" * 300), HOW)
    user = made.submit(one_document("x" * 300, question="long question"), Generate(max_new_tokens=20))
    events = user.events()
    next(events)
    for i in range(3):
        other = one_document(chr(97 + i) * 150)
        assert ids_of(made.run(other, HOW)) == oracle("llama", other, {"q": 3})
    expected = oracle("llama", one_document("x" * 300, question="long question"), {"q": 20})
    assert ids_of(user.result()) == expected


def test_bfloat16_keeps_its_own(tmp_path: Path) -> None:
    """The same weights in another dtype compute something else."""
    half = deepcopy(tiny_model("llama")).to(torch.bfloat16)
    store = KVStore(disk=tmp_path)
    engine(kv=store).run(one_document(), HOW)
    made = Engine(half, tokenizer(), kv=store)
    made.end_ids = frozenset()
    cold = made.run(one_document(), HOW)
    assert {source.origin for source in cold.sources} == {"computed"}
    warm = made.run(one_document(), HOW)
    assert ids_of(warm) == ids_of(cold)
    assert warm.sources[0].num_bytes == 8 * BYTES_PER_TOKEN // 2
