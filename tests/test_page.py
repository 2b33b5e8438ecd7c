"""The page in a real browser: what is lit, drawn and said is what the graph says, and nothing else runs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from legraph import Bundle, Chunk, Generate, compile_chunks
from legraph.attentionmass import AttentionMass
from legraph.fold import MAX_NODES, fold
from legraph.page import page_html
from legraph.pagedata import page_data
from legraph.palette import PALETTES, Theme
from legraph.result import finished_bundle, used_starts
from tests.random_graphs import tokenizer

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, or google-chrome, on the PATH")

PAINT_LIMIT_MS = 2000
# From the whole of 100,000 tokens to single ones.
NOTCHES = 12
Page = Any


@dataclass
class Browser:
    """Opens pages from files, and notes everything a page must not do."""

    chromium: Any
    folder: Path
    pages: list[Page] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def open(
        self, bundle: Bundle, size: tuple[int, int] = (1280, 720), scheme: str = "light", **more: Any
    ) -> Page:
        title = more.pop("title", "graph.yaml")
        path = self.folder / "page.html"
        html = page_html(page_data(bundle, more.pop("tokenizer", tokenizer()), title=title, **more))
        path.write_text(html, encoding="utf-8")
        page = self.chromium.new_page(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.pages.append(page)
        self._watch(page)
        page.goto(path.as_uri())
        page.wait_for_function("performance.getEntriesByName('mask-drawn').length > 0")
        return page

    def _watch(self, page: Page) -> None:
        page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._note_request(request.url))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _note_request(self, url: str) -> None:
        if not url.startswith(("file:", "data:")):
            self.faults.append(f"request: {url}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Chromium's own sandbox refuses to run as root.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium: Any, tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(chromium, tmp_path)
    yield opened
    for page in opened.pages:
        page.close()
    assert opened.faults == []


def compiled(*leaves: Chunk) -> Bundle:
    return compile_chunks(list(leaves), tokenizer=tokenizer())


def six_chunks() -> Bundle:
    head = Chunk("Answer.", name="head")
    docs = [Chunk(f"Fox {i}.", name=f"doc{i}", parents=[head]) for i in range(3)]
    notes = Chunk("Both:", name="notes", parents=docs[:2], generate=Generate(4))
    return compiled(Chunk("What?", name="question", parents=[notes], generate=Generate(4)), docs[2])


@cache
def many_documents(num_docs: int, length: int) -> Bundle:
    head = Chunk("Answer.", name="head")
    docs = [Chunk("A fact. " * (length // 8), name=f"doc{i}", parents=[head]) for i in range(num_docs)]
    return compiled(Chunk("What happened?", name="question", parents=docs))


@cache
def many_chunks() -> Bundle:
    """12,500 chunks of 8 tokens, each with up to three parents."""
    chunks = list[Chunk]()
    for i in range(12_500):
        parents = sorted({at for at in (i // 2, i - 1, i - 9) if 0 <= at < i})
        chunks.append(Chunk("abcdefgh", name=f"c{i}", parents=[chunks[at] for at in parents]))
    return compiled(*chunks)


GRAPHS: Mapping[str, Callable[[], Bundle]] = {
    "6 chunks": six_chunks,
    "500 documents": lambda: many_documents(500, 8),
    "100,000 tokens": lambda: many_documents(100, 1000),
    "12,500 chunks": many_chunks,
}


@dataclass(frozen=True)
class View:
    """Where the tokens of the mask are on the screen."""

    left: float
    top: float
    width: float
    height: float
    cell: float
    x: float
    y: float

    def point(self, query: float, key: float) -> tuple[float, float]:
        """The middle of a cell, in pixels of the page."""
        return self.left + self.x + (key + 0.5) * self.cell, self.top + self.y + (query + 0.5) * self.cell


def view(page: Page) -> View:
    found = page.evaluate(
        """() => {
            const plot = document.getElementById("mask-plot");
            const { left, top, width, height } = plot.getBoundingClientRect();
            const { cell, x, y } = plot.dataset;
            return [left, top, width, height, Number(cell), Number(x), Number(y)];
        }"""
    )
    return View(*found)


def settle(page: Page) -> None:
    """Waits for what was asked for to be drawn."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def lit_nodes(page: Page) -> dict[str, set[int]]:
    """Boxes of the DAG by how they are lit."""
    return {
        kind: set(
            page.eval_on_selector_all(
                f".node.{kind}", "nodes => nodes.map(node => Number(node.dataset.node))"
            )
        )
        for kind in ("focus", "parent", "child")
    }


