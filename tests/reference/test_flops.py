"""Executed operations, counted by hand."""

import pytest
import torch
from torch import nn

from edge_sel.models.registry import build
from edge_sel.reference.model import work_per_image


def test_a_layer_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    conv, linear = 2 * 4 * 8 * 8 * 3 * 9, 2 * 5 * 4 * 64
    # Images need no gradient, so the first layer computes that of its weight only.
    assert work_per_image(net, (8, 8)) == (conv + linear, conv + 2 * linear)


def test_groups_and_frozen_layers():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.Flatten(), nn.Linear(96, 2))
    first, grouped, linear = 2 * 6 * 16 * 3, 2 * 6 * 16 * 2 * 9, 2 * 2 * 96
    for p in net[0].parameters():
        p.requires_grad_(False)
    assert work_per_image(net, (4, 4)) == (first + grouped + linear, grouped + 2 * linear)


def test_resnet18_costs_what_the_anchors_say():
    work = work_per_image(build("resnet18-cifar", 10, (32, 32)), (32, 32))
    assert sum(work) * 50_000 * 30 / 1e12 == pytest.approx(4990, rel=0.003)


def test_counting_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 2))
    before = [value.clone() for value in net.state_dict().values()]
    work_per_image(net, (8, 8))
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))
    assert net.training and not net[0]._forward_hooks
