"""The journal of a batch: rows survive any end of the process, and only the same run goes on with them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from legraph.batchjournal import Journal, check_output, journal_path
from legraph.errors import InputError, RunError
from tests.command_line import fill

HEADER = {"inputs": "a" * 64, "model": "recall", "max_new_tokens": 32}
Row = dict[str, Any]


def row(number: int) -> Row:
    if number % 5 == 4:
        return {"id": f"g{number}", "error": {"kind": "GraphError", "message": "é\n☃", "where": "f:1"}}
    output = {"text": f"text {number} \u2028 ☃", "token_ids": [number, 7], "finish": "end"}
    return {"id": f"g{number}", "outputs": {"q": output}, "timing": {"total_s": number / 8}}


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_rows_come_out_in_order_of_the_inputs(tmp_path: Path) -> None:
    output, numbers = tmp_path / "r.jsonl", list(range(20))
    random.Random(0).shuffle(numbers)
    with Journal(output, HEADER) as journal:
        for number in numbers:
            assert number not in journal
            journal.write(number, row(number))
            assert number in journal and journal.has_failed(number) == (number % 5 == 4)
        assert not output.exists()
        journal.finish()
    assert read(output) == [row(number) for number in range(20)]
    assert len(journal) == 20 and journal.num_failed == 4


def test_parquet_has_the_same_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    with Journal(tmp_path / "r.parquet", HEADER) as journal:
        for number in reversed(range(7)):
            journal.write(number, row(number))
        journal.finish()
    table = parquet.read_table(tmp_path / "r.parquet")
    assert table.column_names == ["id", "outputs", "timing", "error"]
    assert {str(kind) for kind in table.schema.types} == {"string"}
    found = [
        {key: value if key == "id" else json.loads(value) for key, value in each.items() if value is not None}
        for each in table.to_pylist()
    ]
    assert found == [row(number) for number in range(7)]


def test_the_journal_goes_unless_rows_failed(tmp_path: Path) -> None:
    for numbers, stays in (([0, 1], False), ([0, 4], True)):
        output = tmp_path / f"{stays}.jsonl"
        with Journal(output, HEADER) as journal:
            for number in numbers:
                journal.write(number, row(number))
            journal.finish()
        assert journal_path(output).exists() == stays
    # One that is tried again and goes well takes the place of its error.
    with Journal(output, HEADER) as journal:
        assert 4 in journal and journal.has_failed(4)
        journal.write(4, row(5) | {"id": "g4"})
        assert journal.num_failed == 0
        journal.finish()
    assert read(output)[1] == row(5) | {"id": "g4"}
    assert not journal_path(output).exists()


def test_cut_anywhere_it_goes_on_from_its_last_whole_line(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with Journal(output, HEADER) as journal:
        for number in (2, 0, 1):
            journal.write(number, row(number))
    whole = journal_path(output).read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        journal_path(output).write_bytes(whole[:length])
        with Journal(output, HEADER) as journal:
            kept = [number for at, number in enumerate((2, 0, 1)) if ends[at + 1] <= length]
            assert {number for number in range(3) if number in journal} == set(kept)
            for number in {0, 1, 2} - set(kept):
                journal.write(number, row(number))
            journal.finish()
        assert read(output) == [row(number) for number in range(3)]
        output.unlink()


# Refused


def refused(output: Path, header: Any = HEADER, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        Journal(output, header, **options)
    return str(caught.value)


def test_a_journal_of_another_run_says_what_differs(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    Journal(output, HEADER).__exit__()
    said = refused(output, HEADER | {"inputs": "b" * 64, "max_new_tokens": 8})
    assert said.splitlines() == [
        f"{output}.part: is the journal of another run: "
        'the inputs: "aaaaaaaaaaa..." there, "bbbbbbbbbbb..." here; max_new_tokens: 32 there, 8 here',
        "  expected: the same inputs, model and settings (2 differences)",
        "  hint: another -o keeps it, and --restart throws it away",
    ]
    # What is not known yet is not compared; what is, is.
    check_output(output, {"model": "recall"})
    with pytest.raises(InputError, match='model: "recall" there, "other" here'):
        check_output(output, {"model": "other"})
    assert "weights of the model" in refused(output, HEADER | {"weights": "w"})
    with Journal(output, HEADER | {"max_new_tokens": 8}, restart=True) as journal:
        assert len(journal) == 0
    assert "max_new_tokens: 8 there, 32 here" in refused(output)


def test_an_output_that_is_there_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    output.write_text("precious\n")
    assert refused(output).startswith(f"{output}: is there already")
    with Journal(output, HEADER, restart=True) as journal:
        journal.write(0, row(0))
        assert output.read_text() == "precious\n"
        journal.finish()
    assert read(output) == [row(0)]


@pytest.mark.parametrize("damage", [b"what\n", b'{"other": 1}\n', b"[]\n", b"\x00\xff\n"])
def test_a_file_that_is_no_journal_is_not_touched(damage: bytes, tmp_path: Path) -> None:
    part = journal_path(tmp_path / "r.jsonl")
    part.write_bytes(damage)
    assert "is no journal of a batch, or damaged" in refused(tmp_path / "r.jsonl")
    assert part.read_bytes() == damage


@pytest.mark.parametrize("line", [b"{half", b'{"number": -1, "row": {}}', b'{"number": 1e400, "row": {}}'])
def test_a_broken_line_in_the_middle_is_damage(line: bytes, tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with Journal(output, HEADER) as journal:
        journal.write(0, row(0))
    with journal_path(output).open("ab") as file:
        file.write(line + b"\n" + json.dumps({"number": 1, "row": row(1)}).encode() + b"\n")
    assert "damaged" in refused(output)


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    assert "unknown kind of output" in refused(tmp_path / "r.txt")
    assert "no such folder" in refused(tmp_path / "no" / "r.jsonl")
    assert "cannot be written" in refused(tmp_path / ("long" * 100 + ".jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "r.jsonl.part").mkdir()
    for name, folder in (("folder.jsonl", "folder.jsonl"), ("r.jsonl", "r.jsonl.part")):
        with pytest.raises(InputError, match=f"{folder}: is a folder"):
            Journal(tmp_path / name, HEADER, restart=True)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    output = tmp_path / "r.jsonl"
    with Journal(output, HEADER) as journal:
        journal.write(0, row(0))
        assert "another process is writing it" in refused(output)
        assert "another process is writing it" in refused(output, restart=True)
        script = (
            "from legraph.batchjournal import Journal\nfrom pathlib import Path\n"
            f"Journal(Path({str(output)!r}), {HEADER})"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert "another process is writing it" in done.stderr
        journal.write(1, row(1))
    with Journal(output, HEADER) as journal:
        assert len(journal) == 2


# A full disk


def test_a_full_disk_is_one_error_and_what_was_there_is_kept(small_disk: Path) -> None:
    output = small_disk / "r.jsonl"
    journal = Journal(output, HEADER)
    fill(small_disk, leave=4096)
    written = 0
    with journal, pytest.raises(RunError, match="cannot be written: No space left on device") as caught:
        for written in range(1000):
            journal.write(written, row(written))
    assert "the same command" in str(caught.value)
    assert written > 5
    # Nor is there room for the output; the journal stays.
    with Journal(output, HEADER) as journal, pytest.raises(RunError, match="No space left on device"):
        assert [number for number in range(written + 5) if number in journal] == list(range(written))
        journal.finish()
    assert not output.exists()
    (small_disk / "filler").unlink()
    with Journal(output, HEADER) as journal:
        for number in range(written, 30):
            journal.write(number, row(number))
        journal.finish()
    assert read(output) == [row(number) for number in range(max(30, written))]
