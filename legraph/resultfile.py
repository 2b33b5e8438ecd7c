"""What `legraph run --json` printed, read back: to be shown with the graph that it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from legraph.bundle import Bundle
from legraph.errors import InputError, Problem, count, did_you_mean
from legraph.marks import quoted
from legraph.result import finished_bundle, used_starts

_WRITTEN_BY = "what 'legraph run GRAPH --json' prints for one graph"


class OutputEntry(BaseModel):
    """What one chunk generated. Each token has one log-probability, if it has any."""

    text: str
    token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]]
    finish: str | None = None
    log_probs: list[Annotated[float, Field(le=0, ge=-1e30, allow_inf_nan=False)]] | None = None


class TokenCounts(BaseModel):
    """`prompt` is the number of tokens of the compiled graph, before anything was generated."""

    prompt: int


class ResultEntry(BaseModel):
    """What one run gave. Other keys of the file are not looked at."""

    outputs: dict[str, OutputEntry]
    tokens: TokenCounts


def read_result(path: Path) -> ResultEntry:
    """The result in a file.

    Raises:
        InputError: it cannot be read, or is something else than the result of one run.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise InputError(Problem(f"{path}: cannot be read: {reason}", _WRITTEN_BY)) from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        is_several = len([line for line in text.splitlines() if line.startswith("{")]) > 1
        what = "holds several JSON objects" if is_several else "is not JSON"
        hint = "take the line of one graph" if is_several else None
        raise InputError(Problem(f"{path}: {what}", _WRITTEN_BY, hint)) from None
    return _checked(path, content)


def _checked(path: Path, content: Any) -> ResultEntry:
    if isinstance(content, dict) and "error" in content:
        raise InputError(Problem(f"{path}: holds the error of a run that failed", _WRITTEN_BY))
    try:
        result = ResultEntry.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the content"
        raise InputError(Problem(f"{path}: {place}: {first['msg']}", _WRITTEN_BY)) from None
    for name, output in result.outputs.items():
        if output.log_probs is not None and len(output.log_probs) != len(output.token_ids):
            raise InputError(
                Problem(
                    f"{path}: {quoted(name)} has {len(output.token_ids)} token ids and "
                    f"{len(output.log_probs)} log-probabilities",
                    "one for each token",
                )
            )
    return result


def finished_with(bundle: Bundle, result: ResultEntry, path: Path, may_be_finished: bool = False) -> Bundle:
    """The finished graph of a run: the compiled one with what was generated, at the positions really used.

    Args:
        path: of the result, for errors.
        may_be_finished: the bundle may have been written after the run, which its number of tokens shows.

    Raises:
        InputError: the result is of another graph: of other chunks, or of another number of tokens.
    """
    outputs = result.outputs
    unknown = [name for name in outputs if name not in bundle.span_names]
    if unknown:
        hint = did_you_mean(unknown[0], bundle.span_names)
        raise InputError(
            Problem(f"{path}: the graph has no chunk {quoted(unknown[0])}", "the result of this graph", hint)
        )
    generated = {name: output.token_ids for name, output in outputs.items()}
    num_finished = result.tokens.prompt + sum(map(len, generated.values()))
    ends_so = all(_ends_with(bundle, name, ids) for name, ids in generated.items())
    if may_be_finished and len(bundle) == num_finished and ends_so:
        return bundle
    if len(bundle) != result.tokens.prompt:
        raise InputError(
            Problem(
                f"{path}: is the result of a graph of {count(result.tokens.prompt, 'token')}, and this one "
                f"has {len(bundle):,}",
                "the result of this graph, with the same tokenizer",
            )
        )
    return finished_bundle(bundle, generated, used_starts(bundle, generated), outputs.keys())


def _ends_with(bundle: Bundle, name: str, ids: list[int]) -> bool:
    own = bundle.input_ids[bundle.span(name)].tolist()
    return len(ids) < len(own) and own[len(own) - len(ids) :] == ids
