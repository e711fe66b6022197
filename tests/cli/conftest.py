"""Images in folders, and ``edge-sel`` in this process."""

import os
import signal
import sys
from typing import NamedTuple

import numpy as np
import pytest

from edge_sel.cli.main import main
from edge_sel.data.builtin import load_digits
from edge_sel.data.shifts import apply_shift, write_folder


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="package", autouse=True)
def loads_once_here(loads_once):
    pass


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory):
    """120 digits by class, as files; not to be changed."""
    root = tmp_path_factory.mktemp("digits") / "images"
    write_folder(apply_shift("field_camera", load_digits("field"), seed=0).subset(np.arange(120)), root)
    return root


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith("EDGE_SEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def edge_sel(here, monkeypatch, capfd):
    """``edge_sel("finetune", "--epochs", 2)`` -> exit status, stdout, stderr; without a new interpreter."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["edge-sel", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        return Result(left.value.code, *capfd.readouterr())

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
