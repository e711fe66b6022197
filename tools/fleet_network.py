"""Rounds with Flower between network namespaces, with faults in the middle of rounds: what happened, seconds, bytes.

A server, devices and an attacker have a namespace each, joined by a bridge. Needs root, iproute2 and edge-sel[fleet]:

    python tools/fleet_network.py --home /tmp/fleet --devices 4
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from edge_sel.data.builtin import load_relit
from edge_sel.data.shifts import write_folder
from edge_sel.pack.reader import builtin_pack

PORT, SERVER = 8443, "10.77.0.1"
EDGE_SEL = (sys.executable, "-m", "edge_sel")


def run(*words: object, check: bool = True) -> str:
    """The output of a command."""
    return subprocess.run([*map(str, words)], check=check, capture_output=True, text=True).stdout


class Network:
    """Namespaces on a bridge in a namespace of its own; they are removed at the end."""

    def __init__(self) -> None:
        self.prefix = f"es{secrets.token_hex(2)}"
        self.hub = f"{self.prefix}hub"
        self.names: list[str] = []

    def __enter__(self) -> Network:
        run("ip", "netns", "add", self.hub)
        run("ip", "-n", self.hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self.hub, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.names, self.hub]:
            run("ip", "netns", "delete", name, check=False)

    def add(self, name: str, address: str) -> str:
        """A namespace with this address; its full name."""
        full = self.prefix + name
        run("ip", "netns", "add", full)
        self.names.append(full)
        run("ip", "-n", self.hub, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", full)
        run("ip", "-n", self.hub, "link", "set", name, "master", "br0", "up")
        run("ip", "-n", full, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            run("ip", "-n", full, "link", "set", device, "up")
        return full

    def plug(self, name: str, state: str) -> None:
        """Cut a namespace off (``down``), or let it back (``up``)."""
        run("ip", "-n", self.hub, "link", "set", name, state)

    def slow(self, name: str, *how: str) -> None:
        """Shape what a namespace sends and gets, by a discipline of ``tc``; nothing for none."""
        for space, device in ((self.hub, name), (self.prefix + name, "eth0")):
            run("tc", "-n", space, "qdisc", "delete", "dev", device, "root", check=False)
            if how:
                run("tc", "-n", space, "qdisc", "add", "dev", device, "root", *how)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in another network namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    other = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    try:
        _enter(other)
        yield
    finally:
        _enter(own)
        os.close(own)
        os.close(other)


def _enter(handle: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(handle, 0x40000000):
        raise OSError(ctypes.get_errno(), "setns")


class Process:
    """A command in a namespace, its output in a file."""

    def __init__(self, namespace: str, log: Path, *words: object) -> None:
        self.log, self._words, self._namespace = log, [*map(str, words)], namespace
        self.start()

    def start(self) -> None:
        """Start it, again."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self._namespace, *self._words], stdout=log, stderr=log, start_new_session=True
            )

    def lines(self) -> list[str]:
        """What it said."""
        return self.log.read_text(errors="replace").splitlines()

    def wait_for(self, pattern: str, seconds: float, start: int = 0) -> str:
        """The first line that matches, of those from ``start``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            over = self.process.poll() is not None
            for line in self.lines()[start:]:
                if re.search(pattern, line):
                    return line
            if over:
                break
            time.sleep(0.1)
        raise SystemExit(f"{self.log} never said {pattern!r}:\n" + "\n".join(self.lines()[-20:]))

    def kill(self) -> None:
        """Kill it and all that it started, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()


