"""The engine of the official on-device training runtime, onnxruntime-training, for packs that hold its artifacts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, GuiltyChannels, Hyper, Scores, StepResult, Trainer, computed_elements, measured
from edge_sel.engines.native import ort, translated_errors
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.ort_training_api import VERSION, import_api
from edge_sel.errors import SetupError, UsageError
from edge_sel.pack.manifest import PlanInfo, artifact_files
from edge_sel.pack.reader import Pack

_BUFFER = "_grad.accumulation.buffer"
"""What the name of a weight's gradient buffer ends in."""
_SLOTS = {b"momentum0": "m", b"momentum1": "v"}
_SCHEMA = "onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs.Checkpoint"
_STEP_FIELD = 6
"""Place of ``step`` in the table ``OptimizerGroup`` (checkpoint.fbs)."""


class OrtTrainingEngine(OrtEngine):
    """Trains with the pack's official artifacts; computes everything else as ``ort`` does, in the same runtime.

    Raises:
        SetupError: onnxruntime-training is not installed, or not alone.
    """

    name = "ort-training"

    def __init__(self, threads: int = 0, *, spinning: bool = False) -> None:
        super().__init__(threads, spinning=spinning)
        self.api = import_api()

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Trainer:
        """Start a plan from the given full set of weights; one that only estimates statistics has no artifacts.

        Raises:
            UsageError: the pack has no artifacts of this plan.
            SetupError: they are of another version of the runtime.
        """
        info = pack.plan(plan)
        if not info.trainable:
            return super().trainer(pack, plan, weights)
        official = pack.manifest.ort_training
        if official is None or plan not in official.parameters:
            raise UsageError(f"the pack has no artifacts of onnxruntime-training for plan {plan}", where=pack.path,
                             fix="export it with --with ort-training, or --engine ort")  # fmt: skip
        if official.version != VERSION:
            raise SetupError(f"the pack's artifacts are of onnxruntime-training {official.version}, not {VERSION}",
                             where=pack.path, fix="export it again, or --engine ort")  # fmt: skip
        return OrtTrainingTrainer(self, pack, info, weights)


