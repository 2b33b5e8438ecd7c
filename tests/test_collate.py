"""The collator: packed batches learn what their graphs alone would teach, with every trainer people use."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.data import DataLoader

from legraph import Bundle, Chunk, Collator, InputError, ModelError, RunError, compile_chunks
from legraph.bundle import NO_LABEL
from legraph.collate import DeferredMask
from legraph.mask import ChunkMask
from legraph.model import use_attention
from legraph.packfile import PackGraph, pack_row
from legraph.union import disjoint_union
from tests.random_graphs import bundles, drawn, tokenizer
from tests.tiny_models import VOCABULARY, tiny_model

# torch's own, in its compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
]

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTH = 48
ROWS = 3
MODELS = ["llama", "qwen3", "mistral-window", "gemma3"]
# gpu: the same with flex.
DEVICES = [("cpu", "sdpa"), ("cpu", "eager"), pytest.param("cuda", "flex", marks=ON_GPU)]


@st.composite
def learned_bundles(draw: st.DrawFn) -> Bundle:
    """A random graph in which some tokens count, one at least: any but a chunk's first."""
    bundle = draw(bundles(max_chunks=5, max_length=5).filter(lambda bundle: 8 < len(bundle) < 17))
    can_count = np.setdiff1d(np.arange(len(bundle)), bundle.span_offsets[:-1])
    chosen = draw(st.lists(st.sampled_from(can_count.tolist()), min_size=1, unique=True))
    labels = np.full(len(bundle), NO_LABEL, dtype=np.int64)
    labels[chosen] = bundle.input_ids[chosen]
    return replace(bundle, labels=labels)


def row_of(graphs: list[Bundle]) -> dict[str, Any]:
    """As it comes out of `datasets`: lists, not padded."""
    parts = []
    for i, bundle in enumerate(graphs):
        arrays = (bundle.input_ids, bundle.position_ids, bundle.labels)
        parts.append(PackGraph(f"g{i}", *(np.asarray(a, dtype=np.int32) for a in arrays), bundle.mask))
    return {
        key: value if isinstance(value, list) else value.tolist() for key, value in pack_row(parts).items()
    }


def batch_of(draw_rows: list[list[Bundle]], collator: Collator, device: str) -> dict[str, Any]:
    return moved(collator([row_of(graphs) for graphs in draw_rows]), device)


def moved(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {key: moved(each, device) for key, each in value.items()}
    return value.to(device)


def model_of(name: str, device: str, attn: Any) -> Any:
    model = copy.deepcopy(tiny_model(name)).to(device)
    use_attention(model, attn)
    model.zero_grad(set_to_none=True)
    return model


def summed_loss(model: Any, bundle: Bundle) -> torch.Tensor:
    """Of a graph alone, from logits under its own dense mask: the definition, token by token."""
    attn = "sdpa" if model.config.model_type != "gemma3_text" else "eager"
    device = model.device
    use_attention(model, attn)
    inputs = bundle.model_inputs(device, attn, config=model.config)
    labels = inputs.pop("labels")[0].tolist()
    surprise = -model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)
    counted = [surprise[t - 1, label] for t, label in enumerate(labels) if label != NO_LABEL]
    return torch.stack(counted).sum()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4 * scale, msg=name)


# What is learned


@settings(max_examples=8)
@given(graphs=st.lists(learned_bundles(), min_size=3, max_size=6))
@pytest.mark.parametrize(("device", "attn"), DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_has_the_loss_and_the_gradients_of_its_graphs(
    name: str, device: str, attn: Any, graphs: list[Bundle]
):
    model = model_of(name, device, attn)
    collator = Collator(LENGTH, config=model.config, attn=attn, rows=ROWS)
    batch = batch_of([graphs[:2], graphs[2:3], graphs[3:]][: 2 + (len(graphs) > 3)], collator, device)
    # As a Trainer has it: the sum over what counts in all batches of a step, divided by their number.
    num_labels = sum(int((bundle.labels != NO_LABEL).sum()) for bundle in graphs)
    loss = model(**batch, use_cache=False, num_items_in_batch=num_labels).loss
    loss.backward()
    found = gradients(model)
    model.zero_grad(set_to_none=True)
    alone = torch.stack([summed_loss(model, bundle) for bundle in graphs]).sum() / num_labels
    alone.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-4)
    assert_same(found, gradients(model))


