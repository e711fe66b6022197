"""Give a source a deep head, whose layers a device that asks torch for the model can find too."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from edge_sel.arrays import Arrays
from edge_sel.engines.ort import OrtEngine
from edge_sel.graphs.deep_head import find_taps, with_deep_head
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import head_names
from edge_sel.graphs.train import compile_eval
from edge_sel.pack.manifest import DEEP_HEAD, Tap
from edge_sel.server.source.base import Source

if TYPE_CHECKING:
    from torch import nn


def deepened(source: Source) -> Source:
    """With a head that reads the last blocks too, where there are such and the head is linear in a vector."""
    forward, taps = _deep(source.forward, find_taps(source.forward))
    added = {name: forward.initializers[name] for name in deep_names(taps)}
    return replace(source, forward=forward, weights={**source.weights, **added}, taps=taps)


def deepened_by_modules(source: Source, model: nn.Module) -> Source:
    """The same of a torch model: of the layers that are outputs of its modules, by the names of these."""
    from edge_sel.engines.torch import find_modules

    forward = source.forward
    found = find_taps(forward)
    size = [1, *(size or 1 for size in forward.shape(forward.input)[1:])]
    image = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    modules = find_modules(model, image, outputs_of(forward, [tap.name for tap in found], image)) if found else {}
    forward, taps = _deep(forward, [tap for tap in found if tap.name in modules])
    added = {name: forward.initializers[name] for name in deep_names(taps)}
    named = tuple(replace(tap, name=modules[tap.name]) for tap in taps)
    return replace(source, forward=forward, weights={**source.weights, **added}, taps=named)


def deep_names(taps: tuple[Tap, ...]) -> tuple[str, ...]:
    """Weights of the deep head; none without taps."""
    return (f"{DEEP_HEAD}.weight", f"{DEEP_HEAD}.bias") if taps else ()


def outputs_of(forward: Forward, names: list[str], image: np.ndarray) -> Arrays:
    """These tensors of the graph, for some images [N, 3, H, W]."""
    model = compile_eval(forward)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = OrtEngine().session(model.SerializeToString(), {})
    asked = {given.name for given in session.get_inputs()}
    head = {name: forward.initializers[name] for name in head_names(forward) if name in asked}
    return dict(zip(names, session.run(names, {forward.input: image, **head}), strict=True))


def _deep(forward: Forward, taps: list[Tap]) -> tuple[Forward, tuple[Tap, ...]]:
    deep = with_deep_head(forward, taps)
    return deep, () if deep is forward else tuple(taps)
