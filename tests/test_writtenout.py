"""`legraph show --expand`: the file that is written out means what the short one means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from legraph.graph import build_graph
from legraph.parse import parse_file
from legraph.writtenout import written_out
from tests.command_line import Call

ROOT = Path(__file__).parent.parent
MAIN = """legraph: 1
vars: {title: "the \\"first\\" one"}
bos: true
chunks:
  - {name: head, text: "About ${title}, and $${this}"}
  - for: {i: {range: 12}, kind: [long, short]}
    name: ${kind}${i}
    text: "${kind} ${i.number}"
    group: notes
    parents: [head]
  - {include: sub/part.yaml, as: part, parents: [head], vars: {who: Maren}}
  - {name: q, text: "so?", parents: ["@notes", ^long3, "part.*"], generate: {stop: ["${title}"]}}
  - {name: end, text: end, parents: [ancestors(q), "^@part", q]}
assert:
  - sees: [q, "@notes"]
"""
PART = """legraph: 1
bos: true
chunks:
  - {name: a, text: "I am ${who}", role: user}
  - {name: b, file: b.txt, parents: [all-before]}
"""


@pytest.fixture
def short(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "main.yaml").write_text(MAIN.replace('  - sees: [q, "@notes"]\n', "  - sees: [q, long2]\n"))
    (tmp_path / "sub/part.yaml").write_text(PART)
    (tmp_path / "sub/b.txt").write_text("${not a variable}")
    return tmp_path / "main.yaml"


def test_what_is_written_out_means_the_same(short: Path):
    long = short.with_name("long.yaml")
    long.write_text(written_out(parse_file(short)), encoding="utf-8")
    assert build_graph(parse_file(long)) == build_graph(parse_file(short))
    data = yaml.safe_load(long.read_text(encoding="utf-8"))
    assert len(data["chunks"]) == 1 + 24 + 2 + 2
    assert not {key for chunk in data["chunks"] for key in chunk} & {"for", "include", "group"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_so_it_is_for_the_examples(path: Path, tmp_path: Path):
    for folder in ("docs", "gates"):
        (tmp_path / folder).symlink_to(ROOT / "examples" / folder)
    long = tmp_path / "long.yaml"
    long.write_text(written_out(parse_file(path)), encoding="utf-8")
    assert build_graph(parse_file(long)) == build_graph(parse_file(path))


def test_what_a_selector_matched_stands_above_its_chunk(short: Path):
    lines = written_out(parse_file(short)).splitlines()
    q = lines.index("  - name: q")
    said = [line.strip().removeprefix("# ") for line in lines[q - 3 : q]]
    assert said == [
        "@notes: long0, short0, long1, short1, long2, short2, ... (23 chunks)",
        "^long3 is left out",
        "part.*: part.a, part.b",
    ]
    assert lines[lines.index("  - name: short1") - 1] == "  # i is 1, kind is 'short'"


def test_for_programs_it_is_names(short: Path, call: Call):
    data = json.loads(call("show", short, "--expand", "--json").out)
    by_name = {chunk["name"]: chunk for chunk in data["chunks"]}
    notes = [f"{kind}{i}" for i in range(12) for kind in ("long", "short")]
    assert list(by_name) == ["head", *notes, "part.a", "part.b", "q", "end"]
    kept = [name for name in notes if name != "long3"]
    assert by_name["q"]["selectors"] == {"@notes": kept, "^long3": [], "part.*": ["part.a", "part.b"]}
    assert by_name["q"]["parents"] == [*kept, "part.a", "part.b"]
    assert by_name["end"]["parents"] == ["head", *kept, "q"]
    assert by_name["part.b"]["place"] == f"{short.parent / 'sub/part.yaml'}:5:5"


def test_a_bundle_has_nothing_to_write_out(short: Path, call: Call, tmp_path: Path):
    refused = call("show", tmp_path / "some.npz", "--expand")
    assert refused.code == 2
    assert "a bundle has nothing to write out" in refused.err
