"""What ONNX Runtime's arena gives back; in a process of its own, as it is one for all sessions of a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.shell import ROOT, environment

PROGRAM = """
import json
import numpy as np, psutil
from edge_sel.edge.memory import trim
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.native import shrink_arena
from tests.edge.sessions import pack

def taken():
    return psutil.Process().memory_info().rss / 1e6

trainer = OrtEngine(threads=1).trainer(pack(), "full", pack().weights())
pixels, labels = np.zeros((90, 3, 16, 16), np.float32), np.zeros(90, np.int64)
found = [taken()]
for _ in range(3):
    result = trainer.step(Batch(pixels, labels, np.ones(90, np.float32)), Hyper(learning_rate=0.01))
    del result
    found.append(taken())
    shrink_arena()
    trim()
    found.append(taken())
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise elsewhere")
def test_between_steps_the_arena_gives_back_what_a_step_took():
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    before, *rest = json.loads(ended.stdout)
    steps, after = rest[::2], rest[1::2]
    taken = [step - before for step in steps]
    assert min(taken) > 15, "else this shows nothing"
    assert max(after) - before < min(taken) / 5, "and again after each step"
