"""`legraph run --kv`: what a second run finds, what is said of it, and what goes wrong around the store."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from legraph.graph import Generate
from legraph.kvdisk import DiskTier
from tests.command_line import Call, expected_outputs, fill
from tests.kv_files import file_of, temporary_files

# As for those who call the command: elsewhere in the tests a warning is an error.
pytestmark = pytest.mark.filterwarnings("default::legraph.kvdisk.KVStoreWarning")

SIX = Generate(max_new_tokens=6)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "kv"


@pytest.fixture
def six(model_folder: Path, call: Call) -> Call:
    """`call("run", ...)` with six tokens for each leaf."""
    return lambda *arguments, **options: call(
        "run", *arguments, "--model", model_folder, "--max-new-tokens", 6, **options
    )


def table(err: str) -> list[list[str]]:
    """The cells of a table on stderr."""
    return [re.split(r" {2,}", line.strip()) for line in err.splitlines()]


def entries(store: Path) -> list[Path]:
    tier = DiskTier(store)
    return [file_of(store, key) for key in sorted(tier.keys())]


# What is reused


def test_a_second_run_computes_nothing_that_the_first_has_kept(fork: Path, store: Path, six: Call) -> None:
    first = six(fork, "--kv", store, "--json").data()
    second = six(fork, "--kv", store, "--json").data()
    assert first["outputs"] == second["outputs"] == expected_outputs(fork, SIX)
    assert first["tokens"]["reused"] == 0
    # All of the task; of the branches, 7 tokens each, all but the last, which gives the first logits.
    assert second["tokens"] == first["tokens"] | {"reused": 10 + 6 + 6}


def test_explained_as_json_each_chunk_has_its_source(fork: Path, store: Path, six: Call) -> None:
    first, second = (six(fork, "--kv", store, "--json", "--explain-cache").data() for _ in range(2))
    assert list(second) == ["outputs", "timing", "tokens", "cache"]
    assert [(c["chunk"], c["origin"], c["tokens"], c["reused"]) for c in first["cache"]] == [
        ("task", "computed", 10, 0),
        ("north", "computed", 7, 0),
        ("south", "computed", 7, 0),
    ]
    assert [(c["chunk"], c["origin"], c["tokens"], c["reused"], c["shift"]) for c in second["cache"]] == [
        ("task", "disk", 10, 10, 0),
        ("north", "disk", 7, 6, 0),
        ("south", "disk", 7, 6, 0),
    ]
    # Two layers of four heads with 16 channels, keys and values, in float32.
    assert [c["bytes"] for c in second["cache"]] == [n * 2 * 4 * 16 * 2 * 4 for n in (10, 6, 6)]


def test_explained_as_text_the_table_goes_to_stderr_and_only_results_to_stdout(
    fork: Path, store: Path, six: Call
) -> None:
    plain = six(fork).out
    six(fork, "--kv", store)
    for stream in ([], ["--stream"]):
        done = six(fork, "--kv", store, "--explain-cache", *stream)
        assert done.code == 0
        assert done.out == six(fork, *stream).out
        heading, *lines, sums = table(done.err)
        assert heading == ["chunk", "from", "tokens", "reused", "bytes", "moved by"]
        assert [line[:4] for line in lines] == [
            ["task", "disk", "10", "10"],
            ["north", "disk", "7", "6"],
            ["south", "disk", "7", "6"],
        ]
        assert sums[:3] == ["22 of 24 tokens reused", "24", "22"]
    assert plain == six(fork, "--kv", store).out


def test_tables_of_several_graphs_have_their_names(fork: Path, graph: Path, store: Path, six: Call) -> None:
    done = six(fork, graph, "--kv", store, "--explain-cache")
    assert done.code == 0
    assert re.findall(r"^(?:== .+ ==|chunk|task|doc1)", done.err, re.MULTILINE) == [
        f"== {fork} ==",
        "chunk",
        "task",
        f"== {graph} ==",
        "chunk",
        "doc1",
    ]


def test_graphs_that_run_together_find_what_others_have_kept(
    fork: Path, graph: Path, store: Path, six: Call
) -> None:
    six(graph, "--kv", store)
    lines = six(fork, graph, "--kv", store, "--json", "--explain-cache").out.splitlines()
    first, second = map(json.loads, lines)
    assert (first["tokens"]["reused"], second["tokens"]["reused"]) == (0, 18 + 18 + 17)
    assert first["outputs"] == expected_outputs(fork, SIX)
    assert second["outputs"] == expected_outputs(graph, SIX)


def test_a_chunk_is_found_at_another_position(graph: Path, tmp_path: Path, store: Path, six: Call) -> None:
    six(graph, "--kv", store)
    moved = tmp_path / "moved.yaml"
    moved.write_text(graph.read_text().replace('hoot."', 'hoot."\n    start: 100'))
    (source,) = (
        one
        for one in six(moved, "--kv", store, "--json", "--explain-cache").data()["cache"]
        if one["chunk"] == "doc2"
    )
    assert (source["origin"], source["reused"], source["shift"]) == ("disk", 18, 100)


def test_the_folder_stays_below_its_size(fork: Path, store: Path, six: Call) -> None:
    data = six(fork, "--kv", store, "--kv-bytes", "15kB", "--json").data()
    assert data["outputs"] == expected_outputs(fork, SIX)
    assert 0 < sum(path.stat().st_size for path in entries(store)) <= 15_000
    assert len(entries(store)) < 3


# What is refused


def test_a_folder_that_cannot_be_one(fork: Path, tmp_path: Path, call: Call) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder, wrong in (
        (file, f"{file}: is a file\n  expected: a folder for the KV store"),
        (file / "kv", f"{file}/kv: cannot be made: Not a directory"),
        (Path("/proc/kv"), "/proc/kv: cannot be made: No such file or directory"),
    ):
        done = call("run", fork, "--model", "/no/such/model", "--kv", folder)
        assert (done.code, done.out, done.err) == (2, "", f"error: {wrong}\n")
    assert file.read_text() == "mine"


def test_a_size_that_is_none(fork: Path, store: Path, call: Call) -> None:
    done = call("run", fork, "--model", "/no/such/model", "--kv", store, "--kv-bytes", "lots")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: 'lots' is not a size\n")
    assert not store.exists()


def test_a_broken_graph_leaves_no_folder(broken: Path, store: Path, call: Call) -> None:
    assert call("run", broken, "--kv", store).code == 2
    assert not store.exists()


# What goes wrong, and is said in one line


def warned(err: str) -> str:
    (line,) = err.splitlines()
    assert line.startswith("warning: ")
    return line


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_damaged_entry_is_computed_again(
    as_json: list[str], fork: Path, store: Path, six: Call, call: Call
) -> None:
    plain = six(fork, "--kv", store)
    largest = max(entries(store), key=lambda path: path.stat().st_size)
    raw = bytearray(largest.read_bytes())
    raw[-100] ^= 1
    largest.write_bytes(raw)
    done = six(fork, "--kv", store, *as_json)
    assert done.code == 0
    assert warned(done.err) == f"warning: {largest}: is damaged (checksum); removed"
    if as_json:
        assert done.data()["outputs"] == expected_outputs(fork, SIX)
        assert done.data()["tokens"]["reused"] == 6 + 6
    else:
        assert done.out == plain.out
    assert call("cache", "verify", store).out.startswith(f"{store}: 3 good")
    assert six(fork, "--kv", store).err == ""


def test_a_full_disk_is_a_warning(fork: Path, small_disk: Path, six: Call, call: Call) -> None:
    fill(small_disk, leave=16 * 1024)
    done = six(fork, "--kv", small_disk / "kv", "--json")
    assert done.code == 0
    assert done.data()["outputs"] == expected_outputs(fork, SIX)
    assert "cannot be written: No space left on device" in warned(done.err)
    assert temporary_files(small_disk) == []
    assert call("cache", "verify", small_disk / "kv").code == 0
    again = six(fork, "--kv", small_disk / "kv", "--json")
    assert again.data()["outputs"] == expected_outputs(fork, SIX)
    assert len(entries(small_disk / "kv")) == 1


def test_a_store_that_may_only_be_read_is_read(fork: Path, graph: Path, small_disk: Path, six: Call) -> None:
    store = small_disk / "kv"
    six(fork, "--kv", store)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    again = six(fork, "--kv", store, "--json")
    assert (again.code, again.err, again.data()["tokens"]["reused"]) == (0, "", 22)
    other = six(graph, "--kv", store)
    assert (other.code, other.out) == (0, six(graph).out)
    assert "cannot be written: Read-only file system" in warned(other.err)


# Several processes, and those that die

WIDE = 40


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A graph that takes a while to keep: 40 documents of 200 tokens."""
    path = tmp_path / "wide.yaml"
    documents = [{"name": f"d{i}", "text": f"{i:03} " * 50} for i in range(WIDE)]
    question = {"name": "question", "text": "What?", "parents": [d["name"] for d in documents]}
    path.write_text(json.dumps({"legraph": 1, "tokenizer": "bytes", "chunks": [*documents, question]}))
    return path


