"""`legraph batch`: one file of results, whatever happens on the way to it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legraph.graph import Generate
from tests.command_line import FORK, GRAPH, LATE, Call, Done, expected_outputs, fill, interrupted

SIX = Generate(max_new_tokens=6)
FORK_DATA = {
    "legraph": 1,
    "chunks": [
        {"name": "task", "text": "Two keys. "},
        {"name": "north", "text": "North: ", "parents": ["task"]},
        {"name": "south", "text": "South: ", "parents": ["task"]},
    ],
}
TOO_LONG = {"legraph": 1, "chunks": [{"name": "a", "text": "abc", "start": 4094}]}
ROOT = Path(__file__).parents[1]


@pytest.fixture
def six(model_folder: Path, call: Call) -> Call:
    """`call("batch", ...)` with six tokens for each leaf."""
    return lambda *arguments, **options: call(
        "batch", *arguments, "--model", model_folder, "--max-new-tokens", 6, **options
    )


def write_rows(path: Path, **graphs: Any) -> Path:
    path.write_text("".join(json.dumps({"id": id, "graph": data}) + "\n" for id, data in graphs.items()))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


# What comes out


def test_results_are_those_of_run_in_the_order_of_the_inputs(
    graph: Path, fork: Path, tmp_path: Path, six: Call
) -> None:
    rows, out = write_rows(tmp_path / "r.jsonl", one=FORK_DATA, two=FORK_DATA), tmp_path / "out.jsonl"
    done = six(rows, graph, fork, "-o", out)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith(f"{out}: 4 graphs, 42 tokens in ")
    found = read(out)
    assert [row["id"] for row in found] == ["one", "two", str(graph), str(fork)]
    expected = [expected_outputs(path, SIX) for path in (fork, fork, graph, fork)]
    assert [row["outputs"] for row in found] == expected
    for row in found:
        assert list(row) == ["id", "outputs", "timing"]
        assert set(row["timing"]) == {"prefill_s", "decode_s", "total_s"}
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl"]


def test_failures_are_rows_and_the_exit_code(fork: Path, tmp_path: Path, six: Call) -> None:
    late = tmp_path / "late.yaml"
    late.write_text(LATE)
    rows = write_rows(tmp_path / "r.jsonl", good=FORK_DATA, long=TOO_LONG)
    rows.write_text(rows.read_text() + "nonsense\n" + json.dumps({"id": "good", "graph": FORK_DATA}) + "\n")
    out = tmp_path / "out.jsonl"
    done = six(rows, late, fork, "-o", out, "--json")
    assert (done.code, done.err) == (1, "")
    totals = done.data()
    assert list(totals) == ["output", "graphs", "failed", "skipped", "tokens", "reused", "seconds"]
    # Two good ones of two leaves; and what the late one generated before it failed.
    assert [totals[key] for key in ("graphs", "failed", "skipped", "tokens")] == [6, 4, 0, 24 + 5]
    found = read(out)
    assert [row["id"] for row in found] == ["good", "long", f"{rows}:3", "good", str(late), str(fork)]
    assert [row.get("error", {}).get("kind") for row in found] == [
        None, "ModelError", "GraphError", "InputError", "ModelError", None,
    ]  # fmt: skip
    for row in found:
        if "error" in row:
            assert list(row) == ["id", "error"] and list(row["error"]) == ["kind", "message", "where"]
    wheres = [row["error"]["where"] for row in found if "error" in row]
    assert wheres == [f"{rows}:2", f"{rows}:3:1", f"{rows}:4", str(late)]
    assert found[3]["error"]["message"] == f"id 'good' is taken by {rows}:1"


def test_a_template_and_a_table(tmp_path: Path, six: Call) -> None:
    template, table = tmp_path / "t.yaml", tmp_path / "t.csv"
    template.write_text(FORK.replace("Two keys. ", "${what}"))
    table.write_text("id,what\nfirst,Two keys. \nsecond,Three keys. \n")
    out = tmp_path / "out.jsonl"
    assert six("--template", template, "--table", table, "-o", out).code == 0
    found = read(out)
    assert [row["id"] for row in found] == ["first", "second"]
    for row, what in zip(found, ("Two keys. ", "Three keys. "), strict=True):
        alone = tmp_path / "alone.yaml"
        alone.write_text(FORK.replace("Two keys. ", what))
        assert row["outputs"] == expected_outputs(alone, SIX)


def test_parquet_in_and_out(fork: Path, tmp_path: Path, six: Call) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"id": "a", "graph": json.dumps(FORK_DATA)}, {"id": "b", "graph": json.dumps(TOO_LONG)}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    assert six(tmp_path / "in.parquet", "-o", out).code == 1
    good, bad = parquet.read_table(out).to_pylist()
    assert (good["id"], bad["id"]) == ("a", "b")
    assert json.loads(good["outputs"]) == expected_outputs(fork, SIX)
    assert good["error"] is None and bad["outputs"] is None and bad["timing"] is None
    assert json.loads(bad["error"])["kind"] == "ModelError"


def test_an_id_with_half_a_character_is_written_with_its_number(tmp_path: Path, six: Call) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = tmp_path / "r.jsonl"
    rows.write_text(json.dumps({"id": "a\ud800", "graph": FORK_DATA}))
    assert six(rows, "-o", tmp_path / "out.parquet").code == 0
    assert [row["id"] for row in parquet.read_table(tmp_path / "out.parquet").to_pylist()] == ["a\\ud800"]


def test_chunks_that_graphs_share_are_computed_once(tmp_path: Path, six: Call) -> None:
    rows = write_rows(tmp_path / "r.jsonl", **{f"g{i}": FORK_DATA for i in range(12)})
    plain, shared, kept = (tmp_path / f"{name}.jsonl" for name in ("plain", "shared", "kept"))
    assert six(rows, "-o", plain, "--no-reuse", "--json").data()["reused"] == 0
    done = six(rows, "-o", shared, "--cache-tokens", 120, "--json")
    assert done.data()["reused"] >= 12 * 10 / 2
    assert six(rows, "-o", kept, "--kv", tmp_path / "kv", "--json").code == 0
    assert six(rows, "-o", kept, "--kv", tmp_path / "kv", "--json", "--restart").data()["reused"] >= 120
    assert without_times(read(plain)) == without_times(read(shared)) == without_times(read(kept))


# Going on


def test_a_batch_that_is_done_is_not_done_again(fork: Path, tmp_path: Path, six: Call) -> None:
    out = tmp_path / "out.jsonl"
    assert six(fork, "-o", out).code == 0
    before = out.read_bytes()
    done = six(fork, "-o", out)
    assert (done.code, done.err.splitlines()[0]) == (2, f"error: {out}: is there already")
    assert out.read_bytes() == before
    assert six(fork, "-o", out, "--restart").code == 0


def test_failed_rows_are_tried_again_when_asked_for(tmp_path: Path, six: Call) -> None:
    """A graph whose text lies in a file that is not there, and then is."""
    needs = {"legraph": 1, "chunks": [{"name": "a", "file": "later.txt"}]}
    rows, out = write_rows(tmp_path / "r.jsonl", a=FORK_DATA, b=needs), tmp_path / "out.jsonl"
    done = six(rows, "-o", out)
    assert done.code == 1 and "1 failed" in done.err and "--retry-errors" in done.err
    first = read(out)
    (tmp_path / "later.txt").write_text("here")
    assert six(rows, "-o", out, "--json").data()["skipped"] == 2
    done = six(rows, "-o", out, "--retry-errors", "--json")
    assert done.code == 0
    assert [done.data()[key] for key in ("graphs", "failed", "skipped", "tokens")] == [2, 0, 1, 6]
    second = read(out)
    assert second[0] == first[0]
    assert list(second[1]["outputs"]["a"]["token_ids"]) and "error" not in second[1]
    assert not Path(f"{out}.part").exists()


def test_another_run_is_not_gone_on_with(fork: Path, graph: Path, tmp_path: Path, six: Call) -> None:
    rows, out = write_rows(tmp_path / "r.jsonl", a=FORK_DATA, b=TOO_LONG), tmp_path / "out.jsonl"
    assert six(rows, "-o", out).code == 1
    for arguments, said in (
        ((graph,), "the inputs"),
        ((rows, "--seed", 1), "seed: 0 there, 1 here"),
        ((rows, "--temperature", 1), "temperature: null there, 1.0 here"),
        ((rows, "--var", "x=1"), 'variables: {} there, {"x": "1"} here'),
        ((rows, "--dtype", "bfloat16"), 'dtype: "auto" there, "bfloat16" here'),
        ((rows, "--tokenizer", "bytes", "--max-new-tokens", 7), "max_new_tokens: 6 there, 7 here"),
    ):
        done = six(*arguments, "-o", out) if "--max-new-tokens" not in arguments else None
        done = done or six(*arguments[:1], "-o", out, "--seed", 2)
        assert done.code == 2 and f"{out}.part: is the journal of another run" in done.err
        if "--max-new-tokens" not in arguments:
            assert said in done.err
        assert "--restart" in done.err
    rows.write_text(rows.read_text().replace("Two", "Six"))
    assert "is the journal of another run: the inputs" in six(rows, "-o", out).err


def test_a_model_that_has_changed_is_another_model(tmp_path: Path, call: Call, model_folder: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    rows, out = write_rows(tmp_path / "r.jsonl", a=FORK_DATA, b=TOO_LONG), tmp_path / "out.jsonl"
    assert call("batch", rows, "-o", out, "--model", folder).code == 1
    weights = load_file(folder / "model.safetensors")
    weights = {name: torch.clone(weight) for name, weight in weights.items()}
    weights["model.norm.weight"][3] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    done = call("batch", rows, "-o", out, "--model", folder)
    assert done.code == 2 and "the weights of the model" in done.err


def test_a_full_disk_is_said_and_gone_on_from(small_disk: Path, tmp_path: Path, six: Call) -> None:
    rows = write_rows(tmp_path / "r.jsonl", **{f"g{i}": FORK_DATA for i in range(40)})
    out, whole = small_disk / "out.jsonl", tmp_path / "whole.jsonl"
    assert six(rows, "-o", whole).code == 0
    fill(small_disk, leave=8192)
    done = six(rows, "-o", out)
    assert done.code == 1
    assert done.err.startswith(
        f"error: {out}.part: cannot be written: No space left on device\n  hint: make room"
    )
    assert not out.exists()
    (small_disk / "filler").unlink()
    done = six(rows, "-o", out, "--json")
    assert done.code == 0 and 5 < done.data()["skipped"] < 40
    assert without_times(read(out)) == without_times(read(whole))


# Wrong input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "out.jsonl"], "there are no inputs"),
        (["g.yaml", "-o", "out.txt"], "out.txt: unknown kind of output"),
        (["g.yaml", "-o", "no/out.jsonl"], "no/out.jsonl: cannot be written: no such folder"),
        (["no.jsonl", "-o", "out.jsonl"], "no.jsonl: no such file"),
        (["e.jsonl", "-o", "out.jsonl"], "e.jsonl: no graph is there"),
        (["g.yaml", "-o", "out.jsonl", "--top-p", "2"], "--top-p is 2.0"),
        (["g.yaml", "-o", "out.jsonl", "--dtype", "int8"], "--dtype is 'int8'"),
        (["g.yaml", "-o", "out.jsonl", "--kv-bytes", "1GB"], "--kv-bytes is about a store"),
        (["g.yaml", "-o", "out.jsonl", "--template", "g.yaml"], "--template goes with --table"),
    ],
)
def test_wrong_input_is_said_before_a_model_is_looked_for(
    arguments: list[str], said: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("g.yaml").write_text(GRAPH)
    Path("e.jsonl").write_text("\n")
    done = call("batch", *arguments, "--model", "/no/such/model")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {said}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl", "g.yaml"]


def test_an_output_must_be_named(fork: Path, call: Call) -> None:
    done = call("batch", fork)
    assert done.code == 2 and "Missing option '-o'" in done.err


def test_a_model_that_is_not_there_leaves_nothing_behind(fork: Path, tmp_path: Path, call: Call) -> None:
    done = call("batch", fork, "-o", tmp_path / "out.jsonl", "--model", "/no/such/model")
    assert done.code == 1
    assert not list(tmp_path.glob("out*"))


def test_what_is_wrong_with_the_output_is_said_without_torch(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "r.jsonl", g=FORK_DATA)
    (tmp_path / "out.jsonl").touch()
    script = (
        "import sys; from legraph.cli import main\n"
        f"sys.argv = ['legraph', 'batch', {str(rows)!r}, '-o', {str(tmp_path / 'out.jsonl')!r}]\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "2 False\n" and "is there already" in done.stderr


def test_inputs_that_are_not_there_are_named_all_at_once(tmp_path: Path, six: Call) -> None:
    done = six(tmp_path / "a.yaml", tmp_path / "b.yaml", "-o", tmp_path / "out.jsonl")
    assert done.code == 2 and "a.yaml: no such file" in done.err and "b.yaml: no such file" in done.err


def test_the_first_errors_are_shown(tmp_path: Path, six: Call) -> None:
    rows = tmp_path / "r.jsonl"
    rows.write_text("\n".join(f'{{"id": {i}, "graph": {{}}}}' for i in range(5)))
    done = six(rows, "-o", tmp_path / "out.jsonl")
    assert done.code == 1
    first, *errors, more, again = done.err.splitlines()
    assert first.startswith(f"{tmp_path / 'out.jsonl'}: 5 graphs, 5 failed, ")
    assert errors == [f"  {rows}:{i}: 'id' is the number {i - 1}" for i in (1, 2, 3)]
    assert more == "  ... and 2 more" and again.startswith("--retry-errors")


# Killed and interrupted


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some graphs for the model in the box, of different lengths, two of them broken."""
    draw, graphs = random.Random(3), dict[str, Any]()
    for i in range(90):
        names = [f"d{j}" for j in range(draw.randint(1, 3))]
        chunks: list[Any] = [
            {"name": name, "text": f"{name}: " + "key " * draw.randint(1, 9)} for name in names
        ]
        middle = {"max_new_tokens": draw.randint(1, 4)}
        chunks.append({"name": "m", "text": "So", "parents": names[:1], "generate": middle})
        chunks.append({"name": "q", "text": f"Where is {i}?", "parents": [*names, "m"]})
        graphs[f"g{i}"] = {"legraph": 1, "chunks": chunks} if i % 40 != 20 else {"legraph": 1, "chunks": []}
    return write_rows(tmp_path_factory.mktemp("questions") / "q.jsonl", **graphs)


