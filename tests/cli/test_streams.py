"""Full, closed and abandoned streams, and Ctrl-C while modules are imported: real processes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.shell import MODULE, environment, run, start

FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full")
EDGE_SEL = shlex.join(MODULE)
RUN = f"{EDGE_SEL} finetune --plan bn --threads 1 --meter psutil --out run"


def shell(line, cwd):
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.sampled(7)
@FULL
@pytest.mark.parametrize(
    "streams",
    [">/dev/full", "2>/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", ">&- 2>&- <&-", "--json >/dev/full"],
)
def test_a_run_ends_well_whatever_becomes_of_its_streams(streams, here):
    result = shell(f"{RUN} {streams}", here)
    assert result.returncode == 0, result.stderr
    assert (here / "run" / "model.onnx").exists() and (here / "run" / "run.json").exists()
    assert "Traceback" not in result.stderr
    if streams.endswith(">/dev/full"):
        lines = result.stderr.splitlines()
        assert ("stdout is incomplete (No space left on device)" in lines[-1]) if lines else "2>" in streams


@pytest.mark.sampled(3)
@pytest.mark.parametrize("streams", ["| true", "2>&1 | true", "| head -n 1"])
def test_a_reader_that_leaves_ends_no_run(streams, here):
    result = shell(f"{RUN} {streams}; exit ${{PIPESTATUS[0]}}", here)
    assert result.returncode == 0 and (here / "run" / "model.onnx").exists(), result.stderr
    assert "Traceback" not in result.stderr and "incomplete" not in result.stderr


@FULL
def test_every_report_survives_a_full_stream(here):
    for words in ("--help", "profiles", "pack --help", "--version"):
        result = shell(f"{EDGE_SEL} {words} > /dev/full", here)
        assert result.returncode == 0 and result.stderr.count("\n") == 1, result.stderr
    result = shell(f"{EDGE_SEL} nonsense 2> /dev/full", here)
    assert result.returncode == 2


def test_a_closed_stream_is_not_replaced_by_a_file(here):
    """Else what a library prints would end in the file that was opened next."""
    code = "import edge_sel.cli.main as s; s.protect_streams(); f = open('x', 'w'); f.write(str(f.fileno()))"
    assert shell(f"{shlex.join([sys.executable, '-c', code])} >&- 2>&- <&-", here).returncode == 0
    assert int((here / "x").read_text()) > 2


SLOW_IMPORT = """\
import sys, time
class Slow:
    def find_spec(self, name, *rest):
        if name == "{module}":
            print("importing", flush=True)
            try:
                time.sleep(30)
            except BaseException as error:
                raise ImportError("this is how a library may take it") from error
sys.meta_path.insert(0, Slow())
sys.argv = ["edge-sel", "{command}", *{words!r}]
from edge_sel.__main__ import main
main()
"""


@pytest.mark.parametrize(("module", "command"), [("click", "profiles"), ("edge_sel.data.folder", "evaluate")])
def test_ctrl_c_during_imports_is_no_traceback(module, command, here):
    words = ["x", "--data", "x"] if command == "evaluate" else []
    code = SLOW_IMPORT.format(module=module, command=command, words=words)
    process = start(cwd=here, command=[sys.executable, "-c", code])
    try:
        assert process.stdout.readline() == "importing\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert time.monotonic() - began < 20
    assert process.returncode == 130 and err == "edge-sel: interrupted\n"


def test_names_that_are_no_text_are_printed(here):
    result = shell(rf"{EDGE_SEL} evaluate x --data $'a\xff\x1b[31m'", here)
    assert result.returncode == 4 and "\x1b" not in result.stderr


@pytest.mark.slow
def test_what_is_no_file_is_never_replaced_by_one(here):
    """As root a device would be: the file is moved over it."""
    os.mkfifo(here / "pipe")
    result = run("finetune", "--plan", "bn", "--metrics-file", "pipe", "--out", "run", cwd=here)
    assert result.returncode == 0 and (here / "pipe").is_fifo()
    assert "not a file" in result.stderr and json.loads((here / "run" / "run.json").read_text())
