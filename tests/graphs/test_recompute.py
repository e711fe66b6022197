"""What is computed again instead of kept."""

from __future__ import annotations

import onnx
import pytest

from edge_sel.graphs import backward
from edge_sel.graphs.cost import peak_activation_bytes, step_cost
from edge_sel.graphs.plans import make_plan
from edge_sel.graphs.train import compile_train
from tests.graphs.steps import assert_step_is_autograds, batch

NETS = ("Inverted", "PartsNet", "TwoHeads", "mobilenet-c", "resnet-c-small")


def graph_of(forward, plan: str) -> onnx.GraphProto:
    return compile_train(forward, make_plan(forward, plan), "adam").graph


def copies(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in graph.node for name in node.output if name.startswith("again::")}


@pytest.fixture
def everything(monkeypatch):
    monkeypatch.setattr(backward, "RECOMPUTE_FROM", 1)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("plan", ("full", "affine"))
@pytest.mark.parametrize("net", NETS)
def test_the_step_is_autograds_with_everything_computed_again(net, plan, net_of, everything):
    model, forward = net_of(net)
    classes = 5 if net[0].isupper() else 10
    assert_step_is_autograds(model, forward, plan, batch(16, classes=classes))


@pytest.mark.parametrize("net", ("Inverted", "mobilenet-c"))
def test_the_backward_pass_keeps_no_activation_behind_a_normalisation(net, net_of, everything):
    forward = net_of(net)[1]
    graph = graph_of(forward, "full")
    again = copies(graph)
    assert {node.op_type for node in again.values()} >= {"BatchNormalization", "Clip"}
    numbers = {name: number for number, node in enumerate(graph.node) for name in node.output}
    first = min(numbers[name] for name in again)
    for node in graph.node[first:]:
        assert not {name.removeprefix("again::") for name in again} & set(node.input), node.name


def test_it_saves_memory(net_of, monkeypatch):
    forward = net_of("mobilenet-c")[1]
    plan, peaks = make_plan(forward, "full"), []
    for large in (1, 10**9):
        monkeypatch.setattr(backward, "RECOMPUTE_FROM", large)
        peaks.append(peak_activation_bytes(compile_train(forward, plan, "adam"), 10, 32))
    assert peaks[0] < 0.9 * peaks[1]


@pytest.mark.parametrize("net", NETS)
def test_a_copy_waits_for_the_gradient(net, net_of, everything):
    graph = graph_of(net_of(net)[1], "full")
    makers = {name: node for node in graph.node for name in node.output}
    behind: set[str] = set()  # what depends on the labels
    for node in graph.node:
        if "labels" in node.input or behind & set(node.input):
            behind |= set(node.output)
    assert copies(graph) and set(copies(graph)) <= behind and makers


def test_small_maps_are_kept(net_of):
    assert not copies(graph_of(net_of("TwoHeads")[1], "full"))


def test_where_no_gradient_keeps_what_a_normalisation_took_nothing_is_gained(net_of, everything):
    """The head's plan differentiates nothing before it; frozen statistics without trained scales keep nothing."""
    assert not copies(graph_of(net_of("Inverted")[1], "head"))


def test_a_map_is_centred_for_its_scale_when_the_gradient_is_there(net_of):
    """Known from the start, it would be kept beside the map."""
    graph = graph_of(net_of("mobilenet-c")[1], "affine")
    behind: set[str] = set()
    for node in graph.node:
        if "labels" in node.input or behind & set(node.input):
            behind |= set(node.output)
    neutral = [node for node in graph.node if node.op_type == "BatchNormalization" and
               any(a.name == "epsilon" and a.f == 0 for a in node.attribute)]  # fmt: skip
    assert neutral and all(node.output[0] in behind for node in neutral)


def test_the_memory_of_a_step_grows_by_as_much_with_each_image(net_of):
    forward = net_of("mobilenet-c")[1]
    train = compile_train(forward, make_plan(forward, "affine"), "sgd")
    _, each = step_cost(train, 10)
    assert each > 0 and peak_activation_bytes(train, 10, 64) - peak_activation_bytes(train, 10, 32) == 32 * each
