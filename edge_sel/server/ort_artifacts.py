"""The official artifacts of onnxruntime-training for one plan: training, eval and optimizer model, nominal checkpoint.

They are made from the forward graph that the plan's own graphs are compiled from, so both begin behind the same frozen
backbone. What onnxruntime-training gets wrong without saying so is avoided here (docs/howto/engines.md lists it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_sel.arrays import tensor_places
from edge_sel.engines.base import Engine
from edge_sel.engines.ort_training import OrtTrainingEngine
from edge_sel.engines.ort_training_api import VERSION, import_training
from edge_sel.errors import EdgeSelError, GraphError
from edge_sel.files import stderr_silenced
from edge_sel.graphs.backbone import find_cut, tail
from edge_sel.graphs.builder import Builder, prune
from edge_sel.graphs.ir import BATCH, IR_VERSION, Forward, Node
from edge_sel.graphs.optimizers import BETA1, BETA2, EPSILON
from edge_sel.graphs.plans import Plan, make_plan, running_statistics
from edge_sel.pack.graph_check import check_graphs
from edge_sel.pack.graph_form import WireError
from edge_sel.pack.manifest import WEIGHTS, ArtifactFiles, OrtTrainingInfo, artifact_files
from edge_sel.pack.reader import Pack
from edge_sel.server.source.base import replace_all

OFFICIAL = ArtifactFiles("training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "nominal_checkpoint")
"""What ``generate_artifacts`` calls its files."""
DOMAINS = ("", "com.microsoft")
ADAM = {"adam_mode": 0, "alpha": BETA1, "beta": BETA2, "correct_bias": 1, "epsilon": EPSILON, "weight_decay": 0.0}
"""Attributes of ``AdamWOptimizer`` that make it ``torch.optim.AdamW``."""


def add_artifacts(
    pack: Pack, forward: Forward, check: Callable[[Pack, Engine], object], note: Callable[[str], None]
) -> tuple[dict[str, bytes], OrtTrainingInfo]:
    """The artifacts of every plan that they can train rightly, and what the manifest says of them.

    Statistics alone need none. The official Adam moves every channel of a weight, so there are none of a budget with
    Adam. What the runtime cannot differentiate, or differentiates wrongly, is left out and noted.

    Args:
        pack: as a device would load it, without artifacts.
        forward: what its graphs were compiled from.
        check: compares a step of every plan of a pack, made by an engine, with another program; raises GraphError.
        note: told what is left out.

    Raises:
        SetupError: onnxruntime-training is not installed, or not as it must be.
    """
    manifest, engine = pack.manifest, OrtTrainingEngine()
    files: dict[str, bytes] = {}
    parameters: dict[str, tuple[str, ...]] = {}
    for name, info in manifest.plans.items():
        if not info.trainable or (info.channels and (manifest.optimizer == "adam" or info.heads)):
            continue
        plan = make_plan(forward, name)
        try:
            made, order = make_artifacts(tail(forward, find_cut(forward, plan)), plan, manifest.optimizer)
            one = replace(manifest, plans={name: info}, ort_training=OrtTrainingInfo(VERSION, {name: order}))
            candidate = pack.with_manifest(one, made)
            check_graphs(one, candidate.files, tensor_places(pack.files[WEIGHTS]))  # no device would open it else
            check(candidate, engine)
        except (EdgeSelError, WireError) as error:
            note(f"plan {name} without artifacts: {error}")
            continue
        files |= made
        parameters[name] = order
    return files, OrtTrainingInfo(VERSION, parameters)


def make_artifacts(forward: Forward, plan: Plan, optimizer: str) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The files of a plan's artifacts, by the names that they have in a pack, and its parameters in their order.

    Args:
        forward: the graph behind the plan's frozen backbone, or the whole.
        plan: one that trains something.
        optimizer: ``sgd`` or ``adam``.

    Raises:
        GraphError: the runtime has no gradient of an operator.
        SetupError: onnxruntime-training is not installed, or not as it must be.
    """
    training = import_training()
    model = _forward_model(forward, plan)
    kinds = {"sgd": training.artifacts.OptimType.SGD, "adam": training.artifacts.OptimType.AdamW}
    kept = {*forward.parameters, *running_statistics(forward)} - {*plan.trainable}
    frozen = [tensor.name for tensor in model.graph.initializer if tensor.name in kept]
    statistics = [name for node in model.graph.node for name in node.output if name.startswith("batch::")]
    # The runtime's C++ side tells, whatever the log's level, of every transformer that changed nothing.
    with TemporaryDirectory() as folder, stderr_silenced():
        try:
            training.artifacts.generate_artifacts(
                model, requires_grad=list(plan.trainable), frozen_params=frozen, loss=_loss(training.onnxblock),
                optimizer=kinds[optimizer], artifact_directory=folder, nominal_checkpoint=True,
                additional_output_names=[forward.logits, *statistics],
            )  # fmt: skip
        except Exception as error:  # of its C++ side, which has no common exception type
            message = str(error).splitlines()[-1] if str(error) else type(error).__name__
            raise GraphError("onnxruntime-training cannot differentiate this graph", where=message[:200]) from error
        files = {name: (Path(folder) / name).read_bytes() for name in OFFICIAL}
    step, evaluation, update = (onnx.load_from_string(files[name]) for name in OFFICIAL[:3])
    _add_mask(step, plan)
    _forget_statistics(evaluation)
    _set_attributes(update)
    models = [_plain(model).SerializeToString() for model in (step, evaluation, update)]
    order = tuple(value.name for value in step.graph.input if value.name in {*plan.trainable, *frozen})
    return dict(zip(artifact_files(plan.name), [*models, files[OFFICIAL.checkpoint]], strict=True)), order


