"""Commands about the folder of a KV store: `legraph cache ...`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legraph.cli.console import draw_error, print_picture, progress
from legraph.cli.options import JsonOption
from legraph.errors import InputError, Problem

if TYPE_CHECKING:
    from legraph.kvdisk import DiskTier, Removed

cache = typer.Typer(
    help="Look after a folder in which keys and values (KV) of chunks are kept for reuse.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

FolderArgument = Annotated[str, typer.Argument(metavar="DIR", help="The KV store's folder.")]


@cache.command("ls")
def cache_ls(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """List the entries, the one used last first."""
    from legraph.kvshow import entry_data, table

    entries = _kv_folder(folder).entries()
    if as_json:
        print(json.dumps({"folder": folder, "entries": [entry_data(entry) for entry in entries]}))
    elif entries:
        print_picture(table(entries))
    else:
        print(f"{folder}: no entries")


@cache.command("stat")
def cache_stat(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Count entries, tokens and bytes, of each model and in all."""
    from legraph.kvshow import totals_data, totals_text

    tier = _kv_folder(folder)
    totals = totals_data(tier.usage(), tier.entries())
    if as_json:
        print(json.dumps({"folder": folder} | totals))
    else:
        print(f"{folder}: {totals_text(totals)}")


@cache.command("prune")
def cache_prune(
    folder: FolderArgument,
    max_bytes: Annotated[str, typer.Option("--max-bytes", metavar="SIZE", help="500MB, 2GiB, 1000000, ...")],
    as_json: JsonOption = False,
) -> None:
    """Remove the least recently used entries until the rest fits, and what dead processes left."""
    from legraph.kvshow import parse_size

    size = parse_size(max_bytes)
    _print_removed(folder, _kv_folder(folder).prune(size), as_json)


@cache.command("verify")
def cache_verify(
    folder: FolderArgument,
    remove: Annotated[bool, typer.Option("--remove", help="Remove entries that are damaged.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare every entry with its checksum. Exit code 1 if a damaged one stays."""
    from legraph.kvshow import verified_data, verified_line

    tier = _kv_folder(folder)
    with progress("verifying", tier.usage()[0], "entries") as advance:
        verified = tier.verify(remove, advance)
    if as_json:
        print(json.dumps({"folder": folder} | verified_data(verified)))
    else:
        for file in verified.bad:
            draw_error(f"{file.path}: {file.reason}{'; removed' if file.removed else ''}")
        print(f"{folder}: {verified_line(verified)}")
    if not all(file.removed for file in verified.bad):
        raise typer.Exit(1)


@cache.command("clear")
def cache_clear(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Remove all entries. Other files in the folder stay."""
    _print_removed(folder, _kv_folder(folder).clear(), as_json)


def _kv_folder(folder: str) -> DiskTier:
    """Unlike a run, which makes the folder, these commands are about one that is there."""
    from legraph.kvdisk import DiskTier

    if not Path(folder).is_dir():
        wrong = "is a file" if Path(folder).exists() else "no such folder"
        raise InputError(Problem(f"{folder}: {wrong}", "the folder of a KV store"))
    return DiskTier(folder)


def _print_removed(folder: str, removed: Removed, as_json: bool) -> None:
    from legraph.kvshow import removed_data, removed_line

    if as_json:
        print(json.dumps({"folder": folder} | removed_data(removed)))
    else:
        print(f"{folder}: {removed_line(removed)}")
