"""A batch on a Ray cluster gives what a single process gives, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from legraph.batch import Progress, model_header, run_batch, run_to_file
from legraph.batchinput import Inputs
from legraph.batchjournal import Journal, input_header
from legraph.engine import Engine
from legraph.errors import InputError, ModelError, RunError
from legraph.graph import Generate
from legraph.raybatch import EngineOptions, model_header_of, run_to_file_on_ray
from legraph.raycluster import Pool, connected
from tests.command_line import Call

pytestmark = pytest.mark.slow

HOW = Generate(max_new_tokens=6)
BROKEN, TWICE = 7, 11


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """40 graphs that share a document; one is broken, and one has the id of another."""
    path = tmp_path_factory.mktemp("ray") / "rows.jsonl"
    rows = list[str]()
    for i in range(40):
        chunks = [
            {"name": "doc", "text": "The fox says ring."},
            {"name": "own", "text": f"Number {i}."},
            {"name": "q", "text": "Which?", "parents": ["doc", "own"]},
        ]
        graph = {"legraph": 1, "tokenizer": "bytes", "chunks": chunks}
        rows.append(json.dumps({"id": f"r{0 if i == TWICE else i}", "graph": graph}))
    rows[BROKEN] = rows[BROKEN].replace('"doc", "own"', '"dok"')
    path.write_text("\n".join(rows))
    return Inputs.find([path])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two machines of a CPU each, as far as Ray can tell."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def rows_of(output: Path) -> list[dict[str, Any]]:
    """Without what differs from run to run."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "timing"} for row in rows]


def actors(cluster: Any) -> set[int]:
    """Processes of actors, by their names and their parents, which are the cluster's own."""
    found = set[int]()
    parents = {node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()}
    for process in Path("/proc").iterdir():
        try:
            name = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        if process.name.isdigit() and b"ray::MapWorker" in name and parent in parents:
            found.add(int(process.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_every_result_once_though_an_actor_is_killed(
    cluster: Any, inputs: Inputs, model_folder: Path, tmp_path: Path
) -> None:
    engine = Engine.load(str(model_folder))
    header = input_header(inputs, HOW, "m", "auto") | model_header(engine)
    with Journal(tmp_path / "alone.jsonl", header) as journal:
        run_to_file(engine, inputs, HOW, journal)

    pool = Pool(cluster.address, actors=2, graphs_per_call=4)
    options = EngineOptions({"model": str(model_folder)}, kv=str(tmp_path / "kv"))
    killed, shown = list[int](), list[Progress]()

    def kill(progress: Progress) -> None:
        shown.append(progress)
        if not killed:
            killed.append(min(actors(cluster)))
            os.kill(killed[0], signal.SIGKILL)

    output = tmp_path / "together.jsonl"
    with connected(pool.address):
        assert input_header(inputs, HOW, "m", "auto") | model_header_of(pool, options) == header
        # A run that was broken off before: what it has done is not done again.
        with Journal(output, header) as journal:
            for item, _ in run_batch(engine, list(inputs.items())[:3], HOW):
                journal.write(item.number, {"id": item.id, "outputs": "before"})
        with Journal(output, header) as journal:
            progress = run_to_file_on_ray(pool, options, inputs, HOW, journal, shown=kill)

    assert killed and not Path(f"/proc/{killed[0]}").exists()
    assert (progress.done, progress.skipped, progress.failed) == (37, 3, 2)
    assert progress.tokens == 35 * HOW.max_new_tokens
    # One document for all graphs, from the store or from the actor's own cache.
    assert progress.reused >= 20 * len("The fox says ring.") and any((tmp_path / "kv").rglob("*.safetensors"))
    expected = rows_of(tmp_path / "alone.jsonl")
    for i in range(3):
        expected[i]["outputs"] = "before"
    assert rows_of(output) == expected
    assert [i for i, row in enumerate(expected) if "error" in row] == [BROKEN, TWICE]


def test_a_model_that_actors_cannot_load(cluster: Any, tmp_path: Path) -> None:
    pool, options = Pool(cluster.address), EngineOptions({"model": str(tmp_path / "none")})
    with connected(pool.address), pytest.raises(ModelError, match="no such folder"):
        model_header_of(pool, options)


def test_an_actor_that_no_machine_has_room_for(cluster: Any) -> None:
    pool = Pool(cluster.address, gpus_per_actor=64)
    with connected(pool.address), pytest.raises(RunError, match="no machine of the cluster has 64 GPUs"):
        model_header_of(pool, EngineOptions())


@pytest.mark.parametrize("kind", ["closed", "silent", "talkative"])
def test_a_cluster_that_cannot_be_reached(kind: str) -> None:
    """Nobody is there; somebody who does not answer; somebody who is not Ray."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if kind == "closed":
            server.close()
        started = time.monotonic()
        if kind == "talkative":

            def talk() -> None:
                link, _ = server.accept()
                with link:
                    link.sendall(b"SSH-2.0-server\r\n")
                    link.recv(100)

            threading.Thread(target=talk, daemon=True).start()
        with pytest.raises(InputError, match=re.escape(address)), connected(address):
            pass
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["here", "host:", "host:http", ":6379", "host:99999"])
def test_what_is_no_address(address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no address of a Ray cluster"), connected(address):
        pass


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match="Ray is not installed") as caught, connected("local"):
        pass
    assert "legraph[ray]" in str(caught.value)


def test_a_pool_must_make_sense() -> None:
    with pytest.raises(InputError) as caught:
        Pool(actors=0, gpus_per_actor=-1, graphs_per_call=0)
    assert len(caught.value.problems) == 3


def test_the_command_says_what_is_wrong_at_once(call: Call, inputs: Inputs, tmp_path: Path) -> None:
    rows, output = inputs.files[0], tmp_path / "out.jsonl"
    done = call("batch", rows, "-o", output, "--ray-actors", "2")
    assert done.code == 2 and "--ray-actors is about a cluster" in done.err
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = call("batch", rows, "-o", output, "--ray", f"127.0.0.1:{port}")
    assert done.code == 2 and "cannot be reached: Connection refused" in done.err
    assert list(tmp_path.iterdir()) == []
