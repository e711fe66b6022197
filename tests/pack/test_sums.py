"""The server's sums in a pack: written and read, small, and refused where they are of something else."""

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import load, save

from edge_sel.errors import PackError
from edge_sel.pack.manifest import Tap
from edge_sel.pack.reader import open_pack
from edge_sel.pack.sums import EXAMPLES, MOST_BYTES, MOST_ROWS, SUMS, make_sums, read_sums, write_sums
from edge_sel.sel.feature_sums import standard_of, standardised, summarise
from tests.pack.hostile import builtin_files, sealed, write_zip

CLASSES = 3


def features(count=120, width=10, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    return (rng.normal(size=(count, width)) + labels[:, None]).astype(np.float32), labels


def made(count=120, width=10, classes=CLASSES):
    values, labels = features(count, width)
    sums = make_sums(values, labels, classes, (width,), np.random.default_rng(0))
    assert sums is not None
    return sums


def test_what_is_read_is_what_was_written():
    sums = made()
    found = read_sums(write_sums(sums), 10, CLASSES)
    for mine, other in zip(
        (*sums.standard, *sums.prior, *sums.examples), (*found.standard, *found.prior, *found.examples), strict=True
    ):
        assert np.array_equal(mine, other) and np.asarray(mine).dtype == np.asarray(other).dtype


def test_they_are_the_sums_of_all_images_but_the_examples():
    values, labels = features()
    sums = made()
    standard = standard_of(values)
    rest = np.array([not (np.abs(sums.example_features() - row).max(1) < 1e-2).any() for row in values])
    assert 0 < (~rest).sum() == len(sums.examples.labels) <= EXAMPLES
    expected = summarise(standardised(values, standard)[rest], labels[rest], CLASSES, 100)
    rows = sums.prior.rows.astype(float)
    np.testing.assert_allclose(rows.T @ rows, expected.rows.T @ expected.rows, rtol=0.02, atol=0.02)


def test_they_are_small_however_wide_a_head_is():
    sums = made(width=6000)
    assert len(write_sums(sums)) < 1.5 * MOST_BYTES + EXAMPLES * 6000 * 2 and len(sums.prior.rows) < MOST_ROWS


def test_more_classes_than_rows_have_none():
    values, _ = features(400, 6000)
    assert make_sums(values, np.arange(400) % 200, 200, (6000,), np.random.default_rng(0)) is None


def test_a_class_with_few_images_gives_no_example():
    """The sums would lack them."""
    values, labels = features(13)
    labels[:] = np.where(np.arange(13) < 4, 0, 1)
    sums = make_sums(values, labels, CLASSES, (10,), np.random.default_rng(0))
    assert (
        sums is not None and not (sums.examples.labels == 0).any() and sums.prior.known.tolist() == [True, True, False]
    )


def test_classes_of_the_device_are_unknown_to_it():
    more = made().with_classes(5)
    assert more.prior.known.tolist() == [True] * 3 + [False] * 2
    assert more.prior.targets.shape[1] == 5 and not more.prior.targets[:, 3:].any()


def test_the_built_in_pack_has_some(digits_pack):
    sums = digits_pack.sums
    assert sums is not None and len(sums.standard.mean) == digits_pack.head_features
    weight, bias = digits_pack.linear_head.joined(digits_pack.weights())
    right = (sums.example_features() @ weight.T + bias).argmax(1) == sums.examples.labels
    assert right.mean() > 0.95, "features of its own images"


# Of a stranger


def changed(change):
    files, body = builtin_files()
    stored = load(files[SUMS])
    change(stored)
    return sealed({**files, SUMS: save(stored)}, body)


BAD = {
    "other features": lambda s: s.update(mean=s["mean"][:-1].copy()),
    "other rows": lambda s: s.update(rows=s["rows"][:, :-1].copy()),
    "other classes": lambda s: s.update(targets=s["targets"][:, :-1].copy()),
    "a label of no class": lambda s: s.update(labels=np.full_like(s["labels"], 10)),
    "a negative label": lambda s: s.update(labels=np.full_like(s["labels"], -1)),
    "labels that are no integers": lambda s: s.update(labels=s["labels"].astype(np.float32)),
    "no class": lambda s: s.update(known=np.zeros_like(s["known"])),
    "too many rows": lambda s: s.update(rows=np.repeat(s["rows"], 2, 0), targets=np.repeat(s["targets"], 2, 0)),
    "no number": lambda s: s["rows"].fill(np.nan),
    "an infinity": lambda s: s["scale"].fill(np.inf),
    "a tensor too many": lambda s: s.update(odd=np.zeros(3, np.float32)),
    "a tensor too few": lambda s: s.pop("known"),
    "another shape": lambda s: s.update(scale=s["scale"][None].copy()),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_sums_of_something_else_are_refused(change, tmp_path):
    with pytest.raises(PackError) as caught:
        open_pack(write_zip(tmp_path / "bad.edgepack", changed(change)))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    files, body = builtin_files()
    with pytest.raises(PackError):
        open_pack(write_zip(tmp_path / "bad.edgepack", sealed({**files, SUMS: b"nothing"}, body)))


def test_a_pack_without_them_opens(tmp_path):
    files, body = builtin_files()
    del files[SUMS], body["files"][SUMS]
    assert open_pack(write_zip(tmp_path / "old.edgepack", sealed(files, body))).sums is None


WRONG_TAPS = {
    "other widths": lambda taps: taps[0].update(width=taps[0]["width"] + 1),
    "no width": lambda taps: taps[0].update(width=0),
    "a name that cannot be printed": lambda taps: taps[0].update(name="a\nb"),
    "a missing one": lambda taps: taps.pop(),
    "another type": lambda taps: taps[0].update(mean="yes"),
}


@pytest.mark.parametrize("change", WRONG_TAPS.values(), ids=WRONG_TAPS)
def test_taps_that_the_head_does_not_read_are_refused(change, tmp_path):
    files, body = builtin_files()
    body = copy.deepcopy(body)
    change(body["model"]["taps"])
    with pytest.raises(PackError) as caught:
        open_pack(write_zip(tmp_path / "bad.edgepack", sealed(files, body)))
    assert "\n" not in str(caught.value) and json.dumps(str(caught.value))


def test_features_are_told_by_kind(digits_pack):
    model = digits_pack.manifest.model
    assert model.feature_groups(digits_pack.head_features) == (64, 64, 32, 32)
    assert sum(Tap("a", (2, 3), 5, mean=mean).features for mean in (True, False)) == 15
