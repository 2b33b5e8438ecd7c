"""`score`: how likely a model finds the text of chunks, under the structure of their graph.

What is scored is what training would label: the tokens of a chunk's completion, or, where it has none, its
text without the first token. Nothing predicts that one: in a graph no single token comes before it.

All targets of a graph are scored in one prefill of their chunks and all that influences these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from legraph.bundle import NO_LABEL, Bundle
from legraph.compiler import compile_graph
from legraph.errors import InputError, ModelError, Problem, did_you_mean
from legraph.graph import Graph
from legraph.marks import printable, quoted
from legraph.mask import BoolArray, Int64Array
from legraph.passes import Segment
from legraph.prefill import fit, own_forward, segments

if TYPE_CHECKING:
    from legraph.engine import Engine
    from legraph.forward import Forward
    from legraph.result import RunResult

# Of the logits that one pass gives (512 MiB in float32); more are computed in several passes.
_MAX_LOGITS = 2**27


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probabilities (base e) of a chunk's scored tokens, each given all that it sees.

    Attributes:
        token_ids, tokens: the scored tokens, and how the tokenizer's vocabulary writes them.
        log_probs: one for each.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.log_probs)

    @property
    def total(self) -> float:
        return math.fsum(self.log_probs)

    @property
    def mean(self) -> float:
        return self.total / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Infinite where it is too large for a float."""
        try:
            return math.exp(-self.mean)
        except OverflowError:
            return math.inf


def score(engine: Engine, graph: Graph | Bundle, targets: Sequence[str] = ()) -> dict[str, Score]:
    """The scores of some chunks of a graph, by name. Nothing is generated; `generate` is not looked at.

    The engine must not run anything meanwhile.

    Args:
        graph: of a bundle's target the labelled tokens are scored, and where none is labelled all but the
            first: a bundle knows where a completion begins by its labels only. A graph knows it.
        targets: default the chunks with a completion (of a bundle: with labels); without any, all leaves.

    Raises:
        InputError: an unknown target, or one without a token that could be scored.
        GraphError, BundleError, TokenizerError, ModelError: as for compiling and running the graph.
    """
    labelled = label_targets({"": graph}, targets)[""]
    bundle = labelled if isinstance(labelled, Bundle) else compile_graph(labelled, engine.tokenizer)
    return score_all(engine, {"": bundle}, targets)[""]


def score_all(
    engine: Engine, bundles: Mapping[str, Bundle], targets: Sequence[str] = ()
) -> dict[str, dict[str, Score]]:
    """The scores of several bundles by name; see `score`. All that is wrong is said before it computes."""
    problems = list[Problem]()
    wanted = dict[str, dict[str, Int64Array]]()
    for name, bundle in bundles.items():
        engine.check(bundle)
        chosen = targets or _default_targets(bundle)
        problems += _unknown(name, chosen, bundle.span_names)
        known = [target for target in chosen if target in bundle.span_names]
        wanted[name] = {target: scored_tokens(bundle, target) for target in known}
        for target, tokens in wanted[name].items():
            if not len(tokens):
                problems.append(_nothing_to_score(name, target))
    if problems:
        raise InputError(problems)
    forward = own_forward(engine)
    return {name: _scores(engine, forward, bundles[name], tokens) for name, tokens in wanted.items()}


def label_targets(
    graphs: Mapping[str, Graph | Bundle], targets: Sequence[str] = ()
) -> dict[str, Graph | Bundle]:
    """The same graphs, with the loss at the targets alone: their labels are the tokens to be scored.

    Bundles have been labelled when they were compiled, and stay as they are.

    Raises:
        InputError: targets that a graph does not have, of all graphs.
    """
    problems = list[Problem]()
    labelled = dict[str, Graph | Bundle]()
    for name, graph in graphs.items():
        if isinstance(graph, Bundle):
            problems += _unknown(name, targets, graph.span_names)
            labelled[name] = graph
            continue
        problems += _unknown(name, targets, [chunk.name for chunk in graph.chunks])
        chosen = set(targets) or _default_of_graph(graph)
        chunks = tuple(replace(chunk, loss=chunk.name in chosen) for chunk in graph.chunks)
        labelled[name] = replace(graph, chunks=chunks)
    if problems:
        raise InputError(problems)
    return labelled


def score_generated(engine: Engine, result: RunResult) -> dict[str, tuple[float, ...]]:
    """For every chunk that generated, the log-probability (base e) of each of its tokens, given all it saw.

    Of the model itself: temperature, top_k and top_p have no part in it. The engine must not run anything
    meanwhile.

    Raises:
        ModelError: out of memory, or log-probabilities that are no numbers.
    """
    labels = np.full(len(result.bundle), NO_LABEL, dtype=np.int64)
    targets = [name for name, output in result.outputs.items() if output.token_ids]
    for name in targets:
        ids = result.outputs[name].token_ids
        end = result.bundle.span(name).stop
        labels[end - len(ids) : end] = ids
    if not targets:
        return dict.fromkeys(result.outputs, ())
    scores = score(engine, replace(result.bundle, labels=labels), targets)
    return {name: scores[name].log_probs if name in scores else () for name in result.outputs}


