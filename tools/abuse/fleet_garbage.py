"""What server and devices of a fleet send each other, damaged: messages, updates in them, files of devices."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from abuse.stranger_files import damaged
from edge_sel.arrays import tensor_bytes
from edge_sel.flower.messages import FORMAT, Reply, Request, read_reply, read_request, reply_bytes, request_bytes
from edge_sel.pack.reader import Pack, open_pack

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PACK = Path(__file__).resolve().parents[2] / "edge_sel/pack/assets/digits.edgepack"
REPLY: Reply = {"format": FORMAT, "task": "update", "round": "r", "declined": None, "counts": None}


@cache
def pack() -> Pack:
    """The built-in one."""
    return open_pack(PACK)


@cache
def key() -> Ed25519PrivateKey:
    """Of a device, the same in each process."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(bytes(32))


@cache
def good_update() -> bytes:
    """Sums of thirty images."""
    import numpy as np

    from edge_sel.fleet.header import Origin
    from edge_sel.fleet.statistics import make_statistics

    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, pack().head_features)).astype(np.float32)
    return make_statistics(pack(), features, np.arange(30) % 3, pack().manifest.model.classes, Origin("n", "r"))


def read_fleet(rng: random.Random, here: Path) -> None:
    """A request, a reply with its update, or the file of a device."""
    from edge_sel.fleet.update import check_update
    from edge_sel.flower.keys import card_of, read_cards

    request: Request = {
        "format": FORMAT, "task": "update", "round": "r", "pack": pack().digest, "kind": "statistics", "plan": "last",
        "seconds": 1.0, "classes": list(pack().manifest.model.classes),
    }  # fmt: skip
    what = rng.randrange(4)
    if what == 0:
        _, candidate = read_request(damaged(rng, request_bytes(request, pack().weights())))
        tensor_bytes(candidate)
    elif what == 1:
        read_reply(damaged(rng, reply_bytes(REPLY, bytes(100), bytes(50))), request)
    elif what == 2:
        answer = read_reply(reply_bytes(REPLY, damaged(rng, good_update()), None), request)
        check_update(answer.content, None, pack(), None, "update")
    else:
        path = here / "a.device.json"
        path.write_bytes(damaged(rng, card_of(key())))
        read_cards((path,))
