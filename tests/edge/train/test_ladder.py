"""What ``--plan auto`` decides, from histories made by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sel.edge.train.ladder import BODY, AutoLadder, PlannedStage, auto_ladder
from tests.edge.sessions import pack
from tests.edge.train.histories import (
    BEFORE,
    BN,
    CLEAN,
    CONFIG,
    HEAD,
    LADDER,
    LOWER,
    MUCH,
    NEW,
    NO_GOOD,
    PLANS,
    UNKNOWN,
    decide,
    made,
    ran,
)

# The beginning


@pytest.mark.parametrize("ladder", [LADDER, NEW, made("head"), made("full"), made(clean_e=None)])
def test_statistics_come_first(ladder):
    stage, why = decide(ladder=ladder)
    assert stage == BN and "statistics" in why


@pytest.mark.parametrize("bn", [{}, {"bn": replace(PLANS["bn"], buffers=())}], ids=["no bn", "nothing in it"])
def test_without_statistics_it_begins_with_the_head(bn):
    """Nothing tells what has changed, and it is the cheapest; without it, with the body."""
    rest = {name: info for name, info in PLANS.items() if name not in ("bn", "head")}
    stage, why = decide(ladder=AutoLadder({"head": PLANS["head"], **bn, **rest}, CLEAN, new_classes=False))
    assert stage == HEAD and "no statistics" in why
    assert decide(ladder=AutoLadder(bn | rest, CLEAN, new_classes=False))[0] == UNKNOWN


def test_a_pack_of_no_plan_that_it_could_use():
    for ladder in (made(*PLANS), made("bn", "head", *BODY)):
        assert decide(ladder=ladder) == (None, "the pack has no further plan")


# Good enough


@pytest.mark.parametrize("plan", ["bn", "head", "full"])
@pytest.mark.parametrize("e", [0.0, 0.5 * CLEAN, CLEAN])
def test_no_more_embarrassed_than_on_the_servers_images_is_enough(plan, e):
    """After any training stage, new classes or not."""
    stage, why = decide((plan, BEFORE, (LOWER, e)))
    assert stage is None and "on the server's images" in why
    assert decide((plan, BEFORE, (LOWER, e)), ladder=NEW) == (None, why)


@pytest.mark.parametrize("plan", ["bn", "head", "full"])
def test_a_little_more_is_not_worth_an_epoch_of_the_body(plan):
    assert decide((plan, BEFORE, (LOWER, CLEAN + 0.4 * CONFIG.e_per_epoch)))[0] is None
    assert decide((plan, BEFORE, (LOWER, CLEAN + 0.6 * CONFIG.e_per_epoch)))[0] == PlannedStage("full", 1)
    new, _ = decide((plan, BEFORE, (LOWER, CLEAN + 0.4 * CONFIG.e_per_epoch)), ladder=NEW)
    assert new == (HEAD if plan == "bn" else None), "the head is cheaper"


@pytest.mark.parametrize("plan", ["bn", "head"])
@pytest.mark.parametrize("loss", NO_GOOD)
def test_a_training_stage_that_was_undone_is_judged_by_what_it_began_with(plan, loss):
    """Its own embarrassment is nobody's any more, however small or large."""
    told = "on the server's images"
    assert told not in decide((plan, BEFORE, (loss, 0.1 * CLEAN)))[1]
    assert told in decide((plan, (BEFORE[0], CLEAN), (loss, 99.0)))[1]
    assert decide(("bn", BEFORE, (loss, 99.0)), ladder=made("head"))[0] == PlannedStage("full", 2)


def test_a_pack_that_does_not_know_its_embarrassment():
    for plan in ("bn", "head"):
        assert decide((plan, BEFORE, (LOWER, 0.0)), ladder=made(clean_e=None))[0] == UNKNOWN


def of_calibration(*embarrassment, classes=10):
    calibration = replace(pack().manifest.calibration, embarrassment=embarrassment)
    return auto_ladder(pack().with_manifest(replace(pack().manifest, calibration=calibration)), classes)


def test_the_servers_embarrassment_is_the_mean_over_its_known_classes():
    two = of_calibration(0.2, None, 0.6)
    assert decide(("bn", BEFORE, (LOWER, 0.399)), ladder=two)[1].endswith("images by 0.400")
    assert decide(("bn", BEFORE, (LOWER, 0.4 + 2 * CONFIG.e_per_epoch)), ladder=two)[0] == PlannedStage("full", 2)
    assert decide(("bn", BEFORE, (LOWER, 0.0)), ladder=of_calibration(None, None))[0] == UNKNOWN


# After the statistics


@pytest.mark.parametrize("before", [BEFORE, (None, None)], ids=["finite", "diverged"])
def test_statistics_that_helped_are_followed_by_the_body(before):
    stage, why = decide(("bn", before, (LOWER, MUCH)))
    assert stage == PlannedStage("full", 2) and "more than on the server" in why


@pytest.mark.parametrize("loss", NO_GOOD)
def test_statistics_that_did_no_good_are_followed_by_the_head(loss):
    stage, why = decide(("bn", BEFORE, (loss, MUCH)))
    assert stage == HEAD and "no good" in why
    assert decide(("bn", BEFORE, (loss, MUCH)), ladder=made("head"))[0] == PlannedStage("full", 2)


@pytest.mark.parametrize("loss", [BEFORE[0] - 1, *NO_GOOD])
def test_classes_of_its_own_need_the_head(loss):
    stage, why = decide(("bn", BEFORE, (loss, MUCH)), ladder=NEW)
    assert stage == HEAD and "classes of its own" in why


