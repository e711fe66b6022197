"""A graph of a pack in plain words, read from protobuf's wire format: only the fields that our exporter writes.

A graph may come from anybody. Nothing is allocated on its word, and importing ``onnx`` would take longer than looking.

Whatever else a graph may hold (functions, sub-graphs, foreign domains, sparse or string tensors, training information)
has fields of its own, so that a closed list of fields refuses it without knowing it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

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


FLOAT, UINT8, INT8, INT32, INT64, BOOL, DOUBLE = 1, 2, 3, 6, 7, 9, 11
ITEM_BYTES = {FLOAT: 4, UINT8: 1, INT8: 1, INT32: 4, INT64: 8, BOOL: 1, DOUBLE: 8}
"""Element types that a pack's tensors may have (``TensorProto.DataType``), and their size."""
MOST_DIMENSIONS = 8
MOST_ITEMS = 64
"""Fields of a small message, numbers of an attribute's list."""
_LONGEST_WORD = 256
CONTRIB = b"com.microsoft"
"""Domain of ONNX Runtime's own operators, which artifacts of onnxruntime-training use."""
_EXTERNAL = 1

Dims = tuple[int | None, ...]
T = TypeVar("T")


class Tensor(NamedTuple):
    """An initializer.

    Attributes:
        name: of the tensor.
        kind: its element type.
        shape: its dimensions.
        external: location, offset and length of its content, if that does not stand in the graph.
        content: the bytes that do.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    external: tuple[str, int, int] | None
    content: bytes


class Value(NamedTuple):
    """A declared input or output; ``None`` for a dimension that is known at run time."""

    name: str
    kind: int
    dims: Dims


class Operator(NamedTuple):
    """A node, without its attributes: these can hold numbers and words only. ``op`` begins with a foreign domain."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class GraphForm(NamedTuple):
    """All that decides whether a graph may be loaded."""

    ir_version: int
    opset: int
    nodes: list[Operator]
    initializers: list[Tensor]
    inputs: list[Value]
    outputs: list[Value]


class MessageForm:
    """Which fields a message may have. A parser takes the last of several, or joins them; so most may come once.

    Args:
        once: kinds of fields by number.
        many: those that may be repeated.
        numbers: kinds of repeated numbers, each of which may be packed too.
    """

    def __init__(self, once: dict[int, int], many: tuple[int, ...] = (), numbers: dict[int, int] | None = None) -> None:
        single = {number << 3 | kind: True for number, kind in once.items()}
        several = [number << 3 | BYTES for number in (*many, *(numbers or {}))]
        listed = [number << 3 | kind for number, kind in (numbers or {}).items()]
        self._single = {**dict.fromkeys([*several, *listed], False), **single}

    def read(self, content: int | bytes, most: int) -> list[Field]:
        """The fields of a message that is of this layout.

        Raises:
            WireError: it is not.
        """
        single, seen = self._single, 0
        fields = read_fields(as_bytes(content), most)
        for tag, _ in fields:
            once = single.get(tag)
            if once is None or (once and seen >> tag & 1):
                raise WireError(f"field {tag >> 3} does not belong here")
            if once:
                seen |= 1 << tag
        return fields


_MODEL = MessageForm({1: VARINT, 2: BYTES, 3: BYTES, 7: BYTES}, (8,))
_OPSET = MessageForm({1: BYTES, 2: VARINT})
_GRAPH = MessageForm({2: BYTES}, (1, 5, 11, 12))
_NODE = MessageForm({3: BYTES, 4: BYTES, 7: BYTES}, (1, 2, 5))
_ATTRIBUTE = MessageForm({1: BYTES, 2: FIXED32, 3: VARINT, 4: BYTES, 20: VARINT}, (), {7: FIXED32, 8: VARINT})
_TENSOR = MessageForm({2: VARINT, 8: BYTES, 9: BYTES, 14: VARINT}, (13,), {1: VARINT})
_ENTRY = MessageForm({1: BYTES, 2: BYTES})
_VALUE = MessageForm({1: BYTES, 2: BYTES})
_TYPE = MessageForm({1: BYTES})
_TENSOR_TYPE = MessageForm({1: VARINT, 2: BYTES})
_SHAPE = MessageForm({}, (1,))
_DIMENSION = MessageForm({1: VARINT, 2: BYTES})


