"""The blocked form of a training graph: the same numbers, whatever the convolutions, on machines that have it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edge_sel.engines import blocked as probe
from edge_sel.engines import ort
from edge_sel.engines.blocked import block_size, rewrite
from edge_sel.graphs.check import differentiate_node
from edge_sel.graphs.ir import DepthwiseGradient, Node, read_depthwise_gradient
from tests.engines.conftest import BlockedOrt
from tests.engines.plans import HYPER

needs_blocks = pytest.mark.skipif(block_size() is None, reason="this onnxruntime has no blocked convolutions")


def step_of(channels, out, kernel, stride, dilation, pads, size, depthwise, seed):
    """A convolution with both of its gradients as one graph, and what it is fed."""
    rng = np.random.default_rng(seed)
    group = channels if depthwise else 1
    arrays = {
        "x": rng.standard_normal((8, channels, *size)).astype(np.float32),
        "w": rng.standard_normal((channels if depthwise else out, channels // group, *kernel)).astype(np.float32),
    }
    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [*pads, *pads], "group": group}
    node = Node("Conv", ("x", "w"), ("y",), {**attributes, "kernel_shape": list(kernel)}, "conv")
    d, gradients = differentiate_node(node, arrays, ["x", "w"], "frozen")
    shape = d.forward.shape("y")
    from onnx import TensorProto, helper

    feeds = {**arrays, "dy": rng.standard_normal(shape).astype(np.float32)}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, v.shape) for n, v in feeds.items()]
    names = ["y", gradients["x"], gradients["w"]]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    return d.model(inputs, outputs, {}, "step").SerializeToString(), feeds, names


def run(graph, feeds, names):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]).run(names, feeds)


@needs_blocks
@given(
    channels=st.sampled_from((3, 4, 8, 16, 20, 24, 32, 48)), out=st.sampled_from((4, 16, 24, 40)),
    kernel=st.sampled_from(((3, 3), (5, 5), (1, 3), (7, 7), (2, 2))), stride=st.sampled_from((1, 2)),
    dilation=st.sampled_from((1, 2)), pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    size=st.tuples(st.integers(13, 17), st.integers(13, 16)), depthwise=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_any_convolution_and_its_gradients_are_the_same(
    channels, out, kernel, stride, dilation, pads, size, depthwise, seed
):
    graph, feeds, names = step_of(channels, out, kernel, stride, dilation, pads, size, depthwise, seed)
    changed = rewrite(graph, 8, block_size())
    if changed is None:
        assert channels == 3 and depthwise, "channels that are no multiple of 4"
        return
    for plain, found, name in zip(run(graph, feeds, names), run(changed, feeds, names), names, strict=True):
        assert plain.shape == found.shape
        np.testing.assert_allclose(found, plain, rtol=0, atol=2e-5 * np.abs(plain).max(), err_msg=name)


@needs_blocks
def test_a_depthwise_gradient_is_rewritten_and_its_shifted_maps_are_gone():
    graph, _, _ = step_of(32, 0, (3, 3), 1, 1, (1, 1), (16, 16), True, 0)
    changed = rewrite(graph, 8, block_size())
    assert graph.count(b"ReduceSum") > 9 > changed.count(b"ReduceSum")


@needs_blocks
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "size"),
    [
        ((3, 3), 1, (1, 1), (6, 6)),
        ((3, 3), 1, (1, 1), (5, 12)),
        ((3, 3), 2, (1, 1), (12, 10)),
        ((5, 5), 2, (2, 2), (10, 12)),
        ((2, 2), 2, (0, 0), (12, 12)),
        ((7, 3), 3, (2, 0), (12, 15)),
    ],
)
def test_an_input_gradient_is_made_of_the_blocks_of_the_forward_pass(kernel, stride, pads, size):
    graph, feeds, names = step_of(20, 40, kernel, stride, 1, pads, size, False, 0)
    changed = rewrite(graph, 8, block_size())
    model = onnx.load_model_from_string(changed)
    backwards = {t.name for t in model.graph.initializer if numpy_helper.to_array(t).ravel().tolist() == [-1, -1]}
    assert not any(node.op_type == "ConvTranspose" or backwards & set(node.input) for node in model.graph.node)
    for plain, found, name in zip(run(graph, feeds, names), run(changed, feeds, names), names, strict=True):
        np.testing.assert_allclose(found, plain, rtol=0, atol=2e-5 * np.abs(plain).max(), err_msg=name)


@pytest.mark.slow
@needs_blocks
def test_batches_of_any_size_go_on_from_each_other_and_a_resumed_run_has_the_same_bits(packs, batch):
    """Whole ones in the blocked form, others in the plain one."""
    pack, plan = packs["adam"], "full"
    rows = np.arange(len(batch.labels))
    sizes = (16, 8, 5, 16, 3, 8, 16)
    parts = [type(batch)(*(values[rows[:size]] for values in batch)) for size in sizes]

    def states(stop):
        trainer = BlockedOrt(1).trainer(pack, plan, pack.weights())
        for part in parts[:stop]:
            trainer.step(part, HYPER)
        resumed = BlockedOrt(1).trainer(pack, plan, pack.weights())
        resumed.load_state(trainer.state())
        for part in parts[stop:]:
            resumed.step(part, HYPER)
        return resumed.state()

    expected = states(len(parts))
    for stop in (1, 2, 3, 4, 6):
        assert all(np.array_equal(value, expected[name]) for name, value in states(stop).items())
    plain = ort.OrtEngine(1).trainer(pack, plan, pack.weights())
    for part in parts:
        plain.step(part, HYPER)
    for name, value in plain.weights().items():
        np.testing.assert_allclose(expected[name], value, atol=0.05 * np.abs(value).max() + 1e-3, err_msg=name)


def test_a_machine_without_blocked_convolutions_trains_the_same(packs, batch, monkeypatch):
    monkeypatch.setattr(probe, "block_size", lambda: None)
    pack = packs["sgd"]
    found = []
    for engine in (BlockedOrt(1), ort.OrtEngine(1)):
        trainer = engine.trainer(pack, "full", pack.weights())
        trainer.step(batch, HYPER)
        found.append(trainer.state())
    assert all(np.array_equal(found[0][name], value) for name, value in found[1].items())


def test_a_wrong_block_size_is_noticed():
    assert block_size() in (None, 8, 16)
    for block in {8, 16} - {block_size()}:
        try:
            assert not probe._agrees(block)
        except AssertionError:
            raise
        except Exception as error:
            assert "onnxruntime" in type(error).__module__ or "ONNXRuntime" in str(error)


@given(st.text(max_size=60))
def test_any_name_of_a_node_is_read(name):
    assert read_depthwise_gradient(name) is None
    assert read_depthwise_gradient(f"depthwise_gradient:{name}") is None
    gradient = DepthwiseGradient("x", name, (3, 3), (1, 2), (1, 1), (0, 1))
    assert read_depthwise_gradient(gradient.name()) == gradient
