"""What server and device say to each other: each message is one safetensors file, and travels as one value.

One value, as Flower polls for each of them: with every tensor for itself a round took three times as long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np

from edge_sel.arrays import read_tensors, tensor_bytes, tensor_notes
from edge_sel.errors import BadInputError
from edge_sel.pack.manifest_json import MOST_CLASSES
from edge_sel.schema import Longest, SchemaError, Within, checked, parse_json

FORMAT = "edge-sel-fleet-2"
MOST_BYTES = 65 << 20
"""Of a message: an update and its signature."""
MOST_IMAGES = 10**7
_Word = Annotated[str, Longest(64)]
_Count = Annotated[int, Within(0, MOST_IMAGES)]
Task = Literal["update", "judge", "install"]


class Request(TypedDict):
    """What the server asks of a device."""

    format: str
    task: Task
    round: _Word
    pack: _Word
    """Digest of the pack of the round; of ``install``, of the one to make."""
    base: _Word
    """Of ``install``: digest of the pack that the patch is for."""
    kind: Literal["statistics", "delta"]
    plan: _Word
    seconds: Annotated[float, Within(0, 1e7)]
    """That it waits for."""
    classes: Annotated[list[Annotated[str, Longest(400)]], Longest(MOST_CLASSES)]
    """Of the candidate."""


class Counts(TypedDict):
    """What a device's validation images say of a candidate."""

    images: _Count
    right_before: _Count
    right: _Count
    won: _Count
    lost: _Count


class Reply(TypedDict):
    """What a device answers."""

    format: str
    task: Task
    round: _Word
    packs: Annotated[list[_Word], Longest(2)]
    """Digests of those that it has."""
    declined: Annotated[str, Longest(600)] | None
    """Why it does not."""
    counts: Counts | None


class Answer(NamedTuple):
    """A reply that was read."""

    header: Reply
    content: bytes
    """Of the update; empty if there is none."""
    signature: bytes | None


def request_bytes(request: Request, tensors: Mapping[str, np.ndarray] | None = None) -> bytes:
    """The message, with the weights of a candidate that differ from the pack's, or with a patch."""
    return tensor_bytes(tensors or {}, {"request": json.dumps(request)})


def read_request(message: bytes) -> tuple[Request, dict[str, np.ndarray]]:
    """The request, and the candidate or the patch.

    Raises:
        BadInputError: it is none.
    """
    header, tensors = _read(message, "request", Request)
    return header, tensors


def reply_bytes(reply: Reply, content: bytes = b"", signature: bytes | None = None) -> bytes:
    """The message, with an update."""
    parts = {"content": content} if signature is None else {"content": content, "signature": signature}
    return tensor_bytes(
        {name: np.frombuffer(part, np.uint8) for name, part in parts.items()}, {"reply": json.dumps(reply)}
    )


def read_reply(message: bytes, request: Request) -> Answer:
    """A device's answer to this request; the update in it is not checked.

    Raises:
        BadInputError: it is none.
    """
    header, tensors = _read(message, "reply", Reply)
    if (header["task"], header["round"]) != (request["task"], request["round"]):
        raise BadInputError("the reply is to another request")
    if not {"content"} <= tensors.keys() <= {"content", "signature"}:
        raise BadInputError("the reply has other parts")
    if any(part.dtype != np.uint8 for part in tensors.values()):
        raise BadInputError("the reply has no bytes")
    signature = tensors.get("signature")
    return Answer(header, tensors["content"].tobytes(), None if signature is None else signature.tobytes())


def _read(message: bytes, name: str, kind: Any) -> tuple[Any, dict[str, np.ndarray]]:
    if len(message) > MOST_BYTES:
        raise BadInputError(f"a message of more than {MOST_BYTES >> 20} MB")
    try:
        header = checked(kind, parse_json(tensor_notes(message).get(name, "null")))
        if header["format"] != FORMAT:
            raise ValueError("it is of another format")
        return header, read_tensors(message)
    except (ValueError, SchemaError, KeyError) as error:
        raise BadInputError(f"the {name} cannot be read: {str(error)[:200]}") from error