def _forward_model(forward: Forward, plan: Plan) -> onnx.ModelProto:
    """Forward graph with every parameter as an initializer, batch normalisation in the form that trains rightly."""
    b = Builder()
    for node in forward.nodes:
        if node.op != "BatchNormalization":
            b.copy(node)
        elif plan.bn_mode == "batch":
            _batch_statistics(b, node)
        else:
            _frozen_statistics(b, node, len(forward.shape(node.inputs[0])))
    image, logits = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *forward.shape(name)[1:]])]
        for name in (forward.input, forward.logits)
    )
    return b.model(image, logits, forward.initializers, f"forward-{plan.name}")


def _batch_statistics(b: Builder, node: Node) -> None:
    """With the statistics of the batch, which become outputs ``batch::NAME``; the variance unbiased, as in torch."""
    x, scale, bias, mean, variance = node.inputs
    # The runtime may write the batch's statistics over these inputs: tensors that nobody else reads.
    old = [b.op("Mul", running, b.scalar(0.0), name=f"old::{running}") for running in (mean, variance)]
    names = [node.outputs[0], f"batch::{mean}", None]
    attributes: dict[str, Any] = {"epsilon": node.attribute("epsilon", 1e-5), "training_mode": 1, "momentum": 0.0}
    _, _, population = b.multi("BatchNormalization", x, scale, bias, *old, names=names, **attributes)
    count = b.op("Cast", b.op("Div", b.op("Size", x), b.op("Size", mean)), to=1)
    b.op("Mul", population, b.op("Div", count, b.op("Sub", count, b.scalar(1.0))), name=f"batch::{variance}")


def _frozen_statistics(b: Builder, node: Node, rank: int) -> None:
    """``γ·(x − μ)/σ + β`` in plain operators: the runtime's gradient of frozen BatchNormalization is wrong."""
    x, scale, bias, mean, variance = node.inputs
    shape = b.ints(1, -1, *[1] * (rank - 2))
    inverse = b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.scalar(node.attribute("epsilon", 1e-5)))))
    wide = {name: b.op("Reshape", name, shape) for name in (scale, bias, mean, inverse)}
    normal = b.op("Mul", b.op("Sub", x, wide[mean]), wide[inverse])
    b.op("Add", b.op("Mul", normal, wide[scale]), wide[bias], name=node.outputs[0])


