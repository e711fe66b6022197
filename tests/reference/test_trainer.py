"""The one trainer: it learns, counts what ran, and does not ask the device anything in between."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edge_sel.data.dataset import ImageSet
from edge_sel.reference.curricula import Sel, SelfPaced
from edge_sel.reference.epoch import EpochSums
from edge_sel.reference.images import make_images
from edge_sel.reference.model import Speed, fastest
from edge_sel.reference.policies import Lottery, RandomRate, build_policy
from edge_sel.reference.policy import Policy, Pool
from edge_sel.reference.systems import SYSTEMS, Optimizer, find_scale
from edge_sel.reference.trainer import Stopped, SystemTrainer
from edge_sel.sel.curriculum import STAGES
from edge_sel.sel.guilt import nominal_flops
from tests.reference.conftest import CPU, SETUP, colours, tiny_net

ONE_EACH = tuple(stage._replace(epochs=1) for stage in STAGES)
SMOKE = find_scale("smoke")


def weights(run):
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_plain_training_learns(make_trainer):
    run = make_trainer()
    results = [run.train_epoch(epoch) for epoch in range(1, 5)]
    assert results[-1].train_loss < results[0].train_loss
    judged = run.evaluate()
    assert judged.full > 0.9 and judged.first_100 == judged.full  # 30 test images
    assert np.mean(judged.per_class) == pytest.approx(judged.full)


def test_an_epoch_counts_images_and_flops(make_trainer):
    run = make_trainer()
    result = run.train_epoch(1)
    assert (result.visited, result.active, result.sparsity, result.phase) == (60, 60, 0.0, "train")
    assert result.nominal_flops == nominal_flops(run.parameters, 60)
    assert result.executed_flops == 60 * (run.work.forward + run.work.backward)
    assert all(0 < e < 3 for e in result.class_embarrassment)


def test_scoring_passes_are_executed_work(make_trainer):
    run = make_trainer(SelfPaced(easy=True, epochs=3))
    result = run.train_epoch(1)
    assert result.visited == 30
    assert result.executed_flops == 60 * run.work.forward + 30 * (run.work.forward + run.work.backward)


def test_the_guilt_mask_saves_nominal_flops_only(make_trainer):
    run = make_trainer(Sel(ONE_EACH, percentile=40))
    result = run.train_epoch(1)
    assert 0.1 < result.sparsity < 0.95 and result.visited == 15
    assert result.nominal_flops < nominal_flops(run.parameters, 15)
    calibration = 60  # of 256 wanted
    both = run.work.forward + run.work.backward
    assert result.executed_flops == 60 * run.work.forward + (calibration + 15) * both


def test_the_rate_follows_the_pool_s_schedule_and_the_setup_s_without_one(make_trainer):
    run = make_trainer(Sel(ONE_EACH, percentile=40, warmup_epochs=1))
    schedules = []
    for epoch in (1, 2):
        run.train_epoch(epoch)
        schedules.append(run.stepper.schedule)
    assert schedules == ["constant", "sel"] and SETUP.optimizer.schedule == "constant"


def test_the_mask_stops_what_is_not_guilty(make_trainer):
    policy = Sel(ONE_EACH, percentile=100)
    run = make_trainer(policy)
    before = weights(run)
    policy.memory["gamma"] = torch.tensor(1e9)
    policy.prepare = lambda run: policy.memory.update(losses=torch.rand(60))
    result = run.train_epoch(1)
    assert result.sparsity == 1.0 and torch.equal(weights(run), before) and result.nominal_flops == 0


def test_calibration_leaves_the_model_alone(make_trainer):
    run = make_trainer()
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    gradient = run.calibrate(20)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert gradient is run.gradient.values and gradient.abs().sum() > 0


def test_the_ticket_is_the_start_without_the_small_weights(make_trainer):
    policy = Lottery(3, sparsity=0.5)
    run = make_trainer(policy)
    start = run.gradient.collect([p.detach().clone() for p in run.gradient.parameters])
    assert run.train_epoch(1).nominal_flops == 0
    trained = run.gradient.collect([p.detach().abs() for p in run.gradient.parameters])
    policy.start_epoch(run, 2)
    now = run.gradient.collect([p.detach() for p in run.gradient.parameters])
    keep = policy.memory["keep"]
    assert torch.equal(now, start * keep) and int(keep.sum()) == len(keep) - round(0.5 * len(keep))
    assert trained[keep].min() >= trained[~keep].max()
    assert not run.stepper.optimizer.state
    result = run.train_epoch(3)
    assert result.sparsity == 0.5 and result.nominal_flops == nominal_flops(run.parameters, 60, 0.5)
    assert torch.equal(
        run.gradient.collect([p.detach() for p in run.gradient.parameters])[~keep], torch.zeros(int((~keep).sum()))
    )


def test_images_of_no_weight_are_visited_and_not_active(make_trainer):
    class Half(Policy):
        def start_epoch(self, run, epoch):
            weights = torch.ones(60)
            weights[:30] = 0
            return Pool(run.everything(), weights)

    result = make_trainer(Half()).train_epoch(1)
    assert (result.visited, result.active) == (60, 30)


def test_equal_weights_are_no_weights(sets):
    class Double(Policy):
        def weigh(self, run, batch, losses):
            return torch.full_like(losses, 2.0)

    setup = replace(SETUP, optimizer=Optimizer("sgd", 0.1))
    runs = [SystemTrainer(tiny_net(), setup, policy, *sets, seed=0) for policy in (Policy(), Double())]
    for run in runs:
        run.train_epoch(1)
    torch.testing.assert_close(weights(runs[0]), weights(runs[1]), rtol=1e-4, atol=1e-5)


class NoQuestions(TorchDispatchMode):
    """Raises where a GPU would have to be waited for."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__.split(".")[-1] not in self.WAITS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", SYSTEMS)
