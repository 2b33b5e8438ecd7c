"""`legraph cache`: what each verb prints, for people and for programs, and its exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from legraph import cli
from legraph.errors import InputError
from legraph.kvdisk import STALE_S, DiskTier
from legraph.kvshow import format_size, parse_size
from tests.kv_files import chunk, file_of, key_of

VERBS = ["ls", "stat", "prune", "verify", "clear"]
NEEDED = {"prune": ["--max-bytes", "1MB"]}

# Not markup, and nothing for a terminal to obey.
ODD_NAME = "[red]large\x1b[0m"

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`call("ls", folder)`: exit code, standard output and standard error."""

    def run_main(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["legraph", "cache", *map(str, arguments)])
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return run_main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Chunks 0, 1 and 2 of two models, used an hour after each other; each has 10 tokens more."""
    tier = DiskTier(tmp_path / "kv")
    for number in range(3):
        model, name = ("a" * 64, "org/small") if number < 2 else ("b" * 64, ODD_NAME)
        kv = chunk(number, 10 * number + 10, start=1000 * number, model=model, model_name=name)
        tier.write(key_of(number), kv)
        used = time.mktime((2026, 1, 5, 12 + number, 30, 0, 0, 0, -1))
        os.utime(file_of(tier.folder, key_of(number)), (used, used))
    return tier.folder


def size_of(folder: Path, *numbers: int) -> int:
    return sum(file_of(folder, key_of(number)).stat().st_size for number in numbers)


def damage(folder: Path, number: int) -> Path:
    path = file_of(folder, key_of(number))
    path.write_bytes(path.read_bytes()[:-1])
    return path


# What all verbs share


def test_help_names_every_verb(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", out, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, call: Call) -> None:
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: legraph cache {verb} ") and "DIR" in out


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("verb", VERBS)
def test_a_wrong_folder_is_refused_and_not_made(
    verb: str, as_json: list[str], call: Call, tmp_path: Path
) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.write_text("x")
    for path, wrong in ((missing, "no such folder"), (file, "is a file")):
        code, out, err = call(verb, path, *NEEDED.get(verb, []), *as_json)
        assert (code, out) == (2, "")
        assert err == f"error: {path}: {wrong}\n  expected: the folder of a KV store\n"
    assert not missing.exists() and file.read_text() == "x"


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_folder_stays_empty(verb: str, call: Call, tmp_path: Path) -> None:
    code, out, err = call(verb, tmp_path, *NEEDED.get(verb, []))
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path}: ")
    assert list(tmp_path.iterdir()) == []


PROBE = """
import sys
from legraph.cli import main
try:
    main()
