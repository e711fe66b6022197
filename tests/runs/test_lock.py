"""One writer: the kernel keeps the lock, so that neither kill -9 nor a stale file is an obstacle."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from edge_sel.runs.lock import BusyError, hold_lock
from tests.cli.shell import environment

HOLD = """\
import sys, time
from pathlib import Path
from edge_sel.runs.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


def owner(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, env=environment(), text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_by_name_until_it_is_killed(tmp_path):
    path = tmp_path / "lock"
    with owner(path) as process:
        try:
            with pytest.raises(BusyError, match=f"^process {process.pid}$"), hold_lock(path):
                pass
        finally:
            process.kill()
    assert path.exists(), "kill -9 leaves the file"
    with hold_lock(path) as held:
        assert held and path.read_text().startswith(f"{os.getpid()} ")
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"1 another-boot\n", b"\xff\0" * 500])
def test_a_stale_file_is_no_obstacle(content, tmp_path):
    (tmp_path / "lock").write_bytes(content)
    with hold_lock(tmp_path / "lock") as held:
        assert held


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "another process"), ("7 elsewhere", "process 7 of another machine"), ("x", "another")],
)
def test_an_owner_that_has_not_said_who_it_is(content, expected, tmp_path):
    path = tmp_path / "lock"
    path.write_text(content)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match=expected), hold_lock(path):
            pass


def test_who_waits_gets_it_when_it_is_free(tmp_path):
    """Also though the owner removes the file, so that the one that was waited for is nobody's."""
    code = HOLD.replace("time.sleep(100)", "time.sleep(0.5)")
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE, env=environment()
    ) as p:
        p.stdout.readline()
        with hold_lock(tmp_path / "lock", wait=True) as held:
            assert held and (tmp_path / "lock").read_text().startswith(f"{os.getpid()} ")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_lock(tmp_path / "lock") as held:
        assert held is False
    assert not (tmp_path / "lock").exists()
