"""Call ``edge-sel`` as a person does, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edge_sel
from edge_sel.pack import reader

ROOT = Path(edge_sel.__file__).parent.parent
PACK = Path(reader.__file__).parent / "assets" / "digits.edgepack"
USAGE, SETUP, BAD_INPUT = 2, 3, 4
MODULE = [sys.executable, "-W", "error", "-m", "edge_sel"]

BLOCKER = """\
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {names} else find(name, *rest)
"""


def environment(**extra: str) -> dict[str, str]:
    """This process's, without settings of edge-sel, and with this edge-sel to be found from anywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_SEL_")}
    paths = [path for path in (extra.pop("PYTHONPATH", ""), str(ROOT)) if path]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths), **extra}


def run(*arguments: object, cwd: Path, command: Sequence[str] = MODULE, **env: str) -> subprocess.CompletedProcess[str]:
    """``edge-sel ARGUMENTS`` in ``cwd``."""
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=cwd, env=environment(**env), capture_output=True, text=True, encoding="utf-8", timeout=120, check=False,
    )  # fmt: skip


def start(*arguments: object, cwd: Path, command: Sequence[str] = MODULE) -> subprocess.Popen[str]:
    """The same, not waited for; it hears signals also where the tests run in the background or under nohup."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}

    def hear() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    given = [*command, *map(str, arguments)]
    return subprocess.Popen(given, cwd=cwd, env=environment(), preexec_fn=hear, **pipes)


def block(folder: Path, *names: str) -> str:
    """A PYTHONPATH under which these packages are not installed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(BLOCKER.format(names=set(names)))
    return str(folder)


def refused(result: Any, code: int, *words: str) -> None:
    """One line on stderr with these words in it, nothing on stdout, this status."""
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("edge-sel: "), result.err
    assert result.out == ""
    assert result.code == code, result.err
    for word in words:
        assert word in lines[0], (word, lines[0])
