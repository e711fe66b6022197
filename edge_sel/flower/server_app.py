"""The server's part in rounds over a network: ask the devices, keep what comes, merge, have it judged, publish."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_sel.errors import SetupError
from edge_sel.flower.keys import Card, make_home
from edge_sel.flower.processes import (
    Supervised,
    environment,
    free_port,
    hold_home,
    require_flower,
    split_address,
    superlink_command,
)
from edge_sel.flower.round import Round, RoundOptions, Tell, finish

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge_sel.fleet.rounds import RoundFolder
    from edge_sel.flower.gate import Gate
    from edge_sel.pack.reader import Pack

ROUNDS, DATABASE, LOG = "rounds", "superlink.sqlite", "superlink.log"
START_S = 60.0
MOST_RUNS = 5
"""Of Flower for a round, where it gives runs up."""


class Ended(NamedTuple):
    """A round, for people and programs."""

    round: int
    state: str
    why: str
    updates: int
    declined: dict[str, str]
    """Device -> why."""
    refused: list[str]
    """Updates that could not be used."""
    judged: int
    seconds: float
    bytes_received: int
    bytes_sent: int
    published: str | None


class Fleet:
    """A SuperLink on loopback, and the door to it.

    Args:
        home: the server's folder.
        address: HOST:PORT by which devices reach it.
        listen: address of this machine to listen on.
        cards: the devices.
        tell: is given lines.

    Raises:
        SetupError: Flower is not there, or something cannot be started.
        UsageError: another process works in the folder.
    """

    def __init__(self, home: Path, address: str, listen: str, cards: Mapping[bytes, Card], tell: Tell) -> None:
        require_flower()
        host, port = split_address(address)
        keys = make_home(home, host)
        self._held = hold_home(home)
        os.environ.update(environment(os.environ, home / "flwr"))  # before Flower is imported
        from edge_sel.flower.gate import Backend, Gate
        from edge_sel.flower.runtime import Operator, ServerTasks, SuperLinkError

        self.lost = SuperLinkError
        inner = free_port()
        command = superlink_command(keys, home / DATABASE, inner)
        self._superlink = Supervised(command, dict(os.environ), home / LOG, tell)
        self.gate: Gate | None = None
        self._connections = ExitStack()
        try:
            _wait_for(inner, keys.authority, home / LOG)
            self._operator = self._connections.enter_context(closing(Operator(inner, keys.authority)))
            self._operator.register({card.node: card.device[:12] for card in cards.values()})
            tasks = ServerTasks(inner, keys.authority, keys.secret.read_bytes())
            self._tasks = self._connections.enter_context(closing(tasks))
            self.gate = Gate(listen, port, keys.certificate, keys.key, Backend(inner, keys.authority))
        except BaseException:
            self.close()
            raise
        tell(f"listens on {listen}:{self.gate.port}; devices need {keys.authority}")

    def run(self) -> Any:
        """A run: a context with the mailbox to the devices."""
        return self._tasks.run(self._operator.start_run())

    def close(self) -> None:
        """End everything."""
        if self.gate is not None:
            self.gate.close()
        self._connections.close()
        self._superlink.stop()
        self._held.close()


def _wait_for(port: int, authority: Path, log: Path) -> None:
    end, trust = time.monotonic() + START_S, ssl.create_default_context(cafile=str(authority))
    while time.monotonic() < end:
        try:
            with (
                socket.create_connection(("127.0.0.1", port), 2) as plain,
                trust.wrap_socket(plain, server_hostname="127.0.0.1"),
            ):
                return
        except OSError:
            time.sleep(0.2)
    raise SetupError("the SuperLink does not start", where=log)


def serve(
    pack: Pack, home: Path, address: str, cards: Mapping[bytes, Card], *, rounds: int, options: RoundOptions,
    listen: str = "0.0.0.0", key: Ed25519PrivateKey | None = None, tell: Tell = lambda line: None,
    ready: Callable[[], None] = lambda: None,
) -> list[Ended]:  # fmt: skip
    """Hold rounds; one that was begun before goes on.

    Args:
        pack: of the first round.
        home: the server's folder.
        address: HOST:PORT by which devices reach the server.
        cards: node's public key -> device.
        rounds: how many to end.
        options: what they are to be.
        listen: address of this machine to listen on.
        key: to sign new packs with.
        tell: is given lines.
        ready: is called when devices can come.

    Raises:
        TooFewDevicesError: too few took part in a round, which stays open.
    """
    from edge_sel.fleet.rounds import RoundFolder

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    trusted, found = {card.device: card.signs for card in cards.values()}, list[Ended]()
    fleet = Fleet(home, address, listen, cards, tell)
    assert fleet.gate is not None
    try:
        ready()
        while len(found) < rounds:
            with RoundFolder(home / ROUNDS, pack, secrets.token_hex(16), trusted) as folder:
                found.append(_one_round(fleet, folder, cards, options, key, tell))
        return found
    finally:
        fleet.close()


def _one_round(
    fleet: Fleet, folder: RoundFolder, cards: Mapping[bytes, Card], options: RoundOptions,
    key: Ed25519PrivateKey | None, tell: Tell,
) -> Ended:  # fmt: skip
    assert fleet.gate is not None
    start, received, sent = time.monotonic(), fleet.gate.received, fleet.gate.sent
    tell(f"round {folder.number}, pack {folder.pack.digest[:12]}")
    for attempt in range(1, MOST_RUNS + 1):
        try:
            with fleet.run() as mailbox:
                work = Round(folder, cards, mailbox, options, tell)
                finish(folder, work, options, key, tell)
            break
        except fleet.lost as error:
            if attempt == MOST_RUNS:
                raise
            tell(f"{error}; another run goes on with the round")
    published = folder.place / "published.edgepack"
    ended = Ended(
        folder.number, folder.state, folder.why, len([*(folder.place / "updates").glob("*.update")]),
        work.declined, work.refused, len(work.votes), round(time.monotonic() - start, 1),
        fleet.gate.received - received, fleet.gate.sent - sent, str(published) if published.exists() else None,
    )  # fmt: skip
    tell(f"round {ended.round} took {ended.seconds} s, {ended.bytes_received} bytes came, {ended.bytes_sent} went")
    return ended
