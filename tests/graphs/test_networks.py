"""Whole networks that the built-in models do not cover: one compiled step equals torch autograd's."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from edge_sel.errors import GraphError
from edge_sel.graphs.plans import make_plan
from edge_sel.server.source import torch_model
from tests.graphs.steps import assert_step_is_autograds, batch

PLANS = ("head", "affine", "first", "last", "last2", "full", "full-c25")


@pytest.fixture(scope="module", params=("SmallTransformer", "PartsNet", "PooledHead", "TwoHeads", "Moved", "Masked"))
def network(request, net_of):
    return net_of(request.param)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("plan", PLANS)
def test_a_step_of_a_network_of_common_parts_is_autograds(network, plan):
    model, forward = network
    assert_step_is_autograds(model, forward, plan, batch(16))


def test_full_means_every_parameter(network):
    model, forward = network
    assert set(make_plan(forward, "full").trainable) == {name for name, _ in model.named_parameters()}


def test_the_last_stage_of_a_network_with_squeeze_and_excite(one_thread):
    # The 1×1 maps inside the gate are no stage of their own.
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.ModuleList(nn.Conv2d(i, 4, 3, stride=2, padding=1) for i in (3, 4, 4))
            self.gates = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
            self.after = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            for conv, gate, after in zip(self.maps, self.gates, self.after, strict=True):
                x = conv(x).relu()
                x = after(x * gate(x.mean((2, 3), keepdim=True)).sigmoid())
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Gated()
    forward = torch_model.export_forward(model, (16, 16))
    last = {f"{part}.2.{leaf}" for part in ("maps", "gates", "after") for leaf in ("weight", "bias")}
    assert set(make_plan(forward, "last").trainable) == last | {"head.weight", "head.bias"}
    assert_step_is_autograds(model, forward, "last", batch(16))


def test_parameters_of_the_model_itself_are_trained(one_thread):
    class WithToken(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.register_buffer("scale_of", torch.full((8,), 0.5))
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.norm = nn.LayerNorm(8)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            q = x.unflatten(2, (2, 4)).transpose(1, 2)
            x = x + nn.functional.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
            return self.head(self.norm(x)[:, 0] * self.scale_of)

    torch.manual_seed(0)
    model = WithToken()
    forward = torch_model.export_forward(model, (16, 16))
    trainable = make_plan(forward, "full").trainable
    assert "token" in trainable and "scale_of" not in trainable
    assert_step_is_autograds(model, forward, "full", batch(16))


TORCHVISION = {
    "resnet18": 64, "mobilenet_v3_small": 64, "efficientnet_b0": 64, "shufflenet_v2_x0_5": 64, "convnext_tiny": 64,
    "vit_b_16": 32,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_classifiers(one_thread, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from torchvision import models
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"torchvision cannot be imported beside this torch: {error}")
    size = TORCHVISION[name]
    torch.manual_seed(0)
    options = {"image_size": size} if name.startswith("vit") else {}
    model = models.get_model(name, weights=None, num_classes=5, **options).eval()
    if name.startswith("vit"):
        nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero: no gradient would pass
    forward = torch_model.export_forward(model, (size, size))
    assert set(make_plan(forward, "full").trainable) == {n for n, _ in model.named_parameters()}
    for plan in ("head", "affine", "last", "full"):
        for seed in range(8):  # rounding across the kink of one ReLU changes a gradient by percents, in torch too
            try:
                assert_step_is_autograds(model, forward, plan, batch(size, 4, seed=seed), tolerance=5e-3)
            except AssertionError:
                if seed == 7:
                    raise
            else:
                break


def test_a_model_that_cannot_be_exported_says_so(one_thread, capsys):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            mean = x.mean((2, 3))
            return self.head(mean if mean.sum() > 0 else -mean)

    with pytest.raises(GraphError, match="cannot export Branching"):
        torch_model.export_forward(Branching(), (16, 16))
    assert capsys.readouterr() == ("", ""), "torch prints its graphs"


def test_a_parameter_that_the_graph_does_not_read_is_named(one_thread, capfd):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(3, 3)
            self.head = nn.Linear(3, 5)

        def forward(self, x):
            return self.head(x.mean((2, 3)))

    with pytest.raises(GraphError, match=r"lost in the export: spare\.bias, spare\.weight"):
        torch_model.export_forward(Unused(), (16, 16))
    assert capfd.readouterr() == ("", ""), "the exporter is quiet"
