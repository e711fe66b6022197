"""Sessions under limits on the computed device, and the same session without any."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.edge.sessions import Tape, digits, outcome
from tests.edge.world import World, governed

OPEN = {"plan": "bn,affine", "epochs": 4, "gate": "off", "curriculum": "off"}
"""Every image is trained on, whatever the pressure: pauses and stops change when, never what."""
GATED = {"plan": "affine", "epochs": 6, "gate": "sundew", "curriculum": "off"}
FILES = {"run.json", "events.jsonl", "journal.jsonl", "power.csv", "model.onnx", "weights.safetensors",
         "learnt.safetensors"}  # fmt: skip
"""Beside them ``history.csv``, once there was an epoch."""


@cache
def free(tests=0):
    """The world and the outcome of the open run without limits."""
    with TemporaryDirectory() as out:
        world = World()
        governed(Path(out), world, test=digits(tests, "test") if tests else None, **OPEN)
        return world, outcome(Path(out))


class Steps(Tape):
    """Also keeps what each step took of the world, and when it was told what."""

    def __init__(self, world):
        super().__init__()
        self.world, self.step_j, self._last_j = world, [], 0.0
        self.when = []

    def __call__(self, event):
        super().__call__(event)
        if event["event"] == "step":
            self.step_j.append(self.world.energy_j - self._last_j)
        self._last_j = self.world.energy_j
        self.when.append((event["event"], self.world.now_s, self.world.energy_j))

    def decisions(self, action):
        return [event for event in self.of("governor") if event["action"] == action]


def files(out):
    return {path.name for path in out.iterdir() if path.is_file()} - {"history.csv"}
