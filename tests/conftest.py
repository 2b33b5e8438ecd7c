"""What tests share: tokenizers whose ids can be foreseen, commands and files to call them with."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from legraph.tokens import bytes_tokenizer
from tests.command_line import BROKEN, FORK, GRAPH, Call, caller

# On top of the profile of hypothesis itself, which draws the same examples every time where CI is set.
settings.register_profile("legraph", settings(), deadline=None, max_examples=60)
settings.load_profile("legraph")


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """The tokenizer that ships with legraph: one token for each byte."""
    return bytes_tokenizer()


@pytest.fixture(scope="session")
def word_tokenizer() -> Callable[..., Any]:
    """`word_tokenizer({"The": 1, " fox": 2}, bos="<bos>")`: exactly these tokens, with exactly these ids.

    A text is cut into words with the space before them, single digits or whole numbers (as the ids say),
    and punctuation marks. Anything else becomes the unknown token, which no graph of the tests contains.
    """

    def make(id_by_word: Mapping[str, int], bos: str | None = None) -> Any:
        from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        unknown = "<unknown>"
        vocabulary = dict(id_by_word) | {unknown: max(id_by_word.values()) + 1}
        backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=unknown))
        word = Regex(r" ?[^\W\d]+| ?\d+|[^\w\s]")
        backend.pre_tokenizer = pre_tokenizers.Split(word, behavior="isolated")
        if bos is not None:
            backend.add_special_tokens([AddedToken(bos, special=True)])
        return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos)

    return make


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("check", path)`: the command, in this process."""
    return caller(capsys, monkeypatch)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "graph.yaml"
    path.write_text(GRAPH)
    return path


@pytest.fixture
def fork(tmp_path: Path) -> Path:
    path = tmp_path / "fork.yaml"
    path.write_text(FORK)
    return path


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer as anybody would have them on disk."""
    folder = tmp_path_factory.mktemp("model") / "llama"
    from tests.tiny_models import tiny_model

    tiny_model("llama").save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield folder
    finally:
        # Lazily: a failed test's traceback may still hold tensors that are mapped from it.
        subprocess.run(["umount", "-l", str(folder)], check=True)
