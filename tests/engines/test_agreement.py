"""Every engine, every plan and both optimizers against torch.autograd and torch.optim in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, Hyper
from tests.engines.arrays import (
    assert_gradients_agree,
    assert_moments_agree,
    assert_same,
    first_gradients,
    gradient_between,
    part,
)
from tests.engines.plans import BUDGETED, HYPER, every_form, every_plan, trained_plan
from tests.engines.reference import Reference, Step

LOSS = 1e-4
"""Relative to the largest loss of the batch."""

STATISTICS = 1e-4
"""Relative to the tensor's largest value; a mean also to its largest standard deviation."""

DRIFT = 20
"""How much wider the tolerances are after the first step: Adam moves a weight whose gradient is only rounding noise by
as much as any other, up or down."""

PARTS = ((0, 8), (8, 12), (3, 10))
"""Batches of different sizes."""

PLAIN = {
    "sgd": Hyper(learning_rate=0.05, momentum=0.8),
    "adam": Hyper(learning_rate=1e-3),
}
# With larger steps of Adam one channel's ReLU crosses its kink in one program and not in another.
OTHER = {
    "sgd": Hyper(learning_rate=0.05, momentum=0.8, bn_momentum=0.4),
    "adam": Hyper(learning_rate=5e-3, bn_momentum=0.4),
}


@pytest.fixture(scope="package")
def courses() -> dict[object, list[Step]]:
    """What the reference did; it is the same for every engine."""
    return {}


@pytest.fixture
def course(pack, plan, batch, courses):
    """course(hyper, dtype) -> the steps of the reference on the parts of the batch."""

    def run(hyper: Hyper, dtype: torch.dtype) -> list[Step]:
        key = pack.manifest.optimizer, plan, hyper, dtype
        if key not in courses:
            reference = Reference(pack, plan, hyper, dtype)
            courses[key] = [reference.step(part(batch, *bounds)) for bounds in PARTS]
        return courses[key]

    return run


def assert_statistics_agree(got: Arrays, expected: Arrays, buffers: tuple[str, ...], tolerance: float) -> None:
    for mean, variance in zip(buffers[::2], buffers[1::2], strict=True):
        scale = max(np.abs(expected[mean]).max(), np.sqrt(expected[variance].max()))
        assert np.abs(got[mean] - expected[mean]).max() <= tolerance * scale, mean
        assert np.abs(got[variance] - expected[variance]).max() <= tolerance * expected[variance].max(), variance


def distance(a: Arrays, b: Arrays, names: tuple[str, ...]) -> float:
    """Root mean square difference over all trained elements."""
    return float(np.sqrt(np.concatenate([np.square(a[n] - b[n]).ravel() for n in names]).mean()))


def assert_steps_agree(pack, trainer, course, batch: Batch, hyper: Hyper) -> None:
    plan, exact, rounded = trainer.plan, course(hyper, torch.float64), course(hyper, torch.float32)
    start = trainer.weights()
    for number, (bounds, expected) in enumerate(zip(PARTS, exact, strict=True)):
        wider = DRIFT if number else 1
        before = trainer.state()
        result = trainer.step(part(batch, *bounds), hyper)
        assert np.abs(result.losses - expected.losses).max() <= wider * LOSS * expected.losses.max()
        after = trainer.state()
        if number == 0:
            found = {n: gradient_between(before, after, n, pack, hyper) for n in plan.trainable}
            rows = {n: slice(plan.channels.get(n)) for n in plan.trainable}
            assert_gradients_agree(
                {n: found[n][rows[n]] for n in rows}, {n: expected.gradients[n][rows[n]] for n in rows}
            )
        assert_statistics_agree(after, expected.weights, plan.buffers, wider * STATISTICS)
    if plan.trainable:
        # float32 and its order of summation move weights a little (Adam divides tiny gradients by themselves);
        # an engine must stay as close to the truth as plain torch does in float32.
        end, names = exact[-1].weights, plan.trainable
        moved = distance(start, end, names)
        allowed = max(3 * distance(rounded[-1].weights, end, names), 1e-4 * moved)
        assert distance(trainer.weights(), end, names) <= allowed
        assert allowed < 0.1 * moved, "otherwise this comparison says nothing"


@pytest.mark.sampled(5)
@every_plan
def test_steps_are_those_of_torch(pack, trainer, course, batch, plan):
    assert_steps_agree(pack, trainer, course, batch, PLAIN[pack.manifest.optimizer])


