"""Which samples an epoch visits: by a memory of how hard each has been, or by losses that are scored anew.

Dynamic instance hardness is a by-product of training steps that happen anyway. So a sample can be skipped without even
a forward pass. Its comparators, ``easiest`` and ``diverse_hardest``, need one over the whole data set before every
epoch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy

from edge_sel.sel._array import (
    Array,
    Namespace,
    array_namespace,
    as_float,
    class_members,
    clip,
    resolve_namespace,
    stable_order,
)

Kind: TypeAlias = Literal["loss", "delta", "flip"]


class HardnessState(NamedTuple):
    """One entry per sample of the data set."""

    r: Array
    """float32[N], the hardness; 1 before the first visit, which is a placeholder and no knowledge: see ``seen``."""
    last_loss: Array
    """float32[N] in nats, at the last visit."""
    last_correct: Array
    """bool[N], whether the prediction was right at the last visit."""
    seen: Array
    """int32[N], visits so far; 0 means that nothing is known about the sample."""


def init(n: int, xp: Namespace = numpy, *, device: object = None) -> HardnessState:
    """The memory of ``n`` samples never visited: ``r = 1``."""
    xp = resolve_namespace(xp)
    return HardnessState(
        r=xp.ones(n, dtype=xp.float32, device=device),
        last_loss=xp.zeros(n, dtype=xp.float32, device=device),
        last_correct=xp.zeros(n, dtype=xp.bool, device=device),
        seen=xp.zeros(n, dtype=xp.int32, device=device),
    )


def update(
    state: HardnessState, indices: Array, losses: Array, correct: Array, *, gamma: float | Array, kind: Kind = "loss"
) -> HardnessState:
    """The memory after a batch.

    Formula: ``r_i = gamma a_i + (1 - gamma) r_i`` for the samples in the batch, unchanged elsewhere, with
        ``a_i`` the loss, ``|loss - last loss|`` ("delta") or 1 if the prediction changed between right and
        wrong, else 0 ("flip")

    At a sample's first visit there is nothing to compare with: "delta" and "flip" then leave ``r_i`` alone,
    and only remember the loss and the prediction.

    Args:
        state: before; not modified.
        indices: int[B], all different (with duplicates it is undefined which one counts).
        losses: float[B] in nats.
        correct: bool[B].
        gamma: weight of the new value, 0..1 (not of the old one: that is the paper's convention).
        kind: which instantaneous hardness.

    Returns:
        The new state; entries outside ``indices`` are the same bits.

    Source: DIHCL (Zhou et al. 2020), eq. 1. The poster normalises ``a`` by an "Eq. (5)" that it does not
        print; here ``a`` is used as it is.
    """
    xp = array_namespace(state.r, losses)
    r, last_loss, last_correct, seen = (xp.asarray(field, copy=True) for field in state)
    losses = xp.astype(losses, r.dtype)
    correct = xp.astype(correct, xp.bool)
    old = r[indices]
    if kind == "loss":
        a = losses
    elif kind == "delta":
        a = xp.abs(losses - last_loss[indices])
    elif kind == "flip":
        a = xp.astype(correct != last_correct[indices], r.dtype)
    else:
        raise ValueError(f"unknown kind of hardness {kind!r}: loss, delta or flip")
    new = gamma * a + (1 - gamma) * old
    r[indices] = new if kind == "loss" else xp.where(seen[indices] > 0, new, old)
    last_loss[indices] = losses
    last_correct[indices] = correct
    seen[indices] = seen[indices] + 1
    return HardnessState(r, last_loss, last_correct, seen)


def probabilities_exp(state: HardnessState, tau: float) -> Array:
    """DIHCL-Exp: sampling probabilities that grow exponentially with hardness.

    Formula: ``p_i ∝ exp(tau r_i / mean(r))``; a mean of zero counts as one

    Args:
        state: the memory.
        tau: 0 is uniform, large is greedy.

    Returns:
        float32[N] that sums to 1.

    Source: DIHCL (Zhou et al. 2020), DIHCL-Exp.
    """
    xp = array_namespace(state.r)
    mean = xp.mean(state.r)
    z = tau * (state.r / xp.where(mean == 0, xp.ones_like(mean), mean))
    weight = xp.exp(z - xp.max(z))
    return weight / xp.sum(weight)


def greedy(state: HardnessState, k: int) -> Array:
    """DIHCL-Greedy: the ``k`` hardest samples, hardest first; of equals the lower index comes first.

    Args:
        state: the memory.
        k: how many; more than N means all.

    Returns:
        int64[min(k, N)].

    Source: DIHCL (Zhou et al. 2020), algorithm 1, line 7.
    """
    xp = array_namespace(state.r)
    return xp.astype(stable_order(state.r, descending=True)[: _size(k)], xp.int64)


def weighted_sample(p: Array, k: int, u: Array) -> Array:
    """``k`` samples without replacement, drawn one after the other in proportion to ``p``.

    Formula: the ``k`` largest ``log p_i - log(-log u_i)`` (Gumbel trick)

    Args:
        p: float[N] >= 0, need not sum to one. Samples with ``p = 0`` come only when the others are used up.
        k: how many; more than N means all.
        u: uniform[N] in 0..1.

    Returns:
        int64[min(k, N)], in the order drawn.

    Source: Efraimidis & Spirakis 2006, in the log domain so that tiny probabilities neither under- nor
        overflow.
    """
    xp = array_namespace(p, u)
    u = as_float(u)
    # The open interval: 0 and 1 would give infinities of which the warning is the least problem.
    limits = xp.finfo(u.dtype)
    u = clip(u, limits.smallest_normal, 1 - limits.eps)
    p = as_float(p)
    possible = p > 0
    log_p = xp.where(possible, xp.log(xp.where(possible, p, 1.0)), -xp.inf)
    return xp.astype(stable_order(log_p - xp.log(-xp.log(u)), descending=True)[: _size(k)], xp.int64)


def shrink(k: float, gamma_k: float) -> float:
    """The next subset size, ``max(1, gamma_k k)``.

    Keep the float from epoch to epoch and round it only where it is used: rounding each time would stall
    small sizes.

    Source: DIHCL (Zhou et al. 2020), algorithm 1, line 12.
    """
    return max(1.0, gamma_k * k)


def _size(k: int) -> int:
    if k < 0:
        raise ValueError(f"cannot choose {k} samples")
    return k


def easiest(losses: Array, k: int) -> Array:
    """Self-paced learning: the ``k`` samples of the smallest loss; of equals the lower index comes first.

    Args:
        losses: float[N]; NaN counts as hardest.
        k: how many; more than N means all.

    Returns:
        int64[min(k, N)], easiest first.

    Source: SPL (Kumar et al. 2010), in the hard form with a sample count instead of a loss threshold.
    """
    xp = array_namespace(losses)
    return xp.astype(stable_order(losses)[: _size(k)], xp.int64)


def diverse_hardest(losses: Array, groups: Array, n_groups: int, k: int, diversity: float) -> Array:
    """Minimax curriculum: ``k`` samples that are hard, and spread over the groups.

    Formula: maximises ``sum_{i in S} loss_i + diversity sum_g sqrt(|S ∩ g|)``, exactly: within a group the hardest come
    first, and the j-th of them gains ``loss + diversity (sqrt(j) - sqrt(j - 1))``, which falls with j, so the k largest
    gains are the best set.

    Args:
        losses: float[N], finite.
        groups: int[N] in ``0..n_groups-1``, such as the labels.
        n_groups: how many groups.
        k: how many; more than N means all.
        diversity: what spreading is worth, in nats; 0 is the k hardest.

    Returns:
        int64[min(k, N)], by falling gain.

    Source: MCL (Zhou & Bilmes 2018), with a square root per group for its facility location, which needs features.
    """
    xp = array_namespace(losses, groups)
    losses = as_float(losses)
    order = stable_order(losses, descending=True)
    # How many of its own group stand before each sample, itself included: its j.
    members = xp.astype(class_members(xp.take(groups, order), n_groups), xp.int64)
    j = xp.astype(xp.sum(xp.where(members > 0, xp.cumulative_sum(members, axis=0), 0), axis=1), losses.dtype)
    gain = xp.take(losses, order) + diversity * (xp.sqrt(j) - xp.sqrt(j - 1))
    return xp.astype(xp.take(order, stable_order(gain, descending=True)[: _size(k)]), xp.int64)
