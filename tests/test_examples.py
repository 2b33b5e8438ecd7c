"""The examples: each compiles and gives the answers its comment promises, twins are equal, scripts work."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import legraph
from legraph.bundle import NO_LABEL
from legraph.parse import parse_file

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
GRAPHS = sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*.toml")])
# Those that say every chunk by itself.
PLAIN = [path for path in GRAPHS if "${" not in path.read_text(encoding="utf-8")]
TWINS = sorted(path.stem for path in EXAMPLES.glob("*.toml"))
SCRIPTS = sorted(EXAMPLES.glob("[!_]*.py"))
SCHEMA = "../schemas/graph.schema.json"
RUN_PROMISE, LABEL_PROMISE = "legraph run prints:", "legraph compile labels:"


def name_of(path: Path) -> str:
    return path.name


def comment_of(path: Path) -> str:
    """The comment before the first key, without the line for editors, as one line of prose."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    until = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:until])


def promise_of(path: Path, promise: str) -> str | None:
    """What the end of the comment says a command gives, lines joined by spaces; None if it says nothing."""
    found = re.search(re.escape(promise) + r"(.*)$", comment_of(path))
    return " ".join(found[1].split()) if found else None


@cache
def engine() -> legraph.Engine:
    """The model that ships with legraph, loaded once."""
    return legraph.Engine.load()


@cache
def outputs_of(path: Path) -> dict[str, str]:
    """What each generating chunk of an example says."""
    result = engine().run(legraph.compile_file(path))
    assert all(output.finish == "end" for output in result.outputs.values()), "the model stops by itself"
    return {name: output.text.strip() for name, output in result.outputs.items()}


def printed(path: Path) -> list[str]:
    """The lines of `legraph run`, but for spaces at their ends."""
    outputs = outputs_of(path)
    if len(outputs) == 1:
        return list(outputs.values())
    return [f"[{name}] {text}" for name, text in outputs.items()]


def run_script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    # The bar that transformers draws while it loads a model.
    said = [line for line in done.stderr.splitlines() if line and not line.startswith("Loading weights")]
    assert (done.returncode, said) == (0, [])
    return done.stdout


def test_there_are_examples() -> None:
    assert len(GRAPHS) >= 16 and len(TWINS) >= 4 and len(SCRIPTS) >= 2
    assert (EXAMPLES / SCHEMA).resolve().is_file()


@pytest.mark.parametrize("path", PLAIN, ids=name_of)
def test_an_example_compiles_to_what_its_file_says(path: Path) -> None:
    """The file is read a second way, by plain YAML and TOML readers."""
    text = path.read_text(encoding="utf-8")
    data = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    bundle = legraph.compile_file(path)
    has_bos = data.get("bos", False)
    assert len(bundle.span_names) == len(data["chunks"]) + has_bos
    for chunk in data["chunks"]:
        parents = [bundle.span_names[i] for i in bundle.parents(chunk["name"])]
        assert sorted(parents) == sorted([*chunk.get("parents", []), *(["bos"] if has_bos else [])])
    generating = {chunk["name"] for chunk in data["chunks"] if "generate" in chunk}
    assert set(bundle.meta.generate) == generating
    leaves = {bundle.span_names[i] for i in bundle.leaves}
    completed = {chunk["name"] for chunk in data["chunks"] if "completion" in chunk}
    assert leaves <= generating | completed, "every leaf says how much it wants, or what it is to say"


@pytest.mark.parametrize("path", [each for each in GRAPHS if each not in PLAIN], ids=name_of)
def test_the_folder_example_holds_the_folder(path: Path) -> None:
    bundle = legraph.compile_file(path, variables={"key": "copper key of Sarn"})
    documents = sorted(file.stem for file in (EXAMPLES / "gates").iterdir())
    assert bundle.span_names == ("head", *documents, "question") and len(documents) == 3
    for name in documents:
        assert bundle.parents(name).tolist() == [0]
    assert bundle.parents("question").tolist() == [0, 1, 2, 3]
    assert engine().run(bundle).outputs["question"].text.strip() == "the west gate."


