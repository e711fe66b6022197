"""The networks that only the reference trains."""

import copy
import shutil

import pytest
import torch

from edge_sel.models.networks import FastNet, WideBlock, WideResNet
from edge_sel.models.registry import build, parameter_count


def test_wrn_28_10_has_its_published_size():
    with torch.device("meta"):
        assert parameter_count(build("wrn-28-10", 10, (32, 32))) == 36_479_194
    assert WideResNet(10, 1, 3)(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="6 n"):
        WideResNet(27, 10, 10)


def test_whitened_patches_are_uncorrelated():
    torch.manual_seed(0)
    images = torch.randn(40, 3, 16, 16).cumsum(3) * 0.3
    net = FastNet((4, 4, 4), 5)
    net.set_whitening(images, eps=0.0)
    net.whiten.bias.data.zero_()
    out = net.whiten(images).permute(1, 0, 2, 3).flatten(1).detach()
    assert torch.equal(out[:12], -out[12:]) and not net.whiten.weight.requires_grad
    torch.testing.assert_close(out[:12] @ out[:12].T / out.shape[1], torch.eye(12), atol=1e-3, rtol=0)


def test_the_fast_net_begins_as_the_identity_and_has_no_scales():
    net = FastNet((24, 32, 32), 5)
    x = torch.randn(2, 24, 8, 8)
    torch.testing.assert_close(net.groups[1].conv1(x)[:, :24], x)
    assert all(not m.weight.requires_grad for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert net(torch.randn(3, 3, 32, 32)).shape == net(torch.randn(3, 3, 16, 16)).shape == (3, 5)


def test_a_wide_block_adds_to_its_input():
    block = WideBlock(4, 4, 1)
    block.conv2.weight.data.zero_()
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)
    assert WideBlock(4, 8, 2)(x).shape == (2, 8, 3, 3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="torch compiles with gcc")
@pytest.mark.parametrize("name", ["fast-net-small", "resnet-c-small"])
def test_compiled_gradients_are_those_of_plain_code_within_rounding(name):
    """In bfloat16: compiled code keeps more digits inside than it stores, so nothing may ask whether numbers are equal."""
    torch.manual_seed(0)
    x, y = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    plain = build(name, 10, (32, 32)).train()
    if isinstance(plain, FastNet):
        plain.set_whitening(x)
    compiled = copy.deepcopy(plain)
    for forward in (plain, torch.compile(compiled, dynamic=False)):
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(x).float()
        torch.nn.functional.cross_entropy(logits, y).backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters() if p.requires_grad]) for m in (plain, compiled))
    assert (ours - theirs).norm() < 0.2 * ours.norm()
