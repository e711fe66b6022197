"""Attention heads are found in the graph, and a budget of them is trained with the right gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_sel.errors import GraphError
from edge_sel.graphs.plans import attention_heads, make_plan
from edge_sel.server.source import torch_model
from tests.graphs.steps import assert_step_is_autograds, batch


@pytest.fixture
def transformer(net_of):
    return net_of("SmallTransformer")


def test_the_heads_of_each_block_are_found(transformer):
    names = [f"blocks.{i}.attention.joint.weight" for i in range(3)]
    assert attention_heads(transformer[1]) == dict.fromkeys(names, 3)


@pytest.mark.parametrize("name,rows", [("last-h25", 12), ("last-h50", 24), ("full-h75", 24)])
def test_a_budget_is_of_whole_heads_in_each_layer(transformer, name, rows):
    plan = make_plan(transformer[1], name)
    assert set(plan.channels.values()) == {rows} and plan.channels.keys() == plan.heads.keys()
    assert plan.trainable == make_plan(transformer[1], name[:-4]).trainable


@pytest.mark.parametrize("name", ["last-h34", "full-h67"])
def test_a_step_of_some_heads_has_autograds_gradient(transformer, name):
    model, forward = transformer
    assert_step_is_autograds(model, forward, name, batch(16))


class Cut(nn.Module):
    """A layer whose outputs are cut into [3, heads, size], and no softmax behind."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 36)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.wide(x.flatten(2)[:, :, :12]).reshape(-1, 3, 3, 3, 4).mean(2)
        return self.head(parts.flatten(2).mean(1))


def test_what_is_cut_in_three_without_a_softmax_is_no_attention(one_thread):
    forward = torch_model.export_forward(Cut(), (16, 16))
    assert attention_heads(forward) == {}
    with pytest.raises(GraphError, match="plan full-h50 finds no attention heads to limit in this graph"):
        make_plan(forward, "full-h50")
