"""`legraph run` of one graph: what it prints, writes and refuses, and how it ends."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from legraph.bundle import Bundle
from legraph.cli import runreport
from legraph.cli.console import for_eyes
from legraph.compiler import compile_file
from legraph.graph import Generate
from legraph.kvdisk import DiskTier
from legraph.tokens import bytes_tokenizer
from tests.command_line import FORK, GRAPH, LATE, Call, Done, expected_outputs, fill, process

FORK_JOIN = Path(__file__).parent.parent / "examples" / "fork_join.yaml"


def test_run_as_json_gives_what_the_api_gives(fork: Path, model_folder: Path, call: Call) -> None:
    done = call("run", fork, "--model", model_folder, "--max-new-tokens", 6, "--json")
    assert done.code == 0
    data = done.data()
    assert list(data) == ["outputs", "timing", "tokens"]
    assert data["outputs"] == expected_outputs(fork, Generate(max_new_tokens=6))
    assert list(data["outputs"]) == ["north", "south"]
    assert list(data["timing"]) == ["load_s", "compile_s", "prefill_s", "decode_s", "total_s"]
    assert all(seconds >= 0 for seconds in data["timing"].values())
    # 10 + 7 + 7 bytes; two branches of six tokens, side by side: one pass for the prompt and first tokens.
    assert data["tokens"] == {"prompt": 24, "reused": 0, "generated": 12, "passes": 6}


def test_run_prints_the_text_of_one_chunk_alone(graph: Path, model_folder: Path, call: Call) -> None:
    text = expected_outputs(graph, Generate(max_new_tokens=24))["question"]["text"]
    done = call("run", graph, "--model", model_folder, "--max-new-tokens", 24)
    assert (done.code, done.out) == (0, text.strip("\n") + "\n")


def test_run_prints_several_chunks_by_name(fork: Path, model_folder: Path, call: Call) -> None:
    outputs = expected_outputs(fork, Generate(max_new_tokens=8))
    done = call("run", fork, "--model", model_folder, "--max-new-tokens", 8)
    assert done.out == "".join(f"[{name}] {output['text'].strip()}\n" for name, output in outputs.items())


def test_streamed_text_is_the_text(graph: Path, model_folder: Path, call: Call) -> None:
    text = expected_outputs(graph, Generate(max_new_tokens=24))["question"]["text"]
    done = call("run", graph, "--model", model_folder, "--max-new-tokens", 24, "--stream")
    assert (done.code, done.out) == (0, text + "\n")


def test_streamed_branches_say_whose_turn_it_is(fork: Path, model_folder: Path, call: Call) -> None:
    outputs = expected_outputs(fork, Generate(max_new_tokens=24))
    done = call("run", fork, "--model", model_folder, "--max-new-tokens", 24, "--stream")
    said = dict.fromkeys(outputs, "")
    turns = re.split(r"(?:^|\n)\[(north|south)\] ", done.out.removesuffix("\n"))
    assert turns[0] == ""
    for name, text in zip(turns[1::2], turns[2::2], strict=True):
        assert text, "a turn without a word"
        said[name] += text
    assert said == {name: output["text"] for name, output in outputs.items()}


def test_json_is_one_object_even_while_streaming(graph: Path, model_folder: Path, call: Call) -> None:
    done = call("run", graph, "--model", model_folder, "--max-new-tokens", 3, "--stream", "--json")
    assert done.data()["outputs"] == expected_outputs(graph, Generate(max_new_tokens=3))


def test_a_seed_says_what_is_drawn(fork: Path, model_folder: Path, call: Call) -> None:
    def drawn(*options: object) -> Any:
        done = call("run", fork, "--model", model_folder, "--max-new-tokens", 12, "--json", *options)
        return done.data()["outputs"]

    hot = Generate(12, (), 1.0, None, None, 5)
    first = drawn("--temperature", 1, "--seed", 5)
    assert first == expected_outputs(fork, hot)
    assert first == drawn("--temperature", 1, "--seed", 5)
    assert first != drawn("--temperature", 1, "--seed", 6)
    # --top-p and --top-k alone mean sampling too, at temperature 1; --top-k 1 leaves one choice.
    assert first == drawn("--top-p", 1, "--seed", 5)
    assert drawn("--top-k", 1, "--seed", 5) == expected_outputs(fork, Generate(12))


@pytest.mark.parametrize("attn", ["flex", "sdpa", "eager", "auto"])
def test_every_attention_gives_the_same_greedy_tokens(
    attn: str, fork: Path, model_folder: Path, call: Call
) -> None:
    done = call("run", fork, "--model", model_folder, "--attn", attn, "--max-new-tokens", 5, "--json")
    assert done.data()["outputs"] == expected_outputs(fork, Generate(max_new_tokens=5))


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_bundle_runs_like_its_graph(
    suffix: str, fork: Path, tmp_path: Path, model_folder: Path, call: Call
) -> None:
    bundle = tmp_path / f"b{suffix}"
    assert call("compile", fork, "--tokenizer", model_folder, "-o", bundle).code == 0
    done = call("run", bundle, "--model", model_folder, "--max-new-tokens", 5, "--json")
    assert done.data()["outputs"] == expected_outputs(fork, Generate(max_new_tokens=5))


def test_a_bundle_of_another_tokenizer_is_refused(
    tmp_path: Path, model_folder: Path, call: Call, word_tokenizer: Callable[..., Any]
) -> None:
    word_tokenizer({"The": 5, " fox": 6}).save_pretrained(tmp_path / "words")
    source = "legraph: 1\ntokenizer: bytes\nchunks: [{name: a, text: The fox}]"
    bundle = tmp_path / "b.npz"
    call("compile", "-", "--tokenizer", tmp_path / "words", "-o", bundle, stdin=source)
    done = call("run", bundle, "--model", model_folder)
    assert (done.code, done.out) == (2, "")
    assert "compile the graph again with the model's tokenizer" in done.err


def test_the_models_tokenizer_overrides_the_files(tmp_path: Path, model_folder: Path, call: Call) -> None:
    path = tmp_path / "named.yaml"
    path.write_text(GRAPH.replace("tokenizer: bytes", "tokenizer: no/such-tokenizer"))
    done = call("run", path, "--model", model_folder, "--max-new-tokens", 2, "--json")
    assert done.data()["tokens"] == {"prompt": 54, "reused": 0, "generated": 2, "passes": 2}


def test_a_broken_graph_is_reported_before_a_model_is_looked_for(broken: Path, call: Call) -> None:
    assert "unknown parent 'docc'" in call("run", broken, "--model", "/no/such/model").err


def test_a_model_folder_that_is_not_there(graph: Path, tmp_path: Path, call: Call) -> None:
    done = call("run", graph, "--model", tmp_path / "nowhere")
    assert (done.code, done.out) == (1, "")
    assert "cannot be loaded" in done.err
    assert "\n  hint: give a folder" in done.err


def test_a_model_folder_without_weights(graph: Path, tmp_path: Path, call: Call) -> None:
    bytes_tokenizer().save_pretrained(tmp_path / "empty")
    done = call("run", graph, "--model", tmp_path / "empty")
    assert (done.code, done.out) == (1, "")
    assert "\n  hint: give a folder with config.json and model.safetensors" in done.err


def test_a_device_that_is_not_there(graph: Path, model_folder: Path, call: Call) -> None:
    done = call("run", graph, "--model", model_folder, "--device", "cuda:99")
    assert (done.code, done.out) == (1, "")
    assert "device 'cuda:99' cannot be used here" in done.err


def test_positions_beyond_the_models_are_refused(model_folder: Path, call: Call) -> None:
    source = "legraph: 1\ntokenizer: bytes\nchunks: [{name: a, text: abc, start: 4094}]"
    done = call("run", "-", "--model", model_folder, stdin=source)
    assert (done.code, done.out) == (1, "")
    assert "the graph uses position 4096, and the model knows positions up to 4095" in done.err
    assert "\n  hint: " in done.err


def test_a_stdout_that_lacks_a_character_gets_it_escaped(
    graph: Path, model_folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The random model writes broken characters, which ASCII cannot hold."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert call("run", graph, "--model", model_folder, "--json").code == 0
    outputs = json.loads(raw.getvalue())["outputs"]
    assert not outputs["question"]["text"].isascii()
    assert outputs == expected_outputs(graph, Generate())


def test_a_run_from_the_shell(graph: Path, model_folder: Path) -> None:
    """The libraries that load a model have much to say; nothing of it may reach the user."""
    done = process("run", graph, "--model", model_folder, "--max-new-tokens", 24)
    text = expected_outputs(graph, Generate(max_new_tokens=24))["question"]["text"]
    assert done == Done(0, text.strip("\n") + "\n", "")


def test_a_hub_id_that_cannot_be_reached_gives_one_error(graph: Path) -> None:
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = process("run", graph, "--model", "no-such-user/no-such-model", env=env)
    assert (done.code, done.out) == (1, "")
    first, *rest = done.err.splitlines()
    assert first.startswith("error: ") and "'no-such-user/no-such-model' cannot be loaded" in first
    assert len(rest) == 1 and rest[0].startswith("  hint: ")


def test_a_bundle_is_looked_at_before_a_model_is_loaded(tmp_path: Path, call: Call) -> None:
    done = call("run", tmp_path / "missing.npz", "--model", "/no/such/model")
    assert (done.code, done.err) == (2, f"error: {tmp_path / 'missing.npz'}: no such file\n")


def test_a_model_folder_that_is_not_there_is_called_so(graph: Path, call: Call) -> None:
    done = call("run", graph, "--model", "/no/such/model")
    assert done.code == 1
    assert done.err.startswith("error: model '/no/such/model' cannot be loaded: no such folder\n  hint: ")


WITHOUT_COMPILER = """
import sys
import legraph
from legraph.engine import Engine
Engine.prefill_attention = lambda self, bundle: "flex"
engine = Engine.load(sys.argv[1], attn=sys.argv[2])
print(engine.run(legraph.compile_file(sys.argv[3], engine.tokenizer)).outputs["question"].token_ids)
"""


@pytest.mark.parametrize("attn", ["flex", "auto"])
def test_without_a_compiler_auto_takes_another_way_and_flex_says_so(
    attn: str, graph: Path, model_folder: Path, tmp_path: Path
) -> None:
    env = os.environ | {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WITHOUT_COMPILER, str(model_folder), attn, str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if attn == "flex":
        assert done.returncode == 1
        assert "legraph.errors.ModelError: flex attention cannot be compiled here" in done.stderr
        assert "or use --attn sdpa" in done.stderr
    else:
        expected = expected_outputs(graph, Generate())["question"]["token_ids"]
        assert done.stdout.strip() == str(tuple(expected))


# Its options.


def test_help_names_every_option(call: Call) -> None:
    said = call("run", "--help").out
    assert "GRAPH|BUNDLE..." in said and ".jsonl of" in said
    for option in (
        "--kv DIR",
        "--kv-bytes SIZE",
        "--explain-cache",
        "--save OUT",
        "--prefill-tokens",
        "--stream",
        "--json",
        "--model M",
    ):
        assert option in said


@pytest.mark.parametrize("num_tokens", [1, 7])
def test_prefill_in_small_passes_gives_the_same(
    num_tokens: int, fork: Path, model_folder: Path, call: Call
) -> None:
    options = ["--model", model_folder, "--max-new-tokens", 6, "--json"]
    data = call("run", fork, "--prefill-tokens", num_tokens, *options).data()
    assert data["outputs"] == expected_outputs(fork, Generate(max_new_tokens=6))
    # 24 tokens of text: in whole passes of one, or at least four of seven, before the last of six tokens.
    assert data["tokens"]["passes"] >= -(-24 // num_tokens) + 5


# --save


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_what_is_saved_is_text_and_generated_tokens_and_runs_again(
    suffix: str, fork: Path, tmp_path: Path, model_folder: Path, call: Call
) -> None:
    saved = tmp_path / f"saved{suffix}"
    options = ["--model", model_folder, "--json", "--max-new-tokens"]
    outputs = call("run", fork, *options, 6, "--save", saved).data()["outputs"]
    assert outputs == expected_outputs(fork, Generate(max_new_tokens=6))
    before, after = compile_file(fork), Bundle.load(saved)
    assert after.span_names == before.span_names
    for name in before.span_names:
        generated = outputs[name]["token_ids"] if name in outputs else []
        assert after.input_ids[after.span(name)].tolist() == [
            *before.input_ids[before.span(name)].tolist(),
            *generated,
        ]
        assert after.parents(name).tolist() == before.parents(name).tolist()
    # 10 of the task, then the branches side by side: 7 of text and 6 of generated tokens each.
    assert after.position_ids.tolist() == [*range(10), *range(10, 23), *range(10, 23)]
    # Six tokens and four more are the ten that are generated in one go.
    more = call("run", saved, *options, 4).data()["outputs"]
    whole = expected_outputs(fork, Generate(max_new_tokens=10))
    for name in ("north", "south"):
        assert outputs[name]["token_ids"] + more[name]["token_ids"] == whole[name]["token_ids"]


def test_saving_changes_nothing_that_is_printed(graph: Path, model_folder: Path, call: Call) -> None:
    saved = graph.with_suffix(".npz")
    plain = call("run", graph, "--model", model_folder)
    assert call("run", graph, "--model", model_folder, "--save", saved) == plain
    assert len(Bundle.load(saved)) > 54


@pytest.mark.parametrize("others", ["two graphs", "rows"])
def test_one_graph_is_saved_not_several(
    others: str, graph: Path, fork: Path, tmp_path: Path, call: Call
) -> None:
    sources = [graph, fork] if others == "two graphs" else [tmp_path / "rows.jsonl"]
    done = call("run", *sources, "--save", tmp_path / "out.npz")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: --save keeps one graph, and there are several\n  expected: one graph\n"


def test_a_place_that_cannot_be_written_to_is_refused_before_the_run(
    graph: Path, small_disk: Path, call: Call
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = call("run", graph, "--model", "/no/such/model", "--save", small_disk / "out.npz")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {small_disk}/out.npz: cannot be written: permission denied\n")


def test_a_full_disk_loses_the_bundle_but_not_the_text(
    graph: Path, small_disk: Path, model_folder: Path, call: Call
) -> None:
    fill(small_disk)
    done = call("run", graph, "--model", model_folder, "--save", small_disk / "out.npz")
    assert done.code != 0
    assert done.out == call("run", graph, "--model", model_folder).out
    assert done.err == f"error: {small_disk}/out.npz: cannot be written: No space left on device\n"
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_run_that_fails_saves_nothing(tmp_path: Path, model_folder: Path, call: Call) -> None:
    path, saved = tmp_path / "late.yaml", tmp_path / "out.npz"
    path.write_text(LATE)
    for stream in ([], ["--stream"]):
        done = call("run", path, "--model", model_folder, "--save", saved, *stream)
        assert done.code == 1
        assert done.err.startswith("error: the graph uses position 4097")
        assert bool(done.out) == bool(stream) and not saved.exists()


# Ends before the end.


MANY = ["--max-new-tokens", 4000]


# Panels are drawn for every token, however fast they come.
PROGRAM = "from legraph.cli import console, main; console._SECONDS_PER_PICTURE = 0; main()"


def started(*arguments: object, stdout: int = PIPE, stderr: int = PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, "run", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | {"TERM": "xterm"}, stdout=stdout, stderr=stderr)


def read_until(wanted: bytes, file: int) -> bytes:
    """What a process writes up to a pattern, which it must write."""
    said = b""
    while not re.search(wanted, said):
        piece = os.read(file, 4096)
        assert piece, f"it ended before: {said!r}"
        said += piece
    return said


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """Two branches in which the tiny model goes round in circles, for minutes."""
    path = tmp_path / "endless.yaml"
    path.write_text(FORK.replace("North: ", "A: ").replace("South: ", "B: "))
    return path


def test_an_interrupted_stream_keeps_what_came(
    endless: Path, model_folder: Path, tmp_path: Path, call: Call
) -> None:
    """Partial text on stdout, a bundle with it, and a sound store."""
    saved, store = tmp_path / "saved.npz", tmp_path / "kv"
    running = started(endless, *MANY, "--model", model_folder, "--stream", "--save", saved, "--kv", store)
    assert running.stdout is not None
    said = read_until(rb"\[south\]", running.stdout.fileno())
    running.send_signal(signal.SIGINT)
    rest, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"error: interrupted\n")
    text = (said + rest).decode(errors="replace")
    assert text.startswith("[north] ") and text.endswith("\n")
    assert len(Bundle.load(saved)) > len(compile_file(endless))
    assert call("cache", "verify", store).code == 0
    assert call("cache", "stat", store, "--json").data()["entries"] >= 3


def test_an_interrupt_between_two_passes_ends_the_run_too(
    endless: Path, model_folder: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while text is shown: nothing in the engine has failed, and the store still gets its chunks."""
    said = list[str]()

    def show(name: str, text: str, is_done: bool) -> None:
        said.append(text)
        if len(said) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(runreport, "in_turns", lambda has_headings: show)
    saved, store = tmp_path / "saved.npz", tmp_path / "kv"
    done = call("run", endless, *MANY, "--model", model_folder, "--stream", "--save", saved, "--kv", store)
    assert done == Done(130, "\n", "error: interrupted\n")
    assert len(Bundle.load(saved)) == len(compile_file(endless)) + 8
    assert len(DiskTier(store).keys()) == 3


