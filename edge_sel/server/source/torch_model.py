"""Classifiers of torch: warmup checkpoints, models of torchvision and timm, and what a user's code makes."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edge_sel.engines.base import Batch, Engine
from edge_sel.engines.torch import BuildModel, TorchEngine
from edge_sel.errors import BadInputError, EdgeSelError, GraphError, SetupError
from edge_sel.graphs.head_form import with_vector_features
from edge_sel.graphs.ir import BATCH, OPSET, Forward
from edge_sel.graphs.plans import rectified
from edge_sel.graphs.read import read_forward
from edge_sel.models.registry import LINEAR, prepare, take_away_last_relu
from edge_sel.models.registry import build as build_by_name
from edge_sel.pack.reader import Pack
from edge_sel.server.parity import check_parity, program_of
from edge_sel.server.source.base import (
    Agreement,
    Asked,
    Source,
    WarmupInfo,
    first_line,
    forward_weights,
    require_operators,
)
from edge_sel.server.source.heads import deepened, with_linear_head
from edge_sel.server.source.layer_names import name_weights
from edge_sel.server.source.module_names import module_names
from edge_sel.server.source.onnx_model import check_without_torch
from edge_sel.server.source.valueless import leave_out_values, without_values
from edge_sel.server.warmup import load

_USUAL_CLASSES = 1000
"""Of published models; a dry run without images shows these."""
_CLASS_COUNT = ("classes", "num_classes")
"""Parameters by which a function that makes a model may be told the number of classes."""
_WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema", "net")
"""Keys under which training scripts put the weights beside what else they keep."""


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
        return _with_weights(build_by_name, info, asked, asked.weights)
    classes = info.classes or tuple(f"class {number}" for number in range(_USUAL_CLASSES))
    try:
        model = build_by_name(info.model, len(classes), info.image_size, pretrained=not asked.dry)
    except EdgeSelError:
        raise
    except Exception as error:  # of torch's hub, timm's, the network and the files: they have nothing in common
        fix = "load them once with a network, or give a file with --weights"
        raise SetupError(f"no published weights of {info.model}", where=first_line(error), fix=fix) from error
    return from_module(model, replace(info, classes=classes), new_head=not asked.dry, dry=asked.dry)


def from_factory(path: Path, function: str, info: WarmupInfo, asked: Asked) -> Source:
    """The model that a function in a user's file returns, with the weights that it has, or with those of a file.

    The function may have a parameter ``classes`` or ``num_classes``; else it always makes the same number of logits.

    Raises:
        BadInputError: no such file or function, it fails, or it makes no classifier.
        UsageError: the model has another number of logits than there are classes.
    """
    make, where = _function(path, function), f"{path}:{function}"
    parameter = next((name for name in _CLASS_COUNT if name in inspect.signature(make).parameters), None)

    def build(name: str, classes: int, image_size: tuple[int, int]) -> nn.Module:
        try:
            model = make(**({parameter: classes} if parameter and classes else {}))
        except Exception as error:  # whatever a user's function may raise
            raise BadInputError("the function fails", where=f"{where}: {error!r}"[:300]) from error
        if not isinstance(model, nn.Module):
            raise BadInputError(f"the function returns {type(model).__name__}, not a torch module", where=where)
        return prepare(model).eval()

    if asked.weights is not None:
        if parameter is None:
            raise BadInputError("the function takes no number of classes", where=where,
                                fix="give it a parameter `classes`, or load the weights in it")  # fmt: skip
        return _with_weights(build, info, asked, asked.weights)
    unfit = BadInputError("the function takes no number of classes", where=where,
                          fix="give it a parameter `classes`; a new head needs one")  # fmt: skip
    return _built(build, info, asked, where, unfit)


def from_given(module: nn.Module, info: WarmupInfo, asked: Asked) -> Source:
    """A module that a Python program has; it stays as it is. A new head takes the place of its last linear layer.

    Raises:
        BadInputError: it is no classifier, or its last linear layer does not make its logits.
        UsageError: it has another number of logits than there are classes.
    """

    if not isinstance(module, nn.Module):
        raise BadInputError("a source is a path, a name or a torch module", where=info.model)

    def build(name: str, classes: int, image_size: tuple[int, int]) -> nn.Module:
        try:
            model = prepare(copy.deepcopy(module).cpu()).eval()
        except Exception as error:  # whatever a user's module may raise
            raise BadInputError("the module cannot be copied", where=f"{info.model}: {first_line(error)}") from error
        logits = _logits(model, image_size, info.model)
        linear = [place for place, layer in model.named_modules() if isinstance(layer, nn.Linear) and place]
        if asked.new_head and linear and classes not in (0, logits):
            parent, _, last = linear[-1].rpartition(".")
            layer = model.get_submodule(linear[-1])
            if layer.out_features == logits:
                setattr(model.get_submodule(parent), last, nn.Linear(layer.in_features, classes))
        return model

    unfit = BadInputError("the module's last linear layer does not make its logits", where=info.model,
                          fix="give the module a head of as many logits as there are classes")  # fmt: skip
    return _built(build, info, asked, info.model, unfit)


def _built(build: BuildModel, info: WarmupInfo, asked: Asked, where: str, unfit: EdgeSelError) -> Source:
    """With the weights that the model has when it is made; ``unfit`` is raised where it cannot have so many logits."""
    model = build(info.model, len(asked.names or ()), info.image_size)
    logits = _logits(model, info.image_size, where)
    names, new_head = asked.class_names(logits, where)
    if len(names) != logits:
        raise unfit
    return from_module(model, replace(info, classes=names), new_head=new_head, build=build, dry=asked.dry)


def _function(path: Path, name: str) -> Callable[..., object]:
    if not path.is_file():
        raise BadInputError("no such file", where=path)
    spec = importlib.util.spec_from_file_location(f"edge_sel_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.absolute()))  # it may import what stands beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file may raise
        raise BadInputError("the file cannot be imported", where=f"{path}: {error!r}"[:300]) from error
    finally:
        sys.path.pop(0)
    made = getattr(module, name, None)
    if not callable(made):
        raise BadInputError(f"the file has no function {name}", where=path)
    return made  # type: ignore[no-any-return]


def _logits(model: nn.Module, image_size: tuple[int, int], where: str) -> int:
    try:
        with torch.inference_mode():
            found = model(torch.zeros(2, 3, *image_size))
    except Exception as error:  # whatever a user's model may raise
        fix = "give the size that it was made for with --image-size"
        size = "×".join(map(str, image_size))
        place = f"{where}: {first_line(error)}"
        raise BadInputError(f"the model fails on images of {size}", where=place, fix=fix) from error
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise BadInputError(f"the model returns {what} for two images, not logits [2, classes]", where=where)
    return int(found.shape[1])


def _with_weights(build: BuildModel, info: WarmupInfo, asked: Asked, path: Path) -> Source:
    """A model that ``build`` makes, with the weights of a file; a new head where the user wants one."""
    given = read_state_dict(path)
    few, more = (build(info.model, count, info.image_size).state_dict() for count in (2, 3))
    head = {name for name in few if few[name].shape != more[name].shape}
    logits = {given[name].shape[0] for name in head & given.keys()}
    if len(logits) != 1:
        raise BadInputError("the file has no weights for the model's head", where=f"{path} ({info.model})")
    names, new_head = asked.class_names(logits.pop(), path)
    model = build(info.model, len(names), info.image_size)
    own, fresh = model.state_dict(), head if new_head else set()
    given = {name: value for name, value in given.items() if name not in fresh}
    missing = [n for n in own if n not in given.keys() | fresh and not n.endswith("num_batches_tracked")]
    unknown = [name for name in given if name not in own]
    other = [name for name in given if name in own and own[name].shape != given[name].shape]
    odd = ((missing, "lacks"), (unknown, "has a weight that the model has not,"), (other, "has another shape of"))
    for found, what in odd:
        if found:
            extra = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise BadInputError(f"the weights do not fit the model: the file {what} {found[0]}{extra}", where=path)
    own.update({name: value.to(own[name].dtype) for name, value in given.items()})
    model.load_state_dict(own)
    info = replace(info, classes=names, training={**info.training, "weights": path.name})
    return from_module(model, info, new_head=new_head, build=build, dry=asked.dry)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, of a ``.safetensors`` file or of a ``.pth`` file with a state dict; nothing in it is executed.

    Raises:
        BadInputError: no such file, or the file has no state dict.
    """
    if not path.is_file():
        raise BadInputError("no such file of weights", where=path)
    fix = "save model.state_dict(), best with safetensors"
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BadInputError("not a safetensors file", where=f"{path}: {error}") from error
    except Exception as error:  # of pickle, zipfile and torch, which have nothing in common
        where = f"{path}: {first_line(error)[:200]}"
        raise BadInputError("not a file of weights alone", where=where, fix=fix) from error
    wrapped = content if isinstance(content, Mapping) else {}
    content = next((wrapped[key] for key in _WRAPPERS if isinstance(wrapped.get(key), Mapping)), wrapped)
    if not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise BadInputError("the file has no state dict", where=path, fix=fix)
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def from_module(
    model: nn.Module,
    info: WarmupInfo,
    *,
    new_head: bool = False,
    build: BuildModel = build_by_name,
    dry: bool = False,
) -> Source:
    """A torch model with one output, the logits [N, classes].

    Args:
        model: with its weights.
        info: what it is.
        new_head: see ``Source``.
        build: makes the same model again, for the parity check.
        dry: nothing is computed with its weights, whose values it then loses.
    """
    export = forward_without_values if dry else export_forward
    forward = export(model, info.image_size)
    if new_head and _is_rectified(forward):
        model = take_away_last_relu(model)
        if build is build_by_name:  # a device that asks torch for the model gets this one, too
            info = replace(info, model=f"{info.model}{LINEAR}")
        else:
            build = _without_last_relu(build)
        forward = export(model, info.image_size)
        if _is_rectified(forward):  # it is a function, not a module: another ReLU was the last
            raise GraphError("a ReLU behind the head is in the way of a new one", where=info.model,
                             fix="make it a module torch.nn.ReLU, or leave it out")  # fmt: skip
    require_operators(forward, info.model)
    rewritten = with_linear_head(forward)
    if rewritten is not forward:  # its weights are no longer those of the module, which nothing can be compared with
        forward = replace(with_vector_features(name_weights(rewritten)), modules=None)
        return deepened(Source(info, forward, forward_weights(forward), check_without_torch, new_head))
    forward = with_vector_features(forward)
    weights = {n: v.detach().numpy() for n, v in model.state_dict().items() if n in forward.initializers}
    forward = replace(forward, initializers={**forward.initializers, **weights})  # the same values, held once
    reference, twin = (
        program_of(TorchEngine(device="cpu", dtype=dtype, build=build)) for dtype in (torch.float32, torch.float64)
    )

    def check(
        pack: Pack, forward: Forward, batches: Sequence[Batch], engine: Engine, note: Callable[[str], None]
    ) -> dict[str, Agreement]:
        return check_parity(pack, forward, batches, engine, reference=reference, twin=twin)

    return deepened(Source(info, forward, weights, check, new_head))