@pytest.mark.parametrize(("more", "plan"), [(-1, "full"), (0, "full"), (1, "head"), (5, "head")])
def test_classes_are_new_beyond_the_packs(more, plan):
    ladder = of_calibration(CLEAN, classes=len(pack().manifest.model.classes) + more)
    assert decide(("bn", BEFORE, (LOWER, MUCH)), ladder=ladder)[0].plan == plan


# The body


def test_the_body_follows_the_head():
    """Whether that helped or not; only its last epoch counts. New classes get an epoch more."""
    good, bad = ((9.0, 99.0), (99.0, 99.0), (LOWER, MUCH)), [(BEFORE, (LOWER, 0.0), (loss, 99.0)) for loss in NO_GOOD]
    for ladder, epochs in ((LADDER, 2), (NEW, min(3, CONFIG.most_epochs))):
        assert {decide(("head", *way), ladder=ladder)[0] for way in (good, *bad)} == {PlannedStage("full", epochs)}


def test_the_body_is_the_first_of_its_plans_that_the_pack_has():
    assert BODY[0] == "full" and "head" not in BODY and set(BODY) < PLANS.keys()
    for left, plan in enumerate(BODY):
        assert decide(("bn", BEFORE, (LOWER, MUCH)), ladder=made(*BODY[:left]))[0] == PlannedStage(plan, 2)
    for after in ("bn", "head"):
        assert decide((after, BEFORE, (LOWER, MUCH)), ladder=made(*BODY)) == (None, "the pack has no further plan")


@pytest.mark.parametrize("part", [-0.4, 0.0, 0.4])
def test_epochs_follow_embarrassment(part):
    for worth in (*range(1, CONFIG.most_epochs + 1), CONFIG.most_epochs + 1, 10 * CONFIG.most_epochs):
        stage, _ = decide(("bn", BEFORE, (LOWER, CLEAN + (worth + part) * CONFIG.e_per_epoch)))
        assert stage == PlannedStage("full", min(worth, CONFIG.most_epochs))


@given(st.floats(0, 3) | st.floats(0, 1e3), st.floats(0, 3))
def test_more_embarrassment_never_gets_fewer_epochs(one, other):
    """After any training stage; to end is to train for none."""
    for plan, ladder in (("bn", LADDER), ("head", LADDER), ("full", LADDER), ("head", NEW), ("full", NEW)):
        ends = [(BEFORE[0] - 2 * CONFIG.leave_below, e) for e in sorted((one, other))]
        stages = [decide((plan, BEFORE, end), ladder=ladder)[0] for end in ends]
        fewer, more = (stage.epochs if stage else 0 for stage in stages)
        assert fewer <= more <= CONFIG.most_epochs


# After the body


@pytest.mark.parametrize("epochs", [1, 2, CONFIG.most_epochs])
@pytest.mark.parametrize(("gain", "goes_on"), [(1.1, True), (0.9, False), (0.0, False), (-1.0, False)])
def test_it_goes_on_while_the_validation_set_gains_per_epoch(epochs, gain, goes_on):
    """Only where the training stage began and ended matters, not the way."""
    way = [(5.0, 99.0)] * (epochs - 1)
    stage, why = decide(
        ("bn", BEFORE, BEFORE), ("full", BEFORE, *way, (BEFORE[0] - gain * CONFIG.leave_below * epochs, MUCH))
    )
    assert stage == (PlannedStage("full", 2) if goes_on else None)
    assert "nats per epoch" in why and "enough" not in why


@pytest.mark.parametrize("first", [BEFORE[0] + 50, BEFORE[0] - 1])
def test_a_training_stage_begins_at_the_best_loss_before_it(first):
    """Neither one that was undone nor one that went well makes the next one look good."""
    best = (min(first, BEFORE[0]), MUCH)
    stage, why = decide(
        ("bn", BEFORE, BEFORE),
        ("full", BEFORE, (first, MUCH)),
        ("full", best, (best[0] - CONFIG.leave_below / 2, MUCH)),
    )
    assert stage is None and "nats per epoch" in why and "enough" not in why


@pytest.mark.parametrize(("best", "end"), [(1.0, None), (None, 1.0), (None, None)])
def test_a_body_that_diverged_is_the_last(best, end):
    """Or one that began with a loss that was no number."""
    stage, why = decide(("bn", BEFORE, BEFORE), ("full", (best, MUCH), (0.9, MUCH), (end, MUCH)))
    assert stage is None and why == "full diverged"


def test_at_most_so_many_bodies():
    """However well it goes, and training stages before it do not count."""
    history = [("bn", BEFORE, BEFORE), ("head", BEFORE, BEFORE)]
    for n in range(CONFIG.most_body_stages):
        assert decide(*history, ladder=NEW)[0].plan == "full"
        history.append(("full", (90.0 - n, MUCH), (89.5, MUCH), (89.0 - n, MUCH)))
    stage, why = decide(*history, ladder=NEW)
    assert stage is None and "enough" in why


def test_joules_are_told_where_they_are_known():
    history = [*ran(0, "bn", BEFORE), *ran(1, "full", *[(BEFORE[0] - n, MUCH) for n in (1.0, 3.0)])]
    for joules, told in (((4.0, 2.0), True), ((4.0, None), False), ((0.0, 0.0), False)):
        metered = [{**entry, "energy_j": j} for entry, j in zip(history, (None, *joules), strict=True)]
        why = LADDER.decide(metered, 2)[1]
        assert ("0.5 per joule" in why) == ("joule" in why) == told
