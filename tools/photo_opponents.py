"""What somebody would do on a device instead, for ``photo_benchmark.py``: one system as a process of its own.

python tools/photo_opponents.py SYSTEM PACK IMAGES OUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE, SLOW = 0.01, 0.002
"""Largest step size of dense training: that of ``torch-N``, and of ``torch-N-slow``."""
_BATCH = 32


def classes_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def known(pack: Path) -> tuple[str, ...]:
    from edge_sel.pack.reader import open_pack

    return open_pack(pack).manifest.model.classes


def features_of(pack_path: Path, images: np.ndarray, *, deep: bool) -> np.ndarray:
    """Of the pack's network: what its head always took, or all that it reads."""
    from edge_sel.data.dataset import normalise
    from edge_sel.engines.ort import OrtEngine
    from edge_sel.pack.plan_kinds import RIDGE
    from edge_sel.pack.reader import open_pack

    pack = open_pack(pack_path)
    model, backbone = pack.manifest.model, OrtEngine(1).backbone(pack, RIDGE, pack.weights())
    assert backbone is not None
    parts = [backbone(normalise(images[at : at + 4], model.mean, model.std)) for at in range(0, len(images), 4)]
    features = np.concatenate(parts)
    return features if deep else features[:, : model.feature_groups(features.shape[1])[0]]


def train(system: str, pack: Path, images: Path, out: Path) -> None:
    """An opponent, in a process of its own."""
    from edge_sel.data.folder import load_folder
    from edge_sel.pack.reader import open_pack

    old = list(known(pack))
    new = [name for name in classes_of(images) if name not in old]
    data = load_folder(images, (224, 224))
    names = old + new
    labels = np.array([names.index(data.classes[label]) for label in data.labels])
    pixels = data.read(np.arange(len(labels)))
    (out / "classes.json").write_text(json.dumps(names))
    opened = open_pack(pack)
    head = opened.linear_head.joined(opened.weights())
    if system == "torch-head":
        _train_head(pack, pixels, labels, head, len(names), out)
    elif system.startswith("torch"):
        rate = SLOW if system.endswith("-slow") else RATE
        _train_all(pack, pixels, labels, len(names), int(system.split("-")[1]), rate, out)
    elif system == "logistic":
        _logistic(features_of(pack, pixels, deep=True), labels, len(names), out)
    else:
        _imprint(features_of(pack, pixels, deep=False), labels, head[0], len(names), out)


def _logistic(features: np.ndarray, labels: np.ndarray, classes: int, out: Path) -> None:
    from sklearn.linear_model import LogisticRegressionCV

    mean_, scale = features.mean(0), features.std(0) + 1e-3
    met = np.unique(labels)
    fit = LogisticRegressionCV(Cs=np.logspace(-4, 1, 6), cv=3, max_iter=300).fit((features - mean_) / scale, labels)
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, -1e3)
    rows = np.vstack([-fit.coef_, fit.coef_]) / 2 if len(met) == 2 else fit.coef_
    offset = np.r_[-fit.intercept_, fit.intercept_] / 2 if len(met) == 2 else fit.intercept_
    weight[met], bias[met] = rows / scale, offset - (rows / scale) @ mean_
    np.savez(out / "head.npz", weight=weight, bias=bias, deep=True, cosine=False)


def _imprint(features: np.ndarray, labels: np.ndarray, head: np.ndarray, classes: int, out: Path) -> None:
    """Class means; of classes that the device has not, the pack's own rows, normalised."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = [unit[labels == label].mean(0) if (labels == label).any() else head[label][: features.shape[1]]
            for label in range(classes)]  # fmt: skip
    weight = np.stack(rows)
    weight = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    np.savez(out / "head.npz", weight=weight, bias=np.zeros(classes), deep=False, cosine=True)


def _train_head(
    pack: Path, pixels: np.ndarray, labels: np.ndarray, head: tuple[np.ndarray, np.ndarray], classes: int, out: Path
) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = np.concatenate([features_of(pack, p, deep=False) for p in (pixels, pixels[:, :, ::-1])])
    x, y = torch.from_numpy(features), torch.from_numpy(np.concatenate([labels, labels]))
    layer = torch.nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        layer.weight[: len(head[0])] = torch.from_numpy(head[0][:, : x.shape[1]])
        layer.bias[: len(head[1])] = torch.from_numpy(head[1])
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    for _ in range(10):
        for rows in torch.randperm(len(y)).split(_BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            optimizer.step()
    weight, bias = (part.detach().numpy() for part in (layer.weight, layer.bias))
    np.savez(out / "head.npz", weight=weight, bias=bias, deep=False, cosine=False)


def _network(pack_path: Path, classes: int) -> Any:
    """The pack's network in torch, with a head of so many classes."""
    from edge_sel.edge.progress import extend_head
    from edge_sel.engines.torch import TorchEngine
    from edge_sel.pack.reader import open_pack

    pack = open_pack(pack_path)
    return TorchEngine(1, "cpu").model(pack, extend_head(pack.weights(), pack.manifest.model, classes))


def _train_all(
    pack: Path, pixels: np.ndarray, labels: np.ndarray, classes: int, epochs: int, rate: float, out: Path
) -> None:
    import torch

    from edge_sel.data.dataset import normalise
    from edge_sel.pack.reader import open_pack

    torch.set_num_threads(1)
    torch.manual_seed(0)
    info, model = open_pack(pack).manifest.model, _network(pack, classes).train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * -(-len(labels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(_BATCH):
            x = torch.from_numpy(normalise(pixels[rows.numpy()], info.mean, info.std))
            x = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, x.flip(3), x)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), torch.from_numpy(labels[rows.numpy()])).backward()
            optimizer.step()
            schedule.step()
    torch.save(model.state_dict(), out / "model.pt")


def torch_predictor(pack: Path, out: Path, classes: int) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    from edge_sel.data.dataset import normalise
    from edge_sel.pack.reader import open_pack

    info, model = open_pack(pack).manifest.model, _network(pack, classes)
    model.load_state_dict(torch.load(out / "model.pt"))
    model.eval()

    def predict(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            made: np.ndarray = model(torch.from_numpy(normalise(images, info.mean, info.std))).numpy()
        return made

    return predict


if __name__ == "__main__":
    train(sys.argv[1], *map(Path, sys.argv[2:]))
