"""The compiled step against eager torch and against an independent twin in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper, Trainer
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import TorchEngine
from edge_sel.graphs.optimizers import BETA1
from edge_sel.pack.builtin import builtin_pack
from edge_sel.pack.manifest import OPTIMIZER_STATE
from edge_sel.pack.reader import Pack
from edge_sel.server.export import DEFAULT_PLANS
from edge_sel.server.parity import NOISE
from tests.engines.conftest import Whole

PLANS = builtin_pack().manifest.plans
STEPS = 3

LOSS = 1e-4
"""Relative to the largest loss of the batch."""

GRADIENT = 5e-4
"""Relative to the tensor's largest gradient, or to ``NOISE`` times the model's largest if that is more."""

STATISTICS = 1e-4
"""Relative to the tensor's largest value; a mean also to its largest standard deviation."""


DRIFT = 20
"""How much wider the tolerances are after the first step: Adam moves a weight whose gradient is only rounding noise by
as much as any other, up or down."""


class Twin:
    """The same model in float64 under torch's own optimizers: shares no code with either engine.

    Rows outside a budget get no gradient, so as long as the channels stay the same they stay at their start.
    """

    def __init__(self, pack: Pack, plan: str, hyper: Hyper) -> None:
        self.plan = pack.plan(plan)
        self.hyper = hyper
        self.model = TorchEngine(1, device="cpu").model(pack, pack.weights()).double()
        named = dict(self.model.named_parameters())
        self.trained = {name: named[name] for name in self.plan.trainable}
        self.model.train(self.plan.bn_mode == "batch")
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = hyper.bn_momentum
        parameters = list(self.trained.values()) or [torch.zeros(1)]
        if pack.manifest.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                parameters, hyper.learning_rate, hyper.momentum, weight_decay=hyper.weight_decay
            )
        else:
            self.optimizer = torch.optim.AdamW(parameters, hyper.learning_rate, weight_decay=hyper.weight_decay)

    def step(self, batch: Batch) -> tuple[np.ndarray, Arrays]:
        """Losses before the update, and the gradients."""
        losses = F.cross_entropy(
            self.model(torch.from_numpy(batch.images).double()), torch.from_numpy(batch.labels), reduction="none"
        )
        self.optimizer.zero_grad()
        if self.trained:
            (losses * torch.from_numpy(batch.weights).double()).mean().backward()
            for name, count in self.plan.channels.items():
                self.trained[name].grad[count:] = 0
            self.optimizer.step()
        gradients = {name: tensor.grad.numpy().copy() for name, tensor in self.trained.items()}
        return losses.detach().numpy(), gradients

    def weights(self) -> Arrays:
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        return {n: tensors[n].detach().numpy() for n in (*self.plan.trainable, *self.plan.buffers)}


def gradients_of_first_step(trainer: Trainer, optimizer: str) -> Arrays:
    slot, factor = OPTIMIZER_STATE[optimizer][0], 1.0 if optimizer == "sgd" else 1 - BETA1
    state = trainer.state()
    return {name: state[f"{slot}::{name}"] / factor for name in trainer.plan.trainable}


def assert_gradients_agree(got: Arrays, expected: Arrays) -> None:
    largest = max((np.abs(g).max() for g in expected.values()), default=0.0)
    for name, gradient in expected.items():
        scale = max(np.abs(gradient).max(), NOISE * largest)
        assert np.abs(got[name] - gradient).max() <= GRADIENT * scale, name


def assert_statistics_agree(
    got: Arrays, expected: Arrays, buffers: tuple[str, ...], tolerance: float = STATISTICS
) -> None:
    for mean, variance in zip(buffers[::2], buffers[1::2], strict=True):
        scale = max(np.abs(expected[mean]).max(), np.sqrt(expected[variance].max()))
        assert np.abs(got[mean] - expected[mean]).max() <= tolerance * scale, mean
        assert np.abs(got[variance] - expected[variance]).max() <= tolerance * expected[variance].max(), variance


def drift(weights: Arrays, twin: Arrays, names: tuple[str, ...]) -> float:
    """Root mean square difference over all trained elements."""
    squares = np.concatenate([np.square(weights[n] - twin[n]).ravel() for n in names])
    return float(np.sqrt(squares.mean()))


