"""The command line: what each verb prints, where, and with which exit code.

Where the process itself is the point (exit codes, pipes, signals, what is imported) a real one is started;
everything else calls `main` here, with real files. `run` has tests of its own: of one graph in
test_cli_run.py, of several in test_cli_batch.py, with a store in test_cli_kv.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import legraph
from legraph.bundle import Bundle
from legraph.show import summary
from legraph.tokens import bytes_tokenizer
from tests.command_line import BROKEN, GRAPH, TEXTS, Call, Done, interrupted, process

VERBS = [
    "compile",
    "show",
    "plot",
    "view",
    "check",
    "run",
    "batch",
    "explain",
    "lint",
    "diff",
    "verify",
    "score",
    "pack",
    "watch",
    "init",
    "import",
    "schema",
]

# Help, versions, wrong commands.


def test_help_names_every_verb(call: Call) -> None:
    done = call("--help")
    assert done.code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", done.out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, call: Call) -> None:
    done = call(verb, "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: legraph {verb}")


def test_the_version_is_the_packages(call: Call) -> None:
    assert call("--version") == Done(0, f"legraph {legraph.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Usage: legraph"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frobnicate"], "No such option: --frobnicate"),
        (["check"], "Missing argument"),
        (["show"], "Missing argument"),
        (["compile", "graph.yaml", "--tokeniser", "bytes"], "No such option: --tokeniser"),
        (["compile", "graph.yaml", "--mask"], "requires an argument"),
        (["schema", "extra"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_on_stderr(arguments: list[str], said: str, call: Call) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compile", "--mask", "dens"], "--mask is 'dens'\n  expected: one of auto, dense, compact\n"),
        (["compile", "--order", "localty"], "hint: did you mean 'locality'?"),
        (["show", "--order", "localty"], "hint: did you mean 'locality'?"),
        (["run", "--attn", "flax"], "hint: did you mean 'flex'?"),
        (["run", "--dtype", "float"], "--dtype is 'float'"),
        (["run", "--top-p", "0"], "--top-p is 0.0\n  expected: more than 0, at most 1"),
        (["run", "--top-p", "nan"], "--top-p is nan"),
        (["run", "--top-k", "0"], "--top-k"),
        (["run", "--temperature", "-1"], "--temperature"),
        (["run", "--temperature", "inf"], "--temperature is inf"),
        (["run", "--prefill-tokens", "0"], "--prefill-tokens"),
        (
            ["run", "--kv-bytes", "1GB"],
            "--kv-bytes is about a store, and there is none\n  expected: --kv DIR",
        ),
        (["run", "--explain-cache"], "--explain-cache is about a store, and there is none"),
        (["run", "--save", "out.txt"], "out.txt: unknown kind of bundle\n  expected: a name that ends in"),
        (["run", "--save", "no/where/out.npz"], "no/where/out.npz: cannot be written: no such folder"),
        (["run", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["run", "--seed", "-1"], "--seed"),
        (["run", "--max-new-tokens", "many"], "--max-new-tokens"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_read(
    arguments: list[str], said: str, call: Call, tmp_path: Path
) -> None:
    done = call(arguments[0], tmp_path / "never-read.yaml", *arguments[1:])
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "no such file" not in done.err


# What is imported.

PROBE = """
import sys
from legraph.cli import main
try:
    main()
except SystemExit as ended:
    heavy = {"torch", "transformers", "tokenizers", "numpy"} & set(sys.modules)
    print(ended.code, *sorted(heavy), file=sys.stderr)
