"""Rounds as files: sums of devices are the sums of all, whatever is wrong with one of them."""

from __future__ import annotations

import json
import os
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.arrays import read_tensors, tensor_bytes, tensor_notes
from edge_sel.cli.main import cli
from edge_sel.data.builtin import load_digits, load_relit
from edge_sel.data.shifts import write_folder
from edge_sel.engines.ort import OrtEngine
from edge_sel.errors import BadInputError, DataError
from edge_sel.fleet import header, statistics
from edge_sel.fleet.header import Origin
from edge_sel.fleet.merge import merge_updates, new_pack
from edge_sel.fleet.statistics import features_of, longest_row, make_statistics, projection_of, rows_of
from edge_sel.fleet.update import read_update, write_update
from edge_sel.pack.reader import builtin_pack, open_pack
from edge_sel.pack.signatures import make_key, read_private_key, read_trusted_keys
from edge_sel.sel.feature_sums import CONSTANT
from edge_sel.sel.federated import add_sums, device_sums, gaussian_sigma, solve_sums, sums_sensitivity

PACK = builtin_pack()
CLASSES = PACK.manifest.model.classes
ENGINE = OrtEngine(1)


@cache
def field() -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of the field's digits."""
    images = load_relit("field")
    return features_of(PACK, images, ENGINE), images.labels


def shards(count: int, seed: int) -> list[np.ndarray]:
    """Rows of devices that have few classes each."""
    labels, rng = field()[1], np.random.default_rng(seed)
    shares = rng.dirichlet([0.3] * count, len(CLASSES))
    owner = np.array([rng.choice(count, p=shares[label]) for label in labels])
    found = []
    for device in range(count):
        rows = np.flatnonzero(owner == device)
        rows = rows[np.bincount(labels[rows], minlength=10)[labels[rows]] >= header.LEAST_OF_CLASS]
        found += [rows] if len(rows) >= header.LEAST_IMAGES else []
    return found


def write(folder, rows, name="a", labels=None, **more):
    features, known = field()
    labels = known[rows] if labels is None else labels
    path = folder / name
    origin = Origin(name, **{key: more.pop(key) for key in ("energy_j", "energy_source") if key in more})
    content = make_statistics(PACK, features[rows], labels, CLASSES, origin, **more)
    write_update(path, content, None)
    return path


def read(path, pack=PACK, keys=None):
    return read_update(path, pack, keys)


def head(merged):
    return PACK.linear_head.joined(merged.weights)


# The science


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_sums_of_devices_are_the_sums_of_all(seed, count):
    rng = np.random.default_rng(seed)
    rows, labels = rng.standard_normal((60, 7)), rng.integers(0, 3, 60)
    owner = rng.integers(0, count, 60)
    parts = [device_sums(rows[owner == one], labels[owner == one], 3) for one in range(count)]
    whole, added = solve_sums(device_sums(rows, labels, 3)), solve_sums(add_sums(parts))
    np.testing.assert_allclose(added.coefficients, whole.coefficients, atol=1e-9)
    assert added.strength == whole.strength


def test_the_score_is_that_of_generalised_cross_validation():
    rng = np.random.default_rng(0)
    rows, labels = rng.standard_normal((50, 6)), rng.integers(0, 3, 50)
    wide, target = np.hstack([rows, np.full((50, 1), CONSTANT)]), np.eye(3)[labels]
    sums = device_sums(rows, labels, 3)
    unit = np.linalg.eigvalsh(sums.gram).mean()
    found = solve_sums(sums, (0.01,))
    inverse = np.linalg.inv(sums.gram + 0.01 * unit * np.eye(7))
    hat = wide @ inverse @ wide.T
    expected = ((target - hat @ target) ** 2).sum() / 50 / (1 - np.trace(hat) / 50) ** 2
    assert found.score == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(found.coefficients, inverse @ wide.T @ target, atol=1e-9)


@pytest.mark.parametrize("epsilon, delta", [(0.1, 1e-5), (1.0, 1e-5), (8.0, 1e-5), (1.0, 1e-3)])
def test_the_noise_is_the_least_that_gives_this_privacy(epsilon, delta):
    from math import erf, exp, sqrt

    def reached(sigma: float) -> float:
        def normal(value: float) -> float:
            return 0.5 * (1 + erf(value / sqrt(2)))

        return normal(0.5 / sigma - epsilon * sigma) - exp(epsilon) * normal(-0.5 / sigma - epsilon * sigma)

    sigma = gaussian_sigma(epsilon, delta, 1.0)
    assert reached(sigma) <= delta * (1 + 1e-6) and reached(sigma * 0.99) > delta
    assert gaussian_sigma(epsilon, delta, 3.0) == pytest.approx(3 * sigma)


