"""Settings and packs of sessions with several training stages, and an automatic run that nothing interrupted."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edge_sel.edge.train.ladder import LadderConfig
from tests.edge.sessions import Tape, history, outcome, pack, session

SHORT = LadderConfig(head_epochs=1, e_per_epoch=0.1, most_epochs=2, most_body_stages=2, leave_below=0.0)
"""An automatic ladder of few epochs that goes on while the body gets any better."""
AUTO = {"plan": "auto", "ladder": SHORT, "learning_rate": None, "curriculum": "off", "batch_size": 32}
RUINOUS = {"learning_rate": 3.0, "gate": "off", "curriculum": "off", "epochs": 1, "batch_size": 32, "gamma": 0.0}
"""Whatever trains makes it worse; statistics, which train nothing, do not."""
IMPROVING = {"plan": "bn,last2", "learning_rate": None, "gate": "off", "curriculum": "off", "epochs": 3}


def without(*plans):
    kept = {name: info for name, info in pack().manifest.plans.items() if name not in plans}
    return pack().with_manifest(replace(pack().manifest, plans=kept))


PACKS = {"statistics first": pack(), "head first": without("bn")}
every_pack = pytest.mark.parametrize("base", PACKS)


@cache
def automatic_run(base="statistics first"):
    """The result, the outcome, the events and the table of an automatic run that nothing interrupted."""
    with TemporaryDirectory() as out:
        tape = Tape()
        result = session(Path(out), base=PACKS[base], listener=tape, **AUTO).run()
        return result, outcome(Path(out)), tape, history(Path(out))


def decided(result):
    return [(decision["plan"], decision["epochs"]) for decision in result["decisions"]]


def validation_loss(result, when):
    return result[when]["guard"]["loss"]
