"""Where a plan is cut, and that the two halves are the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from edge_sel.graphs.backbone import MIN_SHARE, NEARLY_ALL, compile_backbone, find_cut, tail
from edge_sel.graphs.cost import executed_flops, node_flops
from edge_sel.graphs.ir import BATCH
from edge_sel.graphs.plans import make_plan
from edge_sel.graphs.read import read_forward
from edge_sel.graphs.train import compile_score, compile_train
from edge_sel.models.registry import MODELS
from edge_sel.pack.manifest import OPTIMIZER_STATE
from tests.graphs.conftest import SIZE, large_ones_slow
from tests.graphs.graph_form import check_graph, dims
from tests.graphs.steps import batch, run, runner, step_feeds
from tests.tiny import FILTERS, HEIGHT, LAYERS, WIDTH, tiny_model

PLANS = ("head", "last", "last2", "last-c25")
RESNETS = {"resnet-c": 3, "resnet-c-small": 3, "resnet18-cifar": 4}


NETS = (*MODELS, "PartsNet", "SmallTransformer")
WITHOUT = {("SmallTransformer", "last-c25"), ("simple-cnn", "last2")}
"""The first has no convolution there; of the second all that comes before is 8 % of the work."""

CUT = [(net, plan) for net in NETS for plan in PLANS if (net, plan) not in WITHOUT]
every_net_and_plan = pytest.mark.parametrize(("name", "plan"), large_ones_slow(CUT))


def cut_of(forward, name):
    return find_cut(forward, make_plan(forward, name))


def seen_by(model: torch.nn.Module, path: str, x: np.ndarray) -> np.ndarray:
    """What the module at this path is given."""
    seen = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(torch.from_numpy(x))
    hook.remove()
    return seen[0].numpy()


# Where


@pytest.mark.parametrize("name", large_ones_slow(RESNETS))
@pytest.mark.parametrize("plan", ("last", "last2", "head", "last-c25"))
def test_a_resnet_is_cut_before_the_first_trained_block_after_the_join(net_of, name, plan):
    model, forward = net_of(name)
    first = {"head": "head", "last2": f"stages.{RESNETS[name] - 2}"}.get(plan, f"stages.{RESNETS[name] - 1}")
    cut = cut_of(forward, plan)
    x = batch(SIZE)["x"]
    expected = seen_by(model, first, x)
    assert cut.shape == expected.shape[1:]
    (features,) = run(compile_backbone(forward, cut), {"x": x}).values()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", large_ones_slow(RESNETS))
@pytest.mark.parametrize("plan", ("bn", "affine", "first", "full", "full-c25"))
def test_a_resnet_has_no_backbone_where_its_stem_changes(net_of, name, plan):
    assert cut_of(net_of(name)[1], plan) is None


@pytest.mark.sampled(5)
@every_net_and_plan
def test_nothing_that_changes_is_before_the_cut_and_all_else_is_on_one_side(net_of, name, plan):
    _, forward = net_of(name)
    planned = make_plan(forward, plan)
    cut = find_cut(forward, planned)
    rest = tail(forward, cut)
    changing = {*planned.trainable, *planned.buffers}
    assert changing <= rest.initializers.keys() and changing.isdisjoint(cut.constants)
    assert rest.parameters.isdisjoint(cut.constants)
    assert rest.parameters | set(cut.constants) >= forward.parameters
    assert (rest.input, rest.logits) == (forward.input, forward.logits)
    assert rest.shape(rest.input)[1:] == cut.shape and cut.tensor not in {n for node in rest.nodes for n in node.inputs}


def test_too_small_a_backbone_is_not_cut_off(net_of):
    assert cut_of(net_of("simple-cnn")[1], "last2") is None


@pytest.mark.parametrize("name", large_ones_slow((*MODELS, "PartsNet")))
def test_plans_that_train_the_same_share_a_cut(net_of, name):
    _, forward = net_of(name)
    assert cut_of(forward, "last") == cut_of(forward, "last-c25") is not None


def test_smaller_features_are_preferred_to_a_little_less_work(net_of):
    """In a MobileNet the trained block begins with an expansion, which works at the map size before it."""
    _, forward = net_of("mobilenet-c")
    cut = cut_of(forward, "last")
    assert cut.shape[0] == 48, "what the block is given, not the 192 channels that it expands it to"
    saved, whole = (executed_flops(g, 10) for g in (compile_backbone(forward, cut), compile_score(forward, ())))
    expansion = 2 * 48 * 192 * np.prod(cut.shape[1:])
    assert NEARLY_ALL < saved / (saved + expansion) < 1 and saved > MIN_SHARE * whole


def hand_made(*layers, extra=None):
    """Layers between the image and ``deep``, then a trained convolution, a pool and the head."""
    conv = helper.make_node("Conv", ["deep", "conv.weight", "conv.bias"], ["convolved"], "trained", pads=[1, 1, 1, 1])
    wide = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    values = {"wide.weight": wide, "rate": np.array(0.5, np.float32), **(extra or {})}
    return read_forward(tiny_model([*layers, conv, *LAYERS[1:]], extra=values))


WIDE = helper.make_node("Conv", ["x", "wide.weight"], ["wide"], "wide", pads=[1, 1, 1, 1])


def cut_before_conv(forward):
    plan = make_plan(forward, "head")
    return find_cut(forward, dataclasses.replace(plan, trainable=("conv.weight", *plan.trainable)))


def test_the_latest_of_equal_tensors():
    relu = helper.make_node("Relu", ["wide"], ["deep"], "relu")
    cut = cut_before_conv(hand_made(WIDE, relu))
    assert (cut.tensor, cut.shape, cut.constants) == ("deep", (3, HEIGHT, WIDTH), ("wide.weight",))


def test_a_shortcut_around_what_is_trained_moves_the_cut_before_it():
    relu = helper.make_node("Relu", ["wide"], ["deep"], "relu")
    layers = [
        WIDE,
        relu,
        helper.make_node("Conv", ["deep", "conv.weight", "conv.bias"], ["convolved"], "trained", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["wide", "channel_axis"], ["shortcut"], "shortcut", keepdims=1),
        helper.make_node("Add", ["convolved", "shortcut"], ["joined"], "join"),
        helper.make_node("Relu", ["joined"], ["positive"], "rectifier"),
        *LAYERS[2:],
    ]
    wide = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    forward = read_forward(tiny_model(layers, extra={"wide.weight": wide, "channel_axis": np.array([1])}))
    assert cut_before_conv(forward).tensor == "wide"


def test_no_cut_where_the_image_is_read_again_later():
    half = helper.make_node("Mul", ["x", "rate"], ["half"], "half")
    again = helper.make_node("Add", ["wide", "half"], ["deep"], "again")
    assert cut_before_conv(hand_made(WIDE, half, again)).tensor == "deep", "here it is joined before the cut"
    forward = hand_made(WIDE, helper.make_node("Relu", ["wide"], ["deep"], "relu"))
    late = helper.make_node("ReduceMean", ["x", "all_axes"], ["bright"], "bright", keepdims=1)
    lit = helper.make_node("Add", ["positive", "bright"], ["lit"], "lit")
    pool = helper.make_node("ReduceMean", ["lit", "axes"], ["features"], "pool", keepdims=0)
    layers = [WIDE, helper.make_node("Relu", ["wide"], ["deep"], "relu")]
    layers += [helper.make_node("Conv", ["deep", "conv.weight"], ["convolved"], "trained", pads=[1, 1, 1, 1])]
    layers += [LAYERS[1], late, lit, pool, LAYERS[3]]
    extra = {"wide.weight": forward.initializers["wide.weight"], "all_axes": np.array([1, 2, 3])}
    assert cut_before_conv(read_forward(tiny_model(layers, extra=extra))) is None


def test_what_has_no_row_for_each_image_is_no_features():
    """Pixels of all images under one another: as many rows as images times pixels."""
    rows = helper.make_node("Reshape", ["wide", "row_shape"], ["rows"], "rows")
    back = helper.make_node("Reshape", ["rows", "map_shape"], ["deep"], "back")
    extra = {"row_shape": np.array([-1, 3]), "map_shape": np.array([-1, 3, HEIGHT, WIDTH])}
    forward = hand_made(WIDE, rows, back, extra=extra)
    assert "rows" not in forward.per_image and "wide" in forward.per_image
    assert cut_before_conv(forward).tensor == "deep", "behind it each image has its row again"
    turned = helper.make_node("Transpose", ["wide"], ["turned"], "turned", perm=[1, 2, 3, 0])
    again = helper.make_node("Transpose", ["turned"], ["deep"], "again", perm=[3, 0, 1, 2])
    forward = hand_made(WIDE, turned, again)
    assert "turned" not in forward.per_image
    assert cut_before_conv(forward).tensor == "deep"


def test_whole_numbers_are_no_features():
    cast = helper.make_node("Cast", ["wide"], ["whole"], "whole", to=onnx.TensorProto.INT32)
    back = helper.make_node("Cast", ["whole"], ["deep"], "back", to=onnx.TensorProto.FLOAT)
    forward = hand_made(WIDE, cast, back)
    assert "whole" not in forward.per_image and cut_before_conv(forward).tensor == "deep"


def test_a_weight_that_both_sides_would_need_moves_the_cut_before_its_first_use():
    layers = [
        WIDE,
        helper.make_node("Conv", ["wide", "twice.weight"], ["once"], "once", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["once", "conv.weight"], ["trained"], "trained", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["trained", "back.weight"], ["three"], "back"),
        helper.make_node("Conv", ["three", "twice.weight"], ["positive"], "twice", pads=[1, 1, 1, 1]),
        *LAYERS[2:],
    ]
    rng = np.random.default_rng(0)
    shapes = {"wide.weight": (3, 3, 3, 3), "twice.weight": (FILTERS, 3, 3, 3), "conv.weight": (FILTERS, FILTERS, 3, 3)}
    shapes["back.weight"] = (3, FILTERS, 1, 1)
    extra = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    assert cut_before_conv(read_forward(tiny_model(layers, extra=extra))).tensor == "wide"


def test_a_backbone_without_work_is_not_worth_it():
    scaled = helper.make_node("Mul", ["x", "rate"], ["deep"], "scaled")
    assert cut_before_conv(hand_made(scaled)) is None


def test_plans_without_a_gradient_have_no_backbone(net_of):
    """PartsNet's normalisation comes late, but its statistics are estimated in one pass: nothing would be used twice."""
    _, forward = net_of("PartsNet")
    assert cut_of(forward, "bn") is None and cut_of(forward, "affine") is not None


