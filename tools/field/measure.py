"""CPU time, joules and memory of a whole process, from its start to its end, and the accuracy of what it left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.cli.measure import modelled_net_j
from edge_sel.config.profiles import Profile
from edge_sel.data.dataset import ImageSet, normalise
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.reader import open_pack
from edge_sel.power.find import find_meter
from edge_sel.power.recorder import EnergyRecorder

ROOT = Path(__file__).resolve().parents[2]
BATCH = 100
IDLE_S = 2.0


def measured(command: list[str], out: Path, profile: Profile, threads: int) -> dict[str, Any]:
    """Run ``command`` alone: exit status, CPU and wall seconds, peak MiB, and gross and net joules with their source.

    Joules come from the profile's meter if one measures here. Otherwise they are modelled as ``edge-sel measure`` does,
    net ``(max_w - idle_w)·cpu_s/cores``, gross that plus ``idle_w·wall_s``: nothing else that runs is counted.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = out / "cost.json"
    launcher = [sys.executable, "-I", str(Path(__file__).with_name("launch.py"))]
    with EnergyRecorder(find_meter(profile)[0], profile=profile) as recorder:
        recorder.measure_idle(IDLE_S)
        window = recorder.start_window("command")
        subprocess.run([*launcher, str(report), str(out), *command], env=_environment(threads), check=True)
        figure = recorder.end_window(window)
    cost: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    energy = {"gross_j": figure.total_j, "net_j": figure.net_j, "source": figure.source, "meter": figure.meter}
    if figure.source != "measured":
        net_j = modelled_net_j(cost["cpu_s"], profile.idle_w, profile.max_w)
        energy = {
            "gross_j": profile.idle_w * cost["wall_s"] + net_j,
            "net_j": net_j,
            "source": "modelled",
            "meter": "psutil",
        }
    return cost | energy | {"profile": profile.name}


def _environment(threads: int) -> dict[str, str]:
    """This process's without the settings of edge-sel; libraries are told how many threads there are."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_SEL_")}
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    limits["EDGE_SEL_FEATURE_STORE"] = "off"  # no run finds what another one has computed
    return {**kept, **limits, "PYTHONPATH": os.pathsep.join(paths)}


def accuracy(pack_path: Path, weights: Path | None, images: ImageSet) -> float:
    """Share of ``images`` that the pack's inference graph gets right with these weights (None: as shipped), 0 to 1.

    The same for every system; a class that the weights do not know is never right.
    """
    from safetensors import safe_open

    pack = open_pack(pack_path)
    model, classes, values = pack.manifest.model, pack.manifest.model.classes, pack.weights()
    if weights is not None:
        with safe_open(weights, framework="numpy") as file:
            classes = tuple(json.loads(file.metadata()["classes"]))
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    predict = OrtEngine(0).predictor(pack, values)
    names = np.array(images.classes)[images.labels]
    right = 0
    for start in range(0, len(images), BATCH):
        rows = np.arange(start, min(start + BATCH, len(images)))
        guesses = predict(normalise(images.read(rows), model.mean, model.std)).argmax(1)
        right += int((np.array(classes)[guesses] == names[rows]).sum())
    return right / len(images)
