"""NumPy and torch agree on every public function; those of the hot loop never wait for the device."""

import inspect
import math

import numpy as np
import pytest
import torch

from edge_sel.sel import (
    calibration,
    curriculum,
    embarrassment,
    feature_sums,
    guilt,
    hardness,
    ridge,
    selection,
    sundew,
)

N, C = 40, 5
MODULES = (
    curriculum, embarrassment, feature_sums, guilt, hardness, ridge, selection, sundew, calibration,
)  # fmt: skip


class Inputs:
    """The same numbers in either library."""

    def __init__(self, convert, xp, dtype, device=None):
        rng = np.random.default_rng(7)

        def f(x):
            return convert(np.asarray(x, dtype=dtype))

        self.xp, self.device = xp, device
        self.logits, self.other_logits = (f(rng.normal(size=(N, C)) * 3) for _ in range(2))
        self.labels = convert(rng.integers(0, C - 1, N))  # the last class is absent
        self.loss, self.u, self.std, self.p = (f(rng.random(N)) for _ in range(4))
        self.known = f(rng.random(C))
        self.grads = [f(rng.normal(size=shape)) for shape in ((6, 3, 2, 2), (6,))]
        self.indices, self.correct = convert(rng.permutation(N)[:10]), convert(rng.random(10) < 0.5)
        self.bools = convert(rng.random((3, 4)) < 0.5)
        self.gate = sundew.init(sundew.PUBLISHED_10, xp, device=device)._replace(integral=convert(np.float64(1.5)))
        self.memory = hardness.init(N, xp, device=device)._replace(r=convert(rng.random(N).astype(np.float32)))
        self.batch = self.loss[:10]
        self.features, self.head = f(rng.normal(size=(N, 6))), f(rng.normal(size=(C, 6)))
        self.predicted = (self.features @ self.head.T).argmax(1)


def visited_twice(i, kind):
    once = hardness.update(i.memory, i.indices, i.batch, i.correct, gamma=0.3, kind=kind)
    return hardness.update(once, i.indices, i.batch * 2, ~i.correct, gamma=0.3, kind=kind)


def streamed(i):
    first = embarrassment.add_batch(embarrassment.init_sums(C, i.xp, device=i.device), i.logits, i.labels)
    return embarrassment.add_batch(first, i.other_logits, i.labels)


def some_unknown(i):
    return i.xp.where(i.loss > 0.7, i.xp.nan, i.loss)


def aged(i):
    ages = selection.init_ages(N, i.xp, device=i.device)
    return selection.update_ages(ages, i.indices, i.correct)


def with_prior(i):
    standard = feature_sums.standard_of(i.features)
    examples = feature_sums.Examples(feature_sums.standardised(i.features[:8], standard), i.labels[:8])
    prior = feature_sums.summarise(feature_sums.standardised(i.features, standard), i.labels, C, 5)
    return {"standard": standard, "prior": prior, "examples": examples}


def summed(prior):
    """Eigenvectors may differ by their signs."""
    return [prior.rows.T @ prior.rows, prior.rows.T @ prior.targets, prior.known]


