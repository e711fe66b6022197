"""Classifiers that torch can build: warmup checkpoints, and models of torchvision and timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from edge_sel.engines.base import Batch, Engine
from edge_sel.engines.torch import BuildModel, TorchEngine
from edge_sel.errors import BadInputError, EdgeSelError, GraphError, SetupError
from edge_sel.graphs.head_form import with_vector_features
from edge_sel.graphs.ir import Forward
from edge_sel.graphs.plans import rectified
from edge_sel.models.registry import LINEAR, build, take_away_last_relu
from edge_sel.models.registry import build as build_by_name
from edge_sel.pack.reader import Pack
from edge_sel.server.forward import export_forward
from edge_sel.server.parity import check_parity
from edge_sel.server.source.base import Agreement, Source, WarmupInfo
from edge_sel.server.source.deep_head import deepened, deepened_by_modules
from edge_sel.server.source.layer_names import name_weights, unreserve, unshare
from edge_sel.server.source.linear_head import with_linear_head
from edge_sel.server.source.onnx_model import check_without_torch, forward_weights
from edge_sel.server.source.weight_file import read_weights
from edge_sel.server.warmup import load

if TYPE_CHECKING:
    from edge_sel.server.source.open import Asked

_USUAL_CLASSES = 1000
"""Of published models; a dry run without images shows these."""


def from_checkpoint(path: Path) -> Source:
    """A warmup checkpoint of ``edge-sel pretrain``."""
    return from_module(*load(path))


def from_name(info: WarmupInfo, asked: Asked) -> Source:
    """``torchvision:NAME`` or ``timm:NAME``, with a file of weights, or with its published ones and a new head.

    Raises:
        BadInputError: the weights do not fit the model.
        UsageError: unknown model, or another number of classes than the weights have.
        SetupError: the library is missing, or published weights cannot be had.
    """
    if asked.weights is not None:
        return from_weights(build, info, asked)
    classes = info.classes or tuple(f"class {number}" for number in range(_USUAL_CLASSES))
    try:
        model = build(info.model, len(classes), info.image_size, pretrained=not asked.dry)
    except EdgeSelError:
        raise
    except Exception as error:  # of torch's hub, timm's, the network and the files: they have nothing in common
        told = (str(error).strip() or repr(error)).splitlines()[0]
        fix = "load them once with a network, or give a file with --weights"
        raise SetupError(f"no published weights of {info.model}", where=told, fix=fix) from error
    return from_module(model, replace(info, classes=classes), new_head=not asked.dry)


def from_weights(build: BuildModel, info: WarmupInfo, asked: Asked) -> Source:
    """A model that ``build`` makes, with the weights of the file ``asked.weights``."""
    path = asked.weights
    assert path is not None
    given = read_weights(path)
    few, more = (dict(build(info.model, count, info.image_size).state_dict()) for count in (2, 3))
    head = [name for name in few if few[name].shape != more[name].shape]
    logits = {given[name].shape[0] for name in head if name in given}
    if not head or len(logits) != 1:
        raise BadInputError("the file has no weights for the model's head", where=f"{path} ({info.model})")
    names, new_head = asked.class_names(logits.pop(), path)
    model = build(info.model, len(names), info.image_size)
    fill(
        model,
        given if not new_head else {n: v for n, v in given.items() if n not in head},
        head if new_head else (),
        path,
    )
    training = {**info.training, "weights": path.name}
    return from_module(model, replace(info, classes=names, training=training), new_head=new_head, build=build)


def fill(model: nn.Module, given: Mapping[str, torch.Tensor], but: object, path: Path) -> None:
    """Load the weights; only those named in ``but`` may be missing.

    Raises:
        BadInputError: a weight is missing, of another shape, or not the model's.
    """
    own = model.state_dict()
    assert isinstance(but, (list, tuple))
    missing = [
        name for name in own if name not in given and name not in but and not name.endswith("num_batches_tracked")
    ]
    other = [name for name in given if name in own and own[name].shape != given[name].shape]
    unknown = [name for name in given if name not in own]
    for names, what in (
        (missing, "lacks"),
        (unknown, "has a weight that the model has not,"),
        (other, "has another shape of"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInputError(f"the weights do not fit the model: the file {what} {names[0]}{more}", where=path)
    own.update({name: value.to(own[name].dtype) for name, value in given.items()})
    model.load_state_dict(own)


def from_module(model: nn.Module, info: WarmupInfo, *, new_head: bool = False, build: BuildModel = build) -> Source:
    """A torch model with one output, the logits [N, classes].

    Args:
        model: with its weights.
        info: what it is.
        new_head: see ``Source``.
        build: makes the same model again, for the parity check.
    """
    forward = export_forward(model, info.image_size)
    if new_head and _is_rectified(forward):
        model = take_away_last_relu(model)
        if build is build_by_name:  # a device that asks torch for the model gets this one, too
            info = replace(info, model=f"{info.model}{LINEAR}")
        else:
            build = _without_last_relu(build)
        forward = export_forward(model, info.image_size)
        if _is_rectified(forward):  # it is a function, not a module: another ReLU was the last
            raise GraphError("a ReLU behind the head is in the way of a new one", where=info.model,
                             fix="make it a module torch.nn.ReLU, or leave it out")  # fmt: skip
    rewritten = with_linear_head(forward)
    if rewritten is not forward:  # its weights are no longer those of the module, which nothing can be compared with
        forward = with_vector_features(name_weights(unreserve(unshare(rewritten))))
        return deepened(Source(info, forward, forward_weights(forward), check_without_torch, new_head))
    forward = with_vector_features(forward)
    weights = {n: v.detach().numpy() for n, v in model.state_dict().items() if n in forward.initializers}
    forward = replace(forward, initializers={**forward.initializers, **weights})  # the same values, held once
    reference, twin = (TorchEngine(device="cpu", dtype=dtype, build=build) for dtype in (torch.float32, torch.float64))

    def check(
        pack: Pack, forward: Forward, batches: Sequence[Batch], engine: Engine, note: Callable[[str], None]
    ) -> dict[str, Agreement]:
        return check_parity(pack, forward, batches, engine, reference=reference, twin=twin)

    return deepened_by_modules(Source(info, forward, weights, check, new_head), model.cpu().eval())


def _is_rectified(forward: Forward) -> bool:
    try:
        return rectified(forward)
    except GraphError:  # no plan will find a head either, and say why
        return False


def _without_last_relu(build: BuildModel) -> BuildModel:
    return lambda name, classes, image_size: take_away_last_relu(build(name, classes, image_size))
