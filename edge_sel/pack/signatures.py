"""Signatures of packs and experts: Ed25519 (RFC 8032) over a prefix of its own for each kind and the exact bytes.

What is signed of a pack is ``manifest.json``, which has the SHA-256 of every other file; of an expert, its whole file.
The signatures lie in a file of their own:

    {"format": 1, "signatures": [{"key": SHA-256 of the public key, 64 digits, "signature": 64 bytes in base64}, …]}
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edge_sel.errors import PackError, UsageError
from edge_sel.pack.keys import TrustedKeys, fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURES = "signatures.json"
MOST_SIGNATURES, MOST_SIGNATURES_BYTES = 16, 16 << 10
FORMAT = 1

SignedKind = Literal["pack", "expert"]
_PREFIX: dict[SignedKind, bytes] = {"pack": b"edge-sel pack manifest 1\0", "expert": b"edge-sel expert 1\0"}
"""Domain separation: a signature of the one is none of the other, nor of anything else that the key signs."""
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_BYTES = 64
"""Of an Ed25519 signature."""


class KeySignature(NamedTuple):
    """One signature, not checked by itself."""

    key: str
    """Fingerprint of the public key."""
    value: bytes


class Signers(NamedTuple):
    """Who signed."""

    fingerprints: tuple[str, ...]
    """Of their public keys: those that are trusted if ``checked``, else all that are named."""
    checked: bool

    def to_json(self) -> dict[str, Any]:
        """As ``run.json`` holds it."""
        return {"fingerprints": list(self.fingerprints), "checked": self.checked}


def find_signers(
    kind: SignedKind, message: bytes, signatures: bytes | None, trusted: TrustedKeys | None, where: object
) -> Signers | None:
    """Who signed; None where nobody did and nobody is asked for.

    Args:
        kind: what ``message`` is.
        message: the exact bytes that are signed.
        signatures: content of the signatures' file; None without one.
        trusted: keys of which one must have signed; None for no check.
        where: for messages.

    Raises:
        PackError: the signatures cannot be read, or none of them is a good one by a trusted key.
    """
    found = () if signatures is None else read_signatures(signatures, where)
    if trusted is None:
        return Signers(tuple(each.key for each in found), checked=False) if found else None
    if not found:
        raise PackError(
            f"the {kind} is not signed, and a signature is required", where=where,
            fix="its maker signs it with `edge-sel pack sign`",
        )  # fmt: skip
    known = [each for each in found if each.key in trusted]
    if not known:
        raise PackError(
            f"the {kind} is signed by {_names(found)}, not by a required key", where=where,
            fix="do not use it, get it from the owner of a required key",
        )  # fmt: skip
    good = tuple(each.key for each in known if _is_good(kind, message, each, trusted))
    if not good:
        what = f"the signature by {_names(known)} is wrong: this {kind} is not what was signed"
        raise PackError(what, where=where, fix="do not use it, fetch it again")
    return Signers(good, checked=True)


def add_signature(
    kind: SignedKind, message: bytes, signatures: bytes | None, key: Ed25519PrivateKey, where: object
) -> bytes:
    """The signatures' file with one by this key, in place of an earlier one by it.

    Raises:
        PackError: the signatures that are there cannot be read.
        UsageError: there are too many.
    """
    name = fingerprint(key.public_key())
    others = () if signatures is None else read_signatures(signatures, where)
    held = [*(each for each in others if each.key != name), KeySignature(name, key.sign(_PREFIX[kind] + message))]
    if len(held) > MOST_SIGNATURES:
        raise UsageError(f"it has {MOST_SIGNATURES} signatures already", where=where, fix=f"make the {kind} again")
    told = [{"key": each.key, "signature": base64.b64encode(each.value).decode()} for each in held]
    return (json.dumps({"format": FORMAT, "signatures": told}, indent=1) + "\n").encode()


def read_signatures(content: bytes, where: object) -> tuple[KeySignature, ...]:
    """The signatures, each by another key; none is checked.

    Raises:
        PackError: it is something else, or of a newer format.
    """
    try:
        body = json.loads(content.decode())
        if body["format"] != FORMAT or type(body["format"]) is not int:
            what = f"{SIGNATURES} has format {str(body['format'])[:20]}, this edge-sel reads {FORMAT}"
            raise PackError(what, where=where, fix="pip install -U edge-sel")
        if body.keys() != {"format", "signatures"} or not isinstance(body["signatures"], list):
            raise ValueError("other keys")
        found = tuple(_read(entry) for entry in body["signatures"])
        if not 1 <= len({each.key for each in found}) == len(found) <= MOST_SIGNATURES:
            raise ValueError("none, too many, or two by one key")
        return found
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(f"{SIGNATURES} is damaged", where=where, fix="fetch it again") from error


def _read(entry: dict[str, Any]) -> KeySignature:
    if entry.keys() != {"key", "signature"} or not _FINGERPRINT.fullmatch(entry["key"]):
        raise ValueError("no signature")
    value = base64.b64decode(entry["signature"], validate=True)
    if len(value) != _BYTES:
        raise ValueError("no signature of Ed25519")
    return KeySignature(entry["key"], value)


def _is_good(kind: SignedKind, message: bytes, signature: KeySignature, trusted: TrustedKeys) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        trusted[signature.key].verify(signature.value, _PREFIX[kind] + message)
    except InvalidSignature:
        return False
    return True


def _names(signatures: Sequence[KeySignature]) -> str:
    return " and ".join(each.key for each in signatures)
