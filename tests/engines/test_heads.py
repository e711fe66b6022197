"""Budgets of attention heads on each engine: guilt per row, the chosen heads' gradient, nothing else changes."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edge_sel.edge.train.sel_stage import choose_channels
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.torch import TorchEngine
from edge_sel.errors import PackError
from edge_sel.pack.manifest import DEEP_HEAD
from edge_sel.pack.reader import Pack, open_pack
from edge_sel.sel.guilt import head_guilt, rows_of_heads
from edge_sel.server.export import export_pack
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.torch_model import from_module
from tests.graphs.nets import SmallTransformer
from tests.pack.conftest import rewrite_manifest
from tests.server.conftest import CLASSES, NOW, noise_images

HEADS = 3
ENGINES = {
    "ort": lambda: OrtEngine(1),
    "torch": lambda: TorchEngine(1, device="cpu", build=build),
}


def build(name: str, classes: int, size: tuple[int, int]) -> SmallTransformer:
    return SmallTransformer(classes)


@pytest.fixture(scope="module")
def source(one_thread) -> Source:
    torch.manual_seed(0)
    info = WarmupInfo("small-transformer", CLASSES, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), {})
    made = from_module(SmallTransformer(len(CLASSES)).eval(), info, build=build)
    return replace(made, check=lambda *given: {})  # what it would find, these tests do


@pytest.fixture(scope="module", params=["sgd", "adam"])
def pack(request, source, tmp_path_factory) -> Pack:
    path = tmp_path_factory.mktemp("heads") / "pack"
    export_pack(source, noise_images(), path, plans=("head", "last-h34"), optimizer=request.param, now=NOW)
    return open_pack(path)


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]()


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9, 3, 16, 16)).astype(np.float32)
    return Batch(x, np.arange(9) % len(CLASSES), rng.uniform(0.5, 1.5, 9).astype(np.float32))


def tail_input(engine, pack: Pack, plan: str, batch: Batch) -> Batch:
    backbone = engine.backbone(pack, plan, pack.weights())
    return batch._replace(images=backbone(batch.images)) if backbone else batch


def exact_gradients(pack: Pack, batch: Batch) -> dict[str, np.ndarray]:
    model = SmallTransformer(len(CLASSES)).double().eval()
    given = {name: torch.from_numpy(value).double() for name, value in pack.weights().items()}
    model.load_state_dict({name: value for name, value in given.items() if not name.startswith(DEEP_HEAD)})  # zeros
    losses = F.cross_entropy(
        model(torch.from_numpy(batch.images).double()), torch.from_numpy(batch.labels), reduction="none"
    )
    (losses * torch.from_numpy(batch.weights)).mean().backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


@pytest.mark.sampled(2)
def test_the_manifest_tells_the_heads_and_survives_being_written(pack):
    plan = pack.plan("last-h34")
    (weight,) = plan.channels
    assert plan.heads == pack.plan("last").heads == {weight: HEADS}
    assert (plan.base, plan.budget, plan.channels[weight]) == ("last", 0.34, 12)


@pytest.mark.parametrize("wrong", [0, -1, 7, 1.0, None, "1"])
def test_heads_that_the_rows_do_not_make_are_refused(pack, tmp_path, wrong):
    shutil.copytree(pack.path, tmp_path / "pack")
    (name,) = pack.plan("last").heads
    rewrite_manifest(tmp_path / "pack", lambda body: body["plans"]["last"]["heads"].update({name: wrong}))
    with pytest.raises(PackError):
        open_pack(tmp_path / "pack")


def test_guilt_is_the_norm_of_each_row(pack, engine, batch):
    plan = pack.plan("last")
    trainer = engine.trainer(pack, "last", pack.weights())
    norms = trainer.guilt(tail_input(engine, pack, "last", batch))
    exact = exact_gradients(pack, batch)
    assert norms.keys() == plan.heads.keys()
    for name, found in norms.items():
        expected = np.linalg.norm(exact[name], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_the_guiltiest_head_is_chosen_and_it_alone_changes(pack, engine, batch):
    plan, weights, hyper = pack.plan("last-h34"), pack.weights(), Hyper(learning_rate=1e-2)
    given = tail_input(engine, pack, plan.name, batch)
    chosen, norms = choose_channels(engine, pack, plan, pack.plan("last"), weights, [given])
    exact, trainer = exact_gradients(pack, batch), engine.trainer(pack, plan.name, weights)
    trainer.set_channels(chosen)
    before = trainer.state()
    trainer.step(given, hyper)
    after = trainer.state()
    ((name, rows),) = chosen.items()
    guilt = head_guilt(np.linalg.norm(exact[name], axis=1), HEADS)
    np.testing.assert_allclose(norms[name], guilt, rtol=1e-3)
    assert rows.tolist() == rows_of_heads(np.array([guilt.argmax()]), HEADS, len(weights[name])).tolist()
    others = np.setdiff1d(np.arange(len(weights[name])), rows)
    for key in [key for key in before if key.endswith(name) and not key.startswith(("index", "steps"))]:
        assert before[key][others].tobytes() == after[key][others].tobytes(), key
        assert (before[key][rows] != after[key][rows]).any(), key
    slot, scale = ("momentum", 1.0) if pack.manifest.optimizer == "sgd" else ("m", 0.1)
    for trained in (name for name in plan.trainable if not name.startswith(DEEP_HEAD)):
        mine = rows if trained == name else slice(None)
        expected = exact[trained][mine]
        found = after[f"{slot}::{trained}"][mine] / scale
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max(), err_msg=trained)
