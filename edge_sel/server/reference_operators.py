"""Operators that ONNX's reference implementation (onnx 1.23) has not, or not wholly, or only slowly."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


class OneHot(OpRun):
    """ONNX's own takes no depth of shape [1], which the standard allows."""

    op_domain = ""

    def _run(
        self, indices: np.ndarray, depth: np.ndarray, values: np.ndarray, axis: int | None = None
    ) -> tuple[np.ndarray]:
        members = indices[..., None] == np.arange(int(depth.reshape(-1)[0]))
        return (np.where(members, values[1], values[0]),)


class Conv(OpRun):
    """ONNX's own copies each window, image by image: on a MobileNet 3 times slower. Two axes and explicit pads only."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, **attributes: Any
    ) -> tuple[np.ndarray]:
        given = {name: value for name, value in attributes.items() if value is not None}
        (sh, sw), (dh, dw) = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        group, (top, left, bottom, right) = given.get("group", 1), given.get("pads", (0,) * 4)
        count, (out, per_group, kh, kw) = len(x), w.shape
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height, width = ((x.shape[2] - (kh - 1) * dh - 1) // sh + 1, (x.shape[3] - (kw - 1) * dw - 1) // sw + 1)
        x, w = x.reshape(count, group, per_group, *x.shape[2:]), w.reshape(group, out // group, per_group, kh, kw)
        y = np.zeros((count, group, out // group, height * width), x.dtype)
        for i in range(kh):
            for j in range(kw):
                seen = x[..., i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
                seen = seen.reshape(count, group, per_group, height * width)
                # A matrix product of one row and one column each is slow.
                y += w[:, :, 0, i, j, None] * seen if per_group == 1 else w[..., i, j] @ seen
        y = y.reshape(count, out, height, width)
        return (y if bias is None else y + bias[:, None, None],)


class ConvTranspose(OpRun):
    """ONNX's own takes no groups of several channels (onnx 1.23)."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None, **attributes: Any
    ) -> tuple[np.ndarray]:
        given = {name: value for name, value in attributes.items() if value is not None}
        (sh, sw), (dh, dw) = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        group, pads, extra = given.get("group", 1), given.get("pads", (0,) * 4), given.get("output_padding", (0, 0))
        (count, _, height, width), (_, per_out, kh, kw) = x.shape, w.shape
        full = ((height - 1) * sh + (kh - 1) * dh + 1 + extra[0], (width - 1) * sw + (kw - 1) * dw + 1 + extra[1])
        y = np.zeros((count, group, per_out, *full), x.dtype)
        x, w = x.reshape(count, group, -1, height, width), w.reshape(group, -1, per_out, kh, kw)
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dh, i * dh + (height - 1) * sh + 1, sh)
                columns = slice(j * dw, j * dw + (width - 1) * sw + 1, sw)
                y[..., rows, columns] += np.einsum("ngchw,gco->ngohw", x, w[..., i, j], optimize=True)
        y = y.reshape(count, group * per_out, *full)
        y = y[:, :, pads[0] : full[0] - pads[2], pads[1] : full[1] - pads[3]]
        return (y if bias is None else y + bias[:, None, None],)


class MaxPool(OpRun):
    """ONNX's own rounds a window too many up, and is slow."""

    op_domain = ""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        given = {name: value for name, value in attributes.items() if value is not None}
        kernel, pads = given["kernel_shape"], given.get("pads", (0,) * 4)
        strides, dilations = given.get("strides", (1, 1)), given.get("dilations", (1, 1))
        sizes = [
            _pooled(
                x.shape[2 + i], kernel[i], strides[i], dilations[i], (pads[i], pads[2 + i]), given.get("ceil_mode", 0)
            )
            for i in (0, 1)
        ]
        reach = [(sizes[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 for i in (0, 1)]
        ends = [max(0, reach[i] - pads[i] - x.shape[2 + i]) for i in (0, 1)]
        around = ((0, 0), (0, 0), (pads[0], ends[0]), (pads[1], ends[1]))
        padded = np.pad(x, around, constant_values=-np.inf)
        places = np.pad(np.arange(x.size).reshape(x.shape), around)
        views = [
            (slice(None), slice(None), *(
                slice(p * dilations[i], p * dilations[i] + (sizes[i] - 1) * strides[i] + 1, strides[i])
                for i, p in enumerate(position)
            ))
            for position in np.ndindex(*kernel)
        ]  # fmt: skip
        windows = np.stack([padded[view] for view in views])
        best = windows.argmax(0)[None]
        values = np.take_along_axis(windows, best, 0)[0]
        return values, np.take_along_axis(np.stack([places[view] for view in views]), best, 0)[0]


def _pooled(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil: int) -> int:
    """Windows along an axis; with ``ceil`` one more that begins inside of the image and ends outside."""
    room = size + sum(pads) - (kernel - 1) * dilation - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    return count - 1 if ceil and (count - 1) * stride >= size + pads[0] else count
