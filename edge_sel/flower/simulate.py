"""A whole fleet on one machine: the stock SuperLink, a stock SuperNode for each device, and rounds between them.

The SuperNodes are processes of their own; what the devices do is done by one process, one device after the other.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_sel.errors import DataError
from edge_sel.files import write_new
from edge_sel.flower.client_app import Device, Member
from edge_sel.flower.keys import CARD_SUFFIX, card_of, make_home, read_cards
from edge_sel.flower.processes import free_port, require_flower
from edge_sel.flower.round import RoundOptions, Tell
from edge_sel.flower.server_app import Ended, serve

if TYPE_CHECKING:
    from edge_sel.data.dataset import ImageSet
    from edge_sel.pack.reader import Pack

PACK, KEY = "model.edgepack", "key.pem"


def owners(labels: np.ndarray, devices: int, skew: float, seed: int) -> np.ndarray:
    """int[N]: the device of each image; of each class a device has a share that a Dirichlet distribution draws.

    Args:
        labels: int[N].
        devices: how many.
        skew: concentration: large values give each device the same share, small ones few classes.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([skew] * devices, int(labels.max()) + 1)
    return np.array([rng.choice(devices, p=shares[label]) for label in labels])


def part_images(images: ImageSet, folder: Path, devices: int, skew: float, seed: int) -> list[Path]:
    """A folder for each device, with ``images`` in the size of the pack's network."""
    from edge_sel.data.shifts import write_folder

    owner, found = owners(images.labels, devices, skew, seed), []
    for device in range(devices):
        found.append(folder / f"device-{device + 1:02}")
        rows = np.flatnonzero(owner == device)
        if not len(rows):
            raise DataError(
                f"device {device + 1} has no images", fix="take fewer devices, more images or a larger --skew"
            )
        write_folder(images.subset(rows), found[-1] / "images")
    return found


def simulate(
    pack: Pack, images: ImageSet, home: Path, *, devices: int, skew: float, seed: int, rounds: int,
    options: RoundOptions, privacy: tuple[float, float] | None, tell: Tell,
) -> list[Ended]:  # fmt: skip
    """Hold rounds of so many devices on this machine; each has its part of the images.

    Args:
        pack: of the first round.
        images: of all devices.
        home: folder for everything, which is made.
        devices: how many.
        skew: see ``owners``.
        seed: of the parts.
        rounds: how many.
        options: what they are to be.
        privacy: (ε, δ) of noise that each device adds.
        tell: is given lines.
    """
    from edge_sel.pack.signatures import make_key, read_private_key

    require_flower()
    folders, shared, server = part_images(images, home, devices, skew, seed), home / PACK, home / "server"
    pack.save(shared)
    for folder in folders:
        make_key(folder / KEY, folder / "key.pub.pem")
        write_new(folder / f"own{CARD_SUFFIX}", card_of(read_private_key(folder / KEY)), mode=0o644)
    authority, address = make_home(server, "127.0.0.1").authority, f"127.0.0.1:{free_port()}"
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    work = spawn.Process(
        target=_work, args=(folders, shared, address, authority, options.threads, privacy, stop), name="devices"
    )

    try:
        return serve(
            pack, server, address, read_cards(tuple(folders)), rounds=rounds, options=options, listen="127.0.0.1",
            tell=tell, ready=work.start,
        )  # fmt: skip
    finally:
        stop.set()
        if work.pid is not None:
            work.join(60)
            work.kill()


def _work(
    folders: list[Path], shared: Path, address: str, authority: Path, threads: int,
    privacy: tuple[float, float] | None, stop: Event,
) -> None:  # fmt: skip
    """What the devices do, in a process of its own: Flower knows one program's identity in a process."""
    from edge_sel.pack.signatures import read_private_key

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server's process says when it ends
    members: list[Member] = []

    def why() -> str | None:
        return "the fleet ends" if stop.is_set() else None

    def answer_all(wait_s: float) -> None:
        if not any([member.answer_one(why) for member in members]):
            stop.wait(wait_s)

    try:
        for folder in folders:
            key = read_private_key(folder / KEY)
            device = Device(
                shared, folder / "images", folder / "home", key, privacy=privacy, threads=threads, deltas=True
            )
            members.append(Member(device, address, authority, lambda line: None))
            answer_all(0.0)
        while not stop.is_set() and multiprocessing.parent_process().is_alive():  # type: ignore[union-attr]
            answer_all(0.5)
    finally:
        leaving = [threading.Thread(target=member.close) for member in members]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join()
