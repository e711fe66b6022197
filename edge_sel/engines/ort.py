"""The default engine: stock ONNX Runtime executing the pack's compiled training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from edge_sel.arrays import Arrays, Range
from edge_sel.engines.base import (
    Batch,
    GuiltyChannels,
    Hyper,
    Predict,
    Prefix,
    Scores,
    StepResult,
    Trainer,
    computed_elements,
)
from edge_sel.engines.ort_arena import lacks_memory, share_arena, shrink_arena
from edge_sel.errors import EdgeSelError, PackError, SetupError
from edge_sel.pack.manifest import OPTIMIZER_STATE, PlanInfo
from edge_sel.pack.reader import Pack
from edge_sel.quantize import quantize_prefix

WHOLE = 8
"""Batches of a multiple of this have a blocked form of their own; others, as at the end of an epoch, are rare."""


ROOM = 96 << 20
"""Bytes that must be free before another form of a graph is made."""


class OrtEngine:
    """Executes on the CPU with a fixed number of threads that sleep, not spin, between operators.

    Spinning threads mostly double the CPU time (and the joules) of a step; see docs/engines.md. ``edge-sel tune`` finds
    out where they do not.
    """

    name = "ort"
    blocked_from_flops = 5e8
    """Of a step; a smaller one is over before the blocked form of its graph is loaded."""

    def __init__(self, threads: int = 0, *, spinning: bool = False) -> None:
        self.threads, self.spinning = threads, spinning

    def options(self) -> ort.SessionOptions:
        """Of every session."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False  # its one big block doubles the peak memory and saves no time
        options.log_severity_level = 4  # errors are raised; told once is enough
        share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        return options

    def session(self, graph: bytes, constants: Mapping[str, np.ndarray]) -> ort.InferenceSession:
        """Load a graph with the given values for the weights that it keeps constant."""
        options = self.options()
        values = [ort.OrtValue.ortvalue_from_numpy(np.asarray(v, order="C")) for v in constants.values()]
        if values:
            options.add_external_initializers(list(constants), values)
        load = partial(ort.InferenceSession, graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        with told("load"):
            try:
                return load()
            except Exception as error:
                if not lacks_memory(error):
                    raise
                shrink_arena()
            return load()

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Trainer:
        """Start a plan from the given full set of weights."""
        return OrtTrainer(self, pack, pack.plan(plan), weights)

    def prefix(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: Range | None = None
    ) -> Prefix | None:
        """The plan's frozen prefix, all weights constant; with ``int8`` its quantized variant, made of them."""
        info = pack.prefix(plan)
        if info is None or (int8 is not None and info.int8 is None):
            return None
        if int8 is not None and info.int8:
            file, constants = info.int8.graph, quantize_prefix(info.int8, weights, int8)
        else:
            file, constants = info.graph, {n: weights[n] for n in info.constants if n in weights}
        session = self.session(pack.graph(file), constants)

        def prefix(images: np.ndarray, _in_use: object = constants) -> np.ndarray:  # a session reads them in place
            features: np.ndarray = _run(session, ["features"], {"x": images})[0]
            return features

        return prefix

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Predict:
        """Inference with all weights but the head as constants, so that ORT can fuse and pack them."""
        head = pack.manifest.model.head
        shrink_arena()  # a trainer, if there is one, rests meanwhile
        session = self.session(pack.eval_graph, {n: v for n, v in weights.items() if n not in head})
        feeds = {name: np.ascontiguousarray(weights[name]) for name in head}

        def predict(images: np.ndarray) -> np.ndarray:
            logits: np.ndarray = _run(session, ["logits"], {"x": images, **feeds})[0]
            return logits

        return predict


def _run(session: ort.InferenceSession, outputs: list[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with told("run"):
        values: list[np.ndarray] = session.run(outputs, dict(feeds))
    return values


@contextmanager
def told(doing: str) -> Iterator[None]:
    """onnxruntime raises bare pybind exceptions: MemoryError where there was no room, else the graph is not as it was.

    Of a failed run the arena keeps what it has taken, which a smaller one may need in other pieces.
    """
    try:
        yield
    except Exception as error:
        if lacks_memory(error):
            shrink_arena()
            raise MemoryError from error
        raise _refusal(f"onnxruntime cannot {doing} a graph of the pack", error) from error


def _refusal(what: str, error: Exception) -> EdgeSelError:
    """What onnxruntime's exceptions mean: mostly that the graph is none, or that this version lacks an operator."""
    lines = str(error).splitlines() or [type(error).__name__]
    if type(error).__name__ == "NotImplemented":
        fix = f"onnxruntime {ort.__version__} is installed; 1.20 or newer is needed"
        return SetupError(what, where=lines[0], fix=fix)
    return PackError(what, where=lines[0], fix="`edge-sel pack verify` tells more; export the pack again")


class _Form(NamedTuple):
    """A training graph as it is loaded, and what is bound to it: reading the one set of buffers, or the other."""

    session: ort.InferenceSession
    bindings: list[Any]


def _blocked_session(
    engine: OrtEngine, graph: bytes, constants: Mapping[str, np.ndarray], batch: int
) -> ort.InferenceSession | None:
    """The graph in blocked convolutions; None where this machine or this graph has none.

    Raises:
        MemoryError: there is no room to make it. To try would end the process: onnxruntime survives a lack of memory
            while it computes, not while it loads.
    """
    np.empty(ROOM + 8 * len(graph) + sum(value.nbytes for value in constants.values()), np.uint8)
    from edge_sel.engines.block_size import block_size  # it needs onnx, which takes long to import
    from edge_sel.engines.blocked import rewrite

    block = block_size()
    rewritten = None if block is None else rewrite(graph, batch, block)
    return None if rewritten is None else engine.session(rewritten, constants)


class OrtTrainer:
    """Weights and optimizer state live in two sets of buffers; a step reads one and writes the other."""

    def __init__(self, engine: OrtEngine, pack: Pack, plan: PlanInfo, weights: Mapping[str, np.ndarray]) -> None:
        self.plan = plan
        self._steps = 0
        self._computed = computed_elements(plan, weights)
        changing = [*plan.trainable, *plan.buffers]
        inputs = {*changing, *pack.manifest.model.head}
        before = info.constants if (info := pack.prefix(plan.name)) else ()
        constants = {n: v for n, v in weights.items() if n not in inputs and n not in before}
        self._train = engine.session(pack.graph(plan.train), constants)
        self._score: ort.InferenceSession | None = None
        self._make_score = partial(engine.session, pack.graph(plan.score), constants)
        state = {n: np.array(weights[n], np.float32, order="C") for n in changing}
        for slot in OPTIMIZER_STATE[pack.manifest.optimizer]:
            state.update({f"{slot}::{n}": np.zeros_like(state[n]) for n in plan.trainable})
        self._changing = changing
        self._fixed = {n: np.array(weights[n], np.float32) for n in inputs if n not in changing}
        self._buffers = (state, {n: np.empty_like(v) for n, v in state.items()})
        self._channels = GuiltyChannels(plan, weights)
        self._names = {i.name for i in self._train.get_inputs()}
        outputs = [o.name for o in self._train.get_outputs()]
        self._free_outputs = [o for o in outputs if not o.startswith("new::")]
        self._forms: dict[int, _Form] = {}
        self._blocked_from_flops = engine.blocked_from_flops
        self._make_form = partial(_blocked_session, engine, pack.graph(plan.train), constants)
        self._plain = _Form(self._train, [self._bind(self._train, *pair) for pair in self._pairs()])
        self._turned = False

    def _pairs(self) -> list[tuple[Arrays, Arrays]]:
        """Which set of buffers is read and which is written, in turns."""
        return [self._buffers, (self._buffers[1], self._buffers[0])]

    def _form(self, batch: int) -> _Form:
        """The fastest form of the graph for batches of this size: the same one in a run that is resumed."""
        if batch % WHOLE or batch * self.plan.flops_train < self._blocked_from_flops:
            return self._plain
        if batch not in self._forms:
            session = self._make_form(batch)
            pairs = self._pairs()[:: -1 if self._turned else 1]
            form = self._plain if session is None else _Form(session, [self._bind(session, *pair) for pair in pairs])
            self._forms[batch] = form
        return self._forms[batch]

    def _bind(self, session: ort.InferenceSession, read: Arrays, write: Arrays) -> Any:
        binding = session.io_binding()
        for name, value in {**read, **self._fixed}.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        for name, value in write.items():
            binding.bind_ortvalue_output(f"new::{name}", ort.OrtValue.ortvalue_from_numpy(value))
        for name in self._free_outputs:
            binding.bind_output(name)
        return binding

    def _run(self, batch: Batch, scalars: Mapping[str, float]) -> Arrays:
        form = self._form(len(batch.labels))
        binding = form.bindings[self._turned]
        feeds: Arrays = {"x": batch.images, "labels": batch.labels, "sample_weight": batch.weights}
        feeds |= {name: np.float32(value).reshape(()) for name, value in scalars.items()}
        feeds |= {f"index::{name}": index for name, index in self._channels.index.items()}
        feeds |= {f"steps::{name}": steps for name, steps in self._channels.next_steps().items()}
        for name in self._names & feeds.keys():
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
        for name in ("loss", "logits"):  # afresh: their batch size may differ from the last step's
            binding.bind_output(name)
        with told("run"):
            form.session.run_with_iobinding(binding)
        outputs = binding.get_outputs()[-len(self._free_outputs) :]
        return {name: value.numpy() for name, value in zip(self._free_outputs, outputs, strict=True)}

    def _scalars(self, hyper: Hyper) -> dict[str, float]:
        return {
            "lr": hyper.learning_rate,
            "gamma": hyper.gamma,
            "weight_decay": hyper.weight_decay,
            "momentum": hyper.momentum,
            "bn_momentum": hyper.bn_momentum,
            "step": float(self._steps + 1),
        }

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Forward only, with the current weights and running statistics."""
        if self._score is None:
            self._score = self._make_score()
        current = {n: self._buffers[0][n] for n in self._changing} | self._fixed
        names = {i.name for i in self._score.get_inputs()}
        feeds = {"x": images, "labels": labels} | {n: v for n, v in current.items() if n in names}
        losses, logits = _run(self._score, ["loss", "logits"], feeds)
        return Scores(losses, logits)

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        """One update; the buffers change roles."""
        outputs = self._run(batch, self._scalars(hyper))
        self._steps += 1
        self._channels.advance()
        self._buffers = (self._buffers[1], self._buffers[0])
        self._turned = not self._turned
        kept = int(outputs["kept"]) if "kept" in outputs else 0
        return StepResult(outputs["loss"], outputs["logits"], kept, self._computed)

    def guilt(self, batch: Batch) -> Arrays:
        """Run a step and keep only the channel norms: the written buffers are never read."""
        outputs = self._run(batch, self._scalars(Hyper(learning_rate=0.0)))
        return {n.removeprefix("guilt::"): v for n, v in outputs.items() if n.startswith("guilt::")}

    def set_channels(self, channels: Mapping[str, np.ndarray]) -> None:
        """Choose the guilty output channels of a budgeted plan."""
        self._channels.choose(channels)

    def weights(self) -> Arrays:
        """Copies of every weight and running statistic that the plan changes."""
        shrink_arena()  # no step runs now: there is room for these, and for what is done with them
        return {name: self._buffers[0][name].copy() for name in self._changing}

    def state(self) -> Arrays:
        """Weights, optimizer state, channel choice and step counts."""
        shrink_arena()
        saved = {name: value.copy() for name, value in self._buffers[0].items()}
        return {**saved, **self._channels.state(), "steps": np.array(self._steps, np.int64)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy a saved state into the bound buffers."""
        for name, buffer in self._buffers[0].items():
            buffer[...] = state[name]
        self._channels.load_state(state)
        self._steps = int(state["steps"])
