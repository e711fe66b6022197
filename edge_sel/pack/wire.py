"""The wire format of protobuf, as far as ONNX graphs need it: bytes in, fields out; nothing is allocated on their word.

A graph of a pack may come from anybody. Importing ``onnx`` to look at it would take longer than looking.
"""

from __future__ import annotations

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT = 10


class WireError(ValueError):
    """Not what a graph of a pack consists of."""


Field = tuple[int, "int | bytes"]
"""A field's tag, eight times its number plus its kind, and an int (VARINT) or bytes (all others)."""


def read_fields(data: bytes, most: int) -> list[Field]:
    """The fields of a message, in order.

    Args:
        data: the message.
        most: fields; with more it is refused, before they take up memory.

    Raises:
        WireError: cut short, too many fields, or a kind of field that ONNX does not have.
    """
    found: list[Field] = []
    at, end = 0, len(data)
    try:
        while at < end:
            tag = data[at]
            at += 1
            if tag > 127:
                tag, at = read_varint(data, at - 1)
            kind = tag & 7
            if kind == BYTES:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = read_varint(data, at - 1)
                start, at = at, at + size
                found.append((tag, data[start:at]))
            elif kind == VARINT:
                value = data[at]
                at += 1
                if value > 127:
                    value, at = read_varint(data, at - 1)
                found.append((tag, value))
            elif kind in (FIXED32, FIXED64):
                start, at = at, at + (4 if kind == FIXED32 else 8)
                found.append((tag, data[start:at]))
            else:
                raise WireError(f"a field of kind {kind}")
            if len(found) > most:
                raise WireError(f"a message of more than {most} fields")
    except IndexError:
        at = end + 1
    if at > end:
        raise WireError("it is cut short")
    return found


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer of 64 bits, and where it ends."""
    value = 0
    for place, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        value |= (byte & 127) << 7 * place
        if byte < 128:
            if value >= 1 << 64:
                break
            return value, at + place + 1
    raise WireError("a number is cut short or too long")


def signed(value: int) -> int:
    """The same 64 bits as a signed integer."""
    return value - (1 << 64) if value >> 63 else value


def read_integers(fields: list[Field], number: int, most: int) -> list[int]:
    """A repeated integer field, packed or not."""
    found: list[int] = []
    for tag, content in fields:
        if tag >> 3 != number:
            continue
        if isinstance(content, int):
            found.append(signed(content))
            continue
        at = 0
        while at < len(content) and len(found) <= most:
            value, at = read_varint(content, at)
            found.append(signed(value))
    if len(found) > most:
        raise WireError(f"a list of more than {most} numbers")
    return found
