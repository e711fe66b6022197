"""What a trainer is fed: the same features however they were come by, and none computed twice or for nothing."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from edge_sel.config.settings import Settings
from edge_sel.data.transforms import normalise
from edge_sel.edge.features import store as feature_store
from edge_sel.edge.features.cache import CHUNK, FILE, open_features
from edge_sel.edge.features.store import KEY_BYTES, FileFeatureStore, MemoryFeatureStore
from edge_sel.engines.ort import OrtEngine
from tests.edge.recording import Recording
from tests.edge.runs import KillAt, Killed, StopAt, digits, events, flipping, outcome, pack, session

COUNT = 30
PLACES = {"memory": (64, 0), "file": (0, 64), "nowhere": (0, 0)}
every_place = pytest.mark.parametrize("place", PLACES)
SHAPE = (2, 3)
OPEN = []


@pytest.fixture(autouse=True)
def closed():
    yield
    while OPEN:
        OPEN.pop().close(keep=True)


def opened(folder, place, *, plan="last", base=None, engine=None, weights=None, images=None):
    memory, disk = PLACES[place]
    cache = open_features(
        engine or OrtEngine(1), base or flipping(pack()), plan, weights or pack().weights(), images or digits(COUNT),
        precision="fp32", featured=np.zeros(0, bool), folder=folder, phase=lambda name: nullcontext(),
        settings=replace(Settings(), feature_cache_mb=memory, feature_cache_disk_mb=disk),
    )  # fmt: skip
    OPEN.append(cache)
    return cache


def expected(indices, mirrored, plan="last", weights=None):
    """Features without any cache, each image by itself."""
    model = pack().manifest.model
    prefix = OrtEngine(1).prefix(pack(), plan, weights or pack().weights())
    rows = []
    for index, flip in zip(indices, mirrored, strict=True):
        image = digits(COUNT).read([index])
        rows.append(prefix(normalise(image[:, :, ::-1] if flip else image, model.mean, model.std)))
    return np.concatenate(rows).astype(np.float16).astype(np.float32)


def batches(count=12, size=7, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, COUNT, size), rng.random(size) < 0.5) for _ in range(count)]


@every_place
def test_features_are_those_of_the_image_and_of_its_mirror_image(place, tmp_path):
    """Some asked for twice in one batch, some again later."""
    found = opened(tmp_path, place)
    for indices, mirrored in batches():
        np.testing.assert_allclose(found.get(indices, mirrored), expected(indices, mirrored), rtol=2e-3, atol=1e-4)
    plain = np.arange(5)
    np.testing.assert_array_equal(found.get(plain), found.get(plain, np.zeros(5, bool)))
    assert not np.array_equal(found.get(plain), found.get(plain, np.ones(5, bool)))
    assert found.get(plain).dtype == np.float32


def test_every_place_gives_the_same_bits_in_any_order(tmp_path):
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
def test_each_is_computed_once(place, tmp_path):
    engine = Recording()
    cache = opened(tmp_path, place, engine=engine)
    asked = set()
    for indices, mirrored in batches(40):
        before = sum(engine.sizes("prefix", "last"))
        new = set(zip(indices.tolist(), mirrored.tolist(), strict=True)) - asked
        cache.get(indices, mirrored)
        assert sum(engine.sizes("prefix", "last")) - before == -(-len(new) // CHUNK) * CHUNK
        asked |= new
    assert set(engine.sizes("prefix", "last")) == {CHUNK}
    assert cache.computed == sum(engine.sizes("prefix", "last"))
    assert {divmod(key, 2) for key in np.flatnonzero(cache.kept)} == asked


def test_without_a_place_each_is_computed_each_time(tmp_path):
    engine = Recording()
    cache = opened(tmp_path, "nowhere", engine=engine)
    for _ in range(3):
        cache.get(np.arange(8))
    assert sum(engine.sizes("prefix", "last")) == cache.computed == 24 and not len(cache.kept)


def test_images_without_a_prefix(tmp_path):
    cache = opened(tmp_path, "memory", plan="full")
    model = pack().manifest.model
    given = digits(COUNT).read(np.arange(4))
    given[1] = given[1, :, ::-1]
    found = cache.get(np.arange(4), np.arange(4) == 1)
    assert found.tobytes() == normalise(given, model.mean, model.std).tobytes()
    assert cache.computed == 0


def test_an_engine_that_takes_images_computes_the_prefix_each_time(tmp_path):
    class Uncut(OrtEngine):
        def prefix(self, pack, plan, weights, *, int8=None):
            return None

    cache = opened(tmp_path, "memory", engine=Uncut(1))
    assert cache.get(np.arange(6)).shape == (6, 3, 16, 16) and cache.get(np.arange(6)).shape[0] == 6
    assert cache.computed == 12


def test_once_all_are_there_the_prefix_is_let_go_of(tmp_path):
    made = []

    class Counting(OrtEngine):
        def prefix(self, *given):
            made.append(super().prefix(*given))
            return made[-1]

    cache = opened(tmp_path, "file", base=pack(), engine=Counting(1))
    cache.get(np.arange(COUNT - 1))
    assert cache._prefix is made[0]
    cache.get(np.arange(COUNT))
    assert cache._prefix is None and len(made) == 1
    damage(tmp_path / FILE, KEY_BYTES + 100)  # and made again when a record turns out to be damaged
    assert cache.get(np.arange(COUNT)).tobytes() == opened(tmp_path / "2", "memory").get(np.arange(COUNT)).tobytes()
    assert len(made) == 2


def test_features_beyond_float16_are_the_largest_there_is(tmp_path):
    class Large(OrtEngine):
        def prefix(self, *given):
            prefix = super().prefix(*given)
            return lambda images: prefix(images) * np.float32(1e8)

    found = opened(tmp_path, "memory", engine=Large(1)).get(np.arange(3))
    assert np.isfinite(found).all() and found.max() == np.finfo(np.float16).max


# Files


def damage(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def written(folder, count=5, key=b"k" * KEY_BYTES):
    store = reopened(folder, key)
    rows = np.random.default_rng(0).standard_normal((count, *SHAPE)).astype(np.float16)
    store.write(np.arange(count), rows)
    store.close(keep=True)
    return rows


def reopened(folder, key=b"k" * KEY_BYTES):
    OPEN.append(FileFeatureStore(folder / FILE, 8, SHAPE, key))
    return OPEN[-1]


RECORD = 8 + 16 + 2 * 6


@pytest.mark.parametrize(
    "make", [lambda path: MemoryFeatureStore(8, SHAPE), lambda path: FileFeatureStore(path, 8, SHAPE, b"k" * 32)]
)
def test_rows_come_back_by_their_key(make, tmp_path):
    store = make(tmp_path / FILE)
    rows = np.random.default_rng(0).standard_normal((8, *SHAPE)).astype(np.float16)
    store.write(np.array([5, 2]), rows[[5, 2]])
    store.write(np.array([7]), rows[[7]])
    store.write(np.array([], np.int64), rows[:0])
    found, there = store.read(np.array([2, 3, 7, 5]))
    assert there.tolist() == [True, False, True, True] and store.there().sum() == 3
    np.testing.assert_array_equal(found[there], rows[[2, 7, 5]])
    store.close(keep=False)
    assert not (tmp_path / FILE).exists()


def test_a_file_is_used_again(tmp_path):
    rows = written(tmp_path)
    store = reopened(tmp_path)
    found, there = store.read(np.arange(8))
    assert there.tolist() == [True] * 5 + [False] * 3
    np.testing.assert_array_equal(found[:5], rows)
    store.write(np.array([6]), rows[:1])
    np.testing.assert_array_equal(store.read(np.array([4, 6]))[0], rows[[4, 0]])


@pytest.mark.parametrize("at", range(KEY_BYTES + RECORD, KEY_BYTES + 2 * RECORD))
def test_a_damaged_record_is_not_used(at, tmp_path):
    rows = written(tmp_path)
    damage(tmp_path / FILE, at)
    found, there = reopened(tmp_path).read(np.arange(8))
    assert not there[1] and not there[5:].any() and there.sum() >= 3  # a wrong key hides another record
    np.testing.assert_array_equal(found[there], rows[np.flatnonzero(there)])


@pytest.mark.parametrize("left", [0, 10, KEY_BYTES, KEY_BYTES + 5, KEY_BYTES + 3 * RECORD - 1])
def test_of_a_truncated_file_the_whole_records_are_used(left, tmp_path):
    rows = written(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:left])
    store = reopened(tmp_path)
    whole = max(0, (left - KEY_BYTES) // RECORD)
    assert store.read(np.arange(8))[1].sum() == whole
    store.write(np.array([7]), rows[:1])
    np.testing.assert_array_equal(store.read(np.array([7]))[0], rows[:1])
    store.close(keep=True)
    assert reopened(tmp_path).read(np.arange(8))[1].sum() == whole + 1


@pytest.mark.parametrize("foreign", [b"other" * 100, b"o" * KEY_BYTES, b""])
def test_a_foreign_file_is_begun_anew(foreign, tmp_path):
    written(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(foreign + content[KEY_BYTES:])
    store = reopened(tmp_path)
    assert not store.there().any() and (tmp_path / FILE).read_bytes() == b"k" * KEY_BYTES


def test_records_of_other_features_do_not_pass_under_this_key(tmp_path):
    """As after a power cut that left a new beginning before old records."""
    written(tmp_path, key=b"o" * KEY_BYTES)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(b"k" * KEY_BYTES + content[KEY_BYTES:])
    assert not reopened(tmp_path).read(np.arange(8))[1].any()


CHANGES = {
    "weights": lambda given: given | {"weights": changed_weights()},
    "pack": lambda given: given | {"base": replaced_gamma()},
    "images": lambda given: given | {"images": digits(COUNT + 1).subset(np.arange(1, COUNT + 1))},
    "plan": lambda given: given | {"plan": "last2"},
}


def changed_weights():
    weights = pack().weights()
    name = next(name for name in pack().prefix("last").constants if name in weights)
    return weights | {name: weights[name] + 1}


def replaced_gamma():
    base = flipping(pack())
    calibration = replace(base.manifest.calibration, gamma=0.5)
    return base.with_manifest(replace(base.manifest, calibration=calibration))


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_of_something_else_is_not_used(change, tmp_path):
    first = opened(tmp_path, "file")
    first.get(np.arange(6))
    first.close(keep=True)
    assert opened(tmp_path, "file").kept.sum() == 6
    assert not opened(tmp_path, "file", **CHANGES[change]({})).kept.any()


# Limits


def test_what_fits_where(tmp_path, monkeypatch):
    size = 2 * COUNT * feature_store.row_bytes(pack().prefix("last").shape)
    free = [10**9]
    monkeypatch.setattr(
        feature_store.shutil, "disk_usage", lambda path: feature_store.shutil._ntuple_diskusage(10**9, 0, free[0])
    )

    def store(memory, disk):
        shape = pack().prefix("last").shape
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


def test_half_of_the_sizes_without_mirror_images(tmp_path):
    assert len(opened(tmp_path, "memory", base=pack()).kept) == COUNT
    assert len(opened(tmp_path, "memory").kept) == 2 * COUNT


def test_a_full_disk_ends_the_keeping_and_nothing_else(tmp_path, monkeypatch):
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


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert not len(opened(tmp_path / "file", "file").kept)


# Sessions


def run(out, place, *, plan="bn,last", **given):
    memory, disk = PLACES[place]
    given = {"gate": "off", "curriculum": "off"} | given
    return session(out, base=flipping(pack()), plan=plan, feature_cache_mb=memory, feature_cache_disk_mb=disk, **given)


def test_every_place_trains_the_same(tmp_path):
    for place in PLACES:
        run(tmp_path / place, place).run()
    memory, file, nowhere = (outcome(tmp_path / place) for place in PLACES)
    assert memory == file and memory["weights"] == nowhere["weights"]
    for kept, anew in zip(memory["epochs"][2:], nowhere["epochs"][2:], strict=True):
        assert kept["executed_flops_t"] < anew["executed_flops_t"]
    assert not (tmp_path / "file" / FILE).exists()


@pytest.mark.parametrize("place", PLACES)
def test_a_stopped_or_killed_run_ends_the_same(place, tmp_path):
    run(tmp_path / "one", place, epochs=3).run()
    expected = outcome(tmp_path / "one")
    for boundary in (4, 8, 14, 20):
        out = tmp_path / str(boundary)
        run(out, place, epochs=3, should_stop=StopAt(boundary)).run()
        assert (out / FILE).exists() == (place == "file" and boundary > 4)
        with pytest.raises(Killed):
            run(out, place, epochs=3, listener=KillAt(2), checkpoint_every_s=0.1, resume=True).run()
        if place == "file" and boundary == 14:
            damage(out / FILE, 3000)
        run(out, place, epochs=3, resume=True).run()
        assert outcome(out) == expected, boundary
        assert not (out / FILE).exists()


def test_a_resumed_run_reads_the_file_and_computes_the_rest(tmp_path):
    run(tmp_path, "file", plan="last", should_stop=StopAt(5)).run()
    engine = Recording()
    run(tmp_path, "file", plan="last", engine=engine, resume=True).run()
    whole = Recording()
    run(tmp_path / "one", "file", plan="last", engine=whole).run()
    computed, all_of_them = (sum(e.sizes("prefix", "last")) for e in (engine, whole))
    assert all_of_them - 5 * 16 - CHUNK <= computed <= all_of_them - 5 * 16 + CHUNK


@pytest.mark.parametrize(("flips", "epochs"), [(False, 3), (True, 12)])
def test_training_the_head_takes_one_forward_pass_an_image(flips, epochs, tmp_path):
    engine = Recording()
    base = flipping(pack()) if flips else pack()
    result = session(
        tmp_path, base=base, plan="head", engine=engine, gate="off", curriculum="off", epochs=epochs, batch_size=20
    ).run()
    images = result["images"]["train"] * (2 if flips else 1)
    assert images <= sum(engine.sizes("prefix", "head")) <= 1.25 * images
    assert len(engine.images("prefix")) == images
    flops = [epoch["executed_flops_t"] for epoch in result["epochs"]]
    assert flops[-1] < 0.1 * flops[0]


def test_the_time_of_the_prefix_is_a_phase(tmp_path):
    result = run(tmp_path, "memory").run()
    assert result["energy"]["phases"]["prefix"]["seconds"] > 0
    assert events(tmp_path)[-1]["event"] == "finished"
