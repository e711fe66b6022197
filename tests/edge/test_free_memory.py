"""Trimming is of use on glibc and does no harm elsewhere."""

from __future__ import annotations

import ctypes
import platform
import sys
from types import SimpleNamespace

import pytest

from edge_sel.edge import memory
from edge_sel.edge.memory import trim


class Library:
    def __init__(self) -> None:
        self.trimmed = []

    def malloc_trim(self, pad):
        self.trimmed.append(pad)


@pytest.mark.parametrize(("system", "calls"), [("linux", [0]), ("darwin", []), ("win32", [])])
def test_only_where_there_may_be_a_glibc(system, calls, monkeypatch):
    library = Library()
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    trim()
    assert library.trimmed == calls


def no_library(name):
    raise OSError(name)


@pytest.mark.parametrize("other", [lambda name: object(), no_library])
def test_a_c_library_that_cannot_trim_stops_nothing(other, monkeypatch):
    asked = []
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: asked.append(name) or other(name))
    trim()
    assert asked == [None], "it was looked for, and its absence stops nothing"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_the_glibc_of_this_process_is_trimmed(monkeypatch):
    calls, load = [], ctypes.CDLL
    spy = SimpleNamespace(malloc_trim=lambda pad: calls.append(load(None).malloc_trim(pad)))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: spy)
    trim()
    assert len(calls) == 1 and calls[0] in (0, 1), "1 if any memory went back"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may take")
def test_the_limit_ends_with_the_work():
    """A limit that stayed would make later work of the same process fall back to smaller batches."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ZeroDivisionError), memory.limited_memory():
        during = resource.getrlimit(resource.RLIMIT_DATA)
        raise ZeroDivisionError
    assert 0 < during[0] != before[0] and during[1] == before[1]
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
