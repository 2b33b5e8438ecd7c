"""Branches side by side while they are generated: one panel each, with the end of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_MIN_PANEL_WIDTH = 28
# One line of text between two borders.
_MIN_PANEL_HEIGHT = 3
_MAX_PANEL_LINES = 12
_MAX_PANELS = 24


class LiveView:
    """The texts so far, in the order in which branches began to speak."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._done: set[str] = set()

    def add(self, branch: str, text: str) -> None:
        self._texts[branch] = self._texts.get(branch, "") + text

    def close(self, branch: str) -> None:
        self._done.add(branch)

    def picture(self, width: int, height: int) -> RenderableType:
        """Panels in as many columns as fit, no higher than `height`; those that still speak go first."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        names = sorted(self._texts, key=lambda name: name in self._done)
        columns = max(1, min(len(names), width // _MIN_PANEL_WIDTH))
        # The last line is for what has no room.
        most = min(_MAX_PANELS, columns * ((height - 1) // _MIN_PANEL_HEIGHT))
        shown = names[:most]
        rows = max(1, -(-len(shown) // columns))
        lines = min(_MAX_PANEL_LINES, (height - 1) // rows - 2)
        grid = Table.grid(expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        for first in range(0, len(shown), columns):
            grid.add_row(
                *(
                    Panel(
                        Text(_tail(self._texts[name], lines, max(1, width // columns - 4))),
                        title=Text(name),
                        height=lines + 2,
                        border_style="dim" if name in self._done else "green",
                    )
                    for name in shown[first : first + columns]
                )
            )
        if len(names) == len(shown):
            return grid
        more = f"... and {len(names) - len(shown)} more" if shown else f"... {len(names)} branches"
        return Group(grid, Text(more, style="dim", no_wrap=True))


def _tail(text: str, lines: int, width: int) -> str:
    """The last lines of a text that is wrapped at `width` cells. No control character is left."""
    from rich.cells import chop_cells

    wrapped = list[str]()
    for line in text.strip("\n").split("\n")[-lines:]:
        shown = "".join(char if char.isprintable() else " " for char in line.expandtabs(4))
        wrapped += chop_cells(shown, width) or [""]
    return "\n".join(wrapped[-lines:])
