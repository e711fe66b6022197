"""The registry: every system of the sources, their comparators, and the controls they lack; what each trains with.

A setup can be scaled down where there is no GPU or no data set. Without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge_sel.config.schema import nearest
from edge_sel.errors import UsageError

Schedule = Literal["constant", "sel", "cosine", "cycles", "triangle"]
FirstWeights = Literal["auto", "imagenet", "random"]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer and how its rate goes over the run; see ``optim`` for the formulas."""

    kind: Literal["adam", "sgd"] = "adam"
    rate: float = 1e-3
    schedule: Schedule = "constant"
    momentum: float = 0.9
    weight_decay: float = 0.0
    bias_factor: float = 1.0
    """Of the rate of batch norm's biases."""
    lookahead: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Mirroring and shifting, on the device."""

    flip: Literal["none", "random", "alternate"] = "random"
    """``alternate``: a random half in the first epoch, then the other half and so on, so that two epochs show both."""
    shift: int = 4
    """Pixels each way."""
    border: Literal["zero", "reflect"] = "zero"


@dataclass(frozen=True)
class Setup:
    """What a system trains with. ``epochs`` counts all of them, warmup and pretraining included."""

    model: str
    epochs: int
    batch_size: int = 64
    optimizer: Optimizer = Optimizer()
    augmentation: Augmentation = Augmentation()
    label_smoothing: float = 0.0
    drop_last: bool = False
    mirror_test: bool = False
    """Evaluate each image and its mirror image, and add the logits."""
    image_size: int = 32
    imagenet: bool = False
    """Whether the source begins with ImageNet weights."""


@dataclass(frozen=True)
class Scale:
    """How much of a system is run."""

    name: str
    epoch_share: float = 1.0
    least_epochs: int = 1
    batch_limit: int | None = None
    train_per_class: int | None = None
    test_per_class: int | None = None
    small_models: bool = False
    data: str = "cifar10"

    @property
    def label(self) -> str:
        """What stands beside every figure of this scale."""
        return "" if self.name == "full" else f"scale {self.name}: NOT comparable with the published figures"


SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 0.07, 2, 32, 40, 20, True, "digits"),
        Scale("small", 0.4, 2, 32, 400, 200, True),
        Scale("full"),
    )
}

_SMALL_PIXELS = 32
_SMALL_MODELS = {"simple-cnn": "simple-cnn", "fast-net": "fast-net-small"}


def find_scale(name: str) -> Scale:
    """The scale of that name; UsageError names the nearest one."""
    if name not in SCALES:
        raise UsageError(f"no scale {name!r}: did you mean {nearest(name, SCALES)}?")
    return SCALES[name]


def scaled(setup: Setup, scale: Scale) -> Setup:
    """The setup at this scale: fewer epochs, a small model, batches that leave enough steps in an epoch."""
    if scale.name == "full":
        return setup
    model = _SMALL_MODELS.get(setup.model, "resnet-c-small") if scale.small_models else setup.model
    batch_size = min(setup.batch_size, scale.batch_limit or setup.batch_size)
    optimizer = setup.optimizer
    if optimizer.kind == "sgd":  # the usual rule; Adam's step does not depend on the batch in that way
        optimizer = replace(optimizer, rate=optimizer.rate * batch_size / setup.batch_size)
    epochs = max(scale.least_epochs, math.ceil(setup.epochs * scale.epoch_share - 1e-9))
    setup = replace(setup, model=model, epochs=epochs, batch_size=batch_size, optimizer=optimizer, imagenet=False)
    return at_size(setup, _SMALL_PIXELS)


def at_size(setup: Setup, pixels: int) -> Setup:
    """The setup for images of another size: they are shifted in proportion."""
    shift = round(setup.augmentation.shift * pixels / setup.image_size)
    return replace(setup, image_size=pixels, augmentation=replace(setup.augmentation, shift=shift))


SEL, SEL_V3 = "SEL benchmark README", "SEL README v3"
AST, AST_6 = "AST README v1", "AST CIFAR-10 report (6 %)"
DIHCL = "DIHCL poster (Zhou et al. 2020)"

_RESNET = Setup("resnet18-cifar", 30, imagenet=True)
_ANNEALED = replace(_RESNET, optimizer=Optimizer(schedule="cosine"))
_SIMPLE = Setup("simple-cnn", 40, augmentation=Augmentation("none", 0))
_TWO_STAGE = Setup("torchvision:resnet50", 100, optimizer=Optimizer("sgd", 0.01, "cosine", weight_decay=1e-4),
                   augmentation=Augmentation(shift=16, border="reflect"), image_size=224, imagenet=True)  # fmt: skip
_DIHCL = Setup("resnet18-cifar", 30, batch_size=128,
               optimizer=Optimizer("sgd", 0.1, "cycles", weight_decay=5e-4))  # fmt: skip
_DIHCL_PAPER = replace(_DIHCL, model="wrn-28-10", epochs=300)
# airbench94: SGD of rate 11.5 per 1024 images and momentum 0.85, both divided by 1024 (1 + 1 / (1 - momentum)), with a
# summed loss; so 11.5 / (1 + 1 / 0.15) for a mean loss, and 0.0153 / the same for the decay, which there is per step.
_FAST_RATE = 11.5 / (1 + 1 / 0.15)
_FAST = Setup(
    "fast-net", 10, batch_size=1024,
    optimizer=Optimizer("sgd", _FAST_RATE, "triangle", momentum=0.85, weight_decay=0.0153 / 11.5, bias_factor=64.0,
                        lookahead=True),
    augmentation=Augmentation("alternate", 2, "reflect"), label_smoothing=0.2, drop_last=True, mirror_test=True,
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """A named row: what it trains with, how it selects, where it is from."""

    name: str
    text: str
    source: str
    setup: Setup
    policy: str = "plain"
    """Its name in ``policies.build_policy``."""
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    suites: frozenset[str] = frozenset()
    """The scales whose suite it belongs to; that of ``smoke`` has all systems."""
    published: Setup | None = None
    """What the source trained with, where that is too long to be the default."""

    def at(
        self, scale: Scale, *, model: str | None = None, epochs: int | None = None, image_size: int | None = None
    ) -> Setup:
        """The setup at a scale; a model, a number of epochs or an image size (pixels) that was asked for wins."""
        setup = scaled(self.setup, scale)
        if image_size is not None:
            setup = at_size(setup, image_size)
        return replace(setup, model=model or setup.model, epochs=epochs or setup.epochs)

    def label(self, setup: Setup, scale: Scale) -> str:
        """What stands beside every figure of a run that is not the published one; empty for one that is."""
        theirs = self.published or self.setup
        same = all(getattr(setup, key) == getattr(theirs, key) for key in ("model", "epochs", "image_size"))
        if scale.label or same:
            return scale.label
        return f"{self.name}, not the source's model and epochs: NOT comparable with the published figures"


def _epochs(setup: Setup, epochs: int) -> Setup:
    return replace(setup, epochs=epochs)


_FULL, _BOTH = frozenset({"full"}), frozenset({"full", "small"})


def _hardness_systems() -> list[System]:
    kinds = {"loss": "the loss", "delta": "the change of the loss", "flip": "prediction flips"}
    found = []
    for rule in ("greedy", "rand", "exp", "beta"):
        for kind, words in kinds.items():
            usual = "flip" if rule == "beta" else "loss"
            name = f"dihcl-{rule}" if kind == usual else f"dihcl-{rule}-{kind}"
            text = f"DIHCL-{rule.title()}, hardness by {words}"
            suites = _BOTH if name == "dihcl-exp" else frozenset[str]()
            found.append(System(name, text, DIHCL, _DIHCL, "dihcl", {"rule": rule, "kind": kind}, suites=suites,
                                published=_DIHCL_PAPER))  # fmt: skip
    return found


_ALL = [
    System("baseline", "dense training", SEL, _RESNET, suites=_BOTH),
    System("lottery-ticket", "15 epochs, 80 % pruned, rewound, 30 epochs", SEL, _epochs(_RESNET, 45), "lottery",
           suites=_BOTH),
    System("sel-95", "gamma at p40, 5 stages", SEL, _epochs(_RESNET, 50), "sel", {"percentile": 40}, suites=_BOTH),
    System("warmup-sel", "5 dense epochs on a fifth, then SEL", SEL, _epochs(_RESNET, 55), "sel",
           {"percentile": 40, "warmup": 5}, suites=_BOTH),
    System("sel-v3", "gamma at p20, stages with accuracy thresholds", SEL_V3, _epochs(_RESNET, 50), "sel",
           {"percentile": 20, "thresholds": True}, suites=_FULL),
    System("ast", "Sundew gate at 10 %", AST, _SIMPLE, "sundew", {"rate": 0.10}, suites=_BOTH),
    System("ast-6", "Sundew gate at 6 %, 3 epochs", AST_6, _epochs(_SIMPLE, 3), "sundew", {"rate": 0.06}),
    System("ast-two-stage", "10 dense epochs, then the gate at 38 %", AST, _TWO_STAGE, "sundew",
           {"rate": 0.38, "warmup_share": 0.1}),
    *_hardness_systems(),
    System("random-mini-batch", "DIHCL's plain comparator", DIHCL, _DIHCL, published=_DIHCL_PAPER),
    System("spl", "self-paced learning: the easiest, more each epoch", DIHCL, _DIHCL, "self-paced", {"easy": True},
           published=_DIHCL_PAPER),
    System("mcl", "minimax curriculum: hard and diverse", DIHCL, _DIHCL, "self-paced", {"easy": False},
           published=_DIHCL_PAPER),
    System("sel-99", "control: gamma at p99, so that the published sparsity comes about", "control",
           _epochs(_RESNET, 50), "sel", {"percentile": 99}),
    System("random", "control: as many images as sel-95, at random, annealed", "control", _epochs(_ANNEALED, 50),
           "random-pools", suites=_FULL),
    System("random-dihcl", "control: as many images as dihcl in each epoch, at random", "control", _DIHCL, "dihcl",
           {"rule": "chance", "kind": "loss"}),
    System("ast-dense", "control: ast without its gate", "control", _SIMPLE),
    System("random-10", "control: a random 10 %, annealed, for ast", "control",
           replace(_SIMPLE, optimizer=Optimizer(schedule="cosine")), "random-rate", {"rate": 0.10}),
    System("fewer-epochs", "control: as many images as sel-95, 12 annealed epochs", "control", _epochs(_ANNEALED, 12)),
    System("annealed", "control: the baseline with an annealed rate, for infobatch and selective-backprop", "control",
           _ANNEALED),
    System("infobatch", "control: half of the easy ones pruned, unbiased", "control", _ANNEALED, "infobatch"),
    System("selective-backprop", "control: backward on the harder half", "control", _ANNEALED, "selective-backprop"),
    System("fast", "control: a fast baseline of the airbench class", "control", _FAST, suites=_FULL),
    System("fast-sel", "SEL on the fast baseline: 5 dense epochs, then stages", "control", _FAST, "sel",
           {"percentile": 40, "warmup": 5, "share": 1.0, "fast": True}, suites=_FULL),
    System("fast-random", "control: as many images as fast-sel, at random", "control", _FAST, "random-pools",
           {"warmup": 5, "share": 1.0, "fast": True}),
    System("fast-ast", "the Sundew gate at 38 % on the fast baseline", "control", _FAST, "sundew",
           {"rate": 0.38, "warmup_share": 0.1}),
]  # fmt: skip

SYSTEMS = {system.name: system for system in _ALL}


def find_systems(names: list[str], scale: Scale) -> list[System]:
    """The systems of these names; without any, the suite of the scale (``smoke``: all of them)."""
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        raise UsageError(f"no system {unknown[0]!r}: did you mean {nearest(unknown[0], SYSTEMS)}?")
    if names:
        return [SYSTEMS[name] for name in dict.fromkeys(names)]
    return [system for system in _ALL if scale.name == "smoke" or scale.name in system.suites]


@dataclass(frozen=True)
class SuiteOptions:
    """What a suite may be told."""

    scale: Scale
    data: str
    out: Path
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    weights: FirstWeights = "auto"
    model: str | None = None
    epochs: int | None = None
    image_size: int | None = None

    def setup(self, system: System) -> Setup:
        """What a system trains with under these options."""
        return system.at(self.scale, model=self.model, epochs=self.epochs, image_size=self.image_size)