"""


def imported(*arguments: object) -> list[str]:
    """The exit code of a command, and which heavy packages its process has imported."""
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    last = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]
    return last.split()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["schema"],
        ["check", "--help"],
        ["run", "--help"],
        ["cache", "ls", "--help"],
    ],
)
def test_what_needs_no_graph_imports_nothing_heavy(arguments: list[str]) -> None:
    assert imported(*arguments) == ["0"]


def test_checking_imports_nothing_heavy(graph: Path, broken: Path) -> None:
    assert imported("check", graph) == ["0"]
    assert imported("check", "--json", broken, graph) == ["2"]


def test_compiling_does_not_import_the_model_side_of_legraph_but_numpy(graph: Path) -> None:
    """Also shows that the probe above sees what is imported."""
    code, *heavy = imported("compile", graph)
    assert code == "0"
    assert {"numpy", "transformers"} <= set(heavy)


def test_bad_input_of_a_run_and_a_list_of_a_store_load_no_torch(broken: Path, tmp_path: Path) -> None:
    """That a store with entries needs none either, test_cli_cache.py shows."""
    (tmp_path / "rows.jsonl").write_text("{}")
    for arguments in (["run", broken], ["run", tmp_path / "rows.jsonl", broken], ["cache", "ls", tmp_path]):
        code, *heavy = imported(*arguments)
        assert code == ("0" if arguments[0] == "cache" else "2")
        assert not {"torch", "transformers"} & set(heavy)


LOUDNESS = """
import logging, sys
from legraph.cli import main
try:
    main()
