"""Which runtimes are installed, and what to do where they are over each other: needs none of them."""

from __future__ import annotations

import pytest

from edge_sel.engines.ort_training_api import OWNERS, VERSION, owners, require_training
from edge_sel.errors import SetupError


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """installed(onnxruntime="1.31.1") -> a place for packages that holds these alone."""
    import sys

    def install(**versions: str) -> None:
        for name, version in versions.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])

    return install


def test_what_is_installed(installed):
    installed(onnxruntime="1.31.1", onnxruntime_training="1.19.2", onnxruntime_extensions="0.14")
    assert owners() == {"onnxruntime": "1.31.1", "onnxruntime-training": "1.19.2"}
    assert owners().keys() <= {*OWNERS}


def test_it_alone_is_right(installed):
    installed(onnxruntime_training=VERSION)
    require_training()


def test_without_it_another_engine_is_named(installed):
    installed(onnxruntime="1.31.1")
    with pytest.raises(SetupError, match="--engine ort"):
        require_training()


@pytest.mark.parametrize("other", ["onnxruntime", "onnxruntime_gpu"])
def test_two_runtimes_over_each_other(installed, other):
    installed(**{other: "1.31.1", "onnxruntime_training": VERSION})
    with pytest.raises(SetupError) as caught:
        require_training()
    message, name = str(caught.value), other.replace("_", "-")
    assert f"{name} 1.31.1 and onnxruntime-training {VERSION}" in message
    assert f"pip uninstall -y {name} onnxruntime-training && pip install --no-deps onnxruntime-training==" in message
    assert "\n" not in message


def test_another_version(installed):
    installed(onnxruntime_training="1.18.0")
    with pytest.raises(SetupError, match=rf"1\.18\.0 is installed, {VERSION} is needed"):
        require_training()
