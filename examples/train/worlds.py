"""An endless supply of small English-like worlds: documents full of facts, and questions about them.

Names are made up from letters, things and places from two-word phrases, so nothing can be known beforehand:
the answer to a question stands in a document, or nowhere. A word belongs to the training or to the held-out
split by its hash; held-out names and phrases never occur in training.

    The amber key of Voldan opens the north gate.     Which gate does the amber key of Voldan open?
                                                      -> the north gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase
from typing import Literal
from zlib import crc32

Split = Literal["train", "held-out"]

HELD_OUT_SHARE = 0.1
UNKNOWN = " unknown."


def _words(listed: str) -> list[str]:
    return listed.split()


ADJECTIVES = _words(
    """
    amber ancient azure black blue bone brass bright broken bronze brown cold copper coral crimson
    crooked crystal dark deep distant dry dusty eastern ebony emerald empty far fine flat foggy
    forgotten frozen glass gold golden grand granite gray great green hidden high hollow humble icy
    inner iron ivory jade large lead little lonely long lost low lower marble middle mossy narrow near
    new noble north northern oak old outer pale pearl pine plain polished proud purple quiet red ruby
    rusty sacred salt sandy scarlet secret shining silent silver small smooth south southern steel steep
    stone tall tin upper velvet warm west western white wide wild winding windy wooden yellow
    """
)
THINGS = _words(
    """
    axe bell blanket book boot bottle bowl box brush bucket candle cap chain chair clock cloak coat coin
    comb cup drum feather flag flute fork glove hammer harp hat helmet horn jar kettle knife ladder lamp
    lantern letter map mask mirror needle pan pen plate pot ring rope saddle scarf shield shoe spoon
    sword whistle
    """
)
PLACES = _words(
    """
    attic barn barrel basket cabin cave cellar chapel chest closet cottage courtyard cupboard drawer
    garden hall house hut kitchen library loft mill room shed stable storehouse tent tower tunnel well
    workshop
    """
)
BUILDINGS = _words(
    """
    abbey bakery bridge castle forge fountain inn market palace school shop shrine temple theatre
    """
)
ANIMALS = _words(
    """
    cat cow crow dog donkey falcon fox goat goose hawk hen horse mule owl ox parrot pig rabbit
    """
)
TRADES = _words(
    """
    baker blacksmith brewer butcher captain carpenter cook doctor farmer gardener guard hunter judge
    mason mayor miller painter priest sailor scribe shepherd singer tailor teacher weaver
    """
)
FILLERS = (
    "The rain fell on the roofs all night.",
    "Nobody remembers who built the first wall.",
    "In summer the road is full of dust.",
    "The river is wide here and slow.",
    "Old people tell many stories about it.",
    "The harvest was good this year.",
    "It is a long way on foot.",
    "The fair is held in spring.",
    "Most travellers pass by without a word.",
    "The wind comes from the sea.",
)
HEADS = (
    "Answer from the documents, in one short sentence.",
    "Read the documents and answer the question.",
    "Here are some facts.",
    "The following is known.",
    "You are a careful reader.",
    "Documents:",
)

_CONSONANTS = "bdfghklmnprstvz"
_CLOSINGS = ("", "", "", *"lnrsk")
_CLUSTERS = (*_CONSONANTS, *_words("c j w br ch cl dr fl gr kl kr pl pr sh sk st th tr"))
_SOUNDS = (*"aeiou", *_words("ai ea ee ia io ou y"))
_ENDS = ("", *"lnrstdkmx", *_words("nd st rk ld sk"))


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact. `subject` is what a question names, `value` what it asks for."""

    relation: Relation
    subject: str
    value: str
    statement: str

    def question(self, random: Random) -> str:
        return random.choice(self.relation.questions).format(s=self.subject)

    def answer(self) -> str:
        return self.relation.answer.format(v=self.value)


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact: how it is stated, asked for and answered. {s} is the subject, {v} the value."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str
    subject: Callable[[Words], str]
    value: Callable[[Words], str]
    pair_question: str = ""
    pair_answer: str = ""

    def fact(self, words: Words, subject: str | None = None) -> Fact:
        subject = self.subject(words) if subject is None else subject
        value = self.value(words)
        sentence = words.random.choice(self.statements).format(s=subject, v=value)
        return Fact(self, subject, value, sentence[0].upper() + sentence[1:])


class Words:
    """Names and phrases of one split, some of them used again and again so that facts are easy to mix up."""

    def __init__(self, random: Random, split: Split, num_names: int) -> None:
        self.random, self.split = random, split
        self.names = [self.new_name() for _ in range(num_names)]

    def name(self) -> str:
        return self.random.choice(self.names)

    def new_name(self) -> str:
        return self._of_split(lambda: self._spell().capitalize())

    def word(self) -> str:
        return self._of_split(self._spell)

    def phrase(self, nouns: list[str]) -> str:
        return self._of_split(lambda: f"{self._adjective()} {self.random.choice(nouns)}")

    def number(self) -> str:
        return self._of_split(lambda: str(self.random.randrange(10, 1000)))

    def _adjective(self) -> str:
        # Now and then a word that is in no list: a reader copies what is written, known or not.
        return self.random.choice(ADJECTIVES) if self.random.random() < 0.95 else self._spell()

    def _of_split(self, make: Callable[[], str]) -> str:
        while True:
            text = make()
            if is_held_out(text) == (self.split == "held-out"):
                return text

    def _spell(self) -> str:
        """Mostly two plain syllables; now and then something richer, or any letters at all."""
        random = self.random
        kind = random.random()
        if kind < 0.02:
            return "".join(random.choice(ascii_lowercase) for _ in range(random.randint(3, 6)))
        if kind < 0.15:
            syllables = random.choice((1, 2, 2, 3))
            spelled = [random.choice(_CLUSTERS) + random.choice(_SOUNDS) for _ in range(syllables)]
            return random.choice(("", *"aeiou")) + "".join(spelled) + random.choice(_ENDS)
        middle, end = random.choice(_CLOSINGS), random.choice(_CLOSINGS)
        first, second = (random.choice(_CONSONANTS) + random.choice("aeiou") for _ in range(2))
        return first + middle + second + end


