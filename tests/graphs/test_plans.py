"""Plans are read off the graph: which tensors, in which order, and what cannot be planned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

from edge_sel.errors import GraphError, UsageError
from edge_sel.graphs.plans import LARGE, PLANS, head_names, make_plan, with_probes
from edge_sel.graphs.read import read_forward
from edge_sel.graphs.train import compile_train
from edge_sel.models.registry import MODELS
from tests.graphs.conftest import SIZE, large_ones_slow
from tests.tiny import LAYERS, tiny_model

RESNETS = {"resnet-c": 3, "resnet-c-small": 3, "resnet18-cifar": 4}
HEAD = {"head.weight", "head.bias"}


def named(model: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("name", large_ones_slow(RESNETS))
def test_plans_of_a_resnet(net_of, name):
    model, forward = net_of(name)
    trainable = {plan: set(make_plan(forward, plan).trainable) for plan in PLANS}
    final = RESNETS[name] - 1
    norms = {
        f"{path}.{leaf}"
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    assert trainable == {
        "bn": set(),
        "head": HEAD,
        "affine": norms | HEAD,
        "last": named(model, f"stages.{final}.") | HEAD,
        "last2": named(model, f"stages.{final}.", f"stages.{final - 1}.") | HEAD,
        "first": named(model, "stem.", "stages.0.0.") | HEAD,
        "full": {name for name, _ in model.named_parameters()},
    }


@pytest.mark.parametrize("name", large_ones_slow(MODELS))
def test_last_is_what_works_at_the_final_map_size(net_of, name):
    model, forward = net_of(name)
    sizes: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(lambda m, i, y, path=path: sizes.update({path: y.shape[2] if y.ndim == 4 else 0}))
        for path, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
    ]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    maps = sorted({size for size in sizes.values() if size})
    for plan, wanted in (("last", {0, *maps[:1]}), ("last2", {0, *maps[:2]})):
        expected = {n for n, _ in model.named_parameters() if sizes[n.rpartition(".")[0]] in wanted}
        assert set(make_plan(forward, plan).trainable) == expected


@pytest.mark.parametrize("name", large_ones_slow(MODELS))
def test_every_plan_keeps_forward_order_and_includes_the_head(net_of, name):
    model, forward = net_of(name)
    full = make_plan(forward, "full").trainable
    assert set(full) == {n for n, _ in model.named_parameters()} and len(full) == len(set(full))
    for plan in ("head", "affine", "last", "last2", "first"):
        trainable = make_plan(forward, plan).trainable
        assert list(trainable) == [n for n in full if n in trainable]
        assert set(head_names(forward)) <= set(trainable)
    statistics = [n for n, _ in model.named_buffers() if n.endswith(("running_mean", "running_var"))]
    assert set(make_plan(forward, "full").buffers) == set(statistics)
    if statistics:
        buffers = make_plan(forward, "bn").buffers
        assert set(buffers) == set(statistics)
        for mean, variance in zip(buffers[::2], buffers[1::2], strict=True):
            assert mean.removesuffix("mean") == variance.removesuffix("var")


@pytest.mark.parametrize("name", large_ones_slow(MODELS))
@pytest.mark.parametrize("percent", (1, 25, 50, 99))
def test_a_budget_is_a_share_of_every_convolutions_output_channels(net_of, name, percent):
    _, forward = net_of(name)
    plan, whole = make_plan(forward, f"full-c{percent}"), make_plan(forward, "full")
    assert plan.trainable == whole.trainable and plan.bn_mode == whole.bn_mode and plan.buffers == whole.buffers
    assert set(plan.channels) == {n for n in plan.trainable if forward.initializers[n].ndim == 4}
    for weight, count in plan.channels.items():
        out = len(forward.initializers[weight])
        assert 1 <= count <= out and abs(count - out * percent / 100) <= max(0.5, 1 - out * percent / 100)


@pytest.mark.parametrize("name", ("everything", "", "Head", "last3", "last-c", "last-c100", "last-25", "head "))
def test_an_unknown_plan_is_a_usage_error_that_lists_the_plans(name):
    with pytest.raises(UsageError, match="last2") as error:
        make_plan(read_forward(tiny_model()), name)
    assert error.value.where == name


def test_a_budget_brings_the_plan_that_chooses_its_channels():
    assert with_probes(["head", "last-c50", "last-c25"]) == ("head", "last", "last-c50", "last-c25")
    assert with_probes(["full-c10"]) == ("full", "full-c10") and with_probes(["last", "bn"]) == ("last", "bn")


def test_a_plan_that_finds_nothing_is_a_graph_error():
    forward = read_forward(tiny_model())
    with pytest.raises(GraphError, match="plan bn finds nothing"):
        make_plan(forward, "bn")
    with pytest.raises(GraphError, match="head-c25 finds no convolution"):
        make_plan(forward, "head-c25")


def test_only_plain_and_depthwise_convolutions_have_a_budget():
    def channels(group, weight):
        wide = helper.make_node("Conv", ["x", "wide.weight"], ["convolved"], "wide", pads=[1, 1, 1, 1])
        conv = helper.make_node(
            "Conv", ["convolved", "mixed.weight"], ["mixed"], "mixed", pads=[1, 1, 1, 1], group=group
        )
        pool = helper.make_node("ReduceMean", ["mixed", "axes"], ["features"], "pool", keepdims=0)
        kernels = {"wide.weight": np.ones((weight[1] * group, 3, 3, 3)), "mixed.weight": np.ones(weight)}
        extra = {name: kernel.astype(np.float32) for name, kernel in kernels.items()}
        forward = read_forward(tiny_model((wide, conv, pool, LAYERS[3]), extra=extra))
        plan = make_plan(forward, "full-c50")
        compile_train(forward, plan, "adam")
        return plan.channels.get("mixed.weight")

    assert channels(1, (4, 6, 3, 3)) == 2
    assert channels(4, (4, 1, 3, 3)) == 2
    assert channels(2, (4, 2, 3, 3)) is None
    assert channels(4, (4, 2, 3, 3)) is None
    assert channels(2, (4, 1, 3, 3)) is None


def head_variants():
    late = helper.make_node("Sigmoid", ["scores"], ["logits"], "late")
    gemm = helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], "inner", transB=1)
    product = helper.make_node("MatMul", ["features", "turned"], ["logits"], "product")
    computed = [
        helper.make_node("Relu", ["head.weight"], ["made"], "maker"),
        helper.make_node("Gemm", ["features", "made", "head.bias"], ["logits"], "hyper", transB=1),
    ]
    yield "Sigmoid late", [*LAYERS[:3], gemm, late]
    yield "MatMul product", [*LAYERS[:3], product]
    yield "Gemm hyper", [*LAYERS[:3], *computed]


@pytest.mark.parametrize(
    ("where", "layers"), list(head_variants()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_logits_that_no_linear_layer_makes_are_refused(where, layers):
    forward = read_forward(tiny_model(layers, extra={"turned": np.ones((4, 5), np.float32)}))
    for plan in ("head", "affine", "last", "full"):
        with pytest.raises(GraphError, match="linear layer") as error:
            make_plan(forward, plan)
        assert error.value.where == where


def test_the_whole_network_keeps_its_statistics_where_images_are_large(net_of):
    """A device has no memory for a batch of them that would have statistics of its own."""
    forward = net_of("resnet-c-small")[1]
    for side, mode in ((LARGE, "batch"), (LARGE + 1, "frozen")):
        sized = replace(forward, shapes={**forward.shapes, forward.input: (None, 3, 32, side)})
        for name in ("full", "full-c25"):
            plan = make_plan(sized, name)
            assert plan.bn_mode == mode and bool(plan.buffers) == (mode == "batch")
            assert plan.trainable == make_plan(forward, name).trainable
        assert make_plan(sized, "bn").bn_mode == "batch"
