"""What the tests of several rooms share: one hypothesis profile, and what is slow to make."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from edge_sel.data import builtin, split
from edge_sel.data.dataset import ImageSet
from edge_sel.data.duplicates import Duplicates
from edge_sel.pack import reader
from edge_sel.pack.manifest import Manifest
from edge_sel.pack.reader import Pack, builtin_pack
from edge_sel.sel.ridge import HeadFit
from tests.once import exported_once, kept_folder, loaded_once

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # of tests that import onnxruntime themselves
# So that the package is compiled once, not by each process that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
settings.register_profile("edge-sel", max_examples=40, deadline=None, derandomize=True)
settings.load_profile("edge-sel")


LONGEST = (
    "docs/test_code_blocks", "tools/test_fuzz", "watch/test_loop", "cli/test_signals", "server/test_endings", "test_wheel",
    "server/test_onnx_source", "report/test_page", "cli/test_report", "tools/test_torture", "cli/test_live",
)  # fmt: skip
"""Files that take ten seconds and more begin first, so that none of them is alone at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the cases of a test marked ``sampled(n)``, every n-th runs by default; the others are slow."""
    first = {f"tests/{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.nodeid.partition("::")[0], len(first)))
    seen: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None and item.get_closest_marker("slow") is None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1


@pytest.fixture(scope="session")
def digits_pack() -> Pack:
    """The built-in pack; opened packs are read-only, so one serves all."""
    return builtin_pack()


@pytest.fixture(scope="session", autouse=True)
def the_same_is_computed_once() -> None:
    """Runs of small images open the same pack and look at the same images: that took more time than training."""
    from edge_sel.edge.train import closed_form_stage

    check, passed = reader._check, {}
    shift, shifted = builtin.apply_shift, {}
    find, found = split.find_duplicates, {}
    fit, fitted = closed_form_stage.fit_head, {}

    def check_once(manifest: Manifest, content: Mapping[str, bytes]) -> None:
        """The files are known to have these hashes."""
        known = passed.setdefault(frozenset((name, info.sha256) for name, info in manifest.files.items()), [])
        if manifest not in known:
            check(manifest, content)
            known.append(manifest)

    def shift_once(name: str, digits: ImageSet, seed: int) -> ImageSet:
        if (name, digits.ids, seed) not in shifted:
            shifted[name, digits.ids, seed] = shift(name, digits, seed)
        return shifted[name, digits.ids, seed]

    def find_once(images: ImageSet, held: np.ndarray) -> Duplicates:
        key = (images.size, images.content_digests().tobytes(), images.labels.tobytes(), held.tobytes())
        if key not in found:
            found[key] = find(images, held)
        return found[key]

    def fit_once(*given: object, **how: object) -> HeadFit:
        key = hashlib.sha256(pickle.dumps((given, how))).digest()
        if key not in fitted:
            fitted[key] = fit(*given, **how)
        return fitted[key]

    reader._check, builtin.apply_shift, split.find_duplicates = check_once, shift_once, find_once
    closed_form_stage.fit_head = fit_once


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> None:
    """A run syncs some thirty files. What is tested of that looks at the calls, and not at what a power cut leaves."""
    os.fsync = lambda handle: os.fstat(handle) and None


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Torch computes on one thread from here on."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_table_of_translations() -> None:
    """Torch's exporter parses the sources of all that it translates to: once, and not for each network."""
    if "edge_sel.server.source.torch_model" in sys.modules:  # of a test module that has been collected
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `edge-sel tune` has found on this machine is no concern of the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def sketched(monkeypatch):
    """Charts are painted and not drawn, which takes three quarters of a page's time: for tests of what is around them."""

    def savefig(figure, out, **_):
        assert figure.axes
        out.write('<svg width="1pt" height="1pt"></svg>')

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.fixture(scope="package")
def loads_once() -> Iterator[None]:
    """Runs of a room of tests share what onnxruntime has loaded, as in ``tests.edge.sessions``."""
    from edge_sel.engines.ort import OrtEngine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OrtEngine, "session", loaded_once(OrtEngine.session))
        yield


@pytest.fixture(scope="package")
def reads_once() -> Iterator[None]:
    """An ONNX file that could be read in a process of limited memory is not tried there again."""
    from edge_sel.server.source import open as opening

    require, passed = opening.require_readable, set()

    def require_once(path: Path, *how: object) -> None:
        key = (path, path.read_bytes() if path.is_file() else None, *how)
        if key not in passed:
            require(path, *how)
            passed.add(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "require_readable", require_once)
        yield


@pytest.fixture(scope="package")
def exports_once(one_thread: None, request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[None]:
    """Torch's export of a network takes seconds: it is made once, and kept in pytest's cache while no code changes it."""
    from edge_sel.server.source import torch_model

    exported = exported_once(torch_model.export_forward, tmp_path_factory, kept_folder(request.config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_model, "export_forward", exported)
        yield
