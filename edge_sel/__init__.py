"""edge-sel: on-device fine-tuning of image classifiers, with joules that have a source.

    import edge_sel

    pack = edge_sel.export("net.onnx", "train/", out="model.edgepack", mean=(0.5,) * 3, std=(0.25,) * 3)

    run = edge_sel.finetune("model.edgepack", "photos/", out="run", plan="last")
    print(run.accuracy_before, run.accuracy_after, run.shipped, run.energy_j, run.energy_source)

    made = edge_sel.train_round("model.edgepack", images)  # in memory: nothing is written
    print(made.shipped, made.changed, made.evidence)

    with edge_sel.EnergyMonitor() as monitor:
        anything()
    print(monitor.total_j)

    classifier = edge_sel.open_classifier("run")
    probabilities = classifier.probabilities(images)  # uint8 [N, H, W, 3] → float64 [N, classes]

A name is imported when it is asked for: importing ``edge_sel`` itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edge_sel.version import __version__ as __version__

if TYPE_CHECKING:
    from edge_sel.api.export import export as export
    from edge_sel.api.round import Round as Round
    from edge_sel.api.round import finetune as finetune
    from edge_sel.api.round import train_round as train_round
    from edge_sel.data.dataset import ImageSet as ImageSet
    from edge_sel.edge.classifier import Classifier as Classifier
    from edge_sel.edge.classifier import open_classifier as open_classifier
    from edge_sel.errors import EdgeSelError as EdgeSelError
    from edge_sel.pack.reader import Pack as Pack
    from edge_sel.pack.reader import open_pack as open_pack
    from edge_sel.power.figure import EnergyFigure as EnergyFigure
    from edge_sel.power.monitor import EnergyMonitor as EnergyMonitor

PLACES = {
    "Classifier": "edge.classifier",
    "EdgeSelError": "errors",
    "EnergyFigure": "power.figure",
    "EnergyMonitor": "power.monitor",
    "ImageSet": "data.dataset",
    "Pack": "pack.reader",
    "Round": "api.round",
    "export": "api.export",
    "finetune": "api.round",
    "open_classifier": "edge.classifier",
    "open_pack": "pack.reader",
    "train_round": "api.round",
}
"""The public names, and the modules that they come from."""
__all__ = ["__version__", *PLACES]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'edge_sel' has no attribute {name!r}")
    return getattr(import_module(f"edge_sel.{PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
