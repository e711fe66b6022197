"""What a pack of this source would hold and cost, before any image is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from edge_sel.errors import GraphError
from edge_sel.graphs.builder import Absent
from edge_sel.graphs.cost import executed_flops, peak_activation_bytes
from edge_sel.graphs.head_form import closed_form_reasons
from edge_sel.graphs.plans import make_plan, with_probes
from edge_sel.graphs.prefix import compile_prefix, find_cut, tail
from edge_sel.graphs.train import compile_score, compile_train
from edge_sel.pack.manifest import CLOSED, RIDGE, closed_form_flops
from edge_sel.pack.writer import externalise
from edge_sel.server.source.base import Source
from edge_sel.server.source.unfold import unfold


class PlanForecast(NamedTuple):
    """Of one plan.

    Attributes:
        name: of the plan.
        reason: why this model cannot have it; empty where it can.
        parameters: scalars that it trains.
        flops: of a step per image; of a plan with a frozen backbone, from its features on.
        prefix_flops: of the frozen backbone per image, once.
        activation_bytes: largest sum of activations and gradients that are alive at once in a step.
        pack_bytes: of its own graphs in the pack.
    """

    name: str
    reason: str = ""
    parameters: int = 0
    flops: int = 0
    prefix_flops: int = 0
    activation_bytes: int = 0
    pack_bytes: int = 0


def forecast(source: Source, plans: Sequence[str], optimizer: str, batch: int) -> list[PlanForecast]:
    """Of every plan, for steps of ``batch`` images. Nothing is computed with the weights, and nothing is checked."""
    if source.folded:
        source = unfold(source, None, np.random.default_rng(0))
    forward = source.forward
    absent = {name: Absent.of(forward.initializers[name].shape) for name in forward.parameters}
    source = replace(source, forward=replace(forward, initializers={**forward.initializers, **absent}))
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
                 for name in (RIDGE, CLOSED)}  # fmt: skip
    return [PlanForecast(name, reasons[name]) if name in reasons else made for name, made in forecasts.items()]


def _plan(source: Source, name: str, optimizer: str, batch: int) -> PlanForecast:
    forward, classes = source.forward, len(source.info.classes)
    try:
        plan = make_plan(forward, name)
        cut = find_cut(forward, plan)
        trained = tail(forward, cut)
        train = compile_train(trained, plan, optimizer)
    except GraphError as error:
        return PlanForecast(name, reason=str(error))
    graphs = [train, compile_score(trained, (*plan.trainable, *plan.buffers))]
    prefix_flops = 0
    if cut is not None:
        graphs.append(compile_prefix(forward, cut))
        prefix_flops = executed_flops(graphs[-1], classes)
    outside = {name: (0, value.nbytes) for name, value in source.weights.items()}
    return PlanForecast(
        name,
        parameters=sum(source.weights[weight].size for weight in plan.trainable),
        flops=executed_flops(train, classes),
        prefix_flops=prefix_flops,
        activation_bytes=peak_activation_bytes(train, classes, batch),
        pack_bytes=sum(externalise(graph, outside).ByteSize() for graph in graphs),
    )


def weight_bytes(source: Source) -> int:
    """Of the weights, which stand once in a pack."""
    return sum(value.nbytes for value in source.weights.values())
