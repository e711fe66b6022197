"""The torch engine: the same step in eager torch. Reference for parity, and for machines that have a CUDA torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.arrays import Arrays, Range
from edge_sel.engines.base import (
    Backbone,
    Batch,
    GuiltyChannels,
    Hyper,
    Predict,
    Scores,
    StepResult,
    computed_elements,
    measured,
)
from edge_sel.errors import SetupError
from edge_sel.graphs.deep_head import EPSILON as DEEP_HEAD_EPSILON
from edge_sel.graphs.deep_head import tap_scale
from edge_sel.graphs.optimizers import BETA1, BETA2, EPSILON
from edge_sel.models.registry import build
from edge_sel.pack.manifest import DEEP_HEAD, OPTIMIZER_STATE, PlanInfo, Tap
from edge_sel.pack.reader import Pack

BuildModel = Callable[[str, int, tuple[int, int]], nn.Module]
"""Name, classes and image size (height, width) to a model; see ``models.registry.build``."""


class TorchEngine:
    """Rebuilds the pack's model by name and trains it with autograd.

    Args:
        threads: of the processor, 0 for torch's own choice.
        device: ``cpu``, ``cuda``, or ``auto`` for the better one.
        dtype: of weights, activations and gradients; float64 to tell what rounding is.
        build: makes the pack's model, without its weights.
    """

    name = "torch"

    def __init__(
        self,
        threads: int = 0,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        build: BuildModel = build,
    ) -> None:
        self._dtype, self._build = dtype, build
        if threads:
            torch.set_num_threads(threads)
        if device == "cuda" and not torch.cuda.is_available():
            raise SetupError("torch cannot use a GPU here", where=f"torch {torch.__version__}", fix="--device cpu")
        cuda = device != "cpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if cuda else "cpu")
        if cuda:  # else convolutions round to TF32, which is no reference
            torch.backends.cudnn.allow_tf32 = False

    def model(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> nn.Module:
        """The pack's model with the given weights."""
        info = pack.manifest.model
        classes = weights[info.head[-1]].shape[0]
        model = self._build(info.name, classes, info.image_size)
        model = add_deep_head(model, info.taps, classes, info.head_scale)
        for module in model.modules():
            if isinstance(getattr(module, "eps", None), float):
                module.eps = as_in_a_graph(module.eps)
        state = model.state_dict()  # with the versions of its layers, which some of them ask for
        assert weights.keys() <= state.keys(), weights.keys() - state.keys()
        state.update({n: torch.tensor(v) for n, v in weights.items()})
        model.load_state_dict(state)
        return model.to(self.device, self._dtype).eval()

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> TorchTrainer:
        """Start a plan from the given full set of weights."""
        return TorchTrainer(self.model(pack, weights), pack.manifest.optimizer, pack.plan(plan), weights)

    def backbone(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: Range | None = None
    ) -> Backbone | None:
        """None: a torch module has no seams to cut it at, so the whole of it is computed each time."""
        return None

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Predict:
        """Inference with the given full set of weights."""
        model = self.model(pack, weights)

        @torch.inference_mode()
        def predict(images: np.ndarray) -> np.ndarray:
            logits: np.ndarray = model(torch.from_numpy(images).to(self.device, self._dtype)).cpu().numpy()
            return logits

        return cast(Predict, predict)


