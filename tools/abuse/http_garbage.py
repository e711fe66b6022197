"""Garbage for the pages of ``label`` and ``serve``: requests of every kind, damaged, to real servers."""

from __future__ import annotations

import json
import random
import shutil
import socket
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[2] / "edge_sel/pack/assets/digits.edgepack"
SECRET = b'"format"'
"""Stands in a file of the home that no answer may hold."""
PATHS = (
    "/", "/api/next", "/api/label", "/api/skip", "/api/undo", "/api/refresh", "/api/status", "/metrics", "/health",
    "/predict", "/model", "/label.js", "/image/1", "/image/2", "/../home.json", "/image/..%2f..%2fhome.json",
    "/image/%00", "/kept/x.png", "//home.json", "/api/next?image=1", "/api/next?image=-1",
)  # fmt: skip
BODIES = (
    b"", b"{}", b'{"image": 1, "name": "3"}', b'{"image": 1, "name": null}', b'{"image": "AAAA"}', b"[" * 5000,
    b'{"image": 1e999, "name": "x"}', b"\xff\xd8\xff\xe0" + bytes(60), b'{"image": 2, "name": "\\ud800"}',
)  # fmt: skip
KINDS = ("application/json", "image/jpeg", "text/plain", "multipart/form-data; boundary=x", "")


@cache
def servers() -> tuple[int, ...]:
    """Ports of a label page and of a service, which live as long as this process."""
    import numpy as np
    import uvicorn
    from PIL import Image

    from edge_sel.data.builtin import load_relit
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.watch.arrivals import FolderArrivals
    from edge_sel.watch.home import make_home, open_home
    from edge_sel.watch.learner import Learner
    from edge_sel.watch.teacher import Teacher
    from edge_sel.watch.watcher import Options, Surroundings, Watcher
    from edge_sel.web.labelling import Desk, label_app
    from edge_sel.web.run import quiet_about_garbage
    from edge_sel.web.serving import ModelService, serve_model_app

    quiet_about_garbage()
    folder = Path(tempfile.mkdtemp())
    camera = folder / "camera"
    camera.mkdir()
    for row, image in enumerate(load_relit("field").read(np.arange(12))):
        Image.fromarray(image).save(camera / f"{row}.png")
    make_home(folder / "home", PACK)
    home = open_home(folder / "home")
    learner = Learner(home, OrtEngine(1))
    around = Surroundings(time.monotonic, time.time)
    Watcher(learner, Options(rate=1.0), around, np.random.default_rng(0)).run(
        FolderArrivals(camera, home.records).once()
    )
    shutil.rmtree(camera)
    desk = Desk(learner, Teacher(learner, time.monotonic, np.random.default_rng(0)), time.time)
    desk.learn()
    desk.start()
    ports = []
    for app in (label_app(desk, None), serve_model_app(ModelService(home, None, 1), None)):
        bound = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="critical", lifespan="off", http="h11", ws="none", timeout_keep_alive=1)
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True).start()
        ports.append(bound.getsockname()[1])
        while not server.started:
            time.sleep(0.01)
    return tuple(ports)


def read_http(rng: random.Random, here: Path) -> None:
    """One request, damaged or not; any answer but one below 500 without a secret in it is a finding."""
    from abuse.stranger_files import damaged

    port = rng.choice(servers())
    body = rng.choice(BODIES) if rng.random() < 0.7 else rng.randbytes(rng.choice((1, 50, 5000)))
    host = rng.choice(("127.0.0.1", "[::1]", "evil.example", "", "x" * 5000)) if rng.random() < 0.3 else "localhost"
    headers = {"Host": host, "Content-Type": rng.choice(KINDS), "Connection": "close"}
    if rng.random() < 0.9:
        headers["Content-Length"] = (
            str(len(body)) if rng.random() < 0.9 else rng.choice(("-1", "9" * 30, "0x5", "5, 6"))
        )
    else:
        headers["Transfer-Encoding"] = "chunked"
    if rng.random() < 0.2:
        headers[rng.choice(("Cookie", "Origin", "Sec-Fetch-Site", "X\x00Y", "Range"))] = rng.choice(
            ("edge_sel_person=" + "a" * 32, "x" * 3000, "bytes=0-", "cross-site", '"\\xff', ";;=;")
        )
    method = rng.choice(("GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE", "", "G\x00T"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"{method} {rng.choice(PATHS)} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body
    if rng.random() < 0.4:
        request = damaged(rng, request)
    answer = send(port, request)
    status = answer[9:12]
    if status.isdigit() and status >= b"500":
        raise RuntimeError(f"status {status.decode()}: {answer[:300]!r}")
    if b"Traceback" in answer or (SECRET in answer and b"pack" in answer):
        raise RuntimeError(f"an answer that nobody should have: {answer[:300]!r}")
    if rng.random() < 0.02:
        require_alive(port)


def send(port: int, request: bytes, wait_s: float = 0.2) -> bytes:
    """The answer, as far as one comes within a moment."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.settimeout(wait_s)
        parts = []
        try:
            connection.sendall(request)
            while part := connection.recv(1 << 16):
                parts.append(part)
        except OSError:  # what is not whole is waited for by the server, too
            pass
    return b"".join(parts)


def require_alive(port: int) -> None:
    """A good request still gets a good answer."""
    answer = send(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 5)
    found: Any = answer[9:12]
    if found != b"200":
        raise RuntimeError(f"the server no longer answers: {json.dumps(answer[:200].decode('latin-1'))}")