def _loss(onnxblock: Any) -> Any:
    """Block of the mean of weighted cross-entropies; inputs ``labels`` and ``sample_weight``, output ``loss`` too."""

    class WeightedCrossEntropy(onnxblock.Block):
        def build(self, logits: str) -> tuple[str, str]:
            graph = self.base.graph
            graph.input.append(helper.make_tensor_value_info("labels", TensorProto.INT64, [BATCH]))
            graph.input.append(helper.make_tensor_value_info("sample_weight", TensorProto.FLOAT, [BATCH]))
            loss = helper.make_node("SoftmaxCrossEntropyLoss", [logits, "labels"], ["loss", "log_p"], reduction="none")
            weighted = helper.make_node("Mul", ["loss", "sample_weight"], ["weighted_loss"])
            mean = helper.make_node("ReduceMean", ["weighted_loss"], ["objective"], keepdims=0)
            graph.node.extend([loss, weighted, mean])
            return "objective", "loss"

    return WeightedCrossEntropy()


def _add_mask(model: onnx.ModelProto, plan: Plan) -> None:
    """Mask each gradient before it is accumulated: ``|g| > gamma`` and, with a channel budget, the chosen rows.

    Adds the inputs ``gamma`` [1] and ``rows::WEIGHT`` [O, 1, 1, 1], and the output ``kept``.
    """
    graph, nodes, counts = model.graph, list[onnx.NodeProto](), []

    def op(kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    accumulators = [node for node in graph.node if node.op_type == "InPlaceAccumulatorV2"]
    for accumulator in accumulators:
        gradient = accumulator.input[1]
        weight = gradient.removesuffix("_grad")
        guilty = op("Greater", op("Abs", gradient, name=f"size::{weight}"), "gamma", name=f"guilty::{weight}")
        mask = op("Cast", guilty, name=f"mask::{weight}", to=1)
        if weight in plan.channels:
            mask = op("Mul", mask, f"rows::{weight}", name=f"chosen::{weight}")
        accumulator.input[1] = op("Mul", gradient, mask, name=f"masked::{weight}")
        counts.append(op("ReduceSum", mask, name=f"kept::{weight}", keepdims=0))
    op("Sum", *counts, name="kept")
    others = [node for node in graph.node if node.op_type != "InPlaceAccumulatorV2"]
    replace_all(graph.node, [*others, *nodes, *accumulators])
    given = [helper.make_tensor_value_info("gamma", TensorProto.FLOAT, [1])]
    for value in graph.input:
        if value.name in plan.channels:
            rows = value.type.tensor_type.shape.dim[0].dim_value
            given.append(helper.make_tensor_value_info(f"rows::{value.name}", TensorProto.FLOAT, [rows, 1, 1, 1]))
    first = next(place for place, value in enumerate(graph.input) if value.name == "sample_weight") + 1
    replace_all(graph.input, [*graph.input[:first], *given, *graph.input[first:]])  # before the parameters
    last = next(place for place, value in enumerate(graph.output) if value.name.endswith(".accumulation.out"))
    kept = helper.make_tensor_value_info("kept", TensorProto.FLOAT, [])
    replace_all(graph.output, [*graph.output[:last], kept, *graph.output[last:]])


def _forget_statistics(model: onnx.ModelProto) -> None:
    """BatchNormalization with the running statistics and one output: with more outputs the model cannot be loaded."""
    graph = model.graph
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            del node.output[1:]
            node.input[3:] = [name.removeprefix("old::") for name in node.input[3:]]
    replace_all(graph.output, [value for value in graph.output if not value.name.startswith("batch::")])
    prune(graph, [value.name for value in graph.output])


def _set_attributes(model: onnx.ModelProto) -> None:
    """The official Adam divides by other terms than torch's, and has another ε."""
    for node in model.graph.node:
        if node.op_type == "AdamWOptimizer":
            replace_all(node.attribute, [helper.make_attribute(name, value) for name, value in ADAM.items()])


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """In the format version that the runtime reads, with the operator sets that it uses, and no notes."""
    model.ir_version = IR_VERSION
    replace_all(model.opset_import, [opset for opset in model.opset_import if opset.domain in DOMAINS])
    del model.metadata_props[:], model.graph.value_info[:]
    for field in ("producer_name", "producer_version", "doc_string", "domain"):
        model.ClearField(field)
    model.graph.ClearField("doc_string")
    plain = [numpy_helper.from_array(numpy_helper.to_array(each), each.name) for each in model.graph.initializer]
    replace_all(model.graph.initializer, plain)
    for node in model.graph.node:
        node.ClearField("doc_string")
    return model
