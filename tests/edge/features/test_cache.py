"""What a trainer is fed: the same features however they were come by, and none computed twice or for nothing."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace

import numpy as np
import pytest

from edge_sel.config.settings import Settings
from edge_sel.data.dataset import normalise
from edge_sel.edge.features import store as feature_store
from edge_sel.edge.features.cache import CHUNK, FILE, open_features
from edge_sel.edge.features.precision import FrozenBackbone
from edge_sel.edge.features.store import KEY_BYTES, FileFeatureStore, MemoryFeatureStore
from edge_sel.engines.ort import OrtEngine
from tests.edge.features.places import PLACES
from tests.edge.recording import Recording
from tests.edge.sessions import damage, digits, flipping, pack

COUNT = 30
every_place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture
def opened():
    """``opened(folder, place)``: the features of the first digits, kept there, and closed after the test."""
    with ExitStack() as stack:

        def make(folder, place, *, plan="last", base=None, engine=None, weights=None, images=None):
            memory, disk = PLACES[place]
            cache = open_features(
                FrozenBackbone(engine or OrtEngine(1), base or flipping(pack()), plan, weights or pack().weights(),
                         images or digits(COUNT)),
                "fp32", lambda name: nullcontext(), featured=np.zeros(0, bool), folder=folder,
                settings=replace(Settings(), feature_cache_mb=memory, feature_cache_disk_mb=disk),
            )  # fmt: skip
            stack.callback(cache.close, keep=True)
            return cache

        yield make


def expected(indices, mirrored, plan="last", weights=None):
    """Features without any cache, each image by itself."""
    model = pack().manifest.model
    backbone = OrtEngine(1).backbone(pack(), plan, weights or pack().weights())
    rows = []
    for index, flip in zip(indices, mirrored, strict=True):
        image = digits(COUNT).read([index])
        rows.append(backbone(normalise(image[:, :, ::-1] if flip else image, model.mean, model.std)))
    return np.concatenate(rows).astype(np.float16).astype(np.float32)


def batches(count=12, size=7, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, COUNT, size), rng.random(size) < 0.5) for _ in range(count)]


@every_place
def test_features_are_those_of_the_image_and_of_its_mirror_image(place, opened, tmp_path):
    """Some asked for twice in one batch, some again later."""
    found = opened(tmp_path, place)
    for indices, mirrored in batches():
        np.testing.assert_allclose(found.get(indices, mirrored), expected(indices, mirrored), rtol=2e-3, atol=1e-4)
    plain = np.arange(5)
    np.testing.assert_array_equal(found.get(plain), found.get(plain, np.zeros(5, bool)))
    assert not np.array_equal(found.get(plain), found.get(plain, np.ones(5, bool)))
    assert found.get(plain).dtype == np.float32


def test_every_place_gives_the_same_bits_in_any_order(opened, tmp_path):
    """Also when other images are computed beside them, and after a part was computed by another process."""
    wanted = batches(6)
    kept = [opened(tmp_path / place, place) for place in PLACES]
    for cache in kept[:2]:
        for indices, mirrored in batches(3, size=5, seed=1):
            cache.get(indices, mirrored)
    kept[1].close(keep=True)
    kept[1] = opened(tmp_path / "file", "file")
    for indices, mirrored in wanted:
        first, *others = [cache.get(indices, mirrored).tobytes() for cache in kept]
        assert others == [first, first]


@pytest.mark.parametrize("place", ["memory", "file"])
def test_each_feature_is_computed_once(place, opened, tmp_path):
    engine = Recording()
    cache = opened(tmp_path, place, engine=engine)
    asked = set()
    for indices, mirrored in batches(40):
        before = sum(engine.sizes("backbone", "last"))
        new = set(zip(indices.tolist(), mirrored.tolist(), strict=True)) - asked
        cache.get(indices, mirrored)
        assert sum(engine.sizes("backbone", "last")) - before == -(-len(new) // CHUNK) * CHUNK
        asked |= new
    assert set(engine.sizes("backbone", "last")) == {CHUNK}
    assert cache.computed == sum(engine.sizes("backbone", "last"))
    assert {divmod(key, 2) for key in np.flatnonzero(cache.kept)} == asked


def test_without_a_place_each_is_computed_each_time(opened, tmp_path):
    engine = Recording()
    cache = opened(tmp_path, "nowhere", engine=engine)
    for _ in range(3):
        cache.get(np.arange(8))
    assert sum(engine.sizes("backbone", "last")) == cache.computed == 24 and not len(cache.kept)


def test_images_without_a_frozen_backbone(opened, tmp_path):
    cache = opened(tmp_path, "memory", plan="full")
    model = pack().manifest.model
    given = digits(COUNT).read(np.arange(4))
    given[1] = given[1, :, ::-1]
    found = cache.get(np.arange(4), np.arange(4) == 1)
    assert found.tobytes() == normalise(given, model.mean, model.std).tobytes()
    assert cache.computed == 0


def test_an_engine_that_takes_images_computes_the_frozen_backbone_each_time(opened, tmp_path):
    class Uncut(OrtEngine):
        def backbone(self, pack, plan, weights, *, int8=None):
            return None

    cache = opened(tmp_path, "memory", engine=Uncut(1))
    assert cache.get(np.arange(6)).shape == (6, 3, 16, 16) and cache.get(np.arange(6)).shape[0] == 6
    assert cache.computed == 12


def test_once_all_are_there_the_frozen_backbone_is_let_go_of(opened, tmp_path):
    made = []

    class Counting(OrtEngine):
        def backbone(self, *given):
            made.append(super().backbone(*given))
            return made[-1]

    cache = opened(tmp_path, "file", base=pack(), engine=Counting(1))
    cache.get(np.arange(COUNT - 1))
    assert cache._loaded is made[0]
    cache.get(np.arange(COUNT))
    assert cache._loaded is None and len(made) == 1
    damage(tmp_path / FILE, KEY_BYTES + 100)  # and made again when a record turns out to be damaged
    assert cache.get(np.arange(COUNT)).tobytes() == opened(tmp_path / "2", "memory").get(np.arange(COUNT)).tobytes()
    assert len(made) == 2


def test_features_beyond_float16_are_the_largest_there_is(opened, tmp_path):
    class Large(OrtEngine):
        def backbone(self, *given):
            backbone = super().backbone(*given)
            return lambda images: backbone(images) * np.float32(1e8)

    found = opened(tmp_path, "memory", engine=Large(1)).get(np.arange(3))
    assert np.isfinite(found).all() and found.max() == np.finfo(np.float16).max


CHANGES = {
    "weights": lambda given: given | {"weights": changed_weights()},
    "pack": lambda given: given | {"base": replaced_gamma()},
    "images": lambda given: given | {"images": digits(COUNT + 1).subset(np.arange(1, COUNT + 1))},
    "plan": lambda given: given | {"plan": "last2"},
}


def changed_weights():
    weights = pack().weights()
    name = next(name for name in pack().backbone("last").constants if name in weights)
    return weights | {name: weights[name] + 1}


def replaced_gamma():
    base = flipping(pack())
    calibration = replace(base.manifest.calibration, gamma=0.5)
    return base.with_manifest(replace(base.manifest, calibration=calibration))


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_something_else_is_not_used(change, opened, tmp_path):
    first = opened(tmp_path, "file")
    first.get(np.arange(6))
    first.close(keep=True)
    assert opened(tmp_path, "file").kept.sum() == 6
    assert not opened(tmp_path, "file", **CHANGES[change]({})).kept.any()


# Limits


def test_features_are_kept_in_memory_else_in_a_file_that_leaves_half_of_the_disk(tmp_path, monkeypatch):
    size = 2 * COUNT * feature_store.row_bytes(pack().backbone("last").shape)
    free = [10**9]
    monkeypatch.setattr(
        feature_store.shutil, "disk_usage", lambda path: feature_store.shutil._ntuple_diskusage(10**9, 0, free[0])
    )

    def store(memory, disk):
        shape = pack().backbone("last").shape
        found = feature_store.open_store(
            tmp_path / FILE, 2 * COUNT, shape, lambda: b"k" * KEY_BYTES, memory_mb=memory, disk_mb=disk
        )
        if found is not None:
            found.close(keep=False)
        return type(found)

    assert size < 2**20
    assert [store(*limits) for limits in ((1, 0), (0, 1), (1, 1), (0, 0))] == [
        MemoryFeatureStore, FileFeatureStore, MemoryFeatureStore, type(None),
    ]  # fmt: skip
    free[0] = 2 * size - 2
    assert store(0, 1) is type(None)
    free[0] = 2 * size
    assert store(0, 1) is FileFeatureStore


def test_half_of_the_sizes_without_mirror_images(opened, tmp_path):
    assert len(opened(tmp_path, "memory", base=pack()).kept) == COUNT
    assert len(opened(tmp_path, "memory").kept) == 2 * COUNT


def test_a_full_disk_ends_the_keeping_and_nothing_else(opened, tmp_path, monkeypatch):
    cache = opened(tmp_path, "file")
    cache.get(np.arange(8))
    write = FileFeatureStore.write

    def full(self, keys, rows):
        write(self, keys[:1], rows[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileFeatureStore, "write", full)
    expect = opened(tmp_path / "other", "memory").get(np.arange(12))
    assert cache.get(np.arange(12)).tobytes() == expect.tobytes()
    assert not (tmp_path / FILE).exists() and not len(cache.kept) and not len(cache.featured)
    assert cache.get(np.arange(12)).tobytes() == expect.tobytes()
    assert cache.computed == 8 + 4 + 12


def test_a_place_that_cannot_be_written(opened, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert not len(opened(tmp_path / "file", "file").kept)
