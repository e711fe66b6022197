"""The door: what it hands on, what it refuses, and that nobody can hold it open."""

from __future__ import annotations

import gc
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("cryptography", reason="needs edge-sel[sign]")
pytest.importorskip("h11", reason="needs h11, as edge-sel[fleet] or edge-sel[web] have it")
from edge_sel.errors import SetupError
from edge_sel.flower import gate
from edge_sel.flower.gate import Backend, Gate
from edge_sel.flower.keys import make_home

PULL = b"/v1/fleet/pull-messages"


class Inner(BaseHTTPRequestHandler):
    """In the SuperLink's place: keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str], bytes]]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, dict(self.headers.items()), body))
        self.send_response(401 if body == b"who" else 200)
        self.send_header("Content-Type", "application/protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"), "127.0.0.1")


@pytest.fixture
def inner(home):
    Inner.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Inner)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.certificate, home.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def door(home, inner):
    found = Gate("127.0.0.1", 0, home.certificate, home.key, Backend(inner, home.authority))
    yield found
    found.close()


def connect(door, home):
    plain = socket.create_connection(("127.0.0.1", door.port), 10)
    return ssl.create_default_context(cafile=str(home.authority)).wrap_socket(plain, server_hostname="127.0.0.1")


def request(path=PULL, body=b"abc", method=b"POST", more=b""):
    size = str(len(body)).encode()
    return method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + size + b"\r\n" + more + b"\r\n" + body


def ask(door, home, content, most=1):
    """Statuses and bodies of at most so many answers; fewer where the door hangs up."""
    found = []
    with connect(door, home) as talk:
        talk.sendall(content)
        file = talk.makefile("rb")
        for _ in range(most):
            line = file.readline()
            if not line:
                break
            size = 0
            while header := file.readline().strip():
                name, _, value = header.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
            found.append((int(line.split()[1]), file.read(size)))
    return found


def test_what_devices_need_is_handed_on_with_their_headers(door, home):
    more = b"X-Flower-Key: k\r\nConnection: keep-alive\r\nX-Forwarded-For: 10.0.0.1\r\n"
    assert ask(door, home, request(body=b"x" * 100_000, more=more)) == [(200, b"x" * 100_000)]
    ((path, headers, body),) = Inner.seen
    assert path == PULL.decode() and len(body) == 100_000
    headers = {name.lower(): value for name, value in headers.items()}
    assert headers["x-flower-key"] == "k" and "x-forwarded-for" not in headers and headers["host"] == "127.0.0.1"
    assert door.received == door.sent == 100_000


def test_one_connection_serves_many_requests_and_what_the_superlink_refuses_is_told(door, home):
    asked = request() + request(body=b"who") + request(body=b"more")
    assert ask(door, home, asked, 3) == [(200, b"abc"), (401, b"who"), (200, b"more")]


@pytest.mark.parametrize(
    "path",
    [b"/v1/control/start-run", b"/v1/control/register-node", b"/v1/runtime/acquire-task", b"/v1/fleet/register-node",
     b"/v1/fleet/unregister-node", b"/v1/fleet/../control/start-run", b"/v1/fleet/%2e%2e/control/start-run",
     b"/v1/fleet/pull-messages/", b"/v1/fleet/pull-messages?x", b"//v1/fleet/pull-messages", b"/docs", b"/health", b"/",
     b"https://127.0.0.1/v1/control/start-run", b"*"],
    ids=bytes.decode,
)  # fmt: skip
def test_nothing_else_is_handed_on(door, home, path):
    assert ask(door, home, request(path)) == [(404, b"")]
    assert Inner.seen == [] and door.refused == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (request(method=b"GET"), 405),
        (b"POST " + PULL + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 411),
        (b"POST " + PULL + b" HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"POST " + PULL + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (request(more=b"Content-Length: 5\r\n"), 400),
        (request(more=b"Transfer-Encoding: chunked\r\n"), 411),
        (b"\x00\x01garbage\r\n\r\n", 400),
        (request(more=b"Bad Header\r\n"), 400),
    ],
)
def test_requests_that_two_readers_could_read_differently_are_refused(door, home, content, status):
    assert ask(door, home, content)[0][0] == status
    assert Inner.seen == []


def test_a_head_without_end_is_not_kept(door, home):
    with connect(door, home) as talk, pytest.raises(OSError):
        for _ in range(1000):
            talk.sendall(b"POST / HTTP/1.1\r\n" + b"A: " + b"x" * 50_000 + b"\r\n")
    assert Inner.seen == []


def test_a_request_hidden_in_the_body_of_another_is_a_body(door, home):
    hidden = request(b"/v1/control/start-run")
    assert ask(door, home, request(body=hidden)) == [(200, hidden)]
    assert [path for path, _, _ in Inner.seen] == [PULL.decode()]


def test_without_the_superlink_devices_are_told_to_try_again(home):
    door = Gate("127.0.0.1", 0, home.certificate, home.key, Backend(9, home.authority))
    try:
        assert ask(door, home, request()) == [(503, b"")]
    finally:
        door.close()


@pytest.mark.parametrize(
    "begun", [b"", b"POST /v1/fl", request()[:-1]], ids=["nothing", "half a head", "all but one byte of the body"]
)
def test_who_never_ends_a_request_is_hung_up_on(door, home, monkeypatch, begun):
    for name in ("IDLE_S", "HEAD_S", "PAUSE_S"):
        monkeypatch.setattr(gate, name, 0.3)
    with connect(door, home) as talk:
        talk.sendall(begun)
        start = time.monotonic()
        assert talk.recv(10) == b"" and time.monotonic() - start < 5
    assert Inner.seen == []


def test_a_byte_now_and_then_does_not_keep_a_head_going(door, home, monkeypatch):
    monkeypatch.setattr(gate, "HEAD_S", 0.5)
    with connect(door, home) as talk, pytest.raises(OSError):
        talk.settimeout(0.05)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            talk.sendall(b"x")
            try:
                if talk.recv(10) == b"":
                    raise OSError("hung up")
            except TimeoutError:
                continue


def test_an_address_has_so_many_connections_and_others_are_served(door, home, monkeypatch):
    monkeypatch.setattr(gate, "MOST_OF_ADDRESS", 3)
    held = [connect(door, home) for _ in range(3)]
    with pytest.raises((OSError, IndexError)):
        ask(door, home, request())[0]
    held.pop().close()
    end = time.monotonic() + 10
    while True:
        try:
            assert ask(door, home, request())[0][0] == 200
            break
        except (OSError, IndexError):
            assert time.monotonic() < end
    for each in held:
        each.close()


def test_without_tls_nothing_is_said(door):
    with socket.create_connection(("127.0.0.1", door.port), 10) as plain:
        plain.sendall(request())
        assert not plain.recv(100).startswith(b"HTTP")
    assert Inner.seen == []


def test_a_port_that_is_taken_is_told(door, home):
    with pytest.raises(SetupError, match="cannot listen"):
        Gate("127.0.0.1", door.port, home.certificate, home.key, Backend(1, home.authority))


def test_a_connection_that_the_library_cannot_abort_any_more_is_no_error(door, home, monkeypatch, caplog):
    """As in Python 3.11.2, where the transport of a closed connection has no protocol."""

    def abort(self):
        raise AttributeError("'NoneType' object has no attribute '_abort'")

    monkeypatch.setattr("asyncio.sslproto._SSLProtocolTransport.abort", abort)
    for _ in range(2):
        assert ask(door, home, request())[0][0] == 200
    while door._from:
        time.sleep(0.01)
    time.sleep(0.1)
    gc.collect()  # a task's exception is told when it is thrown away
    assert not [record for record in caplog.records if record.name == "asyncio"]