def evaluating(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without what it cached there of its weights, as LeViT does of its biases."""
    return model.train().eval()


class TorchTrainer:
    """The same mask, channel choice and optimizer formulas as the compiled graph, in eager torch."""

    def __init__(self, model: nn.Module, optimizer: str, plan: PlanInfo, weights: Mapping[str, np.ndarray]) -> None:
        self.plan = plan
        self._model = model
        first = next(model.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._optimizer = optimizer
        self._computed = computed_elements(plan, weights)
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in plan.trainable)
        self._tensors = {name: tensors[name] for name in (*plan.trainable, *plan.buffers)}
        self._slots = {
            f"{slot}::{n}": torch.zeros_like(tensors[n]) for n in plan.trainable for slot in OPTIMIZER_STATE[optimizer]
        }
        self._channels = GuiltyChannels(plan, weights)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Forward only, with the current weights and running statistics."""
        with torch.inference_mode():
            logits = evaluating(self._model)(torch.from_numpy(images).to(self._device, self._dtype))
            losses = F.cross_entropy(logits, torch.from_numpy(labels).to(self._device), reduction="none")
        return Scores(losses.cpu().numpy(), logits.cpu().numpy())

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        """One update."""
        logits, losses, gradients = self._gradients(batch, hyper)
        self._channels.advance()
        kept = torch.zeros((), dtype=torch.int64, device=self._device)
        with torch.no_grad():
            for name, gradient in gradients.items():
                index = self._channels.index.get(name)
                rows = slice(None) if index is None else torch.from_numpy(index).to(self._device)
                guilty = gradient[rows].abs() > hyper.gamma
                kept += guilty.sum()
                self._update(name, rows, torch.where(guilty, gradient[rows], 0.0), hyper)
        return StepResult(losses.cpu().numpy(), logits.cpu().numpy(), int(kept), self._computed)

    def _gradients(self, batch: Batch, hyper: Hyper) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        images, labels, weights = (torch.from_numpy(a).to(self._device) for a in batch)
        images, weights = images.to(self._dtype), weights.to(self._dtype)
        evaluating(self._model)  # also switches off dropout that is not a layer of its own
        for module in self._model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(self.plan.bn_mode == "batch").momentum = hyper.bn_momentum
        with torch.set_grad_enabled(bool(self.plan.trainable)):
            logits = self._model(images)
            losses = F.cross_entropy(logits, labels, reduction="none")
        wanted = [self._tensors[n] for n in self.plan.trainable]
        gradients = torch.autograd.grad((losses * weights).mean(), wanted) if wanted else ()
        return logits.detach(), losses.detach(), dict(zip(self.plan.trainable, gradients, strict=True))

    def _update(self, name: str, rows: torch.Tensor | slice, gradient: torch.Tensor, hyper: Hyper) -> None:
        weight = self._tensors[name]
        if self._optimizer == "sgd":
            velocity = self._slots[f"momentum::{name}"]
            velocity[rows] = velocity[rows] * hyper.momentum + gradient
            weight[rows] = weight[rows] - hyper.learning_rate * velocity[rows]
            return
        m, v = self._slots[f"m::{name}"], self._slots[f"v::{name}"]
        m[rows] = m[rows] * BETA1 + gradient * (1 - BETA1)
        v[rows] = v[rows] * BETA2 + gradient * gradient * (1 - BETA2)
        steps: int | torch.Tensor = self._channels.made
        if name in self._channels.index:  # each channel's own count
            taken = self._channels.steps[name][self._channels.index[name]]
            steps = torch.from_numpy(taken).to(self._device).view(-1, *[1] * (gradient.ndim - 1))
        scale = hyper.learning_rate / (1 - BETA1**steps)
        denominator = v[rows].sqrt() / (1 - BETA2**steps) ** 0.5 + EPSILON
        weight[rows] = weight[rows] - scale * m[rows] / denominator

    def guilt(self, batch: Batch) -> Arrays:
        """As every trainer; running statistics are put back."""
        if self.plan.channels:
            return {}
        before = {name: self._tensors[name].clone() for name in self.plan.buffers}
        _, _, gradients = self._gradients(batch, Hyper(learning_rate=0.0))
        with torch.no_grad():
            for name, value in before.items():
                self._tensors[name].copy_(value)
        return {
            n: g.flatten(1).norm(dim=1).cpu().numpy() for n, g in gradients.items() if measured(self.plan, n, g.ndim)
        }

    def set_channels(self, channels: Mapping[str, np.ndarray]) -> None:
        """Choose the guilty output channels of a budgeted plan."""
        self._channels.choose(channels)

    def weights(self) -> Arrays:
        """Copies of every weight and running statistic that the plan changes."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._tensors.items()}

    def state(self) -> Arrays:
        """Weights, optimizer state, channel choice and step counts."""
        saved = {**self.weights(), **{n: s.cpu().numpy().copy() for n, s in self._slots.items()}}
        return {**saved, **self._channels.state()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a saved state."""
        with torch.no_grad():
            for name, tensor in {**self._tensors, **self._slots}.items():
                tensor.copy_(torch.from_numpy(state[name]))
        self._channels.load_state(state)


def add_deep_head(model: nn.Module, taps: Sequence[Tap], classes: int, scale: float = 1.0) -> nn.Module:
    """The model, changed in place: a linear layer ``deep_head`` of zeros reads the layers that the taps name.

    ``scale`` is the factor of all layers of the head, ½ of two that are averaged.
    """
    if not taps:
        return model
    layer = nn.Linear(sum(tap.features for tap in taps), classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    model.add_module(DEEP_HEAD, layer)

    def keep(module: nn.Module, given: object, made: torch.Tensor) -> None:
        module.tapped = made

    def add(module: nn.Module, given: object, logits: torch.Tensor) -> torch.Tensor:
        parts = []
        for tap in taps:
            made = cast(torch.Tensor, module.get_submodule(tap.name).tapped)
            mean = made.mean(tap.axes, keepdim=True)
            deviation = ((made - mean) ** 2).mean(tap.axes).add(as_in_a_graph(DEEP_HEAD_EPSILON)).sqrt()
            parts += [tap_scale(tap) * part for part in ([mean.flatten(1)] if tap.mean else []) + [deviation]]
        return logits + scale * cast(torch.Tensor, module.get_submodule(DEEP_HEAD)(torch.cat(parts, 1)))

    for tap in taps:
        model.get_submodule(tap.name).register_forward_hook(keep)
    model.register_forward_hook(add)
    return model


def as_in_a_graph(constant: float) -> float:
    """The constant rounded to float32, as a graph holds it; a float64 model must use the same number."""
    return float(np.float32(constant))
