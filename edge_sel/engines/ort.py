"""The default engine: stock ONNX Runtime executes the pack's compiled training step, on the processor or on a GPU."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from edge_sel.arrays import Arrays, Range
from edge_sel.engines.base import (
    Backbone,
    Batch,
    GuiltyChannels,
    Hyper,
    Predict,
    Scores,
    StepResult,
    Trainer,
    computed_elements,
)
from edge_sel.engines.native import (
    CUDA,
    Values,
    lacks_memory,
    ort,
    providers,
    run,
    share_arena,
    shrink_arena,
    translated_errors,
)
from edge_sel.errors import EdgeSelError, SetupError
from edge_sel.pack.manifest import OPTIMIZER_STATE, PlanInfo
from edge_sel.pack.reader import Pack, builtin_pack
from edge_sel.quantize import quantize_backbone

X86 = ("x86_64", "AMD64")

WHOLE = 8
"""Batches of a multiple of this have a blocked form of their own; others, as at the end of an epoch, are rare."""

ROOM = 96 << 20
"""Bytes that must be free before another form of a graph is made."""


class OrtEngine:
    """Executes with a fixed number of threads that sleep, not spin, between operators; or on a GPU.

    Spinning threads mostly double the CPU time (and the joules) of a step. ``edge-sel tune`` finds
    out where they do not.

    Args:
        threads: of the processor, 0 for all.
        spinning: whether they wait busily.
        device: ``cpu`` or ``cuda``, where weights and optimizer state then stay; see ``choose_device``.
    """

    name = "ort"
    blocked_from_flops = 5e8
    """Of a step; a smaller one is over before the blocked form of its graph is loaded."""

    def __init__(self, threads: int = 0, *, spinning: bool = False, device: str = "cpu") -> None:
        self.threads, self.spinning, self.device = threads, spinning, device

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

    def session(self, graph: bytes, constants: Mapping[str, np.ndarray], *, int8: bool = False) -> ort.InferenceSession:
        """Load a graph with the given values of its constant weights; ``int8``: it multiplies integers."""
        options = self.options()
        if int8 and platform.machine() in X86:
            graph = _with_exact_sums(graph, options)
        if self.device == "cuda" and b"training_mode" in graph:
            from edge_sel.engines.plain_statistics import with_plain_statistics  # onnx takes long to import

            graph = with_plain_statistics(graph)
        values = [ort.OrtValue.ortvalue_from_numpy(np.asarray(v, order="C")) for v in constants.values()]
        if values:
            options.add_external_initializers(list(constants), values)
        load = partial(ort.InferenceSession, graph, options, providers=providers(self.device), enable_fallback=0)
        with translated_errors("load"):
            try:
                return self._on_device(load())
            except Exception as error:
                if not lacks_memory(error):
                    raise
                shrink_arena()
            return self._on_device(load())

    def _on_device(self, session: ort.InferenceSession) -> ort.InferenceSession:
        """SetupError if it runs elsewhere: where a provider's libraries are missing, onnxruntime takes another one."""
        if self.device == "cuda" and session.get_providers()[0] != CUDA:
            raise SetupError("onnxruntime cannot load its CUDA provider: CUDA's libraries or the driver are missing")
        return session

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Trainer:
        """Start a plan from the given full set of weights."""
        shrink_arena()  # what was computed before leaves room
        return OrtTrainer(self, pack, pack.plan(plan), weights)

    def backbone(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: Range | None = None
    ) -> Backbone | None:
        """The plan's frozen backbone, all weights constant; with ``int8``, on the processor, its quantized variant."""
        info = pack.backbone(plan)
        if info is None or (int8 is not None and (info.int8 is None or self.device != "cpu")):
            return None
        if int8 is not None and info.int8:
            file, constants = info.int8.graph, quantize_backbone(info.int8, weights, int8)
        else:
            file, constants = info.graph, {n: weights[n] for n in info.constants if n in weights}
        shrink_arena()  # a trainer, if there is one, rests meanwhile
        session = self.session(pack.graph(file), constants, int8=int8 is not None)

        def backbone(images: np.ndarray, _in_use: object = constants) -> np.ndarray:  # a session reads them in place
            return run(session, ["features"], {"x": images})[0]

        return backbone

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Predict:
        """Inference with all weights but the head as constants, so that ORT can fuse and pack them."""
        head = pack.manifest.model.head
        shrink_arena()  # a trainer, if there is one, rests meanwhile
        session = self.session(pack.eval_graph, {n: v for n, v in weights.items() if n not in head})
        feeds = {name: np.ascontiguousarray(weights[name]) for name in head}
        return lambda images: run(session, ["logits"], {"x": images, **feeds})[0]


