"""The policies choose, weigh and count as those of the sources do."""

import math

import pytest
import torch

from edge_sel.reference.curricula import Dihcl, RandomPools, Sel, SelfPaced
from edge_sel.reference.policies import InfoBatch, RandomRate, SelectiveBackprop, Sundew, prune_mask
from edge_sel.sel.curriculum import STAGES, Stage
from edge_sel.sel.guilt import calibrate_gamma
from tests.reference.full_scale import policy_of, setup_of

CIFAR_LABELS = torch.arange(50_000) % 10
ONE_EACH = tuple(stage._replace(epochs=1) for stage in STAGES)


class Fifty:
    """As much of a run as choosing pools needs: CIFAR-10's labels, and a gradient of a hundred values."""

    device, classes, labels = torch.device("cpu"), 10, CIFAR_LABELS
    generator = torch.Generator().manual_seed(0)

    def sample(self, count):
        return torch.randperm(50_000, generator=self.generator)[:count]

    def uniform(self, count):
        return torch.rand(count, generator=self.generator)

    def score(self):
        return torch.linspace(0, 5, 50_000)[torch.randperm(50_000, generator=self.generator)]

    def calibrate(self, images):
        return torch.arange(1.0, 101.0)

    def everything(self):
        return torch.arange(50_000)