def _is_rectified(forward: Forward) -> bool:
    try:
        return rectified(forward)
    except GraphError:  # no plan will find a head either, and say why
        return False


def _without_last_relu(build: BuildModel) -> BuildModel:
    return lambda name, classes, image_size: take_away_last_relu(build(name, classes, image_size))


def export_forward(model: nn.Module, image_size: tuple[int, int]) -> Forward:
    """The model in evaluation mode as a parsed forward graph; the batch size is symbolic.

    Raises:
        GraphError: torch cannot export the model, or a parameter did not survive by name.
    """
    return _read(model, image_size, _exported(model, image_size))


def forward_without_values(model: nn.Module, image_size: tuple[int, int]) -> Forward:
    """The same graph without the values of its parameters, which the model loses too."""
    program = _exported(without_values(model), image_size)
    leave_out_values(program.model, {name for name, _ in model.named_parameters()})
    return _read(model, image_size, program)


def _read(model: nn.Module, image_size: tuple[int, int], program: torch.onnx.ONNXProgram) -> Forward:
    parameters = {name for name, _ in model.named_parameters()}
    forward = read_forward(program.model_proto, parameters)
    lost = sorted(parameters - forward.parameters)
    if lost:
        raise GraphError("a parameter was lost in the export", where=", ".join(lost[:5]))
    modules = module_names(program.model, model, _example(image_size)[:1])
    for node in forward.nodes:
        if node.op == "Identity" and node.inputs[0] in modules:  # such as a Slice of everything
            modules.setdefault(node.outputs[0], modules[node.inputs[0]])
    return replace(forward, modules=modules)


