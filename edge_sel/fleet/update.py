"""What a device sends: one safetensors file, signed beside it like an expert, and checked before it counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from edge_sel.arrays import read_tensors, tensor_notes
from edge_sel.errors import BadInputError, EdgeSelError
from edge_sel.files import read_regular, write_durably
from edge_sel.fleet.delta import Delta, delta_of
from edge_sel.fleet.header import FORMAT, LEAST_IMAGES, Header
from edge_sel.fleet.statistics import sums_of
from edge_sel.pack.reader import Pack
from edge_sel.pack.signatures import Signers, TrustedKeys, add_signature, find_signers
from edge_sel.pack.weights import read_beside, signatures_of
from edge_sel.schema import SchemaError, checked, parse_json
from edge_sel.sel.federated import DeviceSums

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MOST_BYTES = 64 << 20


class Update(NamedTuple):
    """What a device sent, checked."""

    kind: Literal["statistics", "delta"]
    sums: DeviceSums | None
    """Of kind ``statistics``."""
    delta: Delta | None
    """Of kind ``delta``."""
    plan: str | None
    """Of kind ``delta``."""
    classes: tuple[str, ...]
    """Those of the pack, then new ones."""
    images: int
    device: str
    """Fingerprint of its key; of an unsigned update a hash of the file."""
    signed: bool
    round: str
    nonce: str
    energy_j: float | None
    energy_source: str
    privacy: dict[str, float] | None
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For people and programs: what leaves a device."""
        told: dict[str, Any] = {"kind": self.kind, "images": self.images}
        if self.sums is not None:
            counts = dict(zip(self.classes, self.sums.counts.tolist(), strict=True))
            told |= {"counts": counts, "columns": len(self.sums.gram) - 1}
        if self.delta is not None:
            told |= {"plan": self.delta.plan, "numbers": self.delta.sent, "of": self.delta.size}
        return told | {
            "bytes": self.bytes, "device": self.device, "signed": self.signed, "energy_j": self.energy_j,
            "energy_source": self.energy_source, "privacy": self.privacy,
        }  # fmt: skip


class UpdateFiles(Sequence[Update]):
    """Updates that stay in their files: each is read, and checked again, when it is asked for.

    So many devices take the memory of one.
    """

    def __init__(self, pack: Pack, devices: TrustedKeys | None) -> None:
        self._pack, self._keys = pack, devices
        self._files: list[tuple[Path, Update]] = []

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: Any) -> Any:
        path, seen = self._files[place]
        update = read_update(path, self._pack, self._keys)
        if (update.nonce, update.device, update.bytes) != (seen.nonce, seen.device, seen.bytes):
            raise BadInputError("the update changed while it was read", where=path, fix="merge again")
        return update

    def heads(self) -> list[Update]:
        """All of them, without their numbers."""
        return [seen for _, seen in self._files]

    def add(self, path: Path) -> str | None:
        """Read and check one more; the line that tells why it cannot be used."""
        try:
            update = read_update(path, self._pack, self._keys)
        except EdgeSelError as error:
            return str(error)
        if any(update.device == seen.device for _, seen in self._files):
            return f"a second update of device {update.device[:16]}: {path}"
        self._files.append((path, update._replace(sums=None, delta=None)))
        return None


def open_updates(paths: Iterable[Path], pack: Pack, devices: TrustedKeys | None) -> tuple[UpdateFiles, list[str]]:
    """Updates of different devices, and a line for each that cannot be used."""
    found = UpdateFiles(pack, devices)
    refused = [line for path in paths if (line := found.add(path)) is not None]
    return found, refused


def write_update(path: Path, content: bytes, key: Ed25519PrivateKey | None) -> bytes | None:
    """Write it, and its signature beside it, which is returned.

    Raises:
        SetupError: it cannot be written.
    """
    write_durably(path, content)
    beside = signatures_of(path)
    if key is None:
        beside.unlink(missing_ok=True)  # of an earlier one
        return None
    signature = sign_update(content, key, path)
    write_durably(beside, signature)
    return signature


def sign_update(content: bytes, key: Ed25519PrivateKey, where: object = None) -> bytes:
    """The content of the file of signatures."""
    return add_signature("update", content, None, key, where)


def read_update(path: Path, pack: Pack, devices: TrustedKeys | None) -> Update:
    """Read and check an update, before anything is added to anything.

    Args:
        path: of the file.
        pack: that it must be of.
        devices: public keys of which one must have signed it; None: it need not be signed.

    Raises:
        BadInputError: it is none, of another pack, damaged, out of its bounds, or not signed as required.
    """
    try:
        content, signature = read_regular(path, MOST_BYTES), read_beside(path)
    except (OSError, ValueError) as error:
        raise BadInputError("the update cannot be read", where=f"{path}: {error}") from error
    return check_update(content, signature, pack, devices, path)


def check_update(
    content: bytes, signature: bytes | None, pack: Pack, devices: TrustedKeys | None, where: object
) -> Update:
    """As ``read_update``, of what a network brought."""
    if len(content) > MOST_BYTES:
        raise BadInputError(f"an update of more than {MOST_BYTES >> 20} MB", where=where)
    signers: Signers | None = find_signers("update", content, signature, devices, where)
    try:
        header: Header = checked(Header, parse_json(tensor_notes(content).get("update", "null")))
        _check_header(header, pack)
        tensors = read_tensors(content)
        sums = sums_of(tensors, header, pack) if header["kind"] == "statistics" else None
        delta = delta_of(tensors, header, pack) if header["kind"] == "delta" else None
    except (ValueError, SchemaError, KeyError) as error:
        raise BadInputError(f"the update cannot be used: {str(error)[:200]}", where=where) from error
    device = signers.fingerprints[0] if signers and devices is not None else hashlib.sha256(content).hexdigest()
    asked = header["privacy"]
    privacy = None if asked is None else {"epsilon": asked["epsilon"], "delta": asked["delta"]}
    return Update(
        header["kind"], sums, delta, header["plan"], tuple(header["classes"]), header["images"], device,
        devices is not None, header["round"], header["nonce"], header["energy_j"], header["energy_source"], privacy,
        len(content),
    )  # fmt: skip


def _check_header(header: Header, pack: Pack) -> None:
    known, classes = pack.manifest.model.classes, header["classes"]
    if header["format"] != FORMAT:
        raise ValueError("it is of another format")
    if header["pack"] != pack.digest:
        raise ValueError("it is of another pack")
    if header["images"] < LEAST_IMAGES:
        raise ValueError(f"it is of fewer than {LEAST_IMAGES} images")
    if tuple(classes[: len(known)]) != known or len(set(classes)) != len(classes):
        raise ValueError("its classes are not the pack's, nor these and more")
    if not all(name.isprintable() and name.strip() == name and name for name in classes):
        raise ValueError("its classes have names that nobody can read")
