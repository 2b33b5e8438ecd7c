"""The building: every module has a floor and leans on lower floors only; who may print, and load torch."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "legraph"
FILES = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
# By their names below legraph; a package inside it, like `cli`, has the name of its folder.
PATHS = {".".join(parts).removesuffix(".__init__"): path for path, parts in FILES.items()}
MODULES = sorted(set(PATHS) - {"__init__"})

# file -> GraphFile -> Graph -> Layout -> Bundle -> run / show. A new module gets its floor here.
FLOORS = {
    # What everything stands on: errors, and places in a text.
    "errors": 0,
    "palette": 0,
    "marks": 0,
    "wholefile": 1,
    "reads": 0,
    # The file: its syntaxes, its format, and what holds between its chunks.
    "toml_reader": 1,
    "yaml_reader": 1,
    "schema": 1,
    "source": 2,
    "links": 2,
    "graphtext": 2,
    "variables": 2,
    "selectors": 2,
    # Other formats, and starters, written as graph files.
    "importing": 3,
    "starters": 3,
    "import_messages": 4,
    "import_pcw": 4,
    "import_trie": 4,
    "pml": 4,
    "pml_schema": 5,
    "import_pml": 6,
    "loops": 3,
    "watch": 3,
    "given": 3,
    "origin": 3,
    "include": 4,
    "expand": 5,
    "assertions": 5,
    "parse": 6,
    "rows": 7,
    "parquetfile": 1,
    "rowstream": 8,
    "batchinput": 13,
    "batchjournal": 2,
    "batch": 18,
    "raycluster": 2,
    "raybatch": 19,
    "writtenout": 7,
    # The graph, and its layout in tokens. The mask and its forms know nothing of files and graphs.
    "graph": 7,
    # Questions about a graph that need no tokens.
    "flow": 8,
    "explain": 9,
    "explainshow": 10,
    "worddiff": 1,
    "lintgraph": 9,
    "mask": 2,
    "blocks": 5,
    "maskform": 5,
    "tokens": 8,
    "chattemplate": 9,
    "chat": 10,
    "order": 9,
    "layout": 10,
    "maskmod": 8,
    "flexmask": 9,
    "flexattention": 9,
    # Slots, and passes over them: plain numbers.
    "slots": 5,
    "seen": 5,
    "tiles": 7,
    "cost": 8,
    "passes": 7,
    "keys": 8,
    "lanes": 8,
    "logits": 8,
    # Attention over slots, and the cache they belong to.
    "flattriton": 5,
    "intervaltriton": 5,
    "flatkernel": 7,
    "intervalkernel": 8,
    "flatattention": 9,
    "observedattention": 9,
    "flatcache": 9,
    "cudasteps": 9,
    "rotary": 12,
    "attention": 10,
    "graphattention": 10,
    # The bundle, what writes it, what makes it, joins several, draws it.
    "bundle": 11,
    "bundlefile": 12,
    "compiler": 12,
    "outline": 12,
    "union": 12,
    "binpacking": 5,
    "processes": 5,
    "maskunion": 5,
    "packfile": 12,
    "packcompile": 14,
    "pack": 15,
    "collate": 12,
    "export": 13,
    "attentionmass": 13,
    "figure": 2,
    "maskshapes": 5,
    "fold": 14,
    "tokenpieces": 12,
    "pagedata": 16,
    "page": 2,
    "routes": 5,
    "layered": 6,
    "dagshape": 15,
    "dagtext": 15,
    "dagsheet": 16,
    "dagplot": 17,
    "brackets": 13,
    "bracketplot": 14,
    "squareplot": 15,
    "maskplot": 16,
    "attentionplot": 17,
    "show": 13,
    "costshow": 13,
    "linttokens": 12,
    "lint": 13,
    "diff": 13,
    "diffshow": 14,
    # Keys and values on disk and in memory.
    "kvfile": 10,
    "kvdisk": 11,
    "kvstore": 12,
    "kvshow": 12,
    # The run: one model, one pass; one graph; all graphs; the face of it, and what is shown of it.
    "parallel": 9,
    "model": 11,
    "sampling": 11,
    "detokenize": 11,
    "branch": 12,
    "forward": 12,
    "reuse": 13,
    "prefill": 13,
    "result": 14,
    "job": 15,
    "resultfile": 15,
    "scheduler": 16,
    "engine": 17,
    "observe": 14,
    "verify": 14,
    "verifyshow": 15,
    "score": 14,
    "scoreshow": 15,
    "report": 13,
    "live": 13,
    # The door, a package: what its commands share, they themselves, all of them, the process.
    "cli.options": 18,
    "cli.console": 18,
    "cli.ranks": 18,
    "cli.inputs": 19,
    "cli.runreport": 19,
    "cli.rayrun": 20,
    "cli.batch": 21,
    "cli.cache": 20,
    "cli.checks": 20,
    "cli.graphs": 20,
    "cli.imports": 20,
    "cli.models": 20,
    "cli.pack": 20,
    "cli.pictures": 20,
    "cli.plots": 20,
    "cli.commands": 22,
    "cli.process": 23,
    "cli": 24,
    "cli.__main__": 25,
    "__main__": 26,
}

# Imports inside functions that lead up, against the arrows, and why they may.
UPWARD = {
    ("bundle", "bundlefile"): "Bundle.save and Bundle.load: users have a bundle in hand, not a module",
}

# Only these may load torch or transformers when they are imported, as pyproject.toml says too.
RUN_SIDE = {
    "attention",
    "cudasteps",
    "flatattention",
    "flatcache",
    "flatkernel",
    "flexattention",
    "flexmask",
    "forward",
    "graphattention",
    "intervalkernel",
    "lanes",
    "logits",
    "maskmod",
    "model",
    "observedattention",
    "reuse",
    "rotary",
    "sampling",
}


@dataclass(frozen=True)
class Import:
    target: str
    in_function: bool


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(PATHS[module].read_text(encoding="utf-8"))


def imports(module: str) -> list[Import]:
    """All imports that happen at run time, with the full names of what is imported from."""
    return list(_imports(tree_of(module).body, in_function=False))


def _imports(nodes: list[ast.stmt], in_function: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (Import(name.name, in_function) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            assert node.module is not None
            yield from _imports_from(node.module, node.names, in_function)
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _imports(list(_statements(node)), inside)


def _imports_from(module: str, names: list[ast.alias], in_function: bool) -> Iterator[Import]:
    """`from legraph import show` is about a module, `from legraph import __version__` about the package."""
    for name in names:
        full_name = f"{module}.{name.name}"
        is_module = full_name.removeprefix("legraph.") in MODULES
        yield Import(full_name if is_module else module, in_function)


def _statements(node: ast.stmt) -> Iterator[ast.stmt]:
    """The statements directly inside another one: of bodies, branches, handlers and cases."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child
        elif isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from child.body