def _with_exact_sums(graph: bytes, options: ort.SessionOptions) -> bytes:
    """Ask for exact sums of int8 products, and give every convolution a zero point of its own.

    On x86 without VNNI (AVX2 only) onnxruntime adds products of int8 in 16 bits, and the sums overflow: features
    differed by 40 to 50 %. With the option it widens first. Processors with VNNI, and ARM, do not read the option.
    onnxruntime then replaces the zero point of each convolution, so no two may share one.
    """
    import onnx  # it takes long

    weight_zero = 5
    options.add_session_config_entry("session.x64quantprecision", "1")
    model = onnx.load_model_from_string(graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QLinearConv":
            own = onnx.TensorProto()
            own.CopyFrom(constants[node.input[weight_zero]])
            own.name = node.input[weight_zero] = f"{node.output[0]}::weight_zero"
            model.graph.initializer.append(own)
    return bytes(model.SerializeToString())


class _Form(NamedTuple):
    """A training graph as it is loaded.

    Attributes:
        session: of the graph.
        bindings: where its inputs and outputs are, by the set of buffers that it reads; it writes the other one.
    """

    session: ort.InferenceSession
    bindings: list[Any]


class OrtTrainer:
    """A plan's training state. It lives in two sets of buffers; a step reads one and writes the other."""

    def __init__(self, engine: OrtEngine, pack: Pack, plan: PlanInfo, weights: Mapping[str, np.ndarray]) -> None:
        self.plan = plan
        self._computed = computed_elements(plan, weights)
        self._channels = GuiltyChannels(plan, weights)
        self._changing = [*plan.trainable, *plan.buffers]
        inputs = {*self._changing, *pack.manifest.model.head}
        before = info.constants if (info := pack.backbone(plan.name)) else ()
        constants = {n: v for n, v in weights.items() if n not in inputs and n not in before}
        self._load = partial(engine.session, constants=constants)
        self._train_graph, self._score_graph = pack.graph(plan.train), pack.graph(plan.score)
        self._blocked_bytes = ROOM + 8 * len(self._train_graph) + sum(value.nbytes for value in constants.values())
        train = self._load(self._train_graph)
        self._score: ort.InferenceSession | None = None
        state = {n: np.array(weights[n], np.float32, order="C") for n in self._changing}
        for slot in OPTIMIZER_STATE[pack.manifest.optimizer]:
            state.update({f"{slot}::{n}": np.zeros_like(state[n]) for n in plan.trainable})
        fixed = {n: np.array(weights[n], np.float32) for n in inputs if n not in self._changing}
        self._fixed = Values(fixed, engine.device)
        other = {n: np.empty_like(v) for n, v in state.items()}
        self._buffers = (Values(state, engine.device), Values(other, engine.device))
        self._read = 0
        """Which of the buffers the next step reads."""
        self._names = {i.name for i in train.get_inputs()}
        self._free_outputs = [o.name for o in train.get_outputs() if not o.name.startswith("new::")]
        self._on_gpu, self._blocked_from_flops = engine.device != "cpu", engine.blocked_from_flops
        self._plain = self._bound(train)
        self._forms: dict[int, _Form] = {}

    def _form(self, batch: int) -> _Form:
        """The fastest form of the graph for batches of this size: the same one in a run that is resumed."""
        if self._on_gpu or batch % WHOLE or batch * self.plan.flops_train < self._blocked_from_flops:
            return self._plain
        if batch not in self._forms:
            session = self._blocked(batch)
            self._forms[batch] = self._plain if session is None else self._bound(session)
        return self._forms[batch]

    def _blocked(self, batch: int) -> ort.InferenceSession | None:
        """The training graph in blocked convolutions; None where this machine or this graph has none.

        Raises:
            MemoryError: there is no room to make it. To try would end the process: onnxruntime survives a lack of
                memory while it computes, not while it loads.
        """
        np.empty(self._blocked_bytes, np.uint8)
        from edge_sel.engines.blocked import block_size, rewrite  # it needs onnx, which takes long to import

        block = block_size()
        rewritten = None if block is None else rewrite(self._train_graph, batch, block)
        return None if rewritten is None else self._load(rewritten)

    def _bound(self, session: ort.InferenceSession) -> _Form:
        bindings = []
        for read, write in (self._buffers, self._buffers[::-1]):
            binding = session.io_binding()
            for name, value in {**read.ort, **self._fixed.ort}.items():
                binding.bind_ortvalue_input(name, value)
            for name, value in write.ort.items():
                binding.bind_ortvalue_output(f"new::{name}", value)
            for name in self._free_outputs:
                binding.bind_output(name)
            bindings.append(binding)
        return _Form(session, bindings)

    def _run(self, batch: Batch, hyper: Hyper) -> Arrays:
        form = self._form(len(batch.labels))
        binding = form.bindings[self._read]
        feeds: Arrays = {"x": batch.images, "labels": batch.labels, "sample_weight": batch.weights}
        scalars: dict[str, float] = {
            "lr": hyper.learning_rate,
            "gamma": hyper.gamma,
            "momentum": hyper.momentum,
            "bn_momentum": hyper.bn_momentum,
            "step": float(self._channels.made + 1),
        }
        feeds |= {name: np.float32(value).reshape(()) for name, value in scalars.items()}
        feeds |= {f"index::{name}": index for name, index in self._channels.index.items()}
        feeds |= {f"steps::{name}": steps for name, steps in self._channels.next_steps().items()}
        for name in self._names & feeds.keys():
            binding.bind_cpu_input(name, np.ascontiguousarray(feeds[name]))
        with translated_errors("run"):
            form.session.run_with_iobinding(binding)
        values = binding.get_outputs()[-len(self._free_outputs) :]
        outputs = {name: value.numpy() for name, value in zip(self._free_outputs, values, strict=True)}
        for name in self._free_outputs:  # afresh: the next batch size may differ, and these hold a part of the arena
            binding.bind_output(name)
        return outputs

    def score(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Forward only, with the current weights and running statistics."""
        if self._score is None:
            self._score = self._load(self._score_graph)
        current = self._buffers[self._read].ort | self._fixed.ort
        binding = self._score.io_binding()
        for name in [given.name for given in self._score.get_inputs()]:
            if name in current:
                binding.bind_ortvalue_input(name, current[name])
        binding.bind_cpu_input("x", np.ascontiguousarray(images))
        binding.bind_cpu_input("labels", labels)
        for name in ("loss", "logits"):
            binding.bind_output(name)
        with translated_errors("run"):
            self._score.run_with_iobinding(binding)
        return Scores(*(value.numpy() for value in binding.get_outputs()))

    def step(self, batch: Batch, hyper: Hyper) -> StepResult:
        """One update; the buffers change roles."""
        outputs = self._run(batch, hyper)
        self._channels.advance()
        self._read = 1 - self._read
        kept = int(outputs["kept"]) if "kept" in outputs else 0
        return StepResult(outputs["loss"], outputs["logits"], kept, self._computed)

    def guilt(self, batch: Batch) -> Arrays:
        """Run a step and keep only the channel norms: the written buffers are never read."""
        outputs = self._run(batch, Hyper(learning_rate=0.0))
        return {n.removeprefix("guilt::"): v for n, v in outputs.items() if n.startswith("guilt::")}

    def set_channels(self, channels: Mapping[str, np.ndarray]) -> None:
        """Choose the guilty output channels of a budgeted plan."""
        self._channels.choose(channels)

    def weights(self) -> Arrays:
        """Copies of every weight and running statistic that the plan changes."""
        shrink_arena()  # no step runs now: there is room for these, and for what is done with them
        return {name: self._buffers[self._read].read(name) for name in self._changing}

    def state(self) -> Arrays:
        """Weights, optimizer state, channel choice and step counts."""
        shrink_arena()
        current = self._buffers[self._read]
        return {name: current.read(name) for name in current.ort} | self._channels.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy a saved state into the bound buffers."""
        self._buffers[self._read].write(state)
        self._channels.load_state(state)


@cache
def why_no_cuda() -> str | None:
    """None where the CUDA provider makes a training step; else why it does not, in one line.

    That it is compiled in says nothing: its libraries may be missing, or the driver too old.
    """
    if CUDA not in ort.get_available_providers():
        return f"onnxruntime {ort.__version__} here is built without CUDA"
    ort.set_default_logger_severity(4)  # what fails is told once, by us
    pack = builtin_pack()
    image = np.zeros((2, 3, *pack.manifest.model.image_size), np.float32)
    try:
        trainer = OrtEngine(1, device="cuda").trainer(pack, "full", pack.weights())
        losses = trainer.step(Batch(image, np.zeros(2, np.int64), np.ones(2, np.float32)), Hyper(0.0)).losses
    except (EdgeSelError, MemoryError) as error:
        return (str(error) or "it has no memory").splitlines()[0]
    return None if np.isfinite(losses).all() else "its losses are no numbers"


def choose_device(wanted: str) -> tuple[str, str | None]:
    """``cpu`` or ``cuda``, and why a GPU that might have been meant is not used.

    Args:
        wanted: ``auto`` takes the GPU where the CUDA provider is built in and works.

    Raises:
        SetupError: ``cuda`` was asked for and does not work.
    """
    if wanted == "cpu" or (wanted == "auto" and CUDA not in ort.get_available_providers()):
        return "cpu", None
    why = why_no_cuda()
    if why is None:
        return "cuda", None
    if wanted == "cuda":
        raise SetupError("onnxruntime cannot train on a GPU here", where=why, fix="--device cpu")
    return "cpu", why
