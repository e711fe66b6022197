"""Whether the graphs of a pack are those that its manifest describes, before an engine sees them.

Operators, inputs, outputs, element types and shapes are a closed list. Of what stands outside of a graph only the
pack's own weights are allowed, and the integers that the device computes: the engine supplies both, so that ONNX
Runtime, which would look for a file in the working directory, opens none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from math import prod
from typing import NamedTuple

import numpy as np

from edge_sel.arrays import TensorPlace
from edge_sel.pack.graph_form import (
    BOOL,
    DOUBLE,
    FLOAT,
    INT8,
    INT32,
    INT64,
    ITEM_BYTES,
    UINT8,
    Dims,
    GraphForm,
    GraphFormReader,
    Tensor,
    Value,
    WireError,
)
from edge_sel.pack.manifest import (
    EVAL,
    IMAGE_GRID,
    OPTIMIZER_SCALARS,
    OPTIMIZER_STATE,
    WEIGHTS,
    Int8Info,
    Manifest,
    PlanInfo,
    artifact_files,
)

_STANDARD = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Conv ConvTranspose Cos CumSum
DepthToSpace DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm
GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
InstanceNormalization LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish
Mod Mul Neg Not OneHot Or PRelu Pad Pow QLinearConv QuantizeLinear Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round ScatterElements ScatterND Selu Shape Sigmoid Sign
Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Transpose Trilu Unsqueeze Where Xor
"""
OPERATORS = frozenset(_STANDARD.split())
"""What the exporter emits, and what it copies from a forward graph.

Each computes its output in one pass. There are none that loop, branch, call, hold a graph or draw random numbers, and
none that is there to make a large tensor from a small one, but ``Expand``, ``OneHot`` and ``Pad``, which are needed.
"""
_CONTRIB = """
AveragePoolGrad BatchNormInternal BatchNormalizationGrad BiasGelu BiasGeluGrad_dX ConcatTraining ConvGrad FastGelu
FastGeluGrad FusedMatMul GatherElementsGrad GatherGrad GatherNDGrad Gelu GeluGrad HardSigmoidGrad HardSwishGrad
InPlaceAccumulatorV2 LayerNormalizationGrad LeakyReluGrad LogSoftmaxGrad LogSoftmaxGrad_13 MaxPoolGrad QuickGelu
QuickGeluGrad ReluGrad Scale SigmoidGrad SliceGrad SoftmaxCrossEntropyLossGrad SoftmaxGrad SoftmaxGrad_13
SplitTraining TanhGrad
"""
OFFICIAL = OPERATORS | {"SoftmaxCrossEntropyLoss", *(f"com.microsoft.{op}" for op in _CONTRIB.split())}
"""What the artifacts of onnxruntime-training may use."""
OPTIMIZERS = {"sgd": "com.microsoft.SGDOptimizerV2", "adam": "com.microsoft.AdamWOptimizer"}
"""The one operator of an optimizer model."""
SIZED_BY = {"Expand": 1, "OneHot": 1, "Pad": 1}
"""Operand that tells the size of the output, where it is one."""

VERSIONS = (18,), (9,)
"""Operator sets and format versions that our exporter has written."""
MOST_ELEMENTS = 1 << 26
"""Of a tensor whose size a constant tells."""
NODES, NODES_PER_TENSOR, MOST_NODES = 500, 60, 50_000
MOST_PARTS = 300_000
"""Nodes, initializers, inputs and outputs of all graphs together: reading so many takes under two seconds."""
TENSORS, TENSORS_PER_TENSOR = 200, 10
SUPPLIED = "int8"
"""Location of what the device computes."""
_KINDS = {"f4": FLOAT, "f8": DOUBLE, "i8": INT64, "i4": INT32, "i1": INT8, "u1": UINT8}

Declared = dict[str, tuple[int, Dims]]
"""Element type and shape by name; None in a shape: known at run time."""


class Expected(NamedTuple):
    """What the manifest says of one graph.

    Attributes:
        inputs: all of them.
        outputs: all of them.
        optional: outputs that may be there too.
        outside: weights that the engine supplies if the graph reads them.
        supplied: what it computes for the graph.
        operators: those that it may use.
    """

    inputs: Declared
    outputs: Declared
    optional: Declared
    outside: Set[str]
    supplied: Declared
    operators: Set[str] = OPERATORS


def check_graphs(manifest: Manifest, graphs: Mapping[str, bytes], weights: Mapping[str, TensorPlace]) -> None:
    """Check each graph that the manifest describes.

    Raises:
        WireError: one is not as described; it says which, and how.
    """
    most_nodes = min(NODES + NODES_PER_TENSOR * len(weights), MOST_NODES)
    reader = GraphFormReader(most_nodes, TENSORS + TENSORS_PER_TENSOR * len(weights))
    parts = 0
    for file, expected in _expected(manifest, weights):
        try:
            form = reader.read(graphs[file], contrib=expected.operators is OFFICIAL)
            parts += len(form.nodes) + len(form.initializers) + len(form.inputs) + len(form.outputs)
            if parts > MOST_PARTS:
                raise WireError(f"the graphs have more than {MOST_PARTS} parts")
            _check(form, expected, weights)
        except WireError as error:
            raise WireError(f"{file}: {error}") from error
    for plan in manifest.ort_training.parameters if manifest.ort_training else ():
        file = artifact_files(plan).optimizer
        if reader.read_operators(graphs[file]) != [OPTIMIZERS[manifest.optimizer]]:
            raise WireError(f"{file}: it is not the optimizer of the manifest")