def scored_tokens(bundle: Bundle, target: str) -> Int64Array:
    """Indices of the tokens of a chunk that are scored: int64 [T], ascending. None if it has one token."""
    span = bundle.span(target)
    tokens = np.arange(span.start, span.stop, dtype=np.int64)
    if bundle.labels is not None:
        labelled = tokens[bundle.labels[span] != NO_LABEL]
        if len(labelled):
            return labelled
    return tokens[1:]


def _default_of_graph(graph: Graph) -> set[str]:
    completed = {chunk.name for chunk in graph.chunks if chunk.completion is not None}
    return completed or {graph.chunks[leaf].name for leaf in graph.leaves()}


def _default_targets(bundle: Bundle) -> list[str]:
    names = bundle.span_names
    if bundle.labels is not None:
        labelled = bundle.mask.chunk_of(np.flatnonzero(bundle.labels != NO_LABEL))
        if len(labelled):
            return [names[int(i)] for i in np.unique(labelled)]
    return [names[leaf] for leaf in bundle.leaves]


def _unknown(graph: str, targets: Iterable[str], known: Sequence[str]) -> Iterator[Problem]:
    for target in dict.fromkeys(targets):
        if target not in known:
            hint = did_you_mean(target, known)
            yield Problem(f"{_prefix(graph)}there is no chunk {quoted(target)}", "a chunk's name", hint)


def _nothing_to_score(graph: str, target: str) -> Problem:
    return Problem(
        f"{_prefix(graph)}chunk {quoted(target)} has one token, and nothing predicts a chunk's first token",
        "a chunk with a completion, or with a text of two tokens or more",
        "name the chunks to be scored with --target",
    )


def _prefix(graph: str) -> str:
    return f"{printable(graph)}: " if graph else ""


def _scores(
    engine: Engine, forward: Forward, bundle: Bundle, tokens_of: Mapping[str, Int64Array]
) -> dict[str, Score]:
    part = _with_ancestors(bundle, tokens_of)
    # By their place in the whole chunk, which the part has too.
    scored = {
        target: tokens - bundle.span(target).start + part.span(target).start
        for target, tokens in tokens_of.items()
    }
    is_scored = np.zeros(len(part), dtype=np.bool_)
    for tokens in scored.values():
        is_scored[tokens] = True
    log_probs = np.full(len(part), np.nan)
    log_probs[is_scored] = _log_probs(forward, part, is_scored)
    if not np.isfinite(log_probs[is_scored]).all():
        raise ModelError(
            f"{type(forward.model).__name__} computes NaN or infinity for this graph",
            "use another --dtype (float32, or bfloat16 instead of float16)",
        )
    scores = dict[str, Score]()
    for target, tokens in scored.items():
        ids = part.input_ids[tokens].tolist()
        written = [str(token) for token in engine.tokenizer.convert_ids_to_tokens(ids)]
        scores[target] = Score(tuple(ids), tuple(written), tuple(log_probs[tokens].tolist()))
    return scores


def _with_ancestors(bundle: Bundle, targets: Iterable[str]) -> Bundle:
    """The part that influences the targets: nothing else has to be computed."""
    needed = {bundle.index(target) for target in targets}
    # Children come last in token order, so once is enough.
    for chunk in reversed(range(bundle.mask.num_chunks)):
        if chunk in needed:
            needed.update(bundle.parents(chunk).tolist())
    return bundle.select(sorted(needed))


def _log_probs(forward: Forward, bundle: Bundle, is_scored: BoolArray) -> Any:
    """float64 [T], of the scored tokens in their order; the softmax is computed in float32."""
    import torch

    num_used = fit(forward, bundle)
    # A token is predicted by the one before it, which is of the same chunk.
    predicting = np.append(is_scored[1:], False)
    vocabulary = forward.model.get_input_embeddings().weight.shape[0]
    ids = torch.from_numpy(bundle.input_ids[is_scored]).to(forward.model.device)
    found = list[Any]()
    done = 0
    with torch.inference_mode():
        for part in _parts(segments(bundle, predicting), max(1, _MAX_LOGITS // vocabulary)):
            rows_WV = forward.prefill(part, num_used).rows
            num_rows = sum(segment.wants_logits for segment in part)
            if num_rows:
                next_ids = ids[done : done + num_rows, None]
                found.append(rows_WV[:num_rows].float().log_softmax(-1).gather(1, next_ids)[:, 0])
                done += num_rows
    return torch.cat(found).double().cpu().numpy()


def _parts(given: Iterable[Segment], max_rows: int) -> Iterator[list[Segment]]:
    """The segments in parts of at most so many rows of logits."""
    part, num_rows = list[Segment](), 0
    for segment in given:
        if num_rows + segment.wants_logits > max_rows:
            yield part
            part, num_rows = [], 0
        part.append(segment)
        num_rows += segment.wants_logits
    yield part
