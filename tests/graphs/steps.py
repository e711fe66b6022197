"""One compiled step on plain ONNX Runtime beside the same step in torch autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import torch
import torch.nn.functional as F
from torch import nn

from edge_sel.graphs.ir import Forward
from edge_sel.graphs.optimizers import BETA1
from edge_sel.graphs.plans import Plan, make_plan
from edge_sel.graphs.train import compile_train
from edge_sel.server.parity import NOISE

Arrays = dict[str, np.ndarray]


def runner(model) -> Callable[[Arrays], Arrays]:
    """Gives every output of a model; needs nothing but the feeds it names."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs, names = [i.name for i in session.get_inputs()], [output.name for output in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, {name: feeds[name] for name in inputs}), strict=True))


def run(model, feeds: Arrays) -> Arrays:
    """The outputs of a model that is run once."""
    return runner(model)(feeds)


def batch(size: int | tuple[int, int], count: int = 6, classes: int = 5, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "x": rng.standard_normal((count, 3, height, width)).astype(np.float32),
        "labels": rng.integers(0, classes, count),
        "sample_weight": rng.uniform(0.5, 1.5, count).astype(np.float32),
    }


def step_feeds(model: nn.Module, plan: Plan, data: Arrays) -> Arrays:
    """Everything that a first Adam step reads: fresh moments, no mask, the first channels of a budget."""
    tensors = {n: v.detach().numpy().copy() for n, v in model.state_dict().items()}
    scalars = {"lr": 1e-3, "gamma": -1.0, "step": 1.0, "momentum": 0.9, "bn_momentum": 1.0}
    feeds = {**data, **tensors, **{n: np.array(v, np.float32) for n, v in scalars.items()}}
    feeds |= {f"{slot}::{n}": np.zeros_like(tensors[n]) for n in plan.trainable for slot in ("m", "v", "momentum")}
    feeds |= {f"index::{n}": np.arange(k, dtype=np.int64) for n, k in plan.channels.items()}
    return feeds | {f"steps::{n}": np.ones(k, np.float32) for n, k in plan.channels.items()}


def assert_step_is_autograds(model: nn.Module, forward: Forward, name: str, data: Arrays, tolerance: float = 1e-3):
    """Losses, logits, gradients (from Adam's first moment) and running statistics of one step of a plan."""
    plan = make_plan(forward, name)
    got = run(compile_train(forward, plan, "adam"), step_feeds(model, plan, data))
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # dropout stays off, as in the exported graph
            module.train(plan.bn_mode == "batch").momentum = 1.0
    x, labels, weights = (torch.from_numpy(data[n]) for n in ("x", "labels", "sample_weight"))
    logits = model(x.double())
    losses = F.cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(
        got["logits"], logits.detach(), rtol=1e-3, atol=1e-3 * float(logits.detach().abs().max())
    )
    np.testing.assert_allclose(got["loss"], losses.detach(), rtol=1e-3, atol=1e-4)
    if plan.trainable:
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad((losses * weights).mean(), [named[n] for n in plan.trainable])
        largest = max(float(g.abs().max()) for g in gradients)
        for key, expected in zip(plan.trainable, gradients, strict=True):
            rows = slice(plan.channels.get(key))
            ours, theirs = got[f"new::m::{key}"][rows] / (1 - BETA1), expected.numpy()[rows]
            assert ours.shape == theirs.shape, key
            scale = max(np.abs(theirs).max(), NOISE * largest)
            assert np.abs(ours - theirs).max() <= tolerance * scale, (key, np.abs(ours - theirs).max() / scale)
    after = model.state_dict()
    for key in plan.buffers:
        np.testing.assert_allclose(got[f"new::{key}"], after[key], rtol=1e-3, atol=1e-5, err_msg=key)
