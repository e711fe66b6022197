"""What an epoch's record says of the channels and attention heads that were chosen."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edge_sel.pack.reader import Pack, open_pack
from edge_sel.server.export import export_pack
from edge_sel.server.source.base import WarmupInfo
from edge_sel.server.source.torch_model import from_module
from tests.edge.sessions import KillAt, Killed, digits, outcome, pack, session
from tests.graphs.nets import SmallTransformer
from tests.server.conftest import CLASSES, NOW, noise_images

HEADS = 3


def build(name: str, classes: int, size: tuple[int, int]) -> SmallTransformer:
    return SmallTransformer(classes)


@pytest.fixture(scope="module")
def transformer(one_thread, tmp_path_factory) -> Pack:
    torch.manual_seed(0)
    info = WarmupInfo("small-transformer", CLASSES, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), {})
    path = tmp_path_factory.mktemp("heads") / "pack"
    source = from_module(SmallTransformer(len(CLASSES)).eval(), info, build=build)
    export_pack(source, noise_images(), path, plans=("head", "last-h34"), now=NOW)
    return open_pack(path)


def run(out, base: Pack, plan: str, **more):
    images = noise_images(60) if base.manifest.model.classes == CLASSES else digits(60)
    session(out, base=base, images=images, plan=plan, epochs=2, **more).run()
    return json.loads((out / "run.json").read_text())["epochs"]


@pytest.mark.slow
def test_of_heads_each_ones_gradient_norm_and_who_was_chosen(transformer, tmp_path):
    for epoch in run(tmp_path / "run", transformer, "last-h34"):
        ((name, guilty),) = epoch["guilty"].items()
        assert name in transformer.plan("last-h34").heads
        assert (guilty["of"], guilty["chosen"]) == (HEADS, 1) and len(guilty["heads"]) == HEADS
        assert guilty["chosen_heads"] == [int(np.argmax(guilty["heads"]))]
        assert guilty["share_of_norm"] == pytest.approx(max(guilty["heads"]) / np.linalg.norm(guilty["heads"]))


def test_of_channels_what_share_of_the_norm_the_chosen_ones_hold(tmp_path):
    limited = pack().plan("last-c25").channels
    for epoch in run(tmp_path / "run", pack(), "last-c25"):
        assert {name: guilty["chosen"] for name, guilty in epoch["guilty"].items()} == limited
        for guilty in epoch["guilty"].values():
            assert guilty.keys() == {"of", "chosen", "share_of_norm"}
            assert (guilty["chosen"] / guilty["of"]) ** 0.5 < guilty["share_of_norm"] < 1  # more than an equal share


def test_a_plan_without_a_budget_chooses_nothing(tmp_path):
    assert all("guilty" not in epoch for epoch in run(tmp_path / "run", pack(), "head"))


@pytest.mark.slow
def test_a_resumed_epoch_tells_what_it_had_chosen(transformer, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, transformer, "last-h34", checkpoint_every_s=1e-9)
    with pytest.raises(Killed):
        run(cut, transformer, "last-h34", checkpoint_every_s=1e-9, listener=KillAt(2))
    run(cut, transformer, "last-h34", checkpoint_every_s=1e-9, resume=True)
    assert outcome(cut) == outcome(whole)
