"""What the page is given: every array read back is the graph's own, and every piece of text is a token's."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph import Bundle, Chunk, Generate, compile_chunks
from legraph.attentionmass import AttentionMass
from legraph.cost import CPU_SHAPE, GPU_SHAPE, AttentionShape, Device, estimates, plain_causal
from legraph.errors import InputError
from legraph.page import json_for_script, page_html
from legraph.pagedata import MAX_TOKENS, packed, page_data
from legraph.result import finished_bundle, used_starts
from legraph.tokenpieces import token_pieces
from tests.random_graphs import bundles, tokenizer

FEW = settings(max_examples=30)
KINDS = {"u1": "<u1", "u2": "<u2", "u4": "<u4", "f4": "<f4"}


def unpacked(numbers: dict[str, str]) -> list[Any]:
    return np.frombuffer(base64.b64decode(numbers["data"]), KINDS[numbers["type"]]).tolist()


def pair(text: str = "to", more: str = "be") -> Bundle:
    first = Chunk(text, name="first")
    return compile_chunks(
        [Chunk(more, name="second", parents=[first], generate=Generate(4))], tokenizer=tokenizer()
    )


def mass_of(bundle: Bundle, num_layers: int, num_heads: int) -> AttentionMass:
    size = bundle.mask.num_edges + bundle.mask.num_chunks
    numbers = np.random.default_rng(0).random((num_layers, num_heads, size), dtype=np.float32)
    return AttentionMass(bundle, numbers)


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_whole_numbers_are_read_back_exactly(numbers: list[int]):
    assert unpacked(packed(np.array(numbers, dtype=np.int64))) == numbers


@pytest.mark.parametrize(("largest", "kind"), [(255, "u1"), (256, "u2"), (65_535, "u2"), (65_536, "u4")])
def test_numbers_are_as_wide_as_the_largest_needs(largest: int, kind: str):
    assert packed(np.array([0, largest]))["type"] == kind


@FEW
@given(bundles(plain=False))
def test_spans_positions_and_parents_are_those_of_the_graph(bundle: Bundle):
    data = json.loads(json.dumps(page_data(bundle, tokenizer(), title="a graph")))
    assert data["names"] == list(bundle.span_names)
    assert unpacked(data["ids"]) == bundle.input_ids.tolist()
    starts, runs = 0, iter(zip(unpacked(data["parents"]["starts"]), unpacked(data["parents"]["lengths"])))  # noqa: B905
    firsts = unpacked(data["positions"]["starts"])
    for i, name in enumerate(bundle.span_names):
        length = unpacked(data["lengths"])[i]
        assert slice(starts, starts + length) == bundle.span(name)
        assert list(range(firsts[i], firsts[i] + length)) == bundle.position_ids[bundle.span(name)].tolist()
        starts += length
        own = [next(runs) for _ in range(unpacked(data["parents"]["counts"])[i])]
        assert [p for at, size in own for p in range(at, at + size)] == bundle.parents(i).tolist()
        assert all(b[0] > a[0] + a[1] for a, b in pairwise(own)), "runs are as long as can be"
    assert next(runs, None) is None
    assert data["positions"]["all"] is None


def test_positions_that_do_not_count_up_are_told_one_by_one():
    bundle = pair("four")
    odd = replace(bundle, position_ids=np.array([0, 5, 1, 2, 9, 9], dtype=np.int64))
    assert unpacked(page_data(odd, tokenizer(), title="")["positions"]["all"]) == [0, 5, 1, 2, 9, 9]


def test_each_token_has_its_piece_of_the_text(word_tokenizer: Any):
    words = word_tokenizer({"The": 0, " fox": 1, " runs": 2, ".": 3, "It": 4})
    first = Chunk("The fox.", name="a")
    bundle = compile_chunks([Chunk("It runs.", name="b", parents=[first])], tokenizer=words)
    pieces = token_pieces(bundle, words)
    ends = np.cumsum(pieces.lengths).tolist()
    text = "".join(pieces.texts)
    assert [text[a:b].strip() for a, b in zip([0, *ends], ends, strict=False)] == [
        *("The", "fox", ".", "It", "runs", ".")
    ]


@FEW
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), min_size=1, max_size=3))
def test_pieces_add_up_to_the_texts_in_units_of_utf16(texts: list[str]):
    bundle = compile_chunks(
        [Chunk(text, name=f"c{i}") for i, text in enumerate(texts)], tokenizer=tokenizer()
    )
    pieces = token_pieces(bundle, tokenizer())
    assert list(pieces.texts) == texts
    for name, text in zip(bundle.span_names, texts, strict=True):
        # One token a byte: a character's last byte has its units, the others have none.
        expected = [n for c in text for n in [0] * (len(c.encode()) - 1) + [len(c.encode("utf-16-le")) // 2]]
        assert pieces.lengths[bundle.span(name)].tolist() == expected


def test_what_is_no_whole_character_is_written_as_the_vocabulary_does():
    bundle = pair("é")
    broken = replace(bundle, input_ids=np.array([0xC3, 0xC3, ord("b"), 0xE2], dtype=np.int64))
    pieces = token_pieces(broken, tokenizer())
    assert pieces.writings.keys() >= {0xE2}
    assert pieces.writings[0xE2] == tokenizer().convert_ids_to_tokens(0xE2)
    assert pieces.lengths.tolist()[-1] == 0


def test_ids_that_the_tokenizer_does_not_know_are_shown_as_ids():
    bundle = pair()
    foreign = replace(bundle, input_ids=bundle.input_ids + 10_000)
    assert page_data(foreign, tokenizer(), title="")["texts"] is None
    lost = replace(bundle, meta=replace(bundle.meta, tokenizer="/no/such/folder"))
    assert page_data(lost, title="")["texts"] is None
    assert page_data(bundle, title="")["texts"]["chunks"] == ["to", "be"]


def ran(ids: list[int], log_probs: list[float] | None = None) -> tuple[Bundle, dict[str, Any]]:
    bundle = pair()
    generated = {"second": ids}
    finished = finished_bundle(bundle, generated, used_starts(bundle, generated), generated.keys())
    return finished, {"second": {"text": "?", "token_ids": ids, "finish": "length", "log_probs": log_probs}}


def test_outputs_are_told_with_their_probabilities():
    bundle, outputs = ran([104, 105], [-0.5, -2.0])
    (output,) = page_data(bundle, tokenizer(), title="", outputs=outputs)["outputs"]
    assert (output["chunk"], output["tokens"], output["finish"]) == (1, 2, "length")
    assert unpacked(output["log_probs"]) == [-0.5, -2.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": [104, 106]}, "does not end in the 2 tokens of its output"),
        ({"token_ids": [98, 101, 104, 105]}, "does not end in the 4 tokens"),
        ({"log_probs": [-1.0]}, "2 token ids and 1 log-probabilities"),
    ],
)
def test_outputs_of_another_run_are_refused(change: dict[str, Any], said: str):
    bundle, outputs = ran([104, 105], [-0.5, -2.0])
    with pytest.raises(InputError, match=said):
        page_data(bundle, tokenizer(), title="", outputs={"second": outputs["second"] | change})


def test_outputs_of_unknown_chunks_are_refused():
    bundle, outputs = ran([104])
    with pytest.raises(InputError, match="'third'"):
        page_data(bundle, tokenizer(), title="", outputs={"third": outputs["second"]})


def test_the_cheapest_exact_kernel_is_told_with_what_causal_attention_takes():
    bundle = compile_chunks([Chunk("a" * 400, name=f"c{i}") for i in range(9)], tokenizer=tokenizer())
    gpu, cpu = page_data(bundle, tokenizer(), title="")["cost"]
    devices: list[tuple[Device, AttentionShape, Any]] = [("gpu", GPU_SHAPE, gpu), ("cpu", CPU_SHAPE, cpu)]
    for device, shape, told in devices:
        expected = {one.kernel: one.milliseconds for one in estimates(bundle.mask, shape, device)}
        assert {one["kernel"]: one["ms"] for one in told["kernels"]} == expected
        assert told["taken"] in expected
        assert told["causal_ms"] == plain_causal(len(bundle), shape, device).milliseconds


def test_attention_is_told_for_every_layer_and_head():
    bundle = pair()
    attention = mass_of(bundle, 2, 3)
    told = page_data(bundle, tokenizer(), title="", attention=attention)["attention"]
    assert (told["layers"], told["heads"], told["detail"]) == (2, 3, "all")
    planes = {(plane["layer"], plane["head"]): unpacked(plane["mass"]) for plane in told["planes"]}
    assert len(planes) == 3 * 4
    means = {None: slice(None)} | {i: slice(i, i + 1) for i in range(3)}
    for (layer, head), numbers in planes.items():
        expected = attention.mass[means[layer], means[head]].astype(float).mean((0, 1))
        np.testing.assert_allclose(np.array(numbers) / 65_535, expected, atol=1e-5)


def test_attention_of_tokens_is_told_where_there_is_room():
    bundle = pair()
    tokens = np.random.default_rng(1).random((2, 3, 4, 4), dtype=np.float32)
    attention = replace(mass_of(bundle, 2, 3), tokens=tokens)
    told = page_data(bundle, tokenizer(), title="", attention=attention)["attention"]
    assert told["has_tokens"]
    plane = next(plane for plane in told["planes"] if (plane["layer"], plane["head"]) == (1, 2))
    np.testing.assert_allclose(np.array(unpacked(plane["tokens"])) / 65_535, tokens[1, 2].ravel(), atol=1e-5)
    large = pair("a" * 2_001)
    zeros = np.broadcast_to(np.float32(0), (1, 1, 2_003, 2_003))
    attention = replace(mass_of(large, 1, 1), tokens=zeros)
    told = page_data(large, tokenizer(), title="", attention=attention)["attention"]
    assert not told["has_tokens"] and told["planes"][0]["tokens"] is None


@pytest.mark.parametrize(
    ("num_chunks", "num_layers", "num_heads", "detail", "num_planes"),
    [(2_000, 50, 50, "means", 101), (2_100, 2_000, 1, "mean", 1)],
)
def test_too_much_attention_is_told_as_means(
    num_chunks: int, num_layers: int, num_heads: int, detail: str, num_planes: int
):
    chunks = [Chunk("a", name=f"c{i}") for i in range(num_chunks)]
    bundle = compile_chunks(chunks, tokenizer=tokenizer())
    mass = np.broadcast_to(np.float32(1), (num_layers, num_heads, num_chunks))
    told = page_data(bundle, tokenizer(), title="", attention=AttentionMass(bundle, mass))["attention"]
    assert told["detail"] == detail
    assert len(told["planes"]) == num_planes


def test_attention_of_another_graph_is_refused():
    with pytest.raises(InputError, match="another graph"):
        page_data(pair("to"), tokenizer(), title="", attention=mass_of(pair("two"), 1, 1))


def test_a_graph_too_large_for_a_page_is_refused():
    bundle = pair()
    size = MAX_TOKENS + 1
    offsets = np.array([0, size - 2, size], dtype=np.int64)
    large = replace(bundle, mask=replace(bundle.mask, span_offsets=offsets))
    with pytest.raises(InputError, match=r"1,000,001 tokens(.|\n)*part of the graph"):
        page_data(large, tokenizer(), title="")


def test_a_page_too_large_is_refused():
    data = page_data(pair(), tokenizer(), title="")
    with pytest.raises(InputError, match="would take 65 MB"):
        page_html(data | {"more": "a" * 65_000_000})


@given(
    st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_json_in_a_script_element_means_nothing_to_html(data: Any):
    text = json_for_script(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data


def test_lone_surrogates_can_be_written():
    assert json.loads(json_for_script("a\ud800b").encode().decode()) == "a?b"


class Scripts(HTMLParser):
    """The contents of script and style elements, and everything that could lead out of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.contents: list[tuple[str, dict[str, str | None], str]] = []
        self.policy = ""
        self.leads_out: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "style"):
            self.contents.append((tag, named, ""))
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"] or ""
        self.leads_out += [str(value) for key, value in attrs if key in ("src", "href", "action")]
        self.leads_out += [key for key, _ in attrs if key.startswith("on") or key == "style"]

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            tag, named, content = self.contents.pop()
            self.contents.append((tag, named, content + data))


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else():
    found = Scripts(
        page_html(page_data(pair("</script><script>alert(1)</script>"), tokenizer(), title="a < b"))
    )
    data, *scripts = [content for tag, _, content in found.contents if tag == "script"]
    assert json.loads(data)["texts"]["chunks"][0] == "</script><script>alert(1)</script>"
    (style,) = [content for tag, _, content in found.contents if tag == "style"]

    def hashed(content: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    rules = dict(re.split(" ", rule.strip(), maxsplit=1) for rule in found.policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": " ".join(map(hashed, scripts)),
        "style-src": hashed(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(scripts) == 2
    assert found.leads_out == ["data:,"]


def test_the_licences_of_what_is_in_the_page_are_in_the_page():
    page = page_html(page_data(pair(), tokenizer(), title=""))
    assert "Permission to use, copy, modify, and/or distribute" in page
    assert "Neither the name of the author" in page


def test_a_title_is_a_title_and_never_a_place_to_fill():
    page = page_html(page_data(pair("{{script}}"), tokenizer(), title='"{{data}}" <b>'))
    assert "<title>&quot;{{data}}&quot; &lt;b&gt;</title>" in page
    assert page.count('"use strict";\n(() => {') == 1
