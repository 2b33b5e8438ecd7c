"""Random prompt graphs over the worlds of `worlds`: documents in some shape, and many questions at once.

Each question is a leaf of its own, so one graph gives a dozen answers to learn from, and no question sees
another. A question's `completion` is its answer; with `loss` the answer's tokens are what is learned.

    causal      each document sees all before it      tree       each document sees its ancestors
    parallel    no document sees another              fork-join  documents see a head, a join sees them all
    chain       each document sees the one before     random     each document sees some before it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import get_args

from legraph import Chunk, Generate
from legraph.schema import PositionPolicy

from . import worlds
from .worlds import UNKNOWN, Fact, Split, Words

SHAPES = ("causal", "parallel", "chain", "tree", "fork-join", "random")
POLICIES = get_args(PositionPolicy)
END = "<|eos|>"
GIST = "<|eot|>"
JOINS = ("These were the documents.", "So much is known.", "That is all.")
MAX_ANSWER_TOKENS = 24
# What a document that nobody sees is asked for: it is a leaf, and a run continues every leaf.
ONE_TOKEN = Generate(max_new_tokens=1)


@dataclass(frozen=True, slots=True)
class PromptGraph:
    """What `compile_chunks` takes, and the right answers by the name of the chunk that gives them."""

    leaves: tuple[Chunk, ...]
    answers: dict[str, str]
    positions: PositionPolicy = "causal"
    bos: bool = False


@dataclass
class Documents:
    """Documents in a shape. `parents[i]` are the numbers of the documents that document i sees."""

    chunks: list[Chunk]
    facts: list[list[Fact]]
    parents: list[list[int]]
    # Chunks that are no documents and that every question sees.
    around: list[Chunk] = field(default_factory=list)


def parents_of(shape: str, number: int, random: Random) -> list[list[int]]:
    """For each of some documents, the numbers of those it sees."""
    if shape == "causal":
        return [list(range(i)) for i in range(number)]
    if shape == "chain":
        return [[i - 1] if i else [] for i in range(number)]
    if shape == "tree":
        rows: list[list[int]] = []
        for i in range(number):
            above = (i - 1) // 2
            rows.append([*rows[above], above] if i else [])
        return rows
    if shape == "random":
        share = random.choice((0.1, 0.3, 0.6))
        return [[j for j in range(i) if random.random() < share] for i in range(number)]
    return [[] for _ in range(number)]


def make_documents(
    words: Words, shape: str, number: int, first_of: Sequence[Sequence[Fact]] = (), cut: int | None = None
) -> Documents:
    """Documents of one to three facts each.

    Args:
        first_of: facts that the first documents hold, instead of facts of their own.
        cut: no document sees this one.
    """
    random = words.random
    sizes = [random.choice((1, 1, 2, 3)) for _ in range(number - len(first_of))]
    fresh = iter(worlds.facts(words, sum(sizes), known=[fact for stated in first_of for fact in stated]))
    held = [list(stated) for stated in first_of] + [[next(fresh) for _ in range(size)] for size in sizes]
    random.shuffle(held)
    head = None
    if shape == "fork-join" or random.random() < 0.2:
        head = Chunk(random.choice(worlds.HEADS), name="head")
    parents = [[j for j in row if j != cut] for row in parents_of(shape, number, random)]
    ends = random.randint(128, 1024) if shape == "parallel" and random.random() < 0.1 else None
    chunks: list[Chunk] = []
    for i, stated in enumerate(held):
        seen = [chunks[j] for j in parents[i]]
        text = worlds.document(random, stated)
        parents_i = [head, *seen] if head else seen
        generate = ONE_TOKEN if i == cut else None
        chunks.append(Chunk(text, parents=parents_i, name=f"doc{i}", end=ends, generate=generate))
    around = [head] if head else []
    if shape == "fork-join":
        joined = [chunk for i, chunk in enumerate(chunks) if i != cut]
        around.append(Chunk(random.choice(JOINS), parents=[head, *joined] if head else joined, name="join"))
    return Documents(chunks, held, parents, around)


def visible_documents(
    documents: Documents, shape: str, needed: list[int], random: Random, all_of_them: bool
) -> list[int]:
    """The documents that a question about some of them sees, in a way that suits the shape."""
    number = len(documents.chunks)
    if shape == "chain":
        return sorted({*needed, number - 1})
    if shape == "tree":
        leaf = below(needed[0], number, random)
        return sorted({*documents.parents[leaf], leaf, *needed})
    if all_of_them or random.random() < 0.8:
        return list(range(number))
    return sorted({*needed, *random.sample(range(number), random.randint(1, number))})


def below(node: int, number: int, random: Random) -> int:
    """A random leaf of the binary tree under a node."""
    while 2 * node + 1 < number:
        node = random.choice([child for child in (2 * node + 1, 2 * node + 2) if child < number])
    return node


def question_chunk(
    name: str, text: str, answer: str, parents: Sequence[Chunk], learn: bool, start: int | None = None
) -> Chunk:
    """A question that the model answers, or, to learn from, with its answer."""
    if learn:
        return Chunk(text, completion=answer + END, loss=True, parents=parents, name=name, start=start)
    generate = Generate(max_new_tokens=MAX_ANSWER_TOKENS)
    return Chunk(text, parents=parents, name=name, start=start, generate=generate)


def one_hop(
    random: Random,
    split: Split,
    shape: str,
    num_documents: int,
    num_questions: int = 1,
    *,
    positions: PositionPolicy = "causal",
    bos: bool = False,
    learn: bool = False,
    variety: bool = False,
    cut: bool = False,
) -> PromptGraph:
    """Documents in a shape, and questions about one fact each.

    Args:
        learn: the questions come with their answers, labelled.
        variety: some questions are about two facts, some see fewer documents, some not the one they need.
        cut: the document with the answer is in the graph, before the question, and no chunk sees it.
    """
    words = Words(random, split, num_names=max(3, num_documents))
    target = random.randrange(num_documents) if cut else None
    documents = make_documents(words, shape, num_documents, cut=target)
    # Leaves stand in the order given: a document that nobody sees comes before the question.
    leaves = [] if target is None else [documents.chunks[target]]
    answers = dict[str, str]()
    for i in range(num_questions):
        text, answer, seen = _ask(documents, shape, random, variety, target)
        start = documents.chunks[0].end
        parents = [*documents.around, *(documents.chunks[j] for j in seen)]
        leaves.append(question_chunk(f"q{i}", text, answer, parents, learn, start))
        answers[f"q{i}"] = answer
    return PromptGraph(tuple(leaves), answers, positions, bos)


def _ask(
    documents: Documents, shape: str, random: Random, variety: bool, cut: int | None
) -> tuple[str, str, list[int]]:
    """A question about a fact (of the document that is cut off, if one is): text, answer, what it sees."""
    at = random.randrange(len(documents.chunks)) if cut is None else cut
    fact = random.choice(documents.facts[at])
    needed, text, answer = [at], fact.question(random), fact.answer()
    partner = _partner(documents, at, fact, random) if variety and random.random() < 0.15 else None
    if partner is not None:
        needed, (text, answer) = [at, partner[0]], worlds.pair_question(fact, partner[1])
    seen = visible_documents(documents, shape, needed, random, all_of_them=not variety)
    if cut is not None:
        seen = [j for j in seen if j != at]
    elif variety and partner is None and shape in ("parallel", "tree") and random.random() < 0.06:
        # The documents of these shapes that do not see it carry nothing of it.
        seen = [j for j in seen if j != at and at not in documents.parents[j]]
        answer = UNKNOWN
    return text, answer, seen


def _partner(documents: Documents, at: int, fact: Fact, random: Random) -> tuple[int, Fact] | None:
    """Another fact of the same relation, preferably of another document."""
    if not fact.relation.pair_question:
        return None
    found = [
        (i, other)
        for i, stated in enumerate(documents.facts)
        for other in stated
        if other.relation is fact.relation and other is not fact
    ]
    apart = [part for part in found if part[0] != at] or found
    return random.choice(apart) if apart else None


def listed(random: Random, split: Split, num_documents: int) -> PromptGraph:
    """Parallel documents, and a question that takes a fact from each of two of them."""
    words = Words(random, split, num_names=max(3, num_documents))
    relation = random.choice([relation for relation in worlds.RELATIONS if relation.pair_question])
    one, other = relation.fact(words), relation.fact(words)
    while other.subject == one.subject:
        other = relation.fact(words)
    documents = make_documents(words, "parallel", num_documents, [[one], [other]])
    text, answer = worlds.pair_question(one, other)
    question = question_chunk(
        "q0", text, answer, [*documents.around, *documents.chunks], False, documents.chunks[0].end
    )
    return PromptGraph((question,), {"q0": answer})


def summarised(
    random: Random,
    split: Split,
    num_documents: int,
    num_questions: int = 1,
    *,
    positions: PositionPolicy = "causal",
    bos: bool = False,
    learn: bool = False,
    given: bool = False,
) -> PromptGraph:
    """Two hops: a summary chunk answers a first question from the documents; a second question sees the
    summary, and only the documents with the second facts.

    When learning, some questions see summaries only: one about the same thing, or one that joins two.

    Args:
        given: the summary stands in the graph, instead of being generated.
    """
    words = Words(random, split, num_names=max(3, num_documents))
    asked = _distinct_two_hops(words, num_questions)
    half = max(1, num_documents // 2)
    first = make_documents(words, "parallel", max(half, len(asked)), [[hop.first] for hop in asked])
    second = make_documents(words, "parallel", max(half, len(asked)), [[hop.second] for hop in asked])
    second_docs = [Chunk(chunk.text, name=f"more{i}") for i, chunk in enumerate(second.chunks)]
    sources = [*first.around, *first.chunks]
    leaves, answers = list[Chunk](), dict[str, str]()
    summaries: list[tuple[Fact, Chunk]] = []
    for i, hop in enumerate(asked):
        text, answer = hop.first.question(random), hop.first.answer()
        # A generated answer has no end token; what follows must not rely on it.
        if given or (learn and random.random() < 0.5):
            summary = Chunk(text + answer, parents=sources, name=f"summary{i}")
        else:
            summary = question_chunk(f"summary{i}", text, answer, sources, learn)
        summaries.append((hop.first, summary))
        answers[f"summary{i}"] = answer
        parents = [summary, *second_docs]
        leaves.append(question_chunk(f"q{i}", hop.question, hop.answer, parents, learn))
        answers[f"q{i}"] = hop.answer
    if learn:
        leaves += _about_summaries(summaries, random)
    return PromptGraph(tuple(leaves), answers, positions, bos)


def _about_summaries(summaries: list[tuple[Fact, Chunk]], random: Random) -> list[Chunk]:
    """Questions that see nothing but summaries: about one of them, or about two of one relation."""
    seen = [chunk for _, chunk in summaries]
    fact = random.choice(summaries)[0]
    asked = [(fact.question(random), fact.answer())]
    for (one, _), (other, _) in pairwise(summaries):
        if one.relation is other.relation and one.relation.pair_question:
            asked.append(worlds.pair_question(one, other))
    return [question_chunk(f"s{i}", *pair, seen, learn=True) for i, pair in enumerate(asked)]


def _distinct_two_hops(words: Words, number: int) -> list[worlds.TwoHops]:
    made: dict[str, worlds.TwoHops] = {}
    seen: set[str] = set()
    while len(made) < number:
        hop = worlds.two_hops(words)
        if hop.first.subject not in made and hop.second.subject not in seen:
            made[hop.first.subject] = hop
            seen.add(hop.second.subject)
    return list(made.values())


def compressed(
    random: Random,
    split: Split,
    num_documents: int = 4,
    *,
    positions: PositionPolicy = "causal",
    bos: bool = False,
    learn: bool = False,
) -> PromptGraph:
    """One token stands for a document of one fact; the question sees only that token."""
    words = Words(random, split, num_names=3)
    leaves, answers = list[Chunk](), dict[str, str]()
    for i, fact in enumerate(worlds.facts(words, num_documents)):
        document = Chunk(worlds.document(random, [fact]), name=f"doc{i}")
        gist = Chunk(GIST, parents=[document], name=f"gist{i}")
        leaves.append(question_chunk(f"q{i}", fact.question(random), fact.answer(), [gist], learn))
        answers[f"q{i}"] = fact.answer()
    return PromptGraph(tuple(leaves), answers, positions, bos)


def few_shot(
    random: Random,
    split: Split,
    num_examples: int,
    *,
    positions: PositionPolicy = "causal",
    bos: bool = False,
    learn: bool = False,
) -> PromptGraph:
    """Examples of a mapping, input -> output, and new inputs: a list to look up, or an ending to add."""
    words = Words(random, split, num_names=1)
    is_rule = random.random() < 0.5
    ending = "".join(random.choice("aeiou") + random.choice("klmnrst") for _ in range(2))
    inputs = list(dict.fromkeys(words.word() for _ in range(num_examples)))
    outputs = [word + ending if is_rule else words.word() for word in inputs]
    causal = random.random() < 0.5
    examples: list[Chunk] = []
    for i, (word, output) in enumerate(zip(inputs, outputs, strict=True)):
        parents = examples if causal else ()
        examples.append(Chunk(f"{word} -> {output}.\n", parents=parents, name=f"example{i}"))
    asked = [(word, word + ending) for word in (words.word() for _ in range(4))] if is_rule else None
    pairs = asked or random.sample(list(zip(inputs, outputs, strict=True)), min(4, len(inputs)))
    if not learn:
        pairs = pairs[:1]
    leaves, answers = list[Chunk](), dict[str, str]()
    for i, (word, output) in enumerate(pairs):
        answers[f"q{i}"] = f" {output}."
        leaves.append(question_chunk(f"q{i}", f"{word} ->", answers[f"q{i}"], examples, learn))
    return PromptGraph(tuple(leaves), answers, positions, bos)


def training_graph(random: Random, max_documents: int = 64, many_share: float = 0.1) -> PromptGraph:
    """A graph to learn from: any shape, any position policy, few documents more often than many.

    Args:
        many_share: share of the graphs with 1 to `max_documents` documents; the others have 16 at most.
    """
    positions: PositionPolicy = random.choices(POLICIES, (6, 3, 2))[0]
    bos = random.random() < 0.5
    kind = random.random()
    if kind < 0.03:
        return compressed(random, "train", positions=positions, bos=bos, learn=True)
    if kind < 0.08:
        return few_shot(random, "train", random.randint(2, 8), positions=positions, bos=bos, learn=True)
    few = random.randint(1, min(5, max_documents))
    many = random.randint(1, min(16, max_documents))
    is_few = random.random() < 1 - many_share
    number = random.choice((few, many)) if is_few else random.randint(1, max_documents)
    if kind < 0.25:
        questions = random.randint(1, 8)
        return summarised(
            random, "train", 2 * number, min(questions, number), positions=positions, bos=bos, learn=True
        )
    shape = random.choice(SHAPES)
    return one_hop(random, "train", shape, number, 16, positions=positions, bos=bos, learn=True, variety=True)
