"""Which published classifiers become packs, whether their steps are right, and what a step costs beside torch eager.

    python -m venv zoo && zoo/bin/pip install . torch onnxscript --extra-index-url https://download.pytorch.org/whl/cpu
    zoo/bin/pip install --no-deps torchvision timm && zoo/bin/pip install pyyaml huggingface_hub
    zoo/bin/python tools/model_zoo.py --work DIR                # builds, checks, times; hours on one core
    zoo/bin/python tools/model_zoo.py --work DIR --no-timing    # builds and checks only
    zoo/bin/python tools/model_zoo.py --work DIR --again        # builds and checks anew, keeps the times
    zoo/bin/python tools/model_zoo.py --work DIR --files DIR    # ONNX files, such as those of tools/foreign_files.py
    zoo/bin/python tools/model_zoo.py --work DIR --table        # docs/models.md from the CSV

torch is its CPU build, so that memory is compared fairly: the libraries of the CUDA build take 370 MB. Networks have
random weights, and running statistics of some synthetic images: what is checked and timed does not depend on what they
have learnt. Each gets a new head, as a published network does that is to know other classes. A CSV that exists is added
to: what stands in it is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CSV, PAGE = ROOT / "docs" / "figures" / "models.csv", ROOT / "docs" / "models.md"
PLANS = ("bn", "head", "affine", "last", "full")
CLASSES = 10
NAMES = tuple(f"class {i}" for i in range(CLASSES))
IMAGES = 32
TIMES = ("ort_cpu_ms_1", "torch_cpu_ms_1", "ort_cpu_ms_2", "torch_cpu_ms_2", "ort_mb", "torch_mb", "n")
MODELS = {
    **dict.fromkeys((
        "torchvision:resnet18", "torchvision:resnet34", "torchvision:resnet50", "torchvision:mobilenet_v2",
        "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large", "torchvision:efficientnet_b0",
        "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1", "torchvision:mnasnet1_0",
        "torchvision:regnet_y_400mf", "torchvision:densenet121", "torchvision:googlenet", "torchvision:convnext_tiny",
        "torchvision:swin_t", "timm:mobilenetv4_conv_small", "timm:efficientnet_lite0", "timm:ghostnet_100",
        "timm:repvit_m0_9", "timm:mobilevit_xxs", "timm:edgenext_xx_small", "timm:convnextv2_atto", "timm:resnet50_gn",
        "timm:fastvit_t8", "timm:mobileone_s0", "timm:tinynet_a", "timm:hardcorenas_a", "timm:resnet10t",
        "timm:tf_efficientnetv2_b0",
    ), 96),
    **dict.fromkeys((
        "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", "timm:mixer_s32_224", "timm:levit_128s",
        "timm:efficientformer_l1",
    ), 224),
}  # fmt: skip
"""Name and image size in pixels: 96, or what the model is made for."""
TIMED = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
"""Of torchvision; these are timed at 224 pixels too."""
COLUMNS = (
    "model", "size", "plan", "result", "parameters", "pack_mb", "error_to_float64", "error_of_torch",
    "ort_cpu_ms_1", "torch_cpu_ms_1", "ort_cpu_ms_2", "torch_cpu_ms_2", "ort_mb", "torch_mb", "n",
    "closed_form", "new_head", "export_s", "export_mb", "dry_run_s", "dry_run_mb",
)  # fmt: skip


def make_pack(model: str, size: int, out: Path, *, dry: bool = False) -> dict[str, Any]:
    """Export a network with random weights, or a file; what the CSV says of each plan, or why there is no pack."""
    import numpy as np

    from edge_sel.data.dataset import ImageSet
    from edge_sel.errors import EdgeSelError
    from edge_sel.pack.reader import open_pack
    from edge_sel.server.compile_plans import DEFAULT_PLANS, forecast
    from edge_sel.server.export import export_pack

    began, left_out = time.monotonic(), list[str]()
    try:
        source = source_of(model, size, settled=not dry)
        if dry:
            forecast(source, DEFAULT_PLANS, "sgd", IMAGES)
        else:
            images = ImageSet.from_arrays(pictures(source.info.image_size), np.arange(IMAGES) % CLASSES, NAMES)
            manifest = export_pack(source, images, out, plans=(), now=datetime.now(timezone.utc), note=left_out.append)
    except EdgeSelError as error:
        return {"reason": str(error), "plans": {}, **spent(began)}
    if dry:
        return spent(began)
    weights, pack = source.weights, open_pack(out)
    plans = {
        name: {
            "parameters": sum(weights[weight].size for weight in plan.trainable if weight in weights),
            "pack_mb": round(sum(file.bytes for file in manifest.files.values()) / 1e6, 1),
            "error_to_float64": f"{manifest.parity['error_to_float64'][name]:.1e}",
            "error_of_torch": f"{manifest.parity['error_of_reference'][name]:.1e}",
        }
        for name, plan in manifest.plans.items()
    }  # fmt: skip
    found = ", ".join(name for name in pack.plan_names if name not in manifest.plans)
    return {"reason": "; ".join(line for line in left_out if line.startswith("plan ")), "plans": plans,
            "closed_form": found or "no", "new_head": "yes", "size": max(source.info.image_size),
            **spent(began)}  # fmt: skip


def spent(began: float) -> dict[str, Any]:
    """Seconds since then, and the most memory that this process has had."""
    import resource

    return {"s": round(time.monotonic() - began, 1), "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}


def source_of(model: str, size: int, *, settled: bool) -> Any:
    """A network by name, whose head is still to be fitted, or what an ONNX file holds."""
    from edge_sel.server.source.base import WarmupInfo
    from edge_sel.server.source.open import Asked, open_source

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if model.endswith(".onnx"):
        given = (48, 192) if "ppocr" in model else None  # it leaves its size open
        return open_source(model, Asked(folders=NAMES, mean=mean, std=std, new_head=True, image_size=given))
    import torch
    from cpu_torchvision import import_torchvision

    import_torchvision()
    from edge_sel.data.dataset import normalise
    from edge_sel.models.registry import build
    from edge_sel.server.source.torch_model import from_module

    if not settled:
        asked = Asked(folders=NAMES, image_size=(size, size), mean=mean, std=std, dry=True)
        return open_source(model, asked)
    torch.manual_seed(0)
    network = build(model, CLASSES, (size, size)).train()
    if settled:
        seen = torch.from_numpy(normalise(pictures((size, size)), mean, std))
        norms = {
            part: part.momentum for part in network.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
        }
        with torch.no_grad():
            for part in norms:
                part.momentum = 0.5  # some networks would take hundreds of passes
            for _ in range(20):
                network(seen)
            for part, momentum in norms.items():
                part.momentum = momentum
    info = WarmupInfo(model, NAMES, (size, size), mean, std, {})
    return from_module(network.eval(), info, new_head=True)


def pictures(size: tuple[int, int]) -> Any:
    """Coarse squares with noise, uint8 [N, H, W, 3]."""
    import numpy as np

    rng = np.random.default_rng(0)
    rows, columns = (-(-side // 8) for side in size)
    coarse = rng.integers(0, 256, (IMAGES, 8, 8, 3)).repeat(rows, 1).repeat(columns, 2)[:, : size[0], : size[1]]
    return np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def rows_of(model: str, size: int, work: Path) -> list[dict[str, Any]]:
    """A row for every plan, from processes of their own."""
    found, dry = worker(model, size, work), worker(model, size, work, "--dry-run")
    size = found.get("size") or size
    figures = {"closed_form": found.get("closed_form", "no"), "new_head": found.get("new_head", "no"),
               "export_s": found.get("s"), "export_mb": found.get("mb"), "dry_run_s": dry.get("s"),
               "dry_run_mb": dry.get("mb")}  # fmt: skip
    rows, named = [], Path(model).name if model.endswith(".onnx") else model
    found["reason"] = found["reason"].replace(model, named)  # no path of this machine
    for plan in PLANS:
        measured = found["plans"].get(plan)
        why = next((part for part in found["reason"].split("; ") if f"plan {plan} " in part), found["reason"])
        rows.append({"model": named, "size": size, "plan": plan, "result": "ok" if measured else why,
                     **(measured or {}), **figures})  # fmt: skip
    return rows


def worker(model: str, size: int, work: Path, *options: str) -> dict[str, Any]:
    """What ``make_pack`` says in a process of its own."""
    pack = work / f"{Path(model.partition(':')[2] or model).name}-{size}.pack"
    command = [sys.executable, __file__, "--worker", model, "--size", str(size), "--work", str(pack), *options]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it died"]
        return {"reason": lines[-1], "plans": {}}
    return dict(json.loads(result.stdout.splitlines()[-1]))


def time_row(row: dict[str, Any], work: Path, steps: int) -> None:
    """Add CPU milliseconds and peak memory of a step of both engines, at one thread and at two."""
    from bench_engines import compare

    pack = work / f"{row['model'].partition(':')[2]}-{row['size']}.pack"
    for threads in (1, 2):
        found = compare(pack, row["plan"], steps, threads)
        for engine in ("ort", "torch"):
            row[f"{engine}_cpu_ms_{threads}"] = round(found[f"{engine}_cpu_ms"], 1)
            if threads == 1:
                row[f"{engine}_mb"] = round(found[f"{engine}_rss_mb"])
    row["n"] = steps


def read_csv() -> list[dict[str, Any]]:
    """The rows that are there."""
    if not CSV.exists():
        return []
    with CSV.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(rows: list[dict[str, Any]]) -> None:
    """All rows, in the order of models and plans."""
    order = {name: number for number, name in enumerate(MODELS)}

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return order.get(row["model"], len(order)), row["model"], int(row["size"]), PLANS.index(row["plan"])

    rows = sorted(rows, key=place)
    with CSV.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def ratio(row: dict[str, Any], ours: str, theirs: str) -> str:
    """Of two columns; empty where they were not measured."""
    return f"{float(row[ours]) / float(row[theirs]):.2f}" if row.get(ours) and row.get(theirs) else ""


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each model and size: parity of its plans, and the ratios that were measured."""
    titles = ("model", "pixels", "MB", "plans", "closed form", "new head", "largest error, other program's",
              "CPU `full`", "`last`", "`head`", "memory `full`", "export s, MB", "dry run s, MB")  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for key in dict.fromkeys((row["model"], row["size"]) for row in rows):
        mine = {row["plan"]: row for row in rows if (row["model"], row["size"]) == key}
        good = [row for row in mine.values() if row["result"] == "ok"]
        missing = sorted({row["result"] for row in mine.values()} - {"ok"})
        plans = ", ".join(row["plan"] for row in good) or missing[0]
        worst = max(good, key=lambda row: float(row["error_to_float64"]), default=None)
        errors = f"{worst['error_to_float64']}, {worst['error_of_torch']}" if worst else ""
        speeds = [ratio(mine[plan], "ort_cpu_ms_1", "torch_cpu_ms_1") for plan in ("full", "last", "head")]
        memory = ratio(mine["full"], "ort_mb", "torch_mb")
        size, one = good[0]["pack_mb"] if good else "", next(iter(mine.values()))
        closed = " | ".join(one.get(column) or "" for column in ("closed_form", "new_head"))
        costs = [", ".join(str(one.get(f"{what}_{unit}") or "") for unit in ("s", "mb")).strip(", ")
                 for what in ("export", "dry_run")]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, (*key, size, plans, closed, errors, *speeds, memory, *costs)))} |")
    return "\n".join(lines)


