"""The head in closed form: what leave-one-out says is what leaving out gives; what the server knew; hard cases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.sel import ridge
from edge_sel.sel.feature_sums import Examples, Standard, standard_of, standardised, summarise
from edge_sel.sel.ridge import fit_head

CLASSES = 4


def samples(count, width, seed=0, noise=1.0, shift=0.0):
    """Features of normal classes, labels, and a head that knows less than the features tell."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    centres = np.random.default_rng(7).normal(size=(CLASSES, width))
    features = (centres[labels] + noise * rng.normal(size=(count, width)) + 3 + shift).astype(np.float32)
    weight = (0.3 * centres + 0.5 * rng.normal(size=(CLASSES, width))).astype(np.float32)
    return features, labels, (weight, rng.normal(size=CLASSES).astype(np.float32))


def losses_of(logits, labels):
    shifted = logits - logits.max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]


def logits_of(fit, features):
    return features.astype(float) @ fit.weight.T.astype(float) + fit.bias


def accuracy(fit, features, labels):
    return (logits_of(fit, features).argmax(1) == labels).mean()


def plain(width):
    return Standard(np.zeros(width), np.ones(width))


def direct(features, labels, strength, prior=None, weight=0.0):
    """Coefficients [F + 1, C] by the formula, without any decomposition; masses as the docstring tells them."""
    rows = np.concatenate([features.astype(float), 3 * np.ones((len(features), 1))], 1)
    targets, counts = np.eye(CLASSES)[labels], np.bincount(labels, minlength=CLASSES)
    mass = (counts > 0).sum() / len(labels)
    masses = np.full(len(labels), mass)
    gram, right = strength * np.eye(rows.shape[1]), 0
    if prior is not None:
        weight += (prior.known & (counts == 0)).sum() / prior.known.sum()
        more = np.where(prior.known | (counts == 0), 1, (mass * counts + weight) / np.maximum(mass * counts, 1e-9))
        masses = mass * more[labels]
        gram = gram + weight * prior.rows.T @ prior.rows
        right = weight * prior.rows.T @ prior.targets
    gram, right = gram + rows.T @ (masses[:, None] * rows), right + rows.T @ (masses[:, None] * targets)
    return np.linalg.solve(gram, right), rows


def unit(features, labels):
    return (features.astype(float) ** 2).sum() * len(np.unique(labels)) / len(labels)


# Leaving out


@given(st.integers(0, 50), st.sampled_from([(24, 6), (12, 30)]), st.sampled_from([0.001, 0.1]), st.booleans())
def test_leave_one_out_is_what_leaving_out_gives(seed, shape, strength, with_prior):
    """In both directions of the decomposition, with and without a prior; the masses are those of the whole set."""
    features, labels, _ = samples(*shape, seed)
    prior = summarise(samples(40, shape[1], 99)[0].astype(float), np.arange(40) % CLASSES, CLASSES, 1000)
    prior = prior if with_prior else None
    found = fit_head(
        features, labels, CLASSES, standard=plain(shape[1]), prior=prior, ridges=(strength,), priors=(1.0,)
    )
    left_out = []
    for out in range(len(labels)):
        rest = np.arange(len(labels)) != out
        rows = np.concatenate([features.astype(float), 3 * np.ones((len(features), 1))], 1)
        mass = CLASSES / len(labels)
        gram = strength * unit(features, labels) * np.eye(rows.shape[1]) + mass * rows[rest].T @ rows[rest]
        right = mass * rows[rest].T @ np.eye(CLASSES)[labels[rest]]
        if prior is not None:
            gram, right = gram + prior.rows.T @ prior.rows, right + prior.rows.T @ prior.targets
        left_out.append(rows[out] @ np.linalg.solve(gram, right))
    scale = np.linalg.norm(found.left_out) / np.linalg.norm(left_out)
    np.testing.assert_allclose(found.left_out, scale * np.array(left_out), rtol=1e-5, atol=1e-6 * scale)
    assert losses_of(found.left_out, labels).mean() == pytest.approx(found.loss)