class OrtTrainingTrainer:
    """One plan's module and optimizer of the official API.

    SGD's momentum is the official gradient accumulation: the buffer keeps the velocity, shrunk by μ before each step.
    """

    def __init__(
        self, engine: OrtTrainingEngine, pack: Pack, plan: PlanInfo, weights: Mapping[str, np.ndarray]
    ) -> None:
        assert pack.manifest.ort_training
        self.plan = plan
        self._engine, self._optimizer_name = engine, pack.manifest.optimizer
        self._files = {kind: pack.graph(name) for kind, name in artifact_files(plan.name)._asdict().items()}
        self._order = pack.manifest.ort_training.parameters[plan.name]
        head = pack.manifest.model.head
        if len(weights[head[-1]]) != len(pack.manifest.model.classes):
            self._files = _resized(self._files, weights, self._order, plan.trainable, head)
        self._computed = computed_elements(plan, weights)
        self._channels = GuiltyChannels(plan, weights)
        self._open(self._files["checkpoint"], weights)

    def _open(self, checkpoint: bytes, weights: Mapping[str, np.ndarray] | None = None) -> None:
        """Load the models with a checkpoint; a nominal one takes the weights."""
        api, options = self._engine.api, self._engine.options()
        with translated_errors("load"), TemporaryDirectory() as folder:  # the API takes paths, and reads them at once
            paths = {kind: str(Path(folder) / kind) for kind in self._files}
            for kind, content in (self._files | {"checkpoint": checkpoint}).items():
                Path(paths[kind]).write_bytes(content)
            self._state = api.CheckpointState.load_checkpoint(paths["checkpoint"])
            self._module = api.Module(paths["training"], self._state, paths["eval"], session_options=options)
            if weights is not None:
                values = np.concatenate([np.ravel(weights[name]) for name in self._order]).astype(np.float32)
                self._module.copy_buffer_to_parameters(ort.OrtValue.ortvalue_from_numpy(values)._ortvalue, False)
            # Of a nominal checkpoint that is not filled yet it would keep null pointers.
            self._optimizer = api.Optimizer(paths["optimizer"], self._module)
        self._inputs = self._module.input_names()
        self._outputs = self._module.output_names()
        self._velocity: Arrays | None = {}
        """What SGD continues from; None once it stands in the gradient buffers. The first run overwrites these."""

    def _data(self, name: str) -> np.ndarray:
        """A weight or statistic, as a writable view."""
        view: np.ndarray = self._state.parameters[name].data
        return view

    def _buffer(self, name: str) -> np.ndarray:
        """A weight's gradient buffer, as a writable view."""
        view: np.ndarray = self._state.parameters[name].grad
        return view

    def _run(self, batch: Batch, gamma: float) -> Arrays:
        """Forward and backward; gradients are added to their buffers."""
        feeds: Arrays = {"x": batch.images, "labels": batch.labels, "sample_weight": batch.weights}
        feeds["gamma"] = np.array([gamma], np.float32)
        for name, index in self._channels.index.items():
            rows = np.zeros((len(self._data(name)), 1, 1, 1), np.float32)
            rows[index] = 1
            feeds[f"rows::{name}"] = rows
        with translated_errors("run"):
            values = self._module.train()(*(np.ascontiguousarray(feeds[name]) for name in self._inputs))
        return dict(zip(self._outputs, values, strict=True))

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Forward only, with the current weights and running statistics."""
        ones = np.ones(len(labels), np.float32)
        self._module.eval()
        names = self._module.output_names()
        with translated_errors("run"):
            values = dict(zip(names, self._module(np.ascontiguousarray(images), labels, ones), strict=True))
        return Scores(values["loss"], values["logits"])

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        """One update."""
        before = self._velocity
        if self._optimizer_name == "adam":
            self._module.lazy_reset_grad()
        elif before is None:
            for name in self.plan.trainable:
                self._buffer(name)[self._rows(name)] *= hyper.momentum
        outputs = self._run(batch, hyper.gamma)
        if self._optimizer_name == "sgd":
            self._velocity = None
            for name, velocity in (before or {}).items():  # rows that take part become μ·u + g, of g in the buffer
                buffer, rows = self._buffer(name), self._rows(name)
                mine = velocity[rows] * hyper.momentum + buffer[rows]
                buffer[...] = velocity
                buffer[rows] = mine
        self._update(hyper)
        for name in self.plan.buffers:
            running = self._data(name)
            running[...] = (1 - hyper.bn_momentum) * running + hyper.bn_momentum * outputs[f"batch::{name}"]
        self._channels.advance()
        return StepResult(outputs["loss"], outputs["logits"], int(outputs["kept"]), self._computed)

    def _rows(self, name: str) -> slice | np.ndarray:
        """The output channels of a weight that take part."""
        return self._channels.index.get(name, slice(None))

    def _update(self, hyper: Hyper) -> None:
        """The official optimizer; channels outside of a budget are not its business."""
        resting: Arrays = {}
        for name in self._channels.index:
            others = np.ones(len(self._data(name)), bool)
            others[self._rows(name)] = False
            resting[name] = np.where(others[:, None, None, None], self._buffer(name), 0)
            self._buffer(name)[others] = 0
        self._optimizer.set_learning_rate(hyper.learning_rate)  # a loaded checkpoint has forgotten it
        with translated_errors("run"):
            self._optimizer.step()
        for name, velocity in resting.items():
            self._buffer(name)[...] += velocity

    def guilt(self, batch: Batch) -> Arrays:
        """As every trainer; velocities are put back."""
        if self.plan.channels:
            return {}
        velocity = self._velocities() if self._optimizer_name == "sgd" else {}
        self._module.lazy_reset_grad()
        self._run(batch, -1.0)
        gradients = {name: self._buffer(name) for name in self.plan.trainable}
        squares = {n: np.square(g.reshape(len(g), -1)) for n, g in gradients.items() if measured(self.plan, n, g.ndim)}
        norms = {name: np.sqrt(square.sum(1)) for name, square in squares.items()}
        if velocity:
            self._set_velocities(velocity)
        return norms

    def set_channels(self, channels: Mapping[str, np.ndarray]) -> None:
        """Choose the guilty output channels of a budgeted plan."""
        self._channels.choose(channels)

    def weights(self) -> Arrays:
        """Copies of every weight and running statistic that the plan changes."""
        return {name: self._data(name).copy() for name in (*self.plan.trainable, *self.plan.buffers)}

    def state(self) -> Arrays:
        """Weights, optimizer state, channel choice and step counts, by the names that every engine gives them."""
        if self._optimizer_name == "adam":
            kept = _read_moments(self._saved(), self.plan.trainable)
        else:
            kept = {f"momentum::{name}": value for name, value in self._velocities().items()}
        return {**self.weights(), **kept, **self._channels.state()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a saved state."""
        self._channels.load_state(state)
        if self._optimizer_name == "adam":
            self._optimizer.set_learning_rate(0.0)
            self._optimizer.step()  # a checkpoint of no step has no place for their number
            self._open(_with_moments(self._saved(), state))
        else:
            self._set_velocities({name: np.array(state[f"momentum::{name}"]) for name in self.plan.trainable})
        for name in (*self.plan.trainable, *self.plan.buffers):
            self._data(name)[...] = state[name]

    def _velocities(self) -> Arrays:
        """Copies."""
        if self._velocity is None:
            return {name: self._buffer(name).copy() for name in self.plan.trainable}
        zero = {name: np.zeros_like(self._data(name)) for name in self.plan.trainable}
        return {**zero, **{name: value.copy() for name, value in self._velocity.items()}}

    def _set_velocities(self, velocity: Arrays) -> None:
        if self._velocity is not None:
            self._velocity = velocity
            return
        for name, value in velocity.items():
            self._buffer(name)[...] = value

    def _saved(self) -> bytes:
        """An official checkpoint with the optimizer's state."""
        with translated_errors("save"), TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            self._engine.api.CheckpointState.save_checkpoint(self._state, str(path), include_optimizer_state=True)
            return path.read_bytes()


