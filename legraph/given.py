"""Variables that come from outside a graph file: `--var name=value`, and files of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from legraph.errors import GraphError, InputError, Problem
from legraph.marks import describe, quoted
from legraph.schema import VARIABLE_PATTERN
from legraph.source import SourceText
from legraph.variables import SCALAR, scalar_text

_NAME = re.compile(VARIABLE_PATTERN)


def given_variables(pairs: Sequence[str], file: str | Path | None = None) -> dict[str, Any]:
    """Variables by name. Those given as pairs override those of the file.

    Args:
        pairs: "name=value" each; the value is a string.
        file: YAML, TOML or JSON, a mapping of names to strings, numbers and booleans.

    Raises:
        InputError: a pair or the file cannot be used.
    """
    found = {} if file is None else _of_file(file)
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise InputError(Problem(f"--var is {quoted(pair)}", "name=value"))
        found[name] = value
    return found


def _of_file(path: str | Path) -> dict[str, Any]:
    source = SourceText.load(path)
    data, problems = source.read()
    if not isinstance(data, dict):
        found = describe(data)
        problems.append(Problem(f"the variables are {found}", "names and values", source=source.place(())))
        raise GraphError(problems)
    variables = cast("dict[Any, Any]", data)
    for name, value in variables.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            place = source.place((name,), at_key=True)
            what = f"{describe(name)} cannot be a variable's name"
            problems.append(Problem(what, "letters, digits and '_'", source=place))
        elif scalar_text(value) is None:
            place = source.place((name,))
            problems.append(Problem(f"variable {quoted(name)} is {describe(value)}", SCALAR, source=place))
    if problems:
        raise GraphError(problems)
    return variables
