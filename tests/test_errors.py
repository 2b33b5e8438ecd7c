"""Errors carry their problems as data, and draw them as a report."""

from __future__ import annotations

import pytest

from legraph.errors import (
    MAX_LINE_DRAWN,
    MAX_PROBLEMS_DRAWN,
    BundleError,
    GraphError,
    InputError,
    LegraphError,
    ModelError,
    Problem,
    RunError,
    Source,
    TokenizerError,
    count,
    did_you_mean,
)


@pytest.mark.parametrize("error", [GraphError, BundleError])
def test_wrong_input_is_a_value_error_with_exit_code_2(error: type[InputError]):
    assert issubclass(error, InputError) and issubclass(error, ValueError) and issubclass(error, LegraphError)
    assert error("wrong").exit_code == 2


@pytest.mark.parametrize("error", [TokenizerError, ModelError])
def test_a_failed_run_has_exit_code_1(error: type[RunError]):
    assert issubclass(error, RunError) and issubclass(error, LegraphError)
    assert not issubclass(error, ValueError)
    assert error("failed").exit_code == 1


def test_a_run_error_says_what_to_do():
    assert str(ModelError("out of memory", "use a smaller model")) == (
        "out of memory\n  hint: use a smaller model"
    )
    assert str(ModelError("out of memory")) == "out of memory"


@pytest.mark.parametrize(
    "given, expected",
    [
        ("wrong", (Problem("wrong"),)),
        (Problem("wrong", "right"), (Problem("wrong", "right"),)),
        ((Problem(word) for word in "ab"), (Problem("a"), Problem("b"))),
    ],
    ids=["text", "problem", "problems"],
)
def test_an_input_error_holds_problems(given: object, expected: tuple[Problem, ...]):
    assert InputError(given).problems == expected  # pyright: ignore[reportArgumentType]


def test_a_problem_draws_place_line_caret_expectation_and_hint():
    source = Source("g.yaml", 12, 5, ("a",), "    prents: [x]", 6)
    assert str(Problem("unknown key 'prents'", "one of ...", "did you mean 'parents'?", source)) == (
        "g.yaml:12:5: unknown key 'prents'\n"
        "     12 |     prents: [x]\n"
        "        |     ^^^^^^\n"
        "  expected: one of ...\n"
        "  hint: did you mean 'parents'?"
    )


@pytest.mark.parametrize(
    "source, place",
    [(Source("f"), "f"), (Source("f", 3), "f:3"), (Source("f", 3, 7), "f:3:7")],
    ids=["file", "line", "column"],
)
def test_a_source_says_as_much_as_it_knows(source: Source, place: str):
    assert str(source) == place
    assert source.excerpt() is None


def caret_lines(source: Source) -> tuple[str, str]:
    """The shown line and the caret line, without the margin."""
    excerpt = source.excerpt()
    assert excerpt is not None
    shown, carets = excerpt.split("\n")
    margin = len("  12345 | ")
    return shown[margin:], carets[margin:]


def test_a_tab_before_the_caret_keeps_its_width():
    shown, carets = caret_lines(Source("f", 1, 3, (), "\t\tx", 1))
    assert (shown, carets) == ("\t\tx", "\t\t^")


@pytest.mark.parametrize("column", [1, 40, 51, 400, 1000])
def test_a_long_line_is_cut_around_the_caret(column: int):
    line = "".join(str(i % 10) for i in range(1000))
    line = line[: column - 1] + "X" + line[column:]
    shown, carets = caret_lines(Source("f", 1, column, (), line, 1))
    assert len(shown) <= MAX_LINE_DRAWN
    assert shown[carets.index("^")] == "X"


def test_carets_stop_where_the_line_stops():
    assert caret_lines(Source("f", 1, 3, (), "abcd", 99))[1] == "  ^^"


def test_a_caret_behind_the_end_of_the_line_is_still_drawn():
    assert caret_lines(Source("f", 1, 5, (), "abcd", 1))[1] == "    ^"


def test_control_characters_of_a_file_do_not_reach_the_terminal():
    shown, carets = caret_lines(Source("f", 1, 6, (), "a\x1b[2Jb", 1))
    assert shown == "a\N{REPLACEMENT CHARACTER}[2Jb"
    assert carets.index("^") == shown.index("b")


def test_a_report_names_the_first_problems_and_counts_the_rest():
    num_problems = MAX_PROBLEMS_DRAWN + 1234
    lines = str(InputError(Problem(f"problem {i}") for i in range(num_problems))).split("\n")
    assert lines[:-1] == [f"problem {i}" for i in range(MAX_PROBLEMS_DRAWN)]
    assert lines[-1] == "... and 1,234 more problems"


def test_a_close_word_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("prents", ["text", "parents"]) == "did you mean 'parents'?"
    assert did_you_mean("zzz", ["text", "parents"]) is None


@pytest.mark.parametrize(
    "number, words", [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens"), (12345, "12,345 tokens")]
)
def test_counts_read_like_words(number: int, words: str):
    assert count(number, "token") == words
