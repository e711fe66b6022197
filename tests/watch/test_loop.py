"""Real processes: watch, label, learn, serve, roll back; and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edge_sel.cli.main import main
from edge_sel.watch.home import open_home
from tests.watch.conftest import PACK, write_digits


def edge_sel(*arguments: object, **more) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_sel", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


@contextmanager
def running(*arguments: object, **more) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "edge_sel", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def ready(process: subprocess.Popen[str]) -> str:
    return json.loads(process.stdout.readline())["address"]


def ask(address: str, body: object = None, kind: str = "application/json") -> dict:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data=content, headers={"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def until(reached) -> None:
    deadline_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline_s, "nothing happened within a minute"
        time.sleep(0.05)


def test_watch_label_learn_serve_roll_back(watched, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(watched / "home", home)
    truth = json.loads((watched / "CLASSES.json").read_text())
    camera = tmp_path / "camera"
    write_digits(camera, 5, 200)
    own = {**os.environ, "EDGE_SEL_METER": "psutil"}
    with (
        running("watch", camera, "--home", home, "--json", "--threads", 1, "--no-learning", env=own) as watch,
        running("serve", "--home", home, "--port", 0, "--json", "--threads", 1) as serve,
        running("label", "--home", home, "--port", 0, "--json", "--threads", 1) as label,
    ):
        served, page = ready(serve), ready(label)
        until(lambda: ask(page + "api/status")["counters"]["images"] == 155)
        (image, _), *_ = write_digits(camera, 1, 230)  # while it watches
        until(lambda: ask(page + "api/status")["counters"]["images"] == 156)
        assert ask(served + "predict", image.read_bytes(), "image/png")["model"] == 0
        answer = ask(page + "api/refresh", {})
        cookieless = 0
        while answer["model"] == 0 and answer["image"] is not None and cookieless < 150:
            number = answer["image"]["number"]
            name = truth.get(str(number), answer["image"]["guess"])
            answer = ask(page + "api/label", {"image": number, "name": name})
            cookieless += 1
        until(lambda: ask(page + "api/next")["model"] == 1)
        until(lambda: ask(served + "predict", image.read_bytes(), "image/png")["model"] == 1)
        assert "model 0 is in service again" in edge_sel("rollback", "--home", home).stdout
        until(lambda: ask(served + "health")["model"] == 0)
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(timeout=30) == 0
    again = open_home(home)
    counters = again.records.counters()
    assert counters["images"] == len(list(again.records.lines())) == 156
    assert counters["labels"] == len(again.records.labels()) and counters["millijoules"] > 0
    assert len([*(home / "labelled").rglob("*.png")]) == counters["labels"]
    again.close()


@pytest.mark.parametrize("kills", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_counts_nothing_twice_and_loses_nothing(tmp_path, kills):
    camera, home = tmp_path / "camera", tmp_path / "home"
    write_digits(camera, 120)
    for number in range(kills):
        model = ("--model", PACK) if not (home / "home.json").exists() else ()
        with running("watch", camera, "--home", home, *model, "--json", "--threads", 1, "--rate", 1) as watch:
            watch.stdout.readline()
            time.sleep(0.05 * number)
            watch.kill()
    done = edge_sel("watch", camera, "--home", home, "--once", "--threads", 1, "--rate", 1)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(home / "watch.sqlite") as records:
        counters = dict(records.execute("SELECT name, value FROM counters"))
        (rows,) = records.execute("SELECT count(*) FROM images").fetchone()
        (sources,) = records.execute(
            "SELECT count(DISTINCT source) FROM images WHERE source LIKE '%camera%'"
        ).fetchone()
        files = {file for (file,) in records.execute("SELECT file FROM images WHERE file IS NOT NULL")}
    assert sources == 120 and rows == counters["images"] + counters.get("added", 0)
    assert files == {str(path.relative_to(home)) for path in (home / "kept").iterdir() if not path.name.startswith(".")}


def test_systemd_is_told_and_two_watchers_of_one_home_are_refused(tmp_path):
    camera, home, address = tmp_path / "camera", tmp_path / "home", tmp_path / "notify"
    write_digits(camera, 2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(60)
        own = {**os.environ, "NOTIFY_SOCKET": str(address)}
        with running("watch", camera, "--home", home, "--model", PACK, "--json", "--threads", 1, env=own):
            messages = {notify.recv(200) for _ in range(4)}
            assert {b"READY=1", b"WATCHDOG=1"} <= messages
            second = edge_sel("watch", camera, "--home", home)
            assert second.returncode == 2 and "watches with this home" in second.stderr


def test_lines_as_a_table_and_errors_in_one_line(watched, tmp_path, monkeypatch, capsys):
    home = tmp_path / "home"
    shutil.copytree(watched / "home", home)

    def here(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["edge-sel", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    table = here("watch", "--home", home, "--csv")[1].splitlines()
    assert table[0].startswith("number,source,seen,class,probability,novelty") and len(table) == 151
    for arguments in (["watch", "--home", home], ["watch", tmp_path / "nowhere", "--home", home],
                      ["watch", tmp_path, "--home", tmp_path / "none"], ["label", "--home", tmp_path / "none"],
                      ["serve"], ["serve", "--home", tmp_path], ["rollback", "--home", home],
                      ["watch", tmp_path, "--home", home, "--model", Path(__file__)]):  # fmt: skip
        code, _, errors = here(*arguments)
        assert code in (2, 3, 4) and len(errors.splitlines()) == 1, errors


def test_garbage_ends_its_connection_without_a_word(watched, tmp_path):
    """HEAD with a chunk that is none: h11 refuses it, and uvicorn's answer to that is refused by h11, too."""
    home = tmp_path / "home"
    shutil.copytree(watched / "home", home)
    with running("label", "--home", home, "--port", 0, "--json", "--threads", 1, stderr=subprocess.PIPE) as label:
        address = ready(label)
        port = int(address.rstrip("/").rpartition(":")[2])
        garbage = b"HEAD / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\x7f\x07{\r\n"
        for content in (garbage, b"\x16\x03\x01" * 50, b"GET / HTTP/9.9\r\n\r\n", b"G" * 100_000):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(content)
                connection.settimeout(0.5)
                with suppress(OSError):
                    connection.recv(1000)
        assert ask(address + "api/status")["model"] == 0
        label.terminate()
        assert label.stderr.read() == ""
        label.stderr.close()
