"""Makes the pictures of these pages, with the commands that the pages show.

Usage: python docs/make_pictures.py [NAME...]

Needs `pip install 'legraph[viz]'`; for page.png also Playwright and a Chromium, as the tests do.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "docs" / "pictures"

# What a picture is made from, once for all of them.
RUN = "run examples/fork_join.yaml --json --log-probs --attention {made}/attention.npz"
# The picture, and the command that makes it. The layout engine is the one that is everywhere.
COMMANDS = {
    "mask.svg": "plot examples/quickstart.yaml --tokens -o {out}",
    "mask-dark.svg": "plot examples/quickstart.yaml --tokens --theme dark -o {out}",
    "blocks.svg": "plot docs/pictures/documents.yaml --blocks -o {out}",
    "dag.svg": "plot examples/tree.yaml --kind dag --layout layered -o {out}",
    "dag-folded.svg": "plot docs/pictures/documents.yaml --kind dag --layout layered -o {out}",
    "attention.svg": "plot {made}/attention.npz --kind attention --layer 5 -o {out}",
}
PAGE = "page.png"
PAGE_COMMAND = "view {made}/attention.npz {made}/result.json --title fork_join.yaml -o {made}/page.html"
PAGE_SIZE = {"width": 1280, "height": 720}


def main() -> None:
    wanted = sys.argv[1:] or [*COMMANDS, PAGE]
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made))
        for name in wanted:
            make(name, Path(made), FOLDER / name)
            print(f"wrote {(FOLDER / name).relative_to(ROOT)}")


def prepare(made: Path) -> None:
    """Runs a graph, for the pictures of what a model did."""
    (made / "result.json").write_text(legraph(RUN.format(made=made)), encoding="utf-8")


def make(name: str, made: Path, out: Path) -> None:
    """One picture, from what `prepare` has left in `made`."""
    if name == PAGE:
        legraph(PAGE_COMMAND.format(made=made))
        screenshot(made / "page.html", out)
    else:
        legraph(COMMANDS[name].format(made=made, out=out))


def legraph(command: str) -> str:
    """Standard output of a legraph command, run where the pages say it is run."""
    from legraph.cli import main

    printed, before = io.StringIO(), sys.argv
    sys.argv = ["legraph", *shlex.split(command)]
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
            main()
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"legraph {command} ended with code {ended.code}") from None
    finally:
        sys.argv = before
    return printed.getvalue()


def browser_path() -> str | None:
    """A browser of Chromium's family; None if none is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def screenshot(page: Path, out: Path) -> None:
    """The page with the chunk `join` chosen."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        tab = browser.new_page(viewport=PAGE_SIZE, device_scale_factor=2, color_scheme="light")
        tab.goto(page.as_uri())
        tab.locator("svg text", has_text="join").first.click(force=True)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main()
