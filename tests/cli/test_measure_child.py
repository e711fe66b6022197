"""``edge-sel measure``: the command's status, streams and end, whatever happens to the measuring process."""

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.shell import run, start

NOTE = """\
import os, signal, sys, time
for name in {ignored!r}:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
open("pid.part", "w").write(str(os.getpid())); os.replace("pid.part", "pid")
time.sleep(60)
"""


@pytest.fixture
def measuring(here):
    """Start `edge-sel measure` of a command that notes its number; both are gone after the test."""
    started = []

    def begin(*ignored, shell=""):
        (here / "note.py").write_text(NOTE.format(ignored=ignored))
        command = [sys.executable, "note.py"]
        if shell:
            command = ["sh", "-c", shell.format(f"{sys.executable} note.py")]
        process = start("measure", "--idle", "0", "--meter", "psutil", "--", *command, cwd=here)
        started.append(process)
        deadline = time.monotonic() + 60
        while not (here / "pid").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
        return process, int((here / "pid").read_text())

    yield begin
    if (here / "pid").exists() and psutil.pid_exists(number := int((here / "pid").read_text())):
        os.kill(number, signal.SIGKILL)  # first, for it holds the pipes open
    for process in started:
        process.kill()
        process.communicate()


def gone(number, patience_s=20):
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(number).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.sampled(4)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("shell", ["", "{}; true"])
def test_a_signal_reaches_the_command_and_all_that_it_started(number, shell, measuring):
    process, child = measuring(shell=shell)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and f"exit {128 + number}" in err
    assert gone(child)


@pytest.mark.slow
def test_a_command_that_ignores_the_signal_is_killed_after_a_grace(measuring):
    process, child = measuring("SIGTERM", "SIGHUP")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL and f"exit {128 + signal.SIGKILL}" in err
    assert time.monotonic() - began >= 4 and gone(child)


@pytest.mark.slow
def test_what_a_command_started_has_the_same_grace(measuring):
    """The shell ends at the signal, its command ignores it."""
    process, child = measuring("SIGTERM", shell="{}; true")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and gone(child)


def test_what_a_command_leaves_running_when_it_ends_goes_on(measuring, here):
    process, child = measuring(shell="{} & until [ -e pid ]; do sleep 0.02; done")
    process.wait(timeout=60)
    assert process.returncode == 0 and psutil.pid_exists(child)


@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("./plain", 126), (".", 126), ("", 127)])
def test_what_cannot_be_started_has_the_status_of_a_shell(command, status, edge_sel, here):
    (here / "plain").write_text("text")
    result = edge_sel("measure", "--idle", "0", "--", command)
    assert result.code == status and result.out == "" and result.err.count("\n") == 1


@pytest.mark.sampled(5)
@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", ">/dev/full 2>/dev/full", ">&- 2>&-"])
def test_streams_never_change_the_status(streams, flags, here):
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full")
    words = ["measure", "--idle", "0", "--meter", "psutil", *flags, "--", "sh", "-c", "exit 3"]
    shell = f'exec "$@" {streams}'
    result = run(cwd=here, command=["bash", "-c", shell, "bash", sys.executable, "-m", "edge_sel", *words])
    assert result.returncode == 3
