"""A head that reads the last blocks too: where they are found, that nothing changes by it, and that torch agrees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import add_deep_head
from edge_sel.graphs.backbone import compile_backbone, find_cut, tail
from edge_sel.graphs.deep_head import EPSILON, MOST_TAPS, find_taps, with_deep_head
from edge_sel.graphs.head_form import head_scale, with_vector_features
from edge_sel.graphs.plans import head_names, make_plan
from edge_sel.graphs.train import compile_eval
from edge_sel.models.registry import build
from edge_sel.pack.manifest import Tap
from edge_sel.server.source import torch_model
from edge_sel.server.source.base import WarmupInfo
from edge_sel.server.source.heads import deepened, outputs_of
from edge_sel.server.source.torch_model import from_module
from tests.server import endings

SIZE = 16


def network(name):
    torch.manual_seed(0)
    return build(name, 4, (SIZE, SIZE)).eval()


def forward_of(model):
    return with_vector_features(torch_model.export_forward(model, (SIZE, SIZE)))


def run(forward, images):
    session = OrtEngine(1).session(compile_eval(forward).SerializeToString(), {})
    head = {name: forward.initializers[name] for name in head_names(forward)}
    return session.run(["logits"], {"x": images, **head})[0]


def images(count=3, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, SIZE, SIZE)).astype(np.float32)


class Tokens(nn.Module):
    """Two residual layers on tokens [N, 16, 8], and a mean of them as features."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean(1))


# Where


@pytest.mark.parametrize(
    ("name", "widths"),
    [("resnet-c-small", [(64, False), (32, True)]), ("mobilenet-c", [(96, False), (96, True), (48, True)]),
     ("simple-cnn", []),
     pytest.param("resnet-c", [(128, False), (128, True), (64, True)], marks=pytest.mark.slow)],
)  # fmt: skip
def test_outputs_of_the_last_blocks_are_found(name, widths):
    """Not inside of a block, and not before the last stage: ``last`` keeps its frozen backbone."""
    forward = forward_of(network(name))
    taps = find_taps(forward)
    assert [(tap.width, tap.mean) for tap in taps] == widths and len(taps) <= MOST_TAPS
    deep = with_deep_head(forward, taps)
    before, after = (find_cut(graph, make_plan(graph, "last")) for graph in (forward, deep))
    assert before.tensor == after.tensor if taps else deep is forward


def test_a_bottleneck_without_a_shortcut_is_a_block_too():
    """As in MobileNetV2, where a block changes its width."""

    class Net(nn.Sequential):
        def __init__(self):
            layers = [nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 24, 1),
                      nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)]  # fmt: skip
            super().__init__(*layers)

    taps = find_taps(forward_of(Net().eval()))
    assert [(tap.width, tap.mean) for tap in taps] == [(24, False), (8, True)]


def test_tokens_are_averaged_over_tokens():
    forward = forward_of(Tokens().eval())
    taps = find_taps(forward)
    assert [(tap.axes, tap.width, tap.mean) for tap in taps] == [((1,), 8, False), ((1,), 8, True)]
    deep = with_deep_head(forward, taps)
    np.testing.assert_allclose(run(deep, images()), run(forward, images()), rtol=1e-6, atol=1e-6)


# Nothing changes


@pytest.mark.parametrize("name", ["resnet-c-small", pytest.param("mobilenet-c", marks=pytest.mark.slow)])
def test_it_computes_what_it_did_until_something_is_learnt(name):
    forward = forward_of(network(name))
    deep = with_deep_head(forward, find_taps(forward))
    assert np.array_equal(run(deep, images()), run(forward, images()))
    cut = find_cut(deep, make_plan(deep, "head"))
    assert cut.shape == (sum(deep.initializers[name].shape[1] for name in head_names(deep)[::2]),)
    assert make_plan(deep, "head").trainable == ("head.weight", "head.bias", "deep_head.weight", "deep_head.bias")
    assert tail(deep, cut).nodes and compile_backbone(deep, cut).graph.node


