"""Optimizers, their schedules, and all gradients in one piece. Nothing here waits for the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from edge_sel.reference.systems import Optimizer, Schedule
from edge_sel.sel.curriculum import annealed, sel_learning_rate

_CYCLE_EPOCHS, _CYCLE_DECAY = 10, 0.85
_LOOKAHEAD_STEPS = 5


class FlatGradient:
    """The gradients of all trainable parameters as views of one vector.

    One vector is masked, counted and averaged over GPUs by one operation instead of one per layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        self.values = torch.zeros(sum(self.sizes), device=self.parameters[0].device)
        for parameter, chunk in zip(self.parameters, self.values.split(self.sizes), strict=True):
            # A view with its parameter's strides, as fused optimizers want it.
            parameter.grad = chunk.as_strided(parameter.shape, parameter.stride(), chunk.storage_offset())

    def collect(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """Tensors like the parameters, laid out like ``values``."""
        return torch.cat([_flat(t, p) for t, p in zip(tensors, self.parameters, strict=True)])

    @torch.no_grad()
    def scale_weights(self, factors: torch.Tensor) -> None:
        """Multiply the parameters themselves by ``factors``, laid out like ``values``."""
        for parameter, chunk in zip(self.parameters, factors.split(self.sizes), strict=True):
            parameter.mul_(chunk.as_strided(parameter.shape, parameter.stride(), chunk.storage_offset()))


def _flat(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor's values in the order in which ``like`` stands in memory."""
    copy = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
    return copy.as_strided((copy.numel(),), (1,))


def rate_factor(schedule: Schedule, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """What the base rate is multiplied by at a step; 1 for ``constant`` and ``sel``.

    ``cosine``: one annealing over the run. ``cycles``: annealed every 10 epochs, each time from 0.85 of the last
    peak. ``triangle``: up from 0.2 in the first 23 % of the run, then down to 0.07.

    Source: Zhou et al. 2020, appendix (cycles); airbench94 (triangle).
    """
    if schedule == "cosine":
        return annealed(1.0, step, total_steps)
    if schedule == "cycles":
        length = _CYCLE_EPOCHS * steps_per_epoch
        cycle, place = divmod(step, length)
        last = cycle == (total_steps - 1) // length
        return _CYCLE_DECAY**cycle * annealed(1.0, place, total_steps - cycle * length if last else length)
    if schedule == "triangle":
        peak = max(1, math.floor(0.23 * total_steps))
        if step <= peak:
            return 0.2 + 0.8 * step / peak
        return 1.0 + (0.07 - 1.0) * (step - peak) / max(1, total_steps - peak)
    return 1.0


class Stepper:
    """One optimizer with its schedule.

    The rate is a tensor on the device, so that SEL's rate, which follows the loss, needs no look at it.

    Attributes:
        schedule: how the rate goes; may be set before any step.
        loss_scale: does nothing without ``scale_loss``, which float16 needs.
    """

    def __init__(self, model: nn.Module, options: Optimizer, device: torch.device, *, scale_loss: bool = False) -> None:
        self.options = options
        self.schedule: Schedule = options.schedule
        self.loss_scale = torch.amp.GradScaler(device.type, enabled=scale_loss)
        biases = {
            id(module.bias)
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and options.bias_factor != 1.0
        }
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trainable if id(p) not in biases], "factor": 1.0},
            {"params": [p for p in trainable if id(p) in biases], "factor": options.bias_factor},
        ]
        groups = [group for group in groups if group["params"]]
        for group in groups:
            # The decay is not to grow with the rate of the biases: what counts is their product.
            group["weight_decay"] = options.weight_decay / group["factor"]
            group["lr"] = torch.tensor(options.rate * group["factor"], device=device)
        if options.kind == "adam":
            self.optimizer = torch.optim.Adam(groups, fused=True)
        else:
            self.optimizer = torch.optim.SGD(groups, momentum=options.momentum, nesterov=True, fused=True)
        self._averaged = [p.detach().clone() for p in trainable] if options.lookahead else []
        self._trainable = trainable

    def set_rate(self, step: int, total_steps: int, steps_per_epoch: int, loss: torch.Tensor) -> None:
        """The rate of this step; ``loss`` is the batch's mean, on the device."""
        for group in self.optimizer.param_groups:
            if self.schedule == "sel":
                group["lr"].copy_(sel_learning_rate(self.options.rate, loss.detach()))
            else:
                factor = rate_factor(self.schedule, step, total_steps, steps_per_epoch)
                group["lr"].fill_(self.options.rate * group["factor"] * factor)

    def step(self, step: int, total_steps: int) -> None:
        """Update the weights."""
        self.loss_scale.step(self.optimizer)
        self.loss_scale.update()
        if (self.options.lookahead and (step + 1) % _LOOKAHEAD_STEPS == 0) or step + 1 == total_steps:
            self._look_ahead(1.0 if step + 1 == total_steps else 0.95**5 * (step / total_steps) ** 3)

    @torch.no_grad()
    def _look_ahead(self, decay: float) -> None:
        """Pull the weights to their slow average, which follows them by ``1 - decay``; at the end take the average."""
        for slow, fast in zip(self._averaged, self._trainable, strict=False):
            slow.lerp_(fast, 1 - decay)
            fast.copy_(slow)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything it remembers, by name."""
        found = {f"lookahead.{number}": slow for number, slow in enumerate(self._averaged)}
        for number, values in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{key}": v for key, v in values.items() if v is not None}
        if self.loss_scale.is_enabled():
            found["loss_scale"] = torch.tensor(self.loss_scale.get_scale())
        return found

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """What ``state`` gave."""
        remembered: dict[int, dict[str, torch.Tensor]] = {}
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "lookahead":
                self._averaged[int(rest)].copy_(value)
            elif kind == "optimizer":
                number, _, key = rest.partition(".")
                parameter = parameters[int(number)]
                # Fused steps take it for granted that a moment lies in memory as its parameter does.
                fits = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                remembered.setdefault(int(number), {})[key] = fits
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": remembered, "param_groups": groups})
        if "loss_scale" in tensors and self.loss_scale.is_enabled():
            scale = self.loss_scale.state_dict() | {"scale": float(tensors["loss_scale"])}
            self.loss_scale.load_state_dict(scale)
