"""The training recipe: it runs on a CPU, goes on after an interruption, and gives a model like any other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

import legraph
from examples.train import graphs
from examples.train.evaluate import compiled
from examples.train.heldout import answers_right
from examples.train.model import batch_loss, new_model
from examples.train.packing import PackedGraphs, packed
from examples.train.recipe import SMOKE, Recipe
from examples.train.train import Training, rate
from legraph import Chunk
from legraph.bundle import NO_LABEL
from legraph.tokens import load_tokenizer

ROOT = Path(__file__).parent.parent
TRAIN = ROOT / "examples" / "train"


def run(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.train.train", "--out", str(out), "--smoke", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def steps(out: Path) -> list[int]:
    return [json.loads(row)["step"] for row in (out / "curve.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, and two more after that."""
    out = tmp_path_factory.mktemp("train") / "smoke"
    first = run(out, "--evaluation-graphs", "1")
    assert first.returncode == 0, first.stderr
    assert steps(out) == [1, 2, 3, 4]
    # As a run leaves it that is killed: a row that no checkpoint knows, and half of another.
    with (out / "curve.jsonl").open("a") as curve:
        curve.write('{"step": 5, "loss": 1.0, "seconds": 9}\n{"step": 6, "lo')
    second = run(out, "--evaluation-graphs", "1", "--resume", "--set", "steps=6", "many_share=0.5")
    assert second.returncode == 0, second.stderr
    # No bar where nobody looks; the rows are the log.
    assert '{"step": 6' in second.stderr
    assert "━" not in second.stderr
    return out


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(trained: Path) -> None:
    assert steps(trained) == [1, 2, 3, 4, 5, 6]
    rows = [json.loads(row) for row in (trained / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "exact" in row] == [4, 6]
    assert all(math.isfinite(row["loss"]) for row in rows)
    # The learning goes on: a new model's loss is that of guessing, about 1.1 ln(512) with the texts' share.
    assert rows[4]["loss"] < rows[0]["loss"]
    assert torch.load(trained / "checkpoint.pt", weights_only=True)["step"] == 6


@pytest.mark.slow
def test_every_phase_is_on_record(trained: Path) -> None:
    record = json.loads((trained / "recipe.json").read_text())
    found = [(phase["first_step"], phase["steps"], phase["many_share"]) for phase in record["phases"]]
    assert found == [(0, 4, 0.1), (4, 6, 0.5)]
    assert record["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_the_published_folder_is_a_model_like_any_other(trained: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float16
    learned = torch.load(trained / "checkpoint.pt", weights_only=True)["model"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, learned[name].half()), name
    bundle = legraph.compile_chunks([Chunk("Who is the baker?")], tokenizer)
    assert len(legraph.Engine(model.float(), tokenizer).run(bundle).outputs) == 1


@pytest.mark.slow
def test_an_interruption_while_saving_keeps_the_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer").symlink_to(trained / "tokenizer")
    training = Training(SMOKE, tmp_path, torch.device("cpu"))
    training.step = 3
    training.save()
    before = training.checkpoint.read_bytes()

    def interrupted(state: Any, path: Path) -> None:
        path.write_bytes(b"half a check")
        raise KeyboardInterrupt

    training.step = 4
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", interrupted)
        training.save()
    assert training.checkpoint.read_bytes() == before
    again = Training(SMOKE, tmp_path, torch.device("cpu"))
    again.resume()
    assert again.step == 3


@pytest.mark.parametrize("change", ["no_such_field=1", "steps=many", "steps"])
def test_a_wrong_change_of_the_recipe_is_an_error(change: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        SMOKE.changed([change])


def test_the_learning_rate_warms_up_and_cools_down() -> None:
    assert rate(0, 0.0, 300) == pytest.approx(1 / 300)
    assert rate(299, 0.0, 300) == pytest.approx(1.0)
    assert rate(300, 0.5, 300) == pytest.approx(0.505)
    assert rate(300, 1.0, 300) == rate(300, 1.7, 300) == pytest.approx(0.01)


def test_batches_are_full_and_the_same_for_the_same_seed() -> None:
    tokenizer = load_tokenizer("recall")
    first, second, other = (
        next(iter(PackedGraphs(SMOKE, tokenizer, first_step))) for first_step in (0, 0, 4)
    )
    assert len(first) == len(other) == SMOKE.batch_tokens
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    assert not np.array_equal(first.input_ids, other.input_ids)
    assert first.labels is not None
    # Labels are the answers' tokens, each chunk's last ones, up to the end token.
    for i, name in enumerate(first.span_names):
        span = first.span(i)
        learned = first.labels[span] != NO_LABEL
        asks = name.split(".")[-1].startswith(("q", "s")) and learned.any()
        assert learned.any() == asks
        if asks:
            num_learned = int(learned.sum())
            assert learned[-num_learned:].all()
            assert first.input_ids[span][-1] == tokenizer.eos_token_id


def test_packing_leaves_out_what_is_too_large() -> None:
    tokenizer = load_tokenizer("recall")
    small = legraph.compile_chunks([Chunk("The fox is red.")], tokenizer)
    large = legraph.compile_chunks([Chunk("The fox is red. " * 30)], tokenizer)
    room = 3 * len(small) + 1
    batches = list(packed([small, large, small, small, small], tokenizer, room))
    assert [len(batch) for batch in batches] == [room, room]
    assert [batch.mask.num_chunks for batch in batches] == [4, 2]


def test_the_loss_counts_answers_and_a_share_of_the_texts() -> None:
    """Against a sum over tokens in numpy, from the logits of a pass with the dense mask."""
    tokenizer = load_tokenizer("recall")
    model = new_model(SMOKE, tokenizer)
    graph = graphs.one_hop(Random(5), "train", "tree", 3, 2, learn=True)
    bundle = compiled(graph, tokenizer)
    assert bundle.labels is not None
    mask = torch.from_numpy(bundle.dense_mask())[None, None]
    ids = torch.from_numpy(bundle.input_ids)[None]
    positions = torch.from_numpy(bundle.position_ids)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, position_ids=positions, attention_mask=mask).logits[0]
        losses = [float(batch_loss(model, bundle, weight)) for weight in (0.0, 0.25)]
    surprise = -logits.double().log_softmax(-1).numpy()
    answers, texts = list[float](), list[float]()
    for i in range(bundle.mask.num_chunks):
        span = bundle.span(i)
        for t in range(span.start + 1, span.stop):
            found = float(surprise[t - 1, bundle.input_ids[t]])
            texts.append(found)
            if bundle.labels[t] != NO_LABEL:
                answers.append(found)
    assert losses[0] == pytest.approx(np.mean(answers), rel=1e-4)
    assert losses[1] == pytest.approx(np.mean(answers) + 0.25 * np.mean(texts), rel=1e-4)


def test_an_answer_is_right_only_as_a_whole() -> None:
    model, tokenizer = legraph.load_model("recall", "cpu"), load_tokenizer("recall")
    document = Chunk("The amber key of Voldan opens the north gate.", name="document")
    question = "Which gate does the amber key of Voldan open?"
    chunks = [
        Chunk(question, parents=[document], name=f"q{i}", completion=answer + graphs.END, loss=True)
        for i, answer in enumerate((" the north gate.", " the north well.", " the south gate."))
    ]
    assert answers_right(model, legraph.compile_chunks(chunks, tokenizer)) == [True, False, False]


def test_many_share_draws_more_documents() -> None:
    def mean_chunks(many_share: float) -> float:
        tokenizer = load_tokenizer("recall")
        drawn = (graphs.training_graph(Random(i), 64, many_share) for i in range(150))
        return float(np.mean([compiled(graph, tokenizer).mask.num_chunks for graph in drawn]))

    few, many = mean_chunks(0.0), mean_chunks(1.0)
    # 1 to 64 documents instead of half 1 to 5 and half 1 to 16: about 32 instead of about 6.
    assert many > few + 15


def test_the_curve_and_the_recipe_of_the_shipped_model_are_kept() -> None:
    rows = [json.loads(row) for row in (TRAIN / "curve.jsonl").read_text().splitlines()]
    record = json.loads((TRAIN / "recipe.json").read_text())
    first, second = record["phases"]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    assert (first["first_step"], rows[-1]["step"]) == (0, 6076)
    assert second["first_step"] in [row["step"] for row in rows]
    # The fields are those of a recipe of today, and they make the model that ships.
    limits = {"first_step", "max_seconds", "workers"}
    recipes = [Recipe(**{k: v for k, v in phase.items() if k not in limits}) for phase in (first, second)]
    tokenizer = load_tokenizer("recall")
    shipped = legraph.load_model("recall", "cpu")
    made = new_model(recipes[0], tokenizer)
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in shipped.state_dict().items()
    }
    assert recipes[0] == Recipe(betas=[0.9, 0.98])  # type: ignore[arg-type]
