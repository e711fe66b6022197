"""Rounds between real processes of Flower, and what somebody on the network or a bad server can do."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="needs edge-sel[fleet]")
from edge_sel.data.builtin import load_relit
from edge_sel.data.shifts import write_folder
from edge_sel.flower.keys import card_of, read_cards
from edge_sel.flower.processes import free_port
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.signatures import make_key, read_private_key

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import fleet_network

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
EDGE_SEL = (sys.executable, "-m", "edge_sel")
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_simulated_fleet_holds_a_round_and_leaves_no_process(tmp_path):
    images = load_relit("field")
    write_folder(images.subset(np.arange(240)), tmp_path / "images")
    builtin_pack().save(tmp_path / "model.edgepack")
    words = ("simulate", tmp_path / "model.edgepack", "--data", tmp_path / "images", "--devices", 3, "--skew", 5)
    more = ("--home", tmp_path / "home", "--round-timeout", 100, "--threads", 1, "--json")
    done = subprocess.run(
        [*EDGE_SEL, "fleet", *map(str, (*words, *more))], capture_output=True, text=True, env=ENVIRON, timeout=250
    )
    assert done.returncode == 0, done.stderr
    (ended,) = json.loads(done.stdout)["rounds"]
    assert (ended["state"], ended["updates"], ended["judged"], ended["refused"]) == ("published", 3, 3, [])
    assert open_pack(Path(ended["published"])).digest != builtin_pack().digest
    assert not fleet_network.run("pgrep", "-f", str(tmp_path), check=False).split()


def fab_with_code(marker: Path) -> bytes:
    """An app that leaves a trace where it is imported, or even looked for on the path."""
    from edge_sel.flower.runtime import FAB_FILE

    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass App:\n    pass\napp = App()\n"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("pyproject.toml", FAB_FILE.replace("edge_sel.flower.client_app", "evil").replace(
            "edge_sel.flower.server_app", "evil"))  # fmt: skip
        for name in ("evil.py", "sitecustomize.py", "edge_sel/__init__.py", "edge_sel/flower/client_app.py"):
            packed.writestr(name, code)
    return content.getvalue()


def test_code_that_a_server_sends_is_not_run(tmp_path, monkeypatch):
    from edge_sel.flower import runtime, server_app

    marker, port = tmp_path / "it-ran", free_port()
    monkeypatch.setattr(runtime, "fab_bytes", lambda: fab_with_code(marker))
    builtin_pack().save(tmp_path / "model.edgepack")
    make_key(tmp_path / "cam.key", tmp_path / "cam.pub")
    write_folder(load_relit("field").subset(np.arange(100)), tmp_path / "images")
    (tmp_path / "cam.device.json").write_bytes(card_of(read_private_key(tmp_path / "cam.key")))
    members: list[subprocess.Popen[bytes]] = []

    def join() -> None:
        words = ("join", f"127.0.0.1:{port}", tmp_path / "model.edgepack", "--data", tmp_path / "images", "--key",
                 tmp_path / "cam.key", "--ca", tmp_path / "fleet" / "ca.pem", "--home", tmp_path / "device")  # fmt: skip
        members.append(subprocess.Popen([*EDGE_SEL, "fleet", *map(str, words)], env=ENVIRON, cwd=tmp_path))

    try:
        (ended,) = server_app.serve(
            builtin_pack(), tmp_path / "fleet", f"127.0.0.1:{port}", read_cards((tmp_path,)), rounds=1,
            wishes=server_app.Wishes(timeout_s=100, min_devices=1, threads=1), listen="127.0.0.1", ready=join,
        )  # fmt: skip
    finally:
        for member in members:
            member.terminate()
            assert member.wait(60) == 0
    assert (ended.state, ended.updates, ended.judged) == ("published", 1, 1)
    assert not marker.exists()
    unpacked = [*(tmp_path / "device").rglob("evil*"), *(tmp_path / "fleet").rglob("evil*")]
    assert not unpacked and not {"node.key", "runtime.secret"} & {path.name for path in (tmp_path / "device").iterdir()}


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "ss", "pgrep"))), reason="needs root and iproute2"
)
def test_from_another_machine_no_run_can_be_submitted(tmp_path):
    try:
        network = fleet_network.Network().__enter__()
    except subprocess.CalledProcessError:
        pytest.skip("no network namespaces here")
    try:
        fleet = fleet_network.Fleet(network, tmp_path, 2, 1, 60, 120)
        try:
            told = fleet_network.attack(fleet)
            assert f"ports open: [{fleet_network.PORT}]" in told
            fleet.server.wait_for("^round 1 took", 120)
        finally:
            fleet.stop()
    finally:
        network.__exit__()
