"""`legraph batch`: many graphs -> one file of results, with a journal to go on from."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from legraph.cli.console import draw_error
from legraph.cli.inputs import kv_store, load_engine
from legraph.cli.options import (
    AttnOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KvBytesOption,
    KvOption,
    MaxNewTokensOption,
    ModelOption,
    OutsideOption,
    PrefillTokensOption,
    SeedOption,
    TemperatureOption,
    TokenizerOption,
    TopKOption,
    TopPOption,
    VarOption,
    VarsOption,
    check_model_options,
    reading_of,
    run_settings,
)
from legraph.cli.rayrun import GpusPerActorOption, RayActorsOption, RayOption, Runner, on_ray, pool_of
from legraph.errors import InputError, Problem

if TYPE_CHECKING:
    from legraph.batch import Progress
    from legraph.batchinput import Inputs
    from legraph.graph import Generate

# Numbers are drawn anew no more often than this.
_SECONDS_PER_PICTURE = 0.1


def batch_command(
    output: Annotated[str, typer.Option("-o", "--output", metavar="OUT", help="Results: .jsonl, .parquet.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Graph files, globs, .jsonl or .parquet of graphs, bundles; - is stdin."
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", metavar="GRAPH", help="Instead of inputs: one graph file, ...")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option("--table", metavar="FILE", help="... run for each row of its variables (and 'id')."),
    ] = None,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    max_new_tokens: MaxNewTokensOption = 32,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    prefill_tokens: PrefillTokensOption = None,
    cache_tokens: Annotated[
        int | None,
        typer.Option(
            "--cache-tokens",
            min=1,
            help="Tokens in memory at a time, texts and room to generate; default: what fits the device.",
        ),
    ] = None,
    reuse: Annotated[
        bool,
        typer.Option("--reuse/--no-reuse", help="Compute chunks that graphs share once, while in memory."),
    ] = True,
    kv: KvOption = None,
    kv_bytes: KvBytesOption = None,
    ray: RayOption = None,
    ray_actors: RayActorsOption = None,
    gpus_per_actor: GpusPerActorOption = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an earlier run has done, and its output.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Run graphs again whose row is an error.")
    ] = False,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run many graphs on a model, into a file. The same command goes on where an earlier one was ended."""
    from legraph.batchinput import Inputs
    from legraph.batchjournal import Journal, check_output, input_header

    check_model_options(dtype, attn)
    settings = run_settings(max_new_tokens, temperature, top_k, top_p, seed)
    if kv is not None and not reuse:
        raise InputError(Problem("--kv is there to reuse what it holds", "one of --kv and --no-reuse"))
    if kv is None and kv_bytes is not None:
        raise InputError(Problem("--kv-bytes is about a store, and there is none", "--kv DIR beside it"))
    pool = pool_of(ray, ray_actors, gpus_per_actor)
    # What is wrong with the input is said before torch and a model are loaded.
    found = Inputs.find(inputs or (), template, table, *reading_of(var, vars_file, allow_outside))
    header = input_header(found, settings, model or "recall", dtype)
    check_output(Path(output), header, restart)
    total = found.num_graphs()

    from legraph.batch import store_bytes
    from legraph.kvshow import parse_size
    from legraph.raybatch import EngineOptions

    options = {
        "model": model,
        "tokenizer": tokenizer,
        "device": device,
        "dtype": dtype,
        "attn": attn,
        "prefill_tokens": prefill_tokens,
    }
    if pool is None:
        store = kv_store(kv, kv_bytes, store_bytes(device)) if reuse else None
        place = _here(options, store, found, settings, cache_tokens, retry_errors)
    else:
        size = None if kv_bytes is None else parse_size(kv_bytes)
        place = on_ray(
            pool, EngineOptions(options, reuse, kv, size, cache_tokens), found, settings, retry_errors
        )
    with (
        place as (model_part, run),
        Journal(Path(output), header | model_part, restart) as journal,
    ):
        try:
            with _shown(total, reuse) as show:
                done = run(journal, show)
        except KeyboardInterrupt:
            draw_error(
                f"interrupted: {len(journal):,} of {total:,} graphs are done; the same command goes on"
            )
            raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({"output": output} | _totals(done)))
    else:
        print("\n".join([f"{output}: {_said(done)}", *_errors_of(done)]), file=sys.stderr)
    if done.failed:
        raise typer.Exit(1)


@contextmanager
def _here(
    options: dict[str, Any],
    store: Any,
    inputs: Inputs,
    settings: Generate,
    cache_tokens: int | None,
    retry_errors: bool,
) -> Iterator[tuple[dict[str, Any], Runner]]:
    """The model's part of the journal's header, and what runs the batch, in this process."""
    from legraph.batch import model_header, run_to_file

    engine = load_engine(**options, kv=store)
    yield (
        model_header(engine),
        lambda journal, shown: run_to_file(
            engine, inputs, settings, journal, cache_tokens, retry_errors, shown
        ),
    )


def _totals(done: Progress) -> dict[str, Any]:
    return {
        "graphs": done.graphs,
        "failed": done.failed,
        "skipped": done.skipped,
        "tokens": done.tokens,
        "reused": done.reused,
        "seconds": round(done.seconds, 3),
    }


def _said(done: Progress) -> str:
    from legraph.errors import count

    notes = [f"{done.failed:,} failed"] if done.failed else []
    notes += [f"{done.skipped:,} done before"] if done.skipped else []
    notes.append(f"{count(done.tokens, 'token')} in {done.seconds:.1f} s")
    return f"{count(done.graphs, 'graph')}, {', '.join(notes)}"


def _errors_of(done: Progress) -> list[str]:
    if not done.failed:
        return []
    lines, more = [f"  {error}" for error in done.errors], done.failed - len(done.errors)
    if lines and more:
        lines.append(f"  ... and {more:,} more")
    return [*lines, "--retry-errors runs them again, with the same inputs"]


@contextmanager
def _shown(total: int, reuses: bool) -> Iterator[Callable[[Progress], object]]:
    """A progress bar on stderr, where stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("graphs"), TextColumn("{task.description}")
    bar = Bar(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
    drawn = 0.0
    with bar:
        task = bar.add_task("", total=total)

        def show(progress: Progress) -> None:
            nonlocal drawn
            if time.monotonic() - drawn >= _SECONDS_PER_PICTURE:
                drawn = time.monotonic()
                bar.update(task, completed=progress.graphs, description=_speed(progress, reuses))

        yield show


def _speed(progress: Progress, reuses: bool) -> str:
    said = f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s"
    if reuses:
        said += f", {100 * progress.reused / max(progress.prompt, 1):.0f}% reused"
    return said + (f", {progress.failed:,} failed" if progress.failed else "")
