"""A device's part in rounds over a network: it answers requests of the server, by the code that is installed here."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypedDict

from edge_sel.arrays import tensor_bytes, tensor_notes
from edge_sel.errors import BadInputError, EdgeSelError, PackError, SetupError
from edge_sel.files import read_regular, write_durably, write_json, write_new
from edge_sel.flower.keys import node_file
from edge_sel.flower.messages import FORMAT, MOST_BYTES, Counts, Reply, Request, read_request, reply_bytes
from edge_sel.flower.processes import Supervised, environment, free_port, hold_home, require_flower, supernode_command
from edge_sel.schema import Longest, SchemaError, Within, read_as

if TYPE_CHECKING:
    import numpy as np
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from edge_sel.pack.reader import Pack
    from edge_sel.pack.signatures import TrustedKeys

POLL_S = 1.0
STATE, MOST_STATE = "state.json", 1 << 16
PACK, ANSWER, RESIDUAL, NODE, SECRET, LOG = (
    "pack.edgepack",
    "answer.bin",
    "residual.safetensors",
    "node.key",
    "runtime.secret",
    "supernode.log",
)


class Device(NamedTuple):
    """What a device takes part with."""

    pack: Path
    """Of the first round; read anew for each request. What the server published since is in ``home``."""
    data: Path
    home: Path
    """Its own folder: the last answer, what a delta left out, the log."""
    key: Ed25519PrivateKey
    trusted: TrustedKeys | None = None
    """Whose packs are used."""
    privacy: tuple[float, float] | None = None
    config: Path | None = None
    profile: str | None = None
    threads: int = 0
    max_pixels: int | None = None
    environ: Mapping[str, str] = os.environ
    deltas: bool = False
    """Whether it sends what training changed, which can tell much of single images, if the server asks for that."""
    most_rounds: int | None = None
    """With so many answered it takes part in no more: what each tells of the images, and ε, add up."""


class _State(TypedDict):
    """What is kept between rounds, so that no server learns more by asking again."""

    updates: Annotated[int, Within(0, 10**9)]
    """Rounds that an update was made for."""
    judgements: Annotated[int, Within(0, 10**9)]
    judged_round: Annotated[str, Longest(64)]
    candidate: Annotated[str, Longest(64)]
    """Hash of what was judged in that round; one candidate a round is."""
    counts: Counts | None


def answer(
    device: Device, message: bytes, tell: Callable[[str], None], should_stop: Callable[[], str | None] = lambda: None
) -> bytes:
    """The reply to a request of the server; what cannot be done is declined in one line.

    Raises:
        ValueError: it is no request.
    """
    try:
        request, tensors = read_request(message)
    except EdgeSelError as error:
        raise ValueError(str(error)) from error
    reply: Reply = {
        "format": FORMAT, "task": request["task"], "round": request["round"], "packs": [], "declined": None,
        "counts": None,
    }  # fmt: skip
    try:
        packs = _packs(device)
        reply["packs"] = [*packs]
        if request["task"] == "install":
            _install(device, packs, tensors, request, tell)
            return reply_bytes(reply)
        if (pack := packs.get(request["pack"])) is None:
            raise EdgeSelError(f"this device has another pack than the server ({reply['packs'][0][:12]})")
        if request["task"] == "judge":
            reply["counts"] = counts = _judge(device, pack, tensors, request)
            tell("judged a new model: of {images} images right {right}, before {right_before}".format(**counts))
            return reply_bytes(reply)
        return _update(device, pack, request, reply, tell, should_stop)
    except EdgeSelError as error:
        reply["declined"] = str(error)[:600]
        tell(f"declined: {error}")
        return reply_bytes(reply)


def _packs(device: Device) -> dict[str, Pack]:
    """Digest -> pack: the one that the server sent last, if there is one, and the one that the device came with.

    Raises:
        PackError: there is none.
    """
    from edge_sel.pack.reader import open_pack

    found: dict[str, Pack] = {}
    installed = device.home / PACK
    if installed.exists():
        with suppress(PackError):  # such as one that is not signed as is required now; the server sends it again
            pack = open_pack(installed, device.trusted)
            found[pack.digest] = pack
    try:
        pack = open_pack(device.pack, device.trusted)
        found.setdefault(pack.digest, pack)
    except PackError:
        if not found:
            raise
    return found


def _install(
    device: Device, packs: Mapping[str, Pack], patch: Mapping[str, np.ndarray], request: Request,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Make the pack that the server published, if the device has the one before it."""
    from edge_sel.pack.patch import apply_patch

    if request["pack"] in packs:
        return
    if request["base"] not in packs:
        raise EdgeSelError("the patch is for a pack that this device has not")
    path = device.home / PACK
    apply_patch(packs[request["base"]], patch, request["pack"], path, device.trusted)
    tell(f"wrote {path}: the pack {request['pack'][:12]}")


