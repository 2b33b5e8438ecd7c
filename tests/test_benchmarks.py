"""The benchmark scripts stay alive: each runs with tiny sizes and reports what it says it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_compile_benchmark_measures_every_size_and_command(tmp_path: Path) -> None:
    numbers = tmp_path / "compile.json"
    script = ROOT / "benchmarks" / "compile.py"
    command = [sys.executable, str(script), "--sizes", "3", "40", "--repeats", "1", "--json", str(numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(numbers.read_text())
    assert list(report["graphs"]) == ["3", "40"]
    assert list(report["commands"]) == ["legraph --help", "legraph check"]
    for size, found in report["graphs"].items():
        chunks = int(size)
        # Words of 3 to 6 characters with their spaces, until a chunk has at least 18 of its about 20 tokens.
        assert 18 * chunks <= found["tokens"] <= 24 * chunks
        assert found["N x N mask, MB"] == found["tokens"] ** 2 / 1e6
        # Every chunk but the first has 1 to 3 parents.
        assert chunks - 1 <= found["edges"] <= 3 * (chunks - 1)
        assert found["active blocks"] >= found["tokens"] // 128
        assert all(value is None or value >= 0 for value in found.values())
    for said in ("3 chunks", "40 chunks", "block mask at 128", "peak memory", "legraph --help", "cores "):
        assert said in done.stdout


def run_script(name: str, numbers: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / name), *arguments, "--json", str(numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(numbers.read_text())


@pytest.mark.slow
def test_the_attention_benchmark_compares_what_is_equal(tmp_path: Path) -> None:
    numbers = tmp_path / "a.json"
    report = run_script("attention.py", numbers, "--device", "cpu", "--only", "2 of 24", "16 of 16")
    assert [row["tokens"] for row in report["ms"]] == [80, 288]
    for row in report["ms"]:
        assert not [name for name in row if name.endswith("error")]
        assert all(row[name] > 0 for name in ("ours", "chunks", "dense", "flex", "causal", "plan"))


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_the_predictions_beside_the_committed_results_are_current(device: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    committed, copy = ROOT / "benchmarks" / "results" / f"attention-{device}.json", tmp_path / "a.json"
    copy.write_bytes(committed.read_bytes())
    script = str(ROOT / "benchmarks" / "attention.py")
    subprocess.run([sys.executable, script, "--report", str(copy)], check=True)
    assert json.loads(copy.read_text()) == json.loads(committed.read_text())
    assert copy.with_suffix(".svg").stat().st_size > 10_000


@pytest.mark.slow
def test_the_engine_benchmark_reuses_what_it_says(tmp_path: Path) -> None:
    options = ("--device", "cpu", "--documents", "2", "--repeats", "1", "--only", "first-token")
    report = run_script("engine.py", tmp_path / "e.json", *options)
    # Two documents of about 256 tokens; all but the question is known.
    assert 2 * 256 + 64 <= report["tokens"] <= 2 * 260 + 64
    assert report["tokens reused by the last run"] == report["tokens"] - 64
    assert len(report["question, documents known and on the device, ms: all runs"]) == 1


@pytest.mark.slow
def test_the_batch_benchmark_compares_equal_work(tmp_path: Path) -> None:
    sizes = ("--graphs", "8", "--part", "4", "--corpus", "9", "--new-tokens", "3", "--check", "8")
    report = run_script("batch.py", tmp_path / "b.json", *sizes, "--repeats", "1", "--no-processes")
    assert report["graphs whose tokens are equal in batch and loop, float32"] == 8
    assert report["of 8 padded, equal to them too"] == 8
    ways = ("batch", "batch, --no-reuse", "loop of single runs", "padded dense batches")
    for way in ways:
        assert report[f"{way}: generated tokens/s"] == pytest.approx(3 * report[f"{way}: graphs/s"])
    ratio = report["batch: graphs/s"] / report["loop of single runs: graphs/s"]
    assert report["batch, over loop of single runs: ratio"] == pytest.approx(ratio)
    assert len(report["memory at each quarter, GB"]) == 4