# The functions of the training loop: name -> call.
HOT = {
    "embarrassment.cross_entropy": lambda i: embarrassment.cross_entropy(i.logits, i.labels, 1.5),
    "embarrassment.log_softmax": lambda i: embarrassment.log_softmax(i.logits),
    "embarrassment.entropy": lambda i: embarrassment.entropy(i.logits),
    "embarrassment.init_sums": lambda i: embarrassment.init_sums(C, i.xp, device=i.device),
    "embarrassment.add_batch": streamed,
    "embarrassment.means": lambda i: embarrassment.means(streamed(i), previous=i.known),
    "embarrassment.class_embarrassment": lambda i: embarrassment.class_embarrassment(i.logits, i.labels, C),
    "embarrassment.confidence": lambda i: embarrassment.confidence(i.known),
    "guilt.calibrate_gamma": lambda i: guilt.calibrate_gamma(i.grads, 40),
    "guilt.decayed_gamma": lambda i: guilt.decayed_gamma(guilt.calibrate_gamma(i.grads, 40), 3, 5),
    "guilt.element_mask": lambda i: guilt.element_mask(i.grads[0], guilt.calibrate_gamma(i.grads, 40)),
    "guilt.kept_fraction": lambda i: guilt.kept_fraction(i.bools, i.correct),
    "guilt.guilty_channels": lambda i: guilt.guilty_channels(i.loss, 3),
    "guilt.head_guilt": lambda i: guilt.head_guilt(i.loss[:12], 2),
    "guilt.rows_of_heads": lambda i: guilt.rows_of_heads(guilt.guilty_channels(i.loss[:4], 2), 4, 24),
    "curriculum.sel_learning_rate": lambda i: curriculum.sel_learning_rate(1e-3, i.loss),
    "selection.middle_rank": lambda i: selection.middle_rank(i.loss),
    "selection.odds": lambda i: [
        selection.odds(selection.SoftConfig(), i.loss, 1 - i.gate.threshold),
        selection.odds(selection.SoftConfig(), some_unknown(i), 0.3, i.u > 0.9),
    ],
    "selection.draw": lambda i: selection.draw(i.p, i.u),
    "selection.init_ages": lambda i: selection.init_ages(N, i.xp, device=i.device),
    "selection.overdue": lambda i: selection.overdue(aged(i), i.indices, 2),
    "selection.update_ages": aged,
    "selection.prune_easy": lambda i: [selection.prune_easy(x, i.u) for x in (i.loss, some_unknown(i))],
    "selection.relative_importance": lambda i: selection.relative_importance(i.loss, 0.3),
    "hardness.easiest": lambda i: hardness.easiest(i.loss, 7),
    "hardness.diverse_hardest": lambda i: hardness.diverse_hardest(i.loss, i.labels, C, 7, 0.5),
    "calibration.find_label_errors": lambda i: calibration.find_label_errors(i.logits, i.labels),
    "sundew.significance_v1": lambda i: sundew.significance_v1(i.loss, i.std),
    "sundew.significance_v101": lambda i: sundew.significance_v101(i.loss, i.std),
    "sundew.init": lambda i: sundew.init(sundew.PUBLISHED_10, i.xp, device=i.device),
    "sundew.active_mask": lambda i: (
        sundew.active_mask(i.gate, i.loss, i.u),
        sundew.active_mask(i.gate, i.loss - 1, i.u),
        sundew.active_mask(i.gate, i.loss - 1, i.u, fallback="none"),
    ),
    "sundew.update": lambda i: sundew.update(sundew.PUBLISHED_10, i.gate, i.xp.mean(i.loss)),
    "sundew.nominal_savings_percent": lambda i: sundew.nominal_savings_percent(i.loss, i.u),
    "hardness.init": lambda i: hardness.init(N, i.xp, device=i.device),
    "hardness.update": lambda i: [visited_twice(i, kind) for kind in ("loss", "delta", "flip")],
    "hardness.probabilities_exp": lambda i: hardness.probabilities_exp(i.memory, 2.0),
    "hardness.greedy": lambda i: hardness.greedy(i.memory, 7),
    "hardness.weighted_sample": lambda i: hardness.weighted_sample(i.p, 7, i.u),
}
# Once per stage or run; the shape of the result depends on the data.
COLD = {
    "curriculum.stage_pool": lambda i: [
        curriculum.stage_pool(i.loss, i.labels, stage, per_class_cap=3) for stage in curriculum.STAGES
    ],
    "calibration.surest_label_errors": lambda i: calibration.surest_label_errors(i.logits, i.labels),
    "ridge.fit_head": lambda i: [
        part
        for labels in (i.labels, i.predicted)
        for given in ({"old": (i.head, i.known)}, with_prior(i), {"groups": (2, 4), "shallow": 2})
        for part in ridge.fit_head(i.features, labels, C, **given)
        if not isinstance(part, (float, bool, int))
    ],
    "feature_sums.with_constant": lambda i: feature_sums.with_constant(i.features),
    "feature_sums.as_they_were": lambda i: feature_sums.as_they_were(i.features, feature_sums.standard_of(i.features)),
    "feature_sums.part_of": lambda i: feature_sums.part_of(i.features, 3),
    "feature_sums.spread": lambda i: feature_sums.spread(i.labels, 7),
    "feature_sums.decompose": lambda i: [
        feature_sums.decompose(i.features, i.features[:3])[0],
        feature_sums.decompose(i.features.T, i.features.T[:3])[0],
    ],
    "feature_sums.standard_of": lambda i: feature_sums.standard_of(i.features, (2, 4)),
    "feature_sums.standardised": lambda i: feature_sums.standardised(i.features, feature_sums.standard_of(i.features)),
    "feature_sums.sum_samples": lambda i: list(
        feature_sums.sum_samples(i.features, i.labels, C, feature_sums.standard_of(i.features))
    ),
    "feature_sums.summarise": lambda i: summed(feature_sums.summarise(i.features, i.labels, C, 3)),
    "calibration.best_scales": lambda i: [
        i.logits[:1, 0] * scale for scale in calibration.best_scales(i.logits, i.labels, i.p, i.other_logits)
    ],
    "calibration.calibration_error": lambda i: i.logits[:1, 0] * calibration.calibration_error(i.logits, i.labels),
}
# Plain numbers in, plain numbers out.
NO_ARRAYS = {
    "curriculum.scale_epochs",
    "curriculum.stage_passed",
    "hardness.shrink",
    "guilt.nominal_flops",
    "curriculum.annealed",
    "sundew.config_for",
    "sundew.with_pressure",
}


def flat(result):
    if isinstance(result, (tuple, list)):
        return [leaf for part in result for leaf in flat(part)]
    return [result]


def test_every_public_function_of_the_room_is_compared_here():
    public = {
        f"{m.__name__.rsplit('.', 1)[-1]}.{name}"
        for m in MODULES
        for name, f in inspect.getmembers(m, inspect.isfunction)
        if f.__module__ == m.__name__ and not name.startswith("_")
    }
    assert public == {*HOT, *COLD, *NO_ARRAYS}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [*HOT, *COLD])
def test_numpy_and_torch_agree(name, dtype):
    call = {**HOT, **COLD}[name]
    ours = flat(call(Inputs(lambda x: x, np, dtype)))
    theirs = flat(call(Inputs(torch.as_tensor, torch, dtype)))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, (np.ndarray, np.generic))
        assert isinstance(b, torch.Tensor)
        assert str(a.dtype) == str(b.dtype).removeprefix("torch.")
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", HOT)
def test_the_hot_loop_never_waits_for_the_device(name):
    """A meta tensor has a shape but no values: asking for one, by ``.item()`` or ``if tensor:``, raises."""
    HOT[name](Inputs(lambda x: torch.as_tensor(x).to("meta"), torch, "float32", device="meta"))


def test_meta_tensors_do_catch_a_sync():
    with pytest.raises(Exception, match="meta"):
        math.floor(torch.zeros((), device="meta").item())


def test_a_state_is_made_where_it_is_asked_for():
    for made in (
        embarrassment.init_sums(3, torch, device="meta"),
        sundew.init(sundew.PUBLISHED_10, torch, device="meta"),
        hardness.init(3, torch, device="meta"),
        selection.init_ages(3, torch, device="meta"),
    ):
        assert {str(field.device) for field in made} == {"meta"}
