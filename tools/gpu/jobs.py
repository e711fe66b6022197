"""What needs an NVIDIA GPU, most valuable first. Each job is one command that is short or goes on where it stopped."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

TOOLS = Path(__file__).parents[1]
MAIN = ("baseline", "lottery-ticket", "sel-95", "warmup-sel", "ast", "dihcl-exp")
"""The systems whose spread is to be known."""
CONTROLS = (
    "annealed",
    "sel-99",
    "ast-dense",
    "random-10",
    "infobatch",
    "selective-backprop",
    "fast-random",
    "fast-ast",
)
SHORT = ("--images", "15000", "--epochs", "1")
"""The plain loop takes most of the time."""


class Job(NamedTuple):
    """One command.

    Attributes:
        name: of its log.
        words: the command.
        least_s: with less of the budget left it is not begun.
        what: it is for, in a few words.
    """

    name: str
    words: tuple[str, ...]
    least_s: float
    what: str


def gpu_tests() -> list[str]:
    """The test files in which something is marked so."""
    tests = TOOLS.parent / "tests"
    return sorted(str(path) for path in tests.rglob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))


def all_jobs(out: Path, images: str, *, weights: str = "auto", smoke: bool) -> list[Job]:
    """In order.

    Args:
        out: folder of the results.
        images: folder with ``train`` and ``test``.
        weights: what ResNets begin with; ``random`` where nothing can be downloaded.
        smoke: on a processor, in minutes, on digits.
    """
    python, device = sys.executable, "cpu" if smoke else "cuda"
    scale = ("--scale", "smoke" if smoke else "full", "--device", device)
    tiny = ("--model", "resnet-c-small", "--images", "320", "--workers", "0", "--epochs", "1") if smoke else ()
    few = ("--runs", "2", "--epochs", "6", "--device", "cpu", "--digits") if smoke else ("--images", images)

    def reference(*words: object) -> tuple[str, ...]:
        out_of = ("--out", str(out / "reference"), "--weights", weights)
        return (python, "-m", "edge_sel", "reference", *map(str, words), *scale, *out_of)

    def tool(name: str, *words: object) -> tuple[str, ...]:
        return (python, str(TOOLS / name), *map(str, words))

    pretrain = ("pretrain", "--data", f"{images}/train", "--epochs", 100, "--out", out / "robust.safetensors")
    pytest = (python, "-m", "pytest", "-m", "gpu and not slow", "-n", "0", "-p", "no:cacheprovider", *gpu_tests())
    torchrun = (python, "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "edge_sel", "reference")
    torchrun += ("baseline", "--smoke", "--device", device, "--out", str(out / "torchrun"))
    seconds = 1 if smoke else 20
    checked = ("--runs", "ort:cpu,torch:cpu", "--plans", "head") if smoke else ()
    jobs = [
        Job("card", ("nvidia-smi", "-q"), 2, "name, driver, clocks, power limit"),
        Job("tests", pytest, 30, "tests marked gpu"),
        Job("nvml", tool("gpu/nvml_check.py", "--seconds", seconds), 2 * seconds + 10, "counter, sampled power, Zeus"),
        Job("finetune", tool("gpu/finetune_check.py", *checked), 30, "a run of each engine beside the processor's"),
        Job("speed", tool("bench_reference.py", "--device", device, *(tiny or SHORT)), 60, "images a second"),
        Job("suite", reference(*(MAIN if smoke else ())), 30, "the ten systems, one seed"),
        Job("fast", reference("fast", "--seeds", 2 if smoke else 10), 20, "the fast baseline, ten seeds"),
        Job("airbench", tool("gpu/airbench.py", *few), 20, "airbench94's settings, ten seeds"),
        Job("seeds", reference(*MAIN, "--seeds", 2 if smoke else 3), 60, "three seeds of the main systems"),
        Job("torchrun", torchrun, 30, "one process on NCCL"),
        Job("pretrain", (python, "-m", "edge_sel", *map(str, pretrain)), 120, "a robust checkpoint, 100 epochs"),
        Job("controls", reference(*CONTROLS), 60, "controls that are not of the ten"),
    ]
    return [job for job in jobs if not smoke or job.name not in ("tests", "pretrain", "controls")]
