"""Compiled steps need more than a GPU; where that is missing a run goes on without, and says why."""

from types import SimpleNamespace

import pytest
import torch

from edge_sel.reference import model as speed

CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A card of this compute capability, as torch describes it."""

    def be(capability, *, bf16=True, triton=True, compilers=("gcc",), cc=None):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla P100")
        monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: SimpleNamespace() if triton else None)
        monkeypatch.setattr(speed.shutil, "which", lambda name: f"/usr/bin/{name}" if name in compilers else None)
        monkeypatch.delenv("CC", raising=False)
        if cc:
            monkeypatch.setenv("CC", cc)
        return speed.fastest(CUDA)

    return be


def test_a_data_centre_card_and_a_t4(gpu):
    assert gpu((9, 0)) == speed.Speed(torch.bfloat16, True, "")
    assert gpu((7, 5), bf16=False, compilers=("clang",)).to_json() == {"dtype": "float16", "compiled": True}
    assert gpu((8, 6), compilers=(), cc="/opt/bin/cc").compiled


@pytest.mark.parametrize(
    ("lacks", "word"),
    [
        ({"capability": (6, 0)}, "Tesla P100"),
        ({"triton": False}, "triton"),
        ({"compilers": ()}, "gcc"),
    ],
)
def test_what_is_missing_is_named(gpu, lacks, word):
    found = gpu(**{"capability": (8, 0), **lacks})
    assert found.half is torch.bfloat16 and not found.compiled and word in found.why


def test_a_processor_computes_in_float32(make_trainer):
    assert speed.fastest(torch.device("cpu")).to_json() == {"dtype": "float32", "compiled": False}
    assert make_trainer().speed.half is None
