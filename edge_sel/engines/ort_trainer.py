"""A plan's training state and steps on stock ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays
from edge_sel.engines.base import Batch, GuiltyChannels, Hyper, Scores, StepResult, computed_elements
from edge_sel.engines.native import ort
from edge_sel.engines.ort_arena import shrink_arena
from edge_sel.engines.ort_call import told
from edge_sel.engines.ort_values import Values
from edge_sel.pack.manifest import OPTIMIZER_STATE, RETIRED_SCALARS, PlanInfo
from edge_sel.pack.reader import Pack

if TYPE_CHECKING:
    from edge_sel.engines.ort import OrtEngine

WHOLE = 8
"""Batches of a multiple of this have a blocked form of their own; others, as at the end of an epoch, are rare."""


ROOM = 96 << 20
"""Bytes that must be free before another form of a graph is made."""


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
        fixed = {n: np.array(weights[n], np.float32) for n in inputs if n not in changing}
        self._fixed = Values(fixed, engine.device)
        other = {n: np.empty_like(v) for n, v in state.items()}
        self._buffers = (Values(state, engine.device), Values(other, engine.device))
        self._channels = GuiltyChannels(plan, weights)
        self._names = {i.name for i in self._train.get_inputs()}
        outputs = [o.name for o in self._train.get_outputs()]
        self._free_outputs = [o for o in outputs if not o.startswith("new::")]
        self._forms: dict[int, _Form] = {}
        self._on_gpu, self._blocked_from_flops = engine.device != "cpu", engine.blocked_from_flops
        self._make_form = partial(_blocked_session, engine, pack.graph(plan.train), constants)
        self._plain = _Form(self._train, [self._bind(self._train, *pair) for pair in self._pairs()])
        self._turned = False

    def _pairs(self) -> list[tuple[Values, Values]]:
        """Which set of buffers is read and which is written, in turns."""
        return [self._buffers, (self._buffers[1], self._buffers[0])]

    def _form(self, batch: int) -> _Form:
        """The fastest form of the graph for batches of this size: the same one in a run that is resumed."""
        if self._on_gpu or batch % WHOLE or batch * self.plan.flops_train < self._blocked_from_flops:
            return self._plain
        if batch not in self._forms:
            session = self._make_form(batch)
            pairs = self._pairs()[:: -1 if self._turned else 1]
            form = self._plain if session is None else _Form(session, [self._bind(session, *pair) for pair in pairs])
            self._forms[batch] = form
        return self._forms[batch]

    def _bind(self, session: ort.InferenceSession, read: Values, write: Values) -> Any:
        binding = session.io_binding()
        for name, value in {**read.ort, **self._fixed.ort}.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in write.ort.items():
            binding.bind_ortvalue_output(f"new::{name}", value)
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
        with told("run"):
            form.session.run_with_iobinding(binding)
        values = binding.get_outputs()[-len(self._free_outputs) :]
        outputs = {name: value.numpy() for name, value in zip(self._free_outputs, values, strict=True)}
        for name in self._free_outputs:  # afresh: the next batch size may differ, and these hold a part of the arena
            binding.bind_output(name)
        return outputs

    def _scalars(self, hyper: Hyper) -> dict[str, float]:
        return {
            "lr": hyper.learning_rate,
            "gamma": hyper.gamma,
            "momentum": hyper.momentum,
            "bn_momentum": hyper.bn_momentum,
            "step": float(self._steps + 1),
            **RETIRED_SCALARS,
        }

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Forward only, with the current weights and running statistics."""
        if self._score is None:
            self._score = self._make_score()
        current = self._buffers[0].ort | self._fixed.ort
        binding = self._score.io_binding()
        for name in [given.name for given in self._score.get_inputs()]:
            if name in current:
                binding.bind_ortvalue_input(name, current[name])
        binding.bind_cpu_input("x", np.ascontiguousarray(images))
        binding.bind_cpu_input("labels", labels)
        for name in ("loss", "logits"):
            binding.bind_output(name)
        with told("run"):
            self._score.run_with_iobinding(binding)
        return Scores(*(value.numpy() for value in binding.get_outputs()))

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
        return {name: self._buffers[0].read(name) for name in self._changing}

    def state(self) -> Arrays:
        """Weights, optimizer state, channel choice and step counts."""
        shrink_arena()
        saved = {name: self._buffers[0].read(name) for name in self._buffers[0].ort}
        return {**saved, **self._channels.state(), "steps": np.array(self._steps, np.int64)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy a saved state into the bound buffers."""
        self._buffers[0].write(state)
        self._channels.load_state(state)
        self._steps = int(state["steps"])
