"""Where an engine computes. Without a GPU, what is asked of one is looked at, not what it answers."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import onnxruntime
import pytest

from edge_sel.engines import native, ort
from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.by_name import choose_engine
from edge_sel.engines.native import CPU, CUDA, Values, providers, translated_errors
from edge_sel.engines.ort import OrtEngine
from edge_sel.engines.plain_statistics import with_plain_statistics
from edge_sel.errors import EdgeSelError, SetupError
from edge_sel.pack.reader import builtin_pack

GPU_HERE = CUDA in onnxruntime.get_available_providers() and ort.why_no_cuda() is None
no_gpu = pytest.mark.skipif(GPU_HERE, reason="this machine has a GPU")


def test_the_processor_is_taken_where_nothing_else_is_built_in():
    if CUDA not in onnxruntime.get_available_providers():
        assert ort.choose_device("auto") == ("cpu", None)
    assert ort.choose_device("cpu") == ("cpu", None)


@no_gpu
def test_a_gpu_that_is_asked_for_and_does_not_work_is_one_line():
    with pytest.raises(SetupError, match="--device cpu") as caught:
        choose_engine("ort", 1, device="cuda")
    assert "\n" not in str(caught.value)


@no_gpu
def test_a_provider_that_is_built_in_and_fails_is_not_used(monkeypatch):
    """As where CUDA's libraries are missing: onnxruntime takes the processor without a word."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    ort.why_no_cuda.cache_clear()
    try:
        device, why = ort.choose_device("auto")
        assert device == "cpu" and why and "\n" not in why
        notes: list[str] = []
        engine = choose_engine("ort", 1, device="auto", note=notes.append)
        assert engine.device == "cpu" and notes == [why]
        pack = builtin_pack()
        image = np.zeros((2, 3, *pack.manifest.model.image_size), np.float32)
        trainer = engine.trainer(pack, "full", pack.weights())
        trainer.step(Batch(image, np.zeros(2, np.int64), np.ones(2, np.float32)), Hyper(0.0))
        with pytest.raises(SetupError, match="cannot train on a GPU"):
            ort.choose_device("cuda")
    finally:
        ort.why_no_cuda.cache_clear()


def test_a_session_on_a_gpu_leaves_the_rest_to_the_processor():
    (gpu, options), cpu = providers("cuda")
    assert (gpu, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider") and options["device_id"] == 0
    assert providers("cpu") == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    "message",
    [
        "CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=board",
        "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED",
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0",
        "CUDA failure 100: no CUDA-capable device is detected",
    ],
)
def test_a_gpu_that_is_lost_in_the_middle_ends_the_run_in_one_line(message):
    """Messages of onnxruntime's source (cuda_call.cc). The run goes on from its last checkpoint, on the processor."""
    with pytest.raises(SetupError, match="--resume") as caught, translated_errors("run"):
        raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : {message}\nmore")
    assert "\n" not in str(caught.value) and "--device cpu" in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 4096",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=board",
    ],
)
def test_a_gpu_without_memory_halves_batches_as_the_processor_does(message):
    with pytest.raises(MemoryError), translated_errors("run"):
        raise RuntimeError(message)


def test_an_error_of_ours_is_not_taken_for_the_runtimes():
    with pytest.raises(EdgeSelError, match="mine"), translated_errors("run"):
        raise SetupError("mine")


def test_values_on_the_processor_are_the_arrays_themselves():
    array = np.arange(4, dtype=np.float32)
    values = Values({"w": array}, "cpu")
    values.write({"w": np.full(4, 7.0)})
    assert (array == 7).all() and (values.ort["w"].numpy() == 7).all()
    copy = values.read("w")
    array[0] = 1
    assert copy[0] == 7


def test_torch_refuses_a_gpu_that_is_not_there():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SetupError, match="--device cpu"):
        choose_engine("torch", 1, device="cuda")
    assert str(choose_engine("torch", 1, device="auto").device) == "cpu"


def test_cuda_libraries_of_packages_are_loaded_without_a_word(monkeypatch, capsys):
    """What fails is printed by onnxruntime, and told later by the session in one line."""
    called = []

    def preload():
        called.append(1)
        print("Failed to load libcudnn.so.9")
        warnings.warn("no plugin", stacklevel=1)

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    native._load_cuda_libraries.cache_clear()
    try:
        assert providers("cpu") == [CPU] and not called
        providers("cuda")
        providers("cuda")
    finally:
        native._load_cuda_libraries.cache_clear()
    assert called == [1] and capsys.readouterr() == ("", "")


def away(found, wanted):
    """The difference of two arrays, relative to the norm of the one that is wanted."""
    return np.linalg.norm((found - wanted).ravel()) / max(1e-6, np.linalg.norm(wanted.ravel()))


def load_rewritten(load, graph, constants, **options):
    return load(with_plain_statistics(graph), constants, **options)


@pytest.mark.parametrize("plan", ["full", "bn"])
def test_what_a_gpu_computes_in_place_of_batch_normalisation_is_the_same(plan, monkeypatch):
    """CUDA's provider has no kernel for its training mode: the rewritten graph, here on the processor."""
    pack = builtin_pack()
    assert b"training_mode" in pack.graph(pack.plan(plan).train)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((16, 3, *pack.manifest.model.image_size)).astype(np.float32)
    batch = Batch(images, rng.integers(0, 10, 16), np.ones(16, np.float32))
    states = []
    for rewritten in (False, True):
        engine = OrtEngine(1)
        if rewritten:
            monkeypatch.setattr(engine, "session", partial(load_rewritten, engine.session))
        trainer = engine.trainer(pack, plan, pack.weights())
        for _ in range(3):
            trainer.step(batch, Hyper(1e-2))  # with gamma, rounding decides what is left out
        states.append(trainer.state())
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert away(states[1][key], value) <= 1e-4, key


@pytest.mark.gpu
@pytest.mark.parametrize("plan", ["head", "last", "full", "last-c25", "affine"])
@pytest.mark.parametrize("name", ["ort", "torch"])
def test_a_gpu_makes_the_same_steps(name, plan):
    """Weights stay there between steps; the state is every engine's."""
    if name == "ort" and not GPU_HERE:
        pytest.skip(f"this onnxruntime cannot train on a GPU: {ort.why_no_cuda() or 'it has no CUDA provider'}")
    if name == "torch" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch cannot use a GPU here")
    pack = builtin_pack()
    rng = np.random.default_rng(0)
    batch = Batch(
        rng.standard_normal((16, 3, *pack.manifest.model.image_size)).astype(np.float32),
        rng.integers(0, 10, 16),
        np.ones(16, np.float32),
    )
    states = []
    for device in ("cpu", "cuda"):
        engine = choose_engine(name, 1, device=device)
        trainer, backbone = engine.trainer(pack, plan, pack.weights()), engine.backbone(pack, plan, pack.weights())
        fed = batch._replace(images=backbone(batch.images)) if backbone else batch
        for _ in range(3):
            trainer.step(fed, Hyper(1e-2, gamma=1e-4))
        states.append(trainer.state())
    for key, ours in states[0].items():  # onnxruntime's convolutions round to TF32 there
        assert away(states[1][key], ours) <= {"ort": 2e-2, "torch": 1e-2}[name], key
