"""Trimming is of use on glibc and does no harm elsewhere."""

from __future__ import annotations

import pytest

from edge_sel.edge import free_memory as memory
from edge_sel.edge.free_memory import trim


class Library:
    def __init__(self) -> None:
        self.trimmed = []

    def malloc_trim(self, pad):
        self.trimmed.append(pad)


@pytest.mark.parametrize(("platform", "calls"), [("linux", [0]), ("darwin", []), ("win32", [])])
def test_only_where_there_may_be_a_glibc(platform, calls, monkeypatch):
    library = Library()
    monkeypatch.setattr(memory.sys, "platform", platform)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    trim()
    assert library.trimmed == calls


def no_library(name):
    raise OSError(name)


@pytest.mark.parametrize("other", [lambda name: object(), no_library])
def test_a_c_library_without_it(other, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", other)
    trim()


def test_here():
    trim()
