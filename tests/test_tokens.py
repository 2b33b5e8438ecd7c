"""Texts become ids chunk by chunk: no token is added, none is lost, special ones are recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legraph.compiler import Chunk, compile_chunks, compile_file, graph_of
from legraph.errors import GraphError, TokenizerError
from legraph.tokens import (
    BYTES_SPECIAL_TOKENS,
    ENCODE_SLICE,
    SHIPPED_FOLDER,
    bytes_tokenizer,
    check_tokenizer,
    fingerprint,
    load_tokenizer,
    tokenize,
)
from tests.marked import place_of, unmark

TEXTS = st.text(st.characters(codec="utf-8"))
CORPUS = ["the quick brown fox jumps over the lazy dog", "a prompt is a graph of chunks", "hello hello world"]
BOS, EOS = "<s>", "</s>"


def small_bpe(corpus: list[str] = CORPUS, strips: bool = False) -> Any:
    """A trained BPE that adds BOS and EOS by itself, as Llama's and others' tokenizers do."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if strips:
        backend.normalizer = normalizers.Strip()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=320, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(token, backend.token_to_id(token)) for token in (BOS, EOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=EOS)


@pytest.fixture(scope="module")
def bpe() -> Any:
    return small_bpe()


def ids_of(text: str, tokenizer: Any) -> list[int]:
    return compile_chunks([Chunk(text)], tokenizer).input_ids.tolist()


@settings(max_examples=200)
@given(text=TEXTS.filter(bool))
def test_the_bytes_tokenizer_gives_one_token_for_each_byte(text: str, byte_tokenizer: Any):
    # None of the special tokens can come up in random text, but for a search that knows them.
    if not any(token in text for token in BYTES_SPECIAL_TOKENS):
        ids = ids_of(text, byte_tokenizer)
        assert ids == list(text.encode())
        assert byte_tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text", ["\0", "\r\n", " \t ", "\x7f", "é", "e\u0301", "🦊", "\ufeff", "\U0010ffff", "<|bos|"]
)
def test_the_bytes_tokenizer_changes_no_character(text: str, byte_tokenizer: Any):
    assert ids_of(text, byte_tokenizer) == list(text.encode())
    assert byte_tokenizer.decode(list(text.encode())) == text


@pytest.mark.parametrize("at, token", list(enumerate(BYTES_SPECIAL_TOKENS)))
def test_special_tokens_written_in_a_text_are_recognised(at: int, token: str, byte_tokenizer: Any):
    assert ids_of(f"a{token}b", byte_tokenizer) == [ord("a"), 256 + at, ord("b")]


def test_special_tokens_of_a_real_tokenizer_are_recognised(bpe: Any):
    bos, eos = bpe.convert_tokens_to_ids([BOS, EOS])
    ids = ids_of(f"{BOS}hello{EOS}", bpe)
    assert (ids[0], ids[-1]) == (bos, eos)
    assert bpe.decode(ids[1:-1]) == "hello"


@settings(max_examples=100)
@given(text=TEXTS.filter(lambda text: text and BOS not in text and EOS not in text))
def test_no_token_is_added_by_a_tokenizer_that_adds_bos_and_eos(text: str, bpe: Any):
    assert bpe("fox")["input_ids"][0] == bpe.bos_token_id, "left to itself, it does"
    ids = ids_of(text, bpe)
    assert not {bpe.bos_token_id, bpe.eos_token_id} & set(ids)
    assert bpe.decode(ids) == text


def test_chunks_are_tokenized_one_by_one(bpe: Any):
    """`hello` is one token and its halves are others: nothing melts over a border, nor splits at one."""
    whole, halves = ids_of("hello", bpe), [ids_of("hel", bpe), ids_of("lo", bpe)]
    assert whole != halves[0] + halves[1]
    left = Chunk("hel")
    both = compile_chunks([Chunk("lo", parents=[left])], bpe)
    assert both.input_ids.tolist() == halves[0] + halves[1]


