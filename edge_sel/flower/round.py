"""A round with devices over a network: ask them, keep what comes, merge, have it judged, publish, tell the devices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from edge_sel.errors import BadInputError, EdgeSelError
from edge_sel.flower.keys import Card
from edge_sel.flower.messages import FORMAT, MOST_BYTES, Answer, Counts, Request, Task, read_reply, request_bytes
from edge_sel.pack.patch import make_patch

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge_sel.fleet.delta import Rule
    from edge_sel.fleet.rounds import RoundFolder
    from edge_sel.flower.runtime import Mailbox
    from edge_sel.pack.reader import Pack

POLL_S, SETTLE_S, AGAIN_S, DELIVER_S = 2.0, 20.0, 30.0, 60.0
"""Between two looks for replies; how long devices have to turn up although those that are there have answered; after
which time one that declined is asked again; how long devices have to take what was published: the next round tells it
again."""
MOST_PATCH = MOST_BYTES - (1 << 20)
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
        self._behind: dict[str, str] = {}
        """Device -> digest of the pack that it has, where that is not the one of the round."""
        self._updated = set[str]()
        """Devices that were sent what is new."""

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

    def deliver(self, before: Pack) -> int:
        """Have the devices that are there make what was published of the pack of the round; how many did."""
        had: list[str] = []
        self._declined_at.clear()
        self._behind.clear()
        if (patched := self._patch(before)) is not None:
            self._ask(*patched, set(), 0, lambda card, answer: had.append(card.device), DELIVER_S)
        return len(had)

    def _patch(self, before: Pack) -> tuple[Request, Mapping[str, np.ndarray]] | None:
        """The request to make the pack of the round of an older one; None, with a line, where it is too large."""
        request, patch = self._request("install"), make_patch(before, self._folder.pack)
        request["base"] = before.digest
        if (size := sum(part.nbytes for part in patch.values())) <= MOST_PATCH:
            return request, patch
        self._tell(f"the new pack differs by {size / 1e6:.0f} MB, which is too much to send: copy it to the devices")
        return None

    def _request(self, task: Task) -> Request:
        return {
            "format": FORMAT, "task": task, "round": self._folder.name, "pack": self._folder.pack.digest, "base": "",
            "kind": self._options.kind, "plan": self._options.plan, "seconds": self._options.timeout_s, "classes": [],
        }  # fmt: skip

    def _ask(
        self, request: Request, tensors: Mapping[str, np.ndarray], done: set[str], enough: int,
        take: Callable[[Card, Answer], None], most_s: float = math.inf,
    ) -> None:  # fmt: skip
        """Ask each device as it turns up, till all have answered, or time is over.

        One that declines is asked again later, if the round lasts: its battery may be charged by then.

        Args:
            request: to be sent, with ``tensors``.
            done: devices that are not asked; those that took part are added.
            enough: so many are waited for; with so many it is not waited for devices that are not there.
            take: is given each answer that declines nothing.
            most_s: the time that is over earlier than that of the round.
        """
        start, waiting, taken = time.monotonic(), dict[str, tuple[Card, str, Request]](), 0
        while (left := start + min(self._options.timeout_s, most_s) - time.monotonic()) > 0:
            self._options.alive()
            present = self._mailbox.present()
            connected = {seen.key: seen.since for seen in present}
            for number, (card, since, _) in [*waiting.items()]:
                if connected.get(card.node, since) != since:  # it was started again, and has forgotten the message
                    del waiting[number]
            busy = {card.device for card, *_ in waiting.values()} | done | {
                device for device, when in self._declined_at.items() if time.monotonic() < when + AGAIN_S
            }  # fmt: skip
            for seen in present:
                owner = self._cards.get(seen.key)
                if owner is not None and owner.device not in busy:
                    asked, content = self._first_of(owner, request, tensors)
                    asked = {**asked, "seconds": round(left, 1)}
                    sent = self._mailbox.send(seen.node, request_bytes(asked, content), left + 60)
                    if sent is not None:
                        waiting[sent] = (owner, seen.since, asked)
            again = False
            for number, message, why in self._mailbox.fetch({*waiting}):
                card, _, asked = waiting.pop(number)
                if asked["task"] != request["task"]:  # it was behind, and is now asked for what is wanted
                    if self._took(card, message, why, asked, lambda card, answer: None):
                        again = True
                    else:
                        self._declined_at[card.device] = time.monotonic()
                elif self._took(card, message, why, asked, take):
                    done.add(card.device)
                    taken += 1
                elif card.device not in self._behind:
                    self._declined_at[card.device] = time.monotonic()
            everybody = len(done | self._declined_at.keys()) >= len(self._cards)
            # One that was asked and is gone is not waited for, yet its reply counts if it comes.
            missing = again or self._behind or any(card.node in connected for card, *_ in waiting.values())
            settled = time.monotonic() - start > SETTLE_S
            if not missing and taken >= enough and (settled or (everybody and not waiting)):
                return
            time.sleep(min(POLL_S, max(left, 0)))
        for card, *_ in waiting.values():
            self._tell(f"device {card.device[:12]}: no reply in time")

    def _is_behind(self, card: Card, packs: Sequence[str]) -> bool:
        """Whether it declines as it has only an older pack of ours, which is told once a round."""
        has = next((digest for digest in packs if self._folder.known(digest) is not None), None)
        if has is None or card.device in self._updated or self._folder.pack.digest in packs:
            return False
        self._behind[card.device] = has
        self._updated.add(card.device)
        self._tell(f"device {card.device[:12]} has the pack {has[:12]}: it is sent what is new")
        return True

    def _first_of(
        self, card: Card, request: Request, tensors: Mapping[str, np.ndarray]
    ) -> tuple[Request, Mapping[str, np.ndarray]]:
        """What a device is asked: the request, or to make the pack of the round of an older one that it has."""
        has = self._behind.pop(card.device, None)
        before = None if has is None else self._folder.known(has)
        return (before and self._patch(before)) or (request, tensors)

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
            if request["task"] == "update" and self._is_behind(card, answer.header["packs"]):
                return False
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
        before = folder.pack
        if folder.publish(votes, key):
            tell(f"{work.deliver(before)} devices have the new pack")
    tell(f"round {folder.number}: {folder.state}" + (f", as {folder.why}" if folder.why else ""))