@pytest.mark.parametrize(("device", "attn"), DEVICES)
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(name: str, device: str, attn: Any) -> None:
    batches = []
    for checkpointing in (False, True):
        model = model_of(name, device, attn).train()
        if checkpointing:
            # As it is called since transformers 5.2x, and as it was called before.
            name_now = "activation_checkpointing_enable"
            enable = name_now if hasattr(model, name_now) else "gradient_checkpointing_enable"
            getattr(model, enable)()
        collator = Collator(LENGTH, config=model.config, attn=attn)
        loss = model(**moved(collator(examples(2)), device), use_cache=False).loss
        loss.backward()
        batches.append((loss.item(), gradients(model)))
    assert batches[0][0] == pytest.approx(batches[1][0], rel=1e-6)
    assert_same(batches[1][1], batches[0][1])


def examples(number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of two small graphs each: the answer is a document's letter."""
    random = Random(seed)
    return [row_of([riddle(random), riddle(random)]) for _ in range(number)]


def riddle(random: Random) -> Bundle:
    letters = random.sample("ABCDEFGH", 2)
    docs = [Chunk(f"{i}={letter}", name=f"d{i}") for i, letter in enumerate(letters)]
    asked = random.randrange(2)
    question = Chunk(f"{asked}?", parents=docs, name="q", completion=letters[asked] * 3, loss=True)
    return compile_chunks([question], tokenizer())


@pytest.mark.parametrize("attn", ["sdpa", pytest.param("flex", marks=ON_GPU)])
def test_a_compiled_model_learns_the_same_and_is_compiled_once(attn: Any) -> None:
    device = "cpu" if attn == "sdpa" else "cuda"
    model = model_of("llama", device, attn)
    collator = Collator(LENGTH, config=model.config, attn=attn, rows=ROWS)
    graph_counts: list[int] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graph_counts.append(len(inputs))
        return graph

    # The graphs that torch captures are what is counted; how they are translated is not the point.
    compiled = torch.compile(model, backend=counting if device == "cpu" else "inductor")
    for step in range(4):
        # The last batch is a short one.
        batch = moved(collator(examples(ROWS if step < 3 else 1, seed=step)), device)
        loss = compiled(**batch, use_cache=False).loss
        expected = model(**batch, use_cache=False).loss
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        if step == 0:
            first = len(graph_counts)
    assert len(graph_counts) == first


# Shapes and contents


@settings(max_examples=40)
@given(rows=st.lists(st.lists(learned_bundles(), min_size=1, max_size=2), min_size=1, max_size=ROWS))
def test_a_batch_is_the_union_of_its_rows_and_of_padding_that_nobody_sees(rows: list[list[Bundle]]):
    given_rows = [row_of(row) for row in rows]
    one = moved(Collator(LENGTH, config=None, rows=ROWS, pad_token_id=7)(given_rows), "cpu")
    batch = Collator(LENGTH, config=None, attn="sdpa", rows=ROWS, pad_token_id=7)(given_rows)
    assert [batch[key].shape for key in ("input_ids", "position_ids", "labels")] == [(ROWS, LENGTH)] * 3
    assert batch["attention_mask"].shape == (ROWS, 1, LENGTH, LENGTH)
    for key in ("input_ids", "position_ids", "labels"):
        assert batch[key].dtype == torch.int64
        assert torch.equal(one[key], batch[key].reshape(1, -1))
    for i, row in enumerate([*rows, *[[]] * (ROWS - len(rows))]):
        num_tokens = sum(map(len, row))
        whole = np.zeros((LENGTH, LENGTH), dtype=bool)
        whole[num_tokens:, num_tokens:] = np.tri(LENGTH - num_tokens, dtype=bool)
        if row:
            union = disjoint_union(row)
            whole[:num_tokens, :num_tokens] = union.dense_mask()
            assert batch["input_ids"][i, :num_tokens].tolist() == union.input_ids.tolist()
            assert batch["position_ids"][i, :num_tokens].tolist() == union.position_ids.tolist()
            assert union.labels is not None
            assert batch["labels"][i, :num_tokens].tolist() == union.labels.tolist()
        assert drawn(batch["attention_mask"][i, 0]) == drawn(whole)
        padding = [
            batch[key][i, num_tokens:].unique().tolist() for key in ("input_ids", "position_ids", "labels")
        ]
        assert padding == [[7], [0], [NO_LABEL]] or num_tokens == LENGTH
    # The BlockMask says the same of every pair, and sees nothing from row to row.
    pairs = np.arange(ROWS * LENGTH)
    seen = one["attention_mask"].mask_mod(0, 0, torch.tensor(pairs)[:, None], torch.tensor(pairs)[None])
    diagonal = torch.block_diag(*batch["attention_mask"][:, 0].int()).bool()
    assert torch.equal(seen, diagonal)


def test_all_batches_of_a_collator_have_one_shape() -> None:
    model = tiny_model("gemma3")
    for attn in ("flex", "sdpa"):
        collator = Collator(LENGTH, config=None, attn=attn, rows=ROWS)
        shapes = set()
        for number in (1, 2, ROWS):
            batch = moved(collator(examples(number, seed=number)), "cpu")
            shapes.add(tuple((key, tuple(value.shape)) for key, value in batch.items()))
        assert len(shapes) == 1
    assert model.config.sliding_window == 5


@pytest.mark.parametrize("name", ["mistral-window", "gemma3"])
def test_a_window_is_in_both_forms_of_the_mask(name: str) -> None:
    config = copy.deepcopy(tiny_model(name).config)
    graph = replace(compile_chunks([Chunk("abcdefghijklmnop", loss=True)], tokenizer()))
    masks = {}
    for attn in ("flex", "sdpa"):
        config._attn_implementation = {"flex": "legraph_flex_attention", "sdpa": "sdpa"}[attn]
        masks[attn] = moved(Collator(16, config=config, attn=attn)([graph]), "cpu")["attention_mask"]  # type: ignore[arg-type]
    q, k = torch.arange(16)[:, None], torch.arange(16)[None]
    full = k <= q
    expected = {"full_attention": full, "sliding_attention": full & (q - k < 5)}
    if name == "mistral-window":
        masks = {attn: {"sliding_attention": mask} for attn, mask in masks.items()}
        del expected["full_attention"]
    for kind, mask in expected.items():
        assert torch.equal(masks["sdpa"][kind][0, 0], mask)
        assert torch.equal(masks["flex"][kind].mask_mod(0, 0, q, k), mask)


def test_bundles_are_rows_too() -> None:
    graphs = [riddle(Random(seed)) for seed in range(2)]
    collator = Collator(LENGTH, config=None, attn="sdpa")
    found, expected = collator(graphs), collator([row_of([graph]) for graph in graphs])
    for key in expected:
        assert torch.equal(found[key], expected[key])


@pytest.mark.parametrize("form", ["numpy", "torch"])
def test_rows_of_arrays_are_rows_too(form: str) -> None:
    rows = examples(2)
    make: Any = np.asarray if form == "numpy" else torch.tensor
    arrays = [{k: v if k == "graph_ids" else make(v) for k, v in row.items()} for row in rows]
    collator = Collator(LENGTH, config=None, attn="sdpa")
    for key, value in collator(rows).items():
        assert torch.equal(collator(arrays)[key], value)


# From worker processes, and to devices


def test_batches_come_out_of_worker_processes() -> None:
    for attn in ("flex", "sdpa"):
        collator = Collator(LENGTH, config=tiny_model("llama").config if attn == "sdpa" else None, attn=attn)
        if attn == "sdpa":
            use_attention(tiny_model("llama"), "sdpa")
        rows = examples(4)
        loader = DataLoader(rows, batch_size=2, collate_fn=collator, num_workers=1)  # type: ignore[arg-type]
        batches = list(loader)
        assert len(batches) == 2
        for batch, part in zip(batches, (rows[:2], rows[2:]), strict=True):
            here = collator(part)
            for key in ("input_ids", "position_ids", "labels"):
                assert torch.equal(batch[key], here[key])
        if attn == "flex":
            assert isinstance(batches[0]["attention_mask"].to("cpu"), BlockMask)


def test_a_deferred_mask_is_built_on_the_device_it_is_moved_to() -> None:
    batch = Collator(LENGTH, config=None)(examples(1))
    deferred = batch["attention_mask"]
    assert isinstance(deferred, DeferredMask)
    # As Accelerate calls it; "meta" stands for another device.
    mask = deferred.to(torch.device("meta"), non_blocking=True)
    assert isinstance(mask, BlockMask)
    assert mask.kv_indices.device.type == "meta"
    cells = [cell.cell_contents for cell in mask.mask_mod.__closure__ or ()]
    tensors = [each for each in torch.utils._pytree.tree_leaves(cells) if isinstance(each, torch.Tensor)]
    assert tensors and all(tensor.device.type == "meta" for tensor in tensors)
    assert mask.seq_lengths == (LENGTH, LENGTH)


def test_with_a_device_the_mask_is_built_at_once() -> None:
    rows = examples(2)
    batch = Collator(LENGTH, config=None, device="cpu")(rows)
    assert isinstance(batch["attention_mask"], BlockMask)
    assert Collator(LENGTH, config=None, attn="sdpa", device="meta")(rows)["labels"].device.type == "meta"
    loader = DataLoader(rows, collate_fn=Collator(LENGTH, config=None, device="cpu"), num_workers=1)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="cannot leave the process"):
        next(iter(loader))