# That both halves are the whole


@pytest.mark.sampled(5)
@every_net_and_plan
def test_the_graphs_of_both_halves_have_the_inputs_outputs_and_work_of_the_whole(net_of, name, plan):
    _, forward = net_of(name)
    planned = make_plan(forward, plan)
    cut = find_cut(forward, planned)
    weights, rest = set(forward.initializers), tail(forward, cut)
    backbone, train = compile_backbone(forward, cut), compile_train(rest, planned, "adam")
    score = compile_score(rest, (*planned.trainable, *planned.buffers))
    for graph in (backbone, train, score):
        check_graph(graph, weights)
    assert [(v.name, dims(v)) for v in backbone.graph.input] == [("x", [BATCH, 3, SIZE, SIZE])]
    assert [(v.name, dims(v)) for v in backbone.graph.output] == [("features", [BATCH, *cut.shape])]
    for graph in (train, score):
        assert next((v.name, dims(v)) for v in graph.graph.input) == ("x", [BATCH, *cut.shape])
    whole = [compile_train(forward, planned, "adam"), compile_score(forward, (*planned.trainable, *planned.buffers))]
    flops = executed_flops(backbone, 10)
    for half, all_of_it in zip((train, score), whole, strict=True):
        assert executed_flops(half, 10) + flops == executed_flops(all_of_it, 10)
        assert [o.name for o in half.graph.output] == [o.name for o in all_of_it.graph.output]
        ours, theirs = ({v.name for v in g.graph.input} for g in (half, all_of_it))
        assert ours == theirs


