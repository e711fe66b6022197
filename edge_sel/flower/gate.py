"""The only door to the network: it hands on what devices need of the SuperLink, and nothing else.

In Flower 1.42 devices, operators and programs of the server share one port, and operators need no key there. So the
SuperLink listens on loopback, and what comes from the network passes here: a request for another path is answered with
404 before anything of it is handed on. Every request is parsed, and written anew.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h11

from edge_sel.errors import SetupError

PATH = re.compile(
    rb"/v1/fleet/(activate-node|deactivate-node|send-node-heartbeat|pull-messages|push-messages|get-run|get-fab"
    rb"|push-object|pull-object|confirm-message-received)"
)
"""Not ``register-node`` nor ``unregister-node``: the server knows its devices."""
MOST_HEAD, MOST_BODY = 16 << 10, 80 << 20
MOST_CONNECTIONS, MOST_OF_ADDRESS = 1024, 256
IDLE_S, HEAD_S, PAUSE_S, BODY_S, ANSWER_S, CLOSE_S = 65.0, 10.0, 20.0, 600.0, 90.0, 2.0
"""Longest wait for a request, for all of its head, for more of its body, for all of it; for the
SuperLink's answer; for a goodbye."""
_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"upgrade", b"host", b"content-length", b"expect",
     b"proxy-connection", b"trailer", b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-prefix"}
)  # fmt: skip


class Backend(NamedTuple):
    """The SuperLink on loopback."""

    port: int
    authority: Path


class _Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Gate:
    """Listens, in a thread of its own.

    Args:
        host: address to listen on.
        port: of it; 0 for any.
        certificate: shown to devices, with its ``key``.
        backend: where requests go.

    Raises:
        SetupError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, certificate: Path, key: Path, backend: Backend) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.load_cert_chain(certificate, key)
        self._trust = ssl.create_default_context(cafile=str(backend.authority))
        self._backend, self._from = backend, Counter[str]()
        self.received = self.sent = self.refused = 0
        """Bytes of bodies that were handed on and sent back, and requests that were not handed on."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._thread.start()
        try:
            self._server = asyncio.run_coroutine_threadsafe(self._listen(host, port), self._loop).result(30)
        except OSError as error:
            self._end()
            raise SetupError(f"cannot listen ({error.strerror})", where=f"{host}:{port}") from error
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(
            self._accept, host, port, ssl=self._context, ssl_handshake_timeout=HEAD_S, limit=1 << 18, backlog=256
        )

    def close(self) -> None:
        """Let nobody in any more, and hang up."""
        asyncio.run_coroutine_threadsafe(self._stop_serving(), self._loop).result(10)
        self._end()

    async def _stop_serving(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str((writer.get_extra_info("peername") or ("",))[0])
        if self._from.total() >= MOST_CONNECTIONS or self._from[address] >= MOST_OF_ADDRESS:
            _hang_up(writer)
            return
        self._from[address] += 1
        try:
            with suppress(OSError, asyncio.TimeoutError, asyncio.CancelledError, h11.ProtocolError):
                await self._serve(reader, writer)
        finally:
            self._from[address] -= 1
            if not self._from[address]:
                del self._from[address]
            writer.close()
            with suppress(OSError, asyncio.TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(writer.wait_closed(), CLOSE_S)
            _hang_up(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Requests of one connection, one after the other."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        while True:
            try:
                if (request := http.next_event()) is h11.NEED_DATA:
                    http.receive_data(await asyncio.wait_for(reader.read(1 << 16), IDLE_S))
                    request = await asyncio.wait_for(_next(http, reader), HEAD_S)
                if not isinstance(request, h11.Request):
                    return
                refusal = _refusal(request)
                body = b"" if refusal else await asyncio.wait_for(self._body(http, reader), BODY_S)
            except h11.RemoteProtocolError as error:
                await self._send(http, writer, _plain(error.error_status_hint))
                return
            answer = _plain(refusal) if refusal else await self._forward(request, body)
            self.refused += bool(refusal)
            await self._send(http, writer, answer)
            if refusal or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _body(self, http: h11.Connection, reader: asyncio.StreamReader) -> bytes:
        parts, size = [], 0
        while isinstance(event := await _next(http, reader), h11.Data):
            parts.append(bytes(event.data))
            size += len(event.data)
            if size > MOST_BODY:
                raise h11.RemoteProtocolError("too large", error_status_hint=413)
        return b"".join(parts)

    async def _send(self, http: h11.Connection, writer: asyncio.StreamWriter, answer: _Answer) -> None:
        headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
        events = [h11.Response(status_code=answer.status, headers=headers), h11.Data(answer.body), h11.EndOfMessage()]
        writer.write(b"".join(http.send(event) or b"" for event in events))
        await asyncio.wait_for(writer.drain(), BODY_S)

    async def _forward(self, request: h11.Request, body: bytes) -> _Answer:
        try:
            answer = await asyncio.wait_for(self._ask(request, body), ANSWER_S)
        except (OSError, asyncio.TimeoutError, h11.ProtocolError):
            return _plain(503)  # devices try again
        self.received, self.sent = self.received + len(body), self.sent + len(answer.body)
        return answer

    async def _ask(self, request: h11.Request, body: bytes) -> _Answer:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._backend.port, ssl=self._trust, server_hostname="127.0.0.1"
        )
        try:
            http = h11.Connection(h11.CLIENT)
            kept = [(name, value) for name, value in request.headers if name not in _HOP]
            own = [(b"host", b"127.0.0.1"), (b"connection", b"close"), (b"content-length", str(len(body)).encode())]
            for event in (
                h11.Request(method=b"POST", target=request.target, headers=[*own, *kept]),
                h11.Data(body), h11.EndOfMessage(),
            ):  # fmt: skip
                writer.write(http.send(event) or b"")
            await writer.drain()
            response, parts = await _next(http, reader), []
            if not isinstance(response, h11.Response):
                raise h11.RemoteProtocolError("no response")
            while isinstance(event := await _next(http, reader), h11.Data):
                parts.append(bytes(event.data))
            return _Answer(
                response.status_code, [(n, v) for n, v in response.headers if n not in _HOP], b"".join(parts)
            )
        finally:
            _hang_up(writer)


def _hang_up(writer: asyncio.StreamWriter) -> None:
    with suppress(AttributeError):  # what Debian's Python 3.11.2 raises where it is closed already
        writer.transport.abort()


async def _next(http: h11.Connection, reader: asyncio.StreamReader) -> Any:
    """The next event, from as many bytes as it takes; none may come too late after another."""
    while (event := http.next_event()) is h11.NEED_DATA:
        patience = ANSWER_S if http.our_role is h11.CLIENT else PAUSE_S
        http.receive_data(await asyncio.wait_for(reader.read(1 << 16), patience))
    return event


def _refusal(request: h11.Request) -> int:
    """The status that a request is refused with; 0 if it is handed on."""
    if request.method != b"POST":
        return 405
    if not PATH.fullmatch(request.target):
        return 404
    sizes = [value for name, value in request.headers if name == b"content-length"]
    if len(sizes) != 1 or any(name == b"transfer-encoding" for name, _ in request.headers):
        return 411  # devices send nothing in chunks
    return 413 if int(sizes[0]) > MOST_BODY else 0


def _plain(status: int) -> _Answer:
    return _Answer(status, [(b"connection", b"close")], b"")