def _expected(manifest: Manifest, weights: Mapping[str, TensorPlace]) -> Iterator[tuple[str, Expected]]:
    description = _Description(manifest, weights)
    yield EVAL, description.eval()
    for plan in manifest.plans.values():
        yield plan.train, description.train(plan)
        yield plan.score, description.score(plan)
    for backbone in manifest.used_backbones():
        features: Declared = {"features": (FLOAT, (None, *backbone.shape))}
        image = {"x": description.image}
        yield backbone.graph, Expected(image, features, {}, set(backbone.constants), {})
        if backbone.int8:
            supplied = description.integers(backbone.int8)
            yield backbone.int8.graph, Expected(image, features, {}, set(backbone.int8.constants), supplied)
    for name, parameters in (manifest.ort_training.parameters if manifest.ort_training else {}).items():
        plan, files = manifest.plans[name], artifact_files(name)
        yield files.training, description.official_step(plan, parameters)
        yield files.eval, description.official_score(plan, parameters)


class _Description:
    def __init__(self, manifest: Manifest, weights: Mapping[str, TensorPlace]) -> None:
        self._manifest, self._weights = manifest, weights
        self._classes = len(manifest.model.classes)
        self._head: Declared = {name: self._of(name) for name in manifest.model.head}
        self.image: tuple[int, Dims] = (FLOAT, (None, 3, *manifest.model.image_size))
        self._logits: Declared = {"logits": (FLOAT, (None, None))}
        self._scores: Declared = {"loss": (FLOAT, (None,)), **self._logits}

    def eval(self) -> Expected:
        return Expected({"x": self.image, **self._head}, self._logits, {}, self._weights.keys() - self._head, {})

    def score(self, plan: PlanInfo) -> Expected:
        inputs = {**self._begin(plan), **self._changing(plan), **self._head}
        return Expected(inputs, self._scores, {}, self._outside(plan, inputs), {})

    def train(self, plan: PlanInfo) -> Expected:
        optimizer, scalar = self._manifest.optimizer, (FLOAT, ())
        state = self._changing(plan)
        for slot in OPTIMIZER_STATE[optimizer]:
            state |= {f"{slot}::{name}": self._of(name) for name in plan.trainable}
        inputs, outputs = {**self._begin(plan), **state, **self._head}, {**self._scores}
        outputs |= {f"new::{name}": value for name, value in state.items()}
        if plan.trainable:
            inputs |= {"sample_weight": (FLOAT, (None,)), **dict.fromkeys(OPTIMIZER_SCALARS[optimizer], scalar)}
            outputs["kept"] = scalar
        if plan.buffers:
            inputs["bn_momentum"] = scalar
        for name, count in plan.channels.items():
            inputs[f"index::{name}"] = (INT64, (count,))
            if optimizer == "adam":
                inputs[f"steps::{name}"] = (FLOAT, (count,))
        guilt: Declared = {f"guilt::{name}": (FLOAT, (None,)) for name in plan.trainable}
        return Expected(inputs, outputs, guilt, self._outside(plan, inputs), {})

    def official_score(self, plan: PlanInfo, parameters: Sequence[str]) -> Expected:
        """The eval model of onnxruntime-training; its head is of the pack's classes."""
        shapes = {name: (FLOAT, self._weights[name].shape) for name in parameters}
        given: Declared = {**self._begin(plan), "sample_weight": (FLOAT, (None,)), **shapes}
        scores: Declared = {"objective": (FLOAT, ()), **self._scores}
        return Expected(given, scores, {}, frozenset(), {}, OFFICIAL)

    def official_step(self, plan: PlanInfo, parameters: Sequence[str]) -> Expected:
        """The training model: gradients are added up in place, which an output without content tells."""
        score = self.official_score(plan, parameters)
        flag = (BOOL, (1,))
        buffers = {f"{n}_grad.accumulation.buffer": (FLOAT, self._weights[n].shape) for n in plan.trainable}
        rows = {f"rows::{n}": (FLOAT, (self._weights[n].shape[0], 1, 1, 1)) for n in plan.channels}
        statistics = {f"batch::{n}": (FLOAT, self._weights[n].shape) for n in plan.buffers}
        added = {f"{n}_grad.accumulation.out": flag for n in plan.trainable}
        return score._replace(
            inputs={**score.inputs, "gamma": (FLOAT, (1,)), **rows, **buffers, "lazy_reset_grad": flag},
            outputs={**score.outputs, "kept": (FLOAT, ()), **statistics, **added},
        )

    def integers(self, int8: Int8Info) -> Declared:
        """Of the weights that an integer convolution takes, and of the grid of its image."""
        scale, zero = IMAGE_GRID
        supplied: Declared = {scale: (FLOAT, ()), zero: (UINT8, ())}
        for conv in int8.convolutions:
            shape = self._weights[conv.weight].shape
            if len(shape) != 4:
                raise WireError(f"{conv.weight} is no kernel")
            kinds = ((INT8, shape), (FLOAT, shape[:1]), (INT32, shape[:1]))
            supplied |= zip(conv.supplied, kinds, strict=True)
        return supplied

    def _begin(self, plan: PlanInfo) -> Declared:
        shape = (None, *self._manifest.backbones[plan.backbone].shape) if plan.backbone else self.image[1]
        return {"x": (FLOAT, shape), "labels": (INT64, (None,))}

    def _changing(self, plan: PlanInfo) -> Declared:
        return {name: self._of(name) for name in (*plan.trainable, *plan.buffers)}

    def _outside(self, plan: PlanInfo, inputs: Declared) -> Set[str]:
        before = self._manifest.backbones[plan.backbone].constants if plan.backbone else ()
        return self._weights.keys() - inputs.keys() - {*before}

    def _of(self, name: str) -> tuple[int, Dims]:
        """A weight that is an input; its class axis is known at run time, as a device may add classes."""
        shape: Dims = self._weights[name].shape
        if name in self._manifest.model.head:
            axis = shape.index(self._classes)
            shape = (*shape[:axis], None, *shape[axis + 1 :])
        return FLOAT, shape


