"""Compile the graphs of every plan, the quantized variants of frozen backbones, and tell beforehand what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from edge_sel.arrays import Arrays, Range, TensorPlace
from edge_sel.data.dataset import images_at_once
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import GraphError
from edge_sel.graphs.backbone import Cut, compile_backbone, compile_quantized, find_cut, quantized_steps, tail
from edge_sel.graphs.cost import executed_flops, peak_activation_bytes, step_cost
from edge_sel.graphs.head_form import closed_form_reasons
from edge_sel.graphs.ir import Absent, Forward
from edge_sel.graphs.optimizers import require_optimizer
from edge_sel.graphs.plans import Plan, make_plan, with_probes
from edge_sel.graphs.train import compile_eval, compile_score, compile_train
from edge_sel.pack.manifest import EVAL, BackboneInfo, Int8Info, PlanInfo, closed_form_flops
from edge_sel.pack.plan_kinds import CLOSED_FORM_PLANS
from edge_sel.pack.writer import externalise
from edge_sel.quantize import MOST_ERROR, quantize_backbone, relative_error
from edge_sel.server.source.base import Source, forward_weights
from edge_sel.server.source.unfold import unfold

DEFAULT_PLANS = (
    "bn", "head", "affine", "last", "last2", "first", "full", "last-c25", "last-c50", "full-c25", "full-c50",
)  # fmt: skip
IMAGES = 256
"""That the ranges of a quantized variant are taken from; fewer large ones."""
_CHUNK = 32
WITHIN = 0.99
"""Share of the images that stay within an activation's range; of the others the extremes are cut off.