@pytest.mark.parametrize("policy", [Sel(ONE_EACH, percentile=40), RandomPools(ONE_EACH, schedule="cosine")])
def test_stages_visit_as_many_images_as_the_published_tables_say(policy):
    """flops_T / (2 P (1 - sparsity)) of hist_sel95.csv."""
    run, sizes = Fifty(), []
    for epoch in range(1, 6):
        pool = policy.start_epoch(run, epoch)
        sizes.append(len(pool.index))
        assert pool.stage == epoch and torch.equal(
            CIFAR_LABELS[pool.index].bincount(), torch.full((10,), sizes[-1] // 10)
        )
        assert pool.schedule == policy.schedule
        policy.end_epoch(0.0)
    assert sizes == [12_500, 15_000, 12_500, 11_000, 11_000]


def test_the_warmup_visits_a_fifth():
    policy = Sel(STAGES, percentile=40, warmup_epochs=5)
    pool = policy.start_epoch(Fifty(), 1)
    assert pool.schedule is None
    assert len(pool.index.unique()) == 10_000 and pool.stage == 0  # 0.22347924 T in hist_warmup.csv


def test_gamma_decays_by_stage_and_masks():
    run, policy = Fifty(), Sel(ONE_EACH, percentile=40)
    for epoch, factor in enumerate((1.00, 0.94, 0.88, 0.82, 0.76), 1):
        policy.start_epoch(run, epoch)
        gradient = torch.arange(1.0, 101.0)
        gamma = float(calibrate_gamma([torch.arange(1.0, 101.0)], 40)) * factor
        sparsity = policy.mask(gradient)
        assert float(sparsity) == pytest.approx(math.floor(gamma) / 100)
        assert gradient[gradient > 0].min() > gamma
        policy.end_epoch(0.0)


def test_v3_waits_for_the_threshold_but_not_for_ever():
    stages = (Stage("a", 0, 0.5, 0.6, 2), Stage("b", 0.4, 1, 0.9, 1))
    policy, run = Sel(stages, percentile=None, thresholds=True), Fifty()
    seen = []
    for accuracy in (0.9, 0.5, 0.61, 0.1, 0.1):  # late: two epochs are the least, and the second is below
        seen.append(policy.start_epoch(run, len(seen) + 1).stage)
        before = policy.epochs(3)
        policy.end_epoch(accuracy)
        assert policy.epochs(3) >= before
    assert seen == [1, 1, 1, 2, 2] and policy.epochs(3) == 5


def test_lottery_prunes_globally_and_counts_the_second_training_only():
    policy = policy_of("lottery-ticket")
    assert (policy.search_epochs, policy.sparsity) == (15, 0.8)
    assert not policy.start_epoch(Fifty(), 15).counted and policy.planned_samples(50_000, 45) == 1_500_000
    magnitude = torch.tensor([3.0, 0.1, 2.0, 0.0, 0.1])
    assert prune_mask(magnitude, 0.4).tolist() == [True, False, True, False, True]
    assert int((~prune_mask(torch.rand(11_173_962), 0.8)).sum()) == 8_939_170  # of hist_lottery.csv's sparsity


def test_dihcl_visits_everything_for_t0_and_then_shrinks_geometrically():
    policy = Dihcl("greedy", "loss", 30)
    sizes = [policy.subset_size(1000, epoch) for epoch in range(1, 31)]
    assert sizes[:3] == [1000] * 3 and sizes[-1] == 200 and sizes == sorted(sizes, reverse=True)
    assert sizes[10] / sizes[9] == pytest.approx(policy.gamma_k, rel=2e-3)
    assert policy.planned_samples(1000, 30) == sum(sizes)


def test_dihcl_remembers_by_equation_1():
    policy, run = Dihcl("greedy", "loss", 4), Fifty()
    policy.start_epoch(run, 1)
    batch = type("Batch", (), {"index": torch.tensor([3, 5])})()
    policy.observe(batch, torch.tensor([4.0, 0.0]), torch.tensor([True, False]))
    r = policy.memory["r"]
    assert r[3] == pytest.approx(0.95 * 4 + 0.05 * 1) and r[5] == pytest.approx(0.05) and r[0] == 1
    assert 3 in policy.start_epoch(run, 2).index and policy.subset_size(50_000, 2) < 50_000


@pytest.mark.parametrize("rule", ["greedy", "rand", "exp", "beta"])
def test_dihcl_prefers_what_is_hard(rule):
    policy, run = Dihcl(rule, "flip", 4), Fifty()
    policy.start_epoch(run, 1)
    policy.memory["r"] = (torch.arange(50_000) % 2).float() * 0.9 + 0.05
    policy.memory["seen"] = torch.full((50_000,), 9, dtype=torch.int32)
    torch.manual_seed(0)
    pool = policy.start_epoch(run, 4).index
    assert len(pool.unique()) == len(pool) == policy.subset_size(50_000, 4)
    assert (pool % 2 == 1).double().mean() > 0.65


def test_the_control_of_dihcl_takes_as_many_at_random():
    policy, run = policy_of("random-dihcl"), Fifty()
    policy.start_epoch(run, 1)
    policy.memory["r"] = (torch.arange(50_000) % 2).float()
    pool = policy.start_epoch(run, 30).index
    assert len(pool.unique()) == len(pool) == policy_of("dihcl-exp").subset_size(50_000, 30)
    assert (pool % 2 == 1).double().mean() == pytest.approx(0.5, abs=0.02)
    assert setup_of("random-dihcl") == setup_of("dihcl-exp") and setup_of("ast-dense") == setup_of("ast")


def test_spl_takes_the_easy_and_mcl_the_hard():
    easy, hard = SelfPaced(easy=True, epochs=5), SelfPaced(easy=False, epochs=5)
    losses = torch.linspace(0, 5, 50_000)
    run = Fifty()
    run.score = lambda: losses
    assert losses[easy.start_epoch(run, 1).index].max() < losses[hard.start_epoch(run, 1).index].median()
    assert [easy.subset_size(100, epoch) for epoch in range(1, 6)] == [50, 62, 75, 88, 100]


def test_random_rate_takes_a_fresh_part():
    policy, run = RandomRate(0.1), Fifty()
    first, second = policy.start_epoch(run, 1).index, policy.start_epoch(run, 2).index
    assert len(first.unique()) == len(second) == 5000 and not torch.equal(first, second)
    assert policy.planned_samples(50_000, 40) == 200_000


def test_infobatch_prunes_until_seven_eighths():
    policy, run = InfoBatch(8), Fifty()
    assert len(policy.start_epoch(run, 1).index) == 50_000
    policy.memory["losses"] = torch.cat((torch.zeros(40_000), torch.ones(10_000)))
    pool = policy.start_epoch(run, 7)
    assert 29_000 < len(pool.index) < 31_000 and pool.weights[0] == 2 and pool.weights[-1] == 1
    assert len(policy.start_epoch(run, 8).index) == 50_000


def test_selective_backprop_trains_on_half_of_every_second_batch_in_the_second_half(make_trainer):
    policy = SelectiveBackprop(10)
    run = make_trainer(policy)
    assert (policy.first, policy.last) == (6, 9)
    visited = [run.train_epoch(epoch).visited for epoch in (1, 6, 10)]
    assert visited == [60, 4 + 8 + 4 + 8 + 4 + 8 + 4 + 4, 60]


def test_the_gate_counts_only_what_passes(make_trainer):
    from edge_sel.sel.sundew import PUBLISHED_10

    policy = Sundew(PUBLISHED_10._replace(initial_threshold=0.99), warmup_epochs=1)
    run = make_trainer(policy)
    first, second = run.train_epoch(1), run.train_epoch(2)
    assert (first.active, first.phase, second.visited, second.phase) == (60, "warmup", 60, "gated")
    assert 15 < second.active < 45
    assert second.executed_flops == first.executed_flops and second.nominal_flops < first.nominal_flops


def test_the_gate_starts_after_the_warmup_and_closes_while_too_many_pass(make_trainer):
    from edge_sel.sel.sundew import PUBLISHED_10

    policy = Sundew(PUBLISHED_10, warmup_epochs=1)
    run = make_trainer(policy)
    run.train_epoch(1)
    assert not policy.memory
    result = run.train_epoch(2)
    assert result.active / result.visited > 0.2
    assert float(policy.memory["threshold"]) > 0.5 and float(policy.memory["rate_ema"]) > 0.10