def expected_nodes(bundle: Bundle, chunks: set[int]) -> dict[str, set[int]]:
    """The same for chunks in focus, from the graph."""
    node_of = fold(bundle, MAX_NODES).node_of
    size = bundle.mask.num_chunks
    parents = {int(p) for chunk in chunks for p in bundle.parents(chunk)}
    children = {i for i in range(size) if chunks & set(bundle.parents(i).tolist())}
    found = {"focus": chunks, "parent": parents, "child": children}
    return {kind: {int(node_of[i]) for i in some} for kind, some in found.items()}


def status(page: Page) -> str:
    return page.inner_text("#status")


def heading(page: Page) -> str:
    return page.inner_text("#panel h2")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_page_opens_fast_and_fits(browser: Browser, name: str):
    bundle = GRAPHS[name]()
    page = browser.open(bundle)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    drawn = page.evaluate("performance.getEntriesByName('mask-drawn')[0].startTime")
    print(f"{name}: first paint {paint:.0f} ms, mask drawn {drawn:.0f} ms")
    assert paint < PAINT_LIMIT_MS
    assert (browser.folder / "page.html").stat().st_size < 3e6
    totals = page.inner_text("#totals")
    assert f"{len(bundle):,} token" in totals and f"{bundle.mask.num_edges:,} edge" in totals
    for width, height in ((1280, 720), (900, 700), (500, 800)):
        page.set_viewport_size({"width": width, "height": height})
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_box_lights_its_parents_and_children(browser: Browser):
    bundle = six_chunks()
    page = browser.open(bundle)
    node_of = fold(bundle, MAX_NODES).node_of
    for chunk, name in enumerate(bundle.span_names):
        page.hover(f'.node[data-node="{node_of[chunk]}"]')
        assert lit_nodes(page) == expected_nodes(bundle, {chunk})
        assert status(page).startswith(f"{name}: {len(bundle.input_ids[bundle.span(chunk)])} tokens")


def test_a_cell_lights_its_chunk_and_says_who_sees_whom_and_why(browser: Browser):
    bundle = six_chunks()
    page = browser.open(bundle)
    where = view(page)
    reasons = set[str]()
    for q_name in bundle.span_names:
        for k_name in bundle.span_names:
            query, key = bundle.span(q_name).start + 1, bundle.span(k_name).start + 2
            page.mouse.move(*where.point(query, key))
            said = status(page)
            verdict = "may attend to" if bundle.visible(query, key) else "may not attend to"
            found = re.fullmatch(r"(\w+)\[1\] '.' (.+) (\w+)\[2\] '.': (.+)", said)
            assert found and found.groups()[:3] == (q_name, verdict, k_name)
            reasons.add(re.sub("|".join(bundle.span_names), "_", found[4]))
            assert lit_nodes(page) == expected_nodes(bundle, {bundle.index(q_name)})
    assert reasons == {
        "a later token of the same chunk",
        "_ is a direct parent of _",
        "_ is a child of _, and parents do not see their children",
        "_ is a grandparent through _, not listed as a parent",
        "_ is an ancestor, not listed as a parent",
        "_ is a descendant of _",
        "_ and _ are unrelated",
    }
    page.mouse.move(*where.point(1, 0))
    assert status(page) == "head[1] 'n' may attend to head[0] 'A': an earlier token of the same chunk"


