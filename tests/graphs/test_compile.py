"""What every compiled graph of every built-in model looks like, what it costs, and what cannot be compiled."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch.utils.flop_counter import FlopCounterMode

from edge_sel.errors import GraphError, UsageError
from edge_sel.graphs.cost import executed_flops
from edge_sel.graphs.ir import BATCH, CLASSES
from edge_sel.graphs.plans import head_names, make_plan
from edge_sel.graphs.read import read_forward
from edge_sel.graphs.rules import conv_shape
from edge_sel.graphs.train import compile_eval, compile_score, compile_train
from edge_sel.models.registry import MODELS
from edge_sel.pack.manifest import OPTIMIZER_SCALARS as SCALARS
from edge_sel.pack.manifest import OPTIMIZER_STATE
from tests.graphs.conftest import SIZE, large_ones_slow
from tests.graphs.graph_form import check_graph, dims
from tests.graphs.steps import batch, run
from tests.tiny import CLASS_COUNT, FILTERS, HEIGHT, LAYERS, WIDTH, tiny_model, tiny_weights

NAMES = ("bn", "head", "affine", "last", "last2", "first", "full", "last-c25", "full-c25")


@pytest.mark.sampled(11)
@pytest.mark.parametrize(
    ("name", "plan"),
    large_ones_slow((m, p) for m in MODELS for p in NAMES if (m, p) != ("simple-cnn", "bn")),  # which has no BN
)
def test_training_graphs_are_standard_onnx_with_symbolic_batch_and_classes(net_of, name, plan):
    model, forward = net_of(name)
    planned = make_plan(forward, plan)
    train = compile_train(forward, planned, "adam")
    check_graph(train, set(forward.initializers))
    inputs = {value.name: dims(value) for value in train.graph.input}
    outputs = {value.name: dims(value) for value in train.graph.output}
    state = {n: v.shape for n, v in model.state_dict().items()}
    changing = [*planned.trainable, *planned.buffers]
    slots = [f"{slot}::{n}" for n in planned.trainable for slot in OPTIMIZER_STATE["adam"]]
    scalars = [*(SCALARS["adam"] if planned.trainable else ()), *(["bn_momentum"] if planned.buffers else ())]

    def shape(tensor):
        known = list(state[tensor.rpartition("::")[2]])
        return [CLASSES, *known[1:]] if tensor.endswith(tuple(head_names(forward))) else known

    assert inputs == {
        "x": [BATCH, 3, SIZE, SIZE],
        "labels": [BATCH],
        **({"sample_weight": [BATCH]} if planned.trainable else {}),
        **{n: [] for n in scalars},
        **{n: shape(n) for n in (*changing, *slots, *head_names(forward))},
        **{f"{kind}::{n}": [count] for n, count in planned.channels.items() for kind in ("index", "steps")},
    }
    convolutions = [n for n in planned.trainable if len(state[n]) == 4] if not planned.channels else []
    kept = {"kept": []} if planned.trainable else {}
    fixed = {n: d for n, d in outputs.items() if not n.startswith("guilt::")}
    assert fixed == {
        "loss": [BATCH],
        "logits": [BATCH, CLASSES],
        **{f"new::{n}": shape(n) for n in (*changing, *slots)},
        **kept,
    }
    assert outputs.keys() - fixed.keys() == {f"guilt::{n}" for n in convolutions}
    assert [n for n in outputs if n.startswith("new::")] == [
        f"new::{n}" for n in (*planned.trainable, *slots_in_order(planned), *planned.buffers)
    ]


def slots_in_order(plan):
    return [f"{slot}::{n}" for slot in OPTIMIZER_STATE["adam"] for n in plan.trainable]


@pytest.mark.parametrize("name", large_ones_slow(MODELS))
def test_scoring_and_inference_graphs_take_the_head_as_input(net_of, name):
    _, forward = net_of(name)
    weights, head = set(forward.initializers), list(head_names(forward))
    for model, changing, outputs in (
        (compile_eval(forward), head, {"logits": [BATCH, CLASSES]}),
        (compile_score(forward, ()), ["labels", *head], {"logits": [BATCH, CLASSES], "loss": [BATCH]}),
        (compile_score(forward, head), ["labels", *head], {"logits": [BATCH, CLASSES], "loss": [BATCH]}),
    ):
        check_graph(model, weights)
        inputs = {value.name: dims(value) for value in model.graph.input}
        assert list(inputs) == ["x", *changing]
        assert all(inputs[n][0] == CLASSES for n in head) and inputs["x"][0] == BATCH
        assert {value.name: dims(value) for value in model.graph.output} == outputs


@pytest.mark.parametrize("optimizer", OPTIMIZER_STATE)
def test_each_optimizer_has_its_state_and_scalars(net_of, optimizer):
    _, forward = net_of("resnet-c-small")
    model = compile_train(forward, make_plan(forward, "head"), optimizer)
    check_graph(model, set(forward.initializers))
    inputs = {value.name for value in model.graph.input}
    assert {n for n in inputs if "::" in n} == {
        f"{s}::head.{w}" for s in OPTIMIZER_STATE[optimizer] for w in ("weight", "bias")
    }
    assert set(SCALARS[optimizer]) <= inputs


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", large_ones_slow(MODELS))
def test_the_backward_pass_stops_at_the_earliest_trained_layer(net_of, name):
    _, forward = net_of(name)
    graphs = {n: compile_train(forward, make_plan(forward, n), "adam") for n in NAMES if n != "bn"}
    ops = {n: [node.op_type for node in g.graph.node] for n, g in graphs.items()}
    convolutions = sum(node.op == "Conv" for node in forward.nodes)
    assert ops["head"].count("Conv") == convolutions and "ConvTranspose" not in ops["head"]
    reversing = [
        node for node in graphs["head"].graph.node if node.op_type == "Slice" and len(node.input) == 5
    ]  # with steps: a flipped kernel, or a window of im2col
    assert not reversing
    for plan in graphs:
        backward = ops[plan].count("Conv") - convolutions + ops[plan].count("ConvTranspose")
        assert backward < convolutions, "the image itself needs no gradient"
    flops = {n: executed_flops(g, 10) for n, g in graphs.items()}
    nodes = {n: len(o) for n, o in ops.items()}
    forward_flops = executed_flops(compile_score(forward, ()), 10)
    for table in (flops, nodes):
        assert table["head"] < table["last"] < table["last2"] <= table["full"]
    assert forward_flops < flops["head"] < 1.01 * forward_flops
    assert flops["last-c25"] < flops["last"] and flops["full-c25"] < flops["full"]
    assert flops["head"] < flops["first"] <= flops["full"]
    assert flops["full"] < 3 * forward_flops, "no gradient of the image"


@pytest.mark.parametrize("name", large_ones_slow(MODELS))
def test_executed_flops_are_what_torch_counts(net_of, name, monkeypatch):
    model, forward = net_of(name)
    x = torch.zeros(8, 3, SIZE, SIZE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    assert executed_flops(compile_score(forward, ()), 10) == counter.get_total_flops() // 8
    if name == "mobilenet-c":
        return  # depthwise weight gradients are products and sums here, not convolutions
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    model.zero_grad()
    counted = counter.get_total_flops() // 8
    plan = make_plan(forward, "full")
    assert 0.7 * counted < executed_flops(compile_train(forward, plan, "adam"), 10) < counted, "without padding"
    monkeypatch.setattr(conv_shape, "FEW_PIXELS", 0)
    assert executed_flops(compile_train(forward, plan, "adam"), 10) == counted


def test_executed_flops_of_a_tiny_graph_by_hand():
    forward = read_forward(tiny_model())

    def flops(plan):
        return executed_flops(compile_train(forward, make_plan(forward, plan), "adam"), CLASS_COUNT)

    convolution = 2 * HEIGHT * WIDTH * FILTERS * 3 * 3 * 3
    head = 2 * FILTERS * CLASS_COUNT
    assert (convolution, head) == (10368, 40)
    assert executed_flops(compile_eval(forward), CLASS_COUNT) == convolution + head
    assert flops("head") == convolution + 2 * head
    assert flops("full") == 2 * convolution + 3 * head
    assert flops("full-c25") == convolution + convolution // 4 + 3 * head
    assert executed_flops(compile_eval(forward), 2 * CLASS_COUNT) == convolution + 2 * head


def test_an_operator_without_a_rule_is_named_only_when_a_gradient_would_pass_it():
    strange = helper.make_node("Cosh", ["convolved"], ["positive"], "strange_node")
    forward = read_forward(tiny_model([LAYERS[0], strange, *LAYERS[2:]]))
    for plan in ("full", "last2", "full-c50"):
        with pytest.raises(GraphError, match=r"Cosh.*strange_node.*rule"):
            compile_train(forward, make_plan(forward, plan), "adam")
    train = compile_train(forward, make_plan(forward, "head"), "adam")
    assert "Cosh" in {node.op_type for node in train.graph.node}
    onnx.checker.check_model(train, full_check=True)


def test_a_node_without_a_name_is_found_by_its_output():
    strange = helper.make_node("Cosh", ["convolved"], ["positive"])
    forward = read_forward(tiny_model([LAYERS[0], strange, *LAYERS[2:]]))
    with pytest.raises(GraphError, match="Cosh: positive"):
        compile_train(forward, make_plan(forward, "full"), "adam")


def test_what_follows_no_small_change_passes_no_gradient():
    halves = [
        helper.make_node("Shape", ["positive"], ["shape"], "shape"),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], "zeros"),
        helper.make_node("Greater", ["positive", "zeros"], ["above"], "above"),
        helper.make_node("Where", ["above", "positive", "zeros"], ["chosen"], "chosen"),
        helper.make_node("ReduceMean", ["chosen", "axes"], ["features"], "pool", keepdims=0),
    ]
    forward = read_forward(tiny_model([*LAYERS[:2], *halves, LAYERS[3]]))
    plain = read_forward(tiny_model())
    feeds = {
        **batch((HEIGHT, WIDTH), classes=CLASS_COUNT),
        **tiny_weights(),
        **{n: np.array(v, np.float32) for n, v in {"lr": 0.1, "gamma": -1, "momentum": 0}.items()},
        **{f"momentum::{n}": np.zeros_like(v) for n, v in tiny_weights().items()},
    }
    got, expected = (run(compile_train(f, make_plan(f, "full"), "sgd"), feeds) for f in (forward, plain))
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_an_unknown_optimizer_is_refused_with_the_known_ones():
    forward = read_forward(tiny_model())
    with pytest.raises(UsageError, match=r"rmsprop.*sgd, adam"):
        compile_train(forward, make_plan(forward, "head"), "rmsprop")


def test_a_weight_that_does_not_reach_the_logits_is_named():
    layers = [
        LAYERS[0],
        helper.make_node("Sign", ["lost.scale"], ["sign"], "sign"),
        helper.make_node("Mul", ["convolved", "sign"], ["positive"], "signed"),
        *LAYERS[2:],
    ]
    forward = read_forward(tiny_model(layers, extra={"lost.scale": np.ones(1, np.float32)}))
    with pytest.raises(GraphError, match=r"does not influence the logits: lost\.scale"):
        compile_train(forward, make_plan(forward, "full"), "adam")


def test_forward_graphs_with_a_custom_operator_are_refused():
    custom = helper.make_node("FusedRelu", ["convolved"], ["positive"], "fused", domain="com.vendor")
    with pytest.raises(GraphError, match=r"FusedRelu is not a standard ONNX operator: fused"):
        read_forward(tiny_model([LAYERS[0], custom, *LAYERS[2:]], domains=("", "com.vendor")))


def test_forward_graphs_have_one_image_input_and_the_logits():
    second = helper.make_node("Add", ["convolved", "y"], ["positive"], "second")
    with pytest.raises(GraphError, match="one image input"):
        read_forward(tiny_model([LAYERS[0], second, *LAYERS[2:]], inputs=("x", "y")))
    renamed = helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], "head", transB=1)
    with pytest.raises(GraphError, match="one output named logits"):
        read_forward(tiny_model([*LAYERS[:3], renamed], output="scores"))


def test_reading_simplifies_what_training_has_no_use_for():
    layers = [
        helper.make_node("Constant", [], ["rate"], "rate", value_float=0.5),
        helper.make_node("Conv", ["x", "conv.weight", "nothing"], ["convolved"], "convolution", pads=[1, 1, 1, 1]),
        helper.make_node("Dropout", ["convolved", "rate"], ["dropped"], "dropout"),
        helper.make_node("Split", ["dropped"], ["left", "right"], "split", axis=1, num_outputs=2),
        helper.make_node("CastLike", ["rate", "left"], ["like"], "like"),
        helper.make_node("Mul", ["left", "like"], ["scaled"], "scaled"),
        helper.make_node("Concat", ["scaled", "right"], ["positive"], "joined", axis=1),
        *LAYERS[2:],
    ]
    forward = read_forward(tiny_model(layers, extra={"nothing": np.zeros(FILTERS, np.float32)}))
    assert [node.op for node in forward.nodes] == [
        "Conv",
        "Identity",
        "Slice",
        "Slice",
        "Mul",
        "Concat",
        "ReduceMean",
        "Gemm",
    ]
    assert forward.nodes[0].inputs == ("x", "conv.weight"), "a bias of zeros that is nobody's parameter"
    assert forward.initializers["like"] == 0.5
    assert forward.parameters == {"conv.weight", "head.weight", "head.bias"}
    train = compile_train(forward, make_plan(forward, "full"), "adam")
    onnx.checker.check_model(train, full_check=True)


def test_a_bias_that_is_a_parameter_stays_even_when_it_is_zero():
    forward = read_forward(tiny_model(extra={"conv.bias": np.zeros(FILTERS, np.float32)}))
    assert forward.nodes[0].inputs[2] == "conv.bias"
    assert forward.parameters == set(tiny_weights())


def test_only_the_named_parameters_are_trained():
    forward = read_forward(tiny_model(), parameters=("head.weight", "head.bias", "conv.weight"))
    assert make_plan(forward, "full").trainable == ("conv.weight", "head.weight", "head.bias")