def _resized(
    files: Mapping[str, bytes], weights: Mapping[str, np.ndarray], order: Sequence[str], trainable: Sequence[str],
    head: Sequence[str],
) -> dict[str, bytes]:  # fmt: skip
    """The artifacts for a head with another number of classes: the device may meet new ones.

    Models and nominal checkpoint stay the same but for the shapes that the head's weights have.

    Args:
        files: by what they are, see ``ArtifactFiles``.
        weights: of the network, with the new classes.
        order: parameters of the models.
        trainable: those that are trained.
        head: those of the head; their first axis is the classes.
    """
    import onnx  # takes long
    from onnx import numpy_helper
    from onnxruntime.capi._pybind_state import save_checkpoint

    classes = len(weights[head[-1]])
    changed = dict(files)
    for kind in ("training", "eval"):
        model = onnx.load_from_string(files[kind])
        for value in model.graph.input:
            if value.name.removesuffix(_BUFFER) in head:
                value.type.tensor_type.shape.dim[0].dim_value = classes
        for value in model.graph.output:
            if value.name == "logits":
                value.type.tensor_type.shape.dim[1].dim_value = classes
        changed[kind] = model.SerializeToString()
    tensors = {name: numpy_helper.from_array(np.ascontiguousarray(weights[name]), name) for name in order}
    trained = [tensors[name].SerializeToString() for name in order if name in trainable]
    frozen = [tensors[name].SerializeToString() for name in order if name not in trainable]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(trained, frozen, str(path), True)
        changed["checkpoint"] = path.read_bytes()
    return changed


def _read_moments(checkpoint: bytes, weights: Sequence[str]) -> Arrays:
    """Copies of Adam's moments ``m::WEIGHT`` and ``v::WEIGHT`` in a checkpoint, which the API does not give.

    A checkpoint is a flatbuffer; the runtime's own package has the classes that read it.
    """
    found = {key: raw.view("<f4").reshape(shape).copy() for key, shape, raw in _moments(bytearray(checkpoint))}
    assert found.keys() == {f"{slot}::{name}" for slot in _SLOTS.values() for name in weights}
    return found


def _with_moments(checkpoint: bytes, state: Mapping[str, np.ndarray]) -> bytes:
    """A checkpoint of at least one step with the moments and the count of steps of another state.

    Bytes are replaced in place: moments have the size of their weights.
    """
    changed = bytearray(checkpoint)
    for key, _, raw in _moments(changed):
        raw[...] = np.ascontiguousarray(state[key], "<f4").reshape(-1).view(np.uint8)
    group = _root(changed).OptimizerGroups(0)._tab
    place = group.Pos + group.Offset(_STEP_FIELD)
    changed[place : place + 8] = int(state["steps"]).to_bytes(8, "little")
    return bytes(changed)


def _root(checkpoint: bytearray) -> Any:
    return importlib.import_module(_SCHEMA).Checkpoint.GetRootAs(checkpoint, 0)


def _moments(checkpoint: bytearray) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Name, shape and bytes of each moment; the bytes are a view."""
    group = _root(checkpoint).OptimizerGroups(0)
    for place in range(group.OptimizerStatesLength()):
        of_weight = group.OptimizerStates(place)
        for number in range(of_weight.MomentumsLength()):
            tensor = of_weight.Momentums(number)
            name = f"{_SLOTS[tensor.Name()]}::{of_weight.ParamName().decode()}"
            yield name, tuple(tensor.DimsAsNumpy()), tensor.RawDataAsNumpy()
