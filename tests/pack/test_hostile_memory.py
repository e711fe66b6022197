"""Packs whose small tensors make large ones, given to ``edge-sel finetune`` where there is little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edge_sel.errors import SetupError
from edge_sel.pack.reader import open_pack
from tests.cli.shell import ROOT, environment
from tests.pack.hostile import with_graph, write_zip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits what a process may take")
FREE_MB = 250

FINETUNE = """\
import re, sys
from pathlib import Path
from edge_sel.edge.memory import limited_memory
from edge_sel.cli.main import main
try:
    with limited_memory(Path(sys.argv.pop(1))):
        main()
finally:
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024, file=sys.stderr)
"""
"""The command, which limits itself once more. ``ru_maxrss`` would be the peak of the process that starts it, too."""


def large(*nodes: onnx.NodeProto, **constants: np.ndarray):
    """These nodes make ``large`` of the images ``x``; it counts nothing in the logits, but nobody can leave it out."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        last = next(node for node in graph.node if "logits" in node.output)
        last.output[0] = "told"
        zero = np.zeros((), np.float32)
        for name, value in {**constants, "nought": zero}.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        graph.node.extend(nodes)
        graph.node.append(helper.make_node("ReduceMean", ["large"], ["large.mean"], keepdims=0))
        graph.node.append(helper.make_node("Mul", ["large.mean", "nought"], ["nothing"]))
        graph.node.append(helper.make_node("Add", ["told", "nothing"], ["logits"]))

    return change


def doubled(times: int) -> list[onnx.NodeProto]:
    names = ["x", *(f"twice{i}" for i in range(times - 1)), "large"]
    return [helper.make_node("Concat", [a, a], [b], axis=2) for a, b in pairwise(names)]


PACKS = {
    "Concat": large(*doubled(24)),
    "Mul": large(
        helper.make_node("Reshape", ["x", "row"], ["a"]), helper.make_node("Reshape", ["x", "column"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]), helper.make_node("Reshape", ["c", "row"], ["d"]),
        helper.make_node("Mul", ["d", "b"], ["large"]),
        row=np.array([1, -1], np.int64), column=np.array([-1, 1], np.int64),
    ),
    "Gather": large(
        helper.make_node("Gather", ["x", "many"], ["a"], axis=2), helper.make_node("Gather", ["a", "many"], ["large"], axis=3),
        many=np.zeros(1 << 14, np.int64),
    ),
    "Conv": large(
        helper.make_node("Conv", ["x", "kernel"], ["large"], pads=[1 << 13] * 4), kernel=np.ones((1, 3, 1, 1), np.float32)
    ),
    "constants": large(
        helper.make_node("Mul", ["row", "column"], ["large"]),
        row=np.ones((1, 1 << 16), np.float32), column=np.ones((1 << 16, 1), np.float32),
    ),
}  # fmt: skip


@pytest.fixture
def little(tmp_path: Path) -> Path:
    """What a device shows whose control group leaves this process little memory."""
    group = tmp_path / "root" / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{(FREE_MB + 50) << 20}\n")
    (group / "memory.current").write_text(f"{50 << 20}\n")
    return tmp_path / "root"


def finetune(root: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", FINETUNE, str(root), "finetune", *map(str, arguments)]
    env = environment(OMP_NUM_THREADS="1", PYTHONPATH=os.environ.get("PYTHONPATH", str(ROOT)))
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=100, check=False)


def images(folder: Path) -> Path:
    from PIL import Image

    for name in "01":
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng([number, int(name)]).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.sampled(5)
@pytest.mark.parametrize("case", PACKS)
def test_a_pack_that_asks_for_any_amount_of_memory_ends_in_one_line(case, little, tmp_path):
    bad = write_zip(tmp_path / "bad.edgepack", with_graph("eval.onnx", PACKS[case]))
    open_pack(bad)  # nothing in its description tells
    ended = finetune(
        little, bad, "--data", images(tmp_path / "data"), "--threads", 1, "--out", "run", "--json", cwd=tmp_path
    )
    *lines, peak_mb = ended.stderr.splitlines()
    assert ended.returncode == SetupError.exit_code, ended.stderr
    assert len(lines) == 1 and lines[0].startswith("edge-sel: out of memory"), ended.stderr
    assert ended.stdout == "" and int(peak_mb) < FREE_MB + 150


@pytest.mark.slow
def test_with_so_little_memory_an_honest_pack_is_fine_tuned(little, tmp_path):
    ended = finetune(little, "--plan", "closed_form", "--threads", 1, "--out", "run", "--json", cwd=tmp_path)
    assert ended.returncode == 0 and json.loads(ended.stdout)["stopped"] == "done", ended.stderr
