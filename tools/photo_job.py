"""What a whole fine-tuning job costs: a folder of a few hundred photographs, two classes, beside torch doing the same.

    python -m venv zoo && zoo/bin/pip install . torch torchvision onnxscript
    zoo/bin/python tools/photo_job.py --work DIR --from CLASSES [--images 400] [--epochs 3] [--repeats 3]

CLASSES holds a folder of images for each of two classes. Each is enlarged to 500×375 pixels, with the grain of a small
sensor, and saved as a JPEG of camera quality. Networks have random weights, so what is learnt means nothing and only
the bill is compared: CPU seconds of the whole process, its peak memory, joules, the start of Python included.

torch does what a careful user would write: photographs are decoded once and kept as bytes; ``head`` computes the
features once; ``last`` and ``full`` train with Adam, what is frozen is in evaluation mode and without gradient. It has
no held-out images, no verdict, no journal. Both train for the same epochs, and take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
MODELS = ("resnet18", "mobilenet_v2")
PIXELS, PHOTO = 224, (500, 375)
BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JOBS = (("edge-sel", "head"), ("torch", "head"), ("edge-sel", "last"), ("torch", "last"), ("edge-sel", "auto"),
        ("torch", "full"))  # fmt: skip


def make_photos(source: Path, out: Path, images: int) -> None:
    """Two classes of photographs, from smaller images."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    folders = sorted(path for path in source.iterdir() if path.is_dir())[:2]
    for folder in folders:
        (out / folder.name).mkdir(parents=True)
        for number, path in enumerate(sorted(folder.iterdir())[: images // 2]):
            with Image.open(path) as small:
                large = np.asarray(small.convert("RGB").resize(PHOTO, Image.Resampling.BICUBIC), np.float32)
            grain = rng.normal(0, 6, large.shape)
            photo = Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))
            photo.save(out / folder.name / f"{number:04}.jpg", quality=85)