@pytest.mark.parametrize("epsilon, sigma", [(0.5, 7.0318), (1.0, 3.7306), (2.0, 1.9938), (8.0, 0.6002)])
def test_an_accountant_of_others_finds_the_same_noise(epsilon, sigma):
    """The PLD accountant of dp-accounting 0.6.0 gives back this ε for these deviations, at δ = 1e-5."""
    assert gaussian_sigma(epsilon, 1e-5, 1.0) == pytest.approx(sigma, abs=1e-4)


def test_one_sample_moves_what_is_sent_by_no_more_than_the_sensitivity():
    rng = np.random.default_rng(0)
    length = longest_row(PACK)
    for _ in range(20):
        row = rng.standard_normal((1, 9))
        row *= length / np.linalg.norm(row)
        sums = device_sums(row, np.array([1]), 3)
        sent = np.concatenate([sums.counts, sums.right.ravel()])
        assert np.linalg.norm(sent) <= sums_sensitivity(length) * (1 + 1e-9)


# Updates


def test_an_update_comes_back_as_it_was_sent(tmp_path):
    rows = np.arange(100)
    found = read(write(tmp_path, rows, energy_j=3.5, energy_source="modelled"))
    features, labels = field()
    assert np.bincount(labels[rows]).min() >= header.LEAST_OF_CLASS
    expected = device_sums(rows_of(PACK, features[rows]), labels[rows], 10)
    for one, other in zip(found.sums, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)
    assert (found.images, found.energy_j, found.energy_source, found.signed) == (100, 3.5, "modelled", False)


def test_too_few_images_are_not_sent(tmp_path):
    with pytest.raises(DataError, match="at least 20 images"):
        write(tmp_path, np.arange(19))


def test_a_class_of_few_images_is_not_sent_as_its_sum_would_be_an_image(tmp_path):
    labels = np.repeat([0, 1, 2], [30, 4, 30])
    found = read(write(tmp_path, np.arange(64), labels=labels))
    assert found.images == 60 and found.sums.counts[:3].tolist() == [30, 0, 30] and not found.sums.right[:, 1].any()


def changed(path, **tensors):
    content = path.read_bytes()
    stored, notes = read_tensors(content), tensor_notes(content)
    told = json.loads(notes["update"])
    for name, value in tensors.items():
        if name in stored:
            stored[name] = value(stored[name])
        else:
            told[name] = value
    path.write_bytes(tensor_bytes(stored, {"update": json.dumps(told)}))


def bumped(place, by):
    def change(array):
        array = array.copy()
        array[place] += by
        return array

    return change


