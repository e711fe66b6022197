"""Forward ONNX files as other people's exporters leave them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIZE, CLASSES = 16, 3


class Small(nn.Module):
    """Convolutions with batch normalisation, a shortcut, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm2(self.conv(x)) + x)
        x = nn.functional.hardswish(self.deep(torch.relu(self.down(x))))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class ConvHead(Small):
    """Its head is a 1×1 convolution of one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(torch.relu(self.down(x)), 1)).flatten(1)


class NoBias(Small):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, CLASSES, bias=False)


def settled(make: Callable[[], nn.Module] = Small) -> nn.Module:
    """The network with running statistics that are not those it began with."""
    torch.manual_seed(0)
    model = make().train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(16, 3, SIZE, SIZE))
    return model.eval()


def torch_file(path: Path, model: nn.Module, *, opset: int = 17, dynamic: bool = True, folded: bool = False) -> Path:
    """What torch's older exporter writes: with ``folded``, batch normalisation in the convolutions, weights unnamed."""
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(1, 3, SIZE, SIZE),), str(path), dynamo=False, opset_version=opset, training=mode,
            do_constant_folding=folded, input_names=["pictures"], output_names=["scores"],
            dynamic_axes={"pictures": {0: "n"}} if dynamic else None,
        )  # fmt: skip
    return path


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """The file with its model changed."""
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def with_softmax(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=-1))
    model.graph.output[0].name = "probabilities"


def with_features_too(model: onnx.ModelProto) -> None:
    """A second output: the map before the last pooling."""
    pool = next(node for node in model.graph.node if "AveragePool" in node.op_type)
    model.graph.output.append(helper.make_tensor_value_info(pool.input[0], TensorProto.FLOAT, None))


def channels_last(model: onnx.ModelProto) -> None:
    """As Keras has it."""
    graph = model.graph
    graph.node.insert(0, helper.make_node("Transpose", ["image"], ["pictures"], perm=[0, 3, 1, 2]))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", SIZE, SIZE, 3]))


def scaled_inside(model: onnx.ModelProto) -> None:
    """Channels last, and scaled before they are turned."""
    channels_last(model)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array([2.0, 3.0, 4.0], np.float32), "scale"))
    graph.node.insert(0, helper.make_node("Mul", ["image", "scale"], ["scaled"]))
    graph.node[1].input[0] = "scaled"


def product_and_sum(model: onnx.ModelProto) -> None:
    """The head as MatMul and Add."""
    graph = model.graph
    gemm = graph.node[-1]
    weight = numpy_helper.to_array(next(i for i in graph.initializer if i.name == gemm.input[1]))
    graph.initializer.append(numpy_helper.from_array(weight.T.copy(), "dense/MatMul/ReadVariableOp:0"))
    graph.node.extend([
        helper.make_node("MatMul", [gemm.input[0], "dense/MatMul/ReadVariableOp:0"], ["product"]),
        helper.make_node("Add", ["product", gemm.input[2]], ["scores"]),
    ])  # fmt: skip
    graph.node.remove(gemm)


def turned_head(model: onnx.ModelProto) -> None:
    """A convolution of one pixel, turned to channels last before it is flattened."""
    graph = model.graph
    graph.node[-1].input[0] = "last"
    graph.node.insert(
        len(graph.node) - 1, helper.make_node("Transpose", [graph.node[-2].output[0]], ["last"], perm=[0, 2, 3, 1])
    )


def weights_as_inputs(model: onnx.ModelProto) -> None:
    """As files of IR version 3 list them."""
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def equal_biases_once(model: onnx.ModelProto) -> None:
    """As tf2onnx stores tensors that are equal."""
    biases = [n for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 3]
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    same = [n for n in biases if shapes[n.input[2]] == [12]]
    assert len(same) == 2
    for tensor in model.graph.initializer:
        if tensor.name == same[0].input[2]:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(12, np.float32), tensor.name))
    same[1].input[2] = same[0].input[2]


def as_paddle_writes(model: onnx.ModelProto) -> None:
    """A batch of -1, the target of a Reshape from 32-bit integers, MatMul and Add, and Identity behind Softmax.

    As the text-direction classifier of PaddleOCR, of operator set 11.
    """
    product_and_sum(model)
    graph = model.graph
    flatten = next(node for node in graph.node if node.op_type in ("Flatten", "Reshape"))
    place, (pooled, flat) = list(graph.node).index(flatten), (flatten.input[0], flatten.output[0])
    graph.node.remove(flatten)
    for name, value, kind in (("begin", 0, np.int64), ("end", 1, np.int64), ("width", 12, np.int32)):
        graph.node.insert(0, helper.make_node("Constant", [], [name], name,
                                              value=numpy_helper.from_array(np.array([value], kind), name)))  # fmt: skip
        place += 1
    reshaped = (
        helper.make_node("Shape", [pooled], ["sizes"], "sizes"),
        helper.make_node("Slice", ["sizes", "begin", "end", "begin"], ["rows"], "rows"),
        helper.make_node("Cast", ["width"], ["wide"], "wide", to=TensorProto.INT64),
        helper.make_node("Concat", ["rows", "wide"], ["target"], "target", axis=-1),
        helper.make_node("Reshape", [pooled, "target"], [flat], "flat"),
    )
    for number, node in enumerate(reshaped):
        graph.node.insert(place + number, node)
    graph.node.extend([
        helper.make_node("Softmax", ["scores"], ["shares"], "softmax", axis=1),
        helper.make_node("Identity", ["shares"], ["probabilities"], "same"),
    ])  # fmt: skip
    graph.output[0].name = "probabilities"
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1


def identity_before_softmax(model: onnx.ModelProto) -> None:
    """MatMul, Add, Identity, Softmax."""
    product_and_sum(model)
    model.graph.node.append(helper.make_node("Identity", ["scores"], ["same"], "same"))
    with_softmax(model)
    model.graph.node[-1].input[0] = "same"


def named_as_a_step_names(model: onnx.ModelProto) -> None:
    """Nodes and tensors that are called as those of a compiled step."""
    graph = model.graph
    names = ("loss", "labels", "lr", "a::b", "a::b_", "const_0", "kept", "step", "features")
    for number, (node, name) in enumerate(zip(list(graph.node), names, strict=False)):
        node.name = f"Add_{14 + number}"
        old = node.output[0]
        if old in (value.name for value in graph.output):
            continue
        for other in graph.node:
            other.input[:] = [name if given == old else given for given in other.input]
        node.output[0] = name


def normalised_behind_relu(model: onnx.ModelProto) -> None:
    """A normalisation as a product and a sum, which an exporter could fold into nothing."""
    graph = model.graph
    relu = next(node for node in graph.node if node.op_type == "Relu")
    old = relu.output[0]
    relu.output[0] = "before"
    rng = np.random.default_rng(3)
    for name, low in (("batchnorm/mul", 0.5), ("batchnorm/sub", -0.5)):
        values = rng.uniform(low, low + 1, (1, 8, 1, 1)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
    place = list(graph.node).index(relu)
    graph.node.insert(place + 1, helper.make_node("Mul", ["before", "batchnorm/mul"], ["scaled"], "scaled"))
    graph.node.insert(place + 2, helper.make_node("Add", ["scaled", "batchnorm/sub"], [old], "shifted"))
