"""The probe: its guilt is what a step really gains on other images, noise has none, and nothing is changed by looking."""

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest

from edge_sel.data.dataset import ImageSet
from edge_sel.data.transforms import normalise
from edge_sel.edge import probe as probe_module
from edge_sel.edge.outputs import write_model
from edge_sel.edge.probe import BATCH, BATCHES, MOMENTUM, gradients, guilt, joules_per_tflop, probe_plans, step_flops
from edge_sel.edge.progress import start_progress, to_tensors
from edge_sel.edge.rates import learning_rate
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import UsageError
from edge_sel.graphs.ir import read_forward
from edge_sel.graphs.plans import make_plan
from edge_sel.graphs.train import compile_eval, compile_score, compile_train
from edge_sel.pack.manifest import EVAL
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.pack.writer import write_pack
from edge_sel.sel import sundew
from edge_sel.settings import Settings
from tests.edge.recording import Recording
from tests.edge.runs import digits, of_counts, pack

LOSS = 0.4
ENGINE = OrtEngine(1)
GATE = sundew.init(sundew.SundewConfig.fast(0.5))


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """The built-in pack, and the same model for SGD."""
    folder, adam = tmp_path_factory.mktemp("sgd"), pack()
    write_model(folder / "model.onnx", adam, adam.weights(), adam.manifest.model.classes)
    forward = read_forward(onnx.load(folder / "model.onnx"))
    graphs, plans = {EVAL: compile_eval(forward)}, {}
    for name in ("head", "affine", "full"):
        plan, info = make_plan(forward, name), adam.plan(name)
        graphs[info.train] = compile_train(forward, plan, "sgd")
        graphs[info.score] = compile_score(forward, (*plan.trainable, *plan.buffers))
        plans[name] = replace(info, prefix="")
    write_pack(
        folder / "pack", replace(adam.manifest, optimizer="sgd", plans=plans, prefixes={}), adam.weights(), graphs
    )
    return {"adam": adam, "sgd": open_pack(folder / "pack")}


@pytest.fixture(params=["adam", "sgd"])
def base(request, packs):
    return packs[request.param]


def batches(count, size=24):
    images, model = digits(count * size), pack().manifest.model
    found = []
    for indices in np.split(np.arange(len(images)), count):
        pixels = normalise(images.read(indices), model.mean, model.std)
        found.append(Batch(pixels, images.labels[indices], np.ones(size, np.float32)))
    return found


def found_in(base, given):
    return gradients(ENGINE.trainer(base, "full", base.weights()), given, base.manifest.optimizer)


def loss(base, weights, batch):
    """Mean loss with the batch's own statistics, as a step sees it."""
    return ENGINE.trainer(base, "full", weights).step(batch, Hyper(0.0, bn_momentum=0.0)).losses.mean(dtype=np.float64)


# Gradients


def test_gradients_are_the_slopes_of_the_loss(base):
    """Along each batch's own gradient, and along that of the next."""
    given, small = batches(3), 1e-3
    every = found_in(base, given)
    assert all(gradient.keys() == set(base.plan("full").trainable) for gradient in every)
    for number, (batch, own) in enumerate(zip(given, every, strict=True)):
        for along in (own, every[number - 1]):
            length = math.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in along.values()))
            up, down = (
                {n: w + sign * small * along[n] / length if n in along else w for n, w in base.weights().items()}
                for sign in (1, -1)
            )
            slope = (loss(base, up, batch) - loss(base, down, batch)) / (2 * small)
            assert sum(np.vdot(own[n], g) for n, g in along.items()) / length == pytest.approx(slope, rel=0.02)


def test_each_batch_has_its_own(base):
    """Though the optimizer's state holds all that came before."""
    given = batches(BATCHES)
    for batch, gradient in zip(given, found_in(base, given), strict=True):
        (alone,) = found_in(base, [batch])
        for name, value in alone.items():
            np.testing.assert_allclose(gradient[name], value, rtol=0, atol=1e-4 * np.abs(value).max())


def test_looking_changes_no_weight_and_no_statistic(base):
    trainer = ENGINE.trainer(base, "full", before := base.weights())
    gradients(trainer, batches(3), base.manifest.optimizer)
    after = trainer.weights()
    assert set(after) == {*base.plan("full").trainable, *base.plan("full").buffers}
    assert all(value.tobytes() == before[name].tobytes() for name, value in after.items())