@pytest.mark.slow
def test_an_interrupted_run_gives_what_it_had_as_json(endless: Path, model_folder: Path) -> None:
    """Nothing is printed before the end; the progress bar on stderr tells of the first tokens."""
    keeper, terminal = pty.openpty()
    try:
        running = started(endless, *MANY, "--model", model_folder, "--json", stderr=terminal)
        os.close(terminal)
        said = read_until(rb"[1-9]/\?", keeper)
        running.send_signal(signal.SIGINT)
        out, _ = running.communicate(timeout=60)
        said += drained(keeper)
    finally:
        os.close(keeper)
    assert running.returncode == 130, said
    assert b"interrupted" in said and b"Traceback" not in said
    data = json.loads(out)
    assert list(data["outputs"]) == ["north", "south"]
    for output in data["outputs"].values():
        assert output["finish"] == "cancelled"
        assert len(output["token_ids"]) < 4000
    assert data["tokens"]["generated"] == sum(len(o["token_ids"]) for o in data["outputs"].values()) > 0


def drained(file: int) -> bytes:
    said = b""
    # A terminal whose other side is closed ends with an error.
    with contextlib.suppress(OSError):
        while piece := os.read(file, 4096):
            said += piece
    return said


@pytest.mark.slow
def test_branches_in_panels_leave_the_plain_text_on_the_screen(call: Call) -> None:
    keeper, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        running = started(FORK_JOIN, "--stream", stdout=terminal)
        os.close(terminal)
        shown = re.sub("\x1b\\[[0-9;]*m", "", drained(keeper).decode())
        assert running.communicate(timeout=60)[1] == b""
    finally:
        os.close(keeper)
    assert running.returncode == 0
    # Side by side: in one line.
    assert re.search("─ amber ─[─╮╭]*─ silver ─", shown) and "─ join ─" in shown
    assert "\n".join(screen(shown)).rstrip() + "\n" == call("run", FORK_JOIN).out


def screen(said: str) -> list[str]:
    """The lines of a terminal that knows what panels use: moves, and erasing a line."""
    lines, row, column = [""], 0, 0
    for code, char in re.findall(r"(\x1b\[[?0-9;]*[A-Za-z])|(.)", said, re.DOTALL):
        if code:
            kind = code[-1]
            assert kind in "AKhl", code
            if kind == "A":
                row -= int(code[2:-1] or 1)
                assert row >= 0
            elif kind == "K":
                assert code == "\x1b[2K"
                lines[row] = ""
        elif char == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif char == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_model_gives_a_terminal_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "red \x1b[31m\x07 and\n\ttwo lines, \u00fcber"
    assert for_eyes(said) == said
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert for_eyes(said) == "red \ufffd[31m\ufffd and\n\ttwo lines, \u00fcber"