class Fleet:
    """A server and devices in namespaces."""

    def __init__(self, network: Network, home: Path, devices: int, rounds: int, timeout: int, most: int) -> None:
        self.home, self.network, self.devices = home, network, list[Process]()
        self.rounds = rounds
        server = network.add("srv", SERVER)
        self.attacker = network.add("bad", "10.77.0.99")
        for name in ("first", "model"):  # the server begins with the former; devices get newer ones
            builtin_pack().save(home / f"{name}.edgepack")
        images = load_relit("field")
        images = images.subset(np.arange(min(most, len(images))))
        for number in range(devices):
            write_folder(images.subset(np.arange(number, len(images), devices)), home / f"images{number}")
            run(*EDGE_SEL, "pack", "keygen", home / f"cam{number}")
            run(*EDGE_SEL, "fleet", "enrol", home / f"cam{number}.key.pem", home / f"cam{number}.device.json")
        self.server = Process(
            server, home / "serve.log", *EDGE_SEL, "fleet", "serve", home / "first.edgepack", "--home", home / "fleet",
            "--address", f"{SERVER}:{PORT}", "--devices", home, "--rounds", rounds, "--round-timeout", timeout,
            "--min-devices", max(2, devices - 1), "--threads", 1,
        )  # fmt: skip
        self.server.wait_for("listens on", 90)
        for number in range(devices):
            space = network.add(f"dev{number}", f"10.77.0.{11 + number}")
            self.devices.append(Process(
                space, home / f"dev{number}.log", *EDGE_SEL, "fleet", "join", f"{SERVER}:{PORT}",
                home / "model.edgepack", "--data", home / f"images{number}", "--key", home / f"cam{number}.key.pem",
                "--ca", home / "fleet" / "ca.pem", "--home", home / f"home{number}", "--threads", 1,
            ))  # fmt: skip

    def superlink(self) -> int:
        """The SuperLink's process number."""
        found = run("pgrep", "-f", f"flower-superlink.*{self.home}/fleet/superlink.sqlite").split()
        return int(found[0])

    def stop(self) -> None:
        """End everything."""
        for process in (*self.devices, self.server):
            process.stop()


def try_ports(namespace: str, ports: list[int]) -> list[int]:
    """Those of the server that a connection can be made to."""
    found = []
    with inside(namespace):
        for port in ports:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex((SERVER, port)) == 0:
                    found.append(port)
    return found


def post(namespace: str, authority: Path, path: str, body: bytes = b"") -> int:
    """The status of a request to the server with its certificate checked."""
    trust = ssl.create_default_context(cafile=str(authority))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/protobuf\r\nContent-Length: {len(body)}"
    with (
        inside(namespace),
        socket.create_connection((SERVER, PORT), 5) as plain,
        trust.wrap_socket(plain, server_hostname=SERVER) as talk,
    ):
        talk.sendall(f"{head}\r\n\r\n".encode() + body)
        return int(talk.recv(1000).split()[1])


def listening(namespace: str) -> list[tuple[str, int]]:
    """Address and port of what listens in a namespace."""
    found = []
    for line in run("ip", "netns", "exec", namespace, "ss", "-Hltn").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        found.append((address, int(port)))
    return sorted(set(found))


def attack(fleet: Fleet) -> str:
    """Try to submit a run, and to take a task, with the CA certificate, from the attacker's namespace."""
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab

    from edge_sel.flower.runtime import fab_bytes

    server, authority = fleet.network.prefix + "srv", fleet.home / "fleet" / "ca.pem"
    inner = [port for address, port in listening(server) if address.startswith("127.")]
    opened = try_ports(fleet.attacker, sorted({*inner, PORT, 8000, 9091, 9092, 9093, 9094, *range(8440, 8450)}))
    body = StartRunRequest(fab=Fab(content=fab_bytes())).SerializeToString()
    paths = ["/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes", "/v1/runtime/acquire-task",
             "/v1/fleet/register-node", "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
             "//v1/control/start-run", "/docs", "/openapi.json"]  # fmt: skip
    statuses = {path: post(fleet.attacker, authority, path, body) for path in paths}
    unknown = post(fleet.attacker, authority, "/v1/fleet/pull-messages")
    wrong = {path: status for path, status in statuses.items() if status != 404}
    if opened != [PORT] or wrong or unknown != 401:
        raise SystemExit(f"the attack went through: ports {opened}, {wrong}, fleet API without a key {unknown}")
    return f"ports open: {opened} of {len(inner) + 14}; {len(paths)} paths 404; fleet API without a device's key 401"


