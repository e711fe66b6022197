"""All that is said to Flower's own interfaces: tasks are taken from a SuperNode or a SuperLink and run here.

Flower's SuperExec starts a program that unpacks the code which the server sent (a FAB) and runs it. This module takes
its place: a task carries a message, the message goes to a function of this package, and the FAB is never unpacked.
"""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest, UnregisterNodeRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from edge_sel.errors import SetupError

KEY = "edge_sel"
PART = 256 << 10
"""Bytes: at 10 kB/s they take 26 s. An update of 4 MB as one value never arrived over 400 kbit/s."""
MESSAGE_TYPE = "query"
PATIENCE_S = 120.0
"""How long the server's part waits for a SuperLink that is started again."""
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
_AGAIN = (502, 503, 504)
FAB_FILE = """[project]
name = "edge-sel"
version = "1.0.0"
[tool.flwr.app]
publisher = "edge-sel"
[tool.flwr.app.components]
serverapp = "edge_sel.flower.server_app:app"
clientapp = "edge_sel.flower.client_app:app"
[tool.flwr.app.config]
"""
"""What Flower wants to know of an app. It holds no code, and none is looked for."""

FlowerProblem = (httpx.HTTPError, RuntimeError, ValueError)
"""What Flower raises where the other side is away or says no."""


class SuperLinkError(SetupError):
    """The SuperLink does not answer, or has given up the run; another run may go on."""


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except FlowerProblem as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise SuperLinkError(f"the SuperLink does not go on ({why[:200]})") from error


def fab_bytes() -> bytes:
    """A FAB with nothing in it but its description, the same bytes each time."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr(zipfile.ZipInfo("pyproject.toml"), FAB_FILE)
    return content.getvalue()


def wrapped(message: bytes) -> RecordDict:
    """As few values: each is an object that Flower sends by itself, and waits for 30 s at most."""
    parts = [message[at : at + PART] for at in range(0, len(message), PART)]
    return RecordDict({f"{KEY}-{number:04}": ConfigRecord({KEY: part}) for number, part in enumerate(parts)})


def unwrapped(records: RecordDict) -> bytes:
    """ValueError if they are none of ours."""
    if [*records] != [f"{KEY}-{number:04}" for number in range(len(records))] or not records:
        raise ValueError("a message of another program")
    parts = []
    for record in records.values():
        part = record.get(KEY) if isinstance(record, ConfigRecord) else None
        if not isinstance(part, bytes):
            raise ValueError("a message of another program")
        parts.append(part)
    return b"".join(parts)


def _patient(seconds: float) -> RetryInvoker:
    """Unlike Flower's own it never ends the process, and has an end."""

    def hopeless(error: Exception) -> bool:
        return isinstance(error, httpx.HTTPStatusError) and error.response.status_code not in _AGAIN

    return RetryInvoker(
        lambda: exponential(max_delay=5), (httpx.TransportError, httpx.HTTPStatusError), None, seconds,
        should_giveup=hopeless,
    )  # fmt: skip


def _beat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Unlike Flower's own it never ends the process."""

    def beat() -> bool:
        try:
            return bool(client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success)
        except httpx.HTTPError:
            return False

    return beat


class _Executor:
    """Takes tasks of one kind."""

    def __init__(self, address: str, authority: bytes | None, secret: bytes, kind: TaskType) -> None:
        self._address, self._authority, self._kind = address, authority, kind
        self._client = self._connect(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE), None
        )

    def _connect(self, interceptor: Any, retry: RetryInvoker | None) -> RuntimeHttpClient:
        return RuntimeHttpClient.from_server_address(
            self._address, self._authority is None, self._authority,
            [RuntimeVersionHttpInterceptor(component_name=str(self._kind)), interceptor], retry_invoker=retry,
        )  # fmt: skip

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def acquire(self) -> str | None:
        """The token of a task, which is this process's then; None if there is none, or nobody answers."""
        try:
            found = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[self._kind]))
        except httpx.HTTPError:
            return None
        return found.token if found.HasField("task") and found.token else None


class DeviceTasks(_Executor):
    """Messages that the SuperNode on this machine received.

    Args:
        port: of its runtime interface, on loopback.
        secret: that the SuperNode was started with.
    """

    def __init__(self, port: int, secret: bytes) -> None:
        super().__init__(f"127.0.0.1:{port}", None, secret, TaskType.CLIENT_APP)

    def answer_one(self, answer: Callable[[bytes], bytes]) -> bool:
        """Answer a message if there is one; whether there was.

        Args:
            answer: of a message; ValueError if it is none of ours.
        """
        token = self.acquire()
        if token is None:
            return False
        client = self._connect(RuntimeTokenHttpInterceptor(token), _patient(30.0))
        heartbeat = HeartbeatSender(_beat(client))
        heartbeat.start()
        try:
            message, context, _, _ = pull_task_input(client)
            try:
                reply = Message(wrapped(answer(unwrapped(message.content))), reply_to=message)
            except ValueError as error:
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                reply = Message(Error(code=code, reason=str(error)[:200]), reply_to=message)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
        except FlowerProblem:
            return False  # the SuperNode ended, or the task; the server asks again
        finally:
            heartbeat.stop()
            client.close()
        return True


