"""Operators that stand in for those of ONNX's reference implementation, beside torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edge_sel.server.onnx_reference import Conv, ConvTranspose, MaxPool


def run(op, shapes, outputs, **attributes):
    rng = np.random.default_rng(0)
    values = {f"i{n}": rng.standard_normal(shape) for n, shape in enumerate(shapes)}
    node = helper.make_node(op, list(values), outputs, **attributes)
    inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, None) for name in values]
    made = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs]
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, made), opset_imports=[helper.make_opsetid("", 18)]
    )
    return list(values.values()), ReferenceEvaluator(model, new_ops=[Conv, ConvTranspose, MaxPool]).run(None, values)


@pytest.mark.parametrize(
    ("group", "out", "kernel", "stride", "padding", "dilation", "bias"),
    ((1, 8, 3, 1, 1, 1, True), (1, 4, 1, 2, 0, 1, False), (6, 6, 3, 2, 1, 1, True), (6, 12, 3, 1, 2, 2, False),
     (2, 4, 2, 2, 0, 1, True)),
)  # fmt: skip
def test_a_convolution_is_torchs(group, out, kernel, stride, padding, dilation, bias):
    shapes = [(2, 6, 9, 8), (out, 6 // group, kernel, kernel)] + ([(out,)] if bias else [])
    values, (found,) = run("Conv", shapes, ["y"], group=group, strides=[stride] * 2, pads=[padding] * 4,
                           dilations=[dilation] * 2)  # fmt: skip
    given = [torch.from_numpy(value) for value in values]
    expected = F.conv2d(*given, stride=stride, padding=padding, groups=group, dilation=dilation)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("group", "kernel", "stride", "padding", "extra", "dilation", "bias"),
    ((1, 3, 1, 1, 0, 1, True), (3, 3, 2, 1, 1, 1, False), (6, 3, 2, 0, 0, 1, False), (2, 2, 2, 0, 0, 2, True)),
)
def test_a_transposed_convolution_is_torchs(group, kernel, stride, padding, extra, dilation, bias):
    shapes = [(2, 6, 5, 4), (6, 8 // group if group < 3 else 2, kernel, kernel)]
    shapes += [(shapes[1][1] * group,)] if bias else []
    values, (found,) = run(
        "ConvTranspose", shapes, ["y"], group=group, strides=[stride] * 2, pads=[padding] * 4,
        output_padding=[extra] * 2, dilations=[dilation] * 2,
    )  # fmt: skip
    given = [torch.from_numpy(value) for value in values]
    expected = F.conv_transpose2d(
        *given, stride=stride, padding=padding, output_padding=extra, groups=group, dilation=dilation
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "ceil"),
    ((8, 2, 2, 0, 0), (7, 3, 2, 1, 0), (7, 3, 2, 0, 1), (6, 3, 2, 0, 1), (12, 3, 2, 0, 1), (5, 2, 2, 1, 1)),
)
def test_max_pooling_is_torchs(size, kernel, stride, padding, ceil):
    (x,), (found, places) = run(
        "MaxPool", [(2, 3, size, size + 1)], ["y", "places"], kernel_shape=[kernel] * 2, strides=[stride] * 2,
        pads=[padding] * 4, ceil_mode=ceil,
    )  # fmt: skip
    expected = F.max_pool2d(torch.from_numpy(x), kernel, stride, padding, ceil_mode=bool(ceil))
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(x.ravel()[places], found)
