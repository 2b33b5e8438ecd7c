"""A KV store's folder for people (a table, sentences) and for programs (plain data), and sizes in words.

Nothing here prints, and nothing loads torch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.table import Table
from rich.text import Text

from legraph.errors import InputError, Problem, count
from legraph.kvdisk import Entry, Removed, Verified
from legraph.marks import printable

# Digits of keys and fingerprints that people see; enough to tell them apart, and to find a file by.
_DIGITS_SHOWN = 12
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(?:([kmgt])(i)?)?b?", re.IGNORECASE)
_PREFIXES = "kmgt"


def parse_size(text: str) -> int:
    """Bytes of `500MB`, `2GiB`, `1.5 TB` or `1000000`.

    Raises:
        InputError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        expected = "bytes, or a number with a unit, such as 500MB or 2GiB"
        raise InputError(Problem(f"{text!r} is not a size", expected))
    number, prefix, binary = match.groups()
    power = 1 + _PREFIXES.index(prefix.lower()) if prefix else 0
    return int(Decimal(number) * (1024 if binary else 1000) ** power)


def format_size(num_bytes: int) -> str:
    """`512 B`, `1.5 KiB`, `2.0 GiB`."""
    size, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        # What would be drawn as 1024.0 is 1.0 of the next unit.
        if size < 1023.95:
            break
        size, unit = size / 1024, larger
    return f"{num_bytes:,} B" if unit == "B" else f"{size:,.1f} {unit}"


def table(entries: Sequence[Entry]) -> Table:
    """One line for each entry; a rich renderable."""
    drawn = Table(box=None, pad_edge=False)
    for heading in ("key", "last used", "model"):
        drawn.add_column(heading, no_wrap=True)
    for heading in ("tokens", "start", "dtype", "size"):
        drawn.add_column(heading, no_wrap=True, justify="right")
    for entry in entries:
        drawn.add_row(
            entry.key[:_DIGITS_SHOWN],
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used)),
            # As a Text, because in a string [brackets] are markup.
            Text(_model(entry.model_name, entry.model)),
            f"{entry.num_tokens:,}",
            f"{entry.start:,}",
            entry.dtype,
            format_size(entry.num_bytes),
        )
    return drawn


def entry_data(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "path": str(entry.path),
        "bytes": entry.num_bytes,
        "tokens": entry.num_tokens,
        "dtype": entry.dtype,
        "start": entry.start,
        "model": entry.model,
        "model_name": entry.model_name,
        "last_used": entry.last_used,
    }


def totals_data(usage: tuple[int, int], entries: Sequence[Entry]) -> dict[str, Any]:
    """Totals, and the same for each model. `usage` counts damaged files too, `entries` does not."""
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        about = {"model": entry.model, "model_name": entry.model_name, "entries": 0, "tokens": 0, "bytes": 0}
        model = models.setdefault((entry.model, entry.model_name), about)
        model["entries"] += 1
        model["tokens"] += entry.num_tokens
        model["bytes"] += entry.num_bytes
    tokens = sum(entry.num_tokens for entry in entries)
    return {"entries": usage[0], "bytes": usage[1], "tokens": tokens, "models": list(models.values())}


def totals_text(totals: dict[str, Any]) -> str:
    """What `totals_data` says: a line for all, then one for each model."""
    lines = [f"{_entries(totals['entries'])}, {format_size(totals['bytes'])}"]
    for model in totals["models"]:
        amounts = _entries(model["entries"]), count(model["tokens"], "token"), format_size(model["bytes"])
        lines.append(f"  {_model(model['model_name'], model['model'])}: {', '.join(amounts)}")
    return "\n".join(lines)


def removed_data(removed: Removed) -> dict[str, Any]:
    return {
        "removed": removed.num_entries,
        "removed_temporary": removed.num_temporary,
        "removed_bytes": removed.num_bytes,
        "left_bytes": removed.left_bytes,
    }


def removed_line(removed: Removed) -> str:
    what = _entries(removed.num_entries)
    if removed.num_temporary:
        what += f" and {count(removed.num_temporary, 'temporary file')}"
    return f"removed {what} ({format_size(removed.num_bytes)}), {format_size(removed.left_bytes)} left"


def verified_data(verified: Verified) -> dict[str, Any]:
    bad = [{"path": str(file.path), "reason": file.reason, "removed": file.removed} for file in verified.bad]
    return {"good": verified.num_good, "good_bytes": verified.num_bytes, "bad": bad}


def verified_line(verified: Verified) -> str:
    return f"{verified.num_good:,} good ({format_size(verified.num_bytes)}), {len(verified.bad):,} bad"


def _entries(number: int) -> str:
    return "1 entry" if number == 1 else f"{number:,} entries"


def _model(name: str, fingerprint: str) -> str:
    return f"{printable(name)} ({fingerprint[:_DIGITS_SHOWN]})"
