"""What stands before every page: who may ask, how much, and what a browser may do with the answer."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

MOST_BODY_BYTES = 64 << 10
TOKEN, PERSON = "edge_sel_token", "edge_sel_person"
_HEADERS = [
    (b"content-security-policy", b"default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
     b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware.

    A request passes if its ``Host`` is an address, this machine's name or localhost (a name of somebody else's that
    leads here is none of these); if it has the token, where one is asked for, in the address or in the cookie that the
    page then sets; and, if it changes anything, if it comes from our own page.

    Args:
        app: that is guarded.
        token: that is asked for; None on the loopback interface.
        most_bytes: of a request's body.
        open_paths: that need no token, such as a health check.
        kinds: of bodies that are taken, or what these begin with before the stroke. A form of another site can send
            none of them.
    """

    def __init__(
        self, app: App, token: str | None, most_bytes: int = MOST_BODY_BYTES, open_paths: frozenset[str] = frozenset(),
        kinds: frozenset[str] = frozenset({"application/json"}),
    ) -> None:  # fmt: skip
        self._app, self._token, self._most, self._open, self._kinds = app, token, most_bytes, open_paths, kinds
        name = socket.gethostname().lower()
        self._names = {"localhost", name, f"{name}.local", socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app answer."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        cookies = _cookies(headers.get(b"cookie", b""))
        bearer = headers.get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ")
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        fresh: list[str] = []
        if not self._is_ours(headers.get(b"host", b"").decode("latin-1")):
            return await _refuse(send, 421, "this address leads elsewhere: ask by the address of this machine")
        if self._token is not None and scope["path"] not in self._open:
            if not any(_same(each, self._token) for each in (given, bearer, cookies.get(TOKEN, ""))):
                return await _refuse(send, 403, "the token is missing or wrong: open the address that was printed")
            if given:
                fresh.append(f"{TOKEN}={self._token}")
        if scope["method"] not in ("GET", "HEAD") and (why := _foreign(headers, self._kinds)):
            return await _refuse(send, 403, why)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > self._most:
            return await _refuse(send, 413, f"a body of more than {self._most} bytes")
        person = cookies.get(PERSON, "")
        if not (person.isalnum() and len(person) == 32):
            person = secrets.token_hex(16)
            fresh.append(f"{PERSON}={person}")
        scope["edge_sel_person"] = person
        await self._app(scope, self._bounded(receive), _with_headers(send, fresh))

    def _is_ours(self, host: str) -> bool:
        name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True

    def _bounded(self, receive: Receive) -> Receive:
        """Of a body that does not say how long it is, no more than is allowed."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                return {"type": "http.disconnect"}
            return message

        return bounded


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _foreign(headers: dict[bytes, bytes], kinds: frozenset[str]) -> str:
    """Why a request that would change something may come from another site; empty if it does not."""
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
    if not {kind, kind.partition("/")[0]} & kinds:
        return f"the body must be {' or '.join(sorted(kinds))}"
    if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
        return "another site may not ask for this"
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower():
        return "another site may not ask for this"
    return ""


def _cookies(header: bytes) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header.decode("latin-1")).items()}
    except CookieError:
        return {}


def _with_headers(send: Send, cookies: list[str]) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            set_cookies = [
                (b"set-cookie", f"{cookie}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000".encode())
                for cookie in cookies
            ]
            message = {**message, "headers": [*message["headers"], *_HEADERS, *set_cookies]}
        await send(message)

    return answer


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