@given(st.integers(0, 50), st.sampled_from([(24, 6), (12, 30), (2, 16)]))
def test_the_head_that_is_judged_is_the_head_that_is_given(seed, shape):
    """Standard, temperature and intercept are part of it."""
    features, labels, _ = samples(*shape, seed)
    standard = standard_of(features)
    found = fit_head(features, labels, CLASSES, standard=standard, ridges=(0.01,))
    values = standardised(features, standard)
    coefficients, rows = direct(values, labels, 0.01 * unit(values, labels))
    made = rows @ coefficients
    scale = np.linalg.norm(logits_of(found, features)) / np.linalg.norm(made)
    np.testing.assert_allclose(logits_of(found, features), scale * made, rtol=1e-3, atol=1e-3 * scale)


@given(st.integers(0, 30))
def test_the_temperature_is_the_best_one(seed):
    """By labels of which each is wrong in one case of N + 2, any class as likely."""
    features, labels, _ = samples(40, 6, seed, noise=2.0)
    found, doubt = fit_head(features, labels, CLASSES), 1 / 42

    def loss(logits):
        anything = np.mean([losses_of(logits, np.full(40, label)).mean() for label in range(CLASSES)])
        return (1 - doubt) * losses_of(logits, labels).mean() + doubt * anything

    around = [loss(factor * found.left_out) for factor in (0.97, 1.0, 1.03)]
    assert min(around) == around[1]


def test_who_has_every_sample_right_is_no_surer_than_so_many_samples_allow():
    """Classes far apart."""
    rng = np.random.default_rng(0)
    for count in (12, 120):
        labels = np.arange(count) % CLASSES
        features = (20 * np.eye(8)[labels] + rng.normal(size=(count, 8))).astype(np.float32)
        found = fit_head(features, labels, CLASSES)
        sure = np.exp(-losses_of(found.left_out, labels))
        assert (found.left_out.argmax(1) == labels).all() and abs((1 - sure.mean()) * (count + 2) - 0.75) < 0.5, sure


# What it learns


def test_a_poor_head_gets_better_on_other_samples_and_says_how_good_it_is():
    features, labels, old = samples(600, 16, noise=2.0)
    fit = fit_head(features[:300], labels[:300], CLASSES, old=old)
    before = losses_of(features[300:].astype(float) @ old[0].T + old[1], labels[300:]).mean()
    after = losses_of(logits_of(fit, features[300:]), labels[300:]).mean()
    assert after < 0.8 * before and after == pytest.approx(fit.loss, rel=0.15) and fit.changed


def test_the_old_head_stays_where_nothing_does_better():
    """With a few samples of a model that knows more than these can tell."""
    features, labels, _ = samples(4000, 16, noise=1.0)
    good = fit_head(features[:3900], labels[:3900], CLASSES)
    fit = fit_head(features[3900:3908], labels[3900:3908], CLASSES, old=(good.weight, good.bias), priors=(0.0,))
    assert not fit.changed and accuracy(fit, features, labels) == accuracy(good, features, labels)


def test_labels_of_chance_are_not_believed():
    features, labels, old = samples(200, 16)
    fit = fit_head(features, np.random.default_rng(0).permutation(labels), CLASSES, old=old)
    assert fit.loss > 0.97 * np.log(CLASSES)


def test_it_is_as_good_with_more_samples_than_choices_are_made_by(monkeypatch):
    features, labels, _ = samples(1200, 16)
    whole = fit_head(features[:600], labels[:600], CLASSES)
    monkeypatch.setattr(ridge, "CHOSEN_BY", 100)
    few = fit_head(features[:600], labels[:600], CLASSES)
    assert len(few.left_out) == 600
    assert accuracy(few, features[600:], labels[600:]) > accuracy(whole, features[600:], labels[600:]) - 0.01


def test_a_layer_that_tells_nothing_is_not_used_and_one_that_does_is():
    features, labels, _ = samples(80, 8, noise=0.8)
    rng = np.random.default_rng(0)
    chance = np.concatenate([features, 5 * rng.normal(size=(80, 400))], 1).astype(np.float32)
    assert fit_head(chance, labels, CLASSES, groups=(8, 400), shallow=8).features == 8
    noisy = np.concatenate([rng.normal(size=(80, 8)), features], 1).astype(np.float32)
    assert fit_head(noisy, labels, CLASSES, groups=(8, 8), shallow=8).features == 16


