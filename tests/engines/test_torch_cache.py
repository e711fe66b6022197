"""Networks that cache what they compute of their weights while they evaluate, as timm's LeViT does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from edge_sel.engines.base import Batch, Hyper
from edge_sel.engines.torch import TorchTrainer
from edge_sel.pack.reader import builtin_pack


class Caching(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.scale, self.cache = inner, nn.Parameter(torch.ones(10)), None

    def train(self, mode=True):
        if mode:
            self.cache = None
        return super().train(mode)

    def forward(self, images):
        if self.training:
            return self.inner(images) * (2 * self.scale)
        if self.cache is None:
            self.cache = 2 * self.scale
        return self.inner(images) * self.cache


def test_every_step_and_every_score_sees_the_weights_as_they_are():
    plan = replace(builtin_pack().plan("head"), trainable=("scale",), buffers=(), bn_mode="frozen", channels={})
    model = Caching(nn.Sequential(nn.Flatten(), nn.Linear(3, 10)))
    trainer = TorchTrainer(model, "sgd", plan, {"scale": np.ones(10, np.float32)})
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((4, 3, 1, 1)).astype(np.float32), np.arange(4)
    batch = Batch(images, labels, np.ones(4, np.float32))
    before = trainer.score(images, labels).losses
    for _ in range(3):
        stepped = trainer.step(batch, Hyper(learning_rate=0.5)).losses
    after = trainer.score(images, labels).losses
    assert after.mean() < stepped.mean() < before.mean()