@pytest.mark.parametrize("name", TWINS)
def test_twins_give_equal_bundles(name: str, tmp_path: Path) -> None:
    saved = []
    for suffix in (".yaml", ".toml"):
        legraph.compile_file(EXAMPLES / f"{name}{suffix}").save(tmp_path / f"{suffix}.npz")
        saved.append((tmp_path / f"{suffix}.npz").read_bytes())
    assert saved[0] == saved[1]
    assert comment_of(EXAMPLES / f"{name}.yaml") == comment_of(EXAMPLES / f"{name}.toml")


@pytest.mark.parametrize("path", GRAPHS, ids=name_of)
def test_an_example_tells_editors_its_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    editor = {".yaml": f"# yaml-language-server: $schema={SCHEMA}", ".toml": f"#:schema {SCHEMA}"}
    assert first == editor[path.suffix]


@pytest.mark.parametrize("path", GRAPHS, ids=name_of)
def test_an_example_says_when_one_would_want_it(path: Path) -> None:
    comment = comment_of(path)
    assert len(comment.split()) >= 15
    assert re.search(r"One would want it|Start here", comment)


def test_an_example_is_there_to_be_run_or_to_be_learned_from() -> None:
    run = {path for path in GRAPHS if promise_of(path, RUN_PROMISE)}
    learned = {path for path in GRAPHS if promise_of(path, LABEL_PROMISE)}
    assert run | learned == set(GRAPHS)
    assert {path.name for path in learned} == {"train_labels.yaml"} and not run & learned


@pytest.mark.parametrize("path", [path for path in GRAPHS if promise_of(path, RUN_PROMISE)], ids=name_of)
def test_a_run_prints_what_the_comment_promises(path: Path) -> None:
    assert " ".join(printed(path)) == promise_of(path, RUN_PROMISE)


def test_a_command_prints_what_the_comment_promises(capsys: pytest.CaptureFixture[str]) -> None:
    """By way of the command line, which loads the model anew."""
    from legraph.cli import app

    path = EXAMPLES / "cut_edge.yaml"
    app(["run", str(path)], standalone_mode=False)
    assert capsys.readouterr().out.splitlines() == printed(path)


def test_without_the_needed_edge_the_answer_is_lost() -> None:
    bundle = legraph.compile_file(EXAMPLES / "cut_edge.yaml")
    ids = [bundle.input_ids[bundle.span(name)].tolist() for name in ("with_edge", "without_edge")]
    assert ids[0] == ids[1], "the same words"
    seen = [{bundle.span_names[i] for i in bundle.parents(name)} for name in ("with_edge", "without_edge")]
    assert seen == [{"amber", "silver"}, {"silver"}]
    answers = outputs_of(EXAMPLES / "cut_edge.yaml")
    assert answers == {"with_edge": "the north gate.", "without_edge": "unknown."}


def test_labels_are_what_the_comment_promises_and_what_the_model_knows() -> None:
    path = EXAMPLES / "train_labels.yaml"
    bundle = legraph.compile_file(path)
    assert bundle.labels is not None
    labelled = list[str]()
    for name in bundle.span_names:
        labels = bundle.labels[bundle.span(name)]
        if (labels != NO_LABEL).any():
            labelled.append(f"[{name}]{engine().tokenizer.decode(labels[labels != NO_LABEL].tolist())}")
    assert " ".join(labelled) == promise_of(path, LABEL_PROMISE)
    model: Any = engine().model
    model.set_attn_implementation("sdpa")
    assert model(**bundle.model_inputs(attn="sdpa")).loss.item() < 0.1