# The server


def test_sums_of_two_places_are_those_of_both():
    """Ridge regression of the device's samples and the server's rows is that of all samples together."""
    theirs, their_labels, _ = samples(60, 6, 1)
    ours, labels, _ = samples(40, 6, 2, shift=1.0)
    prior = summarise(theirs.astype(float), their_labels, CLASSES, 1000)
    found = fit_head(ours, labels, CLASSES, standard=plain(6), prior=prior, ridges=(1e-3,), priors=(1.0,))
    both, both_labels = np.concatenate([theirs, ours]), np.concatenate([their_labels, labels])
    rows = np.concatenate([both.astype(float), 3 * np.ones((100, 1))], 1)
    masses = np.repeat([CLASSES / 60, CLASSES / 40], [60, 40])[:, None]
    gram = rows.T @ (masses * rows) + 1e-3 * unit(ours, labels) * np.eye(7)
    wanted = rows @ np.linalg.solve(gram, rows.T @ (masses * np.eye(CLASSES)[both_labels]))
    made = logits_of(found, both)
    np.testing.assert_allclose(made, np.linalg.norm(made) / np.linalg.norm(wanted) * wanted, rtol=1e-3, atol=1e-3)


def test_few_rows_make_nearly_the_same_sums():
    features, labels, _ = samples(300, 40)
    values = standardised(features, standard_of(features))
    whole, few = (summarise(values, labels, CLASSES, rank) for rank in (1000, 20))
    rows = np.concatenate([values, 3 * np.ones((300, 1))], 1) * np.sqrt(CLASSES / 300)
    np.testing.assert_allclose(whole.rows.T @ whole.rows, rows.T @ rows, atol=1e-9)
    targets = np.eye(CLASSES)[labels] * np.sqrt(CLASSES / 300)
    np.testing.assert_allclose(whole.rows.T @ whole.targets, rows.T @ targets, atol=1e-9)
    assert len(few.rows) == 20 and len(whole.rows) == 41
    assert np.linalg.norm(few.rows) ** 2 > 0.9 * np.linalg.norm(whole.rows) ** 2


def forgetting(with_sums, seed=0, of=(0, 1, 2, 3)):
    """Accuracy on the device's samples and on the server's, after learning the former."""
    theirs, their_labels, _ = samples(400, 20, 3, noise=0.7)
    ours, labels, _ = samples(400, 20, 4, noise=0.7, shift=np.random.default_rng(9).normal(size=20))
    ours[labels == 0] += 1.5 * np.random.default_rng(8).normal(size=20).astype(np.float32)
    standard = standard_of(theirs)
    values = standardised(theirs, standard)
    prior = summarise(values[:300], their_labels[:300], CLASSES, 16)
    learnt = np.flatnonzero(np.isin(labels[:200], of))[seed : seed + 24]
    given = {"prior": prior, "examples": Examples(values[300:340], their_labels[300:340])} if with_sums else {}
    fit = fit_head(ours[learnt], labels[learnt], CLASSES, standard=standard, **given)
    return accuracy(fit, ours[200:], labels[200:]), accuracy(fit, theirs, their_labels), fit


def test_with_the_servers_sums_nothing_is_forgotten_and_more_is_learnt():
    (ours, theirs, _), (alone, forgot, _) = forgetting(True), forgetting(False)
    assert theirs > forgot + 0.02 and theirs > 0.97
    assert ours >= alone


def test_a_class_that_the_device_has_not_is_still_known():
    """Of all that the device sees, nothing is of the other classes, and leaving out says nothing of them."""
    *_, fit = forgetting(True, of=(0, 1))
    theirs, labels, _ = samples(400, 20, 3, noise=0.7)
    assert accuracy(fit, theirs[labels > 1], labels[labels > 1]) > 0.9
    *_, alone = forgetting(False, of=(0, 1))
    assert accuracy(alone, theirs[labels > 1], labels[labels > 1]) < 0.1


