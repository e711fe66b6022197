"""The server's part in rounds over a network: ask the devices, keep what comes, merge, have it judged, publish."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from edge_sel.errors import BadInputError, EdgeSelError, SetupError
from edge_sel.flower.keys import Card, make_home
from edge_sel.flower.messages import FORMAT, Answer, Counts, Request, Task, read_reply, request_bytes
from edge_sel.flower.processes import (
    Supervised,
    environment,
    free_port,
    hold_home,
    require_flower,
    split_address,
    superlink_command,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge_sel.fleet.delta import Rule
    from edge_sel.fleet.rounds import RoundFolder
    from edge_sel.flower.gate import Gate
    from edge_sel.flower.runtime import Mailbox
    from edge_sel.pack.reader import Pack

ROUNDS, DATABASE, LOG = "rounds", "superlink.sqlite", "superlink.log"
POLL_S, SETTLE_S, AGAIN_S = 2.0, 20.0, 30.0
"""Between two looks for replies; how long devices have to turn up although those that are there have answered; after
which time one that declined is asked again."""
START_S = 60.0
MOST_RUNS = 5
"""Of Flower for a round, where it gives runs up."""
Tell = Callable[[str], None]


class TooFewDevicesError(BadInputError):
    """A round has too few updates; it stays open."""


class RoundOptions(NamedTuple):
    """What the rounds are to be."""

    kind: Literal["statistics", "delta"] = "statistics"
    plan: str = "last"
    rule: Rule = "mean"
    timeout_s: float = 600.0
    min_devices: int = 2
    forget: float = 0.33
    threads: int = 0
    alive: Callable[[], None] = lambda: None
    """Called each time replies are looked for."""


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


class Round:
    """One round: what is asked of whom, and what came.

    Args:
        folder: of the rounds.
        cards: node's public key -> device.
        mailbox: to the devices.
        options: what it is to be.
        tell: is given lines.
    """

    def __init__(
        self, folder: RoundFolder, cards: Mapping[bytes, Card], mailbox: Mailbox, options: RoundOptions, tell: Tell
    ) -> None:
        self._folder, self._cards, self._mailbox, self._options, self._tell = folder, cards, mailbox, options, tell
        self.declined: dict[str, str] = {}
        self.refused: list[str] = []
        self.votes: dict[str, Counts] = {}
        self._declined_at: dict[str, float] = {}

    def collect(self) -> None:
        """Have the devices send updates, and keep them; those that were kept before are not asked again."""
        kept = {update.device for update in self._folder.updates()[0]}

        def keep(card: Card, answer: Answer) -> None:
            update = self._folder.add(answer.content, answer.signature, f"device {card.device[:12]}")
            if update.device != card.device:  # cannot be: the folder would have to know another key by this name
                raise BadInputError("signed by another device's key", where=card.device[:12])
            self._tell(f"device {card.device[:12]}: {update.kind} of {update.images} images")

        enough = max(self._options.min_devices - len(kept), 0)
        self._ask(self._request("update"), {}, kept, enough, keep)

    def judge(self) -> None:
        """Have the devices that are there count what the candidate has right of their validation images."""
        candidate, pack = self._folder.candidate(), self._folder.pack
        request = self._request("judge")
        request["classes"] = list(candidate.manifest.model.classes)

        def count(card: Card, answer: Answer) -> None:
            counts = answer.header["counts"]
            if counts is None:
                raise BadInputError("a reply without counts", where=f"device {card.device[:12]}")
            self.votes[card.device] = counts
            self._tell(f"device {card.device[:12]}: wins {counts['won']}, loses {counts['lost']} of {counts['images']}")

        self._declined_at.clear()
        self._ask(request, changed_weights(pack, candidate), set(), 0, count)

    def _request(self, task: Task) -> Request:
        return {
            "format": FORMAT, "task": task, "round": self._folder.name, "pack": self._folder.pack.digest,
            "kind": self._options.kind, "plan": self._options.plan, "seconds": self._options.timeout_s, "classes": [],
        }  # fmt: skip

    def _ask(
        self, request: Request, tensors: Mapping[str, np.ndarray], done: set[str], enough: int,
        take: Callable[[Card, Answer], None],
    ) -> None:  # fmt: skip
        """Ask each device as it turns up, till all have answered, or time is over.

        One that declines is asked again later, if the round lasts: its battery may be charged by then.

        Args:
            request: to be sent, with ``tensors``.
            done: devices that are not asked; those that took part are added.
            enough: so many are waited for; with so many it is not waited for devices that are not there.
            take: is given each answer that declines nothing.
        """
        start, waiting, taken = time.monotonic(), dict[str, tuple[Card, str]](), 0
        while (left := start + self._options.timeout_s - time.monotonic()) > 0:
            self._options.alive()
            present = self._mailbox.present()
            connected = {seen.key: seen.since for seen in present}
            for number, (card, since) in [*waiting.items()]:
                if connected.get(card.node, since) != since:  # it was started again, and has forgotten the message
                    del waiting[number]
            busy = {card.device for card, _ in waiting.values()} | done | {
                device for device, when in self._declined_at.items() if time.monotonic() < when + AGAIN_S
            }  # fmt: skip
            for seen in present:
                owner = self._cards.get(seen.key)
                if owner is not None and owner.device not in busy:
                    request["seconds"] = round(left, 1)
                    sent = self._mailbox.send(seen.node, request_bytes(request, tensors), left + 60)
                    if sent is not None:
                        waiting[sent] = (owner, seen.since)
            for number, message, why in self._mailbox.fetch({*waiting}):
                card, _ = waiting.pop(number)
                if self._took(card, message, why, request, take):
                    done.add(card.device)
                    taken += 1
                else:
                    self._declined_at[card.device] = time.monotonic()
            everybody = len(done | self._declined_at.keys()) >= len(self._cards)
            # One that was asked and is gone is not waited for, yet its reply counts if it comes.
            missing = any(card.node in connected for card, _ in waiting.values())
            settled = time.monotonic() - start > SETTLE_S
            if not missing and taken >= enough and (settled or (everybody and not waiting)):
                return
            time.sleep(min(POLL_S, max(left, 0)))
        for card, _ in waiting.values():
            self._tell(f"device {card.device[:12]}: no reply in time")

    def _took(
        self, card: Card, message: bytes | None, why: str, request: Request, take: Callable[[Card, Answer], None]
    ) -> bool:
        try:
            if message is None:
                raise BadInputError(why or "no reply", where=f"device {card.device[:12]}")
            answer = read_reply(message, request)
            if answer.header["declined"] is None:
                take(card, answer)
                return True
            self.declined[card.device] = answer.header["declined"]
            self._tell(f"device {card.device[:12]} declines: {answer.header['declined']}")
        except EdgeSelError as error:
            self.refused.append(str(error))
            self._tell(str(error))
        return False


def changed_weights(pack: Pack, candidate: Pack) -> dict[str, np.ndarray]:
    """Those of the candidate that the pack has not."""
    old, new = pack.weights(), candidate.weights()
    return {name: value for name, value in new.items() if name not in old or not np.array_equal(old[name], value)}


def finish(folder: RoundFolder, work: Round, options: RoundOptions, key: Ed25519PrivateKey | None, tell: Tell) -> None:
    """Take a round from wherever it stands to its end.

    Raises:
        TooFewDevicesError: the round stays open.
    """
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.fleet.rounds import Vote

    if folder.state == "open":
        work.collect()
        came = len(folder.updates()[0])
        if came < options.min_devices:
            raise TooFewDevicesError(f"{came} devices took part, {options.min_devices} are needed", where=folder.place)
        merged = folder.merge(
            OrtEngine(options.threads), min_devices=options.min_devices, forget=options.forget, rule=options.rule
        )
        tell(f"merged {len(merged.devices)} devices, {merged.images} images")
    if folder.state == "candidate":
        work.judge()
        votes = {device: Vote(v["images"], v["won"], v["lost"]) for device, v in work.votes.items()}
        folder.publish(votes, key)
    tell(f"round {folder.number}: {folder.state}" + (f", as {folder.why}" if folder.why else ""))


# The process


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
        try:
            _wait_for(inner, keys.authority, home / LOG)
            self._operator = Operator(inner, keys.authority)
            self._operator.register({card.node: card.device[:12] for card in cards.values()})
            self._tasks = ServerTasks(inner, keys.authority, keys.secret.read_bytes())
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
    ended: Callable[[Ended], None] = lambda ended: None, ready: Callable[[], None] = lambda: None,
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
        ended: is given each round at its end.
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
            ended(found[-1])
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
