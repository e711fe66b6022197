"""Several GPUs: one process each, started by ``torchrun``. Alone, everything here does nothing.

Each process holds all images and takes its part of every batch. Every process draws the same random numbers; what a
policy decides from is gathered first, so all decide alike. Batch norm takes its statistics over the process's part.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from edge_sel.errors import SetupError, UsageError


def start(device: str) -> torch.device:
    """This process's device; joins the others if ``torchrun`` started them. ``auto`` is the GPU if there is one.

    Raises:
        UsageError: no such kind of device.
        SetupError: torch sees no GPU, or not this one.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UsageError("no such device", where=device, fix="auto, cpu, cuda or cuda:1")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        fix = "see `nvidia-smi`, install the torch build for its driver, or use --device cpu"
        raise SetupError(f"torch sees {torch.cuda.device_count()} GPUs", where=device, fix=fix)
    chosen = torch.device(kind)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(number or 0) if world() == 1 else int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    return chosen


def finish() -> None:
    """Leave the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 writes the results."""
    return dist.get_rank() if dist.is_initialized() else 0


def part(index: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch; what cannot be shared out evenly is left out."""
    size = len(index) // world()
    return index[rank() * size : (rank() + 1) * size] if world() > 1 else index


def gather(x: torch.Tensor) -> torch.Tensor:
    """The parts of all processes in order, as ``part`` shared them out."""
    if world() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def same(x: torch.Tensor) -> torch.Tensor:
    """The first process's values, in all: rounding on another GPU must not lead to another choice."""
    if world() > 1:
        dist.broadcast(x, 0)
    return x


def average(x: torch.Tensor) -> None:
    """Replace ``x`` by its mean over the processes."""
    if world() > 1:
        dist.all_reduce(x)
        x.div_(world())


def agree(flag: bool) -> bool:
    """Whether any process says so."""
    if world() == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    votes = torch.tensor(float(flag), device=device)
    dist.all_reduce(votes)
    return bool(votes > 0)