def test_texts_beyond_one_slice_keep_their_order(byte_tokenizer: Any):
    texts = [f"{i}." for i in range(ENCODE_SLICE + 3)]
    done: list[int] = []
    tokens = tokenize(graph_of([Chunk(text) for text in texts]), byte_tokenizer, done.append)
    assert bytes(tokens.ids.tolist()).decode() == "".join(texts)
    assert tokens.lengths().tolist() == [len(text) for text in texts]
    assert done == [ENCODE_SLICE, 3]


def test_bos_is_a_chunk_of_one_token_that_every_chunk_sees(bpe: Any):
    bundle = compile_chunks([Chunk("fox", name="a"), Chunk("dog", name="b")], bpe, bos=True)
    assert bundle.span_names == ("bos", "a", "b")
    assert bundle.input_ids[bundle.span("bos")].tolist() == [bpe.bos_token_id]
    assert [bundle.parents(name).tolist() for name in bundle.span_names] == [[], [0], [0]]


def test_bos_without_a_bos_token_is_a_tokenizer_error(word_tokenizer: Callable[..., Any]):
    with pytest.raises(TokenizerError, match=r"'bos: true', but tokenizer .* has no BOS token") as caught:
        compile_chunks([Chunk("a")], word_tokenizer({"a": 0}), bos=True)
    assert "remove 'bos: true'" in str(caught.value)


EMPTY_TEXTS = {
    "graph.yaml": """\
legraph: 1
chunks:
  - {name: full, text: abc}
  - name: empty
    text: «""»
  - {name: blank, parents: [full], text: «"  "»}
  - name: from_file
    file: «blank.txt»
""",
    "graph.toml": """\
legraph = 1
[[chunks]]
name = "full"
text = "abc"
[[chunks]]
name = "empty"
text = «""»
[[chunks]]
name = "blank"
text = «"  "»
parents = ["full"]
[[chunks]]
name = "from_file"
file = «"blank.txt"»
""",
    "bos.yaml": """\
legraph: 1
bos: true
chunks:
  - {name: empty, text: «""»}
  - {name: blank, text: «" "»}
  - {name: from_file, file: «blank.txt»}
""",
}


@pytest.mark.parametrize("name", EMPTY_TEXTS)
def test_every_chunk_that_gives_no_token_is_reported_at_its_text(name: str, tmp_path: Path):
    """A tokenizer that strips spaces makes nothing of a blank text, which only tokenizing can show."""
    text, places = unmark(EMPTY_TEXTS[name])
    (tmp_path / name).write_text(text)
    (tmp_path / "blank.txt").write_text("\n\n")
    with pytest.raises(GraphError) as caught:
        compile_file(tmp_path / name, small_bpe(strips=True))
    assert [place_of(problem) for problem in caught.value.problems] == places
    assert [problem.message for problem in caught.value.problems] == [
        f"chunk '{chunk}' gives no token" for chunk in ("empty", "blank", "from_file")
    ]


def test_a_chunk_built_in_python_that_gives_no_token_is_reported_by_name(byte_tokenizer: Any):
    with pytest.raises(GraphError, match="chunk 'nothing' gives no token") as caught:
        compile_chunks([Chunk("", name="nothing")], byte_tokenizer)
    assert caught.value.problems[0].source is None


