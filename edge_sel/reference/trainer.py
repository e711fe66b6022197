"""The one training loop. Images, losses, gates, masks and memories stay on the device; it is asked once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from edge_sel.models.fast_net import FastNet
from edge_sel.reference import parallel
from edge_sel.reference.epoch import EpochResult, EpochSums, Evaluation
from edge_sel.reference.images import DeviceImages
from edge_sel.reference.optim import FlatGradient, Stepper
from edge_sel.reference.policy import Batch, Policy, Pool
from edge_sel.reference.setup import Setup
from edge_sel.reference.speed import Speed, fastest
from edge_sel.reference.torch_flops import work_per_image

_SCORE_BATCH = 1000
_WHITENING_IMAGES = 5000


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked for it
    """The run was asked to stop in the middle of an epoch."""


class Trainer:
    """Trains one model with one policy.

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
        self.stepper = Stepper(self.model, setup.optimizer, self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.work = work_per_image(self.model, train.size)
        self.executed_flops = 0
        self.generator = torch.Generator(self.device)
        self._should_stop = should_stop
        self._forward: Callable[[torch.Tensor], torch.Tensor] = self.model
        self._compiled_sizes = policy.batch_sizes(setup.batch_size // parallel.world())
        self.speed = fastest(self.device) if speed is None else speed
        self._half = self.speed.half
        if self._half is not None:
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")
            self.stepper.loss_scale = torch.amp.GradScaler(self.device.type, enabled=self._half == torch.float16)
        if self.speed.compiled:
            self._forward = torch.compile(self.model, mode="reduce-overhead", dynamic=False)

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.train.classes)

    def everything(self) -> torch.Tensor:
        """The index of every training image."""
        return torch.arange(len(self.train), device=self.device)

    def train_epoch(self, epoch: int) -> EpochResult:
        """One epoch (from 1); the same for the same seed, epoch and state, whatever ran before."""
        self.reseed(epoch)
        self.executed_flops = 0
        pool = self.policy.start_epoch(self, epoch)
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
            batch = self.policy.narrow(self, Batch(index, x, self.train.labels[index]))
            step = (epoch - 1) * len(batches) + number
            self._step(batch, pool, sums, step, total, len(batches))
        for buffer in self.model.buffers():  # batch norm's statistics are of each process's part
            if buffer.is_floating_point():
                parallel.average(buffer)
        result = sums.result(pool, self.parameters, self.executed_flops)
        self.policy.end_epoch(self, result.train_acc)
        return result

    def _step(self, batch: Batch, pool: Pool, sums: EpochSums, step: int, total: int, per_epoch: int) -> None:
        self.gradient.zero()
        logits = self.logits(batch.x)
        losses = F.cross_entropy(logits, batch.y, reduction="none", label_smoothing=self.setup.label_smoothing)
        every = Batch(parallel.gather(batch.index), batch.x, parallel.gather(batch.y))
        all_logits, all_losses = parallel.gather(logits.detach()), parallel.gather(losses.detach())
        correct = all_logits.argmax(1) == every.y
        weights = self.policy.weigh(self, every, all_logits, all_losses)
        if weights is None and pool.weights is not None:
            weights = pool.weights[every.index]
        if weights is None:
            objective = losses.mean()
        else:
            mine = parallel.part(weights).to(losses.dtype)
            objective = (losses * mine).sum() * (parallel.world() / weights.sum())
        self.stepper.loss_scale.scale(objective).backward()
        self.gradient.average()
        self.stepper.loss_scale.unscale_(self.stepper.optimizer)
        sparsity = self.policy.mask(self)
        self.stepper.set_rate(step, total, per_epoch, all_losses.mean())
        self.stepper.step(step, total)
        self.policy.observe(self, every, all_losses, correct)
        self.count(len(batch.y), backward=True)
        sums.add(all_logits, every.y, all_losses, correct, weights, sparsity)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The model in training, float32[B, C]."""
        if self._half is None:
            return self.model(x)
        torch.compiler.cudagraph_mark_step_begin()
        forward = self._forward if len(x) in self._compiled_sizes else self.model
        with torch.autocast(self.device.type, self._half):
            return forward(x).float()

    def count(self, images: int, *, backward: bool) -> None:
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

    @torch.no_grad()
    def score(self, index: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of every image (or of those at ``index``) as the model is now, float32[N]; counted as work."""
        index = self.everything() if index is None else index
        self.model.eval()
        losses = [
            F.cross_entropy(self._half_or_not(self.train.batch(rows)), self.train.labels[rows], reduction="none")
            for rows in index.split(_SCORE_BATCH)
        ]
        self.model.train()
        self.count(len(index), backward=False)
        return parallel.same(torch.cat(losses))

    def calibrate(self, images: int) -> None:
        """Put the gradient of one batch into ``gradient``; the model does not change."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))[:images]
        index = chosen.to(self.device)
        self.gradient.zero()
        self.model.train()
        F.cross_entropy(self._half_or_not(self.train.batch(index)), self.train.labels[index]).backward()
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        parallel.same(self.gradient.values)
        self.count(len(index), backward=True)

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """Accuracy on the test images; per class only the first 100 count, as in the sources."""
        self.model.eval()
        correct, index = [], torch.arange(len(self.test), device=self.device)
        for rows in index.split(_SCORE_BATCH):
            x = self.test.batch(rows)
            logits = self._half_or_not(x)
            if self.setup.mirror_test:
                logits = logits + self._half_or_not(x.flip(3))
            correct.append(logits.argmax(1) == self.test.labels[rows])
        self.model.train()
        right = torch.cat(correct).double()
        members = self.test.labels[:, None] == torch.arange(self.classes, device=self.device)
        first = (members & (members.cumsum(0) <= 100)).double()
        counts = first.sum(0)
        per_class = (first * right[:, None]).sum(0) / counts
        overall = (first * right[:, None]).sum() / counts.sum()
        return Evaluation(float(right.mean()), float(overall), tuple(per_class.tolist()))

    def _half_or_not(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device.type, self._half or torch.bfloat16, enabled=self._half is not None):
            return self.model(x).float()

    def reseed(self, epoch: int) -> None:
        """Let all chance of the epoch follow from the seed and its number."""
        torch.manual_seed(self.seed * 9_000_011 + epoch)
        self.generator.manual_seed(self.seed * 9_000_011 + epoch)

    def state(self) -> dict[str, torch.Tensor]:
        """All that the next epochs depend on, by name."""
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"stepper.{name}": value for name, value in self.stepper.state().items()}
        return found | {f"memory.{name}": value for name, value in self.policy.memory.items()}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """What ``state`` gave."""
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "stepper": {}, "memory": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value.to(self.device)
        self.model.load_state_dict(parts["model"])
        self.stepper.load(parts["stepper"])
        self.policy.memory = parts["memory"]
