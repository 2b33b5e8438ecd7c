"""Commands that make pictures in files: plots, and a page to look around in."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from legraph.cli.inputs import bundle_of, is_bundle, tokenizer_named
from legraph.cli.options import (
    InputArgument,
    OrderOption,
    OutsideOption,
    TokenizerOption,
    VarOption,
    VarsOption,
    one_of,
    reading_of,
    words,
)
from legraph.errors import InputError, Problem
from legraph.source import STDIN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from legraph.bundle import Bundle

KINDS = ("mask", "dag", "attention")
FORMATS = ("dot", "mermaid")
PAGE_SUFFIXES = (".html", ".htm")

# Which kinds of plot an option is about.
_ABOUT = {
    "--format": ("dag",),
    "--layout": ("dag",),
    "--look": ("dag",),
    "--blocks": ("mask",),
    "--positions": ("mask",),
    "--tokens": ("mask", "attention"),
    "--layer": ("attention",),
    "--head": ("attention",),
    # A DAG is as large as its boxes.
    "--size": ("mask", "attention"),
}


def plot(
    source: InputArgument,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help=".png, .svg or .pdf; default: GRAPH's name, KIND.png."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="mask|dag|attention",
            help="What to draw, default: mask. Attention: of the file that a run wrote.",
            autocompletion=words(*KINDS),
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="dot|mermaid",
            help="The DAG as text for Graphviz or Mermaid; without -o on standard output.",
            autocompletion=words(*FORMATS),
        ),
    ] = None,
    theme: Annotated[
        str,
        typer.Option("--theme", metavar="light|dark", help="Colours.", autocompletion=words("light", "dark")),
    ] = "light",
    title: Annotated[str | None, typer.Option("--title", metavar="TEXT", help="A heading.")] = None,
    size: Annotated[
        float | None, typer.Option("--size", metavar="INCHES", help="Longest side of a mask's square.")
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Mask: which 128 x 128 blocks are full, partial, empty.")
    ] = False,
    positions: Annotated[bool, typer.Option("--positions", help="Mask: position ids.")] = False,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Mask: the texts of tokens. Attention: from token to token."),
    ] = False,
    layer: Annotated[
        int | None, typer.Option("--layer", min=0, help="Attention: of this layer; default: mean.")
    ] = None,
    head: Annotated[
        int | None, typer.Option("--head", min=0, help="Attention: of this head; default: mean.")
    ] = None,
    look: Annotated[
        str | None,
        typer.Option(
            "--look",
            metavar="box|daft",
            help="DAG: boxes, or circles as in plate diagrams. Default: box.",
            autocompletion=words("box", "daft"),
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            metavar="auto|graphviz|layered",
            help="DAG: who places boxes; auto: Graphviz where it is installed.",
            autocompletion=words("auto", "graphviz", "layered"),
        ),
    ] = None,
    tokenizer: TokenizerOption = None,
    order: OrderOption = "declared",
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
) -> None:
    """Draw a graph's mask, its DAG, or the attention that a model paid, into a file."""
    what = kind or ("dag" if format is not None else "mask")
    one_of("--kind", what, KINDS)
    one_of("--theme", theme, ("light", "dark"))
    given = {
        "--format": format,
        "--layout": layout,
        "--look": look,
        "--blocks": blocks,
        "--positions": positions,
        "--tokens": tokens,
        "--layer": layer,
        "--head": head,
        "--size": size,
    }
    _check_about(what, given)
    if format is not None and (title is not None or theme != "light" or look or layout):
        raise InputError(
            Problem("--format writes text, which has no colours, places and headings", "--format alone")
        )

    def bundle(loaded: Any) -> Bundle:
        return bundle_of(source, loaded, order, reading_of(var, vars_file, allow_outside))

    if format is not None:
        _check_text(source, format, output)
        _write_text(bundle(tokenizer_named(tokenizer)), format, output)
        return
    from legraph.figure import save_figure

    path = _checked_picture(source, output, what)
    common: dict[str, Any] = {"theme": theme, "title": title} | ({} if size is None else {"size": size})
    if what == "attention":
        figure = _attention_figure(source, layer=layer, head=head, tokens=tokens, **common)
    elif what == "dag":
        one_of("--look", look or "box", ("box", "daft"))
        one_of("--layout", layout or "auto", ("auto", "graphviz", "layered"))
        from legraph.dagplot import dag_figure

        common |= {"engine": layout or "auto", "look": look or "box"}
        figure = dag_figure(bundle(tokenizer_named(tokenizer)), **common)
    else:
        loaded = tokenizer_named(tokenizer)
        figure = _mask_figure(bundle(loaded), loaded, tokens, blocks=blocks, positions=positions, **common)
    save_figure(figure, path)
    print(f"wrote {path}")


def _attention_figure(source: str, **options: Any) -> Figure:
    from legraph.attentionmass import AttentionMass
    from legraph.attentionplot import attention_figure

    return attention_figure(AttentionMass.load(source), **options)


def _mask_figure(bundle: Bundle, tokenizer: Any, tokens: bool, **options: Any) -> Figure:
    from legraph.maskplot import MOST_CELLS, mask_figure

    texts = _token_texts(bundle, tokenizer) if tokens and len(bundle) <= MOST_CELLS else None
    if tokens and texts is None:
        print(f"note: texts of tokens are shown up to {MOST_CELLS} tokens", file=sys.stderr)
    return mask_figure(bundle, token_texts=texts, **options)


