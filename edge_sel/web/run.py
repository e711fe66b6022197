"""Serve an app until a signal: on the loopback interface, or with a token on others."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import re
import secrets
import socket
from collections.abc import Callable
from typing import Any

from edge_sel.errors import SetupError, UsageError

SECONDS_FOR_HEADERS = 20
MOST_CONNECTIONS = 64


def require_web(command: str) -> None:
    """Raise SetupError where the packages of the extra are missing."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"`edge-sel {command}` needs {' and '.join(missing)}", fix="pip install 'edge-sel[web]'")


def token_for(host: str, given: str | None) -> str | None:
    """The token that is asked for: the one that was given, a new one for other machines, none on loopback."""
    if given is not None and not re.fullmatch(r"[A-Za-z0-9_-]{12,200}", given):
        raise UsageError("a token is 12 letters, digits, - and _, or more", where="EDGE_SEL_TOKEN")
    if given is not None:
        return given
    return None if _is_loopback(host) else secrets.token_urlsafe(18)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 for any.

    Raises:
        SetupError: the address cannot be had.
    """
    host = host.strip("[]")
    try:
        (family, kind, proto, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        fix = "another --host or --port"
        raise SetupError(f"cannot listen ({error.strerror or error})", where=f"{host}:{port}", fix=fix) from error
    return bound


def address_of(bound: socket.socket, host: str, token: str | None) -> str:
    """For people, with the token."""
    port = bound.getsockname()[1]
    name = host.strip("[]")
    try:
        if ipaddress.ip_address(name).is_unspecified:
            name = socket.gethostname()
        elif ":" in name:
            name = f"[{name}]"
    except ValueError:
        pass
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def quiet_about_garbage() -> None:
    """A connection that sends garbage ends; asyncio would print a traceback where h11 and uvicorn disagree about it."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def serve_app(app: Any, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Answer requests until SIGINT or SIGTERM."""
    import uvicorn

    quiet_about_garbage()

    class _Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app, log_level="critical", access_log=False, server_header=False, date_header=False, lifespan="off",
        limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=5, h11_max_incomplete_event_size=16 << 10,
        http="h11", ws="none", loop="asyncio", timeout_graceful_shutdown=5,
    )  # fmt: skip
    _Server(config).run(sockets=[bound])
