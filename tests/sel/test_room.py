"""The rules of the room that tests/test_architecture.py does not check: no torch at import, examples that are true."""

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import edge_sel.sel

FILES = sorted(Path(edge_sel.sel.__file__).parent.glob("*.py"))
NAMES = [f"edge_sel.sel.{path.stem}" for path in FILES if path.stem != "__init__"]
WITH_EXAMPLES = [f"edge_sel.sel.{path.stem}" for path in FILES if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_docstrings_are_true(name):
    tried = doctest.testmod(importlib.import_module(name))
    assert tried.attempted > 0 and tried.failed == 0


def test_most_modules_have_an_example():
    assert len(WITH_EXAMPLES) > len(NAMES) / 2


def test_the_table_in_the_docstring_names_every_module():
    lines = edge_sel.sel.__doc__.splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("module"))) + 2 :]
    named = [line.split()[0] for line in table[: table.index(next(line for line in table if line.startswith("=")))]]
    assert sorted(f"edge_sel.sel.{name}" for name in [*named, "_array"]) == NAMES


def test_importing_the_room_does_not_load_torch():
    code = f"import sys, {', '.join(NAMES)}; sys.exit('torch' in sys.modules or 'onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