@pytest.mark.parametrize("count", [5, 10])
def test_a_new_class_has_as_much_weight_as_an_old_one(count):
    """However few samples there are."""
    theirs, labels, _ = samples(600, 20, 3, noise=0.8)
    old = labels != 3
    standard = standard_of(theirs[old])
    values = standardised(theirs, standard)
    known = np.flatnonzero(old)
    prior = summarise(values[known[:300]], labels[known[:300]], CLASSES, 16)
    examples = Examples(values[known[300:330]], labels[known[300:330]])
    learnt = np.flatnonzero(~old)[:count]
    fit = fit_head(theirs[learnt], labels[learnt], CLASSES, standard=standard, prior=prior, examples=examples)
    assert not prior.known[3]
    assert accuracy(fit, theirs[~old], labels[~old]) > 0.85 and accuracy(fit, theirs[old], labels[old]) > 0.9


def test_what_the_old_head_says_is_a_prior_where_there_are_no_sums():
    """A good head and few samples: the best is between."""
    features, labels, _ = samples(4000, 16, noise=1.5)
    good = fit_head(features[:300], labels[:300], CLASSES)
    fit = fit_head(features[3900:3940], labels[3900:3940], CLASSES, old=(good.weight, good.bias))
    alone = fit_head(features[3900:3940], labels[3900:3940], CLASSES)
    rest = slice(300, 3900)
    assert accuracy(fit, features[rest], labels[rest]) > accuracy(alone, features[rest], labels[rest])


# Hard cases


@pytest.mark.parametrize("count", [2, 3])
def test_hardly_any_samples(count):
    features, labels, old = samples(count, 16)
    fit = fit_head(features, labels, CLASSES, old=old)
    assert np.isfinite(fit.weight).all() and fit.weight.dtype == np.float32 and np.isfinite(fit.left_out).all()


def test_one_class_alone_keeps_the_others():
    features, labels, old = samples(80, 16, noise=0.5)
    one = labels == 2
    fit = fit_head(features[one], labels[one], CLASSES, old=old)
    assert np.isfinite(fit.weight).all() and accuracy(fit, features[one], labels[one]) == 1


def test_features_that_are_all_the_same_tell_nothing():
    features, labels, old = samples(20, 6)
    fit = fit_head(np.ones_like(features), labels, CLASSES, old=old)
    assert np.isfinite(fit.weight).all() and np.isfinite(fit.bias).all()
    assert fit.loss == pytest.approx(np.log(CLASSES), rel=0.1)


def test_only_the_class_shares_have_changed():
    """Then the bias learns it."""
    features, _, _ = samples(400, 16, noise=0.5)
    constant = np.zeros_like(features)
    rare = np.select([np.arange(400) % 20 == 0, np.arange(400) % 80 == 1, np.arange(400) % 80 == 2], [1, 2, 3])
    fit = fit_head(constant, rare, CLASSES)
    assert fit.bias[0] > fit.bias[1] > max(fit.bias[2:])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_left_out(wrong):
    """As where one layer overflows."""
    features, labels, old = samples(80, 12)
    spoilt = features.copy()
    spoilt[3, 8:] = wrong
    fit = fit_head(spoilt, labels, CLASSES, old=old, groups=(8, 4), shallow=8, priors=(0.0,))
    assert np.isfinite(fit.weight).all() and not fit.weight[:, 8:].any()
    clean = np.where(np.isfinite(spoilt), spoilt, 0)
    assert (
        accuracy(fit, clean, labels)
        >= accuracy(fit_head(features[:, :8], labels, CLASSES), features[:, :8], labels) - 0.02
    )


def test_more_features_than_samples_and_more_samples_than_features_agree():
    """Both directions of the solution."""
    features, labels, _ = samples(20, 19)
    wide = fit_head(features, labels, CLASSES, ridges=(0.01,))
    data = fit_head(np.concatenate([features, np.zeros((20, 5), np.float32)], 1), labels, CLASSES, ridges=(0.01,))
    made, other = logits_of(wide, features), logits_of(data, np.pad(features, ((0, 0), (0, 5))))
    assert (made.argmax(1) == other.argmax(1)).all()