Start = Callable[..., list[str]]


def arguments(questions: Path, out: Path) -> list[str]:
    options = ["--device", "cpu", "--dtype", "float32", "--max-new-tokens", "5", "--cache-tokens", "400"]
    return ["batch", str(questions), "-o", str(out), *options]


@pytest.fixture(scope="session")
def undisturbed(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "legraph.cli", *arguments(questions, out)], check=False, cwd=ROOT
    )
    assert done.returncode == 1
    return read(out)


def go_on(questions: Path, out: Path) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "legraph.cli", *arguments(questions, out), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_killed_at_twenty_moments_it_gives_what_an_undisturbed_run_gives(
    questions: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    script = str(ROOT / "tests" / "killed_batch.py")
    killing = [sys.executable, script, "7", "20", str(out), *arguments(questions, out)]
    killed = subprocess.run(killing, capture_output=True, text=True, cwd=ROOT)
    assert killed.returncode == 0, killed.stderr
    rows = json.loads(killed.stdout)
    assert len(rows) == 20, killed.stderr
    assert rows == sorted(rows) and len(set(rows)) > 10
    done = go_on(questions, out)
    assert done.code == 1, done.err
    # What was there was not run again: the header is a line too, and the last one may be half.
    assert rows[-1] - 1 <= done.data()["skipped"] < 90
    assert without_times(read(out)) == without_times(undisturbed)


@pytest.mark.slow
def test_a_process_that_is_interrupted_says_how_to_go_on(
    questions: Path, undisturbed: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "legraph.cli", *arguments(questions, out)]
    journal = Path(f"{out}.part")
    waiting = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    wait_for_rows(journal, 5)
    _, said = interrupted(waiting)
    assert waiting.returncode == 130
    assert "graphs are done; the same command goes on" in said and "Traceback" not in said
    assert go_on(questions, out).data()["skipped"] >= 5
    assert without_times(read(out)) == without_times(undisturbed)


def wait_for_rows(journal: Path, number: int) -> None:
    end = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") - 1 < number:
        assert time.monotonic() < end
        time.sleep(0.002)