def _exported(model: nn.Module, image_size: tuple[int, int]) -> torch.onnx.ONNXProgram:
    model = model.cpu().eval()
    try:
        with _quiet():
            return _export(model, _example(image_size))
    except Exception as error:  # the exporter has no common exception type
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps what went wrong in what to do about it
            cause = cause.__cause__
        what = f"torch cannot export {type(model).__name__} to ONNX ({first_line(cause)})"
        raise GraphError(what, fix="make its forward free of data-dependent control flow") from error


def _example(image_size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(2, 3, *image_size)


def _export(model: nn.Module, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    import onnx_ir as ir
    from onnxscript import optimizer

    program = _traced(model, example)
    if not isinstance(program.model.graph.inputs[0].shape[0], ir.SymbolicDim):
        # A forward that asks for len(x) gets a number, unless its bytecode is traced.
        axes = ({0: torch.export.Dim(BATCH)},)
        program = _traced(torch.export.export(model, (example,), dynamic_shapes=axes, strict=True), example)
    parameters = {name for name, _ in model.named_parameters()}
    optimizer.fold_constants(  # but nothing that a plan may train: a folded Transpose would lose the weight's name
        program.model,
        should_fold=lambda node: False if any(v and v.name in parameters for v in node.inputs) else None,
    )
    optimizer.remove_unused_nodes(program.model)
    return program


def _traced(model: nn.Module | torch.export.ExportedProgram, example: torch.Tensor) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        model, (example,), dynamo=True, optimize=False, opset_version=OPSET, verbose=False,
        input_names=["x"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim(BATCH)},),
    )  # fmt: skip
    assert program is not None
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on both streams, through warnings and through logging; its failures arrive as exceptions."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