# Guilt


def test_guilt_is_what_a_step_gains_on_other_images(base, monkeypatch):
    """Steps so small that the loss is straight: Adam's first one; of SGD, what its momentum makes of one gradient."""
    rate, given = 1e-6 if base.manifest.optimizer == "adam" else 1e-5, batches(3)
    monkeypatch.setattr(probe_module, "learning_rate", lambda *_: rate)
    step = rate if base.manifest.optimizer == "adam" else rate / (1 - MOMENTUM)
    before, gains = [loss(base, base.weights(), batch) for batch in given], []
    for own in given:
        trainer = ENGINE.trainer(base, "full", base.weights())
        trainer.step(own, Hyper(step, momentum=0.0, bn_momentum=0.0))
        stepped = base.weights() | trainer.weights()
        others = zip(given, before, strict=True)
        gains.append(np.mean([start - loss(base, stepped, batch) for batch, start in others if batch is not own]))
    expected = np.mean(gains) - np.std(gains, ddof=1) / math.sqrt(3)
    assert expected > 0
    told = guilt(found_in(base, given), base.manifest.plans, base.manifest, LOSS)
    assert told["full"] == pytest.approx(expected, rel=0.03)


def test_guilt_by_hand(base):
    """The mean over pairs of different batches less its standard error, over the weights of each plan."""
    rng, plans, adam = np.random.default_rng(0), base.manifest.plans, base.manifest.optimizer == "adam"
    full = base.plan("full").trainable
    every = [{name: rng.normal(0.3, 1.0, (2, 3)).astype(np.float32) for name in full} for _ in range(4)]
    told = guilt(every, plans, base.manifest, LOSS)
    assert set(told) == {name for name, info in plans.items() if info.trainable}
    for name, nats in told.items():
        gains = np.zeros(4)
        for i in range(4):
            for j in set(range(4)) - {i}:
                for weight in plans[name].trainable:
                    way = np.sign(every[i][weight]) if adam else every[i][weight] / (1 - MOMENTUM)
                    gains[i] += (
                        learning_rate(base.manifest.optimizer, name, None, LOSS) * np.vdot(way, every[j][weight]) / 3
                    )
        assert nats == pytest.approx(gains.mean() - gains.std(ddof=1) / 2, rel=1e-4)


def test_only_plans_whose_gradients_are_known(base):
    every = [{name: np.ones(3, np.float32) for name in base.plan("head").trainable}] * 2
    assert set(guilt(every, base.manifest.plans, base.manifest, LOSS)) == {"head"}


def test_noise_has_no_guilt(base):
    """A part that all batches share shows through ten times as much noise."""

    def of(shared, seed):
        rng, plan = np.random.default_rng(seed), base.plan("head")
        way = {name: rng.normal(0, shared, 1000) for name in plan.trainable}
        every = [
            {n: (w + rng.normal(0, 1, w.shape)).astype(np.float32) for n, w in way.items()} for _ in range(BATCHES)
        ]
        return guilt(every, {"head": plan}, base.manifest, LOSS)["head"]

    noise, signal = ([of(shared, seed) for seed in range(60)] for shared in (0.0, 0.3))
    assert np.mean(noise) < 0 and np.mean(np.array(noise) > 0) < 0.3
    assert min(signal) > max(noise)


def looked(images, base=None, *, weights=None, engine=ENGINE, history=(), rung=1, settings=None):
    base = base or pack()
    progress = start_progress(weights or base.weights(), len(images), 10, GATE)
    progress.best_guard, progress.history, progress.rung = {"loss": LOSS}, list(history), rung
    return probe_plans(engine, base, images, progress, settings or Settings())


def mislabelled(images, seed):
    labels = np.random.default_rng(seed).permutation(images.labels)
    return ImageSet.from_arrays(images.read(np.arange(len(images))), labels, images.classes)


def test_labels_that_say_nothing_about_the_images_have_no_guilt(base):
    """To a model that prefers no class; one that is sure of its classes would rightly learn to be less so."""
    weights = base.weights()
    for name in base.manifest.model.head:
        weights[name] = np.zeros_like(weights[name])
    told, _ = looked(digits(400), base, weights=weights)
    nonsense = [looked(mislabelled(digits(400), seed), base, weights=weights)[0] for seed in range(6)]
    for plan in ("head", "affine", "full"):
        assert told[plan]["guilt"] > 0
        assert np.mean([other[plan]["guilt"] for other in nonsense]) < 0
        assert max(other[plan]["guilt"] for other in nonsense) < 0.2 * told[plan]["guilt"]


