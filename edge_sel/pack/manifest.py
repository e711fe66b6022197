"""``manifest.json``: what a pack holds and how each file must hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from edge_sel.pack.plan_kinds import PlanKind, plan_kind, split_plan_name
from edge_sel.schema import Within

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
EVAL = "eval.onnx"
OPTIMIZER_STATE = {"sgd": ("momentum",), "adam": ("m", "v")}
"""Per optimizer, the state tensors that accompany each trained weight."""
OPTIMIZER_SCALARS = {"sgd": ("lr", "gamma", "momentum"), "adam": ("lr", "gamma", "step")}
"""Per optimizer, the run-time scalars of a step."""

MOST_FEATURES = 1 << 24

# Bounds of what a pack from outside says.
Count = Annotated[int, Within(0, 1 << 50)]
Features = Annotated[int, Within(1, MOST_FEATURES)]
PixelsAside = Annotated[int, Within(1, 4096)]


@dataclass(frozen=True)
class Tap:
    """A layer whose pooled output the head reads, beside what it always took.

    Attributes:
        name: of the module whose output it is, or of the tensor in a foreign file.
        axes: of its pixels or tokens.
        width: its channels C; deviations of C channels are features, and means.
        mean: whether the means are among them; not where the head takes these already.
    """

    name: str
    axes: tuple[int, ...]
    width: Features
    mean: bool = True

    @property
    def features(self) -> int:
        """How many it gives."""
        return self.width * (2 if self.mean else 1)


@dataclass(frozen=True)
class ModelInfo:
    """The classifier: its builder's name, class names in label order, and input geometry."""

    name: str
    parameters: Count
    classes: tuple[str, ...]
    image_size: tuple[PixelsAside, PixelsAside]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    head: tuple[str, ...]
    flip: bool = False
    """Whether a mirrored image keeps its class."""
    rectified: bool = False
    """Whether ReLU makes the logits, as in SqueezeNet: a class whose logits are all 0 has no gradient."""
    head_scale: float = 1.0
    """Logits are this times the sum of what the head's layers make: ½ for a mean of two; 0 where it is no such sum."""
    taps: tuple[Tap, ...] = ()
    """Layers that the head's last layer, ``deep_head``, reads; those next to the head first."""

    def feature_groups(self, width: int) -> tuple[int, ...]:
        """How many of the head's ``width`` features are of one kind: what it always took, then means and deviations."""
        taps = [tap.width for tap in self.taps for _ in range(2 if tap.mean else 1)]
        return (width - sum(taps), *taps)


@dataclass(frozen=True)
class PlanInfo:
    """One compiled update plan.

    ``flops_forward`` and ``flops_train`` count 2 operations per multiply-add of every Conv, ConvTranspose, Gemm and
    MatMul in the graph, per image. With a ``backbone`` both graphs begin at its features, and so do their counts.
    ``channels`` is how many rows of a limited weight a step trains: output channels, or those of attention heads.
    """

    name: str
    trainable: tuple[str, ...]
    buffers: tuple[str, ...]
    bn_mode: str
    channels: dict[str, int]
    train: str
    score: str
    flops_train: Count
    flops_forward: Count
    backbone: str = ""
    """Which of the manifest's backbones; none where the graphs begin at the image."""
    heads: dict[str, int] = field(default_factory=dict)
    """Trained weights that make query, key and value of attention, and their heads H; the rows are [3, H, D]."""
    step_bytes: Count = 0
    """What a training step keeps of each image, activations and gradients; 0 where nobody counted."""

    @property
    def base(self) -> str:
        """The same plan without a channel budget; its gradients choose the channels."""
        return split_plan_name(self.name)[0]

    @property
    def kind(self) -> PlanKind:
        """What trains it, and what it changes."""
        return plan_kind(self.name)

    @property
    def budget(self) -> float | None:
        """Share of each convolution's output channels, or of attention heads, that is trained; None: all of them."""
        return split_plan_name(self.name)[1]


DEEP_HEAD = "deep_head"
"""The layer of a head that reads pooled features of earlier layers: ``deep_head.weight`` and ``deep_head.bias``."""


def closed_form_flops(features: int, classes: int) -> int:
    """Per image: the features' scatter matrix and their coordinates in it, 4 F² operations, and the old logits."""
    return 4 * features**2 + 2 * features * classes


IMAGE_GRID = ("image::scale", "image::zero")
"""Initializers of a quantized backbone: what one step of its image is worth, and which step is zero."""