def write_page(rows: list[dict[str, Any]]) -> None:
    """Put the table between the markers of the page."""
    begin, end = "<!-- table -->", "<!-- end of the table -->"
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    PAGE.write_text(f"{before}{begin}\n{table(rows)}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder for the packs.")
    parser.add_argument("--models", help="Comma-separated; all by default.")
    parser.add_argument("--steps", type=int, default=9, help="Timed steps of each engine.")
    parser.add_argument("--plans", default="head,affine,last,full", help="Which to time.")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--table", action="store_true", help="Only write the page.")
    parser.add_argument("--size", type=int, help="Pixels, instead of the model's own.")
    parser.add_argument("--again", action="store_true", help="Export and check what the CSV has, too.")
    parser.add_argument("--files", type=Path, help="Folder of ONNX files to try, too.")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(make_pack(arguments.worker, arguments.size, arguments.work, dry=arguments.dry_run)))
        return
    rows = read_csv()
    arguments.work.mkdir(parents=True, exist_ok=True)
    names = arguments.models.split(",") if arguments.models else () if arguments.files or arguments.table else MODELS
    wanted = {model: arguments.size or MODELS[model] for model in names}
    if arguments.files:
        wanted |= {str(path): 0 for path in sorted(arguments.files.rglob("*.onnx"))}
    for model, size in wanted.items():
        mine = [row for row in rows if (row["model"], int(row["size"])) == (model, size)]
        if arguments.again or not mine:
            made = rows_of(model, size, arguments.work)
            timed = {row["plan"]: {column: row.get(column) for column in TIMES} for row in mine}
            keys = {(row["model"], int(row["size"])) for row in made}
            mine = [{**row, **timed.get(row["plan"], {})} for row in made]
            rows = [row for row in rows if (row["model"], int(row["size"])) not in keys] + mine
            write_csv(rows)
        for row in mine:
            timed = size > 0 and not arguments.no_timing and not arguments.again
            if timed and row["plan"] in arguments.plans.split(",") and row["result"] == "ok" and not row.get("n"):
                time_row(row, arguments.work, arguments.steps)
                write_csv(rows)
        print(f"{model} {size}: {', '.join(row['plan'] + ' ' + row['result'][:60] for row in mine)}", flush=True)
    write_page(rows)
    print(f"{platform.machine()}, {len(rows)} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