def check(pack: Pack, plan: str, batches: list[Batch], hyper: Hyper) -> None:
    info, optimizer = pack.plan(plan), pack.manifest.optimizer
    twin = Twin(pack, plan, hyper)
    start = twin.weights()
    start = {name: value.copy() for name, value in start.items()}
    ours, theirs = (e.trainer(pack, plan, pack.weights()) for e in (Whole(OrtEngine(1)), TorchEngine(1, device="cpu")))
    for number, batch in enumerate(batches):
        exact, gradients = twin.step(batch)
        wider = DRIFT if number else 1
        for trainer in (ours, theirs):
            result = trainer.step(batch, hyper)
            assert np.abs(result.losses - exact).max() <= wider * LOSS * exact.max()
            if number == 0 and hyper.weight_decay == 0:
                assert_gradients_agree(gradients_of_first_step(trainer, optimizer), gradients)
            assert_statistics_agree(trainer.weights(), twin.weights(), info.buffers, wider * STATISTICS)
    if info.trainable:
        # float32 and its order of summation move weights a little (Adam divides tiny gradients by themselves);
        # the compiled step must stay as close to the truth as eager torch does.
        moved = drift(start, twin.weights(), info.trainable)
        allowed = max(3 * drift(theirs.weights(), twin.weights(), info.trainable), 1e-4 * moved)
        assert drift(ours.weights(), twin.weights(), info.trainable) <= allowed
        assert allowed < 0.1 * moved, "otherwise this comparison says nothing"


def parts(batch: Batch) -> list[Batch]:
    """Batches of different sizes."""
    return [Batch(*(field[start:end] for field in batch)) for start, end in ((0, 8), (8, 12), (3, 10))]


@pytest.mark.parametrize("plan", PLANS)
def test_adam_steps_agree(one_thread, adam_pack, batch, plan):
    check(adam_pack, plan, parts(batch), Hyper(learning_rate=1e-3))


@pytest.mark.parametrize("plan", ("head", "last2", "full"))
def test_adam_steps_with_weight_decay_agree(one_thread, adam_pack, batch, plan):
    check(adam_pack, plan, parts(batch), Hyper(learning_rate=1e-2, weight_decay=0.1, bn_momentum=0.4))


@pytest.mark.parametrize("plan", DEFAULT_PLANS)
def test_sgd_steps_agree(sgd_pack, batch, plan):
    three = batch._replace(labels=batch.labels % 3)
    check(sgd_pack, plan, parts(three), Hyper(learning_rate=0.05, momentum=0.8))


@pytest.mark.parametrize("plan", ("head", "last2", "full"))
def test_sgd_steps_with_weight_decay_agree(sgd_pack, batch, plan):
    three = batch._replace(labels=batch.labels % 3)
    check(sgd_pack, plan, parts(three), Hyper(learning_rate=0.05, momentum=0.8, weight_decay=0.1))


def test_the_built_in_pack_does_what_todays_compiler_does(one_thread, digits_pack, pack, batch):
    assert digits_pack.manifest.plans == pack.manifest.plans, "python tools/make_builtin_pack.py makes it again"
    for plan in pack.manifest.plans:
        stored, fresh = (Whole(OrtEngine(1)).trainer(p, plan, p.weights()) for p in (digits_pack, pack))
        results = [trainer.step(batch, Hyper(learning_rate=1e-3)) for trainer in (stored, fresh)]
        np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4, atol=1e-5)
        name = pack.manifest.optimizer
        assert_gradients_agree(gradients_of_first_step(stored, name), gradients_of_first_step(fresh, name))
        assert_statistics_agree(stored.weights(), fresh.weights(), pack.plan(plan).buffers)
        scores = [trainer.score(batch.images, batch.labels).losses for trainer in (stored, fresh)]
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("plan", PLANS)
def test_guilt_agrees(one_thread, pack, batch, plan):
    ours, theirs = (
        e.trainer(pack, plan, pack.weights()).guilt(batch) for e in (Whole(OrtEngine(1)), TorchEngine(1, device="cpu"))
    )
    assert ours.keys() == theirs.keys()
    for name, norms in theirs.items():
        np.testing.assert_allclose(ours[name], norms, rtol=1e-3, atol=1e-4 * norms.max(), err_msg=name)


@pytest.mark.parametrize("plan", ("head", "last", "full", "last-c25"))
def test_a_run_continues_on_the_other_engine(one_thread, pack, batch, plan):
    ours, theirs = (e.trainer(pack, plan, pack.weights()) for e in (Whole(OrtEngine(1)), TorchEngine(1, device="cpu")))
    hyper = Hyper(learning_rate=1e-3)
    ours.step(batch, hyper)
    theirs.load_state(ours.state())
    expected, got = ours.step(batch, hyper), theirs.step(batch, hyper)
    np.testing.assert_allclose(got.losses, expected.losses, rtol=1e-4, atol=1e-5)
    assert int(ours.state()["steps"]) == int(theirs.state()["steps"]) == 2
