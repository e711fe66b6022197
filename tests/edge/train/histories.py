"""Automatic schedules of training stages, and histories made by hand for them."""

from edge_sel.edge.train.ladder import AutoLadder, LadderConfig, PlannedStage
from tests.edge.sessions import pack

PLANS = pack().manifest.plans
CONFIG = LadderConfig()
CLEAN = 0.35
MUCH = CLEAN + 2 * CONFIG.e_per_epoch
"""Embarrassment worth two epochs."""
BEFORE = (9.0, MUCH)  # the validation loss and embarrassment of the model that a training stage begins with
BN, HEAD, UNKNOWN = (
    PlannedStage("bn", 1),
    PlannedStage("head", CONFIG.head_epochs),
    PlannedStage("full", CONFIG.unknown_epochs),
)
LOWER = BEFORE[0] - 1.0
NO_GOOD = (BEFORE[0], BEFORE[0] + 1, None)
"""Losses of the validation set after which a training stage is undone."""


def made(*without, clean_e=CLEAN, new_classes=False):
    kept = {name: info for name, info in PLANS.items() if name not in without}
    return AutoLadder(kept, clean_e, new_classes=new_classes)


LADDER, NEW = made(), made(new_classes=True)


def ran(stage, plan, *after, before=BEFORE):
    """A training stage that began ``before``; (loss, embarrassment) of the validation set after each of its epochs."""
    same = {"rung": stage, "plan": plan, "best_loss": before[0], "best_e": before[1], "energy_j": 1.0, "time_s": 1.0}
    return [{**same, "guard_loss": loss, "guard_e": e} for loss, e in after]


def decide(*stages, ladder=LADDER):
    """After these training stages, each a plan, what it began with and (loss, embarrassment) after each epoch."""
    history = [
        entry for n, (plan, before, *after) in enumerate(stages) for entry in ran(n, plan, *after, before=before)
    ]
    return ladder.decide(history, len(stages))