@pytest.mark.sampled(10)
@pytest.mark.parametrize("optimizer", OPTIMIZER_STATE)
@pytest.mark.parametrize(("name", "plan"), [(n, p) for n, p in CUT if n not in ("resnet-c", "resnet18-cifar")])
def test_steps_on_features_are_the_steps_on_images(net_of, name, plan, optimizer):
    """Four steps of other batches: the same losses, weights and optimizer state."""
    model, forward = net_of(name)
    planned = make_plan(forward, plan)
    cut = find_cut(forward, planned)
    backbone = runner(compile_backbone(forward, cut))
    halves = [runner(compile_train(half, planned, optimizer)) for half in (forward, tail(forward, cut))]
    states = [{}, {}]
    for number in range(4):
        data = batch(SIZE, count=(6, 3, 8, 5)[number], seed=number)
        (features,) = backbone({"x": data["x"]}).values()
        results = []
        for x, state, step in zip((data["x"], features), states, halves, strict=True):
            feeds = step_feeds(model, planned, {**data, "x": x}) | state
            feeds["step"] = np.array(number + 1, np.float32)
            results.append(step(feeds))
            state.update({n.removeprefix("new::"): v for n, v in results[-1].items() if n.startswith("new::")})
        for key, expected in results[0].items():
            scale = max(float(np.abs(expected).max()), 1e-6)
            np.testing.assert_allclose(results[1][key] / scale, expected / scale, atol=2e-4, err_msg=f"{number} {key}")
    moved = [n for n in planned.trainable if (states[1][n] != model.state_dict()[n].numpy()).any()]
    assert moved == list(planned.trainable)


@pytest.mark.parametrize("name", large_ones_slow(NETS))
def test_flops_of_nodes_add_up_to_the_graphs(net_of, name):
    _, forward = net_of(name)
    counted = sum(node_flops(node, forward.shapes) for node in forward.nodes)
    head = forward.nodes[-1]
    classes = forward.initializers[head.inputs[-1]].size
    assert executed_flops(compile_score(forward, ()), classes) == pytest.approx(counted, rel=1e-9)


def test_a_forward_without_a_cut_is_its_own_tail(net_of):
    _, forward = net_of("resnet-c-small")
    assert tail(forward, None) is forward