class GraphFormReader:
    """Reads the graphs of one pack. They share many of their nodes and tensors, each of which is read once.

    Args:
        most_nodes: of a graph.
        most_tensors: of a graph's initializers, inputs and outputs, each, and of a node's inputs.
    """

    def __init__(self, most_nodes: int, most_tensors: int) -> None:
        self._most_nodes, self._most_tensors = most_nodes, most_tensors
        self._attributes: set[bytes] = set()
        self._names: dict[bytes, str] = {}
        self._tensors: dict[bytes, Tensor] = {}
        self._values: dict[bytes, Value] = {}
        self._operators: dict[bytes, Operator] = {}

    def read(self, content: bytes, *, contrib: bool = False) -> GraphForm:
        """The form of a serialised ``ModelProto``; with ``contrib`` operators of ``CONTRIB`` may be in it.

        Raises:
            WireError: it is none, or holds what the graphs of a pack do not.
        """
        model = _MODEL.read(content, MOST_ITEMS)
        opset = _standard_opset(model, {b"", CONTRIB} if contrib else {b""})
        graph = _GRAPH.read(_content(model, 7), self._most_nodes + 3 * self._most_tensors + 1)
        nodes, tensors = _all(graph, 1), self._most_tensors
        if len(nodes) > self._most_nodes:
            raise WireError(f"more than {self._most_nodes} nodes")
        for number, what in ((5, "initializers"), (11, "inputs"), (12, "outputs")):
            if len(_all(graph, number)) > tensors:
                raise WireError(f"more than {tensors} {what}")
        values = [[_once(self._values, v, _value) for v in _all(graph, number)] for number in (11, 12)]
        initializers = [_once(self._tensors, tensor, _tensor) for tensor in _all(graph, 5)]
        version = _number(model, 1)
        return GraphForm(
            version, opset, [_once(self._operators, node, self._node) for node in nodes], initializers, *values
        )

    def read_operators(self, content: bytes) -> list[str]:
        """Those of a graph whose inputs may be lists of tensors, and that holds no tensor itself.

        Raises:
            WireError: it is no graph, or holds more.
        """
        model = _MODEL.read(content, MOST_ITEMS)
        _standard_opset(model, {b"", CONTRIB})
        graph = _GRAPH.read(_content(model, 7), self._most_nodes + 3 * self._most_tensors + 1)
        if _all(graph, 5):
            raise WireError("it holds a tensor")
        return [_once(self._operators, node, self._node).op for node in _all(graph, 1)]

    def _node(self, content: bytes) -> Operator:
        domain, op, inputs, outputs = "", "", [], []
        for tag, value in _NODE.read(content, 2 * self._most_tensors + MOST_ITEMS):
            number, raw = tag >> 3, as_bytes(value)
            if number == 1:
                inputs.append(_once(self._names, raw, as_text))
            elif number == 2:
                outputs.append(_once(self._names, raw, as_text))
            elif number == 4:
                op = _once(self._names, raw, as_text)
            elif number == 5 and raw not in self._attributes:
                _check_attribute(raw)
                self._attributes.add(raw)
            elif number == 7 and raw not in (b"", CONTRIB):
                raise WireError("an operator of another domain")
            elif number == 7 and raw:
                domain = f"{CONTRIB.decode()}."
        return Operator(domain + op, tuple(inputs), tuple(outputs))