def loris(fleet: Fleet, count: int) -> ExitStack:
    """So many connections that begin a request and never end it."""
    held, trust = ExitStack(), ssl.create_default_context(cafile=str(fleet.home / "fleet" / "ca.pem"))
    with inside(fleet.attacker):
        for _ in range(count):
            try:
                plain = held.enter_context(socket.create_connection((SERVER, PORT), 5))
                talk = held.enter_context(trust.wrap_socket(plain, server_hostname=SERVER))
                talk.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nX-a: ")
            except OSError:
                continue
    return held


def scenarios(fleet: Fleet) -> list[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Name, what is done in the middle of the round, what is done at its end."""
    net, held, slow = fleet.network, list[ExitStack](), "tbf rate 200kbit burst 4kb latency 500ms"

    def nothing() -> None:
        pass

    def cut() -> None:
        net.plug("dev1", "down")
        time.sleep(25)
        net.plug("dev1", "up")

    def kill_device() -> None:
        fleet.devices[-1].kill()
        time.sleep(5)
        fleet.devices[-1].start()

    def kill_server() -> None:
        fleet.server.kill()
        time.sleep(2)
        fleet.server.start()

    def kill_superlink() -> None:
        os.kill(fleet.superlink(), signal.SIGKILL)

    def hold() -> None:
        held.append(loris(fleet, 400))

    return [
        ("devices start", nothing, nothing),
        ("nothing", nothing, nothing),
        ("link cut for 25 s", cut, nothing),
        ("link cut till the end", lambda: net.plug("dev1", "down"), lambda: net.plug("dev1", "up")),
        ("a link of 200 kbit/s, queue of 0.5 s", lambda: net.slow("dev0", *slow.split()), lambda: net.slow("dev0")),
        ("SuperLink killed", kill_superlink, nothing),
        ("device killed, started 5 s later", kill_device, nothing),
        ("400 connections that never end a request", hold, lambda: held.pop().close()),
        ("server killed, started 2 s later", kill_server, nothing),
    ]  # fmt: skip


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="folder to make")
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--timeout", type=int, default=90, help="of a round, seconds")
    parser.add_argument("--only", help="scenarios whose name holds this text")
    given = parser.parse_args()
    given.home.mkdir(parents=True)
    home = given.home.resolve()
    with Network() as network, ExitStack() as stack:
        fleet = Fleet(network, home, given.devices, 100, given.timeout, 500)
        stack.callback(fleet.stop)
        print(f"| {'in the middle of the round':<42} | devices | seconds |   bytes | ended as |")
        print(f"|{'-' * 44}|--------:|--------:|--------:|----------|")
        seen = 0
        for name, fault, after in scenarios(fleet):
            if given.only and given.only not in name and name != "devices start":
                continue
            first = fleet.server.wait_for(r"^round \d+, pack", 120, seen)
            number = re.findall(r"\d+", first)[0]
            begun = time.monotonic()
            time.sleep(1.5)
            fault()
            ended = fleet.server.wait_for(rf"^round {number} took", 4 * given.timeout, seen)
            seconds = time.monotonic() - begun
            told = fleet.server.lines()[seen:]
            seen += told.index(ended) + 1
            state = next(line for line in told if line.startswith(f"round {number}: ")).partition(": ")[2]
            came = len({line.split()[1] for line in told if re.search(r"^device \w+: \w+ of", line)})
            size = int(re.findall(r"(\d+) bytes came", ended)[0])
            print(f"| {name:<42} | {came:>7} | {seconds:7.1f} | {size:>7} | {state.partition(',')[0]} |", flush=True)
            after()
        print(f"\nattack: {attack(fleet)}")


if __name__ == "__main__":
    main()
