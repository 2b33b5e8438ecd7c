"""Drawing tokens, against the distribution written out by hand."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legraph.errors import ModelError
from legraph.graph import Generate
from legraph.logits import Logits, best_and_highest
from legraph.sampling import Sampler, settings_for

DRAWS = 1500
LOGITS = [1.0, 3.0, -2.0, 2.5, 0.0, 2.0, -8.0]


def distribution(
    logits: Sequence[float], temperature: float, top_k: int | None, top_p: float | None
) -> dict[int, float]:
    """Probability by token: the k likeliest; of those the fewest that together reach p; in proportion."""
    weights = {i: math.exp((logit - max(logits)) / temperature) for i, logit in enumerate(logits)}
    likeliest = sorted(weights, key=lambda i: -weights[i])[:top_k]
    total = sum(weights[i] for i in likeliest)
    kept, reached = [], 0.0
    for i in likeliest:
        kept.append(i)
        reached += weights[i] / total
        if top_p is not None and reached >= top_p:
            break
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


def sampler(chunk: str = "chunk", own_seed: int | None = None, **settings: Any) -> Sampler:
    return Sampler(Generate(**settings), chunk, own_seed)


def draws(drawn_from: Sampler, number: int, logits: Sequence[float] = LOGITS) -> list[int]:
    logits_V = torch.tensor(logits)
    return [draw(drawn_from, logits_V) for _ in range(number)]


def draw(drawn_from: Sampler, logits_V: torch.Tensor) -> int:
    """As an engine does it, which knows the largest logit of every row."""
    ((best,), (highest,)) = best_and_highest(logits_V[None]).tolist()
    return drawn_from.draw(logits_V, int(best), highest)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 3, 100])
@pytest.mark.parametrize("top_p", [None, 0.3, 0.75, 1.0])
def test_tokens_come_as_often_as_they_should(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    expected = distribution(LOGITS, temperature, top_k, top_p)
    counts = Counter(draws(sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=3), DRAWS))
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        # Five standard deviations; the seed is fixed, so this holds always or never.
        bound = 5 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-9
        assert abs(counts[token] / DRAWS - probability) <= bound


@given(
    logits=st.lists(st.integers(-60, 60), min_size=1, max_size=40, unique=True),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 50),
    top_p=st.none() | st.floats(0.01, 1.0),
    seed=st.integers(0, 2**63 - 1),
)
def test_nothing_outside_the_support_is_ever_drawn(
    logits: list[int], temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> None:
    scaled = [logit / 7 for logit in logits]
    # A sum that reaches p to the last bit may be rounded to either side.
    wider = None if top_p is None else top_p + 1e-6
    support = distribution(scaled, temperature, top_k, wider)
    chosen = sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    assert set(draws(chosen, 5, scaled)) <= set(support)


@pytest.mark.parametrize("temperature", [None, 0, 0.0])
def test_without_a_temperature_the_likeliest_token_is_taken(temperature: float | None) -> None:
    greedy = sampler(temperature=temperature, top_k=3, top_p=0.5)
    assert draws(greedy, 3) == [1, 1, 1]
    assert draw(greedy, torch.tensor(LOGITS[::-1], dtype=torch.bfloat16)) == 5


def numbers(drawn_from: Sampler) -> list[int]:
    """A sequence that two samplers share by chance once in 16 ** 24 times."""
    return draws(drawn_from, 24, [0.0] * 16)


def test_what_is_drawn_depends_on_the_runs_seed_and_the_chunks_name() -> None:
    first = numbers(sampler("a", temperature=1.0, seed=1))
    assert first == numbers(sampler("a", temperature=1.0, seed=1))
    assert first != numbers(sampler("a", temperature=1.0, seed=2))
    assert first != numbers(sampler("b", temperature=1.0, seed=1))


def test_no_seed_is_seed_zero() -> None:
    assert numbers(sampler(temperature=1.0)) == numbers(sampler(temperature=1.0, seed=0))


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_chunks_own_seed_is_used_as_it_is(seed: int) -> None:
    own = numbers(sampler("a", own_seed=seed, temperature=1.0, seed=5))
    assert own == numbers(sampler("b", own_seed=seed, temperature=1.0, seed=6))
    plain = torch.Generator().manual_seed(seed)
    weights = torch.full((16,), 1 / 16, dtype=torch.float64)
    assert own == [int(torch.multinomial(weights, 1, generator=plain)) for _ in range(24)]


def test_drawing_leaves_torchs_own_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    numbers(sampler(temperature=1.0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-310, 5e-324])
def test_no_temperature_is_too_small(temperature: float) -> None:
    assert draws(sampler(temperature=temperature), 5) == [1] * 5
    # Two that are equally likely stay so.
    assert set(draws(sampler(temperature=temperature), 50, [1.0, 4.0, 4.0])) == {1, 2}


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    assert set(draws(sampler(temperature=100.0), 200, [0.0, -math.inf, 1.0])) == {0, 2}


@pytest.mark.parametrize("temperature", [None, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_a_model_error(temperature: float | None, wrong: float) -> None:
    with pytest.raises(ModelError, match="logits for chunk 'q' are not finite numbers") as error:
        draw(sampler("q", temperature=temperature), torch.tensor([0.0, wrong, 1.0]))
    assert error.value.hint and "--dtype" in error.value.hint


RUN = Generate(max_new_tokens=9, stop=("run",), temperature=0.9, top_k=9, top_p=0.9, seed=9)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, RUN),
        (Generate(max_new_tokens=4), Generate(4, ("run",), 0.9, 9, 0.9, 9)),
        (Generate(max_new_tokens=4, stop=("own",)), Generate(4, ("own",), 0.9, 9, 0.9, 9)),
        # Zero is a setting of its own: this chunk is greedy in a run that samples.
        (Generate(temperature=0.0), Generate(32, ("run",), 0.0, 9, 0.9, 9)),
        (Generate(seed=0), Generate(32, ("run",), 0.9, 9, 0.9, 0)),
        (Generate(5, ("s",), 0.1, 1, 0.2, 3), Generate(5, ("s",), 0.1, 1, 0.2, 3)),
    ],
)
def test_a_chunks_own_settings_come_first_and_the_runs_fill_the_rest(
    own: Generate | None, expected: Generate
) -> None:
    assert settings_for(own, RUN) == expected


@pytest.mark.parametrize(
    ("own", "run", "temperature"),
    [
        (None, Generate(top_p=0.9), 1.0),
        (Generate(top_k=5), Generate(), 1.0),
        (Generate(), Generate(top_k=5), 1.0),
        (Generate(top_p=0.9), Generate(temperature=0.5), 0.5),
        (Generate(top_p=0.9, temperature=0), Generate(), 0),
        (Generate(seed=3), Generate(seed=4), None),
    ],
)
def test_who_asks_for_top_k_or_top_p_samples(
    own: Generate | None, run: Generate, temperature: float | None
) -> None:
    assert settings_for(own, run).temperature == temperature


def test_greedy_draws_what_the_device_found_and_does_not_look_again() -> None:
    assert sampler().draw(torch.tensor([3.0, 1.0]), 1, 1.0) == 1


# Rows of logits.


def test_the_best_of_each_row_comes_with_its_logit() -> None:
    logits = Logits.of(torch.tensor([[0.0, 5.0, 1.0], [7.0, 7.0, 2.0], [-1.0, -math.inf, -3.0]]))
    assert (logits.best, logits.highest) == ([1, 0, 0], [5.0, 7.0, -1.0])
    assert all(type(token) is int for token in logits.best)


@pytest.mark.parametrize("row", [[0.0, math.nan, 9.0], [math.nan, -math.inf, 0.0]])
def test_a_row_with_a_number_that_is_none_has_none_as_its_largest(row: list[float]) -> None:
    assert math.isnan(Logits.of(torch.tensor([row])).highest[0])


def test_ids_of_any_vocabulary_come_through_exactly() -> None:
    """They travel as floats; float32 would round ids from 2^24 on."""
    logits = torch.zeros(1, 2**24 + 2, dtype=torch.bfloat16)
    logits[0, 2**24 + 1] = 1
    assert Logits.of(logits).best == [2**24 + 1]


def test_parts_are_joined_in_their_order_and_without_those_that_asked_for_nothing() -> None:
    one, two = Logits.of(torch.tensor([[1.0, 2.0]])), Logits.of(torch.tensor([[4.0, 3.0], [0.0, 9.0]]))
    nothing = Logits(torch.tensor([[8.0, 8.0]]), [], [])
    joined = Logits.joined([nothing, one, nothing, two])
    assert joined.rows.tolist() == [[1.0, 2.0], [4.0, 3.0], [0.0, 9.0]]
    assert (joined.best, joined.highest) == ([1, 0, 1], [2.0, 4.0, 9.0])
    assert Logits.joined([nothing, two]) is two
    assert Logits.joined([nothing, nothing]).best == []