def is_held_out(text: str) -> bool:
    """Whether a name, phrase or number belongs to the held-out split."""
    return crc32(text.encode()) % 1000 < 1000 * HELD_OUT_SHARE


OPENS = Relation(
    ("the {s} opens the {v}.", "with the {s} one opens the {v}."),
    ("Which gate does the {s} open?", "What does the {s} open?"),
    " the {v}.",
    lambda words: f"{words.phrase(['key'])} of {words.name()}",
    lambda words: words.phrase(["gate"]),
    "Which gates do the {s} and the {t} open?",
    " the {v} and the {w}.",
)
STANDS = Relation(
    ("behind the {s} stands the {v}.", "behind the {s} one finds the {v}."),
    ("What stands behind the {s}?",),
    " the {v}.",
    lambda words: words.phrase(["gate"]),
    lambda words: words.phrase(BUILDINGS),
)
KEEPS = Relation(
    ("the {s} is kept in the {v}.", "the {s} lies in the {v}."),
    ("Where is the {s} kept?", "Where is the {s}?"),
    " in the {v}.",
    lambda words: f"{words.phrase(THINGS)} of {words.name()}",
    lambda words: words.phrase(PLACES),
    "Where are the {s} and the {t}?",
    " in the {v} and in the {w}.",
)
COSTS = Relation(
    ("the {s} costs {v} coins.", "the price of the {s} is {v} coins."),
    ("How many coins does the {s} cost?",),
    " {v} coins.",
    lambda words: f"{words.phrase(THINGS)} of {words.name()}",
    lambda words: words.number(),
)
TRADE = Relation(
    ("the {s} is {v}.", "the name of the {s} is {v}."),
    ("Who is the {s}?",),
    " {v}.",
    lambda words: f"{words.random.choice(TRADES)} of {words.name()}",
    lambda words: words.new_name() if words.random.random() < 0.5 else words.name(),
)
LIVES = Relation(
    ("{s} lives in {v}.", "the home of {s} is {v}."),
    ("Where does {s} live?",),
    " in {v}.",
    lambda words: words.name() if words.random.random() < 0.5 else words.new_name(),
    lambda words: words.new_name(),
    "Where do {s} and {t} live?",
    " in {v} and in {w}.",
)
PASSWORD = Relation(
    ("the password of {s} is {v}.", "{s} has the password {v}."),
    ("What is the password of {s}?",),
    " {v}.",
    lambda words: words.name() if words.random.random() < 0.5 else words.new_name(),
    lambda words: words.word(),
)
CALLED = Relation(
    ("the {s} is called {v}.",),
    ("What is the {s} called?",),
    " {v}.",
    lambda words: f"{words.random.choice(ANIMALS)} of {words.name()}",
    lambda words: words.new_name(),
)
RELATIONS = (OPENS, OPENS, STANDS, KEEPS, KEEPS, COSTS, TRADE, LIVES, PASSWORD, CALLED)


def facts(words: Words, number: int, known: Iterable[Fact] = ()) -> list[Fact]:
    """New facts; no two of them, or of those known, answer the same question."""
    taken = {(id(fact.relation), fact.subject) for fact in known}
    made = list[Fact]()
    while len(made) < number:
        fact = words.random.choice(RELATIONS).fact(words)
        key = id(fact.relation), fact.subject
        if key not in taken:
            taken.add(key)
            made.append(fact)
    return made


def document(random: Random, stated: list[Fact]) -> str:
    """Facts in a text, with sentences of no importance among them."""
    sentences = [fact.statement for fact in stated]
    while random.random() < 0.3:
        sentences.insert(random.randint(0, len(sentences)), random.choice(FILLERS))
    return " ".join(sentences)


def pair_question(first: Fact, second: Fact) -> tuple[str, str]:
    """A question that takes two facts of one relation, and its answer."""
    relation = first.relation
    question = relation.pair_question.format(s=first.subject, t=second.subject)
    return question, relation.pair_answer.format(v=first.value, w=second.value)


@dataclass(frozen=True, slots=True)
class TwoHops:
    """The value of a first fact is the subject of a second; the question names the first's subject only."""

    first: Fact
    second: Fact
    question: str
    answer: str


def two_hops(words: Words) -> TwoHops:
    if words.random.random() < 0.5:
        first = OPENS.fact(words)
        second = STANDS.fact(words, subject=first.value)
        question = f"What stands behind the gate that the {first.subject} opens?"
    else:
        first = TRADE.fact(words)
        second = LIVES.fact(words, subject=first.value)
        question = f"Where does the {first.subject} live?"
    return TwoHops(first, second, question, second.answer())
