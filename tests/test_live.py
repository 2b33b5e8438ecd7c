"""Panels of branches: all that have room are there, with the end of their text, and never more than fits."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from legraph.live import LiveView

WIDTHS = [1, 3, 20, 27, 28, 56, 80, 200]
HEIGHTS = [1, 2, 3, 4, 7, 10, 24, 60]


def drawn(view: LiveView, width: int, height: int, color: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=color)
    with console.capture() as captured:
        console.print(view.picture(width, height))
    return captured.get().splitlines()


def view_of(num_branches: int, text: str = "word " * 100 + "\n") -> LiveView:
    view = LiveView()
    for number in range(num_branches):
        view.add(f"b{number}", f"{text}end{number}.")
    return view


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("num_branches", [0, 1, 2, 5, 24, 30])
def test_a_picture_is_never_larger_than_the_terminal(num_branches: int, width: int, height: int) -> None:
    lines = drawn(view_of(num_branches), width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines), default=0) <= width


@pytest.mark.parametrize(
    ("num_branches", "width", "height"),
    [
        (1, 20, 4),
        (2, 80, 24),
        (2, 40, 24),
        (5, 80, 24),
        (7, 80, 13),
        (7, 28, 22),
        (24, 120, 24),
        (24, 28, 80),
    ],
)
def test_every_branch_that_has_room_is_there_with_the_end_of_its_text(
    num_branches: int, width: int, height: int
) -> None:
    picture = "\n".join(drawn(view_of(num_branches), width, height))
    for number in range(num_branches):
        assert f" b{number} ─" in picture and f"end{number}." in picture
    assert "more" not in picture


@pytest.mark.parametrize(
    ("num_branches", "width", "height", "num_shown"),
    # Two columns of seven panels, of three lines each, and one line to say so; at most 24 anyway.
    [(30, 80, 24, 14), (15, 80, 24, 14), (30, 200, 60, 24), (5, 28, 12, 3)],
)
def test_what_has_no_room_is_counted(num_branches: int, width: int, height: int, num_shown: int) -> None:
    *panels, last = drawn(view_of(num_branches), width, height)
    assert last.strip() == f"... and {num_branches - num_shown} more"
    assert "\n".join(panels).count("╭") == num_shown


def test_without_room_for_a_panel_there_is_a_number() -> None:
    assert drawn(view_of(6), 80, 3) == ["... 6 branches"]


def test_branches_stand_side_by_side_in_the_order_in_which_they_began() -> None:
    first, *_ = drawn(view_of(2), 80, 24)
    assert first.index(" b0 ") < 40 < first.index(" b1 ")


def test_those_that_are_done_go_last() -> None:
    view = view_of(30)
    for number in range(14):
        view.close(f"b{number}")
    picture = "\n".join(drawn(view, 80, 24))
    assert all(f" b{number} ─" in picture for number in range(14, 28))
    assert " b0 ─" not in picture
    view.close("b14")
    assert " b29 ─" not in picture and " b28 ─" in "\n".join(drawn(view, 80, 24))


def test_text_grows() -> None:
    view = LiveView()
    view.add("a", "one")
    assert "one" in drawn(view, 40, 10)[1]
    view.add("a", " two")
    assert "one two" in drawn(view, 40, 10)[1]
    view.add("a", "\nthree")
    assert "three" in drawn(view, 40, 10)[2]


def test_a_long_text_shows_its_last_lines_whatever_its_letters_are_wide() -> None:
    for text in ("word " * 500, "字" * 500, "a\n" * 500, "a\n\n字 word\n" * 100, "x" * 3000):
        lines = drawn(view_of(1, text), 40, 10)
        assert len(lines) == 9
        assert "end0." in lines[-2] or (lines[-2].startswith("│ ") and "nd0." in lines[-2])


def test_nothing_in_a_text_or_a_name_reaches_the_terminal_as_code() -> None:
    view = LiveView()
    view.add("[red]a[/red]", "[bold]b\x1b[31m\r\x07\x9b\tc")
    picture = "\n".join(drawn(view, 60, 10))
    assert "[red]a[/red]" in picture and "[bold]b [31m   " in picture
    assert not set("\x1b\r\x07\x9b\t") & set(picture)


def test_colours_tell_who_still_speaks() -> None:
    view = view_of(2)
    view.close("b0")
    first, *_ = drawn(view, 80, 24, color=True)
    # The one that is done is dim, and comes after the green one.
    assert first.index("\x1b[32m") < first.index("b1") < first.index("\x1b[2m") < first.index("b0")
