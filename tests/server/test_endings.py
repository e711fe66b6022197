"""However a network ends, it gets the closed form and a new head: from a module or a file to a model that learnt."""

from __future__ import annotations

import functools
import json
import logging
from pathlib import Path

import numpy as np
import pytest

import edge_sel
from edge_sel.data.dataset import ImageSet
from edge_sel.graphs.ir import Absent
from edge_sel.pack.manifest import MANIFEST
from edge_sel.pack.plan_kinds import CLOSED, RIDGE
from edge_sel.pack.reader import open_pack
from edge_sel.server.compile_plans import DEFAULT_PLANS, forecast
from edge_sel.server.export import export_pack
from edge_sel.server.source.base import Source, WarmupInfo
from edge_sel.server.source.open import Asked, open_source
from edge_sel.server.source.torch_model import forward_without_values, from_module
from tests.server.conftest import NOW
from tests.server.endings import ENDINGS, SIZE, onnx_file, settled

KINDS = {
    "module": None,
    **{f"file of opset {opset}": (opset, False) for opset in range(11, 18)},
    "file of the newer exporter": (18, True),
}
"""Opset, and whether by the newer exporter."""
OWN_CLASSES = 5
RECTIFIED = "ConvReluPool"
UNTROUBLED = ("WholeMap", "ClassToken")
"""They look at places, and the waves of the field stand in the same ones: most images are right from the start."""


def stripes(count: int, seed: int, *, field: bool = False) -> ImageSet:
    """Three directions of waves; in the field they are dark and blue."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    y, x = np.mgrid[:SIZE, :SIZE]
    waves = np.stack([np.sin(x * 1.6), np.sin(y * 1.6), np.sin((x + y) * 0.8)])[labels][..., None]
    pixels = 128 + 45 * waves * rng.uniform(0.6, 1, (count, 1, 1, 3)) + rng.normal(0, 25, (count, SIZE, SIZE, 3))
    if field:
        pixels = 20 + 0.35 * pixels * [0.6, 0.8, 1.2]
    return ImageSet.from_arrays(np.clip(pixels, 0, 255).astype(np.uint8), labels, ("across", "along", "between"))


pytestmark = pytest.mark.usefixtures("read_here_alone")


@pytest.fixture(autouse=True)
def quiet_exporter(one_thread):
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each file is written once; the cases of both tests are the same."""
    folder = tmp_path_factory.mktemp("files")

    @functools.cache
    def write(ending: str, kind: str) -> Path:
        opset, dynamo = KINDS[kind]
        return onnx_file(folder / f"{ending} {kind}.onnx", ending, OWN_CLASSES, opset, dynamo=dynamo)

    return write


def opened(ending: str, kind: str, tmp_path, exported, *, new_head: bool) -> Source:
    """A network of five classes, for pictures of three where it gets a new head."""
    images = stripes(3, 0)
    asked = Asked(image_size=(SIZE, SIZE), mean=(0.5,) * 3, std=(0.2,) * 3, new_head=new_head,
                  folders=images.classes if new_head else None)  # fmt: skip
    if KINDS[kind] is None:
        code = f"from tests.server.endings import settled\n\ndef make(classes={OWN_CLASSES}):\n"
        (tmp_path / "net.py").write_text(f"{code}    return settled({ending!r}, classes)\n")
        return open_source(f"{tmp_path / 'net.py'}:make", asked)
    return open_source(str(exported(ending, kind)), asked)


CASES = [(ending, kind) for kind in KINDS for ending in ENDINGS]
"""Of which every ninth is another ending, and of another kind than the one before."""


@pytest.mark.sampled(9)
@pytest.mark.parametrize(("ending", "kind"), CASES)
def test_a_network_takes_a_new_head_and_learns_in_closed_form(ending, kind, exported, tmp_path):
    source = opened(ending, kind, tmp_path, exported, new_head=True)
    messages: list[str] = []
    made = export_pack(source, stripes(120, 0), tmp_path / "pack", plans=("bn", "head"), now=NOW, note=messages.append)
    assert not [line for line in messages if line.startswith("plan ")]
    assert {RIDGE, CLOSED} <= {*open_pack(tmp_path / "pack").plan_names}
    assert made.calibration.accuracy > 0.8, "logits of heads that did not see the image"
    run = edge_sel.finetune(tmp_path / "pack", stripes(150, 1, field=True), out=tmp_path / "run",
                            test=stripes(300, 2, field=True), plan=CLOSED, threads=1)  # fmt: skip
    assert run.accuracy_after > 0.8
    if ending not in UNTROUBLED:
        assert run.shipped and run.accuracy_after > min(run.accuracy_before + 0.2, 0.98)  # some begin near that


@pytest.mark.sampled(9)
@pytest.mark.parametrize(("ending", "kind"), CASES)
def test_its_own_head_has_the_closed_form_too(ending, kind, exported, tmp_path):
    found = {plan.name: plan.reason for plan in forecast(opened(ending, kind, tmp_path, exported, new_head=False),
                                                         ("bn", "head"), "sgd", 8)}  # fmt: skip
    if ending == RECTIFIED:  # the mean of what ReLU makes is not linear in the features
        assert "Relu" in found[RIDGE] and "new head" in found[RIDGE] and found[CLOSED] == found[RIDGE]
        found = {name: reason for name, reason in found.items() if name not in (RIDGE, CLOSED)}
    else:
        assert {RIDGE, CLOSED} <= found.keys()
    assert not any(found.values()), found


@pytest.mark.parametrize("ending", ["Hidden", pytest.param("TwoHeads", marks=pytest.mark.slow),
                                    pytest.param("ProductAndSum", marks=pytest.mark.slow)])  # fmt: skip
def test_a_dry_run_says_the_same_without_the_values_of_weights(ending):
    info = WarmupInfo(ending, tuple("abcde"), (SIZE, SIZE), (0.5,) * 3, (0.2,) * 3, {})
    whole, dry = (from_module(settled(ending, OWN_CLASSES), info, dry=dry) for dry in (False, True))
    exported = forward_without_values(settled(ending, OWN_CLASSES), (SIZE, SIZE))
    assert exported.parameters and all(isinstance(exported.initializers[name], Absent) for name in exported.parameters)
    assert [tap.name for tap in dry.taps] == [tap.name for tap in whole.taps]
    assert forecast(dry, DEFAULT_PLANS, "sgd", 8) == forecast(whole, DEFAULT_PLANS, "sgd", 8)


def test_the_scale_of_two_heads_stands_in_the_manifest(exported, tmp_path):
    source = opened("TwoHeads", "file of opset 17", tmp_path, exported, new_head=True)
    export_pack(source, stripes(30, 0), tmp_path / "pack", plans=("head",), now=NOW)
    assert json.loads((tmp_path / "pack" / MANIFEST).read_text())["model"]["head_scale"] == 0.5