def _check_text(source: str, format: str, output: str | None) -> None:
    from legraph.figure import SUFFIXES

    one_of("--format", format, FORMATS)
    if output is not None and Path(output).suffix.lower() in SUFFIXES:
        raise InputError(Problem(f"{output}: --format {format} is text", "another name, or no --format"))
    if output is not None:
        _check_place(Path(output), source)


def _checked_picture(source: str, output: str | None, kind: str) -> Path:
    """Where a picture goes. What is wrong with the call is said before anything takes its time."""
    from legraph.figure import check_matplotlib, check_suffix

    check_matplotlib()
    path = _picture_path(source, output, f".{kind}.png")
    check_suffix(path)
    _check_place(path, source)
    if kind == "attention" and Path(source).suffix != ".npz":
        raise InputError(
            Problem(
                f"{source} holds no attention", "what 'legraph run GRAPH --attention OUT.npz' has written"
            )
        )
    return path


def _check_about(kind: str, given: dict[str, Any]) -> None:
    problems = [
        Problem(f"{option} is about --kind {' and '.join(kinds)}", f"not with --kind {kind}")
        for option, kinds in _ABOUT.items()
        if given[option] is not None and given[option] is not False and kind not in kinds
    ]
    if problems:
        raise InputError(problems)


def _check_place(path: Path, *inputs: str) -> None:
    """Before anything takes its time: there is a place for the output, which is no input."""
    if not path.parent.is_dir():
        raise InputError(Problem(f"{path}: cannot be written: no such folder", "a folder that is there"))
    for given in inputs:
        if given != STDIN and path.exists() and Path(given).exists() and path.samefile(given):
            raise InputError(Problem(f"{path} is an input, and would be written over", "another name"))


def _write_text(bundle: Bundle, format: str, output: str | None) -> None:
    from legraph.dagtext import dot_text, mermaid_text
    from legraph.wholefile import write_atomically

    text = dot_text(bundle) if format == "dot" else mermaid_text(bundle)
    if output is None:
        print(text, end="")
        return
    write_atomically(Path(output), lambda file: file.write(text.encode()))
    print(f"wrote {output}")


def _token_texts(bundle: Bundle, tokenizer: Any) -> list[str]:
    from legraph.show import own_tokenizer
    from legraph.tokenpieces import written_tokens

    usable = tokenizer or own_tokenizer(bundle)
    if usable is None:
        raise InputError(
            Problem(f"the bundle's tokenizer {bundle.meta.tokenizer!r} cannot be loaded", "--tokenizer T")
        )
    return written_tokens(bundle, usable)


def _picture_path(source: str, output: str | None, suffix: str) -> Path:
    if output is not None:
        return Path(output)
    if source == STDIN:
        raise InputError(Problem("a graph from standard input needs -o", f"-o OUT{suffix}"))
    if not Path(source).name:
        raise InputError(Problem(f"{source!r} is not a file", "a graph file"))
    return Path(source).with_suffix(suffix)


def view(
    source: InputArgument,
    result: Annotated[
        str | None,
        typer.Argument(metavar="RESULT.json", help="What 'legraph run GRAPH --json' printed."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="OUT.html", help="Default: GRAPH's name with .html."),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TEXT", help="Default: GRAPH's name.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    tokenizer: TokenizerOption = None,
    order: OrderOption = "declared",
    var: VarOption = None,
    vars_file: VarsOption = None,
    allow_outside: OutsideOption = False,
) -> None:
    """Write a page to look around in: the DAG beside the mask, texts, and what a run gave. One HTML file."""
    from legraph.page import page_html
    from legraph.pagedata import page_data
    from legraph.resultfile import finished_with, read_result
    from legraph.wholefile import write_atomically

    path = _picture_path(source, output, ".html")
    if path.suffix.lower() not in PAGE_SUFFIXES:
        raise InputError(Problem(f"{path}: a page is HTML", "a name that ends in .html"))
    _check_place(path, source, *([] if result is None else [result]))
    read = None if result is None else read_result(Path(result))
    loaded = tokenizer_named(tokenizer)
    attention = _attention_in(source)
    if attention is not None:
        bundle = attention.bundle
    else:
        bundle = bundle_of(source, loaded, order, reading_of(var, vars_file, allow_outside))
    if read is not None:
        # A bundle that was written after a run has the generated tokens in it.
        bundle = finished_with(bundle, read, Path(str(result)), may_be_finished=is_bundle(source))
    data = page_data(
        bundle,
        loaded,
        title=title or (Path(source).name if source != STDIN else "standard input"),
        outputs=None if read is None else read.model_dump()["outputs"],
        attention=attention,
    )
    page = page_html(data).encode()
    write_atomically(path, lambda file: file.write(page))
    print(f"wrote {path}")
    if open_it:
        webbrowser.open(path.resolve().as_uri())


def _attention_in(source: str) -> Any:
    """The attention in a file; None for graphs, and for bundles without any."""
    if Path(source).suffix != ".npz":
        return None
    from legraph.attentionmass import AttentionMass

    return AttentionMass.load_if_any(source)
