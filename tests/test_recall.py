"""The model that ships with legraph: right where the graph shows the fact, lost where it hides it.

The right answers are built a second way, by an oracle that reads the text that a question sees.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import recall
from examples.train import graphs
from examples.train.evaluate import Score, compiled, exact_match, score
from examples.train.graphs import PromptGraph
from legraph import Bundle, Chunk
from legraph.engine import Engine
from legraph.mask import ChunkMask
from legraph.tokens import SHIPPED_FOLDER, load_tokenizer

ROOT = Path(__file__).parent.parent

# Statements, and the questions that they answer; `s` is what is asked about, `v` the answer.
STATEMENTS = {
    "opens": (r"[Tt]he (?P<s>.+) opens the (?P<v>.+)", r"[Ww]ith the (?P<s>.+) one opens the (?P<v>.+)"),
    "behind": (r"Behind the (?P<s>.+) (?:stands|one finds) the (?P<v>.+)",),
    "where": (r"The (?P<s>.+) (?:is kept|lies) in the (?P<v>.+)",),
    "costs": (r"The price of the (?P<s>.+) is (?P<v>\d+) coins", r"The (?P<s>.+) costs (?P<v>\d+) coins"),
    "password": (r"The password of (?P<s>\w+) is (?P<v>\w+)", r"(?P<s>\w+) has the password (?P<v>\w+)"),
    "lives": (r"(?P<s>\w+) lives in (?P<v>\w+)", r"The home of (?P<s>\w+) is (?P<v>\w+)"),
    "called": (r"The (?P<s>.+) is called (?P<v>\w+)",),
    "who": (r"The name of the (?P<s>.+) is (?P<v>\w+)", r"The (?P<s>\w+ of \w+) is (?P<v>\w+)"),
}
QUESTIONS = {
    "opens": (r"(?:Which gate|What) does the (?P<s>.+) open", "the {}."),
    "behind": (r"What stands behind the (?P<s>.+)", "the {}."),
    "where": (r"Where is the (?P<s>.+?)(?: kept)?", "in the {}."),
    "costs": (r"How many coins does the (?P<s>.+) cost", "{} coins."),
    "password": (r"What is the password of (?P<s>.+)", "{}."),
    "lives": (r"Where does (?P<s>\w+) live", "in {}."),
    "called": (r"What is the (?P<s>.+) called", "{}."),
    "who": (r"Who is the (?P<s>.+)", "{}."),
}
PAIR_QUESTIONS = {
    "opens": (r"Which gates do the (?P<s>.+) and the (?P<t>.+) open", "the {} and the {}."),
    "where": (r"Where are the (?P<s>.+) and the (?P<t>.+)", "in the {} and in the {}."),
    "lives": (r"Where do (?P<s>\w+) and (?P<t>\w+) live", "in {} and in {}."),
}


def told(text: str) -> dict[tuple[str, str], str]:
    """What a text states: (kind of fact, subject) -> value. Sentences that state nothing are passed over."""
    found = dict[tuple[str, str], str]()
    for sentence in text.replace(".", ".\n").splitlines():
        for kind, patterns in STATEMENTS.items():
            matches = [re.fullmatch(pattern, sentence.strip(" .")) for pattern in patterns]
            match = next(filter(None, matches), None)
            if match:
                found[kind, match["s"]] = match["v"]
                break
    return found


def oracle(question: Chunk) -> str:
    """The answer to a question, from the text of the chunks that it sees; what they do not say is unknown."""
    known = told("\n".join(parent.text for parent in question.parents))
    text = question.text.rstrip("?")
    for kind, (pattern, answer) in PAIR_QUESTIONS.items():
        if match := re.fullmatch(pattern, text):
            return answer.format(known[kind, match["s"]], known[kind, match["t"]])
    for kind, (pattern, answer) in QUESTIONS.items():
        if match := re.fullmatch(pattern, text):
            value = known.get((kind, match["s"]))
            return "unknown." if value is None else answer.format(value)
    raise AssertionError(f"the oracle does not understand {question.text!r}")


def one_hop(shape: str, most: int = 16, **how: Any) -> Callable[[Random], PromptGraph]:
    return lambda random: graphs.one_hop(random, "held-out", shape, random.randint(1, most), **how)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One thread: passes are small, and other tests run beside this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Engine.load(device="cpu")
    torch.set_num_threads(threads)


def test_facts_in_sight_are_found_in_every_shape(engine: Engine) -> None:
    # Measured on 500 graphs a shape: 99.4 to 100%. Of the 48 here, two may fail; a model that is right nine
    # times in ten would pass with a chance of one in eight.
    found = {shape: exact_match(engine, one_hop(shape), range(8), seed=7) for shape in graphs.SHAPES}
    assert sum(score.asked for score in found.values()) == 48
    assert min(score.exact for score in found.values()) >= 7
    assert sum(score.exact for score in found.values()) >= 46


@pytest.mark.parametrize("given_summary", [False, True])
def test_two_hops_go_through_a_summary(engine: Engine, given_summary: bool) -> None:
    found = exact_match(
        engine,
        lambda random: graphs.summarised(random, "held-out", random.randint(2, 16), given=given_summary),
        range(7),
        seed=7,
    )
    assert found.exact >= 6


def without_structure(bundle: Bundle) -> Bundle:
    """The same tokens at the same positions under plain causal attention: every chunk sees all before it."""
    num_chunks = bundle.mask.num_chunks
    rows = [np.arange(i) for i in range(num_chunks)]
    offsets = np.cumsum([0, *map(len, rows)])
    return replace(bundle, mask=ChunkMask(bundle.span_offsets, offsets, np.concatenate(rows)))


def test_only_the_mask_hides_what_is_cut_off(engine: Engine) -> None:
    # Positions count on, as they do in a plain text: nothing but the mask differs between the two runs.
    cut = [one_hop("parallel", 8, cut=True, positions="flat")(Random(f"cut/{i}")) for i in range(14)]
    pairs = [(graph, compiled(graph, engine.tokenizer)) for graph in cut]
    for graph, bundle in pairs:
        hidden, question = graph.leaves
        last = bundle.span_names.index("q0")
        assert bundle.span_names.index(hidden.name or "") < last
        assert hidden.name not in [bundle.span_names[i] for i in bundle.parents(last)]
        # The text of the hidden document, and it alone, would answer the question.
        assert oracle(question) == "unknown."
        assert oracle(replace(question, parents=[hidden])) == graph.answers["q0"].strip()
    hidden_score = score(engine, pairs)
    plain = score(engine, ((graph, without_structure(bundle)) for graph, bundle in pairs))
    assert hidden_score.exact <= 1
    assert hidden_score.unknown >= 11
    assert plain.exact >= 12


@pytest.mark.parametrize("shape", graphs.SHAPES)
def test_a_cut_loses_the_answer_in_every_shape(engine: Engine, shape: str) -> None:
    # Measured on 500 graphs: 0 to 1% are guessed. Of three graphs, one may be.
    assert exact_match(engine, one_hop(shape, cut=True), range(3), seed=7).exact <= 1


@pytest.mark.parametrize("shape", graphs.SHAPES)
def test_answers_stand_in_the_text_that_questions_see(shape: str) -> None:
    for i in range(60):
        intact = one_hop(shape)(Random(i))
        assert oracle(intact.leaves[0]) == intact.answers["q0"].strip()
        cut = one_hop(shape, cut=True)(Random(i))
        assert oracle(cut.leaves[-1]) == "unknown."
        assert cut.leaves[0].name not in ancestors(cut.leaves[-1])


def ancestors(chunk: Chunk) -> set[str | None]:
    return {chunk.name}.union(*(ancestors(parent) for parent in chunk.parents if parent.name != chunk.name))


def test_lists_take_two_documents() -> None:
    for i in range(60):
        graph = graphs.listed(Random(i), "held-out", 6)
        question = graph.leaves[0]
        assert oracle(question) == graph.answers["q0"].strip()
        for parent in question.parents:
            with pytest.raises(KeyError):
                oracle(replace(question, parents=[parent]))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**9))
def test_what_is_learned_is_what_the_visible_text_says(seed: int) -> None:
    random = Random(seed)
    shape = random.choice(graphs.SHAPES)
    graph = graphs.one_hop(random, "train", shape, random.randint(1, 20), 16, learn=True, variety=True)
    for question in graph.leaves:
        assert question.loss
        assert question.completion == f" {oracle(question)}<|eos|>"


@settings(max_examples=40)
@given(seed=st.integers(0, 10**9))
def test_two_hops_need_both(seed: int) -> None:
    graph = graphs.summarised(Random(seed), "held-out", 8)
    question = graph.leaves[0]
    summary, *documents = question.parents
    between = oracle(summary)
    assert between == graph.answers["summary0"].strip()
    known = told("\n".join(document.text for document in documents))
    # "the north gate." -> "north gate", "Voldan." -> "Voldan": what the second fact is about.
    subject = between.removeprefix("the ").rstrip(".")
    second = known.get(("behind", subject)) or known["lives", subject]
    assert graph.answers["q0"].strip() in (f"the {second}.", f"in {second}.")


def parts(graph: PromptGraph) -> set[str]:
    """The names, phrases, words and numbers of the facts in a graph."""
    texts = dict[str, None]()
    waiting = list(graph.leaves)
    while waiting:
        chunk = waiting.pop()
        if chunk.text not in texts:
            texts[chunk.text] = None
            waiting += chunk.parents
    found = set[str]()
    for (kind, subject), value in told("\n".join(texts)).items():
        thing, _, name = subject.rpartition(" of ")
        # Trades and animals are common to all worlds.
        found |= {name, value} if kind in ("who", "called") else {thing, name, value} - {""}
    return found


@pytest.fixture(scope="module")
def held_out_parts() -> set[str]:
    return set().union(*(parts(one_hop("parallel")(Random(i))) for i in range(150)))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**9))
def test_nothing_held_out_occurs_in_training(seed: int, held_out_parts: set[str]) -> None:
    # Large enough that training graphs without a split would meet it at once: it has numbers and gates.
    assert len(held_out_parts) > 1500
    assert not parts(graphs.training_graph(Random(seed), max_documents=16)) & held_out_parts


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_guessing_does_not_pay(split: Any) -> None:
    """Whoever knows all values and always says the likeliest one of the kind that is asked for."""
    counts = dict[str, Counter[str]]()
    number = 6000
    for i in range(number // 10):
        graph = graphs.one_hop(Random(f"guess/{i}"), split, "parallel", 10, 10)
        for chunk in graph.leaves:
            kind = next(k for k, (p, _) in QUESTIONS.items() if re.fullmatch(p, chunk.text.rstrip("?")))
            counts.setdefault(kind, Counter())[graph.answers[chunk.name or ""]] += 1
    assert set(counts) == set(QUESTIONS)
    right = sum(counter.most_common(1)[0][1] for counter in counts.values())
    # Of 109 adjectives six make a held-out gate, and every fifth question is about a gate: to know just these
    # six is worth 3%. They occur in no training graph, so the model cannot know them.
    assert right / number < {"train": 0.02, "held-out": 0.05}[split]


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = load_tokenizer("recall")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_model_is_small_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in SHIPPED_FOLDER.iterdir()) <= 8_000_000
    config = json.loads((SHIPPED_FOLDER / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float16")


def test_scores_add_up() -> None:
    assert Score(1, 2, 3, 4, 5) + Score(10, 20, 30, 40, 50) == Score(11, 22, 33, 44, 55)


def test_the_model_card_shows_what_was_measured() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "recall.json").read_text())
    assert list(results["rows"]) == list(recall.rows())
    scores = {name: Score(**row) for name, row in results["rows"].items()}
    assert recall.table(scores) in (SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_benchmark_asks_real_questions_and_reports_them(tmp_path: Path) -> None:
    numbers = tmp_path / "recall.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "recall.py"), "--graphs", "2", "--many-graphs", "0"]
    command += ["--processes", "1", "--only", "parallel, 1-16", "--json", str(numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(numbers.read_text())
    intact, cut = "parallel, 1-16 documents", "parallel, 1-16 documents, cut"
    assert list(report["rows"]) == [intact, cut]
    assert [row["asked"] for row in report["rows"].values()] == [2, 2]
    assert report["rows"][intact]["exact"] == 2
    assert report["rows"][cut]["exact"] == 0
    assert f"| {intact} | 2 | " in done.stdout
    assert "float32" in done.stdout