Features of dark images differ by 2.6, 3.2 and 1.7 % at three cuts of resnet-c, with the ranges of all images by 2.8,
3.6 and 1.8 %; with those of 0.9 by less in the mean, but single images by more."""


class Compiled(NamedTuple):
    """Graphs by file name, and what the manifest says about them."""

    graphs: dict[str, onnx.ModelProto]
    plans: dict[str, PlanInfo]
    backbones: dict[str, BackboneInfo]
    cuts: dict[str, Cut]
    """Of each backbone."""


def compile_plans(
    forward: Forward, names: Sequence[str], optimizer: str, classes: int, note: Callable[[str], None]
) -> Compiled:
    """Compile the graphs of every plan; a plan that finds nothing to change in this model is left out and noted.

    Weights are referred to, not held: eleven plans would hold eleven copies.

    So is one of the default plans, taken where ``names`` is empty, that has an operator without a gradient rule. A
    backbone has the name of the first plan that is cut there; others share it.

    Raises:
        GraphError: no plan is left, or a named one has an operator without a gradient rule.
        UsageError: unknown plan or optimizer.
    """
    require_optimizer(optimizer)
    forward = without_weights(forward)
    graphs = {EVAL: compile_eval(forward)}
    compiled: dict[str, PlanInfo] = {}
    backbones: dict[str, BackboneInfo] = {}
    cuts: dict[Cut, str] = {}
    for name in with_probes(names or DEFAULT_PLANS):
        try:
            plan = make_plan(forward, name)
        except GraphError as error:
            note(f"plan {name} left out: {error}")
            continue
        try:
            cut, train, score = _compiled(forward, plan, optimizer)
        except GraphError as error:
            if names:
                raise
            note(f"plan {name} left out: {error}")
            continue
        if cut and cut not in cuts:
            cuts[cut], file = name, f"backbone-{name}.onnx"
            graphs[file] = compile_backbone(forward, cut)
            backbones[name] = BackboneInfo(file, cut.shape, cut.constants, executed_flops(graphs[file], classes))
        graphs |= {f"train-{name}.onnx": train, f"score-{name}.onnx": score}
        flops, step_bytes = step_cost(train, classes)
        compiled[name] = PlanInfo(
            name, plan.trainable, plan.buffers, plan.bn_mode, plan.channels, f"train-{name}.onnx",
            f"score-{name}.onnx", flops, executed_flops(score, classes), cuts[cut] if cut else "", plan.heads,
            step_bytes,
        )  # fmt: skip
    if "head" in compiled:
        cut = next((cut for cut, name in cuts.items() if name == compiled["head"].backbone), None)
        for name, reason in closed_form_reasons(forward, cut).items():
            note(f"plan {name} left out: {reason}")
    if not compiled:
        raise GraphError("no plan can train this model", fix="`edge-sel export --dry-run` shows why")
    return Compiled(graphs, compiled, backbones, {name: cut for cut, name in cuts.items()})


def without_weights(forward: Forward) -> Forward:
    """The graph without the values of parameters and running statistics."""
    absent = {name: Absent.of(value.shape) for name, value in forward_weights(forward).items()}
    return replace(forward, initializers={**forward.initializers, **absent})


def _compiled(forward: Forward, plan: Plan, optimizer: str) -> tuple[Cut | None, onnx.ModelProto, onnx.ModelProto]:
    """Where its frozen backbone ends, and the graphs behind it that train and that score."""
    cut = find_cut(forward, plan)
    trained = tail(forward, cut)
    train = compile_train(trained, plan, optimizer)
    return cut, train, compile_score(trained, (*plan.trainable, *plan.buffers))


def add_quantized_variants(
    compiled: Compiled, forward: Forward, weights: Arrays, pixels: np.ndarray, note: Callable[[str], None]
) -> None:
    """Give each backbone that can have one its quantized variant."""
    for name, cut in compiled.cuts.items():
        info, file = compiled.backbones[name], f"backbone-{name}-int8.onnx"
        try:
            made = make_quantized_variant(forward, cut, compiled.graphs[info.graph], file, weights, pixels)
        except GraphError as error:
            note(f"frozen backbone of {name}: no quantized variant: {error}")
            continue
        compiled.graphs[file], compiled.backbones[name] = made.graph, replace(info, int8=made.info)
        note(
            f"frozen backbone of {name}: the features of its quantized variant differ by {made.info.relative_error:.1%}"
        )


class QuantizedVariant(NamedTuple):
    """The graph, and what the manifest says about it."""

    graph: onnx.ModelProto
    info: Int8Info


def make_quantized_variant(
    forward: Forward,
    cut: Cut,
    backbone: onnx.ModelProto,
    name: str,
    weights: Mapping[str, np.ndarray],
    pixels: np.ndarray,
) -> QuantizedVariant:
    """The quantized variant of a compiled backbone.

    Args:
        forward: the whole graph.
        cut: where the backbone ends.
        backbone: as it was compiled, with its weights.
        name: of the variant's file.
        weights: of the model.
        pixels: normalised images [N, 3, H, W] that the ranges are taken from.

    Raises:
        GraphError: the backbone has an operator without a quantized form, or the features differ by more than
            ``MOST_ERROR``.
    """
    steps = quantized_steps(forward, cut)
    tensors = [step.output for step in steps if step.integers]
    ranges, expected = _measure(backbone, weights, forward.input, tensors, pixels)
    graph, info = compile_quantized(forward, cut, steps, ranges)
    image_range = float(pixels.min()), float(pixels.max())
    # Without the constants, which still stand in the graph. A session reads what it is given in place.
    given = quantize_backbone(replace(info, constants=()), weights, image_range)
    session = OrtEngine(1).session(graph.SerializeToString(), given, int8=True)
    found = np.concatenate([session.run(["features"], {forward.input: chunk})[0] for chunk in _chunks(pixels)])
    error = relative_error(found, expected)
    if not error <= MOST_ERROR:
        raise GraphError(f"its features differ by {error:.1%}")
    return QuantizedVariant(graph, replace(info, graph=name, relative_error=error))


def _chunks(pixels: np.ndarray) -> list[np.ndarray]:
    size = images_at_once(_CHUNK, (pixels.shape[2], pixels.shape[3]))
    return np.split(pixels, range(size, len(pixels), size))


def _measure(
    backbone: onnx.ModelProto, weights: Mapping[str, np.ndarray], image: str, tensors: Sequence[str], pixels: np.ndarray
) -> tuple[dict[str, Range], np.ndarray]:
    """The range of each tensor, and the features."""
    opened = onnx.ModelProto()
    opened.CopyFrom(backbone)
    opened.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in tensors)
    outside = [tensor.name for tensor in opened.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    given = {name: weights[name] for name in outside}
    session = OrtEngine(1).session(opened.SerializeToString(), given)
    lows, highs, features = [], [], []
    for chunk in _chunks(pixels):
        found, *values = session.run(["features", *tensors], {image: chunk})
        features.append(found)
        rows = [value.reshape(len(chunk), -1) for value in values]
        lows.append(np.stack([row.min(1) for row in rows]))
        highs.append(np.stack([row.max(1) for row in rows]))
    low = np.quantile(np.concatenate(lows, 1), 1 - WITHIN, axis=1)
    high = np.quantile(np.concatenate(highs, 1), WITHIN, axis=1)
    ranges = {name: (float(low[i]), float(high[i])) for i, name in enumerate(tensors)}
    return ranges, np.concatenate(features)


class PlanForecast(NamedTuple):
    """Of one plan.

    Attributes:
        name: of the plan.
        reason: why this model cannot have it; empty where it can.
        parameters: scalars that it trains.
        flops: of a step per image; of a plan with a frozen backbone, from its features on.
        backbone_flops: of the frozen backbone per image, once.
        activation_bytes: largest sum of activations and gradients that are alive at once in a step.
        pack_bytes: of its own graphs in the pack.
    """

    name: str
    reason: str = ""
    parameters: int = 0
    flops: int = 0
    backbone_flops: int = 0
    activation_bytes: int = 0
    pack_bytes: int = 0


def forecast(source: Source, plans: Sequence[str], optimizer: str, batch: int) -> list[PlanForecast]:
    """Of every plan, for steps of ``batch`` images. Nothing is computed with the weights, and nothing is checked."""
    if source.folded:
        source = unfold(source, None, np.random.default_rng(0))
    source = replace(source, forward=without_weights(source.forward))
    found = [_plan(source, name, optimizer, batch) for name in with_probes(plans)]
    head = next((plan for plan in found if plan.name == "head" and not plan.reason), None)
    return found + ([] if head is None else _in_closed_form(source, head))


def _in_closed_form(source: Source, head: PlanForecast) -> list[PlanForecast]:
    """Of the plans that need no graph of their own; ``head`` is the forecast of what trains the same weights."""
    forward = source.forward
    cut = find_cut(forward, make_plan(forward, "head"))
    reasons = closed_form_reasons(forward, cut)
    flops = 0 if cut is None else closed_form_flops(cut.shape[0], len(source.info.classes))
    forecasts = {name: head._replace(name=name, flops=flops, activation_bytes=0, pack_bytes=0)
                 for name in CLOSED_FORM_PLANS}  # fmt: skip
    return [PlanForecast(name, reasons[name]) if name in reasons else made for name, made in forecasts.items()]


def _plan(source: Source, name: str, optimizer: str, batch: int) -> PlanForecast:
    forward, classes = source.forward, len(source.info.classes)
    try:
        plan = make_plan(forward, name)
        cut, *graphs = _compiled(forward, plan, optimizer)
    except GraphError as error:
        return PlanForecast(name, reason=str(error))
    train, backbone_flops = graphs[0], 0
    if cut is not None:
        graphs.append(compile_backbone(forward, cut))
        backbone_flops = executed_flops(graphs[-1], classes)
    outside = {name: TensorPlace(value.dtype, value.shape, 0, value.nbytes) for name, value in source.weights.items()}
    return PlanForecast(
        name,
        parameters=sum(source.weights[weight].size for weight in plan.trainable),
        flops=executed_flops(train, classes),
        backbone_flops=backbone_flops,
        activation_bytes=peak_activation_bytes(train, classes, batch),
        pack_bytes=sum(externalise(graph, outside).ByteSize() for graph in graphs),
    )


def weight_bytes(source: Source) -> int:
    """Of the weights, which stand once in a pack."""
    return sum(value.nbytes for value in source.weights.values())
