"""Settings and packs of sessions with several training stages, and an automatic run that nothing interrupted."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edge_sel.pack.manifest import GainRow
from tests.edge.sessions import Tape, digits, history, outcome, pack, session

PROMISING = tuple(
    GainRow(kind, visits, 0.0, gain)
    for kind, visits, gain in (("head", 100, 0.05), ("body", 50, 0.1), ("body", 150, 0.2))
)
"""A table of gains by which everything is tried."""
AUTO = {"plan": "auto", "learning_rate": 0.01, "curriculum": "off", "batch_size": 32}
MANY = digits(150)
"""Of these an automatic run has enough to go through several stages."""
RUINOUS = {
    "forget": 0.67,
    "learning_rate": 3.0,
    "gate": "off",
    "curriculum": "off",
    "epochs": 1,
    "batch_size": 32,
    "gamma": 0.0,
}
"""Whatever trains makes it worse; statistics, which train nothing, do not."""
IMPROVING = {"plan": "bn,last2", "forget": 0.67, "learning_rate": None, "gate": "off", "curriculum": "off", "epochs": 3}


def without(*plans, gains=PROMISING):
    kept = {name: info for name, info in pack().manifest.plans.items() if name not in plans}
    return pack().with_manifest(replace(pack().manifest, plans=kept, gains=gains))


PACKS = {
    "closed form first": without(),
    "statistics first": without("head"),
    "head first": without("bn"),
    "body only": without("bn", "head"),
}
STAGES = {
    "closed form first": [("closed_form", 1), ("full", 3), (None, 0)],
    "statistics first": [("bn", 1), ("full", 3), ("full", 1), (None, 0)],
    "head first": [("ridge", 1), ("full", 3), (None, 0)],
    "body only": [("full", 1), ("full", 1), ("full", 3), (None, 0)],
}
"""What an automatic run with each of them goes through."""
every_pack = pytest.mark.parametrize("base", PACKS)


@cache
def automatic_run(base="statistics first"):
    """The result, the outcome, the events and the table of an automatic run that nothing interrupted."""
    with TemporaryDirectory() as out:
        tape = Tape()
        result = session(Path(out), images=MANY, base=PACKS[base], listener=tape, **AUTO).run()
        return result, outcome(Path(out)), tape, history(Path(out))


def decided(result):
    return [(decision["plan"], decision["epochs"]) for decision in result["decisions"]]


def validation_loss(result, when):
    return result[when]["validation"]["loss"]
