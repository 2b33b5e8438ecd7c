"""What is built for others to install: the wheel runs without a download, the sdist can be trained from."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_MODEL_BYTES = 8 * 10**6


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_the_wheel_holds_the_package_and_the_model_in_the_box(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        sizes = {info.filename: info.file_size for info in wheel.infolist()}
    model = [name for name in sizes if name.startswith("legraph/recall/")]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert f"legraph/recall/{name}" in model
    assert sum(sizes[name] for name in model) < MAX_MODEL_BYTES
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "legraph").rglob("*.py")}
    assert modules | {"legraph/py.typed"} <= set(sizes)
    assert not [name for name in sizes if name.startswith(("tests/", "examples/", "benchmarks/"))]


def test_the_sdist_holds_what_is_needed_to_repeat_everything(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    for name in (
        "examples/train/train.py",
        "examples/train/recipe.json",
        "examples/quickstart.yaml",
        "benchmarks/recall.py",
        "schemas/graph.schema.json",
        "constraints.txt",
        "LICENSE",
    ):
        assert name in names
