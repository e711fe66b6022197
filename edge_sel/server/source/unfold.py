"""Give a network its batch normalisation back, which its exporter has folded into the convolutions.

What a device adapts first, and most cheaply, is the statistics of its layers. A folded file has none. So each
convolution gets a normalisation again, with the statistics of the calibration images, and with the scale and shift
that undo it: the network computes what it did before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.graphs.builder import Builder
from edge_sel.graphs.ir import BATCH, Forward, Node
from edge_sel.graphs.plans import head_layers
from edge_sel.server.source.base import Source, WarmupInfo

EPSILON = 1e-5
IMAGES, _CHUNK = 256, 16
_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Elu", "Mish")


class Moments(NamedTuple):
    """Of each channel [C] of a convolution's output, over images and pixels."""

    mean: np.ndarray
    variance: np.ndarray


def is_folded(forward: Forward) -> bool:
    """Whether no layer is normalised over images, but convolutions have biases: as a folded network looks."""
    return bool(_convolutions(forward)) and not any(node.op in _NORMS for node in forward.nodes)


def unfold(source: Source, images: ImageSet | None, rng: np.random.Generator) -> Source:
    """The same classifier with a batch normalisation behind each convolution that has a bias.

    Args:
        source: folded, see ``is_folded``.
        images: whose statistics the layers get; without any, a mean of 0 and a variance of 1.
        rng: chooses at most ``IMAGES`` of them.
    """
    forward = source.forward
    if images is not None:
        return _with_norms(source, _measure(forward, images, source.info, rng))
    sizes = {node.outputs[0]: len(forward.initializers[node.inputs[2]]) for node in _convolutions(forward)}
    return _with_norms(source, {name: Moments(np.zeros(size), np.ones(size)) for name, size in sizes.items()})


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


def _measure(forward: Forward, images: ImageSet, info: WarmupInfo, rng: np.random.Generator) -> dict[str, Moments]:
    """Of every convolution's output."""
    b = Builder()
    outputs = []
    for node in forward.nodes:
        b.copy(node)
    for node in _convolutions(forward):
        y, axes = node.outputs[0], b.ints(0, 2, 3)
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
    chunks = np.array_split(rows, -(-len(rows) // _CHUNK))
    found = [session.run(outputs, {forward.input: normalise(images.read(c), info.mean, info.std)}) for c in chunks]
    share = np.array([len(chunk) for chunk in chunks])[:, None] / len(rows)
    moments = {}
    for place, name in enumerate(outputs[::2]):
        means, variances = (np.stack([f[2 * place + k] for f in found]).astype(np.float64) for k in (0, 1))
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean) ** 2)).sum(0)
        moments[name.removeprefix("mean::")] = Moments(mean, variance)
    return moments


def _with_norms(source: Source, moments: Mapping[str, Moments]) -> Source:
    forward = source.forward
    initializers, shapes, weights = dict(forward.initializers), dict(forward.shapes), dict(source.weights)
    parameters, nodes = set(forward.parameters), []
    for node in forward.nodes:
        found = moments.get(node.outputs[0])
        if found is None:
            nodes.append(node)
            continue
        x, weight, bias = node.inputs
        y, plain = node.outputs[0], f"{node.outputs[0]}::plain"
        base = weight.removesuffix(".weight")
        spread = np.sqrt(found.variance + EPSILON)
        values = {
            f"{base}.norm.scale": spread, f"{base}.norm.shift": found.mean,
            f"{base}.norm.mean": found.mean - initializers[bias], f"{base}.norm.variance": found.variance,
        }  # fmt: skip
        fresh = {name: np.ascontiguousarray(value, np.float32) for name, value in values.items()}
        nodes.append(replace(node, inputs=(x, weight), outputs=(plain,)))
        nodes.append(Node("BatchNormalization", (plain, *fresh), (y,), {"epsilon": EPSILON}, f"{node.name}::norm"))
        shapes |= {plain: shapes[y], **{name: value.shape for name, value in fresh.items()}}
        parameters |= set(list(fresh)[:2])
        parameters.discard(bias)
        for given in (initializers, weights):
            del given[bias]
            given |= fresh
    per_image = forward.per_image | {f"{name}::plain" for name in moments}
    forward = replace(forward, nodes=tuple(nodes), initializers=initializers, shapes=shapes,
                      parameters=frozenset(parameters), per_image=per_image)  # fmt: skip
    return replace(source, forward=forward, weights=weights, folded=False)
