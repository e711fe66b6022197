"""The rules of docs/architecture.md that a reader of one file would not notice being broken."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import edge_sel

PACKAGE = Path(edge_sel.__file__).parent
ROOT = PACKAGE.parent
MODULES = {
    ".".join(("edge_sel", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in PACKAGE.rglob("*.py")
}

# From the top down; what shares a line does not import each other.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"__init__"},
    {"flower"},
    {"api", "web"},
    {"report", "watch", "fleet"},
    {"server", "edge", "reference", "tuning"},
    {"engines"},
    {"graphs"},
    {"quantize"},
    {"pack"},
    {"power"},
    {"data", "models", "runs"},
    {"sel"},
    {"config"},
    {"units", "files", "arrays", "sysfs"},
    {"errors", "version", "schema"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MAY_IMPORT_TORCH = ("edge_sel.server.", "edge_sel.reference.", "edge_sel.models.", "edge_sel.engines.torch")
PURE = {
    "__future__",
    "array_api_compat",
    "collections",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "numpy",
    "typing",
}
TORCH = {"torch", "torchvision", "timm"}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that this one imports anywhere, also inside functions; of edge_sel as precisely as can be."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {str(node.module)}
    return frozenset(found)


def ours(module: str) -> set[str]:
    """The modules of edge_sel among its imports, by their names in MODULES."""
    named = {name for name in imports(module) if name.partition(".")[0] == "edge_sel"}
    return {name if name in MODULES else f"{name}.__init__" for name in named}


def room(module: str) -> str:
    return module.split(".")[1]


def reached(start: str) -> set[str]:
    """What importing ``start`` can bring in, however deep."""
    seen, waiting = {start}, [start]
    while waiting:
        for name in ours(waiting.pop()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def names_called(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_check():
    assert len(MODULES) > 60 and {room(module) for module in MODULES} <= FLOOR.keys()
    assert "edge_sel.edge.session" in MODULES and "onnxruntime" in imports("edge_sel.engines.native")


def test_imports_point_downwards():
    for module in MODULES:
        for name in ours(module):
            assert name in MODULES, f"{module} imports {name}, which does not exist"
            if room(name) != room(module):
                assert FLOOR[room(module)] < FLOOR[room(name)], f"{module} imports {name}"


def test_only_the_server_side_imports_torch():
    for module in MODULES:
        if not module.startswith(MAY_IMPORT_TORCH):
            allowed = {"torchvision"} if module == "edge_sel.data.cifar10" else set()  # it only downloads
            assert not {name.partition(".")[0] for name in imports(module)} & TORCH - allowed, module


def test_the_device_side_never_reaches_torch_or_the_server():
    starts = [module for module in MODULES if room(module) == "edge"]
    for module in [*starts, "edge_sel.engines.ort", "edge_sel.data.builtin"]:
        for name in reached(module):
            assert room(name) not in ("server", "models") and name != "edge_sel.engines.torch", (module, name)
            assert not {imported.partition(".")[0] for imported in imports(name)} & TORCH, (module, name)


def test_the_science_is_pure():
    for module in (module for module in MODULES if room(module) == "sel"):
        for name in imports(module):
            ours_too = name == "edge_sel.errors" or name.startswith("edge_sel.sel.")
            assert name.partition(".")[0] in PURE or ours_too, (module, name)
        for name, _ in names_called(module):
            random = re.match(r"(np|numpy|xp)\.random\b", name)
            assert name not in ("open", "print", "input") and not random, (module, name)


def test_nothing_can_execute_what_it_reads():
    for module in MODULES:
        roots = {name.partition(".")[0] for name in imports(module)}
        executing = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "codeop"}
        assert not roots & executing, module
        for name, call in names_called(module):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert name not in ("eval", "exec", "compile", "__import__"), (module, name)
            assert name != "torch.load" or given.get("weights_only") == "True", module
            assert given.get("allow_pickle", "False") == given.get("shell", "False") == "False", (module, name)
            assert name not in ("np.load", "numpy.load") or "allow_pickle" in given, module


def test_no_file_is_long():
    for path in [*MODULES.values(), *(ROOT / "tools").glob("*.py")]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


@pytest.mark.parametrize(
    "name",
    [
        "edge_sel/py.typed",
        "edge_sel/data/assets/digits.npz",
        "edge_sel/data/assets/CREDITS.md",
        "edge_sel/pack/assets/digits.edgepack",
    ],
)
def test_package_data_is_there(name):
    assert (ROOT / name).is_file()


def test_profiles_are_there_and_load():
    from edge_sel.config.profiles import list_profiles, load_profile

    files = {path.stem for path in (ROOT / "profiles").glob("*.toml")}
    assert files == set(list_profiles()) >= {"default", "cloud-vm", "laptop", "raspberry-pi-5"}
    assert {load_profile(name).name for name in files} == files


def test_readme_and_ci_run_the_same_tests():
    """The block that follows "Run the tests" in the README stands in .ci/run, word for word."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    after = readme.partition("Run the tests")[2]
    block = re.search(r"^```\w*\n(.*?)^```$", after, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no code block after the words: Run the tests"
    command = block[1].strip()
    assert "pytest" in command
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert command in run
    assert all(check in run for check in ("ruff check", "ruff format --check", "mypy"))


def structure() -> ModuleType:
    """tools/structure.py as a module."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("structure")
    finally:
        sys.path.pop(0)


NAMED_PATHS = set(re.findall(r"`([\w.-]+/[\w./-]*)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")))


def test_every_path_in_the_architecture_page_exists():
    missing = [path for path in sorted(NAMED_PATHS) if not (ROOT / path).exists()]
    assert not missing
    assert all((ROOT / path).is_dir() for path in NAMED_PATHS if path.endswith("/"))


def test_the_architecture_page_names_every_room():
    rooms = {f"edge_sel/{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    single = {f"edge_sel/{path.name}" for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    assert len(rooms) > 10 and rooms | single <= NAMED_PATHS


def test_the_picture_of_the_rooms_is_up_to_date():
    """After a change of the rooms: python tools/structure.py --picture docs/figures/architecture.svg"""
    tool = structure()
    drawn = (ROOT / "docs" / "figures" / "architecture.svg").read_text(encoding="utf-8")
    assert tool.picture(tool.read_sources()) == drawn
