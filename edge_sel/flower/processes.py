"""Flower's stock processes: their command lines, their environment, and how they are started again."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path

from edge_sel.errors import SetupError, UsageError
from edge_sel.flower.keys import HomeKeys
from edge_sel.runs.lock import BusyError, hold_lock

VERSION = (1, 42)
"""Of Flower: another one may differ in what it exposes."""
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 70.0
"""Before a process is started again. A SuperNode that was killed counts as present for 60 s, and refused."""
_STEADY_S = 120.0
LOCK = ".flower.lock"
STOP_S = 15.0
MOST_LOG = 4 << 20
"""Bytes of a log with which a new one is begun at a start."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def require_flower() -> None:
    """Raise SetupError in one line if Flower is not there, or another version."""
    fix = "pip install 'edge-sel[fleet]', in an environment of its own, with Python 3.11 or newer"
    if importlib.util.find_spec("flwr") is None:
        raise SetupError("Flower is not installed", fix=fix)
    found = metadata.version("flwr")
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) != VERSION:
        raise SetupError(f"Flower {found} is installed, and {'.'.join(map(str, VERSION))} is needed", fix=fix)


def environment(given: Mapping[str, str], home: Path) -> dict[str, str]:
    """For every process with Flower in it: no telemetry, no look for updates, no package installed at run time."""
    kept = {name: value for name, value in given.items() if not name.startswith(("FLWR_", "PYTHONSTARTUP"))}
    return kept | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "FLWR_LOG_LEVEL": "WARNING",
        "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "1",  # each has 30 s, and they would share the link
    }  # fmt: skip


def hold_home(home: Path) -> ExitStack:
    """Hold a folder that is there, so that no other process works in it.

    Raises:
        UsageError: another one does.
        SetupError: it cannot be written.
    """
    held = ExitStack()
    try:
        held.enter_context(hold_lock(home / LOCK))
    except BusyError as error:
        raise UsageError(f"{error} works in this folder", where=home) from None
    except OSError as error:
        raise SetupError(f"the folder cannot be held ({error.strerror})", where=home) from error
    return held


def superlink_command(keys: HomeKeys, database: Path, port: int) -> list[str]:
    """The SuperLink: on loopback, with TLS, known devices only, and nothing that it starts itself."""
    return [
        _script("flower-superlink"), "--host", "127.0.0.1", "--port", str(port),
        "--ssl-certfile", str(keys.certificate), "--ssl-keyfile", str(keys.key),
        "--ssl-ca-certfile", str(keys.authority), "--enable-supernode-auth", "--isolation", "process",
        "--superexec-auth-secret-file", str(keys.secret), "--database", str(database),
        "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def supernode_command(server: str, authority: Path, node: Path, secret: Path, port: int) -> list[str]:
    """The SuperNode of a device: the server's certificate is checked, and it starts no code by itself."""
    return [
        _script("flower-supernode"), "--superlink", server, "--root-certificates", str(authority),
        "--auth-supernode-private-key", str(node), "--isolation", "process", "--host", "127.0.0.1",
        "--port", str(port), "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def _script(name: str) -> str:
    """Beside this Python: no other one of the same name on the path."""
    return str(Path(sys.executable).with_name(name))


def split_address(text: str) -> tuple[str, int]:
    """Host and port; UsageError for something else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError("no HOST:PORT", where=text, fix="such as fleet.example:8443")
    return host.strip("[]"), int(port)


def free_port() -> int:
    """Of loopback, free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Supervised:
    """A process that is started again when it ends, ever later; it ends with this one, however that ends.

    Args:
        command: of it.
        environ: of it.
        log: file that its output is appended to.
        tell: is given a line when it ended.

    Raises:
        SetupError: it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], log: Path, tell: Callable[[str], None]
    ) -> None:
        self._command, self._environ, self._log, self._tell = list(command), dict(environ), log, tell
        self._name = Path(self._command[0]).name
        self._stopping, self._started = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._error: OSError | None = None
        # On Linux the process ends with the thread that started it, so that thread lives as long as it is wanted.
        self._thread = threading.Thread(target=self._keep, name=self._name, daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            raise SetupError(f"{self._name} cannot be started ({self._error.strerror})", where=self._command[0])

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._process = self._start()
            except OSError as error:
                self._error = error
                return
            finally:
                self._started.set()
            status = self._process.wait()
            if self._stopping.is_set():
                return
            wait_s = FIRST_WAIT_S if time.monotonic() - began > _STEADY_S else wait_s
            self._tell(f"{self._name} ended with status {status}, is started again in {wait_s:.0f} s: see {self._log}")
            self._stopping.wait(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _start(self) -> subprocess.Popen[bytes]:
        if self._log.exists() and self._log.stat().st_size > MOST_LOG:
            self._log.replace(self._log.with_suffix(".old.log"))
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                preexec_fn=partial(_end_with, os.getpid()),
            )  # fmt: skip

    def stop(self) -> None:
        """End it, with a chance to say goodbye."""
        self._stopping.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(STOP_S)


def _end_with(parent: int) -> None:
    """In the new process: have the kernel end it when the one that started it ends (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # that one ended already
