"""Commands that run graphs on a model: to continue them, to prove the mask, to score texts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from legraph.cli.console import print_picture, progress
from legraph.cli.inputs import (
    JSONL_SUFFIX,
    as_bundle,
    graph_or_bundle,
    kv_store,
    load_engine,
    output_path,
    run_inputs,
)
from legraph.cli.options import (
    AttnOption,
    DeviceOption,
    DtypeOption,
    InputArgument,
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
    TpOption,
    VarOption,
    VarsOption,
    check_model_options,
    reading_of,
    run_settings,
)
from legraph.cli.ranks import is_first, join_others
from legraph.cli.runreport import LogProbs, Report
from legraph.errors import InputError, LegraphError, Problem

if TYPE_CHECKING:
    from legraph.bundle import Bundle
    from legraph.engine import Engine, RunResult

T = TypeVar("T")


def run(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="GRAPH|BUNDLE...", help='Graph files, bundles, .jsonl of {"id", "graph"}; - is stdin.'
        ),
    ],
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    tp: TpOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    max_new_tokens: MaxNewTokensOption = 32,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    prefill_tokens: PrefillTokensOption = None,
    kv: KvOption = None,
    kv_bytes: KvBytesOption = None,
    explain_cache: Annotated[
        bool, typer.Option("--explain-cache", help="Show where each chunk's keys and values came from.")
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(
            "--save", metavar="OUT", help="Write the finished graph, text and generated tokens, as a bundle."
        ),
    ] = None,
    attention: Annotated[
        str | None,
        typer.Option(
            "--attention",
            metavar="OUT.npz",
            help="Write how much attention went from chunk to chunk, in every layer and head.",
        ),
    ] = None,
    attention_tokens: Annotated[
        bool, typer.Option("--attention-tokens", help="With --attention: from token to token too.")
    ] = False,
    log_probs: Annotated[
        bool, typer.Option("--log-probs", help="With --json: log-probabilities of generated tokens.")
    ] = False,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    stream: Annotated[bool, typer.Option("--stream", help="Show text as it is generated.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run graphs on a model: every leaf, and every chunk with 'generate', is continued."""
    from legraph.parallel import check_choice

    check_model_options(dtype, attn)
    settings = run_settings(max_new_tokens, temperature, top_k, top_p, seed)
    _check_cache_options(kv, kv_bytes, explain_cache)
    check_choice(tp, device, kv is not None)
    join_others(tp)
    if attention_tokens and attention is None:
        raise InputError(Problem("--attention-tokens is about --attention", "--attention OUT.npz beside it"))
    if log_probs and not as_json:
        raise InputError(Problem("--log-probs are printed with --json only", "--json beside it"))
    path = None if save is None else _saved_path("--save", save, sources)
    attention_path = None if attention is None else _saved_path("--attention", attention, sources, ".npz")
    started = time.perf_counter()
    # What is wrong with the input is said before a model is loaded.
    given = run_inputs(sources, reading_of(var, vars_file, allow_outside))
    engine = load_engine(
        model,
        tokenizer,
        device=device,
        tp=tp,
        dtype=dtype,
        attn=attn,
        kv=kv_store(kv, kv_bytes),
        prefill_tokens=prefill_tokens,
    )
    loaded = time.perf_counter()
    bundles = [_or_error(as_bundle, graph, engine.tokenizer) for graph in given.values()]
    compiled = time.perf_counter()
    runs = [
        bundle if isinstance(bundle, LegraphError) else _or_error(engine.submit, bundle, settings)
        for bundle in bundles
    ]
    is_several = len(sources) > 1 or Path(sources[0]).suffix == JSONL_SUFFIX
    if not is_several and isinstance(runs[0], LegraphError):
        raise runs[0]
    setup = {"load_s": loaded - started, "compile_s": compiled - loaded}
    report = Report(list(given), is_several, as_json, explain_cache, setup)
    is_complete = False
    try:
        report.follow(engine, runs, stream and not as_json)
        is_complete = True
    finally:
        # After an interrupt too: what was generated until then is kept.
        results = report.results(runs)
        try:
            # First, because nobody may read the results.
            if path is not None and is_first() and not isinstance(results[0], LegraphError):
                results[0].bundle.save(path)
            if is_complete and log_probs:
                report.log_probs = _log_probs(engine, results)
            if is_complete and attention_path is not None and not isinstance(results[0], LegraphError):
                _observe(engine, results[0].bundle, attention_tokens, attention_path)
        finally:
            report.give(results)
    if report.errors:
        raise typer.Exit(1)


