"""`legraph plot` and `legraph view`: what they write, where, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from legraph import Bundle
from legraph.attentionmass import AttentionMass
from tests.command_line import TEXTS, Call


@pytest.fixture(scope="module")
def observed(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a graph, what a run printed, and the attention that was paid."""
    import contextlib
    import io
    import sys

    from legraph.cli import main
    from tests.command_line import GRAPH

    folder = tmp_path_factory.mktemp("observed")
    (folder / "graph.yaml").write_text(GRAPH)
    printed = io.StringIO()
    options = ["--json", "--log-probs", "--max-new-tokens", "4", "--attention-tokens"]
    command = ["run", folder / "graph.yaml", "--model", model_folder, *options]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["legraph", *map(str, command), "--attention", str(folder / "a.npz")])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    (folder / "result.json").write_text(printed.getvalue())
    return folder


def page_data_of(path: Path) -> Any:
    """The JSON that a page carries."""
    (found,) = re.findall(
        r'<script[^>]*type="application/json"[^>]*>(.*?)</script>',
        path.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    return json.loads(found)


# run --attention, --log-probs


def test_a_run_writes_its_attention(observed: Path) -> None:
    attention = AttentionMass.load(observed / "a.npz")
    sums = np.add.reduceat(attention.mass, attention.pair_offsets[:-1], axis=2)
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert attention.bundle.span_names == ("doc1", "doc2", "question")
    assert attention.tokens is not None
    generated = json.loads((observed / "result.json").read_text())["outputs"]["question"]["token_ids"]
    assert attention.bundle.input_ids[-len(generated) :].tolist() == generated


def test_a_run_prints_log_probabilities(observed: Path) -> None:
    output = json.loads((observed / "result.json").read_text())["outputs"]["question"]
    assert len(output["log_probs"]) == len(output["token_ids"]) == 4
    assert all(value < 0 for value in output["log_probs"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--log-probs"], "--log-probs are printed with --json only"),
        (["--attention-tokens"], "--attention-tokens is about --attention"),
        (["--attention", "a.pt"], "--attention is 'a.pt'\n  expected: a name that ends in .npz"),
        (["--attention", "none/a.npz"], "no such folder"),
    ],
)
def test_what_a_run_refuses_before_it_loads_a_model(
    call: Call, graph: Path, options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("run", graph, *options, "--model", "./none")
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_attention_is_of_one_graph(call: Call, graph: Path, fork: Path) -> None:
    done = call("run", graph, fork, "--attention", "a.npz")
    assert (done.code, done.err.splitlines()[0]) == (
        2,
        "error: --attention keeps one graph, and there are several",
    )


# plot


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
@pytest.mark.parametrize("kind", ["mask", "dag", "attention"])
def test_plots_of_every_kind_in_every_format(
    call: Call, observed: Path, tmp_path: Path, kind: str, suffix: str
) -> None:
    source, out = observed / ("a.npz" if kind == "attention" else "graph.yaml"), tmp_path / f"x{suffix}"
    done = call("plot", source, "--kind", kind, "-o", out)
    assert (done.code, done.out, done.err) == (0, f"wrote {out}\n", "")
    heads = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}
    assert out.read_bytes().startswith(heads[suffix])


def test_a_plot_is_called_after_its_graph(call: Call, graph: Path) -> None:
    done = call("plot", graph)
    assert (done.code, done.out) == (0, f"wrote {graph.with_suffix('.mask.png')}\n")
    assert graph.with_suffix(".mask.png").is_file()


def test_token_texts_stand_in_the_picture(call: Call, graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    assert call("plot", graph, "--tokens", "--positions", "--blocks", "-o", out).code == 0
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", out.read_text(encoding="utf-8"))
    letters = [text for text in drawn if len(text) == 1 and text.isalpha()]
    # Of both axes.
    assert sorted(letters) == sorted(2 * [char for text in TEXTS for char in text if char.isalpha()])


def test_options_reach_the_picture(call: Call, observed: Path, tmp_path: Path) -> None:
    def drawn(*options: str) -> str:
        out = tmp_path / "x.svg"
        done = call("plot", observed / "a.npz", *options, "-o", out)
        assert (done.code, done.err) == (0, "")
        return out.read_text(encoding="utf-8")

    plain = drawn("--kind", "attention")
    for options in (
        ["--layer", "1"],
        ["--head", "0"],
        ["--tokens"],
        ["--theme", "dark"],
        ["--title", "A name"],
        ["--size", "1.5"],
    ):
        assert drawn("--kind", "attention", *options) != plain
    boxes = drawn("--kind", "dag", "--layout", "layered")
    assert drawn("--kind", "dag", "--layout", "layered", "--look", "daft") != boxes


@pytest.mark.parametrize(("format", "start"), [("dot", "digraph"), ("mermaid", "flowchart")])
def test_the_dag_as_text(call: Call, graph: Path, tmp_path: Path, format: str, start: str) -> None:
    printed = call("plot", graph, "--format", format)
    assert printed.code == 0 and printed.out.startswith(start)
    assert all(name in printed.out for name in ("doc1", "doc2", "question"))
    out = tmp_path / "graph.txt"
    done = call("plot", graph, "--format", format, "-o", out)
    assert (done.out, out.read_text()) == (f"wrote {out}\n", printed.out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--kind", "masc"],
            "--kind is 'masc'\n  expected: one of mask, dag, attention\n  hint: did you mean",
        ),
        (["--theme", "red"], "--theme is 'red'\n  expected: one of light, dark"),
        (["--format", "svg"], "--format is 'svg'\n  expected: one of dot, mermaid"),
        (["--kind", "dag", "--blocks"], "--blocks is about --kind mask\n  expected: not with --kind dag"),
        (["--layer", "0"], "--layer is about --kind attention\n  expected: not with --kind mask"),
        (["--kind", "attention", "--layout", "auto"], "--layout is about --kind dag"),
        (["--kind", "mask", "--format", "dot"], "--format is about --kind dag"),
        (["--kind", "dag", "--look", "round"], "--look is 'round'"),
        (["--kind", "dag", "--layout", "neato"], "--layout is 'neato'"),
        (["--kind", "dag", "--size", "3"], "--size is about --kind mask and attention"),
        (["--size", "0"], "a picture of 0 inches"),
        (["-o", "x.gif"], "x.gif: not a kind of picture that legraph writes"),
        (["-o", "none/x.png"], "none/x.png: cannot be written: no such folder"),
        (["--kind", "attention"], "graph.yaml holds no attention\n  expected: what 'legraph run GRAPH --att"),
        (["--format", "dot", "--theme", "dark"], "--format writes text, which has no colours"),
        (["--format", "dot", "-o", "x.png"], "x.png: --format dot is text"),
        (["--format", "dot", "-o", "graph.yaml"], "graph.yaml is an input, and would be written over"),
    ],
)
def test_what_plot_refuses(
    call: Call, graph: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(graph.parent)
    before = sorted(graph.parent.iterdir())
    done = call("plot", graph, *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert sorted(graph.parent.iterdir()) == before


def test_a_bundle_without_attention_has_none_to_plot(call: Call, graph: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.npz"
    assert call("compile", graph, "-o", bundle).code == 0
    done = call("plot", bundle, "--kind", "attention", "-o", tmp_path / "x.png")
    assert done.code == 2 and "holds no attention" in done.err


def test_token_texts_have_no_room_in_a_large_mask(call: Call, tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_text(f"legraph: 1\ntokenizer: bytes\nchunks:\n  - {{name: a, text: {'x' * 65}}}\n")
    done = call("plot", large, "--tokens")
    assert (done.code, done.err) == (0, "note: texts of tokens are shown up to 64 tokens\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("graph.yaml", "graph.yaml: a page is HTML\n  expected: a name that ends in .html"),
        ("none/x.html", "none/x.html: cannot be written: no such folder"),
        ("graph.html", "graph.html is an input, and would be written over"),
    ],
)
def test_a_page_is_not_written_over_an_input(
    call: Call, graph: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(graph.parent)
    source = graph.name
    if name == "graph.html":
        source = graph.rename("graph.html").name
    before = Path(source).read_bytes()
    done = call("view", source, "-o", name)
    assert done.code == 2 and message in done.err
    assert Path(source).read_bytes() == before


def test_standard_input_needs_a_name_for_the_picture(call: Call, graph: Path, tmp_path: Path) -> None:
    text = graph.read_text()
    done = call("plot", "-", stdin=text)
    assert done.code == 2 and "a graph from standard input needs -o\n  expected: -o OUT.mask.png" in done.err
    assert call("plot", "-", "-o", tmp_path / "x.png", stdin=text).code == 0


def test_without_matplotlib_a_plot_says_what_to_install(
    call: Call, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = call("plot", graph)
    assert done.code == 2 and "pip install 'legraph[viz]'" in done.err


# view


def test_a_page_of_a_graph(call: Call, graph: Path) -> None:
    done = call("view", graph)
    path = graph.with_suffix(".html")
    assert (done.code, done.out, done.err) == (0, f"wrote {path}\n", "")
    data = page_data_of(path)
    assert (data["title"], data["names"]) == ("graph.yaml", ["doc1", "doc2", "question"])
    assert data["texts"]["chunks"] == TEXTS
    assert (data["outputs"], data["attention"]) == (None, None)


def test_a_page_with_a_result(call: Call, observed: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.html"
    arguments = ["--title", 'a "title"', "-o", out]
    done = call("view", observed / "graph.yaml", observed / "result.json", *arguments)
    assert (done.code, done.err) == (0, "")
    data, result = page_data_of(out), json.loads((observed / "result.json").read_text())
    assert data["title"] == 'a "title"'
    assert [entry["text"] for entry in data["outputs"]] == [result["outputs"]["question"]["text"]]
    assert data["totals"]["num_tokens"] == sum(map(len, TEXTS)) + 4


@pytest.mark.parametrize("with_result", [False, True])
def test_a_page_with_attention(call: Call, observed: Path, tmp_path: Path, with_result: bool) -> None:
    out = tmp_path / "p.html"
    results = [observed / "result.json"] if with_result else []
    done = call("view", observed / "a.npz", *results, "-o", out)
    assert (done.code, done.err) == (0, "")
    data = page_data_of(out)
    assert data["attention"] is not None
    # What was generated stands in the file already, and is not put in twice.
    assert data["totals"]["num_tokens"] == sum(map(len, TEXTS)) + 4
    assert (data["outputs"] is None) != with_result


def test_a_bundle_that_was_saved_after_the_run(call: Call, observed: Path, tmp_path: Path) -> None:
    saved, out = tmp_path / "saved.npz", tmp_path / "p.html"
    AttentionMass.load(observed / "a.npz").bundle.save(saved)
    assert call("view", saved, observed / "result.json", "-o", out).code == 0
    assert page_data_of(out)["totals"]["num_tokens"] == len(Bundle.load(saved))


def test_a_page_can_be_opened(call: Call, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert call("view", graph, "--open").code == 0
    assert opened == [graph.with_suffix(".html").as_uri()]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("none.json", "none.json: cannot be read: No such file or directory"),
        ("graph.yaml", "graph.yaml: is not JSON"),
        ("other.json", "other.json: the graph has no chunk 'questions'"),
    ],
)
def test_what_view_refuses(
    call: Call, graph: Path, result: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(graph.parent)
    other = {"outputs": {"questions": {"text": "", "token_ids": []}}, "tokens": {"prompt": 54}}
    Path("other.json").write_text(json.dumps(other))
    done = call("view", graph, result)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not graph.with_suffix(".html").exists()
