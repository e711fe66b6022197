"""Training a pack for one place, on the server's own images."""

import numpy as np
import pytest
import torch

from edge_sel.data.builtin import load_digits
from edge_sel.edge.judge import evaluate
from edge_sel.engines.ort import OrtEngine
from edge_sel.server.cameras import CameraPlace, draw_cameras, simulate_place
from edge_sel.server.expert import train_expert

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place():
    """One with little light and little variety."""
    common = draw_cameras(1, 0.5, torch.Generator().manual_seed(0))
    return CameraPlace(common._replace(gain=torch.tensor([[0.12, 0.1, 0.2]])), 0.1)


def trained(pack, place, count=260, epochs=2, seed=0, **given):
    images = load_digits("pretrain").subset(np.arange(count))
    return train_expert(pack, images, place, epochs=epochs, seed=seed, device="cpu", **given)


@pytest.fixture(scope="module")
def expert(digits_pack, place, one_thread):
    return trained(digits_pack, place, epochs=4)  # of two, whether the loss falls so far is up to the seed


def loss(pack, weights, images):
    return evaluate(OrtEngine(1).predictor(pack, weights), images, pack.manifest.model).loss


def test_it_has_a_lower_loss_on_other_images_of_the_place(digits_pack, place, expert):
    there = simulate_place(load_digits("test").subset(np.arange(150)), place, torch.Generator().manual_seed(1))
    assert loss(digits_pack, expert, there) < 0.7 * loss(digits_pack, digits_pack.weights(), there)


def test_it_has_all_weights_of_the_pack_and_no_others(digits_pack, expert):
    start = digits_pack.weights()
    assert {name: value.shape for name, value in expert.items()} == {name: v.shape for name, v in start.items()}
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in expert.values())
    assert not any("num_batches_tracked" in name for name in expert)
    changed = {name for name, value in expert.items() if not np.array_equal(value, start[name])}
    assert changed == set(start), "weights and running statistics alike"


def test_the_same_seed_gives_the_same_weights(digits_pack, place):
    one, same, other = (trained(digits_pack, place, 40, 1, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_it_does_not_depend_on_what_else_has_drawn_at_random(digits_pack, place):
    one = trained(digits_pack, place, 40, 1)
    torch.manual_seed(123)
    again = trained(digits_pack, place, 40, 1)
    assert all(np.array_equal(one[name], again[name]) for name in one)


def test_the_pack_is_not_changed(digits_pack, expert):
    kept = {name: value.copy() for name, value in digits_pack.weights().items()}
    trained(digits_pack, CameraPlace(draw_cameras(1, 0.0, torch.Generator()), 0.0), 20, 1)
    assert all(np.array_equal(value, digits_pack.weights()[name]) for name, value in kept.items())


def test_every_epoch_is_told(digits_pack, place):
    lines = []
    trained(digits_pack, place, 20, 3, note=lines.append)
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