def test_names_beside_the_mask_light_their_chunk(browser: Browser):
    bundle = six_chunks()
    page = browser.open(bundle)
    where = view(page)
    middle = (bundle.span("doc1").start + bundle.span("doc1").stop) / 2
    _, y = where.point(middle, 0)
    page.mouse.move(where.left - 30, y)
    assert lit_nodes(page) == expected_nodes(bundle, {bundle.index("doc1")})
    x, _ = where.point(0, middle)
    page.mouse.move(x, where.top - 30)
    assert status(page).startswith("doc1: ")
    page.mouse.move(5, 5)
    assert lit_nodes(page) == {"focus": set(), "parent": set(), "child": set()}


def test_a_click_keeps_a_chunk_until_escape(browser: Browser):
    bundle = six_chunks()
    page = browser.open(bundle)
    where = view(page)
    page.mouse.click(*where.point(bundle.span("notes").start, 0))
    page.mouse.move(*where.point(0, 0))
    assert heading(page) == "notes"
    assert lit_nodes(page) == expected_nodes(bundle, {bundle.index("notes")})
    panel = page.inner_text("#panel")
    span, positions = bundle.span("notes"), bundle.position_ids[bundle.span("notes")]
    assert f"5, at {span.start}..{span.stop - 1}" in panel and "up to 4 tokens" in panel
    assert f"{positions[0]}..{positions[-1]}" in panel
    assert page.locator("#panel .links").nth(0).locator(".link").all_inner_texts() == ["doc0", "doc1"]
    assert page.locator("#panel .links").nth(1).locator(".link").all_inner_texts() == ["question"]
    page.click("#panel .link:text-is('doc1')")
    assert heading(page) == "doc1"
    page.keyboard.press("Escape")
    assert heading(page) == "Graph"


def test_folded_boxes_light_all_of_their_chunks(browser: Browser):
    bundle = many_documents(500, 8)
    page = browser.open(bundle)
    dag = fold(bundle, MAX_NODES)
    for at, node in enumerate(dag.nodes):
        page.hover(f'.node[data-node="{at}"] .label', force=True)
        assert lit_nodes(page) == expected_nodes(bundle, set(node.chunks))
    docs = int(dag.node_of[bundle.index("doc7")])
    page.click(f'.node[data-node="{docs}"]')
    assert "and 480 more" in page.inner_text("#panel")


@pytest.mark.parametrize("name", ["100,000 tokens", "12,500 chunks"])
def test_the_wheel_leads_to_single_tokens(browser: Browser, name: str):
    bundle = GRAPHS[name]()
    page = browser.open(bundle)
    start = view(page)
    # Just under the diagonal, where something is seen. Wheels point at whole pixels.
    x, y = round(start.left) + 300, round(start.top) + 301
    page.mouse.move(x, y)
    per_pixel = len(bundle) / min(start.width, start.height)
    for _ in range(NOTCHES):
        page.mouse.wheel(0, -200)
    settle(page)
    assert view(page).cell >= 12
    page.mouse.move(x + 1, y)
    page.mouse.move(x, y)
    found = re.fullmatch(r"(\w+)\[(\d+)\] '.' (may.* attend) to (\w+)\[(\d+)\] '.': .+", status(page))
    assert found
    query = bundle.span(found[1]).start + int(found[2])
    key = bundle.span(found[4]).start + int(found[5])
    assert abs(query - (y - start.top) * per_pixel) <= 1 and abs(key - (x - start.left) * per_pixel) <= 1
    assert bundle.visible(query, key) == (found[3] == "may attend")
    page.keyboard.press("0")
    settle(page)
    assert view(page) == start


def random_graph(seed: int) -> Bundle:
    """About 40 tokens in up to 12 chunks, with parents here and there."""
    rng = np.random.default_rng(seed)
    chunks = list[Chunk]()
    for i in range(int(rng.integers(4, 12))):
        parents = [chunk for chunk in chunks if rng.random() < 0.45]
        chunks.append(Chunk("x" * int(rng.integers(1, 7)), name=f"c{i}", parents=parents))
    return compiled(*chunks)


