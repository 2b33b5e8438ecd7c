"""One model on two processes: the tokens of a single one, one voice, and one end for all."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from legraph.bundle import Bundle
from legraph.compiler import Chunk, compile_chunks
from legraph.engine import Engine
from legraph.errors import InputError, ModelError
from legraph.graph import Generate
from legraph.mask import ChunkMask
from legraph.parallel import check_choice, check_plan, join, load_options, team_of
from legraph.tokens import bytes_tokenizer
from tests.command_line import GRAPH, Call, Done
from tests.naive import counts, ids_of, oracle
from tests.random_graphs import LETTERS, tokenizer
from tests.tiny_models import SHAPE, tiny_model

ROOT = Path(__file__).parent.parent
WORKER = str(ROOT / "tests" / "parallel_worker.py")
MODELS = ["llama-gqa", "qwen3"]


TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"


def together(*arguments: object, devices: str = "") -> Done:
    """The command line of legraph, or a script, in two processes; on CPUs, even where there are GPUs."""
    return python(*TORCHRUN, *arguments, devices=devices)


def python(*arguments: object, devices: str = "", folder: Path | None = None) -> Done:
    changed = {"CUDA_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | changed,
        cwd=folder,
        timeout=200,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def said(done: Done) -> list[str]:
    """What legraph has written on stderr, without what torchrun has to say about exit codes."""
    return [line for line in done.err.splitlines() if line.startswith("error: ")]


def bundles() -> list[Bundle]:
    """Fork and join, RAG, and random graphs."""
    task = Chunk("Two keys. ", name="task")
    north = Chunk("North: ", name="north", parents=[task], generate=Generate(4))
    south = Chunk("South: ", name="south", parents=[task], generate=Generate(7))
    joined = Chunk("And: ", name="join", parents=[north, south])
    docs = [Chunk(f"Document {i} says {LETTERS[i : i + 5]}.", name=f"d{i}") for i in range(6)]
    rag = Chunk("What do they say?", name="q", parents=docs)
    graphs = [[joined], [rag]]
    for seed in range(4):
        draw = random.Random(seed)
        chunks = list[Chunk]()
        for i in range(8):
            parents = draw.sample(chunks, draw.randint(0, min(3, i)))
            text = "".join(draw.choices(LETTERS, k=draw.randint(1, 9)))
            generate = Generate(draw.randint(1, 4)) if draw.random() < 0.4 else None
            chunks.append(Chunk(text, name=f"c{i}", parents=parents, generate=generate))
        graphs.append(chunks)
    return [compile_chunks(graph, tokenizer()) for graph in graphs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles and models, some of which cannot be shared."""
    folder = tmp_path_factory.mktemp("parallel")
    for i, bundle in enumerate(bundles()):
        bundle.save(folder / f"{i}.npz")
    for name in [*MODELS, "gpt2"]:
        tiny_model(name).save_pretrained(folder / name)
    three = SHAPE | {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 96}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**three)).save_pretrained(folder / "three-heads")
    for name in [*MODELS, "gpt2", "three-heads"]:
        bytes_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    """What each of the two processes got."""
    done = together(WORKER, "run_all", folder, *MODELS)
    assert done.code == 0, done.err
    return [json.loads((folder / f"found{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_give_the_tokens_of_one(name: str, found: list[dict[str, Any]]) -> None:
    expected = [oracle(name, bundle, counts(bundle, 6)) for bundle in bundles()]
    for each in found:
        assert each[name]["alone"] == each[name]["together"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_draw_the_samples_of_one(name: str, found: list[dict[str, Any]]) -> None:
    engine, how = Engine(tiny_model(name), bytes_tokenizer()), Generate(6, temperature=1.5, seed=7)
    expected = [ids_of(result) for result in engine.run(bundles(), how)]
    assert expected != [oracle(name, bundle, counts(bundle, 6)) for bundle in bundles()]
    assert [each[name]["sampled"] for each in found] == [expected, expected]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("llama-gqa", [2, 1]), ("qwen3", [1, 2])])
def test_each_process_has_half_of_the_heads(
    name: str, expected: list[int], found: list[dict[str, Any]]
) -> None:
    """Both models have 4 query heads; with 2 key heads, each of 2 processes has 1, for 2 query heads."""
    for each in found:
        assert each[name]["heads"] == {"seen": [expected], "assumed": expected}


@pytest.mark.slow
def test_what_cannot_be_shared_is_refused(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert "keys and values cannot be kept" in each["kv"]
        assert "each process takes a device of its own" in each["device"]
        assert "no plan to share out a model of type 'gpt2'" in each["plan"]
        assert "a batch does not run on a model that several processes share" in each["batch"]
        assert "the 3 key and value heads" in each["heads"] and "--nproc-per-node 1" in each["heads"]


@pytest.mark.slow
def test_the_command_speaks_with_one_voice(folder: Path, tmp_path: Path, call: Call) -> None:
    graph, saved = tmp_path / "graph.yaml", tmp_path / "saved.npz"
    graph.write_text(GRAPH)
    arguments = ["run", graph, "--model", folder / "qwen3", "--json", "--max-new-tokens", "5"]
    done = together("-m", "legraph", *arguments, "--tp", "auto", "--save", saved)
    assert done.code == 0 and said(done) == []
    assert done.data()["outputs"] == call(*arguments).data()["outputs"]
    assert "question" in Bundle.load(saved).span_names


@pytest.mark.slow
def test_a_failure_of_one_process_ends_all(folder: Path, tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH)
    started = time.monotonic()
    run = "run", graph, "--model", folder / "qwen3", "--tp", "auto", "--max-new-tokens", "200"
    done = together(WORKER, "fail_in_one", *run)
    assert done.code == 1
    assert len(said(done)) == 1 and "out of memory while decoding 1 branches" in said(done)[0]
    assert done.out.strip() == "" and "RuntimeError" not in done.err
    assert time.monotonic() - started < 90


@pytest.mark.slow
def test_what_goes_wrong_in_all_processes_is_said_once(folder: Path, tmp_path: Path) -> None:
    done = together(
        "-m", "legraph", "run", tmp_path / "none.yaml", "--model", folder / "qwen3", "--tp", "auto"
    )
    assert done.code == 1
    assert len(said(done)) == 1 and "none.yaml: no such file" in said(done)[0]


def test_several_processes_must_be_told_to_share(call: Call, graph: Path, monkeypatch: Any) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    done = call("run", graph)
    assert done.code == 2 and "torchrun has started several processes" in done.err


def test_a_single_process_cannot_share(call: Call, graph: Path) -> None:
    done = call("run", graph, "--tp", "auto")
    assert done.code == 1 and "a process for each device" in done.err and "torchrun" in done.err
    with pytest.raises(ModelError, match="a process for each device"):
        join()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tp", "auto", "--device", "cpu"], "each process takes a device of its own"),
        (["--tp", "auto", "--kv", "store"], "keys and values cannot be kept"),
        (["--tp", "2"], "tp is '2'"),
    ],
)
def test_options_that_contradict_each_other(
    options: list[str], says: str, call: Call, graph: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("run", graph, *options)
    assert done.code == 2 and says in done.err
    assert not (tmp_path / "store").exists()


def test_all_contradictions_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        check_choice("all", "cuda:1", has_kv=True)
    assert len(caught.value.problems) == 3
    check_choice(None, "cpu", has_kv=True)


@pytest.mark.parametrize(
    ("config", "size", "is_fine"),
    [
        (lambda: transformers.LlamaConfig(**SHAPE), 4, True),
        (lambda: transformers.LlamaConfig(**SHAPE), 3, False),
        (lambda: transformers.LlamaConfig(**SHAPE | {"num_key_value_heads": 2}), 4, False),
        # Its plan puts the projections of queries, keys and values together again: heads are not cut.
        (lambda: transformers.Phi3Config(**SHAPE), 3, True),
        (lambda: transformers.GPT2Config(), 2, False),
    ],
)
def test_a_plan_must_fit_the_heads(config: Callable[[], Any], size: int, is_fine: bool) -> None:
    if is_fine:
        check_plan("m", config(), size)
    else:
        with pytest.raises(ModelError):
            check_plan("m", config(), size)


def test_a_whole_model_has_no_team() -> None:
    assert team_of(tiny_model("llama")) is None
    assert load_options(2)["distributed_config"].tp_size == 2


def offloaded(tmp_path: Path, device_map: dict[str, str]) -> Any:
    tiny_model("qwen3").save_pretrained(tmp_path / "model")
    return transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "weights"
    )


PARTS = (
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.1",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
)


def test_weights_on_disk_give_the_same_tokens(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    on_disk = {"model.layers.1", "lm_head"}
    model = offloaded(tmp_path, {part: "disk" if part in on_disk else "cpu" for part in PARTS})
    assert model.model.layers[1].self_attn.k_proj.weight.is_meta
    found = Engine(model, bytes_tokenizer()).run(bundles(), Generate(6))
    expected = [oracle("qwen3", bundle, counts(bundle, 6)) for bundle in bundles()]
    assert [ids_of(result) for result in found] == expected
    with pytest.raises(ModelError, match="not all in memory"):
        Engine(model, bytes_tokenizer(), kv=tmp_path / "kv")


def test_a_model_whose_embedding_is_on_disk_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(ModelError, match="the embedding of Qwen3ForCausalLM is not in memory"):
        Engine(offloaded(tmp_path, {"": "disk"}), bytes_tokenizer())


def test_layers_on_several_devices_are_refused() -> None:
    model = deepcopy(tiny_model("llama"))
    # As accelerate leaves it behind.
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1, "lm_head": "cpu"}
    with pytest.raises(ModelError, match="spread over the devices 0, 1"):
        Engine(model, bytes_tokenizer())


@pytest.mark.slow
@pytest.mark.gpu
def test_two_gpus_give_the_tokens_of_one(folder: Path, tmp_path: Path, call: Call) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    graph = tmp_path / "graph.yaml"
    graph.write_text(GRAPH)
    arguments = ["run", graph, "--model", folder / "qwen3", "--json", "--dtype", "float32"]
    done = together("-m", "legraph", *arguments, "--tp", "auto", devices="0,1")
    assert done.code == 0, done.err
    assert done.data()["outputs"] == call(*arguments, "--device", "cpu").data()["outputs"]


PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_page_counts_right() -> None:
    """Pairs as legraph counts them, products and bytes as the formulas of the shape give them."""
    docs, question = 512, 512
    lengths = np.array([2048] * docs + [question], dtype=np.int64)
    mask = ChunkMask(
        np.concatenate([[0], lengths.cumsum()]),
        np.array([0] * (docs + 1) + [docs], dtype=np.int64),
        np.arange(docs, dtype=np.int64),
    )
    tokens, pairs, causal = (
        mask.num_tokens,
        mask.num_visible_pairs(),
        mask.num_tokens * (mask.num_tokens + 1) // 2,
    )
    rectangles = docs * 2048 * question
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    for number in (
        tokens,
        pairs,
        pairs - rectangles,
        rectangles,
        causal,
        layer,
        2 * 32 * layer // (4 * 128 * 32 * 32),
    ):
        assert f"{number:,}" in PAGE
    work = 2 * 32 * layer * tokens, 4 * 128 * 32 * 32 * pairs, 4 * 128 * 32 * 32 * causal
    for flops in work:
        assert f"{flops / 1e15:.{2 if flops < 1e15 else 1}f} PFLOP" in PAGE
    assert f"takes {(work[0] + work[1]) / 4e14:.0f} s on one device" in PAGE
    assert f"{(work[0] + work[1]) / 4e14 / 8:.1f} s on\neight" in PAGE
    assert f"{(work[0] + work[2]) / 4e14:.0f} s and {(work[0] + work[2]) / 4e14 / 8:.0f} s" in PAGE


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text(GRAPH)
    commands = re.findall(r"^```console\n\$ python (.*?)\n```$", PAGE, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = python(*shlex.split(command), folder=tmp_path)
        assert done.code == 0, done.err
    assert done.out.strip() and (tmp_path / "results.jsonl").exists()