# A look at a session's images


def test_every_plan_that_trains_all_of_its_weights_is_told(base):
    told, _ = looked(digits(), base)
    assert set(told) == {name for name, info in base.manifest.plans.items() if info.trainable and not info.channels}
    assert all(math.isfinite(figures["guilt"]) for figures in told.values())


WORK = [
    {"energy_j": 30.0, "executed_flops_t": 2.0},
    {"energy_j": None, "executed_flops_t": 5.0},
    {"energy_j": 10.0, "executed_flops_t": 3.0},
    {"energy_j": 7.0, "executed_flops_t": 0.0},
]


def test_joules_per_flop_are_this_devices_own():
    assert joules_per_tflop(WORK) == 40.0 / 5.0
    assert joules_per_tflop([]) is joules_per_tflop(WORK[1:2]) is joules_per_tflop(WORK[3:]) is None


def test_what_a_step_costs():
    """Joules where a meter works; where none does the plans still have the same order."""
    settings = replace(Settings(), batch_size=24)
    known, unknown = (looked(digits(), history=history, settings=settings)[0] for history in (WORK, []))
    for name, figures in known.items():
        joules = 8.0 * step_flops(pack(), name, settings) / 1e12
        assert figures["j_per_step"] == pytest.approx(joules)
        whole = pack().plan(name).flops_train + (p.flops if (p := pack().prefix(name)) else 0)
        assert pack().plan(name).flops_train * 24 <= step_flops(pack(), name, settings) <= whole * 24 * (1 + 1e-9)
        assert figures["guilt_per_j"] == pytest.approx(figures["guilt"] / joules)
        assert unknown[name]["guilt"] == figures["guilt"] and unknown[name]["j_per_step"] is None
        assert unknown[name]["guilt_per_j"] == pytest.approx(8.0 * figures["guilt_per_j"])


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (digits(400), [BATCH] * BATCHES),
        (digits(20), [10, 10]),
        (of_counts(2, 1), [2, 1]),
        (of_counts(1, 1), [1, 1]),
    ],
    ids=len,
)
def test_which_images_it_looks_at(images, sizes):
    """Some, each once, as they are; all of the work is told."""
    engine = Recording()
    told, executed = looked(images, engine=engine)
    assert engine.sizes("step", "full") == sizes and len(engine.calls) == len(sizes)
    assert executed == sum(sizes) * pack().plan("full").flops_train
    model = pack().manifest.model
    known = {image.tobytes() for image in normalise(images.read(np.arange(len(images))), model.mean, model.std)}
    assert len(engine.images("step")) == sum(sizes) and engine.images("step") <= known
    assert all(math.isfinite(figures["guilt"]) for figures in told.values())


def test_each_look_is_at_other_images_and_can_be_repeated():
    def seen(rung, seed):
        looked(digits(400), engine=(engine := Recording()), rung=rung, settings=replace(Settings(), seed=seed))
        return engine.labels("step", "full")

    assert seen(1, 0) == seen(1, 0)
    assert len({tuple(seen(rung, seed)) for rung in (1, 3) for seed in (0, 1)}) == 4


def test_a_look_leaves_the_session_as_it_was():
    progress = start_progress(pack().weights(), 120, 10, GATE)
    progress.best_guard = {"loss": LOSS}
    tensors, scalars = to_tensors(progress)
    before = {name: value.tobytes() for name, value in tensors.items()}, repr(scalars)
    probe_plans(ENGINE, pack(), digits(), progress, Settings())
    tensors, scalars = to_tensors(progress)
    assert ({name: value.tobytes() for name, value in tensors.items()}, repr(scalars)) == before


def test_a_pack_without_the_plan_full():
    plans = {name: info for name, info in pack().manifest.plans.items() if name != "full"}
    lesser = Pack(pack().path, replace(pack().manifest, plans=plans), pack()._content)
    with pytest.raises(UsageError, match=r"--plan auto.* full") as caught:
        looked(digits(), lesser)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value) and "export" in str(caught.value)