@dataclass(frozen=True)
class Int8Conv:
    """A convolution of a quantized backbone, whose integers the device computes.

    Attributes:
        name: of its output; what is supplied is named after it.
        weight: name of the weights, ``bias`` of the bias, if any.
        norm: names of the scale, shift, mean and variance that are folded in, if any, with their ``epsilon``.
        input_scale: of one step of its input; None where that is the image, whose range the device knows.
    """

    name: str
    weight: str
    bias: str
    norm: tuple[str, ...]
    epsilon: float
    input_scale: Annotated[float, Within(0, 1e6)] | None

    @property
    def supplied(self) -> tuple[str, str, str]:
        """Initializers of the graph: int8 weights, their scales, int32 biases."""
        return f"{self.name}::weight", f"{self.name}::scale", f"{self.name}::bias"


@dataclass(frozen=True)
class Int8Info:
    """The quantized variant of a backbone, whose integers and whose image's grid, ``IMAGE_GRID``, the device computes.

    Attributes:
        graph: its file, without the weights.
        relative_error: of the features, on the server's calibration images.
        convolutions: in the order of the graph.
        constants: weights that it takes as they are, behind its last convolution.
    """

    graph: str
    relative_error: float
    convolutions: tuple[Int8Conv, ...]
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackboneInfo:
    """The frozen part of the forward pass that one or several plans share.

    Attributes:
        graph: its file, image in, features out.
        shape: of one image's features.
        constants: initializers that the features depend on, the exporter's own among them.
        flops: of the backbone per image, counted as those of the plans are.
        int8: the same in integers, where the features agree.
    """

    graph: str
    shape: tuple[Features, ...]
    constants: tuple[str, ...]
    flops: Count
    int8: Int8Info | None = None


@dataclass(frozen=True)
class OrtTrainingInfo:
    """The official artifacts of onnxruntime-training that a pack may hold; see ``artifact_files``.

    Attributes:
        version: of the runtime that made them; artifacts of one version are for that version.
        parameters: plan → the weights and statistics that its training model takes, in the order of its inputs.
    """

    version: str
    parameters: dict[str, tuple[str, ...]]


class ArtifactFiles(NamedTuple):
    """Files of one plan's artifacts: three models, and a nominal checkpoint, which has names and shapes alone."""

    training: str
    eval: str
    optimizer: str
    checkpoint: str


def artifact_files(plan: str) -> ArtifactFiles:
    """What the artifacts of a plan are called in a pack."""
    training, evaluation, optimizer = (f"ort-{what}-{plan}.onnx" for what in ("training", "eval", "optimizer"))
    return ArtifactFiles(training, evaluation, optimizer, f"ort-checkpoint-{plan}")


@dataclass(frozen=True)
class Calibration:
    """Measured by the server on clean images.

    Attributes:
        gamma: guilt threshold, the ``gamma_percentile`` of |gradient|.
        difficulty: the 0, 10 … 100 % quantiles of the per-image loss.
        embarrassment: E_c of each class at T = 1.5; ``None`` for a class without images.
        accuracy: share of the calibration images classified correctly.
        images: how many images were used.
    """

    gamma: float
    gamma_percentile: float
    difficulty: tuple[float, ...]
    embarrassment: tuple[float | None, ...]
    accuracy: float
    images: Count


@dataclass(frozen=True)
class GainRow:
    """What one stage of training gained in one condition that the server simulated.

    Attributes:
        kind: "head" or "body", for every plan that trains the one or the other.
        visits: images that it trained on, each counted as often as it was.
        excess: validation loss at its beginning minus the clean loss, nats.
        gain: validation accuracy afterwards minus before, as a share; 0 where the stage was undone.
    """

    kind: str
    visits: Annotated[int, Within(1, 1 << 50)]
    excess: float
    gain: float


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes and sha256 of a file."""

    bytes: int
    sha256: str


def file_info(content: bytes) -> FileInfo:
    """Of a file with this content."""
    return FileInfo(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; field names are the JSON keys."""

    model: ModelInfo
    optimizer: str
    calibration: Calibration
    plans: dict[str, PlanInfo]
    files: dict[str, FileInfo]
    backbones: dict[str, BackboneInfo] = field(default_factory=dict)
    gains: tuple[GainRow, ...] = ()
    parity: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    ort_training: OrtTrainingInfo | None = None
    opset: int = 18
    ir_version: int = 9

    def used_backbones(self) -> list[BackboneInfo]:
        """Those that a plan begins with; a pack with fewer plans may still describe others."""
        used = dict.fromkeys(plan.backbone for plan in self.plans.values() if plan.backbone)
        return [self.backbones[name] for name in used]
