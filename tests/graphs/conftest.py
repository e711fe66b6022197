"""Forward graphs are slow to export: each is made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_sel.graphs.ir import Forward

ForwardOf = Callable[[str], tuple[object, Forward]]
SIZE = 16


@pytest.fixture(scope="session")
def forward_of(one_thread: None) -> ForwardOf:
    """forward_of("resnet-c") -> the randomly initialised model for ten classes, and its forward graph."""
    import torch

    from edge_sel.models.registry import build
    from edge_sel.server.source.torch_model import export_forward

    made: dict[str, tuple[object, Forward]] = {}

    def get(name: str) -> tuple[object, Forward]:
        if name not in made:
            torch.manual_seed(0)
            model = build(name, 10, (SIZE, SIZE))
            made[name] = model, export_forward(model, (SIZE, SIZE))
        return made[name]

    return get


@pytest.fixture(scope="session")
def net_of(forward_of: ForwardOf) -> ForwardOf:
    """The same, and of the networks of ``nets.py``, which have five classes."""
    import torch

    from edge_sel.models.registry import prepare
    from edge_sel.server.source.torch_model import export_forward
    from tests.graphs.nets import Inverted, Masked, Moved, PartsNet, PooledHead, SmallTransformer, TwoHeads

    nets = {net.__name__: net for net in (PartsNet, SmallTransformer, PooledHead, TwoHeads, Moved, Masked, Inverted)}
    made: dict[str, tuple[object, Forward]] = {}

    def get(name: str) -> tuple[object, Forward]:
        if name not in nets:
            return forward_of(name)
        if name not in made:
            torch.manual_seed(0)
            model = prepare(nets[name]()).eval()
            for parameter in model.parameters():  # no symmetric start: every parameter gets a gradient of its own
                parameter.data += 0.1 * torch.randn_like(parameter)
            made[name] = model, export_forward(model, (SIZE, SIZE))
        return made[name]

    return get