@pytest.mark.parametrize("change", [
    {"pack": "0" * 16}, {"format": "edge-sel-update-1"}, {"images": 10**9}, {"images": 5}, {"classes": ["a"]},
    {"classes": [*CLASSES, "a\n"]}, {"classes": [*CLASSES, "1"]}, {"energy_j": -1}, {"energy_j": 10**400}, {"images": "x"},
    {"gram": lambda a: a * 100}, {"right": lambda a: a * 100}, {"counts": lambda a: a * 100}, {"counts": bumped(0, 0.5)},
    {"gram": lambda a: a * np.nan}, {"gram": lambda a: a[:-1]}, {"gram": lambda a: a.astype(np.int32)},
    {"gram": bumped(0, 1e30)}, {"gram": bumped(1, 1e4)}, {"right": bumped((0, 0), 1e4)}, {"right": bumped((-1, 0), 50)},
    {"counts": bumped(0, -500)}, {"right": lambda a: -a}, {"counts": lambda a: a[::-1].copy()},
    {"privacy": {"epsilon": 1e15, "delta": 0.1}}, {"privacy": {"epsilon": 9.0, "delta": 0.1}, "right": lambda a: a * 1e9},
])  # fmt: skip
def test_what_are_no_sums_of_so_many_images_is_refused(tmp_path, change):
    path = write(tmp_path, np.arange(100))
    changed(path, **change)
    with pytest.raises(BadInputError) as told:
        read(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 9, b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_update_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(BadInputError):
        read(tmp_path / "a")


def test_large_files_pipes_and_missing_ones_are_refused(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2 << 30)
    os.mkfifo(tmp_path / "pipe")
    for name in ("large", "pipe", "missing", "."):
        with pytest.raises(BadInputError):
            read(tmp_path / name)


def test_an_update_is_signed_by_a_device_that_is_known(tmp_path):
    path = write(tmp_path, np.arange(100))
    for name in ("a1", "b1"):
        make_key(tmp_path / f"{name}.key", tmp_path / f"{name}.pub")
    keys = read_trusted_keys([tmp_path / "a1.pub"])
    with pytest.raises(BadInputError):
        read(path, keys=keys)
    content = path.read_bytes()
    write_update(path, content, read_private_key(tmp_path / "b1.key"))
    with pytest.raises(BadInputError):
        read(path, keys=keys)
    write_update(path, content, read_private_key(tmp_path / "a1.key"))
    assert read(path, keys=keys).signed
    path.write_bytes(write(tmp_path, np.arange(50), "other").read_bytes())  # swapped under its signature
    with pytest.raises(BadInputError):
        read(path, keys=keys)


# Merging


def test_one_round_is_central_training_whatever_classes_each_device_has(tmp_path):
    parts = shards(8, 0)
    merged = merge_updates(
        PACK, [read(write(tmp_path, rows, str(at))) for at, rows in enumerate(parts)], ENGINE, robust=False
    )
    whole = merge_updates(PACK, [read(write(tmp_path, np.concatenate(parts), "all"))], ENGINE, robust=False)
    np.testing.assert_allclose(head(merged)[0], head(whole)[0], atol=1e-4)
    np.testing.assert_allclose(head(merged)[1], head(whole)[1], atol=1e-4)
    assert merged.strength == whole.strength and len(merged.devices) == len(parts)


def accuracy(pack, features, labels):
    weight, bias = pack.linear_head.joined(pack.weights())
    return float(((features @ weight.T + bias).argmax(1) == labels).mean())


def test_the_fleet_learns_and_forgets_nothing(tmp_path):
    features, labels = field()
    test = load_digits("test")
    clean = features_of(PACK, test, ENGINE)
    parts = [rows[rows < 350] for rows in shards(6, 1)]
    found = [read(write(tmp_path, rows, str(at))) for at, rows in enumerate(parts) if len(rows) >= 20]
    merged = new_pack(PACK, merge_updates(PACK, found, ENGINE))
    before, after = (accuracy(pack, features[350:], labels[350:]) for pack in (PACK, merged))
    assert after > before + 0.1
    assert accuracy(merged, clean, test.labels) > accuracy(PACK, clean, test.labels) - 0.05
    merged.save(tmp_path / "new.edgepack")
    assert open_pack(tmp_path / "new.edgepack").manifest.model.classes == CLASSES


def test_a_poisoned_device_is_left_out_or_bounded(tmp_path):
    features, labels = field()
    parts = np.array_split(np.random.default_rng(0).permutation(350), 6)
    wrong = (labels[parts[0]] + 1) % 10
    found = [
        read(write(tmp_path, parts[0], "0", wrong)),
        *(read(write(tmp_path, rows, str(at))) for at, rows in enumerate(parts[1:], 1)),
    ]
    good = [read(write(tmp_path, rows, str(at))) for at, rows in enumerate(parts[1:], 1)]
    scores = {}
    for name, some in (("good", good), ("poisoned", found)):
        for robust in (True, False):
            merged = merge_updates(PACK, some, ENGINE, robust=robust)
            weight, bias = head(merged)
            logits = features[350:] @ weight.T + bias
            scores[name, robust] = float((logits.argmax(1) == labels[350:]).mean())
    assert scores["poisoned", True] >= scores["good", True] - 0.07
    assert scores["poisoned", True] >= scores["poisoned", False]


def test_a_device_with_very_many_images_does_not_outvote_all_others(tmp_path):
    few = [read(write(tmp_path, np.arange(at * 60, at * 60 + 60), str(at))) for at in range(4)]
    many = read(write(tmp_path, np.tile(np.arange(250, 350), 40), "many"))
    bounded, free = (merge_updates(PACK, [*few, many], ENGINE, robust=robust) for robust in (True, False))
    alone = merge_updates(PACK, few, ENGINE, robust=True)

    def distance(merged):
        own, other = head(merged)[0], head(alone)[0]
        return np.linalg.norm(own / np.linalg.norm(own) - other / np.linalg.norm(other))

    assert distance(bounded) < distance(free)


def test_noise_is_told_and_checked(tmp_path):
    rng = np.random.default_rng(0)
    found = read(write(tmp_path, np.arange(200), privacy=(8.0, 1e-5), rng=rng))
    assert found.privacy == {"epsilon": 8.0, "delta": 1e-5}
    assert np.isfinite(head(merge_updates(PACK, [found], ENGINE))[0]).all()


def test_noise_costs_what_devices_could_teach_but_not_what_the_server_knew(tmp_path):
    features, labels = field()
    test, rng = load_digits("test"), np.random.default_rng(0)
    clean = features_of(PACK, test, ENGINE)
    parts = np.array_split(np.random.default_rng(1).permutation(350), 4)
    for epsilon in (8.0, 0.5):
        found = [
            read(write(tmp_path, rows, str(at), privacy=(epsilon, 1e-5), rng=rng)) for at, rows in enumerate(parts)
        ]
        assert all(update.bytes < 40_000 and not update.sums.gram.any() for update in found)
        merged = new_pack(PACK, merge_updates(PACK, found, ENGINE))
        assert accuracy(merged, features[350:], labels[350:]) > accuracy(PACK, features[350:], labels[350:]) - 0.05
        assert accuracy(merged, clean, test.labels) > accuracy(PACK, clean, test.labels) - 0.05


def test_many_features_are_projected_the_same_everywhere(monkeypatch):
    monkeypatch.setattr(statistics, "COLUMNS", 64)
    one, other = projection_of(PACK), projection_of(builtin_pack())
    np.testing.assert_array_equal(one, other)
    assert one.shape == (PACK.head_features, 64)
    np.testing.assert_allclose((one**2).sum(1), 1)
    rows = np.random.default_rng(0).standard_normal((200, PACK.head_features))
    lengths = (rows**2).sum(1)
    assert np.median(np.abs(((rows @ one) ** 2).sum(1) / lengths - 1)) < 0.2


# Commands


def run(*arguments):
    return CliRunner().invoke(cli, ["fleet", *map(str, arguments)], catch_exceptions=True)


def test_commands_of_a_whole_round(tmp_path):
    pack = PACK.path
    make_key(tmp_path / "server.key", tmp_path / "server.pub")
    images = load_relit("field")
    for at in range(3):
        make_key(tmp_path / f"{at}.key", tmp_path / f"{at}.pub")
        write_folder(images.subset(np.arange(at * 60, at * 60 + 60)), tmp_path / f"images{at}")
        done = run("update", pack, "--data", tmp_path / f"images{at}", "--out", tmp_path / f"{at}.update", "--key",
                   tmp_path / f"{at}.key", "--threads", 1, "--json")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["images"] > 30
    keys = [word for at in range(3) for word in ("--devices", tmp_path / f"{at}.pub")]
    files = [tmp_path / f"{at}.update" for at in range(3)]
    shown = json.loads(run("inspect", pack, files[0], *keys, "--json").stdout)
    assert (
        shown["signed"]
        and sum(shown["counts"].values()) == shown["images"] > 30
        and shown["columns"] == PACK.head_features
    )
    again = tmp_path / "again.update"
    again.write_bytes(files[0].read_bytes())
    (tmp_path / "again.update.signatures.json").write_bytes((tmp_path / "0.update.signatures.json").read_bytes())
    (tmp_path / "bad.update").write_bytes(b"bad")
    out = tmp_path / "new.edgepack"
    done = run("merge", pack, *files, again, tmp_path / "bad.update", "--out", out, "--key", tmp_path / "server.key",
               "--min-devices", 3, *keys, "--json")  # fmt: skip
    told = json.loads(done.stdout)
    assert done.exit_code == 0 and len(told["devices"]) == 3 and len(told["refused"]) == 2
    assert told["energy_j"] is None or told["energy_j"] > 0
    open_pack(out, read_trusted_keys([tmp_path / "server.pub"]))
    few = run("merge", pack, files[0], "--out", tmp_path / "none.edgepack", "--min-devices", 2, *keys)
    assert isinstance(few.exception, BadInputError) and not (tmp_path / "none.edgepack").exists()
    other = run("merge", out, *files, "--out", tmp_path / "none.edgepack", *keys)  # updates of the round before
    assert isinstance(other.exception, BadInputError) and "another pack" in str(other.exception)