def slow_tokenizer() -> Any:
    """One that is written in Python and needs no files."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def test_a_slow_tokenizer_is_refused():
    tokenizer = slow_tokenizer()
    assert tokenizer("abc")["input_ids"], "it works; it is just a slow one"
    with pytest.raises(TokenizerError, match="is a slow tokenizer") as caught:
        compile_chunks([Chunk("a")], tokenizer)
    assert caught.value.exit_code == 1
    assert "tokenizer.json" in str(caught.value)


@pytest.mark.parametrize("given", [3, object(), Chunk("a")], ids=["number", "object", "chunk"])
def test_what_is_no_tokenizer_at_all_is_refused(given: object):
    with pytest.raises(TokenizerError, match=type(given).__name__):
        check_tokenizer(given)


@pytest.mark.parametrize("inside", [True, False], ids=["file", "nothing"])
def test_a_folder_that_is_missing_or_holds_no_tokenizer_is_a_tokenizer_error(inside: bool, tmp_path: Path):
    folder = tmp_path / "tokenizer"
    if inside:
        folder.mkdir()
        (folder / "readme.txt").write_text("no tokenizer here")
    with pytest.raises(TokenizerError, match="cannot be loaded") as caught:
        compile_chunks([Chunk("a")], str(folder))
    assert caught.value.exit_code == 1
    assert str(folder) in str(caught.value)
    assert "give a folder that holds tokenizer.json" in str(caught.value)


def test_a_missing_folder_is_called_a_folder(tmp_path: Path):
    """transformers itself says that the path is a malformed hub id."""
    with pytest.raises(TokenizerError, match="no such folder"):
        load_tokenizer(str(tmp_path / "missing"))


def test_a_graph_file_may_name_a_folder_that_is_missing(tmp_path: Path):
    path = tmp_path / "graph.yaml"
    path.write_text("legraph: 1\ntokenizer: ./missing\nchunks:\n  - {name: a, text: abc}\n")
    with pytest.raises(TokenizerError, match=r"'\./missing' cannot be loaded: no such folder"):
        compile_file(path)
    assert compile_file(path, "bytes").input_ids.tolist() == list(b"abc"), "an argument overrides the file"


def test_bytes_is_the_name_of_the_bytes_tokenizer():
    assert fingerprint(load_tokenizer("bytes")) == fingerprint(bytes_tokenizer())


def test_without_a_name_it_is_the_tokenizer_of_the_model_in_the_box():
    default, named = load_tokenizer(None), load_tokenizer("recall")
    assert fingerprint(default) == fingerprint(named) == fingerprint(load_tokenizer(str(SHIPPED_FOLDER)))
    assert default.name_or_path == "recall", "what a bundle says must not be a path of this machine"


@pytest.mark.parametrize("make", [bytes_tokenizer, small_bpe], ids=["bytes", "bpe"])
@pytest.mark.parametrize("as_path", [str, Path], ids=["str", "Path"])
def test_a_saved_tokenizer_works_by_its_path(
    make: Callable[[], Any], as_path: Callable[[str], Any], tmp_path: Path
):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    leaf = Chunk(f"The quick fox.{tokenizer.eos_token}", parents=[Chunk("é 🦊\n")])
    here = compile_chunks([leaf], tokenizer, bos=True)
    reloaded = compile_chunks([leaf], as_path(str(tmp_path)), bos=True)
    assert reloaded.input_ids.tolist() == here.input_ids.tolist()
    assert reloaded.meta.tokenizer_fingerprint == here.meta.tokenizer_fingerprint
    assert reloaded.meta.tokenizer == str(tmp_path)


def test_padding_and_truncation_change_neither_ids_nor_fingerprint():
    texts = ["the quick brown fox jumps", "a"]
    leaves = [Chunk(text) for text in texts]
    # A tokenizer of its own: what was found out about one is remembered.
    clean, used = small_bpe(), small_bpe()
    used(texts, padding="max_length", truncation=True, max_length=4)
    assert used.backend_tokenizer.padding and used.backend_tokenizer.truncation, "they stay switched on"
    assert fingerprint(used) == fingerprint(clean)
    assert compile_chunks(leaves, used).input_ids.tolist() == compile_chunks(leaves, clean).input_ids.tolist()


def test_a_token_that_is_added_changes_the_fingerprint():
    tokenizer = small_bpe()
    before = fingerprint(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    assert fingerprint(tokenizer) != before


def test_another_vocabulary_has_another_fingerprint(word_tokenizer: Callable[..., Any]):
    makers = [
        lambda: bytes_tokenizer(),
        lambda: small_bpe(),
        lambda: small_bpe(["entirely different words are merged here"]),
        lambda: small_bpe(strips=True),
        lambda: word_tokenizer({"a": 0, "b": 1}),
        lambda: word_tokenizer({"a": 1, "b": 0}),
        lambda: word_tokenizer({"a": 0, "b": 1}, bos="<bos>"),
    ]
    first, second = ([fingerprint(make()) for make in makers] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(makers)
