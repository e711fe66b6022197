"""A small device that is only computed: sessions whose time, joules and heat are those of their work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_sel.edge.host import Host
from edge_sel.edge.limits import Limit
from edge_sel.engines.ort import OrtEngine
from edge_sel.pack.reader import Pack
from edge_sel.power.battery import Supply
from edge_sel.power.meter import EnergySource, MeterError, Reading
from edge_sel.power.recorder import EnergyRecorder
from tests.edge.sessions import Killed, session, without_anchors

SLICE_S = 0.1


class World:
    """A small device: its time, joules and heat pass while its engine computes and while the session sleeps.

    It draws 10 W busy and 2 W idle, and warms to 125 °C and 45 °C by that, half of the way in 14 s.
    """

    name = "world"
    source: EnergySource = "measured"
    min_window_s = 0.1

    def __init__(self) -> None:
        self.now_s, self.energy_j = 0.0, 0.0
        self.temp_c = self.hottest_c = 45.0
        self.trained = self.scored = 0
        self.supply = lambda: Supply(None, None)
        self.minute = lambda: 0
        self.lost_s = math.inf
        self.cut_j = math.inf
        self.background: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.spend(seconds, 2.0)

    def spend(self, seconds: float, power_w: float = 10.0) -> None:
        """Slice by slice, with what threads do in between; power is cut for good at ``cut_j``."""
        while seconds > 0:
            self._spend(min(seconds, SLICE_S), power_w)
            seconds -= SLICE_S
            if self.energy_j >= self.cut_j:
                raise Killed
            self.background()

    def _spend(self, seconds: float, power_w: float) -> None:
        self.now_s += seconds
        self.energy_j += power_w * seconds
        steady_c = 25.0 + 10.0 * power_w
        self.temp_c = steady_c + (self.temp_c - steady_c) * math.exp(-seconds / 20.0)
        self.hottest_c = max(self.hottest_c, self.temp_c)

    def read(self, now_s: float) -> Reading:
        if self.now_s >= self.lost_s:
            raise MeterError("it is gone")
        return Reading(now_s, self.energy_j, None)

    def close(self) -> None:
        pass


class Labouring:
    """The default engine; what it computes takes the world's time: a forward pass 20 ms an image, a step 60 ms.

    Of both a frozen backbone takes the share that it has of the FLOPs, and of a step only what a forward pass takes.
    """

    name = "ort"

    def __init__(self, world: World) -> None:
        self._world, self._engine = world, OrtEngine(threads=1)

    def trainer(self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray]) -> Any:
        return _Labourer(self._world, self._engine.trainer(pack, plan, weights), 1 - backbone_share(pack, plan))

    def backbone(
        self, pack: Pack, plan: str, weights: Mapping[str, np.ndarray], *, int8: tuple[float, float] | None = None
    ) -> Any:
        backbone = self._engine.backbone(pack, plan, weights, int8=int8)

        def laboured(images: np.ndarray) -> np.ndarray:
            self._world.spend(0.02 * backbone_share(pack, plan) * len(images))
            return backbone(images)

        return laboured if backbone else None

    def predictor(self, pack: Pack, weights: Mapping[str, np.ndarray]) -> Any:
        predict = self._engine.predictor(pack, weights)

        def laboured(images: np.ndarray) -> np.ndarray:
            self._world.spend(0.02 * len(images))
            return predict(images)

        return laboured


def backbone_share(pack: Pack, plan: str) -> float:
    """Of the FLOPs of a step on an image that is seen for the first time."""
    info = pack.backbone(plan)
    return info.flops / (info.flops + pack.plan(plan).flops_train) if info else 0.0


class _Labourer:
    def __init__(self, world: World, trainer: Any, share: float) -> None:
        self._world, self._trainer, self._share = world, trainer, share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def score(self, images: np.ndarray, labels: np.ndarray) -> Any:
        self._world.scored += len(images)
        self._world.spend(0.02 * self._share * len(images))
        return self._trainer.score(images, labels)

    def step(self, batch: Any, hyper: Any) -> Any:
        self._world.trained += len(batch.labels)
        self._world.spend(0.06 * self._share * len(batch.labels))
        return self._trainer.step(batch, hyper)

    def guilt(self, batch: Any) -> Any:
        self._world.spend(0.06 * self._share * len(batch.labels))
        return self._trainer.guilt(batch)


def governed(out: Path, world: World, *limits: Limit, **given: Any) -> dict[str, Any]:
    """The result of a session in this world under these limits; the pack has no anchors, which few images would outweigh."""
    given = {"base": without_anchors(), **given}
    recorder = EnergyRecorder(world, world, background=False, temperature=lambda: world.temp_c, cpu_time=world)
    host = Host(clock=world, sleep=world.sleep, supply=world.supply, minute=world.minute)
    opened = session(out, engine=Labouring(world), recorder=recorder, host=host, limits=limits, **given)

    def background() -> None:
        recorder.refresh()
        opened.book.tick()

    world.background = background
    try:
        return opened.run()
    finally:
        world.background = lambda: None