class Connection(NamedTuple):
    """A device that is connected."""

    node: int
    key: bytes
    """Public key of its SuperNode."""
    since: str
    """When it connected: another time after it was started again."""


class Operator:
    """What an operator does on the server's own machine: devices are made known, runs are started."""

    def __init__(self, port: int, authority: Path) -> None:
        self._client = ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}", False, str(authority), [RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
            retry_invoker=_patient(PATIENCE_S),
        )  # fmt: skip

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def register(self, keys: Mapping[bytes, str]) -> None:
        """Have the SuperLink know exactly these public keys of nodes, by name."""
        with _in_words():
            nodes = self._client.ListNodes(ListNodesRequest()).nodes_info
            known = {node.public_key: node.node_id for node in nodes if not node.unregistered_at}
            for key, node_id in known.items():
                if key not in keys:
                    self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))
            for key, name in keys.items():
                if key not in known:
                    self._client.RegisterNode(RegisterNodeRequest(public_key=key, name=name))

    def start_run(self) -> int:
        """Start a run; its task is to be taken by ``ServerTasks``."""
        fab = fab_bytes()
        with _in_words():
            run_id: int = self._client.StartRun(StartRunRequest(fab=Fab(content=fab))).run_id
            if not run_id:
                raise ValueError("it starts no run")
            return run_id


class ServerTasks(_Executor):
    """The server's part of runs."""

    def __init__(self, port: int, authority: Path, secret: bytes) -> None:
        super().__init__(f"127.0.0.1:{port}", authority.read_bytes(), secret, TaskType.SERVER_APP)

    @contextmanager
    def run(self, run_id: int) -> Iterator[Mailbox]:
        """Take the run's task, and end it.

        Raises:
            SuperLinkError: nobody offers it.
        """
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            token = self.acquire()
            if token is not None and (mailbox := self._begin(token, run_id)) is not None:
                break
            time.sleep(0.2)
        else:
            raise SuperLinkError("the SuperLink hands out no task")
        status, why = SubStatus.FAILED, "stopped"
        try:
            yield mailbox
            status, why = SubStatus.COMPLETED, ""
        finally:
            mailbox.end(status, why)

    def _begin(self, token: str, run_id: int) -> Mailbox | None:
        """None if it is the task of another run: of an earlier start of this server, or of somebody on this machine."""
        grid = HttpGrid(self._address, root_certificates=self._authority, token=token)
        grid._retry_invoker = _patient(PATIENCE_S)
        client = grid._runtime_client
        try:
            given = client.PullTaskInput(PullTaskInputRequest())
        except FlowerProblem:
            grid.close()
            return None
        mailbox = Mailbox(grid, HeartbeatSender(_beat(client)))
        if given.run.run_id != run_id:
            mailbox.end(SubStatus.FAILED, "no run of this server")
            return None
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = context_from_proto(given.context).node_id
        grid.set_run(run_from_proto(given.run))
        mailbox.begin()
        return mailbox


class Mailbox:
    """Sends messages to devices of a run, and fetches their replies; SuperLinkError where that cannot go on."""

    def __init__(self, grid: HttpGrid, heartbeat: HeartbeatSender) -> None:
        self._grid, self._heartbeat, self._lock = grid, heartbeat, threading.Lock()

    def begin(self) -> None:
        """Keep the task."""
        self._heartbeat.start()

    def end(self, status: str, why: str) -> None:
        """Give it back."""
        try:
            self._grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=why))
        except FlowerProblem:
            pass  # it expires by itself
        finally:
            if self._heartbeat.is_running:
                self._heartbeat.stop()
            self._grid.close()

    def present(self) -> list[Connection]:
        """The devices that are connected."""
        with _in_words():
            nodes = self._grid.get_nodes()
        return [Connection(node.node_id, node.public_key, node.last_activated_at) for node in nodes]

    def send(self, node: int, message: bytes, seconds: float) -> str | None:
        """Its number; None if it could not be sent."""
        sent = Message(wrapped(message), node, MESSAGE_TYPE, ttl=seconds)
        with _in_words():
            return next(iter(self._grid.push_messages([sent])), None)

    def fetch(self, numbers: set[str]) -> list[tuple[str, bytes | None, str]]:
        """Of the messages with these numbers: the number, the reply or None, and why there is none."""
        found: list[tuple[str, bytes | None, str]] = []
        with _in_words():
            replies = self._grid.pull_messages(numbers) if numbers else ()
        for reply in replies:
            number = reply.metadata.reply_to_message_id
            try:
                if reply.has_error():
                    raise ValueError(reply.error.reason)
                found.append((number, unwrapped(reply.content), ""))
            except ValueError as error:
                found.append((number, None, str(error)[:200]))
        return found