def make_pack(name: str, photos: Path, pack: Path) -> None:
    """A pack of random weights, whose statistics are of the photographs, and what torch needs to train the same."""
    import numpy as np
    import torch

    from edge_sel.data.dataset import normalise
    from edge_sel.data.folder import load_folder
    from edge_sel.models.registry import build
    from edge_sel.pack.reader import open_pack

    torch.manual_seed(0)
    images = load_folder(photos, (PIXELS, PIXELS))
    network = build(f"torchvision:{name}", len(images.classes), (PIXELS, PIXELS)).train()
    seen = torch.from_numpy(normalise(images.read(np.arange(0, len(images), len(images) // 32)), MEAN, STD))
    with torch.no_grad():
        for _ in range(20):
            network(seen)
    weights = pack.with_suffix(".pth")
    torch.save(network.state_dict(), weights)
    command = [sys.executable, "-m", "edge_sel", "export", f"torchvision:{name}", "--weights", str(weights)]
    size = f"{PIXELS}x{PIXELS}"
    # What random weights gain in rehearsals means nothing, but `auto` asks for a table.
    command += ["--data", str(photos), "--image-size", size, "--plans", "bn,head,last,full", "--rehearsals", "1"]
    subprocess.run([*command, "--out", str(pack)], cwd=ROOT, check=True)
    plans = open_pack(pack).manifest.plans
    pack.with_suffix(".json").write_text(json.dumps({n: (p.bn_mode, p.trainable) for n, p in plans.items()}))


def train_torch(name: str, plan: str, photos: Path, pack: Path, epochs: int, threads: int) -> None:
    """The whole job in torch."""
    import torch
    from torch import nn
    from torchvision import models, transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small = transforms.Compose([transforms.Resize((PIXELS, PIXELS)), transforms.PILToTensor()])
    folder = ImageFolder(str(photos), small)
    pixels, labels = torch.stack([image for image, _ in folder]), torch.tensor(folder.targets)
    model = models.get_model(name, weights=None, num_classes=len(folder.classes))
    model.load_state_dict(torch.load(pack.with_suffix(".pth"), weights_only=True))
    bn_mode, trainable = json.loads(pack.with_suffix(".json").read_text())[plan]
    model.train(bn_mode == "batch")
    for weight, parameter in model.named_parameters():
        parameter.requires_grad_(weight in trainable)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def images(rows: torch.Tensor) -> torch.Tensor:
        return (pixels[rows].float() / 255 - mean) / std

    forward: nn.Module = model
    if plan == "head":
        forward = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        features: list[torch.Tensor] = []
        kept = forward.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        with torch.inference_mode():
            for rows in torch.arange(len(labels)).split(BATCH):
                model.eval()(images(rows))
        kept.remove()
        known = torch.cat(features).clone()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = nn.functional.cross_entropy(forward(known[rows] if plan == "head" else images(rows)), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    torch.save(model.state_dict(), pack.with_suffix(".tuned"))


def measure(command: list[str], threads: int) -> dict[str, float]:
    """CPU seconds, peak memory and joules of a command, by `edge-sel measure`."""
    whole = [sys.executable, "-m", "edge_sel", "measure", "--json", "--idle", "0", "--", *command]
    given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "EDGE_SEL_FEATURE_STORE": "off"}
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ | given) as process:
        assert process.stdout
        printed = process.stdout.read()
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
    result = json.loads(printed)
    if result["exit"] != 0:
        raise SystemExit(f"photo_job: exit status {result['exit']}: {' '.join(command)}")
    return {"cpu_s": result["cpu_s"], "memory_mb": used.ru_maxrss / 1024, "net_j": result["energy"]["net_j"]}


def command_of(who: str, name: str, plan: str, options: argparse.Namespace) -> list[str]:
    photos, pack, run = options.work / "photos", options.work / f"{name}.edgepack", options.work / "run"
    if who == "torch":
        return [sys.executable, __file__, "--work", str(options.work), "--worker", f"{name} {plan}",
                "--epochs", str(options.epochs), "--threads", str(options.threads)]  # fmt: skip
    shutil.rmtree(run, ignore_errors=True)
    return [
        sys.executable,
        "-m",
        "edge_sel",
        "finetune",
        str(pack),
        "--data",
        str(photos),
        "--out",
        str(run),
        "--plan",
        plan,
        "--epochs",
        str(options.epochs),
        "--batch-size",
        str(BATCH),
        "--threads",
        str(options.threads),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder for photographs and packs.")
    parser.add_argument("--from", type=Path, dest="source", help="A folder of images for each of two classes.")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = options.work.resolve()
    photos = options.work / "photos"
    if options.worker:
        name, plan = options.worker.split()
        if plan == "pack":
            make_pack(name, photos, options.work / f"{name}.edgepack")
            return
        train_torch(name, plan, photos, options.work / f"{name}.edgepack", options.epochs, options.threads)
        return
    if not photos.exists():
        make_photos(options.source, photos, options.images)
    print(f"{options.images} photographs, {options.epochs} epochs, {options.threads} thread(s), n = {options.repeats}")
    print("| model | job | CPU s | peak MB | J |\n|---|---|---|---|---|")
    for name in options.models.split(","):
        if not (options.work / f"{name}.edgepack").exists():
            # In a process of its own: a child's peak memory counts from that of its parent.
            subprocess.run(
                [sys.executable, __file__, "--work", str(options.work), "--worker", f"{name} pack"], check=True
            )
        seen: dict[tuple[str, str], list[dict[str, Any]]] = {job: [] for job in JOBS}
        for _ in range(options.repeats):
            for job in JOBS:
                seen[job].append(measure(command_of(job[0], name, job[1], options), options.threads))
        for job, found in seen.items():
            cpu_s, memory_mb, net_j = (median(run[key] for run in found) for key in ("cpu_s", "memory_mb", "net_j"))
            print(f"| {name} | {' '.join(job)} | {cpu_s:.1f} | {memory_mb:.0f} | {net_j:.0f} |", flush=True)


if __name__ == "__main__":
    main()