def test_a_collator_can_be_pickled() -> None:
    collator = Collator(LENGTH, config=tiny_model("llama").config, attn="sdpa", rows=2)
    again = pickle.loads(pickle.dumps(collator))
    assert again.config.to_dict() == tiny_model("llama").config.to_dict()
    assert (again.length, again.attn, again.rows) == (LENGTH, "sdpa", 2)


# Trainers


def training_loss(model: Any, collator: Collator, rows: list[dict[str, Any]]) -> float:
    with torch.no_grad():
        return model(**moved(collator(rows), model.device.type), use_cache=False).loss.item()


def small_model(attn: str = "sdpa", device: str = "cpu") -> Any:
    return model_of("llama", device, attn).train()


def test_a_plain_loop_learns() -> None:
    model = small_model()
    collator, rows = Collator(LENGTH, config=model.config, attn="sdpa"), examples(16)
    before = training_loss(model, collator, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in DataLoader(rows, batch_size=4, collate_fn=collator):  # type: ignore[arg-type]
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training_loss(model, collator, rows) < before - 0.5


@pytest.mark.parametrize("attn", ["sdpa", pytest.param("flex", marks=ON_GPU)])
def test_accelerate_learns(attn: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=attn == "sdpa")
    model = small_model(attn, accelerator.device.type)
    collator, rows = Collator(LENGTH, config=model.config, attn=attn), examples(16)
    before = training_loss(model, collator, rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = DataLoader(rows, batch_size=4, collate_fn=collator)  # type: ignore[arg-type]
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        accelerator.backward(prepared(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert training_loss(model, collator, rows) < before - 0.5


@pytest.mark.parametrize("attn", ["sdpa", pytest.param("flex", marks=ON_GPU)])
def test_the_trainer_of_transformers_learns(attn: Any, tmp_path: Any) -> None:
    """With gradient checkpointing and accumulation, an evaluation, and a last batch of fewer rows."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = small_model(attn, "cpu" if attn == "sdpa" else "cuda")
    collator = Collator(LENGTH, config=model.config, attn=attn, rows=4)
    rows = datasets.Dataset.from_list(examples(18))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=2,
        activation_checkpointing=True,
        num_train_epochs=3,
        learning_rate=3e-3,
        remove_unused_columns=False,
        prediction_loss_only=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=attn == "sdpa",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 9
    # Every token counts the same, however it was batched: the first loss is that of the first batches alone.
    assert losses[0] == pytest.approx(before, abs=1.0)
    assert trainer.evaluate()["eval_loss"] < before - 0.5


def test_a_trainer_that_removes_columns_is_told_so(tmp_path: Any) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = small_model()
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    collator = Collator(LENGTH, config=model.config, attn="sdpa")
    rows = datasets.Dataset.from_list(examples(2))
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows)
    with pytest.raises(InputError, match="remove_unused_columns=False"):
        trainer.train()


# What is wrong


def test_wrong_settings_are_errors() -> None:
    with pytest.raises(ValueError, match="length is 0"):
        Collator(0, config=None)
    with pytest.raises(ValueError, match="rows is 0"):
        Collator(4, config=None, rows=0)
    with pytest.raises(ValueError, match="expected one of flex, sdpa, eager"):
        Collator(4, config=None, attn="flash")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="config"):
        Collator(4)  # type: ignore[call-arg]


def test_a_model_that_attends_otherwise_is_an_error() -> None:
    model = model_of("llama", "cpu", "eager")
    collator = Collator(LENGTH, config=model.config, attn="sdpa")
    with pytest.raises(ModelError, match="attends with 'eager'"):
        collator(examples(1))
    use_attention(model, "sdpa")
    collator(examples(1))


def test_wrong_rows_are_all_named() -> None:
    good = examples(1)[0]
    too_long = row_of([riddle(Random(i)) for i in range(6)])
    unlabelled = compile_chunks([Chunk("abc")], tokenizer())
    without = {key: value for key, value in good.items() if key != "span_offsets"}
    with pytest.raises(InputError) as raised:
        Collator(LENGTH, config=None)([good, too_long, unlabelled, without])  # type: ignore[list-item]
    assert [problem.message for problem in raised.value.problems] == [
        "row 1: 66 tokens for 48",
        "row 2: the bundle has no labels",
        "row 3: not a row of a pack: span_offsets missing",
    ]
    with pytest.raises(InputError, match="at least one row"):
        Collator(LENGTH, config=None)([])
    with pytest.raises(InputError, match="2 rows for a batch of 1"):
        Collator(LENGTH, config=None, rows=1)([good, good])


# Each is one change of a row of two graphs, 11 tokens and 3 chunks each.
BROKEN = {
    "tokens are cut off": ("input_ids", lambda x: x[:-1]),
    "labels are cut off": ("labels", lambda x: x[:-1]),
    "positions are cut off": ("position_ids", lambda x: x[:-1]),
    "a span goes back": ("span_offsets", lambda x: [x[0], x[2], x[1], *x[3:]]),
    "spans end early": ("span_offsets", lambda x: [*x[:-1], x[-1] - 1]),
    "a chunk has no row": ("parent_offsets", lambda x: x[:-1]),
    "a parent is missing": ("parent_indices", lambda x: x[:-1]),
    "a parent comes after": ("parent_indices", lambda x: [*x[:-1], 5]),
    "a parent is twice": ("parent_indices", lambda x: [*x[:-1], x[-2]]),
    "a parent is negative": ("parent_indices", lambda x: [-1, *x[1:]]),
    "half a token": ("input_ids", lambda x: [*x[:-1], 0.5]),
    "no token": ("input_ids", lambda x: []),
    "text": ("labels", lambda x: ["a"] * len(x)),
    "a table": ("input_ids", lambda x: [x]),
    "nothing": ("labels", lambda x: None),
    "a chunk's first token counts": ("labels", lambda x: [5, *x[1:]]),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_row_is_an_error(what: str) -> None:
    key, change = BROKEN[what]
    row = examples(1)[0]
    Collator(LENGTH, config=None)([row])
    with pytest.raises(InputError, match="row 0: "):
        Collator(LENGTH, config=None)([row | {key: change(row[key])}])


def test_a_pack_of_one_chunk_has_no_parents() -> None:
    graph = compile_chunks([Chunk("abc", loss=True)], tokenizer())
    assert graph.mask.num_edges == 0
    batch = Collator(4, config=None, attn="sdpa", pad_token_id=VOCABULARY - 1)([row_of([graph])])
    assert batch["input_ids"].tolist() == [[*b"abc", VOCABULARY - 1]]
    assert isinstance(graph.mask, ChunkMask)
