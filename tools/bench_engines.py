"""What one training step costs on every engine that this machine has: time, memory, start-up, and whether they agree.

    python tools/bench_engines.py PACK [--plans full,last,last-c25,head] [--engines ort,torch] [--steps 15]
                                  [--threads 1] [--int8]

Same model, same batches, same optimizer. One process per engine and plan; the processes take turns, one step each, so
that a noisy machine disturbs all of them alike. torch trains as a user would write it: frozen parameters without
gradient, frozen batch normalisation in evaluation mode. It has no channel budget: a ``-c25`` plan is compared with
torch on the same plan without one. Ratios to torch below 1 mean that an engine is cheaper. ``--int8``: the frozen
backbone is its quantized variant, which a run takes where it is faster and its features agree. ``ort-training`` is
there in its own environment. Start-up ends with the first step; ``loss`` is how far the first step's
mean loss is from torch's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

BATCH = 32


def peak_rss_mb() -> float:
    """High-water mark of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmHWM in /proc/self/status")


def engine_step(name: str, pack_path: Path, plan: str, threads: int, int8: bool) -> Callable[[], float]:
    """A step on images that are seen for the first time: a frozen backbone is computed too. It gives the mean loss."""
    import numpy as np

    from edge_sel.engines.base import Batch, Hyper
    from edge_sel.engines.by_name import choose_engine
    from edge_sel.pack.reader import open_pack

    engine = choose_engine(name, threads)
    pack = open_pack(pack_path)
    trainer = engine.trainer(pack, plan, pack.weights())
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, 3, *pack.manifest.model.image_size)).astype(np.float32)
    labels = rng.integers(0, len(pack.manifest.model.classes), BATCH)
    batch, hyper = Batch(images, labels, np.ones(BATCH, np.float32)), Hyper(1e-3)
    limits = (float(images.min()), float(images.max())) if int8 else None
    backbone = engine.backbone(pack, plan, pack.weights(), int8=limits)
    if backbone is None:
        return lambda: float(trainer.step(batch, hyper).losses.mean())
    return lambda: float(trainer.step(batch._replace(images=backbone(images)), hyper).losses.mean())


def torch_step(pack_path: Path, plan: str, threads: int) -> Callable[[], float]:
    """The same step in eager torch."""
    import numpy as np
    import torch
    import torch.nn.functional as F  # noqa: N812
    from cpu_torchvision import import_torchvision

    from edge_sel.engines.torch import TorchEngine
    from edge_sel.pack.reader import open_pack

    import_torchvision()
    torch.set_num_threads(threads)
    pack = open_pack(pack_path)
    info = pack.plan(pack.plan(plan).base)
    model = TorchEngine(device="cpu").model(pack, pack.weights())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in info.trainable)
    trained = [p for p in model.parameters() if p.requires_grad]
    kinds = {
        "sgd": lambda: torch.optim.SGD(trained, 1e-3, momentum=0.9),
        "adam": lambda: torch.optim.Adam(trained, 1e-3),
    }
    optimizer = kinds[pack.manifest.optimizer]()
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((BATCH, 3, *pack.manifest.model.image_size)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, len(pack.manifest.model.classes), BATCH))

    def step() -> float:
        # Anew in every step: LeViT caches what it computes of its weights while it evaluates.
        loss = F.cross_entropy(model.train().train(info.bn_mode == "batch")(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def work(engine: str, pack: Path, plan: str, threads: int, int8: bool) -> None:
    """Worker process: one timed step per line on stdin; memory when the input ends."""
    begin_s = time.perf_counter()
    step = torch_step(pack, plan, threads) if engine == "torch" else engine_step(engine, pack, plan, threads, int8)
    loss = step()
    started_s = time.perf_counter() - begin_s
    step()
    print(json.dumps([started_s, loss]), flush=True)
    for _ in sys.stdin:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        step()
        print(json.dumps([1e3 * (time.process_time() - cpu_s), 1e3 * (time.perf_counter() - wall_s)]), flush=True)
    print(json.dumps(peak_rss_mb()), flush=True)


def compare(
    pack: Path, plan: str, steps: int, threads: int, int8: bool = False, engines: Sequence[str] = ("ort", "torch")
) -> dict[str, float]:
    """Medians of each engine for one plan, as ``ENGINE_cpu_ms``, ``_wall_ms``, ``_rss_mb``, ``_start_s``, ``_loss``."""
    given = ["--plans", plan, "--threads", str(threads), *(["--int8"] if int8 else [])]
    workers = {
        engine: subprocess.Popen(
            [sys.executable, __file__, str(pack), "--worker", engine, *given],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for engine in engines
    }  # fmt: skip
    row: dict[str, float] = {}
    for engine, worker in workers.items():
        assert worker.stdout
        line = worker.stdout.readline()
        if not line:
            raise SystemExit(f"bench_engines: {engine} cannot make a step of {plan}")
        row[f"{engine}_start_s"], row[f"{engine}_loss"] = json.loads(line)
    times: dict[str, list[list[float]]] = {engine: [] for engine in workers}
    for _ in range(steps):
        for engine, worker in workers.items():
            assert worker.stdin and worker.stdout
            worker.stdin.write("\n")
            worker.stdin.flush()
            times[engine].append(json.loads(worker.stdout.readline()))
    for engine, worker in workers.items():
        assert worker.stdin and worker.stdout
        worker.stdin.close()
        row[f"{engine}_rss_mb"] = json.loads(worker.stdout.readline())
        worker.wait()
        row[f"{engine}_cpu_ms"] = median(t[0] for t in times[engine])
        row[f"{engine}_wall_ms"] = median(t[1] for t in times[engine])
    return row


def available() -> list[str]:
    """The engines that this environment has."""
    from edge_sel.engines.ort_training_api import owners

    official = ["ort-training"] if "onnxruntime-training" in owners() else []
    return ["ort", *official, *(["torch"] if importlib.util.find_spec("torch") else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--plans", default="full,last,last-c25,head")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--int8", action="store_true", help="the quantized variant of the frozen backbone")
    parser.add_argument("--engines", help="comma-separated; all that are there by default")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.pack, arguments.plans, arguments.threads, arguments.int8)
        return
    import onnxruntime

    engines = arguments.engines.split(",") if arguments.engines else available()
    print(
        f"{platform.machine()}, onnxruntime {onnxruntime.__version__}, batch {BATCH}, {arguments.threads} thread(s), "
        f"medians of {arguments.steps} alternating steps; in brackets what torch takes as 1"
    )
    print("| plan | engine | CPU ms | wall ms | peak MB | start s | loss |\n|" + "---|" * 7)
    for plan in arguments.plans.split(","):
        r = compare(arguments.pack, plan, arguments.steps, arguments.threads, arguments.int8, engines)
        for engine in engines:
            cells = []
            for what in ("cpu_ms", "wall_ms", "rss_mb"):
                value, reference = r[f"{engine}_{what}"], r.get(f"torch_{what}")
                cells.append(
                    f"{value:.1f}" + (f" ({value / reference:.2f})" if reference and engine != "torch" else "")
                )
            differs = abs(r[f"{engine}_loss"] - r["torch_loss"]) / r["torch_loss"] if "torch" in engines else 0.0
            cells += [f"{r[f'{engine}_start_s']:.2f}", f"{differs:.0e}"]
            print(f"| {plan} | {engine} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
