"""legraph: a compiler for prompt graphs.

A prompt is a DAG of text chunks. Each chunk attends causally to itself and fully to its direct parents, to
nothing else. `compile_file` and `compile_chunks` turn such a graph into a `Bundle`: token ids, position ids,
named spans and a structured attention mask. An `Engine` runs bundles on a Hugging Face causal LM.

Importing this package loads nothing but this file; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legraph.bundle import Bundle
    from legraph.collate import Collator
    from legraph.compiler import Chunk, compile_chunks, compile_file
    from legraph.engine import Engine
    from legraph.errors import (
        BundleError,
        GraphError,
        InputError,
        LegraphError,
        ModelError,
        RunError,
        TokenizerError,
    )
    from legraph.graph import Generate
    from legraph.kvstore import KVStore
    from legraph.model import load_model
    from legraph.show import tree

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "Chunk",
    "Collator",
    "Engine",
    "Generate",
    "GraphError",
    "InputError",
    "KVStore",
    "LegraphError",
    "ModelError",
    "RunError",
    "TokenizerError",
    "__version__",
    "compile_chunks",
    "compile_file",
    "load_model",
    "tree",
]

_MODULE_OF = {
    "Bundle": "bundle",
    "Chunk": "compiler",
    "Collator": "collate",
    "compile_chunks": "compiler",
    "compile_file": "compiler",
    "Engine": "engine",
    "Generate": "graph",
    "KVStore": "kvstore",
    "load_model": "model",
    "tree": "show",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'legraph' has no attribute {name!r}")
    value = getattr(import_module(f"legraph.{_MODULE_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
