"""Give a network its batch normalisation back, which its exporter has folded into the convolutions.

What a device adapts first, and most cheaply, is the statistics of its layers. A folded file has none. So each
convolution gets a normalisation again, with the statistics of the calibration images, and with the scale and shift
that undo it: the network computes what it did before. Where nothing could be folded into, as behind an activation,
exporters write a normalisation as a product and a sum; these two become one again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

from edge_sel.data.dataset import ImageSet, images_at_once, normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import BATCH, Forward, Node
from edge_sel.graphs.plans import head_layers
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.heads import deepened

EPSILON = 1e-5
_PARTS = ("scale", "shift", "mean", "variance")
IMAGES, _CHUNK = 256, 16
_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "Mish")


class Moments(NamedTuple):
    """Of each channel [C] of a tensor, over images and pixels."""

    mean: np.ndarray
    variance: np.ndarray


class _Place(NamedTuple):
    """Where a normalisation was: ``y = factor·x + offset`` for each channel.

    Attributes:
        node: that makes y: the convolution that it was folded into, or the sum.
        product: that multiplies by the factor; None where it was folded.
        base: what its weights are to be called.
    """

    node: Node
    product: Node | None
    base: str

    @property
    def measured(self) -> str:
        """The tensor whose moments are wanted: y of a convolution, x otherwise."""
        return self.product.inputs[0] if self.product else self.node.outputs[0]


def is_folded(forward: Forward) -> bool:
    """Whether nothing is normalised over images, but convolutions have biases, as in a folded network."""
    return bool(_places(forward)) and not any(node.op in _NORMS for node in forward.nodes)


def unfold(source: Source, images: ImageSet | None, rng: np.random.Generator) -> Source:
    """The same classifier with a batch normalisation where there was one.

    Args:
        source: folded, see ``is_folded``.
        images: whose statistics the layers get; without any, a mean of 0 and a variance of 1.
        rng: chooses at most ``IMAGES`` of them.
    """
    forward = source.forward
    places = _places(forward)
    if images is None:
        sizes = {place.measured: forward.shape(place.measured)[1] or 1 for place in places}
        moments = {name: Moments(np.zeros(size), np.ones(size)) for name, size in sizes.items()}
    else:
        moments = _measure(forward, places, images, source.info, rng)
    return deepened(_with_norms(source, places, moments))


def _places(forward: Forward) -> list[_Place]:
    """In forward order."""
    readers: dict[str, list[Node]] = {}
    for node in forward.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    pairs = [place for node in forward.nodes if (place := _pair(forward, node, readers))]
    normalised = {place.measured for place in pairs}
    for node in reversed(forward.nodes):  # what is normalised behind an activation was not before it, too
        if node.op in _ACTIVATIONS and node.outputs[0] in normalised:
            normalised.add(node.inputs[0])
    found = [_Place(node, None, node.inputs[1].removesuffix(".weight")) for node in _convolutions(forward)
             if node.outputs[0] not in normalised]  # fmt: skip
    order = {id(node): number for number, node in enumerate(forward.nodes)}
    return sorted([*pairs, *found], key=lambda place: order[id(place.node)])


def _pair(forward: Forward, node: Node, readers: Mapping[str, list[Node]]) -> _Place | None:
    """A product and the sum that alone reads it, both with a weight for each channel."""
    factor = _per_channel(forward, node) if node.op == "Mul" else None
    after = readers.get(node.outputs[0], [])
    if factor is None or len(after) != 1 or after[0].op != "Add" or _per_channel(forward, after[0]) is None:
        return None
    x = node.inputs[0] if node.inputs[1] == factor else node.inputs[1]
    return _Place(after[0], replace(node, inputs=(x, factor)), factor)


def _per_channel(forward: Forward, node: Node) -> str | None:
    """The weight of an operator on a map, if it is one number for each channel."""
    shape = forward.shape(node.outputs[0])
    given = [name for name in node.inputs if name in forward.parameters]
    if len(shape) != 4 or len(given) != 1:
        return None
    *lead, channels, height, width = (1, 1, *forward.initializers[given[0]].shape)[-4:]
    return given[0] if (height, width) == (1, 1) and set(lead) <= {1} and channels == shape[1] else None


def _convolutions(forward: Forward) -> list[Node]:
    """Those that had a normalisation: not the head, nor what works on one pixel, as a squeeze-and-excite block does.

    In a network that also normalises layers, as transformers do, it stood before an activation.
    """
    only_active = any(node.op == "LayerNormalization" for node in forward.nodes)
    active = {name for node in forward.nodes if node.op in _ACTIVATIONS for name in node.inputs}
    head = {layer.outputs for layer in head_layers(forward)}
    return [
        node for node in forward.nodes
        if node.op == "Conv" and len(node.inputs) == 3 and {*node.inputs[1:]} <= forward.parameters
        and forward.shape(node.outputs[0])[2:] != (1, 1) and node.outputs not in head
        and (node.outputs[0] in active or not only_active)
    ]  # fmt: skip


def _measure(
    forward: Forward, places: Sequence[_Place], images: ImageSet, info: WarmupInfo, rng: np.random.Generator
) -> dict[str, Moments]:
    """Of what each place measures."""
    b = Builder()
    outputs = []
    for node in forward.nodes:
        b.copy(node)
    for y in dict.fromkeys(place.measured for place in places):
        axes = b.ints(0, 2, 3)
        mean = b.op("ReduceMean", y, axes, keepdims=1)
        centred = b.op("Sub", y, mean)
        variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes, keepdims=0)
        b.op("Squeeze", mean, axes, name=f"mean::{y}")
        b.op("Identity", variance, name=f"variance::{y}")
        outputs += [f"mean::{y}", f"variance::{y}"]
    image = helper.make_tensor_value_info(forward.input, TensorProto.FLOAT, [BATCH, *forward.shape(forward.input)[1:]])
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in outputs]
    graph = b.model([image], declared, forward.initializers, "moments")
    session = OrtEngine().session(graph.SerializeToString(), {})
    rows = rng.permutation(len(images))[:IMAGES]
    chunks = np.array_split(rows, -(-len(rows) // images_at_once(_CHUNK, info.image_size)))
    found = [session.run(outputs, {forward.input: normalise(images.read(c), info.mean, info.std)}) for c in chunks]
    share = np.array([len(chunk) for chunk in chunks])[:, None] / len(rows)
    moments = {}
    for place, name in enumerate(outputs[::2]):
        means, variances = (np.stack([f[2 * place + k] for f in found]).astype(np.float64) for k in (0, 1))
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        moments[name.removeprefix("mean::")] = Moments(mean, variance)
    return moments


def _with_norms(source: Source, places: Sequence[_Place], moments: Mapping[str, Moments]) -> Source:
    forward = source.forward
    initializers, shapes, weights = dict(forward.initializers), dict(forward.shapes), dict(source.weights)
    parameters, per_image = set(forward.parameters), set(forward.per_image)
    by_node = {id(place.node): place for place in places}
    products = {place.product.outputs[0] for place in places if place.product}
    nodes = []
    for node in forward.nodes:
        place = by_node.get(id(node))
        if place is None:
            nodes += [] if node.outputs[0] in products else [node]
            continue
        mean, variance = moments[place.measured]
        spread = np.sqrt(variance + EPSILON)
        if place.product is None:
            x, weight, bias = node.inputs
            gone = [bias]
            plain = f"{node.outputs[0]}::plain"
            nodes.append(replace(node, inputs=(x, weight), outputs=(plain,)))
            shapes[plain] = shapes[node.outputs[0]]
            per_image.add(plain)
            values = (spread, mean, mean - initializers[bias], variance)
        else:
            plain, factor = place.product.inputs
            gone = [factor, next(name for name in node.inputs if name in forward.parameters)]
            by, offset = (initializers[name].reshape(-1) for name in gone)
            values = (by * spread, by * mean + offset, mean, variance)
        fresh = dict(zip((f"{place.base}.norm.{part}" for part in _PARTS), values, strict=True))
        fresh = {name: np.ascontiguousarray(value, np.float32) for name, value in fresh.items()}
        inputs, name = (plain, *fresh), f"{node.name}::norm"
        nodes.append(Node("BatchNormalization", inputs, node.outputs, {"epsilon": EPSILON}, name))
        shapes |= {name: value.shape for name, value in fresh.items()}
        parameters = (parameters - {*gone}) | {*list(fresh)[:2]}
        for given in (initializers, weights):
            for name in gone:
                del given[name]
            given |= fresh
    forward = replace(forward, nodes=tuple(nodes), initializers=initializers, shapes=shapes,
                      parameters=frozenset(parameters), per_image=frozenset(per_image))  # fmt: skip
    return replace(source, forward=forward, weights=weights, folded=False)
