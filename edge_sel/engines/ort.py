"""The default engine: stock ONNX Runtime executing the pack's compiled training step."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import partial

import numpy as np

from edge_sel.arrays import Range
from edge_sel.engines.base import Predict, Prefix, Trainer
from edge_sel.engines.native import ort
from edge_sel.engines.ort_arena import lacks_memory, share_arena, shrink_arena
from edge_sel.engines.ort_call import run, told
from edge_sel.engines.ort_device import CUDA, providers
from edge_sel.engines.ort_trainer import OrtTrainer
from edge_sel.errors import SetupError
from edge_sel.pack.reader import Pack
from edge_sel.quantize import quantize_prefix

X86 = ("x86_64", "AMD64")


class OrtEngine:
    """Executes with a fixed number of threads that sleep, not spin, between operators; or on a GPU.

    Spinning threads mostly double the CPU time (and the joules) of a step. ``edge-sel tune`` finds
    out where they do not.

    Args:
        threads: of the processor, 0 for all.
        spinning: whether they wait busily.
        device: ``cpu`` or ``cuda``, where weights and optimizer state then stay; see ``ort_device.choose_device``.
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
            from edge_sel.engines.exact_int8 import exact_int8

            graph = exact_int8(graph, options)
        values = [ort.OrtValue.ortvalue_from_numpy(np.asarray(v, order="C")) for v in constants.values()]
        if values:
            options.add_external_initializers(list(constants), values)
        load = partial(ort.InferenceSession, graph, options, providers=providers(self.device), enable_fallback=0)
        with told("load"):
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

    def prefix(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: Range | None = None
    ) -> Prefix | None:
        """The plan's frozen prefix, all weights constant; with ``int8``, on the processor, its quantized variant."""
        info = pack.prefix(plan)
        if info is None or (int8 is not None and (info.int8 is None or self.device != "cpu")):
            return None
        if int8 is not None and info.int8:
            file, constants = info.int8.graph, quantize_prefix(info.int8, weights, int8)
        else:
            file, constants = info.graph, {n: weights[n] for n in info.constants if n in weights}
        shrink_arena()  # a trainer, if there is one, rests meanwhile
        session = self.session(pack.graph(file), constants, int8=int8 is not None)

        def prefix(images: np.ndarray, _in_use: object = constants) -> np.ndarray:  # a session reads them in place
            features: np.ndarray = run(session, ["features"], {"x": images})[0]
            return features

        return prefix

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Predict:
        """Inference with all weights but the head as constants, so that ORT can fuse and pack them."""
        head = pack.manifest.model.head
        shrink_arena()  # a trainer, if there is one, rests meanwhile
        session = self.session(pack.eval_graph, {n: v for n, v in weights.items() if n not in head})
        feeds = {name: np.ascontiguousarray(weights[name]) for name in head}

        def predict(images: np.ndarray) -> np.ndarray:
            logits: np.ndarray = run(session, ["logits"], {"x": images, **feeds})[0]
            return logits

        return predict
