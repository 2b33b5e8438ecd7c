"""What a run gave, as JSON data, as text and as a table. Nothing here prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from legraph.errors import InputError, LegraphError, RunError
from legraph.kvshow import format_size

if TYPE_CHECKING:
    from rich.table import Table

    from legraph.result import RunResult
    from legraph.reuse import ChunkSource

_ORIGIN_STYLES = {"device": "green", "memory": "green", "disk": "cyan", "computed": "yellow", "unused": "dim"}


def result_data(
    result: RunResult,
    timing: Mapping[str, float],
    explain: bool = False,
    log_probs: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The object that `legraph run --json` prints.

    Args:
        explain: with the source of each chunk.
        log_probs: by chunk, of each token that it generated.
    """
    outputs: dict[str, Any] = {
        chunk: {"text": output.text, "token_ids": list(output.token_ids), "finish": output.finish}
        for chunk, output in result.outputs.items()
    }
    for chunk, values in (log_probs or {}).items():
        outputs[chunk]["log_probs"] = list(values)
    data: dict[str, Any] = {"outputs": outputs, "timing": dict(timing), "tokens": result.tokens}
    if explain:
        data["cache"] = [source_data(source) for source in result.sources]
    return data


def error_data(error: LegraphError) -> dict[str, str]:
    """An error as a row of results: what kind, what was wrong, and where in which file."""
    if isinstance(error, InputError):
        first = error.problems[0]
        message, where = first.message, str(first.source) if first.source is not None else ""
    else:
        message, where = error.message if isinstance(error, RunError) else str(error), ""
    return {"kind": type(error).__name__, "message": message, "where": where}


def outputs_text(result: RunResult) -> str:
    """The text of a single output as it is, of several with their names."""
    if len(result.outputs) == 1:
        return next(iter(result.outputs.values())).text.strip()
    return "\n".join(f"[{chunk}] {output.text.strip()}" for chunk, output in result.outputs.items())


def source_data(source: ChunkSource) -> dict[str, Any]:
    return {
        "chunk": source.chunk,
        "origin": source.origin,
        "tokens": source.tokens,
        "reused": source.reused,
        "bytes": source.num_bytes,
        "shift": source.shift,
    }


def sources_table(sources: Sequence[ChunkSource]) -> Table:
    """Where each chunk's keys and values came from, and what that saved."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True, footer_style="bold")
    reused, total = sum(source.reused for source in sources), sum(source.tokens for source in sources)
    table.add_column("chunk", f"{reused:,} of {total:,} tokens reused")
    table.add_column("from")
    table.add_column("tokens", f"{total:,}", justify="right")
    table.add_column("reused", f"{reused:,}", justify="right")
    table.add_column("bytes", format_size(sum(source.num_bytes for source in sources)), justify="right")
    table.add_column("moved by", justify="right")
    for source in sources:
        table.add_row(
            Text(source.chunk),
            Text(source.origin, style=_ORIGIN_STYLES[source.origin]),
            f"{source.tokens:,}",
            f"{source.reused:,}",
            format_size(source.num_bytes) if source.num_bytes else "",
            f"{source.shift:+,}" if source.shift else "",
        )
    return table
