"""Flower's processes: what they are told, and that they are started again and ended."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from edge_sel.errors import SetupError, UsageError
from edge_sel.flower import processes
from edge_sel.flower.keys import keys_of
from edge_sel.flower.processes import Supervised, environment, split_address, superlink_command, supernode_command


def options(command):
    return {word: after for word, after in zip(command, [*command[1:], ""], strict=True) if word.startswith("--")}


def test_the_superlink_is_on_loopback_with_tls_known_devices_and_no_code_of_its_own():
    found = options(superlink_command(keys_of(Path("/home")), Path("/home/db"), 4000))
    assert (found["--host"], found["--port"], found["--isolation"]) == ("127.0.0.1", "4000", "process")
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= found.keys()
    assert found["--database"] == "/home/db" and found["--superexec-auth-secret-file"] == "/home/runtime.secret"
    assert "--insecure" not in found and found["--ssl-certfile"] == "/home/server.pem"


def test_the_supernode_checks_the_server_and_starts_no_code():
    found = options(supernode_command("a:1", Path("/ca"), Path("/node"), Path("/secret"), 5000))
    assert (found["--isolation"], found["--host"], found["--root-certificates"]) == ("process", "127.0.0.1", "/ca")
    assert "--insecure" not in found and "--allow-runtime-dependency-installation" not in found
    assert found["--auth-supernode-private-key"] == "/node" and found["--superexec-auth-secret-file"] == "/secret"


def test_nothing_is_sent_to_anybody_else_whatever_the_environment_says():
    given = {"PATH": "/bin", "FLWR_TELEMETRY_ENABLED": "1", "FLWR_DATABASE": "x", "FLWR_ENABLE_EVENT_LOG": "1"}
    found = environment(given, Path("/h"))
    assert found["FLWR_TELEMETRY_ENABLED"] == "0" and found["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert found["PATH"] == "/bin" and not {"FLWR_DATABASE", "FLWR_ENABLE_EVENT_LOG"} & found.keys()


@pytest.mark.parametrize("text", ["", "a", ":1", "a:", "a:x", "a:0", "a:70000"])
def test_an_address_without_host_or_port_is_told(text):
    with pytest.raises(UsageError):
        split_address(text)


def test_addresses():
    assert split_address("fleet.example:8443") == ("fleet.example", 8443)
    assert split_address("[2001:db8::1]:1") == ("2001:db8::1", 1)


def test_without_flower_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"edge-sel\[fleet\]"):
        processes.require_flower()


def test_another_flower_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "1.43.0")
    with pytest.raises(SetupError, match=r"1\.43\.0 is installed, and 1\.42 is needed"):
        processes.require_flower()


def test_a_folder_is_worked_in_by_one_process(tmp_path):
    with processes.hold_home(tmp_path), pytest.raises(UsageError, match="works in this folder"):
        processes.hold_home(tmp_path)
    processes.hold_home(tmp_path).close()


# Supervision, with processes that are real


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_process_that_ends_is_started_again_ever_later(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "FIRST_WAIT_S", 0.05)
    told, log = [], tmp_path / "log"
    kept = Supervised(python("print('here', flush=True); raise SystemExit(3)"), os.environ, log, told.append)
    until(lambda: log.exists() and log.read_text().count("here") >= 3)
    kept.stop()
    assert "status 3" in told[0] and str(log) in told[0] and len(told) >= 2
    count = log.read_text().count("here")
    time.sleep(0.3)
    assert log.read_text().count("here") == count


def test_a_process_is_ended_with_a_chance_to_say_goodbye(tmp_path):
    log = tmp_path / "log"
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(print('bye'))); print('on', flush=True); time.sleep(60)"
    kept = Supervised(python(code), os.environ, log, print)
    until(lambda: "on" in log.read_text())
    kept.stop()
    assert "bye" in log.read_text()


def test_a_program_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SetupError, match="cannot be started"):
        Supervised([str(tmp_path / "nothing")], os.environ, tmp_path / "log", print)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_it_ends_with_this_process_even_if_that_is_killed(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from edge_sel.flower.processes import Supervised\n"
        "kept = Supervised([sys.executable, '-c', 'import time; time.sleep(60)'], os.environ, Path(sys.argv[1]), print)\n"
        "print(kept.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([*python(code), str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until(lambda: not alive(child))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_large_log_is_put_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "MOST_LOG", 10)
    log = tmp_path / "a.log"
    log.write_text("x" * 20)
    Supervised(python("import time; time.sleep(9)"), os.environ, log, print).stop()
    assert (tmp_path / "a.old.log").read_text() == "x" * 20 and log.read_text() == ""
