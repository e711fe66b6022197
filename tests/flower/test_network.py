"""Rounds between real processes of Flower, and what somebody on the network or a bad server can do."""

from __future__ import annotations

import hashlib
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
from edge_sel.flower.keys import card_of, node_file, read_cards
from edge_sel.flower.processes import environment, free_port, supernode_command
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
    """An app as Flower wants it, which leaves a trace where it is imported."""
    from edge_sel.flower.runtime import FAB_FILE

    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"
    project = FAB_FILE.replace("edge_sel.flower.client_app", "evil").replace("edge_sel.flower.server_app", "evil")
    files = {"pyproject.toml": project} | dict.fromkeys(("evil.py", "edge_sel/flower/client_app.py"), code)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
        lines = [f"{n},{hashlib.sha256(t.encode()).hexdigest()},{8 * len(t)}" for n, t in sorted(files.items())]
        packed.writestr(".info/CONTENT", "\n".join(lines) + "\n")
    return content.getvalue()


def join(place: Path, port: int) -> list[str]:
    """The command of a device."""
    words = ("join", f"127.0.0.1:{port}", place / "model.edgepack", "--data", place / "images", "--key",
             place / "cam.key", "--ca", place / "fleet" / "ca.pem", "--home", place / "device")  # fmt: skip
    return [*EDGE_SEL, "fleet", *map(str, words)]


def flower_s_own(place: Path, port: int) -> list[list[str]]:
    """A SuperNode, and the SuperExec that ``join`` stands in for."""
    inner, secret, node = free_port(), place / "secret", place / "node"
    secret.write_bytes(b"0" * 32)
    node.write_bytes(node_file(read_private_key(place / "cam.key")))
    shown = ("--runtime-api-address", f"127.0.0.1:{inner}", "--insecure", "--superexec-auth-secret-file", str(secret))
    supernode = supernode_command(f"127.0.0.1:{port}", place / "fleet" / "ca.pem", node, secret, inner)
    return [supernode, [str(Path(sys.executable).with_name("flower-superexec")), *shown]]


@pytest.mark.parametrize("own", [True, False], ids=["by join", "but by Flower's own SuperExec"])
def test_code_that_a_server_sends_is_not_run(tmp_path, monkeypatch, own):
    from edge_sel.flower import round as round_
    from edge_sel.flower import runtime, server_app

    marker, port = tmp_path / "it-ran", free_port()
    monkeypatch.setattr(runtime, "fab_bytes", lambda: fab_with_code(marker))
    builtin_pack().save(tmp_path / "model.edgepack")
    make_key(tmp_path / "cam.key", tmp_path / "cam.pub")
    write_folder(load_relit("field").subset(np.arange(100)), tmp_path / "images")
    (tmp_path / "cam.device.json").write_bytes(card_of(read_private_key(tmp_path / "cam.key")))
    members: list[subprocess.Popen[bytes]] = []
    scripts = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = environment({**ENVIRON, "PATH": scripts}, tmp_path / "flwr")

    def ready() -> None:
        for command in [join(tmp_path, port)] if own else flower_s_own(tmp_path, port):
            members.append(subprocess.Popen(command, env=environ, cwd=tmp_path))

    def serve() -> list[server_app.Ended]:
        return server_app.serve(
            builtin_pack(), tmp_path / "fleet", f"127.0.0.1:{port}", read_cards((tmp_path,)), rounds=1,
            options=round_.RoundOptions(timeout_s=100 if own else 30, min_devices=1, threads=1),
            listen="127.0.0.1", ready=ready,
        )  # fmt: skip

    try:
        if own:
            (ended,) = serve()
            assert (ended.state, ended.updates, ended.judged) == ("published", 1, 1)
        else:
            with pytest.raises(round_.TooFewDevicesError):
                serve()
    finally:
        for member in members:
            member.terminate()
        statuses = [member.wait(60) for member in members]
    assert marker.exists() != own
    if own:
        assert statuses == [0] and not [*(tmp_path / "device").rglob("evil*"), *(tmp_path / "fleet").rglob("evil*")]
        assert not {"node.key", "runtime.secret"} & {path.name for path in (tmp_path / "device").iterdir()}


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
