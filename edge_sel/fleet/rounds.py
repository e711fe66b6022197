"""A server's folder of rounds: every update and every model is kept, and a killed server goes on where it was.

``round-0001/`` holds ``round.json``, ``updates/``, then ``candidate.edgepack`` and ``judgements.json``; a published
model is ``published.edgepack`` beside them, and the pack that the next round begins with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np

from edge_sel.arrays import Arrays, read_tensors, tensor_bytes
from edge_sel.engines.base import Engine
from edge_sel.errors import BadInputError, SetupError, UsageError
from edge_sel.files import cannot_write, read_regular, write_durably, write_json
from edge_sel.fleet.delta import Rule
from edge_sel.fleet.merge import MOST_WEIGHT, Merged, merge_updates, new_pack
from edge_sel.fleet.update import Update, UpdateFiles, check_update, open_updates
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.sign import sign_file
from edge_sel.pack.signatures import TrustedKeys
from edge_sel.pack.weights import signatures_of
from edge_sel.runs.lock import BusyError, hold_lock
from edge_sel.schema import Longest, SchemaError, Within, read_as

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = 1
LOCK, ROUND, UPDATES = ".fleet.lock", "round.json", "updates"
CANDIDATE, PUBLISHED, JUDGEMENTS, VELOCITY = (
    "candidate.edgepack", "published.edgepack", "judgements.json", "velocity.safetensors",
)  # fmt: skip
MOST_BYTES = 16 << 20
State = Literal["open", "candidate", "published", "refused"]


class _Round(TypedDict):
    """``round.json``."""

    format: int
    number: Annotated[int, Within(1, 10**6)]
    name: Annotated[str, Longest(64)]
    pack: Annotated[str, Longest(64)]
    state: State
    why: Annotated[str, Longest(1000)]


class Vote(NamedTuple):
    """What a device's validation images say of the candidate."""

    images: int
    won: int
    """Images that only the candidate has right; ``lost``: that only the pack's model has."""
    lost: int


