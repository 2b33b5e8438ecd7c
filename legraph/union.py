"""Several bundles as one: the disjoint union of their graphs. No chunk of one sees a chunk of another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from legraph.bundle import NO_LABEL, Bundle
from legraph.errors import BundleError
from legraph.graph import Generate
from legraph.mask import Int64Array
from legraph.maskunion import union_of_masks
from legraph.schema import MAX_NAME_LENGTH, NAME_PATTERN


def disjoint_union(bundles: Sequence[Bundle], prefixes: Sequence[str] | None = None) -> Bundle:
    """One bundle of all the graphs, end to end. Every chunk computes what it computes in its own graph.

    Args:
        prefixes: put before the chunk names of each bundle; default `g0.`, `g1.`, ...

    Raises:
        BundleError: no bundle, bundles of different tokenizers, or prefixes that are not one for each bundle,
            make a name that is none, or do not keep names apart.
    """
    if not bundles:
        raise BundleError("a union needs at least one bundle")
    if prefixes is None:
        prefixes = [f"g{i}." for i in range(len(bundles))]
    if len(prefixes) != len(bundles):
        raise BundleError(f"{len(prefixes)} prefixes for {len(bundles)} bundles")
    if len({bundle.meta.tokenizer_fingerprint for bundle in bundles}) > 1:
        raise BundleError("the bundles were made with different tokenizers")
    names = tuple(
        prefix + name for prefix, bundle in zip(prefixes, bundles, strict=True) for name in bundle.span_names
    )
    for name in names:
        if len(name) > MAX_NAME_LENGTH or not re.fullmatch(NAME_PATTERN, name):
            raise BundleError(f"{name!r} cannot be a chunk's name")
    if len(set(names)) < len(names):
        raise BundleError("two chunks of the union have the same name")
    pinned = set[str]()
    generate = dict[str, Generate]()
    seed_names = dict[str, str]()
    policies = {bundle.meta.positions for bundle in bundles}
    for prefix, bundle in zip(prefixes, bundles, strict=True):
        # Under the other policies a run moves no chunk; where policies are mixed, that is said by name.
        is_mixed = len(policies) > 1 and bundle.meta.positions != "causal"
        pinned |= {prefix + name for name in (bundle.span_names if is_mixed else bundle.meta.pinned)}
        generate |= {prefix + name: how for name, how in bundle.meta.generate.items()}
        generating = {*bundle.meta.generate, *(bundle.span_names[leaf] for leaf in bundle.leaves)}
        seed_names |= {prefix + name: bundle.meta.seed_names.get(name, name) for name in generating}
    meta = replace(
        bundles[0].meta,
        source_sha256=sha256("".join(bundle.meta.source_sha256 for bundle in bundles).encode()).hexdigest(),
        positions=policies.pop() if len(policies) == 1 else "causal",
        pinned=frozenset(pinned),
        generate=generate,
        seed_names=seed_names,
    )
    return Bundle(
        np.concatenate([bundle.input_ids for bundle in bundles]),
        np.concatenate([bundle.position_ids for bundle in bundles]),
        names,
        union_of_masks([bundle.mask for bundle in bundles]),
        meta,
        _joined_labels(bundles),
    )


def _joined_labels(bundles: Sequence[Bundle]) -> Int64Array | None:
    if all(bundle.labels is None for bundle in bundles):
        return None
    return np.concatenate(
        [
            np.full(len(bundle), NO_LABEL, dtype=np.int64) if bundle.labels is None else bundle.labels
            for bundle in bundles
        ]
    )