def test_the_readme_shows_what_commands_print() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\$ legraph run examples/(\S+)\n((?:[^`].*\n)+)", readme, re.MULTILINE)
    assert [name for name, _ in shown] == ["quickstart.yaml", "cut_edge.yaml"]
    for name, lines in shown:
        assert lines.splitlines() == printed(EXAMPLES / name)


def test_the_readme_gives_every_answer() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in readme.splitlines() if ".yaml)" in line]
    answers = {re.findall(r"\(([\w.]+yaml)\)", row[0])[0]: row[2] for row in rows}
    assert answers.pop("train_labels.yaml") == "(labels)"
    assert set(answers) == {path.name for path in EXAMPLES.glob("*.yaml")} - {"train_labels.yaml"}
    for name, answer in answers.items():
        assert answer.split(" / ") == list(outputs_of(EXAMPLES / name).values())


def test_the_readme_lists_every_example_and_links_to_nothing_that_is_not_there() -> None:
    linked = set(re.findall(r"\]\(([\w./]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert linked >= {path.name for path in [*GRAPHS, *SCRIPTS]}
    assert all((EXAMPLES / link).exists() for link in linked)


def test_the_compressed_document_goes_through_one_token() -> None:
    bundle = legraph.compile_file(EXAMPLES / "token_compression.yaml")
    gist = bundle.span("gist")
    assert gist.stop - gist.start == 1
    question = bundle.span("question")
    seen = bundle.dense_mask()[question.start]
    assert np.flatnonzero(seen).tolist() == [gist.start, question.start]


def test_explicit_positions_end_all_documents_at_the_question() -> None:
    bundle = legraph.compile_file(EXAMPLES / "explicit_positions.yaml")
    assert [bundle.position_ids[bundle.span(name)][-1] for name in ("amber", "silver")] == [127, 127]
    assert bundle.position_ids[bundle.span("question")][0] == 128


def test_few_shot_examples_that_see_all_before_are_plainly_causal() -> None:
    bundle = legraph.compile_file(EXAMPLES / "causal_few_shot.yaml")
    assert np.array_equal(bundle.dense_mask(), np.tri(len(bundle), dtype=bool))
    assert bundle.position_ids.tolist() == list(range(len(bundle)))


@pytest.mark.parametrize("num_documents", [500, 3])
def test_the_graph_of_many_documents_has_a_chunk_for_each(num_documents: int, tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    assert run_script("many_documents.py", "--documents", num_documents, "-o", path) == ""
    bundle = legraph.compile_file(path)
    documents = [f"doc{i}" for i in range(num_documents)]
    assert bundle.span_names == ("bos", *documents, "question")
    assert len(set(bundle.span_names)) == num_documents + 2
    assert bundle.parents("question").tolist() == list(range(num_documents + 1))
    assert all(bundle.parents(name).tolist() == [0] for name in documents)


def test_the_graph_of_many_documents_goes_to_standard_output_by_default(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text(run_script("many_documents.py", "--documents", 2))
    texts = ["A simple fact about year 1500", "A simple fact about year 1501", "What happened in"]
    assert parse_file(path).texts == tuple(texts)


def test_the_python_example_shows_what_it_promises() -> None:
    """Four chunks in a chain, 4 + 4 + 6 + 5 bytes, each of which sees the one before it."""
    said = run_script("python_api.py")
    lengths = [4, 4, 6, 5]
    chunk_of = [chunk for chunk, length in enumerate(lengths) for _ in range(length)]
    n = sum(lengths)
    rows = []
    for q in range(n):
        seen = [chunk_of[k] == chunk_of[q] - 1 or (chunk_of[k] == chunk_of[q] and k <= q) for k in range(n)]
        rows.append("  " + " ".join("#" if is_seen else "." for is_seen in seen))
    assert "The whole mask:\n" + "\n".join(rows) + "\n" in said
    assert f"input_ids      {list(b'one.two.three.four?')}" in said
    assert "Q sees X3: True   Q sees X1: False" in said
    assert "mask_mod agrees with the dense mask: True" in said
    assert said.splitlines()[0].startswith("Q  5 tokens")
    assert said.endswith("\nWhich gate does the silver key of Maren open? the south gate.\n")