def own_imports(module: str) -> list[Import]:
    """The imports of a module that lead to other modules of legraph."""
    found = (entry for entry in imports(module) if entry.target.startswith("legraph."))
    return [Import(entry.target.removeprefix("legraph."), entry.in_function) for entry in found]


def packages(module: str, at_import: bool) -> set[str]:
    """The top-level packages that a module imports; `at_import`: without those inside functions."""
    return {entry.target.split(".")[0] for entry in imports(module) if not (at_import and entry.in_function)}


def test_every_module_has_a_floor_and_every_floor_a_module() -> None:
    assert sorted(FLOORS) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_module_level_imports_lead_down(module: str) -> None:
    for entry in own_imports(module):
        if not entry.in_function:
            assert FLOORS[entry.target] < FLOORS[module], f"{module} imports {entry.target}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_inside_functions_lead_down_but_for_the_listed_ones(module: str) -> None:
    upward = {
        (module, entry.target) for entry in own_imports(module) if FLOORS[entry.target] >= FLOORS[module]
    }
    assert upward == {edge for edge in UPWARD if edge[0] == module}


def test_the_listed_exceptions_alone_close_circles() -> None:
    """Without them the imports, those inside functions included, have an order."""
    waits_for = {
        module: {entry.target for entry in own_imports(module)} - {up for low, up in UPWARD if low == module}
        for module in MODULES
    }
    placed: set[str] = set()
    while ready := {module for module in waits_for if waits_for[module] <= placed} - placed:
        placed |= ready
    assert placed == set(MODULES)


def test_no_module_reaches_through_the_package() -> None:
    """`import legraph` inside legraph would reach everything, past every floor."""
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.Import):
                assert not any(name.name.split(".")[0] == "legraph" for name in node.names)
            if isinstance(node, ast.ImportFrom) and node.module == "legraph":
                assert {name.name for name in node.names} <= {"__version__", *MODULES}


def test_the_package_file_imports_nothing_of_its_own() -> None:
    assert own_imports("__init__") == []


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_torch_and_transformers_are_loaded_by_the_run_side_only(module: str) -> None:
    heavy = packages(module, at_import=True) & {"torch", "transformers"}
    assert bool(heavy) == (module in RUN_SIDE)


def test_the_linter_knows_the_same_run_side() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    excused = {Path(path).stem for path, rules in lint["per-file-ignores"].items() if "TID253" in rules}
    assert excused - {"**"} == RUN_SIDE
    assert set(lint["flake8-tidy-imports"]["banned-module-level-imports"]) == {"torch", "transformers"}


def test_what_checks_a_file_does_without_numpy() -> None:
    """`legraph check` must be instant, so nothing that `parse` and `graph` lean on may load numpy."""
    reached, waiting = set[str](), ["parse", "graph"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += {entry.target for entry in own_imports(module)} - reached
    assert {module for module in reached if "numpy" in packages(module, at_import=True)} == set()
    assert reached >= {"source", "yaml_reader", "toml_reader", "links", "schema", "errors"}


OUTWARD = {
    "print",
    "input",
    "exit",
    "breakpoint",
    "sys.exit",
    "sys.stdout",
    "sys.stderr",
    "os.environ",
    "os.getenv",
}

# Who does which of them, all in the command line. Commands print their answers, and do nothing else of it.
OUTWARD_OF = {
    "cli.process": {"sys.exit", "sys.stdout", "os.environ"},
    "cli.console": {"print", "sys.stdout", "sys.stderr", "os.environ"},
    "cli.ranks": {"sys.stdout", "sys.stderr", "os.environ"},
    "cli.runreport": {"print", "sys.stdout", "sys.stderr"},
    "cli.batch": {"print", "sys.stderr"},
    "cli.cache": {"print"},
    "cli.checks": {"print"},
    "cli.commands": {"print"},
    "cli.graphs": {"print"},
    "cli.imports": {"print"},
    "cli.models": {"print"},
    "cli.pack": {"print"},
    "cli.pictures": {"print"},
    "cli.plots": {"print", "sys.stderr"},
    "cli.rayrun": {"sys.stderr"},
}


def outward(module: str) -> set[str]:
    """What a module does that only a command line may do."""
    found = set[str]()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
    return found & OUTWARD


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_only_the_command_line_prints_exits_and_reads_the_environment(module: str) -> None:
    assert outward(module) == OUTWARD_OF.get(module, set())


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree_of(module))