except SystemExit:
    names = ("huggingface_hub", "transformers")
    print(*(logging.getLevelName(logging.getLogger(name).level) for name in names), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("asked", "loudness"), [({}, "ERROR ERROR"), ({"HF_HUB_VERBOSITY": "info"}, "INFO ERROR")]
)
def test_libraries_are_quiet_unless_the_user_wants_to_hear_them(
    asked: dict[str, str], loudness: str, graph: Path
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")} | asked
    command = [sys.executable, "-c", LOUDNESS, "show", str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stderr == f"{loudness}\n"


# schema


def test_schema_prints_the_file_in_schemas(call: Call) -> None:
    done = call("schema")
    assert (done.code, done.err) == (0, "")
    file = Path(__file__).parent.parent / "schemas" / "graph.schema.json"
    assert done.data() == json.loads(file.read_text())


# check


def test_check_of_a_good_file(graph: Path, call: Call) -> None:
    assert call("check", graph) == Done(0, f"{graph}: ok\n", "")


def test_check_needs_no_tokenizer_that_exists(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "named.yaml"
    path.write_text(GRAPH.replace("tokenizer: bytes", "tokenizer: no/such-tokenizer"))
    assert call("check", path).code == 0


def test_check_reports_every_problem_of_every_file(graph: Path, broken: Path, tmp_path: Path) -> None:
    """In a process of its own: the exit code is what scripts go by."""
    missing = tmp_path / "missing.yaml"
    done = process("check", broken, graph, missing)
    assert (done.code, done.out) == (2, f"{graph}: ok\n")
    for said in (
        f"{broken}:5:15: unknown parent 'docc'",
        f"{broken}:6:11: chunk name 'doc1' is taken by chunk number 1",
        f"{broken}:7:11: 'text' must be a string, not the number 7",
        f"{missing}: no such file",
    ):
        assert said in done.err


def test_check_as_json(graph: Path, broken: Path, call: Call) -> None:
    done = call("check", "--json", graph, broken)
    assert (done.code, done.err) == (2, "")
    data = done.data()
    assert data["ok"] is False
    good, bad = data["files"]
    assert good == {"file": str(graph), "ok": True, "problems": []}
    assert (bad["file"], bad["ok"]) == (str(broken), False)
    assert [(problem["line"], problem["column"]) for problem in bad["problems"]] == [
        (5, 15),
        (6, 11),
        (7, 11),
    ]
    assert bad["problems"][0] == {
        "message": "unknown parent 'docc'",
        "expected": "the name of a chunk in this file",
        "hint": "did you mean 'doc1'?",
        "line": 5,
        "column": 15,
    }


def test_check_as_json_of_good_files_only(graph: Path, fork: Path, call: Call) -> None:
    done = call("check", graph, fork, "--json")
    assert done.code == 0
    assert done.data()["ok"] is True


def test_check_of_standard_input(call: Call) -> None:
    assert call("check", "-", stdin=GRAPH) == Done(0, "-: ok\n", "")
    done = call("check", "-", stdin=BROKEN)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: <stdin>:5:15: unknown parent 'docc'")


# compile


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_compile_writes_a_bundle_that_loads(suffix: str, graph: Path, tmp_path: Path, call: Call) -> None:
    output = tmp_path / f"out{suffix}"
    done = call("compile", graph, "-o", output)
    assert done == Done(0, f"{output}: 54 tokens, 3 chunks, 2 edges\n", "")
    bundle = Bundle.load(output)
    assert bundle.input_ids.tolist() == list("".join(TEXTS).encode())
    assert bundle.position_ids.tolist() == [*range(18), *range(18), *range(18, 36)]
    assert bundle.span_names == ("doc1", "doc2", "question")
    assert bundle.parents("question").tolist() == [0, 1]


def test_without_o_the_bundle_stands_beside_its_graph(graph: Path, call: Call) -> None:
    assert call("compile", graph).out.startswith(f"{graph.with_suffix('.npz')}: 54 tokens")
    assert len(Bundle.load(graph.with_suffix(".npz"))) == 54


def test_compile_as_json(graph: Path, call: Call) -> None:
    data = call("compile", graph, "--json").data()
    bundle = Bundle.load(graph.with_suffix(".npz"))
    assert data == {
        "output": str(graph.with_suffix(".npz")),
        "tokens": 54,
        "chunks": 3,
        "edges": 2,
        "leaves": 1,
        "tokenizer": "bytes",
        "source_sha256": bundle.meta.source_sha256,
    }


@pytest.mark.parametrize(
    ("num_tokens", "mode", "is_stored"),
    [
        (100, "auto", True),
        (4096, "auto", True),
        (4097, "auto", False),
        (100, "compact", False),
        (4097, "dense", True),
    ],
)
def test_the_dense_mask_is_stored_as_asked(
    num_tokens: int, mode: str, is_stored: bool, tmp_path: Path, call: Call
) -> None:
    source = f"legraph: 1\ntokenizer: bytes\nchunks: [{{name: a, text: {'x' * num_tokens}}}]"
    output = tmp_path / "out.npz"
    assert call("compile", "-", "-o", output, "--mask", mode, stdin=source).code == 0
    with np.load(output, allow_pickle=False) as file:
        assert ("attention_mask" in file.files) == is_stored
        if is_stored:
            assert np.array_equal(file["attention_mask"], np.tri(num_tokens, dtype=bool))


def test_locality_puts_children_beside_their_parents(tmp_path: Path, call: Call) -> None:
    """Two chunks of 64 tokens fill a block of 128: a child beside its parent needs no other block."""
    lines = [f"  - {{name: a{i}, text: {'a' * 64}}}" for i in range(4)]
    lines += [f"  - {{name: b{i}, text: {'b' * 64}, parents: [a{i}]}}" for i in range(4)]
    source = "\n".join(["legraph: 1", "tokenizer: bytes", "chunks:", *lines])
    names = {}
    for order in ("declared", "locality"):
        assert call("compile", "-", "--order", order, "-o", tmp_path / "o.npz", stdin=source).code == 0
        names[order] = " ".join(Bundle.load(tmp_path / "o.npz").span_names)
    assert names == {"declared": "a0 a1 a2 a3 b0 b1 b2 b3", "locality": "a0 b0 a1 b1 a2 b2 a3 b3"}


def test_another_process_writes_the_same_bytes(graph: Path, tmp_path: Path, call: Call) -> None:
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    call("compile", graph, "-o", here)
    env = os.environ | {"PYTHONHASHSEED": "1"}
    done = process("compile", "-", "-o", there, stdin=GRAPH, env=env)
    assert done == Done(0, f"{there}: 54 tokens, 3 chunks, 2 edges\n", "")
    assert here.read_bytes() == there.read_bytes()


def test_standard_input_needs_an_output_name(call: Call) -> None:
    done = call("compile", "-", stdin=GRAPH)
    assert (done.code, done.out) == (2, "")
    assert done.err == ("error: a graph from standard input needs -o\n  expected: -o OUT.npz or -o OUT.pt\n")


@pytest.mark.parametrize("name", ["out.txt", "out", "out.npz.gz", "out.NPZ"])
def test_an_unknown_kind_of_output_is_refused(name: str, graph: Path, tmp_path: Path, call: Call) -> None:
    done = call("compile", graph, "-o", tmp_path / name)
    assert (done.code, done.out) == (2, "")
    assert "expected: a name that ends in .npz or .pt" in done.err
    assert not (tmp_path / name).exists()


FAILING = {
    "broken graph": (BROKEN, [], 2, "unknown parent 'docc'"),
    "no such tokenizer": (GRAPH, ["--tokenizer", "{folder}/none"], 1, "hint: give a folder that holds"),
    "no bos token": (GRAPH + "bos: true\n", ["--tokenizer", "{folder}/plain"], 1, "has no BOS token"),
    "chunk without tokens": (GRAPH.replace("The owl says hoot.", ""), [], 2, "gives no token"),
}


@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_failing_compile_leaves_no_file_and_damages_none(
    case: str, suffix: str, tmp_path: Path, call: Call, word_tokenizer: Callable[..., Any]
) -> None:
    source, options, code, said = FAILING[case]
    word_tokenizer({"The": 0}).save_pretrained(tmp_path / "plain")
    options = [option.format(folder=tmp_path) for option in options]
    out = tmp_path / "out"
    out.mkdir()
    old = out / f"old{suffix}"
    old.write_bytes(b"what was here before")
    for name in (f"old{suffix}", f"new{suffix}"):
        done = call("compile", "-", *options, "-o", out / name, stdin=source)
        assert (done.code, done.out) == (code, "")
        assert said in done.err
    assert list(out.iterdir()) == [old]
    assert old.read_bytes() == b"what was here before"


def test_a_folder_that_is_not_there_is_named(graph: Path, tmp_path: Path, call: Call) -> None:
    done = call("compile", graph, "-o", tmp_path / "nowhere" / "out.npz")
    assert (done.code, done.out) == (2, "")
    assert "out.npz: cannot be written: No such file or directory" in done.err


def test_the_option_overrides_the_files_tokenizer(
    tmp_path: Path, call: Call, word_tokenizer: Callable[..., Any]
) -> None:
    word_tokenizer({"The": 5, " fox": 6}).save_pretrained(tmp_path / "words")
    source = "legraph: 1\ntokenizer: no/such-one\nchunks: [{name: a, text: The fox}]"
    done = call(
        "compile", "-", "--tokenizer", tmp_path / "words", "-o", tmp_path / "o.npz", "--json", stdin=source
    )
    assert done.data()["tokenizer"] == str(tmp_path / "words")
    assert Bundle.load(tmp_path / "o.npz").input_ids.tolist() == [5, 6]


# show


def test_show_draws_a_graph_and_its_bundles_alike(graph: Path, tmp_path: Path, call: Call) -> None:
    shown = call("show", graph)
    assert (shown.code, shown.err) == (0, "")
    # Three triangles of 18 * 19 / 2 pairs and two squares of 18 * 18, of 54 * 55 / 2 causal pairs.
    assert f"{3 * 171 + 2 * 324:,} visible of {54 * 55 // 2:,} causal pairs" in shown.out
    for text in TEXTS:
        assert f'"{text}"' in shown.out
    for suffix in (".npz", ".pt"):
        call("compile", graph, "-o", tmp_path / f"b{suffix}")
        assert call("show", tmp_path / f"b{suffix}") == shown
    assert call("show", "-", stdin=GRAPH) == shown


def test_show_as_json(graph: Path, call: Call) -> None:
    data = call("show", graph, "--json").data()
    assert data == json.loads(json.dumps(summary(legraph.compile_file(graph))))
    assert (data["num_tokens"], data["num_chunks"], data["num_edges"]) == (54, 3, 2)


def test_lines_in_a_pipe_are_not_cut_to_a_terminals_width(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(f"legraph: 1\ntokenizer: bytes\nchunks: [{{name: {'n' * 100}, text: short text}}]")
    assert call("show", path).out.splitlines()[0].endswith('"short text"')


def test_a_bundle_is_shown_without_its_tokenizer_and_with_one_that_is_given(
    tmp_path: Path, call: Call
) -> None:
    old, moved = tmp_path / "old", tmp_path / "moved"
    bytes_tokenizer().save_pretrained(old)
    bundle = tmp_path / "b.npz"
    source = "legraph: 1\ntokenizer: bytes\nchunks: [{name: a, text: The fox}]"
    assert call("compile", "-", "--tokenizer", old, "-o", bundle, stdin=source).code == 0
    old.rename(moved)
    assert call("show", bundle).out.splitlines()[0] == "a  7 tokens  at 0..6"
    shown = call("show", bundle, "--tokenizer", moved)
    assert shown.out.splitlines()[0] == 'a  7 tokens  at 0..6  "The fox"'


def test_a_bundles_order_is_not_changed_by_showing_it(graph: Path, call: Call) -> None:
    call("compile", graph)
    done = call("show", graph.with_suffix(".npz"), "--order", "locality")
    assert (done.code, done.out) == (2, "")
    assert "its token order is fixed" in done.err


@pytest.mark.parametrize("verb", ["show", "run"])
@pytest.mark.parametrize("name", ["x.npz", "x.pt"])
def test_what_is_not_a_bundle_is_the_users_mistake(
    verb: str, name: str, tmp_path: Path, call: Call, model_folder: Path
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really")
    model = ["--model", model_folder] if verb == "run" else []
    done = call(verb, tmp_path / name, *model)
    assert (done.code, done.out) == (2, "")
    assert f"{name}: is damaged" in done.err


@pytest.mark.parametrize("verb", ["check", "compile", "show", "run"])
def test_every_verb_reports_a_broken_graph_the_same_way(
    verb: str, broken: Path, model_folder: Path, call: Call
) -> None:
    model = ["--model", model_folder] if verb == "run" else []
    done = call(verb, broken, *model)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {broken}:5:15: unknown parent 'docc'\n")


# Processes of their own.


def with_closed_reader(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A command whose standard output is a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        # Buffered, as in a shell: what is left over is written while the process ends.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-m", "legraph.cli", *map(str, arguments)]
        return subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=env)
    finally:
        os.close(writer)


@pytest.mark.parametrize("verb", ["schema", "show", "--help"])
def test_a_reader_that_stops_reading_is_no_error(verb: str, graph: Path) -> None:
    done = with_closed_reader(verb, *([graph] if verb == "show" else []))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_stops_reading_does_not_hide_a_broken_file(graph: Path, broken: Path) -> None:
    done = with_closed_reader("check", graph, broken)
    assert done.returncode == 2
    assert "unknown parent 'docc'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_an_error(unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "legraph.cli", "schema"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_an_interrupt_ends_without_a_traceback(tmp_path: Path) -> None:
    """The command waits for a pipe that never says anything; its being open shows that it waits."""
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "legraph.cli", "check", str(pipe)]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    writer = open_for_writing(pipe, waiting)
    try:
        out, err = interrupted(waiting)
    finally:
        os.close(writer)
        waiting.kill()
        waiting.communicate()
    assert (waiting.returncode, out, err) == (130, "", "error: interrupted\n")


def open_for_writing(pipe: Path, reader: subprocess.Popen[str]) -> int:
    """The writing end of a named pipe, as soon as the process has opened the reading end."""
    while reader.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the process ended before it read anything")


@pytest.mark.parametrize("name", [".", "/", ""])
def test_what_has_no_file_name_is_no_graph(name: str, call: Call) -> None:
    done = call("compile", name)
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {name!r} is not a file\n  expected: a graph file\n"


def test_json_is_json_whatever_the_encoding_of_stdout(tmp_path: Path, model_folder: Path) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text("legraph: 1\nchunks: [{name: é, text: x}]", encoding="utf-8")
    done = process("check", path, "--json", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert not done.data()["ok"] and "é" in done.data()["files"][0]["problems"][0]["message"]
