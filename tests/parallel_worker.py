"""What the processes of `test_parallel` run: `torchrun parallel_worker.py TASK FOLDER ...`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

RANK = int(os.environ["RANK"])
torch.set_num_threads(1)


def run_all(folder: Path, models: list[str]) -> None:
    """Runs every bundle on every model, alone and all side by side, and writes down what this process got."""
    from legraph.batch import run_batch
    from legraph.batchinput import items
    from legraph.bundle import Bundle
    from legraph.engine import Engine
    from legraph.errors import InputError, ModelError
    from legraph.graph import Generate

    bundles = [Bundle.load(path) for path in sorted(folder.glob("*.npz"))]
    found = dict[str, Any]()
    for name in models:
        engine = Engine.load(str(folder / name), tp="auto")
        greedy, sampled = Generate(6), Generate(6, temperature=1.5, seed=7)
        found[name] = {
            "alone": [_ids(engine.run(bundle, greedy)) for bundle in bundles],
            "together": [_ids(result) for result in engine.run(bundles, greedy)],
            "sampled": [_ids(result) for result in engine.run(bundles, sampled)],
            "heads": _heads(engine, bundles[0]),
        }
    for label, options, error_type in (
        ("kv", {"kv": folder / "kv"}, InputError),
        ("device", {"device": "cpu"}, InputError),
        ("plan", {"model": "gpt2"}, ModelError),
        ("heads", {"model": "three-heads"}, ModelError),
    ):
        model = str(folder / options.pop("model", models[0]))  # type: ignore[arg-type]
        try:
            Engine.load(model, tp="auto", **options)  # type: ignore[arg-type]
        except error_type as error:
            found[label] = str(error)
    try:
        next(run_batch(engine, items(sorted(folder.glob("*.npz")))))
    except ModelError as error:
        found["batch"] = str(error)
    (folder / f"found{RANK}.json").write_text(json.dumps(found))


def _ids(result: Any) -> dict[str, list[int]]:
    return {name: list(output.token_ids) for name, output in result.outputs.items()}


def _heads(engine: Any, bundle: Any) -> dict[str, list[int]]:
    """Query heads per key head, as the engine takes them to be and as attention gets them; key heads."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from legraph import flatattention

    seen = set[tuple[int, int]]()

    def watched(module: Any, query: Any, key: Any, *arguments: Any, **more: Any) -> Any:
        seen.add((query.shape[1] // key.shape[1], key.shape[1]))
        return flatattention.flat_attention_forward(module, query, key, *arguments, **more)

    ALL_ATTENTION_FUNCTIONS.register(flatattention.NAME, watched)
    engine.run(bundle)
    ALL_ATTENTION_FUNCTIONS.register(flatattention.NAME, flatattention.flat_attention_forward)
    forward = engine._forward
    return {"seen": sorted(map(list, seen)), "assumed": [forward._group_size, forward.shape.layers[0][0]]}


def fail_in_one(arguments: list[str]) -> None:
    """The command line; in the second process, memory ends in the middle of the generation."""
    from legraph import cli
    from legraph.flatattention import torch_attention

    if RANK == 1:
        from legraph import flatattention

        calls = 0

        def failing(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 60:
                # The first one waits for this one by then.
                time.sleep(1)
                raise MemoryError
            return torch_attention(*given)

        flatattention.torch_attention = failing
    sys.argv = ["legraph", *arguments]
    cli.main()


if __name__ == "__main__":
    if sys.argv[1] == "run_all":
        run_all(Path(sys.argv[2]), sys.argv[3:])
    else:
        fail_in_one(sys.argv[2:])
