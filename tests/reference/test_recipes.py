"""Models, optimizers, epochs and thresholds are those that the sources print, and scale in proportion."""

import pytest

from edge_sel.models.registry import build, parameter_count
from edge_sel.reference.curricula import staged
from edge_sel.reference.suite import plan
from edge_sel.reference.systems import SYSTEMS, SuiteOptions, find_scale
from edge_sel.sel.curriculum import STAGES
from tests.reference.full_scale import FULL, policy_of, setup_of


def test_the_benchmark_trains_resnet18_with_adam_on_batches_of_64():
    for name, epochs in (("baseline", 30), ("lottery-ticket", 45), ("sel-95", 50), ("warmup-sel", 55), ("sel-v3", 50)):
        setup = setup_of(name)
        assert (setup.model, setup.epochs, setup.batch_size) == ("resnet18-cifar", epochs, 64)
        assert (setup.optimizer.kind, setup.optimizer.rate, setup.imagenet) == ("adam", 1e-3, True)
    assert parameter_count(build("resnet18-cifar", 10, (32, 32))) == 11_173_962


def test_planned_flops_are_the_published_ones(tmp_path):
    planned = {
        p["name"]: p
        for p in plan(
            [SYSTEMS["baseline"], SYSTEMS["lottery-ticket"], SYSTEMS["sel-95"]], SuiteOptions(FULL, "cifar10", tmp_path)
        )
    }
    assert planned["baseline"]["nominal_flops_t"] == pytest.approx(33.521886, abs=1e-12)
    assert planned["lottery-ticket"]["nominal_flops_t"] == pytest.approx(6.704376, abs=1e-12)
    assert planned["sel-95"]["nominal_flops_t"] is None
    assert (planned["baseline"]["epochs"], planned["sel-95"]["epochs"]) == (30, 50)


@pytest.mark.parametrize(
    ("name", "percentile", "warmup", "thresholds"),
    [("sel-95", 40, 0, False), ("warmup-sel", 40, 5, False), ("sel-v3", 20, 0, True)],
)
def test_sel_has_the_published_windows_and_percentiles(name, percentile, warmup, thresholds):
    policy = policy_of(name)
    assert policy.stages == STAGES
    assert (policy.percentile, policy.warmup_epochs, policy.thresholds) == (percentile, warmup, thresholds)
    assert policy.schedule == "sel"
    assert policy.epochs(setup_of(name).epochs) == 50 + warmup


def test_ast_has_the_published_gains():
    for name, rate, kp, ki, epochs in (("ast", 0.10, 0.0015, 0.00005, 40), ("ast-6", 0.06, 0.0008, 0.000002, 3)):
        config = policy_of(name).config
        assert (config.target_rate, config.kp, config.ki, config.ema_alpha) == (rate, kp, ki, 0.3)
        assert (config.threshold_min, config.threshold_max, config.integral_bound, config.integral_decay) == (
            0.01,
            0.99,
            50,
            0.9,
        )
        setup = setup_of(name)
        assert (setup.model, setup.epochs, setup.batch_size, setup.augmentation.flip) == (
            "simple-cnn",
            epochs,
            64,
            "none",
        )
    two = setup_of("ast-two-stage")
    assert (policy_of("ast-two-stage").warmup_epochs, two.epochs, two.model, two.image_size) == (
        10,
        100,
        "torchvision:resnet50",
        224,
    )


def test_dihcl_has_every_rule_and_kind():
    rules = {(policy_of(n).rule, policy_of(n).kind) for n in SYSTEMS if n.startswith("dihcl-")}
    assert rules == {(r, k) for r in ("greedy", "rand", "exp", "beta") for k in ("loss", "delta", "flip")}
    assert (policy_of("dihcl-exp").kind, policy_of("dihcl-beta").kind) == ("loss", "flip")


def test_the_fast_baseline_is_airbench94():
    setup = setup_of("fast")
    assert (setup.batch_size, setup.label_smoothing, setup.augmentation.flip, setup.augmentation.shift) == (
        1024,
        0.2,
        "alternate",
        2,
    )
    assert setup.optimizer.rate == pytest.approx(
        1.5
    ) and setup.optimizer.rate * setup.optimizer.weight_decay == pytest.approx(0.0153 / (1 + 1 / 0.15))
    assert policy_of("fast-sel").warmup_epochs == 5 and policy_of("fast-sel").epochs(10) == 10


def test_only_the_source_s_model_and_length_are_without_a_label():
    full, small = find_scale("full"), find_scale("small")

    def label(name, scale=full, **other):
        return SYSTEMS[name].label(SYSTEMS[name].at(scale, **other), scale)

    published = {"model": "wrn-28-10", "epochs": 300}
    assert label("baseline") == label("dihcl-exp", **published) == label("spl", **published) == ""
    labels = [label("baseline", epochs=29), label("ast", model="resnet-c"), label("sel-95", image_size=64)]
    assert all("NOT comparable" in text for text in [*labels, label("dihcl-exp"), label("mcl", epochs=300)])
    assert label("baseline", small) == small.label


def test_images_of_another_size_are_shifted_in_proportion():
    setup = SYSTEMS["dihcl-exp"].at(find_scale("full"), image_size=224, model="torchvision:resnet50")
    assert (setup.image_size, setup.augmentation.shift, setup.model) == (224, 28, "torchvision:resnet50")
    small = SYSTEMS["ast-two-stage"].at(find_scale("small"))
    assert (small.image_size, small.augmentation.shift) == (32, 2)


def test_a_curriculum_keeps_its_proportions_when_scaled():
    stages, warmup = staged(STAGES, 22, 5)
    assert warmup == 2 and sum(stage.epochs for stage in stages) == 20 and len(stages) == 5
    assert staged(STAGES, 55, 5) == (STAGES, 5)


def test_a_smaller_batch_takes_sgd_in_smaller_steps():
    small = find_scale("small")
    fast, adam = SYSTEMS["fast"].at(small), SYSTEMS["baseline"].at(small)
    assert (fast.batch_size, fast.model) == (32, "fast-net-small") and fast.optimizer.rate == pytest.approx(
        1.5 * 32 / 1024
    )
    assert adam.optimizer.rate == 1e-3 and adam.model == "resnet-c-small" and not adam.imagenet
    assert SYSTEMS["ast-two-stage"].at(small).augmentation.shift == round(16 * 32 / 224)
    assert SYSTEMS["baseline"].at(small, model="resnet-c", epochs=3).epochs == 3
