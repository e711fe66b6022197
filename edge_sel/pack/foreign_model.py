"""An ONNX file of anybody: what it would take, told by a small reader before any library that executes it sees it.

Field numbers are those of ``onnx.proto``. Messages are views of the file, so nothing is copied; what the reader does
not know is left to ONNX, whose checks are of form and not of cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePath
from typing import NamedTuple

from edge_sel.files import regular_size
from edge_sel.pack.graph_form import WireError, read_fields, read_integers

MOST_FILE_BYTES = 2 << 30
"""What protobuf can read."""
MOST_NODES = 20_000
"""With every function called; the largest published classifiers have 3 000."""
MOST_FUNCTIONS, MOST_DEPTH = 2_000, 50
MOST_TENSORS = 20_000
MOST_FIELDS = 4 * (MOST_NODES + MOST_TENSORS)
MOST_IMAGE_ELEMENTS = 1 << 26
"""Of an input whose size the file tells: an image of 4 096 pixels aside has 50 million."""
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2}
_CONTENT = (4, 5, 6, 7, 9, 10, 11)
"""Fields of a tensor that hold its numbers."""
_WITHOUT_INPUT = ("Constant", "RandomNormal", "RandomUniform")
_STANDARD = (b"", b"ai.onnx")


class OutsideError(WireError):
    """A tensor that stands in another file cannot be read from there."""


Message = list[tuple[int, "int | bytes"]]


class Survey(NamedTuple):
    """What is in the file.

    Attributes:
        operators: of all nodes, with their domains.
        nodes: when every function is put in the place of its calls.
        weight_bytes: of all tensors, inside and outside of the file.
        holds_graph: an operator that holds a graph, such as ``Loop``; empty for none.
        metadata: texts by key; of a key that occurs twice the last one, as ONNX Runtime takes it.
    """

    operators: frozenset[str]
    nodes: int
    weight_bytes: int
    holds_graph: str
    metadata: dict[str, str]


def survey_model(content: bytes, folder: Path | None = None) -> Survey:
    """Look at a serialised ``ModelProto``.

    Args:
        content: of the file.
        folder: where tensors may stand that are outside of the file; None where there may be none.

    Raises:
        WireError: it is no model, or takes more than any classifier; one line.
    """
    return _Surveyor(folder).look(content)


class _Surveyor:
    def __init__(self, folder: Path | None) -> None:
        self._folder, self._bytes, self._tensors = folder, 0, 0
        self._operators: set[str] = set()
        self._holds_graph = ""
        self._functions: dict[tuple[bytes, bytes], list[Message]] = {}
        self._costs: dict[tuple[bytes, bytes], int] = {}

    def look(self, content: bytes) -> Survey:
        model = read_fields(memoryview(content), MOST_FIELDS)  # type: ignore[arg-type]  # read as bytes are
        if len(_all(model, 7)) != 1:
            raise WireError("it has no graph, or several")
        if not any(_text(read_fields(opset, 8), 1) in _STANDARD for opset in _all(model, 8)):
            raise WireError("it names no set of standard operators")
        functions = [read_fields(each, MOST_FIELDS) for each in _all(model, 25)]
        if len(functions) > MOST_FUNCTIONS:
            raise WireError(f"it has more than {MOST_FUNCTIONS} functions")
        for function in functions:
            nodes = [read_fields(node, MOST_TENSORS) for node in _all(function, 7)]
            self._functions[_text(function, 10), _text(function, 1)] = nodes
        graph = read_fields(_all(model, 7)[0], MOST_FIELDS)
        for tensor in _all(graph, 5):
            self._tensor(tensor)
        if _all(graph, 15):
            raise WireError("it holds a sparse tensor")
        weights = {_text(read_fields(tensor, MOST_FIELDS), 8) for tensor in _all(graph, 5)}
        for value in _all(graph, 11):
            self._input(value, weights)
        nodes = [read_fields(node, MOST_TENSORS) for node in _all(graph, 1)]
        if not nodes or not _all(graph, 12):
            raise WireError("it has no node, or no output")
        count = self._cost(nodes, 0)
        entries = [read_fields(entry, 8) for entry in _all(model, 14)[:MOST_TENSORS]]
        metadata = {_text(e, 1).decode("utf-8", "replace"): _long(e, 2).decode("utf-8", "replace") for e in entries}
        return Survey(frozenset(self._operators), count, self._bytes, self._holds_graph, metadata)

    def _cost(self, nodes: list[Message], depth: int) -> int:
        """How many nodes these become, and a look at each."""
        if depth > MOST_DEPTH:
            raise WireError("its functions call each other without end, or too deeply")
        count = 0
        for node in nodes:
            count += self._node(node, depth)
            if count > MOST_NODES:
                raise WireError(f"it has more than {MOST_NODES} nodes")
        return count

    def _node(self, node: Message, depth: int) -> int:
        operator, domain = _text(node, 4), _text(node, 7)
        name = operator.decode("utf-8", "replace")[:80]
        self._operators.add(name if domain in _STANDARD else f"{domain.decode('utf-8', 'replace')[:80]}.{name}")
        for attribute in _all(node, 5):
            self._attribute(attribute, name)
        key = (domain, operator)
        if key in self._functions:
            if key not in self._costs:
                self._costs[key] = self._cost(self._functions[key], depth + 1)
            return self._costs[key]
        if not operator or not _all(node, 2) or not (_all(node, 1) or name in _WITHOUT_INPUT):
            raise WireError(f"a node {name} has no input or no output")
        return 1

    def _attribute(self, content: bytes, operator: str) -> None:
        attribute = read_fields(content, MOST_FIELDS)
        if _all(attribute, 6) or _all(attribute, 11):
            self._holds_graph = self._holds_graph or operator
        if _all(attribute, 22) or _all(attribute, 23):
            raise WireError("it holds a sparse tensor")
        for tensor in (*_all(attribute, 5), *_all(attribute, 10)):
            self._tensor(tensor)

    def _tensor(self, content: bytes) -> None:
        """That a tensor's numbers are there, as many as its shape says."""
        self._tensors += 1
        if self._tensors > MOST_TENSORS:
            raise WireError(f"it has more than {MOST_TENSORS} tensors")
        tensor = read_fields(content, MOST_FIELDS)
        name = _text(tensor, 8).decode("utf-8", "replace")[:80]
        dims = read_integers(tensor, 1, 16)
        kind = next((value for tag, value in tensor if tag >> 3 == 2 and isinstance(value, int)), 0)
        elements = prod(dims)
        if min(dims, default=0) < 0:
            raise WireError(f"tensor {name} has a negative size")
        if any(value == 1 for tag, value in tensor if tag >> 3 == 14):
            stored = self._outside(tensor, name)
            if elements * _ITEM_BYTES.get(kind, 1) > stored:
                raise WireError(f"tensor {name} is larger than the file that holds it")
            stored = elements * _ITEM_BYTES.get(kind, 1)
        else:
            stored = sum(1 if isinstance(value, int) else len(value) for tag, value in tensor if tag >> 3 in _CONTENT)
            raw = sum(len(value) for tag, value in tensor if tag >> 3 == 9 and not isinstance(value, int))
            if elements > 2 * stored or (raw and kind in _ITEM_BYTES and raw != elements * _ITEM_BYTES[kind]):
                raise WireError(f"tensor {name} of {elements} elements does not hold as many")
        self._bytes += stored
        if self._bytes > MOST_FILE_BYTES:
            raise WireError(f"its tensors take more than {MOST_FILE_BYTES >> 30} GB")

    def _outside(self, tensor: Message, name: str) -> int:
        """Bytes of the file beside the model that holds it."""
        entries = [read_fields(entry, 4) for entry in _all(tensor, 13)]
        fields = {_text(entry, 1): _text(entry, 2).decode("utf-8", "replace") for entry in entries}
        location = PurePath(fields.get(b"location", ""))
        if self._folder is None:
            raise WireError(f"tensor {name} stands in another file")
        if not location.name or location.is_absolute() or ".." in location.parts:
            raise OutsideError(f"tensor {name} stands in a file that is not beside the model")
        try:
            return regular_size(self._folder / location)
        except OSError as error:
            raise OutsideError(f"tensor {name}: {location}: {error.strerror or error}") from error

    def _input(self, content: bytes, weights: set[bytes]) -> None:
        value = read_fields(content, 64)
        if _text(value, 1) in weights:
            return
        sizes = [size for kind in _all(value, 2) for size in _dims(kind)]
        if prod(size for size in sizes if size > 0) > MOST_IMAGE_ELEMENTS:
            raise WireError(f"an input of {'×'.join(map(str, sizes))} is no image")


def _dims(kind: bytes) -> Iterator[int]:
    """Sizes of a type that is a tensor's, as far as the file tells them."""
    for tensor in _all(read_fields(kind, 64), 1):
        for shape in _all(read_fields(tensor, 64), 2):
            for dim in _all(read_fields(shape, 64), 1):
                yield from read_integers(read_fields(dim, 64), 1, 4)


def _all(message: Message, number: int) -> list[bytes]:
    """The messages or texts of a field."""
    return [value for tag, value in message if tag >> 3 == number and not isinstance(value, int)]


def _text(message: Message, number: int) -> bytes:
    return _long(message, number)[:4096]


def _long(message: Message, number: int) -> bytes:
    found = _all(message, number)
    return bytes(found[-1]) if found else b""