except SystemExit as ended:
    print(ended.code, *sorted({"torch", "transformers", "safetensors"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_loads_torch(verb: str, folder: Path) -> None:
    arguments = ["cache", verb, str(folder), *NEEDED.get(verb, [])]
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True)
    assert done.stderr == "0\n"
    assert done.stdout


# ls


def test_ls_draws_a_line_for_each_entry_the_one_used_last_first(folder: Path, call: Call) -> None:
    code, out, err = call("ls", folder)
    assert (code, err) == (0, "")
    heading, *lines = (re.split(" {2,}", line.strip()) for line in out.splitlines())
    assert heading == ["key", "last used", "model", "tokens", "start", "dtype", "size"]
    names = {0: "org/small", 1: "org/small", 2: repr(ODD_NAME)}
    assert lines == [
        [
            key_of(number)[:12],
            f"2026-01-05 {12 + number}:30",
            f"{names[number]} ({'b' * 12 if number == 2 else 'a' * 12})",
            str(10 * number + 10),
            f"{1000 * number:,}",
            "bfloat16",
            format_size(size_of(folder, number)),
        ]
        for number in (2, 1, 0)
    ]


def test_ls_as_json(folder: Path, call: Call) -> None:
    code, out, _ = call("ls", folder, "--json")
    data = json.loads(out)
    assert (code, data["folder"], len(data["entries"])) == (0, str(folder), 3)
    assert data["entries"][1] == {
        "key": key_of(1),
        "path": str(file_of(folder, key_of(1))),
        "bytes": size_of(folder, 1),
        "tokens": 20,
        "dtype": "bfloat16",
        "start": 1000,
        "model": "a" * 64,
        "model_name": "org/small",
        "last_used": time.mktime((2026, 1, 5, 13, 30, 0, 0, 0, -1)),
    }


def test_ls_leaves_out_what_has_no_header(folder: Path, call: Call) -> None:
    damage(folder, 0).write_bytes(b"x")
    keys = [entry["key"] for entry in json.loads(call("ls", folder, "--json")[1])["entries"]]
    assert keys == [key_of(2), key_of(1)]


# stat


def test_stat_counts_each_model(folder: Path, call: Call) -> None:
    total, small, large = (format_size(size_of(folder, *numbers)) for numbers in ((0, 1, 2), (0, 1), (2,)))
    assert call("stat", folder) == (
        0,
        f"{folder}: 3 entries, {total}\n"
        f"  {ODD_NAME!r} (bbbbbbbbbbbb): 1 entry, 30 tokens, {large}\n"
        f"  org/small (aaaaaaaaaaaa): 2 entries, 30 tokens, {small}\n",
        "",
    )


def test_stat_as_json(folder: Path, call: Call) -> None:
    code, out, _ = call("stat", folder, "--json")
    models = [
        {"model": "b" * 64, "model_name": ODD_NAME, "entries": 1, "tokens": 30},
        {"model": "a" * 64, "model_name": "org/small", "entries": 2, "tokens": 30},
    ]
    models[0]["bytes"], models[1]["bytes"] = size_of(folder, 2), size_of(folder, 0, 1)
    totals = {"entries": 3, "bytes": size_of(folder, 0, 1, 2), "tokens": 60, "models": models}
    assert (code, json.loads(out)) == (0, {"folder": str(folder)} | totals)


# prune and clear


def test_prune_removes_the_least_recently_used_until_the_rest_fits(folder: Path, call: Call) -> None:
    first, rest = size_of(folder, 0), size_of(folder, 1, 2)
    said = f"{folder}: removed 1 entry ({format_size(first)}), {format_size(rest)} left\n"
    assert call("prune", folder, "--max-bytes", rest) == (0, said, "")
    assert DiskTier(folder).keys() == {key_of(1), key_of(2)}
    assert call("prune", folder, "--max-bytes", "1MB")[1].startswith(f"{folder}: removed 0 entries (0 B)")


def test_prune_as_json(folder: Path, call: Call) -> None:
    everything = size_of(folder, 0, 1, 2)
    code, out, _ = call("prune", folder, "--max-bytes", "0", "--json")
    counts = {"removed": 3, "removed_temporary": 0, "removed_bytes": everything, "left_bytes": 0}
    assert (code, json.loads(out)) == (0, {"folder": str(folder)} | counts)


def test_prune_removes_what_dead_processes_left(folder: Path, call: Call) -> None:
    path = file_of(folder, key_of(0)).with_name(f".{key_of(0)}.1-00000000.part")
    path.write_bytes(b"x" * 100)
    old = time.time() - STALE_S - 5
    os.utime(path, (old, old))
    code, out, _ = call("prune", folder, "--max-bytes", "1GB")
    assert (code, path.exists()) == (0, False)
    assert "removed 0 entries and 1 temporary file (100 B), " in out


def test_prune_needs_a_size(folder: Path, call: Call) -> None:
    code, _, err = call("prune", folder)
    assert code == 2 and "--max-bytes" in err
    code, out, err = call("prune", folder, "--max-bytes", "lots")
    assert (code, out) == (2, "")
    assert err.startswith("error: 'lots' is not a size\n  expected: bytes, or a number with a unit")
    assert len(DiskTier(folder).keys()) == 3


def test_clear_removes_all_entries_and_nothing_else(folder: Path, call: Call) -> None:
    other = folder / "README.md"
    other.write_text("mine")
    size = format_size(size_of(folder, 0, 1, 2))
    assert call("clear", folder) == (0, f"{folder}: removed 3 entries ({size}), 0 B left\n", "")
    assert DiskTier(folder).keys() == set() and other.read_text() == "mine"
    assert json.loads(call("clear", folder, "--json")[1])["removed"] == 0


# verify


def test_verify_of_a_sound_folder(folder: Path, call: Call) -> None:
    size = format_size(size_of(folder, 0, 1, 2))
    assert call("verify", folder) == (0, f"{folder}: 3 good ({size}), 0 bad\n", "")


def test_verify_names_what_is_bad_and_fails_until_it_is_removed(folder: Path, call: Call) -> None:
    path = damage(folder, 1)
    said = f"{folder}: 2 good ({format_size(size_of(folder, 0, 2))}), 1 bad\n"
    code, out, err = call("verify", folder)
    assert (code, out) == (1, said)
    assert re.fullmatch(rf"error: {path}: has [\d,]+ bytes instead of [\d,]+\n", err)
    assert path.exists()
    code, out, err = call("verify", folder, "--remove")
    assert (code, out) == (0, said)
    assert err.endswith("; removed\n") and not path.exists()
    assert call("verify", folder)[0] == 0


def test_verify_as_json(folder: Path, call: Call) -> None:
    path = damage(folder, 1)
    for remove in (False, True):
        code, out, err = call("verify", folder, "--json", *(["--remove"] if remove else []))
        data = json.loads(out)
        assert (code, err) == (0 if remove else 1, "")
        assert (data["folder"], data["good"], data["good_bytes"]) == (str(folder), 2, size_of(folder, 0, 2))
        (bad,) = data["bad"]
        assert (bad["path"], bad["removed"]) == (str(path), remove)
        assert "bytes instead of" in bad["reason"]


# Sizes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("1000000", 10**6),
        ("12 B", 12),
        ("500MB", 500 * 10**6),
        ("500mb", 500 * 10**6),
        ("500M", 500 * 10**6),
        ("2GiB", 2**31),
        (" 2 GiB ", 2**31),
        ("1.5kB", 1500),
        ("0.1TB", 10**11),
        ("1.1GB", 1_100_000_000),
        ("3TiB", 3 * 2**40),
        ("1Ki", 1024),
    ],
)
def test_sizes_that_are_understood(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "1e9", "1,000", "5 bytes", "2XB", "inf", "1.GB", "2GiBs", "٣"]
)
def test_sizes_that_are_not(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_size(text)
    assert caught.value.exit_code == 2
    assert caught.value.problems[0].message == f"{text!r} is not a size"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1,023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**31, "2.0 GiB"),
        (5000 * 2**40, "5,000.0 TiB"),
    ],
)
def test_sizes_as_people_read_them(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text