def verify(
    source: InputArgument,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Change N chunks only; default all, or 64 if there are more."),
    ] = None,
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Prove on a model that each chunk changes its descendants and nothing else. Exit code 0 or 1."""
    from legraph.verify import num_passes
    from legraph.verify import verify as verify_bundle
    from legraph.verifyshow import VerifyPicture, verify_data

    check_model_options(dtype, attn)
    given = graph_or_bundle(source, reading_of(var, vars_file, allow_outside))
    engine = load_engine(model, tokenizer, device=device, dtype=dtype, attn=attn)
    bundle = as_bundle(given, engine.tokenizer)
    with progress("verifying", num_passes(bundle.mask.num_chunks, sample), "passes") as advance:
        found = verify_bundle(engine, bundle, sample, advance=advance)
    print(json.dumps(verify_data(found))) if as_json else print_picture(VerifyPicture(found))
    if not found.is_ok:
        raise typer.Exit(1)


def score(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="GRAPH|BUNDLE...", help="Graph files, bundles, .jsonl; - is stdin."),
    ],
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="NAME", help="May be repeated. Default: completions, else leaves."),
    ] = None,
    model: ModelOption = None,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "auto",
    attn: AttnOption = "auto",
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
    as_json: JsonOption = False,
) -> None:
    """Log-probabilities of chunks under their graph: of completions, or of texts without the first token."""
    from legraph.score import label_targets, score_all
    from legraph.scoreshow import score_data, score_table

    check_model_options(dtype, attn)
    targets = target or []
    given = label_targets(run_inputs(sources, reading_of(var, vars_file, allow_outside)), targets)
    engine = load_engine(model, tokenizer, device=device, dtype=dtype, attn=attn)
    bundles = {name: as_bundle(graph, engine.tokenizer) for name, graph in given.items()}
    scores = score_all(engine, bundles, targets)
    print(json.dumps(score_data(scores))) if as_json else print_picture(score_table(scores))


def _or_error(function: Callable[..., T], *arguments: Any) -> T | LegraphError:
    """A graph that cannot be run on this model is an error of its own: others beside it can."""
    try:
        return function(*arguments)
    except LegraphError as error:
        return error


def _check_cache_options(kv: str | None, kv_bytes: str | None, explain_cache: bool) -> None:
    if kv is None and (kv_bytes is not None or explain_cache):
        option = "--explain-cache" if explain_cache else "--kv-bytes"
        raise InputError(Problem(f"{option} is about a store, and there is none", "--kv DIR beside it"))


def _log_probs(engine: Engine, results: Sequence[RunResult | LegraphError]) -> LogProbs:
    from legraph.score import score_generated

    return {
        number: score_generated(engine, result)
        for number, result in enumerate(results)
        if not isinstance(result, LegraphError)
    }


def _observe(engine: Engine, bundle: Bundle, tokens: bool, path: Path) -> None:
    from legraph.observe import observe

    with progress("observing", len(bundle), "tokens") as advance:
        observe(engine, bundle, tokens, advance=advance).save(path)


def _saved_path(option: str, save: str, sources: list[str], suffix: str | None = None) -> Path:
    if len(sources) > 1 or Path(sources[0]).suffix == JSONL_SUFFIX:
        raise InputError(Problem(f"{option} keeps one graph, and there are several", "one graph"))
    if suffix is not None and Path(save).suffix != suffix:
        raise InputError(Problem(f"{option} is {save!r}", f"a name that ends in {suffix}"))
    path = output_path(sources[0], save)
    # Before the run, which may take long: its result must have a place.
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        wrong = "permission denied" if path.parent.is_dir() else "no such folder"
        raise InputError(Problem(f"{path}: cannot be written: {wrong}", "a folder that can be written to"))
    return path
