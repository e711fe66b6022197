"""Forward graphs are slow to export: each is made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from edge_sel.graphs.ir import Forward

ForwardOf = Callable[[str], tuple[object, Forward]]
SIZE = 16

LARGE = ("resnet-c", "resnet18-cifar")
"""Of the same parts as ``resnet-c-small``, only more and wider ones."""


def large_ones_slow(cases: Iterable[Any]) -> list[Any]:
    """Names of networks, or tuples that begin with one."""
    tuples = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=[pytest.mark.slow] if case[0] in LARGE else []) for case in tuples]


@pytest.fixture(scope="package", autouse=True)
def once_here(exports_once: None) -> None:
    pass


@pytest.fixture(scope="package")
def net_of(exports_once: None) -> ForwardOf:
    """net_of("resnet-c") -> the randomly initialised model for ten classes, and its forward graph.

    Also those of ``nets.py``, which have five classes.
    """
    import torch

    from edge_sel.models.registry import build, prepare
    from edge_sel.server.source import torch_model
    from tests.graphs.nets import Inverted, Masked, Moved, PartsNet, PooledHead, SmallTransformer, TwoHeads

    nets = {net.__name__: net for net in (PartsNet, SmallTransformer, PooledHead, TwoHeads, Moved, Masked, Inverted)}
    made: dict[str, tuple[object, Forward]] = {}

    def get(name: str) -> tuple[object, Forward]:
        if name not in made:
            torch.manual_seed(0)
            model = prepare(nets[name]()).eval() if name in nets else build(name, 10, (SIZE, SIZE))
            if name in nets:
                for parameter in model.parameters():  # no symmetric start: each parameter gets a gradient of its own
                    parameter.data += 0.1 * torch.randn_like(parameter)
            made[name] = model, torch_model.export_forward(model, (SIZE, SIZE))
        return made[name]

    return get
