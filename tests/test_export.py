"""Exports: each format, read by its own definition, is the mask again, or is refused where it must be."""

from __future__ import annotations

import json
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import legraph
from legraph.bundle import Bundle
from legraph.errors import InputError
from legraph.export import FORMATS, MAX_CHECKED_TOKENS, dense_from, export_mask, save_export
from legraph.mask import ChunkMask
from tests.command_line import Call, Done
from tests.random_graphs import Dag, brute_force_mask, dags, drawn

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")
EXAMPLES = sorted(
    path for suffix in ("yaml", "toml") for path in (ROOT / "examples").glob(f"*.{suffix}") if path.is_file()
)

# a | b | c (sees a, b)
FORK = Dag((2, 1, 2), ((), (), (0, 1)))
# a | b (sees a) | c (sees b) | d (sees a): a is seen by a, b and d, and hidden from c.
RETURN = Dag((1, 1, 1, 1), ((), (0,), (1,), (0,)))
# As before, and a last chunk that sees none of it: what follows d is hidden from a again.
LEFT = Dag((1, 1, 1, 1, 1), ((), (0,), (1,), (0,), ()))


def columns_needed(dense: np.ndarray) -> int | None:
    """Columns that FlashMask needs, from each key's rows: None if some rows are hidden, seen and hidden."""
    needed = 1
    for key in range(len(dense)):
        below = "".join("#" if seen else "." for seen in dense[key:, key])
        if re.fullmatch(r"#+\.*", below):
            continue
        if not re.fullmatch(r"#+\.+#+", below):
            return None
        needed = 2
    return needed


def refusal(dag: Dag, format: str = "flashmask", names: list[str] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        export_mask(dag.mask(), format, names)
    return str(caught.value)


# What the formats are, in small: written by hand from the libraries' documentation.


def test_flashmask_gives_each_key_the_rows_that_do_not_see_it():
    rows = export_mask(FORK.mask(), "flashmask")["startend_row_indices"]
    # Rows 2 to 2 do not see a; all rows below the diagonal see b and c.
    assert rows.tolist() == [[[[2, 3], [2, 3], [5, 5], [5, 5], [5, 5]]]]
    assert rows.dtype == np.int32


def test_flashmask_needs_one_column_where_nothing_is_seen_again():
    chain = Dag((1, 2, 1), ((), (0,), (1,)))
    assert export_mask(chain.mask(), "flashmask")["startend_row_indices"].tolist() == [[[[3], [4], [4], [4]]]]


def test_ffa_gives_each_chunk_its_triangle_and_what_stands_before_it():
    arrays = export_mask(FORK.mask(), "ffa")
    assert arrays["q_ranges"].tolist() == [[0, 2], [2, 3], [3, 5]]
    assert arrays["k_ranges"].tolist() == [[0, 2], [2, 3], [0, 5]]
    assert arrays["attn_type_map"].tolist() == [1, 1, 1]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int32)}
    apart = export_mask(RETURN.mask(), "ffa")
    rectangles = zip(*(apart[key].tolist() for key in ("q_ranges", "k_ranges", "attn_type_map")), strict=True)
    # a and b, which sees a, are plainly causal together.
    assert sorted(rectangles) == [
        ([0, 2], [0, 2], 1),
        ([2, 3], [1, 3], 1),
        ([3, 4], [0, 1], 0),
        ([3, 4], [3, 4], 1),
    ]


