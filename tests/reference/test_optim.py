"""Flat gradients and schedules."""

import pytest
import torch

from edge_sel.reference.optim import FlatGradient, Stepper, rate_factor
from edge_sel.reference.systems import Optimizer
from edge_sel.sel.curriculum import sel_learning_rate
from tests.reference.conftest import CPU, tiny_net


def stepped(model, options, steps=6, flat=True):
    gradient = FlatGradient(model) if flat else None
    stepper = Stepper(model, options, CPU)
    x = torch.linspace(-1, 1, 4 * 3 * 64).reshape(4, 3, 8, 8).to(memory_format=torch.channels_last)
    for step in range(steps):
        gradient.values.zero_() if flat else model.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        stepper.set_rate(step, steps, steps, loss)
        stepper.step(step, steps)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), stepper


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_flat_gradients_are_gradients(layout):
    flat, _ = stepped(tiny_net().to(memory_format=layout), Optimizer())
    plain, _ = stepped(tiny_net().to(memory_format=layout), Optimizer(), flat=False)
    assert torch.equal(flat, plain)


def test_collect_lies_like_the_values():
    model = tiny_net().to(memory_format=torch.channels_last)
    gradient = FlatGradient(model)
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    assert torch.equal(gradient.collect([p.grad for p in gradient.parameters]), gradient.values)
    before = [p.detach().clone() for p in gradient.parameters]
    gradient.scale_weights(gradient.values)
    assert all(torch.equal(p, b * p.grad) for p, b in zip(gradient.parameters, before, strict=True))


def test_sels_rate_follows_the_loss():
    stepper = Stepper(tiny_net(), Optimizer(schedule="sel"), CPU)
    stepper.set_rate(0, 10, 10, torch.tensor(1.5))
    assert float(stepper.optimizer.param_groups[0]["lr"]) == pytest.approx(sel_learning_rate(1e-3, 1.5))


def test_biases_of_batch_norm_run_ahead_without_more_decay():
    model = tiny_net()
    stepper = Stepper(model, Optimizer("sgd", 0.5, "triangle", weight_decay=0.01, bias_factor=64.0), CPU)
    stepper.set_rate(0, 100, 10, torch.tensor(0.0))
    others, biases = stepper.optimizer.param_groups
    assert [id(p) for p in biases["params"]] == [id(model[1].bias)]
    assert float(biases["lr"]) == pytest.approx(64 * float(others["lr"])) and float(others["lr"]) == pytest.approx(0.1)
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(float(others["lr"] * others["weight_decay"]))


def test_schedules_rise_and_fall_as_published():
    assert [rate_factor("constant", s, 10, 5) for s in (0, 9)] == [1, 1]
    assert rate_factor("cosine", 5, 10, 5) == pytest.approx(0.5)
    triangle = [rate_factor("triangle", s, 100, 10) for s in range(100)]
    assert triangle[0] == pytest.approx(0.2) and triangle.index(max(triangle)) == 23 and max(triangle) == 1
    assert triangle[-1] == pytest.approx(0.07, abs=0.02)
    cycles = [rate_factor("cycles", s, 250, 10) for s in range(250)]  # 25 epochs: 10, 10 and 5
    assert [cycles[s] for s in (0, 100, 200)] == pytest.approx([1, 0.85, 0.85**2])
    assert cycles[99] < 0.01 and cycles[249] < 0.01


def test_lookahead_ends_on_the_average():
    weights, stepper = stepped(tiny_net(), Optimizer("sgd", 0.1, lookahead=True), steps=7)
    slow = torch.cat([p.flatten() for p in stepper._averaged])
    assert torch.equal(slow, weights)


@pytest.mark.parametrize("options", [Optimizer(), Optimizer("sgd", 0.1, lookahead=True)])
def test_the_state_of_an_optimizer_is_saved_and_loaded(options):
    model = tiny_net()
    _, stepper = stepped(model, options)
    again = Stepper(model, options, CPU)
    again.load({name: value.clone() for name, value in stepper.state().items()})
    assert again.state().keys() == stepper.state().keys()
    assert all(torch.equal(again.state()[name], value) for name, value in stepper.state().items())