def test_no_step_waits_for_the_device(name, make_trainer, monkeypatch):
    setup = SYSTEMS[name].at(SMOKE)
    policy = build_policy(SYSTEMS[name], setup)
    run = make_trainer(policy, SETUP)
    run.train_epoch(1)
    step, watched_steps = run._step, []

    def watched(*arguments):
        with NoQuestions():
            watched_steps.append(step(*arguments))

    monkeypatch.setattr(run, "_step", watched)
    for epoch in range(2, policy.epochs(setup.epochs) + 1):
        run.train_epoch(epoch)
    assert watched_steps, "the watch did see steps"


def test_the_watch_does_see_a_question():
    with pytest.raises(AssertionError, match="scalar"), NoQuestions():
        torch.ones(()).item()


def test_a_stop_leaves_between_two_steps(make_trainer):
    asked = []
    run = make_trainer(should_stop=lambda: asked.append(1) or len(asked) > 3)
    with pytest.raises(Stopped):
        run.train_epoch(1)
    assert len(asked) == 4


def test_epochs_depend_on_seed_and_number_only(make_trainer):
    once, again, other = make_trainer(), make_trainer(), make_trainer(seed=1)
    once.train_epoch(1), other.train_epoch(1)
    torch.rand(100)
    again.train_epoch(1)
    assert torch.equal(weights(once), weights(again)) and not torch.equal(weights(once), weights(other))


def test_chance_inside_an_epoch_depends_on_seed_and_number_only(make_trainer):
    pools = []
    for before in (0, 5):
        run = make_trainer(RandomRate(0.3))
        torch.rand(before)
        torch.rand(before, generator=run.generator)
        policy_of, seen = run.policy.start_epoch, []
        run.policy.start_epoch = lambda run, epoch, of=policy_of, to=seen: to.append(of(run, epoch)) or to[-1]
        run.train_epoch(2)
        pools.append((seen[0].index.tolist(), torch.rand(1).item()))
    assert pools[0] == pools[1]


def test_only_the_first_hundred_of_a_class_count_per_class(sets):
    test, place = colours(330), np.arange(330)
    # Of each class's 110 images ten among the first hundred have a wrong label, and so have all ten after those.
    wrong = ((place >= 150) & (place < 180)) | (place >= 300)
    labels = np.where(wrong, (test.labels + 1) % 3, test.labels)
    judge = ImageSet.from_arrays(test.read(place), labels, test.classes)
    run = SystemTrainer(tiny_net(), SETUP, Policy(), *make_images(colours(), judge, CPU), seed=0)
    for epoch in range(1, 9):
        run.train_epoch(epoch)
    judged = run.evaluate()
    assert judged.full == pytest.approx(270 / 330, abs=0.01) and judged.first_100 == pytest.approx(0.9, abs=0.01)
    assert sum(judged.per_class) / 3 == pytest.approx(judged.first_100)


def test_one_left_over_image_is_not_a_batch(sets):
    run = SystemTrainer(tiny_net(), replace(SETUP, batch_size=59), Policy(), *sets, seed=0)
    assert run.train_epoch(1).visited == 59


def test_batch_larger_than_the_set(sets):
    setup = replace(SETUP, batch_size=1024, drop_last=True, optimizer=Optimizer("sgd", 0.1, "triangle", lookahead=True))
    assert SystemTrainer(tiny_net(), setup, Policy(), *sets, seed=0).train_epoch(1).visited == 60


@pytest.mark.parametrize(("sparsity", "total"), [(0.0, 33.521886), (0.8, 6.704376)])
def test_thirty_epochs_of_a_resnet18_count_what_was_published(sparsity, total):
    sums = EpochSums(10, CPU)
    sums.visited, sums.steps = 50_000, 782
    sums.active += 50_000
    sums.sparsity += sparsity * sums.steps
    result = sums.result(Pool(torch.arange(1)), 11_173_962, 0)
    assert 30 * result.nominal_flops / 1e12 == pytest.approx(total, abs=1e-9)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("name", "half"),
    [("warmup-sel", torch.bfloat16), ("selective-backprop", torch.float16), ("fast", torch.float16)],
)
def test_the_fast_path_on_a_processor(name, half, make_trainer, monkeypatch):
    """Half precision, loss scaling and a compiled model, traced whole, but without the GPU's code generator."""
    compiled = []

    def compile_without_code(model, **options):
        assert options == {"mode": "reduce-overhead", "dynamic": False}
        compiled.append(torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False))
        return compiled[-1]

    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)  # it would outlive the test
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    real = torch.compile
    monkeypatch.setattr(
        "edge_sel.reference.trainer.torch.compile",
        lambda *a, **o: _undone(monkeypatch, real, compile_without_code, *a, **o),
    )
    run, plain = (
        make_trainer(build_policy(SYSTEMS[name], SYSTEMS[name].at(SMOKE)), speed=speed)
        for speed in (Speed(half, True, ""), fastest(CPU))
    )
    assert len(compiled) == 1 and run.stepper.loss_scale.is_enabled() == (half == torch.float16)
    before = run.state()
    run.compile()
    for key, value in run.state().items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    for epoch in (1, 2):
        fast, slow = run.train_epoch(epoch), plain.train_epoch(epoch)
        assert fast.visited == slow.visited and fast.executed_flops == slow.executed_flops
        assert fast.train_loss == pytest.approx(slow.train_loss, rel=0.05)
    assert run.gradient.values.dtype == torch.float32


def _undone(monkeypatch, real, call, *arguments, **options):
    monkeypatch.setattr("edge_sel.reference.trainer.torch.compile", real)
    return call(*arguments, **options)