def test_cu_seqlens_gathers_parents_then_the_chunk_itself():
    arrays = export_mask(FORK.mask(), "cu-seqlens")
    assert arrays["cu_seqlens_q"].tolist() == [0, 2, 3, 5]
    assert arrays["cu_seqlens_k"].tolist() == [0, 2, 3, 8]
    assert arrays["key_indices"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert (arrays["max_seqlen_q"].item(), arrays["max_seqlen_k"].item()) == (2, 5)
    dtypes = {key: (str(array.dtype), array.ndim) for key, array in arrays.items()}
    assert dtypes == {
        "cu_seqlens_q": ("int32", 1),
        "cu_seqlens_k": ("int32", 1),
        "key_indices": ("int64", 1),
        "max_seqlen_q": ("int64", 0),
        "max_seqlen_k": ("int64", 0),
    }


def test_a_fully_causal_graph_is_one_rectangle():
    dag = Dag((3, 1, 2), ((), (0,), (0, 1)))
    arrays = export_mask(dag.mask(), "ffa")
    assert [arrays[key].tolist() for key in arrays] == [[[0, 6]], [[0, 6]], [1]]


# The reading, against pictures in the libraries' documentation.


def test_causal_is_aligned_to_the_bottom_right():
    """2 queries and 5 keys: the picture of flash_attn_varlen_func and of flex_flash_attn_func alike."""
    picture = "####.\n#####"
    rectangle = [np.array([[0, 3], [3, 5]]), np.array([[0, 3], [0, 5]]), np.array([0, 1])]
    read = dense_from("ffa", dict(zip(("q_ranges", "k_ranges", "attn_type_map"), rectangle, strict=True)))
    assert drawn(read[3:]) == picture
    gathered = {
        "cu_seqlens_q": np.array([0, 3, 5]),
        "cu_seqlens_k": np.array([0, 3, 8]),
        "key_indices": np.array([0, 1, 2, 0, 1, 2, 3, 4]),
    }
    assert drawn(dense_from("cu-seqlens", gathered)[3:]) == picture


def test_flashmask_masks_from_the_first_row_until_before_the_second():
    one = np.array([2, 4, 3, 4])[None, None, :, None]
    assert drawn(dense_from("flashmask", {"startend_row_indices": one})) == "#...\n##..\n.##.\n.#.#"
    two = np.array([[1, 3], [4, 4], [3, 4], [4, 4]])[None, None]
    assert drawn(dense_from("flashmask", {"startend_row_indices": two})) == "#...\n.#..\n.##.\n##.#"


@pytest.mark.parametrize(
    ("k_ranges", "kinds", "said"),
    [([[0, 2], [1, 2]], [1, 0], "two rectangles hold query 1"), ([[0, 2], [0, 1]], [1, 2], "of kind 2")],
)
def test_rectangles_that_overlap_or_are_of_another_kind_are_no_reading(
    k_ranges: Any, kinds: Any, said: str
) -> None:
    ranges = {"q_ranges": np.array([[0, 2], [1, 2]]), "k_ranges": np.array(k_ranges)}
    with pytest.raises(InputError, match=said):
        dense_from("ffa", ranges | {"attn_type_map": np.array(kinds)})


# Round trips.


@settings(max_examples=150)
@given(dag=dags())
def test_dense_ffa_and_cu_seqlens_tell_every_graph(dag: Dag):
    expected = brute_force_mask(dag)
    for format in ("dense", "ffa", "cu-seqlens"):
        assert np.array_equal(dense_from(format, export_mask(dag.mask(), format)), expected)


@settings(max_examples=250)
@given(dag=dags(max_chunks=9, max_length=3))
def test_flashmask_tells_what_it_can_and_refuses_the_rest(dag: Dag):
    expected = brute_force_mask(dag)
    needed = columns_needed(expected)
    if needed is None:
        assert "flashmask cannot tell" in refusal(dag)
    else:
        arrays = export_mask(dag.mask(), "flashmask")
        assert arrays["startend_row_indices"].shape == (1, 1, dag.num_tokens, needed)
        assert np.array_equal(dense_from("flashmask", arrays), expected)


@settings(max_examples=150)
@given(dag=dags())
def test_no_pair_lies_in_two_rectangles_and_none_is_empty(dag: Dag):
    arrays = export_mask(dag.mask(), "ffa")
    covered = np.zeros((dag.num_tokens, dag.num_tokens), dtype=int)
    # Whole rectangles, triangles too: not even what is masked in one belongs to another.
    for (q_start, q_end), (k_start, k_end) in zip(arrays["q_ranges"], arrays["k_ranges"], strict=True):
        assert q_start < q_end
        assert k_start < k_end
        covered[q_start:q_end, k_start:k_end] += 1
    assert covered.max() == 1
    assert len(arrays["q_ranges"]) <= len(dag.lengths) + sum(map(len, dag.parents))


@settings(max_examples=100)
@given(dag=dags())
def test_the_sequences_are_the_chunks_and_hold_each_key_once(dag: Dag):
    arrays = export_mask(dag.mask(), "cu-seqlens")
    assert np.diff(arrays["cu_seqlens_q"]).tolist() == list(dag.lengths)
    ends = arrays["cu_seqlens_k"]
    sizes = [len(set(arrays["key_indices"][start:end].tolist())) for start, end in pairwise(ends)]
    assert sizes == [
        length + sum(dag.lengths[parent] for parent in parents)
        for length, parents in zip(dag.lengths, dag.parents, strict=True)
    ]
    assert arrays["max_seqlen_q"] == max(dag.lengths)
    assert arrays["max_seqlen_k"] == max(sizes)


def test_torchs_own_lower_right_attention_over_gathered_keys_is_attention_with_the_mask():
    import torch
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    dag = Dag((3, 2, 4, 1, 3), ((), (0,), (0,), (1, 2), (0, 3)))
    arrays = {key: torch.from_numpy(array) for key, array in export_mask(dag.mask(), "cu-seqlens").items()}
    q, k, v = torch.randn(3, 1, 2, dag.num_tokens, 8, generator=torch.Generator().manual_seed(0))
    expected = sdpa(q, k, v, attn_mask=torch.from_numpy(brute_force_mask(dag)))
    for i in range(len(dag.lengths)):
        queries = slice(arrays["cu_seqlens_q"][i], arrays["cu_seqlens_q"][i + 1])
        keys = arrays["key_indices"][arrays["cu_seqlens_k"][i] : arrays["cu_seqlens_k"][i + 1]]
        bias: Any = causal_lower_right(dag.lengths[i], len(keys))
        out = sdpa(q[:, :, queries], k[:, :, keys], v[:, :, keys], attn_mask=bias)
        torch.testing.assert_close(out, expected[:, :, queries])


# Refusals.


def test_a_refusal_names_the_chunk_and_a_way_out():
    said = refusal(LEFT, names=["a", "b", "c", "d", "e"])
    assert said.splitlines() == [
        "flashmask cannot tell who sees chunk 'a': 2 separate runs of tokens",
        "  expected: one run of tokens, or two of which the second ends with the last token",
        "  hint: another token order may do (--order locality); the format 'ffa' tells every graph",
    ]
    assert "who sees chunk 0: 2 separate runs" in refusal(LEFT)
    assert export_mask(RETURN.mask(), "flashmask")["startend_row_indices"][0, 0, 0].tolist() == [2, 3]


def test_a_refusal_counts_the_chunks_like_it():
    # Of a and b, each is seen by every other chunk that follows.
    dag = Dag((1,) * 6, ((), (), (0,), (1,), (0,), (1,)))
    assert "who sees chunk 0: 3 separate runs of tokens, and 1 other chunk like it\n" in refusal(dag)


def test_more_keys_than_int32_counts_are_refused_before_they_are_gathered():
    half = 2**30
    spans = np.array([0, half, half + 1, half + 2], dtype=np.int64)
    mask = ChunkMask(spans, np.array([0, 0, 1, 2], dtype=np.int64), np.array([0, 0], dtype=np.int64))
    with pytest.raises(InputError, match="3,221,225,474 in all"):
        export_mask(mask, "cu-seqlens")
    assert export_mask(mask, "ffa")["k_ranges"].tolist() == [[0, half + 1], [0, half], [half + 1, half + 2]]


def test_an_unknown_format_is_refused_with_a_suggestion():
    with pytest.raises(InputError) as caught:
        dense_from("flash-mask", {})
    for said in (refusal(FORK, "flash-mask"), str(caught.value)):
        assert said.startswith("no export format 'flash-mask'\n  expected: one of dense, flashmask, ffa")
        assert said.endswith("hint: did you mean 'flashmask'?")


class Forgetful(ChunkMask):
    """Its reference is short of a pair that all its other forms have."""

    def dense(self) -> np.ndarray:
        mask = super().dense()
        mask[-1, 0] = False
        return mask


@pytest.mark.parametrize("format", ["flashmask", "ffa", "cu-seqlens"])
def test_an_export_that_is_not_the_mask_is_our_fault_and_not_written(format: str):
    mask = FORK.mask()
    wrong = Forgetful(mask.span_offsets, mask.parent_offsets, mask.parent_indices)
    with pytest.raises(AssertionError, match=f"the {format} export is not the mask"):
        export_mask(wrong, format)


# Cost.


@pytest.mark.parametrize("format", ["flashmask", "ffa", "cu-seqlens"])
def test_nothing_is_tokens_times_tokens(format: str):
    """A question over 999 documents of 40 tokens: one bit a pair would be 200 MB."""
    dag = Dag((40,) * 1000, ((),) * 999 + (tuple(range(999)),))
    mask = dag.mask()
    assert mask.num_tokens > MAX_CHECKED_TOKENS
    tracemalloc.start()
    arrays = export_mask(mask, format)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
    sizes = {"flashmask": 2 * 40_000, "ffa": 5 * 1000, "cu-seqlens": 2 * 1001 + 999 * 40 + 40_000 + 2}
    assert sum(array.size for array in arrays.values()) == sizes[format]


# Files.


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, json.loads(arrays.pop("meta").item())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("example", EXAMPLES, ids=[path.name for path in EXAMPLES])
def test_examples_through_the_command_line(example: Path, format: str, tmp_path: Path, call: Call) -> None:
    output = tmp_path / "out.npz"
    bundle = legraph.compile_file(example)
    done = call("compile", example, "--export", format, "-o", output)
    if format == "flashmask" and columns_needed(bundle.dense_mask()) is None:
        assert (done.code, done.out, list(tmp_path.iterdir())) == (2, "", [])
        assert re.search(r"flashmask cannot tell who sees chunk '\w+'", done.err)
        return
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{output}: {len(bundle):,} tokens, ")
    arrays, meta = read(output)
    assert np.array_equal(dense_from(format, arrays), bundle.dense_mask())
    assert np.array_equal(arrays["input_ids"], bundle.input_ids)
    assert np.array_equal(arrays["position_ids"], bundle.position_ids)
    assert meta == {
        "format": format,
        "legraph_version": legraph.__version__,
        "num_tokens": len(bundle),
        "tokenizer": bundle.meta.tokenizer,
    }


@pytest.mark.parametrize("format", FORMATS)
def test_without_o_the_export_stands_beside_its_graph(format: str, graph: Path, call: Call) -> None:
    output = graph.with_name(f"graph.{format}.npz")
    assert call("compile", graph, "--export", format) == Done(
        0, f"{output}: 54 tokens, 3 chunks, 2 edges\n", ""
    )
    assert {path.name for path in graph.parent.iterdir()} == {"graph.yaml", output.name}
    assert read(output)[1]["format"] == format


def test_the_same_graph_gives_the_same_bytes(graph: Path, tmp_path: Path, call: Call) -> None:
    for name in ("one.npz", "two.npz"):
        call("compile", graph, "--export", "ffa", "-o", tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_the_order_counts_for_exports_too(tmp_path: Path, call: Call) -> None:
    lines = [f"  - {{name: {name}, text: {'x' * 64}}}" for name in "ab"]
    lines += [f"  - {{name: q{name}, text: {'y' * 64}, parents: [{name}]}}" for name in "ab"]
    source = "\n".join(["legraph: 1", "tokenizer: bytes", "chunks:", *lines])
    command = ["compile", "-", "-o", tmp_path / "o.npz", "--export", "flashmask"]
    done = call(*command, stdin=source)
    assert done.code == 2
    assert "who sees chunk 'a': 2 separate runs of tokens\n" in done.err
    assert "--order locality" in done.err
    assert call(*command, "--order", "locality", stdin=source).code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--export", "flashmsk"],
            "--export is 'flashmsk'\n  expected: one of dense, flashmask, ffa, cu-seqlens",
        ),
        (["--export", "flashmsk"], "hint: did you mean 'flashmask'?"),
        (["--export", "ffa", "--mask", "dense"], "--mask is about bundles, and --export writes none"),
        (["--export", "ffa", "--mask", "compact"], "--mask is about bundles, and --export writes none"),
        (["--export", "ffa", "-o", "out.pt"], "out.pt: exports are .npz files\n  expected: -o OUT.npz"),
        (["--export", "ffa", "-o", "out"], "out: exports are .npz files"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_read(
    arguments: list[str], said: str, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("compile", "never-read.yaml", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "no such file" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_standard_input_needs_a_name(call: Call) -> None:
    done = call("compile", "-", "--export", "ffa", stdin="legraph: 1")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: a graph from standard input needs -o\n  expected: -o OUT.npz\n"


def bundle_of(dag: Dag) -> Bundle:
    chunks: list[legraph.Chunk] = []
    for length, parents in zip(dag.lengths, dag.parents, strict=True):
        chunks.append(legraph.Chunk("x" * length, parents=[chunks[i] for i in parents]))
    return legraph.compile_chunks(chunks, tokenizer="bytes")


def test_what_stood_there_stays_when_an_export_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.npz"
    save_export(bundle_of(FORK), path, "flashmask")
    before = path.read_bytes()
    with pytest.raises(InputError, match="flashmask cannot tell"):
        save_export(bundle_of(LEFT), path, "flashmask")
    for wrong, format in (("mask.pt", "ffa"), ("mask.npz", "ffaa")):
        with pytest.raises(InputError):
            save_export(bundle_of(FORK), tmp_path / wrong, format)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_written_to(tmp_path: Path, graph: Path, call: Call) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        save_export(bundle_of(FORK), tmp_path / "no/mask.npz", "ffa")
    done = call("compile", graph, "--export", "ffa", "-o", tmp_path / "no/mask.npz")
    assert (done.code, done.out) == (2, "")
    assert not (tmp_path / "no").exists()


# The page.


def page_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_python_of_the_page_runs_and_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The blocks follow each other in one program; `# prints` stands behind what prints."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = []
    for block in page_blocks("python"):
        exec(block, names)
        printed += re.findall(r"# prints (.*)$", block, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == printed
    assert len(printed) >= len(FORMATS)


def test_the_page_tells_every_format_and_every_key() -> None:
    for format in FORMATS:
        assert f"\n## `{format}`\n" in PAGE
        for key, array in export_mask(FORK.mask(), format).items():
            assert re.search(rf"^\| `{key}` \| {array.dtype} \[", PAGE, re.MULTILINE), key
    for key in ("format", "legraph_version", "num_tokens", "tokenizer", "input_ids", "position_ids"):
        assert f"`{key}`" in PAGE