@pytest.mark.parametrize("seed", range(8))
def test_an_old_head_of_no_use_costs_the_others_nothing(seed):
    """Few samples that are easy to tell apart: what is a little better by two factors counted as much worse by one."""
    features, labels, (weight, bias) = samples(8, 30, seed, noise=0.3)
    old = (0.1 * weight, bias)
    data = ridge._Data(ridge._Given(features, labels, CLASSES, standard_of(features), None, None, old, None, None))
    for ridge_ in ridge.RIDGES:
        [alone], [beside] = ([*data.candidates(30, 0.0, [ridge_])] for data._kept in (None, data._old_logits()[0]))
        assert beside.loss < 1.01 * alone.loss + 1e-4


@pytest.mark.parametrize("with_old", [False, True])
def test_a_fit_like_another_is_that_fit_without_the_search(with_old):
    features, labels, old = samples(90, 30, noise=2.0)
    known = {"old": old} if with_old else {}
    first = fit_head(features[:80], labels[:80], CLASSES, **known)
    again = fit_head(features[:80], labels[:80], CLASSES, **known, like=first)
    np.testing.assert_allclose(again.weight, first.weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(again.left_out, first.left_out, rtol=1e-7, atol=1e-9)
    more = fit_head(features, labels, CLASSES, **known, like=first)
    assert (more.ridge, more.prior, more.scale, more.kept) == (first.ridge, first.prior, first.scale, first.kept)
    whole = fit_head(features, labels, CLASSES, **known)
    assert abs(more.loss - whole.loss) < 0.1


def test_an_old_head_that_stayed_stays_in_a_fit_like_it():
    features, labels, _ = samples(40, 16)
    good = fit_head(*samples(4000, 16, seed=5)[:2], CLASSES)
    chance = np.random.default_rng(0).permutation(labels)
    first = fit_head(features, chance, CLASSES, old=(good.weight * 0, good.bias * 0 + 1))
    again = fit_head(features, chance, CLASSES, old=(good.weight * 0, good.bias * 0 + 1), like=first)
    assert again.changed == first.changed
    np.testing.assert_allclose(again.weight, first.weight, atol=1e-6)


def test_what_is_added_is_the_addend_and_not_the_old_head():
    """A good head is added where few samples tell little; what stays is the old one."""
    good = fit_head(*samples(400, 16, seed=5, noise=2.0)[:2], CLASSES)
    features, labels, old = samples(16, 16, seed=6, noise=2.0)
    rest, rest_labels, _ = samples(2000, 16, seed=7, noise=2.0)
    known = standard_of(features)
    prior = summarise(standardised(rest[:200], known), rest_labels[:200], CLASSES, 4)  # a poor one
    fit = fit_head(features, labels, CLASSES, old=old, addend=(good.weight, good.bias), standard=known, prior=prior)
    alone = fit_head(features, labels, CLASSES, old=old, standard=known, prior=prior)
    assert fit.changed and fit.kept > 0
    assert accuracy(fit, rest, rest_labels) > accuracy(alone, rest, rest_labels)
    fitted = fit.left_out - fit.kept * (features @ good.weight.T + good.bias)
    again = fit_head(features, labels, CLASSES, standard=known, prior=prior, ridges=(fit.ridge,), priors=(fit.prior,))
    ratio = fitted[np.abs(again.left_out) > 0.1] / again.left_out[np.abs(again.left_out) > 0.1]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-4)


def test_samples_that_the_old_head_has_learnt_are_told_as_it_would_say_without_them():
    """It knows them by heart; nothing else is known, so what it would say without them is no better than chance."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 60)).astype(np.float32), rng.integers(0, CLASSES, 40)
    by_heart = fit_head(features, labels, CLASSES, ridges=(1e-5,))
    weight, bias = 20 * by_heart.weight, 20 * by_heart.bias
    trusting = fit_head(features, labels, CLASSES, old=(weight, bias))
    fair = fit_head(features, labels, CLASSES, old=(weight, bias), old_said=by_heart.left_out)
    assert trusting.loss < 0.7 < 1.2 < fair.loss
