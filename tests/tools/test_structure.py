"""tools/structure.py finds what it is there to find."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import structure

SOURCES = {
    "edge_sel/__init__.py": '"""The package."""\n',
    "edge_sel/errors.py": '"""Errors."""\n',
    "edge_sel/top/__init__.py": '"""Knows <all>."""\n',
    "edge_sel/top/one.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edge_sel.top.two import Two\nclass Twin: ...\n",
    "edge_sel/top/two.py": "import edge_sel.errors\ndef two():\n    from edge_sel.top import one\n",
    "edge_sel/base/__init__.py": '"""Knows little."""\n',
    "edge_sel/base/one.py": "Twin = dict[str, int]\nLIMIT = 1\n",
    "edge_sel/middle/__init__.py": '"""Between."""\nfrom edge_sel.base import one\n',
}


def test_a_circle_is_found_inside_functions_and_type_checking_blocks():
    links = structure.imports(structure.product(SOURCES))
    assert structure.circles(links) == [["edge_sel.top.one", "edge_sel.top.two"]]
    assert structure.circles({**links, "edge_sel.top.one": set()}) == []


def test_names_and_files_that_occur_twice_are_listed():
    assert structure.twice(structure.product(SOURCES)) == [
        "Twin: edge_sel.base.one, edge_sel.top.one",
        "one.py: base, top",
    ]


def test_files_and_lines_are_counted_by_room():
    files, lines = structure.counts(SOURCES)
    assert files == {"edge_sel/*.py": 2, "edge_sel/top": 3, "edge_sel/base": 2, "edge_sel/middle": 1}
    assert lines == {"edge_sel/*.py": 0, "edge_sel/top": 7, "edge_sel/base": 2, "edge_sel/middle": 1}


def test_an_arrow_that_follows_from_others_is_not_drawn():
    text = '"""Knows <all>."""\nfrom edge_sel.base import one\nimport edge_sel.middle\n'
    drawn = structure.picture({**SOURCES, "edge_sel/top/__init__.py": text})
    assert "Knows &lt;all&gt;." in drawn and "errors: Errors." in drawn
    assert drawn.count("marker-end") == 2


def test_lines_of_code_are_those_that_do_something():
    text = '''"""What it is,
in two lines."""

import os  # why


class A:
    """A class."""

    x: int
    """Of it."""

    def f(self):
        # nothing
        return """text
of two lines""", os
'''
    assert structure.code_lines(text) == 6