class RoundFolder:
    """The rounds of one server, held by one process.

    Args:
        folder: made where it is missing.
        first: the pack of the first round; later ones begin with what was published last.
        name: of a new round: a text that no other has.
        devices: public keys of the devices; None: updates need not be signed.

    Raises:
        UsageError: another process holds it, or it is of another pack.
        SetupError: it cannot be written.
        BadInputError: it is damaged.
    """

    def __init__(self, folder: Path, first: Pack, name: str, devices: TrustedKeys | None = None) -> None:
        self.folder, self._devices, self._held = folder, devices, ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(hold_lock(folder / LOCK))
        except BusyError as error:
            raise UsageError(f"{error} holds this fleet", where=folder) from None
        except OSError as error:
            raise SetupError(f"the rounds cannot be held ({error.strerror})", where=folder) from error
        try:
            self._first = self.pack = first
            self._published: dict[str, Path] = {}
            self._go_on(name)
        except BaseException:
            self._held.close()
            raise

    def __enter__(self) -> RoundFolder:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process hold it."""
        self._held.close()

    def _go_on(self, name: str) -> None:
        """With the last round if it has not ended, else with a new one."""
        rounds = sorted(place for place in self.folder.glob("round-*") if (place / ROUND).exists())
        known = [self._read(place) for place in rounds]
        if known and known[0]["pack"] != self._first.digest:
            raise UsageError("the folder has rounds of another pack", where=self.folder, fix="name another folder")
        for place, told in zip(rounds, known, strict=True):
            if told["state"] == "published":
                self._take_over(place / PUBLISHED)
        if not known or known[-1]["state"] in ("published", "refused"):
            number = known[-1]["number"] + 1 if known else 1
            self._round: _Round = {
                "format": FORMAT, "number": number, "name": name, "pack": self.pack.digest, "state": "open", "why": "",
            }  # fmt: skip
            self._write()
        else:
            self._round = known[-1]
        if self._round["pack"] != self.pack.digest:
            raise BadInputError("the last round is of another pack than was published", where=self.place)

    @property
    def number(self) -> int:
        """Of the round, from 1."""
        return self._round["number"]

    @property
    def name(self) -> str:
        """Of the round: updates name it."""
        return self._round["name"]

    @property
    def state(self) -> State:
        """How far the round is."""
        return self._round["state"]

    @property
    def why(self) -> str:
        """Why nothing was published; empty else."""
        return self._round["why"]

    def known(self, digest: str) -> Pack | None:
        """The pack of that digest, if rounds began with it or published it; None for another one."""
        if digest == self._first.digest:
            return self._first
        path = self._published.get(digest)
        return None if path is None else open_pack(path)

    @property
    def place(self) -> Path:
        """The folder of the round."""
        return self.folder / f"round-{self._round['number']:04}"

    def _read(self, place: Path) -> _Round:
        try:
            read: _Round = read_as(_Round, read_regular(place / ROUND, MOST_BYTES))
        except (OSError, ValueError, SchemaError) as error:
            raise BadInputError("a round cannot be read", where=f"{place / ROUND}: {error}",
                                fix="restore it, or remove the folder of the round") from error  # fmt: skip
        return read

    def _write(self, **changes: Any) -> None:
        round_: Any = {**self._round, **changes}
        try:
            (self.place / UPDATES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.place, error) from error
        write_json(self.place / ROUND, round_)
        self._round = round_

    # Updates

    def add(self, content: bytes, signature: bytes | None, where: object = "update") -> Update:
        """Check an update and keep it. The same one again counts once.

        Raises:
            BadInputError: it cannot be used, is of another round, or a second one of its device.
            SetupError: it cannot be written.
        """
        update = check_update(content, signature, self.pack, self._devices, where)
        if self.state != "open":
            raise BadInputError("the round takes no more updates", where=where)
        if update.round != self.name:
            raise BadInputError("the update is of another round", where=where)
        path = self.place / UPDATES / f"{update.device[:32]}.update"
        if path.exists():
            if read_regular(path, len(content) + 1) == content:
                return update
            raise BadInputError(f"a second update of device {update.device[:16]}", where=where)
        if signature is not None:
            write_durably(signatures_of(path), signature)
        write_durably(path, content)
        return update

    def updates(self) -> tuple[UpdateFiles, list[str]]:
        """Those that were kept, and a line for each that can no longer be read."""
        return open_updates(sorted((self.place / UPDATES).glob("*.update")), self.pack, self._devices)

    # Merging and publishing

    def merge(self, engine: Engine, *, min_devices: int, forget: float, rule: Rule = "mean") -> Merged:
        """Make the candidate of the updates that came.

        Args:
            engine: to look at the server's images.
            min_devices: fewer make none; the round stays open.
            forget: share of what the pack's model knew of the server's images that may be lost.
            rule: of deltas.

        Raises:
            BadInputError: there are too few, or they cannot be merged.
        """
        good, _ = self.updates()
        if len(good) < min_devices:
            raise BadInputError(f"{len(good)} devices took part, {min_devices} are needed", where=self.place)
        merged = merge_updates(self.pack, good, engine, rule=rule, velocity=self._velocity(rule))
        objection = merged.objection(forget)
        write_json(self.place / "merged.json", merged.as_dict())
        if objection is not None:
            self._write(state="refused", why=objection)
            return merged
        if merged.velocity:
            write_durably(self.place / VELOCITY, tensor_bytes(merged.velocity))
        new_pack(self.pack, merged).save(self.place / CANDIDATE)
        self._write(state="candidate")
        return merged

    def _velocity(self, rule: Rule) -> Arrays | None:
        """Of the last round that was published with one."""
        if rule != "momentum":
            return None
        places = [self.folder / f"round-{number:04}" for number in range(self.number - 1, 0, -1)]
        found = next((p / VELOCITY for p in places if (p / PUBLISHED).exists() and (p / VELOCITY).exists()), None)
        try:
            return None if found is None else read_tensors(read_regular(found, 1 << 30))
        except (OSError, ValueError) as error:
            raise BadInputError("the velocity cannot be read", where=f"{found}: {error}") from error

    def candidate(self) -> Pack:
        """What was merged.

        Raises:
            BadInputError: nothing was.
        """
        if self.state != "candidate":
            raise BadInputError("the round has no candidate", where=self.place)
        return open_pack(self.place / CANDIDATE)

    def publish(self, votes: Mapping[str, Vote], key: Ed25519PrivateKey | None = None) -> bool:
        """End the round: the candidate becomes the pack of the next one if it is better on the devices' images.

        Args:
            votes: by device; without any, what ``merge`` found counts alone.
            key: to sign the new pack with.

        Returns:
            Whether it was published; ``why`` tells why not.
        """
        self.candidate()
        write_json(self.place / JUDGEMENTS, {device: vote._asdict() for device, vote in votes.items()})
        won, lost = counted(list(votes.values()))
        if votes and won <= lost:
            self._write(state="refused", why=f"of the devices' validation images it wins {won:g} and loses {lost:g}")
            return False
        published = self.place / PUBLISHED
        open_pack(self.place / CANDIDATE).save(published)
        if key is not None:
            sign_file(published, key)
        self._write(state="published")
        self._take_over(published)
        return True

    def _take_over(self, published: Path) -> None:
        self.pack = open_pack(published)
        self._published[self.pack.digest] = published

    def next_round(self, name: str) -> None:
        """Begin another one."""
        if self.state not in ("published", "refused"):
            raise UsageError("the round has not ended", where=self.place)
        self._go_on(name)


def counted(votes: Sequence[Vote]) -> tuple[int, int]:
    """Images won and lost by all; a device counts for a bounded number of images, so that none outvotes the others."""
    sane = [vote for vote in votes if 0 <= vote.won + vote.lost <= vote.images and min(vote.won, vote.lost) >= 0]
    if not sane:
        return 0, 0
    most = MOST_WEIGHT * float(np.median([vote.images for vote in sane]))
    factors = [min(1.0, most / max(vote.images, 1)) for vote in sane]
    won, lost = (round(sum(f * vote[place] for f, vote in zip(factors, sane, strict=True))) for place in (1, 2))
    return won, lost