def test_features_are_means_and_deviations_of_the_layers():
    forward = forward_of(network("resnet-c-small"))
    taps = find_taps(forward)
    deep = with_deep_head(forward, taps)
    made = outputs_of(deep, [find_cut(deep, make_plan(deep, "head")).tensor, *(tap.name for tap in taps)], images())
    features, last, before = made.values()
    means, variances = ([getattr(tap, what)((2, 3)) for tap in (last, before)] for what in ("mean", "var"))
    widths = [mean.shape[1] ** 0.5 for mean in means]  # by which a layer's features are divided; not the head's own
    deviations = [np.sqrt(of + EPSILON) / width for of, width in zip(variances, widths, strict=True)]
    expected = [means[0], deviations[0], means[1] / widths[1], deviations[1]]
    np.testing.assert_allclose(features, np.concatenate(expected, 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ending", [endings.Flatten, endings.Mean, endings.TwoHeads])
def test_each_ending_keeps_its_head(ending):
    """What two heads take is joined of two means: of which maps is not looked for."""
    model = ending(4).eval()
    forward = forward_of(model)
    source = from_module(model, WarmupInfo("x", ("a", "b", "c", "d"), (16, 16), (0.5,) * 3, (0.5,) * 3, {}))
    deep = ending is not endings.TwoHeads
    assert ("deep_head.weight" in source.weights) == bool(source.taps) == deep
    assert len(head_names(source.forward)) == len(head_names(forward)) + 2 * deep
    assert head_scale(source.forward) == (1.0 if deep else 0.5)


# In torch


@pytest.mark.parametrize("name", ["resnet-c-small", pytest.param("mobilenet-c", marks=pytest.mark.slow)])
def test_torch_computes_the_same_with_any_weights(name):
    model = network(name)
    source = from_module(model, WarmupInfo(name, ("a", "b", "c", "d"), (SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, {}))
    rng = np.random.default_rng(0)
    learnt = {
        name: rng.normal(size=value.shape).astype(np.float32)
        for name, value in source.weights.items() if name.startswith("deep_head")
    }  # fmt: skip
    forward = replace(source.forward, initializers={**source.forward.initializers, **learnt})
    twin = add_deep_head(model, source.taps, 4)
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in learnt.items()}, strict=False)
    with torch.no_grad():
        expected = twin(torch.from_numpy(images())).numpy()
    found = run(forward, images())
    assert not np.allclose(found, run(source.forward, images()), atol=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_layers_are_named_by_the_modules_that_make_them():
    forward = forward_of(network("resnet-c-small"))
    assert [forward.modules[tap.name] for tap in find_taps(forward)] == ["stages.2.0", "stages.1.0"]


class Residual(nn.Module):
    """Adds what its layer makes; the layer may be another's too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


def residual(*blocks):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def taps_of(model):
    info = WarmupInfo("x", ("a", "b", "c", "d"), (SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, {})
    return [tap.name for tap in from_module(model.eval(), info).taps]


def test_blocks_that_change_nothing_yet_are_told_from_each_other():
    """As in LeViT, whose blocks begin with weights of zero: all of them make the same."""
    layers = [nn.Conv2d(8, 8, 1) for _ in range(3)]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert taps_of(residual(*(Residual(layer) for layer in layers))) == ["3", "2", "1"]


def test_a_block_that_is_called_twice_is_not_read():
    """A hook keeps the last of its outputs."""

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.own = Residual(nn.Conv2d(8, 8, 1)), Residual(nn.Conv2d(8, 8, 1))

        def forward(self, x):
            return self.own(torch.relu(self.block(torch.relu(self.block(x)))))

    assert taps_of(residual(Again())) == ["1.own"]


def test_a_module_that_makes_two_tensors_is_not_read():
    class Two(Residual):
        def forward(self, x):
            return super().forward(x), x.mean()

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = Two(nn.Conv2d(8, 8, 1))
            self.ends = residual()

        def forward(self, x):
            begin, *end = self.ends
            return nn.Sequential(*end)(self.both(begin(x))[0])

    assert taps_of(First()) == []


def test_a_layer_that_is_no_output_of_a_module_is_not_read():
    """A device that asks torch for the model could not find it."""

    class Functional(endings.Flatten):
        def forward(self, x):
            x = self.body(x)
            return self.end(torch.relu(x - 0.1))

    source = from_module(
        Functional(4).eval(), WarmupInfo("x", ("a", "b", "c", "d"), (16, 16), (0.5,) * 3, (0.5,) * 3, {})
    )
    assert source.taps == () and "deep_head.weight" not in source.weights


def test_a_tap_tells_how_many_features_it_gives():
    assert (Tap("a", (2, 3), 8).features, Tap("a", (2, 3), 8, mean=False).features) == (16, 8)


def test_a_source_without_blocks_stays_as_it_is():
    source = from_module(
        network("simple-cnn"), WarmupInfo("s", tuple("abcd"), (SIZE, SIZE), (0.5,) * 3, (0.5,) * 3, {})
    )
    assert deepened(source).forward is source.forward and source.taps == ()