def colours_at(page: Page, points: list[tuple[float, float]]) -> list[str]:
    """Colours of the mask at places in the plot, as #rrggbb."""
    return page.evaluate(
        """(points) => {
            const canvas = document.getElementById("mask-pixels");
            const { width, height } = canvas;
            // A copy: reading the canvas itself makes the browser complain, and draw it another way.
            const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
            copy.drawImage(canvas, 0, 0);
            const { data } = copy.getImageData(0, 0, width, height);
            const hex = (value) => value.toString(16).padStart(2, "0");
            return points.map(([x, y]) => {
                const at = 4 * (Math.floor(y * devicePixelRatio) * width + Math.floor(x * devicePixelRatio));
                return "#" + hex(data[at]) + hex(data[at + 1]) + hex(data[at + 2]);
            });
        }""",
        points,
    )


def expected_colours(bundle: Bundle, theme: Theme) -> np.ndarray:
    """[N, N], from the dense mask."""
    palette = PALETTES[theme]
    chunk_of = np.repeat(np.arange(bundle.mask.num_chunks), np.diff(bundle.span_offsets))
    visible = np.where(chunk_of[:, None] == chunk_of, palette.own, palette.parent)
    return np.where(bundle.dense_mask(), visible, palette.masked)


@pytest.mark.parametrize(("seed", "theme"), [(0, "light"), (1, "dark"), (2, "light"), (3, "light")])
def test_the_pixels_are_the_dense_mask(browser: Browser, seed: int, theme: Theme):
    bundle = random_graph(seed)
    page = browser.open(bundle, scheme=theme)
    expected = expected_colours(bundle, theme)
    for zoom in (None, "+"):
        if zoom:
            page.keyboard.press(zoom)
            settle(page)
        where = view(page)
        n = len(bundle)
        middles = [(q, k, *where.point(q, k)) for q in range(n) for k in range(n)]
        inside = [
            (q, k, x - where.left, y - where.top)
            for q, k, x, y in middles
            if 0 < x - where.left < where.width and 0 < y - where.top < where.height
        ]
        found = colours_at(page, [(x, y) for _, _, x, y in inside])
        assert found == [expected[q, k] for q, k, _, _ in inside]
        assert len(inside) == n * n or zoom


def test_a_chosen_box_comes_into_view(browser: Browser):
    """Fifty boxes one under the other are taller than the window, where they are large enough to read."""
    chunks = list[Chunk]()
    for i in range(50):
        chunks.append(Chunk("ab", name=f"c{i}", parents=chunks[-1:] + chunks[-3:-2]))
    page = browser.open(compiled(*chunks))
    last, frame = page.locator(".node").last, page.locator("#dag").bounding_box()
    assert last.bounding_box()["y"] > frame["y"] + frame["height"]
    page.fill("#search", "c49")
    page.press("#search", "Enter")
    box = last.bounding_box()
    assert frame["y"] < box["y"] and box["y"] + box["height"] < frame["y"] + frame["height"]


def test_search_steps_through_names_and_texts(browser: Browser):
    page = browser.open(many_documents(500, 8))
    page.keyboard.press("/")
    page.keyboard.type("doc49")
    assert page.inner_text("#hits") == "11 hits"
    page.keyboard.press("Enter")
    assert (heading(page), page.inner_text("#hits")) == ("doc49", "1 of 11")
    settle(page)
    where = view(page)
    # The chunk's own square is on the screen, and large enough to read.
    assert where.cell > 10
    page.keyboard.press("Enter")
    assert heading(page) == "doc490"
    page.keyboard.press("Shift+Enter")
    assert heading(page) == "doc49"
    page.fill("#search", "HAPPENED")
    page.keyboard.press("Enter")
    assert heading(page) == "question"
    page.fill("#search", "nowhere")
    assert page.inner_text("#hits") == "no hit"


def background(page: Page) -> str:
    red, green, blue = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[
        :3
    ]
    return f"#{int(red):02x}{int(green):02x}{int(blue):02x}"


