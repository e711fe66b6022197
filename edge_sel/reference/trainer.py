"""The one training loop. Images, losses, gates, masks and memories stay on the device; it is asked once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.arrays import Arrays
from edge_sel.models.networks import FastNet
from edge_sel.reference import parallel
from edge_sel.reference.epoch import Accuracies, EpochResult, EpochSums
from edge_sel.reference.images import DeviceImages
from edge_sel.reference.model import ForwardPass, Speed, fastest, work_per_image
from edge_sel.reference.optim import FlatGradient, Stepper
from edge_sel.reference.policy import DeviceBatch, Policy, Pool
from edge_sel.reference.systems import Setup

_SCORE_BATCH = 1000
_WHITENING_IMAGES = 5000
_RECORDING_STEPS = 3
"""After so many steps of a size its CUDA graphs are recorded: one compiles, one warms up, one records."""


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The run was asked to stop in the middle of an epoch."""


class SystemTrainer:
    """Trains one model with one policy, to which it is a ``RunView``.

    Args:
        model: on the device.
        setup: optimizer, batch size, augmentation.
        policy: what this system does differently.
        train: the images to learn from.
        test: the images to judge by.
        seed: of every choice.
        speed: how steps are computed; None: as fast as the device can.
        should_stop: asked before every step.
    """

    def __init__(
        self,
        model: nn.Module,
        setup: Setup,
        policy: Policy,
        train: DeviceImages,
        test: DeviceImages,
        *,
        seed: int,
        speed: Speed | None = None,
        should_stop: Callable[[], object] = lambda: None,
    ) -> None:
        self.setup, self.policy, self.train, self.test, self.seed = setup, policy, train, test, seed
        self.device = train.device
        self.model = model.to(self.device, memory_format=torch.channels_last)
        if isinstance(model, FastNet):
            model.set_whitening(train.batch(torch.arange(min(_WHITENING_IMAGES, len(train)), device=self.device)))
        # Images smaller than the setup thinks, such as the digits, move in proportion.
        shift = setup.augmentation.shift * train.size[0] // setup.image_size
        self._augmentation = replace(setup.augmentation, shift=shift)
        self.gradient = FlatGradient(self.model)
        self.speed = fastest(self.device) if speed is None else speed
        float16 = self.speed.half == torch.float16
        self.stepper = Stepper(self.model, setup.optimizer, self.device, scale_loss=float16)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.work = work_per_image(self.model, train.size)
        self.executed_flops = 0
        self.generator = torch.Generator(self.device)
        self._should_stop = should_stop
        self._sizes = policy.batch_sizes(setup.batch_size // parallel.world())
        self._forward = ForwardPass(self.model, self.speed, self.device, self._sizes)

    def compile(self) -> None:
        """Compile the steps and record their CUDA graphs now, and not in the first epoch; the run stays the same."""
        if not self.speed.compiled:
            return
        with self._unchanged():
            for size in sorted(self._sizes):
                index = torch.arange(size, device=self.device) % len(self.train)
                x, y = self.train.batch(index), self.train.labels[index]
                for _ in range(_RECORDING_STEPS):
                    F.cross_entropy(self._forward(x), y).backward()

    def train_epoch(self, epoch: int) -> EpochResult:
        """One epoch (from 1); the same for the same seed, epoch and state, whatever ran before."""
        # All chance of the epoch follows from the seed and its number.
        torch.manual_seed(self.seed * 9_000_011 + epoch)
        self.generator.manual_seed(self.seed * 9_000_011 + epoch)
        self.executed_flops = 0
        pool = self.policy.start_epoch(self, epoch)
        self.stepper.schedule = pool.schedule or self.setup.optimizer.schedule
        sums = EpochSums(self.classes, self.device)
        draw = self.train.draw(self._augmentation, epoch, self.seed)
        batches = list(self._shuffled(pool, epoch))
        total = self.policy.epochs(self.setup.epochs) * len(batches)
        self.model.train()
        for number, index in enumerate(batches):
            # Several processes would have to wait for each other each time.
            if (parallel.world() == 1 or number % 50 == 0) and parallel.agree(bool(self._should_stop())):
                raise Stopped
            x = self.train.batch(index, draw, self._augmentation.border)
            batch = self.policy.narrow(self, DeviceBatch(index, x, self.train.labels[index]))
            step = (epoch - 1) * len(batches) + number
            self._step(batch, pool, sums, step, total, len(batches))
        for buffer in self.model.buffers():  # batch norm's statistics are of each process's part
            if buffer.is_floating_point():
                parallel.average(buffer)
        result = sums.result(pool, self.parameters, self.executed_flops)
        self.policy.end_epoch(result.train_acc)
        return result

    def _step(self, batch: DeviceBatch, pool: Pool, sums: EpochSums, step: int, total: int, per_epoch: int) -> None:
        self.gradient.values.zero_()
        logits = self._forward(batch.x)
        losses = F.cross_entropy(logits, batch.y, reduction="none", label_smoothing=self.setup.label_smoothing)
        every = DeviceBatch(parallel.gather(batch.index), batch.x, parallel.gather(batch.y))
        all_logits, all_losses = parallel.gather(logits.detach()), parallel.gather(losses.detach())
        correct = all_logits.argmax(1) == every.y
        weights = self.policy.weigh(self, every, all_losses)
        if weights is None and pool.weights is not None:
            weights = pool.weights[every.index]
        if weights is None:
            objective = losses.mean()
        else:
            mine = parallel.part(weights).to(losses.dtype)
            objective = (losses * mine).sum() * (parallel.world() / weights.sum())
        self.stepper.loss_scale.scale(objective).backward()
        parallel.average(self.gradient.values)
        self.stepper.loss_scale.unscale_(self.stepper.optimizer)
        sparsity = self.policy.mask(self.gradient.values)
        self.stepper.set_rate(step, total, per_epoch, all_losses.mean())
        self.stepper.step(step, total)
        self.policy.observe(every, all_losses, correct)
        self._count(len(batch.y), backward=True)
        sums.add(all_logits, every.y, all_losses, correct, weights, sparsity)

    def _count(self, images: int, *, backward: bool) -> None:
        """Note that this many images went forward, and perhaps back, in every process."""
        self.executed_flops += parallel.world() * images * (self.work.forward + (self.work.backward if backward else 0))

    def _shuffled(self, pool: Pool, epoch: int) -> Iterator[torch.Tensor]:
        """This process's part of each batch."""
        shuffle = torch.Generator().manual_seed(self.seed * 7_000_003 + epoch)
        order = pool.index[torch.randperm(len(pool.index), generator=shuffle).to(self.device)]
        size = min(self.setup.batch_size, len(order))
        for index in order.split(size):
            mine = parallel.part(index)
            # Batch norm cannot take the statistics of one image.
            if len(mine) > 1 and (len(index) == size or not self.setup.drop_last):
                yield mine

    # What a policy may ask: see ``RunView``.

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.train.classes)

    @property
    def labels(self) -> torch.Tensor:
        """Of all training images."""
        return self.train.labels

    def everything(self) -> torch.Tensor:
        """The index of every training image."""
        return torch.arange(len(self.train), device=self.device)

    def sample(self, count: int) -> torch.Tensor:
        """The index of this many training images."""
        return torch.randperm(len(self.train), generator=self.generator, device=self.device)[:count]

    def uniform(self, count: int) -> torch.Tensor:
        """Draws between 0 and 1."""
        return torch.rand(count, generator=self.generator, device=self.device)

    @torch.no_grad()
    def score(self) -> torch.Tensor:
        """The loss of every training image as the model is now; the same in every process."""
        index = self.everything()
        self.model.eval()
        losses = [
            F.cross_entropy(self._forward.uncompiled(self.train.batch(rows)), self.train.labels[rows], reduction="none")
            for rows in index.split(_SCORE_BATCH)
        ]
        self.model.train()
        self._count(len(index), backward=False)
        return parallel.same(torch.cat(losses))

    @torch.no_grad()
    def batch_losses(self, batch: DeviceBatch) -> torch.Tensor:
        """The losses of this process's batch."""
        self._count(len(batch.y), backward=False)
        return F.cross_entropy(self._forward(batch.x), batch.y, reduction="none")

    def calibrate(self, images: int) -> torch.Tensor:
        """The gradient of one batch, a view of ``gradient``; the model does not change."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))[:images]
        index = chosen.to(self.device)
        self.gradient.values.zero_()
        with self._unchanged():
            F.cross_entropy(self._forward.uncompiled(self.train.batch(index)), self.train.labels[index]).backward()
        parallel.same(self.gradient.values)
        self._count(len(index), backward=True)
        return self.gradient.values

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """In here the model is in training mode; its running statistics are put back."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        self.model.train()
        yield
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)

    def model_state(self) -> dict[str, torch.Tensor]:
        """A copy."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def magnitudes(self) -> torch.Tensor:
        """Of every trainable weight."""
        return self.gradient.collect([p.detach().abs() for p in self.gradient.parameters])

    def rewind(self, state: Mapping[str, torch.Tensor], keep: torch.Tensor) -> None:
        """The model as ``state`` says, without the weights outside ``keep``; the optimizer forgets."""
        self.model.load_state_dict(state)
        self.gradient.scale_weights(keep)
        self.stepper.optimizer.state.clear()

    @torch.no_grad()
    def evaluate(self) -> Accuracies:
        """On the test images."""
        self.model.eval()
        correct, index = [], torch.arange(len(self.test), device=self.device)
        for rows in index.split(_SCORE_BATCH):
            x = self.test.batch(rows)
            logits = self._forward.uncompiled(x)
            if self.setup.mirror_test:
                logits = logits + self._forward.uncompiled(x.flip(3))
            correct.append(logits.argmax(1) == self.test.labels[rows])
        self.model.train()
        return Accuracies.of(torch.cat(correct), self.test.labels, self.classes)

    def state(self) -> Arrays:
        """All that the next epochs depend on, by name: copies in the host's memory."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"stepper.{name}": value for name, value in self.stepper.state().items()}
        found |= {f"memory.{name}": value for name, value in self.policy.memory.items()}
        return {name: np.array(value.detach().cpu().numpy()) for name, value in found.items()}

    def load(self, arrays: Arrays) -> None:
        """What ``state`` gave."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "stepper": {}, "memory": {}}
        for name, value in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = torch.from_numpy(value.copy()).to(self.device)
        self.model.load_state_dict(parts["model"])
        self.stepper.load(parts["stepper"])
        self.policy.memory = parts["memory"]