def _standard_opset(model: list[Field], domains: set[bytes]) -> int:
    """The version of the standard operators; there may be others of these domains."""
    opsets = [_OPSET.read(opset, 2) for opset in _all(model, 8)]
    versions = {_content(opset, 1): _number(opset, 2) for opset in opsets}
    if len(versions) < len(opsets) or b"" not in versions or not versions.keys() <= domains:
        raise WireError("it is not of the standard operators alone")
    return versions[b""]


def _once(known: dict[bytes, T], content: int | bytes, make: Callable[[bytes], T]) -> T:
    raw = as_bytes(content)
    found = known.get(raw)
    if found is None:
        found = known[raw] = make(raw)
    return found


def _tensor(content: bytes) -> Tensor:
    tensor = _TENSOR.read(content, MOST_ITEMS)
    name, kind = as_text(_content(tensor, 8)), _number(tensor, 2)
    shape = read_integers(tensor, 1, MOST_DIMENSIONS)
    if kind not in ITEM_BYTES or min(shape, default=0) < 0:
        raise WireError(f"tensor {name} is of a kind or shape that a pack does not have")
    external = _external(tensor) if _number(tensor, 14) == _EXTERNAL else None
    inside = [value for tag, value in tensor if tag >> 3 == 9]
    if bool(external) == bool(inside) or (not external and _all(tensor, 13)):
        raise WireError(f"tensor {name} must stand either in the graph or outside of it")
    return Tensor(name, kind, tuple(shape), external, _content(tensor, 9))


def _value(content: bytes) -> Value:
    value = _VALUE.read(content, 2)
    tensor = _TENSOR_TYPE.read(_content(_TYPE.read(_content(value, 2), 1), 1), 2)
    dims = [_DIMENSION.read(dim, 1) for dim in _all(_SHAPE.read(_content(tensor, 2), MOST_DIMENSIONS), 1)]
    sizes = tuple(_number(dim, 1) if dim and dim[0][0] >> 3 == 1 else None for dim in dims)
    return Value(as_text(_content(value, 1)), _number(tensor, 1), sizes)


def _check_attribute(content: bytes) -> None:
    """Numbers, words and lists of numbers; never a tensor, a graph or a reference to a function's attribute."""
    try:
        attribute = _ATTRIBUTE.read(content, MOST_ITEMS + 4)
        long = [len(value) for _, value in attribute if isinstance(value, bytes) and len(value) > _LONGEST_WORD]
        if long:
            raise WireError(f"{long[0]} bytes")
    except WireError as error:
        raise WireError(f"an attribute is not of numbers and words ({error})") from error


def _external(tensor: list[Field]) -> tuple[str, int, int]:
    entries = {}
    for entry in _all(tensor, 13):
        fields = _ENTRY.read(entry, 2)
        entries[as_text(_content(fields, 1))] = as_text(_content(fields, 2))
    numbers = [entries.get(key, "") for key in ("offset", "length")]
    known = entries.keys() == {"location", "offset", "length"} and len(_all(tensor, 13)) == len(entries)
    if not known or not all(n.isascii() and n.isdigit() and len(n) < 16 for n in numbers):
        raise WireError("a tensor outside of the graph lacks location, offset or length")
    return entries["location"], int(numbers[0]), int(numbers[1])


def _all(message: list[Field], number: int) -> list[int | bytes]:
    return [value for tag, value in message if tag >> 3 == number]


def _content(message: list[Field], number: int) -> bytes:
    for tag, value in message:
        if tag >> 3 == number:
            return as_bytes(value)
    return b""


def _number(message: list[Field], number: int) -> int:
    for tag, value in message:
        if tag >> 3 == number and isinstance(value, int):
            return signed(value)
    return 0


def as_bytes(value: int | bytes) -> bytes:
    """The content of a field that is no number."""
    if isinstance(value, int):
        raise WireError("a number in the place of a message")
    return value


def as_text(value: bytes) -> str:
    """A name."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise WireError("a name is not UTF-8") from error
