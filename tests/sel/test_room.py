"""The rules of the room: no torch unless the caller brings it, no other rooms, and examples that are true."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import edge_sel.sel

FILES = sorted(Path(edge_sel.sel.__file__).parent.glob("*.py"))
NAMES = [f"edge_sel.sel.{path.stem}" for path in FILES if path.stem != "__init__"]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    assert sum(path.read_text().count(">>> ") for path in FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports(path):
    allowed = {"__future__", "array_api_compat", "collections", "edge_sel", "math", "numpy", "typing"}
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in allowed
            if name.startswith("edge_sel"):
                assert name == "edge_sel.errors" or name.startswith("edge_sel.sel.")


def test_importing_the_room_does_not_load_torch():
    code = f"import sys, {', '.join(NAMES)}; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
