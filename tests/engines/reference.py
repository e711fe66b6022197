"""What an engine must compute, from torch.autograd and torch.optim: shares no code with the engines.

Only the network's definition is the product's: what a pack names is built by ``edge_sel.models``, with the layer that
reads its last blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.torch import add_deep_head
from edge_sel.graphs.ir import Forward
from edge_sel.models.registry import build
from edge_sel.pack.reader import Pack
from edge_sel.server.source.base import WarmupInfo
from edge_sel.server.source.torch_model import from_module


def network(pack: Pack) -> nn.Module:
    """The pack's network with the pack's weights."""
    info = pack.manifest.model
    model = add_deep_head(build(info.name, len(info.classes), info.image_size), info.taps, len(info.classes))
    found = model.load_state_dict({n: torch.tensor(v) for n, v in pack.weights().items()}, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    return model


def forward_of(pack: Pack) -> Forward:
    """What the pack's graphs are compiled from."""
    info = pack.manifest.model
    model = build(info.name, len(info.classes), info.image_size)
    own = {n: torch.tensor(v) for n, v in pack.weights().items() if n in model.state_dict()}
    model.load_state_dict(own, strict=False)
    info_without = WarmupInfo(info.name, info.classes, info.image_size, info.mean, info.std, {})
    return from_module(model.eval(), info_without).forward


class Step(NamedTuple):
    """Losses before the update, gradients, and afterwards the plan's weights and statistics."""

    losses: np.ndarray
    gradients: Arrays
    weights: Arrays


class Reference:
    """A plan's training in plain torch, in float64 unless told otherwise.

    Rows outside a budget get no gradient, so as long as the channels stay the same they stay at their start.
    """

    def __init__(self, pack: Pack, plan: str, hyper: Hyper, dtype: torch.dtype = torch.float64) -> None:
        self.plan, self.dtype = pack.plan(plan), dtype
        self.model = network(pack).to(dtype).train(self.plan.bn_mode == "batch")
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = hyper.bn_momentum
        named = dict(self.model.named_parameters())
        self.trained = {name: named[name] for name in self.plan.trainable}
        parameters = list(self.trained.values()) or [torch.zeros(1)]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, hyper.learning_rate, momentum=hyper.momentum)
            if pack.manifest.optimizer == "sgd"
            else torch.optim.Adam(parameters, hyper.learning_rate)
        )

    def gradients(self, batch: Batch) -> tuple[np.ndarray, Arrays]:
        """Per-sample losses, and the gradients of their weighted mean, of all rows."""
        logits = self.model(torch.from_numpy(batch.images).to(self.dtype))
        losses = F.cross_entropy(logits, torch.from_numpy(batch.labels), reduction="none")
        self.optimizer.zero_grad()
        if self.trained:
            (losses * torch.from_numpy(batch.weights).to(self.dtype)).mean().backward()
        return losses.detach().numpy(), {name: tensor.grad.numpy() for name, tensor in self.trained.items()}

    def step(self, batch: Batch) -> Step:
        """One update of the first channels of each budget."""
        losses, gradients = self.gradients(batch)
        for name, count in self.plan.channels.items():
            gradients[name][count:] = 0  # a view of what the optimizer reads
        gradients = {name: value.copy() for name, value in gradients.items()}
        self.optimizer.step()
        return Step(losses, gradients, self.weights())

    def weights(self) -> Arrays:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {n: tensors[n].detach().numpy().copy() for n in (*self.plan.trainable, *self.plan.buffers)}

    def moments(self, name: str) -> Arrays:
        """What the optimizer keeps of a weight, by the names of a trainer's state."""
        theirs = {"momentum_buffer": "momentum", "exp_avg": "m", "exp_avg_sq": "v"}
        kept = self.optimizer.state[self.trained[name]]
        return {f"{ours}::{name}": kept[key].numpy() for key, ours in theirs.items() if key in kept}


def batch_statistics(pack: Pack, images: np.ndarray) -> Arrays:
    """Mean and unbiased variance of what each batch norm is given, in a forward pass that normalises by the batch."""
    seen: Arrays = {}

    def remember(name: str):
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[f"{name}.running_mean"] = inputs[0].mean((0, 2, 3)).numpy()
            seen[f"{name}.running_var"] = inputs[0].var((0, 2, 3), unbiased=True).numpy()

        return hook

    model = network(pack).double().train()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(remember(name))
    with torch.no_grad():
        model(torch.from_numpy(images).double())
    return seen