def _update(
    device: Device, pack: Pack, request: Request, reply: Reply, tell: Callable[[str], None],
    should_stop: Callable[[], str | None],
) -> bytes:  # fmt: skip
    """An update of the round: the same one each time, as a second one would be refused, and its noise average out."""
    from edge_sel.api.fleet import take_part

    kept = device.home / ANSWER
    try:
        before = read_regular(kept, MOST_BYTES)
        if json.loads(tensor_notes(before)["reply"])["round"] == request["round"]:
            tell("sent the update of this round again")
            return before
    except (OSError, ValueError, KeyError):
        pass  # none, or what a power cut left
    state = _read_state(device)
    _require_rounds_left(device, state["updates"])
    statistics = request["kind"] == "statistics"
    if not statistics and not device.deltas:
        raise EdgeSelError("the server asks for a delta, and this device sends none (--deltas allows it)")
    made = take_part(
        pack, device.data, key=device.key, kind=request["kind"], plan=request["plan"], round_name=request["round"],
        privacy=device.privacy, residual=None if statistics else device.home / RESIDUAL, config=device.config,
        environ=device.environ, profile=device.profile, threads=device.threads, max_pixels=device.max_pixels,
        deadline_s=request["seconds"] or None, should_stop=should_stop,
    )  # fmt: skip
    if made.declined is not None:
        reply["declined"] = made.declined[:600]
        tell(f"declined: {made.declined}")
        return reply_bytes(reply)
    message = reply_bytes(reply, made.content, made.signature)
    if made.residual is not None:
        write_durably(device.home / RESIDUAL, made.residual)
    write_json(device.home / STATE, {**state, "updates": state["updates"] + 1})
    write_durably(kept, message)
    joules = "" if made.energy_j is None else f", {made.energy_j:.1f} J {made.energy_source}"
    tell(f"sent {request['kind']} of {made.images} images, {len(message) / 1e6:.2f} MB{joules}")
    return message


def _judge(device: Device, pack: Pack, candidate: dict[str, np.ndarray], request: Request) -> Counts:
    from edge_sel.api.fleet import judge_candidate

    state, given = _read_state(device), tensor_bytes(candidate) + json.dumps(request["classes"]).encode()
    digest = hashlib.sha256(given).hexdigest()
    if state["judged_round"] == request["round"]:
        if state["candidate"] != digest or state["counts"] is None:
            raise EdgeSelError("this device has judged another model in this round")
        return state["counts"]
    _require_rounds_left(device, state["judgements"])
    found = judge_candidate(
        pack, {**pack.weights(), **candidate}, tuple(request["classes"]), device.data, threads=device.threads,
        max_pixels=device.max_pixels, config=device.config, environ=device.environ, profile=device.profile,
    )  # fmt: skip
    counts: Counts = {
        "images": found.images, "right_before": found.right_before, "right": found.right, "won": found.won,
        "lost": found.lost,
    }  # fmt: skip
    news = {"judgements": state["judgements"] + 1, "judged_round": request["round"], "candidate": digest}
    write_json(device.home / STATE, {**state, **news, "counts": counts})
    return counts


def _read_state(device: Device) -> _State:
    path = device.home / STATE
    try:
        state: _State = read_as(_State, read_regular(path, MOST_STATE))
        return state
    except FileNotFoundError:
        return {"updates": 0, "judgements": 0, "judged_round": "", "candidate": "", "counts": None}
    except (OSError, SchemaError) as error:
        raise BadInputError("what is kept between rounds cannot be read", where=f"{path}: {error}") from error


def _require_rounds_left(device: Device, answered: int) -> None:
    if device.most_rounds is not None and answered >= device.most_rounds:
        raise EdgeSelError(f"this device has taken part in {answered} rounds, and may in no more (--most-rounds)")


class Member:
    """A device in a fleet: a stock SuperNode talks to the server, this process answers.

    Args:
        device: what it takes part with.
        server: HOST:PORT.
        authority: certificate to check the server's with.
        tell: is given lines.

    Raises:
        SetupError: Flower is not there, or the folder cannot be written.
        UsageError: another process works in the folder.
    """

    def __init__(self, device: Device, server: str, authority: Path, tell: Callable[[str], None]) -> None:
        require_flower()
        os.environ.update(environment(os.environ, device.home / "flwr"))  # before Flower is imported
        from edge_sel.flower.runtime import DeviceTasks

        self._device, self._tell, secret, port = device, tell, secrets.token_hex(32).encode(), free_port()
        node, secret_file = self._files = device.home / NODE, device.home / SECRET
        try:
            device.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            device.home.chmod(0o700)
        except OSError as error:
            raise SetupError(f"the device's folder cannot be made ({error.strerror})", where=device.home) from error
        self._held = hold_home(device.home)
        for path, content in ((node, node_file(device.key)), (secret_file, secret)):
            path.unlink(missing_ok=True)  # of one that was killed
            write_new(path, content, mode=0o600)
        self._tasks = DeviceTasks(port, secret)
        command = supernode_command(server, authority, node, secret_file, port)
        self._supernode = Supervised(command, dict(os.environ), device.home / LOG, tell)

    def answer_one(self, should_stop: Callable[[], str | None]) -> bool:
        """Answer a message of the server; whether there was one."""
        return self._tasks.answer_one(lambda message: answer(self._device, message, self._tell, should_stop))

    def close(self) -> None:
        """Leave."""
        self._tasks.close()
        self._supernode.stop()
        for path in self._files:
            path.unlink(missing_ok=True)
        self._held.close()


def join(
    device: Device, server: str, authority: Path, tell: Callable[[str], None], alive: Callable[[], None] = lambda: None
) -> None:
    """Take part until SIGTERM or SIGINT; ``alive`` is called all the time.

    Raises:
        SetupError: Flower is not there, or the folder cannot be written.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    member = Member(device, server, authority, tell)
    tell(f"joins the fleet at {server}")

    def should_stop() -> str | None:
        alive()
        return "the device leaves" if stop.is_set() else None

    try:
        while should_stop() is None:
            if not member.answer_one(should_stop):
                stop.wait(POLL_S)
    finally:
        member.close()
