import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel import embarrassment as emb


def batches(max_n=30, n_classes=4):
    """Logits and labels, with logits large enough to break a naive softmax."""

    def build(seed, n, scale):
        rng = np.random.default_rng(seed)
        return rng.normal(size=(n, n_classes)) * scale, rng.integers(0, n_classes, n)

    return st.builds(build, st.integers(0, 2**32 - 1), st.integers(1, max_n), st.sampled_from([0.1, 1.0, 30.0, 2000.0]))


def test_cross_entropy_is_minus_the_log_of_the_probability(xp):
    logits = xp.asarray(np.log([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    loss = emb.cross_entropy(logits, xp.asarray([0, 2]))
    assert np.asarray(loss) == pytest.approx([-math.log(0.7), -math.log(0.5)])


def test_temperature_divides_the_logits(xp):
    # softmax([3, 0] / 1.5) = softmax([2, 0])
    loss = emb.cross_entropy(xp.asarray([[3.0, 0.0]]), xp.asarray([0]), 1.5)
    assert float(loss[0]) == pytest.approx(math.log(1 + math.exp(-2)))


def test_huge_logits_stay_finite(xp):
    logits = xp.asarray([[1e4, -1e4], [1e4, -1e4]], dtype=xp.float32)
    assert np.asarray(emb.cross_entropy(logits, xp.asarray([0, 1]))) == pytest.approx([0.0, 2e4])
    assert np.asarray(emb.entropy(logits)) == pytest.approx([0.0, 0.0])


def test_an_impossible_class_has_no_entropy(xp):
    assert float(emb.entropy(xp.asarray([[0.0, 0.0, -math.inf]]))[0]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_does_not_exist_is_loud(xp, label):
    assert np.isposinf(np.asarray(emb.cross_entropy(xp.asarray([[0.0, 1.0]]), xp.asarray([label]))))


def test_half_precision_is_computed_in_float32(xp):
    loss = emb.cross_entropy(xp.asarray([[0.0, 12.0]], dtype=xp.float16), xp.asarray([1]))
    assert loss.dtype == xp.float32
    assert float(loss[0]) == pytest.approx(math.log1p(math.exp(-12)), rel=0.02)


def test_narrow_labels_with_many_classes(xp):
    logits = np.zeros((1, 300), dtype=np.float32)
    logits[0, 20 + 256] = 5  # which a wrapped uint8 would take for class 20
    loss = emb.cross_entropy(xp.asarray(logits), xp.asarray(np.array([20], dtype=np.uint8)))
    assert float(loss[0]) == pytest.approx(math.log(299 + math.exp(5)), rel=1e-5)


def test_class_embarrassment_is_the_mean_softened_loss_of_each_class(xp):
    # Two of class 0 with losses log 2 and log(1 + e^-2), none of class 1, one of class 2 far off.
    logits = xp.asarray([[0.0, 0.0, -1e9], [3.0, 0.0, -1e9], [15.0, 0.0, 0.0]])
    expected = [
        (math.log(2) + math.log(1 + math.exp(-2))) / 2,
        math.nan,
        10 + math.log(1 + 2 * math.exp(-10)),
    ]
    e = emb.class_embarrassment(logits, xp.asarray([0, 0, 2]), 3)
    assert np.asarray(e) == pytest.approx(expected, nan_ok=True)


def test_one_infinite_loss_spoils_only_its_class(xp):
    e = emb.class_embarrassment(xp.asarray([[0.0, 0.0], [0.0, -math.inf]]), xp.asarray([0, 1]), 2)
    assert np.asarray(e) == pytest.approx([math.log(2), math.inf])


def test_confidence_falls_from_one_to_zero_at_one_nat(xp):
    c = emb.confidence(xp.asarray([0.0, 0.25, 1.0, 2.3, math.nan]))
    assert np.asarray(c) == pytest.approx([1.0, 0.75, 0.0, 0.0, math.nan], nan_ok=True)


def test_an_untrained_model_is_clueless(xp):
    e = emb.class_embarrassment(xp.zeros((10, 10)), xp.arange(10), 10)
    assert np.asarray(e) == pytest.approx(np.full(10, math.log(10)))
    assert np.asarray(emb.confidence(e)).max() == 0


@given(batch=batches())
def test_losses_are_not_negative_and_entropy_is_at_most_that_of_chance(xp, batch):
    logits, labels = batch
    assert np.asarray(emb.cross_entropy(xp.asarray(logits), xp.asarray(labels))).min() >= 0
    h = np.asarray(emb.entropy(xp.asarray(logits)))
    assert h.min() >= -1e-9
    assert h.max() <= math.log(4) + 1e-9


@given(batch=batches(), seed=st.integers(0, 999))
def test_the_order_of_samples_does_not_matter(xp, batch, seed):
    logits, labels = batch
    p = np.random.default_rng(seed).permutation(len(labels))
    loss = np.asarray(emb.cross_entropy(xp.asarray(logits), xp.asarray(labels)))
    assert np.array_equal(np.asarray(emb.cross_entropy(xp.asarray(logits[p]), xp.asarray(labels[p]))), loss[p])
    before = emb.class_embarrassment(xp.asarray(logits), xp.asarray(labels), 4)
    after = emb.class_embarrassment(xp.asarray(logits[p]), xp.asarray(labels[p]), 4)
    assert np.asarray(after) == pytest.approx(np.asarray(before), nan_ok=True)


@given(batch=batches(), shift=st.floats(-100, 100))
def test_adding_a_constant_to_the_logits_changes_nothing(xp, batch, shift):
    logits, labels = batch
    there, here = (emb.cross_entropy(xp.asarray(x), xp.asarray(labels)) for x in (logits + shift, logits))
    assert np.asarray(there) == pytest.approx(np.asarray(here), abs=1e-6)


@given(batch=batches(), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_streaming_equals_all_at_once(xp, batch, cuts):
    logits, labels = batch
    sums = emb.init_sums(4, xp)
    for part in np.split(np.arange(len(labels)), sorted(min(c, len(labels)) for c in cuts)):
        if len(part):
            sums = emb.add_batch(sums, xp.asarray(logits[part]), xp.asarray(labels[part]))
    whole = emb.class_embarrassment(xp.asarray(logits), xp.asarray(labels), 4)
    assert np.asarray(emb.means(sums)) == pytest.approx(np.asarray(whole), nan_ok=True)


def test_adding_a_batch_leaves_the_old_sums_alone(xp):
    sums = emb.init_sums(2, xp)
    emb.add_batch(sums, xp.zeros((3, 2)), xp.asarray([0, 1, 1]))
    assert np.asarray(sums.count).tolist() == [0, 0]


@given(present=st.sets(st.integers(0, 3), min_size=1), seed=st.integers(0, 99))
def test_absent_classes_keep_their_value_bit_for_bit(xp, present, seed):
    rng = np.random.default_rng(seed)
    labels = np.array(sorted(present) * 2, dtype=np.int64)
    previous = rng.normal(size=4)
    logits = xp.asarray(rng.normal(size=(len(labels), 4)))
    sums = emb.add_batch(emb.init_sums(4, xp), logits, xp.asarray(labels))
    e = np.asarray(emb.means(sums, previous=xp.asarray(previous)))
    assert [c for c in range(4) if e[c] == previous[c]] == [c for c in range(4) if c not in present]
    assert np.array_equal(np.isnan(np.asarray(emb.means(sums))), [c not in present for c in range(4)])
