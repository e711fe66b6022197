"""The policy of a system, for the setup it runs with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_sel.reference.policies.ast import Sundew
from edge_sel.reference.policies.controls import InfoBatch, RandomRate, SelectiveBackprop
from edge_sel.reference.policies.dihcl import Dihcl, SelfPaced
from edge_sel.reference.policies.lottery import Lottery
from edge_sel.reference.policies.sel import RandomPools, Sel, staged
from edge_sel.reference.policy import Policy
from edge_sel.reference.setup import Setup
from edge_sel.reference.systems import System
from edge_sel.sel.curriculum import STAGES, Stage
from edge_sel.sel.sundew import config_for


def build_policy(system: System, setup: Setup) -> Policy:
    """A new policy; ``setup`` is the system's as scaled."""
    return _BUILDERS[system.policy](setup, **system.policy_options)


def _sel(setup: Setup, *, percentile: float, warmup: int = 0, share: float = 0.2, thresholds: bool = False,
         fast: bool = False) -> Policy:  # fmt: skip
    stages, before = _stages(setup, warmup, fast)
    return Sel(stages, percentile=percentile, warmup_epochs=before, warmup_share=share, thresholds=thresholds,
               schedule=None if fast else "sel")  # fmt: skip


def _random_pools(setup: Setup, *, warmup: int = 0, share: float = 0.2, fast: bool = False) -> Policy:
    stages, before = _stages(setup, warmup, fast)
    return RandomPools(stages, warmup_epochs=before, warmup_share=share, schedule="triangle" if fast else "cosine")


def _stages(setup: Setup, warmup: int, fast: bool) -> tuple[Sequence[Stage], int]:
    return staged([stage._replace(epochs=1) for stage in STAGES] if fast else STAGES, setup.epochs, warmup)


def _sundew(setup: Setup, *, rate: float, warmup_share: float = 0.0) -> Policy:
    return Sundew(config_for(rate), warmup_epochs=max(1, round(warmup_share * setup.epochs)) if warmup_share else 0)


_BUILDERS: dict[str, Callable[..., Policy]] = {
    "plain": lambda setup: Policy(),
    "lottery": lambda setup: Lottery(setup.epochs),
    "sel": _sel,
    "random-pools": _random_pools,
    "random-rate": lambda setup, rate: RandomRate(rate),
    "sundew": _sundew,
    "dihcl": lambda setup, rule, kind: Dihcl(rule, kind, setup.epochs),
    "self-paced": lambda setup, easy: SelfPaced(easy=easy, epochs=setup.epochs),
    "infobatch": lambda setup: InfoBatch(setup.epochs),
    "selective-backprop": lambda setup: SelectiveBackprop(setup.epochs),
}