@pytest.mark.parametrize("plan", ("head", "last2", "full"))
def test_long_steps_with_other_statistics_are_those_of_torch(pack, trainer, course, batch, plan):
    assert_steps_agree(pack, trainer, course, batch, OTHER[pack.manifest.optimizer])


@pytest.mark.sampled(5)
@trained_plan
def test_moments_of_several_steps_are_those_of_torch(pack, trainer, batch, plan):
    """The learning rate is zero: the gradients do not drift, so several steps agree as well as one."""
    hyper = Hyper(learning_rate=0.0, momentum=0.8)
    reference = Reference(pack, plan, hyper)
    for bounds in PARTS:
        reference.step(part(batch, *bounds))
        trainer.step(part(batch, *bounds), hyper)
    moments = [reference.moments(name) for name in trainer.plan.trainable]
    assert_moments_agree(trainer.state(), {key: m[key] for m in moments for key in m}, trainer.plan.trainable, pack)


@pytest.mark.sampled(5)
@every_plan
def test_guilt_is_the_norm_of_torchs_gradient_per_channel(pack, trainer, batch, plan):
    _, gradients = Reference(pack, plan, HYPER).gradients(batch)
    expected = {
        name: np.linalg.norm(gradient.reshape(len(gradient), -1), axis=1)
        for name, gradient in gradients.items()
        if gradient.ndim == 4 and not trainer.plan.channels
    }
    guilt = trainer.guilt(batch)
    assert guilt.keys() == expected.keys()
    for name, norms in expected.items():
        np.testing.assert_allclose(guilt[name], norms, rtol=1e-3, atol=1e-4 * norms.max(), err_msg=name)


@pytest.mark.parametrize("plan", BUDGETED)
def test_chosen_channels_get_the_gradient_that_torch_gives_them(pack, trainer, batch, plan):
    rng = np.random.default_rng(2)
    weights = pack.weights()
    chosen = {n: np.sort(rng.permutation(len(weights[n]))[:k]) for n, k in trainer.plan.channels.items()}
    trainer.set_channels(chosen)
    trainer.step(batch, HYPER)
    _, expected = Reference(pack, plan, HYPER).gradients(batch)
    rows = {name: chosen.get(name, slice(None)) for name in expected}
    got = first_gradients(trainer, pack)
    assert_gradients_agree({n: got[n][rows[n]] for n in rows}, {n: expected[n][rows[n]] for n in rows})


@pytest.mark.sampled(5)
@every_form
def test_a_run_continues_on_another_engine(engines, engine, pack, trainer, batch, plan, given):
    others = [other.trainer(pack, plan, given) for name, other in engines.items() if name != engine.name]
    weights = pack.weights()
    trainer.set_channels({n: np.arange(len(weights[n]))[-k:] for n, k in trainer.plan.channels.items()})
    trainer.step(batch, HYPER)
    saved = trainer.state()
    losses, state = trainer.step(batch, HYPER).losses, trainer.state()
    for other in others:
        other.load_state(saved)
        np.testing.assert_allclose(other.step(batch, HYPER).losses, losses, rtol=1e-4, atol=1e-5)
        continued = other.state()
        assert_moments_agree(continued, state, trainer.plan.trainable, pack)
        assert_same(
            {n: v for n, v in continued.items() if v.dtype == np.int64},
            {n: v for n, v in state.items() if v.dtype == np.int64},
        )
        assert int(continued["steps"]) == 2


def test_the_built_in_pack_does_what_todays_compiler_does(engines, digits_pack, packs, batch):
    fresh_pack = packs[digits_pack.manifest.optimizer]
    assert digits_pack.manifest.plans == fresh_pack.manifest.plans, "python tools/make_builtin_pack.py makes it again"
    for plan in digits_pack.manifest.plans:
        stored, fresh = (engines["ort"].trainer(p, plan, p.weights()) for p in (digits_pack, fresh_pack))
        results = [trainer.step(batch, HYPER) for trainer in (stored, fresh)]
        np.testing.assert_allclose(results[0].losses, results[1].losses, rtol=1e-4, atol=1e-5)
        assert_gradients_agree(first_gradients(stored, digits_pack), first_gradients(fresh, fresh_pack))
        assert_statistics_agree(stored.weights(), fresh.weights(), stored.plan.buffers, STATISTICS)
        scores = [trainer.score(batch.images, batch.labels).losses for trainer in (stored, fresh)]
        np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)