def started(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "legraph.cli", "run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_writes_leaves_a_sound_store(
    wide: Path, model_folder: Path, store: Path, call: Call
) -> None:
    options = ["--model", model_folder, "--max-new-tokens", 2, "--json"]
    # On a busy machine it may have written all before it is killed.
    for attempt in range(5):
        store = store.with_name(str(attempt))
        kill_while_it_writes(started(wide, *options, "--kv", store), store)
        num_kept = len(entries(store))
        if num_kept < WIDE:
            break
    assert 0 < num_kept < WIDE
    done = call("cache", "verify", store)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{store}: {num_kept} good") and done.out.endswith(" 0 bad\n")
    plain = call("run", wide, *options).data()
    again = call("run", wide, *options, "--kv", store)
    assert (again.code, again.err) == (0, "")
    assert again.data()["outputs"] == plain["outputs"]
    assert again.data()["tokens"]["reused"] > 0


def kill_while_it_writes(running: subprocess.Popen[str], store: Path) -> None:
    while running.poll() is None and not list(store.rglob("*.safetensors")):
        time.sleep(0.0005)
    running.kill()
    running.communicate(timeout=60)


@pytest.mark.slow
def test_two_processes_may_use_a_store_at_once(
    wide: Path, model_folder: Path, store: Path, call: Call
) -> None:
    options = ["--model", model_folder, "--max-new-tokens", 2, "--kv", store]
    both = [started(wide, *options, "--json") for _ in range(2)]
    said = [running.communicate(timeout=120) for running in both]
    assert [(running.returncode, err) for running, (_, err) in zip(both, said, strict=True)] == [(0, "")] * 2
    first, second = (json.loads(out)["outputs"] for out, _ in said)
    assert first == second
    assert call("cache", "verify", store).out.startswith(f"{store}: {WIDE + 1} good")
    assert temporary_files(store) == []
    third = call("run", wide, *options, "--json").data()
    assert third["outputs"] == first
    assert third["tokens"]["reused"] == third["tokens"]["prompt"] - 1


def test_the_limit_holds_though_nothing_new_is_written(fork: Path, store: Path, six: Call) -> None:
    expected = six(fork, "--kv", store).out
    assert len(entries(store)) == 3
    largest = max(path.stat().st_size for path in entries(store))
    done = six(fork, "--kv", store, "--kv-bytes", largest)
    assert (done.code, done.out) == (0, expected)
    assert sum(path.stat().st_size for path in entries(store)) <= largest