def emulate(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    # The page is told with the next frame.
    settle(page)


def test_the_theme_follows_the_system_until_one_is_chosen(browser: Browser):
    page = browser.open(six_chunks(), scheme="dark")
    assert background(page) == PALETTES["dark"].paper
    emulate(page, "light")
    assert background(page) == PALETTES["light"].paper
    page.click("#theme")
    assert background(page) == PALETTES["dark"].paper
    settle(page)
    where = view(page)
    assert colours_at(page, [(where.cell / 2, where.cell / 2)]) == [PALETTES["dark"].own]
    emulate(page, "dark")
    page.keyboard.press("t")
    emulate(page, "light")
    emulate(page, "dark")
    assert background(page) == PALETTES["light"].paper


def test_everything_can_be_done_with_the_keyboard(browser: Browser):
    bundle = six_chunks()
    page = browser.open(bundle)
    reached = list[str]()
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", f"{reached[-1]} shows its focus"
    controls = ["search", "theme", "help-button", "dag", "zoom-out", "zoom-in", "reset", "mask", "panel"]
    assert reached == controls
    unnamed = page.eval_on_selector_all(
        "button, input, select, [tabindex]",
        """all => all.filter(one => !one.hidden && one.offsetParent && !one.ariaLabel && !one.innerText.trim()
            && !(one.labels && one.labels.length)).map(one => one.id)""",
    )
    assert unnamed == []
    steps = [("ArrowDown", "head"), ("ArrowDown", "doc0"), ("ArrowRight", "notes"), ("ArrowLeft", "doc0")]
    for key, name in [*steps, ("ArrowUp", "head"), ("ArrowUp", "head")]:
        page.keyboard.press(key)
        assert heading(page) == name
    small = view(page)
    page.keyboard.press("+")
    settle(page)
    assert view(page).cell > small.cell
    page.keyboard.press("-")
    settle(page)
    assert view(page) == small
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help") and heading(page) == "head"


HOSTILE = (
    "</script><script>window.hacked = 1; alert(1)</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!-- ]]> <![CDATA[ &lt;b&gt; {{script}} ${window.hacked = 1}",
    "\u202eevil\u2066\u200b\x00\x1b[31m\x7f\u2028\u2029 \u05d0\u05d1 'quotes\" `ticks` \\u003cscript>",
    "long" * 500,
    "\"></title><svg onload='window.hacked = 1'>",
)
HOSTILE_NAMES = ("__proto__", "constructor", "toString", "hasOwnProperty", "a.b-c", "prototype")


def test_hostile_names_and_texts_stay_text(browser: Browser):
    chunks = list[Chunk]()
    for name, text in zip(HOSTILE_NAMES, HOSTILE, strict=True):
        how = Generate(2, stop=("</script><script>window.hacked = 1</script>",)) if not chunks else None
        chunks.append(Chunk(text, name=name, parents=chunks[-1:], generate=how))
    title = HOSTILE[-1] + HOSTILE[0]
    bundle = compiled(*chunks)
    output = {"text": HOSTILE[1], "token_ids": bundle.input_ids[bundle.span("a.b-c")][-3:].tolist()}
    page = browser.open(bundle, title=title, outputs={"a.b-c": output})
    assert page.title() == title
    assert page.inner_text("#title") == title
    assert HOSTILE[1] in page.inner_text("#panel")
    for name, text in zip(HOSTILE_NAMES, HOSTILE, strict=True):
        page.fill("#search", name)
        page.press("#search", "Enter")
        settle(page)
        assert heading(page) == name
        shown = page.evaluate(
            "[...document.querySelectorAll('.text .token')].map(one => one.textContent).join('')"
        )
        assert shown.replace("·", " ").startswith(text[:6]) or text[0] == "\u202e"
    page.fill("#search", "toString")
    page.press("#search", "Enter")
    page.fill("#search", HOSTILE_NAMES[3])
    page.press("#search", "Enter")
    assert page.inner_text(".text").startswith("··⟨202E⟩") and "␀␛[31m⟨007F⟩" in page.inner_text(".text")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.evaluate("document.querySelectorAll('img, svg[onload], main script').length") == 0


def test_the_policy_forbids_what_escaping_would_let_through(chromium: Any, tmp_path: Path):
    html = page_html(page_data(six_chunks(), tokenizer(), title="graph"))
    path = tmp_path / "page.html"
    path.write_text(html.replace("<main>", "<script>window.hacked = 1</script><main>"), encoding="utf-8")
    page = chromium.new_page()
    said = list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert any("Content Security Policy" in text for text in said)
    page.close()


def ran() -> tuple[Bundle, dict[str, dict[str, Any]]]:
    bundle = six_chunks()
    outputs = {
        "notes": {
            "text": "yes!",
            "token_ids": list(b"yes!"),
            "finish": "length",
            "log_probs": [-0.1, -3.0, 0.0, -0.7],
        },
        "question": {"text": "no", "token_ids": list(b"no"), "finish": "stop"},
    }
    generated = {name: output["token_ids"] for name, output in outputs.items()}
    return finished_bundle(bundle, generated, used_starts(bundle, generated), generated.keys()), outputs


def test_what_was_generated_is_shown_with_its_probabilities(browser: Browser):
    bundle, outputs = ran()
    page = browser.open(bundle, outputs=outputs)
    branches = page.locator(".branches li").all_inner_texts()
    assert [re.split(r"\s+", text.strip()) for text in branches] == [
        ["notes", "4", "tokens,", "to", "the", "limit", "yes!"],
        ["question", "2", "tokens,", "to", "a", "stop", "string", "no"],
    ]
    page.click(".branches .link:text-is('notes')")
    tokens = page.locator(".token")
    assert tokens.all_inner_texts() == list("Both:yes!")
    assert page.locator(".token.generated").all_inner_texts() == list("yes!")
    # e^-3 is 0.0498.
    assert "probability 4.98% (log -3.000)" in (tokens.nth(6).get_attribute("title") or "")
    doubts = page.eval_on_selector_all(
        ".token.measured", "all => all.map(one => one.style.getPropertyValue('--doubt'))"
    )
    np.testing.assert_allclose(
        [float(doubt) for doubt in doubts], 1 - np.exp([-0.1, -3.0, 0.0, -0.7]), atol=1e-3
    )
    page.click("#panel .link:text-is('question')")
    assert page.locator(".token.generated").all_inner_texts() == ["n", "o"]
    assert page.locator(".token.measured").count() == 0


def attended(bundle: Bundle) -> AttentionMass:
    """Two layers of three heads; the pairs of a chunk sum to 1."""
    attention = AttentionMass(
        bundle, np.zeros((2, 3, bundle.mask.num_edges + bundle.mask.num_chunks), np.float32)
    )
    numbers = np.random.default_rng(5).random(attention.mass.shape).astype(np.float32) + 0.05
    starts = attention.pair_offsets[:-1]
    sums = np.repeat(np.add.reduceat(numbers, starts, axis=2), np.diff(attention.pair_offsets), axis=2)
    return AttentionMass(bundle, (numbers / sums).astype(np.float32))


def test_attention_colours_the_mask_by_layer_and_head(browser: Browser):
    bundle = six_chunks()
    attention = attended(bundle)
    page = browser.open(bundle, attention=attention)
    q_name, k_name = "notes", "doc1"
    query, key = bundle.span(q_name).start, bundle.span(k_name).start
    at = bundle.index(q_name), bundle.index(k_name)
    for layer, head in ((None, None), (1, None), (1, 2), (None, 0)):
        page.select_option("#layer", "mean" if layer is None else str(layer))
        page.select_option("#head", "mean" if head is None else str(head))
        settle(page)
        page.mouse.move(5, 5)
        page.mouse.move(*view(page).point(query, key))
        expected = attention.matrix(layer, head)
        found = re.search(r"notes pays ([\d.]+)% to doc1$", status(page))
        assert found and float(found[1]) == pytest.approx(100 * expected[at], abs=0.06)
        edges = page.eval_on_selector_all(".edge", "all => all.map(one => Number(one.dataset.mass))")
        per_edge = sorted(float(expected[i, p]) for i in range(6) for p in bundle.parents(i))
        np.testing.assert_allclose(sorted(edges), per_edge, atol=1e-4)
        where = view(page)
        # The pair with the most attention has the last colour of the scale.
        q, k = np.unravel_index(expected.argmax(), expected.shape)
        x, y = where.point(bundle.span(int(q)).start, bundle.span(int(k)).start)
        assert colours_at(page, [(x - where.left, y - where.top)]) == [PALETTES["light"].scale[-1]]
    page.select_option("#colour", "mask")
    settle(page)
    where = view(page)
    x, y = where.point(query, key)
    assert colours_at(page, [(x - where.left, y - where.top)]) == [PALETTES["light"].parent]


def test_attention_of_tokens_colours_single_cells(browser: Browser):
    bundle = random_graph(7)
    n = len(bundle)
    numbers = np.random.default_rng(3).random((2, 3, n, n)).astype(np.float32) * bundle.dense_mask()
    tokens = numbers / numbers.sum(-1, keepdims=True)
    attention = replace(attended(bundle), tokens=tokens)
    page = browser.open(bundle, attention=attention)
    page.select_option("#colour", "tokens")
    page.select_option("#layer", "1")
    settle(page)
    shares = tokens[1].mean(0)
    where = view(page)
    query, key = map(int, np.unravel_index((shares * (shares < 1)).argmax(), shares.shape))
    page.mouse.move(*where.point(query, key))
    found = re.search(r"The token pays ([\d.]+)%", status(page))
    assert found and float(found[1]) == pytest.approx(100 * shares[query, key], abs=0.06)
    cells = [(q, k) for q in range(n) for k in range(n)]
    found = colours_at(
        page, [(where.x + (k + 0.5) * where.cell, where.y + (q + 0.5) * where.cell) for q, k in cells]
    )
    expected = [
        PALETTES["light"].masked if not shares[q, k] else scale_colour(shares[q, k] / shares.max())
        for q, k in cells
    ]
    for colour, wanted in zip(found, expected, strict=True):
        assert np.abs(np.subtract(rgb(colour), rgb(wanted))).max() <= 3


def rgb(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def scale_colour(share: float) -> str:
    """Colours are even steps of the root of a share."""
    scale = np.array([rgb(colour) for colour in PALETTES["light"].scale])
    place = np.sqrt(share) * (len(scale) - 1)
    red, green, blue = (np.interp(place, range(len(scale)), scale[:, i]) for i in range(3))
    return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"


def test_a_chunks_attention_is_listed(browser: Browser):
    bundle = six_chunks()
    attention = attended(bundle)
    page = browser.open(bundle, attention=attention)
    page.fill("#search", "notes")
    page.press("#search", "Enter")
    row = attention.matrix()[bundle.index("notes")]
    expected = sorted(
        ((float(mass), bundle.span_names[i]) for i, mass in enumerate(row) if mass), reverse=True
    )
    rows = [text.split() for text in page.locator(".bar-row").all_inner_texts()]
    assert [name for name, _ in rows] == [name for _, name in expected]
    assert [float(mass.rstrip("%")) for _, mass in rows] == pytest.approx(
        [100 * m for m, _ in expected], abs=0.06
    )


def test_without_a_tokenizer_ids_are_shown(browser: Browser):
    bundle = compiled(Chunk("ab", name="only"))
    page = browser.open(replace(bundle, input_ids=bundle.input_ids + 5000))
    page.keyboard.press("ArrowDown")
    assert page.locator(".token").all_inner_texts() == ["5097", "5098"]
    page.mouse.move(*view(page).point(1, 0))
    assert status(page) == "only[1] id 5098 may attend to only[0] id 5097: an earlier token of the same chunk"
