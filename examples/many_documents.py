"""Writes a graph of many short documents and one question that sees them all.

    python examples/many_documents.py --documents 500 -o many.yaml
    legraph show many.yaml

Every document sees the BOS token only, so the mask is almost empty: attention over 500 documents costs what
it costs over one after the other, not over all pairs of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FIRST_YEAR = 1500


def graph(num_documents: int) -> str:
    """The graph as YAML."""
    names = [f"doc{i}" for i in range(num_documents)]
    lines = ["legraph: 1", "bos: true", "chunks:"]
    for i, name in enumerate(names):
        lines += [f"  - name: {name}", f'    text: "A simple fact about year {FIRST_YEAR + i}"']
    lines += ["  - name: question", '    text: "What happened in"', f"    parents: [{', '.join(names)}]"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=500, metavar="N", help="how many (default: 500)")
    parser.add_argument("-o", "--output", type=Path, help="the file to write (default: standard output)")
    options = parser.parse_args()
    if options.documents < 1:
        parser.error("--documents must be 1 or more")
    text = graph(options.documents)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
