"""One line per gradient rule and form. Every rule in the table must have at least one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Case:
    """A node, the shapes (or values) of its inputs, and the same function in torch of the differentiable ones."""

    op: str
    inputs: tuple[Any, ...]
    torch: Callable[..., torch.Tensor]
    attributes: dict[str, Any] = field(default_factory=dict)
    wanted: tuple[int, ...] | None = None
    bn_mode: str = "frozen"
    low: float = -2.0
    step: float = 1e-6
    tolerance: float = 1e-6

    @property
    def id(self) -> str:
        shapes = ["x".join(map(str, i)) if isinstance(i, tuple) else "const" for i in self.inputs]
        return f"{self.op}-{'-'.join(shapes)}-{self.bn_mode}" + "".join(f"-{k}{v}" for k, v in self.attributes.items())


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def value(v: float) -> np.ndarray:
    return np.array(v, np.float32)


def conv(stride=1, padding=0, dilation=1, groups=1):
    return lambda x, w, b=None: F.conv2d(x, w, b, stride, padding, dilation, groups)


def conv_attributes(stride=1, padding=0, dilation=1, group=1, kernel=3):
    s, p, d = ((v, v) if isinstance(v, int) else v for v in (stride, padding, dilation))
    return {"strides": list(s), "pads": [*p, *p], "dilations": list(d), "group": group}


def _conv(x, w, *, bias=False, **kw):
    groups = kw.get("group", 1)
    shapes = (x, w, (w[0],)) if bias else (x, w)
    torch_conv = conv(kw.get("stride", 1), kw.get("padding", 0), kw.get("dilation", 1), groups)
    return Case("Conv", shapes, torch_conv, conv_attributes(**kw))


def frozen_bn(x, scale, bias):
    return F.batch_norm(x, torch.full((x.shape[1],), 0.3), torch.full((x.shape[1],), 1.7), scale, bias, False, 0, 1e-3)


def batch_bn(x, scale, bias):
    return F.batch_norm(x, None, None, scale, bias, True, 0.1, 1e-3)


CHOICE = np.array([[True, False, True], [False, False, True]])
BN_STATS = (np.full(3, 0.3, np.float32), np.full(3, 1.7, np.float32))

CASES = [
    _conv((2, 3, 12, 12), (4, 3, 3, 3), padding=1, bias=True),
    _conv((2, 6, 12, 12), (4, 6, 3, 3), padding=1),
    _conv((2, 3, 6, 6), (4, 3, 3, 3), padding=1),
    _conv((2, 3, 8, 8), (4, 3, 3, 3), padding=1, stride=2),
    _conv((2, 3, 9, 7), (4, 3, 3, 3), padding=1, stride=2),
    _conv((2, 3, 10, 10), (4, 3, 1, 1)),
    _conv((2, 3, 10, 10), (4, 3, 1, 1), stride=2),
    _conv((2, 3, 12, 14), (4, 3, 3, 5), padding=(1, 2)),
    _conv((2, 3, 14, 14), (2, 3, 3, 3), padding=2, dilation=2),
    _conv((2, 4, 10, 10), (4, 1, 3, 3), padding=1, group=4),
    _conv((2, 4, 10, 10), (4, 1, 3, 3), padding=1, stride=2, group=4),
    _conv((2, 4, 10, 10), (6, 2, 3, 3), padding=1, group=2),
    _conv((2, 3, 11, 11), (4, 3, 2, 2), stride=3),
    _conv((2, 3, 8, 9), (4, 3, 2, 3), stride=(2, 3), bias=True),
    _conv((2, 5, 11, 8), (4, 5, 3, 3), stride=3),
    _conv((2, 64, 3, 4), (3, 64, 3, 3), padding=1, bias=True),
    _conv((2, 64, 6, 5), (3, 64, 3, 3), padding=(1, 0), stride=2),
    _conv((3, 64, 4, 4), (70, 64, 3, 3), padding=2, dilation=2),
    _conv((2, 64, 4, 4), (5, 64, 5, 5), padding=2),
    _conv((2, 64, 2, 2), (5, 64, 5, 5), padding=2),  # the outer places of this kernel touch only padding
    _conv((2, 64, 7, 5), (3, 64, 2, 3), stride=3),
    _conv((2, 3, 12, 12), (2, 3, 1, 1), padding=1),
    _conv((2, 8, 6, 6), (4, 8, 3, 3), padding=1),
    _conv((2, 8, 6, 6), (9, 8, 3, 3), padding=1, bias=True),
    _conv((2, 8, 7, 9), (9, 8, 3, 5), padding=(1, 2), stride=2),
    _conv((2, 8, 12, 12), (4, 8, 3, 3), padding=2, dilation=2),
    Case("Gemm", ((5, 4), (3, 4), (3,)), lambda x, w, b: x @ w.T + b, {"transB": 1}),
    Case("Gemm", ((5, 4), (4, 3)), lambda x, w: x @ w),
    Case("MatMul", ((2, 5, 4), (4, 3)), torch.matmul),
    Case("MatMul", ((2, 3, 5, 4), (2, 3, 4, 6)), torch.matmul),
    Case("MatMul", ((5, 4), (2, 4, 3)), torch.matmul),
    Case("BatchNormalization", ((2, 3, 4, 4), (3,), (3,), *BN_STATS), frozen_bn, {"epsilon": 1e-3}, (0, 1, 2)),
    Case("BatchNormalization", ((4, 3, 4, 4), (3,), (3,), *BN_STATS), batch_bn, {"epsilon": 1e-3}, (0, 1, 2), "batch"),
    Case("BatchNormalization", ((6, 3), (3,), (3,), *BN_STATS), frozen_bn, {"epsilon": 1e-3}, (0, 1, 2)),
    Case("LayerNormalization", ((2, 5, 6), (6,), (6,)), lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-3),
         {"axis": -1, "epsilon": 1e-3}),
    Case("InstanceNormalization", ((2, 3, 4, 5), (3,), (3,)),
         lambda x, w, b: F.instance_norm(x, None, None, w, b, True, 0.1, 1e-3), {"epsilon": 1e-3}),
    Case("InstanceNormalization", ((2, 3, 6), (3,), (3,)),
         lambda x, w, b: F.instance_norm(x, None, None, w, b, True, 0.1, 1e-3), {"epsilon": 1e-3}),
    Case("Relu", ((3, 7),), torch.relu),
    Case("PRelu", ((2, 3, 4), (3, 1)), lambda x, a: torch.where(x > 0, x, a * x)),
    Case("Elu", ((3, 7),), F.elu),
    Case("Elu", ((3, 7),), lambda x: F.elu(x, 0.5), {"alpha": 0.5}),
    Case("Softplus", ((3, 7),), F.softplus),
    Case("LeakyRelu", ((3, 7),), lambda x: F.leaky_relu(x, 0.1), {"alpha": 0.1}),
    Case("Clip", ((3, 7), value(0.0), value(1.5)), lambda x: x.clamp(0, 1.5), {}, (0,)),
    Case("Clip", ((3, 7), value(-1.0)), lambda x: x.clamp(min=-1), {}, (0,)),
    Case("Sigmoid", ((3, 7),), torch.sigmoid),
    Case("Tanh", ((3, 7),), torch.tanh),
    Case("HardSigmoid", ((5, 7),), lambda x: torch.clamp(0.4 * x + 0.5, 0, 1), {"alpha": 0.4}),
    Case("HardSwish", ((5, 7),), F.hardswish),
    Case("Erf", ((3, 7),), torch.erf),
    Case("Softmax", ((3, 2, 7),), lambda x: x.softmax(-1), {"axis": -1}),
    Case("Softmax", ((3, 2, 7),), lambda x: x.softmax(1), {"axis": 1}),
    Case("Identity", ((3, 7),), lambda x: x * 1),
    Case("Neg", ((3, 7),), torch.neg),
    Case("Add", ((2, 3, 4), (3, 1)), torch.add),
    Case("Add", ((2, 3, 4), (2, 3, 4)), torch.add),
    Case("Sub", ((2, 3, 4), (4,)), torch.sub),
    Case("Mul", ((2, 3, 4), (2, 1, 4)), torch.mul),
    Case("Mul", ((4,), (2, 3, 4)), torch.mul),
    Case("Div", ((2, 3), (2, 3)), torch.div, {}, None, "frozen", 0.5),
    Case("Sqrt", ((2, 3),), torch.sqrt, {}, None, "frozen", 0.5),
    Case("Exp", ((2, 3),), torch.exp),
    Case("Log", ((2, 3),), torch.log, {}, None, "frozen", 0.5),
    Case("Reciprocal", ((2, 3),), torch.reciprocal, {}, None, "frozen", 0.5),
    Case("Abs", ((2, 3),), torch.abs),
    Case("Max", ((2, 3, 4), (3, 1)), torch.maximum),
    Case("Min", ((2, 3, 4), value(0.3)), lambda x: x.clamp(max=0.3), {}, (0,)),
    Case("Where", (CHOICE, (3,), (2, 1)), lambda a, b: torch.where(torch.from_numpy(CHOICE), a, b), {}, (1, 2)),
    Case("Sum", ((2, 3), (3,), (2, 1)), lambda a, b, c: a + b + c),
    Case("Sum", ((2, 3),), lambda a: a * 1),
    Case("Pow", ((2, 3), value(2.5)), lambda x: x**2.5, {}, (0,), "frozen", 0.5),
    Case("Reshape", ((2, 3, 4), ints(2, 12)), lambda x: x.reshape(2, 12), {}, (0,)),
    Case("Flatten", ((2, 3, 4),), lambda x: x.flatten(1)),
    Case("Squeeze", ((2, 1, 4), ints(1)), lambda x: x.squeeze(1), {}, (0,)),
    Case("Unsqueeze", ((2, 4), ints(1)), lambda x: x.unsqueeze(1), {}, (0,)),
    Case("Transpose", ((2, 3, 4),), lambda x: x.permute(2, 0, 1), {"perm": [2, 0, 1]}),
    Case("Concat", ((2, 3), (2, 4)), lambda a, b: torch.cat([a, b], 1), {"axis": 1}),
    Case("Slice", ((2, 6, 5), ints(1, 2), ints(4, 99), ints(1, 2)), lambda x: x[:, 1:4, 2:], {}, (0,)),
    Case("Pad", ((2, 3, 4), ints(0, 1, 0, 0, 0, 2)), lambda x: F.pad(x, (0, 2, 1, 0)), {}, (0,)),
    Case("Pad", ((2, 3, 4), ints(1, 2), value(5.0), ints(-1)), lambda x: F.pad(x, (1, 2), value=5.0),
         {"mode": b"constant"}, (0,)),
    Case("Slice", ((2, 6), ints(0, 2), ints(2**63 - 1, 5), ints(0, 1)), lambda x: x[:, 2:5], {}, (0,)),
    Case("Slice", ((2, 7, 5), ints(1, 0), ints(7, 5), ints(1, 2), ints(2, 3)), lambda x: x[:, 1:7:2, 0:5:3], {}, (0,)),
    Case("Slice", ((6, 4), ints(-4), ints(2**63 - 1), ints(0), ints(3)), lambda x: x[-4::3], {}, (0,)),
    Case("GatherND", ((5, 3), ints(4, 1, 1).reshape(3, 1)), lambda x: x[[4, 1, 1]], {}, (0,)),
    Case("GatherND", ((4, 3, 2), ints(1, 2, 3, 0).reshape(2, 2)), lambda x: x[[1, 3], [2, 0]], {}, (0,)),
    Case("GatherND", ((4, 3, 2), ints(-1, 2, 3, -3, 3, -3, 0, 1).reshape(2, 2, 2)),
         lambda x: x[[[-1, 3], [3, 0]], [[2, -3], [-3, 1]]], {}, (0,)),
    Case("ScatterND", ((4, 3), ints(2, 0).reshape(2, 1), (2, 3)), lambda x, u: x.index_copy(0, torch.tensor([2, 0]), u), {}, (0, 2)),
    Case("ReduceL2", ((2, 3, 4, 5), ints(2, 3)), lambda x: x.square().sum((2, 3), keepdim=True).sqrt(), {}, (0,)),
    Case("ReduceL2", ((2, 3, 4), ints(-1)), lambda x: x.square().sum(-1).sqrt(), {"keepdims": 0}, (0,)),
    Case("ReduceL2", ((3, 4),), lambda x: x.square().sum((0, 1), keepdim=True).sqrt()),
    Case("Gather", ((2, 5, 3), ints(4, 1, 1)), lambda x: x[:, [4, 1, 1]], {"axis": 1}, (0,)),
    Case("Gather", ((2, 5, 3), np.array(2, np.int64)), lambda x: x[:, 2], {"axis": 1}, (0,)),
    Case("Gather", ((5, 3), np.array([[4, 1], [1, 0]])), lambda x: x[torch.tensor([[4, 1], [1, 0]])], {}, (0,)),
    Case("Gather", ((5,), np.array([[4], [1]])), lambda x: x[torch.tensor([[4], [1]])], {}, (0,)),
    Case("Expand", ((3, 1), ints(2, 3, 4)), lambda x: x.expand(2, 3, 4), {}, (0,)),
    Case("ReduceMean", ((2, 3, 4, 4), ints(2, 3)), lambda x: x.mean((2, 3)), {"keepdims": 0}, (0,)),
    Case("ReduceMean", ((2, 3, 4), ints(-1)), lambda x: x.mean(-1, keepdim=True), {"keepdims": 1}, (0,)),
    Case("ReduceSum", ((2, 3, 4), ints(0, -1)), lambda x: x.sum((0, 2)), {"keepdims": 0}, (0,)),
    Case("ReduceSum", ((2, 3, 4),), lambda x: x.sum((0, 1, 2), keepdim=True)),
    Case("GlobalAveragePool", ((2, 3, 4, 5),), lambda x: x.mean((2, 3), keepdim=True)),
    Case("AveragePool", ((2, 3, 8, 8),), lambda x: F.avg_pool2d(x, 2), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("AveragePool", ((2, 3, 7, 7),), lambda x: F.avg_pool2d(x, 3, 2),
         {"kernel_shape": [3, 3], "strides": [2, 2]}),
    Case("AveragePool", ((2, 3, 7, 8),), lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
         {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", ((2, 3, 6, 7),), lambda x: F.avg_pool2d(x, 3, 1, 1),
         {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", ((2, 3, 7, 8),), lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
         {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", ((2, 3, 8, 9),), lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
         {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    Case("MaxPool", ((2, 3, 8, 8),), lambda x: F.max_pool2d(x, 2), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("MaxPool", ((2, 3, 9, 9),), lambda x: F.max_pool2d(x, 3, 2, 1),
         {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
]  # fmt: skip
