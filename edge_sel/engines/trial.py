"""A trial of a pack or a model: each graph is loaded and run once, in a process whose memory and time are limited.

What a graph says cannot tell all that it takes: two small tensors can make a large one. So a pack from outside is tried
where nothing is lost if it takes too much.
"""

from __future__ import annotations

import os
import subprocess
import sys
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from edge_sel.errors import BadInputError, EdgeSelError, PackError, SetupError
from edge_sel.pack.manifest import WEIGHTS
from edge_sel.pack.reader import Pack, open_pack

MEMORY_BYTES, MEMORY_PER_WEIGHT_BYTE = 192 << 20, 24
"""What a trial may take beyond the interpreter and the runtime. A step on one image takes a part of it."""
CPU_S, CPU_S_PER_MB = 20.0, 2.0
WALL = 6
"""A process that waits for others may take as many times as long."""


def try_pack(pack: Pack) -> None:
    """Load and run every graph, elsewhere.

    Raises:
        PackError: one cannot be loaded, computes something else than the manifest says, or takes too much.
        SetupError: the runtime lacks an operator.
    """
    memory_bytes, cpu_s = limits(pack.manifest.files[WEIGHTS].bytes)
    reason, status = run_limited("edge_sel.engines.trial", "pack", pack.path.absolute(), memory_bytes, cpu_s)
    if status == SetupError.exit_code:  # this runtime is too old for the pack
        raise SetupError(reason, where=pack.path)
    if reason:
        what = f"its graphs cannot be run in {memory_bytes >> 20} MB and {ceil(cpu_s)} s ({reason[:300]})"
        raise PackError(what, where=pack.path, fix="do not use it")


def try_model(path: Path, weight_bytes: int) -> None:
    """Load a model and run it on one image, elsewhere.

    Args:
        path: of an ONNX file whose input is an image, all sizes but the batch known.
        weight_bytes: of its tensors.

    Raises:
        BadInputError: it cannot be loaded or run, or takes too much; its output is no row of numbers.
    """
    memory_bytes, cpu_s = limits(weight_bytes)
    reason, _ = run_limited("edge_sel.engines.trial", "model", path.absolute(), memory_bytes, cpu_s)
    if reason:
        what = f"the model cannot be run in {memory_bytes >> 20} MB and {ceil(cpu_s)} s ({reason[:300]})"
        raise BadInputError(what, where=path, fix="do not use it")


def run_limited(module: str, what: str, path: Path, memory_bytes: int, cpu_s: float) -> tuple[str, int]:
    """Run a module of ours on a file in a process of its own, in an empty folder.

    Returns:
        What is wrong, empty if nothing is; and the status that the process ended with.
    """
    source = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", module, what, str(path), str(memory_bytes), str(cpu_s)]
    environment = {**os.environ, "PYTHONPATH": source.rstrip(os.pathsep), "OMP_NUM_THREADS": "1"}
    with TemporaryDirectory() as empty:  # the working directory, which holds nothing to read
        try:
            child = subprocess.run(
                command, cwd=empty, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                errors="replace", timeout=WALL * cpu_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "it took too long", -1
    if child.returncode == 0:
        return "", 0
    if child.returncode < 0:
        return f"it was ended by signal {-child.returncode}", child.returncode
    lines = child.stderr.splitlines() or ["it was ended by the system"]
    return lines[-1][:4000], child.returncode


def limits(weights_bytes: int) -> tuple[int, float]:
    """Bytes of memory and seconds of processor time that a trial may take."""
    return MEMORY_BYTES + MEMORY_PER_WEIGHT_BYTE * weights_bytes, CPU_S + CPU_S_PER_MB * weights_bytes / 1e6


def run_every_graph(pack: Pack) -> None:
    """On one image of noise, with one thread.

    Raises:
        PackError: a graph cannot be loaded or run, or what it computes is not what the manifest says.
    """
    from edge_sel.engines.base import Batch, Hyper
    from edge_sel.engines.ort import OrtEngine

    weights, engine, classes = pack.weights(), OrtEngine(threads=1), len(pack.manifest.model.classes)
    image = np.random.default_rng(0).standard_normal((1, 3, *pack.manifest.model.image_size)).astype(np.float32)
    label, one = np.zeros(1, np.int64), np.ones(1, np.float32)
    _require(engine.predictor(pack, weights)(image), (1, classes), "the logits")
    for name, plan in pack.manifest.plans.items():
        for grid in (None, (-3.0, 3.0)):
            if backbone := engine.backbone(pack, name, weights, int8=grid):
                info = pack.backbone(name)
                _require(backbone(image), (1, *(info.shape if info else ())), f"the features of plan {name}")
        seen = backbone(image) if (backbone := engine.backbone(pack, name, weights)) else image
        trainer = engine.trainer(pack, name, weights)
        scores = trainer.score(seen, label)
        result = trainer.step(Batch(seen, label, one), Hyper(0.0))
        for losses, logits in (scores, result[:2]):
            _require(losses, (1,), f"the loss of plan {name}")
            _require(logits, (1, classes), f"the logits of plan {name}")
        changed = trainer.weights()
        for weight in (*plan.trainable, *plan.buffers):
            _require(changed[weight], weights[weight].shape, f"{weight} of plan {name}", finite=False)


def _require(value: np.ndarray, shape: tuple[int, ...], what: str, *, finite: bool = True) -> None:
    if value.shape != shape or (finite and not np.isfinite(value).all()):
        raise PackError(f"{what} are of shape {value.shape} instead of {shape}, or no numbers")


def limit_this_process(memory_bytes: int, cpu_s: float) -> None:
    """From here on; only where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's patience is the only limit
        return
    process = psutil.Process()
    used_s = sum(process.cpu_times()[:2])
    most = process.memory_info().vms + memory_bytes
    for kind, value in (
        (resource.RLIMIT_AS, most), (resource.RLIMIT_CPU, ceil(used_s + cpu_s)), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):  # fmt: skip
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def run_model(content: bytes) -> None:
    """On one grey image, with one thread.

    Raises:
        EdgeSelError: it cannot be loaded or run, or its output is no row of numbers.
    """
    from edge_sel.engines.ort import OrtEngine

    session = OrtEngine(threads=1).session(content, {})
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    shape = [size if isinstance(size, int) and size > 0 else 1 for size in image.shape]
    (found,) = session.run([logits.name], {image.name: np.zeros(shape, np.float32)})
    if found.ndim != 2 or len(found) != shape[0] or not np.isfinite(found).all():
        raise BadInputError(f"its output for a grey image is of shape {found.shape}, or no numbers")


def main(what: str, path: str, memory_bytes: int, cpu_s: float) -> int:
    """The child."""
    import edge_sel.engines.ort  # noqa: F401  # before memory is limited: what the runtime itself takes is no matter

    try:
        if what == "model":
            content = Path(path).read_bytes()
            limit_this_process(memory_bytes, cpu_s)
            run_model(content)
        else:
            pack = open_pack(Path(path))
            limit_this_process(memory_bytes, cpu_s)
            run_every_graph(pack)
    except EdgeSelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print("it takes too much memory", file=sys.stderr)
        return 1
    except Exception as error:  # of the runtime, whose classes have no stable names
        print(str(error).partition("\n")[0] or type(error).__name__, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