def _check(form: GraphForm, expected: Expected, weights: Mapping[str, TensorPlace]) -> None:
    if form.opset not in VERSIONS[0] or form.ir_version not in VERSIONS[1]:
        raise WireError(f"it is of version {form.ir_version} and operator set {form.opset}")
    _check_values("input", form.inputs, expected.inputs, {})
    _check_values("output", form.outputs, expected.outputs, expected.optional)
    constants = {tensor.name: tensor for tensor in form.initializers}
    if len(constants) < len(form.initializers) or constants.keys() & expected.inputs.keys():
        raise WireError("an initializer occurs twice")
    for tensor in form.initializers:
        _check_tensor(tensor, expected, weights)
    for node in form.nodes:
        if node.op not in expected.operators:
            raise WireError(f"operator {node.op[:40]} is not one that a pack may use")
        place = SIZED_BY.get(node.op)
        size = constants.get(node.inputs[place]) if place is not None and place < len(node.inputs) else None
        if size is not None and _declared_elements(node.op, size) > MOST_ELEMENTS:
            raise WireError(f"operator {node.op} makes a tensor of more than {MOST_ELEMENTS} elements")


def _check_values(what: str, values: list[Value], needed: Declared, optional: Declared) -> None:
    found = {value.name: value for value in values}
    if len(found) < len(values) or not needed.keys() <= found.keys() <= needed.keys() | optional.keys():
        odd = sorted(found.keys() - optional.keys() ^ needed.keys()) or ["one twice"]
        raise WireError(f"its {what}s are not those of the manifest ({odd[0]})")
    for name, value in found.items():
        kind, dims = needed[name] if name in needed else optional[name]
        if value.kind != kind or len(value.dims) != len(dims) or not all(
            mine is None or mine == other for mine, other in zip(dims, value.dims, strict=True)
        ):  # fmt: skip
            raise WireError(f"{what} {name} is of another type or shape than the manifest says")


def _check_tensor(tensor: Tensor, expected: Expected, weights: Mapping[str, TensorPlace]) -> None:
    name, size = tensor.name, prod(tensor.shape) * ITEM_BYTES[tensor.kind]
    if tensor.external is None:
        if name in weights or name in expected.supplied or size != len(tensor.content):
            raise WireError(f"initializer {name} is not of its size, or stands in the wrong place")
        return
    location, offset, length = tensor.external
    if location == WEIGHTS and name in weights and name in expected.outside:
        place = weights[name]
        declared: tuple[object, ...] = (_KINDS.get(place.kind.str[1:]), place.shape, place.offset, place.length)
    elif location == SUPPLIED and name in expected.supplied:
        declared = (*expected.supplied[name], 0, size)
    else:
        raise WireError(f"initializer {name} points outside of the pack's weights")
    if (tensor.kind, tensor.shape, offset, length) != declared:
        raise WireError(f"initializer {name} does not match the pack's weights")


def _declared_elements(op: str, size: Tensor) -> int:
    """How many elements a constant operand asks for, at least."""
    if size.external or size.kind != INT64:
        return 0
    values = [abs(int(value)) for value in np.frombuffer(size.content, np.int64)]
    return prod(1 + value if op == "Pad" else max(value, 1) for value in values)
